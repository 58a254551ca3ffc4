//! A disk in the blocks that its pool was made with, on a device whose own blocks are smaller.

use std::sync::Arc;

use basalt_bdev::provider::{BlockDevice, Channel, Completion, DeviceInfo, DeviceState, OpenError, Rejected};
use basalt_bdev::{BlockCount, BlockSize, Lba, Request};
use basalt_reactor::Handle;

/// A device with other blocks. A power failure may tear one, as the device below promises that of its own alone.
#[derive(Debug)]
pub(crate) struct LargerBlocks {
    inner: Arc<dyn BlockDevice>,
    info: DeviceInfo,
}

impl LargerBlocks {
    /// `inner` in blocks of `block`, which are as large as its own or larger. What does not fill one at its end is not used.
    pub(crate) fn new(inner: Arc<dyn BlockDevice>, block: BlockSize) -> Self {
        let info = inner.info();
        assert!(block >= info.block_size(), "parts of blocks cannot be written");
        let blocks = |count: BlockCount| block.blocks_in(info.block_size().bytes_of(count));
        let at_least_one = |count: BlockCount| blocks(count).max(BlockCount(1));
        let larger = DeviceInfo::new(info.name(), info.uuid(), block, blocks(info.blocks()))
            .with_volatile_write_cache(info.volatile_write_cache())
            .with_cache_lifetime(info.cache_lifetime())
            .with_read_only(info.read_only())
            .with_atomic_write(at_least_one(info.atomic_write()))
            .with_optimal_io(at_least_one(info.optimal_io()))
            .with_max_transfer(at_least_one(info.max_transfer()))
            .with_capabilities(info.capabilities());
        Self { inner, info: larger }
    }
}

impl BlockDevice for LargerBlocks {
    /// What may change follows the device below whenever it is looked at.
    fn info(&self) -> &DeviceInfo {
        let below = self.inner.info();
        self.info.set_blocks(self.info.block_size().blocks_in(below.bytes()));
        self.info.set_read_only(below.read_only());
        if below.state() == DeviceState::Removed {
            self.info.set_removed();
        }
        &self.info
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        let shift = self.info.block_size().shift() - self.inner.info().block_size().shift();
        Ok(Box::new(LargerBlocksChannel { inner: self.inner.open(handle)?, shift }))
    }
}

struct LargerBlocksChannel {
    inner: Box<dyn Channel>,
    /// Blocks of the device below in one, as a power of two.
    shift: u32,
}

impl Channel for LargerBlocksChannel {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        let (lba, blocks) = (request.lba, request.blocks);
        // Beyond 64 bits lies nothing: the device below refuses it as out of range.
        request.lba = Lba(lba.0.saturating_mul(1 << self.shift));
        request.blocks = BlockCount(blocks.0.saturating_mul(1 << self.shift));
        self.inner.submit(request).map_err(|Rejected(request)| Rejected(Request { lba, blocks, ..request }))
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        self.inner.poll(completions)
    }

    fn abort(&mut self, tag: u64) {
        self.inner.abort(tag);
    }
}
