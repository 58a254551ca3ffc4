//! The receiving half of a connection, for both ends: bytes to PDUs.

use std::io::IoSliceMut;

use basalt_nvme_wire::digest::{DIGEST_LEN, crc32c};
use basalt_nvme_wire::pdu::{COMMON_LEN, Digests, FatalStatus, Frame, Kind, Receiver, Violation};
use basalt_reactor::{Received, SocketError};

use crate::wire::Wire;

/// Most bytes of data in PDUs that a receiver takes; more is a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataLimits {
    /// In a command capsule.
    pub(crate) capsule: u32,
    /// In a data PDU.
    pub(crate) transfer: u32,
}

/// Cuts a byte stream into PDUs.
#[derive(Debug)]
pub(crate) struct Inlet {
    receiver: Receiver,
    limits: DataLimits,
    digests: Digests,
    /// The start of a PDU whose rest has not come yet. Empty most of the time.
    carry: Vec<u8>,
    /// What is carried is more than that: it is to be gone through before more is received.
    held_back: bool,
    /// The data PDU whose data is coming.
    body: Option<Body>,
}

/// A PDU's header (and for capsules and terminations its data) at the start of the bytes that were scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scanned {
    pub(crate) frame: Frame,
    /// Bytes that belong to it; those of a data PDU end where its data begins.
    pub(crate) consumed: usize,
    /// False if a capsule's data has another digest than the one that came with it.
    pub(crate) data_intact: bool,
}

/// What came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// Bytes at the start of the staging area are to be scanned (it includes what was carried), after `direct` bytes went
    /// straight to the destination.
    Bytes { direct: usize, staged: usize },
    /// Nothing.
    Nothing,
    /// The peer sends no more.
    End,
}

impl Inlet {
    pub(crate) fn new(receiver: Receiver, limits: DataLimits) -> Self {
        Self {
            receiver,
            limits,
            digests: Digests::default(),
            carry: Vec::new(),
            held_back: false,
            body: None,
        }
    }

    /// What was negotiated: holds for every PDU after the initialization.
    pub(crate) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    pub(crate) fn body(&mut self) -> Option<&mut Body> {
        self.body.as_mut()
    }

    pub(crate) fn set_body(&mut self, body: Body) {
        debug_assert!(self.body.is_none(), "data of one PDU at a time");
        self.body = Some(body);
    }

    /// The data on its way is not wanted any more.
    pub(crate) fn forget_body(&mut self) {
        self.body = None;
    }

    pub(crate) fn take_body(&mut self) -> Option<Body> {
        self.body.take()
    }

    /// Receives once: into `direct` (the destination of the current data, if any), then into `staging`.
    pub(crate) fn receive(
        &mut self,
        wire: &impl Wire,
        direct: Option<&mut [u8]>,
        staging: &mut [u8],
    ) -> Result<Filled, SocketError> {
        let carried = self.carry.len();
        staging[..carried].copy_from_slice(&self.carry);
        let free = &mut staging[carried..];
        let (received, room) = match direct {
            Some(direct) if !direct.is_empty() => {
                debug_assert_eq!(
                    carried, 0,
                    "data that is still to come is not preceded by a header's start"
                );
                let room = direct.len();
                (wire.receive(&mut [IoSliceMut::new(direct), IoSliceMut::new(free)])?, room)
            }
            _ => (wire.receive(&mut [IoSliceMut::new(free)])?, 0),
        };
        match received {
            Received::Bytes(count) => {
                self.carry.clear();
                let direct = count.min(room);
                Ok(Filled::Bytes { direct, staged: carried + count - direct })
            }
            Received::Nothing => Ok(Filled::Nothing),
            Received::End => Ok(Filled::End),
        }
    }

    /// Keeps the start of a PDU until its rest comes.
    pub(crate) fn keep(&mut self, rest: &[u8]) {
        debug_assert!(self.carry.is_empty(), "kept once per receive");
        self.carry.extend_from_slice(rest);
    }

    /// Keeps bytes that are not to be gone through now.
    pub(crate) fn hold_back(&mut self, rest: &[u8]) {
        self.keep(rest);
        self.held_back = !rest.is_empty();
    }

    /// Whether bytes wait to be gone through.
    pub(crate) fn holds_back(&self) -> bool {
        self.held_back
    }

    /// Puts bytes that were held back at the start of `staging`; answers how many.
    pub(crate) fn take_held_back(&mut self, staging: &mut [u8]) -> Option<usize> {
        if !self.held_back {
            return None;
        }
        self.held_back = false;
        let carry = std::mem::take(&mut self.carry);
        staging[..carry.len()].copy_from_slice(&carry);
        Some(carry.len())
    }

    /// The PDU at the start of `bytes`; `None` until enough of it is there.
    pub(crate) fn scan(&self, bytes: &[u8]) -> Result<Option<Scanned>, Violation> {
        let Some(common) = bytes.first_chunk::<COMMON_LEN>() else { return Ok(None) };
        let frame = Frame::parse(common, self.receiver, self.digests, u32::MAX)?;
        let limit = match frame.kind {
            Kind::Command => self.limits.capsule,
            Kind::HostData | Kind::ControllerData => self.limits.transfer,
            // Bounded by their frames.
            Kind::InitializeRequest
            | Kind::InitializeResponse
            | Kind::HostTermination
            | Kind::ControllerTermination
            | Kind::Response
            | Kind::ReadyToTransfer => u32::MAX,
        };
        if frame.data_len > limit {
            return Err(Violation::plain(FatalStatus::LimitExceeded));
        }
        let streams = matches!(frame.kind, Kind::HostData | Kind::ControllerData);
        let needed = if streams { frame.prefix_len() } else { frame.total_len() };
        if bytes.len() < needed {
            return Ok(None);
        }
        check_header_digest(&frame, bytes)?;
        let data_intact = streams || !frame.data_digest || data_digest_matches(&frame, bytes);
        Ok(Some(Scanned { frame, consumed: needed, data_intact }))
    }
}

fn digest_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk::<DIGEST_LEN>().map_or(0, |digest| u32::from_le_bytes(*digest))
}

fn check_header_digest(frame: &Frame, bytes: &[u8]) -> Result<(), Violation> {
    if !frame.header_digest {
        return Ok(());
    }
    let sent = digest_at(bytes, frame.header_len());
    if sent == crc32c(&bytes[..frame.header_len()]) {
        return Ok(());
    }
    Err(Violation { status: FatalStatus::HeaderDigest, information: sent })
}

fn data_digest_matches(frame: &Frame, bytes: &[u8]) -> bool {
    let end = frame.prefix_len() + frame.data_len as usize;
    digest_at(bytes, end) == crc32c(&bytes[frame.prefix_len()..end])
}

/// The data of a data PDU on its way into a command's buffer.
#[derive(Debug)]
pub(crate) struct Body {
    /// Which command.
    pub(crate) slot: usize,
    /// Whether the PDU said that it is the last one.
    pub(crate) last: bool,
    /// Whether it said that the command succeeded.
    pub(crate) success: bool,
    /// Where the PDU's data begins and ends in the buffer, and how far it has come.
    start: usize,
    end: usize,
    at: usize,
    /// The digest behind the data, as far as it has come.
    digest: Option<([u8; DIGEST_LEN], usize)>,
}

impl Body {
    pub(crate) fn new(slot: usize, start: usize, frame: &Frame) -> Self {
        Self {
            slot,
            last: frame.flags & basalt_nvme_wire::pdu::FLAG_LAST != 0,
            success: frame.flags & basalt_nvme_wire::pdu::FLAG_SUCCESS != 0,
            start,
            end: start + frame.data_len as usize,
            at: start,
            digest: frame.data_digest.then_some(([0; DIGEST_LEN], 0)),
        }
    }

    /// The part of the buffer that is still to be filled.
    pub(crate) fn gap<'a>(&self, destination: &'a mut [u8]) -> &'a mut [u8] {
        &mut destination[self.at..self.end]
    }

    /// Bytes of data that are still to come.
    pub(crate) fn missing(&self) -> usize {
        self.end - self.at
    }

    /// Where the PDU's data ends in the buffer.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// Notes bytes that were received straight into the gap.
    pub(crate) fn filled(&mut self, count: usize) {
        self.at += count;
        debug_assert!(self.at <= self.end);
    }

    /// Takes data and digest from `bytes`; answers how many it took.
    pub(crate) fn take(&mut self, destination: &mut [u8], bytes: &[u8]) -> usize {
        let data = self.missing().min(bytes.len());
        self.gap(destination)[..data].copy_from_slice(&bytes[..data]);
        self.at += data;
        let Some((digest, have)) = &mut self.digest else { return data };
        if self.at < self.end {
            return data;
        }
        let tail = (DIGEST_LEN - *have).min(bytes.len() - data);
        digest[*have..*have + tail].copy_from_slice(&bytes[data..data + tail]);
        *have += tail;
        data + tail
    }

    /// Whether data and digest are there.
    pub(crate) fn is_complete(&self) -> bool {
        self.at == self.end && self.digest.is_none_or(|(_, have)| have == DIGEST_LEN)
    }

    /// Whether the digest is that of the data.
    pub(crate) fn is_intact(&self, destination: &[u8]) -> bool {
        self.digest.is_none_or(|(digest, _)| {
            u32::from_le_bytes(digest) == crc32c(&destination[self.start..self.end])
        })
    }
}
