//! The control plane: the real model in one process, with daemons that do what they are told when the test says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use basalt_controller::control_plane::{ControlPlane, ControlPlaneError};
use basalt_crds::{Snapshot as SnapshotObject, StorageNode, Volume as VolumeObject};
use basalt_model::placement::place;
use basalt_model::{
    AnaState, Body, BootId, Bytes, ClusterId, Command, CreateSnapshot, CreateVolume, Demand, DesiredVolume,
    FeatureLevel, InstanceId, Liveness, Node, NodeName, NodeObserved, NodeReport, PathObserved, PoolHealth,
    PoolId, PoolName, PoolObserved, Refusal, RefusalKind, RequestKey, Revision, Snapshot, SnapshotName,
    State, Timestamp, Volume, VolumeHealth, VolumeId, VolumeIdentity, VolumeName, VolumeObserved,
};
use basalt_plan::{Intent, IntentBody, Rejection, RejectionKind};

use super::apiserver::Apiserver;
use super::faults::{Fate, Faults};

/// The control plane.
#[derive(Debug)]
pub(crate) struct Control {
    faults: Arc<Faults>,
    /// Whose objects intents are checked against.
    apiserver: Option<Apiserver>,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    state: State,
    revision: u64,
    issued: u128,
}

impl Held {
    fn apply(&mut self, request: Option<RequestKey>, body: Body) -> Result<(), Refusal> {
        self.revision += 1;
        let command = Command::new(Timestamp(self.revision), request, body);
        self.state.apply(Revision(self.revision), &command).result.map(|_| ())
    }
}

impl Control {
    pub(crate) fn new(faults: Arc<Faults>, apiserver: Option<Apiserver>) -> Self {
        let mut held = Held { state: State::at_level(FeatureLevel::SUPPORTED), revision: 0, issued: 1 << 64 };
        held.apply(None, Body::Bootstrap { cluster: ClusterId::from_random(1) }).unwrap();
        Self { faults, apiserver, held: Mutex::new(held) }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    pub(crate) fn state(&self) -> State {
        self.held().state.clone()
    }

    /// Grows with every change that can be seen.
    pub(crate) fn revision(&self) -> u64 {
        let held = self.held();
        let nodes = held.state.nodes().values().map(|node| node.modified.0);
        let volumes = held.state.volumes().values().map(|volume| volume.modified.0);
        let snapshots = held.state.snapshots().values().map(|snapshot| snapshot.modified.0);
        let counts = held.state.nodes().len() + held.state.volumes().len() + held.state.snapshots().len();
        let counts = counts as u64;
        nodes.chain(volumes).chain(snapshots).max().unwrap_or_default() * 1_000 + counts
    }

    /// Every daemon connects, does what is desired, and says so.
    pub(crate) fn daemons_work(&self) {
        let mut held = self.held();
        for node in held.state.nodes().keys().cloned().collect::<Vec<_>>() {
            daemon_works(&mut held, &node);
        }
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T, ControlPlaneError> {
        match self.faults.call() {
            Fate::Answered => Ok(read(&self.held().state)),
            Fate::Unheard | Fate::Lost => Err(dead()),
        }
    }

    /// Whatever takes something away is asked under the UID of an object that was deleted, and nothing else is.
    fn check(&self, intent: &Intent) {
        let Some(apiserver) = &self.apiserver else { return };
        let volume = |name: &VolumeName| apiserver.get::<VolumeObject>(name.as_str()).unwrap().metadata;
        let snapshot = |name: &SnapshotName| apiserver.get::<SnapshotObject>(name.as_str()).unwrap().metadata;
        let node = |name: &NodeName| apiserver.get::<StorageNode>(name.as_str()).unwrap().metadata;
        let (metadata, takes_away) = match &intent.body {
            IntentBody::DeleteVolume { name } | IntentBody::ReleaseVolume { name } => (volume(name), true),
            IntentBody::DeleteNode { name } => (node(name), true),
            IntentBody::CreateVolume { name, .. } | IntentBody::UpdateVolume { name, .. } => {
                (volume(name), false)
            }
            IntentBody::DeleteSnapshot { name } | IntentBody::ReleaseSnapshot { name } => {
                (snapshot(name), true)
            }
            IntentBody::CreateSnapshot { name, .. } => (snapshot(name), false),
            IntentBody::PutNode { name, .. } => (node(name), node(name).deletion_timestamp.is_some()),
        };
        assert_eq!(metadata.uid.as_deref(), Some(intent.owner.as_str()), "{intent:?}");
        assert_eq!(metadata.deletion_timestamp.is_some(), takes_away, "{intent:?}");
        assert!(metadata.finalizers.is_some_and(|all| !all.is_empty()), "{intent:?} before the finalizer");
    }
}

fn dead() -> ControlPlaneError {
    ControlPlaneError::Unavailable { message: "the process is dead".to_owned() }
}

impl ControlPlane for Control {
    async fn cluster(&self) -> Result<ClusterId, ControlPlaneError> {
        self.read(|state| state.cluster().unwrap())
    }

    async fn node(&self, name: &NodeName) -> Result<Option<Node>, ControlPlaneError> {
        self.read(|state| state.nodes().get(name).cloned())
    }

    async fn volumes_on(&self, node: &NodeName) -> Result<Vec<Volume>, ControlPlaneError> {
        self.read(|state| state.volumes_on(node).cloned().collect())
    }

    async fn volume(&self, name: &VolumeName) -> Result<Option<Volume>, ControlPlaneError> {
        self.read(|state| state.volume_named(name).cloned())
    }

    async fn volume_by_id(&self, id: VolumeId) -> Result<Option<Volume>, ControlPlaneError> {
        self.read(|state| state.volumes().get(&id).cloned())
    }

    async fn snapshot(&self, name: &SnapshotName) -> Result<Option<Snapshot>, ControlPlaneError> {
        self.read(|state| state.snapshot_named(name).cloned())
    }

    async fn snapshot_by_id(&self, id: VolumeId) -> Result<Option<Snapshot>, ControlPlaneError> {
        self.read(|state| state.snapshots().get(&id).cloned())
    }

    async fn snapshots_on(&self, node: &NodeName) -> Result<Vec<Snapshot>, ControlPlaneError> {
        self.read(|state| state.snapshots_on(node).cloned().collect())
    }

    async fn carry_out(&self, intent: &Intent) -> Result<(), ControlPlaneError> {
        let fate = self.faults.call();
        if fate == Fate::Lost {
            return Err(dead());
        }
        self.check(intent);
        let answer = carry_out(&mut self.held(), intent);
        if fate == Fate::Unheard { Err(dead()) } else { answer.map_err(|refusal| rejected(&refusal).into()) }
    }
}

fn carry_out(held: &mut Held, intent: &Intent) -> Result<(), Refusal> {
    let uid = Some(intent.owner.clone());
    let body = match intent.body.clone() {
        IntentBody::PutNode { name, spec } => Body::PutNode { name, uid, spec },
        IntentBody::DeleteNode { name } => Body::DeleteNode { name, uid },
        IntentBody::UpdateVolume { name, change } => Body::UpdateVolume { name, uid, change },
        IntentBody::DeleteVolume { name } => Body::DeleteVolume { name, uid },
        IntentBody::ReleaseVolume { name } => Body::ReleaseVolume { name, uid },
        IntentBody::DeleteSnapshot { name } => Body::DeleteSnapshot { name, uid },
        IntentBody::ReleaseSnapshot { name } => Body::ReleaseSnapshot { name, uid },
        IntentBody::CreateSnapshot { name, volume, adopt } => {
            held.issued += 1;
            let id = adopt.unwrap_or(VolumeId::from_random(held.issued));
            let (identity, adopt) = (VolumeIdentity::of(id), adopt.is_some());
            Body::CreateSnapshot(CreateSnapshot { name, uid, id, adopt, volume, identity })
        }
        IntentBody::CreateVolume { name, spec, adopt } => {
            let source = match &spec.source {
                None => None,
                Some(source) => {
                    let missing = || Refusal::NoSuchSnapshot { snapshot: source.clone() };
                    Some(held.state.snapshot_named(source).ok_or_else(missing)?.clone())
                }
            };
            let restored_from = source.as_ref().map(|source| source.id);
            let placement = match source {
                Some(source) => source.placement,
                None => place(&held.state, &spec.selector, demand(&spec), &BTreeMap::new())
                    .map_err(Refusal::NoFit)?,
            };
            held.issued += 1;
            let id = adopt.unwrap_or(VolumeId::from_random(held.issued));
            let (size, identity) = (spec.size, VolumeIdentity::of(id));
            let adopt = adopt.is_some();
            Body::CreateVolume(CreateVolume {
                name,
                uid,
                id,
                adopt,
                spec,
                size,
                identity,
                placement,
                restored_from,
            })
        }
    };
    held.apply(Some(RequestKey { id: intent.request.clone(), digest: 0 }), body)
}

fn daemon_works(held: &mut Held, name: &NodeName) {
    let node = name.clone();
    let instance = InstanceId::from_random(7);
    if held.state.nodes()[name].binding.is_none() {
        held.apply(None, Body::BindNodeInstance { node: node.clone(), instance }).unwrap();
        let liveness = Liveness::Live { since: Timestamp(1) };
        held.apply(None, Body::SetNodeLiveness { node: node.clone(), liveness }).unwrap();
    }
    let ordered: Vec<_> = held.state.tombstones_on(name).cloned().collect();
    for tombstone in ordered {
        let (volume, generation) = (tombstone.volume, tombstone.generation);
        held.apply(None, Body::ConfirmVolumeDeleted { node: node.clone(), volume, generation }).unwrap();
    }
    let desired = held.state.desired(name).unwrap();
    let path = PathObserved {
        node: node.clone(),
        address: "127.0.0.1:4420".parse().unwrap(),
        ana: AnaState::Optimized,
    };
    let online = |volume: &DesiredVolume| VolumeObserved {
        health: VolumeHealth::Online,
        size: volume.size,
        generation: volume.generation,
        allocated: (!volume.thin).then_some(volume.size),
        shortfall: None,
        paths: vec![path.clone()],
    };
    let pool = PoolObserved {
        id: Some(PoolId::from_random(9)),
        health: PoolHealth::Online,
        capacity: Bytes(1 << 40),
        used: Bytes(0),
        allocation_unit: Bytes(1 << 20),
        disks: BTreeMap::new(),
        problem: None,
    };
    let report = NodeReport {
        node,
        instance,
        boot: BootId::from_random(3),
        observed: Some(NodeObserved {
            version: "1.0".to_owned(),
            pools: BTreeMap::from([(PoolName::new("pool").unwrap(), pool)]),
            ..NodeObserved::default()
        }),
        volumes: desired.volumes.iter().map(|volume| (volume.id, online(volume))).collect(),
    };
    held.apply(None, Body::ReportNode(report)).unwrap();
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
