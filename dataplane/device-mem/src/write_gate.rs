//! Keeps writes of other reactors out while one compares and writes.
//!
//! A write only marks its own channel and looks at one flag; what waits is the compare-and-write, which is rare.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{hint, thread};

/// Looks at a channel's mark before the thread is given up: its reactor may share this core.
const SPINS_MAX: u32 = 1 << 10;

/// The channels of one device that write.
#[derive(Debug, Default)]
pub(crate) struct WriteGate {
    /// A compare-and-write runs or is about to. Changed only by who holds `writers`.
    closed: AtomicBool,
    writers: Mutex<Vec<Arc<Mark>>>,
}

/// One channel's mark, on a cache line of its own: a write happens.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Mark(AtomicBool);

impl WriteGate {
    fn writers(&self) -> MutexGuard<'_, Vec<Arc<Mark>>> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One channel's right to write.
#[derive(Debug)]
pub(crate) struct Writer {
    gate: Arc<WriteGate>,
    mark: Arc<Mark>,
}

impl Writer {
    pub(crate) fn new(gate: Arc<WriteGate>) -> Self {
        let mark = Arc::<Mark>::default();
        gate.writers().push(Arc::clone(&mark));
        Self { gate, mark }
    }

    /// Runs `change`, a plain write.
    pub(crate) fn write<T>(&self, change: impl FnOnce() -> T) -> T {
        {
            let _writing = Raised::new(&self.mark.0);
            if !self.gate.closed.load(Ordering::SeqCst) {
                return change();
            }
        }
        let _turn = self.gate.writers();
        change()
    }

    /// Runs `change` while no other channel changes the device: waits for writes under way and holds new ones off.
    pub(crate) fn exclusively<T>(&self, change: impl FnOnce() -> T) -> T {
        let writers = self.gate.writers();
        let _closed = Raised::new(&self.gate.closed);
        for mark in writers.iter() {
            let mut spins = 0;
            // The store of `closed` and these loads pair with the store and load of `Writer::write`: one of both sides
            // sees the other.
            while mark.0.load(Ordering::SeqCst) {
                spins += 1;
                if spins < SPINS_MAX { hint::spin_loop() } else { thread::yield_now() }
            }
        }
        change()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.gate.writers().retain(|mark| !Arc::ptr_eq(mark, &self.mark));
    }
}

/// A flag that is up until this is dropped.
struct Raised<'a>(&'a AtomicBool);

impl<'a> Raised<'a> {
    fn new(flag: &'a AtomicBool) -> Self {
        flag.store(true, Ordering::SeqCst);
        Self(flag)
    }
}

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicU64;

    use super::*;

    const SWAPS: u64 = 2_000;

    /// Adds one in two steps, between which other threads run.
    fn swap(value: &AtomicU64) {
        let old = value.load(Ordering::Relaxed);
        thread::yield_now();
        value.store(old + 1, Ordering::Relaxed);
    }

    #[test]
    fn no_write_falls_between_comparison_and_write() {
        /// One plain write; what is below counts swaps since.
        const WRITE: u64 = 1 << 32;
        let (gate, start) = (Arc::<WriteGate>::default(), Barrier::new(2));
        let (value, done) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                let writer = Writer::new(Arc::clone(&gate));
                start.wait();
                for _ in 0..SWAPS {
                    writer.exclusively(|| swap(&value));
                }
                done.store(true, Ordering::Release);
            });
            let writer = Writer::new(Arc::clone(&gate));
            start.wait();
            let mut number = 0;
            while !done.load(Ordering::Acquire) {
                number += 1;
                writer.write(|| {
                    value.store(number * WRITE, Ordering::Relaxed);
                    thread::yield_now();
                    assert_eq!(value.load(Ordering::Relaxed), number * WRITE, "changed during a write");
                });
                assert_eq!(value.load(Ordering::Relaxed) / WRITE, number, "an older write came back");
            }
        });
        assert!(gate.writers().is_empty(), "channels that close leave nothing behind");
    }

    #[test]
    fn swaps_are_one_after_the_other() {
        let (gate, start) = (Arc::<WriteGate>::default(), Barrier::new(2));
        let value = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let writer = Writer::new(Arc::clone(&gate));
                    start.wait();
                    for _ in 0..SWAPS {
                        writer.exclusively(|| swap(&value));
                    }
                });
            }
        });
        assert_eq!(value.into_inner(), 2 * SWAPS);
    }
}
