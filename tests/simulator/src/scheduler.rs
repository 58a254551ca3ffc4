//! Events on simulated time.
//!
//! Events that are due at the same instant come out in an order that the seed decides: that is the scheduler's freedom, and
//! a bug that depends on it is found by another seed.

use basalt_clock::{Instant, Random, SeededRandom};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;

#[derive(Debug)]
struct Due<E> {
    at: Instant,
    order: u64,
    sequence: u64,
    event: E,
}

impl<E> Due<E> {
    fn key(&self) -> (Instant, u64, u64) {
        (self.at, self.order, self.sequence)
    }
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Due<E> {}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Due<E> {
    /// The earliest is the greatest, because the heap hands out the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

/// A queue of events and the clock that they move.
#[derive(Debug)]
pub struct Scheduler<E> {
    now: Instant,
    due: BinaryHeap<Due<E>>,
    random: SeededRandom,
    sequence: u64,
}

impl<E> Scheduler<E> {
    /// An empty queue at the origin of time; `random` orders what is due at once.
    pub fn new(random: SeededRandom) -> Self {
        Self { now: Instant::ORIGIN, due: BinaryHeap::new(), random, sequence: 0 }
    }

    /// The present: when the event that came out last was due.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// How many events are waiting.
    pub fn waiting(&self) -> usize {
        self.due.len()
    }

    /// Makes `event` due at `at`, or now if that is past.
    pub fn at(&mut self, at: Instant, event: E) {
        let order = self.random.next_u64();
        self.sequence += 1;
        self.due.push(Due { at: at.max(self.now), order, sequence: self.sequence, event });
    }

    /// Makes `event` due after `delay`.
    pub fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now + delay, event);
    }

    /// Takes the next event and moves the clock to when it was due.
    pub fn take_next(&mut self) -> Option<E> {
        let due = self.due.pop()?;
        assert!(due.at >= self.now, "time went backwards");
        self.now = due.at;
        Some(due.event)
    }

    /// When the next event is due.
    pub fn next_at(&self) -> Option<Instant> {
        self.due.peek().map(|due| due.at)
    }

    /// Moves the clock without an event.
    ///
    /// # Panics
    /// If that would skip an event or go back.
    pub fn advance_to(&mut self, at: Instant) {
        assert!(at >= self.now && self.next_at().is_none_or(|next| next >= at), "an event would be skipped");
        self.now = at;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drained(seed: u64) -> Vec<u32> {
        let mut scheduler = Scheduler::new(SeededRandom::new(seed));
        for event in 0..20 {
            scheduler.after(Duration::from_millis(5), event);
        }
        std::iter::from_fn(|| scheduler.take_next()).collect()
    }

    #[test]
    fn events_come_in_time_order_and_the_clock_follows() {
        let mut scheduler = Scheduler::new(SeededRandom::new(1));
        scheduler.after(Duration::from_millis(30), "late");
        scheduler.after(Duration::from_millis(10), "early");
        assert_eq!(scheduler.take_next(), Some("early"));
        assert_eq!(scheduler.now(), Instant::ORIGIN + Duration::from_millis(10));
        scheduler.at(Instant::ORIGIN, "past");
        assert_eq!(scheduler.take_next(), Some("past"));
        assert_eq!(scheduler.now(), Instant::ORIGIN + Duration::from_millis(10));
        assert_eq!((scheduler.take_next(), scheduler.take_next()), (Some("late"), None));
    }

    #[test]
    fn the_seed_orders_what_is_due_at_once() {
        assert_eq!(drained(1), drained(1));
        assert_ne!(drained(1), drained(2));
        let mut sorted = drained(3);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
    }

    #[test]
    #[should_panic(expected = "skipped")]
    fn the_clock_cannot_jump_over_an_event() {
        let mut scheduler = Scheduler::new(SeededRandom::new(1));
        scheduler.after(Duration::from_millis(1), ());
        scheduler.advance_to(Instant::ORIGIN + Duration::from_millis(2));
    }
}
