use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use basalt_clock::{Instant, Random, SeededRandom};

use super::disks::{Chance, DiskFaults, Disks};
use super::driver::SimDriver;
use super::network::{Arrival, Network, Side};
use crate::driver::SocketId;

/// A machine of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// How the network behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkModel {
    /// One-way delays, drawn anew for each piece that is sent; pieces of one direction of a connection keep their order.
    pub latency: Range<Duration>,
    /// Bytes that may be on their way or unread in one direction of a connection.
    pub buffer_bytes: usize,
    /// How often a send takes, or a receive gives, fewer bytes than it could.
    pub partial: Chance,
    /// Connections that wait to be accepted at one listener; more are refused.
    pub backlog: usize,
    /// When a connection attempt without an answer fails.
    pub connect_timeout: Duration,
}

/// How disks behave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskModel {
    /// Time of a read.
    pub read: Range<Duration>,
    /// Time of a write, discard or zeroing.
    pub write: Range<Duration>,
    /// Time of a sync, and on top of a write with FUA.
    pub sync: Range<Duration>,
    /// How often an operation takes a hundred times as long.
    pub stall: Chance,
    /// Operations under way per driver; more are handed back.
    pub queue_depth: usize,
}

/// What the world is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorldOptions {
    /// The network.
    pub network: NetworkModel,
    /// The disks.
    pub disk: DiskModel,
}

fn micros(range: Range<u64>) -> Range<Duration> {
    Duration::from_micros(range.start)..Duration::from_micros(range.end)
}

impl Default for WorldOptions {
    /// A local network with disks of flash.
    fn default() -> Self {
        let network = NetworkModel {
            latency: micros(20..200),
            buffer_bytes: 256 << 10,
            partial: Chance { numerator: 1, denominator: 8 },
            backlog: 128,
            connect_timeout: Duration::from_secs(30),
        };
        let disk = DiskModel {
            read: micros(50..200),
            write: micros(20..200),
            sync: micros(200..2000),
            stall: Chance { numerator: 1, denominator: 500 },
            queue_depth: 256,
        };
        Self { network, disk }
    }
}

/// What happens at a time.
#[derive(Debug)]
pub(super) enum Event {
    /// Something reaches one side of a connection.
    Arrive { connection: u32, to: Side, what: Arrival },
    /// One side of a connection may send again.
    Room { connection: u32, side: Side },
    /// A connection attempt is given up if it is still one.
    ConnectTimeout { connection: u32 },
    /// A disk operation ends.
    Disk { operation: u64 },
}

/// One machine.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) address: IpAddr,
    /// Grows whenever its processes end.
    pub(super) incarnation: u64,
    /// Someone answers for the machine, be it only to refuse.
    pub(super) up: bool,
}

/// One reactor's place in the world.
#[derive(Debug)]
pub(super) struct DriverState {
    pub(super) node: NodeId,
    pub(super) incarnation: u64,
    /// Something happened since it last polled.
    pub(super) activity: bool,
    /// Sockets to which something happened.
    pub(super) ready: Vec<SocketId>,
}

pub(super) struct State {
    pub(super) now: Instant,
    pub(super) options: WorldOptions,
    pub(super) random: SeededRandom,
    events: BTreeMap<(Instant, u64), Event>,
    scheduled: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) drivers: Vec<DriverState>,
    pub(super) network: Network,
    pub(super) disks: Disks,
    digest: u64,
}

impl State {
    pub(super) fn schedule(&mut self, at: Instant, event: Event) {
        self.scheduled += 1;
        self.events.insert((at, self.scheduled), event);
    }

    pub(super) fn duration(&mut self, range: &Range<Duration>) -> Duration {
        let span = u64::try_from((range.end.saturating_sub(range.start)).as_nanos()).unwrap_or(u64::MAX);
        range.start + Duration::from_nanos(self.random.below(span.max(1)))
    }

    /// Mixes the time and two facts into the digest (FNV-1a over their bytes).
    pub(super) fn note(&mut self, [first, second]: [u64; 2]) {
        for fact in [self.now.as_nanos(), first, second] {
            for byte in fact.to_le_bytes() {
                self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }

    pub(super) fn node(&self, node: NodeId) -> &Node {
        &self.nodes[node.0 as usize]
    }

    /// True if the driver's process still runs.
    pub(super) fn alive(&self, driver: usize) -> bool {
        let driver = &self.drivers[driver];
        self.node(driver.node).incarnation == driver.incarnation
    }

    /// Everything on a node looks again.
    pub(super) fn stir(&mut self, node: NodeId) {
        for driver in self.drivers.iter_mut().filter(|driver| driver.node == node) {
            driver.activity = true;
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { connection, to, what } => self.arrive(connection, to, what),
            Event::Room { connection, side } => self.has_room(connection, side),
            Event::ConnectTimeout { connection } => self.connect_timeout(connection),
            Event::Disk { operation } => self.finish_operation(operation),
        }
    }
}

/// A simulated world. Cheap to clone; all clones are the same world.
#[derive(Clone)]
pub struct World {
    pub(super) state: Rc<RefCell<State>>,
}

impl World {
    /// An empty world whose chances follow from `seed`.
    #[must_use]
    pub fn new(seed: u64, options: WorldOptions) -> Self {
        let state = State {
            // Not the origin, so that subtracting a little is harmless.
            now: Instant::ORIGIN + Duration::from_secs(1000),
            options,
            random: SeededRandom::new(seed),
            events: BTreeMap::new(),
            scheduled: 0,
            nodes: Vec::new(),
            drivers: Vec::new(),
            network: Network::default(),
            disks: Disks::default(),
            digest: 0xcbf2_9ce4_8422_2325,
        };
        Self { state: Rc::new(RefCell::new(state)) }
    }

    /// The present.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.state.borrow().now
    }

    /// When the next thing happens by itself.
    #[must_use]
    pub fn next_event(&self) -> Option<Instant> {
        self.state.borrow().events.first_key_value().map(|((at, _), _)| *at)
    }

    /// Lets everything happen until `time`, which becomes the present.
    ///
    /// # Panics
    /// If `time` is in the past.
    pub fn advance_to(&self, time: Instant) {
        let mut state = self.state.borrow_mut();
        assert!(time >= state.now, "time does not go back");
        while let Some(entry) = state.events.first_entry() {
            if entry.key().0 > time {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            state.now = at;
            state.handle(event);
        }
        state.now = time;
    }

    /// A number that depends on everything that happened: equal for equal runs.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.state.borrow().digest
    }

    /// A sequence of random numbers of its own that follows from the world's seed.
    #[must_use]
    pub fn fork_random(&self) -> SeededRandom {
        self.state.borrow_mut().random.fork()
    }

    /// Adds a machine. On it, 127.0.0.1 and ::1 are itself.
    ///
    /// # Panics
    /// If another machine has the address.
    pub fn add_node(&self, address: IpAddr) -> NodeId {
        let mut state = self.state.borrow_mut();
        assert!(state.nodes.iter().all(|node| node.address != address), "{address} is taken");
        let Ok(id) = u32::try_from(state.nodes.len()) else { panic!("too many nodes") };
        state.nodes.push(Node { address, incarnation: 0, up: true });
        NodeId(id)
    }

    /// A machine's address.
    #[must_use]
    pub fn address(&self, node: NodeId) -> IpAddr {
        self.state.borrow().node(node).address
    }

    /// A driver for one reactor on a machine.
    #[must_use]
    pub fn driver(&self, node: NodeId) -> SimDriver {
        let mut state = self.state.borrow_mut();
        let incarnation = state.node(node).incarnation;
        state.drivers.push(DriverState { node, incarnation, activity: false, ready: Vec::new() });
        state.disks.add_driver();
        let random = state.random.fork();
        SimDriver::new(self.clone(), state.drivers.len() - 1, node, random)
    }

    /// True if something happened on the machine that its reactors have not looked at.
    #[must_use]
    pub fn has_activity(&self, node: NodeId) -> bool {
        let state = self.state.borrow();
        let stirred = |(index, driver): (usize, &DriverState)| {
            driver.node == node && driver.activity && state.alive(index)
        };
        state.drivers.iter().enumerate().any(stirred)
    }

    /// Ends all processes of a machine at once, as SIGKILL does. What its disks completed is there; each operation under way
    /// happens or not. Peers of its connections notice.
    pub fn kill(&self, node: NodeId) {
        let mut state = self.state.borrow_mut();
        state.end_processes(node);
        state.note([1, u64::from(node.0)]);
        state.drop_connections(node, true);
    }

    /// Cuts a machine's power. What was not synced is lost, kept, or torn between sectors; peers notice nothing. The machine
    /// answers no one until [`World::power_on`].
    pub fn power_fail(&self, node: NodeId) {
        let mut state = self.state.borrow_mut();
        state.end_processes(node);
        state.note([2, u64::from(node.0)]);
        state.nodes[node.0 as usize].up = false;
        state.drop_connections(node, false);
        state.disks_lose_power(node);
    }

    /// Gives a machine its power back: it refuses connections until something listens, and resets old ones.
    pub fn power_on(&self, node: NodeId) {
        self.state.borrow_mut().nodes[node.0 as usize].up = true;
    }

    /// From now on nothing from `from` reaches `to`; it waits, in order.
    pub fn block(&self, from: NodeId, to: NodeId) {
        let mut state = self.state.borrow_mut();
        state.note([3, u64::from(from.0) << 32 | u64::from(to.0)]);
        state.network.block(from, to);
    }

    /// Undoes [`World::block`]: what waited arrives.
    pub fn unblock(&self, from: NodeId, to: NodeId) {
        self.state.borrow_mut().unblock(from, to);
    }

    /// Separates two machines in both directions.
    pub fn partition(&self, a: NodeId, b: NodeId) {
        self.block(a, b);
        self.block(b, a);
    }

    /// Undoes [`World::partition`].
    pub fn heal(&self, a: NodeId, b: NodeId) {
        self.unblock(a, b);
        self.unblock(b, a);
    }

    /// Undoes every block.
    pub fn heal_all(&self) {
        let blocked = self.state.borrow().network.blocked();
        for (from, to) in blocked {
            self.unblock(from, to);
        }
    }

    /// Adds a zeroed disk to a machine. Files that reactors create appear by themselves.
    pub fn create_disk(&self, node: NodeId, path: impl Into<PathBuf>, length: u64) {
        self.state.borrow_mut().disks.create(node, path.into(), length);
    }

    /// Sets what goes wrong at a disk from now on.
    ///
    /// # Panics
    /// If there is no such disk.
    pub fn set_disk_faults(&self, node: NodeId, path: &Path, faults: DiskFaults) {
        self.state.borrow_mut().disks.set_faults(node, path, faults);
    }

    /// Changes every byte of a range, as bit rot does.
    ///
    /// # Panics
    /// If there is no such disk.
    pub fn corrupt_disk(&self, node: NodeId, path: &Path, offset: u64, length: u64) {
        let state = &mut *self.state.borrow_mut();
        state.disks.corrupt(node, path, offset, length, &mut state.random);
    }

    /// Makes a disk longer.
    ///
    /// # Panics
    /// If there is no such disk.
    pub fn grow_disk(&self, node: NodeId, path: &Path, length: u64) {
        self.state.borrow_mut().disks.grow(node, path, length);
    }

    /// Removes a disk: its operations fail from now on, opening it too.
    pub fn remove_disk(&self, node: NodeId, path: &Path) {
        self.state.borrow_mut().disks.remove(node, path);
    }

    /// What reads of a disk would give now.
    ///
    /// # Panics
    /// If there is no such disk.
    #[must_use]
    pub fn read_disk(&self, node: NodeId, path: &Path, offset: u64, length: usize) -> Vec<u8> {
        self.state.borrow().disks.read(node, path, offset, length)
    }
}

impl State {
    fn end_processes(&mut self, node: NodeId) {
        self.nodes[node.0 as usize].incarnation += 1;
        self.abandon_operations(node);
        self.network.close_listeners(node);
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(state) = self.state.try_borrow() else { return f.write_str("World") };
        f.debug_struct("World")
            .field("now", &state.now)
            .field("nodes", &state.nodes.len())
            .field("events", &state.events.len())
            .finish_non_exhaustive()
    }
}
