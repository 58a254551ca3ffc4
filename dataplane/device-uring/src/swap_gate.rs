//! Holds writes off while a compare-and-write of any reactor reads, compares and writes.
//!
//! The disk is cut into stripes, so that writes elsewhere go on. A plain write only counts itself in its own channel and looks at one
//! word; what waits for others is the compare-and-write, which is rare.

use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const STRIPES: usize = 16;
/// Bytes of the disk after which the next stripe begins; they come round after the last.
const STRIPE_SHIFT: u32 = 20;

/// Which stripes a request touches, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stripes(u16);

impl Stripes {
    /// None: for what changes nothing.
    pub(crate) const NONE: Self = Self(0);

    /// Those of a range of bytes.
    pub(crate) fn of(offset: u64, length: u64) -> Self {
        let (first, last) = (offset >> STRIPE_SHIFT, (offset + length.max(1) - 1) >> STRIPE_SHIFT);
        if last - first >= STRIPES as u64 - 1 {
            return Self(u16::MAX);
        }
        Self((first..=last).fold(0, |mask, stripe| mask | 1 << (stripe % STRIPES as u64)))
    }

    fn each(self) -> impl Iterator<Item = usize> {
        (0..STRIPES).filter(move |stripe| self.0 >> stripe & 1 == 1)
    }
}

/// Writes of one channel that are with the disk, by stripe; on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Marks([AtomicU32; STRIPES]);

/// One disk's gate.
#[derive(Debug, Default)]
pub(crate) struct SwapGate {
    /// Stripes in which a compare-and-write runs or is about to.
    closed: AtomicU16,
    channels: Mutex<Vec<Arc<Marks>>>,
}

impl SwapGate {
    fn channels(&self) -> MutexGuard<'_, Vec<Arc<Marks>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One channel's part in a gate.
#[derive(Debug)]
pub(crate) struct Member {
    gate: Arc<SwapGate>,
    marks: Arc<Marks>,
    /// Stripes that this channel closed.
    closed: Stripes,
}

impl Member {
    pub(crate) fn new(gate: Arc<SwapGate>) -> Self {
        let marks = Arc::<Marks>::default();
        gate.channels().push(Arc::clone(&marks));
        Self { gate, marks, closed: Stripes::NONE }
    }

    /// A write begins, unless it has to wait for a compare-and-write.
    pub(crate) fn enter(&self, stripes: Stripes) -> bool {
        for stripe in stripes.each() {
            self.marks.0[stripe].fetch_add(1, Ordering::SeqCst);
        }
        // This and the count before pair with the change and the look of `close` and `is_quiet`: one of both sides sees the other.
        let free = self.gate.closed.load(Ordering::SeqCst) & stripes.0 == 0;
        if !free {
            self.leave(stripes);
        }
        free
    }

    /// A write that had begun has ended.
    pub(crate) fn leave(&self, stripes: Stripes) {
        for stripe in stripes.each() {
            self.marks.0[stripe].fetch_sub(1, Ordering::Release);
        }
    }

    /// Keeps new writes out of these stripes; false while another compare-and-write does.
    pub(crate) fn close(&mut self, stripes: Stripes) -> bool {
        let close = |closed: u16| (closed & stripes.0 == 0).then_some(closed | stripes.0);
        let done = self.gate.closed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, close).is_ok();
        if done {
            self.closed = stripes;
        }
        done
    }

    /// Whether no write is left in the stripes that this channel closed.
    pub(crate) fn is_quiet(&self) -> bool {
        let channels = self.gate.channels();
        channels
            .iter()
            .all(|marks| self.closed.each().all(|stripe| marks.0[stripe].load(Ordering::SeqCst) == 0))
    }

    /// Lets writes in again.
    pub(crate) fn open(&mut self) {
        self.gate.closed.fetch_and(!self.closed.0, Ordering::SeqCst);
        self.closed = Stripes::NONE;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.open();
        self.gate.channels().retain(|marks| !Arc::ptr_eq(marks, &self.marks));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_cover_their_range() {
        assert_eq!(Stripes::of(0, 512), Stripes(1));
        assert_eq!(Stripes::of((1 << 20) - 512, 1024), Stripes(0b11));
        assert_eq!(Stripes::of(15 << 20, 2 << 20), Stripes(0x8001));
        assert_eq!(Stripes::of(17 << 20, 1), Stripes(0b10));
        assert_eq!(Stripes::of(0, 15 << 20), Stripes(0x7fff));
        assert_eq!(Stripes::of(3, u64::MAX - 3), Stripes(u16::MAX));
    }

    #[test]
    fn swaps_wait_for_writes_and_hold_new_ones_off() {
        let gate = Arc::<SwapGate>::default();
        let (mut first, mut second) = (Member::new(Arc::clone(&gate)), Member::new(Arc::clone(&gate)));
        let (here, elsewhere) = (Stripes(1), Stripes(2));
        assert!(second.enter(here));
        assert!(first.close(here) && !first.is_quiet());
        assert!(!second.close(here) && second.close(elsewhere) && second.is_quiet());
        assert!(!second.enter(here) && !first.enter(elsewhere));
        second.leave(here);
        assert!(first.is_quiet());
        first.open();
        assert!(second.enter(here) && !second.enter(elsewhere));
        drop(second);
        assert!(first.enter(elsewhere), "a channel that closes opens the gate");
        assert_eq!(gate.channels().len(), 1);
    }
}
