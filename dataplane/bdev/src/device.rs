use std::fmt;
use std::ops::BitOr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use basalt_reactor::{DiskError, Handle};
use uuid::Uuid;

use crate::backing::{Backing, Cut, Place, PlaceFound};
use crate::error::IoError;
use crate::faults::{DeviceFaults, FaultLog};
use crate::request::{Completion, Operation, Rejected, Request};
use crate::units::{BlockCount, BlockSize};

/// Why a device gave no channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The device was removed.
    #[error("the device is gone")]
    DeviceGone,
    /// The disk below cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The device serves as many channels as it can.
    #[error("the device has no channel left")]
    NoChannels,
}

/// What a device can do beyond read, write and flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u8);

impl Capabilities {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// [`crate::Operation::Unmap`] frees storage.
    pub const UNMAP: Self = Self(1);
    /// [`crate::Operation::WriteZeroes`] works without data.
    pub const WRITE_ZEROES: Self = Self(2);
    /// [`crate::Operation::Compare`].
    pub const COMPARE: Self = Self(4);
    /// [`crate::Operation::CompareAndWrite`].
    pub const COMPARE_AND_WRITE: Self = Self(8);
    /// Reads without memory are answered with lent views: no copy.
    pub const LEND: Self = Self(16);

    /// True if all of `other` are among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What may change during a device's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// It serves.
    Present,
    /// It was removed: every request fails with [`crate::IoError::DeviceGone`].
    Removed,
    /// The file that it stands on was cut: every request fails with [`crate::IoError::Shortened`].
    Shortened,
}

const PRESENT: u8 = 0;
const REMOVED: u8 = 1;
const SHORTENED: u8 = 2;

/// A device's properties, and what failed on it. All but size, state, whether it refuses writes, and faults stay the same for its whole life.
#[derive(Debug)]
pub struct DeviceInfo {
    name: String,
    uuid: Uuid,
    block_size: BlockSize,
    blocks: AtomicU64,
    /// `PRESENT`, `REMOVED` or `SHORTENED`.
    state: AtomicU8,
    cut: Cut,
    place: PlaceFound,
    generation: AtomicU64,
    volatile_write_cache: bool,
    cache_lifetime: Option<u64>,
    read_only: AtomicBool,
    atomic_write: BlockCount,
    optimal_io: BlockCount,
    max_transfer: BlockCount,
    capabilities: Capabilities,
    faults: FaultLog,
}

/// Largest transfer in bytes unless a device says otherwise: the largest buffer of a pool.
const DEFAULT_MAX_TRANSFER_BYTES: u64 = 1 << 20;

impl DeviceInfo {
    /// Properties of a device with no write cache, no capabilities, an atomic write unit and an optimal I/O size of one block,
    /// and transfers of up to 1 MiB.
    #[must_use]
    pub fn new(name: impl Into<String>, uuid: Uuid, block_size: BlockSize, blocks: BlockCount) -> Self {
        Self {
            name: name.into(),
            uuid,
            block_size,
            blocks: AtomicU64::new(blocks.0),
            state: AtomicU8::new(PRESENT),
            cut: Cut::default(),
            place: PlaceFound::default(),
            generation: AtomicU64::new(0),
            volatile_write_cache: false,
            cache_lifetime: None,
            read_only: AtomicBool::new(false),
            atomic_write: BlockCount(1),
            optimal_io: BlockCount(1),
            max_transfer: block_size.blocks_in(DEFAULT_MAX_TRANSFER_BYTES),
            capabilities: Capabilities::NONE,
            faults: FaultLog::default(),
        }
    }

    /// Sets whether completed writes need a flush or FUA to be durable.
    #[must_use]
    pub fn with_volatile_write_cache(mut self, volatile: bool) -> Self {
        self.volatile_write_cache = volatile;
        self
    }

    /// Sets what [`Self::cache_lifetime`] says.
    #[must_use]
    pub fn with_cache_lifetime(mut self, lifetime: Option<u64>) -> Self {
        self.cache_lifetime = lifetime;
        self
    }

    /// Sets whether writes are refused.
    #[must_use]
    pub fn with_read_only(mut self, read_only: bool) -> Self {
        self.read_only = AtomicBool::new(read_only);
        self
    }

    /// Sets how many blocks, suitably aligned, are never torn by a power failure.
    #[must_use]
    pub fn with_atomic_write(mut self, unit: BlockCount) -> Self {
        self.atomic_write = unit;
        self
    }

    /// Sets the unit in which the device is best used.
    #[must_use]
    pub fn with_optimal_io(mut self, unit: BlockCount) -> Self {
        self.optimal_io = unit;
        self
    }

    /// Sets the largest read or write.
    #[must_use]
    pub fn with_max_transfer(mut self, limit: BlockCount) -> Self {
        self.max_transfer = limit;
        self
    }

    /// Sets what the device can do.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Name for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Identity, the same over restarts.
    #[must_use]
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Bytes per block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Number of blocks now.
    #[must_use]
    pub fn blocks(&self) -> BlockCount {
        BlockCount(self.blocks.load(Ordering::Acquire))
    }

    /// Size in bytes now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.block_size.bytes_of(self.blocks())
    }

    /// True if completed writes need a flush or FUA to be durable.
    #[must_use]
    pub fn volatile_write_cache(&self) -> bool {
        self.volatile_write_cache
    }

    /// Names the life of the write cache: a completed write that was not flushed can be lost only when this is another one
    /// afterwards, also beyond the end of a process. `None`: that is not known.
    #[must_use]
    pub fn cache_lifetime(&self) -> Option<u64> {
        self.cache_lifetime
    }

    /// True if writes are refused now.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Blocks, suitably aligned, that a power failure never tears.
    #[must_use]
    pub fn atomic_write(&self) -> BlockCount {
        self.atomic_write
    }

    /// The unit in which the device is best used.
    #[must_use]
    pub fn optimal_io(&self) -> BlockCount {
        self.optimal_io
    }

    /// The largest read, write or compare.
    #[must_use]
    pub fn max_transfer(&self) -> BlockCount {
        self.max_transfer
    }

    /// What the device can do.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Whether it is still there.
    #[must_use]
    pub fn state(&self) -> DeviceState {
        match self.state.load(Ordering::Acquire) {
            PRESENT => DeviceState::Present,
            SHORTENED => DeviceState::Shortened,
            _ => DeviceState::Removed,
        }
    }

    /// What has become of the file that the device stands on, as far as its provider has looked.
    #[must_use]
    pub fn backing(&self) -> Backing {
        match self.state() {
            DeviceState::Shortened => self.cut.backing(),
            DeviceState::Present | DeviceState::Removed => self.place.backing(),
        }
    }

    /// Grows with every change of size, state or [`Self::read_only`]: whoever remembers it notices changes by one load.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// What failed on the device by its own fault, as far as its provider notes it: disks do.
    #[must_use]
    pub fn faults(&self) -> DeviceFaults {
        self.faults.counts()
    }

    /// The device works: successes need not be counted any more until the next failure.
    pub fn trust(&self) {
        self.faults.trust();
    }

    /// For providers of disks: a request that was accepted has ended.
    #[inline]
    pub fn note(&self, operation: Operation, result: Result<(), IoError>) {
        self.faults.note(operation, result, self.read_only());
    }

    /// For providers: writes are refused from now on, or taken again.
    pub fn set_read_only(&self, read_only: bool) {
        if self.read_only.swap(read_only, Ordering::AcqRel) != read_only {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// For providers: the device has another size from now on.
    pub fn set_blocks(&self, blocks: BlockCount) {
        if self.blocks.swap(blocks.0, Ordering::AcqRel) != blocks.0 {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// For providers: the device is gone.
    pub fn set_removed(&self) {
        if self.state.swap(REMOVED, Ordering::AcqRel) != REMOVED {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// For providers: where the file below was found. Nothing is served otherwise for it.
    pub fn note_place(&self, place: Place) {
        self.place.note(place);
    }

    /// For providers: the file below has `is` bytes, which is less than the device. There is no way back.
    pub fn set_shortened(&self, is: u64) {
        self.cut.note(self.bytes(), is);
        let swapped = self.state.compare_exchange(PRESENT, SHORTENED, Ordering::AcqRel, Ordering::Acquire);
        if swapped.is_ok() {
            self.generation.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// A block device, shared by all reactors that use it.
pub trait BlockDevice: Send + Sync + fmt::Debug {
    /// The device's properties.
    fn info(&self) -> &DeviceInfo;

    /// A queue pair for one reactor.
    ///
    /// # Errors
    /// The cause; nothing is held then.
    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError>;
}

/// One reactor's queue pair to a device.
///
/// A channel makes progress only while it is polled. A consumer polls it once per turn while requests are under way, and its
/// poller counts as busy in a turn in which it submitted. Dropping a channel abandons its requests: they run to their end or
/// not at all, and their memory is freed only after the device has let go of it.
pub trait Channel {
    /// Queues a request. What is wrong with a request is told by its completion.
    ///
    /// # Errors
    /// Hands the request back if the bounded queue is full.
    fn submit(&mut self, request: Request) -> Result<(), Rejected>;

    /// Appends what is finished and answers how many there were.
    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize;

    /// Asks that requests with this tag end soon, with [`crate::IoError::Aborted`] unless they end otherwise before. They still
    /// complete through [`Channel::poll`]. Devices that finish everything by themselves in bounded time may do nothing.
    fn abort(&mut self, tag: u64) {
        // Nothing to hasten.
        let _: u64 = tag;
    }
}
