//! What the node should hold and serve, as the control plane says it.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use basalt_lvol::id::{ClusterId, Epoch, Generation, PoolId, Revision, VolumeId};
use basalt_lvol::layout::{DiskLayout, EXTENT_BYTES};
use serde::{Deserialize, Serialize};

/// What one node should hold and serve. What is not listed is left alone: only tombstones delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredNode {
    /// The cluster that says so. Disks of another one are never touched.
    pub cluster: ClusterId,
    /// Since when. Lower ones than the highest seen are refused.
    pub revision: Revision,
    /// Where volumes are served.
    pub listeners: Vec<DesiredListener>,
    /// Pools; names are unique.
    pub pools: Vec<DesiredPool>,
    /// Volumes and snapshots; ids are unique.
    pub volumes: Vec<DesiredVolume>,
    /// Volumes and snapshots to delete.
    pub tombstones: Vec<Tombstone>,
}

/// Where a node serves volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DesiredListener {
    /// The address to listen on.
    pub bind: SocketAddr,
    /// The address that hosts are told. Port 0 stands for the port that `bind` got.
    pub advertise: SocketAddr,
}

/// A pool that the node should hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredPool {
    /// Its name on this node; at most 64 bytes.
    pub name: String,
    /// The UUID in its superblock once it was reported: then this very pool is imported and never a new one created in its
    /// place. `None`: it may be created.
    pub id: Option<PoolId>,
    /// From which of its disks extents are taken, if it is created: a pool that is there keeps what it was made with.
    #[serde(default)]
    pub layout: DiskLayout,
    /// Bytes of its extents, if it is created: a pool that is there keeps what it was made with.
    #[serde(default = "default_extent_bytes")]
    pub extent_bytes: u64,
    /// Its disks, the lead first.
    pub disks: Vec<DesiredDisk>,
    /// Paths of disks that were named before, and under which the pool may still be; empty in what is ordered, the agent notes them.
    #[serde(default)]
    pub former: Vec<String>,
    /// The last checkpoint that its disks were seen to hold, so that an old copy of them is told; 0 in what is ordered, the agent notes it.
    #[serde(default)]
    pub checkpoint: u64,
}

const fn default_extent_bytes() -> u64 {
    EXTENT_BYTES
}

/// A disk of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredDisk {
    /// What the disk opener knows it by: a path.
    pub path: String,
    /// Foreign data on this disk may be overwritten when the pool is created.
    pub overwrite_foreign_data: bool,
}

/// Whether a volume that is not found may be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Provision {
    /// It may.
    Create,
    /// It was there once: if it is not found, its data is lost or elsewhere, and that is reported.
    Expect,
}

/// What a volume is when it is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// It reads as zeroes.
    #[default]
    Blank,
    /// It is a snapshot of this volume: never written, never served, and as large as the volume was when it was taken.
    SnapshotOf(VolumeId),
    /// It begins with what this snapshot holds.
    RestoredFrom(VolumeId),
}

/// Who may connect to a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AllowedHosts {
    /// Whoever comes.
    Any,
    /// These NQNs; none if empty.
    Listed(BTreeSet<String>),
}

/// A volume or snapshot that the node should hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredVolume {
    /// Which volume.
    pub id: VolumeId,
    /// Grows whenever something here changes.
    pub generation: Generation,
    /// The epoch at which this node is its target.
    pub epoch: Epoch,
    /// A name for people; at most 253 bytes.
    pub name: String,
    /// Name of the pool that holds it.
    pub pool: String,
    /// Size in bytes, a multiple of 4096.
    pub size: u64,
    /// It takes space when it is first written, if it is created.
    #[serde(default)]
    pub thin: bool,
    /// Hosts can only read.
    #[serde(default)]
    pub read_only: bool,
    /// What it is, or begins as.
    #[serde(default)]
    pub content: Content,
    /// Whether it may be created.
    pub provision: Provision,
    /// NQN of its subsystem; at most 223 bytes.
    pub nqn: String,
    /// Namespace id.
    pub nsid: u32,
    /// Namespace UUID.
    pub uuid: [u8; 16],
    /// Namespace globally unique id.
    pub nguid: [u8; 16],
    /// Serial number: at most 20 ASCII characters.
    pub serial: String,
    /// Whether hosts are served at all.
    pub serve: bool,
    /// Who may connect.
    pub allowed_hosts: AllowedHosts,
}

/// The order to delete one volume. Nothing else deletes one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tombstone {
    /// The cluster that orders it; must be the pool's.
    pub cluster: ClusterId,
    /// Which volume.
    pub volume: VolumeId,
    /// Refused by a volume that has seen a higher one.
    pub generation: Generation,
    /// Name of the pool that holds it.
    pub pool: String,
}
