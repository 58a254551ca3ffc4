//! NVMe over TCP: PDU framing and both ends of a connection.
//!
//! A connection is a state machine over a [`Wire`], which is a reactor's socket or a test's pipe; thin pollers tie it to the
//! reactor and to block devices. [`TcpTarget`] serves a [`basalt_nvmf_target::Target`]; [`host`] is the initiator. Nothing
//! here decides who may connect or what a command means. Begin reading at [`TcpTarget::start`] and [`host::Initiator`].
//!
//! Sections cited: *TCP* is the NVMe/TCP Transport Specification 1.0c.

mod charge;
pub mod host;
mod inlet;
mod outlet;
mod target;
#[cfg(test)]
mod tests;
mod wire;

pub use target::{ListenError, SharedDoor, TcpTarget, TcpTargetControl, TcpTargetOptions, TcpTargetStats};
pub use wire::Wire;
