//! Delays that grow from try to try, with jitter.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);
/// After so many doublings the longest delay is reached.
const DOUBLINGS_MAX: u32 = 6;

/// How often each object was tried in vain. One entry per object that waits, so it is bounded by the number of objects.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: Mutex<BTreeMap<String, u32>>,
}

impl Backoff {
    /// Counts one more try for `name` and says how long to wait.
    pub fn next_delay(&self, name: &str) -> Duration {
        let mut tries = self.lock();
        let count = tries.entry(name.to_owned()).or_default();
        let delay = delay(*count, random_fraction());
        *count = (*count + 1).min(DOUBLINGS_MAX);
        delay
    }

    /// Nothing is waited for any more.
    pub fn reset(&self, name: &str) {
        self.lock().remove(name);
    }

    /// The names of all objects that wait.
    #[must_use]
    pub fn waiting(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between one half and the whole of a delay that doubles with each try.
fn delay(tries: u32, fraction: f64) -> Duration {
    let whole = FIRST.saturating_mul(1 << tries.min(DOUBLINGS_MAX)).min(LONGEST);
    whole.mul_f64(0.5 + fraction.clamp(0.0, 1.0) / 2.0)
}

/// From 0 to 1. A version 4 UUID is random but for its version and variant bits, which are in the upper halves.
pub(crate) fn random_fraction() -> f64 {
    let bytes = uuid::Uuid::new_v4().into_bytes();
    f64::from(u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]])) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_up_to_a_bound_and_are_spread() {
        assert_eq!(delay(0, 1.0), FIRST);
        assert_eq!(delay(0, 0.0), FIRST / 2);
        assert_eq!(delay(3, 1.0), FIRST * 8);
        assert_eq!(delay(60, 1.0), LONGEST);
    }

    #[test]
    fn one_object_does_not_slow_another() {
        let backoff = Backoff::default();
        for _ in 0..4 {
            backoff.next_delay("a");
        }
        assert!(backoff.next_delay("b") <= FIRST);
        assert_eq!(backoff.waiting(), ["a", "b"]);
        backoff.reset("a");
        assert!(backoff.next_delay("a") <= FIRST);
    }
}
