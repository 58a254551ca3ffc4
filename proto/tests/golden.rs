//! Golden bytes: what older builds put on the wire must be read for ever, and must be what this build writes.

use std::{collections::BTreeMap, fmt::Debug};

use basalt_proto::{api, node, peer};
use prost::Message;

/// The bytes that `message` must encode to, as lower-case hexadecimal, and back.
#[track_caller]
fn golden<M: Message + Default + PartialEq + Debug>(message: &M, expected: &str) {
    let bytes = message.encode_to_vec();
    let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(text, expected);
    assert_eq!(M::decode(bytes.as_slice()).expect("own bytes decode"), *message);
}

#[test]
fn node_hello() {
    let message = node::NodeMessage {
        term: 3,
        revision: 300,
        body: Some(node::node_message::Body::Hello(node::NodeHello {
            node_name: "n1".into(),
            cluster_id: "c".into(),
            version_min: 1,
            version_max: 2,
            features: vec!["f".into()],
            instance_id: "i".into(),
            boot_id: "b".into(),
            software_version: "0.1.0".into(),
        })),
    };
    golden(&message, "080310ac021a1b0a026e31120163180120022a01663201693a01624205302e312e30");
}

#[test]
fn desired_state_with_tombstone() {
    let message = node::ControlMessage {
        term: 1,
        revision: 9,
        body: Some(node::control_message::Body::DesiredState(node::DesiredState {
            tombstones: vec![api::VolumeTombstone {
                cluster_id: "c".into(),
                volume_id: "v".into(),
                generation: 2,
                node: "n".into(),
                pool: "p".into(),
            }],
            ..node::DesiredState::default()
        })),
    };
    golden(&message, "080110092a10220e0a0163120176180222016e2a0170");
}

#[test]
fn create_volume() {
    let message = api::CreateVolumeRequest {
        context: Some(api::MutationContext { request_id: "r".into(), owner_uid: "u".into() }),
        name: "v".into(),
        spec: Some(api::VolumeSpec {
            size_bytes: 1 << 30,
            replicas: 1,
            thin: false,
            allowed_hosts: vec!["*".into()],
            selector: Some(api::VolumeSelector {
                labels: BTreeMap::from([("b".into(), "2".into()), ("a".into(), "1".into())]),
                ..api::VolumeSelector::default()
            }),
            reclaim_policy: api::ReclaimPolicy::Retain.into(),
            source_snapshot: String::new(),
            read_only: false,
        }),
        adopt_volume_id: String::new(),
    };
    golden(
        &message,
        "0a060a01721201751201761a1f088080808004100122012a2a101a060a01611201311a060a01621201323002",
    );
}

#[test]
fn append_message() {
    let message = peer::PeerMessage {
        cluster_id: "c".into(),
        from: 1,
        from_disk: "d1".into(),
        to: 2,
        to_disk: "d2".into(),
        body: Some(peer::peer_message::Body::Raft(peer::RaftMessage {
            kind: peer::MessageKind::Append.into(),
            term: 5,
            log_term: 4,
            index: 127,
            entries: vec![peer::LogEntry {
                kind: peer::EntryKind::Command.into(),
                term: 5,
                index: 128,
                data: vec![0xff],
                context: vec![1],
            }],
            commit: 127,
            ..peer::RaftMessage::default()
        })),
    };
    golden(&message, "0a016310011a02643120022a0264323219080110051804207f2a0d080110051880012201ff2a0101307f");
}

#[test]
fn a_field_of_a_newer_build_is_ignored() {
    let mut bytes = node::Heartbeat { sequence: 7 }.encode_to_vec();
    bytes.extend_from_slice(&[0xfa, 0x01, 0x01, b'x']);
    assert_eq!(node::Heartbeat::decode(bytes.as_slice()).expect("unknown fields are skipped").sequence, 7);
}

#[test]
fn a_watch_says_where_its_revision_is_from() {
    let message = api::WatchRequest { from_revision: 1, cluster_id: "c".into(), incarnation: 2 };
    golden(&message, "08011201631802");
    golden(&api::WatchProgress { cluster_id: "c".into(), incarnation: 2 }, "0a01631002");
}

#[test]
fn a_founder_and_a_refusal() {
    golden(&peer::Announcement { id: 1, founds: true, ..peer::Announcement::default() }, "08013801");
    let refusal = peer::PeerMessage { from: 1, to: 2, ..peer::PeerMessage::default() };
    golden(&peer::SendResponse { received: 1, refusal: Some(refusal) }, "0801120410012002");
}
