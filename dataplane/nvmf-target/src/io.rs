//! I/O commands: checked, and turned into block requests.

use std::sync::Arc;

use basalt_bdev::{BlockCount, Capabilities, IoError, Lba, Operation};
use basalt_nvme_wire::dsm::{ATTRIBUTE_DEALLOCATE, Range};
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::opcode::Io;
use basalt_nvme_wire::{ReadWrite, Sgl, Sqe, Status};
use basalt_nvmf_transport::HostId;

use crate::namespace::Namespace;
use crate::reply::{Reply, Step, give};
use crate::reservation::{self, Access, KnownRights, Pending};

/// Place of a namespace in the table that [`Queue::namespaces`](crate::Queue::namespaces) shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceSlot(pub usize);

/// A valid I/O command as a request to a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCommand {
    /// Whose device.
    pub slot: NamespaceSlot,
    /// What to do.
    pub operation: Operation,
    /// First block.
    pub lba: Lba,
    /// Blocks.
    pub blocks: BlockCount,
    /// Bytes that move between host and device for this command; zero for commands without data.
    pub bytes: u32,
}

/// The ranges of a Dataset Management command, unmapped one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnmapRanges {
    /// Whose device.
    pub slot: NamespaceSlot,
    /// Ranges in the command's data.
    pub count: usize,
}

impl UnmapRanges {
    /// The request of range number `index` in the command's `data`; `None` for a range of no blocks and behind the last range.
    pub fn request(&self, data: &[u8], index: usize) -> Option<(Lba, BlockCount)> {
        let range = Range::list(data, self.count)?.get(index)?;
        let blocks = u64::from(range.block_count.get());
        if blocks == 0 { None } else { Some((Lba(range.first_block.get()), BlockCount(blocks))) }
    }
}

/// What an I/O queue checks commands against.
#[derive(Debug)]
pub(crate) struct IoContext<'a> {
    pub(crate) namespaces: &'a [Arc<Namespace>],
    pub(crate) rights: &'a KnownRights,
    pub(crate) transfer_bytes_max: u32,
}

impl IoContext<'_> {
    /// Checks `sqe` and says what to do.
    pub(crate) fn command(&self, sqe: &Sqe) -> Step {
        let (opcode, operation) = match Io::from_code(sqe.opcode) {
            Some(Io::Read) => (Io::Read, Operation::Read),
            Some(Io::Write) => (Io::Write, Operation::Write { fua: ReadWrite::parse(sqe).fua }),
            Some(other) => return self.check_other(other, sqe).unwrap_or_else(Step::complete),
            None => return Step::refuse(Status::INVALID_OPCODE),
        };
        // The answer is put together once and here: copied right after it was written in parts, it stalls every command.
        let found = self.namespace(sqe.nsid.get(), opcode);
        match found.and_then(|(slot, namespace)| self.transfer(sqe, slot, namespace, operation)) {
            Ok(block) => Step::Block(block),
            Err(status) => Step::complete(status),
        }
    }

    /// Checks a half of a fused pair, of which the specification allows only `expected` there.
    pub(crate) fn half(&self, sqe: &Sqe, expected: Io) -> Result<BlockCommand, Status> {
        let Some(opcode) = Io::from_code(sqe.opcode) else { return Err(Status::INVALID_OPCODE.dnr()) };
        if opcode != expected {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let (slot, namespace) = self.namespace(sqe.nsid.get(), opcode)?;
        if !namespace.fuses() {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let operation = Operation::CompareAndWrite { fua: ReadWrite::parse(sqe).fua };
        let block = self.transfer(sqe, slot, namespace, operation)?;
        if block.blocks > namespace.device().info().atomic_write() {
            return Err(Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr());
        }
        Ok(block)
    }

    /// What is not read or write, kept apart so that these stay small.
    #[inline(never)]
    fn check_other(&self, opcode: Io, sqe: &Sqe) -> Result<Step, Status> {
        let (slot, namespace) = self.namespace(sqe.nsid.get(), opcode)?;
        match opcode {
            Io::Compare => {
                requires(namespace, Capabilities::COMPARE)?;
                self.transfer(sqe, slot, namespace, Operation::Compare).map(Step::Block)
            }
            Io::Flush => Ok(Step::Block(BlockCommand {
                slot,
                operation: Operation::Flush,
                lba: Lba::ZERO,
                blocks: BlockCount(0),
                bytes: 0,
            })),
            Io::WriteZeroes => write_zeroes(sqe, slot, namespace),
            Io::DatasetManagement => dataset_management(sqe),
            Io::ReservationRegister | Io::ReservationAcquire | Io::ReservationRelease => {
                reservation::begin(opcode, sqe)
            }
            Io::ReservationReport => self.report(sqe, namespace),
            Io::Read | Io::Write | Io::WriteUncorrectable | Io::Verify => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    /// The namespace of a command, if it exists and lets the host's command through.
    #[inline]
    fn namespace(&self, nsid: u32, opcode: Io) -> Result<(NamespaceSlot, &Namespace), Status> {
        let place = self.namespaces.binary_search_by_key(&nsid, |namespace| namespace.nsid().0);
        let Ok(index) = place else { return Err(Status::INVALID_NAMESPACE.dnr()) };
        let namespace = &self.namespaces[index];
        if !namespace.gate().look().is_open() {
            self.look_closer(index, namespace, Access::of(opcode))?;
        }
        Ok((NamespaceSlot(index), namespace))
    }

    /// Whether a command that was let in before may still run, as its data came only now.
    pub(crate) fn may_run(&self, namespace: &Namespace, operation: Operation) -> Result<(), Status> {
        if namespace.gate().look().is_open() {
            return Ok(());
        }
        let access = Access::of_operation(operation);
        let listed = self.namespaces.iter().position(|listed| std::ptr::eq(&raw const **listed, namespace));
        match listed {
            Some(index) => self.look_closer(index, namespace, access),
            None => self.rights.check_unlisted(namespace, access),
        }
    }

    /// The ANA state (Base 8.1.3), then the reservation.
    #[cold]
    fn look_closer(&self, index: usize, namespace: &Namespace, access: Access) -> Result<(), Status> {
        let gauge = namespace.gate().look();
        match gauge.ana() {
            AnaState::Optimized | AnaState::NonOptimized => {}
            AnaState::Inaccessible => return Err(Status::ANA_INACCESSIBLE),
            AnaState::PersistentLoss => return Err(Status::ANA_PERSISTENT_LOSS),
            AnaState::Change => return Err(Status::ANA_TRANSITION),
        }
        if gauge.is_held() { self.rights.check(index, namespace, access) } else { Ok(()) }
    }

    #[cold]
    fn report(&self, sqe: &Sqe, namespace: &Namespace) -> Result<Step, Status> {
        let data = reservation::report(&namespace.reservations().state(), sqe, self.transfer_bytes_max)?;
        give(sqe, data, Reply::SUCCESS)
    }

    /// A reservation command whose data is there.
    pub(crate) fn reserve(&self, host: HostId, pending: &mut Pending, sqe: &Sqe, data: &[u8]) -> Step {
        match self.namespace(sqe.nsid.get(), Io::ReservationReport) {
            Ok((_, namespace)) => pending.command(host, namespace, sqe, data),
            Err(status) => Step::complete(status),
        }
    }

    #[inline(always)]
    fn transfer(
        &self,
        sqe: &Sqe,
        slot: NamespaceSlot,
        namespace: &Namespace,
        operation: Operation,
    ) -> Result<BlockCommand, Status> {
        let fields = ReadWrite::parse(sqe);
        let blocks = BlockCount(u64::from(fields.block_count));
        check_range(namespace, &fields, blocks)?;
        let bytes = u64::from(fields.block_count) << namespace.device().info().block_size().shift();
        let Some(bytes) = u32::try_from(bytes).ok().filter(|bytes| *bytes <= self.transfer_bytes_max) else {
            return Err(Status::INVALID_FIELD.dnr());
        };
        let length = match operation {
            Operation::Read => Sgl::parse_room(&sqe.sgl)?,
            _ => Sgl::parse(&sqe.sgl)?.length(),
        };
        if length != bytes {
            return Err(Status::SGL_LENGTH_INVALID.dnr());
        }
        let lba = Lba(fields.first_block);
        Ok(BlockCommand { slot, operation, lba, blocks, bytes })
    }

    /// Dataset Management with its ranges.
    pub(crate) fn with_ranges(&self, sqe: &Sqe, data: &[u8]) -> Step {
        match self.check_ranges(sqe, data) {
            Ok(step) => step,
            Err(status) => Step::complete(status),
        }
    }

    fn check_ranges(&self, sqe: &Sqe, data: &[u8]) -> Result<Step, Status> {
        let (slot, namespace) = self.namespace(sqe.nsid.get(), Io::DatasetManagement)?;
        let count = range_count(sqe);
        let Some(ranges) = Range::list(data, count) else { return Err(Status::SGL_LENGTH_INVALID.dnr()) };
        let blocks = namespace.device().info().blocks().0;
        for range in ranges {
            let end = range.first_block.get().checked_add(u64::from(range.block_count.get()));
            if end.is_none_or(|end| end > blocks) {
                return Err(Status::LBA_OUT_OF_RANGE.dnr());
            }
        }
        // Other attributes are hints; so is deallocation where the device cannot (NVM 3.2.3).
        let deallocates = sqe.cdw11.get() & ATTRIBUTE_DEALLOCATE != 0;
        if !deallocates || !namespace.device().info().capabilities().contains(Capabilities::UNMAP) {
            return Ok(Step::DONE);
        }
        Ok(Step::Unmap(UnmapRanges { slot, count }))
    }
}

fn requires(namespace: &Namespace, capability: Capabilities) -> Result<(), Status> {
    if namespace.device().info().capabilities().contains(capability) {
        Ok(())
    } else {
        Err(Status::INVALID_OPCODE.dnr())
    }
}

fn check_range(namespace: &Namespace, fields: &ReadWrite, blocks: BlockCount) -> Result<(), Status> {
    // Namespaces have no protection information: PRACT and PRCHK mean nothing that we could do (NVM 5.3).
    if fields.protection != 0 {
        return Err(Status::INVALID_FIELD.dnr());
    }
    match Lba(fields.first_block).checked_add(blocks) {
        Some(end) if end.0 <= namespace.device().info().blocks().0 => Ok(()),
        _ => Err(Status::LBA_OUT_OF_RANGE.dnr()),
    }
}

fn write_zeroes(sqe: &Sqe, slot: NamespaceSlot, namespace: &Namespace) -> Result<Step, Status> {
    requires(namespace, Capabilities::WRITE_ZEROES)?;
    let fields = ReadWrite::parse(sqe);
    let blocks = BlockCount(u64::from(fields.block_count));
    check_range(namespace, &fields, blocks)?;
    let operation = Operation::WriteZeroes { unmap: fields.deallocate, fua: fields.fua };
    Ok(Step::Block(BlockCommand { slot, operation, lba: Lba(fields.first_block), blocks, bytes: 0 }))
}

/// Ranges of a Dataset Management command (0's based in dword 10, bits 7:0).
fn range_count(sqe: &Sqe) -> usize {
    usize::from(sqe.cdw10.get().to_le_bytes()[0]) + 1
}

fn dataset_management(sqe: &Sqe) -> Result<Step, Status> {
    let sgl = Sgl::parse(&sqe.sgl)?;
    let length = range_count(sqe) * size_of::<Range>();
    // Linux sends the data of all 256 ranges whatever their number.
    if (sgl.length() as usize) < length || sgl.length() as usize > 256 * size_of::<Range>() {
        return Err(Status::SGL_LENGTH_INVALID.dnr());
    }
    Ok(Step::Take { length: sgl.length() })
}

/// The completion status of a block request of `operation`.
pub fn status_of(operation: Operation, result: Result<(), IoError>) -> Status {
    let Err(error) = result else { return Status::SUCCESS };
    match error {
        IoError::OutOfRange => Status::LBA_OUT_OF_RANGE.dnr(),
        IoError::Malformed | IoError::TooLarge => Status::INVALID_FIELD.dnr(),
        IoError::Unsupported => Status::INVALID_OPCODE.dnr(),
        IoError::Medium | IoError::Shortened if operation.modifies() || operation == Operation::Flush => {
            Status::WRITE_FAULT
        }
        IoError::Medium | IoError::Shortened => Status::UNRECOVERED_READ,
        IoError::CapacityExceeded => Status::CAPACITY_EXCEEDED.dnr(),
        IoError::ReadOnly => Status::NAMESPACE_WRITE_PROTECTED.dnr(),
        IoError::Miscompare => Status::COMPARE_FAILURE.dnr(),
        IoError::Aborted => Status::ABORT_REQUESTED,
        // The path is of no use any more, the namespace may be on another one.
        IoError::DeviceGone | IoError::Fenced => Status::INTERNAL_PATH_ERROR,
        IoError::TimedOut | IoError::NoMemory => Status::NAMESPACE_NOT_READY,
    }
}
