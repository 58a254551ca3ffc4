//! What a command leads to.

use basalt_nvme_wire::{Cqe, Sgl, Sqe, Status};
use basalt_nvmf_transport::CommandId;
use zerocopy::little_endian::U32;

use crate::io::{BlockCommand, UnmapRanges};

/// A command's completion without what only the transport knows (command identifier, queue head).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// Status.
    pub status: Status,
    /// Completion dword 0.
    pub dw0: u32,
    /// Completion dword 1.
    pub dw1: u32,
}

impl Reply {
    /// Success without a result.
    pub const SUCCESS: Self = Self::status(Status::SUCCESS);

    /// A completion with `status`.
    pub const fn status(status: Status) -> Self {
        Self { status, dw0: 0, dw1: 0 }
    }

    /// Success with a result in dword 0.
    pub const fn result(dw0: u32) -> Self {
        Self { status: Status::SUCCESS, dw0, dw1: 0 }
    }

    /// The completion entry.
    pub fn entry(&self, command_id: u16, sq_head: u16) -> Cqe {
        let mut cqe = Cqe::new(command_id, sq_head, self.status);
        cqe.dw0 = U32::new(self.dw0);
        cqe.dw1 = U32::new(self.dw1);
        cqe
    }
}

/// What a transport does next with a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send the completion.
    Complete(Reply),
    /// Send the data, then the completion (success).
    Give {
        /// Data for the host, exactly as long as the command's data pointer says at most.
        data: Vec<u8>,
        /// The completion.
        reply: Reply,
    },
    /// Take `length` bytes from the host, then call [`Queue::command_with_data`](crate::Queue::command_with_data).
    Take {
        /// Bytes.
        length: u32,
    },
    /// Run the block command; take or give its data as its operation says.
    Block(BlockCommand),
    /// The first half of a fused pair: take its data, then wait for the second half. If none comes, the next command makes
    /// [`Queue::broken_first`](crate::Queue::broken_first) say how this one ends.
    FuseFirst(BlockCommand),
    /// The second half of the pair whose first half waits: once the data of both is there, run the block command with the first
    /// half's data before this one's. Both complete as [`fused_statuses`](crate::fused_statuses) says.
    FuseSecond(BlockCommand),
    /// Run one unmap after the other; the ranges are what [`Step::Take`] took.
    Unmap(UnmapRanges),
    /// Nothing now: the command stays outstanding and is completed by [`Queue::next_event`](crate::Queue::next_event).
    Hold,
    /// Complete the held command `command` with Command Abort Requested, then this one with success and dword 0 zero.
    AbortHeld {
        /// The command that was held.
        command: CommandId,
    },
}

impl Step {
    /// Completion with a status that would come again (Do Not Retry).
    pub(crate) const fn refuse(status: Status) -> Self {
        Step::Complete(Reply::status(status.dnr()))
    }

    /// Completion with `status`.
    pub(crate) const fn complete(status: Status) -> Self {
        Step::Complete(Reply::status(status))
    }

    /// Completion with success.
    pub(crate) const DONE: Self = Step::Complete(Reply::SUCCESS);
}

/// Gives `data` if the command's data pointer has room for it (Base 4.1.2.1: else Data SGL Length Invalid).
pub(crate) fn give(sqe: &Sqe, data: Vec<u8>, reply: Reply) -> Result<Step, Status> {
    let room = Sgl::parse_room(&sqe.sgl)?;
    if (room as usize) < data.len() {
        return Err(Status::SGL_LENGTH_INVALID.dnr());
    }
    Ok(Step::Give { data, reply })
}
