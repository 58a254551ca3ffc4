//! The top of a pool's metadata: the root page of a checkpoint and the directory of its volumes. Both are written twice.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::page::{RawPointer, at, count_at, put};
use super::taken::TAKEN_BYTES;
use super::volume::{length, padded, text};
use super::{
    DISKS_MAX, DamageReason, PAGE_BYTES, PAGE_HEADER_BYTES, POOL_NAME_BYTES_MAX, PageHeader, PageNumber,
    PagePointer, TakenMap, checksum,
};
use crate::id::{DiskId, Generation, Revision, VolumeId};

/// Records of a directory page.
pub const DIRECTORY_RECORDS: usize = 62;

const NEXT_OFFSET: usize = PAGE_HEADER_BYTES;
const COUNT_OFFSET: usize = NEXT_OFFSET + 24;
const RECORDS_OFFSET: usize = COUNT_OFFSET + 8;
const RECORD_BYTES: usize = 64;
const _: () = assert!(RECORDS_OFFSET + DIRECTORY_RECORDS * RECORD_BYTES <= PAGE_BYTES);

/// Byte map in docs/disk-format.md, "Root": follows the page header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRoot {
    revision: U64,
    incarnation: U64,
    volumes: U32,
    disks: U32,
    directory: RawTwin,
    first_group: U64,
    name_bytes: U16,
    taken_shift: u8,
    layout: u8,
    openings: U32,
    name: [u8; POOL_NAME_BYTES_MAX],
    reserved_1: [u8; 320],
    disk_records: [RawDisk; DISKS_MAX],
    taken: [u8; TAKEN_BYTES],
}

const _: () = assert!(size_of::<RawRoot>() == PAGE_BYTES - PAGE_HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(RawRoot, taken_shift) == 122 - PAGE_HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(RawRoot, disk_records) == 512 - PAGE_HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(RawRoot, taken) == 3584 - PAGE_HEADER_BYTES);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDisk {
    id: [u8; 16],
    device_bytes: U64,
    data_offset: U64,
    extents: U64,
    metadata_pages: U32,
    opening: U32,
}

const _: () = assert!(size_of::<RawDisk>() == 48);

/// A page that is there twice: two places and one checksum of what both hold from byte 64 on.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawTwin {
    first: U64,
    second: U64,
    checksum: U64,
}

const _: () = assert!(size_of::<RawTwin>() == 24);

/// Two pages of the same content. Each has a header of its own; the checksum covers what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwinPointer {
    /// Where the two lie.
    pub numbers: [PageNumber; 2],
    /// Checksum of what follows the header, the same in both.
    pub checksum: u64,
}

impl RawTwin {
    pub(super) fn of(twin: Option<TwinPointer>) -> Self {
        twin.map_or_else(Self::default, |twin| Self {
            first: twin.numbers[0].to_bits().into(),
            second: twin.numbers[1].to_bits().into(),
            checksum: twin.checksum.into(),
        })
    }

    pub(super) fn twin(&self) -> Result<Option<TwinPointer>, DamageReason> {
        let numbers = (PageNumber::from_bits(self.first.get())?, PageNumber::from_bits(self.second.get())?);
        match numbers {
            (None, None) => Ok(None),
            (Some(first), Some(second)) => {
                Ok(Some(TwinPointer { numbers: [first, second], checksum: self.checksum.get() }))
            }
            _ => Err(DamageReason::Field("half of a pair of pages")),
        }
    }
}

/// Why the top of a pool's metadata cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RootError {
    /// Neither copy of the root, or of a page of the directory, is intact.
    #[error("both copies of the {0} are damaged")]
    BothCopies(&'static str),
    /// It is intact and makes no sense.
    #[error("damaged pool root ({0})")]
    Field(&'static str),
}

/// From which of its disks a pool takes the next extent. What was taken stays where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskLayout {
    /// From the first one that has free space.
    #[default]
    Concatenated,
    /// From one after the other, of those that have free space: neighbouring extents of a volume lie on different disks.
    Striped,
}

const LAYOUT_STRIPED: u8 = 1;

impl fmt::Display for DiskLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Concatenated => "concatenated",
            Self::Striped => "striped",
        })
    }
}

/// A disk as the pool knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// Which disk.
    pub id: DiskId,
    /// Bytes of the device that the pool uses.
    pub device_bytes: u64,
    /// Byte offset of its extent 0.
    pub data_offset: u64,
    /// Number of its extents.
    pub extents: u64,
    /// Pages of its metadata area.
    pub metadata_pages: u32,
    /// The last opening of the pool that it took part in; 0: not known, and of the lead.
    pub opening: u32,
}

/// What the root says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Name of the pool; at most [`POOL_NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Where its next extents come from.
    pub layout: DiskLayout,
    /// How often it was opened with more disks than its lead; 0: an older program wrote it, and that is not known.
    pub openings: u32,
    /// Highest desired state that the node had seen.
    pub revision: Revision,
    /// Disks of the pool; the first is the lead.
    pub disks: Vec<DiskRecord>,
    /// Number of volumes, snapshots included.
    pub volumes: u32,
    /// First page of the directory; `None` without volumes.
    pub directory: Option<TwinPointer>,
    /// Sequence number of the first journal group that follows this checkpoint.
    pub first_group: u64,
    /// Which extents its maps may name; `None`: an older program wrote it, and that is not known.
    pub taken: Option<TakenMap>,
}

/// A volume in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// Highest generation of it that the node has seen.
    pub generation: Generation,
    /// Its page.
    pub page: PagePointer,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRecord {
    volume: [u8; 16],
    generation: U64,
    page: RawPointer,
    reserved: [u8; 24],
}

const _: () = assert!(size_of::<RawRecord>() == RECORD_BYTES);

impl TwinPointer {
    /// Whether a page is an intact copy of this: `copy` says which one it was read as, `header` what both say about themselves
    /// but for their place.
    pub fn is_intact(&self, page: &[u8], copy: usize, header: &PageHeader) -> bool {
        let header = PageHeader { number: self.numbers[copy], ..*header };
        page.len() == PAGE_BYTES
            && page[..PAGE_HEADER_BYTES] == header.begin()[..PAGE_HEADER_BYTES]
            && checksum(&page[PAGE_HEADER_BYTES..]) == self.checksum
    }
}

impl Root {
    /// Its two pages and the pointer to them.
    pub fn encode(&self, headers: &[PageHeader; 2]) -> (TwinPointer, [Vec<u8>; 2]) {
        let (taken_shift, taken) = self.taken.as_ref().map_or((0, [0; TAKEN_BYTES]), TakenMap::to_raw);
        let mut raw = RawRoot {
            revision: self.revision.index.into(),
            incarnation: self.revision.incarnation.into(),
            volumes: self.volumes.into(),
            disks: U32::new(u32::try_from(self.disks.len()).expect("at most 64 disks")),
            directory: RawTwin::of(self.directory),
            first_group: self.first_group.into(),
            name_bytes: length(&self.name, POOL_NAME_BYTES_MAX),
            taken_shift,
            layout: match self.layout {
                DiskLayout::Concatenated => 0,
                DiskLayout::Striped => LAYOUT_STRIPED,
            },
            openings: self.openings.into(),
            name: padded(self.name.as_bytes()),
            reserved_1: [0; 320],
            disk_records: [RawDisk::of(None); DISKS_MAX],
            taken,
        };
        for (raw, disk) in raw.disk_records.iter_mut().zip(&self.disks) {
            *raw = RawDisk::of(Some(disk));
        }
        twin_of(headers, |page| put(page, PAGE_HEADER_BYTES, &raw))
    }

    /// Reads a root from a page whose checksum was right.
    ///
    /// # Errors
    /// [`RootError::Field`]; never panics on the bytes.
    pub fn decode(page: &[u8]) -> Result<Self, RootError> {
        let raw: RawRoot = at(page, PAGE_HEADER_BYTES).ok_or(RootError::Field("length"))?;
        let count = raw.disks.get() as usize;
        if count == 0 || count > DISKS_MAX {
            return Err(RootError::Field("number of disks"));
        }
        let disks: Vec<DiskRecord> = raw.disk_records[..count].iter().map(RawDisk::record).collect();
        let extents: Vec<u64> = disks.iter().map(|disk| disk.extents).collect();
        let taken = TakenMap::from_raw(&extents, raw.taken_shift, raw.taken);
        Ok(Self {
            name: text(&raw.name, raw.name_bytes, POOL_NAME_BYTES_MAX).ok_or(RootError::Field("name"))?,
            // One that is not known: as before there was a choice, and nothing is wrong with that.
            layout: if raw.layout == LAYOUT_STRIPED { DiskLayout::Striped } else { DiskLayout::Concatenated },
            openings: raw.openings.get(),
            revision: Revision { incarnation: raw.incarnation.get(), index: raw.revision.get() },
            disks,
            volumes: raw.volumes.get(),
            directory: raw.directory.twin().map_err(|_| RootError::Field("directory"))?,
            first_group: raw.first_group.get(),
            taken: taken.map_err(|()| RootError::Field("map of what is taken"))?,
        })
    }
}

impl RawDisk {
    fn of(disk: Option<&DiskRecord>) -> Self {
        match disk {
            None => Self {
                id: [0; 16],
                device_bytes: U64::ZERO,
                data_offset: U64::ZERO,
                extents: U64::ZERO,
                metadata_pages: U32::ZERO,
                opening: U32::ZERO,
            },
            Some(disk) => Self {
                id: disk.id.to_bytes(),
                device_bytes: disk.device_bytes.into(),
                data_offset: disk.data_offset.into(),
                extents: disk.extents.into(),
                metadata_pages: disk.metadata_pages.into(),
                opening: disk.opening.into(),
            },
        }
    }

    fn record(&self) -> DiskRecord {
        DiskRecord {
            id: DiskId::from_bytes(self.id),
            device_bytes: self.device_bytes.get(),
            data_offset: self.data_offset.get(),
            extents: self.extents.get(),
            metadata_pages: self.metadata_pages.get(),
            opening: self.opening.get(),
        }
    }
}

fn twin_of(headers: &[PageHeader; 2], fill: impl Fn(&mut [u8])) -> (TwinPointer, [Vec<u8>; 2]) {
    let pages = [headers[0].begin(), headers[1].begin()].map(|mut page| {
        fill(&mut page);
        page
    });
    let sum = checksum(&pages[0][PAGE_HEADER_BYTES..]);
    let numbers = [headers[0].number, headers[1].number];
    (TwinPointer { numbers, checksum: sum }, pages)
}

/// The two pages of a part of the directory and the pointer to them; `next` names the part that follows.
///
/// # Panics
/// If there are more than [`DIRECTORY_RECORDS`] records.
pub fn encode_directory(
    headers: &[PageHeader; 2],
    records: &[DirectoryRecord],
    next: Option<TwinPointer>,
) -> (TwinPointer, [Vec<u8>; 2]) {
    assert!(records.len() <= DIRECTORY_RECORDS, "the directory is cut into pages before");
    twin_of(headers, |page| {
        put(page, NEXT_OFFSET, &RawTwin::of(next));
        let count = u32::try_from(records.len()).expect("bounded above");
        put(page, COUNT_OFFSET, &U32::new(count));
        for (index, record) in records.iter().enumerate() {
            let raw = RawRecord {
                volume: record.volume.to_bytes(),
                generation: record.generation.0.into(),
                page: RawPointer::of(Some(record.page)),
                reserved: [0; 24],
            };
            put(page, RECORDS_OFFSET + index * RECORD_BYTES, &raw);
        }
    })
}

/// Reads a part of the directory from a page whose checksum was right: its records and the pointer to the next part.
///
/// # Errors
/// [`RootError::Field`]; never panics on the bytes.
pub fn decode_directory(page: &[u8]) -> Result<(Vec<DirectoryRecord>, Option<TwinPointer>), RootError> {
    let count = count_at(page, COUNT_OFFSET);
    if count == 0 || count > DIRECTORY_RECORDS {
        return Err(RootError::Field("number of volumes"));
    }
    let next: RawTwin = at(page, NEXT_OFFSET).ok_or(RootError::Field("length"))?;
    let next = next.twin().map_err(|_| RootError::Field("directory"))?;
    let mut records = Vec::with_capacity(count);
    for index in 0..count {
        let raw: RawRecord =
            at(page, RECORDS_OFFSET + index * RECORD_BYTES).ok_or(RootError::Field("length"))?;
        let pointer = raw.page.pointer().ok().flatten().ok_or(RootError::Field("page of a volume"))?;
        records.push(DirectoryRecord {
            volume: VolumeId::from_bytes(raw.volume),
            generation: Generation(raw.generation.get()),
            page: pointer,
        });
    }
    if !records.is_sorted_by(|a, b| a.volume < b.volume) {
        return Err(RootError::Field("order of volumes"));
    }
    Ok((records, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PoolId;
    use crate::layout::{PageKind, Stretches};

    fn headers(kind: PageKind) -> [PageHeader; 2] {
        [4, 5].map(|index| PageHeader {
            kind,
            level: 0,
            sequence: 8,
            pool: PoolId::from_bytes([2; 16]),
            number: PageNumber::new(0, index).unwrap(),
            first: 0,
        })
    }

    pub(super) fn root() -> Root {
        let disk = |id: u8| DiskRecord {
            id: DiskId::from_bytes([id; 16]),
            device_bytes: 1 << 30,
            data_offset: 6 << 20,
            extents: 1018,
            metadata_pages: 1024,
            opening: u32::from(id) - 1,
        };
        Root {
            name: "nvme".into(),
            layout: DiskLayout::Striped,
            openings: 4,
            revision: Revision { incarnation: 3, index: 42 },
            disks: vec![disk(1), disk(2)],
            volumes: 1,
            directory: Some(TwinPointer {
                numbers: [6, 7].map(|index| PageNumber::new(0, index).unwrap()),
                checksum: 12,
            }),
            first_group: 99,
            taken: Some(TakenMap::new(Stretches::of(&[1018, 1018]), [0, 77, 2035].into_iter())),
        }
    }

    #[test]
    fn roots_round_trip_and_damage_is_found() {
        let (twin, pages) = root().encode(&headers(PageKind::Root));
        let header = headers(PageKind::Root)[0];
        for (copy, page) in pages.iter().enumerate() {
            assert!(twin.is_intact(page, copy, &header));
            assert_eq!(Root::decode(page), Ok(root()));
        }
        for bit in 0..PAGE_BYTES * 8 {
            let mut damaged = pages[0].clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(!twin.is_intact(&damaged, 0, &header), "bit {bit}");
        }
        // As older programs wrote them.
        let old = Root { taken: None, layout: DiskLayout::Concatenated, ..root() };
        let (_, pages) = old.encode(&headers(PageKind::Root));
        assert_eq!(Root::decode(&pages[0]), Ok(old));
    }

    #[test]
    fn directories_round_trip() {
        let records: Vec<DirectoryRecord> = (0..62)
            .map(|id| DirectoryRecord {
                volume: VolumeId::from_bytes([id; 16]),
                generation: Generation(u64::from(id)),
                page: PagePointer { number: PageNumber::new(1, u32::from(id)).unwrap(), checksum: 5 },
            })
            .collect();
        let next = root().directory;
        let (twin, pages) = encode_directory(&headers(PageKind::Directory), &records, next);
        assert!(twin.is_intact(&pages[1], 1, &headers(PageKind::Directory)[0]));
        assert_eq!(decode_directory(&pages[1]), Ok((records.clone(), next)));
        let mut unsorted = records;
        unsorted.swap(3, 4);
        let (_, pages) = encode_directory(&headers(PageKind::Directory), &unsorted, None);
        assert_eq!(decode_directory(&pages[0]), Err(RootError::Field("order of volumes")));
        assert!(decode_directory(&[0; PAGE_BYTES]).is_err());
        assert!(Root::decode(&[0; PAGE_BYTES]).is_err());
        assert!(Root::decode(&[]).is_err());
    }
}
