use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basalt_clock::Instant;
use basalt_reactor::Handle;

use crate::device::{BlockDevice, Channel, DeviceInfo, OpenError};
use crate::histogram::{HistogramSnapshot, LatencyHistogram};
use crate::request::{Completion, Operation, Rejected, Request};

/// Kinds of request that are measured apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MeteredKind {
    /// Reads and compares.
    Read,
    /// Writes, compare-and-writes included.
    Write,
    /// Flushes.
    Flush,
    /// Unmaps and zeroing.
    Trim,
}

impl MeteredKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Read, Self::Write, Self::Flush, Self::Trim];

    /// The kind of an operation.
    #[must_use]
    pub fn of(operation: Operation) -> Self {
        match operation {
            Operation::Read | Operation::Compare => Self::Read,
            Operation::Write { .. } | Operation::CompareAndWrite { .. } => Self::Write,
            Operation::Flush => Self::Flush,
            Operation::Unmap | Operation::WriteZeroes { .. } => Self::Trim,
        }
    }

    /// Name for metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
        }
    }
}

/// What one channel measured. Its reactor writes, any thread reads.
#[derive(Debug, Default)]
struct Meter {
    latencies: [LatencyHistogram; 4],
    /// Requests that failed, as a histogram of their latencies.
    failures: LatencyHistogram,
}

/// A layer that measures how long requests take, in steps of the reactor's turns, without locks or allocation per request.
pub struct MeteredDevice {
    inner: Arc<dyn BlockDevice>,
    meters: Arc<Mutex<Vec<Arc<Meter>>>>,
}

impl MeteredDevice {
    /// `inner`, measured from now on.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self { inner, meters: Arc::default() }
    }

    /// Latencies of one kind over all channels, also of those that are closed. Failed requests are not in it.
    #[must_use]
    pub fn latency(&self, kind: MeteredKind) -> HistogramSnapshot {
        self.sum(|meter| meter.latencies[kind as usize].snapshot())
    }

    /// Latencies of the requests that failed.
    #[must_use]
    pub fn failures(&self) -> HistogramSnapshot {
        self.sum(|meter| meter.failures.snapshot())
    }

    fn sum(&self, of: impl Fn(&Meter) -> HistogramSnapshot) -> HistogramSnapshot {
        let mut sum = LatencyHistogram::default().snapshot();
        lock(&self.meters).iter().for_each(|meter| sum.merge(&of(meter)));
        sum
    }
}

fn lock(meters: &Mutex<Vec<Arc<Meter>>>) -> MutexGuard<'_, Vec<Arc<Meter>>> {
    meters.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BlockDevice for MeteredDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        let inner = self.inner.open(handle)?;
        let mut meters = lock(&self.meters);
        // A meter that no channel uses any more goes on counting for the next one: the list stays as long as channels are many.
        let unused = meters.iter().find(|meter| Arc::strong_count(meter) == 1);
        let meter = unused.map_or_else(Arc::<Meter>::default, Arc::clone);
        if Arc::strong_count(&meter) == 1 {
            meters.push(Arc::clone(&meter));
        }
        Ok(Box::new(MeteredChannel {
            inner,
            handle: handle.clone(),
            meter,
            slots: Vec::new(),
            free: Vec::new(),
        }))
    }
}

impl fmt::Debug for MeteredDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeteredDevice").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
struct Slot {
    tag: u64,
    began: Instant,
    kind: MeteredKind,
}

struct MeteredChannel {
    inner: Box<dyn Channel>,
    handle: Handle,
    meter: Arc<Meter>,
    slots: Vec<Slot>,
    free: Vec<usize>,
}

impl Channel for MeteredChannel {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        let slot =
            Slot { tag: request.tag, began: self.handle.now(), kind: MeteredKind::of(request.operation) };
        let place = match self.free.pop() {
            Some(place) => {
                self.slots[place] = slot;
                place
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        request.tag = place as u64;
        self.inner.submit(request).map_err(|Rejected(mut request)| {
            request.tag = slot.tag;
            self.free.push(place);
            Rejected(request)
        })
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        let count = self.inner.poll(completions);
        let now = self.handle.now();
        for completion in &mut completions[before..] {
            let place = usize::try_from(completion.tag).ok().filter(|place| *place < self.slots.len());
            let Some(place) = place else {
                panic!("the device below completed a tag that it was never given")
            };
            let slot = self.slots[place];
            self.free.push(place);
            completion.tag = slot.tag;
            let histogram = match completion.result {
                Ok(()) => &self.meter.latencies[slot.kind as usize],
                Err(_) => &self.meter.failures,
            };
            histogram.record(now - slot.began);
        }
        count
    }

    fn abort(&mut self, tag: u64) {
        let under_way = |place: &usize| !self.free.contains(place);
        let places = (0..self.slots.len()).filter(|place| self.slots[*place].tag == tag).filter(under_way);
        for place in places.collect::<Vec<_>>() {
            self.inner.abort(place as u64);
        }
    }
}
