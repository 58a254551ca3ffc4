//! A generator of load for measurements of any device.

use std::fmt;
use std::time::Duration;

use basalt_clock::{Instant, Random, SeededRandom};
use basalt_dma::{Buffer, Payload};
use basalt_reactor::{Handle, Progress};

use crate::device::{BlockDevice, Channel, OpenError};
use crate::histogram::{HistogramSnapshot, LatencyHistogram};
use crate::request::{Completion, Operation, Rejected, Request};
use crate::units::{BlockCount, Lba};

/// What the load looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Of a hundred requests so many read, the others write.
    pub read_percent: u8,
    /// Requests under way at a time.
    pub depth: usize,
    /// Blocks per request.
    pub blocks: BlockCount,
    /// The requests stay within so many blocks from the device's start.
    pub working_set: BlockCount,
    /// One after the other instead of at random.
    pub sequential: bool,
    /// Reads bring memory of their own instead of letting the device choose.
    pub own_memory: bool,
    /// Seed of the random addresses.
    pub seed: u64,
}

/// What a load achieved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadReport {
    /// Requests that succeeded.
    pub completed: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// From submission to completion, in steps of the reactor's turns.
    pub latency: HistogramSnapshot,
}

/// A load on one reactor: call [`Load::poll`] in a poller.
pub struct Load {
    handle: Handle,
    channel: Box<dyn Channel>,
    options: LoadOptions,
    random: SeededRandom,
    positions: u64,
    next: u64,
    slots: Vec<Slot>,
    /// Slots without a request under way.
    ready: Vec<usize>,
    completions: Vec<Completion>,
    stopping: bool,
    completed: u64,
    failed: u64,
    latency: LatencyHistogram,
    request_bytes: u64,
}

struct Slot {
    began: Instant,
    buffer: Buffer,
}

impl Load {
    /// A load on a device that begins with the first poll.
    ///
    /// # Errors
    /// If the device gives no channel.
    ///
    /// # Panics
    /// If the options ask for nothing: no depth, no blocks, or a working set smaller than a request or larger than the device.
    pub fn new(handle: &Handle, device: &dyn BlockDevice, options: LoadOptions) -> Result<Self, OpenError> {
        let positions = options.working_set.0 / options.blocks.0;
        assert!(options.depth > 0 && positions > 0, "a load of nothing");
        assert!(options.working_set <= device.info().blocks(), "the working set exceeds the device");
        let request_bytes = device.info().block_size().bytes_of(options.blocks);
        let mut random = SeededRandom::new(options.seed);
        let owns = options.own_memory || options.read_percent < 100;
        let slot = |_| {
            let len = if owns { usize::try_from(request_bytes).unwrap_or(0) } else { 0 };
            let mut buffer = Buffer::zeroed(len);
            random.fill(&mut buffer);
            Slot { began: Instant::ORIGIN, buffer }
        };
        let slots: Vec<Slot> = (0..options.depth).map(slot).collect();
        Ok(Self {
            handle: handle.clone(),
            channel: device.open(handle)?,
            random,
            positions,
            next: 0,
            ready: (0..slots.len()).collect(),
            slots,
            completions: Vec::with_capacity(options.depth),
            stopping: false,
            completed: 0,
            failed: 0,
            latency: LatencyHistogram::default(),
            request_bytes,
            options,
        })
    }

    /// Collects what is done and submits anew.
    pub fn poll(&mut self) -> Progress {
        let now = self.handle.now();
        let mut completions = std::mem::take(&mut self.completions);
        let collected = self.channel.poll(&mut completions);
        for completion in completions.drain(..) {
            self.finish(completion, now);
        }
        self.completions = completions;
        let mut submitted = 0;
        while !self.stopping
            && let Some(place) = self.ready.pop()
        {
            let request = self.request(place);
            self.slots[place].began = now;
            if let Err(Rejected(request)) = self.channel.submit(request) {
                self.keep(place, request.payload);
                break;
            }
            submitted += 1;
        }
        Progress::busy_if(collected + submitted > 0)
    }

    fn request(&mut self, place: usize) -> Request {
        let position = if self.options.sequential {
            self.next = (self.next + 1) % self.positions;
            self.next
        } else {
            self.random.below(self.positions)
        };
        let lba = Lba(position * self.options.blocks.0);
        let reads = self.options.read_percent >= 100
            || (self.options.read_percent > 0
                && self.random.below(100) < u64::from(self.options.read_percent));
        let payload = if reads && !self.options.own_memory {
            Payload::None
        } else {
            Payload::Buffer(std::mem::take(&mut self.slots[place].buffer))
        };
        let operation = if reads { Operation::Read } else { Operation::Write { fua: false } };
        Request { tag: place as u64, operation, lba, blocks: self.options.blocks, payload }
    }

    /// Makes a slot free again, with its memory.
    fn keep(&mut self, place: usize, payload: Payload) {
        if self.slots[place].buffer.capacity() == 0
            && let Some(buffer) = payload.into_buffer()
        {
            self.slots[place].buffer = buffer;
        }
        self.ready.push(place);
    }

    fn finish(&mut self, completion: Completion, now: Instant) {
        let place = usize::try_from(completion.tag).unwrap_or(usize::MAX);
        match completion.result {
            Ok(()) => self.completed += 1,
            Err(_) => self.failed += 1,
        }
        self.latency.record(now - self.slots[place].began);
        self.keep(place, completion.payload);
    }

    /// Submits nothing more.
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// True if nothing is under way.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.ready.len() == self.slots.len()
    }

    /// What was achieved so far.
    #[must_use]
    pub fn report(&self) -> LoadReport {
        LoadReport {
            completed: self.completed,
            failed: self.failed,
            bytes: self.completed * self.request_bytes,
            latency: self.latency.snapshot(),
        }
    }

    /// Begins to count anew: after a warm-up.
    pub fn reset_counts(&mut self) {
        (self.completed, self.failed, self.latency) = (0, 0, LatencyHistogram::default());
    }
}

impl LoadReport {
    /// Requests per second over `elapsed`, rounded down.
    #[must_use]
    pub fn per_second(&self, elapsed: Duration) -> u64 {
        let nanos = elapsed.as_nanos().max(1);
        u64::try_from(u128::from(self.completed) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Load").field("options", &self.options).finish_non_exhaustive()
    }
}
