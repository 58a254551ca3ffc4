//! How the connections of one listener are spread over the reactors that share it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basalt_reactor::{Remote, SharedListener};

use super::server::wake;

/// What an I/O queue counts against a connection that is none, or not yet.
const IO_QUEUE_WEIGHT: usize = 16;

/// How much a reactor has of connections; the reactors that share listeners with it read that.
#[derive(Debug, Clone, Default)]
pub(super) struct Burden(Arc<AtomicUsize>);

impl Burden {
    /// Tells what it has now.
    pub(super) fn set(&self, connections: usize, io_queues: usize) {
        self.0.store(connections + IO_QUEUE_WEIGHT * io_queues, Ordering::Relaxed);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The reactors that accept from one listener.
#[derive(Debug, Default)]
pub(super) struct Spread(Mutex<Vec<(Burden, Remote)>>);

impl Spread {
    fn reactors(&self) -> MutexGuard<'_, Vec<(Burden, Remote)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more reactor accepts.
    pub(super) fn join(&self, burden: &Burden, remote: Remote) {
        self.reactors().push((burden.clone(), remote));
    }

    /// A reactor accepts no more; what it left to others, or others to it, is theirs.
    pub(super) fn leave(&self, burden: &Burden) {
        let mut reactors = self.reactors();
        reactors.retain(|(other, _)| !other.is(burden));
        reactors.iter().for_each(|(_, remote)| wake(remote));
    }

    /// Wakes the reactor that has least to take a connection that waits, unless it is this one; whether it did. Asleep, that one would
    /// always be late.
    pub(super) fn leave_to_least(&self, burden: &Burden) -> bool {
        let reactors = self.reactors();
        let least = reactors.iter().min_by_key(|(other, _)| other.get());
        let other = least.filter(|(least, _)| least.get() < burden.get());
        if let Some((_, remote)) = other {
            wake(remote);
        }
        other.is_some()
    }
}

/// A hold of a listener for one more reactor, which shares its connections.
#[derive(Debug)]
pub struct SharedDoor {
    pub(super) listener: SharedListener,
    pub(super) spread: Arc<Spread>,
}
