use std::io::{self, IoSliceMut, Read};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};

use basalt_dma::Segment;

use super::epoll::{Epoll, Readiness, own};
use crate::driver::{Errno, ListenerId, Received, Sent, SharedListener, SocketError, SocketId};

/// Turns for which a socket that had data is asked directly before its readiness event comes.
const HOT_TURNS: u64 = 256;
/// With more busy sockets than this, one look at the readiness events is cheaper than asking each of them.
const HOT_SOCKETS_MAX: usize = 4;
/// While few sockets are hot, readiness events are taken only in every so manieth turn.
const EVENT_PERIOD: u64 = 8;
/// A receive of this much is bulk: its socket is not asked before more is there, as asking takes the lock that the sender of the rest wants.
const BULK_BYTES: usize = 32 << 10;
/// Congestion control within one machine: of what every kernel has, the one that does least.
const LOCAL_CONGESTION: &[u8] = b"reno";
/// Silence after which a peer that connected is asked whether it is still there.
const KEEP_ALIVE_IDLE_SECONDS: u32 = 60;
/// Time between such questions.
const KEEP_ALIVE_INTERVAL_SECONDS: u32 = 15;
/// Questions without an answer after which the connection is over.
const KEEP_ALIVE_PROBES: u32 = 8;
/// Time after which it is over if the peer does not take what was sent: the same, as nothing is asked while something is on its way.
const USER_TIMEOUT_MS: u32 =
    (KEEP_ALIVE_IDLE_SECONDS + KEEP_ALIVE_INTERVAL_SECONDS * KEEP_ALIVE_PROBES) * 1000;
/// Parts of one send; more are left for the next.
const PARTS_MAX: usize = 1024;

/// The sockets of one driver.
///
/// Each knows from edge-triggered events whether a system call could give anything, and makes none otherwise: thousands of idle
/// sockets cost nothing. A few busy ones with short messages are asked directly, which saves taking their events.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    slots: Vec<Slot>,
    free: Vec<u32>,
    turn: u64,
    hot: usize,
    /// Sockets that had an event, until the reactor asks.
    stirred: Vec<SocketId>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// Reading could give something.
    readable: bool,
    /// Writing could take something.
    writable: bool,
    /// The peer has ended its side, or the socket failed: reading always gives something from now on.
    ended: bool,
    /// Counted in `Sockets::hot` until this turn has passed and someone asks.
    hot_until: Option<u64>,
    end: End,
}

#[derive(Debug)]
enum End {
    Free,
    Listener(TcpListener),
    Connecting(TcpStream),
    Connected(TcpStream),
}

impl Sockets {
    /// Begins a turn; true if readiness events should be taken in it.
    pub(super) fn begin_turn(&mut self) -> bool {
        self.turn += 1;
        if self.slots.len() == self.free.len() {
            return false;
        }
        !self.asks_directly() || self.turn.is_multiple_of(EVENT_PERIOD)
    }

    fn asks_directly(&self) -> bool {
        (1..=HOT_SOCKETS_MAX).contains(&self.hot)
    }

    /// Notes an event.
    pub(super) fn ready(&mut self, token: u64, readiness: Readiness) {
        let (index, generation) = (token & u64::from(u32::MAX), token >> 32);
        let slot = usize::try_from(index).ok().and_then(|index| self.slots.get_mut(index));
        if let Some(slot) = slot.filter(|slot| u64::from(slot.generation) == generation) {
            slot.readable |= readiness.readable;
            slot.writable |= readiness.writable;
            slot.ended |= readiness.ended;
            if !matches!(slot.end, End::Listener(_))
                && let Ok(index) = u32::try_from(index)
            {
                self.stirred.push(SocketId { index, generation: slot.generation });
            }
        }
    }

    pub(super) fn take_ready(&mut self, ready: &mut Vec<SocketId>) {
        ready.append(&mut self.stirred);
    }

    fn insert(&mut self, epoll: &Epoll, end: End) -> Result<(u32, u32), SocketError> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => u32::try_from(self.slots.len()).map_err(|_| SocketError::TooManyOpen)?,
        };
        if index as usize == self.slots.len() {
            let slot = Slot {
                generation: 0,
                readable: false,
                writable: false,
                ended: false,
                hot_until: None,
                end: End::Free,
            };
            self.slots.push(slot);
        }
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        let token = u64::from(slot.generation) << 32 | u64::from(index);
        let added = match &end {
            End::Listener(listener) => epoll.add(listener, token, true),
            End::Connecting(stream) | End::Connected(stream) => epoll.add(stream, token, true),
            End::Free => Ok(()),
        };
        if let Err(error) = added {
            self.free.push(index);
            return Err(error_of(&error));
        }
        // A connection may have data already; asking once costs little.
        slot.readable = !matches!(end, End::Connecting(_));
        slot.writable = matches!(end, End::Connected(_));
        slot.ended = false;
        slot.hot_until = None;
        slot.end = end;
        Ok((index, slot.generation))
    }

    fn remove(&mut self, index: u32, generation: u32) {
        if let Some(slot) = self.slots.get_mut(index as usize)
            && slot.generation == generation
            && !matches!(slot.end, End::Free)
        {
            if slot.hot_until.take().is_some() {
                self.hot -= 1;
            }
            slot.end = End::Free;
            self.free.push(index);
        }
    }

    fn slot(&self, index: u32, generation: u32) -> Option<&Slot> {
        self.slots.get(index as usize).filter(|slot| slot.generation == generation)
    }

    pub(super) fn listen(&mut self, address: SocketAddr, epoll: &Epoll) -> Result<ListenerId, SocketError> {
        let listener = TcpListener::bind(address).map_err(|error| error_of(&error))?;
        listener.set_nonblocking(true).map_err(|error| error_of(&error))?;
        let (index, generation) = self.insert(epoll, End::Listener(listener))?;
        Ok(ListenerId { index, generation })
    }

    pub(super) fn share_listener(&self, id: ListenerId) -> Result<SharedListener, SocketError> {
        self.listener(id)?.try_clone().map(SharedListener).map_err(|error| error_of(&error))
    }

    pub(super) fn adopt_listener(
        &mut self,
        shared: SharedListener,
        epoll: &Epoll,
    ) -> Result<ListenerId, SocketError> {
        let (index, generation) = self.insert(epoll, End::Listener(shared.0))?;
        Ok(ListenerId { index, generation })
    }

    fn listener(&self, id: ListenerId) -> Result<&TcpListener, SocketError> {
        match self.slot(id.index, id.generation).map(|slot| &slot.end) {
            Some(End::Listener(listener)) => Ok(listener),
            _ => Err(SocketError::Closed),
        }
    }

    pub(super) fn listener_address(&self, id: ListenerId) -> Result<SocketAddr, SocketError> {
        self.listener(id)?.local_addr().map_err(|error| error_of(&error))
    }

    pub(super) fn close_listener(&mut self, id: ListenerId) {
        self.remove(id.index, id.generation);
    }

    pub(super) fn may_accept(&self, id: ListenerId) -> bool {
        // One that is none says so when it is asked to accept.
        self.slot(id.index, id.generation).is_none_or(|slot| slot.readable)
    }

    pub(super) fn accept(&mut self, id: ListenerId, epoll: &Epoll) -> Result<Option<SocketId>, SocketError> {
        let listener = self.listener(id)?;
        if !self.slots[id.index as usize].readable {
            return Ok(None);
        }
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.slots[id.index as usize].readable = false;
                return Ok(None);
            }
            Err(error) => return Err(error_of(&error)),
        };
        stream.set_nonblocking(true).map_err(|error| error_of(&error))?;
        stream.set_nodelay(true).map_err(|error| error_of(&error))?;
        ease_if_local(&stream);
        notice_its_end(&stream);
        let (index, generation) = self.insert(epoll, End::Connected(stream))?;
        Ok(Some(SocketId { index, generation }))
    }

    pub(super) fn connect(&mut self, address: SocketAddr, epoll: &Epoll) -> Result<SocketId, SocketError> {
        let stream = begin_connect(address).map_err(|error| error_of(&error))?;
        stream.set_nodelay(true).map_err(|error| error_of(&error))?;
        let (index, generation) = self.insert(epoll, End::Connecting(stream))?;
        Ok(SocketId { index, generation })
    }

    /// The slot of a connected socket; `None` while it is being connected.
    fn connected(&mut self, id: SocketId) -> Result<Option<(&mut Slot, &mut usize)>, SocketError> {
        let slot = self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation);
        let Some(slot) = slot else { return Err(SocketError::Closed) };
        match &slot.end {
            End::Connected(_) => Ok(Some((slot, &mut self.hot))),
            End::Connecting(_) if !slot.writable => Ok(None),
            End::Connecting(stream) => {
                if let Some(error) = stream.take_error().map_err(|error| error_of(&error))? {
                    return Err(error_of(&error));
                }
                if let End::Connecting(stream) = std::mem::replace(&mut slot.end, End::Free) {
                    ease_if_local(&stream);
                    slot.end = End::Connected(stream);
                }
                slot.readable = true;
                Ok(Some((slot, &mut self.hot)))
            }
            End::Free | End::Listener(_) => Err(SocketError::Closed),
        }
    }

    pub(super) fn receive(
        &mut self,
        id: SocketId,
        targets: &mut [IoSliceMut<'_>],
    ) -> Result<Received, SocketError> {
        let (turn, ask_directly) = (self.turn, self.asks_directly());
        let Some((slot, hot)) = self.connected(id)? else { return Ok(Received::Nothing) };
        if slot.hot_until.is_some_and(|until| until < turn) {
            slot.hot_until = None;
            *hot -= 1;
        }
        let ask = slot.readable || (ask_directly && slot.hot_until.is_some());
        let End::Connected(stream) = &mut slot.end else { return Err(SocketError::Closed) };
        if !ask {
            return Ok(Received::Nothing);
        }
        let wanted: usize = targets.iter().map(|target| target.len()).sum();
        let result = match targets {
            [target] => stream.read(target),
            targets => stream.read_vectored(&mut targets[..]),
        };
        match result {
            Ok(0) if wanted > 0 => Ok(Received::End),
            Ok(0) => Ok(Received::Nothing),
            Ok(count) => {
                // Less than was wanted: the kernel's buffer is empty, and an event will tell when it is not.
                slot.readable = count == wanted || slot.ended;
                let until = (count < BULK_BYTES).then_some(turn + HOT_TURNS);
                let was_hot = std::mem::replace(&mut slot.hot_until, until).is_some();
                *hot = *hot + usize::from(until.is_some()) - usize::from(was_hot);
                Ok(Received::Bytes(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                slot.readable = false;
                Ok(Received::Nothing)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Received::Nothing),
            Err(error) => Err(error_of(&error)),
        }
    }

    pub(super) fn send(&mut self, id: SocketId, sources: &[Segment<'_>]) -> Result<Sent, SocketError> {
        let Some((slot, _)) = self.connected(id)? else { return Ok(Sent::Nothing) };
        let End::Connected(stream) = &slot.end else { return Err(SocketError::Closed) };
        if !slot.writable {
            return Ok(Sent::Nothing);
        }
        let parts = sources.len().min(PARTS_MAX);
        // SAFETY: all zeroes is a valid message header without name and control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = sources.as_ptr().cast_mut().cast();
        message.msg_iovlen = parts;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: a segment has the layout of an iovec and its bytes outlive the call, which only reads them.
        let count = unsafe { libc::sendmsg(stream.as_raw_fd(), &raw const message, flags) };
        match usize::try_from(count) {
            Ok(count) => Ok(Sent::Bytes(count)),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => {
                    slot.writable = false;
                    Ok(Sent::Nothing)
                }
                error if error.kind() == io::ErrorKind::Interrupted => Ok(Sent::Nothing),
                error => Err(error_of(&error)),
            },
        }
    }

    fn stream(&self, id: SocketId) -> Result<&TcpStream, SocketError> {
        match self.slot(id.index, id.generation).map(|slot| &slot.end) {
            Some(End::Connected(stream) | End::Connecting(stream)) => Ok(stream),
            _ => Err(SocketError::Closed),
        }
    }

    pub(super) fn shutdown(&mut self, id: SocketId) {
        if let Ok(stream) = self.stream(id) {
            // It fails only if the connection is over already.
            drop(stream.shutdown(Shutdown::Write));
        }
    }

    pub(super) fn close(&mut self, id: SocketId) {
        self.remove(id.index, id.generation);
    }

    pub(super) fn local_address(&self, id: SocketId) -> Result<SocketAddr, SocketError> {
        self.stream(id)?.local_addr().map_err(|error| error_of(&error))
    }

    pub(super) fn peer_address(&self, id: SocketId) -> Result<SocketAddr, SocketError> {
        self.stream(id)?.peer_addr().map_err(|error| error_of(&error))
    }

    pub(super) fn has_peer_ended(&self, id: SocketId) -> bool {
        let Ok(stream) = self.stream(id) else { return true };
        let mut asked = libc::pollfd { fd: stream.as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: one entry, valid for the call, which does not wait.
        let count = unsafe { libc::poll(&raw mut asked, 1, 0) };
        count > 0
    }
}

/// Between two ends on one machine nothing is lost and nothing is shared with others, but what was made for long paths still takes its time:
/// BBR holds back what is sent until timers let it go.
fn ease_if_local(stream: &TcpStream) {
    let (Ok(local), Ok(peer)) = (stream.local_addr(), stream.peer_addr()) else { return };
    if local.ip() != peer.ip() {
        return;
    }
    set_option(stream, libc::IPPROTO_TCP, libc::TCP_CONGESTION, LOCAL_CONGESTION);
}

/// A peer that vanishes without a word, as by loss of power, ends its connection within minutes, and not never.
fn notice_its_end(stream: &TcpStream) {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEP_ALIVE_IDLE_SECONDS),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEP_ALIVE_INTERVAL_SECONDS),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEP_ALIVE_PROBES),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, USER_TIMEOUT_MS),
    ];
    for (level, name, value) in options {
        set_option(stream, level, name, &value.to_ne_bytes());
    }
}

/// Sets an option without which a socket serves as well, only slower or for longer.
fn set_option(stream: &TcpStream, level: libc::c_int, name: libc::c_int, value: &[u8]) {
    let length = libc::socklen_t::try_from(value.len()).unwrap_or(0);
    // SAFETY: the value is readable for its length. A refusal by the system is no reason to refuse the peer.
    unsafe { libc::setsockopt(stream.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
}

/// A non-blocking socket on its way to `address`.
fn begin_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointers.
    let socket: OwnedFd = own(unsafe { libc::socket(family, kind, 0) })?;
    let result = match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: family_of(family),
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            };
            raw_connect(&socket, &raw)
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: family_of(family),
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            raw_connect(&socket, &raw)
        }
    };
    match result {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(TcpStream::from(socket)),
    }
}

fn family_of(family: libc::c_int) -> libc::sa_family_t {
    if family == libc::AF_INET { 2 } else { 10 }
}

fn raw_connect<T>(socket: &OwnedFd, address: &T) -> io::Result<()> {
    let Ok(length) = libc::socklen_t::try_from(size_of::<T>()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let address = std::ptr::from_ref(address).cast();
    // SAFETY: the address is a complete `sockaddr_in` or `sockaddr_in6` of the given length.
    let result = unsafe { libc::connect(socket.as_raw_fd(), address, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn error_of(error: &io::Error) -> SocketError {
    let Some(errno) = error.raw_os_error() else { return SocketError::System(Errno(libc::EIO)) };
    match errno {
        libc::EADDRINUSE => SocketError::AddressInUse,
        libc::EADDRNOTAVAIL => SocketError::AddressUnavailable,
        libc::ECONNREFUSED => SocketError::Refused,
        libc::ECONNRESET | libc::EPIPE | libc::ECONNABORTED => SocketError::Reset,
        libc::ENETUNREACH | libc::EHOSTUNREACH => SocketError::Unreachable,
        libc::ETIMEDOUT => SocketError::TimedOut,
        libc::EMFILE | libc::ENFILE => SocketError::TooManyOpen,
        libc::EACCES | libc::EPERM => SocketError::PermissionDenied,
        errno => SocketError::System(Errno(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(stream: &TcpStream, level: libc::c_int, name: libc::c_int) -> u32 {
        let mut value = 0u32;
        let mut length = libc::socklen_t::try_from(size_of::<u32>()).unwrap();
        let (fd, place) = (stream.as_raw_fd(), (&raw mut value).cast());
        // SAFETY: the value is writable for the length that is told.
        let result = unsafe { libc::getsockopt(fd, level, name, place, &raw mut length) };
        assert_eq!((result, length), (0, 4));
        value
    }

    #[test]
    fn a_peer_that_connected_and_vanished_is_noticed() {
        let epoll = Epoll::new().unwrap();
        let mut sockets = Sockets::default();
        let listener = sockets.listen("127.0.0.1:0".parse().unwrap(), &epoll).unwrap();
        let _peer = TcpStream::connect(sockets.listener_address(listener).unwrap()).unwrap();
        let accepted = sockets.accept(listener, &epoll).unwrap().unwrap();
        let stream = sockets.stream(accepted).unwrap();
        let tcp = |name| option(stream, libc::IPPROTO_TCP, name);
        assert_eq!(option(stream, libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
        assert_eq!([tcp(libc::TCP_KEEPIDLE), tcp(libc::TCP_KEEPINTVL), tcp(libc::TCP_KEEPCNT)], [60, 15, 8]);
        assert_eq!(tcp(libc::TCP_USER_TIMEOUT), 180_000);
        // Who connects decides by itself how long it waits.
        let other = sockets.connect("127.0.0.1:9".parse().unwrap(), &epoll).unwrap();
        assert_eq!(option(sockets.stream(other).unwrap(), libc::SOL_SOCKET, libc::SO_KEEPALIVE), 0);
    }
}
