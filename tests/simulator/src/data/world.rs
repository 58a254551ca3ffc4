//! The data plane's world: storage nodes with the production agent, hosts with the production initiator, and what goes wrong.

use crate::blocks::WriteId;
use crate::data::fleet::{Fleet, MachineId};
use crate::data::node::{Node, Target};
use crate::data::nvme::{NvmeConnector, NvmeTarget};
use crate::data::script::Script;
use crate::data::snapshots::Snapshot;
use crate::data::volume::{Connector, HostVolume, host};
use crate::event;
use crate::holding::Shared;
use crate::run::{Tally, Violation};
use crate::trace;
use basalt_agent::{DesiredVolume, NodeReport, Refused, VolumeHealth, VolumeReport};
use basalt_clock::{Instant, Random, SeededRandom};
use basalt_lvol::id::{Epoch, VolumeId};
use basalt_nvme_wire::pdu::Digests;
use basalt_reactor::Handle;
use basalt_reactor::sim::{Chance, WorldOptions};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

/// The port on which every node serves.
pub const PORT: u16 = 4420;

/// After which time an abandoned write can not have an effect any more.
const GHOST_LIFE: Duration = Duration::from_secs(60);

/// A volume and the hosts that use it.
#[derive(Debug)]
pub struct Used {
    /// Its identity.
    pub id: VolumeId,
    /// The node that holds it.
    pub node: usize,
    /// The machine of its hosts.
    pub machine: MachineId,
    /// What its hosts know.
    pub hosts: Rc<HostVolume>,
    /// How many hosts it has.
    pub count: u32,
    /// How many requests each has at a time.
    pub depth: u32,
    /// It is to be deleted once its hosts have ended.
    pub going: bool,
    /// Whether it was seen in service.
    pub seen: bool,
    /// Its size in bytes as it was reported last.
    pub bytes: u64,
}

impl Used {
    /// Whether it was restored from the snapshot that holds this.
    pub fn is_of(&self, holding: &Shared) -> bool {
        self.hosts.base.as_ref().is_some_and(|base| Rc::ptr_eq(base, holding))
    }
}

/// The world.
pub struct World {
    /// Machines.
    pub fleet: Fleet,
    /// Storage nodes.
    pub nodes: Vec<Node>,
    /// Their orders.
    pub scripts: Vec<Script>,
    /// Paths of each node's disks.
    pub disks: Vec<Vec<String>>,
    /// Machines of hosts.
    pub host_machines: Vec<MachineId>,
    host_handles: Vec<Option<Handle>>,
    /// Volumes in use.
    pub volumes: Vec<Used>,
    /// Snapshots that were ordered and not to be deleted yet.
    pub snapshots: Vec<Snapshot>,
    /// Requests that hosts may still make.
    pub budget: Rc<Cell<u64>>,
    /// Chooses.
    pub random: SeededRandom,
    /// What was done.
    pub tally: Tally,
    /// What happens later.
    pub agenda: Vec<(Instant, Later)>,
    /// Whether the control plane's stand-in hands out orders.
    pub scripted: bool,
    /// Volumes that a node was told to expect and that never were.
    pub phantoms: BTreeSet<VolumeId>,
    /// Whether reads of each node's disks may fail now.
    pub reads_fail: Vec<bool>,
    /// Whether reads of each node's disks failed since it was started: what it then says about damage is no news of loss.
    pub unreadable: Vec<bool>,
    /// Chooses how disks come and go, apart from all else: runs in which they stay are what they were without this.
    pub disk_random: SeededRandom,
    numbers: u64,
    /// When the world began.
    pub began: Instant,
}

/// Something that happens at a chosen time.
#[derive(Debug)]
pub enum Later {
    /// A node's process is started.
    StartNode(usize),
    /// A host machine's process is started.
    StartHosts(usize),
    /// All blocks between machines end.
    Heal,
    /// A disk works again.
    DiskWorks(usize),
    /// A disk of a node is taken away, and the node ends.
    DiskAway(usize),
    /// All disks of a node are back, and the node ends once more, for it takes them at its start only.
    DiskBack(usize),
    /// A node is told of one more disk for its pool.
    NameDisk(usize, String),
    /// A node's memory can be written again.
    StoreWorks(usize),
    /// A node is told about a volume again.
    Remember(usize, Box<DesiredVolume>),
    /// A volume gets this epoch, if it has a lower one.
    Raise(usize, VolumeId, Epoch),
    /// A node is not told about a volume any more.
    Forget(usize, VolumeId),
    /// Writes that nobody waits for can not have an effect any more.
    GiveUp(Rc<HostVolume>, Vec<WriteId>),
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("fleet", &self.fleet).finish_non_exhaustive()
    }
}

impl World {
    /// A world with so many nodes and host machines, all off.
    pub fn new(nodes: usize, host_machines: usize, mut random: SeededRandom) -> Self {
        let mut options = WorldOptions::default();
        options.disk.stall = Chance { numerator: 1, denominator: 300 };
        options.network.connect_timeout = Duration::from_secs(5);
        let mut fleet = Fleet::new(options, &mut random);
        let target: Rc<dyn Target> = Rc::new(NvmeTarget);
        let (mut all, mut scripts, mut disks) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..nodes {
            let machine = fleet.add();
            let paths: Vec<String> =
                (0..1 + random.below(3)).map(|disk| format!("/dev/disk{disk}")).collect();
            for path in &paths {
                let length = (12 + 4 * random.below(7)) << 20;
                fleet.world.create_disk(fleet.node(machine), path, length);
            }
            let listener = SocketAddr::new(fleet.world.address(fleet.node(machine)), PORT);
            scripts.push(Script::new(listener, &paths, random.fork()));
            disks.push(paths);
            all.push(Node::new(number, machine, Rc::clone(&target)));
        }
        let host_machines: Vec<MachineId> = (0..host_machines).map(|_| fleet.add()).collect();
        let began = fleet.world.now();
        Self {
            fleet,
            nodes: all,
            scripts,
            disks,
            host_handles: vec![None; host_machines.len()],
            host_machines,
            volumes: Vec::new(),
            snapshots: Vec::new(),
            budget: Rc::default(),
            random,
            tally: Tally::default(),
            agenda: Vec::new(),
            scripted: true,
            phantoms: BTreeSet::new(),
            reads_fail: vec![false; nodes],
            unreadable: vec![false; nodes],
            disk_random: SeededRandom::new(0),
            numbers: 0,
            began,
        }
    }

    /// The present.
    pub fn now(&self) -> Instant {
        self.fleet.world.now()
    }

    /// Makes something happen after a while.
    pub fn later(&mut self, after: Duration, what: Later) {
        self.agenda.push((self.now() + after, what));
    }

    /// Starts a node's process, if its machine is not running one.
    pub fn start_node(&mut self, number: usize) {
        let node = &mut self.nodes[number];
        if !self.fleet.runs(node.machine) {
            self.fleet.power_on(node.machine);
            node.start(&mut self.fleet);
            self.unreadable[number] = self.reads_fail[number];
            event!("node {number} starts");
        }
    }

    /// Starts the process of a host machine, and all its hosts.
    pub fn start_hosts(&mut self, number: usize) {
        let machine = self.host_machines[number];
        if self.fleet.runs(machine) {
            return;
        }
        self.host_handles[number] = Some(self.fleet.start(machine));
        event!("host machine {number} starts");
        for at in 0..self.volumes.len() {
            if self.volumes[at].machine == machine {
                self.start_hosts_of(at);
            }
        }
    }

    fn handle_of(&self, machine: MachineId) -> Option<Handle> {
        let number = self.host_machines.iter().position(|host| *host == machine)?;
        self.host_handles[number].clone()
    }

    /// A connector from a host to a volume.
    pub fn connector(&mut self, node: usize, host: u32) -> Rc<dyn Connector> {
        let digest = self.random.below(4);
        let address = self.fleet.world.address(self.fleet.node(self.nodes[node].machine));
        let mut host_id = [7; 16];
        host_id[..4].copy_from_slice(&host.to_le_bytes());
        Rc::new(NvmeConnector {
            address: SocketAddr::new(address, PORT),
            host: format!("nqn.2026-01.sim:host:{host}"),
            host_id,
            digests: Digests { header: digest & 1 != 0, data: digest & 2 != 0 },
        })
    }

    fn start_hosts_of(&mut self, at: usize) {
        let used = &self.volumes[at];
        let (machine, node, count, depth) = (used.machine, used.node, used.count, used.depth);
        let hosts = Rc::clone(&used.hosts);
        let Some(handle) = self.handle_of(machine) else { return };
        hosts.hosts.set(0);
        for number in 0..count {
            let connector = self.connector(node, number + 10 * u32::try_from(at).unwrap_or(0));
            drop(handle.spawn(host(handle.clone(), Rc::clone(&hosts), connector, depth)));
        }
        self.fleet.poke(machine);
    }

    /// Runs something on the first host machine, which must be on.
    pub fn spawn_on_hosts<F: Future<Output = ()> + 'static>(&mut self, work: impl FnOnce(Handle) -> F) {
        if let Some(handle) = self.host_handles.first().cloned().flatten() {
            drop(handle.spawn(work(handle.clone())));
            self.fleet.poke(self.host_machines[0]);
        }
    }

    /// Lets hosts use a volume that exists or is going to.
    pub fn use_volume(&mut self, id: VolumeId, node: usize, nqn: String) -> &Used {
        let count = 1 + self.random.below(2);
        self.add_volume(id, node, nqn, (None, u32::try_from(count).unwrap_or(1)))
    }

    /// Adds a volume, with what it begins with if it is restored, and how many hosts it has.
    pub fn add_volume(
        &mut self,
        id: VolumeId,
        node: usize,
        nqn: String,
        (base, count): (Option<Shared>, u32),
    ) -> &Used {
        self.numbers += 1;
        let chosen = self.random.below(self.host_machines.len() as u64);
        let machine = self.host_machines[usize::try_from(chosen).unwrap_or(0)];
        let depth = u32::try_from(1 + self.random.below(6)).unwrap_or(1);
        let (budget, random) = (Rc::clone(&self.budget), self.random.fork());
        let hosts = HostVolume::new(self.numbers, nqn, base, budget, random);
        let (going, seen, bytes) = (false, false, 0);
        self.volumes.push(Used { id, node, machine, hosts, count, depth, going, seen, bytes });
        self.start_hosts_of(self.volumes.len() - 1);
        &self.volumes[self.volumes.len() - 1]
    }

    /// Ends a node's process: by SIGKILL, or with its power.
    pub fn node_dies(&mut self, number: usize, power: bool) {
        let machine = self.nodes[number].machine;
        if !self.fleet.runs(machine) {
            return;
        }
        match power {
            true => self.fleet.power_fail(machine),
            false => self.fleet.kill(machine),
        }
        self.nodes[number].ended();
        event!("node {number} {}", if power { "loses its power" } else { "is killed" });
        for used in self.volumes.iter().filter(|used| used.node == number) {
            match power {
                true => used.hosts.target_crashed(),
                false => used.hosts.target_killed(),
            }
        }
    }

    /// Ends the process of a host machine.
    pub fn hosts_die(&mut self, number: usize) {
        let machine = self.host_machines[number];
        if !self.fleet.runs(machine) {
            return;
        }
        self.fleet.kill(machine);
        self.host_handles[number] = None;
        event!("host machine {number} is killed");
        let ghosts: Vec<_> = self
            .volumes
            .iter()
            .filter(|used| used.machine == machine)
            .filter_map(|used| {
                let mut oracle = used.hosts.oracle.borrow_mut();
                Some((Rc::clone(&used.hosts), oracle.as_mut()?.abandoned()))
            })
            .collect();
        for (hosts, writes) in ghosts {
            self.later(GHOST_LIFE, Later::GiveUp(hosts, writes));
        }
    }

    /// Lets time pass and does what is due: orders, reports, the agenda.
    ///
    /// # Errors
    /// What must not have happened.
    pub fn beat(&mut self, length: Duration) -> Result<(), Violation> {
        let until = self.now() + length;
        self.fleet.run_until(until)?;
        trace::set_now(until);
        let due: Vec<usize> = (0..self.agenda.len()).rev().filter(|at| self.agenda[*at].0 <= until).collect();
        for at in due {
            let (_, what) = self.agenda.swap_remove(at);
            self.happens(what);
        }
        if self.scripted {
            for number in 0..self.nodes.len() {
                self.orders(number);
            }
        }
        self.look()
    }

    fn happens(&mut self, what: Later) {
        match what {
            Later::StartNode(number) => self.start_node(number),
            Later::StartHosts(number) => self.start_hosts(number),
            Later::Heal => {
                event!("all blocks end");
                self.fleet.world.heal_all();
            }
            Later::DiskWorks(number) => {
                self.reads_fail[number] = false;
                let node = self.fleet.node(self.nodes[number].machine);
                for path in &self.disks[number] {
                    self.fleet.world.set_disk_faults(
                        node,
                        path.as_ref(),
                        basalt_reactor::sim::DiskFaults::default(),
                    );
                }
            }
            Later::DiskAway(number) => self.take_disk(number),
            Later::DiskBack(number) => self.bring_disks(number),
            Later::NameDisk(number, path) => {
                event!("node {number} is told of {path}");
                self.scripts[number].name_disk(path);
            }
            Later::StoreWorks(number) => self.nodes[number].saves_fail(false),
            Later::Remember(number, volume) => {
                let script = &mut self.scripts[number];
                script.desired.tombstones.retain(|tombstone| tombstone.volume != volume.id);
                script.remember(*volume);
            }
            Later::Raise(number, id, epoch) => {
                match self.scripts[number].desired.volumes.iter().find(|volume| volume.id == id) {
                    Some(volume) if volume.epoch < epoch => drop(self.scripts[number].set_epoch(id, epoch)),
                    Some(_) => {}
                    // It is held back at the moment.
                    None if self.volumes.iter().any(|used| used.id == id) => {
                        self.later(Duration::from_millis(300), Later::Raise(number, id, epoch));
                    }
                    None => {}
                }
            }
            Later::Forget(number, id) => drop(self.scripts[number].forget(id)),
            Later::GiveUp(hosts, writes) => {
                if let Some(oracle) = hosts.oracle.borrow_mut().as_mut() {
                    writes.into_iter().for_each(|write| oracle.write_given_up(write));
                }
            }
        }
    }

    /// Hands a node its orders if it has older ones, and takes its report over.
    fn orders(&mut self, number: usize) {
        if let Some(report) = self.nodes[number].report() {
            self.take_report(number, &report);
        }
        let (node, script) = (&self.nodes[number], &self.scripts[number]);
        let taken = node.taken().map(|taken| taken.revision);
        if taken != Some(script.desired.revision) && node.apply(script.desired.clone(), |_: &Refused| ()) {
            self.fleet.poke(self.nodes[number].machine);
        }
    }

    fn take_report(&mut self, number: usize, report: &NodeReport) {
        for used in self.volumes.iter_mut().filter(|used| used.node == number) {
            let online =
                |volume: &&VolumeReport| volume.id == used.id && volume.health == VolumeHealth::Online;
            if let Some(volume) = report.volumes.iter().find(online) {
                used.seen = true;
                used.bytes = volume.size;
            }
        }
        self.note_snapshots(number, report);
        self.scripts[number].reported(report);
    }

    /// Looks for violations, and lets volumes go whose hosts have ended.
    fn look(&mut self) -> Result<(), Violation> {
        for used in &self.volumes {
            if let Some(violation) = used.hosts.violation.borrow_mut().take() {
                return Err(violation);
            }
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let Some(report) = node.report() else { continue };
            if self.scripted {
                self.check_sizes(number, &report)?;
            }
            if self.unreadable[number] {
                continue;
            }
            for volume in &report.volumes {
                if volume.health == VolumeHealth::Online && self.phantoms.contains(&volume.id) {
                    return Err(Violation::Invariant {
                        invariant: "what was there once is not created anew",
                        detail: format!(
                            "node {number} serves volume {}, which it was told to expect",
                            volume.id
                        ),
                    });
                }
                let ordered =
                    self.volumes.iter().any(|used| used.id == volume.id && used.seen && !used.going)
                        || self.snapshots.iter().any(|snapshot| snapshot.id == volume.id && snapshot.there);
                if let VolumeHealth::Faulted(problem) = &volume.health
                    && ordered
                {
                    return Err(Violation::Invariant {
                        invariant: "no data is lost",
                        detail: format!("node {number} says of volume {}: {}", volume.id, problem.message),
                    });
                }
            }
        }
        self.remove_gone();
        Ok(())
    }

    fn remove_gone(&mut self) {
        let mut at = 0;
        while at < self.volumes.len() {
            let used = &self.volumes[at];
            // One that the node is not told about at the moment waits until it is.
            let told = self.scripts[used.node].volume(used.id).is_some();
            if used.going && used.hosts.hosts.get() == 0 && told {
                let used = self.volumes.swap_remove(at);
                self.finished(&used.hosts);
                event!("volume {} is ordered to be deleted", used.hosts.number);
                self.scripts[used.node].delete(used.id);
            } else {
                at += 1;
            }
        }
    }

    fn finished(&mut self, hosts: &HostVolume) {
        self.tally.operations += hosts.made.get();
    }

    /// Sums up what was done.
    pub fn finish(mut self) -> Tally {
        let volumes: Vec<Rc<HostVolume>> = self.volumes.iter().map(|used| Rc::clone(&used.hosts)).collect();
        for hosts in volumes {
            self.finished(&hosts);
        }
        self.tally.simulated = self.now() - self.began;
        event!("world {:016x}, {} operations", self.fleet.world.digest(), self.tally.operations);
        self.tally
    }
}
