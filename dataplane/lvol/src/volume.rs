//! A logical volume as a block device.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use basalt_bdev::provider::{BlockDevice, Capabilities, Channel, DeviceInfo, DeviceState, OpenError};
use basalt_bdev::{BlockCount, BlockSize, Lba};
use basalt_reactor::Handle;

use crate::channel::VolumeChannel;
use crate::gates::Gates;
use crate::hot::{HotMap, Spot};
use crate::id::{Epoch, VolumeId};
use crate::layout::{DISKS_MAX, HOLE_BYTES, PIECES, Place, VolumeRecord};
use crate::port::Port;

/// A disk's device and where its extents begin.
#[derive(Clone, Debug)]
pub(crate) struct MappedDisk {
    pub(crate) device: Arc<dyn BlockDevice>,
    /// In bytes.
    pub(crate) data_offset: u64,
}

/// What a pool shares with the channels of its volumes.
#[derive(Debug)]
pub(crate) struct PoolShared {
    pub(crate) block: BlockSize,
    pub(crate) extent_bytes: u64,
    pub(crate) gates: Arc<Gates>,
    /// Number of the last change of a map that is durable.
    pub(crate) durable: AtomicU64,
    /// A disk has a volatile cache: completed writes need a flush, and so do the changes of maps that they bring.
    pub(crate) volatile: bool,
    /// Names the lives of all volatile caches; 0: one is not known, or groups are to be firm for another reason.
    lifetime: AtomicU64,
    /// By index. Locked when a channel is opened or first uses a disk.
    disks: RwLock<Vec<Option<MappedDisk>>>,
    /// First block of extent 0 of each disk.
    data_starts: [AtomicU64; DISKS_MAX],
}

/// Names the lives of the volatile caches of those of a pool's disks together whose bits are in `of` (FNV-1a), in the order of the disks;
/// `None` if one is not known, a disk is missing (it may be there next time, and would make another name of the same lives), or there is
/// none. Never 0.
pub(crate) fn lifetime_of<'a>(disks: impl Iterator<Item = Option<&'a DeviceInfo>>, of: u64) -> Option<u64> {
    let mut hash = None;
    for (index, info) in (0_u64..).zip(disks).filter(|(index, _)| of & 1 << index != 0) {
        let info = info?;
        if !info.volatile_write_cache() {
            continue;
        }
        let bytes = [index, info.cache_lifetime()?].map(u64::to_le_bytes).concat();
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3_u64);
        hash = Some(bytes.into_iter().fold(hash.unwrap_or(0xcbf2_9ce4_8422_2325), fold));
    }
    hash.map(|hash| hash | 1)
}

impl PoolShared {
    pub(crate) fn new(block: BlockSize, extent_bytes: u64, disks: Vec<Option<MappedDisk>>) -> Self {
        let volatile = disks.iter().flatten().any(|disk| disk.device.info().volatile_write_cache());
        let shared = Self {
            block,
            extent_bytes,
            gates: Arc::default(),
            durable: AtomicU64::new(0),
            volatile,
            lifetime: AtomicU64::new(0),
            disks: RwLock::default(),
            data_starts: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        disks.into_iter().for_each(|disk| shared.add_disk(disk));
        shared.trust_caches(true);
        shared
    }

    /// How long a group may be believed that is written without a flush before it; `None`: not at all.
    pub(crate) fn lifetime(&self) -> Option<u64> {
        Some(self.lifetime.load(Ordering::Acquire)).filter(|lifetime| *lifetime != 0)
    }

    /// The same for a group that depends on some of the disks.
    pub(crate) fn lifetime_of(&self, of: u64) -> Option<u64> {
        let disks = self.disks.read().unwrap_or_else(PoisonError::into_inner);
        lifetime_of(disks.iter().map(|disk| disk.as_ref().map(|disk| disk.device.info())), of)
    }

    pub(crate) fn disks_are_read_only(&self) -> bool {
        self.devices().iter().any(|disk| disk.info().read_only())
    }

    /// Lets groups be written without a flush before them, where that is safe, or no more.
    pub(crate) fn trust_caches(&self, trusted: bool) {
        let lifetime = self.lifetime_of(u64::MAX);
        self.lifetime.store(lifetime.filter(|_| trusted).unwrap_or(0), Ordering::Release);
    }

    /// Adds the next disk; `None`: it is missing.
    pub(crate) fn add_disk(&self, disk: Option<MappedDisk>) {
        let mut disks = self.disks.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(disk) = &disk {
            let start = self.block.blocks_in(disk.data_offset).0;
            self.data_starts[disks.len()].store(start, Ordering::Release);
        }
        disks.push(disk);
    }

    /// The device of a disk, if it is there.
    pub(crate) fn device(&self, disk: usize) -> Option<Arc<dyn BlockDevice>> {
        let disks = self.disks.read().unwrap_or_else(PoisonError::into_inner);
        disks.get(disk)?.as_ref().map(|disk| Arc::clone(&disk.device))
    }

    fn devices(&self) -> Vec<Arc<dyn BlockDevice>> {
        let disks = self.disks.read().unwrap_or_else(PoisonError::into_inner);
        disks.iter().flatten().map(|disk| Arc::clone(&disk.device)).collect()
    }
}

/// Where a part of a request is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// So many blocks lie there, one after the other.
    At { disk: usize, target: Lba, blocks: u64 },
    /// So many blocks lie nowhere and read as zeroes.
    Nowhere { blocks: u64 },
    /// The pool's owner has to be asked for the right to write, for no more blocks than that: they lie in one extent.
    Owner { blocks: u64 },
    /// This extent's part of the map is to be filled first.
    Load { extent: u64 },
}

/// A slice of a pool. Each reactor that serves it opens its own channel.
pub struct LogicalVolume {
    core: Arc<VolumeCore>,
}

/// What a volume shares with its channels.
pub(crate) struct VolumeCore {
    pub(crate) id: VolumeId,
    pub(crate) info: DeviceInfo,
    pub(crate) shared: Arc<PoolShared>,
    pub(crate) port: Port,
    pub(crate) map: HotMap,
    /// What a chunk of the map must name to be believed about ownership.
    pub(crate) token: AtomicU64,
    /// Number of the last change of this volume's map.
    pub(crate) changed: AtomicU64,
    /// Bits of the disks that may hold data of the volume.
    pub(crate) used: AtomicU64,
    /// Grows when the volume gets a higher epoch: channels that were opened before are refused.
    pub(crate) fence: AtomicU64,
    pub(crate) thick: bool,
    extent_shift: u32,
    piece_shift: u32,
    hole_shift: u32,
}

impl VolumeCore {
    pub(crate) fn extent_blocks(&self) -> u64 {
        1 << self.extent_shift
    }

    pub(crate) fn piece_blocks(&self) -> u64 {
        1 << self.piece_shift
    }

    /// Blocks of the unit in which a piece may have holes.
    pub(crate) fn hole_blocks(&self) -> u64 {
        1 << self.hole_shift
    }

    /// Bits of the units of a piece that these of its blocks touch.
    pub(crate) fn units_of(&self, within_piece: std::ops::Range<u64>) -> u16 {
        let units = within_piece.start >> self.hole_shift..within_piece.end.div_ceil(self.hole_blocks());
        units.fold(0, |bits, unit| bits | 1 << unit)
    }

    /// How far a discard of `part` has nothing to do if its first blocks lie nowhere: whole pieces, as a piece with holes is given
    /// back as a whole.
    pub(crate) fn skipped(&self, part: &std::ops::Range<u64>, nowhere: u64) -> u64 {
        match part.start + nowhere {
            end if end >= part.end => part.end,
            end => end - end % self.piece_blocks(),
        }
    }

    /// How many blocks of a piece from `within` on are holes, or are not, as that one is; and which.
    fn alike_in_piece(&self, within: u64, holes: u16) -> (bool, u64) {
        let within = within & (self.piece_blocks() - 1);
        let is_hole = |unit: u64| holes & 1 << unit != 0;
        let first = within >> self.hole_shift;
        let end = (first..self.piece_blocks().div_ceil(self.hole_blocks()))
            .take_while(|unit| is_hole(*unit) == is_hole(first))
            .count() as u64;
        let end = ((first + end) << self.hole_shift).min(self.piece_blocks());
        (is_hole(first), end - within)
    }

    pub(crate) fn extent_of(&self, block: u64) -> u64 {
        block >> self.extent_shift
    }

    /// Block of an extent that a block of the volume is.
    pub(crate) fn within_extent(&self, block: u64) -> u64 {
        block & (self.extent_blocks() - 1)
    }

    /// Block of its disk that an extent begins with.
    pub(crate) fn start_of(&self, place: Place) -> u64 {
        let start = self.shared.data_starts[place.disk()].load(Ordering::Acquire);
        start + (place.extent() << self.extent_shift)
    }

    /// A change of the volume's map is not durable yet.
    pub(crate) fn is_pending(&self) -> bool {
        self.changed.load(Ordering::Acquire) > self.shared.durable.load(Ordering::Acquire)
    }

    /// Looks up where `count` blocks from `block` on lie, as far as they lie together; with `write` where they may be written.
    pub(crate) fn find(&self, block: u64, count: u64, write: bool) -> Found {
        let (extent, within) = (self.extent_of(block), self.within_extent(block));
        let Some(look) = self.map.look(extent, &self.token) else { return Found::Load { extent } };
        let rest = (self.extent_blocks() - within).min(count);
        let Some((place, own)) = look.whole() else {
            let piece = usize::try_from(within >> self.piece_shift).unwrap_or(0);
            let first = look.piece(piece);
            if let Spot::At(place, own, holes) = first
                && holes != 0
            {
                let (hole, alike) = self.alike_in_piece(within, holes);
                let blocks = alike.min(count);
                return match (hole, write) {
                    (true, false) => Found::Nowhere { blocks },
                    (false, _) if own || !write => {
                        let target = Lba(self.start_of(place) + within);
                        Found::At { disk: place.disk(), target, blocks }
                    }
                    _ => Found::Owner { blocks: rest },
                };
            }
            // Neighbouring pieces that lie together.
            let alike = (piece..PIECES).take_while(|piece| look.piece(*piece) == first).count() as u64;
            let end = (piece as u64 + alike) << self.piece_shift;
            let blocks = (end - within).min(count);
            return match first {
                Spot::At(place, own, _) if own || !write => {
                    let target = Lba(self.start_of(place) + within);
                    Found::At { disk: place.disk(), target, blocks }
                }
                Spot::Nowhere if !write => Found::Nowhere { blocks },
                Spot::At(..) | Spot::Nowhere => Found::Owner { blocks: rest },
            };
        };
        if write && !own {
            return Found::Owner { blocks: rest };
        }
        let mut blocks = rest;
        let mut last = (extent, place);
        while blocks < count {
            let next = self.map.look(last.0 + 1, &self.token).and_then(|look| look.whole());
            match next {
                Some((next, own))
                    if (own || !write) && Place::new(last.1.disk(), last.1.extent() + 1) == Some(next) =>
                {
                    blocks = (blocks + self.extent_blocks()).min(count);
                    last = (last.0 + 1, next);
                }
                _ => break,
            }
        }
        Found::At { disk: place.disk(), target: Lba(self.start_of(place) + within), blocks }
    }
}

impl LogicalVolume {
    /// The volume that `record` describes.
    pub(crate) fn new(record: &VolumeRecord, shared: &Arc<PoolShared>, port: &Port, used: u64) -> Self {
        let log = |bytes: u64| shared.block.blocks_in(bytes).0.ilog2();
        let core = VolumeCore {
            id: record.id,
            info: info_of(record, shared),
            shared: Arc::clone(shared),
            port: port.clone(),
            map: HotMap::default(),
            token: AtomicU64::new(1),
            changed: AtomicU64::new(0),
            used: AtomicU64::new(used),
            fence: AtomicU64::new(0),
            thick: record.flags.thick,
            extent_shift: log(shared.extent_bytes),
            piece_shift: log(shared.extent_bytes / PIECES as u64),
            hole_shift: log(HOLE_BYTES),
        };
        Self { core: Arc::new(core) }
    }

    pub(crate) fn core(&self) -> &Arc<VolumeCore> {
        &self.core
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
}

impl BlockDevice for LogicalVolume {
    fn info(&self) -> &DeviceInfo {
        &self.core.info
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        if self.core.info.state() == DeviceState::Removed {
            return Err(OpenError::DeviceGone);
        }
        Ok(Box::new(VolumeChannel::open(&self.core, handle)?))
    }
}

impl fmt::Debug for LogicalVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalVolume").field("id", &self.core.id).finish_non_exhaustive()
    }
}

impl fmt::Debug for VolumeCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VolumeCore").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the disks together can promise.
fn info_of(record: &VolumeRecord, shared: &PoolShared) -> DeviceInfo {
    let disks = shared.devices();
    let block = shared.block;
    let smallest = |of: fn(&DeviceInfo) -> BlockCount| {
        disks.iter().map(|disk| of(disk.info())).min().unwrap_or(BlockCount(1))
    };
    // What the disks lack is made up for by writes of zeroes and by comparing here; one step over a comparison and a write is not.
    let of_disks = [Capabilities::COMPARE_AND_WRITE, Capabilities::LEND]
        .into_iter()
        .filter(|one| disks.iter().all(|disk| disk.info().capabilities().contains(*one)))
        .fold(Capabilities::NONE, |all, one| all | one);
    let capabilities = of_disks | Capabilities::UNMAP | Capabilities::WRITE_ZEROES | Capabilities::COMPARE;
    let optimal = disks.iter().map(|disk| disk.info().optimal_io()).max().unwrap_or(BlockCount(1));
    // Pieces are aligned as atomic units are, and each is written at once.
    let piece = block.blocks_in(shared.extent_bytes / PIECES as u64);
    let uuid = uuid::Uuid::from_bytes(record.identity.uuid);
    DeviceInfo::new(record.name.as_str(), uuid, block, block.blocks_in(record.size))
        .with_volatile_write_cache(shared.volatile)
        .with_read_only(record.flags.read_only || record.flags.snapshot || shared.disks_are_read_only())
        .with_atomic_write(smallest(DeviceInfo::atomic_write).min(piece))
        .with_optimal_io(optimal)
        .with_max_transfer(smallest(DeviceInfo::max_transfer))
        .with_capabilities(capabilities)
}

/// A volume as one epoch may use it.
#[derive(Debug)]
pub struct VolumeAtEpoch {
    core: Arc<VolumeCore>,
    fence: u64,
    epoch: Epoch,
}

impl VolumeAtEpoch {
    pub(crate) fn new(volume: &LogicalVolume, epoch: Epoch) -> Self {
        let core = Arc::clone(&volume.core);
        let fence = core.fence.load(Ordering::SeqCst);
        Self { core, fence, epoch }
    }

    /// The epoch that it was opened at.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl BlockDevice for VolumeAtEpoch {
    fn info(&self) -> &DeviceInfo {
        &self.core.info
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        if self.core.info.state() == DeviceState::Removed {
            return Err(OpenError::DeviceGone);
        }
        // A channel of a lower epoch can be opened and is refused everything: so its user learns why.
        Ok(Box::new(VolumeChannel::open_at(&self.core, handle, self.fence)?))
    }
}
