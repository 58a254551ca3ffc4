//! Sessions with daemons: a volume from `CreateVolume` to online and away, told by hand.

use std::time::Duration;

use basalt_client::{CreateVolume, Mutation};
use basalt_identity::{Connector, Role, Security};
use basalt_model::{
    AllowedHosts, Bytes, Lifecycle, Liveness, ReclaimPolicy, Selector, VolumeName, VolumeSpec, VolumeState,
};
use basalt_proto::{
    api,
    node::{self, control_message::Body as FromControl, node_message::Body as FromNode},
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming, transport::Endpoint};

use crate::fixture::{Cluster, eventually, leader, node_spec, voters};

const INSTANCE: &str = "11111111-1111-4111-8111-111111111111";
const OTHER_INSTANCE: &str = "22222222-2222-4222-8222-222222222222";
const POOL_ID: &str = "33333333-3333-4333-8333-333333333333";

/// The daemon's end of a session.
struct Daemon {
    out: mpsc::Sender<node::NodeMessage>,
    incoming: Streaming<node::ControlMessage>,
}

impl Daemon {
    /// Connects with the certificate of `certificate` and says that it is `name`.
    async fn connect(cluster: &Cluster, member: u64, certificate: &str, name: &str, instance: &str) -> Self {
        Self::connect_at(cluster, member, (certificate, name), instance, 0).await
    }

    /// A daemon that has seen this revision.
    async fn connect_at(
        cluster: &Cluster,
        member: u64,
        (certificate, name): (&str, &str),
        instance: &str,
        revision: u64,
    ) -> Self {
        let security = Security::Tls(cluster.credentials(Role::Node, certificate));
        let uri = format!("http://127.0.0.1:{}", cluster.member(member).api);
        let channel = Endpoint::from_shared(uri).unwrap();
        let channel = channel.connect_with_connector(Connector::new(security)).await.unwrap();
        let (out, outgoing) = mpsc::channel(16);
        let hello = node::NodeHello {
            node_name: name.into(),
            cluster_id: String::new(),
            version_min: basalt_proto::NODE_PROTOCOL_VERSION_MIN,
            version_max: basalt_proto::NODE_PROTOCOL_VERSION_MAX,
            features: Vec::new(),
            instance_id: instance.into(),
            boot_id: INSTANCE.into(),
            software_version: "test".into(),
        };
        let daemon = Self {
            out,
            incoming: {
                let mut client = node::node_session_client::NodeSessionClient::new(channel);
                let stream = tokio_stream::wrappers::ReceiverStream::new(outgoing);
                client.session(stream).await.unwrap().into_inner()
            },
        };
        daemon.say(revision, FromNode::Hello(hello)).await;
        daemon
    }

    async fn say(&self, revision: u64, body: FromNode) {
        self.out.send(node::NodeMessage { term: 0, revision, body: Some(body) }).await.unwrap();
    }

    async fn hear(&mut self) -> Result<node::ControlMessage, Status> {
        let message = tokio::time::timeout(Duration::from_secs(10), self.incoming.message()).await;
        message.expect("the member says something in time")?.ok_or_else(|| Status::ok("the end"))
    }

    /// The next desired state that fits, heartbeats left out.
    async fn desired(&mut self, fits: impl Fn(&node::DesiredState) -> bool) -> (u64, node::DesiredState) {
        loop {
            let message = self.hear().await.unwrap();
            match message.body {
                Some(FromControl::DesiredState(state)) if fits(&state) => return (message.revision, state),
                Some(FromControl::Refusal(refusal)) => panic!("refused: {refusal:?}"),
                _ => {}
            }
        }
    }

    async fn refusal(&mut self) -> node::Refusal {
        match self.hear().await.unwrap().body {
            Some(FromControl::Refusal(refusal)) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }
}

fn report(revision: u64) -> node::NodeReport {
    node::NodeReport {
        observed_revision: revision,
        pools: vec![api::PoolStatus {
            name: "p1".into(),
            id: POOL_ID.into(),
            health: api::PoolHealth::Online.into(),
            capacity_bytes: 1 << 30,
            used_bytes: 0,
            allocation_unit_bytes: 1 << 20,
            disks: Vec::new(),
            problem: None,
            expected_id: String::new(),
        }],
        endpoints: vec!["127.0.0.1:4420".into()],
        problems: Vec::new(),
        volumes: Vec::new(),
        deleted: Vec::new(),
    }
}

fn online(volume: &node::DesiredVolume) -> node::VolumeReport {
    node::VolumeReport {
        id: volume.id.clone(),
        observed: Some(api::VolumeObserved {
            allocated_bytes: None,
            shortfall: None,
            health: api::VolumeHealth::Online.into(),
            problem: None,
            size_bytes: volume.size_bytes,
            generation: volume.generation,
            paths: vec![api::VolumePath {
                node: "n1".into(),
                address: "127.0.0.1:4420".into(),
                ana_state: api::AnaState::Optimized.into(),
                transport: api::Transport::Tcp.into(),
            }],
        }),
    }
}

fn volume(name: &str) -> CreateVolume {
    CreateVolume {
        name: name.parse().unwrap(),
        spec: VolumeSpec {
            size: Bytes(16 << 20),
            replicas: 1,
            thin: false,
            read_only: false,
            allowed_hosts: AllowedHosts(["*".parse().unwrap()].into()),
            selector: Selector::default(),
            reclaim: ReclaimPolicy::Delete,
            source: None,
        },
        adopt: None,
    }
}

#[tokio::test]
async fn a_volume_is_created_served_and_deleted() {
    let cluster = Cluster::start(1);
    let client = cluster.client();
    leader(&client).await;
    let node = "n1".parse().unwrap();
    client.put_node(&Mutation::once(None), &node, &node_spec("/d")).await.unwrap();
    let mut daemon = Daemon::connect(&cluster, 1, "n1", "n1", INSTANCE).await;
    let welcome = daemon.hear().await.unwrap();
    assert!(matches!(welcome.body, Some(FromControl::Welcome(_))), "{welcome:?}");
    let (revision, desired) = daemon.desired(|_| true).await;
    assert_eq!(desired.pools[0].disks, ["/d"]);
    daemon.say(revision, FromNode::Report(report(revision))).await;
    eventually("the node is live", async || {
        let node = client.get_node(&node).await.unwrap()?;
        (node.liveness.is_live() && !node.observed.pools.is_empty()).then_some(())
    })
    .await;

    let created = client.create_volume(&Mutation::once(None), &volume("v1")).await.unwrap();
    let (revision, desired) = daemon.desired(|state| !state.volumes.is_empty()).await;
    assert_eq!(desired.volumes[0].id, created.value.id.to_string());
    assert_eq!(desired.volumes[0].provision(), node::Provision::Create);
    let mut with_volume = report(revision);
    with_volume.volumes = vec![online(&desired.volumes[0])];
    daemon.say(revision, FromNode::Report(with_volume)).await;
    let name: VolumeName = "v1".parse().unwrap();
    eventually("the volume is online", async || {
        (client.get_volume(&name).await.unwrap()?.state == VolumeState::Online).then_some(())
    })
    .await;

    client.delete_volume(&Mutation::once(None), &name).await.unwrap();
    let (revision, desired) = daemon.desired(|state| !state.tombstones.is_empty()).await;
    assert!(desired.volumes.is_empty());
    let going = client.get_volume(&name).await.unwrap().unwrap();
    assert!(matches!(going.lifecycle, Lifecycle::Deleting(_)));
    let mut without = report(revision);
    without.deleted = vec![node::DeletedVolume {
        volume_id: desired.tombstones[0].volume_id.clone(),
        generation: desired.tombstones[0].generation,
    }];
    daemon.say(revision, FromNode::Report(without)).await;
    eventually("the volume is gone", async || {
        client.get_volume(&name).await.unwrap().is_none().then_some(())
    })
    .await;

    drop(daemon);
    eventually("the node is lost", async || {
        let node = client.get_node(&node).await.unwrap()?;
        matches!(node.liveness, Liveness::Lost { .. }).then_some(())
    })
    .await;
}

#[tokio::test]
async fn sessions_are_for_the_right_daemon_at_the_right_member() {
    let cluster = Cluster::start(3);
    let client = cluster.client();
    voters(&client, 3).await;
    let leader = leader(&client).await;
    // Nobody knows this node yet.
    let mut early = Daemon::connect(&cluster, leader, "n1", "n1", INSTANCE).await;
    assert_eq!(early.refusal().await.reason(), node::RefusalReason::UnknownNode);
    client.put_node(&Mutation::once(None), &"n1".parse().unwrap(), &node_spec("/d")).await.unwrap();
    // A follower says where the leader is.
    let mut lost = Daemon::connect(&cluster, leader % 3 + 1, "n1", "n1", INSTANCE).await;
    let refusal = lost.refusal().await;
    assert_eq!(refusal.reason(), node::RefusalReason::NotLeader);
    assert_eq!(refusal.leader_address, format!("127.0.0.1:{}", cluster.member(leader).api));
    // A certificate is for one node.
    let mut liar = Daemon::connect(&cluster, leader, "n2", "n1", INSTANCE).await;
    assert_eq!(liar.hear().await.unwrap_err().code(), tonic::Code::PermissionDenied);
    // The first daemon has the name; another one under the same name is refused.
    let mut first = Daemon::connect(&cluster, leader, "n1", "n1", INSTANCE).await;
    first.desired(|_| true).await;
    let mut second = Daemon::connect(&cluster, leader, "n1", "n1", OTHER_INSTANCE).await;
    assert_eq!(second.refusal().await.reason(), node::RefusalReason::DuplicateIdentity);
}

#[tokio::test]
async fn a_daemon_that_is_ahead_of_a_restored_cluster_comes_back_after_a_recovery() {
    let mut cluster = Cluster::start(1);
    let client = cluster.client();
    leader(&client).await;
    let node = "n1".parse().unwrap();
    let put = client.put_node(&Mutation::once(None), &node, &node_spec("/d")).await.unwrap();
    // What it saw of the time that the copy does not know.
    let seen = put.revision.0 + 1_000_000;
    let connect = async |cluster: &Cluster| {
        Daemon::connect_at(cluster, 1, ("n1", "n1"), INSTANCE, seen).await.hear().await.unwrap().body
    };
    let Some(FromControl::Refusal(refusal)) = connect(&cluster).await else { panic!("not refused") };
    assert_eq!(refusal.reason(), node::RefusalReason::RevisionAhead);
    assert!(refusal.message.contains("recover"), "{}", refusal.message);
    assert!(cluster.stop(1).success());
    assert!(cluster.command(1).arg("recover").output().unwrap().status.success());
    cluster.spawn(1, false);
    leader(&client).await;
    let welcome = connect(&cluster).await;
    assert!(matches!(welcome, Some(FromControl::Welcome(_))), "{welcome:?}");
}
