use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::IoError;
use crate::histogram::{HistogramSnapshot, LatencyHistogram};
use crate::request::Operation;

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

/// What a device did for its consumers, over all channels and also those that are closed. Only grows, and may outlive the device:
/// one that takes its place goes on counting.
#[derive(Debug, Default)]
pub struct IoStats {
    channels: Mutex<Vec<Arc<ChannelStats>>>,
}

/// What was counted of one kind of request until one moment.
///
/// A request that the device rightly refused, that was aborted or that is to be tried again ([`IoError::is_fault`]) is in none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IoSnapshot {
    /// Latencies of what succeeded; a comparison that found other data did.
    pub latency: HistogramSnapshot,
    /// Bytes of the ranges of what succeeded.
    pub bytes: u64,
    /// Requests that failed by the device's fault.
    pub errors: u64,
}

impl IoSnapshot {
    /// Requests that ended, well or not.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.latency.count() + self.errors
    }
}

impl IoStats {
    /// What was counted of one kind. Not for a reactor: it looks at every bucket of every channel.
    #[must_use]
    pub fn snapshot(&self, kind: MeteredKind) -> IoSnapshot {
        let mut sum = IoSnapshot { latency: LatencyHistogram::default().snapshot(), bytes: 0, errors: 0 };
        let channels = self.lock().clone();
        for channel in channels {
            let stats = &channel.kinds[kind as usize];
            sum.latency.merge(&stats.latency.snapshot());
            sum.bytes += stats.bytes.load(Ordering::Relaxed);
            sum.errors += stats.errors.load(Ordering::Relaxed);
        }
        sum
    }

    /// Counters for a new channel. Those of a closed one go on: there are as many as there were channels at a time.
    pub(crate) fn for_channel(&self) -> ChannelMeter {
        let mut channels = self.lock();
        // Who takes what a closed channel left sees all that it counted.
        if let Some(left) = channels.iter().find(|stats| !stats.used.swap(true, Ordering::Acquire)) {
            return ChannelMeter { stats: Arc::clone(left) };
        }
        let stats = Arc::new(ChannelStats { used: AtomicBool::new(true), ..ChannelStats::default() });
        channels.push(Arc::clone(&stats));
        ChannelMeter { stats }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<ChannelStats>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one channel counted. Its reactor writes, any thread reads; reactors share no cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct ChannelStats {
    /// By a channel that is open.
    used: AtomicBool,
    kinds: [KindStats; 4],
}

#[derive(Debug, Default)]
struct KindStats {
    latency: LatencyHistogram,
    bytes: AtomicU64,
    errors: AtomicU64,
}

/// The one writer of a channel's counters.
#[derive(Debug)]
pub(crate) struct ChannelMeter {
    stats: Arc<ChannelStats>,
}

impl ChannelMeter {
    /// Counts the end of one request.
    pub(crate) fn record(
        &self,
        kind: MeteredKind,
        bytes: u64,
        latency: Duration,
        result: Result<(), IoError>,
    ) {
        let stats = &self.stats.kinds[kind as usize];
        match result {
            Ok(()) | Err(IoError::Miscompare) => {
                stats.latency.record(latency);
                add(&stats.bytes, bytes);
            }
            Err(error) if error.is_fault() => add(&stats.errors, 1),
            Err(_) => {}
        }
    }
}

impl Drop for ChannelMeter {
    fn drop(&mut self) {
        self.stats.used.store(false, Ordering::Release);
    }
}

/// Adds without a locked instruction: there is one writer.
fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_closed_channels_go_on_and_stay_as_many_as_channels_were() {
        let stats = IoStats::default();
        for _ in 0..3 {
            let (first, second) = (stats.for_channel(), stats.for_channel());
            for meter in [first, second] {
                meter.record(MeteredKind::Write, 512, Duration::from_micros(1), Ok(()));
            }
        }
        assert_eq!(stats.lock().len(), 2);
        let seen = stats.snapshot(MeteredKind::Write);
        assert_eq!((seen.operations(), seen.bytes, seen.errors), (6, 3072, 0));
    }

    #[test]
    fn only_faults_are_errors() {
        let stats = IoStats::default();
        let meter = stats.for_channel();
        for error in [IoError::Medium, IoError::Aborted, IoError::OutOfRange, IoError::NoMemory] {
            meter.record(MeteredKind::Read, 512, Duration::ZERO, Err(error));
        }
        meter.record(MeteredKind::Read, 512, Duration::ZERO, Err(IoError::Miscompare));
        let seen = stats.snapshot(MeteredKind::Read);
        assert_eq!((seen.operations(), seen.bytes, seen.errors), (2, 512, 1));
    }
}
