//! Fused Compare and Write (Base 3.4.2, NVM 2.1.3).

use basalt_nvme_wire::{Fuse, ReadWrite, Status};

use crate::command::{Command, Data, IoCommand};

/// A Compare and a Write of the same blocks that the controller executes as one step. They are sent one right after the other;
/// each has its own outcome, see [`FusedPair::result`].
///
/// A controller that has [`ControllerFacts::compare_and_write_blocks`](crate::ControllerFacts) takes them.
#[derive(Debug)]
pub struct FusedPair {
    /// The first half.
    pub compare: Command,
    /// The second half.
    pub write: Command,
}

/// What a fused pair did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// The blocks held what was expected and hold the new data now.
    Done,
    /// They held something else, and still do.
    Miscompare,
}

impl FusedPair {
    /// Replaces `expected` by `new` in the blocks that `fields` names, of namespace `nsid`.
    pub fn new(nsid: u32, fields: ReadWrite, expected: Data, new: Data) -> Self {
        let mut compare = IoCommand::Compare(ReadWrite { fua: false, ..fields }).with(nsid, expected);
        compare.sqe.set_fuse(Fuse::First);
        let mut write = IoCommand::Write(fields).with(nsid, new);
        write.sqe.set_fuse(Fuse::Second);
        Self { compare, write }
    }

    /// What the statuses of both halves say.
    ///
    /// # Errors
    /// The status that is the cause.
    pub fn result(compare: Status, write: Status) -> Result<Swap, Status> {
        match (compare.bare(), write.bare()) {
            (Status::SUCCESS, Status::SUCCESS) => Ok(Swap::Done),
            (Status::COMPARE_FAILURE, _) => Ok(Swap::Miscompare),
            (_, Status::SUCCESS | Status::ABORTED_FAILED_FUSED) => Err(compare),
            _ => Err(write),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_name_the_same_blocks_and_their_place() {
        let fields = ReadWrite { fua: true, ..ReadWrite::new(7, 2) };
        let pair = FusedPair::new(3, fields, Data::None, Data::None);
        assert_eq!((pair.compare.sqe.opcode, pair.compare.sqe.flags), (0x05, 0x41));
        assert_eq!((pair.write.sqe.opcode, pair.write.sqe.flags), (0x01, 0x42));
        assert_eq!((pair.compare.sqe.nsid.get(), pair.write.sqe.nsid.get()), (3, 3));
        assert_eq!(ReadWrite::parse(&pair.write.sqe), fields);
        assert_eq!(ReadWrite::parse(&pair.compare.sqe), ReadWrite::new(7, 2));
    }

    #[test]
    fn the_cause_is_told_and_not_what_follows_from_it() {
        let failed = Status::ABORTED_FAILED_FUSED.dnr();
        let range = Status::LBA_OUT_OF_RANGE.dnr();
        assert_eq!(FusedPair::result(Status::SUCCESS, Status::SUCCESS), Ok(Swap::Done));
        assert_eq!(FusedPair::result(Status::COMPARE_FAILURE.dnr(), failed), Ok(Swap::Miscompare));
        assert_eq!(FusedPair::result(range, failed), Err(range));
        assert_eq!(FusedPair::result(failed, Status::WRITE_FAULT), Err(Status::WRITE_FAULT));
        assert_eq!(FusedPair::result(Status::SUCCESS, Status::WRITE_FAULT), Err(Status::WRITE_FAULT));
    }
}
