//! Submission queue entry (Base 3.3.3.1) and the fields of I/O commands (NVM 3.2).

use crate::SglDescriptor;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A 64-byte submission queue entry.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Sqe {
    /// Opcode (dword 0, bits 7:0).
    pub opcode: u8,
    /// Fused operation (bits 1:0) and PSDT (bits 7:6).
    pub flags: u8,
    /// Command identifier (dword 0, bits 31:16).
    pub command_id: U16,
    /// Namespace identifier (dword 1); a fabrics command has its type in the first byte (oF 3).
    pub nsid: U32,
    /// Dword 2.
    pub cdw2: U32,
    /// Dword 3.
    pub cdw3: U32,
    /// Metadata pointer (dwords 4 and 5); reserved in fabrics.
    pub metadata: U64,
    /// Data pointer (dwords 6 to 9); always an SGL in fabrics (oF 2.3).
    pub sgl: SglDescriptor,
    /// Dword 10.
    pub cdw10: U32,
    /// Dword 11.
    pub cdw11: U32,
    /// Dword 12.
    pub cdw12: U32,
    /// Dword 13.
    pub cdw13: U32,
    /// Dword 14.
    pub cdw14: U32,
    /// Dword 15.
    pub cdw15: U32,
}

const _: () = assert!(size_of::<Sqe>() == 64);
const _: () = assert!(core::mem::offset_of!(Sqe, sgl) == 24);
const _: () = assert!(core::mem::offset_of!(Sqe, cdw10) == 40);

/// Bits 1:0 of the flags byte (Base figure 86).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fuse {
    /// A normal operation.
    Normal,
    /// First command of a fused pair.
    First,
    /// Second command of a fused pair.
    Second,
    /// The reserved value.
    Reserved,
}

const FUSE_BITS: u8 = 0b11;
const PSDT_BITS: u8 = 0b11 << 6;
/// PSDT value "SGL, metadata pointer is an address": what every command over fabrics carries (Base figure 86).
const PSDT_SGL: u8 = 0b01 << 6;

impl Sqe {
    /// A command with nothing but its opcode and identifier, addressed by SGL.
    pub fn new(opcode: u8, command_id: u16) -> Self {
        Self { opcode, flags: PSDT_SGL, command_id: U16::new(command_id), ..Self::default() }
    }

    /// The fused operation bits.
    pub const fn fuse(&self) -> Fuse {
        match self.flags & FUSE_BITS {
            0 => Fuse::Normal,
            1 => Fuse::First,
            2 => Fuse::Second,
            _ => Fuse::Reserved,
        }
    }

    /// Sets the fused operation bits.
    pub const fn set_fuse(&mut self, fuse: Fuse) {
        let bits = match fuse {
            Fuse::Normal => 0,
            Fuse::First => 1,
            Fuse::Second => 2,
            Fuse::Reserved => 3,
        };
        self.flags = self.flags & !FUSE_BITS | bits;
    }

    /// Whether the data pointer is an SGL and the metadata pointer an address (PSDT 01b), as they are in every command over fabrics:
    /// any other value is an invalid field (Base figure 86).
    pub const fn addresses_by_sgl(&self) -> bool {
        self.flags & PSDT_BITS == PSDT_SGL
    }

    /// Whether it is no half of a fused pair and addresses as fabrics commands do. Other bits of the flags are reserved, and not looked
    /// at.
    pub const fn is_plain(&self) -> bool {
        self.flags & (PSDT_BITS | FUSE_BITS) == PSDT_SGL
    }

    /// Starting LBA of the commands that have one: dwords 10 and 11 (NVM 3.2).
    pub const fn first_block(&self) -> u64 {
        self.cdw10.get() as u64 | (self.cdw11.get() as u64) << 32
    }

    /// Sets dwords 10 and 11.
    pub fn set_first_block(&mut self, block: u64) {
        let bytes = block.to_le_bytes();
        self.cdw10 = U32::from_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.cdw11 = U32::from_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    }
}

/// Dwords 10 to 12 of Read, Write, Compare, Write Zeroes and Verify (NVM 3.2.1, 3.2.4 to 3.2.6, 3.2.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadWrite {
    /// Starting LBA.
    pub first_block: u64,
    /// Logical blocks, 1 to 65,536 (0's based on the wire).
    pub block_count: u32,
    /// Force Unit Access (dword 12, bit 30).
    pub fua: bool,
    /// Limited Retry (bit 31).
    pub limited_retry: bool,
    /// Deallocate, for Write Zeroes (bit 25).
    pub deallocate: bool,
    /// Protection information field (bits 29:26).
    pub protection: u8,
}

const FUA: u32 = 1 << 30;
const LIMITED_RETRY: u32 = 1 << 31;
const DEALLOCATE: u32 = 1 << 25;
const PROTECTION_SHIFT: u32 = 26;

impl ReadWrite {
    /// A transfer without flags.
    pub const fn new(first_block: u64, block_count: u32) -> Self {
        Self { first_block, block_count, fua: false, limited_retry: false, deallocate: false, protection: 0 }
    }

    /// Reads the fields of `sqe`.
    pub const fn parse(sqe: &Sqe) -> Self {
        let dword = sqe.cdw12.get();
        Self {
            first_block: sqe.first_block(),
            block_count: (dword & 0xffff) + 1,
            fua: dword & FUA != 0,
            limited_retry: dword & LIMITED_RETRY != 0,
            deallocate: dword & DEALLOCATE != 0,
            protection: ((dword >> PROTECTION_SHIFT) & 0xf).to_le_bytes()[0],
        }
    }

    /// Writes the fields into `sqe`.
    ///
    /// # Panics
    /// If `block_count` is not within 1 to 65,536: the caller splits.
    pub fn emit(&self, sqe: &mut Sqe) {
        assert!((1..=65_536).contains(&self.block_count), "block count fits the 0's based field");
        sqe.set_first_block(self.first_block);
        let mut dword = self.block_count - 1;
        dword |= u32::from(self.protection & 0xf) << PROTECTION_SHIFT;
        for (set, bit) in
            [(self.fua, FUA), (self.limited_retry, LIMITED_RETRY), (self.deallocate, DEALLOCATE)]
        {
            if set {
                dword |= bit;
            }
        }
        sqe.cdw12 = U32::new(dword);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sgl, opcode};
    use proptest::prelude::*;

    #[test]
    fn golden_read() {
        let mut sqe = Sqe::new(opcode::Io::Read.code(), 0x0102);
        sqe.nsid = U32::new(1);
        sqe.sgl = Sgl::Transport { length: 4096 }.emit();
        ReadWrite { fua: true, ..ReadWrite::new(0x1_0000_0002, 8) }.emit(&mut sqe);
        let mut golden = [0u8; 64];
        golden[..8].copy_from_slice(&[0x02, 0x40, 0x02, 0x01, 1, 0, 0, 0]);
        golden[33] = 0x10;
        golden[39] = 0x5a;
        golden[40] = 2;
        golden[44] = 1;
        golden[48] = 7;
        golden[51] = 0x40;
        assert_eq!(sqe.as_bytes(), golden);
    }

    #[test]
    fn fused_operation_bits_round_trip_and_leave_the_others() {
        let mut sqe = Sqe::new(opcode::Io::Compare.code(), 1);
        for (fuse, flags) in
            [(Fuse::First, 0x41), (Fuse::Second, 0x42), (Fuse::Reserved, 0x43), (Fuse::Normal, 0x40)]
        {
            sqe.set_fuse(fuse);
            assert_eq!((sqe.flags, sqe.fuse()), (flags, fuse));
        }
    }

    #[test]
    fn plain_commands_are_no_half_of_a_pair_and_address_by_sgl() {
        for flags in 0..=u8::MAX {
            let sqe = Sqe { flags, ..Sqe::default() };
            assert_eq!(sqe.addresses_by_sgl(), flags >> 6 == 1, "{flags:#x}");
            assert_eq!(sqe.is_plain(), flags >> 6 == 1 && sqe.fuse() == Fuse::Normal, "{flags:#x}");
        }
    }

    proptest! {
        #[test]
        fn read_write_round_trips(
            first_block: u64, block_count in 1u32..=65_536, fua: bool, limited_retry: bool, deallocate: bool,
            protection in 0u8..16,
        ) {
            let fields = ReadWrite { first_block, block_count, fua, limited_retry, deallocate, protection };
            let mut sqe = Sqe::default();
            fields.emit(&mut sqe);
            prop_assert_eq!(ReadWrite::parse(&sqe), fields);
        }
    }
}
