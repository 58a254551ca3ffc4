//! The words that NVMe-oF targets, hosts and their transports share: names, identifiers, identities and limits.
//!
//! Owns no policy and does no I/O. Begin reading at [`Association`].

mod identity;
mod ids;
mod limits;

pub use identity::{Association, Authentication, Epoch, HostId, HostIdentity, Nqn, NqnError};
pub use ids::{CommandId, ControllerId, ControllerIdRange, ControllerIdRangeError, QueueId};
pub use limits::TransportLimits;
