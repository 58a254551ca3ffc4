use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use basalt_clock::Instant;
use basalt_dma::BufferPool;

use crate::disk::DiskQueues;
use crate::driver::{DiskCompletion, Driver, Progress, SocketId};
use crate::executor::{Tasks, drop_all, run_ready};
use crate::handle::{Handle, Local, Pollers, drop_pollers, run_pollers};
use crate::remote::{Remote, Shared};
use crate::timer::Timers;
use crate::watch::Watches;

/// What a reactor does when there is nothing to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// Goes on looking for a while after the last work, then sleeps in the kernel. The while grows as long as sleeps turn out to
    /// be short, and shrinks to nothing while they are long.
    Adaptive {
        /// How long it goes on looking at most.
        spin: Duration,
    },
    /// Never sleeps: the lowest latency, for all of a core.
    Busy,
}

impl Default for Polling {
    fn default() -> Self {
        Self::Adaptive { spin: Duration::from_micros(50) }
    }
}

/// How a reactor is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReactorOptions {
    /// What to do when idle.
    pub polling: Polling,
    /// Messages that the ring from other threads holds; posting to a full one fails.
    pub ring_capacity: usize,
    /// Memory in bytes that the buffer pool may hold.
    pub buffer_bytes: usize,
}

impl Default for ReactorOptions {
    fn default() -> Self {
        Self { polling: Polling::default(), ring_capacity: 1024, buffer_bytes: 256 << 20 }
    }
}

/// What a turn did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Busy: another turn should follow at once.
    pub progress: Progress,
    /// When the next timer is due.
    pub next_timer: Option<Instant>,
}

/// Messages from other threads that one turn takes, so that they cannot starve I/O.
const MESSAGES_PER_TURN: usize = 64;

/// One thread's loop over everything that makes progress. Lives on the thread that made it.
pub struct Reactor {
    local: Rc<Local>,
    polling: Polling,
    reaped: Vec<DiskCompletion>,
    ready: Vec<SocketId>,
    /// End of the last busy turn.
    last_busy: Instant,
}

impl Reactor {
    /// A reactor on the current thread.
    #[must_use]
    pub fn new(driver: Box<dyn Driver>, options: &ReactorOptions) -> Self {
        let now = driver.now();
        let shared = Arc::new(Shared::new(options.ring_capacity, driver.waker()));
        let local = Local {
            driver: RefCell::new(driver),
            now: Cell::new(now),
            pollers: RefCell::new(Pollers::default()),
            tasks: RefCell::new(Tasks::default()),
            timers: RefCell::new(Timers::default()),
            disks: RefCell::new(DiskQueues::default()),
            watches: RefCell::new(Watches::default()),
            buffers: BufferPool::new(options.buffer_bytes),
            shared,
        };
        Self {
            local: Rc::new(local),
            polling: options.polling,
            reaped: Vec::new(),
            ready: Vec::new(),
            last_busy: now,
        }
    }

    /// What code on this reactor uses.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Rc::clone(&self.local))
    }

    /// What other threads use.
    #[must_use]
    pub fn remote(&self) -> Remote {
        Remote::new(Arc::clone(&self.local.shared))
    }

    /// One pass over everything, never blocking: completions and readiness, messages, timers, tasks, pollers.
    pub fn turn(&mut self) -> Turn {
        let local = &*self.local;
        let now = local.driver.borrow().now();
        local.now.set(now);
        let mut progress = {
            let mut driver = local.driver.borrow_mut();
            if local.buffers.regions_changed() {
                driver.memory_changed(&local.buffers.take_region_changes());
            }
            let progress = driver.poll(&mut self.reaped);
            driver.take_ready(&mut self.ready);
            progress
        };
        if !self.ready.is_empty() {
            local.watches.borrow_mut().deliver(&mut self.ready);
        }
        if !self.reaped.is_empty() {
            local.disks.borrow_mut().deliver(&mut self.reaped);
            progress = Progress::Busy;
        }
        progress = progress
            .or(self.take_messages())
            .or(fire_timers(local, now))
            .or(Progress::busy_if(run_ready(&local.tasks, &local.shared)))
            .or(run_pollers(&local.pollers))
            .or(Progress::busy_if(local.shared.ready_len() > 0));
        Turn { progress, next_timer: local.timers.borrow().next() }
    }

    /// Turns until [`Remote::stop`] or [`Handle::stop`] is called, sleeping as the options say. May be called again.
    pub fn run(&mut self) {
        let local = Rc::clone(&self.local);
        let stats = &local.shared.stats;
        // A turn lasts until the next one begins, so one look at the clock per turn is enough.
        let mut last: Option<(Instant, bool)> = None;
        let mut spin = Duration::ZERO;
        while !local.shared.stop.load(Ordering::Relaxed) {
            let turn = self.turn();
            let began = local.now.get();
            if let Some((earlier, busy)) = last {
                stats.turn(busy, nanos(earlier, began));
            }
            let busy = turn.progress == Progress::Busy;
            last = Some((began, busy));
            if busy {
                self.last_busy = began;
            } else if let Polling::Adaptive { spin: limit } = self.polling
                && began - self.last_busy >= spin
                && local.shared.may_sleep()
            {
                stats.holds(local.pollers.borrow().live(), local.tasks.borrow().len());
                local.driver.borrow_mut().wait(turn.next_timer);
                local.shared.awake();
                // The idle turn before it is a part of the rest.
                stats.turn(false, 0);
                let slept = local.driver.borrow().now() - began;
                stats.slept(slept);
                spin = next_spin(spin, limit, slept);
                last = None;
            }
            if stats.wants_sizes() {
                stats.holds(local.pollers.borrow().live(), local.tasks.borrow().len());
            }
        }
        local.shared.stop.store(false, Ordering::Relaxed);
    }

    fn take_messages(&self) -> Progress {
        let handle = self.handle();
        let mut taken = 0;
        while taken < MESSAGES_PER_TURN
            && let Some(message) = self.local.shared.ring.pop()
        {
            message(&handle);
            taken += 1;
        }
        if taken > 0 {
            self.local.shared.stats.took_messages(taken as u64);
        }
        Progress::busy_if(taken > 0)
    }
}

/// First while of looking after a short sleep.
const SPIN_FIRST: Duration = Duration::from_micros(10);

/// How long to look for work before the next sleep, after one of this length: had the reactor looked for `limit`, it would
/// have saved a short sleep but not a long one.
fn next_spin(spin: Duration, limit: Duration, slept: Duration) -> Duration {
    if slept < limit {
        (spin * 2).max(SPIN_FIRST).min(limit)
    } else {
        let half = spin / 2;
        if half < SPIN_FIRST { Duration::ZERO } else { half }
    }
}

fn nanos(from: Instant, until: Instant) -> u64 {
    until.as_nanos().saturating_sub(from.as_nanos())
}

fn fire_timers(local: &Local, now: Instant) -> Progress {
    let mut fired = local.timers.borrow_mut().turn_due(now);
    loop {
        let due = local.timers.borrow_mut().pop_due(now);
        let Some(waker) = due else { break };
        waker.wake();
        fired = true;
    }
    Progress::busy_if(fired)
}

impl Drop for Reactor {
    /// Tasks and pollers hold handles, which hold the reactor's state: this takes the ring of references apart.
    fn drop(&mut self) {
        self.local.shared.ended.store(true, Ordering::SeqCst);
        drop_all(&self.local.tasks);
        drop_pollers(&self.local.pollers);
        self.local.shared.drop_messages();
        drop_all(&self.local.tasks);
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").field("polling", &self.polling).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_grows_with_short_sleeps_and_ends_with_long_ones() {
        let limit = Duration::from_micros(50);
        let mut spin = Duration::ZERO;
        let mut seen = Vec::new();
        for slept in [1, 1, 1, 1, 49, 50, 1000, 1000, 3] {
            spin = next_spin(spin, limit, Duration::from_micros(slept));
            seen.push(spin.as_micros());
        }
        assert_eq!(seen, [10, 20, 40, 50, 50, 25, 12, 0, 10]);
        assert_eq!(next_spin(Duration::ZERO, Duration::ZERO, Duration::ZERO), Duration::ZERO);
    }
}
