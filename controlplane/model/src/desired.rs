//! What one node should hold and serve: everything its daemon needs, and nothing that it must guess.

use crate::ids::{
    Bytes, ClusterId, DiskPath, Epoch, Incarnation, NodeName, PoolId, PoolName, Revision, VolumeId,
};
use crate::node::{AllocationUnit, Cores, Listener, PoolLayout};
use crate::state::State;
use crate::volume::{AllowedHosts, Lifecycle, Tombstone, VolumeIdentity};
use serde::{Deserialize, Serialize};

/// What one node should hold and serve.
///
/// What is not listed here is left alone: only [`DesiredNode::tombstones`] delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredNode {
    /// The cluster that says so.
    pub cluster: ClusterId,
    /// The cluster's incarnation.
    pub incarnation: Incarnation,
    /// The node.
    pub node: NodeName,
    /// Since when; a daemon persists the highest it has seen and refuses lower ones.
    pub revision: Revision,
    /// Where volumes are served.
    pub listeners: Vec<Listener>,
    /// The cores that run reactors; takes effect when the daemon starts.
    pub cores: Cores,
    /// The pools, by name.
    pub pools: Vec<DesiredPool>,
    /// The volumes, by id, then the snapshots, by id.
    pub volumes: Vec<DesiredVolume>,
    /// The volumes and snapshots to delete.
    pub tombstones: Vec<Tombstone>,
}

/// A pool that a node should hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredPool {
    /// Its name.
    pub name: PoolName,
    /// The UUID in its superblock, once it was reported. A daemon that has this must import that very pool and never
    /// create a new one in its place.
    pub id: Option<PoolId>,
    /// Its disks, in order.
    pub disks: Vec<DiskPath>,
    /// From which of them space is taken, if it is created.
    #[serde(default, skip_serializing_if = "PoolLayout::is_default")]
    pub layout: PoolLayout,
    /// How much it gives at a time, if it is created.
    #[serde(default, skip_serializing_if = "AllocationUnit::is_default")]
    pub allocation_unit: AllocationUnit,
}

/// A volume or snapshot that a node should hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredVolume {
    /// Its identity.
    pub id: VolumeId,
    /// What people call it, on the disks too.
    pub name: String,
    /// Grows whenever something here changes.
    pub generation: u64,
    /// The pool that holds it.
    pub pool: PoolName,
    /// The size that hosts see.
    pub size: Bytes,
    /// Whether it takes space only when it is written, if it is created.
    pub thin: bool,
    /// Whether hosts can only read.
    #[serde(default)]
    pub read_only: bool,
    /// What it is, or begins as.
    #[serde(default)]
    pub content: Content,
    /// Whether it may be created.
    pub provision: Provision,
    /// What hosts know it by.
    pub identity: VolumeIdentity,
    /// Whether hosts are served at all.
    pub serve: bool,
    /// Who may connect.
    pub allowed_hosts: AllowedHosts,
    /// The epoch of this target.
    pub epoch: Epoch,
}

/// What a volume is when it is created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// It reads as zeroes.
    #[default]
    Blank,
    /// It is a snapshot of this volume, and is never written. Its size is what the volume's is when it is taken.
    SnapshotOf(VolumeId),
    /// It begins with what this snapshot holds.
    RestoredFrom(VolumeId),
}

/// Whether a daemon may create a volume that it does not find.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provision {
    /// It may.
    Create,
    /// It was there once: if it is not found, its data is lost or elsewhere, and that is to be reported.
    Expect,
}

impl Provision {
    fn of(reported_once: bool) -> Self {
        if reported_once { Self::Expect } else { Self::Create }
    }
}

impl State {
    /// What this node should hold; `None` for an unknown node or before the bootstrap.
    pub fn desired(&self, name: &NodeName) -> Option<DesiredNode> {
        let cluster = self.cluster()?;
        let node = self.nodes().get(name)?;
        let pools = node
            .spec
            .pools
            .iter()
            .map(|(pool, spec)| DesiredPool {
                name: pool.clone(),
                id: node.pool_ids.get(pool).copied(),
                disks: spec.disks.clone(),
                layout: spec.layout,
                allocation_unit: spec.allocation_unit,
            })
            .collect();
        let staying = |lifecycle: &Lifecycle| !matches!(lifecycle, Lifecycle::Deleting(_));
        let volumes =
            self.volumes_on(name).filter(|volume| staying(&volume.lifecycle)).map(|volume| DesiredVolume {
                id: volume.id,
                name: volume.name.to_string(),
                generation: volume.generation,
                pool: volume.placement.pool.clone(),
                size: volume.size,
                thin: volume.spec.thin,
                read_only: volume.spec.read_only,
                content: volume.restored_from.map_or(Content::Blank, Content::RestoredFrom),
                provision: Provision::of(volume.provisioned),
                identity: volume.identity.clone(),
                serve: volume.lifecycle == Lifecycle::Active,
                allowed_hosts: volume.spec.allowed_hosts.clone(),
                epoch: volume.epoch,
            });
        let snapshots = self.snapshots_on(name).filter(|snapshot| staying(&snapshot.lifecycle));
        let snapshots = snapshots.map(|snapshot| DesiredVolume {
            id: snapshot.id,
            name: snapshot.name.to_string(),
            generation: snapshot.generation,
            pool: snapshot.placement.pool.clone(),
            size: snapshot.size,
            thin: true,
            read_only: false,
            content: Content::SnapshotOf(snapshot.source),
            provision: Provision::of(snapshot.taken_at.is_some()),
            identity: snapshot.identity.clone(),
            serve: false,
            allowed_hosts: AllowedHosts::default(),
            epoch: snapshot.epoch,
        });
        let volumes = volumes.chain(snapshots).collect();
        let tombstones = self.tombstones_on(name).cloned().collect();
        Some(DesiredNode {
            cluster,
            incarnation: self.incarnation(),
            node: name.clone(),
            revision: node.desired,
            listeners: node.spec.listeners.clone(),
            cores: node.spec.cores.clone(),
            pools,
            volumes,
            tombstones,
        })
    }
}
