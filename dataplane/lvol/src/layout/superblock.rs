//! The superblock: one sector that says whose disk this is and which table is current.

use thiserror::Error;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::root::RawTwin;
use super::{EXTENT_BYTES_MAX, EXTENT_BYTES_MIN, PAGE_BYTES, RESERVED_BYTES, TwinPointer, VERSION, checksum};
use crate::id::{ClusterId, DiskId, PoolId};

/// Bytes of a superblock: one sector, so that a torn write leaves the old or the new one.
pub const SUPERBLOCK_BYTES: usize = 512;

const MAGIC: [u8; 16] = *b"BASALT-POOL-DISK";
const CHECKSUM_OFFSET: usize = SUPERBLOCK_BYTES - 8;

/// Smallest and largest length of one of the two journals in bytes.
const JOURNAL_BYTES_MIN: u64 = 512 << 10;
const JOURNAL_BYTES_MAX: u64 = 16 << 20;
/// Smallest and largest metadata area of a lead in bytes; a member has none, or up to as much.
const METADATA_BYTES_MIN: u64 = 3 << 20;
const METADATA_BYTES_MAX: u64 = 64 << 30;
/// A metadata area takes this part of its disk.
const METADATA_SHARE: u64 = 256;
/// Metadata areas and journals together are a multiple of this many bytes.
const ALIGNMENT: u64 = 1 << 20;
/// The smallest disks that a pool takes, in bytes.
const LEAD_BYTES_MIN: u64 = 8 << 20;
const MEMBER_BYTES_MIN: u64 = 4 << 20;

/// Feature bits that this code knows, per word. Version 1 defines none.
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
    journal_offset: U64,
    journal_bytes: U64,
    metadata_offset: U64,
    metadata_bytes: U64,
    root: RawTwin,
    exported: U32,
    opening: U32,
    reserved: [u8; 256],
    checksum: U64,
}

const _: () = assert!(size_of::<Raw>() == SUPERBLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(Raw, sequence) == 128);
const _: () = assert!(std::mem::offset_of!(Raw, root) == 216);
const _: () = assert!(std::mem::offset_of!(Raw, checksum) == CHECKSUM_OFFSET);

/// What a disk is to its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds the root of the pool's metadata and its journals. Disk 0.
    Lead,
    /// Holds extents, and metadata if it is large enough.
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
    /// Bytes of an extent.
    pub extent_bytes: u64,
    /// Byte offset of extent 0.
    pub data_offset: u64,
    /// Number of extents.
    pub extents: u64,
    /// Byte offset of journal 0, which journal 1 follows; zero on a member.
    pub journal_offset: u64,
    /// Length of one journal in bytes; zero on a member.
    pub journal_bytes: u64,
    /// Byte offset of the metadata area.
    pub metadata_offset: u64,
    /// Length of the metadata area in bytes.
    pub metadata_bytes: u64,
}

impl DiskGeometry {
    /// The geometry of the lead disk of a new pool, or `None` if the device is too small (8 MiB), its block is neither 512 nor
    /// 4096 bytes, or the extent is not a power of two from 64 KiB to 1 MiB.
    pub fn lead(device_bytes: u64, block_bytes: u32, extent_bytes: u64) -> Option<Self> {
        let journal_bytes = (device_bytes / 4096)
            .next_multiple_of(JOURNAL_BYTES_MIN)
            .clamp(JOURNAL_BYTES_MIN, JOURNAL_BYTES_MAX);
        let metadata_bytes = (device_bytes / METADATA_SHARE)
            .next_multiple_of(ALIGNMENT)
            .clamp(METADATA_BYTES_MIN, METADATA_BYTES_MAX);
        Self::of(device_bytes, block_bytes, extent_bytes, [journal_bytes, metadata_bytes], LEAD_BYTES_MIN)
    }

    /// The geometry of a further disk, or `None` if the device is too small (4 MiB) or its block or extent is not supported.
    pub fn member(device_bytes: u64, block_bytes: u32, extent_bytes: u64) -> Option<Self> {
        let metadata_bytes = (device_bytes / METADATA_SHARE / ALIGNMENT * ALIGNMENT).min(METADATA_BYTES_MAX);
        Self::of(device_bytes, block_bytes, extent_bytes, [0, metadata_bytes], MEMBER_BYTES_MIN)
    }

    fn of(
        device_bytes: u64,
        block_bytes: u32,
        extent_bytes: u64,
        [journal_bytes, metadata_bytes]: [u64; 2],
        smallest: u64,
    ) -> Option<Self> {
        let extent_fits =
            extent_bytes.is_power_of_two() && (EXTENT_BYTES_MIN..=EXTENT_BYTES_MAX).contains(&extent_bytes);
        if device_bytes < smallest || !supported_block(block_bytes) || !extent_fits {
            return None;
        }
        let metadata_offset = RESERVED_BYTES + 2 * journal_bytes;
        let data_offset = metadata_offset + metadata_bytes;
        Some(Self {
            block_bytes,
            device_bytes,
            extent_bytes,
            data_offset,
            extents: device_bytes.checked_sub(data_offset)? / extent_bytes,
            journal_offset: if journal_bytes == 0 { 0 } else { RESERVED_BYTES },
            journal_bytes,
            metadata_offset,
            metadata_bytes,
        })
    }

    /// The same disk after its device has grown: all that lies on it stays where it is. `None` if it has not grown by an extent.
    pub fn grown(&self, device_bytes: u64) -> Option<Self> {
        let extents = device_bytes.checked_sub(self.data_offset)? / self.extent_bytes;
        (extents > self.extents).then_some(Self { device_bytes, extents, ..*self })
    }

    /// Pages of the metadata area.
    pub fn metadata_pages(&self) -> u32 {
        u32::try_from(self.metadata_bytes / PAGE_BYTES as u64).unwrap_or(u32::MAX)
    }

    /// Whether areas follow one another and lie on the device. A disk that has grown keeps the areas that it began with, so they
    /// do not follow from its size.
    fn is_sound(&self, role: Role) -> bool {
        let ends = |offset: u64, bytes: u64| offset.checked_add(bytes);
        let journals = match role {
            Role::Lead => self.journal_offset == RESERVED_BYTES && self.journal_bytes > 0,
            Role::Member | Role::MemberInCreation => self.journal_offset == 0 && self.journal_bytes == 0,
        };
        let aligned = [self.journal_bytes, self.metadata_bytes, self.data_offset, self.metadata_offset]
            .iter()
            .all(|bytes| bytes.is_multiple_of(PAGE_BYTES as u64));
        let data =
            self.extents.checked_mul(self.extent_bytes).and_then(|bytes| ends(self.data_offset, bytes));
        journals
            && aligned
            && supported_block(self.block_bytes)
            && self.extent_bytes.is_power_of_two()
            && (EXTENT_BYTES_MIN..=EXTENT_BYTES_MAX).contains(&self.extent_bytes)
            && self.journal_bytes <= JOURNAL_BYTES_MAX
            && self.metadata_bytes <= METADATA_BYTES_MAX
            && (role != Role::Lead || self.metadata_bytes >= METADATA_BYTES_MIN)
            && self.metadata_offset == RESERVED_BYTES + 2 * self.journal_bytes
            && ends(self.metadata_offset, self.metadata_bytes) == Some(self.data_offset)
            && data.is_some_and(|end| end <= self.device_bytes)
            && self.extents < 1 << 34
    }
}

fn supported_block(block_bytes: u32) -> bool {
    block_bytes == 512 || block_bytes == 4096
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
    /// Counts the superblocks of this disk from 1. The higher one counts.
    pub sequence: u64,
    /// What the disk is to its pool.
    pub role: Role,
    /// Index of the disk in its pool.
    pub disk_index: u32,
    /// Where things lie on it.
    pub geometry: DiskGeometry,
    /// The root page of the checkpoint with this sequence number; `None` on a member.
    pub root: Option<TwinPointer>,
    /// The pool was exported: all is in the checkpoint, and its journals are empty.
    pub exported: bool,
    /// The last opening of the pool that this member took part in; 0: not known, and on a lead.
    pub opening: u32,
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
    /// It names the key that its data is encrypted with.
    #[error("the disk is encrypted, which this program cannot read; use a newer one")]
    Encrypted,
    /// The checksum is right and a field makes no sense.
    #[error("damaged superblock ({0})")]
    Field(&'static str),
}

impl SuperblockError {
    /// Another program's disk, and intact: it is not to be taken for damage that the other slot makes good.
    pub fn is_foreign(&self) -> bool {
        match self {
            Self::Version(_) | Self::Incompatible(_) | Self::Encrypted => true,
            Self::Absent | Self::Checksum | Self::Field(_) => false,
        }
    }
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
        if raw.encryption_key != [0; 32] {
            return Err(SuperblockError::Encrypted);
        }
        if raw.length.get() as usize != SUPERBLOCK_BYTES || raw.slot.get() != slot {
            return Err(SuperblockError::Field("copied from another place"));
        }
        if raw.sequence.get() == 0 {
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
            sequence: raw.sequence.get(),
            role,
            disk_index: raw.disk_index.get(),
            geometry: raw.geometry(role)?,
            root: raw.root(role)?,
            exported: raw.exported.get() != 0,
            opening: raw.opening.get(),
            read_only: raw.ro_compat.get() & !KNOWN_RO_COMPAT != 0,
        })
    }

    /// The page that belongs into a slot.
    pub fn encode(&self, slot: u32) -> Vec<u8> {
        assert!(slot < 2, "a disk has two slots");
        assert!(self.sequence > 0, "sequence numbers begin at 1");
        assert!(!self.read_only, "a disk with unknown ro-compat features is never written");
        assert_eq!(self.root.is_some(), self.role == Role::Lead, "the lead, and only it, names a root");
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
            encryption_key: [0; 32],
            sequence: self.sequence.into(),
            slot: slot.into(),
            role: U32::new(match self.role {
                Role::Lead => 1,
                Role::Member => 2,
                Role::MemberInCreation => 3,
            }),
            disk_index: self.disk_index.into(),
            block_bytes: geometry.block_bytes.into(),
            device_bytes: geometry.device_bytes.into(),
            extent_bytes: geometry.extent_bytes.into(),
            data_offset: geometry.data_offset.into(),
            extents: geometry.extents.into(),
            journal_offset: geometry.journal_offset.into(),
            journal_bytes: geometry.journal_bytes.into(),
            metadata_offset: geometry.metadata_offset.into(),
            metadata_bytes: geometry.metadata_bytes.into(),
            root: RawTwin::of(self.root),
            exported: U32::new(u32::from(self.exported)),
            opening: self.opening.into(),
            reserved: [0; 256],
            checksum: U64::ZERO,
        };
        raw.checksum = checksum(&raw.as_bytes()[..CHECKSUM_OFFSET]).into();
        let mut page = vec![0; PAGE_BYTES];
        page[..SUPERBLOCK_BYTES].copy_from_slice(raw.as_bytes());
        page
    }

    /// The slot that is written first for this sequence number.
    pub fn first_slot(&self) -> u32 {
        u32::from(self.sequence % 2 == 1)
    }
}

impl Raw {
    fn geometry(&self, role: Role) -> Result<DiskGeometry, SuperblockError> {
        let geometry = DiskGeometry {
            block_bytes: self.block_bytes.get(),
            device_bytes: self.device_bytes.get(),
            extent_bytes: self.extent_bytes.get(),
            data_offset: self.data_offset.get(),
            extents: self.extents.get(),
            journal_offset: self.journal_offset.get(),
            journal_bytes: self.journal_bytes.get(),
            metadata_offset: self.metadata_offset.get(),
            metadata_bytes: self.metadata_bytes.get(),
        };
        if geometry.is_sound(role) { Ok(geometry) } else { Err(SuperblockError::Field("geometry")) }
    }

    fn root(&self, role: Role) -> Result<Option<TwinPointer>, SuperblockError> {
        let root = self.root.twin().map_err(|_| SuperblockError::Field("place of the root"))?;
        if root.is_some() != (role == Role::Lead) {
            return Err(SuperblockError::Field("root"));
        }
        Ok(root)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::PageNumber;

    pub(super) fn lead() -> Superblock {
        Superblock {
            cluster: ClusterId::from_bytes([1; 16]),
            pool: PoolId::from_bytes([2; 16]),
            disk: DiskId::from_bytes([3; 16]),
            sequence: 7,
            role: Role::Lead,
            disk_index: 0,
            geometry: DiskGeometry::lead(1 << 30, 512, 1 << 20).unwrap(),
            root: Some(TwinPointer {
                numbers: [1, 2].map(|index| PageNumber::new(0, index).unwrap()),
                checksum: 0x1234_5678_9abc_def0,
            }),
            exported: false,
            opening: 0,
            read_only: false,
        }
    }

    /// Changes one field of an encoded superblock and makes the checksum right again.
    fn patched(superblock: &Superblock, offset: usize, bytes: &[u8]) -> Vec<u8> {
        let mut page = superblock.encode(1);
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
        let sum = checksum(&page[..CHECKSUM_OFFSET]);
        page[CHECKSUM_OFFSET..SUPERBLOCK_BYTES].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn round_trip() {
        let written = lead();
        assert_eq!(Superblock::decode(&written.encode(1), 1), Ok(written));
        let member = Superblock {
            role: Role::MemberInCreation,
            sequence: 2,
            disk_index: 5,
            root: None,
            exported: true,
            opening: 9,
            geometry: DiskGeometry::member(100 << 20, 4096, 64 << 10).unwrap(),
            ..lead()
        };
        assert_eq!(Superblock::decode(&member.encode(0), 0), Ok(member));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let page = lead().encode(1);
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
        for version in [0_u32, 2] {
            let page = patched(&lead(), 16, &version.to_le_bytes());
            let error = Superblock::decode(&page, 1).unwrap_err();
            assert_eq!(error, SuperblockError::Version(version));
            assert!(error.to_string().contains(&format!("format version {version}")));
        }
    }

    #[test]
    fn feature_words_are_obeyed() {
        let compat = patched(&lead(), 24, &[0xff; 8]);
        assert_eq!(Superblock::decode(&compat, 1), Ok(lead()));
        let ro_compat = patched(&lead(), 32, &[1]);
        assert!(Superblock::decode(&ro_compat, 1).unwrap().read_only);
        let incompat = patched(&lead(), 40, &[4]);
        assert_eq!(Superblock::decode(&incompat, 1), Err(SuperblockError::Incompatible(4)));
        let encrypted = patched(&lead(), 96, &[0x40]);
        assert_eq!(Superblock::decode(&encrypted, 1), Err(SuperblockError::Encrypted));
    }

    #[test]
    fn a_copy_in_the_wrong_slot_does_not_count() {
        assert!(matches!(Superblock::decode(&lead().encode(1), 0), Err(SuperblockError::Field(_))));
    }

    #[test]
    fn geometry_that_is_unsound_is_damage() {
        for (offset, value) in [(160, 3_u64 << 19), (168, 3 << 20), (176, 1 << 20), (184, 0), (200, 1 << 20)]
        {
            let page = patched(&lead(), offset, &value.to_le_bytes());
            assert_eq!(Superblock::decode(&page, 1), Err(SuperblockError::Field("geometry")), "{offset}");
        }
        let page = patched(&lead(), 216, &[0; 8]);
        assert!(matches!(Superblock::decode(&page, 1), Err(SuperblockError::Field(_))));
    }

    #[test]
    fn areas_and_extents_never_overlap_nor_leave_the_device() {
        for shift in 23..50 {
            for extra in [0, 4096, (1 << 20) - 512] {
                let bytes = (1_u64 << shift) + extra;
                for g in [DiskGeometry::lead(bytes, 512, 1 << 20), DiskGeometry::member(bytes, 512, 1 << 16)]
                {
                    let g = g.unwrap();
                    let role = if g.journal_bytes > 0 { Role::Lead } else { Role::Member };
                    assert!(g.is_sound(role));
                    assert!(g.metadata_offset >= SLOT_END + 2 * g.journal_bytes);
                    assert!(g.data_offset >= g.metadata_offset + g.metadata_bytes);
                    assert!(g.data_offset + g.extents * g.extent_bytes <= bytes);
                    let grown = g.grown(2 * bytes).unwrap();
                    assert!(grown.is_sound(role) && grown.extents > g.extents);
                }
            }
        }
        assert_eq!(DiskGeometry::lead((8 << 20) - 1, 512, 1 << 20), None);
        assert_eq!(DiskGeometry::lead(1 << 30, 1024, 1 << 20), None);
        assert_eq!(DiskGeometry::lead(1 << 30, 512, 3 << 19), None);
        assert_eq!(DiskGeometry::lead(1 << 30, 512, 2 << 20), None);
    }

    const SLOT_END: u64 = super::super::SLOT_OFFSETS[1] + PAGE_BYTES as u64;
}
