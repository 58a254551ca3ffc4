//! Conversions between the peer messages of `basalt-raft` and the wire.

use basalt_client::wire::{self, WireError};
use basalt_model::{FeatureLevel, Member, MemberId};
use basalt_proto::peer as proto;
use basalt_raft::{
    EntryKind, LogEntry, Membership, MessageKind, PeerBody, PeerMessage, PeerRefusal, RaftMessage,
    SnapshotAck, SnapshotChunk,
};
use proto::peer_message::Body;

/// A message to another member.
pub(crate) fn encode(message: PeerMessage) -> proto::PeerMessage {
    let body = match message.body {
        PeerBody::Raft(message) => Body::Raft(encode_raft(message)),
        PeerBody::SnapshotChunk(chunk) => Body::SnapshotChunk(proto::SnapshotChunk {
            term: chunk.term,
            index: chunk.index,
            log_term: chunk.log_term,
            membership: Some(encode_membership(chunk.membership)),
            total_bytes: chunk.total,
            total_crc32c: chunk.total_crc,
            offset: chunk.offset,
            crc32c: chunk.crc,
            data: chunk.data,
        }),
        PeerBody::SnapshotAck(ack) => Body::SnapshotAck(proto::SnapshotAck {
            term: ack.term,
            index: ack.index,
            received_bytes: ack.received,
            restart: ack.restart,
        }),
        PeerBody::Announce { member, founds } => {
            Body::Announcement(proto::Announcement { founds, ..encode_member(member) })
        }
        PeerBody::Introduce(members) => Body::Introduction(proto::Introduction {
            members: members.into_iter().map(encode_member).collect(),
        }),
        PeerBody::Refused(refusal) => Body::Refused(encode_refusal(refusal)),
    };
    proto::PeerMessage {
        cluster_id: message.cluster.map(|cluster| cluster.to_string()).unwrap_or_default(),
        from: message.from.get(),
        from_disk: message.from_disk.to_string(),
        to: message.to.get(),
        to_disk: message.to_disk.map(|disk| disk.to_string()).unwrap_or_default(),
        body: Some(body),
    }
}

/// A message of another member.
pub(crate) fn decode(message: proto::PeerMessage) -> Result<PeerMessage, WireError> {
    let body = match message.body.ok_or(WireError::Missing { field: "body" })? {
        Body::Raft(message) => PeerBody::Raft(decode_raft(message)?),
        Body::SnapshotChunk(chunk) => PeerBody::SnapshotChunk(SnapshotChunk {
            term: chunk.term,
            index: chunk.index,
            log_term: chunk.log_term,
            membership: decode_membership(chunk.membership.unwrap_or_default()),
            total: chunk.total_bytes,
            total_crc: chunk.total_crc32c,
            offset: chunk.offset,
            crc: chunk.crc32c,
            data: chunk.data,
        }),
        Body::SnapshotAck(ack) => PeerBody::SnapshotAck(SnapshotAck {
            term: ack.term,
            index: ack.index,
            received: ack.received_bytes,
            restart: ack.restart,
        }),
        Body::Announcement(member) => {
            PeerBody::Announce { founds: member.founds, member: decode_member(member)? }
        }
        Body::Introduction(introduction) => {
            let members: Result<_, WireError> = introduction.members.into_iter().map(decode_member).collect();
            PeerBody::Introduce(members?)
        }
        Body::Refused(refusal) => PeerBody::Refused(decode_refusal(&refusal)?),
    };
    Ok(PeerMessage {
        cluster: wire::optional_uuid("cluster_id", &message.cluster_id)?,
        from: member_id("from", message.from)?,
        from_disk: wire::uuid("from_disk", &message.from_disk)?,
        to: member_id("to", message.to)?,
        to_disk: wire::optional_uuid("to_disk", &message.to_disk)?,
        body,
    })
}

fn encode_member(member: Member) -> proto::Announcement {
    proto::Announcement {
        id: member.id.get(),
        disk: member.disk.map(|disk| disk.to_string()).unwrap_or_default(),
        peer_address: member.peer_address,
        api_address: member.api_address,
        feature_level: member.supports.0,
        version: member.version,
        founds: false,
    }
}

fn decode_member(member: proto::Announcement) -> Result<Member, WireError> {
    Ok(Member {
        id: member_id("announcement.id", member.id)?,
        disk: wire::optional_uuid("announcement.disk", &member.disk)?,
        peer_address: member.peer_address,
        api_address: member.api_address,
        supports: FeatureLevel(member.feature_level),
        version: member.version,
        replaces: None,
    })
}

fn member_id(field: &'static str, id: u64) -> Result<MemberId, WireError> {
    MemberId::new(id).ok_or(WireError::Range { field })
}

fn encode_raft(message: RaftMessage) -> proto::RaftMessage {
    let entry = |entry: LogEntry| proto::LogEntry {
        kind: match entry.kind {
            EntryKind::Command => proto::EntryKind::Command,
            EntryKind::Membership => proto::EntryKind::Membership,
        }
        .into(),
        term: entry.term,
        index: entry.index,
        data: entry.data,
        context: entry.context,
    };
    proto::RaftMessage {
        kind: encode_kind(message.kind).into(),
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_iter().map(entry).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
    }
}

fn decode_raft(message: proto::RaftMessage) -> Result<RaftMessage, WireError> {
    let kind = decode_kind(message.kind)?;
    let entry = |entry: proto::LogEntry| {
        let kind = match proto::EntryKind::try_from(entry.kind) {
            Ok(proto::EntryKind::Command) => EntryKind::Command,
            Ok(proto::EntryKind::Membership) => EntryKind::Membership,
            Ok(proto::EntryKind::Unspecified) | Err(_) => {
                return Err(WireError::Unknown { field: "raft.entries.kind", value: entry.kind });
            }
        };
        Ok(LogEntry { kind, term: entry.term, index: entry.index, data: entry.data, context: entry.context })
    };
    Ok(RaftMessage {
        kind,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        commit: message.commit,
        commit_term: message.commit_term,
        request_snapshot: message.request_snapshot,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context,
        priority: message.priority,
    })
}

fn encode_kind(kind: MessageKind) -> proto::MessageKind {
    match kind {
        MessageKind::Append => proto::MessageKind::Append,
        MessageKind::AppendResponse => proto::MessageKind::AppendResponse,
        MessageKind::RequestVote => proto::MessageKind::RequestVote,
        MessageKind::RequestVoteResponse => proto::MessageKind::RequestVoteResponse,
        MessageKind::Heartbeat => proto::MessageKind::Heartbeat,
        MessageKind::HeartbeatResponse => proto::MessageKind::HeartbeatResponse,
        MessageKind::TransferLeader => proto::MessageKind::TransferLeader,
        MessageKind::TimeoutNow => proto::MessageKind::TimeoutNow,
        MessageKind::ReadIndex => proto::MessageKind::ReadIndex,
        MessageKind::ReadIndexResponse => proto::MessageKind::ReadIndexResponse,
        MessageKind::RequestPreVote => proto::MessageKind::RequestPreVote,
        MessageKind::RequestPreVoteResponse => proto::MessageKind::RequestPreVoteResponse,
    }
}

fn decode_kind(value: i32) -> Result<MessageKind, WireError> {
    Ok(match proto::MessageKind::try_from(value) {
        Ok(proto::MessageKind::Append) => MessageKind::Append,
        Ok(proto::MessageKind::AppendResponse) => MessageKind::AppendResponse,
        Ok(proto::MessageKind::RequestVote) => MessageKind::RequestVote,
        Ok(proto::MessageKind::RequestVoteResponse) => MessageKind::RequestVoteResponse,
        Ok(proto::MessageKind::Heartbeat) => MessageKind::Heartbeat,
        Ok(proto::MessageKind::HeartbeatResponse) => MessageKind::HeartbeatResponse,
        Ok(proto::MessageKind::TransferLeader) => MessageKind::TransferLeader,
        Ok(proto::MessageKind::TimeoutNow) => MessageKind::TimeoutNow,
        Ok(proto::MessageKind::ReadIndex) => MessageKind::ReadIndex,
        Ok(proto::MessageKind::ReadIndexResponse) => MessageKind::ReadIndexResponse,
        Ok(proto::MessageKind::RequestPreVote) => MessageKind::RequestPreVote,
        Ok(proto::MessageKind::RequestPreVoteResponse) => MessageKind::RequestPreVoteResponse,
        Ok(proto::MessageKind::Unspecified) | Err(_) => {
            return Err(WireError::Unknown { field: "raft.kind", value });
        }
    })
}

fn encode_membership(membership: Membership) -> proto::GroupMembership {
    proto::GroupMembership {
        voters: membership.voters,
        learners: membership.learners,
        voters_outgoing: membership.voters_outgoing,
        learners_next: membership.learners_next,
        auto_leave: membership.auto_leave,
    }
}

fn decode_membership(membership: proto::GroupMembership) -> Membership {
    Membership {
        voters: membership.voters,
        learners: membership.learners,
        voters_outgoing: membership.voters_outgoing,
        learners_next: membership.learners_next,
        auto_leave: membership.auto_leave,
    }
}

fn encode_refusal(refusal: PeerRefusal) -> proto::PeerRefusal {
    let (reason, cluster) = match refusal {
        PeerRefusal::WrongCluster { cluster } => {
            (proto::PeerRefusalReason::WrongCluster, cluster.to_string())
        }
        PeerRefusal::WrongDisk => (proto::PeerRefusalReason::WrongDisk, String::new()),
        PeerRefusal::Removed => (proto::PeerRefusalReason::Removed, String::new()),
        PeerRefusal::Unknown => (proto::PeerRefusalReason::Unknown, String::new()),
    };
    proto::PeerRefusal { reason: reason.into(), cluster_id: cluster }
}

fn decode_refusal(refusal: &proto::PeerRefusal) -> Result<PeerRefusal, WireError> {
    Ok(match refusal.reason() {
        proto::PeerRefusalReason::WrongCluster => {
            PeerRefusal::WrongCluster { cluster: wire::uuid("refused.cluster_id", &refusal.cluster_id)? }
        }
        proto::PeerRefusalReason::WrongDisk => PeerRefusal::WrongDisk,
        proto::PeerRefusalReason::Removed => PeerRefusal::Removed,
        proto::PeerRefusalReason::Unknown => PeerRefusal::Unknown,
        proto::PeerRefusalReason::Unspecified => {
            return Err(WireError::Unknown { field: "refused.reason", value: refusal.reason });
        }
    })
}

#[cfg(test)]
mod tests {
    use basalt_model::{ClusterId, DiskId};

    use super::*;

    fn round_trip(body: PeerBody) {
        let message = PeerMessage {
            cluster: Some(ClusterId::from_random(1)),
            from: MemberId::new(1).unwrap(),
            from_disk: DiskId::from_random(2),
            to: MemberId::new(2).unwrap(),
            to_disk: None,
            body,
        };
        assert_eq!(decode(encode(message.clone())).unwrap(), message);
    }

    #[test]
    fn every_kind_of_raft_message_round_trips() {
        for value in 1..=12 {
            let kind = decode_kind(value).unwrap();
            assert_eq!(encode_kind(kind) as i32, value);
            round_trip(PeerBody::Raft(RaftMessage {
                kind,
                term: 1,
                log_term: 2,
                index: 3,
                entries: vec![LogEntry {
                    kind: EntryKind::Membership,
                    term: 4,
                    index: 5,
                    data: vec![6],
                    context: vec![7],
                }],
                commit: 8,
                commit_term: 9,
                request_snapshot: 10,
                reject: true,
                reject_hint: 11,
                context: vec![12],
                priority: -13,
            }));
        }
        assert!(decode_kind(0).is_err() && decode_kind(13).is_err());
    }

    #[test]
    fn snapshots_announcements_and_refusals_round_trip() {
        round_trip(PeerBody::SnapshotChunk(SnapshotChunk {
            term: 1,
            index: 2,
            log_term: 3,
            membership: Membership {
                voters: vec![1, 2],
                learners: vec![3],
                voters_outgoing: vec![4],
                learners_next: vec![5],
                auto_leave: true,
            },
            total: 4,
            total_crc: 5,
            offset: 6,
            crc: 7,
            data: vec![8],
        }));
        round_trip(PeerBody::SnapshotAck(SnapshotAck { term: 1, index: 2, received: 3, restart: true }));
        let member = Member {
            id: MemberId::new(3).unwrap(),
            disk: Some(DiskId::from_random(4)),
            peer_address: "a:1".into(),
            api_address: "a:2".into(),
            supports: FeatureLevel(1),
            version: "0.1.0".into(),
            replaces: None,
        };
        for founds in [true, false] {
            round_trip(PeerBody::Announce { member: member.clone(), founds });
        }
        round_trip(PeerBody::Introduce(vec![member]));
        for refusal in [
            PeerRefusal::WrongCluster { cluster: ClusterId::from_random(5) },
            PeerRefusal::WrongDisk,
            PeerRefusal::Removed,
            PeerRefusal::Unknown,
        ] {
            round_trip(PeerBody::Refused(refusal));
        }
    }

    #[test]
    fn member_zero_is_refused() {
        let message = proto::PeerMessage { from: 0, ..proto::PeerMessage::default() };
        assert!(decode(message).is_err());
    }
}
