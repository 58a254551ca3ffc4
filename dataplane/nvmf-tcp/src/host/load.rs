//! A load on a controller's I/O queues: closed loops at a depth, with latencies and, if asked for, a check of all data.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use basalt_bdev::{HistogramSnapshot, LatencyHistogram};
use basalt_clock::{Instant, Random, SeededRandom};
use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::{ReadWrite, Status};
use basalt_nvmf_host::{Data, IoCommand, NamespaceFacts, Outcome, QueueError};
use basalt_reactor::{Handle, Progress as Turned};

use super::blocking::BlockingError;
use super::controller::{TcpHostOptions, connect};
use super::io_queue::IoQueue;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Random places for a time, a part of the commands being reads.
    Random {
        /// Reads of a hundred commands.
        read_percent: u8,
        /// How long.
        duration: Duration,
    },
    /// Every place once, in order, written with a pattern that follows from place and seed.
    Fill,
    /// Every place once, in order, read and compared with the pattern.
    Check,
}

/// A load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load {
    /// Namespace.
    pub nsid: u32,
    /// What is done.
    pub work: Work,
    /// Bytes of a command: whole blocks, at most what the controller transfers.
    pub bytes: u32,
    /// Commands outstanding per queue.
    pub depth: u16,
    /// Queues.
    pub queues: u16,
    /// Bytes from the namespace's start that are used; all of it where this is `None`.
    pub region: Option<u64>,
    /// Where patterns and places come from.
    pub seed: u64,
}

impl Load {
    /// A load of 4 KiB commands on one queue of depth 32.
    #[must_use]
    pub fn new(nsid: u32, work: Work) -> Self {
        Self { nsid, work, bytes: 4096, depth: 32, queues: 1, region: None, seed: 1 }
    }
}

/// How far a load is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Commands done.
    pub done: u64,
    /// Commands in all; zero for a load that runs for a time.
    pub total: u64,
}

/// What other threads see of a load that runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counters(Arc<(AtomicU64, AtomicU64)>);

impl Counters {
    pub(crate) fn progress(&self) -> Progress {
        Progress { done: self.0.0.load(Ordering::Relaxed), total: self.0.1.load(Ordering::Relaxed) }
    }
}

/// How a command of a load failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFailure {
    /// The controller's answer.
    Status(Status),
    /// There was no answer, or it could not be used.
    Queue(QueueError),
}

impl fmt::Display for LoadFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(f),
            Self::Queue(error) => error.fmt(f),
        }
    }
}

/// What a load did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadReport {
    /// Commands that succeeded.
    pub commands: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Commands that failed.
    pub failed: u64,
    /// How they failed, and how many each way.
    pub failures: Vec<(LoadFailure, u64)>,
    /// Commands whose data was not what was written.
    pub corrupt: u64,
    /// First byte of the namespace that was not what was written.
    pub first_corrupt: Option<u64>,
    /// Time from the first command to the last completion.
    pub elapsed: Duration,
    /// Latencies.
    pub latency: HistogramSnapshot,
}

impl LoadReport {
    fn note_failure(&mut self, failure: LoadFailure) {
        self.failed += 1;
        match self.failures.iter_mut().find(|(known, _)| *known == failure) {
            Some((_, count)) => *count += 1,
            None => self.failures.push((failure, 1)),
        }
    }
}

/// Fills `bytes` with the pattern of the place that begins at byte `offset`.
pub fn pattern(seed: u64, offset: u64, bytes: &mut [u8]) {
    for (number, word) in (offset / 8..).zip(bytes.chunks_mut(8)) {
        let mut value = number.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value ^= value >> 29;
        value = value.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

struct Lane {
    queue: IoQueue,
    idle: Vec<Buffer>,
    outcomes: Vec<Outcome>,
    started: Vec<(Instant, u64, bool)>,
    free_tags: Vec<u16>,
}

struct Runner {
    handle: Handle,
    load: Load,
    lanes: Vec<Lane>,
    random: SeededRandom,
    places: u64,
    next_place: u64,
    block_shift: u8,
    began: Instant,
    ends: Instant,
    histogram: LatencyHistogram,
    report: LoadReport,
    scratch: Vec<u8>,
    over: Option<BlockingError>,
    waker: Option<Waker>,
    done: bool,
}

/// Connects and runs a load.
pub(crate) async fn run(
    handle: &Handle,
    options: &TcpHostOptions,
    load: &Load,
    counters: &Counters,
) -> Result<LoadReport, BlockingError> {
    let (controller, queues) = connect(handle, options).await?;
    let facts = controller.facts();
    let namespace = facts.namespaces.iter().find(|namespace| namespace.nsid == load.nsid);
    let namespace = namespace.ok_or(BlockingError::Load("there is no such namespace"))?;
    if load.bytes > facts.transfer_bytes_max {
        return Err(BlockingError::Load("commands are larger than the controller takes"));
    }
    let places = places(load, namespace)?;
    if !matches!(load.work, Work::Random { .. }) {
        counters.0.1.store(places, Ordering::Relaxed);
    }
    let runner = Rc::new(RefCell::new(Runner::new(handle, load, namespace, queues, places)));
    let polled = Rc::clone(&runner);
    let counted = counters.clone();
    let poller = handle.add_poller(move || polled.borrow_mut().poll(&counted));
    poll_fn(|context| {
        let mut runner = runner.borrow_mut();
        runner.waker = Some(context.waker().clone());
        if runner.done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    handle.remove_poller(poller);
    let report = runner.borrow_mut().finish()?;
    controller.shut_down().await?;
    Ok(report)
}

fn places(load: &Load, namespace: &NamespaceFacts) -> Result<u64, BlockingError> {
    let block = 1u32 << namespace.block_shift;
    if load.bytes == 0 || !load.bytes.is_multiple_of(block) || load.depth == 0 || load.queues == 0 {
        return Err(BlockingError::Load("commands are whole blocks, depth and queues at least one"));
    }
    let region = load.region.unwrap_or(namespace.bytes());
    if region > namespace.bytes() {
        return Err(BlockingError::Load("the region is larger than the namespace"));
    }
    match region / u64::from(load.bytes) {
        0 => Err(BlockingError::Load("the region is smaller than one command")),
        places => Ok(places),
    }
}

impl Runner {
    fn new(
        handle: &Handle,
        load: &Load,
        namespace: &NamespaceFacts,
        queues: Vec<IoQueue>,
        places: u64,
    ) -> Self {
        let now = handle.precise_now();
        let ends = match load.work {
            Work::Random { duration, .. } => now + duration,
            Work::Fill | Work::Check => Instant::FAR_FUTURE,
        };
        let lane = |queue| Lane {
            queue,
            idle: (0..load.depth).map(|number| fresh(load, u64::from(number))).collect(),
            outcomes: Vec::new(),
            started: vec![(now, 0, false); usize::from(load.depth)],
            free_tags: (0..load.depth).collect(),
        };
        let report = LoadReport {
            commands: 0,
            bytes: 0,
            failed: 0,
            failures: Vec::new(),
            corrupt: 0,
            first_corrupt: None,
            elapsed: Duration::ZERO,
            latency: LatencyHistogram::default().snapshot(),
        };
        Self {
            handle: handle.clone(),
            load: load.clone(),
            lanes: queues.into_iter().map(lane).collect(),
            random: SeededRandom::new(load.seed),
            places,
            next_place: 0,
            block_shift: namespace.block_shift,
            began: now,
            ends,
            histogram: LatencyHistogram::default(),
            report,
            scratch: vec![0; load.bytes as usize],
            over: None,
            waker: None,
            done: false,
        }
    }

    fn finish(&mut self) -> Result<LoadReport, BlockingError> {
        if let Some(error) = self.over.take() {
            return Err(error);
        }
        Ok(LoadReport { latency: self.histogram.snapshot(), ..self.report.clone() })
    }

    fn poll(&mut self, counters: &Counters) -> Turned {
        if self.done {
            return Turned::Idle;
        }
        let now = self.handle.now();
        let mut progress = Turned::Idle;
        let mut lanes = std::mem::take(&mut self.lanes);
        for lane in &mut lanes {
            progress = progress.or(self.submit(lane, now));
            progress = progress.or(lane.queue.poll(&mut lane.outcomes));
            if !lane.outcomes.is_empty() {
                self.collect(lane);
            }
            if let Some(error) = lane.queue.over() {
                self.over = Some(error.into());
            }
        }
        self.lanes = lanes;
        counters.0.0.store(self.report.commands + self.report.failed, Ordering::Relaxed);
        let ended = self.is_submitted(now) && self.lanes.iter().all(|lane| lane.queue.outstanding() == 0);
        if ended || self.over.is_some() {
            self.done = true;
            self.report.elapsed = self.handle.precise_now() - self.began;
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
        progress
    }

    /// Whether nothing more is to be submitted.
    fn is_submitted(&self, now: Instant) -> bool {
        match self.load.work {
            Work::Random { .. } => now >= self.ends,
            Work::Fill | Work::Check => self.next_place >= self.places,
        }
    }

    fn submit(&mut self, lane: &mut Lane, now: Instant) -> Turned {
        let mut progress = Turned::Idle;
        while !lane.free_tags.is_empty() && !self.is_submitted(now) {
            let (place, reads) = self.choose();
            let (Some(tag), Some(mut buffer)) = (lane.free_tags.pop(), lane.idle.pop()) else { break };
            let offset = place * u64::from(self.load.bytes);
            let fields = ReadWrite::new(offset >> self.block_shift, self.load.bytes >> self.block_shift);
            let command = if reads {
                IoCommand::Read(fields).with(self.load.nsid, Data::ToHost(buffer))
            } else {
                if self.load.work == Work::Fill {
                    pattern(self.load.seed, offset, &mut buffer);
                }
                IoCommand::Write(fields).with(self.load.nsid, Data::ToController(Payload::Buffer(buffer)))
            };
            lane.started[usize::from(tag)] = (now, offset, reads);
            if lane.queue.submit(u64::from(tag), command).is_err() {
                // The queue has as many entries as the load is deep: it is over, which the caller sees.
                break;
            }
            progress = Turned::Busy;
        }
        progress
    }

    fn choose(&mut self) -> (u64, bool) {
        match self.load.work {
            Work::Random { read_percent, .. } => {
                let reads = match read_percent {
                    100.. => true,
                    0 => false,
                    percent => self.random.chance(u64::from(percent), 100),
                };
                (self.random.below(self.places), reads)
            }
            Work::Fill | Work::Check => {
                self.next_place += 1;
                (self.next_place - 1, self.load.work == Work::Check)
            }
        }
    }

    fn collect(&mut self, lane: &mut Lane) {
        let now = self.handle.precise_now();
        for outcome in lane.outcomes.drain(..) {
            let tag = u16::try_from(outcome.tag).unwrap_or(0);
            let (started, offset, reads) = lane.started[usize::from(tag)];
            self.histogram.record(now - started);
            let failure = match outcome.result {
                Ok(cqe) if cqe.status().is_success() => None,
                Ok(cqe) => Some(LoadFailure::Status(cqe.status())),
                Err(error) => Some(LoadFailure::Queue(error)),
            };
            if let Some(failure) = failure {
                self.report.note_failure(failure);
            } else {
                self.report.commands += 1;
                self.report.bytes += u64::from(self.load.bytes);
            }
            let buffer = outcome.payload.into_buffer();
            let buffer = buffer.unwrap_or_else(|| fresh(&self.load, offset));
            if failure.is_none() && reads && self.load.work == Work::Check {
                self.check(offset, &buffer);
            }
            lane.idle.push(buffer);
            lane.free_tags.push(tag);
        }
    }

    fn check(&mut self, offset: u64, read: &[u8]) {
        pattern(self.load.seed, offset, &mut self.scratch);
        let wrong = read.iter().zip(&self.scratch).position(|(read, written)| read != written);
        if let Some(at) = wrong {
            self.report.corrupt += 1;
            let at = offset + at as u64;
            self.report.first_corrupt = Some(self.report.first_corrupt.map_or(at, |first| first.min(at)));
        }
    }
}

/// A buffer with some content of its own.
fn fresh(load: &Load, number: u64) -> Buffer {
    let mut buffer = Buffer::zeroed(load.bytes as usize);
    pattern(load.seed, number * u64::from(load.bytes), &mut buffer);
    buffer
}
