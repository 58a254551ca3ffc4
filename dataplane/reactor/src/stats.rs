use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Turns between two counts of pollers and tasks.
const SIZES_PERIOD: u64 = 256;

/// Counters of one reactor. It alone writes them, any thread reads them.
#[derive(Debug, Default)]
pub struct ReactorStats {
    busy_ns: AtomicU64,
    idle_ns: AtomicU64,
    turns: AtomicU64,
    busy_turns: AtomicU64,
    sleeps: AtomicU64,
    wakeups: AtomicU64,
    messages: AtomicU64,
    pollers: AtomicU64,
    tasks: AtomicU64,
}

/// What the counters were at one moment. Times in nanoseconds; all but `pollers`, `tasks` and `ring_depth` only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatsSnapshot {
    /// Time in turns that did something.
    pub busy_ns: u64,
    /// Time in turns that found nothing to do, and asleep.
    pub idle_ns: u64,
    /// Turns made.
    pub turns: u64,
    /// Turns that did something.
    pub busy_turns: u64,
    /// Times the reactor went to sleep in the kernel.
    pub sleeps: u64,
    /// Times another thread had to wake it.
    pub wakeups: u64,
    /// Messages taken from the ring.
    pub messages: u64,
    /// Registered pollers now.
    pub pollers: u64,
    /// Unfinished tasks now.
    pub tasks: u64,
    /// Messages waiting in the ring now.
    pub ring_depth: u64,
}

/// Adds without a locked instruction: there is one writer.
fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl ReactorStats {
    pub(crate) fn turn(&self, busy: bool, ns: u64) {
        add(&self.turns, 1);
        if busy {
            add(&self.busy_turns, 1);
            add(&self.busy_ns, ns);
        } else {
            add(&self.idle_ns, ns);
        }
    }

    /// True in some turns: the sizes need not be counted in each.
    pub(crate) fn wants_sizes(&self) -> bool {
        self.turns.load(Ordering::Relaxed).is_multiple_of(SIZES_PERIOD)
    }

    pub(crate) fn slept(&self, duration: Duration) {
        add(&self.sleeps, 1);
        add(&self.idle_ns, u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    pub(crate) fn woken(&self) {
        self.wakeups.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn took_messages(&self, count: u64) {
        add(&self.messages, count);
    }

    pub(crate) fn holds(&self, pollers: usize, tasks: usize) {
        self.pollers.store(pollers as u64, Ordering::Relaxed);
        self.tasks.store(tasks as u64, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self, ring_depth: usize) -> StatsSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StatsSnapshot {
            busy_ns: get(&self.busy_ns),
            idle_ns: get(&self.idle_ns),
            turns: get(&self.turns),
            busy_turns: get(&self.busy_turns),
            sleeps: get(&self.sleeps),
            wakeups: get(&self.wakeups),
            messages: get(&self.messages),
            pollers: get(&self.pollers),
            tasks: get(&self.tasks),
            ring_depth: ring_depth as u64,
        }
    }
}
