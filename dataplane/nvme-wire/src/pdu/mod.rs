//! PDUs of NVMe/TCP (TCP 3.6).
//!
//! A receiver reads [`COMMON_LEN`] bytes, has [`Frame::parse`] check them against its role and what was negotiated, then
//! waits for the header and reads its body with [`InitializeRequest::parse`] and its siblings. Every refusal is a
//! [`Violation`]: the fatal error status and the field that a termination request names.

mod body;
mod frame;

pub use body::{DataTransfer, InitializeRequest, InitializeResponse, ReadyToTransfer, Termination};
pub use frame::{Digests, Frame, Receiver};

use crate::opcode::codes;

codes! {
    /// PDU types (TCP figure 16).
    Kind {
        /// Initialize Connection Request.
        InitializeRequest = 0x00,
        /// Initialize Connection Response.
        InitializeResponse = 0x01,
        /// Host to Controller Terminate Connection Request.
        HostTermination = 0x02,
        /// Controller to Host Terminate Connection Request.
        ControllerTermination = 0x03,
        /// Command Capsule.
        Command = 0x04,
        /// Response Capsule.
        Response = 0x05,
        /// Host to Controller Data.
        HostData = 0x06,
        /// Controller to Host Data.
        ControllerData = 0x07,
        /// Ready to Transfer.
        ReadyToTransfer = 0x09,
    }
}

impl Kind {
    /// Header length without digest (the HLEN field; TCP 3.6.2).
    pub const fn header_len(self) -> usize {
        match self {
            Kind::InitializeRequest | Kind::InitializeResponse => INITIALIZE_LEN,
            Kind::Command => COMMAND_LEN,
            Kind::Response
            | Kind::HostTermination
            | Kind::ControllerTermination
            | Kind::HostData
            | Kind::ControllerData
            | Kind::ReadyToTransfer => SHORT_LEN,
        }
    }
}

/// Bytes of the common header (TCP figure 15).
pub const COMMON_LEN: usize = 8;
/// Header of the two PDUs that initialize a connection.
pub const INITIALIZE_LEN: usize = 128;
/// Header of a command capsule: common header and submission entry.
pub const COMMAND_LEN: usize = 72;
/// Header of every other PDU.
pub const SHORT_LEN: usize = 24;
/// Longest header, digest included.
pub const HEADER_LEN_MAX: usize = INITIALIZE_LEN;
/// Most bytes of the offending PDU that a termination request repeats (TCP 3.6.2.3).
pub const TERMINATION_DATA_MAX: usize = 128;

/// Flag: the header digest is present (HDGSTF).
pub const FLAG_HEADER_DIGEST: u8 = 1 << 0;
/// Flag: the data digest is present (DDGSTF).
pub const FLAG_DATA_DIGEST: u8 = 1 << 1;
/// Flag of data PDUs: the last one of the command, or of the R2T (LAST_PDU).
pub const FLAG_LAST: u8 = 1 << 2;
/// Flag of controller data: the command succeeded and no response capsule follows (SUCCESS).
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// Fatal error status of a termination request (TCP figures 21 and 23).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FatalStatus {
    /// Invalid PDU Header Field; the information is the offset of the field.
    InvalidHeaderField = 1,
    /// PDU Sequence Error.
    Sequence = 2,
    /// Header Digest Error; the information is the digest received.
    HeaderDigest = 3,
    /// Data Transfer Out of Range.
    DataOutOfRange = 4,
    /// Data Transfer Limit Exceeded, or R2T Limit Exceeded.
    LimitExceeded = 5,
    /// Unsupported Parameter; the information is the offset of the field.
    UnsupportedParameter = 6,
}

impl FatalStatus {
    /// Reads the field.
    pub const fn parse(value: u16) -> Option<Self> {
        match value {
            1 => Some(FatalStatus::InvalidHeaderField),
            2 => Some(FatalStatus::Sequence),
            3 => Some(FatalStatus::HeaderDigest),
            4 => Some(FatalStatus::DataOutOfRange),
            5 => Some(FatalStatus::LimitExceeded),
            6 => Some(FatalStatus::UnsupportedParameter),
            _ => None,
        }
    }
}

/// What a peer did wrong, in the words of a termination request (TCP 3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("peer violated NVMe/TCP: {status:?}, information {information:#x}")]
pub struct Violation {
    /// Fatal error status.
    pub status: FatalStatus,
    /// Fatal error information; zero where the status defines none.
    pub information: u32,
}

impl Violation {
    /// The header field at `offset` holds a value that it must not hold.
    pub const fn field(offset: u32) -> Self {
        Self { status: FatalStatus::InvalidHeaderField, information: offset }
    }

    /// A violation without further information.
    pub const fn plain(status: FatalStatus) -> Self {
        Self { status, information: 0 }
    }
}
