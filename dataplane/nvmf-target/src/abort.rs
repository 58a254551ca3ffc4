//! Commands that end before their time, by Abort or because their host was preempted: orders to the queues that have them.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use basalt_nvme_wire::Status;
use basalt_nvmf_transport::{CommandId, ControllerId, HostId, QueueId};

use crate::changes::Changes;
use crate::link::ControllerLink;
use crate::namespace::Namespace;
use crate::reservation::Ticket;

/// A Preempt and Abort whose orders are not all fulfilled. Dropped with the last of them, it completes the command.
pub(crate) struct Drain {
    ticket: Arc<Ticket>,
    changes: Arc<Changes>,
}

impl Drain {
    pub(crate) fn new(ticket: Arc<Ticket>, changes: &Arc<Changes>) -> Self {
        Self { ticket, changes: Arc::clone(changes) }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.ticket.finish(Status::SUCCESS);
        self.changes.note();
    }
}

/// The end of a controller's or a connection's I/O queues whose orders are not all fulfilled. Dropped with the last of them, it says so.
pub(crate) struct QueuesEnd {
    ended: Arc<AtomicBool>,
    changes: Arc<Changes>,
}

impl QueuesEnd {
    /// Orders these queues to end what they have under way; true in what is answered, once nothing of it can reach a namespace
    /// any more.
    pub(crate) fn order(fences: &[Arc<Fence>], changes: &Arc<Changes>) -> Arc<AtomicBool> {
        Self::give(changes, |end| end.of(fences))
    }

    /// Asks the admin queues behind `fences` whether their hosts are still there, and has the controllers of those that are not, and
    /// all that they have under way, end as [`QueuesEnd::order`] does.
    pub(crate) fn order_if_left(fences: &[Arc<Fence>], changes: &Arc<Changes>) -> Arc<AtomicBool> {
        Self::give(changes, |end| {
            for fence in fences {
                fence.give(AbortOrder(Order::Host { end: Arc::clone(end) }));
            }
        })
    }

    fn give(changes: &Arc<Changes>, orders: impl FnOnce(&Arc<Self>)) -> Arc<AtomicBool> {
        let ended = Arc::<AtomicBool>::default();
        orders(&Arc::new(Self { ended: Arc::clone(&ended), changes: Arc::clone(changes) }));
        changes.note();
        ended
    }

    fn of(self: &Arc<Self>, fences: &[Arc<Fence>]) {
        for fence in fences {
            fence.give(AbortOrder(Order::Queue { _end: Arc::clone(self) }));
        }
    }
}

impl Drop for QueuesEnd {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.changes.note();
    }
}

/// How an Abort command ends, some time.
#[derive(Debug, Default)]
pub(crate) struct AbortTicket(AtomicU8);

const ABORTED: u8 = 1;
const NOT_ABORTED: u8 = 2;

impl AbortTicket {
    /// Whether the command was aborted, once that is known.
    pub(crate) fn outcome(&self) -> Option<bool> {
        match self.0.load(Ordering::Acquire) {
            ABORTED => Some(true),
            NOT_ABORTED => Some(false),
            _ => None,
        }
    }
}

/// An Abort that is on its way. Dropped, it completes the Abort.
struct Asked {
    command: CommandId,
    aborted: bool,
    ticket: Arc<AbortTicket>,
    changes: Arc<Changes>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.ticket.0.store(if self.aborted { ABORTED } else { NOT_ABORTED }, Ordering::Release);
        self.changes.note();
    }
}

enum Order {
    Namespace { uuid: [u8; 16], _drain: Arc<Drain> },
    Queue { _end: Arc<QueuesEnd> },
    Host { end: Arc<QueuesEnd> },
    Command(Asked),
}

/// An order to one queue: to end all commands that are under way, all on one namespace, or one command; or to look whether its host is
/// still there. Fulfilled by being dropped.
pub struct AbortOrder(Order);

impl AbortOrder {
    /// For all commands on a namespace.
    pub(crate) fn namespace(uuid: [u8; 16], drain: &Arc<Drain>) -> Self {
        Self(Order::Namespace { uuid, _drain: Arc::clone(drain) })
    }

    /// For one command; `ticket` tells how it went.
    pub(crate) fn one(command: CommandId, ticket: &Arc<AbortTicket>, changes: &Arc<Changes>) -> Self {
        let (ticket, changes) = (Arc::clone(ticket), Arc::clone(changes));
        Self(Order::Command(Asked { command, aborted: false, ticket, changes }))
    }

    /// The one command that it is about; `None` if it is about all commands, or all on a namespace.
    pub fn command(&self) -> Option<CommandId> {
        match &self.0 {
            Order::Namespace { .. } | Order::Queue { .. } | Order::Host { .. } => None,
            Order::Command(asked) => Some(asked.command),
        }
    }

    /// Whether it asks if the host has ended the connection: call [`Queue::host_has_left`](crate::Queue::host_has_left) and end it
    /// too if so.
    pub fn asks_for_host(&self) -> bool {
        matches!(self.0, Order::Host { .. })
    }

    /// Has these I/O queues end what they have under way, as a part of what it asks for.
    pub(crate) fn hand_on(&self, fences: &[Arc<Fence>]) {
        if let Order::Host { end } = &self.0 {
            end.of(fences);
        }
    }

    /// The one command was aborted: it does nothing any more.
    pub fn note_aborted(&mut self) {
        if let Order::Command(asked) = &mut self.0 {
            asked.aborted = true;
        }
    }

    /// Whether it is about all commands on this namespace; `None`: one that is gone.
    pub fn concerns(&self, namespace: Option<&Namespace>) -> bool {
        match self.0 {
            Order::Namespace { uuid, .. } => namespace.is_some_and(|n| n.identity().uuid == uuid),
            Order::Queue { .. } => true,
            Order::Host { .. } | Order::Command(_) => false,
        }
    }

    /// How the commands end.
    pub fn status(&self) -> Status {
        match self.0 {
            Order::Namespace { .. } => Status::ABORTED_PREEMPT,
            Order::Queue { .. } | Order::Host { .. } => Status::ABORTED_SQ_DELETION,
            Order::Command(_) => Status::ABORT_REQUESTED,
        }
    }
}

impl fmt::Debug for AbortOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AbortOrder").field("command", &self.command()).finish_non_exhaustive()
    }
}

/// Where orders reach a queue. Lives as long as the queue may have commands with devices.
#[derive(Debug)]
pub(crate) struct Fence {
    link: Arc<ControllerLink>,
    queue: QueueId,
    waiting: AtomicBool,
    orders: Mutex<Vec<AbortOrder>>,
}

impl Fence {
    pub(crate) fn new(link: &Arc<ControllerLink>, queue: QueueId) -> Self {
        Self { link: Arc::clone(link), queue, waiting: AtomicBool::new(false), orders: Mutex::default() }
    }

    pub(crate) fn host(&self) -> HostId {
        self.link.association.host.id
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.queue.is_admin()
    }

    pub(crate) fn is_of(&self, controller: ControllerId, queue: QueueId) -> bool {
        !self.is_admin() && self.link.id == controller && self.queue == queue
    }

    /// Whether its queue is one of this controller.
    pub(crate) fn is_of_link(&self, link: &Arc<ControllerLink>) -> bool {
        Arc::ptr_eq(&self.link, link)
    }

    /// Whether its queue is one of another controller of this one's host, one that is over or not.
    pub(crate) fn is_beside(&self, link: &Arc<ControllerLink>, over: bool) -> bool {
        let (own, host) = (&self.link.association.host, &link.association.host);
        !self.is_of_link(link) && self.link.is_gone() == over && own.nqn == host.nqn && own.id == host.id
    }

    pub(crate) fn give(&self, order: AbortOrder) {
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
