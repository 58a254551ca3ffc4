//! Commands as requests to devices: submitted, tried again, completed.

use basalt_bdev::{Completion, IoError, Operation, Request};
use basalt_dma::Payload;
use basalt_nvme_wire::Status;
use basalt_nvmf_target::{Reply, status_of};
use basalt_reactor::Progress;

use super::connection::{Connection, Context, Phase, TAG_SLOT_BITS};
use super::devices::NotSubmitted;
use super::slot::{State, Work};
use crate::charge::charge_of;
use crate::wire::Wire;

/// What became of a command that was to go to its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Submission {
    /// The device has it, or it is answered.
    Done,
    /// The device takes no more now.
    QueueFull,
    /// There is no memory for it now, or others need it more.
    NoMemory,
}

impl<W: Wire> Connection<W> {
    /// Gives a command to its device, or lets it wait for that.
    pub(super) fn submit(&mut self, slot: usize, context: &mut Context<'_>) {
        self.slots[slot].state = State::Ready;
        if !self.starved.is_empty() && self.wants_memory(slot, context.devices) {
            self.starved.push_back(slot);
            return;
        }
        match self.try_submit(slot, context) {
            Submission::Done => {}
            Submission::QueueFull => self.backlog.push_back(slot),
            Submission::NoMemory => self.starved.push_back(slot),
        }
    }

    pub(super) fn try_submit(&mut self, slot: usize, context: &mut Context<'_>) -> Submission {
        if self.wants_memory(slot, context.devices) && !self.take_read_memory(slot, context) {
            return Submission::NoMemory;
        }
        let tag = self.tag_base | slot as u64;
        let held = &mut self.slots[slot];
        held.state = State::Ready;
        let (request, device) = match &mut held.work {
            Work::Interpret | Work::FusedFirst { .. } => unreachable!("this command is no request"),
            Work::Block(block, device) | Work::FusedSecond { block, device, .. } => {
                let payload = std::mem::take(&mut held.payload);
                let (operation, lba, blocks) = (block.operation, block.lba, block.blocks);
                (Request { tag, operation, lba, blocks, payload }, *device)
            }
            Work::Unmap { ranges, next, device } => {
                let Payload::Buffer(data) = &held.payload else { unreachable!("ranges are kept") };
                let Some(at) = (*next..ranges.count).find(|at| ranges.request(data, *at).is_some()) else {
                    self.reply(slot, &Reply::SUCCESS);
                    return Submission::Done;
                };
                *next = at;
                let Some((lba, blocks)) = ranges.request(data, at) else { unreachable!("found above") };
                (Request::unmap(tag, lba, blocks), *device)
            }
        };
        match context.devices.submit(device, request) {
            Ok(()) => {
                self.slots[slot].state = State::Submitted;
                self.running += 1;
                Submission::Done
            }
            Err(NotSubmitted::Closed) => {
                self.fail(slot, Status::INVALID_NAMESPACE.dnr());
                Submission::Done
            }
            Err(NotSubmitted::Full(rejected)) => {
                let held = &mut self.slots[slot];
                if let Work::Block(..) | Work::FusedSecond { .. } = held.work {
                    held.payload = rejected.0.payload;
                }
                Submission::QueueFull
            }
        }
    }

    /// Memory for a read: our own where a digest covers the data, otherwise the device takes it. What is lent is copied when the whole
    /// batch has been asked for, and so is in the cache by then: until then its memory is only counted.
    fn take_read_memory(&mut self, slot: usize, context: &Context<'_>) -> bool {
        let Work::Block(block, device) = self.slots[slot].work else { return true };
        let bytes = block.bytes as usize;
        if !self.digests.data || context.devices.lends(device) {
            return self.slots.charge(slot, charge_of(bytes));
        }
        let Some(buffer) = self.take_buffer(slot, bytes, context.pool) else { return false };
        self.slots[slot].payload = Payload::Buffer(buffer);
        true
    }

    /// Tries again what had to wait: first what holds memory.
    pub(crate) fn retry(&mut self, context: &mut Context<'_>) -> Progress {
        let mut progress = Progress::Idle;
        if self.phase == Phase::Over {
            return progress;
        }
        for _ in 0..self.backlog.len() {
            let Some(slot) = self.backlog.front().copied() else { break };
            if self.may_run(slot, context) {
                match self.try_submit(slot, context) {
                    Submission::Done => {}
                    Submission::QueueFull => break,
                    Submission::NoMemory => self.starved.push_back(slot),
                }
            }
            self.backlog.pop_front();
            progress = Progress::Busy;
        }
        progress.or(self.retry_starved(context))
    }

    /// A device finished a request.
    pub(crate) fn completed(&mut self, completion: Completion, context: &mut Context<'_>) {
        self.running -= 1;
        let slot = usize::try_from(completion.tag & ((1 << TAG_SLOT_BITS) - 1)).unwrap_or(usize::MAX);
        if self.phase == Phase::Over {
            self.release(slot);
            return;
        }
        debug_assert_eq!(self.slots[slot].state, State::Submitted);
        if !self.asked_aborts.is_empty()
            && (self.slots[slot].aborted.is_some() || completion.result == Err(IoError::Aborted))
        {
            self.note_aborted(slot);
        }
        if let Some(status) = self.slots[slot].aborted {
            self.fail(slot, status);
            self.settle_abort_orders(context.devices);
            return;
        }
        match &mut self.slots[slot].work {
            Work::Interpret | Work::FusedFirst { .. } => unreachable!("this command is no request"),
            Work::FusedSecond { first, block, .. } => {
                let (first, block) = (*first, *block);
                self.pair_completed(first, slot, block, completion);
            }
            Work::Block(block, _) => {
                let operation = block.operation;
                if completion.result == Err(IoError::NoMemory) {
                    self.try_later(slot, completion.payload);
                } else if operation == Operation::Read && completion.result.is_ok() {
                    self.send_read(slot, completion.payload, context.pool);
                } else {
                    self.reply(slot, &Reply::status(status_of(operation, completion.result)));
                }
            }
            Work::Unmap { next, .. } => {
                *next += 1;
                if completion.result.is_ok() {
                    self.submit(slot, context);
                } else {
                    self.reply(slot, &Reply::status(status_of(Operation::Unmap, completion.result)));
                }
            }
        }
    }

    /// The device had no memory for it: tries again later.
    pub(super) fn try_later(&mut self, slot: usize, payload: Payload) {
        let held = &mut self.slots[slot];
        (held.payload, held.state) = (payload, State::Ready);
        self.backlog.push_back(slot);
    }
}
