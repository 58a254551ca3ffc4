//! What goes wrong with identities and certificates.

use std::{io, net::SocketAddr, path::PathBuf};

/// What goes wrong with identities and certificates.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A name that cannot be part of an identity.
    #[error("{part} {value:?} must be 1 to 253 of the characters a-z, 0-9, '-' and '.'")]
    Name {
        /// Which part of the identity.
        part: &'static str,
        /// What was given.
        value: String,
    },
    /// Not the URI of an identity.
    #[error("{uri:?} is not an identity; expected basalt://<cluster>/<member|node|operator|cli>/<name>")]
    Uri {
        /// What was given.
        uri: String,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// "read", "write", ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} does not hold {expected}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The directory holds the authority of another cluster.
    #[error("{} holds the authority of cluster {found:?}, not {expected:?}; use another directory", path.display())]
    OtherCluster {
        /// The authority's certificate.
        path: PathBuf,
        /// The cluster that it is of.
        found: String,
        /// The cluster that was asked for.
        expected: String,
    },
    /// The certificate states no identity, or more than one.
    #[error(
        "the certificate holds {found} identities of the form basalt://<cluster>/<role>/<name>, expected one"
    )]
    NotOneIdentity {
        /// How many it holds.
        found: usize,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Issue(#[from] rcgen::Error),
    /// A certificate cannot be parsed.
    #[error("cannot parse the certificate: {0}")]
    Parse(webpki::Error),
    /// A TLS configuration is not possible with these files.
    #[error("the certificate and key cannot be used for TLS")]
    Tls(#[from] rustls::Error),
    /// Client certificates cannot be verified with this authority.
    #[error("client certificates cannot be verified with this authority")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// Plaintext off loopback.
    #[error("plaintext is possible only on loopback and {address} is not; give TLS files instead")]
    PlaintextOffLoopback {
        /// The address.
        address: SocketAddr,
    },
}
