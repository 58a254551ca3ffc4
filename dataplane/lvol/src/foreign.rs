//! What is on a disk that is not ours. Pure: looks at the first and the last megabyte.

use std::fmt;

/// Bytes at the start and at the end of a disk that must be zero for it to count as blank. All partition tables, file systems
/// and volume managers that we know of leave a trace in one of them.
pub(crate) const PROBE_BYTES: usize = 1 << 20;

/// Something that was on a disk before us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignContent(&'static str);

/// What remains of a pool of ours.
const DAMAGED_POOL: ForeignContent = ForeignContent("a damaged Basalt pool");
/// Nothing that we know.
const UNKNOWN: ForeignContent = ForeignContent("unknown data");

impl ForeignContent {
    /// It is plain that another system has put it there: no damage looks like this.
    pub(crate) fn is_somebodys(self) -> bool {
        self != DAMAGED_POOL && self != UNKNOWN
    }
}

impl fmt::Display for ForeignContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Marks at fixed places from the start of a disk: offset, bytes, name. The first that fits names the content.
const MARKS: &[(usize, &[u8], &str)] = &[
    (0, b"BASALT-POOL-DISK", DAMAGED_POOL.0),
    (512 << 10, b"BASALT-POOL-DISK", DAMAGED_POOL.0),
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
