//! The receiving side of a target's connection.

use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::pdu::{
    DataTransfer, FatalStatus, INITIALIZE_LEN, InitializeRequest, Kind, SHORT_LEN, Termination, Violation,
};
use basalt_nvme_wire::{Sqe, Status};
use basalt_reactor::Progress;
use smallvec::SmallVec;
use zerocopy::FromBytes;

use super::complaints::Complaint;
use super::connection::{Connection, Context, InCapsule, Phase};
use super::slot::{NoPlace, State};
use crate::inlet::{Body, Filled, Scanned};
use crate::wire::Wire;

/// While data of this size or more is on its way, less is received at once, so that most of it goes straight to its
/// destination instead of through the staging memory.
const DIRECT_BYTES_MIN: u32 = 16 << 10;
/// Bytes of staging memory that one receive uses meanwhile.
const STAGED_WHILE_DIRECT: usize = 12 << 10;

/// Bytes that one receive brings where no I/O goes: of what waits while answers are not read, little is kept.
const STAGED_WITHOUT_IO: usize = 16 << 10;

/// Commands whose data is lent from the staging memory once everything is parsed.
type Lent = SmallVec<[InCapsule; 64]>;

impl<W: Wire> Connection<W> {
    /// Receives once and does what the bytes say.
    pub(crate) fn receive(&mut self, context: &mut Context<'_>) -> Progress {
        let mut buffer = context.staging.take();
        let filled = self.fill(&mut buffer);
        let (direct, staged) = match filled {
            Filled::Bytes { direct, staged } => (direct, staged),
            Filled::Nothing => {
                context.staging.put_back(buffer);
                return Progress::Idle;
            }
            Filled::End => {
                context.staging.put_back(buffer);
                self.phase = Phase::Over;
                return Progress::Busy;
            }
        };
        if matches!(self.phase, Phase::Terminating { .. }) {
            // What still comes is read so that our last words are not lost to a reset, and ignored.
            context.staging.put_back(buffer);
            return Progress::Busy;
        }
        if self.receiving > 0 {
            self.queue.note_data();
        }
        if direct > 0
            && let Some(body) = self.inlet.body()
        {
            body.filled(direct);
        }
        let mut lent = Lent::new();
        if let Err((violation, at)) = self.parse(&buffer[..staged], context, &mut lent) {
            self.terminate(context, violation, &buffer[at..staged]);
            // Commands whose data was to be lent do not run any more.
            lent.clear();
        }
        context.staging.put_back(buffer);
        for capsule in lent {
            let InCapsule { slot, at, len } = capsule;
            self.slots[slot].payload = match context.staging.lend(at, len) {
                Some(view) => Payload::Lent(view),
                None => {
                    let data = context.staging.received(at, len);
                    Payload::Buffer(self.copy_capsule(slot, data, context.pool))
                }
            };
            self.submit(capsule.slot, context);
        }
        Progress::Busy
    }

    fn fill(&mut self, buffer: &mut Buffer) -> Filled {
        if let Some(staged) = self.inlet.take_held_back(buffer) {
            return Filled::Bytes { direct: 0, staged };
        }
        let mut room = buffer.len();
        let body = self.inlet.take_body();
        let result = match &body {
            Some(body) => {
                let Payload::Buffer(destination) = &mut self.slots[body.slot].payload else {
                    unreachable!("data is received into a buffer")
                };
                if body.missing() >= STAGED_WHILE_DIRECT {
                    room = room.min(STAGED_WHILE_DIRECT);
                }
                let gap = body.gap(destination);
                self.inlet.receive(&self.wire, Some(gap), &mut buffer[..room])
            }
            None => {
                if self.expects_large_data() {
                    room = room.min(STAGED_WHILE_DIRECT);
                } else if !self.queue.is_io() {
                    room = room.min(STAGED_WITHOUT_IO);
                }
                self.inlet.receive(&self.wire, None, &mut buffer[..room])
            }
        };
        if let Some(body) = body {
            self.inlet.set_body(body);
        }
        result.unwrap_or_else(|error| {
            tracing::debug!(%error, "a connection's receive failed");
            Filled::End
        })
    }

    fn expects_large_data(&self) -> bool {
        self.receiving > 0 && self.largest_expected >= DIRECT_BYTES_MIN
    }

    /// Goes through `bytes`; an error names the violation and where its PDU begins.
    fn parse(
        &mut self,
        bytes: &[u8],
        context: &mut Context<'_>,
        lent: &mut Lent,
    ) -> Result<(), (Violation, usize)> {
        let mut at = 0;
        while self.phase != Phase::Over {
            if let Some(mut body) = self.inlet.take_body() {
                let Payload::Buffer(destination) = &mut self.slots[body.slot].payload else {
                    unreachable!("data is received into a buffer")
                };
                at += body.take(destination, &bytes[at..]);
                if !body.is_complete() {
                    self.inlet.set_body(body);
                    return Ok(());
                }
                self.body_complete(&body, context);
                continue;
            }
            if self.is_congested() {
                self.inlet.hold_back(&bytes[at..]);
                return Ok(());
            }
            let scanned = self.inlet.scan(&bytes[at..]).map_err(|violation| (violation, at))?;
            let Some(scanned) = scanned else {
                self.inlet.keep(&bytes[at..]);
                return Ok(());
            };
            let pdu = &bytes[at..at + scanned.consumed];
            self.pdu(&scanned, pdu, at, context, lent).map_err(|violation| (violation, at))?;
            at += scanned.consumed;
        }
        Ok(())
    }

    fn pdu(
        &mut self,
        scanned: &Scanned,
        pdu: &[u8],
        at: usize,
        context: &mut Context<'_>,
        lent: &mut Lent,
    ) -> Result<(), Violation> {
        let sequence = Err(Violation::plain(FatalStatus::Sequence));
        match (scanned.frame.kind, self.phase) {
            (Kind::InitializeRequest, Phase::Initializing) => {
                let Some(header) = pdu.first_chunk::<INITIALIZE_LEN>() else { return sequence };
                let request = InitializeRequest::parse(header)?;
                self.initialize(&request, context.options);
                Ok(())
            }
            (Kind::HostTermination, _) => {
                if let Some(header) = pdu.first_chunk::<SHORT_LEN>() {
                    let termination = Termination::parse(header);
                    context.complaints.note(context.now, &Complaint::Terminated(&termination));
                }
                self.phase = Phase::Over;
                Ok(())
            }
            (Kind::Command, Phase::Running) => {
                if let Some(capsule) = self.capsule(scanned, pdu, at, context)? {
                    lent.push(capsule);
                }
                Ok(())
            }
            (Kind::HostData, Phase::Running) => {
                let Some(header) = pdu.first_chunk::<SHORT_LEN>() else { return sequence };
                let transfer = DataTransfer::parse(header, &scanned.frame)?;
                self.host_data(scanned, &transfer)
            }
            _ => sequence,
        }
    }

    fn capsule(
        &mut self,
        scanned: &Scanned,
        pdu: &[u8],
        at: usize,
        context: &mut Context<'_>,
    ) -> Result<Option<InCapsule>, Violation> {
        let frame = &scanned.frame;
        // The frame is as long as a capsule's header, of which the entry is the last part.
        let Ok(sqe) = Sqe::read_from_bytes(&pdu[8..frame.header_len()]) else {
            return Err(Violation::plain(FatalStatus::Sequence));
        };
        let slot = match self.slots.take(&sqe) {
            Ok(slot) => slot,
            Err(NoPlace::IdInUse) => {
                self.advance_head();
                self.refuse_entry(&sqe, Status::COMMAND_ID_CONFLICT);
                return Ok(None);
            }
            // More commands than the queue has entries.
            Err(NoPlace::Full) => return Err(Violation::plain(FatalStatus::Sequence)),
        };
        self.advance_head();
        if !scanned.data_intact {
            self.slots.release(slot);
            self.refuse_entry(&sqe, Status::TRANSIENT_TRANSPORT);
            return Ok(None);
        }
        let start = frame.prefix_len();
        let data = (frame.data_len > 0).then(|| (at + start, &pdu[start..start + frame.data_len as usize]));
        let capsule = self.command(context, slot, data);
        if self.queue.is_admin() {
            self.push_events();
        }
        Ok(capsule)
    }

    /// Data for a command that was asked for (TCP 3.3.2.1).
    fn host_data(&mut self, scanned: &Scanned, transfer: &DataTransfer) -> Result<(), Violation> {
        const COMMAND_ID_AT: u32 = 8;
        const TAG_AT: u32 = 10;
        let slot = usize::from(transfer.transfer_tag);
        let Some(held) = self.slots.get(slot) else { return Err(Violation::field(TAG_AT)) };
        let (State::Receiving { received } | State::Failed { received, .. } | State::Draining { received }) =
            held.state
        else {
            return Err(Violation::field(TAG_AT));
        };
        if held.command_id() != transfer.command_id {
            return Err(Violation::field(COMMAND_ID_AT));
        }
        let within = transfer.offset.checked_add(transfer.length).is_some_and(|end| end <= held.length);
        // Data of an R2T comes in order (TCP 3.3.2.1).
        if transfer.offset != received || !within {
            return Err(Violation::plain(FatalStatus::DataOutOfRange));
        }
        let body = Body::new(slot, received as usize, &scanned.frame);
        let is_last = body.end() == held.length as usize;
        if body.last != is_last {
            return Err(Violation::field(1));
        }
        self.inlet.set_body(body);
        Ok(())
    }

    fn body_complete(&mut self, body: &Body, context: &mut Context<'_>) {
        let held = &mut self.slots[body.slot];
        let intact = match &held.payload {
            Payload::Buffer(buffer) => body.is_intact(buffer),
            Payload::None | Payload::Scattered(_) | Payload::Lent(_) => true,
        };
        let received = u32::try_from(body.end()).unwrap_or(u32::MAX);
        held.state = match held.state {
            State::Failed { status, .. } => State::Failed { received, status },
            State::Draining { .. } => State::Draining { received },
            _ if !intact => State::Failed { received, status: Status::TRANSIENT_TRANSPORT },
            _ => State::Receiving { received },
        };
        if received == held.length {
            self.data_complete(body.slot, context);
        }
    }
}
