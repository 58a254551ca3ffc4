use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::IoError;
use crate::request::Operation;

/// What failed on a device by its own fault, over all channels; and what succeeded since, while somebody is to find out whether it
/// works again. Only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceFaults {
    /// Reads and compares.
    pub reads: FaultCounts,
    /// Writes, zeroing and flushes.
    pub writes: FaultCounts,
}

/// Faults of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Requests that failed.
    pub failed: u64,
    /// Requests that succeeded after the first failure; not counted once [`crate::DeviceInfo::trust`] was called.
    pub succeeded: u64,
    /// How the last one failed.
    pub last: Option<IoError>,
}

/// The counters of a device. As long as nothing fails, a request costs one load of a flag that nobody writes.
#[derive(Debug, Default)]
pub(crate) struct FaultLog {
    suspected: AtomicBool,
    reads: Direction,
    writes: Direction,
}

#[derive(Debug, Default)]
struct Direction {
    failed: AtomicU64,
    succeeded: AtomicU64,
    last: Mutex<Option<IoError>>,
}

impl FaultLog {
    /// Notes how a request ended. `read_only`: the device is known to take no writes.
    pub(crate) fn note(&self, operation: Operation, result: Result<(), IoError>, read_only: bool) {
        match result {
            Ok(()) if !self.suspected.load(Ordering::Relaxed) => {}
            Ok(()) => {
                if let Some(direction) = self.direction(operation) {
                    direction.succeeded.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) if error.is_fault() || (error == IoError::ReadOnly && !read_only) => {
                self.failed(operation, error);
            }
            Err(_) => {}
        }
    }

    #[cold]
    fn failed(&self, operation: Operation, error: IoError) {
        let Some(direction) = self.direction(operation) else { return };
        *direction.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        direction.failed.fetch_add(1, Ordering::Relaxed);
        self.suspected.store(true, Ordering::Relaxed);
    }

    /// None for an unmap: what it does not give back harms nobody.
    fn direction(&self, operation: Operation) -> Option<&Direction> {
        match operation {
            Operation::Read | Operation::Compare => Some(&self.reads),
            Operation::Write { .. }
            | Operation::WriteZeroes { .. }
            | Operation::CompareAndWrite { .. }
            | Operation::Flush => Some(&self.writes),
            Operation::Unmap => None,
        }
    }

    pub(crate) fn trust(&self) {
        self.suspected.store(false, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> DeviceFaults {
        DeviceFaults { reads: self.reads.counts(), writes: self.writes.counts() }
    }
}

impl Direction {
    fn counts(&self) -> FaultCounts {
        FaultCounts {
            failed: self.failed.load(Ordering::Relaxed),
            succeeded: self.succeeded.load(Ordering::Relaxed),
            last: *self.last.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successes_count_only_while_a_device_is_suspected() {
        let log = FaultLog::default();
        let write = Operation::Write { fua: false };
        log.note(write, Ok(()), false);
        assert_eq!(log.counts(), DeviceFaults::default());
        log.note(write, Err(IoError::Medium), false);
        log.note(Operation::Flush, Ok(()), false);
        log.note(Operation::Read, Ok(()), false);
        let counts = log.counts();
        assert_eq!(counts.writes, FaultCounts { failed: 1, succeeded: 1, last: Some(IoError::Medium) });
        assert_eq!(counts.reads, FaultCounts { succeeded: 1, ..FaultCounts::default() });
        log.trust();
        log.note(write, Ok(()), false);
        assert_eq!(log.counts(), counts);
    }

    #[test]
    fn only_faults_are_counted() {
        let log = FaultLog::default();
        let write = Operation::Write { fua: false };
        log.note(write, Err(IoError::ReadOnly), true);
        log.note(write, Err(IoError::OutOfRange), false);
        log.note(Operation::Compare, Err(IoError::Miscompare), false);
        log.note(Operation::Unmap, Err(IoError::Medium), false);
        assert_eq!(log.counts(), DeviceFaults::default());
        log.note(write, Err(IoError::ReadOnly), false);
        assert_eq!(log.counts().writes.last, Some(IoError::ReadOnly));
    }
}
