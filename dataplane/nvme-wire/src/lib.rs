//! NVMe words on the wire: submission and completion entries, identify data, log pages, features, fabrics commands and the
//! PDUs of NVMe/TCP.
//!
//! Two layers (as in smoltcp): layouts are `repr(C)` structs of little-endian fields whose sizes are asserted at compile time; plain
//! values with `parse` and `emit` stand above them. Nothing here allocates, does I/O or panics on foreign bytes.
//!
//! Sections cited: *Base* is the NVM Express Base Specification 2.0c, *NVM* the NVM Command Set Specification 1.0c, *TCP* the
//! TCP Transport Specification 1.0c, *oF* NVMe over Fabrics 1.1.
//!
//! Begin reading at [`Sqe`], [`Cqe`] and [`Status`]; a transport begins at [`pdu`].

mod command;
mod completion;
mod connect_field;
pub mod digest;
pub mod dsm;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log;
pub mod opcode;
pub mod pdu;
pub mod register;
pub mod reservation;
mod sgl;
mod status;

pub use command::{Fuse, ReadWrite, Sqe};
pub use completion::Cqe;
pub use connect_field::ConnectField;
pub use sgl::{Sgl, SglDescriptor, SglError};
pub use status::Status;

/// The NSID that addresses all namespaces (Base 3.2.1.1).
pub const NSID_ALL: u32 = 0xffff_ffff;

/// A failure to read a wire structure: the bytes are too few or a field holds what the specification forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Fewer bytes than the structure has.
    #[error("structure needs {need} bytes, {have} given")]
    Short {
        /// Bytes that the structure has.
        need: usize,
        /// Bytes given.
        have: usize,
    },
    /// A field holds a value that the specification does not allow.
    #[error("field {0} holds a forbidden value")]
    Field(&'static str),
}
