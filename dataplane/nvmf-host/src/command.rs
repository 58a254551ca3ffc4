//! Commands and their outcomes, as a host's transport carries them.

use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::opcode::Io;
use basalt_nvme_wire::{Cqe, ReadWrite, Sqe, dsm};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::error::QueueError;

/// A command's data.
#[derive(Debug)]
pub enum Data {
    /// None.
    None,
    /// Few bytes for the controller.
    Bytes(Vec<u8>),
    /// For the controller.
    ToController(Payload),
    /// Memory for what the controller gives: as many bytes as the buffer's length.
    ToHost(Buffer),
}

/// A command without its identifier and data pointer, which the queue chooses.
#[derive(Debug)]
pub struct Command {
    /// The entry.
    pub sqe: Sqe,
    /// Its data.
    pub data: Data,
}

/// A command's end.
#[derive(Debug)]
pub struct Outcome {
    /// The tag that it was submitted with.
    pub tag: u64,
    /// The completion, whatever its status, or why there is none.
    pub result: Result<Cqe, QueueError>,
    /// The memory that it was submitted with.
    pub payload: Payload,
}

/// A command of an I/O queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoCommand {
    /// Read blocks.
    Read(ReadWrite),
    /// Write blocks.
    Write(ReadWrite),
    /// Compare blocks.
    Compare(ReadWrite),
    /// Write zeroes.
    WriteZeroes(ReadWrite),
    /// Make completed writes durable.
    Flush,
}

impl IoCommand {
    /// The command for namespace `nsid`.
    pub fn with(self, nsid: u32, data: Data) -> Command {
        let (opcode, fields) = match self {
            IoCommand::Read(fields) => (Io::Read, Some(fields)),
            IoCommand::Write(fields) => (Io::Write, Some(fields)),
            IoCommand::Compare(fields) => (Io::Compare, Some(fields)),
            IoCommand::WriteZeroes(fields) => (Io::WriteZeroes, Some(fields)),
            IoCommand::Flush => (Io::Flush, None),
        };
        let mut sqe = Sqe::new(opcode.code(), 0);
        sqe.nsid = U32::new(nsid);
        if let Some(fields) = fields {
            fields.emit(&mut sqe);
        }
        Command { sqe, data }
    }
}

impl Command {
    /// Deallocates ranges of namespace `nsid`.
    ///
    /// # Panics
    /// If there are no ranges or more than 256.
    pub fn deallocate(nsid: u32, ranges: &[dsm::Range]) -> Self {
        assert!((1..=dsm::RANGES_MAX).contains(&ranges.len()), "1 to 256 ranges");
        let mut sqe = Sqe::new(Io::DatasetManagement.code(), 0);
        sqe.nsid = U32::new(nsid);
        sqe.cdw10 = U32::from_bytes([(ranges.len() - 1).to_le_bytes()[0], 0, 0, 0]);
        sqe.cdw11 = U32::new(dsm::ATTRIBUTE_DEALLOCATE);
        Self { sqe, data: Data::Bytes(ranges.as_bytes().to_vec()) }
    }
}
