//! What goes wrong in the data plane.

use crate::data::script::nqn;
use crate::data::world::{Later, Used, World};
use crate::event;
use basalt_agent::Provision;
use basalt_clock::{Random, SeededRandom};
use basalt_lvol::id::{Epoch, Generation, VolumeId};
use basalt_reactor::sim::{Chance, DiskFaults};
use std::time::Duration;
use uuid::Uuid;

/// The most volumes of one node at a time that begin empty.
const VOLUMES_MAX: usize = 4;

/// The most deletions that a node may owe while volumes are still added to it.
const TOMBSTONES_MAX: usize = 24;

impl World {
    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.within(from..to))
    }

    fn some(&mut self, count: usize) -> usize {
        usize::try_from(self.random.below(count.max(1) as u64)).unwrap_or(0)
    }

    /// Lets one thing go wrong.
    pub fn strike(&mut self) {
        let number = self.some(self.nodes.len());
        match self.random.below(20) {
            0..4 => self.node_fault(number, true),
            4..7 => self.node_fault(number, false),
            7..9 => self.pause(number),
            9..12 => self.block(number),
            12..14 => self.disk_fault(number),
            14 => self.host_fault(),
            15 => {
                self.tally.fault("memory fault", 1);
                self.nodes[number].saves_fail(true);
                let length = self.millis(10, 2_000);
                self.later(length, Later::StoreWorks(number));
            }
            16 => self.stale_order(number),
            17 => self.foreign_order(number),
            18 if self.random.chance(1, 2) => self.fence(number),
            18 => self.forget(number),
            _ => self.phantom(number),
        }
    }

    fn node_fault(&mut self, number: usize, power: bool) {
        self.tally.fault(if power { "power failure" } else { "kill" }, 1);
        self.node_dies(number, power);
        let off = match self.random.below(3) {
            0 => self.millis(1_000, 6_000),
            _ => self.millis(2, 300),
        };
        self.later(off, Later::StartNode(number));
    }

    fn pause(&mut self, number: usize) {
        let length = self.millis(10, 9_000);
        event!("node {number} stands still for {length:?}");
        self.tally.fault("pause", 1);
        let until = self.now() + length;
        self.fleet.pause(self.nodes[number].machine, until);
    }

    /// Cuts a node off from hosts, in one direction or both.
    pub fn block(&mut self, number: usize) {
        let host = self.some(self.host_machines.len());
        let (a, b) = (self.fleet.node(self.nodes[number].machine), self.fleet.node(self.host_machines[host]));
        let way = self.random.below(3);
        event!("node {number} and host machine {host} are cut, {way}");
        if way != 1 {
            self.fleet.world.block(a, b);
        }
        if way != 2 {
            self.fleet.world.block(b, a);
        }
        self.tally.fault("partition", 1);
        let length = self.millis(20, 12_000);
        self.later(length, Later::Heal);
    }

    fn disk_fault(&mut self, number: usize) {
        let chance = Chance { numerator: 1, denominator: 2 + self.random.below(20) };
        let mut faults = DiskFaults::default();
        match self.random.below(5) {
            0 => faults.read = chance,
            1 => faults.write = chance,
            2 => faults.sync = chance,
            3 => faults.full = true,
            _ => (faults.read, faults.write) = (chance, chance),
        }
        if faults.read != Chance::NEVER {
            self.reads_fail[number] = true;
            self.unreadable[number] = true;
        }
        let disk = self.some(self.disks[number].len());
        let path = self.disks[number][disk].clone();
        event!("disk {path} of node {number}: {faults:?}");
        let node = self.fleet.node(self.nodes[number].machine);
        self.fleet.world.set_disk_faults(node, path.as_ref(), faults);
        self.tally.fault("disk fault", 1);
        let length = self.millis(5, 1_500);
        self.later(length, Later::DiskWorks(number));
    }

    /// Plans when disks of nodes are away, and which pool takes from its disks in turn or gets one of them later.
    pub fn let_disks_come_and_go(&mut self, random: SeededRandom) {
        self.disk_random = random;
        for number in 0..self.nodes.len() {
            if self.disks[number].len() < 2 {
                continue;
            }
            if self.disk_random.chance(1, 2) {
                self.scripts[number].stripe();
            }
            if self.disk_random.chance(1, 3)
                && let Some(path) = self.scripts[number].hold_disk_back()
            {
                let after = Duration::from_millis(self.disk_random.within(100..8_000));
                self.later(after, Later::NameDisk(number, path));
            }
            let mut after = Duration::ZERO;
            for _ in 0..1 + self.disk_random.below(4) {
                after += Duration::from_millis(self.disk_random.within(500..8_000));
                self.later(after, Later::DiskAway(number));
            }
        }
    }

    /// Starts a node without one of its disks.
    pub fn take_disk(&mut self, number: usize) {
        let disk = self.disk_random.below(self.disks[number].len() as u64);
        let path = self.disks[number][usize::try_from(disk).unwrap_or(0)].clone();
        event!("disk {path} of node {number} is taken away");
        self.tally.fault("disk away", 1);
        self.nodes[number].take_away(&path);
        self.restart_with_other_disks(number);
        let length = Duration::from_millis(self.disk_random.within(300..5_000));
        self.later(length, Later::DiskBack(number));
    }

    /// Starts a node with all of its disks.
    pub fn bring_disks(&mut self, number: usize) {
        if self.nodes[number].bring_back() {
            event!("the disks of node {number} are back");
            self.restart_with_other_disks(number);
        }
    }

    fn restart_with_other_disks(&mut self, number: usize) {
        let power = self.disk_random.chance(1, 3);
        self.node_dies(number, power);
        let off = Duration::from_millis(self.disk_random.within(2..300));
        self.later(off, Later::StartNode(number));
    }

    fn host_fault(&mut self) {
        let host = self.some(self.host_machines.len());
        self.tally.fault("host crash", 1);
        self.hosts_die(host);
        let off = self.millis(5, 3_000);
        self.later(off, Later::StartHosts(host));
    }

    /// An order that is older than what the node has seen.
    fn stale_order(&mut self, number: usize) {
        let mut old = self.scripts[number].desired.clone();
        old.revision.index -= old.revision.index.min(2);
        old.volumes.clear();
        event!("node {number} is given a stale revision {}", old.revision);
        self.tally.fault("stale order", 1);
        if self.nodes[number].apply(old, |_| ()) {
            self.fleet.poke(self.nodes[number].machine);
        }
    }

    /// A tombstone of another cluster, in an order of the node's own one: it must not delete.
    fn foreign_order(&mut self, number: usize) {
        let Some(used) = self.volumes.iter().find(|used| used.node == number && used.seen && !used.going)
        else {
            return;
        };
        let id = used.id;
        let Some(volume) = self.scripts[number].forget(id) else { return };
        event!("node {number} is given a foreign tombstone for {id}");
        self.tally.fault("foreign tombstone", 1);
        self.scripts[number].desired.tombstones.push(basalt_agent::Tombstone {
            cluster: basalt_lvol::id::ClusterId(Uuid::from_u128(99)),
            volume: id,
            generation: Generation(volume.generation.0 + 1),
            pool: volume.pool.clone(),
        });
        self.hold(number, volume);
    }

    /// The node is not told about a volume or snapshot for a while: it must leave the data alone.
    fn forget(&mut self, number: usize) {
        let snapshot = self.snapshots.iter().find(|snapshot| snapshot.node == number);
        let snapshot = snapshot.map(|snapshot| snapshot.id).filter(|_| self.random.chance(1, 3));
        let used = self.volumes.iter().find(|used| used.node == number && used.seen && !used.going);
        let Some(id) = snapshot.or(used.map(|used| used.id)) else { return };
        let Some(volume) = self.scripts[number].forget(id) else { return };
        event!("node {number} is not told about {id}");
        self.tally.fault("forgotten volume", 1);
        self.hold(number, volume);
    }

    /// The node is ordered to serve a volume at a lower epoch than it has seen: it must not, until a higher one comes.
    fn fence(&mut self, number: usize) {
        let Some(used) = self.volumes.iter().find(|used| used.node == number && used.seen && !used.going)
        else {
            return;
        };
        let id = used.id;
        event!("node {number} is ordered to serve {id} at an old epoch");
        self.tally.fault("old epoch", 1);
        let Some(epoch) = self.scripts[number].set_epoch(id, Epoch { incarnation: 0, counter: 0 }) else {
            return;
        };
        let length = self.millis(100, 2_000);
        self.later(length, Later::Raise(number, id, epoch));
    }

    fn hold(&mut self, number: usize, volume: basalt_agent::DesiredVolume) {
        let length = self.millis(100, 3_000);
        self.later(length, Later::Remember(number, Box::new(volume)));
    }

    /// The node is told to serve a volume, or to hold a snapshot, that it never had: it must say so, and create nothing.
    fn phantom(&mut self, number: usize) {
        let script = &mut self.scripts[number];
        let origin = script.desired.volumes.first().map(|volume| volume.id);
        let origin = origin.filter(|_| self.random.chance(1, 3));
        let id = match origin.and_then(|origin| script.snapshot(origin)) {
            Some(snapshot) => snapshot,
            None => script.create(1 << 20),
        };
        if let Some(volume) = script.desired.volumes.last_mut() {
            volume.provision = Provision::Expect;
        }
        self.phantoms.insert(id);
        event!("node {number} is told to expect {id}, which never was");
        self.tally.fault("phantom volume", 1);
        let length = self.millis(200, 2_000);
        self.later(length, Later::Forget(number, id));
    }

    /// Creates, deletes or changes a volume or a snapshot.
    pub fn change_volumes(&mut self) {
        let number = self.some(self.nodes.len());
        match self.random.below(12) {
            0..2 => self.take_snapshot(number),
            2..4 => self.restore_snapshot(number),
            4 => self.delete_snapshot(number),
            5 => self.grow_volume(number),
            _ => self.change_volume(number),
        }
    }

    /// Creates a volume, or deletes or changes one.
    fn change_volume(&mut self, number: usize) {
        let own = self.volumes.iter().filter(|used| used.node == number && !used.going);
        let own: Vec<VolumeId> = own.map(|used| used.id).collect();
        let restored = |used: &&Used| used.node == number && used.hosts.base.is_some();
        let blank = own.len() - self.volumes.iter().filter(|used| !used.going).filter(restored).count();
        // A pool that is lost deletes nothing.
        let backlog = self.scripts[number].desired.tombstones.len();
        if blank < VOLUMES_MAX && backlog < TOMBSTONES_MAX && self.random.chance(1, 2) {
            let size = (1 << 20) * (1 + self.random.below(4)) - 4096 * self.random.below(3);
            let id = self.scripts[number].create(size);
            event!("volume {id} of {size} bytes is ordered on node {number}");
            let used = self.use_volume(id, number, nqn(id));
            used.hosts.ordered_bytes.borrow_mut().insert(size);
            return;
        }
        if own.is_empty() {
            return;
        }
        let id = own[self.some(own.len())];
        if self.random.chance(1, 2) {
            self.scripts[number].touch(id);
            return;
        }
        if self.is_being_snapshotted(id) {
            return;
        }
        if let Some(used) = self.volumes.iter_mut().find(|used| used.id == id) {
            event!("volume {} is to go", used.hosts.number);
            used.going = true;
            used.hosts.stop.set(true);
        }
    }
}
