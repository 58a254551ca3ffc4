//! Opening connections: the connector for gRPC channels, with TLS or, on loopback only, without.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client};

use crate::{Credentials, Identity, IdentityError};

/// How a process speaks to the others.
#[derive(Debug, Clone)]
pub enum Security {
    /// Mutual TLS.
    Tls(Arc<Credentials>),
    /// Neither encrypted nor authenticated: for development, on loopback. Callers state who they are.
    Plaintext(Identity),
}

impl Security {
    /// Who this process is.
    pub fn identity(&self) -> &Identity {
        match self {
            Security::Tls(credentials) => credentials.identity(),
            Security::Plaintext(identity) => identity,
        }
    }

    /// Refuses an address that is not loopback when there is no TLS. For listeners and for endpoints that are dialled.
    pub fn check_address(&self, address: SocketAddr) -> Result<(), IdentityError> {
        match self {
            Security::Plaintext(_) if !address.ip().is_loopback() => {
                Err(IdentityError::PlaintextOffLoopback { address })
            }
            Security::Tls(_) | Security::Plaintext(_) => Ok(()),
        }
    }
}

/// A connector for `tonic::transport::Endpoint::connect_with_connector`. The endpoint's URI is `http://host:port` in either
/// case: the connector decides about TLS.
#[derive(Debug, Clone)]
pub struct Connector {
    security: Security,
}

impl Connector {
    /// A connector.
    pub fn new(security: Security) -> Self {
        Self { security }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<MaybeTls>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let security = self.security.clone();
        Box::pin(async move { Ok(TokioIo::new(open(&security, &uri).await?)) })
    }
}

async fn open(security: &Security, uri: &Uri) -> io::Result<MaybeTls> {
    let invalid = |message| io::Error::new(io::ErrorKind::InvalidInput, message);
    let host = uri.host().ok_or_else(|| invalid("the address has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().ok_or_else(|| invalid("the address has no port"))?;
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), port)).await?.collect();
    for address in &addresses {
        security.check_address(*address).map_err(io::Error::other)?;
    }
    let stream = TcpStream::connect(addresses.as_slice()).await?;
    stream.set_nodelay(true)?;
    match security {
        Security::Tls(credentials) => {
            let name =
                ServerName::try_from(host).map_err(|_| invalid("the host is not a name or address"))?;
            let stream = TlsConnector::from(credentials.client_config()).connect(name, stream).await?;
            Ok(MaybeTls::Tls(Box::new(stream)))
        }
        Security::Plaintext(_) => Ok(MaybeTls::Plaintext(stream)),
    }
}

/// An open connection of a client.
#[derive(Debug)]
pub enum MaybeTls {
    /// Encrypted and authenticated.
    Tls(Box<client::TlsStream<TcpStream>>),
    /// Plain, on loopback.
    Plaintext(TcpStream),
}

impl AsyncRead for MaybeTls {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            MaybeTls::Plaintext(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for MaybeTls {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            MaybeTls::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
            MaybeTls::Plaintext(stream) => Pin::new(stream).poll_write(context, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Tls(stream) => Pin::new(stream).poll_flush(context),
            MaybeTls::Plaintext(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            MaybeTls::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            MaybeTls::Plaintext(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
