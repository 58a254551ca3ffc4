//! The poller that runs a target's connections on a reactor.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::Completion;
use basalt_clock::Instant;
use basalt_nvmf_target::{ListenerAddress, Queue, Target};
use basalt_reactor::{Handle, Listener, Progress, ReadyList, Socket, SocketError};

use super::complaints::{Complaint, Complaints};
use super::connection::{Connection, Context, Phase};
use super::devices::Devices;
use super::options::TcpTargetOptions;
use super::server::{ListenError, Order, Orders, TcpTargetStats};
use super::share::{Budget, PeerShare, Share};
use super::spread::{Burden, SharedDoor, Spread};
use super::staging::Staging;

/// Connections that one turn accepts of one listener, so that a flood does not hold the reactor.
const ACCEPTS_PER_TURN: usize = 16;
/// How long a connection is left to a reactor that has less to do.
const PATIENCE: Duration = Duration::from_millis(5);
/// How often connections look at the clock.
const TICK: Duration = Duration::from_millis(100);
/// Turns in which a connection that has nothing to do is still looked at; after that its socket's readiness is awaited.
const IDLE_TURNS: u32 = 64;

/// One reactor's listeners, connections and devices.
pub(super) struct Worker {
    handle: Handle,
    target: Arc<Target>,
    options: TcpTargetOptions,
    pub(super) orders: Arc<Orders>,
    doors: Vec<Door>,
    connections: Vec<Option<Served>>,
    /// Places of the connections that are looked at in every turn.
    active: Vec<usize>,
    /// Places of connections whose sockets became ready.
    ready: ReadyList,
    tokens: Vec<u64>,
    peers: BTreeMap<IpAddr, Peer>,
    budget: Rc<Budget>,
    complaints: Complaints,
    live: usize,
    /// Of these, I/O queues.
    io_queues: usize,
    burden: Burden,
    devices: Devices,
    staging: Staging,
    completions: Vec<Completion>,
    version: u64,
    next_tick: Instant,
    refused: u64,
}

/// A listener, shared with other reactors or not.
struct Door {
    listener: Listener,
    address: ListenerAddress,
    spread: Arc<Spread>,
    /// A connection was left to another reactor, which has so long to take it.
    left: Option<Instant>,
}

/// The connections of one address.
#[derive(Default)]
struct Peer {
    connections: usize,
    share: PeerShare,
}

/// A connection and where it is from.
struct Served {
    connection: Connection<Socket>,
    peer: Option<IpAddr>,
    /// Turns without anything to do, if it is looked at in every turn.
    active: Option<u32>,
    /// It was counted as an I/O queue.
    is_io: bool,
    /// Its channels were given back; only requests with devices keep it.
    closed: bool,
}

impl Worker {
    pub(super) fn new(handle: &Handle, target: Arc<Target>, options: TcpTargetOptions) -> Self {
        Self {
            // Not the present one: what changed before is looked at in the first turn.
            version: 0,
            next_tick: handle.now() + TICK,
            devices: Devices::new(handle.clone()),
            staging: Staging::new(handle.buffers().clone()),
            budget: Budget::new(handle.buffers().stats().limit_bytes, options.limits.transfer_bytes_max),
            handle: handle.clone(),
            target,
            options,
            orders: Arc::default(),
            doors: Vec::new(),
            connections: Vec::new(),
            active: Vec::new(),
            ready: ReadyList::new(),
            tokens: Vec::new(),
            peers: BTreeMap::new(),
            complaints: Complaints::default(),
            live: 0,
            io_queues: 0,
            burden: Burden::default(),
            completions: Vec::new(),
            refused: 0,
        }
    }

    pub(super) fn listen(&mut self, address: ListenerAddress) -> Result<SocketAddr, ListenError> {
        let bind = address.bind();
        let failed = |source| ListenError::Bind { address: bind, source };
        let listener = self.handle.listen(bind).map_err(failed)?;
        let bound = listener.local_address().map_err(failed)?;
        let address = address.with_bound(bound);
        self.target.add_listener(address.clone());
        tracing::info!(%address, "listening");
        self.add_door(listener, address, Arc::default());
        Ok(bound)
    }

    fn add_door(&mut self, listener: Listener, address: ListenerAddress, spread: Arc<Spread>) {
        spread.join(&self.burden, self.handle.remote());
        self.doors.push(Door { listener, address, spread, left: None });
    }

    pub(super) fn share(&self, bound: SocketAddr) -> Result<SharedDoor, SocketError> {
        let open = self.doors.iter().find(|door| door.address.bind() == bound).ok_or(SocketError::Closed)?;
        Ok(SharedDoor { listener: open.listener.share()?, spread: Arc::clone(&open.spread) })
    }

    fn accept_from(&mut self, shared: SharedDoor, address: ListenerAddress) {
        match self.handle.adopt_listener(shared.listener) {
            Ok(listener) => self.add_door(listener, address, shared.spread),
            // The other reactor accepts all connections then.
            Err(error) => tracing::warn!(%address, %error, "a reactor cannot share the listener"),
        }
    }

    pub(super) fn stop_listening(&mut self, bind: SocketAddr) {
        let (target, burden) = (&self.target, &self.burden);
        self.doors.retain(|door| {
            let stays = door.address.bind() != bind;
            if !stays {
                target.remove_listener(&door.address);
                door.spread.leave(burden);
            }
            stays
        });
    }

    pub(super) fn stats(&self) -> TcpTargetStats {
        TcpTargetStats {
            connections: self.live,
            running: self.devices.running(),
            refused: self.refused,
            violations: self.complaints.violations(),
        }
    }

    /// One turn.
    pub(super) fn poll(&mut self) -> Progress {
        self.obey();
        let mut progress = self.accept();
        self.look();
        self.wake_ready();
        let mut connections = std::mem::take(&mut self.connections);
        for at in 0..self.active.len() {
            if let Some(served) = &mut connections[self.active[at]] {
                progress = progress.or(served.work(&mut self.context()));
            }
        }
        progress = progress.or(self.complete(&mut connections));
        let mut active = std::mem::take(&mut self.active);
        active.retain(|place| self.finish_turn(&mut connections[*place], &mut progress));
        self.active = active;
        self.connections = connections;
        progress
    }

    /// Sends what a connection has to say; false if it need not be looked at in the next turn.
    fn finish_turn(&mut self, place: &mut Option<Served>, progress: &mut Progress) -> bool {
        let Some(served) = place else { return false };
        if served.connection.flush() == Progress::Busy {
            *progress = Progress::Busy;
            served.active = Some(0);
        }
        if !served.is_io && served.connection.queue.is_io() {
            served.is_io = true;
            self.io_queues += 1;
            self.burden.set(self.live, self.io_queues);
        }
        if served.connection.phase == Phase::Over {
            if !served.closed {
                // What it held may be what others wait for.
                *progress = Progress::Busy;
            }
            if served.end(&mut self.devices) {
                let (peer, was_io) = (served.peer, served.is_io);
                self.forget(peer, was_io);
                *place = None;
                return false;
            }
            return true;
        }
        served.stays_active()
    }

    fn obey(&mut self) {
        for order in self.orders.take() {
            // Who asked may be gone; then no one wants the answer.
            let answered = match order {
                Order::Listen(address, report) => report.send(self.listen(address)).is_ok(),
                Order::Stats(report) => report.send(self.stats()).is_ok(),
                Order::AcceptFrom(shared, address) => {
                    self.accept_from(shared, address);
                    true
                }
                Order::StopListening(bind) => {
                    self.stop_listening(bind);
                    true
                }
            };
            if !answered {
                tracing::debug!("nobody waited for an answer of the target");
            }
        }
    }

    fn wake_ready(&mut self) {
        if self.ready.is_empty() {
            return;
        }
        let mut tokens = std::mem::take(&mut self.tokens);
        self.ready.take(&mut tokens);
        for token in tokens.drain(..) {
            self.activate(usize::try_from(token).unwrap_or(usize::MAX));
        }
        self.tokens = tokens;
    }

    fn activate(&mut self, place: usize) {
        if let Some(Some(served)) = self.connections.get_mut(place)
            && served.active.replace(0).is_none()
        {
            self.active.push(place);
        }
    }

    fn context(&mut self) -> Context<'_> {
        Context {
            now: self.handle.now(),
            pool: self.handle.buffers(),
            devices: &mut self.devices,
            staging: &mut self.staging,
            options: &self.options,
            complaints: &mut self.complaints,
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
        for (place, served) in connections.iter_mut().enumerate() {
            let Some(served) = served else { continue };
            if due {
                served.connection.tick(&mut self.context());
            } else {
                served.connection.refresh(&mut self.context());
            }
            if served.has_work() && served.active.replace(0).is_none() {
                self.active.push(place);
            }
        }
        self.connections = connections;
        if due {
            self.next_tick = now + TICK;
            self.complaints.look(now);
        }
        if self.live > 0 || self.complaints.is_pending() {
            self.handle.wake_at(self.next_tick);
        }
    }

    fn accept(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        for at in 0..self.doors.len() {
            for _ in 0..ACCEPTS_PER_TURN {
                let Door { listener, address, spread, left } = &mut self.doors[at];
                if !listener.may_accept() {
                    break;
                }
                let now = self.handle.now();
                match *left {
                    Some(until) if now < until => break,
                    None if spread.leave_to_least(&self.burden) => {
                        *left = Some(now + PATIENCE);
                        self.handle.wake_at(now + PATIENCE);
                        break;
                    }
                    // It was taken, or nobody came.
                    Some(_) | None => *left = None,
                }
                match listener.accept() {
                    Ok(Some(socket)) => {
                        progress = Progress::Busy;
                        self.admit(socket);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        let complaint = Complaint::NotAccepted(address, error);
                        self.complaints.note(self.handle.now(), &complaint);
                        break;
                    }
                }
            }
        }
        progress
    }

    fn admit(&mut self, socket: Socket) {
        let peer = socket.peer_address().ok().map(|address| address.ip());
        let of_peer = peer.and_then(|peer| self.peers.get(&peer)).map_or(0, |peer| peer.connections);
        if self.live >= self.options.connections_max || of_peer >= self.options.connections_per_address_max {
            self.refused += 1;
            self.complaints.note(self.handle.now(), &Complaint::Refused(peer));
            return;
        }
        let place = self.connections.iter().position(Option::is_none).unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        socket.watch(&self.ready, place as u64);
        let here = socket.local_address().ok().map(|address| address.ip());
        let queue = Queue::new(Arc::clone(&self.target), self.options.limits).reached_at(here);
        let mut share = PeerShare::default();
        if let Some(peer) = peer {
            let peer = self.peers.entry(peer).or_default();
            peer.connections += 1;
            share = peer.share.clone();
        }
        let share = Share::new(&self.budget, &share);
        let connection = Connection::new(socket, place, queue, share, self.handle.now(), &self.options);
        self.connections[place] =
            Some(Served { connection, peer, active: None, is_io: false, closed: false });
        self.live += 1;
        self.burden.set(self.live, self.io_queues);
        self.handle.wake_at(self.next_tick);
    }

    fn forget(&mut self, peer: Option<IpAddr>, was_io: bool) {
        self.live -= 1;
        self.io_queues -= usize::from(was_io);
        self.burden.set(self.live, self.io_queues);
        let Some(address) = peer else { return };
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.connections -= 1;
            if peer.connections == 0 {
                self.peers.remove(&address);
            }
        }
    }
}

impl Served {
    fn work(&mut self, context: &mut Context<'_>) -> Progress {
        let mut progress = self.connection.retry(context);
        if self.connection.takes_input() {
            progress = progress.or(self.connection.receive(context));
        }
        if progress == Progress::Busy {
            self.active = Some(0);
        }
        progress
    }

    /// Whether there is something to do although the peer says nothing.
    fn has_work(&self) -> bool {
        self.connection.has_work() || (self.connection.phase == Phase::Over && !self.closed)
    }

    /// Counts a turn; false once it is not to be looked at until its socket is ready.
    fn stays_active(&mut self) -> bool {
        let turns = self.active.unwrap_or(0) + 1;
        if turns > IDLE_TURNS && !self.connection.has_work() {
            self.active = None;
            return false;
        }
        self.active = Some(turns.min(IDLE_TURNS + 1));
        true
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
        for door in &self.doors {
            self.target.remove_listener(&door.address);
            door.spread.leave(&self.burden);
        }
    }
}
