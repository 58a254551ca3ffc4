//! A logical volume as a block device.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use basalt_bdev::provider::{BlockDevice, Capabilities, Channel, DeviceInfo, DeviceState, OpenError};
use basalt_bdev::{BlockCount, BlockSize, Lba};
use basalt_reactor::Handle;

use crate::channel::VolumeChannel;
use crate::id::VolumeId;
use crate::layout::{EXTENT_BYTES, VolumeRecord};

/// A disk's device and where its extents begin.
#[derive(Clone, Debug)]
pub(crate) struct MappedDisk {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) data_offset: u64,
}

/// Neighbouring blocks of a volume that are neighbours on one disk, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First block of the volume.
    pub(crate) start: u64,
    /// First block of the volume that is not in the span.
    pub(crate) end: u64,
    /// Index into the volume's disks.
    pub(crate) disk: usize,
    /// Block of the disk that `start` lies on.
    pub(crate) target: u64,
}

impl Span {
    /// Block of the disk that a block of this span lies on.
    pub(crate) fn target_of(&self, lba: Lba) -> Lba {
        assert!((self.start..self.end).contains(&lba.0), "the block lies in the span");
        Lba(self.target + (lba.0 - self.start))
    }
}

/// Where each block of a volume lies. Immutable.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// Sorted, without gaps.
    spans: Box<[Span]>,
}

impl Mapping {
    fn new(record: &VolumeRecord, block: BlockSize, data_offsets: &[(u32, u64)]) -> Self {
        let extent_blocks = block.blocks_in(EXTENT_BYTES).0;
        let blocks = block.blocks_in(record.size).0;
        let mut spans: Vec<Span> = Vec::new();
        let mut start = 0;
        for run in &record.runs {
            let disk = data_offsets.iter().position(|(index, _)| *index == run.disk);
            let disk = disk.expect("every disk of the volume is listed");
            let target = block.blocks_in(data_offsets[disk].1).0 + run.first * extent_blocks;
            let end = (start + u64::from(run.extents) * extent_blocks).min(blocks);
            match spans.last_mut() {
                Some(last) if last.disk == disk && last.target + (last.end - last.start) == target => {
                    last.end = end
                }
                _ => spans.push(Span { start, end, disk, target }),
            }
            start = end;
        }
        assert_eq!(start, blocks, "the runs cover the volume");
        Self { spans: spans.into_boxed_slice() }
    }

    /// The span that holds a block of the volume.
    pub(crate) fn span(&self, lba: Lba) -> &Span {
        if self.spans.len() == 1 {
            return &self.spans[0];
        }
        let behind = self.spans.partition_point(|span| span.start <= lba.0);
        &self.spans[behind - 1]
    }
}

/// A thick slice of a pool. Each reactor that serves it opens its own channel.
pub struct LogicalVolume {
    core: Arc<VolumeCore>,
}

/// What a volume shares with its channels.
pub(crate) struct VolumeCore {
    id: VolumeId,
    pub(crate) info: DeviceInfo,
    pub(crate) mapping: Mapping,
    disks: Box<[Arc<dyn BlockDevice>]>,
    /// Channels that may have requests under way.
    channels: AtomicUsize,
}

impl LogicalVolume {
    /// The volume that `record` describes; `disks` are all disks of the pool.
    pub(crate) fn new(
        record: &VolumeRecord,
        disks: &[Option<MappedDisk>],
        block: BlockSize,
        read_only: bool,
    ) -> Self {
        let mut used: Vec<u32> = record.runs.iter().map(|run| run.disk).collect();
        used.sort_unstable();
        used.dedup();
        let own =
            used.iter().map(|index| disks[*index as usize].as_ref().expect("checked before it is opened"));
        let offsets: Vec<(u32, u64)> =
            used.iter().zip(own.clone()).map(|(index, disk)| (*index, disk.data_offset)).collect();
        let devices: Box<[Arc<dyn BlockDevice>]> = own.map(|disk| Arc::clone(&disk.device)).collect();
        let core = VolumeCore {
            id: record.id,
            info: info_of(record, &devices, block, read_only),
            mapping: Mapping::new(record, block, &offsets),
            disks: devices,
            channels: AtomicUsize::new(0),
        };
        Self { core: Arc::new(core) }
    }

    /// Which volume this is.
    #[must_use]
    pub fn id(&self) -> VolumeId {
        self.core.id
    }

    /// Refuses all requests from now on.
    pub(crate) fn remove(&self) {
        self.core.info.set_removed();
    }

    /// After [`Self::remove`]: true once no request can be under way any more.
    pub(crate) fn is_drained(&self) -> bool {
        assert_eq!(self.core.info.state(), DeviceState::Removed, "only a removed volume drains for good");
        // Pairs with the fence in `open`: a channel that did not see the removal is seen here.
        fence(Ordering::SeqCst);
        self.core.channels.load(Ordering::Acquire) == 0
    }
}

impl VolumeCore {
    /// A channel was dropped that had nothing under way. One that had is never counted down: what it abandoned may still
    /// reach the disk, so its space is not used again before the next import.
    pub(crate) fn channel_closed(&self) {
        self.channels.fetch_sub(1, Ordering::AcqRel);
    }
}

impl BlockDevice for LogicalVolume {
    fn info(&self) -> &DeviceInfo {
        &self.core.info
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        let children: Vec<Box<dyn Channel>> =
            self.core.disks.iter().map(|disk| disk.open(handle)).collect::<Result<_, _>>()?;
        self.core.channels.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let channel = VolumeChannel::new(Arc::clone(&self.core), children, handle);
        if self.core.info.state() == DeviceState::Removed {
            return Err(OpenError::DeviceGone);
        }
        Ok(Box::new(channel))
    }
}

impl fmt::Debug for LogicalVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalVolume").field("id", &self.core.id).finish_non_exhaustive()
    }
}

/// What the disks together can promise.
fn info_of(
    record: &VolumeRecord,
    disks: &[Arc<dyn BlockDevice>],
    block: BlockSize,
    read_only: bool,
) -> DeviceInfo {
    let smallest = |of: fn(&DeviceInfo) -> BlockCount| {
        disks.iter().map(|disk| of(disk.info())).min().unwrap_or(BlockCount(1))
    };
    let each = [
        Capabilities::UNMAP,
        Capabilities::WRITE_ZEROES,
        Capabilities::COMPARE,
        Capabilities::COMPARE_AND_WRITE,
        Capabilities::LEND,
    ];
    let capabilities = each
        .into_iter()
        .filter(|one| disks.iter().all(|disk| disk.info().capabilities().contains(*one)))
        .fold(Capabilities::NONE, |all, one| all | one);
    let optimal = disks.iter().map(|disk| disk.info().optimal_io()).max().unwrap_or(BlockCount(1));
    let uuid = uuid::Uuid::from_bytes(record.identity.uuid);
    DeviceInfo::new(record.name.as_str(), uuid, block, block.blocks_in(record.size))
        .with_volatile_write_cache(disks.iter().any(|disk| disk.info().volatile_write_cache()))
        .with_read_only(
            read_only || record.flags.read_only || disks.iter().any(|disk| disk.info().read_only()),
        )
        .with_atomic_write(smallest(DeviceInfo::atomic_write))
        .with_optimal_io(optimal)
        .with_max_transfer(smallest(DeviceInfo::max_transfer))
        .with_capabilities(capabilities)
}
