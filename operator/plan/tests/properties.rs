//! Whatever happens, in whatever order, and wherever the operator dies: it converges, says nothing twice, loses nothing, and
//! leaves no orphan.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use basalt_crds::Size;
use basalt_crds::snapshot::SnapshotPhase;
use basalt_crds::volume::{ReclaimPolicy, VolumePhase};
use basalt_model::Lifecycle;
use proptest::prelude::*;
use world::{Control, Crash, World};

const VOLUMES: [&str; 3] = ["v-0", "v-1", "v-2"];
const SNAPSHOTS: [&str; 2] = ["s-0", "s-1"];
const NODES: [&str; 2] = ["n-0", "n-1"];

#[derive(Debug, Clone)]
enum Op {
    CreateVolume(usize, bool),
    DeleteVolume(usize),
    ChangeHosts(usize, u8),
    ChangeReclaim(usize, bool),
    Grow(usize, u8),
    CreateSnapshot(usize, usize, bool),
    DeleteSnapshot(usize),
    Restore(usize, usize),
    ReconcileSnapshot(usize, Crash),
    CreateNode(usize),
    DeleteNode(usize),
    Cordon(usize, bool),
    ReconcileVolume(usize, Crash),
    ReconcileNode(usize, Crash),
    Report(usize),
    Lose(usize),
    Reachable(bool),
    /// From here on, things that no user may do.
    KeepObjects,
    RestoreObjects,
    WipeObjects,
    KeepControl,
    RestoreControl,
    NewControl,
}

fn crash() -> impl Strategy<Value = Crash> {
    prop_oneof![
        4 => Just(Crash::Never),
        1 => Just(Crash::AfterFinalizer),
        1 => Just(Crash::AfterIntent),
        1 => Just(Crash::BeforeStatus),
    ]
}

fn ordinary() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..3_usize, any::<bool>()).prop_map(|(which, retain)| Op::CreateVolume(which, retain)),
        2 => (0..3_usize).prop_map(Op::DeleteVolume),
        2 => (0..3_usize, 0..4_u8).prop_map(|(which, hosts)| Op::ChangeHosts(which, hosts)),
        1 => (0..3_usize, any::<bool>()).prop_map(|(which, retain)| Op::ChangeReclaim(which, retain)),
        1 => (0..3_usize, 1..4_u8).prop_map(|(which, more)| Op::Grow(which, more)),
        3 => (0..2_usize, 0..3_usize, any::<bool>()).prop_map(|(s, of, retain)| Op::CreateSnapshot(s, of, retain)),
        1 => (0..2_usize).prop_map(Op::DeleteSnapshot),
        1 => (0..3_usize, 0..2_usize).prop_map(|(which, s)| Op::Restore(which, s)),
        4 => (0..2_usize, crash()).prop_map(|(which, crash)| Op::ReconcileSnapshot(which, crash)),
        3 => (0..2_usize).prop_map(Op::CreateNode),
        1 => (0..2_usize).prop_map(Op::DeleteNode),
        1 => (0..2_usize, any::<bool>()).prop_map(|(which, cordon)| Op::Cordon(which, cordon)),
        6 => (0..3_usize, crash()).prop_map(|(which, crash)| Op::ReconcileVolume(which, crash)),
        4 => (0..2_usize, crash()).prop_map(|(which, crash)| Op::ReconcileNode(which, crash)),
        4 => (0..2_usize).prop_map(Op::Report),
        1 => (0..2_usize).prop_map(Op::Lose),
        1 => any::<bool>().prop_map(Op::Reachable),
    ]
}

fn disaster() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::KeepObjects),
        Just(Op::RestoreObjects),
        Just(Op::WipeObjects),
        Just(Op::KeepControl),
        Just(Op::RestoreControl),
        Just(Op::NewControl),
    ]
}

/// The world with the copies that were kept of its halves.
struct History {
    world: World,
    objects: Option<World>,
    control: Option<Control>,
    clusters: u128,
}

impl History {
    fn new() -> Self {
        Self { world: World::new(), objects: None, control: None, clusters: 1 }
    }

    fn run(&mut self, op: &Op) {
        let policy = |retain: &bool| if *retain { ReclaimPolicy::Retain } else { ReclaimPolicy::Delete };
        let world = &mut self.world;
        match op {
            Op::CreateVolume(which, retain) => world.create_volume(VOLUMES[*which], policy(retain)),
            Op::DeleteVolume(which) => world.delete_volume(VOLUMES[*which]),
            Op::ChangeHosts(which, hosts) => world.change_volume(VOLUMES[*which], |spec| {
                spec.allowed_hosts =
                    (0..*hosts).map(|host| format!("nqn.2024-01.com.example:{host}")).collect();
            }),
            Op::ChangeReclaim(which, retain) => {
                world.change_volume(VOLUMES[*which], |spec| spec.reclaim_policy = policy(retain));
            }
            Op::Grow(which, more) => world.change_volume(VOLUMES[*which], |spec| {
                let size = spec.size.bytes().unwrap() + (u64::from(*more) << 20);
                spec.size = Size::Bytes(size);
            }),
            Op::CreateSnapshot(which, of, retain) => {
                world.create_snapshot(SNAPSHOTS[*which], VOLUMES[*of], policy(retain));
            }
            Op::DeleteSnapshot(which) => world.delete_snapshot(SNAPSHOTS[*which]),
            Op::Restore(which, from) => world.restore_volume(VOLUMES[*which], SNAPSHOTS[*from]),
            Op::ReconcileSnapshot(which, crash) => {
                world.reconcile_snapshot(SNAPSHOTS[*which], *crash);
            }
            Op::CreateNode(which) => world.create_node(NODES[*which]),
            Op::DeleteNode(which) => world.delete_node(NODES[*which]),
            Op::Cordon(which, cordon) => {
                world.change_node(NODES[*which], |spec| spec.unschedulable = *cordon)
            }
            Op::ReconcileVolume(which, crash) => {
                world.reconcile_volume(VOLUMES[*which], *crash);
            }
            Op::ReconcileNode(which, crash) => {
                world.reconcile_node(NODES[*which], *crash);
            }
            Op::Report(which) => {
                let name = basalt_model::NodeName::new(NODES[*which]).unwrap();
                if world.control.state.nodes().contains_key(&name) {
                    world.control.report(&name);
                }
            }
            Op::Lose(which) => world.control.lose(NODES[*which]),
            Op::Reachable(reachable) => world.control.reachable = *reachable,
            Op::KeepObjects => self.objects = Some(world.clone()),
            Op::RestoreObjects => {
                if let Some(kept) = &self.objects {
                    world.replace_objects(kept.volumes.clone(), kept.nodes.clone(), kept.snapshots.clone());
                }
            }
            Op::WipeObjects => world.wipe_apiserver(),
            Op::KeepControl => self.control = Some(world.control.clone()),
            Op::RestoreControl => {
                if let Some(kept) = &self.control {
                    world.control = kept.clone();
                }
            }
            Op::NewControl => {
                self.clusters += 1;
                world.control = Control::new(self.clusters);
            }
        }
    }
}

/// Every volume that is served or on its way out belongs to an object that is there, or was lost without being deleted.
fn no_orphans(world: &World) {
    for volume in world.control.state.volumes().values() {
        if volume.lifecycle == Lifecycle::Released {
            continue;
        }
        let uid = volume.uid.as_ref().unwrap().to_string();
        let held = world.volumes.values().any(|object| object.metadata.uid.as_ref() == Some(&uid));
        assert!(held || world.lost.contains(&uid), "volume {} of {uid} is an orphan", volume.id);
    }
    for snapshot in world.control.state.snapshots().values() {
        if snapshot.lifecycle == Lifecycle::Released {
            continue;
        }
        let uid = snapshot.uid.as_ref().unwrap().to_string();
        let held = world.snapshots.values().any(|object| object.metadata.uid.as_ref() == Some(&uid));
        assert!(held || world.lost.contains(&uid), "snapshot {} of {uid} is an orphan", snapshot.id);
    }
}

/// Coming to rest a second time does nothing.
fn at_rest(world: &World) {
    let mut again = world.clone();
    again.come_to_rest();
    assert_eq!(again.volumes, world.volumes);
    assert_eq!(again.nodes, world.nodes);
    assert_eq!(again.snapshots, world.snapshots);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn users_get_what_they_asked_for(ops in prop::collection::vec(ordinary(), 1..60)) {
        let mut history = History::new();
        for op in &ops {
            history.run(op);
        }
        let mut world = history.world;
        world.control.reachable = true;
        world.come_to_rest();
        no_orphans(&world);
        at_rest(&world);

        let room = world.control.state.nodes().values().any(|node| !node.spec.unschedulable);
        for (name, volume) in &world.volumes {
            prop_assert!(volume.metadata.deletion_timestamp.is_none(), "{name} is stuck");
            let status = volume.status.as_ref().unwrap();
            let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready").unwrap();
            // What is restored waits for its snapshot.
            let source = volume.spec.source.as_ref().map(|source| world.snapshots.get(&source.snapshot));
            let waits = source.is_some_and(|source| {
                let status = source.and_then(|source| source.status.as_ref());
                status.and_then(|status| status.phase) != Some(SnapshotPhase::Ready)
            });
            // It may have been taken of a volume that had grown, after this one asked for it.
            let too_large = source.flatten().and_then(|source| source.status.as_ref()?.size.clone());
            let too_large =
                too_large.is_some_and(|size| Size::Text(size).bytes().unwrap() > volume.spec.size.bytes().unwrap());
            if (waits || too_large) && status.volume_id.is_none() {
                prop_assert_eq!(status.phase, Some(VolumePhase::Pending));
            } else if room || status.volume_id.is_some() || source.is_some() {
                prop_assert_eq!(status.phase, Some(VolumePhase::Online), "{}: {}", name, ready.message);
            } else {
                let none = world.control.state.nodes().is_empty();
                let reason = if none { "WaitingForPool" } else { "NoRoom" };
                prop_assert_eq!((status.phase, ready.reason.as_str()), (Some(VolumePhase::Pending), reason));
            }
        }
        for (name, snapshot) in &world.snapshots {
            prop_assert!(snapshot.metadata.deletion_timestamp.is_none(), "{name} is stuck");
            let phase = snapshot.status.as_ref().unwrap().phase;
            // Its volume need not be there, nor have been.
            let ready = matches!(phase, Some(SnapshotPhase::Ready | SnapshotPhase::Pending));
            prop_assert!(ready, "{name} is {phase:?}");
        }
        for (name, node) in &world.nodes {
            let state = &world.control.state;
            let held = state.volumes().values().any(|volume| volume.placement.node.as_str() == name)
                || state.snapshots().values().any(|snapshot| snapshot.placement.node.as_str() == name);
            prop_assert!(held || node.metadata.deletion_timestamp.is_none(), "{name} is stuck");
        }
        for node in world.control.state.nodes().keys() {
            prop_assert!(world.nodes.contains_key(node.as_str()), "node {node} is an orphan");
        }
    }

    /// `World::check_intent` has the assertion that matters; here it is given every chance to fail.
    #[test]
    fn disasters_delete_nothing(ops in prop::collection::vec(prop_oneof![5 => ordinary(), 1 => disaster()], 1..80)) {
        let mut history = History::new();
        for op in &ops {
            history.run(op);
        }
        let mut world = history.world;
        world.control.reachable = true;
        world.come_to_rest();
        at_rest(&world);
    }
}
