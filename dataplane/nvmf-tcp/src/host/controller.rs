//! A controller that a host is connected to.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::fabrics::{Command as Fabrics, DISCOVERY_NQN};
use basalt_nvme_wire::log::AsyncEvent;
use basalt_nvme_wire::opcode::Admin;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvme_wire::register::{Configuration, Property};
use basalt_nvme_wire::{Cqe, Sqe};
use basalt_nvmf_host::{
    Bringup, BringupError, Command, ConnectRefusal, ControllerFacts, Data, Discover, DiscoveredSubsystem,
    HostOptions, Next, QueueError,
};
use basalt_nvmf_transport::{Nqn, QueueId};
use basalt_reactor::{Handle, Task};

use super::admin::{AsyncQueue, STAGING_BYTES};
use super::connection::Connection;
use super::io_queue::IoQueue;

/// How a host connects over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpHostOptions {
    /// Where the controller listens.
    pub address: SocketAddr,
    /// What the host asks for.
    pub host: HostOptions,
    /// Digests that are asked for.
    pub digests: Digests,
}

/// Commands outstanding on an admin queue: one less than its entries.
const ADMIN_DEPTH: u16 = 31;
/// Data that a command capsule of an admin queue carries (TCP 3.3.1).
const ADMIN_IN_CAPSULE_BYTES: u32 = 8192;
/// Time between looks at a controller that is not ready yet.
const READY_POLL: Duration = Duration::from_millis(10);
/// Looks before the controller is given up.
const READY_POLLS_MAX: u32 = 1500;

/// What a controller reported since it was last asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControllerEvents {
    /// Asynchronous events, each kind once.
    pub events: Vec<AsyncEvent>,
}

/// What the parts of a controller share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Why the controller is over.
    pub(crate) over: Cell<Option<QueueError>>,
    events: RefCell<Vec<AsyncEvent>>,
}

/// A controller that this host is connected to. Dropping it closes its connections.
pub struct Controller {
    admin: AsyncQueue,
    facts: ControllerFacts,
    shared: Rc<Shared>,
    timeout: Duration,
    /// Keep alive and events.
    background: Vec<Task<()>>,
}

/// Connects to a controller and to its I/O queues.
///
/// # Errors
/// Why it cannot be used.
pub async fn connect(
    handle: &Handle,
    options: &TcpHostOptions,
) -> Result<(Controller, Vec<IoQueue>), BringupError> {
    let admin = open(handle, options, ADMIN_DEPTH)?;
    let facts = bring_up(handle, &admin, &options.host).await?;
    let shared = Rc::new(Shared::default());
    let staging = Rc::new(RefCell::new(Buffer::zeroed(STAGING_BYTES)));
    let entries = options.host.io_queue_entries.min(facts.queue_entries_max);
    let mut queues = Vec::new();
    for number in 1..=facts.io_queues {
        let queue = open(handle, options, entries - 1)?;
        let command = options.host.connect(QueueId(number), Some(facts.id), entries);
        let command = command.map_err(|_| BringupError::Nonsense { step: "Connect" })?;
        let outcome = queue.run(command, Some(options.host.command_timeout)).await?;
        let cqe = outcome.result?;
        if !cqe.status().is_success() {
            let refusal = ConnectRefusal::new(&options.host, QueueId(number), &cqe);
            return Err(BringupError::Connect(Box::new(refusal)));
        }
        let Some(mut connection) = queue.into_connection() else {
            return Err(BringupError::Queue(QueueError::ClosedHere));
        };
        connection.set_in_capsule_max(facts.in_capsule_bytes);
        queues.push(IoQueue::new(connection, Rc::clone(&staging), Rc::clone(&shared)));
    }
    let mut controller =
        Controller { admin, facts, shared, timeout: options.host.command_timeout, background: Vec::new() };
    controller.run_background(handle, options.host.keep_alive);
    Ok((controller, queues))
}

/// Reads the discovery log page of the discovery controller at `options.address`.
///
/// # Errors
/// Why it cannot be read.
pub async fn discover(
    handle: &Handle,
    options: &TcpHostOptions,
) -> Result<Vec<DiscoveredSubsystem>, BringupError> {
    let mut options = options.clone();
    options.host.subsystem =
        Nqn::new(DISCOVERY_NQN).map_err(|_| BringupError::Nonsense { step: "Connect" })?;
    options.host.keep_alive = Duration::ZERO;
    let admin = open(handle, &options, ADMIN_DEPTH)?;
    bring_up(handle, &admin, &options.host).await?;
    let mut discover = Discover::new();
    while let Next::Send(command) = discover.ask() {
        let (cqe, data) = run(&admin, command, options.host.command_timeout).await?;
        discover.answer(&cqe, &data)?;
    }
    Ok(discover.found().to_vec())
}

fn open(handle: &Handle, options: &TcpHostOptions, depth: u16) -> Result<AsyncQueue, BringupError> {
    let socket =
        handle.connect(options.address).map_err(|_| QueueError::Socket("cannot begin to connect"))?;
    let connection = Connection::new(socket, options.digests, depth, ADMIN_IN_CAPSULE_BYTES);
    Ok(AsyncQueue::new(handle, connection))
}

async fn bring_up(
    handle: &Handle,
    admin: &AsyncQueue,
    options: &HostOptions,
) -> Result<ControllerFacts, BringupError> {
    let mut bringup = Bringup::new(options.clone());
    let mut waits = 0;
    loop {
        match bringup.ask()? {
            Next::Send(command) => {
                let (cqe, data) = run(admin, command, options.command_timeout).await?;
                bringup.answer(&cqe, &data)?;
            }
            Next::Wait if waits >= READY_POLLS_MAX => return Err(BringupError::NotReady),
            Next::Wait => {
                waits += 1;
                handle.sleep(READY_POLL).await;
            }
            Next::Done => return Ok(bringup.facts().clone()),
        }
    }
}

async fn run(
    admin: &AsyncQueue,
    command: Command,
    timeout: Duration,
) -> Result<(Cqe, Vec<u8>), BringupError> {
    let gives = matches!(command.data, Data::ToHost(_));
    let outcome = admin.run(command, Some(timeout)).await?;
    let data = if gives { outcome.payload.to_vec() } else { Vec::new() };
    Ok((outcome.result?, data))
}

impl Controller {
    /// What was learnt when it was connected.
    #[must_use]
    pub fn facts(&self) -> &ControllerFacts {
        &self.facts
    }

    /// Why it is over, if it is: its queues are too.
    #[must_use]
    pub fn over(&self) -> Option<QueueError> {
        self.shared.over.get().or_else(|| self.admin.over())
    }

    /// What it reported since the last call.
    #[must_use]
    pub fn take_events(&self) -> ControllerEvents {
        ControllerEvents { events: std::mem::take(&mut *self.shared.events.borrow_mut()) }
    }

    /// Runs an admin command; answers its completion and the data that it gave.
    ///
    /// # Errors
    /// Why there is no completion.
    pub async fn admin(&self, command: Command) -> Result<(Cqe, Payload), QueueError> {
        let outcome = self.admin.run(command, Some(self.timeout)).await?;
        outcome.result.map(|cqe| (cqe, outcome.payload))
    }

    /// Tells the controller that the host goes (CC.SHN, Base 3.6.1), so that nobody waits for its keep alive.
    ///
    /// # Errors
    /// Why the controller was not told.
    pub async fn shut_down(&self) -> Result<(), QueueError> {
        self.begin_shut_down().await
    }

    /// The same as a future of its own.
    pub(crate) fn begin_shut_down(&self) -> impl Future<Output = Result<(), QueueError>> + use<> {
        let (admin, shared, timeout) = (self.admin.clone(), Rc::clone(&self.shared), self.timeout);
        async move {
            let value = u64::from(Configuration::ENABLE.0 | Configuration::SHUTDOWN_NORMAL);
            let offset = Property::Configuration as u32;
            let sqe = Fabrics::PropertySet { wide: false, offset, value }.emit(0);
            let outcome = admin.run(Command { sqe, data: Data::None }, Some(timeout)).await?;
            outcome.result?;
            admin.end(QueueError::ClosedHere);
            shared.over.set(Some(QueueError::ClosedHere));
            Ok(())
        }
    }

    fn run_background(&mut self, handle: &Handle, keep_alive: Duration) {
        if keep_alive > Duration::ZERO {
            let (admin, shared, clock) = (self.admin.clone(), Rc::clone(&self.shared), handle.clone());
            self.background.push(handle.spawn(async move {
                // Half of the timeout leaves room for a lost one.
                while shared.over.get().is_none() {
                    clock.sleep(keep_alive / 2).await;
                    let command = Command { sqe: Sqe::new(Admin::KeepAlive.code(), 0), data: Data::None };
                    if let Err(error) = admin.run(command, Some(keep_alive)).await.and_then(|o| o.result) {
                        admin.end(error);
                        shared.over.set(Some(error));
                    }
                }
            }));
        }
        let (admin, shared) = (self.admin.clone(), Rc::clone(&self.shared));
        self.background.push(handle.spawn(async move {
            loop {
                let sqe = Sqe::new(Admin::AsyncEventRequest.code(), 0);
                match admin.run(Command { sqe, data: Data::None }, None).await.and_then(|o| o.result) {
                    Ok(cqe) if cqe.status().is_success() => {
                        let mut events = shared.events.borrow_mut();
                        if let Some(event) = AsyncEvent::parse(cqe.dw0.get())
                            && !events.contains(&event)
                        {
                            events.push(event);
                        }
                    }
                    Ok(_) => return,
                    Err(error) => {
                        if shared.over.get().is_none() {
                            shared.over.set(Some(error));
                        }
                        return;
                    }
                }
            }
        }));
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if self.shared.over.get().is_none() {
            self.shared.over.set(Some(QueueError::ClosedHere));
        }
        self.admin.end(QueueError::ClosedHere);
        for task in self.background.drain(..) {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("facts", &self.facts).finish_non_exhaustive()
    }
}
