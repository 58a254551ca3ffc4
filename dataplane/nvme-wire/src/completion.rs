//! Completion queue entry (Base 3.3.3.2).

use crate::Status;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A 16-byte completion queue entry.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Cqe {
    /// Command specific (dword 0).
    pub dw0: U32,
    /// Command specific (dword 1).
    pub dw1: U32,
    /// Submission queue head pointer (dword 2, bits 15:0).
    pub sq_head: U16,
    /// Submission queue identifier (dword 2, bits 31:16); reserved in fabrics.
    pub sq_id: U16,
    /// Command identifier (dword 3, bits 15:0).
    pub command_id: U16,
    /// Status and phase tag (dword 3, bits 31:16).
    pub status_field: U16,
}

const _: () = assert!(size_of::<Cqe>() == 16);

impl Cqe {
    /// A completion without command specific words.
    pub const fn new(command_id: u16, sq_head: u16, status: Status) -> Self {
        Self {
            dw0: U32::ZERO,
            dw1: U32::ZERO,
            sq_head: U16::new(sq_head),
            sq_id: U16::ZERO,
            command_id: U16::new(command_id),
            status_field: U16::new(status.to_field()),
        }
    }

    /// The status without its phase tag.
    pub const fn status(&self) -> Status {
        Status::from_field(self.status_field.get())
    }

    /// Dwords 0 and 1 as one number, as Property Get answers (oF 3.4).
    pub const fn result(&self) -> u64 {
        self.dw0.get() as u64 | (self.dw1.get() as u64) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let mut cqe = Cqe::new(0x1234, 7, Status::INVALID_OPCODE.dnr());
        cqe.dw0 = U32::new(0xaabb_ccdd);
        assert_eq!(cqe.as_bytes(), [0xdd, 0xcc, 0xbb, 0xaa, 0, 0, 0, 0, 7, 0, 0, 0, 0x34, 0x12, 0x02, 0x80]);
        assert_eq!(cqe.status(), Status::INVALID_OPCODE.dnr());
    }
}
