//! The sending half of a connection, for both ends: PDUs queued as pieces and sent in few calls.

use std::collections::VecDeque;

use basalt_dma::{Buffer, Payload, Segment};
use basalt_nvme_wire::digest::crc32c;
use basalt_nvme_wire::pdu::Frame;
use basalt_reactor::{Progress, Sent, SocketError};

use crate::charge::charge_of_payload;
use crate::wire::Wire;

/// Pieces that one call sends at most; the rest follows with the next.
const PIECES_PER_SEND: usize = 512;
/// Sent header bytes that are kept before the vector is moved down.
const COMPACT_AT: usize = 64 << 10;
/// A payload begins with a block, and blocks have at most so many bytes.
const BLOCK_BYTES_MAX: usize = 4096;
/// Calls that one flush makes at most, so that one connection cannot hold the reactor.
const SENDS_PER_FLUSH: usize = 4;

#[derive(Debug)]
enum Piece {
    /// The next so many bytes of `bytes`.
    Bytes(usize),
    /// A payload's bytes, sent from where they are.
    Payload(Payload),
    /// Bytes that were made for output.
    Own(Buffer),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Bytes(len) => *len,
            Piece::Payload(payload) => payload.len(),
            Piece::Own(buffer) => buffer.len(),
        }
    }
}

/// What is to be sent, in order.
#[derive(Debug, Default)]
pub(crate) struct Outlet {
    pieces: VecDeque<Piece>,
    /// Bytes of headers; those before `head` are sent.
    bytes: Vec<u8>,
    head: usize,
    /// Bytes of the first piece that are sent.
    skip: usize,
    /// What the payloads hold of a pool.
    memory: usize,
    /// Bytes in pieces that were made for output.
    own: usize,
}

impl Outlet {
    /// Whether everything is sent.
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Pieces that wait.
    pub(crate) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes that payloads hold of a pool until they are sent.
    pub(crate) fn memory(&self) -> usize {
        self.memory
    }

    /// Bytes that were made for output and are not sent.
    pub(crate) fn own_bytes(&self) -> usize {
        self.own + self.bytes.len() - self.head
    }

    /// Queues a PDU's header with what belongs to it up to its data: digest and padding.
    pub(crate) fn push_header(&mut self, frame: &Frame, header: &[u8]) {
        debug_assert_eq!(header.len(), frame.header_len());
        let digest = frame.header_digest.then(|| crc32c(header).to_le_bytes());
        let digest = digest.as_ref().map_or(&[][..], |digest| &digest[..]);
        let padding = frame.prefix_len() - header.len() - digest.len();
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(digest);
        self.bytes.resize(self.bytes.len() + padding, 0);
        self.count_bytes(frame.prefix_len());
    }

    /// Queues bytes.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.count_bytes(bytes.len());
    }

    /// Queues bytes that `append` appends.
    pub(crate) fn push_with(&mut self, append: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        append(&mut self.bytes);
        self.count_bytes(self.bytes.len() - before);
    }

    /// Queues a payload, which is dropped once it is sent.
    pub(crate) fn push_payload(&mut self, payload: Payload) {
        if !payload.is_empty() {
            self.memory += charge_of_payload(&payload);
            self.pieces.push_back(Piece::Payload(payload));
        }
    }

    /// Queues bytes that were made for output.
    pub(crate) fn push_own(&mut self, buffer: Buffer) {
        self.own += buffer.len();
        self.pieces.push_back(Piece::Own(buffer));
    }

    fn count_bytes(&mut self, count: usize) {
        match self.pieces.back_mut() {
            Some(Piece::Bytes(len)) => *len += count,
            _ => self.pieces.push_back(Piece::Bytes(count)),
        }
    }

    /// Sends what the wire takes.
    pub(crate) fn flush(&mut self, wire: &impl Wire) -> Result<Progress, SocketError> {
        let mut progress = Progress::Idle;
        for _ in 0..SENDS_PER_FLUSH {
            if self.pieces.is_empty() {
                return Ok(progress);
            }
            let (sent, offered) = self.send_once(wire)?;
            match sent {
                Sent::Bytes(count) => {
                    progress = Progress::Busy;
                    self.advance(count);
                    if count < offered {
                        return Ok(progress);
                    }
                }
                Sent::Nothing => return Ok(progress),
            }
        }
        Ok(progress)
    }

    fn send_once(&self, wire: &impl Wire) -> Result<(Sent, usize), SocketError> {
        let mut gather =
            Gather { segments: [Segment::EMPTY; PIECES_PER_SEND], count: 0, offered: 0, skip: self.skip };
        let mut at = self.head;
        for piece in self.pieces.iter().take(PIECES_PER_SEND) {
            match piece {
                Piece::Bytes(len) => {
                    gather.push(Segment::new(&self.bytes[at..at + len]));
                    at += len;
                }
                Piece::Payload(payload) => payload.segments().for_each(|segment| gather.push(segment)),
                Piece::Own(buffer) => gather.push(Segment::new(buffer)),
            }
        }
        wire.send(&gather.segments[..gather.count]).map(|sent| (sent, gather.offered))
    }

    fn advance(&mut self, count: usize) {
        let mut left = self.skip + count;
        while let Some(piece) = self.pieces.front() {
            let len = piece.len();
            if left < len {
                break;
            }
            left -= len;
            match piece {
                Piece::Bytes(len) => self.head += len,
                Piece::Payload(payload) => self.memory -= charge_of_payload(payload),
                Piece::Own(buffer) => self.own -= buffer.len(),
            }
            self.pieces.pop_front();
        }
        self.skip = left;
        self.complete_block();
        if self.pieces.is_empty() {
            debug_assert_eq!((self.skip, self.head), (0, self.bytes.len()), "all is sent");
            self.bytes.clear();
            self.head = 0;
        } else if self.head >= COMPACT_AT {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
    }

    /// Copies the rest of a block of a device's memory of which a part is sent: a write may come before the wire takes more, and what a
    /// host reads of one block is to be of one write (AWUN).
    fn complete_block(&mut self) {
        let Some(Piece::Payload(Payload::Lent(view))) = self.pieces.front() else { return };
        let end = self.skip.next_multiple_of(BLOCK_BYTES_MAX).min(view.len());
        if end == self.skip || view.still().is_some() {
            return;
        }
        let mut rest = Buffer::zeroed(end - self.skip);
        view.copy_to(self.skip, &mut rest);
        let after = (end < view.len()).then(|| view.slice(end, view.len() - end));
        self.pieces.pop_front();
        if let Some(after) = after {
            self.pieces.push_front(Piece::Payload(Payload::Lent(after)));
        }
        self.own += rest.len();
        self.pieces.push_front(Piece::Own(rest));
        self.skip = 0;
    }
}

/// The vector of one call.
struct Gather<'a> {
    segments: [Segment<'a>; PIECES_PER_SEND],
    count: usize,
    offered: usize,
    /// Bytes that were sent before.
    skip: usize,
}

impl<'a> Gather<'a> {
    fn push(&mut self, segment: Segment<'a>) {
        let skipped = self.skip.min(segment.len());
        self.skip -= skipped;
        let rest = segment.skip(skipped);
        if !rest.is_empty() && self.count < PIECES_PER_SEND {
            self.segments[self.count] = rest;
            self.offered += rest.len();
            self.count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::io::IoSliceMut;
    use std::sync::Arc;

    use basalt_dma::{MemoryLender, SharedMemory};
    use basalt_reactor::Received;

    use super::*;

    /// Takes so many bytes with each call.
    struct Narrow {
        taken: RefCell<Vec<u8>>,
        room: Cell<usize>,
    }

    impl Wire for Narrow {
        fn receive(&self, _: &mut [IoSliceMut<'_>]) -> Result<Received, SocketError> {
            Ok(Received::Nothing)
        }

        fn send(&self, sources: &[Segment<'_>]) -> Result<Sent, SocketError> {
            let mut bytes = Vec::new();
            sources.iter().for_each(|source| source.append_to(&mut bytes));
            bytes.truncate(self.room.get());
            self.taken.borrow_mut().extend(&bytes);
            Ok(if bytes.is_empty() { Sent::Nothing } else { Sent::Bytes(bytes.len()) })
        }

        fn shutdown(&self) {}

        fn has_peer_ended(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_block_that_is_sent_in_parts_is_of_one_write() {
        const BYTES: usize = 5 * BLOCK_BYTES_MAX + 512;
        for room in [1, 511, 512, 4000, 4095, 4096, 4097, 12_000, BYTES] {
            let memory = Arc::new(SharedMemory::zeroed(BYTES).unwrap());
            let mut outlet = Outlet::default();
            outlet.push_bytes(b"header");
            outlet.push_payload(Payload::Lent(MemoryLender::new(Arc::clone(&memory)).lend(0, BYTES)));
            outlet.push_bytes(b"end");
            let wire = Narrow { taken: RefCell::default(), room: Cell::new(room) };
            let mut writes = 0_u8;
            while !outlet.is_empty() {
                outlet.flush(&wire).unwrap();
                writes = writes.wrapping_add(1);
                memory.write(0, &Segment::new(&[writes; BYTES]));
            }
            assert_eq!((outlet.own_bytes(), outlet.memory()), (0, 0));
            let taken = wire.taken.borrow();
            assert_eq!(taken.len(), b"header".len() + BYTES + b"end".len());
            let payload = &taken[b"header".len()..b"header".len() + BYTES];
            for (number, block) in payload.chunks(512).enumerate() {
                assert!(block.iter().all(|byte| *byte == block[0]), "room {room}, block {number} is torn");
            }
        }
    }
}
