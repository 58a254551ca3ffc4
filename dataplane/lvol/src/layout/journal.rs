//! The journal: changes of maps since a checkpoint, in groups that are written twice.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::page::at;
use super::pieces::LIST_BYTES_MAX;
use super::{DamageReason, Pieces, checksum, round_up};
use crate::id::{PoolId, VolumeId};

/// Most bytes of records in one group; a longer one is cut.
pub const GROUP_BYTES_MAX: usize = 64 << 10;

const MAGIC: [u8; 8] = *b"BSLTJRNL";
const HEADER_BYTES: usize = 80;
const CHECKSUM_OFFSET: usize = HEADER_BYTES - 8;
/// Longest record: volume, extent, and the longest list of sources.
const RECORD_BYTES_MAX: usize = 24 + 8 + LIST_BYTES_MAX;

/// Byte map in docs/disk-format.md, "Journal".
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    checkpoint: U64,
    sequence: U64,
    pool: [u8; 16],
    bytes: U32,
    records: U32,
    copy: U32,
    reserved: [u8; 4],
    lifetime: U64,
    disks: U64,
    checksum: U64,
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(RawHeader, checksum) == CHECKSUM_OFFSET);

/// The state of one extent of a volume after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalRecord {
    /// Which volume.
    pub volume: VolumeId,
    /// Which extent of it.
    pub extent: u64,
    /// Where its pieces lie from then on.
    pub pieces: Pieces,
}

/// Which group of which journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupId {
    /// The pool.
    pub pool: PoolId,
    /// The checkpoint that the group's changes follow.
    pub checkpoint: u64,
    /// Counts groups over all checkpoints.
    pub sequence: u64,
}

/// When a group that is found may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Always: what it names was durable before it was written, and so were the groups before it.
    Firm,
    /// As long as the write caches live on in which it, what it names, and the groups before it may still have been.
    While {
        /// Names the lives of the caches. Never 0.
        lifetime: u64,
        /// Bits of the disks whose caches these are.
        disks: u64,
    },
}

/// A group that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// When it may be believed.
    pub trust: Trust,
    /// Its changes, in order.
    pub records: Vec<JournalRecord>,
    /// Bytes of both copies together: where the next group begins.
    pub bytes: usize,
}

impl JournalRecord {
    fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.volume.to_bytes());
        out.extend_from_slice(&self.extent.to_le_bytes());
        self.pieces.encode_into(out);
    }

    fn decode(bytes: &[u8]) -> Result<(Self, usize), DamageReason> {
        let short = DamageReason::Field("short record");
        let volume: [u8; 16] = at(bytes, 0).ok_or(short)?;
        let extent = at::<U64>(bytes, 16).ok_or(short)?.get();
        let (pieces, length) = Pieces::decode(&bytes[24..])?;
        Ok((Self { volume: VolumeId::from_bytes(volume), extent, pieces }, 24 + length))
    }
}

impl Trust {
    fn to_bits(self) -> (U64, U64) {
        match self {
            Self::Firm => (U64::ZERO, U64::ZERO),
            Self::While { lifetime, disks } => (lifetime.into(), disks.into()),
        }
    }

    fn of(header: &RawHeader) -> Self {
        match (header.lifetime.get(), header.disks.get()) {
            (0, _) => Self::Firm,
            // An older program wrote it, and meant all disks.
            (lifetime, 0) => Self::While { lifetime, disks: u64::MAX },
            (lifetime, disks) => Self::While { lifetime, disks },
        }
    }
}

/// The bytes of a group: two copies, each of whole blocks. Takes as many of the records as fit into one group and answers how many;
/// one without records makes firm what was written before it.
pub fn encode_group(
    id: GroupId,
    trust: Trust,
    records: &[JournalRecord],
    block_bytes: usize,
) -> (Vec<u8>, usize) {
    let mut body = Vec::new();
    let mut taken = 0_u32;
    for record in records {
        if body.len() + RECORD_BYTES_MAX > GROUP_BYTES_MAX {
            break;
        }
        record.encode_into(&mut body);
        taken += 1;
    }
    let copy_bytes = round_up(HEADER_BYTES + body.len(), block_bytes);
    let mut bytes = Vec::with_capacity(2 * copy_bytes);
    for copy in 0..2 {
        let start = bytes.len();
        let (lifetime, disks) = trust.to_bits();
        let header = RawHeader {
            magic: MAGIC,
            checkpoint: id.checkpoint.into(),
            sequence: id.sequence.into(),
            pool: id.pool.to_bytes(),
            bytes: U32::new(u32::try_from(body.len()).expect("bounded above")),
            records: taken.into(),
            copy: U32::new(copy),
            reserved: [0; 4],
            lifetime,
            disks,
            checksum: U64::ZERO,
        };
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&body);
        bytes.resize(start + copy_bytes, 0);
        let sum = checksum(&bytes[start..]);
        bytes[start + CHECKSUM_OFFSET..start + HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    }
    (bytes, taken as usize)
}

/// One copy at the start of `bytes`, if there is an intact one of any group of this pool's journal.
fn decode_copy(bytes: &[u8], pool: PoolId, block_bytes: usize) -> Option<(RawHeader, &[u8])> {
    let (header, _) = RawHeader::read_from_prefix(bytes).ok()?;
    let body_bytes = header.bytes.get() as usize;
    if header.magic != MAGIC || header.pool != pool.to_bytes() || body_bytes > GROUP_BYTES_MAX {
        return None;
    }
    let copy = bytes.get(..round_up(HEADER_BYTES + body_bytes, block_bytes))?;
    let mut checked = copy.to_vec();
    checked[CHECKSUM_OFFSET..HEADER_BYTES].fill(0);
    (checksum(&checked) == header.checksum.get()).then_some((header, copy))
}

/// Reads the group `id` at the start of `bytes`, the rest of a journal, from whichever of its copies is intact.
///
/// # Errors
/// [`DamageReason::Checksum`]: there is no such group, or it was not written to its end, or both copies are damaged.
/// [`DamageReason::Field`]: an intact copy makes no sense.
pub fn decode_group(bytes: &[u8], id: GroupId, block_bytes: usize) -> Result<Group, DamageReason> {
    let fits = |header: &RawHeader, copy: u32| {
        header.checkpoint.get() == id.checkpoint
            && header.sequence.get() == id.sequence
            && header.copy.get() == copy
    };
    let mut found = decode_copy(bytes, id.pool, block_bytes).filter(|(header, _)| fits(header, 0));
    // The second copy lies behind the first one, whose length is not known if it is damaged.
    let reach = bytes.len().min(round_up(HEADER_BYTES + GROUP_BYTES_MAX, block_bytes) + 1);
    let mut offset = block_bytes;
    while found.is_none() && offset < reach {
        found = decode_copy(&bytes[offset..], id.pool, block_bytes)
            .filter(|(header, copy)| fits(header, 1) && copy.len() == offset);
        offset += block_bytes;
    }
    let (header, copy) = found.ok_or(DamageReason::Checksum)?;
    let mut body = &copy[HEADER_BYTES..HEADER_BYTES + header.bytes.get() as usize];
    let mut records = Vec::new();
    for _ in 0..header.records.get() {
        let (record, length) = JournalRecord::decode(body)?;
        records.push(record);
        body = &body[length..];
    }
    if !body.is_empty() {
        return Err(DamageReason::Field("length of the records"));
    }
    let trust = Trust::of(&header);
    Ok(Group { trust, records, bytes: 2 * copy.len() })
}

/// How many bytes the group `id` at the start of `bytes` has, and how many of its two copies are intact; `None` if neither is.
pub fn copies_of_group(bytes: &[u8], id: GroupId, block_bytes: usize) -> Option<(usize, usize)> {
    let length = decode_group(bytes, id, block_bytes).ok()?.bytes;
    Some((length, intact_copies(bytes, id, block_bytes, length)))
}

/// How many of the two copies of the group `id` at the start of `bytes`, which has `length` bytes, are intact.
pub fn intact_copies(bytes: &[u8], id: GroupId, block_bytes: usize, length: usize) -> usize {
    let intact = |copy: u32, at: usize| {
        let found = decode_copy(bytes.get(at..)?, id.pool, block_bytes)?.0;
        let named = (found.checkpoint.get(), found.sequence.get(), found.copy.get());
        (named == (id.checkpoint, id.sequence, copy)).then_some(())
    };
    [intact(0, 0), intact(1, length / 2)].into_iter().flatten().count()
}

/// The most that a group takes with both of its copies.
pub fn group_bytes_max(block_bytes: usize) -> usize {
    2 * round_up(HEADER_BYTES + GROUP_BYTES_MAX, block_bytes)
}

/// Sequence numbers and trust of all intact copies of groups of this checkpoint from `id` on. If one is to be believed, what lies
/// before it was written to its end, so a gap before it is damage and not the journal's end.
pub fn later_groups(
    bytes: &[u8],
    id: GroupId,
    block_bytes: usize,
) -> impl Iterator<Item = (u64, Trust)> + '_ {
    let starts = (0..bytes.len()).step_by(block_bytes).map(|offset| &bytes[offset..]);
    starts.filter(|rest| rest.starts_with(&MAGIC)).filter_map(move |rest| {
        let (header, _) = decode_copy(rest, id.pool, block_bytes)?;
        let later = header.checkpoint.get() == id.checkpoint && header.sequence.get() >= id.sequence;
        later.then(|| (header.sequence.get(), Trust::of(&header)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Place;

    const ID: GroupId = GroupId { pool: PoolId(uuid::Uuid::from_u128(5)), checkpoint: 4, sequence: 17 };

    fn records(count: u64) -> Vec<JournalRecord> {
        (0..count)
            .map(|extent| {
                let mut pieces = Pieces::whole(Place::new(1, extent).unwrap());
                if extent % 3 == 1 {
                    pieces.set(2, None);
                    pieces.set(3, Place::new(2, extent));
                }
                JournalRecord { volume: VolumeId::from_bytes([6; 16]), extent, pieces }
            })
            .collect()
    }

    #[test]
    fn groups_round_trip_with_either_copy() {
        for block in [512, 4096] {
            let written = records(40);
            let trust = Trust::While { lifetime: 0x1234_5678_9abc_def0, disks: 0x8000_0000_0000_0101 };
            let (bytes, taken) = encode_group(ID, trust, &written, block);
            assert_eq!(taken, 40);
            let expected = Group { trust, records: written, bytes: bytes.len() };
            assert_eq!(decode_group(&bytes, ID, block).as_ref(), Ok(&expected));
            assert_eq!(copies_of_group(&bytes, ID, block), Some((bytes.len(), 2)));
            for byte in 0..bytes.len() {
                let mut damaged = bytes.clone();
                damaged[byte] ^= 0x20;
                assert_eq!(decode_group(&damaged, ID, block).as_ref(), Ok(&expected), "byte {byte}");
                assert_eq!(copies_of_group(&damaged, ID, block), Some((bytes.len(), 1)), "byte {byte}");
                damaged[(byte + bytes.len() / 2) % bytes.len()] ^= 1;
                assert_eq!(decode_group(&damaged, ID, block), Err(DamageReason::Checksum), "byte {byte}");
            }
        }
    }

    #[test]
    fn another_group_is_not_taken_for_this_one() {
        let (bytes, _) = encode_group(ID, Trust::Firm, &records(2), 512);
        for other in [
            GroupId { sequence: 16, ..ID },
            GroupId { checkpoint: 5, ..ID },
            GroupId { pool: PoolId(uuid::Uuid::nil()), ..ID },
        ] {
            assert_eq!(decode_group(&bytes, other, 512), Err(DamageReason::Checksum));
        }
        let later = |sequence| later_groups(&bytes, GroupId { sequence, ..ID }, 512).collect::<Vec<_>>();
        assert_eq!(later(17), [(17, Trust::Firm); 2]);
        assert_eq!((later(3).len(), later(18).len()), (2, 0));
    }

    #[test]
    fn many_records_are_cut_into_groups() {
        let all = records(5000);
        let mut rest = &all[..];
        let mut read = Vec::new();
        while !rest.is_empty() {
            let (bytes, taken) = encode_group(ID, Trust::Firm, rest, 4096);
            let group = decode_group(&bytes, ID, 4096).unwrap();
            assert_eq!((group.records.len(), group.bytes), (taken, bytes.len()));
            read.extend(group.records);
            rest = &rest[taken..];
        }
        assert_eq!(read, all);
    }

    #[test]
    fn a_group_may_have_no_records() {
        let (bytes, taken) = encode_group(ID, Trust::Firm, &[], 512);
        let expected = Group { trust: Trust::Firm, records: Vec::new(), bytes: 1024 };
        assert_eq!((decode_group(&bytes, ID, 512), taken), (Ok(expected), 0));
    }

    #[test]
    fn a_torn_group_is_no_group() {
        let (bytes, _) = encode_group(ID, Trust::Firm, &records(30), 512);
        let first = bytes.len() / 2;
        for sectors in 0..bytes.len() / 512 {
            let mut torn = bytes.clone();
            torn[sectors * 512..].fill(0);
            let whole = sectors * 512 >= first;
            assert_eq!(decode_group(&torn, ID, 512).is_ok(), whole, "{sectors} sectors");
        }
    }
}
