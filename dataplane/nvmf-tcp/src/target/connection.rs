//! One connection of a target: PDUs in, commands to the queue and the devices, replies out (TCP 3.2 to 3.5).

use std::collections::VecDeque;

use basalt_bdev::{Capabilities, Operation};
use basalt_clock::Instant;
use basalt_dma::{Buffer, BufferPool, Payload};
use basalt_nvme_wire::pdu::{
    Digests, InitializeRequest, InitializeResponse, Kind, Receiver, Termination, Violation,
};
use basalt_nvme_wire::{Sgl, Sqe, Status, fabrics};
use basalt_nvmf_target::{AbortOrder, Activity, Queue, Reply, Step};
use basalt_reactor::Progress;
use smallvec::SmallVec;

use super::abort::AskedAbort;
use super::complaints::{Complaint, Complaints};
use super::devices::{DeviceIndex, Devices};
use super::options::TcpTargetOptions;
use super::share::Share;
use super::slot::{Slots, State, Work};
use super::staging::Staging;
use crate::inlet::{DataLimits, Inlet};
use crate::outlet::Outlet;
use crate::wire::Wire;

/// What a connection uses of its reactor.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) pool: &'a BufferPool,
    pub(crate) devices: &'a mut Devices,
    pub(crate) staging: &'a mut Staging,
    pub(crate) options: &'a TcpTargetOptions,
    pub(crate) complaints: &'a mut Complaints,
}

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for the initialization request.
    Initializing,
    /// Serves.
    Running,
    /// Said why it ends; waits until that is sent and the peer closed, at most until the deadline.
    Terminating { deadline: Instant },
    /// Over; only requests that devices still hold keep it.
    Over,
}

/// One connection.
pub(crate) struct Connection<W> {
    pub(super) wire: W,
    /// First part of the tags of its requests.
    pub(super) tag_base: u64,
    pub(crate) phase: Phase,
    pub(crate) queue: Queue,
    opened: Instant,
    pub(super) inlet: Inlet,
    pub(crate) outlet: Outlet,
    pub(super) slots: Slots,
    /// The first half of a fused pair whose second half has not come.
    pub(super) open_first: Option<usize>,
    pub(super) digests: Digests,
    /// Alignment of data that the host wants (HPDA).
    pub(super) data_alignment: usize,
    /// Channels by namespace slot; none for a device that cannot be opened.
    devices: SmallVec<[Option<DeviceIndex>; 1]>,
    /// Commands that wait for a place in a device's queue, in order.
    pub(super) backlog: VecDeque<usize>,
    /// Commands that hold nothing yet and wait for memory, in order. Not those of the backlog, which hold some, wait behind them.
    pub(super) starved: VecDeque<usize>,
    /// Requests with devices.
    pub(super) running: usize,
    /// Commands whose data is on the way.
    pub(super) receiving: usize,
    /// The largest of them since there were none.
    pub(super) largest_expected: u32,
    pub(super) sq_head: u32,
    /// Orders to end commands that devices still have.
    pub(super) abort_orders: Vec<AbortOrder>,
    /// Orders to end one command.
    pub(super) asked_aborts: Vec<AskedAbort>,
}

/// Bits of a tag that name the slot.
pub(super) const TAG_SLOT_BITS: u32 = 16;
/// Pieces of output beyond which no more commands are taken: a host that does not read gets no more service.
const CONGESTED_PIECES: usize = 1024;
/// The same for bytes that were made for output, as completions and log pages are; at most one answer goes beyond. Data of reads is bounded
/// by the connection's share.
const CONGESTED_BYTES: usize = 64 << 10;

impl<W: Wire> Connection<W> {
    /// A fresh connection; `index` comes back in the tags of its requests.
    pub(crate) fn new(
        wire: W,
        index: usize,
        queue: Queue,
        share: Share,
        now: Instant,
        options: &TcpTargetOptions,
    ) -> Self {
        let limits =
            DataLimits { capsule: options.limits.in_capsule_bytes_max, transfer: options.host_data_max };
        let mut slots = Slots::new(share);
        slots.set_limit(entries(&queue));
        Self {
            wire,
            tag_base: (index as u64) << TAG_SLOT_BITS,
            phase: Phase::Initializing,
            queue,
            opened: now,
            inlet: Inlet::new(Receiver::Controller, limits),
            outlet: Outlet::default(),
            slots,
            open_first: None,
            digests: Digests::default(),
            data_alignment: 4,
            devices: SmallVec::new(),
            backlog: VecDeque::new(),
            starved: VecDeque::new(),
            running: 0,
            receiving: 0,
            largest_expected: 0,
            sq_head: 0,
            abort_orders: Vec::new(),
            asked_aborts: Vec::new(),
        }
    }

    /// The index that a tag names.
    pub(crate) fn index_of(tag: u64) -> usize {
        usize::try_from(tag >> TAG_SLOT_BITS).unwrap_or(usize::MAX)
    }

    /// Whether it can be forgotten.
    pub(crate) fn is_done(&self) -> bool {
        self.phase == Phase::Over && self.running == 0
    }

    /// Whether something is under way that its socket does not tell of.
    pub(crate) fn has_work(&self) -> bool {
        let waits = !self.backlog.is_empty() || !self.starved.is_empty();
        waits || self.inlet.holds_back() || !self.outlet.is_empty() || self.running > 0
    }

    /// Whether the peer's bytes are wanted now.
    pub(crate) fn takes_input(&self) -> bool {
        self.phase != Phase::Over && !self.is_congested()
    }

    /// Whether so much output waits that no more commands are taken.
    pub(super) fn is_congested(&self) -> bool {
        self.outlet.own_bytes() >= CONGESTED_BYTES || self.outlet.len() >= CONGESTED_PIECES
    }

    /// Sends what is queued.
    pub(crate) fn flush(&mut self) -> Progress {
        if self.outlet.is_empty() || self.phase == Phase::Over {
            return Progress::Idle;
        }
        let before = self.outlet.memory();
        let flushed = self.outlet.flush(&self.wire);
        self.slots.share.put(before - self.outlet.memory());
        match flushed {
            Ok(progress) => {
                if self.outlet.is_empty() && matches!(self.phase, Phase::Terminating { .. }) {
                    self.wire.shutdown();
                }
                progress
            }
            Err(error) => {
                tracing::debug!(%error, "a connection's send failed");
                self.phase = Phase::Over;
                Progress::Busy
            }
        }
    }

    /// Ends the connection with a termination request that names the violation.
    pub(super) fn terminate(&mut self, context: &mut Context<'_>, violation: Violation, offending: &[u8]) {
        context.complaints.note(context.now, &Complaint::Violation(violation));
        self.outlet.push_with(|bytes| {
            Termination::emit(Kind::ControllerTermination, violation, offending, bytes);
        });
        self.phase = Phase::Terminating { deadline: context.now + context.options.termination_timeout };
    }

    /// Looks at clock and configuration: deadlines, keep alive, namespaces that came or went.
    pub(crate) fn tick(&mut self, context: &mut Context<'_>) {
        self.obey_abort_orders(context);
        self.give_up_data(context);
        match self.phase {
            Phase::Over => return,
            Phase::Terminating { deadline } if context.now >= deadline => self.phase = Phase::Over,
            Phase::Terminating { .. } => return,
            Phase::Initializing | Phase::Running => {
                let late = context.now.since(self.opened) >= context.options.connect_timeout;
                if late && !self.queue.is_connected() {
                    context.complaints.note(context.now, &Complaint::Late);
                    self.phase = Phase::Over;
                }
            }
        }
        let activity = self.queue.tick(context.now);
        self.apply(activity, context);
    }

    /// Looks at the configuration, which changed.
    pub(crate) fn refresh(&mut self, context: &mut Context<'_>) {
        self.obey_abort_orders(context);
        if matches!(self.phase, Phase::Initializing | Phase::Running) {
            let activity = self.queue.refresh();
            self.apply(activity, context);
        }
    }

    fn apply(&mut self, activity: Activity, context: &mut Context<'_>) {
        match activity {
            Activity::Unchanged => {}
            Activity::Namespaces => self.map_namespaces(context.devices),
            Activity::Over => {
                if self.outlet.is_empty() {
                    self.phase = Phase::Over;
                } else {
                    // The last replies go out first.
                    self.phase =
                        Phase::Terminating { deadline: context.now + context.options.termination_timeout };
                }
            }
        }
        self.push_events();
    }

    /// Opens channels to the queue's namespaces and lets go of those that are gone.
    fn map_namespaces(&mut self, devices: &mut Devices) {
        let old = std::mem::take(&mut self.devices);
        self.devices = self.queue.namespaces().iter().map(|namespace| devices.acquire(namespace)).collect();
        old.into_iter().flatten().for_each(|index| devices.release(index));
    }

    /// Lets go of everything but what devices hold: called once, when the connection is over.
    pub(crate) fn close(&mut self, devices: &mut Devices) {
        for index in std::mem::take(&mut self.devices).into_iter().flatten() {
            devices.release(index);
        }
        self.slots.share.put(self.outlet.memory());
        self.outlet = Outlet::default();
        self.backlog.clear();
        self.starved.clear();
        for slot in 0..self.slots.len() {
            if !matches!(self.slots[slot].state, State::Free | State::Submitted) {
                self.release(slot);
            }
        }
    }

    /// The initialization request came (TCP 3.2).
    pub(super) fn initialize(&mut self, request: &InitializeRequest, options: &TcpTargetOptions) {
        let response = InitializeResponse {
            data_alignment: 4,
            digests: request.digests,
            host_data_max: options.host_data_max,
        };
        self.outlet.push_bytes(&response.emit());
        self.digests = request.digests;
        self.inlet.set_digests(request.digests);
        self.data_alignment = request.data_alignment;
        self.phase = Phase::Running;
    }

    /// An entry of the submission queue was taken, whatever becomes of it.
    pub(super) fn advance_head(&mut self) {
        self.sq_head = (self.sq_head + 1) % self.queue.entries();
    }

    /// A command came; `data` are the in-capsule bytes and where they lie in the staging memory.
    pub(super) fn command(
        &mut self,
        context: &mut Context<'_>,
        slot: usize,
        data: Option<(usize, &[u8])>,
    ) -> Option<InCapsule> {
        let sqe = self.slots[slot].sqe;
        let step = self.queue.command(context.now, &sqe);
        self.note_adjacent();
        let in_capsule = match self.in_capsule(&sqe, data) {
            Ok(data) => data,
            // It has its answer.
            Err(_) if matches!(step, Step::Complete(_)) => None,
            Err(status) => {
                self.refuse(slot, &step, status);
                return None;
            }
        };
        match step {
            Step::Take { length } => {
                if let Some((_, data)) = in_capsule {
                    let step = self.queue.command_with_data(context.now, &sqe, data);
                    return self.after_data(context, slot, step, Some(data));
                }
                self.ask_for(slot, length, Work::Interpret, context.pool);
            }
            Step::Block(block) => {
                let Some(device) = self.devices.get(block.slot.0).copied().flatten() else {
                    self.reply(slot, &Reply::status(Status::INTERNAL_PATH_ERROR));
                    return None;
                };
                let work = Work::Block(block, device);
                let from_host = block.operation != Operation::Read && block.bytes > 0;
                if !from_host {
                    self.start(slot, work, block.bytes, Payload::None, context);
                } else if let Some((at, data)) = in_capsule {
                    return self.start_with_capsule(slot, work, at, data, context);
                } else {
                    self.ask_for(slot, block.bytes, work, context.pool);
                }
            }
            Step::FuseFirst(block) => {
                let work = Work::FusedFirst { second: None };
                self.fused_half(context, slot, block, work, in_capsule.map(|(_, data)| data));
            }
            Step::FuseSecond(block) => {
                let device = self.devices.get(block.slot.0).copied().flatten();
                let (Some(device), Some(first)) = (device, self.open_first) else {
                    self.refuse(slot, &step, Status::INTERNAL_PATH_ERROR);
                    return None;
                };
                let work = Work::FusedSecond { first, block, device };
                self.fused_half(context, slot, block, work, in_capsule.map(|(_, data)| data));
            }
            other => {
                return self.after_data(context, slot, other, None);
            }
        }
        None
    }

    /// The in-capsule data of a command, as its SGL says (TCP 3.3.1).
    fn in_capsule<'a>(
        &self,
        sqe: &Sqe,
        data: Option<(usize, &'a [u8])>,
    ) -> Result<Option<(usize, &'a [u8])>, Status> {
        let direction = fabrics::direction(sqe);
        if direction != basalt_nvme_wire::opcode::Direction::ToController {
            return Ok(None);
        }
        match Sgl::parse(&sqe.sgl) {
            Ok(Sgl::InCapsule { offset, length }) => {
                let (at, data) = data.unwrap_or((0, &[]));
                // ICDOFF is zero here, so offsets count from the start of the capsule's data.
                let offset = usize::try_from(offset).ok().filter(|offset| *offset <= data.len());
                let offset = offset.ok_or(Status::SGL_OFFSET_INVALID.dnr())?;
                match data[offset..].get(..length as usize) {
                    Some(data) => Ok(Some((at + offset, data))),
                    None => Err(Status::SGL_LENGTH_INVALID.dnr()),
                }
            }
            Ok(Sgl::Transport { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What the queue said about a command that needs no more data from the host.
    fn after_data(
        &mut self,
        context: &mut Context<'_>,
        slot: usize,
        step: Step,
        data: Option<&[u8]>,
    ) -> Option<InCapsule> {
        match step {
            Step::Complete(reply) => self.reply(slot, &reply),
            Step::Give { data, reply } => self.give(slot, &data, &reply),
            Step::Hold => self.slots[slot].state = State::Held,
            Step::AbortHeld { command } => {
                if let Some(held) = self.slots.find_held(command.0) {
                    self.reply(held, &Reply::status(Status::ABORT_REQUESTED));
                }
                self.reply(slot, &Reply::SUCCESS);
            }
            Step::Unmap(ranges) => {
                let Some(device) = self.devices.get(ranges.slot.0).copied().flatten() else {
                    self.reply(slot, &Reply::status(Status::INTERNAL_PATH_ERROR));
                    return None;
                };
                if let Some(data) = data {
                    self.slots[slot].payload = Payload::Buffer(Buffer::copy_of(data));
                }
                self.slots[slot].work = Work::Unmap { ranges, next: 0, device };
                self.submit(slot, context);
            }
            // The queue asks for data once, and for block commands before they are taken up.
            Step::Take { .. } | Step::Block(_) | Step::FuseFirst(_) | Step::FuseSecond(_) => {
                self.reply(slot, &Reply::status(Status::INTERNAL_ERROR));
            }
        }
        if self.queue.is_connected() {
            self.note_connected(context);
        }
        None
    }

    /// After Connect: as many commands as the queue has entries, and channels to its namespaces.
    fn note_connected(&mut self, context: &mut Context<'_>) {
        self.slots.set_limit(entries(&self.queue));
        if self.devices.is_empty() && !self.queue.namespaces().is_empty() {
            self.map_namespaces(context.devices);
        }
        self.push_events();
    }

    /// A block command whose data came in its capsule.
    fn start_with_capsule(
        &mut self,
        slot: usize,
        work: Work,
        at: usize,
        data: &[u8],
        context: &mut Context<'_>,
    ) -> Option<InCapsule> {
        let Work::Block(block, _) = work else { return None };
        let length = block.bytes;
        if data.len() != length as usize {
            self.reply(slot, &Reply::status(Status::SGL_LENGTH_INVALID.dnr()));
            return None;
        }
        let device = self.queue.namespaces()[block.slot.0].device();
        if device.info().capabilities().contains(Capabilities::LEND) {
            // Memory devices take data in at once: they read it from where it was received.
            let held = &mut self.slots[slot];
            (held.work, held.length, held.state) = (work, length, State::Ready);
            return Some(InCapsule { slot, at, len: data.len() });
        }
        let buffer = self.copy_capsule(slot, data, context.pool);
        self.start(slot, work, length, Payload::Buffer(buffer), context);
        None
    }

    /// Takes a command up whose data is there, or that has none from the host.
    pub(super) fn start(
        &mut self,
        slot: usize,
        work: Work,
        length: u32,
        payload: Payload,
        context: &mut Context<'_>,
    ) {
        let held = &mut self.slots[slot];
        (held.work, held.length, held.payload, held.state) = (work, length, payload, State::Ready);
        self.submit(slot, context);
    }

    /// All data of a command is there.
    pub(super) fn data_complete(&mut self, slot: usize, context: &mut Context<'_>) {
        if let State::Draining { .. } = self.slots[slot].state {
            self.slots.release(slot);
            return;
        }
        self.receiving -= 1;
        if let State::Failed { status, .. } = self.slots[slot].state {
            self.fail(slot, status);
            return;
        }
        self.slots[slot].state = State::Ready;
        match self.slots[slot].work {
            Work::Interpret => {
                let sqe = self.slots[slot].sqe;
                let Payload::Buffer(buffer) = std::mem::take(&mut self.slots[slot].payload) else {
                    unreachable!("data is received into a buffer")
                };
                let step = self.queue.command_with_data(context.now, &sqe, &buffer);
                self.after_data(context, slot, step, Some(&buffer));
            }
            Work::FusedFirst { .. } | Work::FusedSecond { .. } => self.half_ready(slot, context),
            Work::Block(..) | Work::Unmap { .. } => {
                if self.may_run(slot, context) {
                    self.submit(slot, context);
                }
            }
        }
    }
}

/// A block command whose data lies in the staging memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InCapsule {
    pub(crate) slot: usize,
    pub(crate) at: usize,
    pub(crate) len: usize,
}

/// Commands that a queue may have outstanding: its entries, as the host counts them.
fn entries(queue: &Queue) -> usize {
    queue.entries() as usize
}
