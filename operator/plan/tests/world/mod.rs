//! A whole world in one value: an apiserver's objects, a control plane that is the real model, and daemons with disks.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use basalt_crds::storage_node::{AllocationUnit, CoreSet, Listener, Pool, PoolLayout, StorageNodeSpec};
use basalt_crds::volume::{ReclaimPolicy, Transport, VolumeSource, VolumeSpec};
use basalt_crds::{FINALIZER, Size, Snapshot, SnapshotSpec, StorageNode, Volume};
use basalt_model::placement::place;
use basalt_model::{
    Body, BootId, Bytes, ClusterId, Command, CreateSnapshot, CreateVolume, Demand, FeatureLevel, InstanceId,
    Liveness, NodeName, NodeObserved, NodeReport, ObjectUid, PathObserved, PoolHealth, PoolId, PoolName,
    PoolObserved, Problem, Refusal, RefusalKind, RequestKey, Revision, SnapshotName, State, Timestamp,
    VolumeHealth, VolumeId, VolumeIdentity, VolumeName, VolumeObserved,
};
use basalt_plan::{
    Finalizer, Intent, IntentBody, NodeSight, Plan, Progress, Rejection, RejectionKind, Seen, SnapshotSight,
    VolumeSight, plan_snapshot, plan_storage_node, plan_volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff;

/// Room for any number of test volumes.
const POOL_BYTES: u64 = 1 << 40;
/// More steps than any reconciliation needs.
const STEPS_MAX: usize = 8;

/// The world.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) volumes: BTreeMap<String, Volume>,
    pub(crate) nodes: BTreeMap<String, StorageNode>,
    pub(crate) snapshots: BTreeMap<String, Snapshot>,
    pub(crate) control: Control,
    /// UIDs of objects that were lost without having been deleted.
    pub(crate) lost: BTreeSet<String>,
    uids: u64,
    clock: i64,
}

/// The control plane and the daemons' disks.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    pub(crate) state: State,
    pub(crate) reachable: bool,
    issued: u128,
    revision: u64,
}

/// After which step of a reconciliation the operator dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    Never,
    AfterFinalizer,
    AfterIntent,
    BeforeStatus,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            volumes: BTreeMap::new(),
            nodes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            control: Control::new(1),
            lost: BTreeSet::new(),
            uids: 0,
            clock: 0,
        }
    }

    fn metadata(&mut self, name: &str) -> ObjectMeta {
        self.uids += 1;
        ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{}", self.uids)),
            generation: Some(1),
            ..ObjectMeta::default()
        }
    }

    pub(crate) fn create_volume(&mut self, name: &str, reclaim_policy: ReclaimPolicy) {
        if !self.volumes.contains_key(name) {
            let metadata = self.metadata(name);
            let spec = VolumeSpec {
                size: Size::Text("1Gi".to_owned()),
                replicas: 1,
                thin: false,
                read_only: false,
                transport: Transport::Tcp,
                topology: None,
                allowed_hosts: Vec::new(),
                reclaim_policy,
                volume_id: None,
                source: None,
            };
            self.volumes.insert(name.to_owned(), Volume { metadata, spec, status: None });
        }
    }

    pub(crate) fn create_snapshot(&mut self, name: &str, of: &str, reclaim_policy: ReclaimPolicy) {
        if !self.snapshots.contains_key(name) {
            let metadata = self.metadata(name);
            let spec = SnapshotSpec { volume: of.to_owned(), reclaim_policy, snapshot_id: None };
            self.snapshots.insert(name.to_owned(), Snapshot { metadata, spec, status: None });
        }
    }

    pub(crate) fn restore_volume(&mut self, name: &str, snapshot: &str) {
        if !self.volumes.contains_key(name) {
            self.create_volume(name, ReclaimPolicy::Delete);
            let spec = &mut self.volumes.get_mut(name).unwrap().spec;
            spec.size = Size::Text("2Gi".to_owned());
            spec.thin = true;
            spec.source = Some(VolumeSource { snapshot: snapshot.to_owned() });
        }
    }

    pub(crate) fn delete_snapshot(&mut self, name: &str) {
        if let Some(snapshot) = self.snapshots.get_mut(name)
            && mark_deleted(&mut snapshot.metadata)
        {
            self.snapshots.remove(name);
        }
    }

    pub(crate) fn create_node(&mut self, name: &str) {
        if !self.nodes.contains_key(name) {
            let metadata = self.metadata(name);
            let spec = StorageNodeSpec {
                address: "127.0.0.1".to_owned(),
                cores: CoreSet::Count(1),
                listeners: vec![Listener {
                    name: "tcp".to_owned(),
                    transport: Transport::Tcp,
                    bind: "127.0.0.1:4420".to_owned(),
                    advertise: None,
                }],
                pools: vec![Pool {
                    name: "pool".to_owned(),
                    disks: vec![format!("/disks/{name}")],
                    layout: PoolLayout::default(),
                    allocation_unit: AllocationUnit::default(),
                    labels: BTreeMap::new(),
                    over_provisioning_percent: None,
                }],
                unschedulable: false,
            };
            self.nodes.insert(name.to_owned(), StorageNode { metadata, spec, status: None });
        }
    }

    pub(crate) fn change_volume(&mut self, name: &str, change: impl FnOnce(&mut VolumeSpec)) {
        if let Some(volume) = self.volumes.get_mut(name) {
            change(&mut volume.spec);
            volume.metadata.generation = volume.metadata.generation.map(|generation| generation + 1);
        }
    }

    pub(crate) fn change_node(&mut self, name: &str, change: impl FnOnce(&mut StorageNodeSpec)) {
        if let Some(node) = self.nodes.get_mut(name) {
            change(&mut node.spec);
            node.metadata.generation = node.metadata.generation.map(|generation| generation + 1);
        }
    }

    pub(crate) fn delete_volume(&mut self, name: &str) {
        if let Some(volume) = self.volumes.get_mut(name)
            && mark_deleted(&mut volume.metadata)
        {
            self.volumes.remove(name);
        }
    }

    pub(crate) fn delete_node(&mut self, name: &str) {
        if let Some(node) = self.nodes.get_mut(name)
            && mark_deleted(&mut node.metadata)
        {
            self.nodes.remove(name);
        }
    }

    /// All objects vanish without having been deleted.
    pub(crate) fn wipe_apiserver(&mut self) {
        self.replace_objects(BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    }

    pub(crate) fn replace_objects(
        &mut self,
        volumes: BTreeMap<String, Volume>,
        nodes: BTreeMap<String, StorageNode>,
        snapshots: BTreeMap<String, Snapshot>,
    ) {
        let uids = |world: &World| -> BTreeSet<String> {
            let volumes = world.volumes.values().filter_map(|volume| volume.metadata.uid.clone());
            let nodes = world.nodes.values().filter_map(|node| node.metadata.uid.clone());
            let snapshots = world.snapshots.values().filter_map(|seen| seen.metadata.uid.clone());
            volumes.chain(nodes).chain(snapshots).collect()
        };
        let before = uids(self);
        self.volumes = volumes;
        self.nodes = nodes;
        self.snapshots = snapshots;
        let after = uids(self);
        self.lost.extend(before.difference(&after).cloned());
        for uid in after {
            self.lost.remove(&uid);
        }
    }

    /// Plans and carries out until nothing is left to do, or the operator dies. True when something was done.
    pub(crate) fn reconcile_volume(&mut self, name: &str, crash: Crash) -> bool {
        let mut progress = Progress::default();
        let mut acted = false;
        for _ in 0..STEPS_MAX {
            let Some(object) = self.volumes.get(name).cloned() else { return acted };
            let now = self.now();
            let seen = self.control.see_volume(&object);
            let plan = plan_volume(&object, &seen, &progress, now);
            let Some(stored) = self.volumes.get_mut(name) else { return acted };
            acted |= !is_empty(&plan);
            if let Some(status) = plan.status.clone().filter(|_| crash != Crash::BeforeStatus) {
                stored.status = Some(status);
            }
            match self.step(plan.finalizer, plan.intent, crash, name, Kind::Volume) {
                Step::Again(answer) => match answer {
                    Some(Ok(())) => progress.accepted += 1,
                    Some(Err(rejection)) => progress.rejection = Some(rejection),
                    None => (),
                },
                Step::Done => return acted,
            }
        }
        panic!("volume {name} does not come to rest: {:?}", self.volumes.get(name));
    }

    /// As for volumes.
    pub(crate) fn reconcile_node(&mut self, name: &str, crash: Crash) -> bool {
        let mut progress = Progress::default();
        let mut acted = false;
        for _ in 0..STEPS_MAX {
            let Some(object) = self.nodes.get(name).cloned() else { return acted };
            let now = self.now();
            let seen = self.control.see_node(name);
            let plan = plan_storage_node(&object, &seen, &progress, now);
            let Some(stored) = self.nodes.get_mut(name) else { return acted };
            acted |= !is_empty(&plan);
            if let Some(status) = plan.status.clone().filter(|_| crash != Crash::BeforeStatus) {
                stored.status = Some(status);
            }
            match self.step(plan.finalizer, plan.intent, crash, name, Kind::Node) {
                Step::Again(answer) => match answer {
                    Some(Ok(())) => progress.accepted += 1,
                    Some(Err(rejection)) => progress.rejection = Some(rejection),
                    None => (),
                },
                Step::Done => return acted,
            }
        }
        panic!("node {name} does not come to rest: {:?}", self.nodes.get(name));
    }

    /// As for volumes.
    pub(crate) fn reconcile_snapshot(&mut self, name: &str, crash: Crash) -> bool {
        let mut progress = Progress::default();
        let mut acted = false;
        for _ in 0..STEPS_MAX {
            let Some(object) = self.snapshots.get(name).cloned() else { return acted };
            let now = self.now();
            let seen = self.control.see_snapshot(&object);
            let plan = plan_snapshot(&object, &seen, &progress, now);
            let Some(stored) = self.snapshots.get_mut(name) else { return acted };
            acted |= !is_empty(&plan);
            if let Some(status) = plan.status.clone().filter(|_| crash != Crash::BeforeStatus) {
                stored.status = Some(status);
            }
            match self.step(plan.finalizer, plan.intent, crash, name, Kind::Snapshot) {
                Step::Again(answer) => match answer {
                    Some(Ok(())) => progress.accepted += 1,
                    Some(Err(rejection)) => progress.rejection = Some(rejection),
                    None => (),
                },
                Step::Done => return acted,
            }
        }
        panic!("snapshot {name} does not come to rest: {:?}", self.snapshots.get(name));
    }

    fn step(
        &mut self,
        finalizer: Finalizer,
        intent: Option<Intent>,
        crash: Crash,
        name: &str,
        kind: Kind,
    ) -> Step {
        match finalizer {
            Finalizer::Keep => (),
            Finalizer::Add => {
                let metadata = self.metadata_of(name, kind);
                metadata.finalizers.get_or_insert_default().push(FINALIZER.to_owned());
                return if crash == Crash::AfterFinalizer { Step::Done } else { Step::Again(None) };
            }
            Finalizer::Remove => {
                assert!(self.metadata_of(name, kind).deletion_timestamp.is_some(), "let go of a live object");
                match kind {
                    Kind::Volume => drop(self.volumes.remove(name)),
                    Kind::Node => drop(self.nodes.remove(name)),
                    Kind::Snapshot => drop(self.snapshots.remove(name)),
                }
                return Step::Done;
            }
        }
        let Some(intent) = intent else { return Step::Done };
        self.check_intent(&intent);
        let answer = Some(self.control.carry_out(&intent));
        if crash == Crash::AfterIntent { Step::Done } else { Step::Again(answer) }
    }

    fn metadata_of(&mut self, name: &str, kind: Kind) -> &mut ObjectMeta {
        match kind {
            Kind::Volume => &mut self.volumes.get_mut(name).unwrap().metadata,
            Kind::Node => &mut self.nodes.get_mut(name).unwrap().metadata,
            Kind::Snapshot => &mut self.snapshots.get_mut(name).unwrap().metadata,
        }
    }

    /// Everything is asked under the object's own UID; what takes something away only for an object that was deleted; and
    /// what existed once is never created again.
    fn check_intent(&self, intent: &Intent) {
        let volume = |name: &VolumeName| &self.volumes[name.as_str()];
        let node = |name: &NodeName| &self.nodes[name.as_str()];
        let snapshot = |name: &SnapshotName| &self.snapshots[name.as_str()];
        let (metadata, takes_away) = match &intent.body {
            IntentBody::DeleteVolume { name } | IntentBody::ReleaseVolume { name } => {
                (&volume(name).metadata, true)
            }
            IntentBody::DeleteNode { name } => (&node(name).metadata, true),
            IntentBody::CreateVolume { name, .. } => {
                let existed = volume(name).status.as_ref().and_then(|status| status.volume_id.as_ref());
                assert_eq!(existed, None, "volume {name} is created again");
                (&volume(name).metadata, false)
            }
            IntentBody::UpdateVolume { name, .. } => (&volume(name).metadata, false),
            IntentBody::DeleteSnapshot { name } | IntentBody::ReleaseSnapshot { name } => {
                (&snapshot(name).metadata, true)
            }
            IntentBody::CreateSnapshot { name, .. } => {
                let existed = snapshot(name).status.as_ref().and_then(|status| status.snapshot_id.as_ref());
                assert_eq!(existed, None, "snapshot {name} is taken again");
                (&snapshot(name).metadata, false)
            }
            IntentBody::PutNode { name, .. } => {
                (&node(name).metadata, node(name).metadata.deletion_timestamp.is_some())
            }
        };
        assert_eq!(
            metadata.uid.as_deref(),
            Some(intent.owner.as_str()),
            "{intent:?} for another object's UID"
        );
        assert_eq!(metadata.deletion_timestamp.is_some(), takes_away, "{intent:?} against the object's wish");
    }

    /// Everything is reconciled and every daemon reports, until nothing moves.
    pub(crate) fn come_to_rest(&mut self) {
        for _ in 0..32 {
            let mut acted = false;
            let nodes: Vec<String> = self.nodes.keys().cloned().collect();
            let volumes: Vec<String> = self.volumes.keys().cloned().collect();
            let snapshots: Vec<String> = self.snapshots.keys().cloned().collect();
            for name in &snapshots {
                acted |= self.reconcile_snapshot(name, Crash::Never);
            }
            for name in &nodes {
                acted |= self.reconcile_node(name, Crash::Never);
            }
            for name in &volumes {
                acted |= self.reconcile_volume(name, Crash::Never);
            }
            for name in self.control.state.nodes().keys().cloned().collect::<Vec<_>>() {
                acted |= self.control.report(&name);
            }
            if !acted {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    fn now(&mut self) -> jiff::Timestamp {
        self.clock += 1;
        jiff::Timestamp::from_second(self.clock).unwrap()
    }
}

/// The kinds of objects.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Volume,
    Node,
    Snapshot,
}

enum Step {
    Again(Option<Result<(), Rejection>>),
    Done,
}

/// A plan that was made because something was refused again is still empty when it says nothing new.
fn is_empty<S>(plan: &Plan<S>) -> bool {
    plan.finalizer == Finalizer::Keep && plan.status.is_none() && plan.events.is_empty()
}

/// True when nothing holds the object.
fn mark_deleted(metadata: &mut ObjectMeta) -> bool {
    metadata.deletion_timestamp.get_or_insert(Time(jiff::Timestamp::UNIX_EPOCH));
    metadata.finalizers.as_ref().is_none_or(Vec::is_empty)
}

impl Control {
    /// A new cluster.
    pub(crate) fn new(seed: u128) -> Self {
        let state = State::at_level(FeatureLevel::SUPPORTED);
        let mut control = Self { state, reachable: true, issued: seed << 64, revision: 0 };
        control.apply(None, Body::Bootstrap { cluster: ClusterId::from_random(seed) }).unwrap();
        control
    }

    fn apply(&mut self, request: Option<RequestKey>, body: Body) -> Result<(), Refusal> {
        self.revision += 1;
        let command = Command::new(Timestamp(self.revision), request, body);
        self.state.apply(Revision(self.revision), &command).result.map(|_| ())
    }

    fn see<T>(&self, found: T) -> Seen<T> {
        match self.state.cluster() {
            Some(cluster) if self.reachable => Seen::Answered { cluster, found },
            _ => Seen::Unreachable { message: "no member answers".to_owned() },
        }
    }

    pub(crate) fn see_volume(&self, object: &Volume) -> Seen<VolumeSight> {
        let name = VolumeName::new(object.metadata.name.clone().unwrap()).unwrap();
        let id = object.status.as_ref().and_then(|status| status.volume_id.as_ref());
        let id: Option<VolumeId> = id.map(|id| id.parse().unwrap());
        let by_name = self.state.volume_named(&name).cloned();
        let by_id = id.and_then(|id| self.state.volumes().get(&id)).cloned();
        let going = by_name.as_ref().filter(|volume| volume.is_going());
        let node = going.and_then(|volume| self.state.nodes().get(&volume.placement.node)).cloned();
        self.see(VolumeSight { by_name, by_id, node })
    }

    pub(crate) fn see_snapshot(&self, object: &Snapshot) -> Seen<SnapshotSight> {
        let name = SnapshotName::new(object.metadata.name.clone().unwrap()).unwrap();
        let id = object.status.as_ref().and_then(|status| status.snapshot_id.as_ref());
        let id: Option<VolumeId> = id.map(|id| id.parse().unwrap());
        let by_name = self.state.snapshot_named(&name).cloned();
        let by_id = id.and_then(|id| self.state.snapshots().get(&id)).cloned();
        let going = by_name.as_ref().filter(|snapshot| snapshot.is_going());
        let node = going.and_then(|snapshot| self.state.nodes().get(&snapshot.placement.node)).cloned();
        self.see(SnapshotSight { by_name, by_id, node })
    }

    pub(crate) fn see_node(&self, name: &str) -> Seen<NodeSight> {
        let name = NodeName::new(name).unwrap();
        self.see(NodeSight {
            node: self.state.nodes().get(&name).cloned(),
            volumes: self.state.volumes_on(&name).cloned().collect(),
            snapshots: self.state.snapshots_on(&name).cloned().collect(),
        })
    }

    pub(crate) fn carry_out(&mut self, intent: &Intent) -> Result<(), Rejection> {
        let uid: Option<ObjectUid> = Some(intent.owner.clone());
        let body = match intent.body.clone() {
            IntentBody::PutNode { name, spec } => Body::PutNode { name, uid, spec },
            IntentBody::DeleteNode { name } => Body::DeleteNode { name, uid },
            IntentBody::UpdateVolume { name, change } => Body::UpdateVolume { name, uid, change },
            IntentBody::DeleteVolume { name } => Body::DeleteVolume { name, uid },
            IntentBody::ReleaseVolume { name } => Body::ReleaseVolume { name, uid },
            IntentBody::DeleteSnapshot { name } => Body::DeleteSnapshot { name, uid },
            IntentBody::ReleaseSnapshot { name } => Body::ReleaseSnapshot { name, uid },
            IntentBody::CreateSnapshot { name, volume, adopt } => {
                self.issued += 1;
                let id = adopt.unwrap_or(VolumeId::from_random(self.issued));
                let (identity, adopt) = (VolumeIdentity::of(id), adopt.is_some());
                Body::CreateSnapshot(CreateSnapshot { name, uid, id, adopt, volume, identity })
            }
            IntentBody::CreateVolume { name, spec, adopt } => {
                let source = match &spec.source {
                    None => None,
                    Some(source) => {
                        let missing = || rejected(&Refusal::NoSuchSnapshot { snapshot: source.clone() });
                        Some(self.state.snapshot_named(source).cloned().ok_or_else(missing)?)
                    }
                };
                let adopted = adopt.and_then(|id| self.state.volumes().get(&id));
                let placement = match (adopted, &source) {
                    (Some(volume), _) => volume.placement.clone(),
                    (None, Some(source)) => source.placement.clone(),
                    (None, None) => place(&self.state, &spec.selector, demand(&spec), &BTreeMap::new())
                        .map_err(|no_fit| rejected(&Refusal::NoFit(no_fit)))?,
                };
                self.issued += 1;
                let id = adopt.unwrap_or(VolumeId::from_random(self.issued));
                Body::CreateVolume(CreateVolume {
                    name,
                    uid,
                    id,
                    adopt: adopt.is_some(),
                    size: spec.size,
                    spec,
                    identity: VolumeIdentity::of(id),
                    placement,
                    restored_from: source.map(|source| source.id),
                })
            }
        };
        let request = RequestKey { id: intent.request.clone(), digest: 0 };
        self.apply(Some(request), body).map_err(|refusal| rejected(&refusal))
    }

    /// The node's daemon connects, does what is desired, and says so. True when that was news.
    pub(crate) fn report(&mut self, name: &NodeName) -> bool {
        let before = self.revision_of_change();
        let instance = InstanceId::from_random(7);
        let pool = PoolName::new("pool").unwrap();
        let node = name.clone();
        let bound = self.state.nodes()[name].binding.is_some();
        if !bound {
            self.apply(None, Body::BindNodeInstance { node: node.clone(), instance }).unwrap();
        }
        if !self.state.nodes()[name].liveness.is_live() {
            let liveness = Liveness::Live { since: Timestamp(1) };
            self.apply(None, Body::SetNodeLiveness { node: node.clone(), liveness }).unwrap();
        }
        let going = self.state.tombstones_on(name).map(|tombstone| (tombstone.volume, tombstone.generation));
        let going: Vec<_> = going.collect();
        for (volume, generation) in going {
            self.apply(None, Body::ConfirmVolumeDeleted { node: node.clone(), volume, generation }).unwrap();
        }
        let observed = PoolObserved {
            id: Some(PoolId::from_random(9)),
            health: PoolHealth::Online,
            capacity: Bytes(POOL_BYTES),
            used: Bytes(0),
            allocation_unit: Bytes(1 << 20),
            disks: BTreeMap::new(),
            problem: None,
        };
        let desired = self.state.desired(name).unwrap();
        let volumes = desired.volumes.iter().map(|volume| {
            let path = PathObserved {
                node: node.clone(),
                address: "127.0.0.1:4420".parse().unwrap(),
                ana: basalt_model::AnaState::Optimized,
            };
            let observed = VolumeObserved {
                health: VolumeHealth::Online,
                size: volume.size,
                generation: volume.generation,
                allocated: (!volume.thin).then_some(volume.size),
                shortfall: None,
                paths: vec![path],
            };
            (volume.id, observed)
        });
        let report = NodeReport {
            node: node.clone(),
            instance,
            boot: BootId::from_random(3),
            observed: Some(NodeObserved {
                version: "0".to_owned(),
                pools: BTreeMap::from([(pool, observed)]),
                ..NodeObserved::default()
            }),
            volumes: volumes.collect(),
        };
        self.apply(None, Body::ReportNode(report)).unwrap();
        self.revision_of_change() != before
    }

    pub(crate) fn delete_by_hand(&mut self, name: VolumeName, uid: Option<ObjectUid>) {
        self.apply(None, Body::DeleteVolume { name, uid }).unwrap();
    }

    pub(crate) fn lose(&mut self, name: &str) {
        let node = NodeName::new(name).unwrap();
        if self.state.nodes().contains_key(&node) {
            let liveness = Liveness::Lost { since: Timestamp(2) };
            self.apply(None, Body::SetNodeLiveness { node, liveness }).unwrap();
        }
    }

    pub(crate) fn abandon(&mut self, name: &str) {
        self.apply(None, Body::AbandonNode { name: NodeName::new(name).unwrap() }).unwrap();
    }

    /// The daemon lives, and its pool has this problem.
    pub(crate) fn break_pool(&mut self, name: &str, health: PoolHealth, reason: &str, message: &str) {
        let node = NodeName::new(name).unwrap();
        let mut observed = self.state.nodes()[&node].observed.clone();
        let problem = Problem { reason: reason.to_owned(), message: message.to_owned() };
        for pool in observed.pools.values_mut() {
            (pool.health, pool.problem) = (health, Some(problem.clone()));
        }
        let (instance, boot) = (InstanceId::from_random(7), BootId::from_random(3));
        let report = NodeReport { node, instance, boot, observed: Some(observed), volumes: BTreeMap::new() };
        self.apply(None, Body::ReportNode(report)).unwrap();
    }

    pub(crate) fn abandon_pool(&mut self, name: &str) {
        let (node, pool) = (NodeName::new(name).unwrap(), PoolName::new("pool").unwrap());
        self.apply(None, Body::AbandonPool { node, pool }).unwrap();
    }

    fn revision_of_change(&self) -> Vec<(String, u64)> {
        let nodes = self.state.nodes().values().map(|node| (node.name.to_string(), node.modified.0));
        let snapshots = self.state.snapshots().values().map(|seen| (seen.id.to_string(), seen.modified.0));
        nodes
            .chain(snapshots)
            .chain(self.state.volumes().values().map(|volume| (volume.id.to_string(), volume.modified.0)))
            .collect()
    }
}

fn demand(spec: &basalt_model::VolumeSpec) -> Demand {
    Demand { size: spec.size, thin: spec.thin }
}

fn rejected(refusal: &Refusal) -> Rejection {
    let kind = match refusal.kind() {
        RefusalKind::NotFound => RejectionKind::NotFound,
        RefusalKind::Conflict => RejectionKind::Conflict,
        RefusalKind::Invalid => RejectionKind::Invalid,
        RefusalKind::Precondition => RejectionKind::Precondition,
        RefusalKind::Exhausted => RejectionKind::Exhausted,
        RefusalKind::NoPool => RejectionKind::NoPool,
    };
    Rejection { kind, message: refusal.to_string() }
}
