//! The page of one volume: identity, size, where its map begins, and what it knows as a replica.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::page::{RawPointer, at, put};
use super::{LEVELS_MAX, PAGE_BYTES, PAGE_HEADER_BYTES, PageHeader, PageNumber, PagePointer, checksum};
use crate::id::{Epoch, Generation, VolumeId};

/// Longest NQN in bytes (NVMe Base 2.0, 4.5).
pub const NQN_BYTES_MAX: usize = 223;
/// Longest name of a volume in bytes.
pub const NAME_BYTES_MAX: usize = 253;
/// Bytes of a serial number (NVMe Base 2.0, Identify Controller, SN).
pub const SERIAL_BYTES: usize = 20;
/// Most entries of a replica's history; older ones are forgotten.
pub const HISTORY_MAX: usize = 16;

const FLAG_THICK: u32 = 1;
const FLAG_READ_ONLY: u32 = 2;
const FLAG_SNAPSHOT: u32 = 4;
const FLAG_HIDDEN: u32 = 8;
const FLAGS: u32 = FLAG_THICK | FLAG_READ_ONLY | FLAG_SNAPSHOT | FLAG_HIDDEN;
/// The version of what a volume knows as a replica.
const REPLICA_VERSION: u32 = 0;

/// Byte map in docs/disk-format.md, "Volume": follows the page header.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    id: [u8; 16],
    generation: U64,
    epoch_incarnation: U64,
    epoch_counter: U64,
    set_version: U64,
    size: U64,
    block_bytes: U32,
    flags: U32,
    uuid: [u8; 16],
    nguid: [u8; 16],
    serial: [u8; SERIAL_BYTES],
    nsid: U32,
    levels: U16,
    reserved_0: [u8; 2],
    nqn_bytes: U16,
    name_bytes: U16,
    nqn: [u8; 224],
    name: [u8; 256],
    map: RawPointer,
    origin: [u8; 16],
    family: [u8; 16],
    created: U64,
    reserved_1: [u8; 360],
    replica: RawReplica,
    reserved_2: [u8; 2400],
}

const _: () = assert!(size_of::<Raw>() == PAGE_BYTES - PAGE_HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(Raw, nqn) == 128);
const _: () = assert!(std::mem::offset_of!(Raw, name) == 352);
const _: () = assert!(std::mem::offset_of!(Raw, map) == 608);
const _: () = assert!(std::mem::offset_of!(Raw, replica) == 1024);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawReplica {
    version: U32,
    in_sync: U32,
    boot: [u8; 16],
    entries: U32,
    reserved: [u8; 4],
    history: [RawEntry; HISTORY_MAX],
    dirty_regions: [RawDirtyRegions; 2],
}

const _: () = assert!(size_of::<RawReplica>() == 608);

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    incarnation: U64,
    counter: U64,
    set_version: U64,
    reserved: [u8; 8],
}

#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDirtyRegions {
    page: RawPointer,
    pages: U64,
    sequence: U64,
}

/// How a volume is known to hosts. Never changes over the volume's life, because a host drops a namespace whose identity does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeIdentity {
    /// NQN of the subsystem that serves it; at most [`NQN_BYTES_MAX`] bytes.
    pub nqn: String,
    /// Namespace id.
    pub nsid: u32,
    /// Namespace UUID.
    pub uuid: [u8; 16],
    /// Namespace globally unique id.
    pub nguid: [u8; 16],
    /// Serial number, ASCII, padded with spaces.
    pub serial: [u8; SERIAL_BYTES],
}

/// Properties of a volume that are on or off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeFlags {
    /// All of its space was taken when it was made.
    pub thick: bool,
    /// Writes are refused.
    pub read_only: bool,
    /// It is a snapshot: its data never changes.
    pub snapshot: bool,
    /// It is not complete: it must not be served.
    pub hidden: bool,
}

/// At which epoch the in-sync set had which version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The epoch.
    pub epoch: Epoch,
    /// The version.
    pub set_version: u64,
}

/// What a volume knows as a replica. Written from the first day; replication gives it its meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaRecord {
    /// It was in sync when this was written.
    pub in_sync: bool,
    /// Which run of the daemon wrote it last.
    pub boot: [u8; 16],
    /// Epochs and set versions, the latest last; at most [`HISTORY_MAX`].
    pub history: Vec<HistoryEntry>,
    /// The double-buffered log of dirty regions: first page and number of pages of each copy.
    pub dirty_regions: [Option<(PageNumber, u64)>; 2],
}

/// A volume as the disk describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Which volume.
    pub id: VolumeId,
    /// Highest generation of it that the node has seen.
    pub generation: Generation,
    /// Highest epoch that this copy has seen.
    pub epoch: Epoch,
    /// Version of the in-sync set; 0 until replication gives it a meaning.
    pub set_version: u64,
    /// A name for people; at most [`NAME_BYTES_MAX`] bytes.
    pub name: String,
    /// How hosts know it.
    pub identity: VolumeIdentity,
    /// Size in bytes, a multiple of a page, more than 0.
    pub size: u64,
    /// Logical block in bytes: 512 or 4096.
    pub block_bytes: u32,
    /// What is on or off.
    pub flags: VolumeFlags,
    /// The volume whose data it began with.
    pub origin: Option<VolumeId>,
    /// The first of all volumes that may share data with it.
    pub family: VolumeId,
    /// The checkpoint that wrote it first.
    pub created: u64,
    /// What it knows as a replica.
    pub replica: ReplicaRecord,
}

/// Where the map of a volume begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapRoot {
    /// Levels of nodes above the leaves.
    pub levels: u16,
    /// Its uppermost page; `None`: nothing is mapped.
    pub page: Option<PagePointer>,
}

/// Why a volume cannot be used although the pool could be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DamageReason {
    /// A page does not have the checksum that its parent names.
    #[error("its metadata is damaged (checksum)")]
    Checksum,
    /// The checksum is right and a field makes no sense.
    #[error("its metadata is damaged ({0})")]
    Field(&'static str),
    /// An extent lies outside of its disk.
    #[error("its metadata names space that no disk of the pool has")]
    OutOfRange,
    /// Another volume claims the same extent.
    #[error("another volume claims the same space")]
    Overlap,
    /// A group of the pool's journal is lost, and what it changed, of this volume or of others, is not known.
    #[error(
        "changes are lost from the journal of its pool: what it holds may be old, or another volume's. Restore it from elsewhere, or accept \
         the loss of what was written last, with basaltd pool check --repair on the node"
    )]
    Journal,
    /// A disk with extents of this volume is not there.
    #[error("disk {0} of the pool is missing")]
    DiskMissing(u32),
}

impl VolumeRecord {
    /// Extents of this many bytes that the size takes.
    pub fn extents(&self, extent_bytes: u64) -> u64 {
        self.size.div_ceil(extent_bytes)
    }

    /// Its page and the pointer to it.
    pub fn encode(&self, header: &PageHeader, map: MapRoot) -> (PagePointer, Vec<u8>) {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let flags = flag(self.flags.thick, FLAG_THICK)
            | flag(self.flags.read_only, FLAG_READ_ONLY)
            | flag(self.flags.snapshot, FLAG_SNAPSHOT)
            | flag(self.flags.hidden, FLAG_HIDDEN);
        let raw = Raw {
            id: self.id.to_bytes(),
            generation: self.generation.0.into(),
            epoch_incarnation: self.epoch.incarnation.into(),
            epoch_counter: self.epoch.counter.into(),
            set_version: self.set_version.into(),
            size: self.size.into(),
            block_bytes: self.block_bytes.into(),
            flags: U32::new(flags),
            uuid: self.identity.uuid,
            nguid: self.identity.nguid,
            serial: self.identity.serial,
            nsid: self.identity.nsid.into(),
            levels: map.levels.into(),
            reserved_0: [0; 2],
            nqn_bytes: length(&self.identity.nqn, NQN_BYTES_MAX),
            name_bytes: length(&self.name, NAME_BYTES_MAX),
            nqn: padded(self.identity.nqn.as_bytes()),
            name: padded(self.name.as_bytes()),
            map: RawPointer::of(map.page),
            origin: self.origin.map_or([0; 16], VolumeId::to_bytes),
            family: self.family.to_bytes(),
            created: self.created.into(),
            reserved_1: [0; 360],
            replica: RawReplica::of(&self.replica),
            reserved_2: [0; 2400],
        };
        let mut page = header.begin();
        put(&mut page, PAGE_HEADER_BYTES, &raw);
        (PagePointer { number: header.number, checksum: checksum(&page) }, page)
    }

    /// Reads a volume from its page, whose header was checked.
    ///
    /// # Errors
    /// [`DamageReason::Field`] where the content makes no sense; never panics on it.
    pub fn decode(page: &[u8]) -> Result<(Self, MapRoot), DamageReason> {
        let raw: Raw = at(page, PAGE_HEADER_BYTES).ok_or(DamageReason::Field("length of the page"))?;
        let size = raw.size.get();
        if size == 0 || !size.is_multiple_of(PAGE_BYTES as u64) {
            return Err(DamageReason::Field("size"));
        }
        let block_bytes = raw.block_bytes.get();
        if block_bytes != 512 && block_bytes != 4096 {
            return Err(DamageReason::Field("block size"));
        }
        let flags = raw.flags.get();
        if flags & !FLAGS != 0 {
            return Err(DamageReason::Field("flags"));
        }
        let map = MapRoot { levels: raw.levels.get(), page: raw.map.pointer()? };
        if map.levels > LEVELS_MAX {
            return Err(DamageReason::Field("height of the map"));
        }
        let record = Self {
            id: VolumeId::from_bytes(raw.id),
            generation: Generation(raw.generation.get()),
            epoch: Epoch { incarnation: raw.epoch_incarnation.get(), counter: raw.epoch_counter.get() },
            set_version: raw.set_version.get(),
            name: text(&raw.name, raw.name_bytes, NAME_BYTES_MAX).ok_or(DamageReason::Field("name"))?,
            identity: VolumeIdentity {
                nqn: text(&raw.nqn, raw.nqn_bytes, NQN_BYTES_MAX).ok_or(DamageReason::Field("NQN"))?,
                nsid: raw.nsid.get(),
                uuid: raw.uuid,
                nguid: raw.nguid,
                serial: raw.serial,
            },
            size,
            block_bytes,
            flags: VolumeFlags {
                thick: flags & FLAG_THICK != 0,
                read_only: flags & FLAG_READ_ONLY != 0,
                snapshot: flags & FLAG_SNAPSHOT != 0,
                hidden: flags & FLAG_HIDDEN != 0,
            },
            origin: (raw.origin != [0; 16]).then(|| VolumeId::from_bytes(raw.origin)),
            family: VolumeId::from_bytes(raw.family),
            created: raw.created.get(),
            replica: raw.replica.record()?,
        };
        Ok((record, map))
    }
}

impl RawReplica {
    fn of(replica: &ReplicaRecord) -> Self {
        assert!(replica.history.len() <= HISTORY_MAX, "older entries are forgotten before");
        let mut history = [RawEntry::default(); HISTORY_MAX];
        for (raw, entry) in history.iter_mut().zip(&replica.history) {
            raw.incarnation = entry.epoch.incarnation.into();
            raw.counter = entry.epoch.counter.into();
            raw.set_version = entry.set_version.into();
        }
        Self {
            version: REPLICA_VERSION.into(),
            in_sync: U32::new(u32::from(replica.in_sync)),
            boot: replica.boot,
            entries: U32::new(u32::try_from(replica.history.len()).expect("bounded above")),
            reserved: [0; 4],
            history,
            dirty_regions: replica.dirty_regions.map(|log| match log {
                None => RawDirtyRegions::default(),
                Some((number, pages)) => RawDirtyRegions {
                    page: RawPointer::of(Some(PagePointer { number, checksum: 0 })),
                    pages: pages.into(),
                    sequence: U64::ZERO,
                },
            }),
        }
    }

    fn record(&self) -> Result<ReplicaRecord, DamageReason> {
        if self.version.get() != REPLICA_VERSION {
            return Err(DamageReason::Field("version of the replica's part"));
        }
        let entries = self.entries.get() as usize;
        if entries > HISTORY_MAX {
            return Err(DamageReason::Field("history"));
        }
        let history = self.history[..entries].iter().map(|raw| HistoryEntry {
            epoch: Epoch { incarnation: raw.incarnation.get(), counter: raw.counter.get() },
            set_version: raw.set_version.get(),
        });
        let mut dirty_regions = [None; 2];
        for (log, raw) in dirty_regions.iter_mut().zip(&self.dirty_regions) {
            *log = raw.page.pointer()?.map(|pointer| (pointer.number, raw.pages.get()));
        }
        Ok(ReplicaRecord {
            in_sync: self.in_sync.get() != 0,
            boot: self.boot,
            history: history.collect(),
            dirty_regions,
        })
    }
}

pub(super) fn text(field: &[u8], length: U16, longest: usize) -> Option<String> {
    let length = usize::from(length.get());
    if length > longest.min(field.len()) {
        return None;
    }
    String::from_utf8(field[..length].to_vec()).ok()
}

pub(super) fn length(text: &str, longest: usize) -> U16 {
    assert!(text.len() <= longest, "checked when the name entered");
    U16::new(u16::try_from(text.len()).expect("shorter than the field"))
}

pub(super) fn padded<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut field = [0; N];
    field[..bytes.len()].copy_from_slice(bytes);
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PoolId;
    use crate::layout::PageKind;

    fn record() -> VolumeRecord {
        VolumeRecord {
            id: VolumeId::from_bytes([9; 16]),
            generation: Generation(4),
            epoch: Epoch { incarnation: 1, counter: 2 },
            set_version: 3,
            name: "db".into(),
            identity: VolumeIdentity {
                nqn: "nqn.2026-01.storage.basalt:db".into(),
                nsid: 1,
                uuid: [5; 16],
                nguid: [6; 16],
                serial: *b"0123456789abcdef    ",
            },
            size: 3 << 20,
            block_bytes: 512,
            flags: VolumeFlags { read_only: true, snapshot: true, ..VolumeFlags::default() },
            origin: Some(VolumeId::from_bytes([8; 16])),
            family: VolumeId::from_bytes([7; 16]),
            created: 77,
            replica: ReplicaRecord {
                in_sync: true,
                boot: [4; 16],
                history: vec![HistoryEntry { epoch: Epoch { incarnation: 1, counter: 1 }, set_version: 2 }],
                dirty_regions: [PageNumber::new(0, 40).map(|number| (number, 2)), None],
            },
        }
    }

    fn encoded() -> Vec<u8> {
        let number = PageNumber::new(0, 3).unwrap();
        let header = PageHeader {
            kind: PageKind::Volume,
            level: 0,
            sequence: 1,
            pool: PoolId::from_bytes([2; 16]),
            number,
            first: 0,
        };
        record().encode(&header, map()).1
    }

    fn map() -> MapRoot {
        MapRoot { levels: 2, page: Some(PagePointer { number: PageNumber::new(0, 9).unwrap(), checksum: 5 }) }
    }

    #[test]
    fn volumes_round_trip() {
        assert_eq!(VolumeRecord::decode(&encoded()), Ok((record(), map())));
    }

    #[test]
    fn nonsense_is_refused_and_never_panics() {
        let good = encoded();
        for (offset, bytes, reason) in [
            (48, &[0_u8; 8][..], "size"),
            (56, &[1, 4], "block size"),
            (60, &[0x80], "flags"),
            (120, &[9], "height of the map"),
            (124, &[255], "NQN"),
            (126, &[254], "name"),
            (128, &[255], "NQN"),
            (614, &[1], "page number"),
            (1024, &[1], "version of the replica's part"),
            (1048, &[17], "history"),
        ] {
            let mut damaged = good.clone();
            let offset = PAGE_HEADER_BYTES + offset;
            damaged[offset..offset + bytes.len()].copy_from_slice(bytes);
            let found = VolumeRecord::decode(&damaged).map(|_| ());
            assert_eq!(found, Err(DamageReason::Field(reason)), "at {offset}");
        }
        assert!(VolumeRecord::decode(&good[..1000]).is_err());
        assert!(VolumeRecord::decode(&[]).is_err());
    }
}
