use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use basalt_clock::Instant;

use crate::handle::Handle;

/// Names a timer; unique within its reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimerKey(Instant, u64);

/// The reactor's timers in the order in which they fire: by time, then by age.
#[derive(Default)]
pub(crate) struct Timers {
    pending: BTreeMap<TimerKey, Waker>,
    made: u64,
    /// Moments at which a turn is wanted, without a task that waits for it. Whoever wants the same one again adds nothing.
    turns: BTreeSet<Instant>,
}

impl Timers {
    pub(crate) fn insert(&mut self, deadline: Instant, waker: Waker) -> TimerKey {
        self.made += 1;
        let key = TimerKey(deadline, self.made);
        self.pending.insert(key, waker);
        key
    }

    /// Replaces the waker of a pending timer; false if it fired already.
    fn update(&mut self, key: TimerKey, waker: &Waker) -> bool {
        match self.pending.get_mut(&key) {
            Some(current) => {
                current.clone_from(waker);
                true
            }
            None => false,
        }
    }

    fn remove(&mut self, key: TimerKey) {
        self.pending.remove(&key);
    }

    pub(crate) fn want_turn(&mut self, at: Instant) {
        self.turns.insert(at);
    }

    /// When the next timer fires.
    pub(crate) fn next(&self) -> Option<Instant> {
        let first = self.pending.first_key_value().map(|(key, _)| key.0);
        match (first, self.turns.first().copied()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes the waker of one timer that is due.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        let entry = self.pending.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// True once when a wanted turn is due.
    pub(crate) fn turn_due(&mut self, now: Instant) -> bool {
        let mut due = false;
        while self.turns.first().is_some_and(|at| *at <= now) {
            self.turns.pop_first();
            due = true;
        }
        due
    }
}

/// Ends at a point in time. Dropping it cancels the timer.
#[must_use = "a sleep does nothing unless it is awaited"]
pub struct Sleep {
    handle: Handle,
    deadline: Instant,
    key: Option<TimerKey>,
}

impl Sleep {
    pub(crate) fn new(handle: Handle, deadline: Instant) -> Self {
        Self { handle, deadline, key: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.handle.now() >= self.deadline {
            return Poll::Ready(());
        }
        let deadline = self.deadline;
        let updated = self.key.is_some_and(|key| self.handle.timers().update(key, context.waker()));
        if !updated {
            let key = self.handle.timers().insert(deadline, context.waker().clone());
            self.key = Some(key);
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.handle.timers().remove(key);
        }
    }
}

impl std::fmt::Debug for Sleep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
