//! How a target is started on a reactor and reached from other threads.

use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use basalt_nvmf_target::{ListenerAddress, Target};
use basalt_reactor::{Handle, PollerId, PostError, Remote, SocketError};

use super::options::TcpTargetOptions;
use super::spread::SharedDoor;
use super::worker::Worker;

/// Why a listener was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: SocketError,
    },
    /// The reactor did not take the message.
    #[error("the reactor that listens cannot be reached: {0}")]
    Reactor(#[from] PostError),
    /// The reactor ended before it answered.
    #[error("the reactor ended before it listened")]
    Ended,
}

/// Numbers of one reactor's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpTargetStats {
    /// Connections now.
    pub connections: usize,
    /// Requests with devices now.
    pub running: usize,
    /// Connections closed at once because of a limit, since the start.
    pub refused: u64,
    /// Connections that ended because their hosts violated the protocol, since the start.
    pub violations: u64,
}

/// A target on one reactor. Connections that its listeners accept live on that reactor. Dropping it closes everything.
pub struct TcpTarget {
    handle: Handle,
    worker: Rc<RefCell<Worker>>,
    /// `None` once it is left to the reactor.
    poller: Option<PollerId>,
}

impl TcpTarget {
    /// Starts to serve `target` on the reactor of `handle`; nothing is listened on yet.
    #[must_use]
    pub fn start(handle: &Handle, target: Arc<Target>, options: TcpTargetOptions) -> Self {
        let remote = handle.remote();
        target.on_change(move || wake(&remote));
        let worker = Rc::new(RefCell::new(Worker::new(handle, target, options)));
        let polled = Rc::clone(&worker);
        let poller = handle.add_poller(move || polled.borrow_mut().poll());
        Self { handle: handle.clone(), worker, poller: Some(poller) }
    }

    /// The same on another thread's reactor, which owns it from then on and closes everything when it ends.
    ///
    /// # Errors
    /// If the reactor does not take the message.
    pub fn start_on(
        remote: &Remote,
        target: Arc<Target>,
        options: TcpTargetOptions,
    ) -> Result<TcpTargetControl, PostError> {
        let orders = Arc::<Orders>::default();
        let control = TcpTargetControl { remote: remote.clone(), orders: Arc::clone(&orders) };
        remote.post(move |handle| {
            let mut served = Self::start(handle, target, options);
            served.worker.borrow_mut().orders = orders;
            served.poller = None;
        })?;
        Ok(control)
    }

    /// Listens on `address.bind()` and tells discovery; answers the address with the port that was bound.
    ///
    /// # Errors
    /// [`ListenError::Bind`].
    pub fn listen(&self, address: ListenerAddress) -> Result<SocketAddr, ListenError> {
        self.worker.borrow_mut().listen(address)
    }

    /// A second hold of the listener that is bound to `bound`, for [`TcpTargetControl::accept_from`] of another reactor's target.
    ///
    /// # Errors
    /// [`SocketError::Closed`] if nothing listens there; otherwise the driver's cause.
    pub fn share(&self, bound: SocketAddr) -> Result<SharedDoor, SocketError> {
        self.worker.borrow().share(bound)
    }

    /// Stops listening there; connections stay.
    pub fn stop_listening(&self, bind: SocketAddr) {
        self.worker.borrow_mut().stop_listening(bind);
    }

    /// Its numbers.
    #[must_use]
    pub fn stats(&self) -> TcpTargetStats {
        self.worker.borrow().stats()
    }

    /// What other threads use to reach it.
    #[must_use]
    pub fn control(&self) -> TcpTargetControl {
        let orders = Arc::clone(&self.worker.borrow().orders);
        TcpTargetControl { remote: self.handle.remote(), orders }
    }
}

impl Drop for TcpTarget {
    fn drop(&mut self) {
        if let Some(poller) = self.poller {
            self.handle.remove_poller(poller);
        }
    }
}

impl fmt::Debug for TcpTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTarget").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

pub(super) fn wake(remote: &Remote) {
    // A full ring means that the reactor is awake and looks by itself; an ended one has nothing to look at.
    if let Err(error) = remote.post(|_| {}) {
        tracing::trace!(%error, "a reactor was not woken");
    }
}

/// What other threads ask for.
pub(super) enum Order {
    Listen(ListenerAddress, mpsc::SyncSender<Result<SocketAddr, ListenError>>),
    StopListening(SocketAddr),
    AcceptFrom(SharedDoor, ListenerAddress),
    Stats(mpsc::SyncSender<TcpTargetStats>),
}

#[derive(Default)]
pub(super) struct Orders {
    waiting: AtomicBool,
    orders: Mutex<Vec<Order>>,
}

impl Orders {
    fn give(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.waiting.store(true, Ordering::Release);
    }

    pub(super) fn take(&self) -> Vec<Order> {
        if !self.waiting.load(Ordering::Relaxed) || !self.waiting.swap(false, Ordering::Acquire) {
            return Vec::new();
        }
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reaches a [`TcpTarget`] from any thread but its reactor's, whose answers it waits for.
#[derive(Clone)]
pub struct TcpTargetControl {
    remote: Remote,
    orders: Arc<Orders>,
}

impl TcpTargetControl {
    /// As [`TcpTarget::listen`]. Waits for the reactor: not to be called on it.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn listen(&self, address: ListenerAddress) -> Result<SocketAddr, ListenError> {
        let (report, answer) = mpsc::sync_channel(1);
        self.give(Order::Listen(address, report))?;
        answer.recv().map_err(|_| ListenError::Ended)?
    }

    /// Accepts from a listener of another reactor's target too; connections that it accepts live on its reactor, and each goes to the one that
    /// has least. Discovery is told by the other one.
    ///
    /// # Errors
    /// If the reactor does not take the message.
    pub fn accept_from(&self, shared: SharedDoor, address: ListenerAddress) -> Result<(), PostError> {
        self.give(Order::AcceptFrom(shared, address))
    }

    /// As [`TcpTarget::stop_listening`].
    ///
    /// # Errors
    /// If the reactor does not take the message.
    pub fn stop_listening(&self, bind: SocketAddr) -> Result<(), PostError> {
        self.give(Order::StopListening(bind))
    }

    /// As [`TcpTarget::stats`]. Waits for the reactor: not to be called on it.
    ///
    /// # Errors
    /// [`ListenError::Reactor`], [`ListenError::Ended`].
    pub fn stats(&self) -> Result<TcpTargetStats, ListenError> {
        let (report, answer) = mpsc::sync_channel(1);
        self.give(Order::Stats(report))?;
        answer.recv().map_err(|_| ListenError::Ended)
    }

    fn give(&self, order: Order) -> Result<(), PostError> {
        self.orders.give(order);
        self.remote.post(|_| {})
    }
}

impl fmt::Debug for TcpTargetControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpTargetControl").finish_non_exhaustive()
    }
}
