//! Buffers for commands: of the connection's share, waited for in order.

use basalt_bdev::Operation;
use basalt_dma::{Buffer, BufferPool, Payload};
use basalt_nvme_wire::pdu::{Frame, Kind, ReadyToTransfer};
use basalt_reactor::Progress;

use super::connection::{Connection, Context, Phase};
use super::devices::Devices;
use super::request::Submission;
use super::slot::{State, Work};
use crate::charge::charge_of;
use crate::wire::Wire;

impl<W: Wire> Connection<W> {
    /// A buffer for a command; `None` if there is none now or others need it more.
    pub(super) fn take_buffer(&mut self, slot: usize, len: usize, pool: &BufferPool) -> Option<Buffer> {
        if !self.slots.charge(slot, charge_of(len)) {
            return None;
        }
        let buffer = pool.take(len);
        if buffer.is_none() {
            self.slots.discharge(slot);
        }
        buffer
    }

    /// A copy of in-capsule data, which is here and nowhere else: without a buffer of the pool it gets one of its own, of which there are
    /// at most as many as the queue has entries.
    pub(super) fn copy_capsule(&mut self, slot: usize, data: &[u8], pool: &BufferPool) -> Buffer {
        match self.take_buffer(slot, data.len(), pool) {
            Some(mut buffer) => {
                buffer.copy_from_slice(data);
                buffer
            }
            None => Buffer::copy_of(data),
        }
    }

    /// Asks the host for a command's data (R2T, TCP 3.3.2.1), now or when there is a buffer for it.
    pub(super) fn ask_for(&mut self, slot: usize, length: u32, work: Work, pool: &BufferPool) {
        let held = &mut self.slots[slot];
        (held.work, held.length, held.state) = (work, length, State::NeedsBuffer);
        if !self.starved.is_empty() || !self.try_ask(slot, pool) {
            self.starved.push_back(slot);
        }
    }

    /// False if there is no buffer now.
    fn try_ask(&mut self, slot: usize, pool: &BufferPool) -> bool {
        let length = self.slots[slot].length;
        let Some(buffer) = self.take_buffer(slot, length as usize, pool) else { return false };
        let held = &mut self.slots[slot];
        held.payload = Payload::Buffer(buffer);
        held.state = State::Receiving { received: 0 };
        let command_id = held.command_id();
        if self.receiving == 0 {
            self.largest_expected = 0;
        }
        self.receiving += 1;
        self.largest_expected = self.largest_expected.max(length);
        let frame = Frame::new(Kind::ReadyToTransfer, 0, self.digests, 0, 1);
        let transfer_tag = u16::try_from(slot).unwrap_or(u16::MAX);
        let header = ReadyToTransfer { command_id, transfer_tag, offset: 0, length }.emit(&frame);
        self.outlet.push_header(&frame, &header);
        true
    }

    /// Whether a command that is ready needs memory before its device can have it: a read does unless the device lends its own, and then
    /// as well if a digest covers the data, which is copied to stand still.
    pub(super) fn wants_memory(&self, slot: usize, devices: &Devices) -> bool {
        let held = &self.slots[slot];
        match held.work {
            Work::Block(block, device) if block.operation == Operation::Read => {
                held.charged == 0 && (self.digests.data || !devices.lends(device))
            }
            _ => false,
        }
    }

    /// Tries again what waits for memory.
    pub(super) fn retry_starved(&mut self, context: &mut Context<'_>) -> Progress {
        if self.phase != Phase::Running {
            return Progress::Idle;
        }
        let mut progress = Progress::Idle;
        while let Some(slot) = self.starved.front().copied() {
            let served = match self.slots[slot].state {
                State::NeedsBuffer => self.try_ask(slot, context.pool),
                _ => {
                    let submission = match self.may_run(slot, context) {
                        true => self.try_submit(slot, context),
                        false => Submission::Done,
                    };
                    if submission == Submission::QueueFull {
                        self.backlog.push_back(slot);
                    }
                    submission != Submission::NoMemory
                }
            };
            if !served {
                break;
            }
            // Ending a command does not end those that wait before others.
            debug_assert_eq!(self.starved.front(), Some(&slot));
            self.starved.pop_front();
            progress = Progress::Busy;
        }
        progress
    }
}
