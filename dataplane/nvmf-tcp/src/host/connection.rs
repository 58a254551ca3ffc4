//! One connection of a host: commands out, data and completions in.

use std::collections::VecDeque;

use basalt_dma::{Buffer, Lent, Payload};
use basalt_nvme_wire::digest::{Crc32c, crc32c};
use basalt_nvme_wire::pdu::{
    DataTransfer, Digests, FLAG_LAST, FatalStatus, Frame, INITIALIZE_LEN, InitializeRequest,
    InitializeResponse, Kind, ReadyToTransfer, Receiver, SHORT_LEN, Termination, Violation,
};
use basalt_nvme_wire::{Cqe, Sgl, Sqe, Status};
use basalt_nvmf_host::{Command, Data, FusedPair, Outcome, QueueError};
use basalt_reactor::Progress;
use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use crate::inlet::{Body, DataLimits, Filled, Inlet, Scanned};
use crate::outlet::Outlet;
use crate::wire::Wire;

/// A command, or a fused pair, that a queue did not take.
#[derive(Debug)]
pub enum Refused<C = Command> {
    /// As many commands are outstanding as the queue has entries for; what was given comes back.
    Full(Box<C>),
    /// The queue is over.
    Over(QueueError),
}

/// Largest transfer in one data PDU that a host takes.
const TRANSFER_BYTES_MAX: u32 = 64 << 20;
/// While data of this size is expected, less is received at once, so that most of it goes straight to its buffer.
const STAGED_WHILE_DIRECT: usize = 12 << 10;
/// Pieces of output beyond which nothing more is received.
const CONGESTED_PIECES: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The initialization request is on its way.
    Initializing,
    Running,
    Over(QueueError),
}

#[derive(Debug)]
enum SlotData {
    None,
    /// Kept until the command's end; views of it are sent.
    Out(Lent),
    In {
        buffer: Buffer,
        received: usize,
    },
}

#[derive(Debug)]
struct Slot {
    used: bool,
    tag: u64,
    sqe: Sqe,
    data: SlotData,
    /// Data came damaged.
    damaged: bool,
}

/// One connection of a host over a byte stream.
#[derive(Debug)]
pub(crate) struct Connection<W> {
    wire: W,
    phase: Phase,
    inlet: Inlet,
    outlet: Outlet,
    digests: Digests,
    host_data_max: u32,
    in_capsule_max: u32,
    slots: Vec<Slot>,
    free: Vec<u16>,
    /// Commands that wait for the initialization.
    early: VecDeque<u16>,
    outstanding: usize,
    /// Outstanding commands with large data for this host.
    large_reads: usize,
}

impl<W: Wire> Connection<W> {
    /// Begins to initialize a connection for `depth` outstanding commands.
    pub(crate) fn new(wire: W, digests: Digests, depth: u16, in_capsule_max: u32) -> Self {
        let limits = DataLimits { capsule: 0, transfer: TRANSFER_BYTES_MAX };
        let mut outlet = Outlet::default();
        let request = InitializeRequest { data_alignment: 4, digests, r2t_max: 1 };
        outlet.push_bytes(&request.emit());
        let slot = || Slot { used: false, tag: 0, sqe: Sqe::default(), data: SlotData::None, damaged: false };
        Self {
            wire,
            phase: Phase::Initializing,
            inlet: Inlet::new(Receiver::Host, limits),
            outlet,
            digests,
            host_data_max: 4096,
            in_capsule_max,
            slots: (0..depth).map(|_| slot()).collect(),
            free: (0..depth).rev().collect(),
            early: VecDeque::new(),
            outstanding: 0,
            large_reads: 0,
        }
    }

    /// Sets what command capsules carry, as identify told.
    pub(crate) fn set_in_capsule_max(&mut self, bytes: u32) {
        self.in_capsule_max = bytes;
    }

    /// Commands without outcome.
    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Why it is over, if it is.
    pub(crate) fn over(&self) -> Option<QueueError> {
        match self.phase {
            Phase::Over(error) => Some(error),
            Phase::Initializing | Phase::Running => None,
        }
    }

    /// Ends the connection; outstanding commands end with the next poll.
    pub(crate) fn end(&mut self, error: QueueError) {
        if self.over().is_none() {
            self.phase = Phase::Over(error);
            self.wire.shutdown();
        }
    }

    /// Takes a command.
    pub(crate) fn submit(&mut self, tag: u64, command: Command) -> Result<(), Refused> {
        if let Phase::Over(error) = self.phase {
            return Err(Refused::Over(error));
        }
        let Some(id) = self.free.pop() else { return Err(Refused::Full(Box::new(command))) };
        self.begin(id, tag, command);
        Ok(())
    }

    /// Takes both halves of a pair, or none: nothing comes between them.
    pub(crate) fn submit_fused(&mut self, tags: [u64; 2], pair: FusedPair) -> Result<(), Refused<FusedPair>> {
        if let Phase::Over(error) = self.phase {
            return Err(Refused::Over(error));
        }
        let count = self.free.len();
        let Some([second, first]) = self.free.last_chunk().copied() else {
            return Err(Refused::Full(Box::new(pair)));
        };
        self.free.truncate(count - 2);
        self.begin(first, tags[0], pair.compare);
        self.begin(second, tags[1], pair.write);
        Ok(())
    }

    fn begin(&mut self, id: u16, tag: u64, command: Command) {
        let slot = &mut self.slots[usize::from(id)];
        debug_assert!(!slot.used);
        slot.used = true;
        slot.tag = tag;
        slot.sqe = command.sqe;
        slot.sqe.command_id = U16::new(id);
        slot.damaged = false;
        slot.data = match command.data {
            Data::None => SlotData::None,
            Data::Bytes(bytes) => SlotData::Out(Buffer::copy_of(&bytes).into_lent()),
            Data::ToController(Payload::None) => SlotData::None,
            Data::ToController(Payload::Buffer(buffer)) => SlotData::Out(buffer.into_lent()),
            Data::ToController(Payload::Lent(lent)) => SlotData::Out(lent),
            Data::ToController(payload @ Payload::Scattered(_)) => {
                SlotData::Out(Buffer::copy_of(&payload.to_vec()).into_lent())
            }
            Data::ToHost(buffer) => {
                self.large_reads += usize::from(buffer.len() >= STAGED_WHILE_DIRECT);
                SlotData::In { buffer, received: 0 }
            }
        };
        self.outstanding += 1;
        if self.phase == Phase::Running {
            self.send_command(id);
        } else {
            self.early.push_back(id);
        }
    }

    fn send_command(&mut self, id: u16) {
        let slot = &mut self.slots[usize::from(id)];
        let (length, outgoing) = match &slot.data {
            SlotData::None => (0, None),
            SlotData::Out(lent) => (lent.len(), Some(lent.clone())),
            SlotData::In { buffer, .. } => (buffer.len(), None),
        };
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let in_capsule = outgoing.filter(|_| length <= self.in_capsule_max);
        let (sgl, capsule_len) = match &in_capsule {
            Some(_) => (Sgl::InCapsule { offset: 0, length }, length),
            None => (Sgl::Transport { length }, 0),
        };
        slot.sqe.sgl = sgl.emit();
        let frame = Frame::new(Kind::Command, 0, self.digests, capsule_len, 4);
        let mut header = [0; 72];
        header[..8].copy_from_slice(&frame.emit());
        header[8..].copy_from_slice(slot.sqe.as_bytes());
        self.outlet.push_header(&frame, &header);
        if let Some(data) = in_capsule {
            self.push_data(&frame, data);
        }
    }

    fn push_data(&mut self, frame: &Frame, data: Lent) {
        let digest = frame.data_digest.then(|| digest_of(&data));
        self.outlet.push_payload(Payload::Lent(data));
        if let Some(digest) = digest {
            self.outlet.push_bytes(&digest.to_le_bytes());
        }
    }

    /// Sends what is queued, receives once, appends outcomes.
    pub(crate) fn poll(&mut self, staging: &mut Buffer, outcomes: &mut Vec<Outcome>) -> Progress {
        let mut progress = Progress::Idle;
        if self.over().is_none() {
            progress = progress.or(self.flush());
        }
        if self.over().is_none() && self.outlet.len() < CONGESTED_PIECES {
            progress = progress.or(self.receive(staging, outcomes));
        }
        // Data that was asked for goes out in the same turn.
        if self.over().is_none() && !self.outlet.is_empty() {
            progress = progress.or(self.flush());
        }
        if let Some(error) = self.over()
            && self.outstanding > 0
        {
            self.fail_all(error, outcomes);
            progress = Progress::Busy;
        }
        progress
    }

    fn flush(&mut self) -> Progress {
        self.outlet.flush(&self.wire).unwrap_or_else(|error| {
            self.end(QueueError::Socket(name_of(error)));
            Progress::Busy
        })
    }

    fn fail_all(&mut self, error: QueueError, outcomes: &mut Vec<Outcome>) {
        self.outlet = Outlet::default();
        // The memory of data on its way is with its slot.
        self.inlet.forget_body();
        for id in 0..self.slots.len() {
            if self.slots[id].used {
                self.finish(id, Err(error), outcomes);
            }
        }
    }

    fn finish(&mut self, id: usize, result: Result<Cqe, QueueError>, outcomes: &mut Vec<Outcome>) {
        let slot = &mut self.slots[id];
        debug_assert!(slot.used);
        slot.used = false;
        let payload = match std::mem::replace(&mut slot.data, SlotData::None) {
            SlotData::None => Payload::None,
            // The memory comes back as it was given unless someone else looks at it too.
            SlotData::Out(lent) => match lent.try_into_buffer() {
                Ok(buffer) => Payload::Buffer(buffer),
                Err(lent) => Payload::Lent(lent),
            },
            SlotData::In { buffer, .. } => {
                self.large_reads -= usize::from(buffer.len() >= STAGED_WHILE_DIRECT);
                Payload::Buffer(buffer)
            }
        };
        let damaged = slot.damaged && result.is_ok_and(|cqe| cqe.status().is_success());
        let result = if damaged { Err(QueueError::DataDigest) } else { result };
        outcomes.push(Outcome { tag: slot.tag, result, payload });
        self.outstanding -= 1;
        self.free.push(u16::try_from(id).unwrap_or(u16::MAX));
    }

    fn receive(&mut self, staging: &mut Buffer, outcomes: &mut Vec<Outcome>) -> Progress {
        let (direct, staged) = match self.fill(staging) {
            Ok(Filled::Bytes { direct, staged }) => (direct, staged),
            Ok(Filled::Nothing) => return Progress::Idle,
            Ok(Filled::End) => {
                self.end(QueueError::Closed);
                return Progress::Busy;
            }
            Err(error) => {
                self.end(QueueError::Socket(error));
                return Progress::Busy;
            }
        };
        if direct > 0
            && let Some(body) = self.inlet.body()
        {
            body.filled(direct);
        }
        if let Err((violation, at)) = self.parse(&staging[..staged], outcomes) {
            self.terminate(violation, &staging[at..staged]);
        }
        Progress::Busy
    }

    /// Says what the controller did wrong, once, and closes (TCP 3.5).
    fn terminate(&mut self, violation: Violation, offending: &[u8]) {
        if self.outlet.is_empty() {
            self.outlet.push_with(|bytes| {
                Termination::emit(Kind::HostTermination, violation, offending, bytes);
            });
            self.flush();
        }
        self.end(QueueError::Violation(violation));
    }

    fn fill(&mut self, staging: &mut Buffer) -> Result<Filled, &'static str> {
        let mut room = staging.len();
        if self.large_reads > 0 {
            room = room.min(STAGED_WHILE_DIRECT);
        }
        let body = self.inlet.take_body();
        let result = match &body {
            Some(body) => {
                let SlotData::In { buffer, .. } = &mut self.slots[body.slot].data else {
                    unreachable!("data is received into a buffer")
                };
                self.inlet.receive(&self.wire, Some(body.gap(buffer)), &mut staging[..room])
            }
            None => self.inlet.receive(&self.wire, None, &mut staging[..room]),
        };
        if let Some(body) = body {
            self.inlet.set_body(body);
        }
        result.map_err(name_of)
    }

    fn parse(&mut self, bytes: &[u8], outcomes: &mut Vec<Outcome>) -> Result<(), (Violation, usize)> {
        let mut at = 0;
        while self.over().is_none() {
            if let Some(mut body) = self.inlet.take_body() {
                let SlotData::In { buffer, .. } = &mut self.slots[body.slot].data else {
                    unreachable!("data is received into a buffer")
                };
                at += body.take(buffer, &bytes[at..]);
                if !body.is_complete() {
                    self.inlet.set_body(body);
                    return Ok(());
                }
                self.body_complete(&body, outcomes).map_err(|violation| (violation, at))?;
                continue;
            }
            let scanned = self.inlet.scan(&bytes[at..]).map_err(|violation| (violation, at))?;
            let Some(scanned) = scanned else {
                self.inlet.keep(&bytes[at..]);
                return Ok(());
            };
            let pdu = &bytes[at..at + scanned.consumed];
            self.pdu(&scanned, pdu, outcomes).map_err(|violation| (violation, at))?;
            at += scanned.consumed;
        }
        Ok(())
    }

    fn pdu(&mut self, scanned: &Scanned, pdu: &[u8], outcomes: &mut Vec<Outcome>) -> Result<(), Violation> {
        let sequence = Violation::plain(FatalStatus::Sequence);
        match (scanned.frame.kind, self.phase) {
            (Kind::InitializeResponse, Phase::Initializing) => {
                let header = pdu.first_chunk::<INITIALIZE_LEN>().ok_or(sequence)?;
                self.initialized(&InitializeResponse::parse(header)?)
            }
            (Kind::ControllerTermination, _) => {
                let header = pdu.first_chunk::<SHORT_LEN>().ok_or(sequence)?;
                self.end(QueueError::Terminated(Termination::parse(header)));
                Ok(())
            }
            (Kind::Response, Phase::Running) => {
                let entry = pdu.get(8..SHORT_LEN).and_then(|bytes| Cqe::read_from_bytes(bytes).ok());
                self.response(entry.ok_or(sequence)?, outcomes)
            }
            (Kind::ControllerData, Phase::Running) => {
                let header = pdu.first_chunk::<SHORT_LEN>().ok_or(sequence)?;
                let transfer = DataTransfer::parse(header, &scanned.frame)?;
                self.controller_data(scanned, &transfer)
            }
            (Kind::ReadyToTransfer, Phase::Running) => {
                let header = pdu.first_chunk::<SHORT_LEN>().ok_or(sequence)?;
                self.ready_to_transfer(&ReadyToTransfer::parse(header)?)
            }
            _ => Err(sequence),
        }
    }

    fn initialized(&mut self, response: &InitializeResponse) -> Result<(), Violation> {
        const DIGESTS_AT: u32 = 11;
        // A controller enables what was asked for or less (TCP 3.6.2.2); data alignment of ours is always four.
        let more = (response.digests.header && !self.digests.header)
            || (response.digests.data && !self.digests.data);
        if more {
            return Err(Violation::field(DIGESTS_AT));
        }
        self.digests = response.digests;
        self.inlet.set_digests(response.digests);
        self.host_data_max = response.host_data_max;
        self.phase = Phase::Running;
        while let Some(id) = self.early.pop_front() {
            self.send_command(id);
        }
        Ok(())
    }

    fn used(&self, command_id: u16) -> Option<usize> {
        let id = usize::from(command_id);
        self.slots.get(id).filter(|slot| slot.used).map(|_| id)
    }

    fn response(&mut self, entry: Cqe, outcomes: &mut Vec<Outcome>) -> Result<(), Violation> {
        const COMMAND_ID_AT: u32 = 8 + 12;
        let id = self.used(entry.command_id.get()).ok_or(Violation::field(COMMAND_ID_AT))?;
        if let SlotData::In { buffer, received } = &self.slots[id].data
            && entry.status().is_success()
            && *received < buffer.len()
        {
            return Err(Violation::plain(FatalStatus::DataOutOfRange));
        }
        self.finish(id, Ok(entry), outcomes);
        Ok(())
    }

    fn controller_data(&mut self, scanned: &Scanned, transfer: &DataTransfer) -> Result<(), Violation> {
        const COMMAND_ID_AT: u32 = 8;
        let id = self.used(transfer.command_id).ok_or(Violation::field(COMMAND_ID_AT))?;
        let SlotData::In { buffer, received } = &self.slots[id].data else {
            return Err(Violation::field(COMMAND_ID_AT));
        };
        let end = transfer.offset.checked_add(transfer.length);
        let within = end.is_some_and(|end| end as usize <= buffer.len());
        if transfer.offset as usize != *received || !within {
            return Err(Violation::plain(FatalStatus::DataOutOfRange));
        }
        self.inlet.set_body(Body::new(id, *received, &scanned.frame));
        Ok(())
    }

    fn body_complete(&mut self, body: &Body, outcomes: &mut Vec<Outcome>) -> Result<(), Violation> {
        let slot = &mut self.slots[body.slot];
        let SlotData::In { buffer, received } = &mut slot.data else {
            unreachable!("data is received into a buffer")
        };
        slot.damaged |= !body.is_intact(buffer);
        *received = body.end();
        if !body.success {
            return Ok(());
        }
        if !body.last || *received < buffer.len() {
            const FLAGS_AT: u32 = 1;
            return Err(Violation::field(FLAGS_AT));
        }
        let entry = Cqe::new(slot.sqe.command_id.get(), 0, Status::SUCCESS);
        self.finish(body.slot, Ok(entry), outcomes);
        Ok(())
    }

    /// The controller asks for data (TCP 3.3.2.1).
    fn ready_to_transfer(&mut self, ready: &ReadyToTransfer) -> Result<(), Violation> {
        const COMMAND_ID_AT: u32 = 8;
        let id = self.used(ready.command_id).ok_or(Violation::field(COMMAND_ID_AT))?;
        let SlotData::Out(lent) = &self.slots[id].data else { return Err(Violation::field(COMMAND_ID_AT)) };
        let end = ready.offset.checked_add(ready.length).filter(|end| *end as usize <= lent.len());
        let Some(end) = end else { return Err(Violation::plain(FatalStatus::DataOutOfRange)) };
        let lent = lent.clone();
        let mut offset = ready.offset;
        while offset < end {
            let length = (end - offset).min(self.host_data_max);
            let flags = if offset + length == end { FLAG_LAST } else { 0 };
            let frame = Frame::new(Kind::HostData, flags, self.digests, length, 4);
            let transfer = DataTransfer {
                command_id: ready.command_id,
                transfer_tag: ready.transfer_tag,
                offset,
                length,
            };
            self.outlet.push_header(&frame, &transfer.emit(&frame));
            self.push_data(&frame, lent.slice(offset as usize, length as usize));
            offset += length;
        }
        Ok(())
    }
}

/// The digest of a view's bytes.
fn digest_of(view: &Lent) -> u32 {
    const PIECE: usize = 4096;
    if let Some(bytes) = view.still() {
        return crc32c(bytes);
    }
    let mut scratch = [0; PIECE];
    if view.len() <= PIECE {
        view.copy_to(0, &mut scratch[..view.len()]);
        return crc32c(&scratch[..view.len()]);
    }
    let mut digest = Crc32c::new();
    let mut at = 0;
    while at < view.len() {
        let count = PIECE.min(view.len() - at);
        view.copy_to(at, &mut scratch[..count]);
        digest.update(&scratch[..count]);
        at += count;
    }
    digest.value()
}

fn name_of(error: basalt_reactor::SocketError) -> &'static str {
    use basalt_reactor::SocketError as E;
    match error {
        E::Refused => "connection refused",
        E::Reset => "connection reset",
        E::Unreachable => "host or network unreachable",
        E::TimedOut => "connection timed out",
        E::AddressInUse | E::AddressUnavailable => "the address cannot be used",
        E::TooManyOpen => "too many open sockets",
        E::PermissionDenied => "permission denied",
        E::Closed => "the socket is closed",
        E::Unsupported => "not supported here",
        E::System(_) => "the operating system reported an error",
    }
}
