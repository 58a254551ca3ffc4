//! The table: header, directory and entries of one state of a pool.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::volume::{length, padded, text};
use super::{
    DISKS_MAX, DamageReason, EXTENT_BYTES, PAGE_BYTES, POOL_NAME_BYTES_MAX, VolumeRecord, checksum, round_up,
};
use crate::id::{DiskId, Generation, PoolId, Revision, VolumeId};

/// Bytes of a table's header: one page.
pub const HEADER_BYTES: usize = PAGE_BYTES;

const MAGIC: [u8; 16] = *b"BASALT-TABLE-00\n";
const CHECKSUM_OFFSET: usize = HEADER_BYTES - 8;
const DIRECTORY_RECORD_BYTES: usize = 64;

/// Byte map in docs/disk-format.md, "Header".
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 16],
    sequence: U64,
    pool: [u8; 16],
    revision: U64,
    incarnation: U64,
    volumes: U32,
    disks: U32,
    directory_pages: U32,
    entry_pages: U32,
    directory_checksum: U64,
    name_bytes: U16,
    reserved_0: [u8; 6],
    name: [u8; POOL_NAME_BYTES_MAX],
    reserved_1: [u8; 40],
    disk_records: [RawDisk; DISKS_MAX],
    reserved_2: [u8; 824],
    checksum: U64,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(RawHeader, disk_records) == 192);
const _: () = assert!(std::mem::offset_of!(RawHeader, checksum) == CHECKSUM_OFFSET);

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDisk {
    id: [u8; 16],
    device_bytes: U64,
    data_offset: U64,
    extents: U64,
    reserved: [u8; 8],
}

const _: () = assert!(size_of::<RawDisk>() == 48);

/// Byte map in docs/disk-format.md, "Directory".
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDirectoryRecord {
    volume: [u8; 16],
    generation: U64,
    first_page: U32,
    pages: U32,
    extents: U64,
    checksum: U64,
    reserved: [u8; 16],
}

const _: () = assert!(size_of::<RawDirectoryRecord>() == DIRECTORY_RECORD_BYTES);

/// A disk as the table knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskRecord {
    /// Which disk.
    pub id: DiskId,
    /// Size of the device in bytes when it joined.
    pub device_bytes: u64,
    /// Byte offset of its extent 0.
    pub data_offset: u64,
    /// Number of its extents.
    pub extents: u64,
}

/// What the header page says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableHeader {
    /// Sequence number of the commit that wrote it.
    pub sequence: u64,
    /// The pool it belongs to.
    pub pool: PoolId,
    /// Name of the pool; at most [`POOL_NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// Highest desired state that the node had seen.
    pub revision: Revision,
    /// Disks of the pool; the first is the lead.
    pub disks: Vec<DiskRecord>,
    /// Checksum of the header page itself, to compare with the superblock's.
    pub checksum: u64,
    volumes: u32,
    directory_pages: u32,
    entry_pages: u32,
    directory_checksum: u64,
}

/// One volume in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// Highest generation of it that the node has seen.
    pub generation: Generation,
    /// Where its entry begins, in bytes from the start of the table.
    pub offset: u64,
    /// Length of its entry in bytes.
    pub bytes: usize,
    /// Extents of the volume.
    pub extents: u64,
    /// Checksum of its entry.
    pub checksum: u64,
}

/// Why a table cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TableError {
    /// No header at this place.
    #[error("no table")]
    Absent,
    /// Header or directory does not have its checksum.
    #[error("damaged {0} of the pool's table (checksum)")]
    Checksum(&'static str),
    /// The checksum is right and a field makes no sense.
    #[error("damaged pool table ({0})")]
    Field(&'static str),
}

impl TableHeader {
    /// Reads a header page; `area_bytes` is the length of the area that it lies in.
    ///
    /// # Errors
    /// Says why the bytes cannot be used; never panics on them.
    pub fn decode(page: &[u8], area_bytes: u64) -> Result<Self, TableError> {
        let Ok((raw, _)) = RawHeader::read_from_prefix(page) else {
            return Err(TableError::Absent);
        };
        if raw.magic != MAGIC {
            return Err(TableError::Absent);
        }
        if raw.checksum.get() != checksum(&page[..CHECKSUM_OFFSET]) {
            return Err(TableError::Checksum("header"));
        }
        let disks = raw.disks.get() as usize;
        if disks == 0 || disks > DISKS_MAX {
            return Err(TableError::Field("number of disks"));
        }
        let header = Self {
            sequence: raw.sequence.get(),
            pool: PoolId::from_bytes(raw.pool),
            name: text(&raw.name, raw.name_bytes, POOL_NAME_BYTES_MAX).ok_or(TableError::Field("name"))?,
            revision: Revision { incarnation: raw.incarnation.get(), index: raw.revision.get() },
            disks: raw.disk_records[..disks].iter().map(RawDisk::record).collect(),
            checksum: checksum(&page[..HEADER_BYTES]),
            volumes: raw.volumes.get(),
            directory_pages: raw.directory_pages.get(),
            entry_pages: raw.entry_pages.get(),
            directory_checksum: raw.directory_checksum.get(),
        };
        let directory_bytes = round_up(header.volumes as usize * DIRECTORY_RECORD_BYTES, PAGE_BYTES);
        if header.directory_pages as usize * PAGE_BYTES != directory_bytes {
            return Err(TableError::Field("length of the directory"));
        }
        if header.table_bytes() > area_bytes {
            return Err(TableError::Field("length of the table"));
        }
        if header.disks.iter().any(|disk| !disk.is_sane()) {
            return Err(TableError::Field("disk"));
        }
        Ok(header)
    }

    /// Length of the directory in bytes. It follows the header.
    pub fn directory_bytes(&self) -> usize {
        self.directory_pages as usize * PAGE_BYTES
    }

    /// Length of the whole table in bytes.
    pub fn table_bytes(&self) -> u64 {
        (1 + u64::from(self.directory_pages) + u64::from(self.entry_pages)) * PAGE_BYTES as u64
    }

    /// Reads the directory that follows this header.
    ///
    /// # Errors
    /// Says why the bytes cannot be used; never panics on them.
    pub fn decode_directory(&self, bytes: &[u8]) -> Result<Vec<DirectoryRecord>, TableError> {
        if bytes.len() != self.directory_bytes() || checksum(bytes) != self.directory_checksum {
            return Err(TableError::Checksum("directory"));
        }
        let entries_offset = (HEADER_BYTES + self.directory_bytes()) as u64;
        let mut records: Vec<DirectoryRecord> = Vec::with_capacity(self.volumes as usize);
        let mut next_page = 0;
        for chunk in bytes.chunks_exact(DIRECTORY_RECORD_BYTES).take(self.volumes as usize) {
            let raw =
                RawDirectoryRecord::read_from_bytes(chunk).map_err(|_| TableError::Field("directory"))?;
            let volume = VolumeId::from_bytes(raw.volume);
            if raw.first_page.get() != next_page || raw.pages.get() == 0 {
                return Err(TableError::Field("place of an entry"));
            }
            if records.last().is_some_and(|last| last.volume >= volume) {
                return Err(TableError::Field("order of the directory"));
            }
            records.push(DirectoryRecord {
                volume,
                generation: Generation(raw.generation.get()),
                offset: entries_offset + u64::from(next_page) * PAGE_BYTES as u64,
                bytes: raw.pages.get() as usize * PAGE_BYTES,
                extents: raw.extents.get(),
                checksum: raw.checksum.get(),
            });
            next_page = next_page
                .checked_add(raw.pages.get())
                .filter(|next| *next <= self.entry_pages)
                .ok_or(TableError::Field("place of an entry"))?;
        }
        if next_page != self.entry_pages {
            return Err(TableError::Field("number of entry pages"));
        }
        Ok(records)
    }
}

impl DirectoryRecord {
    /// Reads the entry that this record binds.
    ///
    /// # Errors
    /// Says why the volume has to be isolated; never panics on the bytes.
    pub fn decode_entry(&self, bytes: &[u8]) -> Result<VolumeRecord, DamageReason> {
        if bytes.len() != self.bytes || checksum(bytes) != self.checksum {
            return Err(DamageReason::Checksum);
        }
        let record = VolumeRecord::decode(bytes)?;
        if record.id != self.volume
            || record.generation != self.generation
            || record.extents() != self.extents
        {
            return Err(DamageReason::Field("contradicts the directory"));
        }
        Ok(record)
    }
}

impl RawDisk {
    fn record(&self) -> DiskRecord {
        DiskRecord {
            id: DiskId::from_bytes(self.id),
            device_bytes: self.device_bytes.get(),
            data_offset: self.data_offset.get(),
            extents: self.extents.get(),
        }
    }
}

impl DiskRecord {
    /// All extents lie behind the metadata and before the end.
    fn is_sane(&self) -> bool {
        let data_bytes = self.extents.checked_mul(EXTENT_BYTES);
        let end = data_bytes.and_then(|bytes| bytes.checked_add(self.data_offset));
        end.is_some_and(|end| end <= self.device_bytes) && self.data_offset >= super::RESERVED_BYTES
    }
}

/// A volume to be written: one that is understood, or the kept bytes of one that is not.
#[derive(Clone, Copy, Debug)]
pub enum EntrySource<'a> {
    /// An intact volume.
    Intact(&'a VolumeRecord),
    /// A damaged one: its directory record and its bytes as they were found.
    Kept(&'a DirectoryRecord, &'a [u8]),
}

impl EntrySource<'_> {
    /// Which volume.
    pub fn id(&self) -> VolumeId {
        match self {
            Self::Intact(record) => record.id,
            Self::Kept(record, _) => record.volume,
        }
    }

    fn encoded_bytes(&self) -> usize {
        match self {
            Self::Intact(record) => record.encoded_bytes(),
            Self::Kept(record, _) => record.bytes,
        }
    }
}

/// What a new table is made of.
#[derive(Debug)]
pub struct TableContent<'a> {
    /// Sequence number of the commit.
    pub sequence: u64,
    /// The pool.
    pub pool: PoolId,
    /// Its name; at most [`POOL_NAME_BYTES_MAX`] bytes.
    pub name: &'a str,
    /// Highest desired state that the node has seen.
    pub revision: Revision,
    /// Disks, the lead first; at most [`DISKS_MAX`].
    pub disks: &'a [DiskRecord],
    /// Volumes, sorted by id.
    pub volumes: &'a [EntrySource<'a>],
}

/// A table ready to be written.
#[derive(Debug)]
pub struct EncodedTable {
    /// The whole table, a multiple of a page.
    pub bytes: Vec<u8>,
    /// Checksum of its header page, for the superblock.
    pub header_checksum: u64,
}

/// Length in bytes of a table with entries of these lengths.
pub fn table_bytes(entries: impl IntoIterator<Item = usize>) -> u64 {
    let (count, bytes) = entries.into_iter().fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes));
    (HEADER_BYTES + round_up(count * DIRECTORY_RECORD_BYTES, PAGE_BYTES) + bytes) as u64
}

/// Encodes a table, or returns `None` if it does not fit into `area_bytes`: the pool's metadata is full.
pub fn encode_table(content: &TableContent<'_>, area_bytes: u64) -> Option<EncodedTable> {
    assert!(content.volumes.is_sorted_by(|a, b| a.id() < b.id()), "the directory is sorted by volume id");
    assert!((1..=DISKS_MAX).contains(&content.disks.len()), "a pool has 1 to 64 disks");
    let directory_bytes = round_up(content.volumes.len() * DIRECTORY_RECORD_BYTES, PAGE_BYTES);
    let entry_bytes: usize = content.volumes.iter().map(EntrySource::encoded_bytes).sum();
    let table_bytes = HEADER_BYTES + directory_bytes + entry_bytes;
    if table_bytes as u64 > area_bytes {
        return None;
    }
    let mut bytes = Vec::with_capacity(table_bytes);
    bytes.resize(HEADER_BYTES + directory_bytes, 0);
    for (index, volume) in content.volumes.iter().enumerate() {
        let offset = bytes.len();
        let record = append_entry(volume, &mut bytes, HEADER_BYTES + directory_bytes);
        let place = HEADER_BYTES + index * DIRECTORY_RECORD_BYTES;
        bytes[place..place + DIRECTORY_RECORD_BYTES].copy_from_slice(record.as_bytes());
        assert!(bytes.len() > offset, "an entry has pages");
    }
    assert_eq!(bytes.len(), table_bytes, "entries have the length that they announce");
    let directory_checksum = checksum(&bytes[HEADER_BYTES..HEADER_BYTES + directory_bytes]);
    let header = encode_header(content, directory_bytes, entry_bytes, directory_checksum);
    bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
    Some(EncodedTable { header_checksum: checksum(header.as_bytes()), bytes })
}

fn append_entry(volume: &EntrySource<'_>, bytes: &mut Vec<u8>, entries_offset: usize) -> RawDirectoryRecord {
    let offset = bytes.len();
    let (generation, extents, kept_checksum) = match volume {
        EntrySource::Intact(record) => {
            record.encode_into(bytes);
            (record.generation, record.extents(), None)
        }
        EntrySource::Kept(record, kept) => {
            assert_eq!(kept.len(), record.bytes, "kept as it was found");
            bytes.extend_from_slice(kept);
            (record.generation, record.extents, Some(record.checksum))
        }
    };
    RawDirectoryRecord {
        volume: volume.id().to_bytes(),
        generation: generation.0.into(),
        first_page: pages(offset - entries_offset),
        pages: pages(bytes.len() - offset),
        extents: extents.into(),
        checksum: kept_checksum.unwrap_or_else(|| checksum(&bytes[offset..])).into(),
        reserved: [0; 16],
    }
}

fn encode_header(
    content: &TableContent<'_>,
    directory_bytes: usize,
    entry_bytes: usize,
    directory_checksum: u64,
) -> RawHeader {
    let mut disk_records = [RawDisk {
        id: [0; 16],
        device_bytes: U64::ZERO,
        data_offset: U64::ZERO,
        extents: U64::ZERO,
        reserved: [0; 8],
    }; DISKS_MAX];
    for (raw, disk) in disk_records.iter_mut().zip(content.disks) {
        raw.id = disk.id.to_bytes();
        raw.device_bytes = disk.device_bytes.into();
        raw.data_offset = disk.data_offset.into();
        raw.extents = disk.extents.into();
    }
    let mut header = RawHeader {
        magic: MAGIC,
        sequence: content.sequence.into(),
        pool: content.pool.to_bytes(),
        revision: content.revision.index.into(),
        incarnation: content.revision.incarnation.into(),
        volumes: count(content.volumes.len()),
        disks: count(content.disks.len()),
        directory_pages: pages(directory_bytes),
        entry_pages: pages(entry_bytes),
        directory_checksum: directory_checksum.into(),
        name_bytes: length(content.name, POOL_NAME_BYTES_MAX),
        reserved_0: [0; 6],
        name: padded(content.name.as_bytes()),
        reserved_1: [0; 40],
        disk_records,
        reserved_2: [0; 824],
        checksum: U64::ZERO,
    };
    header.checksum = checksum(&header.as_bytes()[..CHECKSUM_OFFSET]).into();
    header
}

fn pages(bytes: usize) -> U32 {
    count(bytes / PAGE_BYTES)
}

fn count(number: usize) -> U32 {
    U32::new(u32::try_from(number).expect("bounded by the table area"))
}
