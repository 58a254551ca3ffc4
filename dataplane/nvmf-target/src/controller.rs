//! A controller: its lifecycle and its admin commands, run on the reactor of its admin queue.

mod notices;
mod reservations;
mod waiting;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use basalt_clock::Instant;
use basalt_nvme_wire::feature::{self, FeatureId, QueueCount, Select};
use basalt_nvme_wire::log::{AsyncEvent, GetLogPage, LogId};
use basalt_nvme_wire::opcode::Admin;
use basalt_nvme_wire::register::{
    Capabilities, Configuration, ControllerStatus, Property, ShutdownNotice, ShutdownStatus, VERSION_2_0,
};
use basalt_nvme_wire::{Sgl, Sqe, Status, fabrics};
use basalt_nvmf_transport::{CommandId, QueueId, TransportLimits};
use zerocopy::IntoBytes;

use self::notices::Notices;
use self::reservations::PendingFeature;
use self::waiting::EarlierQueues;
use crate::abort::{AbortOrder, AbortTicket};
use crate::events::Events;
use crate::features::{self, Features};
use crate::identify::{self, KEEP_ALIVE_GRANULARITY};
use crate::link::ControllerLink;
use crate::logs;
use crate::namespace::{Namespace, Nsid};
use crate::reply::{Reply, Step, give};
use crate::subsystem::Subsystem;
use crate::target::Target;

/// What a controller is for (CNTRLTYPE).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Io,
    Discovery,
}

/// Where a controller is in its life (Base 3.5, 3.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lifecycle {
    /// CC.EN is 0: after Connect and after a reset.
    Disabled,
    /// CSTS.RDY is 1.
    Ready,
    /// CSTS.SHST says that the shutdown is complete.
    ShutDown,
    /// CSTS.CFS: the host asked for what there is not.
    Failed,
}

/// CAP.TO: how long a host waits for CSTS.RDY, in units of 500 ms. Becoming ready takes no time here.
const READY_TIMEOUT_HALF_SECONDS: u8 = 30;
/// How long the connection of a host that has shut down may stay.
const SHUT_DOWN_LINGER: Duration = Duration::from_secs(120);
/// Bytes of the Host Behavior Support data structure (Base figure 338).
const HOST_BEHAVIOR_LEN: u32 = 512;

/// What a controller saw of a namespace when it last looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    blocks: u64,
    ana_changes: u64,
    uuid: [u8; 16],
}

/// A controller. Dropping it ends its I/O queues.
#[derive(Debug)]
pub(crate) struct Controller {
    kind: Kind,
    target: Arc<Target>,
    subsystem: Arc<Subsystem>,
    link: Arc<ControllerLink>,
    limits: TransportLimits,
    /// The address of this machine that the host has reached, where the transport has one.
    here: Option<IpAddr>,
    lifecycle: Lifecycle,
    configuration: Configuration,
    features: Features,
    events: Events,
    keep_alive: Option<Duration>,
    keep_alive_ms: u32,
    last_sign_of_life: Instant,
    seen: BTreeMap<Nsid, Seen>,
    seen_discovery: u64,
    changed: BTreeSet<Nsid>,
    ana_change_count: u64,
    /// The discovery page that a host reads in pieces.
    discovery_page: Option<Vec<u8>>,
    notices: Notices,
    /// Set Features commands that wait for a store.
    pending: Vec<PendingFeature>,
    earlier: EarlierQueues,
    /// Held commands that a reset ended.
    reset_commands: Vec<CommandId>,
    /// Abort commands that wait for the queue that they are about.
    aborts: Vec<(CommandId, Arc<AbortTicket>)>,
}

impl Controller {
    pub(crate) fn new(
        target: Arc<Target>,
        subsystem: Arc<Subsystem>,
        link: Arc<ControllerLink>,
        limits: TransportLimits,
        here: Option<IpAddr>,
        keep_alive_ms: u32,
        now: Instant,
    ) -> Self {
        let kind = if Arc::ptr_eq(&subsystem, target.discovery()) { Kind::Discovery } else { Kind::Io };
        let mut controller = Self {
            kind,
            seen_discovery: target.discovery_generation(),
            target,
            subsystem,
            link,
            limits,
            here,
            lifecycle: Lifecycle::Disabled,
            configuration: Configuration(0),
            features: Features::new(kind),
            events: Events::default(),
            keep_alive: None,
            keep_alive_ms: 0,
            last_sign_of_life: now,
            seen: BTreeMap::new(),
            changed: BTreeSet::new(),
            ana_change_count: 0,
            discovery_page: None,
            notices: Notices::default(),
            pending: Vec::new(),
            earlier: EarlierQueues::Ended,
            reset_commands: Vec::new(),
            aborts: Vec::new(),
        };
        controller.set_keep_alive(keep_alive_ms);
        controller.look();
        controller.changed.clear();
        controller.events.reset();
        controller
    }

    pub(crate) fn link(&self) -> &Arc<ControllerLink> {
        &self.link
    }

    /// Keep alive timeouts are rounded up to the granularity that identify tells (Base 5.27.1.12).
    fn set_keep_alive(&mut self, milliseconds: u32) {
        let step = u32::from(KEEP_ALIVE_GRANULARITY) * 100;
        let rounded = milliseconds.div_ceil(step).saturating_mul(step);
        self.keep_alive_ms = rounded;
        self.keep_alive = (rounded > 0).then(|| Duration::from_millis(u64::from(rounded)));
    }

    /// Whether the keep alive timer has run out by `now`. Commands on any queue, and their data, are signs of life.
    pub(crate) fn is_expired(&mut self, now: Instant) -> bool {
        // A host that has shut down need not say more (Base 3.9); it is given time to close.
        let lingering = (self.lifecycle == Lifecycle::ShutDown).then_some(SHUT_DOWN_LINGER);
        let Some(timeout) = lingering.or(self.keep_alive) else { return false };
        if self.link.take_traffic() {
            self.last_sign_of_life = now;
        }
        now.since(self.last_sign_of_life) > timeout
    }

    /// Looks for what changed since the last time and raises events.
    pub(crate) fn look(&mut self) {
        self.take_queues();
        match self.kind {
            Kind::Io => {
                self.look_at_namespaces();
                self.look_at_notices();
            }
            Kind::Discovery => {
                let generation = self.target.discovery_generation();
                if generation != self.seen_discovery {
                    self.seen_discovery = generation;
                    self.raise(AsyncEvent::DiscoveryLogChange, feature::event::DISCOVERY_CHANGE);
                }
            }
        }
    }

    fn look_at_namespaces(&mut self) {
        let namespaces = self.subsystem.namespaces();
        let now: BTreeMap<Nsid, Seen> = namespaces.iter().map(|n| (n.nsid(), seen(n))).collect();
        if now == self.seen {
            return;
        }
        let before = std::mem::replace(&mut self.seen, now);
        let numbers: BTreeSet<Nsid> = before.keys().chain(self.seen.keys()).copied().collect();
        let (mut ana_changed, mut content_changed) = (false, false);
        let mut attributes_changed = false;
        for nsid in numbers {
            let (old, new) = (before.get(&nsid), self.seen.get(&nsid));
            let attributes = |seen: &Seen| (seen.blocks, seen.uuid);
            if old.map(attributes) != new.map(attributes) {
                self.changed.insert(nsid);
                attributes_changed = true;
            }
            // Groups that come and go with their namespaces are told by those (Base 5.2.1, ANA Change).
            ana_changed |= old.zip(new).is_some_and(|(old, new)| old.ana_changes != new.ana_changes);
            content_changed |= old.map(|seen| seen.ana_changes) != new.map(|seen| seen.ana_changes);
        }
        if content_changed {
            self.ana_change_count += 1;
        }
        if ana_changed {
            self.raise(AsyncEvent::AnaChange, feature::event::ANA_CHANGE);
        }
        if attributes_changed {
            self.raise(AsyncEvent::NamespaceAttributeChanged, feature::event::NAMESPACE_ATTRIBUTE);
        }
    }

    fn raise(&mut self, event: AsyncEvent, enabled_by: u32) {
        if self.features.events & enabled_by != 0 {
            self.events.raise(event);
        }
    }

    /// The next held command that ends: one that waited for a store, or a request for an event.
    pub(crate) fn next_event(&mut self) -> Option<(CommandId, Reply)> {
        if let Some(command) = self.reset_commands.pop() {
            return Some((command, Reply::status(Status::ABORT_REQUESTED)));
        }
        if let Some(ended) = self.next_feature().or_else(|| self.next_abort()) {
            return Some(ended);
        }
        let (command, event) = self.events.next()?;
        Some((command, Reply::result(event.emit())))
    }

    /// An admin command, with its data if it has any.
    pub(crate) fn command(&mut self, now: Instant, sqe: &Sqe, data: Option<&[u8]>) -> Step {
        self.last_sign_of_life = now;
        self.take_queues();
        match self.dispatch(sqe, data) {
            Ok(step) => step,
            Err(status) => Step::Complete(Reply::status(status)),
        }
    }

    fn dispatch(&mut self, sqe: &Sqe, data: Option<&[u8]>) -> Result<Step, Status> {
        let opcode = Admin::from_code(sqe.opcode).ok_or(Status::INVALID_OPCODE.dnr())?;
        if !sqe.is_plain() {
            return Err(Status::INVALID_FIELD.dnr());
        }
        if opcode != Admin::Fabrics && self.lifecycle != Lifecycle::Ready {
            return Err(Status::COMMAND_SEQUENCE_ERROR.dnr());
        }
        match opcode {
            Admin::Fabrics => self.fabrics(sqe),
            Admin::Identify => self.identify(sqe),
            Admin::GetLogPage => self.log_page(sqe),
            Admin::SetFeatures => self.set_feature(sqe, data),
            Admin::GetFeatures => self.get_feature(sqe),
            Admin::KeepAlive => Ok(Step::DONE),
            Admin::AsyncEventRequest => {
                let held = self.events.request(CommandId(sqe.command_id.get()));
                held.map(|()| Step::Hold).ok_or(Status::AER_LIMIT_EXCEEDED.dnr())
            }
            Admin::Abort => self.abort(sqe),
        }
    }

    fn fabrics(&mut self, sqe: &Sqe) -> Result<Step, Status> {
        match fabrics::Command::parse(sqe) {
            fabrics::Command::PropertyGet { wide, offset } => self.property(wide, offset),
            fabrics::Command::PropertySet { wide, offset, value } => {
                let value = u32::try_from(value & 0xffff_ffff).unwrap_or(0);
                if wide || Property::from_offset(offset) != Some(Property::Configuration) {
                    return Err(Status::INVALID_FIELD.dnr());
                }
                self.configure(Configuration(value));
                Ok(Step::DONE)
            }
            fabrics::Command::Connect(_) => Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            // The admin queue is not disconnected this way (oF 3.6).
            fabrics::Command::Disconnect { .. } => Err(Status::INVALID_QUEUE_TYPE.dnr()),
            fabrics::Command::Other(_) => Err(Status::INVALID_OPCODE.dnr()),
        }
    }

    fn property(&self, wide: bool, offset: u32) -> Result<Step, Status> {
        let property = Property::from_offset(offset).filter(|property| property.is_wide() == wide);
        let value = match property.ok_or(Status::INVALID_FIELD.dnr())? {
            Property::Capabilities => Capabilities {
                queue_entries_max: self.limits.queue_entries_max,
                contiguous_queues: true,
                ready_timeout_half_seconds: READY_TIMEOUT_HALF_SECONDS,
                command_sets: 1,
            }
            .emit(),
            Property::Version => u64::from(VERSION_2_0),
            Property::Configuration => u64::from(self.configuration.0),
            Property::Status => u64::from(self.status().emit()),
            Property::SubsystemReset => return Err(Status::INVALID_FIELD.dnr()),
        };
        let bytes = value.to_le_bytes();
        Ok(Step::Complete(Reply {
            status: Status::SUCCESS,
            dw0: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            dw1: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }))
    }

    /// CSTS. A reset or shutdown is told as done, and a controller as ready, once nothing of earlier I/O queues can reach a namespace any
    /// more: what the host writes afterwards, by whatever path, must stay (Base 3.6, 3.7.2).
    fn status(&self) -> ControllerStatus {
        let ending = self.is_ending();
        ControllerStatus {
            ready: match self.lifecycle {
                Lifecycle::Ready => !ending,
                Lifecycle::Disabled => ending,
                Lifecycle::ShutDown | Lifecycle::Failed => false,
            },
            fatal: self.lifecycle == Lifecycle::Failed,
            shutdown: match self.lifecycle {
                Lifecycle::ShutDown if ending => ShutdownStatus::Occurring,
                Lifecycle::ShutDown => ShutdownStatus::Complete,
                Lifecycle::Disabled | Lifecycle::Ready | Lifecycle::Failed => ShutdownStatus::Normal,
            },
        }
    }

    /// The host wrote CC (Base 3.1.3.5).
    fn configure(&mut self, new: Configuration) {
        let old = std::mem::replace(&mut self.configuration, new);
        if old.enabled() && !new.enabled() {
            self.reset();
            return;
        }
        if !old.enabled() && new.enabled() {
            let io_entries =
                self.kind == Kind::Discovery || (new.sq_entry_size() == 6 && new.cq_entry_size() == 4);
            if new.command_set() != 0 || new.page_size() != 0 || !io_entries {
                self.lifecycle = Lifecycle::Failed;
                return;
            }
            self.lifecycle = Lifecycle::Ready;
            self.await_others();
            self.take_queues();
        }
        if matches!(new.shutdown(), ShutdownNotice::Normal | ShutdownNotice::Abrupt) {
            self.end_queues();
            self.lifecycle = Lifecycle::ShutDown;
        }
    }

    /// Controller Level Reset (Base 3.7.2): I/O queues and events are gone, features have their defaults.
    fn reset(&mut self) {
        self.end_queues();
        self.reset_commands.extend(self.events.reset());
        self.features = Features::new(self.kind);
        self.notices = Notices::default();
        self.changed.clear();
        self.lifecycle = Lifecycle::Disabled;
    }

    fn identify(&self, sqe: &Sqe) -> Result<Step, Status> {
        let namespaces = self.subsystem.namespaces();
        let subject = identify::Subject {
            kind: self.kind,
            id: self.link.id,
            config: self.subsystem.config(),
            limits: self.limits,
            namespaces: &namespaces,
        };
        give(sqe, subject.page(sqe)?, Reply::SUCCESS)
    }

    fn log_page(&mut self, sqe: &Sqe) -> Result<Step, Status> {
        let wanted = GetLogPage::parse(sqe);
        let page = LogId::from_code(wanted.page).filter(|page| logs::supported(self.kind, *page));
        let page = page.ok_or(Status::INVALID_LOG_PAGE.dnr())?;
        if wanted.index_offset || !wanted.offset.is_multiple_of(4) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let length = usize::try_from(wanted.length).unwrap_or(usize::MAX);
        if wanted.length > u64::from(self.limits.transfer_bytes_max) {
            return Err(Status::INVALID_FIELD.dnr());
        }
        let offset = usize::try_from(wanted.offset).map_err(|_| Status::INVALID_FIELD.dnr())?;
        let whole = self.page(page, &wanted);
        let Some(rest) = whole.get(offset..) else { return Err(Status::INVALID_FIELD.dnr()) };
        let mut data = rest[..rest.len().min(length)].to_vec();
        data.resize(length, 0);
        let step = give(sqe, data, Reply::SUCCESS)?;
        if page == LogId::Discovery {
            self.discovery_page = Some(whole);
        }
        if !wanted.retain_event {
            self.note_read(page);
        }
        Ok(step)
    }

    fn page(&mut self, page: LogId, wanted: &GetLogPage) -> Vec<u8> {
        match page {
            LogId::SupportedPages => logs::supported_pages(self.kind),
            LogId::ErrorInformation => logs::errors(),
            LogId::Health => logs::health(),
            LogId::FirmwareSlot => logs::firmware(),
            LogId::ChangedNamespaces => logs::changed_namespaces(&self.changed),
            LogId::CommandEffects => logs::command_effects(&self.subsystem.namespaces()),
            LogId::Ana => logs::ana(&self.subsystem.namespaces(), wanted.specific, self.ana_change_count),
            LogId::FeatureEffects => logs::feature_effects(|id| self.has_feature(id)),
            // A host reads the page in pieces and compares the generation: the pieces are of one page.
            LogId::Discovery => match self.discovery_page.take() {
                Some(page) if wanted.offset > 0 => page,
                _ => self.target.discovery_page(&self.link.association.host.nqn, self.here),
            },
            LogId::ReservationNotification => self.notices.page().as_bytes().to_vec(),
        }
    }

    /// Reading a page clears its event (Base 5.2.1).
    fn note_read(&mut self, page: LogId) {
        if page == LogId::ChangedNamespaces {
            self.changed.clear();
        }
        for event in AsyncEvent::ALL {
            if event.page() == page {
                self.events.clear(event);
            }
        }
        if page == LogId::ReservationNotification {
            self.note_notice_read();
        }
    }

    fn feature_id(&self, sqe: &Sqe) -> Result<FeatureId, Status> {
        let id = FeatureId::from_code(sqe.cdw10.get().to_le_bytes()[0]);
        id.filter(|id| self.has_feature(*id)).ok_or(Status::INVALID_FIELD.dnr())
    }

    fn has_feature(&self, id: FeatureId) -> bool {
        // There is nothing to ask of a cache that is not there (Base 5.27.1.4).
        let is_there =
            id != FeatureId::VolatileWriteCache || identify::volatile_cache(&self.subsystem.namespaces());
        features::supported(self.kind, id) && is_there
    }

    fn set_feature(&mut self, sqe: &Sqe, data: Option<&[u8]>) -> Result<Step, Status> {
        let feature = self.feature_id(sqe)?;
        if sqe.cdw10.get() & feature::SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE.dnr());
        }
        let of_namespace =
            matches!(feature, FeatureId::ReservationNotificationMask | FeatureId::ReservationPersistence);
        if !of_namespace && !matches!(sqe.nsid.get(), 0 | u32::MAX) {
            return Err(Status::FEATURE_NOT_NAMESPACE_SPECIFIC.dnr());
        }
        let value = sqe.cdw11.get();
        match feature {
            FeatureId::NumberOfQueues => self.set_queues(value),
            FeatureId::KeepAliveTimer => {
                self.set_keep_alive(value);
                Ok(Step::DONE)
            }
            FeatureId::HostBehavior => self.set_host_behavior(sqe, data),
            // The identifier of a fabrics host is the one of its Connect (Base 5.27.1.25).
            FeatureId::HostIdentifier => Err(Status::COMMAND_SEQUENCE_ERROR.dnr()),
            FeatureId::ReservationNotificationMask => self.set_notice_mask(sqe),
            FeatureId::ReservationPersistence => self.set_persistence(sqe),
            _ => self.features.set(feature, value).map(|()| {
                self.look();
                Step::DONE
            }),
        }
    }

    fn set_queues(&mut self, value: u32) -> Result<Step, Status> {
        let wanted = QueueCount::parse(value).ok_or(Status::INVALID_FIELD.dnr())?;
        let max = u32::from(self.target.options().io_queues_max);
        let granted = wanted.submission.min(wanted.completion).min(max);
        let queues = u16::try_from(granted).map_err(|_| Status::INVALID_FIELD.dnr())?;
        self.link.grant(queues).ok_or(Status::COMMAND_SEQUENCE_ERROR.dnr())?;
        let counts = QueueCount { submission: granted, completion: granted };
        Ok(Step::Complete(Reply::result(counts.emit())))
    }

    fn set_host_behavior(&mut self, sqe: &Sqe, data: Option<&[u8]>) -> Result<Step, Status> {
        let Some(data) = data else {
            let length = Sgl::parse(&sqe.sgl)?.length();
            let fits = length == HOST_BEHAVIOR_LEN;
            return fits.then_some(Step::Take { length }).ok_or(Status::SGL_LENGTH_INVALID.dnr());
        };
        let data: [u8; 512] = data.try_into().map_err(|_| Status::SGL_LENGTH_INVALID.dnr())?;
        if data[0] > 1 {
            return Err(Status::INVALID_FIELD.dnr());
        }
        self.features.host_behavior = data;
        Ok(Step::DONE)
    }

    fn get_feature(&self, sqe: &Sqe) -> Result<Step, Status> {
        let feature = self.feature_id(sqe)?;
        let select = Select::parse(sqe.cdw10.get()).ok_or(Status::INVALID_FIELD.dnr())?;
        if let Some(value) = self.features.get(feature, select) {
            return Ok(Step::Complete(Reply::result(value)));
        }
        if select == Select::Capabilities {
            let value = match feature {
                FeatureId::HostIdentifier => 0,
                FeatureId::ReservationNotificationMask | FeatureId::ReservationPersistence => {
                    feature::CAPABILITY_CHANGEABLE | feature::CAPABILITY_OF_NAMESPACE
                }
                _ => feature::CAPABILITY_CHANGEABLE,
            };
            return Ok(Step::Complete(Reply::result(value)));
        }
        match feature {
            FeatureId::NumberOfQueues => {
                let queues = u32::from(self.link.granted());
                let counts = QueueCount { submission: queues, completion: queues };
                Ok(Step::Complete(Reply::result(counts.emit())))
            }
            FeatureId::KeepAliveTimer => Ok(Step::Complete(Reply::result(self.keep_alive_ms))),
            FeatureId::HostBehavior => give(sqe, self.features.host_behavior.to_vec(), Reply::SUCCESS),
            // Dword 11 bit 0 (EXHID): fabrics hosts have 128-bit identifiers only.
            FeatureId::HostIdentifier if sqe.cdw11.get() & 1 == 1 => {
                give(sqe, self.link.association.host.id.0.to_vec(), Reply::SUCCESS)
            }
            FeatureId::ReservationNotificationMask | FeatureId::ReservationPersistence => {
                let value = self.reservation_feature(feature, sqe.nsid.get())?;
                let value = if select == Select::Current { value } else { 0 };
                Ok(Step::Complete(Reply::result(value)))
            }
            _ => Err(Status::INVALID_FIELD.dnr()),
        }
    }

    /// Abort (Base 5.1): takes back an event request; the queue of an I/O command is asked to end it. Dword 0 bit 0 says that the
    /// command runs, or ran, to its end.
    fn abort(&mut self, sqe: &Sqe) -> Result<Step, Status> {
        let dword = sqe.cdw10.get().to_le_bytes();
        let queue = u16::from_le_bytes([dword[0], dword[1]]);
        let command = CommandId(u16::from_le_bytes([dword[2], dword[3]]));
        if queue == 0 && self.events.cancel(command) {
            return Ok(Step::AbortHeld { command });
        }
        let Some(fence) = self.subsystem.fence(self.link.id, QueueId(queue)) else {
            return Ok(Step::Complete(Reply::result(NOT_ABORTED)));
        };
        if self.aborts.len() > usize::from(identify::ABORT_LIMIT) {
            return Err(Status::ABORT_LIMIT_EXCEEDED.dnr());
        }
        let ticket = Arc::<AbortTicket>::default();
        fence.give(AbortOrder::one(command, &ticket, self.target.changes()));
        self.aborts.push((CommandId(sqe.command_id.get()), ticket));
        self.target.changes().note();
        Ok(Step::Hold)
    }

    fn next_abort(&mut self) -> Option<(CommandId, Reply)> {
        let ended = |(place, (_, ticket)): (usize, &(CommandId, Arc<AbortTicket>))| {
            ticket.outcome().map(|aborted| (place, aborted))
        };
        let (place, aborted) = self.aborts.iter().enumerate().find_map(ended)?;
        let (command, _) = self.aborts.remove(place);
        Some((command, Reply::result(if aborted { 0 } else { NOT_ABORTED })))
    }
}

/// Dword 0 of an Abort that came too late, or for what is not there.
const NOT_ABORTED: u32 = 1;

impl Drop for Controller {
    fn drop(&mut self) {
        self.link.end();
        self.subsystem.dismiss(self.link.id);
    }
}

fn seen(namespace: &Arc<Namespace>) -> Seen {
    Seen {
        blocks: namespace.device().info().blocks().0,
        ana_changes: namespace.ana_changes(),
        uuid: namespace.identity().uuid,
    }
}
