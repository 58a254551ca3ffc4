//! The initiator's half of NVMe-oF, without sockets and clocks: how a host brings a controller up, what it learns, how it
//! reads the discovery log, and the commands of an I/O queue.
//!
//! A transport carries [`Command`]s and hands [`Outcome`]s back; [`Bringup`] and [`Discover`] say which command comes next.
//! Reconnecting is left to who uses them. Begin reading at [`Bringup`].

mod bringup;
mod command;
mod discover;
mod error;
mod fused;
mod options;
mod refusal;
mod reservation;

pub use bringup::{Bringup, ControllerFacts, NamespaceFacts, Next};
pub use command::{Command, Data, IoCommand, Outcome};
pub use discover::{Discover, DiscoveredSubsystem};
pub use error::{BringupError, QueueError};
pub use fused::{FusedPair, Swap};
pub use options::HostOptions;
pub use refusal::ConnectRefusal;
