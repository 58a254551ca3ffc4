//! That something changed which queues on other reactors must look at.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Called after every change, on the thread that made it: wakes reactors so that their queues look.
type Waker = Box<dyn Fn() + Send + Sync>;

/// Counts changes and wakes who must look.
pub(crate) struct Changes {
    version: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
}

impl Default for Changes {
    fn default() -> Self {
        Self { version: AtomicU64::new(1), wakers: Mutex::default() }
    }
}

impl Changes {
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn on_change(&self, wake: Waker) {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(wake);
    }

    /// Notes a change.
    pub(crate) fn note(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
        for wake in self.wakers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            wake();
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("version", &self.version()).finish_non_exhaustive()
    }
}
