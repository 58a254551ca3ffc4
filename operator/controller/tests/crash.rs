//! The operator is killed at each of its calls, before and after the call takes effect. It always converges to the same end, and
//! `Control::check` sees that nothing is taken away that nobody deleted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use basalt_crds::snapshot::SnapshotPhase;
use basalt_crds::volume::VolumePhase;
use basalt_crds::{Snapshot, StorageNode, Volume};
use basalt_model::Lifecycle;
use serde_json::{Value, json};
use world::{Fault, When, World};

fn node_spec(name: &str) -> Value {
    json!({
        "address": "127.0.0.1",
        "listeners": [{ "name": "tcp", "bind": "127.0.0.1:4420" }],
        "pools": [{ "name": "pool", "disks": [format!("/disks/{name}")] }],
    })
}

fn volume_spec(reclaim: &str, node: &str) -> Value {
    json!({ "size": "1Gi", "reclaimPolicy": reclaim, "topology": { "node": node } })
}

/// A life: nodes and volumes come up, change, and go, some with their data and some without.
async fn live(fault: Option<Fault>) -> World {
    let mut world = World::new(fault);
    for node in ["n-1", "n-2"] {
        world.apiserver.create::<StorageNode>(node, node_spec(node));
    }
    for (volume, reclaim, node) in [("a", "Delete", "n-1"), ("b", "Retain", "n-2"), ("c", "Delete", "n-2")] {
        world.apiserver.create::<Volume>(volume, volume_spec(reclaim, node));
    }
    world.settle().await;
    work(&mut world).await;
    all_online(&world);

    // Two snapshots, one of which is kept without its object; a volume is restored from the other.
    for (snapshot, reclaim) in [("s", "Delete"), ("kept", "Retain")] {
        world.apiserver.create::<Snapshot>(snapshot, json!({ "volume": "a", "reclaimPolicy": reclaim }));
    }
    let restored = json!({ "size": "2Gi", "thin": true, "source": { "snapshot": "s" } });
    world.apiserver.create::<Volume>("r", restored);
    world.settle().await;
    work(&mut world).await;
    restored_and_ready(&world);

    let hosts = json!(["nqn.2024-01.com.example:host"]);
    world.apiserver.edit::<Volume>("a", "allowedHosts", hosts);
    world.apiserver.delete::<Volume>("b");
    world.apiserver.delete::<Volume>("c");
    world.apiserver.delete::<StorageNode>("n-1");
    world.settle().await;
    work(&mut world).await;
    node_waits(&world);

    world.apiserver.delete::<Volume>("a");
    world.apiserver.delete::<Volume>("r");
    for snapshot in ["s", "kept"] {
        world.apiserver.delete::<Snapshot>(snapshot);
    }
    world.settle().await;
    work(&mut world).await;
    the_end(&world);
    world
}

/// Daemons and operator take turns until both rest.
async fn work(world: &mut World) {
    for _ in 0..3 {
        world.control.daemons_work();
        world.settle().await;
    }
}

fn all_online(world: &World) {
    for name in ["a", "b", "c"] {
        let status = world.apiserver.get::<Volume>(name).unwrap().status.unwrap();
        assert_eq!(status.phase, Some(VolumePhase::Online), "{name}: {:?}", status.conditions);
        assert_eq!(status.paths.len(), 1);
        assert!(status.nqn.is_some() && status.uuid.is_some() && status.cluster_id.is_some());
    }
    assert_eq!(world.control.state().volumes().len(), 3, "an orphan, or a loss");
}

fn restored_and_ready(world: &World) {
    let snapshot = world.apiserver.get::<Snapshot>("s").unwrap().status.unwrap();
    assert_eq!(snapshot.phase, Some(SnapshotPhase::Ready), "{:?}", snapshot.conditions);
    assert_eq!(snapshot.size.as_deref(), Some("1Gi"));
    assert!(snapshot.taken_at.is_some() && snapshot.node.as_deref() == Some("n-1"));
    let restored = world.apiserver.get::<Volume>("r").unwrap().status.unwrap();
    assert_eq!((restored.phase, restored.size.as_deref()), (Some(VolumePhase::Online), Some("2Gi")));
    assert_eq!(world.control.state().snapshots().len(), 2, "an orphan, or a loss");
    let source = world.control.state().snapshot_named(&"s".parse().unwrap()).unwrap().id;
    let state = world.control.state();
    let volume = state.volumes().values().find(|volume| volume.name.as_str() == "r").unwrap();
    assert_eq!(volume.restored_from, Some(source));
}

fn node_waits(world: &World) {
    let node = world.apiserver.get::<StorageNode>("n-1").expect("it holds a volume");
    let conditions = node.status.unwrap().conditions;
    let deletable = conditions.iter().find(|condition| condition.type_ == "Deletable").unwrap();
    assert_eq!((deletable.status.as_str(), deletable.reason.as_str()), ("False", "NodeHoldsVolumes"));
    let held = "4 volumes and snapshots are on it (a; r; snapshot kept; snapshot s)";
    assert!(deletable.message.contains(held), "{}", deletable.message);
    let volume = world.control.state();
    let volume = volume.volumes().values().find(|volume| volume.name.as_str() == "a").unwrap();
    assert_eq!(volume.spec.allowed_hosts.0.len(), 1);
    for name in ["b", "c"] {
        assert!(world.apiserver.get::<Volume>(name).is_none(), "{name} is stuck");
    }
}

fn the_end(world: &World) {
    let state = world.control.state();
    let left: Vec<_> =
        state.volumes().values().map(|volume| (volume.name.as_str(), &volume.lifecycle)).collect();
    assert_eq!(left, [("b", &Lifecycle::Released)], "what was retained is there, and nothing else");
    assert!(world.apiserver.list::<Volume>().is_empty());
    let kept: Vec<_> = state.snapshots().values().map(|s| (s.name.as_str(), &s.lifecycle)).collect();
    assert_eq!(kept, [("kept", &Lifecycle::Released)]);
    assert!(world.apiserver.list::<Snapshot>().is_empty());
    // A snapshot that was put aside holds its node.
    let nodes: Vec<_> = state.nodes().keys().map(ToString::to_string).collect();
    assert_eq!(nodes, ["n-1", "n-2"]);
    assert_eq!(world.apiserver.list::<StorageNode>().len(), 2);
}

#[tokio::test]
async fn without_a_crash_each_thing_is_told_once() {
    let world = live(None).await;
    assert_eq!(world.apiserver.events("a"), ["WaitingForPool", "Creating", "Online", "Deleting"]);
    assert_eq!(world.apiserver.events("n-1"), ["NeverConnected", "Online", "NodeHoldsVolumes", "Deleting"]);
    assert_eq!(world.apiserver.events("s"), ["Creating", "Ready", "Deleting"]);
}

#[tokio::test]
async fn a_crash_before_any_call_changes_nothing_in_the_end() {
    crash_everywhere(When::Before).await;
}

#[tokio::test]
async fn a_crash_after_any_call_changes_nothing_in_the_end() {
    crash_everywhere(When::After).await;
}

async fn crash_everywhere(when: When) {
    let calm = live(None).await;
    let calls = calm.faults.calls();
    assert!(calls > 100, "{calls} calls are hardly a life");
    for call in 0..calls {
        let world = live(Some(Fault { call, when })).await;
        assert_eq!(world.starts, calm.starts + 1, "the operator did not die at call {call}");
    }
}
