//! The poller that runs a target's connections on a reactor.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use basalt_bdev::Completion;
use basalt_clock::Instant;
use basalt_nvmf_target::{ListenerAddress, Queue, Target};
use basalt_reactor::{Handle, Listener, PollerId, PostError, Progress, Remote, Socket, SocketError};

use super::connection::{Connection, Context, Phase};
use super::devices::Devices;
use super::options::TcpTargetOptions;
use super::staging::Staging;

/// Connections that one turn accepts of one listener, so that a flood does not hold the reactor.
const ACCEPTS_PER_TURN: usize = 16;
/// How often connections look at the clock.
const TICK: Duration = Duration::from_millis(100);

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
}

struct Worker {
    handle: Handle,
    target: Arc<Target>,
    options: TcpTargetOptions,
    orders: Arc<Orders>,
    listeners: Vec<(Listener, ListenerAddress)>,
    connections: Vec<Option<Served>>,
    peers: BTreeMap<IpAddr, usize>,
    live: usize,
    devices: Devices,
    staging: Staging,
    completions: Vec<Completion>,
    version: u64,
    next_tick: Instant,
    refused: u64,
}

/// A connection and where it is from.
struct Served {
    connection: Connection<Socket>,
    peer: Option<IpAddr>,
    /// Its channels were given back; only requests with devices keep it.
    closed: bool,
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
        let worker = Worker {
            // Not the present one: what changed before is looked at in the first turn.
            version: 0,
            next_tick: handle.now() + TICK,
            devices: Devices::new(handle.clone()),
            staging: Staging::new(handle.buffers().clone()),
            handle: handle.clone(),
            target,
            options,
            orders: Arc::default(),
            listeners: Vec::new(),
            connections: Vec::new(),
            peers: BTreeMap::new(),
            live: 0,
            completions: Vec::new(),
            refused: 0,
        };
        let worker = Rc::new(RefCell::new(worker));
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

fn wake(remote: &Remote) {
    // A full ring means that the reactor is awake and looks by itself; an ended one has nothing to look at.
    if let Err(error) = remote.post(|_| {}) {
        tracing::trace!(%error, "a reactor was not woken");
    }
}

/// What other threads ask for.
enum Order {
    Listen(ListenerAddress, mpsc::SyncSender<Result<SocketAddr, ListenError>>),
    StopListening(SocketAddr),
    Stats(mpsc::SyncSender<TcpTargetStats>),
}

#[derive(Default)]
struct Orders {
    waiting: AtomicBool,
    orders: Mutex<Vec<Order>>,
}

impl Orders {
    fn give(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.waiting.store(true, Ordering::Release);
    }

    fn take(&self) -> Vec<Order> {
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

impl Worker {
    fn listen(&mut self, address: ListenerAddress) -> Result<SocketAddr, ListenError> {
        let bind = address.bind();
        let failed = |source| ListenError::Bind { address: bind, source };
        let listener = self.handle.listen(bind).map_err(failed)?;
        let bound = listener.local_address().map_err(failed)?;
        let address = address.with_bound(bound);
        self.target.add_listener(address.clone());
        tracing::info!(%address, "listening");
        self.listeners.push((listener, address));
        Ok(bound)
    }

    fn stop_listening(&mut self, bind: SocketAddr) {
        let target = &self.target;
        self.listeners.retain(|(_, address)| {
            let stays = address.bind() != bind;
            if !stays {
                target.remove_listener(address);
            }
            stays
        });
    }

    fn stats(&self) -> TcpTargetStats {
        TcpTargetStats { connections: self.live, running: self.devices.running(), refused: self.refused }
    }

    fn obey(&mut self) {
        for order in self.orders.take() {
            match order {
                // Who asked may be gone; then no one wants the answer.
                Order::Listen(address, report) => drop(report.send(self.listen(address))),
                Order::StopListening(bind) => self.stop_listening(bind),
                Order::Stats(report) => drop(report.send(self.stats())),
            }
        }
    }

    fn poll(&mut self) -> Progress {
        self.obey();
        let mut progress = self.accept();
        self.look();
        let mut connections = std::mem::take(&mut self.connections);
        for served in connections.iter_mut().flatten() {
            progress = progress.or(served.work(&mut self.context()));
        }
        progress = progress.or(self.complete(&mut connections));
        for slot in &mut connections {
            let Some(served) = slot else { continue };
            progress = progress.or(served.connection.flush());
            if served.connection.phase == Phase::Over && served.end(&mut self.devices) {
                self.forget(served.peer);
                *slot = None;
            }
        }
        self.connections = connections;
        progress
    }

    fn context(&mut self) -> Context<'_> {
        Context {
            now: self.handle.now(),
            pool: self.handle.buffers(),
            devices: &mut self.devices,
            staging: &mut self.staging,
            options: &self.options,
        }
    }

    fn complete(&mut self, connections: &mut [Option<Served>]) -> Progress {
        let mut completions = std::mem::take(&mut self.completions);
        self.devices.poll(&mut completions);
        let progress = Progress::busy_if(!completions.is_empty());
        for completion in completions.drain(..) {
            let index = Connection::<Socket>::index_of(completion.tag);
            let Some(Some(served)) = connections.get_mut(index) else {
                unreachable!("a connection stays until its requests are done")
            };
            served.connection.completed(completion, &mut self.context());
        }
        self.completions = completions;
        progress
    }

    /// Looks at the configuration when it changed, and at the clock every now and then.
    fn look(&mut self) {
        let version = self.target.version();
        let changed = version != self.version;
        let now = self.handle.now();
        let due = now >= self.next_tick;
        if !changed && !due {
            return;
        }
        self.version = version;
        let mut connections = std::mem::take(&mut self.connections);
        for served in connections.iter_mut().flatten() {
            if due {
                served.connection.tick(&mut self.context());
            } else {
                served.connection.refresh(&mut self.context());
            }
        }
        self.connections = connections;
        if due {
            self.next_tick = now + TICK;
        }
        if self.live > 0 {
            self.handle.wake_at(self.next_tick);
        }
    }

    fn accept(&mut self) -> Progress {
        let mut accepted = Vec::new();
        for (listener, address) in &self.listeners {
            for _ in 0..ACCEPTS_PER_TURN {
                match listener.accept() {
                    Ok(Some(socket)) => accepted.push(socket),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%address, %error, "accepting a connection failed");
                        break;
                    }
                }
            }
        }
        let progress = Progress::busy_if(!accepted.is_empty());
        for socket in accepted {
            self.admit(socket);
        }
        progress
    }

    fn admit(&mut self, socket: Socket) {
        let peer = socket.peer_address().ok().map(|address| address.ip());
        let of_peer = peer.and_then(|peer| self.peers.get(&peer).copied()).unwrap_or(0);
        if self.live >= self.options.connections_max || of_peer >= self.options.connections_per_address_max {
            self.refused += 1;
            tracing::warn!(?peer, "a connection beyond the limit is closed");
            return;
        }
        let index = self.connections.iter().position(Option::is_none).unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        let queue = Queue::new(Arc::clone(&self.target), self.options.limits);
        let connection = Connection::new(socket, index, queue, self.handle.now(), &self.options);
        self.connections[index] = Some(Served { connection, peer, closed: false });
        if let Some(peer) = peer {
            *self.peers.entry(peer).or_insert(0) += 1;
        }
        self.live += 1;
        self.handle.wake_at(self.next_tick);
    }

    fn forget(&mut self, peer: Option<IpAddr>) {
        self.live -= 1;
        let Some(peer) = peer else { return };
        if let Some(count) = self.peers.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.peers.remove(&peer);
            }
        }
    }
}

impl Served {
    fn work(&mut self, context: &mut Context<'_>) -> Progress {
        if !self.connection.takes_input() {
            return Progress::Idle;
        }
        self.connection.retry(context).or(self.connection.receive(context))
    }

    /// Gives back what the connection holds; whether nothing is left.
    fn end(&mut self, devices: &mut Devices) -> bool {
        if !self.closed {
            self.closed = true;
            self.connection.close(devices);
        }
        self.connection.is_done()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        for (_, address) in &self.listeners {
            self.target.remove_listener(address);
        }
    }
}
