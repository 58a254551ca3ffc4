//! Who is connected.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use basalt_nvme_wire::fabrics::NQN_LEN_MAX;

/// An NVMe qualified name (Base 4.5): 1 to 223 bytes of UTF-8 without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nqn(Arc<str>);

/// A text that is no NQN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    /// Empty.
    #[error("the NQN is empty")]
    Empty,
    /// Longer than 223 bytes.
    #[error("the NQN has {0} bytes, at most 223 are allowed")]
    Long(usize),
    /// A control character or a blank.
    #[error("the NQN holds a control character or a blank")]
    Character,
    /// Does not begin with `nqn.`.
    #[error("an NQN begins with \"nqn.\", as in nqn.2026-01.io.example:name")]
    Prefix,
}

impl Nqn {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`NqnError`].
    pub fn new(text: &str) -> Result<Self, NqnError> {
        match text {
            "" => Err(NqnError::Empty),
            text if text.len() > NQN_LEN_MAX => Err(NqnError::Long(text.len())),
            text if text.chars().any(|c| c.is_control() || c == ' ') => Err(NqnError::Character),
            text if !text.starts_with("nqn.") => Err(NqnError::Prefix),
            text => Ok(Self(Arc::from(text))),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Nqn {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Nqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A host identifier (oF 3.3, figure 19): which host, apart from its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub [u8; 16]);

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// How a host proved who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    /// It did not: its name is only claimed.
    Claimed,
}

/// A host, checked before any of its commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// Its NQN.
    pub nqn: Nqn,
    /// Its identifier.
    pub id: HostId,
    /// How far that may be believed.
    pub authentication: Authentication,
}

/// The number that raft issues whenever a volume's target changes; a higher one fences all lower ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Recovery incarnation of the control plane: raised when a lost majority is recovered, so that no epoch is issued twice.
    pub incarnation: u32,
    /// Counter within the incarnation.
    pub counter: u32,
}

impl Epoch {
    /// The eight bytes in which an epoch travels in Connect data.
    pub const fn emit(self) -> [u8; 8] {
        ((self.incarnation as u64) << 32 | self.counter as u64).to_le_bytes()
    }

    /// Reads the eight bytes; all zero means that the association carries no epoch.
    pub const fn parse(bytes: [u8; 8]) -> Option<Self> {
        let [c0, c1, c2, c3, i0, i1, i2, i3] = bytes;
        let epoch = Self {
            incarnation: u32::from_le_bytes([i0, i1, i2, i3]),
            counter: u32::from_le_bytes([c0, c1, c2, c3]),
        };
        if epoch.incarnation == 0 && epoch.counter == 0 { None } else { Some(epoch) }
    }
}

/// One host's connection set to one controller; for replica traffic with the epoch that it was opened at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Association {
    /// The host.
    pub host: HostIdentity,
    /// The epoch, where the host is a mirror.
    pub epoch: Option<Epoch>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert!(Nqn::new("nqn.2014-08.org.nvmexpress:uuid:1").is_ok());
        assert_eq!(Nqn::new(""), Err(NqnError::Empty));
        assert_eq!(Nqn::new(&format!("nqn.{}", "a".repeat(220))), Err(NqnError::Long(224)));
        assert_eq!(Nqn::new("nqn.a b"), Err(NqnError::Character));
        assert_eq!(Nqn::new("iqn.2014"), Err(NqnError::Prefix));
    }

    #[test]
    fn epochs_travel_and_order() {
        let epoch = Epoch { incarnation: 2, counter: 1 };
        assert_eq!(epoch.emit(), [1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(Epoch::parse(epoch.emit()), Some(epoch));
        assert_eq!(Epoch::parse([0; 8]), None);
        assert!(epoch > Epoch { incarnation: 1, counter: 9 });
    }
}
