//! The replicated state and its queries. [`State::apply`] is in the module `apply`.

use crate::command::{FeatureLevel, Receipt};
use crate::ids::{
    ClusterId, DiskId, Epoch, Incarnation, MemberId, NodeName, RequestId, Revision, SnapshotName, VolumeId,
    VolumeName,
};
use crate::node::Node;
use crate::placement::Placement;
use crate::refusal::Refusal;
use crate::snapshot::Snapshot;
use crate::space::{Claim, Room};
use crate::volume::{Lifecycle, Tombstone, Volume};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

/// Everything that the control plane knows. Equal on all members at the same revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) incarnation: Incarnation,
    pub(crate) level: FeatureLevel,
    pub(crate) revision: Revision,
    pub(crate) epoch_counter: u64,
    pub(crate) members: BTreeMap<MemberId, Member>,
    pub(crate) retired: BTreeSet<MemberId>,
    pub(crate) nodes: BTreeMap<NodeName, Node>,
    pub(crate) volumes: BTreeMap<VolumeId, Volume>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) snapshots: BTreeMap<VolumeId, Snapshot>,
    pub(crate) requests: BTreeMap<RequestId, RequestRecord>,
    /// Derived from `volumes`: rebuilt after decoding.
    #[serde(skip)]
    pub(crate) index: Index,
}

/// What is derived from the rest of the state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) by_name: BTreeMap<VolumeName, VolumeId>,
    pub(crate) by_node: BTreeMap<NodeName, BTreeSet<VolumeId>>,
    pub(crate) snapshots_by_name: BTreeMap<SnapshotName, VolumeId>,
    pub(crate) snapshots_by_node: BTreeMap<NodeName, BTreeSet<VolumeId>>,
    pub(crate) claims: BTreeMap<Placement, Claim>,
    pub(crate) expiry: BTreeMap<Revision, RequestId>,
}

/// A member of the raft group, as the others reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub id: MemberId,
    /// The disk that it is bound to; `None` until it first announced itself. It joins the group only after that.
    pub disk: Option<DiskId>,
    /// The member whose place it takes once it has caught up.
    pub replaces: Option<MemberId>,
    /// Where the other members reach it: `host:port`.
    pub peer_address: String,
    /// Where clients and daemons reach it: `host:port`.
    pub api_address: String,
    /// The highest feature level that it supports.
    pub supports: FeatureLevel,
    /// Its program's version.
    pub version: String,
}

impl Member {
    /// Why these members leave it no place: an address belongs to one member, but to one that takes another's place.
    pub fn address_taken<'a>(&self, others: impl IntoIterator<Item = &'a Member>) -> Option<Refusal> {
        let ours = [&self.peer_address, &self.api_address];
        others.into_iter().filter(|other| other.id != self.id && Some(other.id) != self.replaces).find_map(
            |other| {
                let theirs = [&other.peer_address, &other.api_address];
                let taken = ours.into_iter().find(|address| theirs.contains(address))?;
                Some(Refusal::AddressTaken { address: taken.clone(), member: other.id })
            },
        )
    }
}

/// What became of a request, kept until its revision is [`State::REQUEST_WINDOW`] behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestRecord {
    pub(crate) revision: Revision,
    pub(crate) digest: u64,
    pub(crate) receipt: Receipt,
}

/// What applying a command gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What the client is told. A refused command changed nothing.
    pub result: Result<Receipt, Refusal>,
    /// True when the request had been applied before, and this was a repetition without effect.
    pub repeated: bool,
    /// The revision at which the command (or the first of its repetitions) took effect.
    pub revision: Revision,
    /// What changed, in a fixed order, for watchers.
    pub changes: Vec<Change>,
}

/// Something that changed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Identity, incarnation or feature level.
    Cluster,
    /// A member was added or changed.
    Member(MemberId),
    /// A member was removed.
    MemberRemoved(MemberId),
    /// A node was created or changed.
    Node(NodeName),
    /// A node was removed.
    NodeRemoved(NodeName),
    /// What a node should hold changed.
    Desired(NodeName),
    /// A volume was created or changed.
    Volume(VolumeId),
    /// A volume is gone, data included.
    VolumeRemoved(VolumeId, VolumeName),
    /// A snapshot was created or changed.
    Snapshot(VolumeId),
    /// A snapshot is gone.
    SnapshotRemoved(VolumeId, SnapshotName),
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// For how many revisions a request id is remembered. A client must not retry a request for longer than the cluster
    /// takes to apply this many commands.
    pub const REQUEST_WINDOW: u64 = 16_384;
    /// How far a recovery from a lost majority skips ahead, so that no revision is ever used twice. What is skipped was
    /// never issued, and makes no request id older.
    pub const RECOVERY_JUMP: u64 = 1 << 40;
    /// Most nodes.
    pub const MAX_NODES: usize = 1_024;
    /// Most volumes, released and going ones included.
    pub const MAX_VOLUMES: usize = 65_536;
    /// Most snapshots, released and going ones included.
    pub const MAX_SNAPSHOTS: usize = 65_536;
    /// Most members ever listed at once.
    pub const MAX_MEMBERS: usize = 16;

    /// The state before the first command.
    pub fn new() -> Self {
        Self {
            cluster: None,
            incarnation: Incarnation(1),
            level: FeatureLevel::FIRST,
            revision: Revision(0),
            epoch_counter: 0,
            members: BTreeMap::new(),
            retired: BTreeSet::new(),
            nodes: BTreeMap::new(),
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            requests: BTreeMap::new(),
            index: Index::default(),
        }
    }

    /// The state before the first command of a cluster whose members all support this level.
    pub fn at_level(level: FeatureLevel) -> Self {
        Self { level, ..Self::new() }
    }

    /// The cluster's identity; `None` before the bootstrap.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// How often the cluster was recovered from a lost majority, plus one.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The committed feature level.
    pub fn level(&self) -> FeatureLevel {
        self.level
    }

    /// The revision of the last command that was applied.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The members that made themselves known.
    pub fn members(&self) -> &BTreeMap<MemberId, Member> {
        &self.members
    }

    /// Whether this member id belonged to a removed member.
    pub fn is_retired(&self, id: MemberId) -> bool {
        self.retired.contains(&id)
    }

    /// The nodes by name.
    pub fn nodes(&self) -> &BTreeMap<NodeName, Node> {
        &self.nodes
    }

    /// The volumes by id.
    pub fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }

    /// The volume of this name.
    pub fn volume_named(&self, name: &VolumeName) -> Option<&Volume> {
        self.index.by_name.get(name).and_then(|id| self.volumes.get(id))
    }

    /// The volumes that have a name, from the one after `after` on, by name.
    pub fn named_volumes(&self, after: Option<&VolumeName>) -> impl Iterator<Item = &Volume> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.index.by_name.range((start, Bound::Unbounded)).filter_map(|(_, id)| self.volumes.get(id))
    }

    /// The volumes that were put aside, from the one after `after` on, by id.
    pub fn released_volumes(&self, after: Option<VolumeId>) -> impl Iterator<Item = &Volume> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.volumes.range((start, Bound::Unbounded));
        rest.map(|(_, volume)| volume).filter(|volume| volume.lifecycle == Lifecycle::Released)
    }

    /// The volumes whose data is on this node, by id.
    pub fn volumes_on(&self, node: &NodeName) -> impl Iterator<Item = &Volume> {
        self.index.by_node.get(node).into_iter().flatten().filter_map(|id| self.volumes.get(id))
    }

    /// The snapshots by id.
    pub fn snapshots(&self) -> &BTreeMap<VolumeId, Snapshot> {
        &self.snapshots
    }

    /// The snapshot of this name.
    pub fn snapshot_named(&self, name: &SnapshotName) -> Option<&Snapshot> {
        self.index.snapshots_by_name.get(name).and_then(|id| self.snapshots.get(id))
    }

    /// The snapshots that have a name, from the one after `after` on, by name.
    pub fn named_snapshots(&self, after: Option<&SnapshotName>) -> impl Iterator<Item = &Snapshot> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let named = self.index.snapshots_by_name.range((start, Bound::Unbounded));
        named.filter_map(|(_, id)| self.snapshots.get(id))
    }

    /// The snapshots that were put aside, from the one after `after` on, by id.
    pub fn released_snapshots(&self, after: Option<VolumeId>) -> impl Iterator<Item = &Snapshot> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.snapshots.range((start, Bound::Unbounded)).map(|(_, snapshot)| snapshot);
        rest.filter(|snapshot| snapshot.lifecycle == Lifecycle::Released)
    }

    /// The snapshots whose data is on this node, by id.
    pub fn snapshots_on(&self, node: &NodeName) -> impl Iterator<Item = &Snapshot> {
        let ids = self.index.snapshots_by_node.get(node).into_iter().flatten();
        ids.filter_map(|id| self.snapshots.get(id))
    }

    /// The deletions that a node is ordered, of volumes, then of snapshots, then of what was forgotten with an abandoned pool.
    pub fn tombstones_on(&self, node: &NodeName) -> impl Iterator<Item = &Tombstone> {
        let volumes = self.volumes_on(node).map(|volume| &volume.lifecycle);
        let lifecycles = volumes.chain(self.snapshots_on(node).map(|snapshot| &snapshot.lifecycle));
        let forgotten = self.nodes.get(node).into_iter().flat_map(|node| &node.forgotten);
        let going = lifecycles.filter_map(|lifecycle| match lifecycle {
            Lifecycle::Deleting(tombstone) => Some(tombstone),
            Lifecycle::Active | Lifecycle::Released => None,
        });
        going.chain(forgotten)
    }

    /// What volumes and snapshots take from a pool.
    pub fn claim(&self, placement: &Placement) -> Claim {
        self.index.claims.get(placement).copied().unwrap_or_default()
    }

    /// The room that a pool has, by what its node reported last; `None` for a pool that is not there.
    pub fn room(&self, placement: &Placement) -> Option<Room> {
        let node = self.nodes.get(&placement.node)?;
        let spec = node.spec.pools.get(&placement.pool)?;
        Some(Room::new(node.pool(&placement.pool)?, spec.over_provisioning, self.claim(placement)))
    }

    /// What became of a request that was applied within the window: when, the checksum of the request, the answer.
    pub fn request(&self, id: &RequestId) -> Option<(Revision, u64, &Receipt)> {
        self.requests.get(id).map(|record| (record.revision, record.digest, &record.receipt))
    }

    /// The next epoch; each is issued once.
    pub(crate) fn issue_epoch(&mut self) -> Epoch {
        self.epoch_counter += 1;
        Epoch { incarnation: self.incarnation, counter: self.epoch_counter }
    }

    /// Recomputes what is derived.
    pub(crate) fn reindex(&mut self) {
        let mut index = Index::default();
        for volume in self.volumes.values() {
            index.add(volume);
        }
        for snapshot in self.snapshots.values() {
            index.add_snapshot(snapshot);
        }
        index.expiry = self.requests.iter().map(|(id, record)| (record.revision, id.clone())).collect();
        self.index = index;
    }
}

impl Index {
    /// Adds a volume.
    pub(crate) fn add(&mut self, volume: &Volume) {
        if volume.lifecycle != Lifecycle::Released {
            self.by_name.insert(volume.name.clone(), volume.id);
        }
        self.by_node.entry(volume.placement.node.clone()).or_default().insert(volume.id);
        self.claims.entry(volume.placement.clone()).or_default().add(volume.claim());
    }

    /// Takes a volume out; it must be as it was when it was added.
    pub(crate) fn remove(&mut self, volume: &Volume) {
        if volume.lifecycle != Lifecycle::Released {
            self.by_name.remove(&volume.name);
        }
        if let Some(ids) = self.by_node.get_mut(&volume.placement.node) {
            ids.remove(&volume.id);
            if ids.is_empty() {
                self.by_node.remove(&volume.placement.node);
            }
        }
        self.release(&volume.placement, volume.claim());
    }

    /// Adds a snapshot.
    pub(crate) fn add_snapshot(&mut self, snapshot: &Snapshot) {
        if snapshot.lifecycle != Lifecycle::Released {
            self.snapshots_by_name.insert(snapshot.name.clone(), snapshot.id);
        }
        self.snapshots_by_node.entry(snapshot.placement.node.clone()).or_default().insert(snapshot.id);
        self.claims.entry(snapshot.placement.clone()).or_default().add(snapshot.claim());
    }

    /// Takes a snapshot out; it must be as it was when it was added.
    pub(crate) fn remove_snapshot(&mut self, snapshot: &Snapshot) {
        if snapshot.lifecycle != Lifecycle::Released {
            self.snapshots_by_name.remove(&snapshot.name);
        }
        if let Some(ids) = self.snapshots_by_node.get_mut(&snapshot.placement.node) {
            ids.remove(&snapshot.id);
            if ids.is_empty() {
                self.snapshots_by_node.remove(&snapshot.placement.node);
            }
        }
        self.release(&snapshot.placement, snapshot.claim());
    }

    fn release(&mut self, placement: &Placement, claim: Claim) {
        if let Some(claims) = self.claims.get_mut(placement) {
            claims.remove(claim);
            if *claims == Claim::default() {
                self.claims.remove(placement);
            }
        }
    }
}
