//! One disk of a pool for metadata work: bytes instead of blocks, awaited instead of polled.

use std::cell::Cell;
use std::sync::Arc;

use basalt_bdev::{
    AsyncChannel, BlockCount, BlockDevice, BlockSize, Capabilities, Completion, IoError, Lba, Operation,
    Request,
};
use basalt_dma::{Buffer, Payload};
use basalt_reactor::Handle;
use futures::StreamExt;
use futures::stream;

use crate::error::{DiskFault, DiskRefusal, FaultCause};
use crate::foreign::{ForeignContent, PROBE_BYTES, recognise};
use crate::larger_blocks::LargerBlocks;
use crate::layout::{
    EXTENT_BYTES_MAX, PAGE_BYTES, PIECES, SLOT_OFFSETS, SUPERBLOCK_BYTES, Superblock, SuperblockError,
};

/// Largest piece of one read or write in bytes.
const TRANSFER_BYTES_MAX: u64 = 256 << 10;
/// Largest piece of one request for zeroes in bytes: bounds the time that one request keeps a disk busy.
const ZEROES_BYTES_MAX: u64 = 64 << 20;
/// Requests for zeroes that are under way at a time.
const ZEROES_DEPTH: usize = 4;

/// A block device that is or shall be part of a pool.
#[derive(Clone, Debug)]
pub struct PoolDisk {
    /// What the user knows it by, for messages.
    pub name: String,
    /// The device. The caller has made sure that no one else uses it.
    pub device: Arc<dyn BlockDevice>,
}

/// What is on a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskContent {
    /// Nothing: first and last megabyte are zero.
    Blank,
    /// Somebody else's data.
    Foreign(ForeignContent),
    /// A disk of a pool that this program can read.
    Pool(Box<Superblock>),
    /// A disk of a pool that this program cannot read.
    Unusable(SuperblockError),
}

/// Looks at what is on a disk, without changing it.
///
/// # Errors
/// The disk failed.
pub async fn examine(handle: &Handle, disk: &PoolDisk) -> Result<DiskContent, DiskFault> {
    DiskIo::open(handle, disk)?.examine().await
}

/// Makes a disk blank for whoever looks at it: what it held is lost, whoever it belonged to.
///
/// # Errors
/// The disk failed.
pub async fn wipe(handle: &Handle, disk: &PoolDisk) -> Result<(), DiskFault> {
    DiskIo::open(handle, disk)?.wipe().await
}

/// An open disk.
#[derive(Debug)]
pub(crate) struct DiskIo {
    pub(crate) name: String,
    pub(crate) device: Arc<dyn BlockDevice>,
    channel: AsyncChannel,
    block: BlockSize,
}

impl DiskIo {
    pub(crate) fn open(handle: &Handle, disk: &PoolDisk) -> Result<Self, DiskFault> {
        let fault = |source| DiskFault { disk: disk.name.clone(), operation: "open", source };
        let channel = disk.device.open(handle).map_err(|error| fault(FaultCause::Open(error)))?;
        let channel = AsyncChannel::new(handle, channel);
        let block = disk.device.info().block_size();
        Ok(Self { name: disk.name.clone(), device: Arc::clone(&disk.device), channel, block })
    }

    /// The same disk in larger blocks than the device's own, if it does not have these already.
    pub(crate) fn in_blocks_of(self, handle: &Handle, block: BlockSize) -> Result<Self, DiskFault> {
        if self.block == block {
            return Ok(self);
        }
        let device = Arc::new(LargerBlocks::new(self.device, block));
        Self::open(handle, &PoolDisk { name: self.name, device })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.device.info().bytes()
    }

    pub(crate) fn block(&self) -> BlockSize {
        self.block
    }

    /// Whether it takes a piece of the largest extent at once, as copies after a snapshot need.
    pub(crate) fn takes_pieces(&self) -> bool {
        let info = self.device.info();
        self.block.bytes_of(info.max_transfer()) >= EXTENT_BYTES_MAX / PIECES as u64
    }

    /// The refusal for a disk that is too small or has a block that is not supported.
    pub(crate) fn unsuitable(&self) -> DiskRefusal {
        DiskRefusal::Unsuitable {
            disk: self.name.clone(),
            bytes: self.bytes(),
            block_bytes: self.block.bytes(),
        }
    }

    fn fault(&self, operation: &'static str) -> impl Fn(IoError) -> DiskFault {
        move |error| DiskFault { disk: self.name.clone(), operation, source: error.into() }
    }

    fn range(&self, offset: u64, bytes: u64) -> (Lba, BlockCount) {
        let block = u64::from(self.block.bytes());
        assert!(offset.is_multiple_of(block) && bytes.is_multiple_of(block), "metadata lies on whole blocks");
        (Lba(self.block.blocks_in(offset).0), self.block.blocks_in(bytes))
    }

    fn transfer_bytes(&self) -> u64 {
        let info = self.device.info();
        self.block.bytes_of(info.max_transfer()).clamp(u64::from(self.block.bytes()), TRANSFER_BYTES_MAX)
    }

    /// Reads a range of whole blocks.
    pub(crate) async fn read(&self, offset: u64, bytes: u64) -> Result<Vec<u8>, DiskFault> {
        let mut content = Vec::new();
        for (at, count) in pieces(offset, bytes, self.transfer_bytes()) {
            let (lba, blocks) = self.range(at, count);
            let buffer = Buffer::zeroed(usize::try_from(count).expect("a piece is small"));
            let buffer = self.channel.read(lba, blocks, buffer).await.map_err(self.fault("read"))?;
            content.extend_from_slice(&buffer);
        }
        Ok(content)
    }

    /// Writes whole blocks. Durable after the next [`Self::flush`].
    pub(crate) async fn write(&self, offset: u64, content: &[u8]) -> Result<(), DiskFault> {
        self.write_pieces(offset, content, false).await
    }

    /// Writes whole blocks durably.
    pub(crate) async fn write_durably(&self, offset: u64, content: &[u8]) -> Result<(), DiskFault> {
        self.write_pieces(offset, content, true).await
    }

    async fn write_pieces(&self, offset: u64, content: &[u8], fua: bool) -> Result<(), DiskFault> {
        for (at, count) in pieces(offset, content.len() as u64, self.transfer_bytes()) {
            let start = usize::try_from(at - offset).expect("within a slice");
            let end = start + usize::try_from(count).expect("within a slice");
            let (lba, blocks) = self.range(at, count);
            let buffer = Buffer::copy_of(&content[start..end]);
            let written = self.channel.write(lba, blocks, buffer, fua).await;
            drop(written.map_err(self.fault("write"))?);
        }
        Ok(())
    }

    /// Makes everything durable that was written before.
    pub(crate) async fn flush(&self) -> Result<(), DiskFault> {
        self.channel.flush().await.map_err(self.fault("flush"))
    }

    /// Makes a range read as zeroes. Durable after the next [`Self::flush`].
    pub(crate) async fn write_zeroes(&self, offset: u64, bytes: u64) -> Result<(), DiskFault> {
        if self.device.info().capabilities().contains(Capabilities::WRITE_ZEROES) {
            let zeroed = pieces(offset, bytes, ZEROES_BYTES_MAX).map(|(at, count)| {
                let (lba, blocks) = self.range(at, count);
                let operation = Operation::WriteZeroes { unmap: false, fua: false };
                self.channel.run(Request { tag: 0, operation, lba, blocks, payload: Payload::None })
            });
            match self.all(zeroed).await {
                Ok(()) => return Ok(()),
                Err(IoError::Unsupported) => {}
                Err(error) => return Err(self.fault("write zeroes")(error)),
            }
        }
        let zeroed = pieces(offset, bytes, self.transfer_bytes()).map(|(at, count)| {
            let (lba, blocks) = self.range(at, count);
            let buffer = Buffer::zeroed(usize::try_from(count).expect("a piece is small"));
            self.channel.run(Request::write(0, lba, blocks, buffer))
        });
        self.all(zeroed).await.map_err(self.fault("write zeroes"))
    }

    /// Gives a range back to the device. A hint: a device that cannot is not at fault.
    pub(crate) async fn unmap(&self, offset: u64, bytes: u64) -> Result<(), DiskFault> {
        if !self.device.info().capabilities().contains(Capabilities::UNMAP) {
            return Ok(());
        }
        let unmapped = pieces(offset, bytes, ZEROES_BYTES_MAX).map(|(at, count)| {
            let (lba, blocks) = self.range(at, count);
            self.channel.run(Request::unmap(0, lba, blocks))
        });
        match self.all(unmapped).await {
            Ok(()) | Err(IoError::Unsupported) => Ok(()),
            Err(error) => Err(self.fault("unmap")(error)),
        }
    }

    /// Runs requests, a few at a time. After the first error no more are begun; those under way are waited for, so that none
    /// reaches the disk after its space went to somebody else.
    async fn all(
        &self,
        requests: impl Iterator<Item = impl Future<Output = Completion>>,
    ) -> Result<(), IoError> {
        let result = Cell::new(Ok(()));
        let wanted = requests.take_while(|_| result.get().is_ok());
        let mut running = stream::iter(wanted).buffer_unordered(ZEROES_DEPTH);
        while let Some(completion) = running.next().await {
            if completion.result.is_err() && result.get().is_ok() {
                result.set(completion.result);
            }
        }
        result.get()
    }

    pub(crate) async fn examine(&self) -> Result<DiskContent, DiskFault> {
        match self.read_superblock().await? {
            Ok(superblock) => return Ok(DiskContent::Pool(Box::new(superblock))),
            Err(error) if error.is_foreign() => return Ok(DiskContent::Unusable(error)),
            Err(_) => {}
        }
        let probe = self.bytes().min(PROBE_BYTES as u64);
        let first = self.read(0, probe).await?;
        let last = self.read(self.bytes() - probe, probe).await?;
        Ok(recognise(&first, &last).map_or(DiskContent::Blank, DiskContent::Foreign))
    }

    /// The superblock that counts. A slot that names another version or unknown features outweighs a good one: the disk was
    /// taken over by another program.
    pub(crate) async fn read_superblock(&self) -> Result<Result<Superblock, SuperblockError>, DiskFault> {
        let mut best: Result<Superblock, SuperblockError> = Err(SuperblockError::Absent);
        for slot in 0..2 {
            best = better(best, self.read_slot(slot).await?);
        }
        Ok(best)
    }

    /// What one slot says. One that cannot be read counts as damaged, one that a disk is too short for as absent: the other one may do.
    pub(crate) async fn read_slot(
        &self,
        slot: u32,
    ) -> Result<Result<Superblock, SuperblockError>, DiskFault> {
        let offset = SLOT_OFFSETS[slot as usize];
        if self.bytes() < offset + PAGE_BYTES as u64 {
            return Ok(Err(SuperblockError::Absent));
        }
        match self.read(offset, PAGE_BYTES as u64).await {
            Ok(page) => Ok(Superblock::decode(&page, slot)),
            Err(fault) if matches!(fault.source, FaultCause::Io(IoError::Medium)) => {
                Ok(Err(SuperblockError::Checksum))
            }
            Err(fault) => Err(fault),
        }
    }

    /// Writes a superblock to both slots, one after the other, and flushes after each: one of them is intact at any time, and when
    /// this has ended both say the same.
    pub(crate) async fn write_superblock(&self, superblock: &Superblock) -> Result<(), DiskFault> {
        let first = superblock.first_slot();
        for slot in [first, 1 - first] {
            self.write_slot(slot, superblock).await?;
        }
        Ok(())
    }

    /// Writes a superblock to one slot, and flushes.
    pub(crate) async fn write_slot(&self, slot: u32, superblock: &Superblock) -> Result<(), DiskFault> {
        let page = superblock.encode(slot);
        assert!(page.len() >= SUPERBLOCK_BYTES, "a slot is a page");
        self.write(SLOT_OFFSETS[slot as usize], &page).await?;
        self.flush().await
    }

    /// Removes what other systems (and we) recognise disks by, and flushes.
    pub(crate) async fn wipe(&self) -> Result<(), DiskFault> {
        let probe = self.bytes().min(PROBE_BYTES as u64);
        // Slots and both journals at their longest: no group of an earlier pool stays.
        let metadata = self.bytes().min(33 << 20);
        self.write_zeroes(0, metadata).await?;
        self.write_zeroes(self.bytes() - probe, probe).await?;
        self.flush().await
    }
}

fn better(
    a: Result<Superblock, SuperblockError>,
    b: Result<Superblock, SuperblockError>,
) -> Result<Superblock, SuperblockError> {
    let foreign =
        |found: &Result<Superblock, SuperblockError>| found.as_ref().is_err_and(SuperblockError::is_foreign);
    if foreign(&a) {
        return a;
    }
    if foreign(&b) {
        return b;
    }
    match (a, b) {
        (Ok(a), Ok(b)) => {
            let read_only = a.read_only || b.read_only;
            Ok(Superblock { read_only, ..if a.sequence > b.sequence { a } else { b } })
        }
        (Ok(found), Err(_)) | (Err(_), Ok(found)) => Ok(found),
        (Err(SuperblockError::Absent), Err(error)) | (Err(error), Err(_)) => Err(error),
    }
}

/// Cuts a range into pieces of at most `longest` bytes.
fn pieces(offset: u64, bytes: u64, longest: u64) -> impl Iterator<Item = (u64, u64)> {
    let count = bytes.div_ceil(longest);
    (0..count).map(move |index| {
        let done = index * longest;
        (offset + done, longest.min(bytes - done))
    })
}
