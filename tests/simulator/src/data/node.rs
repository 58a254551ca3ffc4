//! A storage node: the production agent on a simulated machine, with the ports that the daemon fills on a real one.

use crate::data::fleet::{Fleet, MachineId};
use crate::event;
use basalt_agent::{
    Agent, AgentConfig, DesiredNode, DiskOpener, Exporter, LocalFuture, NodeReport, Ports, Refused, Reporter,
    StateStore, StoreError,
};
use basalt_bdev::BlockDevice;
use basalt_device_uring::{UringDevice, UringError, UringOptions};
use basalt_reactor::{DiskError, DiskOptions, Handle};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// What makes an exporter for one run of a node.
pub trait Target {
    /// An exporter on the node's reactor.
    fn exporter(&self, handle: &Handle) -> Rc<dyn Exporter>;
}

/// What survives the node's processes, and what can be seen of them.
#[derive(Debug, Default)]
pub struct NodeMemory {
    kept: RefCell<Option<DesiredNode>>,
    /// What the agent reported last, in this run.
    pub report: RefCell<Option<NodeReport>>,
    agent: RefCell<Option<Agent>>,
    saves_fail: Cell<bool>,
    /// Paths at which there is no disk at the moment.
    away: RefCell<BTreeSet<String>>,
    applying: Cell<bool>,
}

/// A storage node.
pub struct Node {
    /// Its machine.
    pub machine: MachineId,
    /// Its number.
    pub number: usize,
    /// What survives.
    pub memory: Rc<NodeMemory>,
    target: Rc<dyn Target>,
    handle: Option<Handle>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Node {
    /// A node that is off.
    pub fn new(number: usize, machine: MachineId, target: Rc<dyn Target>) -> Self {
        Self { machine, number, memory: Rc::default(), target, handle: None }
    }

    /// Starts the node's process. Its agent goes on with what was kept.
    pub fn start(&mut self, fleet: &mut Fleet) -> Handle {
        let handle = fleet.start(self.machine);
        *self.memory.report.borrow_mut() = None;
        *self.memory.agent.borrow_mut() = None;
        self.memory.applying.set(false);
        let ports = Ports {
            disks: Rc::new(Disks { handle: handle.clone(), memory: Rc::clone(&self.memory) }),
            exporter: self.target.exporter(&handle),
            store: Rc::new(Store { handle: handle.clone(), memory: Rc::clone(&self.memory) }),
            reporter: Rc::new(Reports { memory: Rc::clone(&self.memory) }),
        };
        let (memory, starting, number) = (Rc::clone(&self.memory), handle.clone(), self.number);
        drop(handle.spawn(async move {
            match Agent::start(&starting, AgentConfig::default(), ports).await {
                Ok(agent) => *memory.agent.borrow_mut() = Some(agent),
                Err(error) => event!("the agent of node {number} does not start: {error}"),
            }
        }));
        self.handle = Some(handle.clone());
        handle
    }

    /// The process has ended.
    pub fn ended(&mut self) {
        self.handle = None;
        *self.memory.agent.borrow_mut() = None;
        *self.memory.report.borrow_mut() = None;
    }

    /// The node's reactor, while it runs.
    pub fn handle(&self) -> Option<&Handle> {
        self.handle.as_ref()
    }

    /// Makes the next attempts to keep a desired state fail, or work again.
    pub fn saves_fail(&self, fail: bool) {
        self.memory.saves_fail.set(fail);
    }

    /// Takes a disk away: it is not found any more. Whoever has it open keeps it.
    pub fn take_away(&self, path: &str) {
        self.memory.away.borrow_mut().insert(path.to_owned());
    }

    /// Brings all disks back that were taken away; false if there are none.
    pub fn bring_back(&self) -> bool {
        !std::mem::take(&mut *self.memory.away.borrow_mut()).is_empty()
    }

    /// Hands a desired state to the agent, if it runs and is not busy with another one. `refused` is told about a refusal.
    pub fn apply(&self, desired: DesiredNode, refused: impl FnOnce(&Refused) + 'static) -> bool {
        let agent = self.memory.agent.borrow().clone();
        let (Some(handle), Some(agent)) = (&self.handle, agent) else { return false };
        if self.memory.applying.replace(true) {
            return false;
        }
        let (memory, number) = (Rc::clone(&self.memory), self.number);
        drop(handle.spawn(async move {
            let revision = desired.revision;
            match agent.apply(desired).await {
                Ok(()) => event!("node {number} takes revision {revision}"),
                Err(error) => {
                    event!("node {number} does not take revision {revision}: {error}");
                    refused(&error);
                }
            }
            memory.applying.set(false);
        }));
        true
    }

    /// What the agent has taken.
    pub fn taken(&self) -> Option<Rc<DesiredNode>> {
        self.memory.agent.borrow().as_ref().and_then(Agent::desired)
    }

    /// What the agent reported last.
    pub fn report(&self) -> Option<NodeReport> {
        self.memory.report.borrow().clone()
    }
}

impl Drop for Node {
    /// The agent holds its memory, which holds the agent: this takes the ring of references apart.
    fn drop(&mut self) {
        self.ended();
    }
}

struct Disks {
    handle: Handle,
    memory: Rc<NodeMemory>,
}

impl DiskOpener for Disks {
    fn open(&self, path: &str) -> LocalFuture<Result<Arc<dyn BlockDevice>, DiskError>> {
        if self.memory.away.borrow().contains(path) {
            return Box::pin(async { Err(DiskError::NotFound) });
        }
        // The identity follows from the path, as in the daemon.
        let mut hasher = DefaultHasher::new();
        path.hash(&mut hasher);
        let options = UringOptions {
            name: path.to_owned(),
            uuid: Uuid::from_u128(u128::from(hasher.finish())),
            block_size: None,
            disk: DiskOptions::default(),
        };
        let opened = UringDevice::open(&self.handle, Path::new(path), &options);
        Box::pin(async move {
            match opened {
                Ok(device) => Ok(Arc::new(device) as Arc<dyn BlockDevice>),
                Err(UringError::Disk { source, .. }) => Err(source),
                // No block size was asked for, so that none is too small.
                Err(UringError::BlockSize { .. }) => Err(DiskError::Unsupported),
            }
        })
    }
}

struct Store {
    handle: Handle,
    memory: Rc<NodeMemory>,
}

impl StateStore for Store {
    fn load(&self) -> LocalFuture<Result<Option<DesiredNode>, StoreError>> {
        let kept = self.memory.kept.borrow().clone();
        let sleep = self.handle.sleep(Duration::from_micros(500));
        Box::pin(async move {
            sleep.await;
            Ok(kept)
        })
    }

    fn save(&self, desired: &DesiredNode) -> LocalFuture<Result<(), StoreError>> {
        let (memory, desired) = (Rc::clone(&self.memory), desired.clone());
        let sleep = self.handle.sleep(Duration::from_micros(self.handle.random_u64() % 3_000));
        Box::pin(async move {
            sleep.await;
            if memory.saves_fail.get() {
                return Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into());
            }
            *memory.kept.borrow_mut() = Some(desired);
            Ok(())
        })
    }
}

struct Reports {
    memory: Rc<NodeMemory>,
}

impl Reporter for Reports {
    fn report(&self, report: &NodeReport) {
        *self.memory.report.borrow_mut() = Some(report.clone());
    }
}
