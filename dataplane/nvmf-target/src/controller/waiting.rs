//! Waiting for what earlier I/O queues have under way: before a reset or shutdown is told as done, and a controller as ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Controller, Lifecycle};
use crate::abort::{AbortOrder, QueuesEnd};

/// How far the I/O queues of before are: those of before the last reset or shutdown, and those that the host left behind with another
/// controller before this one was enabled.
#[derive(Debug)]
pub(super) enum EarlierQueues {
    /// There are none, or nothing is waited for.
    Ended,
    /// The host's other controllers are asked whether it is still there; true once all have answered.
    Asking(Arc<AtomicBool>),
    /// They end what they have under way; true once they have.
    Ending(Arc<AtomicBool>),
}

impl Controller {
    /// Whether something of earlier I/O queues may still reach a namespace.
    pub(super) fn is_ending(&self) -> bool {
        match &self.earlier {
            EarlierQueues::Ended => false,
            EarlierQueues::Asking(_) => true,
            EarlierQueues::Ending(ended) => !ended.load(Ordering::Acquire),
        }
    }

    /// Ends the I/O queues: no command of theirs runs from now on, and those that devices have come back.
    pub(super) fn end_queues(&mut self) {
        self.link.reset();
        let fences = self.subsystem.fences_of(&self.link);
        self.earlier = EarlierQueues::Ending(QueuesEnd::order(&fences, self.target.changes()));
    }

    /// Begins to wait for what the host left behind with other controllers, and for what a reset has not ended yet. Another reactor may not have
    /// read yet that the host has closed their connections, so they are asked first; only then is it known who has left.
    pub(super) fn await_others(&mut self) {
        let others = self.subsystem.admin_fences_beside(&self.link);
        self.earlier = EarlierQueues::Asking(QueuesEnd::order_if_left(&others, self.target.changes()));
    }

    /// Goes on with that, and lets I/O queues join once the controller is ready.
    pub(super) fn take_queues(&mut self) {
        if let EarlierQueues::Asking(answered) = &self.earlier
            && answered.load(Ordering::Acquire)
        {
            let mut fences = self.subsystem.fences_left(&self.link);
            fences.extend(self.subsystem.fences_of(&self.link));
            self.earlier = EarlierQueues::Ending(QueuesEnd::order(&fences, self.target.changes()));
        }
        if self.lifecycle == Lifecycle::Ready && !self.is_ending() {
            self.link.enable();
        }
    }

    /// The host has closed the connection of this controller, as another one of its controllers wants to know.
    pub(crate) fn host_has_left(&self, order: &AbortOrder) {
        self.link.end();
        order.hand_on(&self.subsystem.fences_of(&self.link));
        self.target.changes().note();
    }
}
