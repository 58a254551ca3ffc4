//! The superblock: one sector that says whose disk this is and which table is current.

use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{EXTENT_BYTES, PAGE_BYTES, RESERVED_BYTES, VERSION, checksum};
use crate::id::{ClusterId, DiskId, PoolId};

/// Bytes of a superblock: one sector, so that a torn write leaves the old or the new one.
pub const SUPERBLOCK_BYTES: usize = 512;

const MAGIC: [u8; 16] = *b"BASALT-POOL-DISK";
const CHECKSUM_OFFSET: usize = SUPERBLOCK_BYTES - 8;

/// Smallest and largest length of a table area in bytes.
const AREA_BYTES_MIN: u64 = 2 << 20;
const AREA_BYTES_MAX: u64 = 16 << 20;
/// The smallest disks that a pool takes, in bytes.
const LEAD_BYTES_MIN: u64 = 8 << 20;
const MEMBER_BYTES_MIN: u64 = 4 << 20;

/// Feature bits that this code knows, per word. Version 0 defines none.
const KNOWN_RO_COMPAT: u64 = 0;
const KNOWN_INCOMPAT: u64 = 0;

/// Byte map in docs/disk-format.md, "Superblock".
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 16],
    version: U32,
    length: U32,
    compat: U64,
    ro_compat: U64,
    incompat: U64,
    cluster: [u8; 16],
    pool: [u8; 16],
    disk: [u8; 16],
    encryption_key: [u8; 32],
    sequence: U64,
    slot: U32,
    role: U32,
    disk_index: U32,
    block_bytes: U32,
    device_bytes: U64,
    extent_bytes: U64,
    data_offset: U64,
    extents: U64,
    area_offsets: [U64; 2],
    area_bytes: U64,
    table_bytes: U64,
    header_checksum: U64,
    reserved: [u8; 280],
    checksum: U64,
}

const _: () = assert!(size_of::<Raw>() == SUPERBLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(Raw, sequence) == 128);
const _: () = assert!(std::mem::offset_of!(Raw, header_checksum) == 216);
const _: () = assert!(std::mem::offset_of!(Raw, checksum) == CHECKSUM_OFFSET);

/// What a disk is to its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds the tables. Disk 0.
    Lead,
    /// Holds extents only.
    Member,
    /// A member of a pool whose creation has not been finished.
    MemberInCreation,
}

/// Where things lie on one disk. Follows from the role and the size of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskGeometry {
    /// Logical block of the device in bytes.
    pub block_bytes: u32,
    /// Size of the device in bytes when the pool was made.
    pub device_bytes: u64,
    /// Byte offset of extent 0.
    pub data_offset: u64,
    /// Number of extents.
    pub extents: u64,
    /// Byte offsets of the two table areas; zero on a member.
    pub area_offsets: [u64; 2],
    /// Length of one table area in bytes; zero on a member.
    pub area_bytes: u64,
}

impl DiskGeometry {
    /// The geometry of the lead disk of a new pool, or `None` if the device is too small (8 MiB) or its block is neither 512
    /// nor 4096 bytes.
    pub fn lead(device_bytes: u64, block_bytes: u32) -> Option<Self> {
        if device_bytes < LEAD_BYTES_MIN || !supported_block(block_bytes) {
            return None;
        }
        let area_bytes =
            (device_bytes / 1024).next_multiple_of(EXTENT_BYTES).clamp(AREA_BYTES_MIN, AREA_BYTES_MAX);
        let data_offset = RESERVED_BYTES + 2 * area_bytes;
        Some(Self {
            block_bytes,
            device_bytes,
            data_offset,
            extents: (device_bytes - data_offset) / EXTENT_BYTES,
            area_offsets: [RESERVED_BYTES, RESERVED_BYTES + area_bytes],
            area_bytes,
        })
    }

    /// The geometry of a further disk of a new pool, or `None` if the device is too small (4 MiB) or its block is not supported.
    pub fn member(device_bytes: u64, block_bytes: u32) -> Option<Self> {
        if device_bytes < MEMBER_BYTES_MIN || !supported_block(block_bytes) {
            return None;
        }
        Some(Self {
            block_bytes,
            device_bytes,
            data_offset: RESERVED_BYTES,
            extents: (device_bytes - RESERVED_BYTES) / EXTENT_BYTES,
            area_offsets: [0, 0],
            area_bytes: 0,
        })
    }

    fn for_role(role: Role, device_bytes: u64, block_bytes: u32) -> Option<Self> {
        match role {
            Role::Lead => Self::lead(device_bytes, block_bytes),
            Role::Member | Role::MemberInCreation => Self::member(device_bytes, block_bytes),
        }
    }
}

fn supported_block(block_bytes: u32) -> bool {
    block_bytes == 512 || block_bytes == 4096
}

/// Which table a superblock makes current.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePointer {
    /// Length of the table in bytes, a multiple of a page.
    pub bytes: u64,
    /// Checksum of its header page.
    pub header_checksum: u64,
}

/// What one superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Whose disk this is.
    pub cluster: ClusterId,
    /// The pool it belongs to.
    pub pool: PoolId,
    /// The disk itself.
    pub disk: DiskId,
    /// Identifies the key that its data is encrypted with; zero means not encrypted. Reserved.
    pub encryption_key: [u8; 32],
    /// Counts the superblocks of this disk from 1. The higher one counts.
    pub sequence: u64,
    /// What the disk is to its pool.
    pub role: Role,
    /// Index of the disk in its pool.
    pub disk_index: u32,
    /// Where things lie on it.
    pub geometry: DiskGeometry,
    /// The current table; `None` on a member.
    pub table: Option<TablePointer>,
    /// An ro-compat feature is set that this code does not know: the pool may be read and not changed.
    pub read_only: bool,
}

/// Why bytes are not a superblock that this code may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SuperblockError {
    /// The magic is missing: blank, or somebody else's.
    #[error("no Basalt superblock")]
    Absent,
    /// The magic is there and the checksum is wrong.
    #[error("damaged superblock (checksum)")]
    Checksum,
    /// Another version of the format.
    #[error(
        "the disk has format version {0}, this program reads version {VERSION}; use the program that wrote it"
    )]
    Version(u32),
    /// Features that this code must know in order to read the disk.
    #[error("the disk uses features that this program does not know (incompat bits {0:#x}); use a newer one")]
    Incompatible(u64),
    /// The checksum is right and a field makes no sense.
    #[error("damaged superblock ({0})")]
    Field(&'static str),
}

impl Superblock {
    /// Reads the superblock at the start of `bytes`, which were read from `slot`. Shorter input counts as absent.
    ///
    /// # Errors
    /// Says why the bytes cannot be used; never panics on them.
    pub fn decode(bytes: &[u8], slot: u32) -> Result<Self, SuperblockError> {
        let Ok((raw, _)) = Raw::read_from_prefix(bytes) else {
            return Err(SuperblockError::Absent);
        };
        if raw.magic != MAGIC {
            return Err(SuperblockError::Absent);
        }
        if raw.checksum.get() != checksum(&bytes[..CHECKSUM_OFFSET]) {
            return Err(SuperblockError::Checksum);
        }
        if raw.version.get() != VERSION {
            return Err(SuperblockError::Version(raw.version.get()));
        }
        let unknown = raw.incompat.get() & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(SuperblockError::Incompatible(unknown));
        }
        if raw.length.get() as usize != SUPERBLOCK_BYTES || raw.slot.get() != slot {
            return Err(SuperblockError::Field("copied from another place"));
        }
        if raw.sequence.get() == 0 || raw.sequence.get() % 2 != u64::from(slot) {
            return Err(SuperblockError::Field("sequence number"));
        }
        let role = match raw.role.get() {
            1 => Role::Lead,
            2 => Role::Member,
            3 => Role::MemberInCreation,
            _ => return Err(SuperblockError::Field("role")),
        };
        Ok(Self {
            cluster: ClusterId::from_bytes(raw.cluster),
            pool: PoolId::from_bytes(raw.pool),
            disk: DiskId::from_bytes(raw.disk),
            encryption_key: raw.encryption_key,
            sequence: raw.sequence.get(),
            role,
            disk_index: raw.disk_index.get(),
            geometry: raw.geometry(role)?,
            table: raw.table(role)?,
            read_only: raw.ro_compat.get() & !KNOWN_RO_COMPAT != 0,
        })
    }

    /// The page that belongs into [`Self::slot`].
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.sequence > 0, "sequence numbers begin at 1");
        assert!(!self.read_only, "a disk with unknown ro-compat features is never written");
        assert_eq!(self.table.is_some(), self.role == Role::Lead, "the lead, and only it, has a table");
        let table = self.table.unwrap_or(TablePointer { bytes: 0, header_checksum: 0 });
        let geometry = &self.geometry;
        let mut raw = Raw {
            magic: MAGIC,
            version: VERSION.into(),
            length: U32::new(512),
            compat: U64::ZERO,
            ro_compat: U64::ZERO,
            incompat: U64::ZERO,
            cluster: self.cluster.to_bytes(),
            pool: self.pool.to_bytes(),
            disk: self.disk.to_bytes(),
            encryption_key: self.encryption_key,
            sequence: self.sequence.into(),
            slot: self.slot().into(),
            role: U32::new(match self.role {
                Role::Lead => 1,
                Role::Member => 2,
                Role::MemberInCreation => 3,
            }),
            disk_index: self.disk_index.into(),
            block_bytes: geometry.block_bytes.into(),
            device_bytes: geometry.device_bytes.into(),
            extent_bytes: EXTENT_BYTES.into(),
            data_offset: geometry.data_offset.into(),
            extents: geometry.extents.into(),
            area_offsets: geometry.area_offsets.map(U64::new),
            area_bytes: geometry.area_bytes.into(),
            table_bytes: table.bytes.into(),
            header_checksum: table.header_checksum.into(),
            reserved: [0; 280],
            checksum: U64::ZERO,
        };
        raw.checksum = checksum(&raw.as_bytes()[..CHECKSUM_OFFSET]).into();
        let mut page = vec![0; PAGE_BYTES];
        page[..SUPERBLOCK_BYTES].copy_from_slice(raw.as_bytes());
        page
    }

    /// The slot, and on the lead the table area, that this sequence number belongs to.
    pub fn slot(&self) -> u32 {
        u32::from(self.sequence % 2 == 1)
    }
}

impl Raw {
    /// The geometry follows from role, size and block; anything else is damage (or a later version).
    fn geometry(&self, role: Role) -> Result<DiskGeometry, SuperblockError> {
        let written = DiskGeometry {
            block_bytes: self.block_bytes.get(),
            device_bytes: self.device_bytes.get(),
            data_offset: self.data_offset.get(),
            extents: self.extents.get(),
            area_offsets: self.area_offsets.map(U64::get),
            area_bytes: self.area_bytes.get(),
        };
        let derived = DiskGeometry::for_role(role, written.device_bytes, written.block_bytes);
        if derived != Some(written) || self.extent_bytes.get() != EXTENT_BYTES {
            return Err(SuperblockError::Field("geometry"));
        }
        Ok(written)
    }

    fn table(&self, role: Role) -> Result<Option<TablePointer>, SuperblockError> {
        let bytes = self.table_bytes.get();
        if role != Role::Lead {
            return Ok(None);
        }
        if bytes == 0 || bytes > self.area_bytes.get() || !bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(SuperblockError::Field("length of the table"));
        }
        Ok(Some(TablePointer { bytes, header_checksum: self.header_checksum.get() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn lead() -> Superblock {
        Superblock {
            cluster: ClusterId::from_bytes([1; 16]),
            pool: PoolId::from_bytes([2; 16]),
            disk: DiskId::from_bytes([3; 16]),
            encryption_key: [0; 32],
            sequence: 7,
            role: Role::Lead,
            disk_index: 0,
            geometry: DiskGeometry::lead(1 << 30, 512).unwrap(),
            table: Some(TablePointer { bytes: 8192, header_checksum: 0x1234_5678_9abc_def0 }),
            read_only: false,
        }
    }

    /// Changes one field of an encoded superblock and makes the checksum right again.
    fn patched(superblock: &Superblock, offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut page = superblock.encode();
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
        let sum = checksum(&page[..CHECKSUM_OFFSET]);
        page[CHECKSUM_OFFSET..SUPERBLOCK_BYTES].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn round_trip() {
        let written = lead();
        assert_eq!(Superblock::decode(&written.encode(), 1), Ok(written));
        let member = Superblock {
            role: Role::MemberInCreation,
            sequence: 2,
            disk_index: 5,
            table: None,
            geometry: DiskGeometry::member(100 << 20, 4096).unwrap(),
            ..lead()
        };
        assert_eq!(Superblock::decode(&member.encode(), 0), Ok(member));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let page = lead().encode();
        for bit in 0..SUPERBLOCK_BYTES * 8 {
            let mut damaged = page.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let error = Superblock::decode(&damaged, 1).unwrap_err();
            let expected = if bit < 128 { SuperblockError::Absent } else { SuperblockError::Checksum };
            assert_eq!(error, expected, "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_refused_with_words() {
        let page = patched(&lead(), 16, &1u32.to_le_bytes());
        let error = Superblock::decode(&page, 1).unwrap_err();
        assert_eq!(error, SuperblockError::Version(1));
        assert!(error.to_string().contains("format version 1"));
    }

    #[test]
    fn feature_words_are_obeyed() {
        let compat = patched(&lead(), 24, &[0xff; 8]);
        assert_eq!(Superblock::decode(&compat, 1), Ok(lead()));
        let ro_compat = patched(&lead(), 32, &[1]);
        assert!(Superblock::decode(&ro_compat, 1).unwrap().read_only);
        let incompat = patched(&lead(), 40, &[4]);
        assert_eq!(Superblock::decode(&incompat, 1), Err(SuperblockError::Incompatible(4)));
    }

    #[test]
    fn a_copy_in_the_wrong_slot_does_not_count() {
        assert!(matches!(Superblock::decode(&lead().encode(), 0), Err(SuperblockError::Field(_))));
    }

    #[test]
    fn geometry_that_does_not_follow_is_damage() {
        let page = patched(&lead(), 168, &(3u64 << 20).to_le_bytes());
        assert_eq!(Superblock::decode(&page, 1), Err(SuperblockError::Field("geometry")));
        let page = patched(&lead(), 208, &u64::MAX.to_le_bytes());
        assert!(matches!(Superblock::decode(&page, 1), Err(SuperblockError::Field(_))));
    }

    #[test]
    fn areas_and_extents_never_overlap_nor_leave_the_device() {
        for shift in 23..50 {
            for extra in [0, 4096, (1 << 20) - 512] {
                let bytes = (1u64 << shift) + extra;
                let g = DiskGeometry::lead(bytes, 512).unwrap();
                assert!(g.area_offsets[0] >= SLOT_END);
                assert_eq!(g.area_offsets[1], g.area_offsets[0] + g.area_bytes);
                assert!(g.data_offset >= g.area_offsets[1] + g.area_bytes);
                assert!(g.data_offset + g.extents * EXTENT_BYTES <= bytes);
            }
        }
        assert_eq!(DiskGeometry::lead((8 << 20) - 1, 512), None);
        assert_eq!(DiskGeometry::lead(1 << 30, 1024), None);
    }

    const SLOT_END: u64 = super::super::SLOT_OFFSETS[1] + PAGE_BYTES as u64;
}
