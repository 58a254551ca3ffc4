use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use basalt_clock::{Instant, Random};
use basalt_dma::Segment;

use super::world::{Event, NodeId, State};
use crate::driver::{ListenerId, Received, Sent, SocketError, SocketId};

/// First port that is given to whoever asks for any.
const FIRST_FREE_PORT: u16 = 32768;

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Client,
    Server,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Server => 1,
        }
    }
}

/// What reaches one end of a connection.
#[derive(Debug)]
pub(super) enum Arrival {
    /// A client wants to connect.
    Open,
    /// The server's machine took the connection.
    Opened,
    Data(Vec<u8>),
    /// The other end sends nothing more.
    End,
    Failed(SocketError),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndState {
    Opening,
    Open,
    Failed(SocketError),
    /// Closed by its owner, or its process ended.
    Gone,
}

#[derive(Debug)]
struct End {
    node: NodeId,
    incarnation: u64,
    /// The driver that has the socket; none until it is accepted.
    driver: Option<usize>,
    address: SocketAddr,
    state: EndState,
    inbox: VecDeque<u8>,
    /// Bytes on their way here.
    coming: usize,
    /// When the last thing sent here arrives: later ones do not overtake it.
    last_arrival: Instant,
    /// The other end sends nothing more.
    ended: bool,
    /// This end found no room for what it wanted to send.
    blocked: bool,
    /// This end said that it sends nothing more.
    shut_down: bool,
}

#[derive(Debug)]
struct Connection {
    ends: [End; 2],
}

#[derive(Debug)]
struct ListenerState {
    generation: u32,
    bound: SocketAddr,
    waiting: VecDeque<u32>,
}

/// All connections of a world.
#[derive(Debug, Default)]
pub(super) struct Network {
    connections: BTreeMap<u32, Connection>,
    listeners: BTreeMap<(NodeId, u16), ListenerState>,
    connected: u32,
    listened: u32,
    blocked: BTreeSet<(NodeId, NodeId)>,
    /// What waits for a block to be undone, in order.
    stalled: Vec<((NodeId, NodeId), Event)>,
    next_port: u16,
}

impl Network {
    pub(super) fn block(&mut self, from: NodeId, to: NodeId) {
        self.blocked.insert((from, to));
    }

    pub(super) fn blocked(&self) -> Vec<(NodeId, NodeId)> {
        self.blocked.iter().copied().collect()
    }

    pub(super) fn close_listeners(&mut self, node: NodeId) {
        self.listeners.retain(|(owner, _), _| *owner != node);
    }

    fn free_port(&mut self, node: NodeId) -> u16 {
        loop {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_FREE_PORT);
            if !self.listeners.contains_key(&(node, self.next_port)) {
                return self.next_port;
            }
        }
    }

    fn end_mut(&mut self, connection: u32, side: Side) -> Option<&mut End> {
        self.connections.get_mut(&connection).map(|connection| &mut connection.ends[side.index()])
    }

    /// Forgets a connection that neither end uses.
    fn reap(&mut self, connection: u32) {
        let over = self
            .connections
            .get(&connection)
            .is_some_and(|connection| connection.ends.iter().all(|end| end.state == EndState::Gone));
        if over {
            self.connections.remove(&connection);
        }
    }
}

fn socket_id(connection: u32, side: Side) -> SocketId {
    SocketId { index: connection, generation: u32::from(side == Side::Server) }
}

fn place_of(socket: SocketId) -> (u32, Side) {
    (socket.index, if socket.generation == 0 { Side::Client } else { Side::Server })
}

impl State {
    fn node_at(&self, from: NodeId, address: IpAddr) -> Option<NodeId> {
        if address.is_loopback() {
            return Some(from);
        }
        let place = self.nodes.iter().position(|node| node.address == address)?;
        u32::try_from(place).ok().map(NodeId)
    }

    /// Sends something on its way to one end of a connection, behind what was sent before.
    fn send_on(&mut self, connection: u32, to: Side, what: Arrival) {
        let range = self.options.network.latency.clone();
        let arrival = self.now + self.duration(&range);
        let Some(end) = self.network.end_mut(connection, to) else { return };
        let at = arrival.max(end.last_arrival);
        end.last_arrival = at;
        self.schedule(at, Event::Arrive { connection, to, what });
    }

    pub(super) fn listen_on(&mut self, node: NodeId, address: SocketAddr) -> Result<ListenerId, SocketError> {
        let own = self.node(node).address;
        if !address.ip().is_unspecified() && !address.ip().is_loopback() && address.ip() != own {
            return Err(SocketError::AddressUnavailable);
        }
        let port = if address.port() == 0 { self.network.free_port(node) } else { address.port() };
        if self.network.listeners.contains_key(&(node, port)) {
            return Err(SocketError::AddressInUse);
        }
        self.network.listened += 1;
        let generation = self.network.listened;
        let bound = SocketAddr::new(address.ip(), port);
        self.network
            .listeners
            .insert((node, port), ListenerState { generation, bound, waiting: VecDeque::new() });
        Ok(ListenerId { index: u32::from(port), generation })
    }

    fn listener(&mut self, node: NodeId, id: ListenerId) -> Result<&mut ListenerState, SocketError> {
        let port = u16::try_from(id.index).map_err(|_| SocketError::Closed)?;
        let listener = self.network.listeners.get_mut(&(node, port));
        listener.filter(|listener| listener.generation == id.generation).ok_or(SocketError::Closed)
    }

    pub(super) fn listener_address(
        &mut self,
        node: NodeId,
        id: ListenerId,
    ) -> Result<SocketAddr, SocketError> {
        self.listener(node, id).map(|listener| listener.bound)
    }

    pub(super) fn accept_on(
        &mut self,
        node: NodeId,
        driver: usize,
        id: ListenerId,
    ) -> Result<Option<SocketId>, SocketError> {
        let Some(connection) = self.listener(node, id)?.waiting.pop_front() else { return Ok(None) };
        if let Some(end) = self.network.end_mut(connection, Side::Server) {
            end.driver = Some(driver);
        }
        Ok(Some(socket_id(connection, Side::Server)))
    }

    pub(super) fn close_listener(&mut self, node: NodeId, id: ListenerId) {
        let Ok(listener) = self.listener(node, id) else { return };
        let waiting = std::mem::take(&mut listener.waiting);
        let port = listener.bound.port();
        self.network.listeners.remove(&(node, port));
        for connection in waiting {
            self.close_socket(node, socket_id(connection, Side::Server));
        }
    }

    pub(super) fn connect_to(
        &mut self,
        node: NodeId,
        driver: usize,
        address: SocketAddr,
    ) -> Result<SocketId, SocketError> {
        let peer = self.node_at(node, address.ip()).ok_or(SocketError::Unreachable)?;
        let port = self.network.free_port(node);
        let own = if address.ip().is_loopback() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            self.node(node).address
        };
        let now = self.now;
        let end = |node: NodeId, incarnation, address| End {
            node,
            incarnation,
            driver: None,
            address,
            state: EndState::Opening,
            inbox: VecDeque::new(),
            coming: 0,
            last_arrival: now,
            ended: false,
            blocked: false,
            shut_down: false,
        };
        let mut client = end(node, self.node(node).incarnation, SocketAddr::new(own, port));
        client.driver = Some(driver);
        let server = end(peer, self.node(peer).incarnation, address);
        self.network.connected += 1;
        let connection = self.network.connected;
        self.network.connections.insert(connection, Connection { ends: [client, server] });
        let timeout = self.now + self.options.network.connect_timeout;
        self.schedule(timeout, Event::ConnectTimeout { connection });
        self.send_on(connection, Side::Server, Arrival::Open);
        Ok(socket_id(connection, Side::Client))
    }

    pub(super) fn arrive(&mut self, connection: u32, to: Side, what: Arrival) {
        let Some(ends) = self.network.connections.get(&connection).map(|connection| &connection.ends) else {
            return;
        };
        let link = (ends[to.other().index()].node, ends[to.index()].node);
        if self.network.blocked.contains(&link) {
            self.network.stalled.push((link, Event::Arrive { connection, to, what }));
            return;
        }
        let size = if let Arrival::Data(bytes) = &what { bytes.len() as u64 } else { 0 };
        self.note([u64::from(connection) << 1 | u64::from(to == Side::Server), size]);
        let node = link.1;
        if !self.node(node).up {
            return;
        }
        let current = self.node(node).incarnation;
        if let Arrival::Open = what {
            self.open_arrives(connection, node, current);
            return;
        }
        let Some(end) = self.network.end_mut(connection, to) else { return };
        if end.incarnation != current || end.state == EndState::Gone {
            // No one is there any more; the machine says so to whoever still sends.
            end.state = EndState::Gone;
            if !matches!(what, Arrival::Failed(_)) {
                self.send_on(connection, to.other(), Arrival::Failed(SocketError::Reset));
            }
            self.network.reap(connection);
            return;
        }
        match what {
            Arrival::Open => {}
            Arrival::Opened => end.state = EndState::Open,
            Arrival::Data(bytes) => {
                end.coming -= bytes.len();
                end.inbox.extend(bytes);
            }
            Arrival::End => end.ended = true,
            Arrival::Failed(error) => end.state = EndState::Failed(error),
        }
        self.stir_socket(connection, to);
    }

    /// Something happened to a socket: its node looks.
    fn stir_socket(&mut self, connection: u32, side: Side) {
        let Some(end) = self.network.end_mut(connection, side) else { return };
        let (node, driver) = (end.node, end.driver);
        if let Some(driver) = driver {
            self.drivers[driver].ready.push(socket_id(connection, side));
        }
        self.stir(node);
    }

    fn open_arrives(&mut self, connection: u32, node: NodeId, incarnation: u64) {
        let backlog = self.options.network.backlog;
        let Some(end) = self.network.end_mut(connection, Side::Server) else { return };
        let (port, address) = (end.address.port(), end.address.ip());
        let listener = self.network.listeners.get_mut(&(node, port)).filter(|listener| {
            let bound = listener.bound.ip();
            listener.waiting.len() < backlog && (bound.is_unspecified() || bound == address)
        });
        let Some(listener) = listener else {
            self.send_on(connection, Side::Client, Arrival::Failed(SocketError::Refused));
            if let Some(end) = self.network.end_mut(connection, Side::Server) {
                end.state = EndState::Gone;
            }
            return;
        };
        listener.waiting.push_back(connection);
        if let Some(end) = self.network.end_mut(connection, Side::Server) {
            end.state = EndState::Open;
            end.incarnation = incarnation;
        }
        self.send_on(connection, Side::Client, Arrival::Opened);
        self.stir(node);
    }

    pub(super) fn connect_timeout(&mut self, connection: u32) {
        let Some(end) = self.network.end_mut(connection, Side::Client) else { return };
        if end.state == EndState::Opening {
            end.state = EndState::Failed(SocketError::TimedOut);
            self.stir_socket(connection, Side::Client);
        }
    }

    pub(super) fn has_room(&mut self, connection: u32, side: Side) {
        self.stir_socket(connection, side);
    }

    /// The caller's end, if it is usable; `None` while it is being opened.
    fn own_end(&mut self, node: NodeId, socket: SocketId) -> Result<Option<&mut End>, SocketError> {
        let (connection, side) = place_of(socket);
        let incarnation = self.node(node).incarnation;
        let end = self.network.end_mut(connection, side).ok_or(SocketError::Closed)?;
        if end.node != node || end.incarnation != incarnation {
            return Err(SocketError::Closed);
        }
        match end.state {
            EndState::Opening => Ok(None),
            EndState::Open => Ok(Some(end)),
            EndState::Failed(error) if end.inbox.is_empty() => Err(error),
            // What came before the failure can still be read.
            EndState::Failed(_) => Ok(Some(end)),
            EndState::Gone => Err(SocketError::Closed),
        }
    }

    pub(super) fn receive_on(
        &mut self,
        node: NodeId,
        socket: SocketId,
        targets: &mut [IoSliceMut<'_>],
    ) -> Result<Received, SocketError> {
        let chance = self.options.network.partial;
        let wanted: usize = targets.iter().map(|target| target.len()).sum();
        let mut count = match self.own_end(node, socket)? {
            None => return Ok(Received::Nothing),
            Some(end) if end.inbox.is_empty() && end.ended && wanted > 0 => return Ok(Received::End),
            Some(end) => wanted.min(end.inbox.len()),
        };
        if count == 0 {
            return Ok(Received::Nothing);
        }
        if chance.draw(&mut self.random) {
            count = usize::try_from(self.random.within(1..count as u64 + 1)).unwrap_or(count);
        }
        let Some(end) = self.own_end(node, socket)? else { return Ok(Received::Nothing) };
        let mut taken = end.inbox.drain(..count);
        let mut left = count;
        for target in targets {
            let part = left.min(target.len());
            for (byte, arrived) in target[..part].iter_mut().zip(&mut taken) {
                *byte = arrived;
            }
            left -= part;
        }
        drop(taken);
        self.tell_of_room(socket);
        Ok(Received::Bytes(count))
    }

    pub(super) fn has_peer_ended(&mut self, node: NodeId, socket: SocketId) -> bool {
        match self.own_end(node, socket) {
            Ok(end) => end.is_some_and(|end| end.ended || matches!(end.state, EndState::Failed(_))),
            Err(_) => true,
        }
    }

    /// The other end may send again, if it waits for that.
    fn tell_of_room(&mut self, socket: SocketId) {
        let (connection, side) = place_of(socket);
        let waits = self
            .network
            .end_mut(connection, side.other())
            .is_some_and(|end| std::mem::take(&mut end.blocked));
        if waits {
            let range = self.options.network.latency.clone();
            let at = self.now + self.duration(&range);
            self.schedule(at, Event::Room { connection, side: side.other() });
        }
    }

    pub(super) fn send_from(
        &mut self,
        node: NodeId,
        socket: SocketId,
        sources: &[Segment<'_>],
    ) -> Result<Sent, SocketError> {
        let (connection, side) = place_of(socket);
        let (chance, limit) = (self.options.network.partial, self.options.network.buffer_bytes);
        match self.own_end(node, socket)? {
            None => return Ok(Sent::Nothing),
            Some(end) => match end.state {
                EndState::Failed(error) => return Err(error),
                _ if end.shut_down => return Err(SocketError::Closed),
                _ => {}
            },
        }
        let wanted: usize = sources.iter().map(Segment::len).sum();
        let Some(peer) = self.network.end_mut(connection, side.other()) else {
            return Err(SocketError::Reset);
        };
        let room = limit.saturating_sub(peer.coming + peer.inbox.len());
        let mut count = wanted.min(room);
        if count > 1 && chance.draw(&mut self.random) {
            count = usize::try_from(self.random.within(1..count as u64)).unwrap_or(count);
        }
        if let Some(end) = self.network.end_mut(connection, side) {
            end.blocked = room < wanted;
        }
        if count == 0 {
            return Ok(if wanted == 0 { Sent::Bytes(0) } else { Sent::Nothing });
        }
        let mut bytes = Vec::with_capacity(count);
        for source in sources {
            source.truncate(count - bytes.len()).append_to(&mut bytes);
        }
        if let Some(peer) = self.network.end_mut(connection, side.other()) {
            peer.coming += count;
        }
        self.send_on(connection, side.other(), Arrival::Data(bytes));
        Ok(Sent::Bytes(count))
    }

    pub(super) fn shut_down_socket(&mut self, node: NodeId, socket: SocketId) {
        let (connection, side) = place_of(socket);
        if let Ok(Some(end)) = self.own_end(node, socket)
            && !std::mem::replace(&mut end.shut_down, true)
        {
            self.send_on(connection, side.other(), Arrival::End);
        }
    }

    pub(super) fn close_socket(&mut self, node: NodeId, socket: SocketId) {
        let (connection, side) = place_of(socket);
        let incarnation = self.node(node).incarnation;
        let Some(end) = self.network.end_mut(connection, side) else { return };
        if end.node != node || end.incarnation != incarnation {
            return;
        }
        let (unread, told) = (!end.inbox.is_empty() || end.coming > 0, end.shut_down);
        let state = std::mem::replace(&mut end.state, EndState::Gone);
        end.inbox.clear();
        if state == EndState::Open || state == EndState::Opening {
            // As the kernel does: unread data makes the end a reset.
            if unread || state == EndState::Opening {
                self.send_on(connection, side.other(), Arrival::Failed(SocketError::Reset));
            } else if !told {
                self.send_on(connection, side.other(), Arrival::End);
            }
        }
        self.network.reap(connection);
    }

    pub(super) fn addresses(
        &self,
        node: NodeId,
        socket: SocketId,
    ) -> Result<(SocketAddr, SocketAddr), SocketError> {
        let (connection, side) = place_of(socket);
        let connection = self.network.connections.get(&connection).ok_or(SocketError::Closed)?;
        let (own, peer) = (&connection.ends[side.index()], &connection.ends[side.other().index()]);
        if own.node != node || own.state == EndState::Gone {
            return Err(SocketError::Closed);
        }
        Ok((own.address, peer.address))
    }

    /// A node's processes are no more; with `tell`, its kernel is still there to tell the peers.
    pub(super) fn drop_connections(&mut self, node: NodeId, tell: bool) {
        let mine: Vec<(u32, Side)> = self
            .network
            .connections
            .iter()
            .flat_map(|(id, connection)| {
                [Side::Client, Side::Server].into_iter().filter_map(|side| {
                    let end = &connection.ends[side.index()];
                    (end.node == node && end.state != EndState::Gone).then_some((*id, side))
                })
            })
            .collect();
        for (connection, side) in mine {
            if let Some(end) = self.network.end_mut(connection, side) {
                end.state = EndState::Gone;
                end.inbox.clear();
            }
            if tell {
                let ends = self.random.chance(1, 2);
                let what = if ends { Arrival::End } else { Arrival::Failed(SocketError::Reset) };
                self.send_on(connection, side.other(), what);
            }
            self.network.reap(connection);
        }
    }

    pub(super) fn unblock(&mut self, from: NodeId, to: NodeId) {
        self.network.blocked.remove(&(from, to));
        let stalled = std::mem::take(&mut self.network.stalled);
        let range = self.options.network.latency.clone();
        let at = self.now + self.duration(&range);
        for (link, event) in stalled {
            if link == (from, to) {
                if let Event::Arrive { connection, to, .. } = &event
                    && let Some(end) = self.network.end_mut(*connection, *to)
                {
                    end.last_arrival = end.last_arrival.max(at);
                }
                self.schedule(at, event);
            } else {
                self.network.stalled.push((link, event));
            }
        }
    }
}
