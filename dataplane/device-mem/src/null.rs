use std::io;
use std::sync::Arc;

use basalt_bdev::provider::{self, DEFAULT_QUEUE_DEPTH};
use basalt_bdev::{
    BlockCount, BlockDevice, BlockSize, Capabilities, Channel, Completion, DeviceInfo, DeviceState, IoError,
    OpenError, Operation, Rejected, Request,
};
use basalt_dma::{MemoryLender, Payload, SharedMemory};
use basalt_reactor::Handle;
use uuid::Uuid;

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
        Ok(Box::new(NullChannel { info: Arc::clone(&self.info), lender, done: Vec::new() }))
    }
}

struct NullChannel {
    info: Arc<DeviceInfo>,
    lender: MemoryLender,
    done: Vec<Completion>,
}

impl NullChannel {
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

impl Channel for NullChannel {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        if self.done.len() >= DEFAULT_QUEUE_DEPTH {
            return Err(Rejected(request));
        }
        let result = self.execute(&mut request);
        self.done.push(request.complete(result));
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let count = self.done.len();
        completions.append(&mut self.done);
        count
    }
}
