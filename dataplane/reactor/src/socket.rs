use std::fmt;
use std::io::IoSliceMut;
use std::net::SocketAddr;

use basalt_dma::Segment;

use crate::driver::{ListenerId, Received, Sent, SharedListener, SocketError, SocketId};
use crate::handle::Handle;
use crate::watch::ReadyList;

/// A listening socket. Closes when it is dropped.
pub struct Listener {
    handle: Handle,
    id: ListenerId,
}

impl Listener {
    pub(crate) fn new(handle: Handle, id: ListenerId) -> Self {
        Self { handle, id }
    }

    /// Whether a connection may wait to be taken; false only if none does.
    #[must_use]
    pub fn may_accept(&self) -> bool {
        self.handle.driver().may_accept(self.id)
    }

    /// Takes one connection that a peer made, if there is one. Costs no system call while there is none.
    ///
    /// # Errors
    /// The cause; the listener stays usable.
    pub fn accept(&self) -> Result<Option<Socket>, SocketError> {
        let accepted = self.handle.driver().accept(self.id)?;
        Ok(accepted.map(|id| Socket::new(self.handle.clone(), id)))
    }

    /// A second hold of it, for [`Handle::adopt_listener`] on another reactor of this process.
    ///
    /// # Errors
    /// The cause; [`SocketError::Unsupported`] in a simulation.
    pub fn share(&self) -> Result<SharedListener, SocketError> {
        self.handle.driver().share_listener(self.id)
    }

    /// The address that it is bound to, with the port that was given to it.
    ///
    /// # Errors
    /// The cause.
    pub fn local_address(&self) -> Result<SocketAddr, SocketError> {
        self.handle.driver().listener_address(self.id)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.handle.driver().close_listener(self.id);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A connected stream socket, or one that is being connected. Never blocks. Closes when it is dropped; what was taken by
/// [`Socket::send`] is still delivered.
///
/// Asking costs no system call while the driver knows that there is nothing to have, so a poller simply asks every turn.
pub struct Socket {
    handle: Handle,
    id: SocketId,
}

impl Socket {
    pub(crate) fn new(handle: Handle, id: SocketId) -> Self {
        Self { handle, id }
    }

    /// Reads what has come into `target`.
    ///
    /// # Errors
    /// The cause; the connection is over.
    pub fn receive(&self, target: &mut [u8]) -> Result<Received, SocketError> {
        self.receive_vectored(&mut [IoSliceMut::new(target)])
    }

    /// Reads what has come into several places, one after the other.
    ///
    /// # Errors
    /// The cause; the connection is over.
    pub fn receive_vectored(&self, targets: &mut [IoSliceMut<'_>]) -> Result<Received, SocketError> {
        self.handle.driver().receive(self.id, targets)
    }

    /// Sends a part of `sources`, in order, and answers how much of it; see [`Segment::skip`] for the rest.
    ///
    /// # Errors
    /// The cause; the connection is over.
    pub fn send(&self, sources: &[Segment<'_>]) -> Result<Sent, SocketError> {
        self.handle.driver().send(self.id, sources)
    }

    /// From now on `token` is put into `list` when something happens to this socket: data or room came, the peer ended, a
    /// connection was made or failed; and once at once. It replaces an earlier watch. After that a receive or send may be left
    /// out until the token comes, once one has answered `Nothing` (or an error): so thousands of idle sockets cost nothing.
    pub fn watch(&self, list: &ReadyList, token: u64) {
        self.handle.local().watches.borrow_mut().set(self.id, list, token);
    }

    /// Tells the peer that nothing more will be sent.
    pub fn shutdown(&self) {
        self.handle.driver().shutdown(self.id);
    }

    /// This side's address.
    ///
    /// # Errors
    /// The cause.
    pub fn local_address(&self) -> Result<SocketAddr, SocketError> {
        self.handle.driver().local_address(self.id)
    }

    /// The other side's address.
    ///
    /// # Errors
    /// The cause.
    pub fn peer_address(&self) -> Result<SocketAddr, SocketError> {
        self.handle.driver().peer_address(self.id)
    }

    /// Whether the other side has ended or broken the connection, as far as this machine knows, though there may be more to receive. Asks the
    /// system: not for every request.
    #[must_use]
    pub fn has_peer_ended(&self) -> bool {
        self.handle.driver().has_peer_ended(self.id)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.handle.local().watches.borrow_mut().clear(self.id);
        self.handle.driver().close(self.id);
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("id", &self.id).finish_non_exhaustive()
    }
}
