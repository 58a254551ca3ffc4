//! The right to act, which ends by itself.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::time::Instant;

/// Until when this process may act. Another process may act from the moment at which the lease has expired, so this one
/// stops before: whoever changes anything does it through [`Fence::within`]. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Fence {
    end: Arc<Mutex<Option<Instant>>>,
}

/// The right to act has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("this process may not act any more: its lease could not be renewed in time")]
pub struct Fenced;

impl Fence {
    /// A fence that lets nothing through until it is extended.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets actions through until `end`, which must be known to be before the lease's expiry.
    pub fn extend(&self, end: Instant) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }

    /// Lets nothing through from now on.
    pub fn close(&self) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Until when actions are let through; `None` when none are.
    #[must_use]
    pub fn end(&self) -> Option<Instant> {
        let end = *self.end.lock().unwrap_or_else(PoisonError::into_inner);
        end.filter(|end| *end > Instant::now())
    }

    /// Runs an action, and gives it up at the moment at which the right to act ends.
    ///
    /// # Errors
    /// [`Fenced`] when the right had ended, or ends before the action is done; whether it took effect is not known then.
    pub async fn within<F: Future>(&self, action: F) -> Result<F::Output, Fenced> {
        let end = self.end().ok_or(Fenced)?;
        tokio::time::timeout_at(end, action).await.map_err(|_| Fenced)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn nothing_passes_outside_of_the_right() {
        let fence = Fence::new();
        assert_eq!(fence.within(async { 1 }).await, Err(Fenced));
        fence.extend(Instant::now() + Duration::from_secs(600));
        assert_eq!(fence.within(async { 1 }).await, Ok(1));
        fence.close();
        assert_eq!(fence.within(async { 1 }).await, Err(Fenced));
        fence.extend(Instant::now());
        assert_eq!(fence.within(async { 1 }).await, Err(Fenced));
    }

    #[tokio::test]
    async fn what_takes_too_long_is_given_up_when_the_right_ends() {
        let fence = Fence::new();
        fence.extend(Instant::now() + Duration::from_millis(5));
        assert_eq!(fence.within(std::future::pending::<()>()).await, Err(Fenced));
    }
}
