//! Identifiers and units, each a type of its own.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU64;
use uuid::Uuid;

/// Why a string is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing was given.
    #[error("a {kind} must not be empty")]
    Empty {
        /// What the string should have been.
        kind: &'static str,
    },
    /// Longer than the kind allows.
    #[error("a {kind} has at most {max} characters, this one has {length}")]
    TooLong {
        /// What the string should have been.
        kind: &'static str,
        /// The longest allowed length in bytes.
        max: usize,
        /// The length in bytes that was given.
        length: usize,
    },
    /// Holds a character that the kind does not allow.
    #[error("a {kind} holds only {allowed}; {value:?} does not fit")]
    Character {
        /// What the string should have been.
        kind: &'static str,
        /// The characters that are allowed, in words.
        allowed: &'static str,
        /// What was given.
        value: String,
    },
}

macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, max $max:literal, $allowed:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The longest allowed length in bytes.
            pub const MAX_LENGTH: usize = $max;

            /// Checks and wraps a string.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidName> {
                let value = value.into();
                let kind = $kind;
                if value.is_empty() {
                    return Err(InvalidName::Empty { kind });
                }
                if value.len() > $max {
                    return Err(InvalidName::TooLong { kind, max: $max, length: value.len() });
                }
                let check: fn(&str) -> bool = $check;
                if !check(&value) {
                    return Err(InvalidName::Character { kind, allowed: $allowed, value });
                }
                Ok(Self(value))
            }

            /// The string.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// RFC 1123 subdomain, which is what Kubernetes allows as an object name.
fn is_dns_subdomain(value: &str) -> bool {
    value.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

fn is_visible_ascii(value: &str) -> bool {
    value.bytes().all(|b| b.is_ascii_graphic())
}

fn is_printable(value: &str) -> bool {
    value.chars().all(|c| !c.is_control())
}

string_id!(
    /// The name of a storage node, as in Kubernetes.
    NodeName, "node name", max 253, "lower-case letters, digits, '-' and '.'", is_dns_subdomain
);
string_id!(
    /// The name of a volume, as in Kubernetes. The identity of a volume is its [`VolumeId`].
    VolumeName, "volume name", max 253, "lower-case letters, digits, '-' and '.'", is_dns_subdomain
);
string_id!(
    /// The name of a snapshot, as in Kubernetes.
    SnapshotName, "snapshot name", max 253, "lower-case letters, digits, '-' and '.'", is_dns_subdomain
);
string_id!(
    /// The name of a pool, unique on its node.
    PoolName, "pool name", max 63, "lower-case letters, digits, '-' and '.'", is_dns_subdomain
);
string_id!(
    /// The UID of the Kubernetes object that stands for a node or volume.
    ObjectUid, "object UID", max 128, "visible ASCII characters", is_visible_ascii
);
string_id!(
    /// A key under which a client sends one mutation, however often it retries.
    RequestId, "request id", max 128, "visible ASCII characters", is_visible_ascii
);
string_id!(
    /// A disk as the node's configuration names it: a persistent device path or a file.
    DiskPath, "disk path", max 1024, "printable characters", is_printable
);
string_id!(
    /// The NVMe qualified name of a host, or `*` for any host (NVMe base specification 2.0, section 4.5).
    HostNqn, "host NQN", max 223, "visible ASCII characters", is_visible_ascii
);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The identifier that these random bits give (a version 4 UUID).
            pub fn from_random(bits: u128) -> Self {
                Self(uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(value: &str) -> Result<Self, uuid::Error> {
                Uuid::parse_str(value).map(Self)
            }
        }
    };
}

uuid_id!(
    /// One cluster, from its bootstrap on and through recoveries.
    ClusterId
);
uuid_id!(
    /// One volume for its whole life, also when it is renamed or adopted.
    VolumeId
);
uuid_id!(
    /// The identity that a daemon keeps on its own disk; it tells two daemons with one node name apart.
    InstanceId
);
uuid_id!(
    /// One run of a daemon's machine; a new one means that volatile caches are gone.
    BootId
);
uuid_id!(
    /// The UUID in a pool's superblock.
    PoolId
);
uuid_id!(
    /// The identity of a raft member's disk directory, written when it was first used.
    DiskId
);

/// One raft member. Bound to its disk and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(NonZeroU64);

impl MemberId {
    /// Wraps an id; `None` for zero, which raft reserves for "no member".
    pub fn new(id: u64) -> Option<Self> {
        NonZeroU64::new(id).map(Self)
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0.get()
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// The raft index of the command after which something is true. Grows also over recoveries of the cluster.
    Revision
);
number!(
    /// How often the cluster was recovered from a lost majority, plus one.
    Incarnation
);
number!(
    /// Milliseconds since the Unix epoch, as the leader's clock said when it proposed a command. For display only.
    Timestamp
);
number!(
    /// A size in bytes.
    Bytes
);

impl Bytes {
    /// This size rounded up to a multiple of `unit`; `None` when that does not fit.
    pub fn round_up(self, unit: Bytes) -> Option<Bytes> {
        if unit.0 == 0 { Some(self) } else { self.0.checked_next_multiple_of(unit.0).map(Bytes) }
    }
}

/// Fences all writers with a lower one. Ordered by incarnation, then counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// The cluster's incarnation when the epoch was issued.
    pub incarnation: Incarnation,
    /// Counts within the incarnation.
    pub counter: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.incarnation, self.counter)
    }
}
