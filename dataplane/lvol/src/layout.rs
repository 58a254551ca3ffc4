//! The disk format, version 1, as pure code: bytes in, structures out. docs/disk-format.md is its description.
//!
//! [`Superblock`] says whose disk it is and where the current [`Root`] lies; the root names the directory, the directory names
//! the pages of volumes ([`VolumeRecord`]), and each of these the map of its volume ([`Leaf`]). What changed since is in the
//! journal ([`JournalRecord`]). Nothing in here panics on foreign bytes; everything in here is checked against its parent's
//! checksum by the functions that take a pointer.

mod journal;
mod map;
mod page;
mod pieces;
mod root;
mod superblock;
mod taken;
mod volume;

pub use journal::{
    GROUP_BYTES_MAX, Group, GroupId, JournalRecord, Trust, copies_of_group, decode_group, encode_group,
    group_bytes_max, intact_copies, later_groups,
};
pub use map::{
    Children, LEAF_EXTENTS, LEVELS_MAX, Leaf, LeafReader, NODE_CHILDREN, decode_node, encode_node,
};
pub use page::{PAGE_HEADER_BYTES, PageHeader, PageKind, PageNumber, PagePointer};
pub use pieces::{PIECES, Pieces, Place};
pub use root::{
    DIRECTORY_RECORDS, DirectoryRecord, DiskLayout, DiskRecord, Root, RootError, TwinPointer,
    decode_directory, encode_directory,
};
pub use superblock::{DiskGeometry, Role, SUPERBLOCK_BYTES, Superblock, SuperblockError};
pub use taken::{Stretches, TakenMap};
pub use volume::{
    DamageReason, HISTORY_MAX, HistoryEntry, MapRoot, NAME_BYTES_MAX, NQN_BYTES_MAX, ReplicaRecord,
    SERIAL_BYTES, VolumeFlags, VolumeIdentity, VolumeRecord,
};

/// Unit of metadata in bytes.
pub const PAGE_BYTES: usize = 4096;
/// Unit in bytes in which a map tells what was written of a piece: a smaller first write is filled up with zeroes.
pub const HOLE_BYTES: u64 = 4096;
/// Unit of allocation in bytes, unless a pool was made with another one.
pub const EXTENT_BYTES: u64 = 1 << 20;
/// Smallest unit of allocation in bytes.
pub const EXTENT_BYTES_MIN: u64 = 64 << 10;
/// Largest unit of allocation in bytes: a piece is a sixteenth, and no overwrite after a snapshot copies more than 64 KiB.
pub const EXTENT_BYTES_MAX: u64 = 1 << 20;
/// Most disks of a pool; more are refused.
pub const DISKS_MAX: usize = 64;
/// Byte offsets of the two superblock slots.
pub const SLOT_OFFSETS: [u64; 2] = [0, 512 << 10];
/// Where journals begin on a lead disk, and metadata or extents on a member.
pub const RESERVED_BYTES: u64 = 1 << 20;
/// The format that this code writes.
pub const VERSION: u32 = 1;
/// Longest name of a pool in bytes.
pub const POOL_NAME_BYTES_MAX: usize = 64;
/// Most extents of a volume.
pub const VOLUME_EXTENTS_MAX: u64 = 1 << 28;

/// The checksum of the format: CRC-64/NVME.
pub fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// `bytes` rounded up to whole units.
fn round_up(bytes: usize, unit: usize) -> usize {
    bytes.div_ceil(unit) * unit
}
