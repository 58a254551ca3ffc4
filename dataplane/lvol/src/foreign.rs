//! What is on a disk that is not ours. Pure: looks at the first and the last megabyte.

use std::fmt;

use crate::layout::{SLOT_OFFSETS, SUPERBLOCK_BYTES, checksum};

/// Bytes at the start and at the end of a disk that must be zero for it to count as blank. All partition tables, file systems
/// and volume managers that we know of leave a trace in one of them.
pub(crate) const PROBE_BYTES: usize = 1 << 20;

/// Something that was on a disk before us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignContent(&'static str);

/// The magic of a superblock, and how many of its bits may have rotted. Of other content that many fit by chance once in 10^18 disks.
const POOL_MAGIC: [u8; 16] = *b"BASALT-POOL-DISK";
const ROTTEN_BITS_MAX: u32 = 16;

/// What remains of a pool of ours.
const DAMAGED_POOL: ForeignContent = ForeignContent("a damaged Basalt pool");
/// Nothing that we know.
const UNKNOWN: ForeignContent = ForeignContent("unknown data");

impl ForeignContent {
    /// It was a pool of ours: nothing that may be given to another one, nor done without.
    #[must_use]
    pub fn is_damaged_pool(self) -> bool {
        self == DAMAGED_POOL
    }

    /// It is plain that another system has put it there: no damage looks like this.
    pub(crate) fn is_somebodys(self) -> bool {
        self != DAMAGED_POOL && self != UNKNOWN
    }

    /// What to do about it on a disk of this name, to be said behind what the disk holds.
    #[must_use]
    pub fn remedy(self, disk: &str) -> String {
        let wipe = format!("wipe it: basaltd pool wipe {disk} --force {disk}");
        match self == DAMAGED_POOL {
            false => format!("; if that may be lost, {wipe}"),
            true => format!(
                ": both of its superblocks are unusable, and what the pool held may still be there. Nothing is written on it. If there is a copy \
                 of the disk that was made after the pool was in service last, write the first MiB of that back; only if all that the pool held \
                 may be lost, {wipe}"
            ),
        }
    }
}

impl fmt::Display for ForeignContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Marks at fixed places from the start of a disk: offset, bytes, name. The first that fits names the content.
const MARKS: &[(usize, &[u8], &str)] = &[
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (0, b"SPDKBLOB", "an SPDK blobstore"),
    (0, b"bluestore block device", "a Ceph OSD"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"XFSB", "an XFS file system"),
    (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
    (0, b"LABELONE", "an LVM physical volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a Linux RAID"),
    (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of a Linux RAID"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0x2_0000, &[0x0c, 0xb1, 0xba, 0], "a ZFS pool"),
    (3, b"NTFS    ", "an NTFS file system"),
    (82, b"FAT32   ", "a FAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (510, &[0x55, 0xaa], "an MBR partition table"),
];

/// Names what is in the first and last bytes of a disk, each up to [`PROBE_BYTES`] long; `None` if all of it is zero.
pub(crate) fn recognise(first: &[u8], last: &[u8]) -> Option<ForeignContent> {
    if SLOT_OFFSETS.into_iter().any(|offset| was_superblock(first, offset)) {
        return Some(DAMAGED_POOL);
    }
    let named =
        MARKS.iter().find(|(offset, mark, _)| first.get(*offset..).is_some_and(|at| at.starts_with(mark)));
    if let Some((_, _, name)) = named {
        return Some(ForeignContent(name));
    }
    let backup_gpt = last.chunks_exact(512).any(|sector| sector.starts_with(b"EFI PART"));
    if backup_gpt {
        return Some(ForeignContent("the backup of a GPT partition table"));
    }
    let blank = is_zero(first) && is_zero(last);
    (!blank).then_some(UNKNOWN)
}

/// Whether there is a superblock of ours, or what rot has left of one: it has the magic but for some bits, or its checksum is right with it.
fn was_superblock(first: &[u8], offset: u64) -> bool {
    let slot = usize::try_from(offset).ok().and_then(|offset| first.get(offset..offset + SUPERBLOCK_BYTES));
    let Some((magic, rest)) = slot.and_then(|slot| slot.split_first_chunk::<16>()) else { return false };
    let differing: u32 = magic.iter().zip(POOL_MAGIC).map(|(is, ought)| (is ^ ought).count_ones()).sum();
    let Some((rest, sum)) = rest.split_last_chunk::<8>() else { return false };
    differing <= ROTTEN_BITS_MAX
        || u64::from_le_bytes(*sum) == checksum(&[POOL_MAGIC.as_slice(), rest].concat())
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_recognised_by_its_name() {
        for (offset, mark, name) in MARKS {
            let mut first = vec![0; PROBE_BYTES];
            first[*offset..offset + mark.len()].copy_from_slice(mark);
            assert_eq!(recognise(&first, &[0; 4096]), Some(ForeignContent(name)));
        }
    }

    #[test]
    fn a_pool_is_recognised_by_what_rot_has_left_of_its_superblocks() {
        let damaged = Some(ForeignContent("a damaged Basalt pool"));
        let sector = |magic: &[u8; 16]| {
            let mut sector = [7; 512];
            sector[..16].copy_from_slice(b"BASALT-POOL-DISK");
            let sum = crate::layout::checksum(&sector[..504]);
            sector[504..].copy_from_slice(&sum.to_le_bytes());
            sector[..16].copy_from_slice(magic);
            sector
        };
        for at in [0, 512 << 10] {
            let look = |magic: &[u8; 16], rotten: usize| {
                let mut first = vec![0; PROBE_BYTES];
                first[at..at + 512].copy_from_slice(&sector(magic));
                first[at + 100..at + 100 + rotten].fill(8);
                recognise(&first, &[0; 4096])
            };
            for bit in 0..128 {
                let mut magic = *b"BASALT-POOL-DISK";
                magic[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(look(&magic, 0), damaged, "bit {bit}");
                assert_eq!(look(&magic, 20), damaged, "bit {bit}, and others");
            }
            // All of the magic is gone, and nothing else.
            assert_eq!(look(&[0; 16], 0), damaged);
            assert_eq!(look(b"another system's", 1).unwrap().to_string(), "unknown data");
        }
    }

    #[test]
    fn only_zeroes_are_blank() {
        let mut first = vec![0; PROBE_BYTES];
        let mut last = vec![0; PROBE_BYTES];
        assert_eq!(recognise(&first, &last), None);
        last[PROBE_BYTES - 512..PROBE_BYTES - 504].copy_from_slice(b"EFI PART");
        assert_eq!(recognise(&first, &last).unwrap().to_string(), "the backup of a GPT partition table");
        last.fill(0);
        first[PROBE_BYTES - 1] = 1;
        assert_eq!(recognise(&first, &last).unwrap().to_string(), "unknown data");
        first.fill(0);
        last[7] = 1;
        assert!(recognise(&first, &last).is_some());
    }
}
