//! Storage nodes: what was asked of them, and what they reported.

use crate::ids::{
    BootId, Bytes, DiskPath, InstanceId, NodeName, ObjectUid, PoolId, PoolName, Revision, Timestamp,
};
use crate::space::OverProvisioning;
use crate::volume::Tombstone;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// A machine that runs one daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// The UID of the Kubernetes object, when one stands for it.
    pub uid: Option<ObjectUid>,
    /// What was asked for.
    pub spec: NodeSpec,
    /// The daemon that registered first under this name; no other one is let in.
    pub binding: Option<InstanceId>,
    /// Whether a person said that its disks are gone for good. Ends when a daemon is let in again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub abandoned: bool,
    /// The pools of which a person said that their disks are gone for good. Ends for one that is reported to be online again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub abandoned_pools: BTreeSet<PoolName>,
    /// Deletions of what was forgotten with an abandoned pool: should its disks come back after all, they are carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forgotten: Vec<Tombstone>,
    /// The UUIDs that its pools had when they were first reported; a pool with another one is not used.
    pub pool_ids: BTreeMap<PoolName, PoolId>,
    /// What the daemon reported last.
    pub observed: NodeObserved,
    /// Whether the daemon is heard.
    pub liveness: Liveness,
    /// The revision at which what this node should hold changed last.
    pub desired: Revision,
    /// The revision that created it.
    pub created: Revision,
    /// The revision that changed it last.
    pub modified: Revision,
}

impl Node {
    /// Whether deletions of what is on a pool do not wait for it.
    pub fn is_lost(&self, pool: &PoolName) -> bool {
        self.abandoned || self.abandoned_pools.contains(pool)
    }

    /// Why what is ordered on a pool may have to wait, as far as is known.
    pub fn hindrance(&self, pool: &PoolName) -> Option<String> {
        if !self.liveness.is_live() {
            return Some("its daemon is not connected".to_owned());
        }
        let observed = self.observed.pools.get(pool).filter(|pool| pool.health != PoolHealth::Online)?;
        let problem = observed.problem.as_ref();
        let why = problem.map_or_else(|| "not in service".to_owned(), |problem| problem.message.clone());
        Some(format!("pool {pool}: {why}"))
    }

    /// Whether a pool is in service, as was reported last.
    pub(crate) fn has_online(&self, pool: &PoolName) -> bool {
        self.pool(pool).is_some_and(|pool| pool.health == PoolHealth::Online)
    }

    /// What was reported about a pool, if it is the pool that belongs here.
    pub fn pool(&self, name: &PoolName) -> Option<&PoolObserved> {
        let observed = self.observed.pools.get(name)?;
        match (self.pool_ids.get(name), observed.id) {
            (Some(expected), Some(found)) if *expected == found => Some(observed),
            _ => None,
        }
    }
}

/// What a user asks of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// The address at which hosts reach the node by default.
    pub address: IpAddr,
    /// Where volumes are served.
    pub listeners: Vec<Listener>,
    /// The pools by name.
    pub pools: BTreeMap<PoolName, PoolSpec>,
    /// The cores that run reactors.
    pub cores: Cores,
    /// Whether new volumes stay away from it.
    pub unschedulable: bool,
}

/// Where a node serves volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// The transport.
    pub transport: Transport,
    /// The address to listen on.
    pub bind: SocketAddr,
    /// The address that hosts are told.
    pub advertise: SocketAddr,
}

/// A transport of NVMe over Fabrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// NVMe/TCP.
    Tcp,
}

/// The cores that run reactors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cores {
    /// That many, wherever.
    Count(u32),
    /// Exactly these.
    List(Vec<u32>),
}

/// What a user asks of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSpec {
    /// The disks, in order.
    pub disks: Vec<DiskPath>,
    /// Labels by which volumes select pools.
    pub labels: BTreeMap<String, String>,
    /// How much its thin volumes may be promised together.
    #[serde(default, skip_serializing_if = "OverProvisioning::is_default")]
    pub over_provisioning: OverProvisioning,
    /// From which of its disks space is taken.
    #[serde(default, skip_serializing_if = "PoolLayout::is_default")]
    pub layout: PoolLayout,
    /// How much space it gives at a time.
    #[serde(default, skip_serializing_if = "AllocationUnit::is_default")]
    pub allocation_unit: AllocationUnit,
}

/// How much space a pool gives at a time: its extents, in bytes. It is made with that and keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AllocationUnit(pub u64);

impl AllocationUnit {
    /// The smallest.
    pub const MIN: Self = Self(64 << 10);
    /// The largest.
    pub const MAX: Self = Self(1 << 20);

    /// Whether it is what pools have that say nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a pool can have it.
    pub fn is_possible(self) -> bool {
        self.0.is_power_of_two() && (Self::MIN.0..=Self::MAX.0).contains(&self.0)
    }
}

impl Default for AllocationUnit {
    fn default() -> Self {
        Self(1 << 20)
    }
}

/// From which of its disks a pool takes space. It is made with that and keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolLayout {
    /// From the first one that has some.
    #[default]
    Concatenated,
    /// From one after the other.
    Striped,
}

impl PoolLayout {
    /// Whether it is what pools have that say nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Whether a node's daemon is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Liveness {
    /// It never connected.
    Never,
    /// It has a session with the leader.
    Live {
        /// When the session began.
        since: Timestamp,
    },
    /// Its session ended or timed out.
    Lost {
        /// When it was noticed.
        since: Timestamp,
    },
}

impl Liveness {
    /// Whether the daemon is heard now.
    pub fn is_live(self) -> bool {
        matches!(self, Liveness::Live { .. })
    }
}

/// What a daemon reported about its node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeObserved {
    /// The daemon's version; empty until it first reported.
    pub version: String,
    /// The machine's run.
    pub boot: Option<BootId>,
    /// The pools by name.
    pub pools: BTreeMap<PoolName, PoolObserved>,
    /// Addresses at which hosts reach the node now.
    pub endpoints: Vec<SocketAddr>,
    /// What is wrong, if anything.
    pub problems: Vec<Problem>,
}

/// Something that a node could not do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// One CamelCase word, such as `ListenFailed`.
    pub reason: String,
    /// A sentence for a person.
    pub message: String,
}

/// What a daemon reported about a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolObserved {
    /// The UUID in its superblock, once it exists.
    pub id: Option<PoolId>,
    /// Its health.
    pub health: PoolHealth,
    /// Space for data, whether used or free.
    pub capacity: Bytes,
    /// Space that holds data.
    pub used: Bytes,
    /// Volumes take a multiple of this from the pool.
    pub allocation_unit: Bytes,
    /// The disks by the path of their configuration.
    pub disks: BTreeMap<DiskPath, DiskObserved>,
    /// Why it is not online, if it is not.
    pub problem: Option<Problem>,
}

impl PoolObserved {
    /// What is wrong if it runs without one of its own disks, or is not as it was asked for: then nothing new is placed on it, but volumes that
    /// it serves are snapshotted.
    pub fn unfit(&self) -> Option<&Problem> {
        let reasons = ["DiskMissing", "PoolLayoutDiffers", "PoolUnitDiffers"];
        self.problem.as_ref().filter(|problem| reasons.contains(&problem.reason.as_str()))
    }

    /// What is wrong if its disks are not those that are named: then nothing new is put on it, for it is not certain that it is found again.
    pub fn other_disks(&self) -> Option<&Problem> {
        let reasons = ["DiskNotNamed", "DiskNotInUse", "PoolMissing"];
        self.problem.as_ref().filter(|problem| reasons.contains(&problem.reason.as_str()))
    }
}

/// The health of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolHealth {
    /// Being created or imported.
    Pending,
    /// In service.
    Online,
    /// In service for reading only.
    ReadOnly,
    /// Not in service.
    Faulted,
}

/// What a daemon reported about a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskObserved {
    /// Its health.
    pub health: DiskHealth,
    /// Its size.
    pub capacity: Bytes,
    /// Why it is not online, if it is not.
    pub problem: Option<Problem>,
}

impl DiskObserved {
    /// Whether its node looked at it and said that the pool does not need it, as it is not one of its disks.
    pub fn is_not_the_pools(&self) -> bool {
        self.has(&["DiskNotInUse", "DiskHoldsForeignData", "DiskOfAnotherCluster", "DiskOfAnotherPool"])
    }

    /// Whether its node said that it may be a copy of one of the pool's.
    pub fn may_be_a_copy(&self) -> bool {
        self.has(&["DiskTwice", "DiskOutdated"])
    }

    fn has(&self, reasons: &[&str]) -> bool {
        self.problem.as_ref().is_some_and(|problem| reasons.contains(&problem.reason.as_str()))
    }
}

/// The health of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskHealth {
    /// In service.
    Online,
    /// In service, with errors.
    Suspected,
    /// Out of service for errors.
    Faulted,
    /// Not there.
    Offline,
}
