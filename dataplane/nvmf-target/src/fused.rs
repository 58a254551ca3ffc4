//! Fused operations (Base 3.4.2): Compare and Write (NVM 2.1.3) in adjacent entries of one submission queue.

use basalt_bdev::{BlockCount, IoError, Lba, Operation};
use basalt_nvme_wire::opcode::Io;
use basalt_nvme_wire::{Fuse, Sqe, Status};

use crate::io::{BlockCommand, IoContext, status_of};
use crate::reply::Step;

/// What both halves of a pair must name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    nsid: u32,
    lba: Lba,
    blocks: BlockCount,
}

/// What a queue remembers from one command to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// The next command stands for itself.
    #[default]
    Idle,
    /// A first half waits for the adjacent command.
    Open(Place),
    /// A first half ended with this status; its second half must not run.
    Failed(Status),
}

/// Pairs the halves of fused operations that one queue brings.
#[derive(Debug, Default)]
pub(crate) struct Pairing {
    state: State,
    /// The end of a first half that waited, until the transport took it.
    broken: Option<Status>,
}

impl Pairing {
    /// Whether the next command's being there means nothing to an earlier one.
    pub(crate) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// How the first half that waited ended, if the last command ended it.
    pub(crate) fn take_broken(&mut self) -> Option<Status> {
        self.broken.take()
    }

    /// A command that is no half of a pair comes between.
    pub(crate) fn interrupt(&mut self) {
        if let State::Open(_) = std::mem::take(&mut self.state) {
            self.broken = Some(Status::ABORTED_MISSING_FUSED.dnr());
        }
    }

    /// The first half that waits failed with `status` while its data was taken.
    pub(crate) fn fail_first(&mut self, status: Status) {
        if let State::Open(_) = self.state {
            self.state = State::Failed(status);
        }
    }

    /// `sqe` ends with `status` without being looked at.
    pub(crate) fn skip(&mut self, sqe: &Sqe, status: Status) {
        match (sqe.fuse(), self.state) {
            (Fuse::Second, State::Open(_)) => {
                self.state = State::Idle;
                self.broken = Some(aborted_with(status));
            }
            (Fuse::First, _) if sqe.opcode == Io::Compare.code() => {
                self.interrupt();
                self.state = State::Failed(status);
            }
            _ => self.interrupt(),
        }
    }

    /// What to do with a command that is a half of a pair, comes where one is expected, or addresses its data in a way of its own.
    pub(crate) fn command(&mut self, context: &IoContext<'_>, sqe: &Sqe) -> Step {
        if !sqe.addresses_by_sgl() {
            let status = Status::INVALID_FIELD.dnr();
            self.skip(sqe, status);
            return Step::complete(status);
        }
        match sqe.fuse() {
            Fuse::Normal => {
                self.interrupt();
                context.command(sqe)
            }
            Fuse::Reserved => {
                self.interrupt();
                Step::refuse(Status::INVALID_FIELD)
            }
            Fuse::First => self.first(context, sqe),
            Fuse::Second => self.second(context, sqe),
        }
    }

    fn first(&mut self, context: &IoContext<'_>, sqe: &Sqe) -> Step {
        self.interrupt();
        match context.half(sqe, Io::Compare) {
            Ok(block) => {
                self.state = State::Open(place(sqe, &block));
                Step::FuseFirst(block)
            }
            Err(status) => {
                if sqe.opcode == Io::Compare.code() {
                    self.state = State::Failed(status);
                }
                Step::complete(status)
            }
        }
    }

    fn second(&mut self, context: &IoContext<'_>, sqe: &Sqe) -> Step {
        match (std::mem::take(&mut self.state), context.half(sqe, Io::Write)) {
            (State::Idle, Ok(_)) => Step::refuse(Status::ABORTED_MISSING_FUSED),
            (State::Failed(status), Ok(_)) => Step::complete(aborted_with(status)),
            (State::Idle | State::Failed(_), Err(status)) => Step::complete(status),
            (State::Open(first), Ok(block)) if first == place(sqe, &block) => Step::FuseSecond(block),
            (State::Open(_), Ok(_)) => {
                // Both halves end so where their ranges differ (Base 3.4.2).
                self.broken = Some(Status::INVALID_FIELD.dnr());
                Step::refuse(Status::INVALID_FIELD)
            }
            (State::Open(_), Err(status)) => {
                let is_half = sqe.opcode == Io::Write.code();
                let missing = Status::ABORTED_MISSING_FUSED.dnr();
                self.broken = Some(if is_half { aborted_with(status) } else { missing });
                Step::complete(status)
            }
        }
    }
}

fn place(sqe: &Sqe, block: &BlockCommand) -> Place {
    Place { nsid: sqe.nsid.get(), lba: block.lba, blocks: block.blocks }
}

/// The status of a half whose other half ended with `status`: may be tried again if that one may.
pub fn aborted_with(status: Status) -> Status {
    if status.do_not_retry() { Status::ABORTED_FAILED_FUSED.dnr() } else { Status::ABORTED_FAILED_FUSED }
}

/// The completion statuses of both halves of a compare-and-write.
pub fn fused_statuses(operation: Operation, result: Result<(), IoError>) -> [Status; 2] {
    let status = status_of(operation, result);
    match result {
        Ok(()) => [status, status],
        Err(IoError::Miscompare) => [status, aborted_with(status)],
        Err(_) => [aborted_with(status), status],
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Weak};

    use basalt_bdev::{BlockDevice, BlockSize};
    use basalt_device_mem::{PlainDevice, RamDevice};
    use basalt_nvme_wire::log::AnaState;
    use basalt_nvme_wire::{ReadWrite, Sgl};
    use basalt_nvmf_transport::HostId;
    use uuid::Uuid;
    use zerocopy::little_endian::U32;

    use super::*;
    use crate::namespace::{Namespace, NamespaceIdentity, NamespaceParts, Nsid};
    use crate::reservation::KnownRights;

    const MISSING: Status = Status::ABORTED_MISSING_FUSED.dnr();
    const FAILED: Status = Status::ABORTED_FAILED_FUSED.dnr();
    const INVALID: Status = Status::INVALID_FIELD.dnr();

    fn namespace(nsid: u32, device: Arc<dyn BlockDevice>, ana: AnaState) -> Arc<Namespace> {
        let identity = NamespaceIdentity { uuid: [1; 16], nguid: [1; 16] };
        let parts =
            NamespaceParts { nsid: Nsid(nsid), identity, device, ana, changes: Arc::default(), store: None };
        Namespace::new(parts, Weak::new()).unwrap()
    }

    fn ram() -> Arc<dyn BlockDevice> {
        Arc::new(RamDevice::new("ram", Uuid::nil(), BlockSize::B512, 1 << 20).unwrap())
    }

    /// 1 and 2 can, 3 cannot, 4 cannot be reached.
    fn namespaces() -> Vec<Arc<Namespace>> {
        vec![
            namespace(1, ram(), AnaState::Optimized),
            namespace(2, ram(), AnaState::Optimized),
            namespace(3, Arc::new(PlainDevice::new(ram())), AnaState::Optimized),
            namespace(4, ram(), AnaState::Inaccessible),
        ]
    }

    fn rights(namespaces: &[Arc<Namespace>]) -> KnownRights {
        KnownRights::new(HostId([1; 16]), namespaces.len())
    }

    fn half(fuse: Fuse, opcode: Io, nsid: u32, lba: u64, blocks: u32) -> Sqe {
        let mut sqe = Sqe::new(opcode.code(), 5);
        sqe.set_fuse(fuse);
        sqe.nsid = U32::new(nsid);
        sqe.sgl = Sgl::Transport { length: blocks * 512 }.emit();
        ReadWrite::new(lba, blocks).emit(&mut sqe);
        sqe
    }

    fn compare(nsid: u32, lba: u64) -> Sqe {
        half(Fuse::First, Io::Compare, nsid, lba, 1)
    }

    fn write(nsid: u32, lba: u64) -> Sqe {
        half(Fuse::Second, Io::Write, nsid, lba, 1)
    }

    /// How each command that completed at once, or that waited as a first half, ended; `None` for what would run.
    fn ends(sqes: &[Sqe]) -> Vec<Option<Status>> {
        let namespaces = namespaces();
        let rights = rights(&namespaces);
        let context = IoContext { namespaces: &namespaces, rights: &rights, transfer_bytes_max: 131_072 };
        let mut pairing = Pairing::default();
        let mut ends = Vec::new();
        for sqe in sqes {
            let step = pairing.command(&context, sqe);
            if let Some(status) = pairing.take_broken() {
                assert_eq!(ends.last(), Some(&None), "only a first half that waited is broken");
                *ends.last_mut().unwrap() = Some(status);
            }
            ends.push(match step {
                Step::Complete(reply) => Some(reply.status),
                _ => None,
            });
        }
        ends
    }

    #[test]
    fn adjacent_halves_become_one_request() {
        let namespaces = namespaces();
        let rights = rights(&namespaces);
        let context = IoContext { namespaces: &namespaces, rights: &rights, transfer_bytes_max: 131_072 };
        let mut pairing = Pairing::default();
        let Step::FuseFirst(first) = pairing.command(&context, &compare(2, 9)) else { panic!() };
        assert_eq!((first.lba, first.bytes), (Lba(9), 512));
        let mut durable = write(2, 9);
        ReadWrite { fua: true, ..ReadWrite::new(9, 1) }.emit(&mut durable);
        let Step::FuseSecond(second) = pairing.command(&context, &durable) else { panic!() };
        assert_eq!(second.operation, Operation::CompareAndWrite { fua: true });
        assert_eq!((second.slot.0, second.lba, second.blocks.0, second.bytes), (1, Lba(9), 1, 512));
        assert!(pairing.is_idle() && pairing.take_broken().is_none());
    }

    #[test]
    fn a_half_without_its_neighbour_misses_it() {
        let flush = half(Fuse::Normal, Io::Flush, 1, 0, 1);
        assert_eq!(ends(&[write(1, 0)]), [Some(MISSING)]);
        assert_eq!(ends(&[compare(1, 0), flush, write(1, 0)]), [Some(MISSING), None, Some(MISSING)]);
        assert_eq!(ends(&[compare(1, 0), compare(1, 0), write(1, 0)]), [Some(MISSING), None, None]);
        assert_eq!(
            ends(&[compare(1, 0), write(1, 0), write(1, 0)]),
            [None, None, Some(MISSING)],
            "a pair has two halves"
        );
    }

    #[test]
    fn fused_bits_where_there_is_no_such_pair_are_invalid() {
        for opcode in [Io::Flush, Io::Read, Io::Compare, Io::WriteZeroes, Io::DatasetManagement] {
            let second = half(Fuse::Second, opcode, 1, 0, 1);
            assert_eq!(ends(&[second]), [Some(INVALID)]);
            assert_eq!(ends(&[compare(1, 0), second]), [Some(MISSING), Some(INVALID)]);
        }
        for opcode in [Io::Flush, Io::Read, Io::Write] {
            let first = half(Fuse::First, opcode, 1, 0, 1);
            assert_eq!(ends(&[first, write(1, 0)]), [Some(INVALID), Some(MISSING)]);
        }
        let reserved = half(Fuse::Reserved, Io::Write, 1, 0, 1);
        assert_eq!(ends(&[compare(1, 0), reserved]), [Some(MISSING), Some(INVALID)]);
        assert_eq!(ends(&[compare(3, 0), write(3, 0)]), [Some(INVALID); 2], "the device cannot");
    }

    #[test]
    fn data_is_addressed_by_sgl_alone() {
        let with = |mut sqe: Sqe, psdt: u8| {
            sqe.flags = sqe.flags & 0b11 | psdt << 6;
            sqe
        };
        for psdt in [0b00, 0b10, 0b11] {
            let read = with(half(Fuse::Normal, Io::Read, 1, 0, 1), psdt);
            assert_eq!(ends(&[read]), [Some(INVALID)]);
            assert_eq!(
                ends(&[compare(1, 0), read, write(1, 0)]),
                [Some(MISSING), Some(INVALID), Some(MISSING)]
            );
            assert_eq!(ends(&[with(compare(1, 0), psdt), write(1, 0)]), [Some(INVALID), Some(FAILED)]);
            assert_eq!(ends(&[compare(1, 0), with(write(1, 0), psdt)]), [Some(FAILED), Some(INVALID)]);
        }
    }

    #[test]
    fn halves_of_different_ranges_are_both_invalid() {
        let longer = half(Fuse::Second, Io::Write, 1, 0, 2);
        assert_eq!(ends(&[compare(1, 0), write(1, 1)]), [Some(INVALID); 2]);
        assert_eq!(ends(&[compare(1, 0), write(2, 0)]), [Some(INVALID); 2]);
        let beyond_atomic = Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr();
        assert_eq!(ends(&[compare(1, 0), longer]), [Some(FAILED), Some(beyond_atomic)]);
    }

    #[test]
    fn a_half_that_fails_takes_the_other_with_it() {
        let (range, nsid) = (Status::LBA_OUT_OF_RANGE.dnr(), Status::INVALID_NAMESPACE.dnr());
        assert_eq!(ends(&[compare(1, 2048), write(1, 2048)]), [Some(range); 2]);
        assert_eq!(ends(&[compare(1, 2048), write(1, 0)]), [Some(range), Some(FAILED)]);
        assert_eq!(ends(&[compare(1, 0), write(9, 0)]), [Some(FAILED), Some(nsid)]);
        let elsewhere = Status::ANA_INACCESSIBLE;
        assert_eq!(
            ends(&[compare(1, 0), write(4, 0)]),
            [Some(Status::ABORTED_FAILED_FUSED), Some(elsewhere)],
            "what may be tried again elsewhere is not final for the other half"
        );
        let long = |fuse, opcode| half(fuse, opcode, 1, 0, 2);
        let exceeded = Some(Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr());
        assert_eq!(ends(&[long(Fuse::First, Io::Compare), long(Fuse::Second, Io::Write)]), [exceeded; 2]);
    }

    #[test]
    fn commands_whose_data_came_damaged_keep_their_place() {
        let namespaces = namespaces();
        let rights = rights(&namespaces);
        let context = IoContext { namespaces: &namespaces, rights: &rights, transfer_bytes_max: 131_072 };
        let mut pairing = Pairing::default();
        let damaged = Status::TRANSIENT_TRANSPORT;
        pairing.skip(&compare(1, 0), damaged);
        let step = pairing.command(&context, &write(1, 0));
        assert_eq!(step, Step::complete(Status::ABORTED_FAILED_FUSED));
        pairing.command(&context, &compare(1, 0));
        pairing.skip(&write(1, 0), damaged);
        assert_eq!(pairing.take_broken(), Some(Status::ABORTED_FAILED_FUSED));
        pairing.command(&context, &compare(1, 0));
        pairing.skip(&half(Fuse::Normal, Io::Write, 1, 0, 1), damaged);
        assert_eq!((pairing.take_broken(), pairing.is_idle()), (Some(MISSING), true));
        pairing.command(&context, &compare(1, 0));
        pairing.fail_first(damaged);
        assert_eq!(pairing.command(&context, &write(1, 0)), step);
    }

    #[test]
    fn results_are_told_by_both_halves() {
        let operation = Operation::CompareAndWrite { fua: false };
        let statuses = |result| fused_statuses(operation, result);
        assert_eq!(statuses(Ok(())), [Status::SUCCESS; 2]);
        assert_eq!(statuses(Err(IoError::Miscompare)), [Status::COMPARE_FAILURE.dnr(), FAILED]);
        assert_eq!(statuses(Err(IoError::ReadOnly)), [FAILED, Status::NAMESPACE_WRITE_PROTECTED.dnr()]);
        assert_eq!(
            statuses(Err(IoError::DeviceGone)),
            [Status::ABORTED_FAILED_FUSED, Status::INTERNAL_PATH_ERROR]
        );
    }
}
