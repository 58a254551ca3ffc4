use std::io;
use std::sync::Arc;

use basalt_bdev::provider;
use basalt_bdev::{
    BlockCount, BlockDevice, BlockSize, Capabilities, Channel, DeviceInfo, DeviceState, IoError, OpenError,
    Operation, Request,
};
use basalt_dma::{MemoryLender, Payload, SharedMemory};
use basalt_reactor::Handle;
use uuid::Uuid;

use crate::immediate::{Execute, Immediate};

/// A device that forgets what is written and reads as zeroes: for measuring what lies above.
#[derive(Debug)]
pub struct NullDevice {
    info: Arc<DeviceInfo>,
    /// What reads without memory of their own look at.
    zeroes: Arc<SharedMemory>,
}

/// Largest transfer in bytes.
const MAX_TRANSFER_BYTES: usize = 1 << 20;

impl NullDevice {
    /// A device of so many blocks.
    ///
    /// # Errors
    /// If the system has no memory for the zeroes that reads show.
    pub fn new(name: &str, uuid: Uuid, block_size: BlockSize, blocks: BlockCount) -> io::Result<Self> {
        let info = DeviceInfo::new(name, uuid, block_size, blocks)
            .with_capabilities(
                Capabilities::UNMAP
                    | Capabilities::WRITE_ZEROES
                    | Capabilities::COMPARE
                    | Capabilities::COMPARE_AND_WRITE
                    | Capabilities::LEND,
            )
            .with_max_transfer(block_size.blocks_in(MAX_TRANSFER_BYTES as u64));
        Ok(Self { info: Arc::new(info), zeroes: Arc::new(SharedMemory::zeroed(MAX_TRANSFER_BYTES)?) })
    }
}

impl BlockDevice for NullDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn open(&self, _handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        if self.info.state() == DeviceState::Removed {
            return Err(OpenError::DeviceGone);
        }
        let lender = MemoryLender::new(Arc::clone(&self.zeroes));
        Ok(Box::new(Immediate::new(NullExecutor { info: Arc::clone(&self.info), lender })))
    }
}

struct NullExecutor {
    info: Arc<DeviceInfo>,
    lender: MemoryLender,
}

impl NullExecutor {
    /// Everything is zero, before and after.
    fn compare(&self, request: &Request) -> Result<(), IoError> {
        let bytes = self.info.block_size().bytes_of(request.blocks);
        let mut left = usize::try_from(bytes).map_err(|_| IoError::TooLarge)?;
        for segment in request.payload.segments() {
            let compared = segment.truncate(left);
            if !self.lender.memory().equals(0, &compared) {
                return Err(IoError::Miscompare);
            }
            left -= compared.len();
        }
        Ok(())
    }
}

impl Execute for NullExecutor {
    fn execute(&self, request: &mut Request) -> Result<(), IoError> {
        provider::check(&self.info, request)?;
        match request.operation {
            Operation::Read => {}
            Operation::Compare | Operation::CompareAndWrite { .. } => return self.compare(request),
            _ => return Ok(()),
        }
        match &mut request.payload {
            payload @ Payload::None => {
                let bytes = self.info.block_size().bytes_of(request.blocks);
                let len = usize::try_from(bytes).map_err(|_| IoError::TooLarge)?;
                *payload = Payload::Lent(self.lender.lend(0, len));
            }
            payload => payload.buffers_mut().iter_mut().for_each(|buffer| buffer.fill(0)),
        }
        Ok(())
    }
}
