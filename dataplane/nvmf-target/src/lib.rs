//! The target's half of NVMe-oF as a state machine: subsystems, controllers, namespaces, ANA, discovery.
//!
//! Commands go in, a [`Step`] comes out: complete this, give this data, take that data first, run this block command.
//! Owns who may connect, what is identified, logged and configured, who reserved what, and which block commands are valid. Never touches a
//! socket, a clock or a device's data: a transport does, per connection, with one [`Queue`].
//!
//! [`Target`] and [`Subsystem`] are shared between reactors (their locks are taken when something is configured or
//! connects, never per command); a [`Queue`] lives on one reactor. Begin reading at [`Queue::command`].

mod abort;
mod access;
mod changes;
mod controller;
mod discovery;
mod events;
mod features;
mod fused;
mod gate;
mod identify;
mod io;
mod link;
mod logs;
mod namespace;
mod queue;
mod reply;
mod reservation;
mod subsystem;
mod target;

pub use abort::AbortOrder;
pub use access::AllowedHosts;
pub use discovery::{ListenerAddress, ListenerAddressError};
pub use fused::{aborted_with, fused_statuses};
pub use io::{BlockCommand, NamespaceSlot, UnmapRanges, status_of};
pub use namespace::{Namespace, NamespaceIdentity, Nsid};
pub use queue::{Activity, Queue};
pub use reply::{Reply, Step};
pub use reservation::{ImageError, ReservationState, ReservationStore, Saved, StoreError};
pub use subsystem::{NAMESPACES_MAX, Subsystem, SubsystemConfig, SubsystemError};
pub use target::{Target, TargetError, TargetOptions};
