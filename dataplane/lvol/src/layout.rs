//! The disk format, version 0, as pure code: bytes in, structures out. docs/disk-format.md is its description.
//!
//! [`Superblock`] says whose disk it is and where the current table lies; [`Table`] holds the pool: its disks and its volumes.
//! Nothing in here panics on foreign bytes; everything in here is checked against its parent's checksum by the caller through the
//! functions that take an `expected` checksum.

mod superblock;
mod table;
mod volume;

pub use superblock::{DiskGeometry, Role, SUPERBLOCK_BYTES, Superblock, SuperblockError, TablePointer};
pub use table::{
    DirectoryRecord, DiskRecord, EncodedTable, EntrySource, HEADER_BYTES, TableContent, TableError,
    TableHeader, encode_table, table_bytes,
};
pub use volume::{
    DamageReason, NAME_BYTES_MAX, NQN_BYTES_MAX, Run, SERIAL_BYTES, VolumeFlags, VolumeIdentity, VolumeRecord,
};

/// Unit of metadata in bytes.
pub const PAGE_BYTES: usize = 4096;
/// Unit of allocation in bytes.
pub const EXTENT_BYTES: u64 = 1 << 20;
/// Most disks of a pool; more are refused.
pub const DISKS_MAX: usize = 64;
/// Byte offsets of the two superblock slots.
pub const SLOT_OFFSETS: [u64; 2] = [0, 512 << 10];
/// Where metadata areas begin on a lead disk, and extents on a member.
pub const RESERVED_BYTES: u64 = 1 << 20;
/// The format that this code writes.
pub const VERSION: u32 = 0;
/// Longest name of a pool in bytes.
pub const POOL_NAME_BYTES_MAX: usize = 64;

/// The checksum of the format: CRC-64/NVME.
pub fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// `bytes` rounded up to whole units.
fn round_up(bytes: usize, unit: usize) -> usize {
    bytes.div_ceil(unit) * unit
}
