//! Snapshots of volumes in use, volumes that are restored from them, and growth: as the control plane orders them.
//!
//! The rules are those of docs/decisions/0050: a volume is neither deleted nor grown while a snapshot of it is ordered and not
//! there yet; a snapshot is deleted only when the volumes that are restored from it are; apart from that all go in any order.

use crate::data::script::nqn;
use crate::data::world::{Used, World};
use crate::event;
use crate::holding::Shared;
use crate::run::Violation;
use basalt_agent::{NodeReport, VolumeHealth, VolumeReport};
use basalt_clock::{Random, mark};
use basalt_lvol::id::VolumeId;
use std::rc::Rc;

/// The most snapshots of one node at a time.
const SNAPSHOTS_MAX: usize = 3;

/// The most restored volumes of one node at a time.
const RESTORED_MAX: usize = 2;

/// Bytes by which volumes grow, times something.
const GROWTH_BYTES: u64 = 256 << 10;

/// The most bytes that a volume grows to.
const BYTES_MAX: u64 = 5 << 20;

/// A snapshot that was ordered.
#[derive(Debug)]
pub struct Snapshot {
    /// Its identity.
    pub id: VolumeId,
    /// The node that holds it.
    pub node: usize,
    /// The volume that it is of.
    pub origin: VolumeId,
    /// What it may hold.
    pub holding: Shared,
    /// The least bytes that it can have.
    bytes_min: u64,
    /// Its size in bytes, once it was reported.
    bytes: u64,
    /// It was reported.
    pub there: bool,
}

impl World {
    /// Whether a snapshot of a volume was ordered that is not there yet.
    pub fn is_being_snapshotted(&self, id: VolumeId) -> bool {
        self.snapshots.iter().any(|snapshot| snapshot.origin == id && !snapshot.there)
    }

    /// Orders a snapshot of a volume that hosts use.
    pub fn take_snapshot(&mut self, number: usize) {
        let script = &self.scripts[number];
        let fitting = |used: &&Used| {
            let told = script.volume(used.id).is_some();
            used.node == number && used.seen && !used.going && told && used.hosts.oracle.borrow().is_some()
        };
        let fitting: Vec<&Used> = self.volumes.iter().filter(fitting).collect();
        let count = self.snapshots.iter().filter(|snapshot| snapshot.node == number).count();
        if fitting.is_empty() || count >= SNAPSHOTS_MAX {
            return;
        }
        let chosen = usize::try_from(self.random.below(fitting.len() as u64)).unwrap_or(0);
        let (origin, hosts) = (fitting[chosen].id, Rc::clone(&fitting[chosen].hosts));
        let Some(id) = self.scripts[number].snapshot(origin) else { return };
        let Some(holding) = hosts.oracle.borrow_mut().as_mut().map(|oracle| oracle.snapshot_ordered()) else {
            return;
        };
        event!("a snapshot {id} of volume {} is ordered on node {number}", hosts.number);
        let (bytes_min, bytes, there) = (hosts.bytes.get(), 0, false);
        self.snapshots.push(Snapshot { id, node: number, origin, holding, bytes_min, bytes, there });
    }

    /// Orders a volume that is restored from a snapshot, for hosts of its own.
    pub fn restore_snapshot(&mut self, number: usize) {
        let mine = self.volumes.iter().filter(|used| used.node == number && used.hosts.base.is_some());
        let restored = mine.count();
        let there = self.snapshots.iter().enumerate();
        let there: Vec<usize> =
            there.filter(|(_, one)| one.node == number && one.there).map(|(at, _)| at).collect();
        if there.is_empty() || restored >= RESTORED_MAX {
            return;
        }
        let at = there[usize::try_from(self.random.below(there.len() as u64)).unwrap_or(0)];
        let more = self.random.below(3) * self.random.below(2) * GROWTH_BYTES;
        let hosts = 1 + u32::try_from(self.random.below(2)).unwrap_or(0);
        self.restore(at, more, hosts);
    }

    /// Orders a volume that is restored from one of the snapshots, so much larger, for so many hosts.
    fn restore(&mut self, at: usize, more: u64, hosts: u32) {
        let Snapshot { id: snapshot, node, bytes, ref holding, .. } = self.snapshots[at];
        let (base, size) = (Rc::clone(holding), bytes + more);
        let id = self.scripts[node].restore(snapshot, size);
        let used = self.add_volume(id, node, nqn(id), (Some(base), hosts));
        used.hosts.ordered_bytes.borrow_mut().insert(size);
        let number = used.hosts.number;
        event!("volume {number} of {size} bytes is to be restored from {snapshot} on node {node}");
    }

    /// Orders the end of a snapshot.
    pub fn delete_snapshot(&mut self, number: usize) {
        let script = &self.scripts[number];
        let free = |snapshot: &Snapshot| {
            let waits = |used: &Used| !used.seen && used.is_of(&snapshot.holding);
            let told = script.volume(snapshot.id).is_some();
            snapshot.node == number && snapshot.there && told && !self.volumes.iter().any(waits)
        };
        let Some(at) = self.snapshots.iter().position(free) else { return };
        let snapshot = self.snapshots.remove(at);
        event!("snapshot {} is ordered to be deleted", snapshot.id);
        if self.volumes.iter().all(|used| used.id != snapshot.origin) {
            mark!("snapshot-outlived-its-volume");
        }
        let restored = |used: &Used| used.is_of(&snapshot.holding);
        if self.volumes.iter().any(restored) {
            mark!("snapshot-deleted-before-what-was-restored");
        }
        self.scripts[number].delete(snapshot.id);
    }

    /// Orders a volume to grow.
    pub fn grow_volume(&mut self, number: usize) {
        let script = &self.scripts[number];
        let fitting = |used: &&Used| {
            let room = script.volume(used.id).is_some_and(|volume| volume.size < BYTES_MAX);
            used.node == number && used.seen && !used.going && room && !self.is_being_snapshotted(used.id)
        };
        let fitting: Vec<&Used> = self.volumes.iter().filter(fitting).collect();
        if fitting.is_empty() {
            return;
        }
        let chosen = usize::try_from(self.random.below(fitting.len() as u64)).unwrap_or(0);
        let (id, hosts) = (fitting[chosen].id, Rc::clone(&fitting[chosen].hosts));
        let more = GROWTH_BYTES * (1 + self.random.below(6));
        if let Some(size) = self.scripts[number].grow(id, more) {
            event!("volume {} is to grow to {size} bytes", hosts.number);
            hosts.ordered_bytes.borrow_mut().insert(size);
        }
    }

    /// Takes over which snapshots are there.
    pub(crate) fn note_snapshots(&mut self, number: usize, report: &NodeReport) {
        for snapshot in self.snapshots.iter_mut().filter(|one| one.node == number && !one.there) {
            let online =
                |volume: &&VolumeReport| volume.id == snapshot.id && volume.health == VolumeHealth::Online;
            let Some(volume) = report.volumes.iter().find(online) else { continue };
            (snapshot.there, snapshot.bytes) = (true, volume.size);
            event!("snapshot {} of {} bytes is there", snapshot.id, volume.size);
            if let Some(origin) = self.volumes.iter().find(|used| used.id == snapshot.origin)
                && let Some(oracle) = origin.hosts.oracle.borrow_mut().as_mut()
            {
                oracle.snapshot_reported(&snapshot.holding);
            }
            if snapshot.holding.borrow().is_of_a_volume_in_use() {
                mark!("snapshot-taken-under-writes");
            }
        }
    }

    /// What a report must not say of snapshots and of sizes.
    ///
    /// # Errors
    /// What it says.
    pub(crate) fn check_sizes(&self, number: usize, report: &NodeReport) -> Result<(), Violation> {
        for volume in report.volumes.iter().filter(|volume| volume.health == VolumeHealth::Online) {
            let bytes = volume.size;
            let wrong = |invariant, other: u64| {
                let detail = format!("{} has {bytes} bytes, not {other}", volume.id);
                Err(Violation::Invariant { invariant, detail })
            };
            if let Some(snapshot) = self.snapshots.iter().find(|one| one.id == volume.id) {
                if bytes < snapshot.bytes_min {
                    return wrong("a snapshot is as large as its volume was", snapshot.bytes_min);
                }
                if snapshot.there && bytes != snapshot.bytes {
                    return wrong("a snapshot does not change", snapshot.bytes);
                }
                continue;
            }
            if let Some(used) = self.volumes.iter().find(|used| used.id == volume.id)
                && bytes < used.bytes
            {
                return wrong("a volume never shrinks", used.bytes);
            }
            if let Some(wanted) = self.scripts[number].volume(volume.id)
                && wanted.generation == volume.generation
                && bytes != wanted.size
            {
                return wrong("an order that took effect is in effect", wanted.size);
            }
        }
        Ok(())
    }

    /// Orders a volume from one snapshot of some nodes, for nobody: what is read of it is what the snapshot holds.
    pub fn restore_witnesses(&mut self) {
        for number in 0..self.nodes.len() {
            let of_node = self.snapshots.iter().enumerate().filter(|(_, one)| one.node == number);
            let of_node: Vec<usize> = of_node.map(|(at, _)| at).collect();
            let chosen = usize::try_from(self.random.below(of_node.len().max(1) as u64)).unwrap_or(0);
            if let Some(at) = of_node.get(chosen).filter(|_| self.random.chance(1, 2)) {
                self.restore(*at, 0, 0);
            }
        }
    }

    /// What is still to come, once all faults have ended: deletions that were held back, snapshots, restored volumes, growth.
    pub fn owed(&self) -> Option<String> {
        if let Some(used) = self.volumes.iter().find(|used| used.going) {
            return Some(format!("volume {} cannot be deleted", used.hosts.number));
        }
        if let Some(snapshot) = self.snapshots.iter().find(|snapshot| !snapshot.there) {
            return Some(format!("snapshot {} is not taken", snapshot.id));
        }
        let mut restored = self.volumes.iter().filter(|used| used.hosts.base.is_some());
        if let Some(used) = restored.find(|used| !used.seen) {
            return Some(format!("volume {} is not restored", used.hosts.number));
        }
        self.scripts.iter().zip(&self.nodes).find_map(|(script, node)| {
            let Some(report) = node.report() else {
                return Some(format!("node {} says nothing", node.number));
            };
            report.volumes.iter().find_map(|volume| {
                let wanted = script.volume(volume.id)?.size;
                let smaller = volume.health == VolumeHealth::Online && volume.size < wanted;
                // Where there is no room it is said.
                let silent = smaller && volume.shortfall.is_none() && !volume.paths.is_empty();
                silent.then(|| format!("{} has {} bytes, {wanted} were ordered", volume.id, volume.size))
            })
        })
    }
}
