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
        if self.pieces.is_empty() {
            debug_assert_eq!((self.skip, self.head), (0, self.bytes.len()), "all is sent");
            self.bytes.clear();
            self.head = 0;
        } else if self.head >= COMPACT_AT {
            self.bytes.drain(..self.head);
            self.head = 0;
        }
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
