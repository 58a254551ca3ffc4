//! Waiting for what earlier I/O queues have under way: before a reset or shutdown is told as done, and a controller as ready.

use std::sync::atomic::Ordering;

use super::{Controller, Lifecycle};
use crate::abort::{AbortOrder, QueuesEnd};

impl Controller {
    /// Whether something of earlier I/O queues may still reach a namespace.
    pub(super) fn is_ending(&self) -> bool {
        self.asks_others || self.queues_ended.as_ref().is_some_and(|ended| !ended.load(Ordering::Acquire))
    }

    /// Ends the I/O queues: no command of theirs runs from now on, and those that devices have come back.
    pub(super) fn end_queues(&mut self) {
        self.link.reset();
        self.asks_others = false;
        let fences = self.subsystem.fences_of(&self.link);
        self.queues_ended = Some(QueuesEnd::order(&fences, self.target.changes()));
    }

    /// Begins to wait for what the host left behind with other controllers, and for what a reset has not ended yet. Another reactor may not have
    /// read yet that the host has closed their connections, so they are asked first; only then is it known who has left.
    pub(super) fn await_others(&mut self) {
        let others = self.subsystem.admin_fences_beside(&self.link);
        self.asks_others = true;
        self.queues_ended = Some(QueuesEnd::order_if_left(&others, self.target.changes()));
    }

    /// Goes on with that, and lets I/O queues join once the controller is ready.
    pub(super) fn take_queues(&mut self) {
        if self.asks_others && self.queues_ended.as_ref().is_none_or(|asked| asked.load(Ordering::Acquire)) {
            let mut fences = self.subsystem.fences_left(&self.link);
            fences.extend(self.subsystem.fences_of(&self.link));
            self.asks_others = false;
            self.queues_ended = Some(QueuesEnd::order(&fences, self.target.changes()));
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
