//! The initiator's end: connections to a controller, as queue pairs on a reactor or behind blocking calls.
//!
//! [`connect`] brings a controller up on a reactor; its [`IoQueue`]s take commands and give outcomes like a block device's
//! channel. [`blocking`] runs a reactor of its own on a thread for tools and tests.

mod admin;
pub mod blocking;
pub(crate) mod connection;
mod controller;
mod io_queue;
mod load;

pub use connection::Refused;
pub use controller::{Controller, ControllerEvents, TcpHostOptions, connect, discover};
pub use io_queue::{AsyncIoQueue, IoQueue};
pub use load::{Load, LoadFailure, LoadReport, Progress, Work, pattern};
