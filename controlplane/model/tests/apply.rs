//! Applying commands: laws that hold for any sequence, and the cases that matter by name.

#![allow(clippy::unwrap_used, reason = "tests")]

use basalt_model::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn name(n: u8) -> VolumeName {
    VolumeName::new(format!("v{n}")).unwrap()
}

fn node(n: u8) -> NodeName {
    NodeName::new(format!("n{n}")).unwrap()
}

fn uid(n: u8) -> Option<ObjectUid> {
    (n > 0).then(|| ObjectUid::new(format!("uid-{n}")).unwrap())
}

fn pool() -> PoolName {
    PoolName::new("p").unwrap()
}

fn instance(n: u8) -> InstanceId {
    InstanceId::from_random(u128::from(n))
}

fn node_spec(unschedulable: bool) -> NodeSpec {
    let disks = vec![DiskPath::new("/d").unwrap()];
    NodeSpec {
        address: "10.0.0.1".parse().unwrap(),
        listeners: vec![Listener {
            transport: Transport::Tcp,
            bind: "0.0.0.0:4420".parse().unwrap(),
            advertise: "10.0.0.1:4420".parse().unwrap(),
        }],
        pools: BTreeMap::from([(
            pool(),
            PoolSpec {
                disks,
                labels: BTreeMap::new(),
                over_provisioning: OverProvisioning::default(),
                layout: PoolLayout::default(),
                allocation_unit: AllocationUnit::default(),
            },
        )]),
        cores: Cores::Count(1),
        unschedulable,
    }
}

fn volume_spec(mib: u64) -> VolumeSpec {
    VolumeSpec {
        size: Bytes(mib << 20),
        replicas: 1,
        thin: false,
        read_only: false,
        allowed_hosts: AllowedHosts::default(),
        selector: Selector::default(),
        reclaim: ReclaimPolicy::Delete,
        source: None,
    }
}

fn create(n: u8, owner: u8, on: u8, id: u128, mib: u64, adopt: bool) -> Body {
    create_as(n, owner, on, id, VolumeSpec { ..volume_spec(mib) }, adopt)
}

fn create_as(n: u8, owner: u8, on: u8, id: u128, spec: VolumeSpec, adopt: bool) -> Body {
    let id = VolumeId::from_random(id);
    Body::CreateVolume(CreateVolume {
        name: name(n),
        uid: uid(owner),
        id,
        adopt,
        size: spec.size,
        spec,
        identity: VolumeIdentity::of(id),
        placement: Placement { node: node(on), pool: pool() },
        restored_from: None,
    })
}

fn snapshot_name(n: u8) -> SnapshotName {
    SnapshotName::new(format!("s{n}")).unwrap()
}

fn snapshot(n: u8, owner: u8, of: u8, id: u128, adopt: bool) -> Body {
    let id = VolumeId::from_random(id);
    Body::CreateSnapshot(CreateSnapshot {
        name: snapshot_name(n),
        uid: uid(owner),
        id,
        adopt,
        volume: name(of),
        identity: VolumeIdentity::of(id),
    })
}

fn restore(n: u8, owner: u8, on: u8, id: u128, mib: u64, from: u128) -> Body {
    let spec = VolumeSpec { thin: true, source: Some(snapshot_name(0)), ..volume_spec(mib) };
    let Body::CreateVolume(body) = create_as(n, owner, on, id, spec, false) else { unreachable!() };
    Body::CreateVolume(CreateVolume { restored_from: Some(VolumeId::from_random(from)), ..body })
}

fn report(n: u8, from: u8, pool_id: u128, mib: u64, volumes: BTreeMap<VolumeId, VolumeObserved>) -> Body {
    let seen = PoolObserved {
        id: Some(PoolId::from_random(pool_id)),
        health: PoolHealth::Online,
        capacity: Bytes(mib << 20),
        used: Bytes(0),
        allocation_unit: Bytes(4 << 20),
        disks: BTreeMap::new(),
        problem: None,
    };
    let observed = NodeObserved { pools: BTreeMap::from([(pool(), seen)]), ..NodeObserved::default() };
    Body::ReportNode(NodeReport {
        node: node(n),
        instance: instance(from),
        boot: BootId::from_random(1),
        observed: Some(observed),
        volumes,
    })
}

fn seen_online() -> VolumeObserved {
    VolumeObserved {
        health: VolumeHealth::Online,
        size: Bytes(1 << 20),
        generation: 1,
        allocated: None,
        shortfall: None,
        paths: Vec::new(),
    }
}

fn any_body() -> impl Strategy<Value = Body> {
    let small = 0..3_u8;
    let owner = 0..3_u8;
    let id = 0..6_u128;
    let volume_id = (0..9_u128).prop_map(VolumeId::from_random);
    prop_oneof![
        (small.clone(), owner.clone(), any::<bool>()).prop_map(|(n, o, u)| Body::PutNode {
            name: node(n),
            uid: uid(o),
            spec: node_spec(u)
        }),
        (small.clone(), owner.clone()).prop_map(|(n, o)| Body::DeleteNode { name: node(n), uid: uid(o) }),
        (small.clone(), small.clone())
            .prop_map(|(n, i)| Body::BindNodeInstance { node: node(n), instance: instance(i) }),
        small.clone().prop_map(|n| Body::UnbindNode { name: node(n) }),
        small.clone().prop_map(|n| Body::AbandonNode { name: node(n) }),
        small.clone().prop_map(|n| Body::AbandonPool { node: node(n), pool: pool() }),
        (small.clone(), small.clone(), 1..3_u128, 20..60_u64, prop::option::of(volume_id.clone())).prop_map(
            |(n, i, p, mib, v)| report(n, i, p, mib, v.map(|v| (v, seen_online())).into_iter().collect())
        ),
        (small.clone(), any::<bool>()).prop_map(|(n, live)| {
            let since = Timestamp(1);
            let liveness = if live { Liveness::Live { since } } else { Liveness::Lost { since } };
            Body::SetNodeLiveness { node: node(n), liveness }
        }),
        (small.clone(), owner.clone(), small.clone(), id.clone(), 1..20_u64, prop::bool::weighted(0.2))
            .prop_map(|(n, o, on, id, mib, adopt)| create(n, o, on, id, mib, adopt)),
        (small.clone(), owner.clone(), small.clone(), id.clone(), 1..90_u64).prop_map(
            |(n, o, on, id, mib)| create_as(
                n,
                o,
                on,
                id,
                VolumeSpec { thin: true, ..volume_spec(mib) },
                false
            )
        ),
        (small.clone(), owner.clone()).prop_map(|(n, o)| Body::DeleteVolume { name: name(n), uid: uid(o) }),
        (small.clone(), owner.clone()).prop_map(|(n, o)| Body::ReleaseVolume { name: name(n), uid: uid(o) }),
        (small.clone(), volume_id, 1..5_u64).prop_map(|(n, volume, generation)| Body::ConfirmVolumeDeleted {
            node: node(n),
            volume,
            generation
        }),
        (small, owner, any::<bool>()).prop_map(|(n, o, any)| {
            let hosts = any.then(|| HostNqn::new("*").unwrap()).into_iter().collect();
            let change = VolumeChange { allowed_hosts: Some(AllowedHosts(hosts)), ..VolumeChange::default() };
            Body::UpdateVolume { name: name(n), uid: uid(o), change }
        }),
        (0..3_u8, 0..3_u8, 1..60_u64).prop_map(|(n, o, mib)| {
            let change = VolumeChange { size: Some(Bytes(mib << 20)), ..VolumeChange::default() };
            Body::UpdateVolume { name: name(n), uid: uid(o), change }
        }),
        (0..3_u8, 0..3_u8, 0..3_u8, 0..9_u128, prop::bool::weighted(0.2))
            .prop_map(|(n, o, of, id, adopt)| snapshot(n, o, of, id, adopt)),
        (0..3_u8, 0..3_u8).prop_map(|(n, o)| Body::DeleteSnapshot { name: snapshot_name(n), uid: uid(o) }),
        (0..3_u8, 0..3_u8).prop_map(|(n, o)| Body::ReleaseSnapshot { name: snapshot_name(n), uid: uid(o) }),
        (0..3_u8, 0..3_u8, 0..3_u8, 0..9_u128, 1..30_u64, 0..9_u128)
            .prop_map(|(n, o, on, id, mib, from)| restore(n, o, on, id, mib, from)),
        (2..5_u64).prop_map(|n| Body::StartIncarnation { incarnation: Incarnation(n) }),
    ]
}

fn bootstrapped() -> State {
    bootstrapped_at(FeatureLevel::SUPPORTED)
}

fn bootstrapped_at(level: FeatureLevel) -> State {
    let mut state = State::at_level(level);
    let body = Body::Bootstrap { cluster: ClusterId::from_random(1) };
    assert!(state.apply(Revision(1), &Command::new(Timestamp(0), None, body)).result.is_ok());
    state
}

fn apply(state: &mut State, body: Body) -> Outcome {
    let revision = Revision(state.revision().0 + 1);
    state.apply(revision, &Command::new(Timestamp(revision.0), None, body))
}

fn is_online(node: &Node) -> bool {
    node.pool(&pool()).is_some_and(|pool| pool.health == PoolHealth::Online)
}

fn check_laws(before: &State, after: &State, body: &Body, outcome: &Outcome) {
    // Names are unique, and the index agrees with the volumes.
    let named: Vec<_> = after.volumes().values().filter(|v| v.lifecycle != Lifecycle::Released).collect();
    let names: BTreeSet<_> = named.iter().map(|volume| &volume.name).collect();
    assert_eq!(names.len(), named.len());
    for volume in &named {
        assert_eq!(after.volume_named(&volume.name).map(|v| v.id), Some(volume.id));
        assert!(after.nodes().contains_key(&volume.placement.node), "a volume without its node");
    }
    // A volume goes only when it was deleted and its node confirmed the tombstone, or somebody said that its disks are lost.
    for (id, volume) in before.volumes().iter().filter(|(id, _)| !after.volumes().contains_key(id)) {
        let node = &before.nodes()[&volume.placement.node];
        let deleted = matches!(volume.lifecycle, Lifecycle::Deleting(_));
        let rightly = match body {
            Body::ConfirmVolumeDeleted { volume, .. } => volume == id && deleted,
            Body::AbandonNode { name } => *name == node.name && deleted && !node.liveness.is_live(),
            Body::AbandonPool { node: name, .. } => *name == node.name && deleted && !is_online(node),
            Body::DeleteVolume { name, .. } => *name == volume.name && node.is_lost(&pool()),
            _ => false,
        };
        assert!(rightly, "{body:?}");
    }
    assert!(after.nodes().values().all(|node| !(node.abandoned && node.binding.is_some())));
    // What is ordered to be deleted is not ordered to be there, nor ordered twice.
    for node in after.nodes().values() {
        assert!(!(node.abandoned_pools.contains(&pool()) && is_online(node)));
        let desired = after.desired(&node.name).unwrap();
        let ids = desired.volumes.iter().map(|volume| volume.id);
        let ids: Vec<_> = ids.chain(desired.tombstones.iter().map(|order| order.volume)).collect();
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }
    check_snapshots(before, after, body);
    // Nothing is put where there is no room.
    let larger =
        |id: &VolumeId, volume: &Volume| before.volumes().get(id).is_none_or(|old| volume.size > old.size);
    for (id, volume) in after.volumes().iter().filter(|(id, volume)| larger(id, volume)) {
        let pool = after.nodes()[&volume.placement.node].pool(&volume.placement.pool).unwrap();
        let claim = after.claim(&volume.placement);
        assert!(claim.guaranteed <= pool.capacity, "{id} over-commits");
        let shared = pool.capacity.0 - claim.guaranteed.0;
        assert!(claim.promised.0 <= 4 * shared, "{id} over-provisions");
    }
    // Epochs and generations only grow; identities stay.
    for (id, old) in before.volumes() {
        let Some(new) = after.volumes().get(id) else { continue };
        assert!(new.epoch >= old.epoch && new.generation >= old.generation);
        assert_eq!((&new.identity, &new.placement), (&old.identity, &old.placement));
        assert!(new.size >= old.size && new.spec.thin == old.spec.thin);
        assert!(new.size >= new.spec.size);
        assert!(new.provisioned || !old.provisioned);
    }
    let epochs = after.volumes().values().map(|volume| volume.epoch);
    let epochs: BTreeSet<_> = epochs.chain(after.snapshots().values().map(|s| s.epoch)).collect();
    assert_eq!(epochs.len(), after.volumes().len() + after.snapshots().len(), "an epoch was issued twice");
    // What a node should hold changes only together with its revision.
    for (node_name, node) in after.nodes() {
        let (old, new) = (before.desired(node_name), after.desired(node_name).unwrap());
        let same =
            old.as_ref().is_some_and(|old| DesiredNode { revision: new.revision, ..old.clone() } == new);
        assert!(same || node.desired == after.revision(), "{node_name} changed silently by {body:?}");
    }
    if outcome.result.is_err() {
        let mut unchanged = before.clone();
        unchanged.advance(after.revision());
        assert_eq!(&unchanged, after, "a refused command changed something");
    }
}

/// A snapshot goes as a volume does, whatever becomes of its volume; and what one is of never changes.
fn check_snapshots(before: &State, after: &State, body: &Body) {
    for (id, old) in before.snapshots() {
        let Some(new) = after.snapshots().get(id) else {
            let node = &before.nodes()[&old.placement.node];
            let deleted = matches!(old.lifecycle, Lifecycle::Deleting(_));
            let rightly = match body {
                Body::ConfirmVolumeDeleted { volume, .. } => volume == id && deleted,
                Body::AbandonNode { name } => *name == node.name && deleted && !node.liveness.is_live(),
                Body::AbandonPool { node: name, .. } => *name == node.name && deleted && !is_online(node),
                Body::DeleteSnapshot { name, .. } => *name == old.name && node.is_lost(&pool()),
                Body::DeleteVolume { .. } => {
                    let aside = old.lifecycle == Lifecycle::Released && old.taken_at.is_none();
                    aside && node.is_lost(&pool()) && !after.volumes().contains_key(&old.source)
                }
                _ => false,
            };
            assert!(rightly, "{body:?}");
            continue;
        };
        assert!(new.epoch >= old.epoch && new.generation >= old.generation);
        assert_eq!((&new.identity, &new.placement, new.source), (&old.identity, &old.placement, old.source));
        assert!(old.taken_at.is_none() || (new.taken_at, new.size) == (old.taken_at, old.size));
    }
    for snapshot in after.snapshots().values().filter(|s| s.lifecycle != Lifecycle::Released) {
        assert_eq!(after.snapshot_named(&snapshot.name).map(|s| s.id), Some(snapshot.id));
    }
    for snapshot in after.snapshots().values() {
        assert!(after.nodes().contains_key(&snapshot.placement.node), "a snapshot without its node");
        assert!(!after.volumes().contains_key(&snapshot.id), "one id for two things");
        // What is to be taken can be taken, what is to be restored can be restored.
        let waits = snapshot.taken_at.is_none() && !matches!(snapshot.lifecycle, Lifecycle::Deleting(_));
        let source = after.volumes().get(&snapshot.source);
        assert!(!waits || source.is_some_and(|v| !matches!(v.lifecycle, Lifecycle::Deleting(_))));
    }
    for volume in after.volumes().values() {
        let waits = volume.lifecycle == Lifecycle::Active && !volume.provisioned;
        let source = volume.restored_from.and_then(|id| after.snapshots().get(&id));
        let there = source.is_some_and(|s| !matches!(s.lifecycle, Lifecycle::Deleting(_)));
        assert!(!waits || volume.restored_from.is_none() || there, "nothing to restore from");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn laws_hold_for_any_sequence(bodies in proptest::collection::vec(any_body(), 1..120)) {
        let (mut state, mut twin) = (bootstrapped(), bootstrapped());
        for body in bodies {
            let before = state.clone();
            let command = Command::new(Timestamp(3), None, body.clone());
            let command = Command::decode(&command.encode().unwrap()).unwrap();
            prop_assert_eq!(&command.body, &body);
            let revision = Revision(before.revision().0 + 1);
            let outcome = state.apply(revision, &command);
            check_laws(&before, &state, &body, &outcome);
            // The same command gives the same state, also from a decoded snapshot.
            prop_assert_eq!(twin.apply(revision, &command), outcome);
            twin = State::decode(&twin.encode().unwrap()).unwrap();
            prop_assert_eq!(&twin, &state);
        }
    }
}

/// A node with a pool of 100 MiB that is connected.
fn ready() -> State {
    ready_at(FeatureLevel::SUPPORTED)
}

fn ready_at(level: FeatureLevel) -> State {
    let mut state = bootstrapped_at(level);
    for body in [
        Body::PutNode { name: node(1), uid: uid(1), spec: node_spec(false) },
        Body::BindNodeInstance { node: node(1), instance: instance(1) },
        report(1, 1, 1, 100, BTreeMap::new()),
        Body::SetNodeLiveness { node: node(1), liveness: Liveness::Live { since: Timestamp(1) } },
    ] {
        assert_eq!(apply(&mut state, body).result, Ok(Receipt::Done));
    }
    state
}

#[test]
fn a_request_is_done_once_until_it_is_forgotten() {
    let mut state = ready();
    let key = RequestKey { id: RequestId::new("k").unwrap(), digest: 1 };
    let command =
        |key: &RequestKey, id| Command::new(Timestamp(1), Some(key.clone()), create(1, 1, 1, id, 10, false));
    let first = state.apply(Revision(10), &command(&key, 1));
    let again = state.apply(Revision(11), &command(&key, 2));
    assert_eq!((again.repeated, &again.result, again.revision), (true, &first.result, Revision(10)));
    let other = RequestKey { digest: 2, ..key.clone() };
    assert_eq!(state.apply(Revision(12), &command(&other, 3)).result, Err(Refusal::RequestIdReused));
    state.advance(Revision(9 + State::REQUEST_WINDOW));
    assert!(state.request(&key.id).is_some());
    state.advance(Revision(10 + State::REQUEST_WINDOW));
    assert!(state.request(&key.id).is_none());
}

#[test]
fn capacity_counts_whole_allocation_units() {
    let mut state = ready();
    for n in 0..25 {
        let outcome = apply(&mut state, create(n, 1, 1, u128::from(n), 1, false));
        assert!(outcome.result.is_ok(), "{n}: {:?}", outcome.result);
    }
    let refused = apply(&mut state, create(99, 1, 1, 99, 1, false)).result;
    assert!(matches!(refused, Err(Refusal::PoolTooSmall { free: Bytes(0), .. })), "{refused:?}");
}

fn create_thin(n: u8, mib: u64) -> Body {
    create_as(n, 1, 1, u128::from(n), VolumeSpec { thin: true, ..volume_spec(mib) }, false)
}

#[test]
fn thin_volumes_are_promised_four_times_what_thick_ones_leave() {
    let mut state = ready();
    assert!(apply(&mut state, create(1, 1, 1, 1, 20, false)).result.is_ok());
    assert!(apply(&mut state, create_thin(2, 300)).result.is_ok());
    let refused = apply(&mut state, create_thin(3, 21)).result;
    assert!(
        matches!(refused, Err(Refusal::PoolTooSmall { free, .. }) if free == Bytes(20 << 20)),
        "{refused:?}"
    );
    assert!(apply(&mut state, create_thin(3, 20)).result.is_ok());
    // A thick volume takes from what the promises rest on.
    let refused = apply(&mut state, create(4, 1, 1, 4, 1, false)).result;
    assert!(matches!(refused, Err(Refusal::PoolTooSmall { free: Bytes(0), .. })), "{refused:?}");
    assert!(state.desired(&node(1)).unwrap().volumes[1].thin);
}

#[test]
fn the_limit_of_a_pool_is_its_own() {
    let mut state = ready();
    let mut spec = node_spec(false);
    spec.pools.get_mut(&pool()).unwrap().over_provisioning = OverProvisioning(100);
    let put = |spec: &NodeSpec| Body::PutNode { name: node(1), uid: uid(1), spec: spec.clone() };
    assert!(apply(&mut state, put(&spec)).result.is_ok());
    assert!(apply(&mut state, create_thin(1, 101)).result.is_err());
    assert!(apply(&mut state, create_thin(1, 100)).result.is_ok());
    spec.pools.get_mut(&pool()).unwrap().over_provisioning = OverProvisioning(99);
    let refused = apply(&mut state, put(&spec)).result.unwrap_err().to_string();
    assert!(refused.starts_with("spec.pools[].overProvisioningPercent"), "{refused}");
}

#[test]
fn a_pool_keeps_the_allocation_unit_that_it_was_made_with() {
    let mut state = ready();
    let with = |bytes| {
        let mut spec = node_spec(false);
        spec.pools.get_mut(&pool()).unwrap().allocation_unit = AllocationUnit(bytes);
        spec
    };
    let put = |number, uid, bytes| Body::PutNode { name: node(number), uid, spec: with(bytes) };
    let refused = apply(&mut state, put(1, uid(1), 64 << 10)).result.unwrap_err().to_string();
    assert!(
        refused.starts_with("spec.pools[].allocationUnit") && refused.contains("a pool keeps"),
        "{refused}"
    );
    assert!(apply(&mut state, put(1, uid(1), 1 << 20)).result.is_ok());
    for bytes in [64 << 10, 1 << 20, 256 << 10] {
        assert!(apply(&mut state, put(7, None, bytes)).result.is_ok());
        assert_eq!(state.desired(&node(7)).unwrap().pools[0].allocation_unit, AllocationUnit(bytes));
    }
    for impossible in [0, 1, 32 << 10, 96 << 10, 2 << 20, u64::MAX] {
        let refused = apply(&mut state, put(7, None, impossible)).result.unwrap_err().to_string();
        assert!(refused.contains("it must be 64Ki"), "{refused}");
    }
    // A member that knows nothing of it would have the pool made otherwise.
    let mut old = ready_at(FeatureLevel::POOLS);
    let refused = apply(&mut old, put(7, None, 64 << 10)).result;
    let needed = FeatureLevel::ALLOCATION_UNIT;
    assert!(
        matches!(refused, Err(Refusal::FeatureLevel { needed: wanted, .. }) if wanted == needed),
        "{refused:?}"
    );
    assert!(apply(&mut old, put(7, None, 1 << 20)).result.is_ok());
}

#[test]
fn a_pool_keeps_the_layout_that_it_was_made_with() {
    let mut state = ready();
    assert_eq!(state.desired(&node(1)).unwrap().pools[0].layout, PoolLayout::Concatenated);
    let with = |layout| {
        let mut spec = node_spec(false);
        spec.pools.get_mut(&pool()).unwrap().layout = layout;
        Body::PutNode { name: node(1), uid: uid(1), spec }
    };
    let refused = apply(&mut state, with(PoolLayout::Striped)).result.unwrap_err().to_string();
    assert!(refused.starts_with("spec.pools[].layout"), "{refused}");
    assert!(apply(&mut state, with(PoolLayout::Concatenated)).result.is_ok());
    // Before it is made it can be chosen.
    let other = |layout| match with(layout) {
        Body::PutNode { spec, .. } => Body::PutNode { name: node(7), uid: None, spec },
        _ => panic!("a node"),
    };
    for layout in [PoolLayout::Concatenated, PoolLayout::Striped] {
        assert!(apply(&mut state, other(layout)).result.is_ok());
        assert_eq!(state.desired(&node(7)).unwrap().pools[0].layout, layout);
    }
}

#[test]
fn near_full_nothing_thin_is_placed_and_thick_volumes_are_while_they_fit() {
    let mut state = ready();
    let used = |mib: u64| {
        let Body::ReportNode(mut body) = report(1, 1, 1, 100, BTreeMap::new()) else { unreachable!() };
        body.observed.as_mut().unwrap().pools.get_mut(&pool()).unwrap().used = Bytes(mib << 20);
        Body::ReportNode(body)
    };
    apply(&mut state, used(86));
    assert!(matches!(apply(&mut state, create_thin(1, 1)).result, Err(Refusal::PoolNearFull { .. })));
    let demand = Demand { size: Bytes(1 << 20), thin: true };
    let no_fit = placement::place(&state, &Selector::default(), demand, &BTreeMap::new()).unwrap_err();
    assert!(no_fit.to_string().contains("1 too full for thin volumes") && !no_fit.is_waiting(), "{no_fit}");
    assert!(apply(&mut state, create(1, 1, 1, 1, 12, false)).result.is_ok());
    apply(&mut state, used(85));
    assert!(apply(&mut state, create_thin(2, 1)).result.is_ok());
}

#[test]
fn a_volume_grows_while_there_is_room_and_never_shrinks() {
    let mut state = ready();
    let resize = |n, mib: u64| Body::UpdateVolume {
        name: name(n),
        uid: uid(1),
        change: VolumeChange { size: Some(Bytes(mib << 20)), ..VolumeChange::default() },
    };
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    let outcome = apply(&mut state, resize(1, 21));
    assert!(outcome.result.is_ok() && outcome.changes.contains(&Change::Desired(node(1))));
    let desired = state.desired(&node(1)).unwrap().volumes[0].clone();
    assert_eq!((desired.size, desired.generation), (Bytes(21 << 20), 2));
    assert_eq!(state.volume_named(&name(1)).unwrap().footprint, Bytes(24 << 20));
    assert!(matches!(
        apply(&mut state, resize(1, 20)).result,
        Err(Refusal::OutOfRange { field: refusal::Field::Size, .. })
    ));
    let refused = apply(&mut state, resize(1, 101)).result;
    let (free, needed) = (Bytes(76 << 20), Bytes(80 << 20));
    assert!(
        matches!(refused, Err(Refusal::PoolTooSmall { free: f, needed: n, .. }) if (f, n) == (free, needed)),
        "{refused:?}"
    );
    // A thin one is bounded by what may be promised, and takes nothing.
    apply(&mut state, create_thin(2, 300));
    assert!(apply(&mut state, resize(2, 305)).result.is_err());
    assert!(apply(&mut state, resize(2, 304)).result.is_ok());
    assert_eq!(state.volume_named(&name(2)).unwrap().footprint, Bytes(0));
    // Put aside and adopted it may grow as well.
    assert!(apply(&mut state, Body::ReleaseVolume { name: name(1), uid: uid(1) }).result.is_ok());
    assert!(apply(&mut state, create(3, 1, 1, 1, 24, true)).result.is_ok());
    assert_eq!(state.volume_named(&name(3)).unwrap().size, Bytes(24 << 20));
}

/// Volume `v1` of 10 MiB, online, on a pool of 100 MiB with units of 4 MiB.
fn with_volume(thin: bool) -> State {
    let mut state = ready();
    let spec = VolumeSpec { thin, ..volume_spec(10) };
    apply(&mut state, create_as(1, 1, 1, 1, spec, false));
    reported(&mut state, 1, 10);
    state
}

/// The node reports that the volume or snapshot of this id is there.
fn reported(state: &mut State, id: u128, mib: u64) {
    let id = VolumeId::from_random(id);
    let seen = VolumeObserved { size: Bytes(mib << 20), ..seen_online() };
    apply(state, report(1, 1, 1, 100, BTreeMap::from([(id, seen)])));
}

#[test]
fn a_snapshot_is_taken_restored_and_deleted() {
    let mut state = with_volume(true);
    let outcome = apply(&mut state, snapshot(1, 1, 1, 7, false));
    assert_eq!(outcome.result, Ok(Receipt::Snapshot { id: VolumeId::from_random(7) }));
    let ordered = state.desired(&node(1)).unwrap().volumes[1].clone();
    assert_eq!(ordered.content, Content::SnapshotOf(VolumeId::from_random(1)));
    assert_eq!((ordered.provision, ordered.serve), (Provision::Create, false));
    // Sent again it is the same one; under the name of another object or volume it is not.
    assert!(apply(&mut state, snapshot(1, 1, 1, 8, false)).result.is_ok());
    assert!(matches!(apply(&mut state, snapshot(1, 2, 1, 8, false)).result, Err(Refusal::NameTaken { .. })));
    assert!(matches!(
        apply(&mut state, snapshot(1, 1, 2, 8, false)).result,
        Err(Refusal::OfAnotherVolume { .. })
    ));
    // Before it is taken its volume stays as it is, and nothing is restored.
    let delete = Body::DeleteVolume { name: name(1), uid: uid(1) };
    assert!(matches!(apply(&mut state, delete.clone()).result, Err(Refusal::BeingSnapshotted { .. })));
    let refused = apply(&mut state, restore(2, 1, 1, 9, 10, 7)).result;
    assert!(matches!(refused, Err(Refusal::SnapshotNotReady { .. })), "{refused:?}");

    reported(&mut state, 7, 10);
    let taken = &state.snapshots()[&VolumeId::from_random(7)];
    assert_eq!(
        (&taken.state, taken.size, taken.footprint),
        (&VolumeState::Online, Bytes(10 << 20), Bytes(0))
    );
    assert!(taken.taken_at.is_some());
    let refused = apply(&mut state, restore(2, 1, 1, 9, 9, 7)).result;
    assert!(matches!(refused, Err(Refusal::SmallerThanSnapshot { .. })), "{refused:?}");
    assert!(apply(&mut state, restore(2, 1, 1, 9, 20, 7)).result.is_ok());
    let ordered = state.desired(&node(1)).unwrap();
    let restored = ordered.volumes.iter().find(|volume| volume.id == VolumeId::from_random(9)).unwrap();
    assert_eq!(restored.content, Content::RestoredFrom(VolumeId::from_random(7)));
    let delete_snapshot = Body::DeleteSnapshot { name: snapshot_name(1), uid: uid(1) };
    assert!(matches!(apply(&mut state, delete_snapshot.clone()).result, Err(Refusal::BeingRestored { .. })));
    reported(&mut state, 9, 20);
    // The volume goes, the snapshot stays and can be restored; then it goes, and what was restored stays.
    assert!(apply(&mut state, delete).result.is_ok());
    let gone = |id, generation| Body::ConfirmVolumeDeleted {
        node: node(1),
        volume: VolumeId::from_random(id),
        generation,
    };
    assert!(apply(&mut state, gone(1, 2)).result.is_ok());
    assert!(apply(&mut state, restore(3, 1, 1, 10, 10, 7)).result.is_ok());
    reported(&mut state, 10, 10);
    assert!(apply(&mut state, delete_snapshot).result.is_ok());
    let tombstones = state.desired(&node(1)).unwrap().tombstones;
    assert_eq!((tombstones[0].volume, tombstones[0].generation), (VolumeId::from_random(7), 2));
    assert!(apply(&mut state, gone(7, 1)).result.is_err());
    let outcome = apply(&mut state, gone(7, 2));
    assert!(outcome.changes.contains(&Change::SnapshotRemoved(VolumeId::from_random(7), snapshot_name(1))));
    assert!(state.snapshots().is_empty());
    assert_eq!(state.volumes().len(), 2);
}

#[test]
fn a_snapshot_of_a_thick_volume_keeps_room_for_all_that_may_be_overwritten() {
    let mut state = with_volume(false);
    for n in 1..=7 {
        let outcome = apply(&mut state, snapshot(n, 1, 1, u128::from(n) + 10, false));
        assert!(outcome.result.is_ok(), "{n}: {:?}", outcome.result);
    }
    // Eight times 12 MiB, of 100.
    let refused = apply(&mut state, snapshot(8, 1, 1, 20, false)).result;
    assert!(matches!(refused, Err(Refusal::PoolTooSmall { free: Bytes(4_194_304), .. })), "{refused:?}");
    let held = apply(&mut state, Body::DeleteNode { name: node(1), uid: uid(1) }).result;
    assert!(matches!(held, Err(Refusal::NodeHoldsVolumes { volumes: 8, .. })), "{held:?}");
}

#[test]
fn a_snapshot_that_is_put_aside_keeps_its_data_and_is_adopted_by_id() {
    let mut state = with_volume(true);
    apply(&mut state, snapshot(1, 1, 1, 7, false));
    reported(&mut state, 7, 10);
    let release = Body::ReleaseSnapshot { name: snapshot_name(1), uid: uid(1) };
    assert!(apply(&mut state, release).result.is_ok());
    assert!(state.snapshot_named(&snapshot_name(1)).is_none());
    assert_eq!(state.desired(&node(1)).unwrap().volumes.len(), 2);
    assert!(matches!(
        apply(&mut state, snapshot(2, 2, 2, 7, true)).result,
        Err(Refusal::OfAnotherVolume { .. })
    ));
    let before = state.desired(&node(1)).unwrap();
    let adopted = apply(&mut state, snapshot(2, 2, 1, 7, true));
    assert!(adopted.result.is_ok());
    assert_eq!(state.snapshot_named(&snapshot_name(2)).unwrap().state, VolumeState::Online);
    // Its node is told what it is called now.
    assert!(adopted.changes.contains(&Change::Desired(node(1))));
    let (before, after) = (&before.volumes[1], &state.desired(&node(1)).unwrap().volumes[1]);
    assert_eq!(
        (before.name.as_str(), after.name.as_str()),
        (snapshot_name(1).as_str(), snapshot_name(2).as_str())
    );
    assert!(after.generation > before.generation);
}

#[test]
fn hosts_can_be_kept_from_writing() {
    let mut state = ready();
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    let change = |read_only| {
        let change = VolumeChange { read_only: Some(read_only), ..VolumeChange::default() };
        Body::UpdateVolume { name: name(1), uid: uid(1), change }
    };
    let before = state.desired(&node(1)).unwrap().volumes[0].clone();
    assert!(!before.read_only);
    let outcome = apply(&mut state, change(true));
    assert!(outcome.result.is_ok() && outcome.changes.contains(&Change::Desired(node(1))));
    let after = state.desired(&node(1)).unwrap().volumes[0].clone();
    assert!(after.read_only && after.generation > before.generation);
    // Once more is no news.
    assert!(!apply(&mut state, change(true)).changes.contains(&Change::Desired(node(1))));
    assert!(apply(&mut state, change(false)).result.is_ok());
    assert!(!state.desired(&node(1)).unwrap().volumes[0].read_only);
    let mut old = ready_at(FeatureLevel::POOLS);
    apply(&mut old, create(1, 1, 1, 1, 10, false));
    let refused = apply(&mut old, change(true)).result;
    assert!(matches!(refused, Err(Refusal::FeatureLevel { .. })), "{refused:?}");
    assert!(apply(&mut old, change(false)).result.is_ok());
}

#[test]
fn what_not_all_members_understand_is_refused() {
    let mut state = ready_at(FeatureLevel::FIRST);
    apply(&mut state, create(9, 1, 1, 9, 1, false));
    let change = VolumeChange { size: Some(Bytes(5 << 20)), ..VolumeChange::default() };
    let refused = apply(&mut state, Body::UpdateVolume { name: name(9), uid: uid(1), change }).result;
    assert!(matches!(refused, Err(Refusal::FeatureLevel { .. })), "{refused:?}");
    let refused = apply(&mut state, create_thin(1, 1)).result;
    assert!(matches!(refused, Err(Refusal::FeatureLevel { .. })), "{refused:?}");
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    let id = VolumeId::from_random(1);
    let seen = VolumeObserved { allocated: Some(Bytes(5)), ..seen_online() };
    apply(&mut state, report(1, 1, 1, 100, BTreeMap::from([(id, seen.clone())])));
    assert_eq!(state.volumes()[&id].observed, Some(seen_online()));
    apply(&mut state, Body::SetFeatureLevel { level: FeatureLevel::THIN });
    apply(&mut state, report(1, 1, 1, 100, BTreeMap::from([(id, seen.clone())])));
    assert_eq!(state.volumes()[&id].observed, Some(seen));
}

#[test]
fn a_pool_that_is_another_one_is_not_used() {
    let mut state = ready();
    apply(&mut state, report(1, 1, 2, 1000, BTreeMap::new()));
    assert!(matches!(
        apply(&mut state, create(1, 1, 1, 1, 1, false)).result,
        Err(Refusal::PoolNotUsable { .. })
    ));
    assert_eq!(state.desired(&node(1)).unwrap().pools[0].id, Some(PoolId::from_random(1)));
    let fit = placement::place(
        &state,
        &Selector::default(),
        Demand { size: Bytes(1), thin: false },
        &BTreeMap::new(),
    );
    assert_eq!(fit.unwrap_err().not_online, 1);
}

/// What is asked of node 1 with these disks in its pool.
fn put_disks(disks: &[&str]) -> Body {
    let mut spec = node_spec(false);
    spec.pools.get_mut(&pool()).unwrap().disks =
        disks.iter().map(|disk| DiskPath::new(*disk).unwrap()).collect();
    Body::PutNode { name: node(1), uid: uid(1), spec }
}

/// Node 1 says this about its pool and the pool's disks: a reason of a problem, or none.
fn report_disks(
    health: PoolHealth,
    problem: Option<&str>,
    disks: &[(&str, DiskHealth, Option<&str>)],
) -> Body {
    let problem_of = |reason: &str| Problem { reason: reason.to_owned(), message: "so it is".to_owned() };
    let Body::ReportNode(mut body) = report(1, 1, 1, 100, BTreeMap::new()) else { unreachable!() };
    let seen = body.observed.as_mut().unwrap().pools.get_mut(&pool()).unwrap();
    seen.health = health;
    seen.problem = problem.map(problem_of);
    let disk = |(path, health, reason): &(&str, DiskHealth, Option<&str>)| {
        let seen = DiskObserved { health: *health, capacity: Bytes(1), problem: reason.map(problem_of) };
        (DiskPath::new(*path).unwrap(), seen)
    };
    seen.disks = disks.iter().map(disk).collect();
    Body::ReportNode(body)
}

#[test]
fn disks_that_a_pool_runs_on_are_not_exchanged_under_its_volumes() {
    use DiskHealth::{Faulted, Offline, Online};
    let mut state = ready();
    assert!(apply(&mut state, put_disks(&["/a", "/b"])).result.is_ok());
    apply(&mut state, report_disks(PoolHealth::Online, None, &[("/a", Online, None), ("/b", Online, None)]));
    let put = |state: &State, disks: &[&str]| apply(&mut state.clone(), put_disks(disks)).result;
    assert!(put(&state, &["/c"]).is_ok(), "nothing is on it");
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    for disks in [["/a", "/c"].as_slice(), &["/c", "/b"], &["/a"], &["/c", "/d", "/e"]] {
        let refused = put(&state, disks);
        assert!(matches!(refused, Err(Refusal::DiskInService { volumes: 1, .. })), "{disks:?}: {refused:?}");
    }
    let words = put(&state, &["/a", "/c"]).unwrap_err().to_string();
    assert!(words.contains("disk /b of pool p of node n1") && words.contains("name it again"), "{words}");
    assert!(put(&state, &["/b", "/a", "/c"]).is_ok(), "it grows");
    // One that is not there can be somewhere else, but not nowhere.
    let seen = [("/a", Online, None), ("/b", Offline, Some("DiskMissing"))];
    apply(&mut state, report_disks(PoolHealth::Online, None, &seen));
    assert!(put(&state, &["/a", "/new-b"]).is_ok());
    assert!(matches!(put(&state, &["/a"]), Err(Refusal::DiskNeeded { .. })));
    assert!(matches!(put(&state, &["/new-a", "/b"]), Err(Refusal::DiskInService { .. })));
    // A pool that does not run may be under any names, as long as there are as many.
    let seen = [("/a", Offline, Some("DiskMissing")), ("/b", Online, None)];
    apply(&mut state, report_disks(PoolHealth::Faulted, Some("DiskMissing"), &seen));
    assert!(put(&state, &["/new-a", "/new-b"]).is_ok());
    assert!(matches!(put(&state, &["/new-a"]), Err(Refusal::DiskNeeded { .. })));
    // What waits for a restart is the pool's, and nobody knows what is not added while one of the pool's own is missing.
    for reason in ["DiskAwaitsRestart", "DiskNotAdded"] {
        let seen = [("/a", Online, None), ("/b", Faulted, Some(reason))];
        apply(&mut state, report_disks(PoolHealth::Online, Some("DiskMissing"), &seen));
        assert!(matches!(put(&state, &["/a"]), Err(Refusal::DiskNeeded { .. })), "{reason}");
        assert!(put(&state, &["/a", "/new-b"]).is_ok(), "{reason}");
    }
    // What was named by mistake goes.
    let seen = [("/a", Online, None), ("/b", Faulted, Some("DiskNotInUse"))];
    apply(&mut state, report_disks(PoolHealth::Online, Some("DiskNotInUse"), &seen));
    assert!(put(&state, &["/a"]).is_ok() && put(&state, &["/a", "/c"]).is_ok());
    // A disk and its copy, of which only a person knows which is which: either goes.
    let seen = [("/a", Faulted, Some("DiskTwice")), ("/b", Faulted, Some("DiskTwice"))];
    apply(&mut state, report_disks(PoolHealth::Faulted, Some("DiskTwice"), &seen));
    assert!(put(&state, &["/a"]).is_ok() && put(&state, &["/b"]).is_ok());
    let mut old = ready_at(FeatureLevel::POOLS);
    apply(&mut old, put_disks(&["/a", "/b"]));
    apply(&mut old, report_disks(PoolHealth::Online, None, &[("/a", Online, None), ("/b", Online, None)]));
    apply(&mut old, create(1, 1, 1, 1, 10, false));
    apply(&mut old, report_disks(PoolHealth::Faulted, Some("DiskTwice"), &seen));
    assert!(matches!(put(&old, &["/a"]), Err(Refusal::DiskNeeded { .. })), "older members would refuse it");
}

#[test]
fn a_snapshot_keeps_the_disks_of_its_pool_too_and_older_members_are_not_surprised() {
    let (seen, exchanged) = ([("/d", DiskHealth::Online, None)], put_disks(&["/e"]));
    let mut old = ready_at(FeatureLevel::THIN);
    apply(&mut old, report_disks(PoolHealth::Online, None, &seen));
    apply(&mut old, create(1, 1, 1, 1, 10, false));
    assert!(apply(&mut old, exchanged.clone()).result.is_ok());
    let mut state = ready();
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    apply(&mut state, report(1, 1, 1, 100, BTreeMap::from([(VolumeId::from_random(1), seen_online())])));
    apply(&mut state, snapshot(1, 1, 1, 2, false));
    apply(&mut state, report(1, 1, 1, 100, BTreeMap::from([(VolumeId::from_random(2), seen_online())])));
    apply(&mut state, Body::DeleteVolume { name: name(1), uid: uid(1) });
    let done = Body::ConfirmVolumeDeleted { node: node(1), volume: VolumeId::from_random(1), generation: 2 };
    assert!(apply(&mut state, done).result.is_ok());
    apply(&mut state, report_disks(PoolHealth::Online, None, &seen));
    let refused = apply(&mut state, exchanged).result;
    assert!(matches!(refused, Err(Refusal::DiskInService { volumes: 1, .. })), "{refused:?}");
}

#[test]
fn nothing_new_is_put_on_a_pool_that_runs_on_other_disks_than_are_named() {
    let mut state = ready();
    apply(&mut state, create_thin(1, 1));
    apply(&mut state, report(1, 1, 1, 100, BTreeMap::from([(VolumeId::from_random(1), seen_online())])));
    let seen = [("/d", DiskHealth::Faulted, Some("DiskNotInUse")), ("/c", DiskHealth::Online, None)];
    apply(&mut state, report_disks(PoolHealth::Online, Some("DiskNotNamed"), &seen));
    let demand = Demand { size: Bytes(1), thin: false };
    let none = placement::place(&state, &Selector::default(), demand, &BTreeMap::new()).unwrap_err();
    assert!(none.other_disks == 1 && none.is_waiting(), "{none}");
    assert!(none.to_string().contains("1 running without some of their disks, or otherwise"), "{none}");
    for body in [create(2, 1, 1, 2, 1, false), snapshot(1, 1, 1, 3, false)] {
        let refused = apply(&mut state, body).result;
        assert!(matches!(refused, Err(Refusal::PoolHasOtherDisks { .. })), "{refused:?}");
    }
    // Nor on one that runs without one of its own, named or not; what it serves is snapshotted all the same.
    let online = ("/d", DiskHealth::Online, None);
    apply(&mut state, report_disks(PoolHealth::Online, Some("DiskMissing"), &[online]));
    let none = placement::place(&state, &Selector::default(), demand, &BTreeMap::new()).unwrap_err();
    assert!(none.other_disks == 1 && none.is_waiting(), "{none}");
    assert!(apply(&mut state, snapshot(1, 1, 1, 3, false)).result.is_ok());
    apply(&mut state, report_disks(PoolHealth::Online, None, &[online]));
    assert!(placement::place(&state, &Selector::default(), demand, &BTreeMap::new()).is_ok());
}

#[test]
fn a_volume_that_was_online_is_never_created_again() {
    let mut state = ready();
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    assert_eq!(state.desired(&node(1)).unwrap().volumes[0].provision, Provision::Create);
    let id = VolumeId::from_random(1);
    apply(&mut state, report(1, 1, 1, 100, BTreeMap::from([(id, seen_online())])));
    assert_eq!(state.volumes()[&id].state, VolumeState::Online);
    assert_eq!(state.desired(&node(1)).unwrap().volumes[0].provision, Provision::Expect);
    let lost = Body::SetNodeLiveness { node: node(1), liveness: Liveness::Lost { since: Timestamp(2) } };
    let outcome = apply(&mut state, lost);
    assert!(outcome.changes.contains(&Change::Volume(id)));
    assert!(matches!(state.volumes()[&id].state, VolumeState::Unavailable { .. }));
}

#[test]
fn deletion_needs_the_owner_and_the_nodes_confirmation() {
    let mut state = ready();
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    let delete = |owner| Body::DeleteVolume { name: name(1), uid: uid(owner) };
    assert!(matches!(apply(&mut state, delete(2)).result, Err(Refusal::NameTaken { .. })));
    assert!(matches!(apply(&mut state, delete(0)).result, Err(Refusal::NameTaken { .. })));
    assert!(apply(&mut state, delete(1)).result.is_ok());
    assert!(apply(&mut state, delete(1)).result.is_ok());
    let tombstone = state.desired(&node(1)).unwrap().tombstones[0].clone();
    assert_eq!((tombstone.cluster, tombstone.generation), (ClusterId::from_random(1), 2));
    let held = apply(&mut state, Body::DeleteNode { name: node(1), uid: uid(1) }).result;
    assert!(matches!(held, Err(Refusal::NodeHoldsVolumes { volumes: 1, .. })));
    let again = apply(&mut state, create(1, 1, 1, 2, 10, false)).result;
    assert!(matches!(again, Err(Refusal::BeingDeleted { .. })));
    let confirm =
        |n, generation| Body::ConfirmVolumeDeleted { node: node(n), volume: tombstone.volume, generation };
    assert!(apply(&mut state, confirm(1, 1)).result.is_err());
    assert!(apply(&mut state, confirm(2, 2)).result.is_err());
    assert!(apply(&mut state, confirm(1, 2)).result.is_ok());
    assert!(apply(&mut state, Body::DeleteNode { name: node(1), uid: uid(1) }).result.is_ok());
}

#[test]
fn deletions_do_not_wait_for_a_node_whose_disks_are_lost() {
    let mut state = ready();
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    apply(&mut state, create(2, 1, 1, 2, 10, false));
    let liveness = |liveness| Body::SetNodeLiveness { node: node(1), liveness };
    apply(&mut state, liveness(Liveness::Live { since: Timestamp(1) }));
    let delete = |n| Body::DeleteVolume { name: name(n), uid: uid(1) };
    assert!(apply(&mut state, delete(1)).result.is_ok());
    let abandon = Body::AbandonNode { name: node(1) };
    let refused = apply(&mut state, abandon.clone()).result;
    assert!(matches!(refused, Err(Refusal::NodeConnected { .. })));
    assert_eq!(state.volumes().len(), 2);

    apply(&mut state, liveness(Liveness::Lost { since: Timestamp(2) }));
    assert!(apply(&mut state, abandon).result.is_ok());
    let left: Vec<_> = state.volumes().keys().copied().collect();
    assert_eq!(left, [VolumeId::from_random(2)], "what nobody deleted stays");
    let late = Body::ConfirmVolumeDeleted { node: node(1), volume: VolumeId::from_random(1), generation: 2 };
    assert!(apply(&mut state, late).result.is_err());
    assert!(
        apply(&mut state, report(1, 1, 1, 100, BTreeMap::new())).result.is_err(),
        "it is bound to nobody"
    );
    assert!(apply(&mut state, delete(2)).result.is_ok());
    assert!(state.volumes().is_empty());
    assert!(apply(&mut state, Body::DeleteNode { name: node(1), uid: uid(1) }).result.is_ok());
}

#[test]
fn deletions_do_not_wait_for_a_pool_whose_disks_are_lost_and_are_caught_up_with() {
    let mut state = ready();
    for n in 1..4 {
        apply(&mut state, create(n, 1, 1, u128::from(n), 10, false));
    }
    let online = |n| (VolumeId::from_random(n), seen_online());
    apply(&mut state, report(1, 1, 1, 100, BTreeMap::from([online(1), online(2), online(3)])));
    apply(&mut state, snapshot(1, 1, 2, 4, false));
    let delete = |n| Body::DeleteVolume { name: name(n), uid: uid(1) };
    assert!(apply(&mut state, delete(1)).result.is_ok());
    let abandon = Body::AbandonPool { node: node(1), pool: pool() };
    let refused = apply(&mut state, abandon.clone()).result;
    assert!(matches!(refused, Err(Refusal::PoolOnline { .. })), "{refused:?}");
    let other = Body::AbandonPool { node: node(1), pool: PoolName::new("q").unwrap() };
    assert!(matches!(apply(&mut state, other).result, Err(Refusal::NoSuchPool { .. })));

    // The disk is dead, its daemon lives.
    let dead = [("/d", DiskHealth::Faulted, Some("DiskErrors"))];
    apply(&mut state, report_disks(PoolHealth::ReadOnly, Some("DiskErrors"), &dead));
    assert!(apply(&mut state, abandon.clone()).result.is_ok());
    assert_eq!(state.volumes().len(), 2, "what nobody deleted stays");
    let delete_snapshot = Body::DeleteSnapshot { name: snapshot_name(1), uid: uid(1) };
    assert!(apply(&mut state, delete_snapshot).result.is_ok());
    assert!(apply(&mut state, delete(2)).result.is_ok());
    assert_eq!((state.volumes().len(), state.snapshots().len()), (1, 0));
    let mut without = node_spec(false);
    without.pools.clear();
    let without = Body::PutNode { name: node(1), uid: uid(1), spec: without };
    let held = apply(&mut state, without.clone()).result;
    assert!(matches!(held, Err(Refusal::PoolHoldsVolumes { volumes: 1, .. })), "{held:?}");

    // Whatever comes back, what was deleted is not served again.
    let desired = state.desired(&node(1)).unwrap();
    let ordered: Vec<_> = desired.tombstones.iter().map(|order| (order.volume, order.generation)).collect();
    assert_eq!(ordered, [1, 4, 2].map(|n| (VolumeId::from_random(n), 2)));
    assert_eq!(desired.volumes.len(), 1);
    let confirm =
        |n| Body::ConfirmVolumeDeleted { node: node(1), volume: VolumeId::from_random(n), generation: 2 };
    assert!(apply(&mut state, confirm(1)).result.is_ok());
    assert!(apply(&mut state, confirm(1)).result.is_err());
    apply(&mut state, report(1, 1, 1, 100, BTreeMap::new()));
    assert!(state.nodes()[&node(1)].abandoned_pools.is_empty(), "it is a pool again");
    assert_eq!(state.desired(&node(1)).unwrap().tombstones.len(), 2);
    apply(&mut state, delete(3));
    assert_eq!(state.volumes().len(), 1, "its node deletes it itself");

    apply(&mut state, report_disks(PoolHealth::Faulted, Some("PoolMissing"), &[]));
    assert!(apply(&mut state, abandon).result.is_ok());
    assert!(state.volumes().is_empty());
    assert!(apply(&mut state, without).result.is_ok());
    let known = &state.nodes()[&node(1)];
    assert!(known.abandoned_pools.is_empty() && known.forgotten.is_empty() && known.pool_ids.is_empty());
    assert!(state.desired(&node(1)).unwrap().tombstones.is_empty());
}

#[test]
fn a_pool_is_not_abandoned_before_all_members_know_the_word() {
    let mut state = ready_at(FeatureLevel::THIN);
    let refused = apply(&mut state, Body::AbandonPool { node: node(1), pool: pool() }).result;
    assert!(matches!(refused, Err(Refusal::FeatureLevel { needed: FeatureLevel::POOLS, .. })), "{refused:?}");
}

#[test]
fn an_abandoned_node_that_comes_back_is_a_node_again() {
    let mut state = ready();
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    let lost = Body::SetNodeLiveness { node: node(1), liveness: Liveness::Lost { since: Timestamp(2) } };
    apply(&mut state, lost);
    apply(&mut state, Body::AbandonNode { name: node(1) });
    assert!(state.nodes()[&node(1)].abandoned);
    apply(&mut state, Body::BindNodeInstance { node: node(1), instance: instance(1) });
    assert!(!state.nodes()[&node(1)].abandoned);
    apply(&mut state, Body::DeleteVolume { name: name(1), uid: uid(1) });
    assert_eq!(state.desired(&node(1)).unwrap().tombstones.len(), 1, "it has to delete the data itself");
}

/// A volume of node 1 with a snapshot that nobody took, which was put aside, and the node lost for good.
fn with_an_untaken_snapshot_put_aside(level: FeatureLevel) -> State {
    let mut state = ready_at(level);
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    let online = BTreeMap::from([(VolumeId::from_random(1), seen_online())]);
    apply(&mut state, report(1, 1, 1, 100, online));
    assert!(apply(&mut state, snapshot(1, 1, 1, 2, false)).result.is_ok());
    let release = Body::ReleaseSnapshot { name: snapshot_name(1), uid: uid(1) };
    assert!(apply(&mut state, release).result.is_ok());
    let lost = Body::SetNodeLiveness { node: node(1), liveness: Liveness::Lost { since: Timestamp(2) } };
    apply(&mut state, lost);
    state
}

#[test]
fn a_snapshot_that_never_will_be_taken_holds_no_volume_whose_data_is_lost() {
    let mut state = with_an_untaken_snapshot_put_aside(FeatureLevel::SUPPORTED);
    let delete = Body::DeleteVolume { name: name(1), uid: uid(1) };
    let refused = apply(&mut state, delete.clone()).result;
    assert!(matches!(refused, Err(Refusal::BeingSnapshotted { .. })), "its node may come back: {refused:?}");
    apply(&mut state, Body::AbandonNode { name: node(1) });
    // One that is in use has an owner, who is asked.
    let adopt = apply(&mut state, snapshot(2, 1, 1, 2, true)).result;
    assert!(adopt.is_ok(), "{adopt:?}");
    let refused = apply(&mut state, delete.clone()).result;
    assert!(matches!(refused, Err(Refusal::BeingSnapshotted { .. })), "{refused:?}");
    apply(&mut state, Body::ReleaseSnapshot { name: snapshot_name(2), uid: uid(1) });
    assert!(apply(&mut state, delete).result.is_ok());
    assert_eq!((state.volumes().len(), state.snapshots().len()), (0, 0));
    assert!(apply(&mut state, Body::DeleteNode { name: node(1), uid: uid(1) }).result.is_ok());
}

#[test]
fn members_that_do_not_know_better_apply_deletions_as_before() {
    let mut state = with_an_untaken_snapshot_put_aside(FeatureLevel::THIN);
    apply(&mut state, Body::AbandonNode { name: node(1) });
    let refused = apply(&mut state, Body::DeleteVolume { name: name(1), uid: uid(1) }).result;
    assert!(matches!(refused, Err(Refusal::BeingSnapshotted { .. })), "{refused:?}");
}

#[test]
fn a_released_volume_keeps_its_data_and_is_adopted_by_id() {
    let mut state = ready();
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    assert!(apply(&mut state, Body::ReleaseVolume { name: name(1), uid: uid(1) }).result.is_ok());
    let desired = state.desired(&node(1)).unwrap();
    assert_eq!((desired.volumes.len(), desired.volumes[0].serve, desired.tombstones.len()), (1, false, 0));
    assert!(matches!(
        apply(&mut state, create(2, 2, 1, 7, 10, true)).result,
        Err(Refusal::NothingToAdopt { .. })
    ));
    // What is asked for must be true of it.
    type Change = fn(&mut VolumeSpec);
    let untrue: [(&str, Change); 5] = [
        ("spec.size must be at least 10Mi", |spec| spec.size = Bytes(9 << 20)),
        ("spec.thin must be false", |spec| spec.thin = true),
        ("spec.topology must be true of pool p of node n1", |spec| spec.selector.node = Some(node(2))),
        ("spec.topology", |spec| spec.selector.pool = Some(PoolName::new("other").unwrap())),
        ("spec.topology", |spec| drop(spec.selector.labels.insert("no".into(), "such".into()))),
    ];
    for (words, change) in untrue {
        let mut spec = volume_spec(10);
        change(&mut spec);
        let refused =
            apply(&mut state, create_as(2, 2, 1, 1, spec.clone(), true)).result.unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
        // Members that do not look at it must not be contradicted.
        let mut old = ready_at(FeatureLevel::POOLS);
        apply(&mut old, create(1, 1, 1, 1, 10, false));
        apply(&mut old, Body::ReleaseVolume { name: name(1), uid: uid(1) });
        assert!(apply(&mut old, create_as(2, 2, 1, 1, spec, true)).result.is_ok());
    }
    assert!(apply(&mut state, create(2, 2, 1, 1, 10, true)).result.is_ok());
    let refused = apply(&mut state, create(3, 3, 1, 1, 10, true)).result.unwrap_err().to_string();
    assert!(refused.contains("is volume v2, which is in use: delete that object first"), "{refused}");
    let adopted = state.volume_named(&name(2)).unwrap();
    assert_eq!(
        (adopted.id, adopted.uid.clone(), &adopted.lifecycle),
        (VolumeId::from_random(1), uid(2), &Lifecycle::Active)
    );
    assert_eq!(
        (desired.volumes[0].name.as_str(), adopted.name.as_str()),
        (name(1).as_str(), name(2).as_str())
    );
    assert_eq!(state.desired(&node(1)).unwrap().volumes[0].name, name(2).to_string());
}

#[test]
fn a_new_incarnation_fences_every_epoch() {
    let mut state = ready();
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    let old = state.volumes()[&VolumeId::from_random(1)].epoch;
    let outcome = apply(&mut state, Body::StartIncarnation { incarnation: Incarnation(2) });
    assert!(outcome.changes.contains(&Change::Desired(node(1))));
    let new = state.volumes()[&VolumeId::from_random(1)].epoch;
    assert!(new > old && new.incarnation == Incarnation(2));
    assert!(apply(&mut state, Body::StartIncarnation { incarnation: Incarnation(2) }).result.is_err());
}

#[test]
fn wrong_specifications_are_refused_by_field() {
    let mut state = ready();
    let refused = |state: &mut State, change: &dyn Fn(&mut VolumeSpec)| {
        let Body::CreateVolume(mut body) = create(1, 1, 1, 1, 10, false) else { unreachable!() };
        change(&mut body.spec);
        apply(state, Body::CreateVolume(body)).result.unwrap_err().to_string()
    };
    assert!(refused(&mut state, &|spec| spec.size = Bytes(0)).starts_with("spec.size"));
    assert!(refused(&mut state, &|spec| spec.replicas = 0).starts_with("spec.replicas"));
    assert!(refused(&mut state, &|spec| spec.replicas = 3).contains("more than one replica"));
}

#[test]
fn members_are_bound_to_disks_and_ids_are_used_once() {
    let mut state = bootstrapped_at(FeatureLevel::FIRST);
    let member = |id: u64, disk: u128| basalt_model::Member {
        id: MemberId::new(id).unwrap(),
        disk: Some(DiskId::from_random(disk)),
        replaces: None,
        peer_address: format!("peer-{id}:1"),
        api_address: format!("api-{id}:1"),
        supports: FeatureLevel(1),
        version: String::new(),
    };
    assert!(matches!(
        apply(&mut ready(), Body::PutMember(member(1, 1))).result,
        Err(Refusal::MemberTooOld { .. })
    ));
    assert!(apply(&mut state, Body::PutMember(member(1, 1))).result.is_ok());
    let last = apply(&mut state, Body::RemoveMember { id: MemberId::new(1).unwrap() }).result;
    assert!(matches!(last, Err(Refusal::LastMember { .. })));
    assert!(apply(&mut state, Body::PutMember(member(2, 2))).result.is_ok());
    assert!(matches!(
        apply(&mut state, Body::PutMember(member(2, 3))).result,
        Err(Refusal::MemberDisk { .. })
    ));
    let same_address = basalt_model::Member { peer_address: member(2, 2).peer_address, ..member(3, 3) };
    assert!(matches!(
        apply(&mut state, Body::PutMember(same_address)).result,
        Err(Refusal::AddressTaken { .. })
    ));
    assert!(apply(&mut state, Body::RemoveMember { id: MemberId::new(2).unwrap() }).result.is_ok());
    assert!(matches!(
        apply(&mut state, Body::PutMember(member(2, 2))).result,
        Err(Refusal::MemberRetired { .. })
    ));
    let raise = apply(&mut state, Body::SetFeatureLevel { level: FeatureLevel(2) }).result;
    assert!(matches!(raise, Err(Refusal::MemberTooOld { .. })));
}

/// The bytes of encoding 1. A later version must still read them, and read the same from them.
#[test]
fn golden_commands_and_state_stay_readable() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut state = ready_at(FeatureLevel::FIRST);
    apply(&mut state, create(1, 1, 1, 1, 10, false));
    let key = RequestKey { id: RequestId::new("k").unwrap(), digest: 7 };
    state.apply(Revision(20), &Command::new(Timestamp(9), Some(key.clone()), create(2, 0, 1, 2, 3, false)));
    let command = Command::new(Timestamp(5), Some(key), create(3, 1, 1, 3, 10, false));
    for (file, bytes) in [("command-1", command.encode().unwrap()), ("state-1", state.encode().unwrap())] {
        let path = folder.join(file);
        if std::env::var_os("BASALT_BLESS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{file} is not what encoding 1 wrote");
    }
    assert_eq!(Command::decode(&std::fs::read(folder.join("command-1")).unwrap()).unwrap(), command);
    assert_eq!(State::decode(&std::fs::read(folder.join("state-1")).unwrap()).unwrap(), state);
}

#[test]
fn foreign_bytes_are_errors() {
    use basalt_model::encoding::DecodeError;
    assert!(matches!(Command::decode(&[]), Err(DecodeError::Empty)));
    assert!(matches!(Command::decode(&[2]), Err(DecodeError::UnknownEncoding { found: 2 })));
    assert!(matches!(
        Command::decode(b"\x01{\"version\":2}"),
        Err(DecodeError::UnknownVersion { found: 2, .. })
    ));
    assert!(matches!(Command::decode(b"\x01{}"), Err(DecodeError::Malformed(_))));
    assert!(matches!(State::decode(b"\x01[]"), Err(DecodeError::Malformed(_))));
}
