//! Commands as requests to devices: submitted, tried again, completed.

use basalt_bdev::{Capabilities, Completion, IoError, Operation, Request};
use basalt_dma::Payload;
use basalt_nvme_wire::Status;
use basalt_nvmf_target::{Reply, status_of};
use basalt_reactor::Progress;

use super::connection::{Connection, Context, Phase, TAG_SLOT_BITS};
use super::devices::NotSubmitted;
use super::slot::{State, Work};
use crate::wire::Wire;

impl<W: Wire> Connection<W> {
    /// Gives a command to its device, or puts it into the backlog.
    pub(super) fn submit(&mut self, slot: usize, context: &mut Context<'_>) {
        if !self.try_submit(slot, context) {
            self.backlog.push_back(slot);
        }
    }

    fn try_submit(&mut self, slot: usize, context: &mut Context<'_>) -> bool {
        let tag = self.tag_base | slot as u64;
        let held = &mut self.slots[slot];
        held.state = State::Ready;
        let (request, device) = match &mut held.work {
            Work::Interpret | Work::FusedFirst { .. } => unreachable!("this command is no request"),
            Work::Block(block, device) | Work::FusedSecond { block, device, .. } => {
                // Data that a digest covers must stand still: it is read into memory of our own. What is lent instead is copied when the
                // whole batch has been asked for, and so is in the cache by then.
                let lends = || {
                    let namespace = self.queue.namespaces().get(block.slot.0);
                    namespace.is_some_and(|namespace| {
                        namespace.device().info().capabilities().contains(Capabilities::LEND)
                    })
                };
                let reads = block.operation == Operation::Read && held.payload.is_empty();
                if reads && self.digests.data && !lends() {
                    let Some(buffer) = context.pool.take(block.bytes as usize) else { return false };
                    held.payload = Payload::Buffer(buffer);
                }
                let payload = std::mem::take(&mut held.payload);
                let (operation, lba, blocks) = (block.operation, block.lba, block.blocks);
                (Request { tag, operation, lba, blocks, payload }, *device)
            }
            Work::Unmap { ranges, next, device } => {
                let Payload::Buffer(data) = &held.payload else { unreachable!("ranges are kept") };
                let Some(at) = (*next..ranges.count).find(|at| ranges.request(data, *at).is_some()) else {
                    self.reply(slot, &Reply::SUCCESS);
                    return true;
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
                true
            }
            Err(NotSubmitted::Closed) => {
                self.fail(slot, Status::INVALID_NAMESPACE.dnr());
                true
            }
            Err(NotSubmitted::Full(rejected)) => {
                let held = &mut self.slots[slot];
                if let Work::Block(..) | Work::FusedSecond { .. } = held.work {
                    held.payload = rejected.0.payload;
                }
                false
            }
        }
    }

    /// Tries again what had to wait.
    pub(crate) fn retry(&mut self, context: &mut Context<'_>) -> Progress {
        let mut progress = Progress::Idle;
        for _ in 0..self.backlog.len() {
            let Some(slot) = self.backlog.front().copied() else { break };
            let done = match self.slots[slot].state {
                State::NeedsBuffer => self.try_ask(slot, context.pool),
                _ => !self.may_run(slot, context) || self.try_submit(slot, context),
            };
            if !done {
                break;
            }
            self.backlog.pop_front();
            progress = Progress::Busy;
        }
        progress
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

    /// The device had no buffer: waits until one is free.
    pub(super) fn try_later(&mut self, slot: usize, payload: Payload) {
        let held = &mut self.slots[slot];
        (held.payload, held.state) = (payload, State::Ready);
        self.backlog.push_back(slot);
    }
}
