//! The byte stream below a connection.

use std::io::IoSliceMut;

use basalt_dma::Segment;
use basalt_reactor::{Received, Sent, Socket, SocketError};

/// A connected byte stream that never blocks: a reactor's socket, or a pipe of a test.
pub trait Wire {
    /// Reads what has come into `targets`, in order.
    ///
    /// # Errors
    /// The cause; the connection is over.
    fn receive(&self, targets: &mut [IoSliceMut<'_>]) -> Result<Received, SocketError>;

    /// Sends a part of `sources`, in order.
    ///
    /// # Errors
    /// The cause; the connection is over.
    fn send(&self, sources: &[Segment<'_>]) -> Result<Sent, SocketError>;

    /// Tells the peer that nothing more will be sent.
    fn shutdown(&self);

    /// Whether the peer has ended or broken the connection, though there may be more to receive.
    fn has_peer_ended(&self) -> bool;
}

impl Wire for Socket {
    fn receive(&self, targets: &mut [IoSliceMut<'_>]) -> Result<Received, SocketError> {
        Socket::receive_vectored(self, targets)
    }

    fn send(&self, sources: &[Segment<'_>]) -> Result<Sent, SocketError> {
        Socket::send(self, sources)
    }

    fn shutdown(&self) {
        Socket::shutdown(self);
    }

    fn has_peer_ended(&self) -> bool {
        Socket::has_peer_ended(self)
    }
}
