//! How commands of preempted hosts end: orders to the queues that have them.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use basalt_nvme_wire::Status;
use basalt_nvmf_transport::HostId;

use super::shared::Ticket;
use crate::changes::Changes;
use crate::namespace::Namespace;

/// A Preempt and Abort whose orders are not all fulfilled. Dropped with the last of them, it completes the command.
pub(super) struct Drain {
    ticket: Arc<Ticket>,
    changes: Arc<Changes>,
}

impl Drain {
    pub(super) fn new(ticket: Arc<Ticket>, changes: &Arc<Changes>) -> Self {
        Self { ticket, changes: Arc::clone(changes) }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.ticket.finish(Status::SUCCESS);
        self.changes.note();
    }
}

/// An order to end all commands of one queue that are under way on one namespace. Fulfilled by being dropped.
pub struct AbortOrder {
    uuid: [u8; 16],
    _drain: Arc<Drain>,
}

impl AbortOrder {
    pub(super) fn new(uuid: [u8; 16], drain: &Arc<Drain>) -> Self {
        Self { uuid, _drain: Arc::clone(drain) }
    }

    /// Whether it is about this namespace.
    pub fn concerns(&self, namespace: &Namespace) -> bool {
        namespace.identity().uuid == self.uuid
    }
}

impl fmt::Debug for AbortOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortOrder").finish_non_exhaustive()
    }
}

/// Where orders reach an I/O queue. Lives as long as the queue may have commands with devices.
#[derive(Debug)]
pub(crate) struct Fence {
    pub(crate) host: HostId,
    waiting: AtomicBool,
    orders: Mutex<Vec<AbortOrder>>,
}

impl Fence {
    pub(crate) fn new(host: HostId) -> Self {
        Self { host, waiting: AtomicBool::new(false), orders: Mutex::default() }
    }

    pub(super) fn give(&self, order: AbortOrder) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.waiting.store(true, Ordering::Release);
    }

    /// Orders that came since the last call.
    pub(crate) fn take(&self) -> Vec<AbortOrder> {
        if !self.waiting.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
