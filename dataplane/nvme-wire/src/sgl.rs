//! Scatter-gather list descriptors (Base 4.1.2.1, oF 2.3).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::Status;

/// One 16-byte SGL descriptor as it lies in dwords 6 to 9 of a command.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct SglDescriptor {
    /// Address, or offset into the capsule (bytes 7:0).
    pub address: U64,
    /// Length in bytes (bytes 11:8).
    pub length: U32,
    /// Reserved, or the key of a keyed descriptor (bytes 14:12).
    pub reserved: [u8; 3],
    /// Descriptor type (bits 7:4) and sub type (bits 3:0).
    pub identifier: u8,
}

const _: () = assert!(size_of::<SglDescriptor>() == 16);

/// SGL Data Block (type 0h) with sub type Offset (1h): data in the capsule (oF 2.3.1).
const IN_CAPSULE: u8 = 0x01;
/// Transport SGL Data Block (type 5h) with the transport's sub type (Ah): data moves by the transport's own messages (TCP 3.3).
const TRANSPORT: u8 = 0x5a;

/// Why a descriptor is refused; maps to a completion status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SglError {
    /// A type or sub type that NVMe/TCP does not have, or not for data in this direction.
    #[error("SGL descriptor type {0:#04x} is not one that NVMe/TCP uses there")]
    Type(u8),
}

impl From<SglError> for Status {
    fn from(error: SglError) -> Self {
        match error {
            SglError::Type(_) => Status::SGL_TYPE_INVALID.dnr(),
        }
    }
}

/// Where a command's data lies, for NVMe/TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sgl {
    /// `length` bytes in the capsule, `offset` bytes from the start of in-capsule data.
    InCapsule {
        /// Offset from the start of in-capsule data.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// `length` bytes that the transport moves with its own messages.
    Transport {
        /// Bytes.
        length: u32,
    },
}

impl Sgl {
    /// Bytes described.
    pub const fn length(self) -> u32 {
        match self {
            Sgl::InCapsule { length, .. } | Sgl::Transport { length } => length,
        }
    }

    /// Reads a descriptor.
    ///
    /// # Errors
    /// [`SglError::Type`] for descriptors that NVMe/TCP does not use.
    pub const fn parse(raw: &SglDescriptor) -> Result<Self, SglError> {
        match raw.identifier {
            IN_CAPSULE => Ok(Sgl::InCapsule { offset: raw.address.get(), length: raw.length.get() }),
            TRANSPORT => Ok(Sgl::Transport { length: raw.length.get() }),
            other => Err(SglError::Type(other)),
        }
    }

    /// Bytes that the controller may give. A capsule of the host's has no room for them, so only the transport's descriptor says so.
    ///
    /// # Errors
    /// [`SglError::Type`] for all other descriptors.
    pub const fn parse_room(raw: &SglDescriptor) -> Result<u32, SglError> {
        match raw.identifier {
            TRANSPORT => Ok(raw.length.get()),
            other => Err(SglError::Type(other)),
        }
    }

    /// The descriptor's bytes.
    pub const fn emit(self) -> SglDescriptor {
        let (address, length, identifier) = match self {
            Sgl::InCapsule { offset, length } => (offset, length, IN_CAPSULE),
            Sgl::Transport { length } => (0, length, TRANSPORT),
        };
        SglDescriptor { address: U64::new(address), length: U32::new(length), reserved: [0; 3], identifier }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let raw = Sgl::Transport { length: 0x0102_0304 }.emit();
        assert_eq!(raw.as_bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0x5a]);
        let raw = Sgl::InCapsule { offset: 8, length: 4096 }.emit();
        assert_eq!(raw.as_bytes(), [8, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn all_identifiers_parse_or_are_refused() {
        for identifier in 0..=u8::MAX {
            let raw = SglDescriptor { identifier, ..SglDescriptor::default() };
            match Sgl::parse(&raw) {
                Ok(sgl) => assert_eq!(sgl.emit().identifier, identifier),
                Err(SglError::Type(refused)) => assert_eq!(refused, identifier),
            }
            assert_eq!(Sgl::parse_room(&raw).is_ok(), identifier == TRANSPORT);
        }
    }
}
