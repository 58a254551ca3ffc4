//! The nodes' end of the sessions: finding the leader, heartbeats, reports. What a node does with its desired state is behind
//! [`NodeBody`]: a stand-in here, the production agent in the whole-cluster scenario.

use crate::control::process::Life;
use crate::run::Violation;
use basalt_clock::{Instant, Random, SeededRandom};
use basalt_core::{Hello, NODE_PROTOCOL, Report, SessionId};
use basalt_model::{
    AnaState, BootId, Bytes, ClusterId, DesiredNode, InstanceId, MemberId, NodeName, NodeObserved,
    PathObserved, PoolHealth, PoolId, PoolName, PoolObserved, Provision, Revision, Tombstone, VolumeHealth,
    VolumeId, VolumeObserved,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::SocketAddr;
use std::time::Duration;

/// What a node is behind its session.
pub trait NodeBody: Debug {
    /// The first message of a session.
    fn hello(&self) -> Hello;

    /// The cluster let the node in.
    fn welcomed(&mut self, cluster: ClusterId);

    /// What the node should hold.
    ///
    /// # Errors
    /// When the order must never have been given.
    fn desired(&mut self, now: Instant, desired: &DesiredNode) -> Result<(), Violation>;

    /// Everything, or what changed since the last report; `None` if nothing did.
    fn report(&mut self, now: Instant, full: bool) -> Option<Report>;

    /// The machine was switched off and on.
    fn restart(&mut self);

    /// The tombstones that were carried out.
    fn deleted(&self) -> Vec<VolumeId>;
}

/// A daemon's session as the daemon sees it.
#[derive(Debug, Clone, Copy)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// The member at the other end.
    pub member: MemberId,
    /// The run of the member that it belongs to.
    pub life: Life,
    /// Whether the first report was asked for.
    pub welcomed: bool,
    /// When something was heard last.
    pub heard: Instant,
    /// A message was lost: nothing arrives any more, in either direction.
    pub stalled: bool,
    /// Nothing arrives before what was sent earlier.
    pub clear_to_member: Instant,
    /// The same for the other direction.
    pub clear_to_node: Instant,
}

/// A daemon.
#[derive(Debug)]
pub struct Daemon {
    /// What it does.
    pub body: Box<dyn NodeBody>,
    /// Its session.
    pub session: Option<Session>,
    /// The member that it believes to lead.
    pub hint: Option<MemberId>,
    /// Off until then.
    pub off_until: Option<Instant>,
}

impl Daemon {
    /// How often a daemon looks after its session.
    pub const PERIOD: Duration = Duration::from_millis(200);

    /// A daemon without a session.
    pub fn new(body: Box<dyn NodeBody>) -> Self {
        Self { body, session: None, hint: None, off_until: None }
    }
}

/// A volume on a stand-in node.
#[derive(Debug, Clone)]
struct Held {
    size: Bytes,
    generation: u64,
    /// When it is complete.
    ready: Instant,
    serve: bool,
    told: Option<VolumeObserved>,
}

/// A stand-in for a node: holds volumes as numbers and checks that its orders make sense.
#[derive(Debug)]
pub struct StandIn {
    name: NodeName,
    instance: InstanceId,
    boot: BootId,
    cluster: Option<ClusterId>,
    seen: Revision,
    pool: PoolName,
    pool_id: PoolId,
    capacity: Bytes,
    has_pool: bool,
    volumes: BTreeMap<VolumeId, Held>,
    deleted: BTreeMap<VolumeId, u64>,
    /// Tombstones that are still in the desired state.
    pending: BTreeSet<VolumeId>,
    ever_deleted: BTreeSet<VolumeId>,
    told: Option<NodeObserved>,
    random: SeededRandom,
    address: SocketAddr,
}

impl StandIn {
    /// A node with one pool.
    pub fn new(
        name: NodeName,
        pool: PoolName,
        capacity: Bytes,
        address: SocketAddr,
        mut random: SeededRandom,
    ) -> Self {
        let mut bits = || u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
        Self {
            instance: InstanceId::from_random(bits()),
            boot: BootId::from_random(bits()),
            pool_id: PoolId::from_random(bits()),
            name,
            pool,
            capacity,
            cluster: None,
            seen: Revision(0),
            has_pool: false,
            volumes: BTreeMap::new(),
            deleted: BTreeMap::new(),
            pending: BTreeSet::new(),
            ever_deleted: BTreeSet::new(),
            told: None,
            random,
            address,
        }
    }

    fn broken(&self, invariant: &'static str, detail: &str) -> Violation {
        Violation::Invariant { invariant, detail: format!("node {}: {detail}", self.name) }
    }

    fn observed(&self) -> NodeObserved {
        let used = self.volumes.values().map(|held| held.size.0).sum();
        let pool = PoolObserved {
            id: Some(self.pool_id),
            health: PoolHealth::Online,
            capacity: self.capacity,
            used: Bytes(used),
            allocation_unit: Bytes(1 << 20),
            disks: BTreeMap::new(),
            problem: None,
        };
        let pools = if self.has_pool { BTreeMap::from([(self.pool.clone(), pool)]) } else { BTreeMap::new() };
        NodeObserved {
            version: "simulated".to_owned(),
            boot: Some(self.boot),
            pools,
            endpoints: vec![self.address],
            problems: Vec::new(),
        }
    }

    fn volume(&self, held: &Held, now: Instant) -> VolumeObserved {
        let ready = held.ready <= now;
        let path = PathObserved { node: self.name.clone(), address: self.address, ana: AnaState::Optimized };
        VolumeObserved {
            health: if ready { VolumeHealth::Online } else { VolumeHealth::Creating },
            size: held.size,
            generation: held.generation,
            allocated: Some(held.size),
            shortfall: None,
            paths: if ready && held.serve { vec![path] } else { Vec::new() },
        }
    }

    fn take_volumes(&mut self, now: Instant, desired: &DesiredNode) -> Result<(), Violation> {
        for volume in &desired.volumes {
            if self.ever_deleted.contains(&volume.id) {
                return Err(self.broken("a deleted volume stays deleted", &volume.id.to_string()));
            }
            if let Some(held) = self.volumes.get_mut(&volume.id) {
                held.generation = volume.generation;
                held.serve = volume.serve;
                continue;
            }
            if volume.provision == Provision::Expect {
                return Err(self.broken("what a node holds it has reported", &volume.id.to_string()));
            }
            let ready = now + Duration::from_millis(self.random.below(300));
            let (size, generation, serve) = (volume.size, volume.generation, volume.serve);
            self.volumes.insert(volume.id, Held { size, generation, ready, serve, told: None });
        }
        let used: u64 = self.volumes.values().map(|held| held.size.0).sum();
        if used > self.capacity.0 {
            let detail = format!("{used} of {} bytes", self.capacity);
            return Err(self.broken("a pool is not over-committed", &detail));
        }
        Ok(())
    }

    fn take_tombstones(&mut self, tombstones: &[Tombstone]) {
        self.pending = tombstones.iter().map(|tombstone| tombstone.volume).collect();
        self.deleted.retain(|id, _| self.pending.contains(id));
        for tombstone in tombstones {
            self.volumes.remove(&tombstone.volume);
            self.deleted.insert(tombstone.volume, tombstone.generation);
            self.ever_deleted.insert(tombstone.volume);
        }
    }
}

impl NodeBody for StandIn {
    fn hello(&self) -> Hello {
        Hello {
            cluster: self.cluster,
            node: self.name.clone(),
            instance: self.instance,
            boot: self.boot,
            version_min: NODE_PROTOCOL.0,
            version_max: NODE_PROTOCOL.1,
            features: BTreeSet::new(),
            revision: self.seen,
        }
    }

    fn welcomed(&mut self, cluster: ClusterId) {
        self.cluster = Some(cluster);
    }

    fn desired(&mut self, now: Instant, desired: &DesiredNode) -> Result<(), Violation> {
        if desired.revision < self.seen {
            crate::event!("node {} refuses revision {} after {}", self.name, desired.revision, self.seen);
            return Ok(());
        }
        self.seen = desired.revision;
        self.has_pool = desired.pools.iter().any(|pool| pool.name == self.pool);
        if let Some(pool) = desired.pools.iter().find(|pool| pool.name == self.pool)
            && pool.id.is_some_and(|id| id != self.pool_id)
        {
            return Err(self.broken("a pool keeps its identity", &format!("{:?}", pool.id)));
        }
        self.take_tombstones(&desired.tombstones);
        self.take_volumes(now, desired)
    }

    fn report(&mut self, now: Instant, full: bool) -> Option<Report> {
        let observed = self.observed();
        let changed = full || self.told.as_ref() != Some(&observed);
        let mut volumes = BTreeMap::new();
        let current: Vec<(VolumeId, VolumeObserved)> =
            self.volumes.iter().map(|(id, held)| (*id, self.volume(held, now))).collect();
        for (id, volume) in current {
            if let Some(held) = self.volumes.get_mut(&id)
                && (full || held.told.as_ref() != Some(&volume))
            {
                held.told = Some(volume.clone());
                volumes.insert(id, volume);
            }
        }
        let deleted = self.deleted.clone();
        if !changed && volumes.is_empty() && deleted.is_empty() {
            return None;
        }
        self.told = Some(observed.clone());
        Some(Report { full, observed: changed.then_some(observed), volumes, deleted })
    }

    fn restart(&mut self) {
        self.boot = BootId::from_random(u128::from(self.random.next_u64()));
        self.told = None;
        // What was being created is begun again.
        for held in self.volumes.values_mut() {
            held.told = None;
        }
    }

    fn deleted(&self) -> Vec<VolumeId> {
        self.ever_deleted.iter().copied().collect()
    }
}
