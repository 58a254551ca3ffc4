//! Identifiers of queues, commands and controllers.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u16);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A queue of a controller (Base 3.3.1); [`QueueId::ADMIN`] is the admin queue.
    QueueId
}
id! {
    /// A command of a queue, chosen by the host (Base 3.3.3.1).
    CommandId
}
id! {
    /// A controller of a subsystem (Base 3.1.1).
    ControllerId
}

impl QueueId {
    /// The admin queue.
    pub const ADMIN: Self = Self(0);

    /// Whether this is the admin queue.
    pub const fn is_admin(self) -> bool {
        self.0 == 0
    }
}

/// Which controller identifiers a node may hand out for a subsystem, both ends included: nodes that serve one
/// subsystem have ranges that do not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControllerIdRange {
    first: ControllerId,
    last: ControllerId,
}

/// Highest identifier of a controller: FFF0h to FFFFh are reserved (oF 3.3).
const CONTROLLER_ID_MAX: u16 = 0xffef;

/// A range of controller identifiers that is empty or reaches into reserved ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("controller identifiers {first} to {last} are no range within 1 to 65519")]
pub struct ControllerIdRangeError {
    first: u16,
    last: u16,
}

impl ControllerIdRange {
    /// All identifiers that a controller may have.
    pub const ALL: Self = Self { first: ControllerId(1), last: ControllerId(CONTROLLER_ID_MAX) };

    /// The range from `first` to `last`, both included.
    ///
    /// # Errors
    /// [`ControllerIdRangeError`] for an empty range, zero, or reserved identifiers.
    pub const fn new(first: u16, last: u16) -> Result<Self, ControllerIdRangeError> {
        if first == 0 || first > last || last > CONTROLLER_ID_MAX {
            return Err(ControllerIdRangeError { first, last });
        }
        Ok(Self { first: ControllerId(first), last: ControllerId(last) })
    }

    /// The lowest identifier.
    pub const fn first(self) -> ControllerId {
        self.first
    }

    /// The highest identifier.
    pub const fn last(self) -> ControllerId {
        self.last
    }

    /// The identifier that follows `id`, the first again after the last.
    pub const fn following(self, id: ControllerId) -> ControllerId {
        if id.0 < self.first.0 || id.0 >= self.last.0 { self.first } else { ControllerId(id.0 + 1) }
    }

    /// Number of identifiers.
    pub const fn len(self) -> usize {
        (self.last.0 - self.first.0) as usize + 1
    }

    /// Never: a range has at least one identifier.
    pub const fn is_empty(self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_wrap_and_refuse() {
        let range = ControllerIdRange::new(10, 12).unwrap();
        assert_eq!(range.following(ControllerId(10)), ControllerId(11));
        assert_eq!(range.following(ControllerId(12)), ControllerId(10));
        assert_eq!(range.following(ControllerId(3)), ControllerId(10));
        assert_eq!(range.len(), 3);
        for (first, last) in [(0, 5), (5, 4), (1, 0xfff0)] {
            assert!(ControllerIdRange::new(first, last).is_err());
        }
    }
}
