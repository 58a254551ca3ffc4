//! One volume as its hosts know it: what they wrote, what they may read, and how they go on after a lost connection.

use crate::blocks::{Blocks, Effect, Moment, Stamp};
use crate::event;
use crate::holding::Shared;
use crate::pattern;
use crate::run::Violation;
use crate::trace;
use basalt_clock::{Random, SeededRandom, mark};
use basalt_reactor::Handle;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// A future on one reactor.
pub type Local<T> = Pin<Box<dyn Future<Output = T>>>;

/// After which time a write whose connection was lost can not have an effect any more.
const GHOST_LIFE: Duration = Duration::from_secs(60);

/// The most blocks of one request.
const BLOCKS_MAX: u64 = 16;

/// What is asked of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Read blocks.
    Read,
    /// Write blocks, durably or not.
    Write {
        /// Durable when acknowledged.
        fua: bool,
    },
    /// Make acknowledged writes durable.
    Flush,
    /// Make blocks read as zeroes.
    WriteZeroes,
    /// Say that blocks are not needed.
    Discard,
    /// Say whether blocks hold these bytes.
    Compare,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Io {
    /// What is asked.
    pub ask: Ask,
    /// The first block.
    pub first: u64,
    /// The number of blocks.
    pub count: u64,
    /// What is written or compared.
    pub data: Vec<u8>,
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Well; with what was read.
    Done(Vec<u8>),
    /// A comparison found other data.
    Differs,
    /// The target said that it failed.
    Failed(String),
    /// The connection ended: nobody knows.
    Lost,
}

/// A connection to a volume.
pub trait VolumeIo {
    /// Bytes of a block.
    fn block_bytes(&self) -> u64;
    /// Blocks of the volume, as far as is known.
    fn blocks(&self) -> u64;
    /// If the volume has said that something about it has changed, looks at its size again; false if the connection is lost.
    fn look_again(&self) -> Option<Local<bool>>;
    /// Whether acknowledged writes need a flush to be durable.
    fn volatile_cache(&self) -> bool;
    /// What the volume says it is: anything that must never change.
    fn identity(&self) -> String;
    /// Runs a request.
    fn run(&self, io: Io) -> Local<End>;
    /// Ends the connection in good order.
    fn close(&self) -> Local<()>;
}

/// Makes connections.
pub trait Connector {
    /// Tries once; `None` if the volume is not to be had.
    fn connect(&self, handle: &Handle, volume: &Rc<HostVolume>) -> Local<Option<Rc<dyn VolumeIo>>>;
}

/// What all hosts know about one volume.
pub struct HostVolume {
    /// A number of its own, in the content of its blocks.
    pub number: u64,
    /// The volume's NQN.
    pub nqn: String,
    /// What reads may return.
    pub oracle: RefCell<Option<Blocks>>,
    /// What it began with, if it was restored from a snapshot.
    pub base: Option<Shared>,
    /// Sizes in bytes that were ordered; nobody looks if there are none.
    pub ordered_bytes: RefCell<BTreeSet<u64>>,
    /// The largest size in bytes that hosts have seen.
    pub bytes: Cell<u64>,
    /// The first size in bytes that hosts have seen.
    bytes_at_first: Cell<u64>,
    /// Blocks that were read as the snapshot's, and whether the power has failed since.
    inherited: RefCell<BTreeMap<u64, bool>>,
    /// What it said it is.
    identity: RefCell<Option<String>>,
    /// The first thing that went wrong.
    pub violation: RefCell<Option<Violation>>,
    /// Hosts stop when it is set.
    pub stop: Cell<bool>,
    /// Requests that are still allowed to be made.
    pub budget: Rc<Cell<u64>>,
    /// Requests made.
    pub made: Cell<u64>,
    /// Connections made.
    pub connections: Cell<u64>,
    /// Requests that the target failed.
    pub failures: Cell<u64>,
    /// Hosts that have not ended.
    pub hosts: Cell<u32>,
    stamps: Cell<u64>,
    random: RefCell<SeededRandom>,
}

impl fmt::Debug for HostVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostVolume")
            .field("number", &self.number)
            .field("nqn", &self.nqn)
            .finish_non_exhaustive()
    }
}

impl HostVolume {
    /// A volume that nobody has seen yet.
    pub fn new(
        number: u64,
        nqn: String,
        base: Option<Shared>,
        budget: Rc<Cell<u64>>,
        random: SeededRandom,
    ) -> Rc<Self> {
        Rc::new(Self {
            number,
            nqn,
            oracle: RefCell::new(None),
            base,
            ordered_bytes: RefCell::default(),
            bytes: Cell::new(0),
            bytes_at_first: Cell::new(0),
            inherited: RefCell::default(),
            identity: RefCell::new(None),
            violation: RefCell::new(None),
            stop: Cell::new(false),
            budget,
            made: Cell::new(0),
            connections: Cell::new(0),
            failures: Cell::new(0),
            hosts: Cell::new(0),
            stamps: Cell::new(0),
            random: RefCell::new(random),
        })
    }

    fn broken(&self, invariant: &'static str, detail: String) {
        let violation =
            Violation::Invariant { invariant, detail: format!("volume {}: {detail}", self.number) };
        self.violation.borrow_mut().get_or_insert(violation);
        self.stop.set(true);
    }

    /// The target's processes ended; its disks are as they were.
    pub fn target_killed(&self) {
        if let Some(oracle) = self.oracle.borrow_mut().as_mut() {
            oracle.killed();
        }
    }

    /// The target lost its power.
    pub fn target_crashed(&self) {
        if let Some(oracle) = self.oracle.borrow_mut().as_mut() {
            oracle.crashed();
        }
        self.inherited.borrow_mut().values_mut().for_each(|failed| *failed = true);
    }

    /// A host is connected; it began to when this was the largest size that was known.
    fn met(&self, io: &dyn VolumeIo, bytes_before: u64) {
        self.connections.set(self.connections.get() + 1);
        let volatile = io.volatile_cache();
        self.oracle.borrow_mut().get_or_insert_with(|| Blocks::new(volatile, self.base.clone()));
        self.sized(io, bytes_before);
        let found = format!("{} of blocks of {} bytes, volatile {volatile}", io.identity(), io.block_bytes());
        let mut known = self.identity.borrow_mut();
        match known.as_ref() {
            Some(known) if *known != found => {
                self.broken("a volume keeps its identity", format!("{known} became {found}"));
            }
            Some(_) => {}
            None => *known = Some(found),
        }
    }

    /// A host has seen a size that it asked for when `bytes_before` was the largest that was known; true if that is news.
    fn sized(&self, io: &dyn VolumeIo, bytes_before: u64) -> bool {
        let bytes = io.blocks() * io.block_bytes();
        if bytes < bytes_before {
            self.broken("a volume never shrinks", format!("it had {bytes_before} bytes and has {bytes}"));
        }
        let ordered = self.ordered_bytes.borrow();
        if !ordered.is_empty() && !ordered.contains(&bytes) {
            self.broken("a volume is as large as was ordered", format!("{bytes} bytes, not {ordered:?}"));
        }
        if self.bytes_at_first.get() == 0 {
            self.bytes_at_first.set(bytes);
        }
        let news = bytes > self.bytes.get();
        self.bytes.set(self.bytes.get().max(bytes));
        news
    }

    /// Looks at the size again if the volume has said that it changed; false if the connection is lost.
    async fn look_again(&self, io: &dyn VolumeIo) -> bool {
        let bytes_before = self.bytes.get();
        let Some(looking) = io.look_again() else { return true };
        if !looking.await {
            return false;
        }
        if self.sized(io, bytes_before) {
            event!("volume {} has grown to {} bytes", self.number, self.bytes.get());
            mark!("volume-grown-under-requests");
        }
        true
    }

    fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    /// A request of the workload: mostly on a few hot places, so that requests meet.
    fn choose(&self, io: &dyn VolumeIo) -> Io {
        let count = 1 + self.below(BLOCKS_MAX);
        let room = io.blocks() - BLOCKS_MAX;
        let first = match self.below(9) {
            0 => self.below(room),
            // The end, which moves away when the volume grows.
            8 => room - self.below(2 * BLOCKS_MAX),
            region => (region * (room / 8)) / BLOCKS_MAX * BLOCKS_MAX + self.below(2 * BLOCKS_MAX),
        };
        let ask = match self.below(100) {
            0..35 => Ask::Read,
            35..75 => Ask::Write { fua: self.below(5) == 0 },
            75..85 => Ask::Flush,
            85..91 => Ask::WriteZeroes,
            91..96 => Ask::Discard,
            _ => Ask::Compare,
        };
        let mut data = Vec::new();
        if matches!(ask, Ask::Write { .. } | Ask::Compare) {
            self.stamps.set(self.stamps.get() + 1);
            data = content(io, first, count, Stamp::of(self.number, self.stamps.get()));
        }
        Io { ask, first: first.min(room), count, data }
    }

    /// Runs one request and tells the oracle; false if the connection is lost.
    async fn perform(self: &Rc<Self>, handle: &Handle, connection: &dyn VolumeIo, io: Io) -> bool {
        let (ask, first, count) = (io.ask, io.first, io.count);
        let stamp = Stamp(io.data.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes)));
        let (issued, write) = {
            let mut oracle = self.oracle.borrow_mut();
            let Some(oracle) = oracle.as_mut() else { return false };
            let effect = match ask {
                Ask::Write { .. } => Some(Effect::Content(stamp)),
                Ask::WriteZeroes => Some(Effect::Content(Stamp::ZEROES)),
                Ask::Discard => Some(Effect::PerhapsZeroes),
                Ask::Read | Ask::Flush | Ask::Compare => None,
            };
            let write = effect.map(|effect| oracle.write_issued(first, count, effect));
            let issued = if ask == Ask::Read { oracle.read_issued() } else { oracle.now() };
            (issued, write)
        };
        trace::set_now(handle.now());
        event!("volume {} {ask:?} {first}+{count} {stamp:?}", self.number);
        let end = connection.run(io).await;
        let short = match &end {
            End::Done(_) => "done",
            End::Differs => "differs",
            End::Failed(why) => why.as_str(),
            End::Lost => "lost",
        };
        trace::set_now(handle.now());
        event!("volume {} {ask:?} {first}+{count} {stamp:?}: {short}", self.number);
        let mut oracle = self.oracle.borrow_mut();
        let Some(oracle) = oracle.as_mut() else { return false };
        oracle.read_ended(issued);
        match (&end, ask, write) {
            (End::Done(data), Ask::Read, _) => self.check(oracle, issued, connection, first, count, data),
            (End::Done(_), Ask::Flush, _) => oracle.flush_acknowledged(issued),
            (End::Done(_), Ask::Compare, _) => {
                self.broken(
                    "a comparison finds what differs",
                    format!("{first}+{count} equal what was never written"),
                );
            }
            (End::Done(_), _, Some(write)) => {
                oracle.write_acknowledged(write, ask == Ask::Write { fua: true });
                self.note_written(connection, first + count);
            }
            // A write that failed at the target has ended there.
            (End::Failed(_), _, Some(write)) => oracle.write_given_up(write),
            (End::Lost, _, Some(write)) => {
                let (volume, sleep) = (Rc::clone(self), handle.sleep(GHOST_LIFE));
                drop(handle.spawn(async move {
                    sleep.await;
                    if let Some(oracle) = volume.oracle.borrow_mut().as_mut() {
                        oracle.write_given_up(write);
                    }
                }));
            }
            _ => {}
        }
        if matches!(end, End::Failed(_)) {
            self.failures.set(self.failures.get() + 1);
        }
        end != End::Lost
    }

    /// A write that ends at this block was acknowledged.
    fn note_written(&self, connection: &dyn VolumeIo, end: u64) {
        if self.base.is_some() {
            mark!("restored-volume-written");
        }
        if end * connection.block_bytes() > self.bytes_at_first.get() {
            mark!("volume-used-at-its-new-end");
        }
    }

    /// What a block of the volume's snapshot holds was read.
    fn note_inherited(&self, block: u64) {
        if *self.inherited.borrow_mut().entry(block).or_insert(false) {
            mark!("restored-volume-read-after-power-failure");
        }
    }

    fn check(
        &self,
        oracle: &mut Blocks,
        issued: Moment,
        connection: &dyn VolumeIo,
        first: u64,
        count: u64,
        data: &[u8],
    ) {
        let bytes = usize::try_from(connection.block_bytes()).unwrap_or(512);
        if data.len() as u64 != count * connection.block_bytes() {
            self.broken(
                "a read gives what was asked for",
                format!("{} bytes for {count} blocks", data.len()),
            );
            return;
        }
        for (block, chunk) in (first..).zip(data.chunks(bytes)) {
            match pattern::stamp_of(chunk, block) {
                Err(foreign) => self.broken("a block is written whole", format!("block {block}: {foreign}")),
                Ok(stamp) => match oracle.read(issued, block, stamp) {
                    Err(wrong) => self.broken("a read gives what was written", wrong.to_string()),
                    Ok(()) if stamp != Stamp::ZEROES && stamp.volume() != self.number => {
                        self.note_inherited(block);
                    }
                    Ok(()) => {}
                },
            }
        }
    }
}

fn content(io: &dyn VolumeIo, first: u64, count: u64, stamp: Stamp) -> Vec<u8> {
    let first = first.min(io.blocks() - BLOCKS_MAX);
    let bytes = usize::try_from(io.block_bytes()).unwrap_or(512);
    let mut data = vec![0; bytes * usize::try_from(count).unwrap_or(0)];
    for (block, chunk) in (first..).zip(data.chunks_mut(bytes)) {
        pattern::fill(chunk, block, stamp);
    }
    data
}

/// One host of a volume: connects, works with so many requests at a time, and connects again.
pub async fn host(handle: Handle, volume: Rc<HostVolume>, connector: Rc<dyn Connector>, depth: u32) {
    volume.hosts.set(volume.hosts.get() + 1);
    while !volume.stop.get() {
        let bytes_before = volume.bytes.get();
        let Some(connection) = connector.connect(&handle, &volume).await else {
            let pause = Duration::from_millis(20 + volume.below(200));
            handle.sleep(pause).await;
            continue;
        };
        event!("volume {} is connected", volume.number);
        volume.met(&*connection, bytes_before);
        let workers: Vec<_> = (0..depth)
            .map(|_| {
                let (handle, volume, connection) =
                    (handle.clone(), Rc::clone(&volume), Rc::clone(&connection));
                handle.clone().spawn(async move {
                    while !volume.stop.get() && volume.budget.get() > 0 {
                        volume.budget.set(volume.budget.get() - 1);
                        volume.made.set(volume.made.get() + 1);
                        if !volume.look_again(&*connection).await {
                            return false;
                        }
                        let io = volume.choose(&*connection);
                        if !volume.perform(&handle, &*connection, io).await {
                            return false;
                        }
                        // Most hosts think a little; that leaves time for faults.
                        let thinking = Duration::from_micros(volume.below(4_000));
                        handle.sleep(thinking).await;
                    }
                    true
                })
            })
            .collect();
        let mut whole = true;
        for worker in workers {
            whole &= worker.await;
        }
        if whole {
            if !volume.stop.get() {
                // No budget: verify by and by, stay connected.
                handle.sleep(Duration::from_millis(100)).await;
            }
            if volume.below(2) == 0 {
                connection.close().await;
            }
        }
    }
    volume.hosts.set(volume.hosts.get() - 1);
}

/// Reads the whole volume once; true if it could be read and is right.
pub async fn verify(handle: Handle, volume: Rc<HostVolume>, connector: Rc<dyn Connector>) -> bool {
    let bytes_before = volume.bytes.get();
    let Some(connection) = connector.connect(&handle, &volume).await else { return false };
    volume.met(&*connection, bytes_before);
    let mut first = 0;
    while first < connection.blocks() {
        let count = (connection.blocks() - first).min(128);
        let io = Io { ask: Ask::Read, first, count, data: Vec::new() };
        let issued = volume.oracle.borrow_mut().as_mut().map(Blocks::read_issued);
        match (connection.run(io).await, issued) {
            (End::Done(data), Some(issued)) => {
                if let Some(oracle) = volume.oracle.borrow_mut().as_mut() {
                    oracle.read_ended(issued);
                    volume.check(oracle, issued, &*connection, first, count, &data);
                }
            }
            _ => return false,
        }
        first += count;
    }
    connection.close().await;
    true
}
