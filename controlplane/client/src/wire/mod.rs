//! Conversions between the domain types of `basalt-model` and the wire types of `basalt-proto`.
//!
//! `encode` never fails; `decode` checks everything, because the peer may be of another version or hostile, and its errors
//! name the field.

pub mod node;
pub mod snapshot;
pub mod volume;

use std::net::{AddrParseError, SocketAddr};

use basalt_model::{InvalidName, Problem};
use basalt_proto::api;

/// Why a message of the wire is not a domain value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that must be there is absent.
    #[error("{field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A name of the wrong form.
    #[error("{field}: {source}")]
    Name {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: InvalidName,
    },
    /// Not a UUID.
    #[error("{field} is not a UUID: {source}")]
    Uuid {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: uuid::Error,
    },
    /// Not an address.
    #[error("{field} is not an address (as in 127.0.0.1:4420 or [::1]:4420): {source}")]
    Address {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: AddrParseError,
    },
    /// Not a host and a port.
    #[error("{field}: {value:?} is not host:port (as in control-1.example:7443 or [::1]:7443)")]
    HostPort {
        /// The field.
        field: &'static str,
        /// What stands there.
        value: String,
    },
    /// A value that this version does not know.
    #[error("{field} has the value {value}, which this version does not know")]
    Unknown {
        /// The field.
        field: &'static str,
        /// The number on the wire.
        value: i32,
    },
    /// A number that does not fit.
    #[error("{field} is out of range")]
    Range {
        /// The field.
        field: &'static str,
    },
    /// Two entries of a list have one key.
    #[error("{field} lists {key:?} twice")]
    Duplicate {
        /// The field.
        field: &'static str,
        /// The key.
        key: String,
    },
}

impl WireError {
    /// The field that is wrong.
    pub fn field(&self) -> &'static str {
        match self {
            WireError::Missing { field }
            | WireError::Name { field, .. }
            | WireError::Uuid { field, .. }
            | WireError::Address { field, .. }
            | WireError::HostPort { field, .. }
            | WireError::Unknown { field, .. }
            | WireError::Range { field }
            | WireError::Duplicate { field, .. } => field,
        }
    }
}

/// A name of a checked form.
pub fn name<T>(field: &'static str, value: &str) -> Result<T, WireError>
where
    T: std::str::FromStr<Err = InvalidName>,
{
    value.parse().map_err(|source| WireError::Name { field, source })
}

/// A name, or nothing when the text is empty.
pub fn optional_name<T>(field: &'static str, value: &str) -> Result<Option<T>, WireError>
where
    T: std::str::FromStr<Err = InvalidName>,
{
    if value.is_empty() { Ok(None) } else { name(field, value).map(Some) }
}

/// An identifier that is a UUID.
pub fn uuid<T>(field: &'static str, value: &str) -> Result<T, WireError>
where
    T: std::str::FromStr<Err = uuid::Error>,
{
    value.parse().map_err(|source| WireError::Uuid { field, source })
}

/// An identifier that is a UUID, or nothing when the text is empty.
pub fn optional_uuid<T>(field: &'static str, value: &str) -> Result<Option<T>, WireError>
where
    T: std::str::FromStr<Err = uuid::Error>,
{
    if value.is_empty() { Ok(None) } else { uuid(field, value).map(Some) }
}

/// `ip:port`.
pub fn address(field: &'static str, value: &str) -> Result<SocketAddr, WireError> {
    value.parse().map_err(|source| WireError::Address { field, source })
}

/// A problem.
pub fn encode_problem(problem: &Problem) -> api::Problem {
    api::Problem { reason: problem.reason.clone(), message: problem.message.clone() }
}

/// A problem.
pub fn decode_problem(problem: api::Problem) -> Problem {
    Problem { reason: problem.reason, message: problem.message }
}

fn text<T: ToString>(value: Option<&T>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, WireError> {
    value.ok_or(WireError::Missing { field })
}
