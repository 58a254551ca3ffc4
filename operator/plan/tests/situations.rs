//! What users read in each situation.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use basalt_crds::storage_node::{DiskState, NodePhase, PoolState};
use basalt_crds::volume::{AnaState, ReclaimPolicy, ReplicaState, VolumePhase};
use basalt_crds::{Condition, OWNER_UID_ANNOTATION, Size, StorageNodeStatus, VolumeStatus};
use basalt_model::{NodeName, PoolHealth};
use world::{Control, Crash, World};

/// A node with a volume that is served.
fn online() -> World {
    let mut world = World::new();
    world.create_node("n");
    world.create_volume("v", ReclaimPolicy::Delete);
    world.come_to_rest();
    assert_eq!(volume(&world).phase, Some(VolumePhase::Online));
    world
}

fn volume(world: &World) -> &VolumeStatus {
    world.volumes["v"].status.as_ref().unwrap()
}

fn node(world: &World) -> &StorageNodeStatus {
    world.nodes["n"].status.as_ref().unwrap()
}

#[track_caller]
fn condition<'a>(conditions: &'a [Condition], type_: &str) -> (&'a str, &'a str, &'a str) {
    let found = conditions.iter().find(|condition| condition.type_ == type_);
    let Condition { status, reason, message, .. } =
        found.unwrap_or_else(|| panic!("no {type_} in {conditions:?}"));
    (status, reason, message)
}

#[test]
fn online_says_all_that_a_host_needs() {
    let world = online();
    let status = volume(&world);
    let id = status.volume_id.as_deref().unwrap();
    assert_eq!(status.nqn.as_deref(), Some(format!("nqn.2026-01.storage.basalt:volume:{id}").as_str()));
    assert_eq!(status.uuid.as_deref(), Some(id));
    assert_eq!((status.size.as_deref(), status.epoch.as_deref()), (Some("1Gi"), Some("1.1")));
    assert_eq!(
        (status.target_node.as_deref(), status.endpoint.as_deref()),
        (Some("n"), Some("127.0.0.1:4420"))
    );
    assert_eq!((status.paths[0].port, status.paths[0].ana_state), (4420, AnaState::Optimized));
    assert_eq!(status.replicas[0].state, ReplicaState::Online);
    assert_eq!(condition(&status.conditions, "Synced").0, "True");
    assert_eq!(condition(&status.conditions, "AccessRestricted").1, "Nobody");
    let node = node(&world);
    assert_eq!(
        (node.phase, node.volumes, node.version.as_deref()),
        (Some(NodePhase::Online), Some(1), Some("0"))
    );
    assert_eq!((node.capacity.as_deref(), node.used.as_deref()), (Some("1Ti"), Some("0")));
    assert_eq!(node.pools[0].committed.as_deref(), Some("1Gi"));
    assert_eq!(node.pools[0].provisioned.as_deref(), Some("1Gi"));
    assert_eq!(condition(&node.conditions, "PoolsHaveRoom").0, "True");
}

#[test]
fn a_volume_grows_and_says_when_it_does_not_fit() {
    let mut world = online();
    world.change_volume("v", |spec| spec.size = Size::Text("2Gi".to_owned()));
    world.reconcile_volume("v", Crash::Never);
    // Hosts see the old size until the node has done it.
    assert_eq!(volume(&world).size.as_deref(), Some("1Gi"));
    assert_eq!(condition(&volume(&world).conditions, "Synced").1, "Applying");
    world.come_to_rest();
    assert_eq!(volume(&world).size.as_deref(), Some("2Gi"));
    assert_eq!(condition(&volume(&world).conditions, "Synced").0, "True");
    world.change_volume("v", |spec| spec.size = Size::Text("2Ti".to_owned()));
    world.come_to_rest();
    let status = volume(&world);
    let (synced, reason, message) = condition(&status.conditions, "Synced");
    assert_eq!((synced, reason, status.phase), ("False", "NoRoom", Some(VolumePhase::Online)));
    assert!(message.contains("bytes free"), "{message}");
    assert_eq!(status.size.as_deref(), Some("2Gi"));
}

#[test]
fn a_node_that_is_lost_shows_in_its_volumes_and_nothing_is_claimed_of_its_disks() {
    let mut world = online();
    world.control.lose("n");
    world.reconcile_node("n", Crash::Never);
    world.reconcile_volume("v", Crash::Never);
    let status = volume(&world);
    assert_eq!(status.phase, Some(VolumePhase::Unavailable));
    assert_eq!(status.paths[0].ana_state, AnaState::Inaccessible);
    assert_eq!((status.target_node.as_deref(), status.replicas[0].state), (None, ReplicaState::Unknown));
    assert_eq!(condition(&status.conditions, "Ready").1, "NodeNotConnected");
    let node = node(&world);
    assert_eq!(node.phase, Some(NodePhase::Offline));
    assert_eq!((node.pools[0].state, node.disks[0].state), (PoolState::Unknown, DiskState::Offline));
    assert_eq!(condition(&node.conditions, "PoolsReady").0, "Unknown");
}

#[test]
fn without_a_control_plane_what_was_seen_last_stays() {
    let mut world = online();
    world.control.reachable = false;
    world.reconcile_node("n", Crash::Never);
    world.reconcile_volume("v", Crash::Never);
    let status = volume(&world);
    assert_eq!(status.phase, Some(VolumePhase::Online));
    assert_eq!(status.paths.len(), 1);
    let (ready, reason, message) = condition(&status.conditions, "Ready");
    assert_eq!((ready, reason), ("Unknown", "ControlPlaneUnreachable"));
    assert!(message.contains("no member answers"), "{message}");
    assert_eq!(condition(&node(&world).conditions, "Connected").0, "Unknown");
    world.control.reachable = true;
    world.come_to_rest();
    assert_eq!(condition(&volume(&world).conditions, "Ready").0, "True");
}

#[test]
fn a_record_that_is_lost_is_not_made_up_again() {
    let mut world = online();
    let cluster = world.control.clone();
    world.control = Control::new(1);
    world.come_to_rest();
    assert_eq!(volume(&world).phase, Some(VolumePhase::Unavailable));
    let (_, reason, message) = condition(&volume(&world).conditions, "Ready");
    assert_eq!(reason, "NoRecord");
    assert!(message.contains("restore the control plane"), "{message}");
    assert_eq!(condition(&node(&world).conditions, "Ready").1, "NoRecord");
    assert!(world.control.state.volumes().is_empty() && world.control.state.nodes().is_empty());

    world.control = cluster;
    world.come_to_rest();
    assert_eq!(volume(&world).phase, Some(VolumePhase::Online));
}

#[test]
fn another_cluster_lets_nothing_go() {
    let mut world = online();
    world.control = Control::new(2);
    world.delete_volume("v");
    world.delete_node("n");
    world.come_to_rest();
    for conditions in [&volume(&world).conditions, &node(&world).conditions] {
        let (_, reason, message) = condition(conditions, "Synced");
        assert_eq!(reason, "OtherCluster");
        assert!(message.contains("remove the finalizer basalt.storage/control-plane by hand"), "{message}");
    }
}

#[test]
fn what_is_deleted_of_a_node_that_is_lost_for_good_goes_once_somebody_says_so() {
    let mut world = online();
    world.control.lose("n");
    world.delete_volume("v");
    world.delete_node("n");
    world.reconcile_volume("v", Crash::Never);
    world.reconcile_node("n", Crash::Never);
    world.reconcile_volume("v", Crash::Never);
    assert_eq!(volume(&world).phase, Some(VolumePhase::Deleting));
    let (_, _, message) = condition(&node(&world).conditions, "Deletable");
    assert!(message.contains("kubectl basalt abandon-node n"), "{message}");
    world.control.abandon("n");
    for _ in 0..3 {
        world.reconcile_volume("v", Crash::Never);
        world.reconcile_node("n", Crash::Never);
    }
    assert!(world.volumes.is_empty() && world.nodes.is_empty());
}

#[test]
fn what_is_deleted_of_a_pool_that_is_lost_for_good_goes_once_somebody_says_so() {
    let mut world = online();
    let dead = "writes of /dev/dead fail";
    world.control.break_pool("n", PoolHealth::ReadOnly, "DiskErrors", dead);
    world.delete_volume("v");
    for _ in 0..2 {
        world.reconcile_volume("v", Crash::Never);
    }
    assert_eq!(volume(&world).phase, Some(VolumePhase::Deleting));
    let (_, reason, message) = condition(&volume(&world).conditions, "Ready");
    assert_eq!(reason, "Deleting");
    assert!(message.contains("waiting for node n") && message.contains(dead), "{message}");
    assert!(message.contains("kubectl basalt abandon-pool n pool --disks-are-lost"), "{message}");
    world.control.abandon_pool("n");
    for _ in 0..3 {
        world.reconcile_volume("v", Crash::Never);
        world.reconcile_node("n", Crash::Never);
    }
    assert!(world.volumes.is_empty());
    let (_, reason, message) = condition(&node(&world).conditions, "Ready");
    assert_eq!(reason, "DiskErrors");
    assert!(message.contains("declared lost") && message.contains(dead), "{message}");
}

#[test]
fn a_pool_in_service_says_what_is_wrong_with_it_before_what_is_wrong_with_a_disk() {
    let mut world = online();
    let words = "/dev/a is a disk of the pool and is not named any more";
    world.control.break_pool("n", PoolHealth::Online, "DiskNotNamed", words);
    world.reconcile_node("n", Crash::Never);
    let (status, reason, message) = condition(&node(&world).conditions, "Ready");
    assert_eq!((status, reason), ("False", "DiskNotNamed"));
    assert!(message.contains(words), "{message}");
    assert_eq!(node(&world).pools[0].state, PoolState::Degraded);
}

#[test]
fn what_was_retained_can_be_adopted_and_holds_its_node_until_then() {
    let mut world = online();
    world.change_volume("v", |spec| spec.reclaim_policy = ReclaimPolicy::Retain);
    let id = volume(&world).volume_id.clone().unwrap();
    world.delete_volume("v");
    world.delete_node("n");
    world.come_to_rest();
    assert!(world.volumes.is_empty());
    let (_, reason, message) = condition(&node(&world).conditions, "Deletable");
    assert_eq!(reason, "NodeHoldsVolumes");
    assert!(message.contains(&format!("v, put aside as {id}")), "{message}");
    assert!(!message.contains("abandon-node"), "{message}");

    world.create_volume("w", ReclaimPolicy::Delete);
    world.change_volume("w", |spec| spec.volume_id = Some(id.clone()));
    world.come_to_rest();
    let adopted = world.volumes["w"].status.as_ref().unwrap();
    assert_eq!((adopted.phase, adopted.volume_id.as_ref()), (Some(VolumePhase::Online), Some(&id)));
    world.delete_volume("w");
    world.come_to_rest();
    assert!(world.nodes.is_empty() && world.control.state.volumes().is_empty());
}

#[test]
fn an_object_of_the_same_name_is_not_the_same_object_until_somebody_says_so() {
    let mut world = online();
    let owner = world.volumes["v"].metadata.uid.clone().unwrap();
    world.wipe_apiserver();
    world.create_volume("v", ReclaimPolicy::Delete);
    world.come_to_rest();
    assert_eq!(volume(&world).phase, Some(VolumePhase::Pending));
    let (_, reason, message) = condition(&volume(&world).conditions, "Ready");
    assert_eq!(reason, "NameTaken");
    assert!(message.contains(&format!("{OWNER_UID_ANNOTATION}={owner}")), "{message}");
    assert_eq!(volume(&world).volume_id, None);
}

#[test]
fn a_volume_that_somebody_else_deletes_says_so_and_is_not_made_again() {
    let mut world = online();
    let (name, uid) = {
        let held = world.control.state.volumes().values().next().unwrap();
        (held.name.clone(), held.uid.clone())
    };
    world.control.delete_by_hand(name, uid);
    world.reconcile_volume("v", Crash::Never);
    assert_eq!(condition(&volume(&world).conditions, "Synced").1, "DeletedByOther");
    world.control.report(&NodeName::new("n").unwrap());
    world.come_to_rest();
    assert_eq!(condition(&volume(&world).conditions, "Ready").1, "NoRecord");
    assert!(world.control.state.volumes().is_empty());
}
