//! Accepting connections: TLS handshakes off to the side, identities taken from certificates once per connection.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use basalt_identity::{Identity, Security};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// Connections of one listener, handshakes included; at the limit new ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4_096;
/// Connections that wait to be served.
const READY_MAX: usize = 64;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after the system refused to accept (out of descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a listener does not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({purpose}): {source}; free the port or choose another address")]
pub(crate) struct ListenError {
    address: SocketAddr,
    purpose: &'static str,
    source: io::Error,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct PeerInfo {
    /// From the certificate; `None` without TLS.
    pub(crate) identity: Option<Identity>,
}

/// An accepted connection.
pub(crate) struct Connection {
    stream: Stream,
    info: PeerInfo,
    /// Counts against [`CONNECTIONS_MAX`].
    _permit: OwnedSemaphorePermit,
}

enum Stream {
    Tls(Box<server::TlsStream<TcpStream>>),
    Plaintext(TcpStream),
}

/// Listens. The stream yields connections whose handshake is done.
pub(crate) async fn listen(
    address: SocketAddr,
    purpose: &'static str,
    security: Security,
) -> Result<ReceiverStream<io::Result<Connection>>, ListenError> {
    let error = |source| ListenError { address, purpose, source };
    security.check_address(address).map_err(|cause| error(io::Error::other(cause)))?;
    let listener = TcpListener::bind(address).await.map_err(error)?;
    let (ready, stream) = mpsc::channel(READY_MAX);
    tokio::spawn(accept(listener, security, ready));
    Ok(ReceiverStream::new(stream))
}

async fn accept(listener: TcpListener, security: Security, ready: mpsc::Sender<io::Result<Connection>>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = ready.closed() => return,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (security, ready) = (security.clone(), ready.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE_TIMEOUT, handshake(stream, &security, permit)).await {
                Ok(Ok(connection)) => {
                    // The server is shutting down when nobody receives.
                    drop(ready.send(Ok(connection)).await);
                }
                Ok(Err(error)) => refused(from, &error),
                Err(_) => refused(from, &io::Error::from(io::ErrorKind::TimedOut)),
            }
        });
    }
}

fn refused(from: SocketAddr, error: &io::Error) {
    metrics::counter!("basalt_control_handshakes_failed_total").increment(1);
    tracing::debug!(%from, %error, "a handshake failed");
}

async fn handshake(
    stream: TcpStream,
    security: &Security,
    permit: OwnedSemaphorePermit,
) -> io::Result<Connection> {
    stream.set_nodelay(true)?;
    let Security::Tls(credentials) = security else {
        let info = PeerInfo { identity: None };
        return Ok(Connection { stream: Stream::Plaintext(stream), info, _permit: permit });
    };
    let stream = TlsAcceptor::from(credentials.server_config()).accept(stream).await?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let identity =
        certificates.first().map(Identity::of_certificate).transpose().map_err(io::Error::other)?;
    Ok(Connection { stream: Stream::Tls(Box::new(stream)), info: PeerInfo { identity }, _permit: permit })
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Plaintext(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
            Stream::Plaintext(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
            Stream::Plaintext(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Plaintext(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
