//! Pages of metadata: where they lie, what each one says about itself, and how a parent names its child.

use std::fmt;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{DISKS_MAX, DamageReason, PAGE_BYTES, checksum};
use crate::id::PoolId;

/// Bytes that every page of metadata begins with.
pub const PAGE_HEADER_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"BSLTPAGE";

/// Where a page of metadata lies: a disk of the pool, and the page's place in that disk's metadata area.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageNumber {
    disk: u8,
    index: u32,
}

impl PageNumber {
    /// The page with this index on this disk; `None` for page 0 of the lead, which stands for no page on the disk, and for a
    /// disk that cannot be.
    pub fn new(disk: usize, index: u32) -> Option<Self> {
        let disk = u8::try_from(disk).ok().filter(|disk| usize::from(*disk) < DISKS_MAX)?;
        (disk != 0 || index != 0).then_some(Self { disk, index })
    }

    /// Index of the disk in its pool.
    pub fn disk(self) -> usize {
        usize::from(self.disk)
    }

    /// Place in the disk's metadata area, in pages.
    pub fn index(self) -> u32 {
        self.index
    }

    /// The number as it is written; never 0.
    pub fn to_bits(self) -> u64 {
        u64::from(self.disk) << 32 | u64::from(self.index)
    }

    /// Reads a written number; `Ok(None)` for 0.
    ///
    /// # Errors
    /// [`DamageReason::Field`] where no such page can be.
    pub fn from_bits(bits: u64) -> Result<Option<Self>, DamageReason> {
        if bits == 0 {
            return Ok(None);
        }
        let disk = usize::try_from(bits >> 32).unwrap_or(usize::MAX);
        let index = u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0);
        Self::new(disk, index).map(Some).ok_or(DamageReason::Field("page number"))
    }
}

impl fmt::Debug for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.disk, self.index)
    }
}

impl fmt::Display for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} of disk {}", self.index, self.disk)
    }
}

/// How a parent names its child: where it lies and what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagePointer {
    /// Where it lies.
    pub number: PageNumber,
    /// Checksum of all of its bytes.
    pub checksum: u64,
}

/// Byte map in docs/disk-format.md: 16 bytes wherever a page is named.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawPointer {
    number: U64,
    checksum: U64,
}

const _: () = assert!(size_of::<RawPointer>() == 16);

impl RawPointer {
    pub(super) fn of(pointer: Option<PagePointer>) -> Self {
        match pointer {
            None => Self::default(),
            Some(PagePointer { number, checksum }) => {
                Self { number: number.to_bits().into(), checksum: checksum.into() }
            }
        }
    }

    pub(super) fn pointer(&self) -> Result<Option<PagePointer>, DamageReason> {
        let number = PageNumber::from_bits(self.number.get())?;
        Ok(number.map(|number| PagePointer { number, checksum: self.checksum.get() }))
    }
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// The pool's state of one checkpoint.
    Root,
    /// Names volumes.
    Directory,
    /// One volume.
    Volume,
    /// Names nodes or leaves of a map.
    Node,
    /// Where the data of 256 extents lies.
    Leaf,
    /// What did not fit into a leaf.
    Overflow,
}

impl PageKind {
    fn to_bits(self) -> u16 {
        match self {
            Self::Root => 1,
            Self::Directory => 2,
            Self::Volume => 3,
            Self::Node => 4,
            Self::Leaf => 5,
            Self::Overflow => 6,
        }
    }
}

/// Byte map in docs/disk-format.md, "Page header".
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    kind: U16,
    level: U16,
    reserved_0: [u8; 4],
    sequence: U64,
    pool: [u8; 16],
    number: U64,
    first: U64,
    reserved_1: [u8; 8],
}

const _: () = assert!(size_of::<RawHeader>() == PAGE_HEADER_BYTES);

/// What a page says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    /// What it is.
    pub kind: PageKind,
    /// Height above the leaves; 0 for all but nodes.
    pub level: u16,
    /// The checkpoint that wrote it.
    pub sequence: u64,
    /// The pool that it belongs to.
    pub pool: PoolId,
    /// Where it belongs.
    pub number: PageNumber,
    /// First extent that it covers, for pages of a map.
    pub first: u64,
}

impl PageHeader {
    /// An empty page with this header.
    pub(super) fn begin(&self) -> Vec<u8> {
        let raw = RawHeader {
            magic: MAGIC,
            kind: self.kind.to_bits().into(),
            level: self.level.into(),
            reserved_0: [0; 4],
            sequence: self.sequence.into(),
            pool: self.pool.to_bytes(),
            number: self.number.to_bits().into(),
            first: self.first.into(),
            reserved_1: [0; 8],
        };
        let mut page = vec![0; PAGE_BYTES];
        page[..PAGE_HEADER_BYTES].copy_from_slice(raw.as_bytes());
        page
    }

    /// Checks a page against the pointer that names it, its kind and its pool; answers the rest of its header.
    ///
    /// # Errors
    /// [`DamageReason::Checksum`], or [`DamageReason::Field`] where the page is intact and another one was expected.
    pub fn decode(
        page: &[u8],
        pointer: PagePointer,
        pool: PoolId,
        kind: PageKind,
    ) -> Result<Self, DamageReason> {
        if page.len() != PAGE_BYTES || checksum(page) != pointer.checksum {
            return Err(DamageReason::Checksum);
        }
        let (raw, _) = RawHeader::read_from_prefix(page).map_err(|_| DamageReason::Checksum)?;
        if raw.magic != MAGIC || raw.kind.get() != kind.to_bits() {
            return Err(DamageReason::Field("kind of page"));
        }
        if raw.pool != pool.to_bytes() || raw.number.get() != pointer.number.to_bits() {
            return Err(DamageReason::Field("page of another place"));
        }
        Ok(Self {
            kind,
            level: raw.level.get(),
            sequence: raw.sequence.get(),
            pool,
            number: pointer.number,
            first: raw.first.get(),
        })
    }
}

/// Reads a structure at an offset of a page; `None` beyond its end.
pub(super) fn at<T: FromBytes + KnownLayout + Immutable>(page: &[u8], offset: usize) -> Option<T> {
    T::read_from_bytes(page.get(offset..offset + size_of::<T>())?).ok()
}

/// Writes a structure to an offset of a page.
pub(super) fn put<T: IntoBytes + Immutable>(page: &mut [u8], offset: usize, value: &T) {
    page[offset..offset + size_of::<T>()].copy_from_slice(value.as_bytes());
}

/// A 32-bit count at an offset of a page.
pub(super) fn count_at(page: &[u8], offset: usize) -> usize {
    at::<U32>(page, offset).map_or(0, |count| count.get() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: PoolId = PoolId(uuid::Uuid::from_u128(7));

    fn page() -> (Vec<u8>, PagePointer) {
        let number = PageNumber::new(3, 9).unwrap();
        let header =
            PageHeader { kind: PageKind::Node, level: 2, sequence: 5, pool: POOL, number, first: 1 << 40 };
        let page = header.begin();
        let pointer = PagePointer { number, checksum: checksum(&page) };
        (page, pointer)
    }

    #[test]
    fn a_page_is_known_by_its_parent_only() {
        let (bytes, pointer) = page();
        let header = PageHeader::decode(&bytes, pointer, POOL, PageKind::Node).unwrap();
        assert_eq!((header.level, header.sequence, header.first), (2, 5, 1 << 40));
        let leaf = PageHeader::decode(&bytes, pointer, POOL, PageKind::Leaf);
        assert_eq!(leaf, Err(DamageReason::Field("kind of page")));
        let moved = PagePointer { number: PageNumber::new(3, 10).unwrap(), ..pointer };
        let moved = PageHeader::decode(&bytes, moved, POOL, PageKind::Node);
        assert_eq!(moved, Err(DamageReason::Field("page of another place")));
        for bit in 0..PAGE_BYTES * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let found = PageHeader::decode(&damaged, pointer, POOL, PageKind::Node);
            assert_eq!(found, Err(DamageReason::Checksum), "bit {bit}");
        }
    }

    #[test]
    fn numbers_round_trip_and_zero_is_none() {
        for (disk, index) in [(0, 1), (0, u32::MAX), (63, 0), (1, 7)] {
            let number = PageNumber::new(disk, index).unwrap();
            assert_eq!((number.disk(), number.index()), (disk, index));
            assert_eq!(PageNumber::from_bits(number.to_bits()), Ok(Some(number)));
        }
        assert_eq!(PageNumber::new(0, 0), None);
        assert_eq!(PageNumber::new(64, 0), None);
        assert_eq!(PageNumber::from_bits(0), Ok(None));
        assert!(PageNumber::from_bits(64 << 32).is_err());
        assert!(PageNumber::from_bits(u64::MAX).is_err());
    }
}
