//! Identities and their form in certificates.

use std::{fmt, str::FromStr};

use rustls::pki_types::CertificateDer;

use crate::IdentityError;

const SCHEME: &str = "basalt://";

/// What a process is in the cluster. One identity has one role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A member of the control plane; its name is its member id.
    Member,
    /// The daemon of a storage node; its name is the node's.
    Node,
    /// The Kubernetes operator.
    Operator,
    /// A person at the command line.
    Cli,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 4] = [Role::Member, Role::Node, Role::Operator, Role::Cli];

    /// The word in URIs and file names.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Member => "member",
            Role::Node => "node",
            Role::Operator => "operator",
            Role::Cli => "cli",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who a process is: `basalt://<cluster name>/<role>/<name>`, a URI among the certificate's subject alternative names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    cluster: String,
    role: Role,
    name: String,
}

impl Identity {
    /// The identity of `name` with this role in the cluster of this name.
    pub fn new(
        cluster: impl Into<String>,
        role: Role,
        name: impl Into<String>,
    ) -> Result<Self, IdentityError> {
        Ok(Self { cluster: checked("cluster", cluster.into())?, role, name: checked("name", name.into())? })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The role.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The name within the role.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The one identity that a certificate states. The caller has verified the certificate.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let certificate = webpki::EndEntityCert::try_from(certificate).map_err(IdentityError::Parse)?;
        let mut uris = certificate.valid_uri_names().filter(|uri| uri.starts_with(SCHEME));
        match (uris.next(), uris.count()) {
            (Some(uri), 0) => uri.parse(),
            (None, _) => Err(IdentityError::NotOneIdentity { found: 0 }),
            (Some(_), more) => Err(IdentityError::NotOneIdentity { found: more + 1 }),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let wrong = || IdentityError::Uri { uri: uri.to_owned() };
        let mut parts = uri.strip_prefix(SCHEME).ok_or_else(wrong)?.split('/');
        let (Some(cluster), Some(role), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let role = Role::ALL.into_iter().find(|known| known.as_str() == role).ok_or_else(wrong)?;
        Self::new(cluster, role, name)
    }
}

/// A name that needs no escaping in a URI or a file name.
pub(crate) fn checked(part: &'static str, value: String) -> Result<String, IdentityError> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    if (1..=253).contains(&value.len()) && value.bytes().all(allowed) && !value.starts_with('.') {
        Ok(value)
    } else {
        Err(IdentityError::Name { part, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for role in Role::ALL {
            let identity = Identity::new("c1", role, "a.b-1").unwrap();
            assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        }
        assert_eq!(Identity::new("c1", Role::Node, "n1").unwrap().to_string(), "basalt://c1/node/n1");
    }

    #[test]
    fn other_texts_are_refused() {
        for uri in [
            "",
            "basalt://",
            "basalt://c/node",
            "basalt://c/node/",
            "basalt://c/root/n",
            "basalt://c/node/n/x",
            "basalt:///node/n",
            "spiffe://c/node/n",
            "basalt://c/node/N",
            "basalt://c/node/..",
        ] {
            assert!(uri.parse::<Identity>().is_err(), "{uri}");
        }
    }
}
