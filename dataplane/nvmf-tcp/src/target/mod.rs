//! The target's end: listeners, connections and devices of one reactor.

mod abort;
mod answer;
mod buffers;
pub(crate) mod complaints;
pub(crate) mod connection;
pub(crate) mod devices;
mod fused;
mod ids;
mod options;
mod receive;
mod request;
mod server;
pub(crate) mod share;
mod slot;
mod spread;
pub(crate) mod staging;
mod worker;

pub use options::TcpTargetOptions;
pub use server::{ListenError, TcpTarget, TcpTargetControl, TcpTargetStats};
pub use spread::SharedDoor;
