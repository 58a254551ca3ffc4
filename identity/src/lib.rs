//! Who is who in a cluster: roles, certificates, and the table of which role may call what.
//!
//! This crate owns the form of an identity (a URI in the certificate's subject alternative names), the certificate
//! authority that `xtask up` makes, TLS configurations that follow their files without a restart, and the access table,
//! which denies what it does not list. It holds no sockets of a service and depends on no other crate of ours.
//!
//! Begin with [`Identity`], then [`access`].

pub mod access;
mod authority;
mod connect;
mod credentials;
mod error;
mod role;

pub use authority::{CertificateAuthority, CertificateFiles, SubjectName};
pub use connect::{Connector, MaybeTls, Security};
pub use credentials::{Credentials, install_provider};
pub use error::IdentityError;
pub use role::{Identity, Role};

/// Metadata key by which a plaintext caller on loopback states its identity. Ignored under TLS.
pub const ASSERTED_IDENTITY_HEADER: &str = "basalt-identity";
/// Metadata key by which a member that forwards a call says for whom. Believed only from a member.
pub const FORWARDED_IDENTITY_HEADER: &str = "basalt-forwarded-identity";
