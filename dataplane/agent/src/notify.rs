//! One task's doorbell.

use std::cell::{Cell, RefCell};
use std::task::{Context, Poll, Waker};

/// Wakes the one task that waits. A ring while nobody waits is kept.
#[derive(Debug, Default)]
pub(crate) struct Notify {
    rung: Cell<bool>,
    waiting: RefCell<Option<Waker>>,
}

impl Notify {
    /// Wakes the waiting task, or the next one that waits.
    pub(crate) fn ring(&self) {
        self.rung.set(true);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Ready once it was rung.
    pub(crate) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.rung.replace(false) {
            return Poll::Ready(());
        }
        *self.waiting.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}
