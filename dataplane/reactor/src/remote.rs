use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, ThreadId};

use crate::driver::Wake;
use crate::executor::TaskId;
use crate::handle::Handle;
use crate::ring::Ring;
use crate::stats::{ReactorStats, StatsSnapshot};

/// Work for a reactor from another thread.
pub(crate) type Message = Box<dyn FnOnce(&Handle) + Send>;

/// Why a message did not reach a reactor. It was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The ring is full: the reactor is overloaded; try again later.
    #[error("the reactor's message ring is full")]
    Full,
    /// The reactor has ended.
    #[error("the reactor has ended")]
    Ended,
}

/// What a reactor shares with other threads.
pub(crate) struct Shared {
    pub(crate) ring: Ring<Message>,
    /// Tasks that were woken, in the order in which they were. The lock is uncontended but for wakes from other threads.
    ready: Mutex<VecDeque<TaskId>>,
    /// True while the reactor sleeps or is about to: whoever brings work must wake it.
    sleeping: AtomicBool,
    waker: Arc<dyn Wake>,
    pub(crate) stop: AtomicBool,
    pub(crate) ended: AtomicBool,
    home: ThreadId,
    pub(crate) stats: ReactorStats,
}

impl Shared {
    /// Made on the reactor's own thread.
    pub(crate) fn new(capacity: usize, waker: Arc<dyn Wake>) -> Self {
        Self {
            ring: Ring::new(capacity),
            ready: Mutex::default(),
            sleeping: AtomicBool::new(false),
            waker,
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            home: thread::current().id(),
            stats: ReactorStats::default(),
        }
    }

    /// Drops what waits in the ring.
    pub(crate) fn drop_messages(&self) {
        while let Some(message) = self.ring.pop() {
            drop(message);
        }
    }

    /// Wakes the reactor if it sleeps. Call after the work is visible.
    pub(crate) fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) && self.sleeping.swap(false, Ordering::SeqCst) {
            self.stats.woken();
            self.waker.wake();
        }
    }

    /// Announces that the reactor is about to sleep; false if there is work, so that it must not.
    pub(crate) fn may_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let idle = self.ring.is_empty() && self.ready().is_empty() && !self.stop.load(Ordering::SeqCst);
        if !idle {
            self.awake();
        }
        idle
    }

    /// Ends what `may_sleep` announced.
    pub(crate) fn awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    pub(crate) fn make_ready(&self, task: TaskId) {
        self.ready().push_back(task);
        if thread::current().id() != self.home {
            self.wake();
        }
    }

    pub(crate) fn take_ready(&self) -> Option<TaskId> {
        self.ready().pop_front()
    }

    pub(crate) fn ready_len(&self) -> usize {
        self.ready().len()
    }

    fn ready(&self) -> std::sync::MutexGuard<'_, VecDeque<TaskId>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reactor as other threads see it: they post work onto its bounded ring. Cheap to clone.
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
}

impl Remote {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Runs `work` on the reactor in one of its next turns. Messages of one thread keep their order.
    ///
    /// # Errors
    /// [`PostError::Full`] and [`PostError::Ended`]; `work` is dropped then. It is also dropped without being run if the
    /// reactor ends before its turn.
    pub fn post(&self, work: impl FnOnce(&Handle) + Send + 'static) -> Result<(), PostError> {
        if self.shared.ended.load(Ordering::SeqCst) {
            return Err(PostError::Ended);
        }
        self.shared.ring.push(Box::new(work)).map_err(|_| PostError::Full)?;
        if self.shared.ended.load(Ordering::SeqCst) {
            // It ended meanwhile and may not have seen the message: whoever waits for it must learn that it is dropped.
            self.shared.drop_messages();
            return Err(PostError::Ended);
        }
        self.shared.wake();
        Ok(())
    }

    /// Makes [`crate::Reactor::run`] return after the current turn.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
    }

    /// The reactor's counters.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.shared.stats.snapshot(self.shared.ring.len())
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("ring_depth", &self.shared.ring.len()).finish_non_exhaustive()
    }
}
