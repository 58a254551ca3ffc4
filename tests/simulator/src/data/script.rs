//! What stands for the control plane in the data plane's world: it wants volumes to exist, to change and to go.

use basalt_agent::{
    AllowedHosts, Content, DesiredDisk, DesiredListener, DesiredNode, DesiredPool, DesiredVolume, NodeReport,
    Provision, Tombstone, VolumeHealth,
};
use basalt_clock::{Random, SeededRandom};
use basalt_lvol::id::{ClusterId, Epoch, Generation, Revision, VolumeId};
use basalt_lvol::layout::{DiskLayout, EXTENT_BYTES};
use std::net::SocketAddr;
use uuid::Uuid;

/// The name of a node's pool.
const POOL: &str = "pool";

/// The orders of one node.
#[derive(Debug)]
pub struct Script {
    /// What the node should hold now.
    pub desired: DesiredNode,
    random: SeededRandom,
}

/// The NQN of a volume.
pub fn nqn(id: VolumeId) -> String {
    format!("nqn.2026-01.storage.basalt:volume:{id}")
}

impl Script {
    /// Orders for a node with one pool on these disks and no volume.
    pub fn new(listener: SocketAddr, disks: &[String], mut random: SeededRandom) -> Self {
        let disk = |path: &String| DesiredDisk { path: path.clone(), overwrite_foreign_data: false };
        let pool = DesiredPool {
            name: POOL.to_owned(),
            id: None,
            layout: DiskLayout::default(),
            disks: disks.iter().map(disk).collect(),
            extent_bytes: EXTENT_BYTES,
            former: Vec::new(),
            checkpoint: 0,
        };
        let desired = DesiredNode {
            cluster: ClusterId(Uuid::from_u128(u128::from(random.next_u64()))),
            revision: Revision { incarnation: 1, index: 1 },
            listeners: vec![DesiredListener { bind: listener, advertise: listener }],
            pools: vec![pool],
            volumes: Vec::new(),
            tombstones: Vec::new(),
        };
        Self { desired, random }
    }

    fn changed(&mut self) {
        self.desired.revision.index += 1 + self.random.below(5);
    }

    /// Makes the pool take from its disks in turn. Only before it is there.
    pub fn stripe(&mut self) {
        self.desired.pools.iter_mut().for_each(|pool| pool.layout = DiskLayout::Striped);
    }

    /// Does not name the last of the pool's disks yet.
    pub fn hold_disk_back(&mut self) -> Option<String> {
        self.desired.pools.first_mut()?.disks.pop().map(|disk| disk.path)
    }

    /// Names one more disk for the pool.
    pub fn name_disk(&mut self, path: String) {
        if let Some(pool) = self.desired.pools.first_mut() {
            pool.disks.push(DesiredDisk { path, overwrite_foreign_data: false });
            self.changed();
        }
    }

    /// Orders one more volume.
    pub fn create(&mut self, size: u64) -> VolumeId {
        let thin = self.random.chance(1, 2);
        self.order(size, thin, Content::Blank)
    }

    /// Orders a snapshot of a volume that the node was told about; `None` if it is not told at the moment.
    pub fn snapshot(&mut self, origin: VolumeId) -> Option<VolumeId> {
        let size = self.volume(origin)?.size;
        Some(self.order(size, true, Content::SnapshotOf(origin)))
    }

    /// Orders a volume that begins with what a snapshot holds.
    pub fn restore(&mut self, snapshot: VolumeId, size: u64) -> VolumeId {
        self.order(size, true, Content::RestoredFrom(snapshot))
    }

    fn order(&mut self, size: u64, thin: bool, content: Content) -> VolumeId {
        let bits = u128::from(self.random.next_u64()) << 64 | u128::from(self.random.next_u64());
        let id = VolumeId(Uuid::from_u128(bits));
        self.desired.volumes.push(DesiredVolume {
            id,
            generation: Generation(1),
            epoch: Epoch { incarnation: 1, counter: self.desired.revision.index },
            name: format!("volume-{id}"),
            pool: POOL.to_owned(),
            size,
            thin,
            read_only: false,
            content,
            provision: Provision::Create,
            nqn: nqn(id),
            nsid: 1,
            uuid: id.to_bytes(),
            nguid: id.to_bytes(),
            serial: format!("BSLT{:016X}", bits >> 64),
            serve: !matches!(content, Content::SnapshotOf(_)),
            allowed_hosts: AllowedHosts::Any,
        });
        self.changed();
        id
    }

    /// What the node is told about a volume or snapshot at the moment.
    pub fn volume(&self, id: VolumeId) -> Option<&DesiredVolume> {
        self.desired.volumes.iter().find(|volume| volume.id == id)
    }

    /// Orders a volume to be larger, and to have another name; its new size if the node is told about it at the moment.
    pub fn grow(&mut self, id: VolumeId, more: u64) -> Option<u64> {
        let volume = self.desired.volumes.iter_mut().find(|volume| volume.id == id)?;
        volume.size += more;
        volume.generation.0 += 1;
        volume.name = format!("volume-{id}-{}", volume.generation);
        let size = volume.size;
        self.changed();
        Some(size)
    }

    /// Orders the end of a volume.
    pub fn delete(&mut self, id: VolumeId) {
        let Some(at) = self.desired.volumes.iter().position(|volume| volume.id == id) else { return };
        let volume = self.desired.volumes.remove(at);
        self.desired.tombstones.push(Tombstone {
            cluster: self.desired.cluster,
            volume: id,
            generation: Generation(volume.generation.0 + 1),
            pool: POOL.to_owned(),
        });
        self.changed();
    }

    /// Forgets a volume without a tombstone: the node must leave it alone.
    pub fn forget(&mut self, id: VolumeId) -> Option<DesiredVolume> {
        let at = self.desired.volumes.iter().position(|volume| volume.id == id)?;
        let forgotten = self.desired.volumes.remove(at);
        self.changed();
        Some(forgotten)
    }

    /// Orders a volume again that was forgotten.
    pub fn remember(&mut self, volume: DesiredVolume) {
        self.desired.volumes.push(volume);
        self.changed();
    }

    /// Changes something about a volume, so that its generation and sometimes its epoch grow.
    pub fn touch(&mut self, id: VolumeId) {
        let raise = self.random.chance(1, 2);
        let index = self.desired.revision.index;
        if let Some(volume) = self.desired.volumes.iter_mut().find(|volume| volume.id == id) {
            volume.generation.0 += 1;
            if raise {
                volume.epoch.counter = volume.epoch.counter.max(index) + 1;
            }
        }
        self.changed();
    }

    /// Gives a volume another epoch; returns the one that it had.
    pub fn set_epoch(&mut self, id: VolumeId, epoch: Epoch) -> Option<Epoch> {
        let volume = self.desired.volumes.iter_mut().find(|volume| volume.id == id)?;
        volume.generation.0 += 1;
        let before = std::mem::replace(&mut volume.epoch, epoch);
        self.changed();
        Some(before)
    }

    /// Takes a report over, as the control plane does: what exists is expected from now on, what is gone needs no tombstone.
    pub fn reported(&mut self, report: &NodeReport) {
        let mut changed = false;
        for pool in &report.pools {
            if let Some(desired) = self.desired.pools.iter_mut().find(|desired| desired.name == pool.name)
                && desired.id.is_none()
                && pool.id.is_some()
            {
                desired.id = pool.id;
                changed = true;
            }
        }
        for volume in report.volumes.iter().filter(|volume| volume.health == VolumeHealth::Online) {
            if let Some(desired) = self.desired.volumes.iter_mut().find(|desired| desired.id == volume.id)
                && desired.provision == Provision::Create
            {
                desired.provision = Provision::Expect;
                changed = true;
            }
        }
        let before = self.desired.tombstones.len();
        self.desired.tombstones.retain(|tombstone| {
            let done = |deleted: &basalt_agent::DeletedVolume| {
                deleted.id == tombstone.volume && deleted.generation == tombstone.generation
            };
            !report.deleted.iter().any(done)
        });
        if changed || self.desired.tombstones.len() != before {
            self.changed();
        }
    }
}
