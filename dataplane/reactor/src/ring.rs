use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bounded queue from many threads to one, after Dmitry Vyukov's bounded MPMC queue. No locks, no allocation per message.
pub(crate) struct Ring<T> {
    slots: Box<[Slot<T>]>,
    mask: usize,
    /// Next position to write.
    tail: Padded,
    /// Next position to read.
    head: Padded,
}

#[repr(align(128))]
struct Padded(AtomicUsize);

struct Slot<T> {
    /// Equal to a position: free for the writer of that position. One more: filled for its reader.
    turn: AtomicUsize,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: a slot's value is touched only by the thread that won its position by compare-and-swap, and handed to the next one
// through `turn` with release and acquire; values move between threads, so `T` must be `Send`.
unsafe impl<T: Send> Sync for Ring<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T> Ring<T> {
    /// A ring for `capacity` messages, rounded up to a power of two.
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(2).next_power_of_two();
        let slot = |position| Slot {
            turn: AtomicUsize::new(position),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        };
        Self {
            slots: (0..capacity).map(slot).collect(),
            mask: capacity - 1,
            tail: Padded(AtomicUsize::new(0)),
            head: Padded(AtomicUsize::new(0)),
        }
    }

    /// Appends a message; hands it back if the ring is full.
    pub(crate) fn push(&self, value: T) -> Result<(), T> {
        let mut position = self.tail.0.load(Ordering::Relaxed);
        loop {
            let slot = &self.slots[position & self.mask];
            let turn = slot.turn.load(Ordering::Acquire);
            if turn == position {
                let next = position.wrapping_add(1);
                let won =
                    self.tail.0.compare_exchange_weak(position, next, Ordering::Relaxed, Ordering::Relaxed);
                match won {
                    Ok(_) => {
                        // SAFETY: the exchange gave this position to this thread alone, and `turn` says that the slot is
                        // empty.
                        unsafe { (*slot.value.get()).write(value) };
                        slot.turn.store(next, Ordering::Release);
                        return Ok(());
                    }
                    Err(current) => position = current,
                }
            } else if turn.wrapping_sub(position).cast_signed() < 0 {
                return Err(value);
            } else {
                position = self.tail.0.load(Ordering::Relaxed);
            }
        }
    }

    /// Takes the oldest message.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut position = self.head.0.load(Ordering::Relaxed);
        loop {
            let slot = &self.slots[position & self.mask];
            let turn = slot.turn.load(Ordering::Acquire);
            let filled = position.wrapping_add(1);
            if turn == filled {
                let won =
                    self.head.0.compare_exchange_weak(position, filled, Ordering::Relaxed, Ordering::Relaxed);
                match won {
                    Ok(_) => {
                        // SAFETY: the exchange gave this position to this thread alone, and `turn` says that the slot is
                        // filled; storing the next turn afterwards makes it empty.
                        let value = unsafe { (*slot.value.get()).assume_init_read() };
                        slot.turn.store(position.wrapping_add(self.mask + 1), Ordering::Release);
                        return Some(value);
                    }
                    Err(current) => position = current,
                }
            } else if turn.wrapping_sub(filled).cast_signed() < 0 {
                return None;
            } else {
                position = self.head.0.load(Ordering::Relaxed);
            }
        }
    }

    /// Messages in the ring, about.
    pub(crate) fn len(&self) -> usize {
        self.tail.0.load(Ordering::Relaxed).saturating_sub(self.head.0.load(Ordering::Relaxed))
    }

    /// True if a message is there or is being written.
    pub(crate) fn is_empty(&self) -> bool {
        self.tail.0.load(Ordering::SeqCst) == self.head.0.load(Ordering::SeqCst)
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn first_in_first_out_until_full() {
        let ring = Ring::new(4);
        for round in 0..10 {
            for n in 0..4 {
                ring.push(round * 4 + n).unwrap();
            }
            assert_eq!(ring.push(99), Err(99));
            assert_eq!(ring.len(), 4);
            for n in 0..4 {
                assert_eq!(ring.pop(), Some(round * 4 + n));
            }
            assert!(ring.pop().is_none() && ring.is_empty());
        }
    }

    #[test]
    fn nothing_is_lost_or_doubled_between_threads() {
        const PER_WRITER: u64 = 20_000;
        let ring = Arc::new(Ring::new(64));
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let ring = Arc::clone(&ring);
                thread::spawn(move || {
                    for n in 0..PER_WRITER {
                        let mut message = Box::new((writer, n));
                        while let Err(back) = ring.push(message) {
                            message = back;
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut next = [0; 3];
        while next.iter().sum::<u64>() < 3 * PER_WRITER {
            match ring.pop() {
                Some(message) => {
                    let (writer, n): (usize, u64) = *message;
                    assert_eq!(next[writer], n);
                    next[writer] += 1;
                }
                None => thread::yield_now(),
            }
        }
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert!(ring.pop().is_none());
    }

    #[test]
    fn messages_left_behind_are_dropped() {
        let token = Arc::new(());
        let ring = Ring::new(8);
        ring.push(Arc::clone(&token)).unwrap();
        drop(ring);
        assert_eq!(Arc::strong_count(&token), 1);
    }
}
