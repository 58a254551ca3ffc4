//! The entry of one volume: identity, size, and the runs of extents that hold its data.

use thiserror::Error;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{EXTENT_BYTES, PAGE_BYTES, round_up};
use crate::id::{Epoch, Generation, VolumeId};

/// Longest NQN in bytes (NVMe Base 2.0, 4.5).
pub const NQN_BYTES_MAX: usize = 223;
/// Longest name of a volume in bytes.
pub const NAME_BYTES_MAX: usize = 253;
/// Bytes of a serial number (NVMe Base 2.0, Identify Controller, SN).
pub const SERIAL_BYTES: usize = 20;

const RECORD_BYTES: usize = 1024;
const RUN_BYTES: usize = 16;
const FLAG_THICK: u32 = 1;
const FLAG_READ_ONLY: u32 = 2;

/// Byte map in docs/disk-format.md, "Entry".
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
    runs: U32,
    nqn_bytes: U16,
    name_bytes: U16,
    nqn: [u8; 224],
    name: [u8; 256],
    reserved: [u8; 416],
}

const _: () = assert!(size_of::<Raw>() == RECORD_BYTES);
const _: () = assert!(std::mem::offset_of!(Raw, runs) == 120);
const _: () = assert!(std::mem::offset_of!(Raw, nqn) == 128);
const _: () = assert!(std::mem::offset_of!(Raw, name) == 352);

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawRun {
    disk: U32,
    extents: U32,
    first: U64,
}

const _: () = assert!(size_of::<RawRun>() == RUN_BYTES);

/// Neighbouring extents of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// Index of the disk in its pool.
    pub disk: u32,
    /// First extent on that disk.
    pub first: u64,
    /// Number of extents; never 0.
    pub extents: u32,
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
    /// Writes are refused.
    pub read_only: bool,
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
    /// Where the data lies, in the volume's order. Covers the size exactly, rounded up to extents.
    pub runs: Vec<Run>,
}

/// Why a volume cannot be used although the pool could be imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DamageReason {
    /// The entry does not have the checksum that the directory names.
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
    /// A disk with extents of this volume is not there.
    #[error("disk {0} of the pool is missing")]
    DiskMissing(u32),
}

impl VolumeRecord {
    /// Extents that the size takes.
    pub fn extents(&self) -> u64 {
        self.size.div_ceil(EXTENT_BYTES)
    }

    /// Length of the entry in bytes, a multiple of a page.
    pub fn encoded_bytes(&self) -> usize {
        round_up(RECORD_BYTES + self.runs.len() * RUN_BYTES, PAGE_BYTES)
    }

    /// Appends the entry's pages.
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let raw = Raw {
            id: self.id.to_bytes(),
            generation: self.generation.0.into(),
            epoch_incarnation: self.epoch.incarnation.into(),
            epoch_counter: self.epoch.counter.into(),
            set_version: self.set_version.into(),
            size: self.size.into(),
            block_bytes: self.block_bytes.into(),
            flags: U32::new(FLAG_THICK | if self.flags.read_only { FLAG_READ_ONLY } else { 0 }),
            uuid: self.identity.uuid,
            nguid: self.identity.nguid,
            serial: self.identity.serial,
            nsid: self.identity.nsid.into(),
            runs: U32::new(u32::try_from(self.runs.len()).expect("bounded by the table area")),
            nqn_bytes: length(&self.identity.nqn, NQN_BYTES_MAX),
            name_bytes: length(&self.name, NAME_BYTES_MAX),
            nqn: padded(self.identity.nqn.as_bytes()),
            name: padded(self.name.as_bytes()),
            reserved: [0; 416],
        };
        out.extend_from_slice(raw.as_bytes());
        for run in &self.runs {
            assert!(run.extents > 0, "a run has extents");
            let raw = RawRun { disk: run.disk.into(), extents: run.extents.into(), first: run.first.into() };
            out.extend_from_slice(raw.as_bytes());
        }
        out.resize(start + self.encoded_bytes(), 0);
    }

    /// Reads an entry whose checksum was right. Whether its extents exist is the caller's to check.
    ///
    /// # Errors
    /// [`DamageReason::Field`] where the content makes no sense; never panics on it.
    pub fn decode(bytes: &[u8]) -> Result<Self, DamageReason> {
        let (raw, rest) =
            Raw::read_from_prefix(bytes).map_err(|_| DamageReason::Field("length of the entry"))?;
        let size = raw.size.get();
        if size == 0 || !size.is_multiple_of(PAGE_BYTES as u64) {
            return Err(DamageReason::Field("size"));
        }
        let block_bytes = raw.block_bytes.get();
        if block_bytes != 512 && block_bytes != 4096 {
            return Err(DamageReason::Field("block size"));
        }
        let flags = raw.flags.get();
        if flags & FLAG_THICK == 0 || flags & !(FLAG_THICK | FLAG_READ_ONLY) != 0 {
            return Err(DamageReason::Field("flags"));
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
            flags: VolumeFlags { read_only: flags & FLAG_READ_ONLY != 0 },
            runs: runs(rest, raw.runs.get())?,
        };
        let covered: u64 = record.runs.iter().map(|run| u64::from(run.extents)).sum();
        if covered != record.extents() || record.encoded_bytes() != bytes.len() {
            return Err(DamageReason::Field("length of the runs"));
        }
        Ok(record)
    }
}

fn runs(bytes: &[u8], count: u32) -> Result<Vec<Run>, DamageReason> {
    let count = count as usize;
    if count.checked_mul(RUN_BYTES).is_none_or(|needed| needed > bytes.len()) {
        return Err(DamageReason::Field("number of runs"));
    }
    let mut runs = Vec::with_capacity(count);
    for chunk in bytes[..count * RUN_BYTES].chunks_exact(RUN_BYTES) {
        let raw = RawRun::read_from_bytes(chunk).map_err(|_| DamageReason::Field("run"))?;
        if raw.extents.get() == 0 {
            return Err(DamageReason::Field("empty run"));
        }
        runs.push(Run { disk: raw.disk.get(), first: raw.first.get(), extents: raw.extents.get() });
    }
    Ok(runs)
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

    fn record(runs: Vec<Run>) -> VolumeRecord {
        let extents: u64 = runs.iter().map(|run| u64::from(run.extents)).sum();
        VolumeRecord {
            id: VolumeId::from_bytes([9; 16]),
            generation: Generation(4),
            epoch: Epoch { incarnation: 1, counter: 2 },
            set_version: 0,
            name: "db".into(),
            identity: VolumeIdentity {
                nqn: "nqn.2024-01.storage.basalt:db".into(),
                nsid: 1,
                uuid: [5; 16],
                nguid: [6; 16],
                serial: *b"0123456789abcdef    ",
            },
            size: extents * EXTENT_BYTES - PAGE_BYTES as u64,
            block_bytes: 512,
            flags: VolumeFlags { read_only: true },
            runs,
        }
    }

    fn encoded(record: &VolumeRecord) -> Vec<u8> {
        let mut bytes = Vec::new();
        record.encode_into(&mut bytes);
        bytes
    }

    #[test]
    fn round_trip_with_any_number_of_pages() {
        for count in [1, 192, 193, 1000] {
            let runs = (0..count).map(|i| Run { disk: 1, first: i * 3, extents: 2 }).collect();
            let record = record(runs);
            let bytes = encoded(&record);
            assert_eq!(bytes.len() % PAGE_BYTES, 0);
            assert_eq!(VolumeRecord::decode(&bytes), Ok(record));
        }
    }

    #[test]
    fn nonsense_is_refused_and_never_panics() {
        let good = encoded(&record(vec![Run { disk: 0, first: 0, extents: 3 }]));
        for (offset, bytes, reason) in [
            (48, &[0u8; 8][..], "size"),
            (56, &[1, 4], "block size"),
            (60, &[0], "flags"),
            (60, &[0x80], "flags"),
            (120, &[255; 4], "number of runs"),
            (120, &[2], "empty run"),
            (124, &[255], "NQN"),
            (126, &[254], "name"),
            (128, &[255], "NQN"),
            (1024 + 4, &[4], "length of the runs"),
        ] {
            let mut damaged = good.clone();
            damaged[offset..offset + bytes.len()].copy_from_slice(bytes);
            assert_eq!(VolumeRecord::decode(&damaged), Err(DamageReason::Field(reason)), "at {offset}");
        }
        assert!(VolumeRecord::decode(&good[..1000]).is_err());
        assert!(VolumeRecord::decode(&[]).is_err());
    }
}
