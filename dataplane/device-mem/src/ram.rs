use std::io;
use std::sync::Arc;

use basalt_bdev::provider;
use basalt_bdev::{
    BlockDevice, BlockSize, Capabilities, Channel, DeviceInfo, DeviceState, IoError, OpenError, Operation,
    Request,
};
use basalt_dma::{MemoryLender, Payload, Segment, SharedMemory};
use basalt_reactor::Handle;
use uuid::Uuid;

use crate::immediate::{Execute, Immediate, range};
use crate::write_gate::{WriteGate, Writer};

/// Why there is no RAM device.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The size is not a positive multiple of the block size, or beyond the address space.
    #[error("a RAM device of {bytes} bytes is not a whole number of blocks of {block_size}")]
    Size {
        /// What was asked for.
        bytes: u64,
        /// Bytes per block.
        block_size: BlockSize,
    },
    /// The system gave no memory.
    #[error("no memory for a RAM device of {bytes} bytes: {source}")]
    Memory {
        /// What was asked for.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// A device in memory, lost with the process. Reads without memory of their own are answered with views of it.
///
/// A compare-and-write of any size is one step to everything else that changes the device, on any reactor.
#[derive(Debug)]
pub struct RamDevice {
    medium: Arc<Medium>,
    gate: Arc<WriteGate>,
}

#[derive(Debug)]
struct Medium {
    info: DeviceInfo,
    memory: Arc<SharedMemory>,
}

impl RamDevice {
    /// A zeroed device of `bytes` bytes.
    ///
    /// # Errors
    /// If the size is not a whole number of blocks or the system has no memory.
    pub fn new(name: &str, uuid: Uuid, block_size: BlockSize, bytes: u64) -> Result<Self, RamError> {
        let len = usize::try_from(bytes)
            .ok()
            .filter(|_| bytes > 0 && bytes.is_multiple_of(block_size.bytes().into()));
        let Some(len) = len else { return Err(RamError::Size { bytes, block_size }) };
        let memory = SharedMemory::zeroed(len).map_err(|source| RamError::Memory { bytes, source })?;
        let info = DeviceInfo::new(name, uuid, block_size, block_size.blocks_in(bytes)).with_capabilities(
            Capabilities::UNMAP
                | Capabilities::WRITE_ZEROES
                | Capabilities::COMPARE
                | Capabilities::COMPARE_AND_WRITE
                | Capabilities::LEND,
        );
        let medium = Medium { info, memory: Arc::new(memory) };
        Ok(Self { medium: Arc::new(medium), gate: Arc::default() })
    }

    /// Removes the device: everything fails from now on.
    pub fn remove(&self) {
        self.medium.info.set_removed();
    }
}

impl BlockDevice for RamDevice {
    fn info(&self) -> &DeviceInfo {
        &self.medium.info
    }

    fn open(&self, _handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        if self.medium.info.state() == DeviceState::Removed {
            return Err(OpenError::DeviceGone);
        }
        let lender = MemoryLender::new(Arc::clone(&self.medium.memory));
        let writer = Writer::new(Arc::clone(&self.gate));
        Ok(Box::new(Immediate::new(RamExecutor { medium: Arc::clone(&self.medium), lender, writer })))
    }
}

struct RamExecutor {
    medium: Arc<Medium>,
    lender: MemoryLender,
    writer: Writer,
}

impl Execute for RamExecutor {
    const AHEAD: usize = 16;

    fn prepare(&self, request: &Request) -> bool {
        // What is written is not waited for: the processor takes whole lines and fetches nothing.
        if request.operation != Operation::Read || matches!(request.payload, Payload::None) {
            return false;
        }
        let Ok((offset, len)) = range(self.medium.info.block_size(), request) else { return false };
        self.medium.memory.prefetch(offset, len);
        true
    }

    fn execute(&self, request: &mut Request) -> Result<(), IoError> {
        let info = &self.medium.info;
        provider::check(info, request)?;
        let (offset, len) = range(info.block_size(), request)?;
        let memory = &*self.medium.memory;
        match request.operation {
            Operation::Read => match &mut request.payload {
                payload @ Payload::None => {
                    let view = self.lender.lend(offset, len);
                    view.prefetch();
                    *payload = Payload::Lent(view);
                }
                payload => {
                    let mut at = offset;
                    for buffer in payload.buffers_mut() {
                        memory.read(at, buffer);
                        at += buffer.len();
                    }
                }
            },
            Operation::Write { .. } => {
                self.writer.write(|| write(memory, offset, request.payload.segments()));
            }
            Operation::Flush => {}
            Operation::Unmap | Operation::WriteZeroes { .. } => {
                self.writer.write(|| memory.zero(offset, len));
            }
            Operation::Compare => compare(memory, offset, request.payload.segments())?,
            Operation::CompareAndWrite { .. } => self.writer.exclusively(|| {
                compare(memory, offset, part(&request.payload, 0, len))?;
                write(memory, offset, part(&request.payload, len, len));
                Ok(())
            })?,
        }
        Ok(())
    }
}

fn write<'a>(memory: &SharedMemory, mut offset: usize, segments: impl Iterator<Item = Segment<'a>>) {
    for segment in segments {
        memory.write(offset, &segment);
        offset += segment.len();
    }
}

fn compare<'a>(
    memory: &SharedMemory,
    mut offset: usize,
    segments: impl Iterator<Item = Segment<'a>>,
) -> Result<(), IoError> {
    for segment in segments {
        if !memory.equals(offset, &segment) {
            return Err(IoError::Miscompare);
        }
        offset += segment.len();
    }
    Ok(())
}

/// The segments of a payload's bytes from `from` on, `len` of them.
fn part(payload: &Payload, from: usize, len: usize) -> impl Iterator<Item = Segment<'_>> {
    let mut skip = from;
    let mut left = len;
    payload.segments().filter_map(move |segment| {
        let skipped = skip.min(segment.len());
        skip -= skipped;
        let rest = segment.skip(skipped);
        let taken = rest.truncate(left);
        left -= taken.len();
        (!taken.is_empty()).then_some(taken)
    })
}
