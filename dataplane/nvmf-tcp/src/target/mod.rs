//! The target's end: listeners, connections and devices of one reactor.

mod connection;
mod devices;
mod options;
mod receive;
mod server;
mod slot;
mod staging;

pub use options::TcpTargetOptions;
pub use server::{ListenError, TcpTarget, TcpTargetControl, TcpTargetStats};
