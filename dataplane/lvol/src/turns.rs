//! Turns at something that one does at a time and that may serve all who wait for it.
//!
//! A lock would be handed to one of them, and whoever comes meanwhile would take it first: with one change in each group of the journal,
//! while all others wait.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Cell<bool>,
    /// Those who come before all others.
    urgent: Cell<usize>,
    /// Turns that have ended.
    ended: Cell<u64>,
    waiting: RefCell<Vec<Waker>>,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Turns);

/// Somebody who is to have the next turn.
struct Urgent<'a>(&'a Turns);

/// Waits for the end of a turn.
struct End<'a> {
    turns: &'a Turns,
    seen: u64,
}

impl Turns {
    /// A turn, if nobody has one and nobody urgent waits for it.
    pub(crate) fn try_take(&self) -> Option<Turn<'_>> {
        (self.urgent.get() == 0).then(|| self.take_free()).flatten()
    }

    /// The next turn.
    pub(crate) async fn take(&self) -> Turn<'_> {
        self.urgent.set(self.urgent.get() + 1);
        let _urgent = Urgent(self);
        loop {
            if let Some(turn) = self.take_free() {
                return turn;
            }
            self.end().await;
        }
    }

    /// Waits until something has changed for those who got no turn.
    pub(crate) fn end(&self) -> impl Future<Output = ()> + '_ {
        End { turns: self, seen: self.ended.get() }
    }

    fn take_free(&self) -> Option<Turn<'_>> {
        (!self.taken.replace(true)).then(|| Turn(self))
    }

    fn wake(&self) {
        self.ended.set(self.ended.get() + 1);
        std::mem::take(&mut *self.waiting.borrow_mut()).into_iter().for_each(Waker::wake);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.wake();
    }
}

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.urgent.set(self.0.urgent.get() - 1);
        // Whoever held back for it may go on.
        if !self.0.taken.get() {
            self.0.wake();
        }
    }
}

impl Future for End<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.turns.ended.get() != self.seen {
            return Poll::Ready(());
        }
        self.turns.waiting.borrow_mut().push(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn all_look_again_when_a_turn_ends_and_the_urgent_one_is_next() {
        let turns = Turns::default();
        let turn = turns.try_take().unwrap();
        assert!(turns.try_take().is_none());
        let (mut first, mut second) = (Box::pin(turns.end()), Box::pin(turns.end()));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        let mut urgent = Box::pin(turns.take());
        assert!(urgent.as_mut().now_or_never().is_none());
        drop(turn);
        assert!(first.now_or_never().is_some() && second.now_or_never().is_some());
        assert!(turns.try_take().is_none(), "somebody urgent waits");
        let turn = urgent.now_or_never().unwrap();
        let mut third = Box::pin(turns.end());
        assert!(third.as_mut().now_or_never().is_none());
        drop(turn);
        assert!(third.now_or_never().is_some());
        assert!(turns.try_take().is_some());
    }

    #[test]
    fn an_urgent_one_that_gives_up_holds_nobody_back() {
        let turns = Turns::default();
        let turn = turns.try_take().unwrap();
        let mut urgent = Box::pin(turns.take());
        assert!(urgent.as_mut().now_or_never().is_none());
        drop(turn);
        let mut waits = Box::pin(turns.end());
        assert!(turns.try_take().is_none() && waits.as_mut().now_or_never().is_none());
        drop(urgent);
        assert!(waits.now_or_never().is_some() && turns.try_take().is_some());
    }
}
