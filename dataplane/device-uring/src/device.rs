use std::fs::{self, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use basalt_bdev::{
    BlockCount, BlockDevice, BlockSize, Capabilities, Channel, DeviceInfo, DeviceState, OpenError, Place,
};
use basalt_reactor::{DiskError, DiskInfo, DiskKind, DiskLock, DiskOptions, Handle};
use uuid::Uuid;

use crate::channel::UringChannel;
use crate::swap_gate::{Member, SwapGate};

/// Why a disk does not become a device.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// The disk cannot be opened or claimed.
    #[error("{path}: {source}")]
    Disk {
        /// The disk.
        path: PathBuf,
        /// The cause.
        source: DiskError,
    },
    /// The disk cannot be read or written in blocks of this size.
    #[error(
        "{path}: its blocks of {disk_bytes} bytes do not fit into blocks of {block_size}; choose a larger block size"
    )]
    BlockSize {
        /// The disk.
        path: PathBuf,
        /// The disk's smallest unit in bytes.
        disk_bytes: u32,
        /// What was asked for.
        block_size: BlockSize,
    },
}

/// How to open a disk as a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UringOptions {
    /// Name for logs and metrics.
    pub name: String,
    /// Identity.
    pub uuid: Uuid,
    /// Bytes per block; by default the disk's own smallest unit, which a power failure does not tear.
    pub block_size: Option<BlockSize>,
    /// How the disk is opened.
    pub disk: DiskOptions,
}

/// A file or kernel block device. Its compare-and-writes are one step to everything else that changes it through this device.
#[derive(Debug)]
pub struct UringDevice {
    info: Arc<DeviceInfo>,
    gate: Arc<SwapGate>,
    disk: DiskInfo,
    below: Arc<Below>,
    /// Bytes that there are, as far as somebody has looked and noted it.
    reach: Arc<AtomicU64>,
}

/// What a device stands on, and what is said of it.
#[derive(Debug)]
pub(crate) struct Below {
    pub(crate) info: Arc<DeviceInfo>,
    lock: DiskLock,
}

impl Below {
    /// Asks the file system what has become of the file.
    pub(crate) fn look(&self) {
        // Before the file is asked: one that grows meanwhile, and whose device is told, has not been cut.
        let bytes = self.info.bytes();
        let Some(found) = self.lock.file_metadata() else { return };
        if found.len() < bytes {
            self.info.set_shortened(found.len());
        }
        if let Some(place) = self.place_of(&found) {
            self.info.note_place(place);
        }
    }

    /// Where the file is; `None` if the file system does not say.
    fn place_of(&self, file: &Metadata) -> Option<Place> {
        if file.nlink() == 0 {
            return Some(Place::Deleted);
        }
        match fs::metadata(self.lock.path()) {
            Ok(there) if (there.dev(), there.ino()) == (file.dev(), file.ino()) => Some(Place::AtItsPath),
            Ok(_) => Some(Place::Elsewhere),
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::NotADirectory => Some(Place::Elsewhere),
                _ => None,
            },
        }
    }

    /// A request that lies on the device failed in a way that a file causes that was cut. Whoever looks later may find it longer again.
    #[cold]
    pub(crate) fn suspect(&self, error: DiskError) {
        match error {
            DiskError::Shortened { end } => {
                self.look();
                self.info.set_shortened(end);
            }
            DiskError::OutOfRange => self.look(),
            _ => {}
        }
    }
}

impl UringDevice {
    /// Opens and claims a disk, creating the file if the options say so. May take as long as the file system does: for set-up.
    ///
    /// # Errors
    /// The cause; nothing is claimed then.
    pub fn open(handle: &Handle, path: &Path, options: &UringOptions) -> Result<Self, UringError> {
        let failed = |source| UringError::Disk { path: path.to_owned(), source };
        let lock = handle.lock_disk(path, &options.disk).map_err(failed)?;
        let disk = handle.open_locked(&lock).map_err(failed)?;
        let found = disk.info();
        let own = BlockSize::new(found.block_bytes).ok_or_else(|| failed(DiskError::NotADisk))?;
        let block_size = options.block_size.unwrap_or(own);
        if block_size < own {
            let (path, disk_bytes) = (path.to_owned(), found.block_bytes);
            return Err(UringError::BlockSize { path, disk_bytes, block_size });
        }
        let blocks = block_size.blocks_in(found.length);
        if blocks == BlockCount(0) {
            return Err(failed(DiskError::TooSmall { block_bytes: block_size.bytes() }));
        }
        let unmap = if found.discard { Capabilities::UNMAP } else { Capabilities::NONE };
        let optimal = block_size.blocks_in(u64::from(found.optimal_bytes));
        let info = DeviceInfo::new(options.name.clone(), options.uuid, block_size, blocks)
            .with_volatile_write_cache(found.volatile_cache)
            .with_cache_lifetime(found.cache_lifetime)
            .with_read_only(found.read_only)
            .with_optimal_io(optimal.max(BlockCount(1)))
            .with_capabilities(
                unmap | Capabilities::WRITE_ZEROES | Capabilities::COMPARE | Capabilities::COMPARE_AND_WRITE,
            );
        let (info, disk) = (Arc::new(info), found.clone());
        let reach = Arc::new(AtomicU64::new(u64::MAX));
        let below = Arc::new(Below { info: Arc::clone(&info), lock });
        Ok(Self { info, gate: Arc::default(), disk, below, reach })
    }

    /// The disk's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.below.lock.path()
    }

    /// Where any thread finds the disk itself, whatever is at its path by now: for a look at its length, say, which this crate does not
    /// take on a reactor unless it is told to ([`UringDevice::rescan`]).
    #[must_use]
    pub fn found_at(&self) -> &Path {
        self.below.lock.again()
    }

    /// How the disk was found when it was opened.
    #[must_use]
    pub fn disk(&self) -> &DiskInfo {
        &self.disk
    }

    /// Looks at the disk's length and takes it over if it has grown. A disk that shrank keeps its size: what is lost fails.
    ///
    /// # Errors
    /// If the disk cannot be opened any more.
    pub fn rescan(&self, handle: &Handle) -> Result<(), DiskError> {
        let disk = handle.open_locked(&self.below.lock)?;
        let blocks = self.info.block_size().blocks_in(disk.info().length);
        if blocks > self.info.blocks() {
            self.info.set_blocks(blocks);
        }
        Ok(())
    }

    /// Looks at the file below, and at its path. One that is shorter than the device ends its service; all that is found is in the device's
    /// properties ([`DeviceInfo::backing`]). It may take as long as
    /// the file system does: not for a reactor.
    pub fn look(&self) {
        self.below.look();
    }

    /// Lets the first `bytes` of a file have their place in its file system, see [`DiskLock::allocate`]. It may take as long as the file
    /// system does: not for a reactor.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] if there is no room, else what the file system said.
    pub fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        self.below.lock.allocate(bytes)
    }

    /// Notes how many bytes there are now, which matters for block devices; files are looked at. Writes beyond them fail, whatever the device's size.
    pub fn note_length(&self, bytes: u64) {
        self.reach.store(bytes, Ordering::Relaxed);
    }

    /// Removes the device: everything fails from now on.
    pub fn remove(&self) {
        self.info.set_removed();
    }
}

impl BlockDevice for UringDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        if self.info.state() == DeviceState::Removed {
            return Err(OpenError::DeviceGone);
        }
        let disk = handle.open_locked(&self.below.lock)?;
        if self.disk.kind == DiskKind::File && disk.info().length < self.info.bytes() {
            self.below.look();
        }
        let member = Member::new(Arc::clone(&self.gate));
        let (below, reach) = (Arc::clone(&self.below), Arc::clone(&self.reach));
        Ok(Box::new(UringChannel::new(handle.clone(), disk, below, member, reach)))
    }
}
