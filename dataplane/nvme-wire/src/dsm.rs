//! Dataset Management ranges (NVM 3.2.3).

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Most ranges in one command: Number of Ranges is a byte and 0's based (NVM figure 42).
pub const RANGES_MAX: usize = 256;

/// Attribute: Deallocate (NVM figure 43, bit 2 of dword 11).
pub const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;

/// One range (NVM figure 44).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Range {
    /// Context attributes; hints.
    pub context: U32,
    /// Length in logical blocks; not 0's based.
    pub block_count: U32,
    /// First logical block.
    pub first_block: U64,
}

const _: () = assert!(size_of::<Range>() == 16);

impl Range {
    /// A range without hints.
    pub const fn new(first_block: u64, block_count: u32) -> Self {
        Self { context: U32::ZERO, block_count: U32::new(block_count), first_block: U64::new(first_block) }
    }

    /// The `count` ranges at the start of `bytes`; `None` when there are fewer bytes than that.
    pub fn list(bytes: &[u8], count: usize) -> Option<&[Range]> {
        <[Range]>::ref_from_prefix_with_elems(bytes, count).ok().map(|(ranges, _)| ranges)
    }
}
