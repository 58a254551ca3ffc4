//! When nothing can be under way any more that began before some moment.
//!
//! A channel looks up where a block lies and then sends a request there. Space that the look-up may have found must not be given to
//! anybody else before that request has ended. So each channel tells, without a lock, since which *epoch* its oldest request is
//! under way; whoever takes something out of a map begins a new epoch and waits until no channel is older.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// No request is under way.
const IDLE: u64 = u64::MAX;

/// The channels of all volumes of a pool.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    epoch: AtomicU64,
    /// Locked when a channel is opened and when somebody asks, never by a request.
    gates: Mutex<Vec<Arc<Gate>>>,
}

/// What one channel tells.
#[derive(Debug)]
struct Gate {
    oldest: AtomicU64,
    closed: AtomicBool,
}

/// The channel's side.
#[derive(Debug)]
pub(crate) struct LocalGate {
    gates: Arc<Gates>,
    gate: Arc<Gate>,
    /// Requests under way by epoch, the oldest first; no count is zero.
    under_way: VecDeque<(u64, u32)>,
}

impl Gates {
    fn gates(&self) -> MutexGuard<'_, Vec<Arc<Gate>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new channel's gate.
    pub(crate) fn open(self: &Arc<Self>) -> LocalGate {
        let gate = Arc::new(Gate { oldest: AtomicU64::new(IDLE), closed: AtomicBool::new(false) });
        self.gates().push(Arc::clone(&gate));
        LocalGate { gates: Arc::clone(self), gate, under_way: VecDeque::new() }
    }

    /// Begins an epoch: what was changed before is seen by every request of it.
    pub(crate) fn advance(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// True once no request is under way that began before this epoch.
    pub(crate) fn passed(&self, epoch: u64) -> bool {
        let mut gates = self.gates();
        gates
            .retain(|gate| !gate.closed.load(Ordering::SeqCst) || gate.oldest.load(Ordering::SeqCst) != IDLE);
        gates.iter().all(|gate| gate.oldest.load(Ordering::SeqCst) >= epoch)
    }
}

impl LocalGate {
    /// A request begins; what it looks up from now on stays until [`Self::leave`] with the answer.
    pub(crate) fn enter(&mut self) -> u64 {
        if let Some((newest, count)) = self.under_way.back_mut() {
            let epoch = self.gates.epoch.load(Ordering::Acquire);
            if *newest == epoch {
                *count += 1;
            } else {
                self.under_way.push_back((epoch, 1));
            }
            return epoch;
        }
        loop {
            let epoch = self.gates.epoch.load(Ordering::SeqCst);
            self.gate.oldest.store(epoch, Ordering::SeqCst);
            // Whoever began an epoch meanwhile may have looked at this gate before the store.
            if self.gates.epoch.load(Ordering::SeqCst) == epoch {
                self.under_way.push_back((epoch, 1));
                return epoch;
            }
        }
    }

    /// A request that began in this epoch has ended.
    pub(crate) fn leave(&mut self, epoch: u64) {
        let at = self.under_way.iter().position(|(other, _)| *other == epoch);
        let at = at.expect("a request that ends has begun");
        self.under_way[at].1 -= 1;
        if self.under_way[at].1 == 0 {
            self.under_way.remove(at);
            if at == 0 {
                let oldest = self.under_way.front().map_or(IDLE, |(epoch, _)| *epoch);
                self.gate.oldest.store(oldest, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for LocalGate {
    fn drop(&mut self) {
        // A gate that is dropped with requests under way stays in the way for good: nobody will tell when they ended.
        self.gate.closed.store(true, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_has_passed_when_older_requests_have_ended() {
        let gates = Arc::new(Gates::default());
        let (mut a, mut b) = (gates.open(), gates.open());
        let first = a.enter();
        let epoch = gates.advance();
        assert!(!gates.passed(epoch));
        let later = a.enter();
        let other = b.enter();
        assert!(later == epoch && other == epoch);
        a.leave(first);
        assert!(gates.passed(epoch));
        let next = gates.advance();
        assert!(!gates.passed(next));
        b.leave(other);
        a.leave(later);
        assert!(gates.passed(next));
    }

    #[test]
    fn a_closed_channel_is_forgotten_unless_something_is_under_way() {
        let gates = Arc::new(Gates::default());
        let quiet = gates.open();
        drop(quiet);
        let mut busy = gates.open();
        busy.enter();
        drop(busy);
        assert!(!gates.passed(gates.advance()));
        assert_eq!(gates.gates().len(), 1);
    }
}
