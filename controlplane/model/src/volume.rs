//! Volumes: what was asked for, who they are, and what is known of them.

use crate::ids::{
    Bytes, ClusterId, Epoch, HostNqn, NodeName, ObjectUid, PoolName, Revision, SnapshotName, Timestamp,
    VolumeId, VolumeName,
};
use crate::node::Problem;
use crate::placement::{Placement, Selector};
use crate::space::Claim;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use uuid::Uuid;

/// A volume that a user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its identity.
    pub id: VolumeId,
    /// Its name now.
    pub name: VolumeName,
    /// The UID of the Kubernetes object, when one stands for it.
    pub uid: Option<ObjectUid>,
    /// What was asked for.
    pub spec: VolumeSpec,
    /// The size that hosts see: the size asked for, rounded up to [`Volume::SIZE_UNIT`].
    pub size: Bytes,
    /// The space of its pool that is its own: all of it for a thick volume, nothing for a thin one.
    pub footprint: Bytes,
    /// What hosts know it by.
    pub identity: VolumeIdentity,
    /// Where its data is.
    pub placement: Placement,
    /// The snapshot that it began as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_from: Option<VolumeId>,
    /// The epoch of its target.
    pub epoch: Epoch,
    /// Grows whenever what a node must do for it changes.
    pub generation: u64,
    /// Whether it is in use, put aside or going.
    pub lifecycle: Lifecycle,
    /// What follows from all that is known; see [`VolumeState`].
    pub state: VolumeState,
    /// What its node reported last; `None` until the first report.
    pub observed: Option<VolumeObserved>,
    /// Whether the node reported once that the data exists. From then on nobody may create it again.
    pub provisioned: bool,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// The revision that created it.
    pub created: Revision,
    /// The revision that changed it last.
    pub modified: Revision,
}

impl Volume {
    /// Sizes are multiples of this many bytes.
    pub const SIZE_UNIT: Bytes = Bytes(1 << 20);

    /// What of what was ordered its node has not put into effect, while it serves it all the same.
    pub fn shortfall(&self) -> Option<&Problem> {
        self.observed.as_ref()?.shortfall.as_ref()
    }

    /// Whether it is being deleted.
    pub fn is_going(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Deleting(_))
    }

    /// What it takes from its pool.
    pub fn claim(&self) -> Claim {
        let guaranteed = self.footprint;
        let promised = if self.spec.thin { self.size } else { Bytes(0) };
        let reported = self.observed.as_ref().and_then(|observed| observed.allocated).unwrap_or_default();
        let held = if self.provisioned { guaranteed } else { guaranteed.min(reported) };
        Claim { guaranteed, promised, held }
    }
}

/// What a user asks of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// The least size.
    pub size: Bytes,
    /// The number of copies; 1 until replication exists.
    pub replicas: u8,
    /// Whether space is taken on first write, and given back when it is discarded.
    pub thin: bool,
    /// Whether hosts can only read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Who may connect.
    pub allowed_hosts: AllowedHosts,
    /// Where it may be placed.
    pub selector: Selector,
    /// What happens to the data when the volume is deleted.
    pub reclaim: ReclaimPolicy,
    /// The snapshot that it begins as; nothing else is what it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SnapshotName>,
}

/// What happens to the data when a volume is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReclaimPolicy {
    /// It is deleted too.
    #[default]
    Delete,
    /// It is put aside and can be adopted by a new volume.
    Retain,
}

/// The hosts that may connect to a volume. Empty means none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllowedHosts(pub BTreeSet<HostNqn>);

impl AllowedHosts {
    /// Most entries that a volume may have.
    pub const MAX: usize = 256;

    /// Whether every host may connect (`*` is listed).
    pub fn any(&self) -> bool {
        self.0.iter().any(|host| host.as_str() == "*")
    }

    /// Whether this host may connect.
    pub fn allows(&self, host: &HostNqn) -> bool {
        self.any() || self.0.contains(host)
    }
}

/// What hosts know a volume by. Never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeIdentity {
    /// The subsystem's NVMe qualified name.
    pub nqn: String,
    /// The namespace id; always 1.
    pub nsid: u32,
    /// The namespace's UUID.
    pub uuid: Uuid,
    /// The namespace's globally unique identifier: the bytes of the UUID.
    pub nguid: [u8; 16],
    /// The serial number of the subsystem: 20 ASCII characters.
    pub serial: String,
}

impl VolumeIdentity {
    /// The identity that follows from a volume's id. The NQN is the UUID form of NVMe base specification 2.0, section 4.5,
    /// with a prefix of our own so that it is recognised.
    pub fn of(id: VolumeId) -> Self {
        let hex = id.0.simple().to_string();
        Self {
            nqn: format!("nqn.2026-01.storage.basalt:volume:{}", id.0),
            nsid: 1,
            uuid: id.0,
            nguid: *id.0.as_bytes(),
            serial: format!("BSLT{}", &hex[..16]).to_ascii_uppercase(),
        }
    }
}

/// Whether a volume is in use, put aside or going.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lifecycle {
    /// Served to hosts.
    Active,
    /// Put aside with its data, served to nobody; can be adopted.
    Released,
    /// Being deleted on its node.
    Deleting(Tombstone),
}

/// The order to delete one volume. Nothing else deletes one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The cluster that orders it; a node of another cluster refuses.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// The volume's generation; a node that has seen a higher one refuses.
    pub generation: u64,
    /// The node that holds the data.
    pub node: NodeName,
    /// The pool that holds the data.
    pub pool: PoolName,
}

/// What follows from everything known about a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeState {
    /// Its node has not reported it yet.
    Creating,
    /// Served.
    Online,
    /// Its node is not heard, or does not serve it at the moment; the data is believed to be there.
    Unavailable {
        /// One CamelCase word.
        reason: String,
        /// A sentence for a person.
        message: String,
    },
    /// Its node says that the data is lost.
    Faulted {
        /// One CamelCase word.
        reason: String,
        /// A sentence for a person.
        message: String,
    },
    /// Put aside.
    Released,
    /// Being deleted.
    Deleting,
}

/// What a node reported about a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeObserved {
    /// Its health.
    pub health: VolumeHealth,
    /// The size that is served.
    pub size: Bytes,
    /// The generation that the node has put into effect.
    pub generation: u64,
    /// What of it lies on the disks of its pool, shared or not; `None` from a daemon that does not say. A little old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated: Option<Bytes>,
    /// What of what was asked could not be put into effect, while it is served all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortfall: Option<Problem>,
    /// Where hosts reach it.
    pub paths: Vec<PathObserved>,
}

/// The health of a volume on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeHealth {
    /// Being created; the data is not complete.
    Creating,
    /// Served.
    Online,
    /// The data is there (or may be) and is not served.
    Unavailable {
        /// One CamelCase word.
        reason: String,
        /// A sentence for a person.
        message: String,
    },
    /// The data is lost.
    Faulted {
        /// One CamelCase word.
        reason: String,
        /// A sentence for a person.
        message: String,
    },
}

/// One way to a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathObserved {
    /// The node that serves it.
    pub node: NodeName,
    /// The address that hosts connect to.
    pub address: SocketAddr,
    /// The path's ANA state.
    pub ana: AnaState,
}

/// Asymmetric namespace access state (NVMe base specification 2.0, section 8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AnaState {
    /// Use this path.
    Optimized,
    /// Use it when there is no better one.
    NonOptimized,
    /// Do not use it now.
    Inaccessible,
}
