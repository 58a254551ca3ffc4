//! Answers of a target: data and completions.

use basalt_dma::{Buffer, BufferPool, Lent, Payload};
use basalt_nvme_wire::digest::crc32c;
use basalt_nvme_wire::opcode::Admin;
use basalt_nvme_wire::pdu::{DataTransfer, FLAG_LAST, FLAG_SUCCESS, Frame, Kind};
use basalt_nvme_wire::{Sqe, Status, fabrics};
use basalt_nvmf_target::Reply;
use zerocopy::IntoBytes;

use super::connection::Connection;
use crate::charge::charge_of_payload;
use crate::wire::Wire;

/// Submission queue head in the completion of a Connect that turned flow control off (oF 3.3, response).
const HEAD_NO_FLOW_CONTROL: u16 = 0xffff;

impl<W: Wire> Connection<W> {
    /// Data of a read, then its completion: the success flag where the host does without (TCP 3.3.2.2).
    pub(super) fn send_read(&mut self, slot: usize, mut payload: Payload, pool: &BufferPool) {
        let with_response = self.queue.has_flow_control();
        if let Payload::Lent(view) = &payload
            && self.digests.data
        {
            payload = Payload::Buffer(own_copy(view, pool));
        }
        self.push_data(slot, payload, with_response);
        if with_response {
            self.reply(slot, &Reply::SUCCESS);
        } else {
            self.release(slot);
        }
    }

    /// Data of an admin command, then its completion.
    pub(super) fn give(&mut self, slot: usize, data: &[u8], reply: &Reply) {
        if !data.is_empty() {
            let digest = self.push_data_header(slot, data.len(), true).then(|| crc32c(data));
            self.outlet.push_own(Buffer::copy_of(data));
            self.push_data_digest(digest);
        }
        self.reply(slot, reply);
    }

    fn push_data(&mut self, slot: usize, payload: Payload, with_response: bool) {
        let digest = self.push_data_header(slot, payload.len(), with_response).then(|| match &payload {
            Payload::Buffer(buffer) => crc32c(buffer),
            payload => crc32c(&payload.to_vec()),
        });
        self.slots.share.note(charge_of_payload(&payload));
        self.outlet.push_payload(payload);
        self.push_data_digest(digest);
    }

    /// Whether a digest is to follow the data.
    fn push_data_header(&mut self, slot: usize, length: usize, with_response: bool) -> bool {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let flags = if with_response { FLAG_LAST } else { FLAG_LAST | FLAG_SUCCESS };
        let frame = Frame::new(Kind::ControllerData, flags, self.digests, length, self.data_alignment);
        let command_id = self.slots[slot].command_id();
        let transfer = DataTransfer { command_id, transfer_tag: 0, offset: 0, length };
        self.outlet.push_header(&frame, &transfer.emit(&frame));
        frame.data_digest
    }

    fn push_data_digest(&mut self, digest: Option<u32>) {
        if let Some(digest) = digest {
            self.outlet.push_bytes(&digest.to_le_bytes());
        }
    }

    /// Queues a completion and ends the command.
    pub(super) fn reply(&mut self, slot: usize, reply: &Reply) {
        self.push_completion(slot, reply);
        self.release(slot);
    }

    /// Queues a completion.
    pub(super) fn push_completion(&mut self, slot: usize, reply: &Reply) {
        let sqe = &self.slots[slot].sqe;
        let (command_id, sq_head) = (sqe.command_id.get(), self.head_told(sqe));
        self.push_entry(command_id, sq_head, reply);
    }

    /// Answers a command that is not looked at: it has its place in the queue, but none here.
    pub(super) fn refuse_entry(&mut self, sqe: &Sqe, status: Status) {
        self.queue.skip(sqe, status);
        self.note_adjacent();
        self.push_entry(sqe.command_id.get(), self.head_told(sqe), &Reply::status(status));
    }

    /// The submission queue head in the completion of `sqe`.
    fn head_told(&self, sqe: &Sqe) -> u16 {
        match self.queue.has_flow_control() {
            true => u16::try_from(self.sq_head).unwrap_or(0),
            false if is_connect(sqe) => HEAD_NO_FLOW_CONTROL,
            false => 0,
        }
    }

    fn push_entry(&mut self, command_id: u16, sq_head: u16, reply: &Reply) {
        let entry = reply.entry(command_id, sq_head);
        let frame = Frame::new(Kind::Response, 0, self.digests, 0, 1);
        let mut header = [0; 24];
        header[..8].copy_from_slice(&frame.emit());
        header[8..].copy_from_slice(entry.as_bytes());
        self.outlet.push_header(&frame, &header);
    }

    /// Completes event requests whose events happened.
    pub(super) fn push_events(&mut self) {
        while let Some((command, reply)) = self.queue.next_event() {
            if let Some(slot) = self.slots.find_held(command.0) {
                self.reply(slot, &reply);
            }
        }
    }
}

fn is_connect(sqe: &Sqe) -> bool {
    sqe.opcode == Admin::Fabrics.code()
        && matches!(fabrics::Command::parse(sqe), fabrics::Command::Connect(_))
}

/// Memory of our own with what a view shows: of a pool, or of the heap where that has none now. Those are at most as many as the queue has
/// entries.
fn own_copy(view: &Lent, pool: &BufferPool) -> Buffer {
    let mut buffer = pool.take(view.len()).unwrap_or_else(|| Buffer::zeroed(view.len()));
    view.copy_to(0, &mut buffer);
    buffer
}
