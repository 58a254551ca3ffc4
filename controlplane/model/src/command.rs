//! Commands: the only things that change a state. Versioned, and complete: nothing is decided when they are applied.

use crate::ids::{
    BootId, Bytes, ClusterId, Incarnation, InstanceId, MemberId, NodeName, ObjectUid, PoolName, RequestId,
    SnapshotName, Timestamp, VolumeId, VolumeName,
};
use crate::node::{Liveness, NodeObserved, NodeSpec};
use crate::placement::Placement;
use crate::state::Member;
use crate::volume::{AllowedHosts, ReclaimPolicy, Volume, VolumeIdentity, VolumeObserved, VolumeSpec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// What a cluster's members have agreed to understand. New behaviour is only used behind a committed level that all
/// members support.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FeatureLevel(pub u32);

impl FeatureLevel {
    /// The first level: that of a cluster that was created when there was no other.
    pub const FIRST: FeatureLevel = FeatureLevel(1);
    /// From this one on there are thin volumes, volumes that grow, snapshots, and volumes that are restored from them.
    pub const THIN: FeatureLevel = FeatureLevel(2);
    /// From here on a node can be abandoned.
    pub const ABANDON: FeatureLevel = FeatureLevel(2);
    /// From here on a pool can be striped.
    pub const STRIPED: FeatureLevel = FeatureLevel(3);
    /// From here on a pool can be abandoned, its disks are not exchanged while it runs on them, and nothing is placed on one that says
    /// that its disks are not those that are named.
    pub const POOLS: FeatureLevel = FeatureLevel(3);
    /// From here on a pool has the unit of allocation that is asked for.
    pub const ALLOCATION_UNIT: FeatureLevel = FeatureLevel(4);
    /// From here on hosts can be kept from writing to a volume.
    pub const READ_ONLY: FeatureLevel = FeatureLevel(4);
    /// From here on a disk that may be a copy of a pool's can be taken out.
    pub const COPIES: FeatureLevel = FeatureLevel(4);
    /// From here on a specification that is untrue of what it adopts is refused.
    pub const ADOPTION: FeatureLevel = FeatureLevel(4);
    /// From here on nodes are told when a snapshot is adopted, for it has another name then.
    pub const NAMES: FeatureLevel = FeatureLevel(4);
    /// The highest level that this program supports.
    pub const SUPPORTED: FeatureLevel = Self::ALLOCATION_UNIT;
}

impl fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One change, as it stands in the replicated log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The version of this envelope.
    pub version: u16,
    /// The feature level that the body needs; refused below it.
    pub level: FeatureLevel,
    /// Under which key a client sent it; `None` for the leader's own commands.
    pub request: Option<RequestKey>,
    /// The leader's wall clock when it was proposed. For display only.
    pub issued_at: Timestamp,
    /// The change.
    pub body: Body,
}

impl Command {
    /// The version of the envelope that this program writes.
    pub const VERSION: u16 = 1;

    /// A command of the current version.
    pub fn new(issued_at: Timestamp, request: Option<RequestKey>, body: Body) -> Self {
        Self { version: Self::VERSION, level: body.level(), request, issued_at, body }
    }
}

/// The key of an idempotent request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestKey {
    /// The key that the client chose.
    pub id: RequestId,
    /// A checksum of what the client asked for, without what the leader added; tells a retry from a reused key.
    pub digest: u64,
}

/// The changes that exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    /// Gives the cluster its identity. The first command of every cluster.
    Bootstrap {
        /// The new cluster's id.
        cluster: ClusterId,
    },
    /// Creates a node or changes what is asked of it.
    PutNode {
        /// Its name.
        name: NodeName,
        /// The object that stands for it; must match once set.
        uid: Option<ObjectUid>,
        /// What is asked.
        spec: NodeSpec,
    },
    /// Removes a node that holds no volume.
    DeleteNode {
        /// Its name.
        name: NodeName,
        /// The object that stood for it; must match.
        uid: Option<ObjectUid>,
    },
    /// Lets the next daemon that connects under this name be the node.
    UnbindNode {
        /// The node.
        name: NodeName,
    },
    /// Says that a node's disks are gone for good: deletions do not wait for it any more.
    AbandonNode {
        /// The node.
        name: NodeName,
    },
    /// Says that the disks of one pool are gone for good: deletions do not wait for it any more.
    AbandonPool {
        /// The node.
        node: NodeName,
        /// The pool on it.
        pool: PoolName,
    },
    /// Creates a volume, or adopts a released one.
    CreateVolume(CreateVolume),
    /// Changes a volume.
    UpdateVolume {
        /// Its name.
        name: VolumeName,
        /// The object that stands for it; must match.
        uid: Option<ObjectUid>,
        /// The change.
        change: VolumeChange,
    },
    /// Marks a volume as going: its node is told to delete the data.
    DeleteVolume {
        /// Its name.
        name: VolumeName,
        /// The object that stood for it; must match.
        uid: Option<ObjectUid>,
    },
    /// Puts a volume aside: nobody is served, the data stays.
    ReleaseVolume {
        /// Its name.
        name: VolumeName,
        /// The object that stood for it; must match.
        uid: Option<ObjectUid>,
    },
    /// Takes a snapshot of a volume, or adopts a released one.
    CreateSnapshot(CreateSnapshot),
    /// Marks a snapshot as going: its node is told to delete it.
    DeleteSnapshot {
        /// Its name.
        name: SnapshotName,
        /// The object that stood for it; must match.
        uid: Option<ObjectUid>,
    },
    /// Puts a snapshot aside: its name is free, the data stays.
    ReleaseSnapshot {
        /// Its name.
        name: SnapshotName,
        /// The object that stood for it; must match.
        uid: Option<ObjectUid>,
    },
    /// A node has deleted a volume's data, or a snapshot's, as its tombstone said.
    ConfirmVolumeDeleted {
        /// The node.
        node: NodeName,
        /// The volume or snapshot.
        volume: VolumeId,
        /// The generation of the tombstone that the node acted on.
        generation: u64,
    },
    /// Makes the first daemon that connected under a name the node's.
    BindNodeInstance {
        /// The node.
        node: NodeName,
        /// The daemon.
        instance: InstanceId,
    },
    /// What a node reported, where it differs from what was known.
    ReportNode(NodeReport),
    /// The node's daemon is heard, or is not heard any more.
    SetNodeLiveness {
        /// The node.
        node: NodeName,
        /// What is so from now on.
        liveness: Liveness,
    },
    /// Where a member is reached, and what it supports.
    PutMember(Member),
    /// A member was removed from the group; its id is never used again.
    RemoveMember {
        /// The member.
        id: MemberId,
    },
    /// Raises the feature level.
    SetFeatureLevel {
        /// The new level.
        level: FeatureLevel,
    },
    /// The cluster goes on after it lost a majority: all epochs of earlier incarnations are fenced.
    StartIncarnation {
        /// The new incarnation; higher than all before.
        incarnation: Incarnation,
    },
}

impl Body {
    /// The level from which on all members understand it.
    fn level(&self) -> FeatureLevel {
        match self {
            Body::CreateSnapshot(_) | Body::DeleteSnapshot { .. } | Body::ReleaseSnapshot { .. } => {
                FeatureLevel::THIN
            }
            Body::AbandonPool { .. } => FeatureLevel::POOLS,
            Body::CreateVolume(create) if create.restored_from.is_some() => FeatureLevel::THIN,
            _ => FeatureLevel::FIRST,
        }
    }
}

/// A new snapshot, with everything decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSnapshot {
    /// Its name.
    pub name: SnapshotName,
    /// The object that stands for it.
    pub uid: Option<ObjectUid>,
    /// Its identity.
    pub id: VolumeId,
    /// True to adopt the released snapshot with this `id` instead of taking one.
    pub adopt: bool,
    /// The volume that it is of.
    pub volume: VolumeName,
    /// What its pool will know it by.
    pub identity: VolumeIdentity,
}

/// A new volume, with everything decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateVolume {
    /// Its name.
    pub name: VolumeName,
    /// The object that stands for it.
    pub uid: Option<ObjectUid>,
    /// Its identity.
    pub id: VolumeId,
    /// True to adopt the released volume with this `id` instead of creating one.
    pub adopt: bool,
    /// What was asked for.
    pub spec: VolumeSpec,
    /// The size that hosts will see.
    pub size: Bytes,
    /// What hosts will know it by.
    pub identity: VolumeIdentity,
    /// Where it goes.
    pub placement: Placement,
    /// The snapshot that it begins as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_from: Option<VolumeId>,
}

/// What can change in a volume. `None` leaves a field as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeChange {
    /// Who may connect.
    pub allowed_hosts: Option<AllowedHosts>,
    /// What happens to the data on deletion.
    pub reclaim: Option<ReclaimPolicy>,
    /// The new size; never less than it was.
    pub size: Option<Bytes>,
    /// Whether hosts can only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
}

/// What a daemon says about its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node.
    pub node: NodeName,
    /// The daemon that says it; must be the one that the node is bound to.
    pub instance: InstanceId,
    /// The machine's run.
    pub boot: BootId,
    /// The node and its pools; `None` when nothing changed.
    pub observed: Option<NodeObserved>,
    /// The volumes and snapshots that changed. One that is not listed is as it was.
    pub volumes: BTreeMap<VolumeId, VolumeObserved>,
}

/// One volume in a report.
pub type VolumeReport = (VolumeId, VolumeObserved);

/// What an accepted command did, for the client that asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Receipt {
    /// Done; nothing more to say.
    Done,
    /// The volume that was created, adopted or changed.
    Volume {
        /// Its id.
        id: VolumeId,
    },
    /// The snapshot that was created, adopted or changed.
    Snapshot {
        /// Its id.
        id: VolumeId,
    },
}

impl Receipt {
    /// The receipt for a volume.
    pub fn of(volume: &Volume) -> Self {
        Receipt::Volume { id: volume.id }
    }
}
