//! One connection's queue: what a transport hands commands to.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use basalt_bdev::Operation;
use basalt_clock::Instant;
use basalt_nvme_wire::fabrics::{self, CONTROLLER_ANY, ConnectData, DISCOVERY_NQN};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::{ConnectField, Sgl, Sqe, Status, identify};
use basalt_nvmf_transport::{
    Association, Authentication, CommandId, ControllerId, Epoch, HostId, HostIdentity, Nqn, QueueId,
    TransportLimits,
};

use crate::abort::{AbortOrder, Fence, QueuesEnd};
use crate::controller::Controller;
use crate::fused::Pairing;
use crate::io::IoContext;
use crate::link::{ControllerLink, JoinError};
use crate::namespace::Namespace;
use crate::reply::{Reply, Step};
use crate::reservation::{KnownRights, Pending};
use crate::subsystem::{AdmitError, Subsystem};
use crate::target::Target;

/// What the transport learns about its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Nothing to do.
    Unchanged,
    /// The table of namespaces changed: slots mean other namespaces now.
    Namespaces,
    /// The queue is over: close the connection.
    Over,
}

/// What Connect agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    entries: u32,
    flow_control: bool,
}

#[derive(Debug)]
enum Role {
    /// Before Connect.
    Fresh,
    Admin(Box<Controller>),
    Io(IoQueue),
    /// Being disconnected by this command, which is answered when nothing of the queue is under way any more. Until then its
    /// identifier is taken.
    Leaving {
        _queue: IoQueue,
        command: CommandId,
        ended: Arc<AtomicBool>,
    },
    /// Disconnected by command.
    Ended,
}

#[derive(Debug)]
struct IoQueue {
    id: QueueId,
    subsystem: Arc<Subsystem>,
    link: Arc<ControllerLink>,
    /// Count of controller resets that the queue belongs to.
    resets: u32,
    version: u64,
    namespaces: Arc<[Arc<Namespace>]>,
    rights: KnownRights,
    pairing: Pairing,
    reservations: Pending,
}

impl IoQueue {
    fn context(&self, limits: TransportLimits) -> IoContext<'_> {
        let transfer_bytes_max = limits.transfer_bytes_max;
        IoContext { namespaces: &self.namespaces, rights: &self.rights, transfer_bytes_max }
    }
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        self.link.leave(self.id, self.resets);
    }
}

/// One queue of one controller, or a connection that has not said yet what it will be. Lives on one reactor.
#[derive(Debug)]
pub struct Queue {
    target: Arc<Target>,
    limits: TransportLimits,
    /// The address of this machine that the host has reached.
    here: Option<IpAddr>,
    role: Role,
    shape: Shape,
    /// Of a connected queue, also when it was disconnected: its commands may still be with devices. Dropped after the role, which ends
    /// the controller.
    fence: Option<Arc<Fence>>,
}

impl Queue {
    /// The queue of a fresh connection.
    pub fn new(target: Arc<Target>, limits: TransportLimits) -> Self {
        // Until Connect there is one command.
        Self {
            target,
            limits,
            here: None,
            role: Role::Fresh,
            shape: Shape { entries: 2, flow_control: true },
            fence: None,
        }
    }

    /// The same for a host that has reached this machine at `here`: where discovery sends it for what listens on all addresses.
    #[must_use]
    pub fn reached_at(mut self, here: Option<IpAddr>) -> Self {
        self.here = here;
        self
    }

    /// Entries of the queue as Connect said; commands beyond are a violation by the host.
    pub fn entries(&self) -> u32 {
        self.shape.entries
    }

    /// Whether the host follows the submission queue head; if not, completions may be left out where the transport can
    /// say success otherwise (TCP 3.3.2.2).
    pub fn has_flow_control(&self) -> bool {
        self.shape.flow_control
    }

    /// Whether Connect has succeeded.
    pub fn is_connected(&self) -> bool {
        matches!(self.role, Role::Admin(_) | Role::Io(_))
    }

    /// Whether this is the admin queue of a controller.
    pub fn is_admin(&self) -> bool {
        matches!(self.role, Role::Admin(_))
    }

    /// Whether this is a connected I/O queue.
    pub fn is_io(&self) -> bool {
        matches!(self.role, Role::Io(_))
    }

    /// The controller's identifier once connected.
    pub fn controller_id(&self) -> Option<ControllerId> {
        match &self.role {
            Role::Admin(controller) => Some(controller.link().id),
            Role::Io(queue) => Some(queue.link.id),
            Role::Fresh | Role::Leaving { .. } | Role::Ended => None,
        }
    }

    /// The namespaces that [`NamespaceSlot`](crate::NamespaceSlot)s mean; empty for queues that run no I/O.
    pub fn namespaces(&self) -> &[Arc<Namespace>] {
        match &self.role {
            Role::Io(queue) => &queue.namespaces,
            Role::Fresh | Role::Admin(_) | Role::Leaving { .. } | Role::Ended => &[],
        }
    }

    /// What to do with a command; its data has not been taken from the host yet.
    pub fn command(&mut self, now: Instant, sqe: &Sqe) -> Step {
        match &mut self.role {
            Role::Io(queue) if !queue.link.holds(queue.resets) => Step::refuse(Status::ABORTED_SQ_DELETION),
            Role::Io(queue) if sqe.opcode != Admin::Fabrics.code() => {
                queue.link.note_traffic();
                let context = IoContext {
                    namespaces: &queue.namespaces,
                    rights: &queue.rights,
                    transfer_bytes_max: self.limits.transfer_bytes_max,
                };
                if sqe.is_plain() && queue.pairing.is_idle() {
                    context.command(sqe)
                } else {
                    queue.pairing.command(&context, sqe)
                }
            }
            Role::Io(_) => self.fabrics_on_io(sqe),
            Role::Admin(controller) => controller.command(now, sqe, None),
            Role::Fresh => self.first(sqe),
            Role::Leaving { .. } | Role::Ended => Step::refuse(Status::COMMAND_SEQUENCE_ERROR),
        }
    }

    /// What to do with a command whose data was taken as [`Step::Take`] said.
    pub fn command_with_data(&mut self, now: Instant, sqe: &Sqe, data: &[u8]) -> Step {
        match &mut self.role {
            Role::Io(queue) if !queue.link.holds(queue.resets) => Step::refuse(Status::ABORTED_SQ_DELETION),
            Role::Io(queue) if sqe.opcode == Io::DatasetManagement.code() => {
                queue.context(self.limits).with_ranges(sqe, data)
            }
            Role::Io(queue) => {
                let context = IoContext {
                    namespaces: &queue.namespaces,
                    rights: &queue.rights,
                    transfer_bytes_max: self.limits.transfer_bytes_max,
                };
                context.reserve(queue.link.association.host.id, &mut queue.reservations, sqe, data)
            }
            Role::Admin(controller) => controller.command(now, sqe, Some(data)),
            Role::Fresh => self.connect(now, sqe, data),
            Role::Leaving { .. } | Role::Ended => Step::refuse(Status::COMMAND_SEQUENCE_ERROR),
        }
    }

    /// Whether a block command that waited for its data may run now: a reservation, an access state, a reset or the queue's end may keep
    /// it out since.
    ///
    /// # Errors
    /// How it ends.
    pub fn may_run(&self, namespace: &Namespace, operation: Operation) -> Result<(), Status> {
        match &self.role {
            Role::Io(queue) if queue.link.holds(queue.resets) => {
                queue.context(self.limits).may_run(namespace, operation)
            }
            Role::Io(_) | Role::Leaving { .. } | Role::Ended => Err(Status::ABORTED_SQ_DELETION.dnr()),
            Role::Fresh | Role::Admin(_) => Ok(()),
        }
    }

    /// Orders to end what is under way, one command or all of a namespace, since the last call: call when [`Target::version`] grew. To
    /// be dropped once nothing of it can reach the namespace any more.
    pub fn take_abort_orders(&mut self) -> Vec<AbortOrder> {
        self.fence.as_ref().map_or_else(Vec::new, |fence| fence.take())
    }

    /// The host has ended the connection, which such an order asked for: nothing of the controller runs any more, and the transport ends
    /// the connection.
    pub fn host_has_left(&mut self, order: &AbortOrder) {
        if let Role::Admin(controller) = &self.role {
            controller.host_has_left(order);
        }
    }

    /// Data of a command is on its way from the host: a sign of life as commands are.
    pub fn note_data(&self) {
        match &self.role {
            Role::Io(queue) => queue.link.note_traffic(),
            Role::Admin(controller) => controller.link().note_traffic(),
            Role::Fresh | Role::Leaving { .. } | Role::Ended => {}
        }
    }

    /// A command that the transport answers with `status` by itself: call instead of [`Queue::command`].
    pub fn skip(&mut self, sqe: &Sqe, status: Status) {
        if let Role::Io(queue) = &mut self.role {
            queue.pairing.skip(sqe, status);
        }
    }

    /// The first half of a fused pair ended with `status` before its second half came, for want of its data.
    pub fn fail_first(&mut self, status: Status) {
        if let Role::Io(queue) = &mut self.role {
            queue.pairing.fail_first(status);
        }
    }

    /// How the first half of a fused pair that waited ends, if the last command ended it: call after [`Queue::command`] and
    /// [`Queue::skip`] while one waits.
    pub fn broken_first(&mut self) -> Option<Reply> {
        match &mut self.role {
            Role::Io(queue) => queue.pairing.take_broken().map(Reply::status),
            // Disconnected.
            Role::Fresh | Role::Admin(_) | Role::Leaving { .. } | Role::Ended => {
                Some(Reply::status(Status::ABORTED_MISSING_FUSED.dnr()))
            }
        }
    }

    /// Completes the next held command that has come to its end, by an event or by a store: call after commands and after
    /// [`Queue::refresh`].
    pub fn next_event(&mut self) -> Option<(CommandId, Reply)> {
        match &mut self.role {
            Role::Admin(controller) => controller.next_event(),
            Role::Io(queue) => queue.reservations.next(),
            Role::Leaving { command, ended, .. } if ended.load(Ordering::Acquire) => {
                let command = *command;
                self.role = Role::Ended;
                Some((command, Reply::SUCCESS))
            }
            Role::Fresh | Role::Leaving { .. } | Role::Ended => None,
        }
    }

    /// Looks for changes: call when [`Target::version`] grew, and every now and then as devices may be resized.
    pub fn refresh(&mut self) -> Activity {
        match &mut self.role {
            Role::Fresh | Role::Leaving { .. } => Activity::Unchanged,
            Role::Ended => Activity::Over,
            Role::Admin(controller) if controller.link().is_gone() => Activity::Over,
            Role::Admin(controller) => {
                controller.look();
                Activity::Unchanged
            }
            Role::Io(queue) if !queue.link.holds(queue.resets) => Activity::Over,
            Role::Io(queue) => {
                let version = queue.subsystem.version();
                if version == queue.version {
                    return Activity::Unchanged;
                }
                queue.version = version;
                let namespaces = queue.subsystem.namespaces();
                if Arc::ptr_eq(&namespaces, &queue.namespaces) {
                    return Activity::Unchanged;
                }
                queue.namespaces = namespaces;
                queue.rights = KnownRights::new(queue.link.association.host.id, queue.namespaces.len());
                Activity::Namespaces
            }
        }
    }

    /// Looks at the time: whether the host has been silent for longer than its keep alive timeout.
    pub fn tick(&mut self, now: Instant) -> Activity {
        if let Role::Admin(controller) = &mut self.role
            && controller.is_expired(now)
        {
            return Activity::Over;
        }
        self.refresh()
    }

    fn fabrics_on_io(&mut self, sqe: &Sqe) -> Step {
        if let Role::Io(queue) = &mut self.role {
            queue.pairing.interrupt();
        }
        if !sqe.is_plain() {
            return Step::refuse(Status::INVALID_FIELD);
        }
        match fabrics::Command::parse(sqe) {
            fabrics::Command::Disconnect { format: 0 } => {
                self.leave(CommandId(sqe.command_id.get()));
                Step::Hold
            }
            fabrics::Command::Disconnect { .. } => Step::refuse(Status::CONNECT_INCOMPATIBLE_FORMAT),
            fabrics::Command::Connect(_) => Step::refuse(Status::COMMAND_SEQUENCE_ERROR),
            // Properties are reached through the admin queue (oF 3.4).
            fabrics::Command::PropertyGet { .. } | fabrics::Command::PropertySet { .. } => {
                Step::refuse(Status::INVALID_FIELD)
            }
            fabrics::Command::Other(_) => Step::refuse(Status::INVALID_OPCODE),
        }
    }

    /// Ends the I/O queue as its host asked: the command is held until nothing of the queue is under way.
    fn leave(&mut self, command: CommandId) {
        if let Role::Io(queue) = std::mem::replace(&mut self.role, Role::Ended) {
            let fences: Vec<_> = self.fence.iter().cloned().collect();
            let ended = QueuesEnd::order(&fences, self.target.changes());
            self.role = Role::Leaving { _queue: queue, command, ended };
        }
    }

    /// The first command must be Connect (oF 3.3).
    fn first(&self, sqe: &Sqe) -> Step {
        let is_connect = sqe.opcode == Admin::Fabrics.code()
            && matches!(fabrics::Command::parse(sqe), fabrics::Command::Connect(_));
        if !is_connect {
            return Step::refuse(Status::COMMAND_SEQUENCE_ERROR);
        }
        if !sqe.is_plain() {
            return Step::refuse(Status::INVALID_FIELD);
        }
        let length = size_of::<ConnectData>();
        match Sgl::parse(&sqe.sgl) {
            Ok(sgl) if sgl.length() as usize == length => Step::Take { length: sgl.length() },
            Ok(_) => Step::refuse(Status::SGL_LENGTH_INVALID),
            Err(_) => Step::refuse(Status::SGL_TYPE_INVALID),
        }
    }

    fn connect(&mut self, now: Instant, sqe: &Sqe, data: &[u8]) -> Step {
        let fabrics::Command::Connect(connect) = fabrics::Command::parse(sqe) else {
            return Step::refuse(Status::COMMAND_SEQUENCE_ERROR);
        };
        let Ok(data) = identify::parse::<ConnectData>(data) else {
            return Step::refuse(Status::SGL_LENGTH_INVALID);
        };
        match self.try_connect(now, &connect, data) {
            Ok(controller) => {
                let flow_control = connect.attributes & fabrics::ATTRIBUTE_NO_SQ_FLOW == 0;
                self.shape = Shape { entries: connect.queue_size, flow_control };
                Step::Complete(Reply::result(u32::from(controller.0)))
            }
            Err(reply) => Step::Complete(reply),
        }
    }

    fn try_connect(
        &mut self,
        now: Instant,
        connect: &fabrics::Connect,
        data: &ConnectData,
    ) -> Result<ControllerId, Reply> {
        if connect.format != 0 {
            return Err(Reply::status(Status::CONNECT_INCOMPATIBLE_FORMAT.dnr()));
        }
        // A queue has at least two entries: one is always free (Base 3.3.1.1).
        if connect.queue_size < 2 || connect.queue_size > u32::from(self.limits.queue_entries_max) {
            return Err(invalid(ConnectField::QueueSize));
        }
        let association = association(data)?;
        let subsystem = self.subsystem(data)?;
        let id = ControllerId(data.controller_id.get());
        if QueueId(connect.queue_id).is_admin() {
            self.connect_admin(now, connect, association, subsystem, id)
        } else {
            self.connect_io(QueueId(connect.queue_id), &association, subsystem, id)
        }
    }

    fn subsystem(&self, data: &ConnectData) -> Result<Arc<Subsystem>, Reply> {
        let nqn = fabrics::parse_nqn(&data.subsystem_nqn).ok_or(invalid(ConnectField::SubsystemNqn))?;
        if nqn == DISCOVERY_NQN {
            return Ok(Arc::clone(self.target.discovery()));
        }
        // The same name may be served a moment later, as after a restart: the host shall try again.
        self.target.subsystem(nqn).ok_or(not_there(ConnectField::SubsystemNqn))
    }

    fn connect_admin(
        &mut self,
        now: Instant,
        connect: &fabrics::Connect,
        association: Association,
        subsystem: Arc<Subsystem>,
        id: ControllerId,
    ) -> Result<ControllerId, Reply> {
        // Controllers are dynamic: a host takes what it gets (oF 4.3).
        if id.0 != CONTROLLER_ANY {
            return Err(invalid(ConnectField::ControllerId));
        }
        let link = subsystem.admit(association, self.target.options().io_queues_max);
        let link = link.map_err(|error| match error {
            AdmitError::Host => Reply::status(Status::CONNECT_INVALID_HOST.dnr()),
            AdmitError::Busy => Reply::status(Status::CONNECT_CONTROLLER_BUSY),
        })?;
        let id = link.id;
        self.fence = Some(subsystem.add_fence(Fence::new(&link, QueueId::ADMIN)));
        let target = Arc::clone(&self.target);
        let keep_alive_ms = connect.keep_alive_ms;
        let controller = Controller::new(target, subsystem, link, self.limits, self.here, keep_alive_ms, now);
        self.role = Role::Admin(Box::new(controller));
        Ok(id)
    }

    fn connect_io(
        &mut self,
        queue: QueueId,
        association: &Association,
        subsystem: Arc<Subsystem>,
        id: ControllerId,
    ) -> Result<ControllerId, Reply> {
        if !subsystem.allows(&association.host.nqn) {
            return Err(Reply::status(Status::CONNECT_INVALID_HOST.dnr()));
        }
        let is_discovery = Arc::ptr_eq(&subsystem, self.target.discovery());
        let link =
            subsystem.controller(id).filter(|_| !is_discovery).ok_or(invalid(ConnectField::ControllerId))?;
        if link.association != *association {
            return Err(invalid(ConnectField::HostId));
        }
        let resets = link.join(queue).map_err(|error| match error {
            // It can be ready a moment later.
            JoinError::NotReady => Reply::status(Status::CONNECT_INVALID_PARAMETERS),
            JoinError::QueueId => invalid(ConnectField::QueueId),
            JoinError::Connected => Reply::status(Status::COMMAND_SEQUENCE_ERROR.dnr()),
        })?;
        let version = subsystem.version();
        let namespaces = subsystem.namespaces();
        self.fence = Some(subsystem.add_fence(Fence::new(&link, queue)));
        let rights = KnownRights::new(link.association.host.id, namespaces.len());
        self.role = Role::Io(IoQueue {
            id: queue,
            subsystem,
            link,
            resets,
            version,
            namespaces,
            rights,
            pairing: Pairing::default(),
            reservations: Pending::default(),
        });
        Ok(id)
    }
}

/// The field is invalid: the same Connect cannot succeed later.
fn invalid(field: ConnectField) -> Reply {
    Reply { status: Status::CONNECT_INVALID_PARAMETERS.dnr(), dw0: field.code(), dw1: 0 }
}

/// What the field names is not there now.
fn not_there(field: ConnectField) -> Reply {
    Reply { status: Status::CONNECT_INVALID_PARAMETERS, dw0: field.code(), dw1: 0 }
}

fn association(data: &ConnectData) -> Result<Association, Reply> {
    let nqn = host_nqn(data).ok_or(invalid(ConnectField::HostNqn))?;
    let epoch = data.reserved_768.first_chunk::<8>().and_then(|bytes| Epoch::parse(*bytes));
    let host = HostIdentity { nqn, id: HostId(data.host_id), authentication: Authentication::Claimed };
    Ok(Association { host, epoch })
}

/// The name that a host gave. One that gave none, as SPDK's load generator does unless it is told one, goes by the name that its identifier
/// makes (Base 4.5.1), which a list of allowed hosts may hold like any other.
fn host_nqn(data: &ConnectData) -> Option<Nqn> {
    if data.host_nqn[0] != 0 {
        return fabrics::parse_nqn(&data.host_nqn).and_then(|nqn| Nqn::new(nqn).ok());
    }
    let id = uuid::Uuid::from_bytes(data.host_id);
    if id.is_nil() { None } else { Nqn::new(&format!("nqn.2014-08.org.nvmexpress:uuid:{id}")).ok() }
}
