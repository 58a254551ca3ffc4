//! Fused pairs: two commands whose data comes in any order and that become one request.
//!
//! Neither half is answered while its data is on the way, as the host may still send it.

use basalt_bdev::{Completion, IoError};
use basalt_dma::Payload;
use basalt_nvme_wire::Status;
use basalt_nvmf_target::{BlockCommand, Reply, Step, aborted_with, fused_statuses};

use super::connection::{Connection, Context};
use super::slot::{State, Work};
use crate::wire::Wire;

impl<W: Wire> Connection<W> {
    /// Ends the first half that waits, if the command that came last ended it.
    pub(super) fn note_adjacent(&mut self) {
        if let Some(first) = self.open_first
            && let Some(reply) = self.queue.broken_first()
        {
            self.open_first = None;
            self.abandon(first, reply.status);
        }
    }

    /// A half of a pair came; `data` are its in-capsule bytes.
    pub(super) fn fused_half(
        &mut self,
        context: &mut Context<'_>,
        slot: usize,
        block: BlockCommand,
        work: Work,
        data: Option<&[u8]>,
    ) {
        match work {
            Work::FusedSecond { first, .. } => {
                self.open_first = None;
                self.slots[first].work = Work::FusedFirst { second: Some(slot) };
            }
            _ => self.open_first = Some(slot),
        }
        match data {
            None => self.ask_for(slot, block.bytes, work, context.pool),
            Some(data) => {
                self.slots[slot].work = work;
                if data.len() != block.bytes as usize {
                    self.fail(slot, Status::SGL_LENGTH_INVALID.dnr());
                    return;
                }
                let buffer = self.copy_capsule(slot, data, context.pool);
                self.slots[slot].payload = Payload::Buffer(buffer);
                self.half_ready(slot, context);
            }
        }
    }

    /// A command that the queue took as `step` is answered with `status` before it is taken up.
    pub(super) fn refuse(&mut self, slot: usize, step: &Step, status: Status) {
        match step {
            Step::FuseFirst(_) => self.queue.fail_first(status),
            Step::FuseSecond(_) => {
                if let Some(first) = self.open_first.take() {
                    self.abandon(first, aborted_with(status));
                }
            }
            _ => {}
        }
        self.reply(slot, &Reply::status(status));
    }

    /// All data of a half is there: runs the pair if the other half's is too.
    pub(super) fn half_ready(&mut self, slot: usize, context: &mut Context<'_>) {
        self.slots[slot].state = State::Waiting;
        let (first, second) = match self.slots[slot].work {
            Work::FusedFirst { second: Some(second) } => (slot, second),
            Work::FusedSecond { first, .. } => (first, slot),
            _ => return,
        };
        if self.slots[first].state != State::Waiting || self.slots[second].state != State::Waiting {
            return;
        }
        let compared = std::mem::take(&mut self.slots[first].payload);
        let written = std::mem::take(&mut self.slots[second].payload);
        let buffers = [compared, written].into_iter().filter_map(Payload::into_buffer);
        self.slots[second].payload = Payload::Scattered(buffers.collect());
        if self.may_run(second, context) {
            self.submit(second, context);
        }
    }

    /// Ends a command with `status`, and the other half with it if it is one of a pair; none of its data is on the way any more.
    pub(super) fn fail(&mut self, slot: usize, status: Status) {
        match self.slots[slot].work {
            Work::FusedFirst { second: Some(other) } | Work::FusedSecond { first: other, .. } => {
                self.abandon(other, aborted_with(status));
            }
            Work::FusedFirst { second: None } => {
                self.open_first = None;
                self.queue.fail_first(status);
            }
            Work::Interpret | Work::Block(..) | Work::Unmap { .. } => {}
        }
        self.reply(slot, &Reply::status(status));
    }

    /// Ends a command that was not submitted with `status`, unless it failed by itself; at once or when its data has come.
    pub(super) fn abandon(&mut self, slot: usize, status: Status) {
        let held = &mut self.slots[slot];
        held.work = Work::Interpret;
        match held.state {
            State::Receiving { received } => held.state = State::Failed { received, status },
            State::Failed { .. } | State::Draining { .. } => {}
            State::NeedsBuffer | State::Ready => {
                self.backlog.retain(|waiting| *waiting != slot);
                self.starved.retain(|waiting| *waiting != slot);
                self.reply(slot, &Reply::status(status));
            }
            State::Free | State::Held | State::Waiting | State::Submitted => {
                self.reply(slot, &Reply::status(status));
            }
        }
    }

    /// The device finished a pair's request.
    pub(super) fn pair_completed(
        &mut self,
        first: usize,
        second: usize,
        block: BlockCommand,
        completion: Completion,
    ) {
        if completion.result == Err(IoError::NoMemory) {
            self.try_later(second, completion.payload);
            return;
        }
        let [compared, written] = fused_statuses(block.operation, completion.result);
        self.reply(first, &Reply::status(compared));
        self.reply(second, &Reply::status(written));
    }
}
