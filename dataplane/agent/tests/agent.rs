//! The agent on disks in memory, with a target that is a list.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../lvol/tests/support/mod.rs"]
mod support;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_agent::{
    Agent, AgentConfig, AllowedHosts, Content, DesiredDisk, DesiredListener, DesiredNode, DesiredPool,
    DesiredVolume, DiskHealth, DiskOpener, Export, ExportError, Exporter, LocalFuture, NodeReport,
    PoolHealth, Ports, Problem, Provision, Reason, Refused, Reporter, StateStore, StoreError, Tombstone,
    VolumeHealth,
};
use basalt_bdev::{AsyncChannel, BlockCount, BlockDevice, IoError, Lba, Place};
use basalt_device_mem::{Fault, Faults, FaultyDevice, OperationKind};
use basalt_dma::Buffer;
use basalt_lvol::ScrubSettings;
use basalt_lvol::id::{ClusterId, Epoch, Generation, PoolId, Revision, VolumeId};
use basalt_lvol::layout::{DiskLayout, SLOT_OFFSETS};
use basalt_reactor::{DiskError, Handle, SocketError};
use support::{Bytes, CLUSTER, MIB, ram, run, volume_id};

/// What opening a path gives.
type Opened = Result<Arc<dyn BlockDevice>, DiskError>;

/// Disks, exports and the kept state of one node; survives its agents.
#[derive(Default)]
struct Node {
    disks: RefCell<BTreeMap<String, Opened>>,
    exports: RefCell<BTreeMap<VolumeId, Export>>,
    listeners: RefCell<BTreeSet<SocketAddr>>,
    address_in_use: Cell<bool>,
    kept: RefCell<Option<DesiredNode>>,
    store_full: Cell<bool>,
    /// The file system that disks lie on is full.
    disks_full: Cell<bool>,
    /// Bytes at the begin of a disk that have their place.
    allocated: Cell<u64>,
    reports: RefCell<Vec<NodeReport>>,
}

struct Port(Rc<Node>);

impl DiskOpener for Port {
    fn open(&self, path: &str) -> LocalFuture<Result<Arc<dyn BlockDevice>, DiskError>> {
        let found = self.0.disks.borrow().get(path).cloned().unwrap_or(Err(DiskError::NotFound));
        Box::pin(async move { found })
    }

    fn allocate(&self, _: &str, bytes: u64) -> LocalFuture<Result<(), DiskError>> {
        let full = self.0.disks_full.get();
        self.0.allocated.set(if full { 0 } else { bytes });
        Box::pin(async move { if full { Err(DiskError::NoSpace) } else { Ok(()) } })
    }
}

impl Exporter for Port {
    fn export(&self, export: Export) -> LocalFuture<Result<(), ExportError>> {
        self.0.exports.borrow_mut().insert(export.volume, export);
        Box::pin(async { Ok(()) })
    }

    fn withdraw(&self, volume: VolumeId) -> LocalFuture<Result<(), ExportError>> {
        self.0.exports.borrow_mut().remove(&volume);
        Box::pin(async { Ok(()) })
    }

    fn listen(
        &self,
        bind: SocketAddr,
        advertise: SocketAddr,
    ) -> LocalFuture<Result<SocketAddr, SocketError>> {
        if self.0.address_in_use.get() {
            return Box::pin(async { Err(SocketError::AddressInUse) });
        }
        self.0.listeners.borrow_mut().insert(bind);
        Box::pin(async move { Ok(advertise) })
    }

    fn unlisten(&self, bind: SocketAddr) -> LocalFuture<()> {
        self.0.listeners.borrow_mut().remove(&bind);
        Box::pin(async {})
    }
}

impl StateStore for Port {
    fn load(&self) -> LocalFuture<Result<Option<DesiredNode>, StoreError>> {
        let kept = self.0.kept.borrow().clone();
        Box::pin(async move { Ok(kept) })
    }

    fn save(&self, desired: &DesiredNode) -> LocalFuture<Result<(), StoreError>> {
        if self.0.store_full.get() {
            return Box::pin(async { Err(StoreError::Io(std::io::ErrorKind::StorageFull.into())) });
        }
        *self.0.kept.borrow_mut() = Some(desired.clone());
        Box::pin(async { Ok(()) })
    }
}

impl Reporter for Port {
    fn report(&self, report: &NodeReport) {
        self.0.reports.borrow_mut().push(report.clone());
    }
}

impl Node {
    fn with_disk(path: &str, bytes: u64) -> Rc<Self> {
        let node = Rc::new(Self::default());
        node.disks.borrow_mut().insert(path.into(), Ok(ram(bytes)));
        node
    }

    async fn start(self: &Rc<Self>, handle: &Handle) -> Agent {
        self.start_with(handle, AgentConfig::default()).await
    }

    async fn start_with(self: &Rc<Self>, handle: &Handle, config: AgentConfig) -> Agent {
        // What was exported and opened ended with the process before.
        self.exports.borrow_mut().clear();
        let ports = Ports {
            disks: Rc::new(Port(Rc::clone(self))),
            exporter: Rc::new(Port(Rc::clone(self))),
            store: Rc::new(Port(Rc::clone(self))),
            reporter: Rc::new(Port(Rc::clone(self))),
        };
        Agent::start(handle, config, ports).await.unwrap()
    }

    fn device(&self, volume: VolumeId) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.exports.borrow()[&volume].device)
    }
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4420))
}

fn desired(index: u64) -> DesiredNode {
    let disk = DesiredDisk { path: "/disk".into(), overwrite_foreign_data: false };
    DesiredNode {
        cluster: CLUSTER,
        revision: Revision { incarnation: 1, index },
        listeners: vec![DesiredListener { bind: address(), advertise: address() }],
        pools: vec![DesiredPool {
            name: "pool".into(),
            id: None,
            layout: DiskLayout::default(),
            disks: vec![disk],
            extent_bytes: MIB,
            former: Vec::new(),
            checkpoint: 0,
        }],
        volumes: Vec::new(),
        tombstones: Vec::new(),
    }
}

fn wanted(number: u8, size: u64) -> DesiredVolume {
    DesiredVolume {
        thin: false,
        read_only: false,
        content: Content::Blank,
        id: volume_id(number),
        generation: Generation(1),
        epoch: Epoch { incarnation: 1, counter: 1 },
        name: format!("volume-{number}"),
        pool: "pool".into(),
        size,
        provision: Provision::Create,
        nqn: format!("nqn.2026-01.storage.basalt:volume:{number}"),
        nsid: 1,
        uuid: [number; 16],
        nguid: [number; 16],
        serial: format!("BSLT{number}"),
        serve: true,
        allowed_hosts: AllowedHosts::Any,
    }
}

fn tombstone(number: u8, generation: u64) -> Tombstone {
    Tombstone {
        cluster: CLUSTER,
        volume: volume_id(number),
        generation: Generation(generation),
        pool: "pool".into(),
    }
}

/// The report once everything was tried.
async fn settled(handle: &Handle, agent: &Agent) -> NodeReport {
    for _ in 0..10_000 {
        handle.sleep(Duration::from_millis(1)).await;
        let report = agent.report();
        let current = agent.desired().map(|desired| desired.revision);
        if report.settled && Some(report.revision) == current {
            return report;
        }
    }
    panic!("never settled: {:?}", agent.report())
}

/// The report once it satisfies a condition.
async fn eventually(handle: &Handle, agent: &Agent, condition: impl Fn(&NodeReport) -> bool) -> NodeReport {
    for _ in 0..100_000 {
        handle.sleep(Duration::from_millis(1)).await;
        let report = agent.report();
        if condition(&report) {
            return report;
        }
    }
    panic!("never true: {:?}", agent.report())
}

fn problem_of(health: &VolumeHealth) -> &Problem {
    match health {
        VolumeHealth::Unavailable(problem) | VolumeHealth::Faulted(problem) => problem,
        VolumeHealth::Creating | VolumeHealth::Online => panic!("no problem: {health:?}"),
    }
}

/// A node on /disk that serves volume 1, and its pool.
async fn with_one_volume(handle: &Handle) -> (Rc<Node>, Agent, Option<PoolId>) {
    let node = Node::with_disk("/disk", 64 * MIB);
    let agent = node.start(handle).await;
    agent.apply(DesiredNode { volumes: vec![wanted(1, MIB)], ..desired(1) }).await.unwrap();
    let id = settled(handle, &agent).await.pools[0].id;
    (node, agent, id)
}

#[test]
fn a_volume_comes_to_be_and_comes_back_without_a_control_plane() {
    run(1, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, 4 * MIB)], ..desired(7) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(report.revision, Revision { incarnation: 1, index: 7 });
        assert_eq!(report.pools[0].health, PoolHealth::Online);
        assert_eq!((report.pools[0].used, report.pools[0].allocation_unit), (4 * MIB, MIB));
        assert!(report.pools[0].id.is_some());
        assert_eq!(report.pools[0].disks[0].health, DiskHealth::Online);
        let volume = &report.volumes[0];
        assert_eq!((&volume.health, volume.size), (&VolumeHealth::Online, 4 * MIB));
        assert_eq!((volume.generation, &volume.paths), (Generation(1), &vec![address()]));
        assert_eq!(report.problems, []);
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        bytes.write(8192, &[9; 512]).await.unwrap();
        drop(bytes);
        agent.stop();
        drop(agent);

        let agent = node.start(&handle).await;
        let again = settled(&handle, &agent).await;
        assert_eq!(again, report);
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        assert_eq!(bytes.read(8192, 512).await.unwrap(), vec![9; 512]);
    });
}

#[test]
fn older_revisions_and_other_clusters_are_refused_also_after_a_restart() {
    run(2, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        agent.apply(desired(7)).await.unwrap();
        agent.apply(desired(7)).await.unwrap();
        assert!(matches!(agent.apply(desired(6)).await, Err(Refused::Stale { .. })));
        let other = DesiredNode { cluster: ClusterId(uuid::Uuid::from_u128(2)), ..desired(8) };
        assert!(matches!(agent.apply(other).await, Err(Refused::OtherCluster { .. })));
        settled(&handle, &agent).await;
        agent.stop();
        let agent = node.start(&handle).await;
        assert!(matches!(agent.apply(desired(6)).await, Err(Refused::Stale { .. })));
        // A recovered cluster begins a new incarnation, whose indexes may be lower.
        let recovered = Revision { incarnation: 2, index: 3 };
        agent.apply(DesiredNode { revision: recovered, ..desired(0) }).await.unwrap();
        agent.stop();
        // What was kept is lost, the disk is not: its pool has noted the revision.
        *node.kept.borrow_mut() = None;
        let agent = node.start(&handle).await;
        let pool_only = DesiredNode { revision: Revision { incarnation: 1, index: 7 }, ..desired(0) };
        agent.apply(pool_only).await.unwrap();
        settled(&handle, &agent).await;
        assert!(matches!(agent.apply(desired(6)).await, Err(Refused::Stale { .. })));
    });
}

#[test]
fn only_a_matching_tombstone_deletes() {
    run(3, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        let volumes = vec![DesiredVolume { generation: Generation(5), ..wanted(1, MIB) }];
        agent.apply(DesiredNode { volumes: volumes.clone(), ..desired(1) }).await.unwrap();
        settled(&handle, &agent).await;
        // Absence deletes nothing.
        agent.apply(desired(2)).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.pools[0].used, report.volumes.len()), (MIB, 0));
        // Nor does the order of another cluster, nor one that is older than what the volume has seen.
        let foreign = Tombstone { cluster: ClusterId(uuid::Uuid::from_u128(2)), ..tombstone(1, 5) };
        for (index, tombstones) in [(3, vec![foreign]), (4, vec![tombstone(1, 4)])] {
            agent.apply(DesiredNode { tombstones, ..desired(index) }).await.unwrap();
            let report = settled(&handle, &agent).await;
            assert_eq!(report.pools[0].used, MIB);
            assert_eq!(report.deleted, []);
            assert_eq!(report.problems[0].reason, Reason::TombstoneRefused);
        }
        agent.apply(DesiredNode { tombstones: vec![tombstone(1, 5)], ..desired(5) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(report.pools[0].used, 0);
        assert_eq!((report.deleted[0].id, report.deleted[0].generation), (volume_id(1), Generation(5)));
        assert_eq!(report.problems, []);
        assert!(node.exports.borrow().is_empty());
        // Carried out again after a restart, it is confirmed again.
        agent.stop();
        let agent = node.start(&handle).await;
        assert_eq!(settled(&handle, &agent).await.deleted.len(), 1);
    });
}

#[test]
fn a_thin_volume_takes_what_is_written_and_says_how_much() {
    run(15, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        let thin = DesiredVolume { thin: true, ..wanted(1, 1024 * MIB) };
        agent.apply(DesiredNode { volumes: vec![thin, wanted(2, 4 * MIB)], ..desired(1) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.pools[0].used, report.volumes[0].allocated), (4 * MIB, 0));
        assert_eq!((report.volumes[0].size, report.volumes[1].allocated), (1024 * MIB, 4 * MIB));
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        bytes.write(500 * MIB, &[9; 64 << 10]).await.unwrap();
        let seen = |report: &NodeReport| (report.pools[0].used, report.volumes[0].allocated);
        let before = node.reports.borrow().len();
        assert_eq!(seen(&agent.report()), (4 * MIB, 0), "every write would be news");
        let report = eventually(&handle, &agent, |report| report.pools[0].used > 4 * MIB).await;
        assert_eq!(seen(&report), (5 * MIB, MIB / 16));
        assert_eq!(node.reports.borrow().len(), before + 1);
        bytes.unmap(500 * MIB, MIB).await.unwrap();
        bytes.flush().await.unwrap();
        eventually(&handle, &agent, |report| seen(report) == (4 * MIB, 0)).await;
    });
}

#[test]
fn a_volume_grows_while_it_is_served_and_is_served_while_it_cannot() {
    run(16, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        let sized =
            |generation, size| DesiredVolume { generation: Generation(generation), ..wanted(1, size) };
        agent.apply(DesiredNode { volumes: vec![sized(1, 4 * MIB)], ..desired(1) }).await.unwrap();
        settled(&handle, &agent).await;
        let device = node.device(volume_id(1));
        let bytes = Bytes::open(&handle, &*device);
        bytes.write(0, &[7; 4096]).await.unwrap();
        agent.apply(DesiredNode { volumes: vec![sized(2, 8 * MIB)], ..desired(2) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        let volume = &report.volumes[0];
        assert_eq!((volume.size, volume.generation, &volume.shortfall), (8 * MIB, Generation(2), &None));
        // Whoever had opened it sees it at once.
        assert_eq!(device.info().bytes(), 8 * MIB);
        bytes.write(8 * MIB - 4096, &[8; 4096]).await.unwrap();

        agent.apply(DesiredNode { volumes: vec![sized(3, 100 * MIB)], ..desired(3) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        let volume = &report.volumes[0];
        assert_eq!(
            (&volume.health, volume.size, volume.generation),
            (&VolumeHealth::Online, 8 * MIB, Generation(2))
        );
        assert_eq!(volume.shortfall.as_ref().unwrap().reason, Reason::PoolFull);
        assert_eq!(bytes.read(0, 4096).await.unwrap(), vec![7; 4096]);
        // Also after a restart: it is served as it is, and grows once there is room.
        agent.stop();
        let agent = node.start(&handle).await;
        let report = settled(&handle, &agent).await;
        assert_eq!((&report.volumes[0].health, report.volumes[0].size), (&VolumeHealth::Online, 8 * MIB));
        agent.apply(DesiredNode { volumes: vec![sized(4, 40 * MIB)], ..desired(4) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.volumes[0].size, &report.volumes[0].shortfall), (40 * MIB, &None));
        agent.apply(DesiredNode { volumes: vec![sized(5, MIB)], ..desired(5) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(problem_of(&report.volumes[0].health).reason, Reason::VolumeConflict);
    });
}

fn snapshot(number: u8, of: u8) -> DesiredVolume {
    let content = Content::SnapshotOf(volume_id(of));
    DesiredVolume {
        content,
        serve: false,
        allowed_hosts: AllowedHosts::Listed(BTreeSet::new()),
        ..wanted(number, MIB)
    }
}

fn restored(number: u8, from: u8, size: u64) -> DesiredVolume {
    DesiredVolume { content: Content::RestoredFrom(volume_id(from)), thin: true, ..wanted(number, size) }
}

fn health_of(report: &NodeReport, number: u8) -> VolumeHealth {
    report.volumes.iter().find(|volume| volume.id == volume_id(number)).unwrap().health.clone()
}

#[test]
fn a_snapshot_is_taken_once_restored_and_outlived() {
    run(17, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        let origin = DesiredVolume { thin: true, ..wanted(1, 8 * MIB) };
        agent.apply(DesiredNode { volumes: vec![origin.clone()], ..desired(1) }).await.unwrap();
        settled(&handle, &agent).await;
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        bytes.write(0, &[1; 4096]).await.unwrap();
        let volumes = vec![origin.clone(), snapshot(2, 1)];
        agent.apply(DesiredNode { volumes: volumes.clone(), ..desired(2) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        let seen = &report.volumes[1];
        assert_eq!((&seen.health, seen.size, seen.paths.len()), (&VolumeHealth::Online, 8 * MIB, 0));
        assert!(!node.exports.borrow().contains_key(&volume_id(2)), "a snapshot is not served");
        bytes.write(0, &[2; 4096]).await.unwrap();
        drop(bytes);
        // Ordered again by a process that has not heard of it: it is there, and is not taken anew.
        agent.stop();
        let agent = node.start(&handle).await;
        assert_eq!(health_of(&settled(&handle, &agent).await, 2), VolumeHealth::Online);
        let volumes = vec![origin, snapshot(2, 1), restored(3, 2, 12 * MIB)];
        agent.apply(DesiredNode { volumes, ..desired(3) }).await.unwrap();
        assert_eq!(health_of(&settled(&handle, &agent).await, 3), VolumeHealth::Online);
        let restored_bytes = Bytes::open(&handle, &*node.device(volume_id(3)));
        assert_eq!(restored_bytes.read(0, 4096).await.unwrap(), vec![1; 4096]);
        assert_eq!(node.device(volume_id(3)).info().bytes(), 12 * MIB);
        // What it began as may go, and what that was of.
        let expected = DesiredVolume { provision: Provision::Expect, ..restored(3, 2, 12 * MIB) };
        let tombstones = vec![tombstone(2, 1), tombstone(1, 1)];
        agent.apply(DesiredNode { volumes: vec![expected], tombstones, ..desired(4) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.deleted.len(), &report.problems), (2, &Vec::new()));
        assert_eq!(restored_bytes.read(0, 4096).await.unwrap(), vec![1; 4096]);
        assert_eq!(restored_bytes.read(11 * MIB, 4096).await.unwrap(), vec![0; 4096]);
    });
}

#[test]
fn a_snapshot_that_was_taken_is_never_taken_again() {
    run(18, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![snapshot(2, 1)], ..desired(1) }).await.unwrap();
        let health = health_of(&settled(&handle, &agent).await, 2);
        assert!(matches!(health, VolumeHealth::Unavailable(_)), "there is nothing to take it of: {health:?}");
        let expected = DesiredVolume { provision: Provision::Expect, ..snapshot(2, 1) };
        agent.apply(DesiredNode { volumes: vec![wanted(1, MIB), expected], ..desired(2) }).await.unwrap();
        let health = health_of(&settled(&handle, &agent).await, 2);
        assert!(
            matches!(&health, VolumeHealth::Faulted(p) if p.reason == Reason::VolumeMissing),
            "{health:?}"
        );
        // Not even another kind of volume under its id.
        agent.apply(DesiredNode { volumes: vec![snapshot(1, 2)], ..desired(3) }).await.unwrap();
        let health = health_of(&settled(&handle, &agent).await, 1);
        assert_eq!(problem_of(&health).reason, Reason::VolumeConflict);
    });
}

#[test]
fn what_fails_is_tried_again_and_says_why() {
    run(4, |handle| async move {
        let node = Rc::new(Node::default());
        node.address_in_use.set(true);
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, 7 * MIB)], ..desired(1) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(report.pools[0].health, PoolHealth::Faulted);
        assert_eq!(report.pools[0].problem.as_ref().unwrap().reason, Reason::DiskMissing);
        assert_eq!(report.pools[0].disks[0].health, DiskHealth::Offline);
        assert_eq!(problem_of(&report.volumes[0].health).reason, Reason::PoolNotReady);
        assert_eq!(report.problems[0].reason, Reason::ListenFailed);
        // The disk appears, too small for the volume.
        node.disks.borrow_mut().insert("/disk".into(), Ok(ram(8 * MIB)));
        let full = |report: &NodeReport| matches!(&report.volumes[0].health, VolumeHealth::Unavailable(p) if p.reason == Reason::PoolFull);
        let report = eventually(&handle, &agent, full).await;
        assert_eq!(report.pools[0].health, PoolHealth::Online);
        agent.apply(DesiredNode { volumes: vec![wanted(1, MIB)], ..desired(2) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(problem_of(&report.volumes[0].health).reason, Reason::NoListener);
        node.address_in_use.set(false);
        eventually(&handle, &agent, |report| report.volumes[0].health == VolumeHealth::Online).await;
    });
}

#[test]
fn retries_back_off() {
    run(5, |handle| async move {
        let node = Rc::new(Node::default());
        let agent = node.start(&handle).await;
        agent.apply(desired(1)).await.unwrap();
        settled(&handle, &agent).await;
        let config = AgentConfig::default();
        let began = handle.now();
        let mut tries = 0;
        node.disks.borrow_mut().insert("/disk".into(), Err(DiskError::InUse));
        while handle.now() - began < Duration::from_secs(100) {
            let before = agent.report();
            handle.sleep(Duration::from_millis(50)).await;
            if agent.report() != before {
                tries += 1;
            }
        }
        assert_eq!(tries, 1, "a failure that stays the same is no news");
        assert_eq!(agent.report().pools[0].problem.as_ref().unwrap().reason, Reason::DiskInUse);
        node.disks.borrow_mut().insert("/disk".into(), Ok(ram(8 * MIB)));
        let appeared = handle.now();
        eventually(&handle, &agent, |report| report.pools[0].health == PoolHealth::Online).await;
        assert!(handle.now() - appeared <= config.retry_max + Duration::from_millis(5));
    });
}

#[test]
fn lost_data_is_reported_and_never_replaced_by_nothing() {
    run(6, |handle| async move {
        let (node, agent, id) = with_one_volume(&handle).await;
        agent.stop();
        // The disk is replaced by a blank one.
        node.disks.borrow_mut().insert("/disk".into(), Ok(ram(64 * MIB)));
        *node.kept.borrow_mut() = None;
        let agent = node.start(&handle).await;
        let known = DesiredVolume { provision: Provision::Expect, ..wanted(1, MIB) };
        let mut state = DesiredNode { volumes: vec![known], ..desired(2) };
        state.pools[0].id = id;
        agent.apply(state.clone()).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(report.pools[0].problem.as_ref().unwrap().reason, Reason::PoolMissing);
        assert!(
            matches!(&report.volumes[0].health, VolumeHealth::Faulted(p) if p.reason == Reason::PoolMissing)
        );
        assert!(node.exports.borrow().is_empty());
        // A new pool may be made; the volume that was there once may not.
        state.pools[0].id = None;
        state.revision.index = 3;
        agent.apply(state).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(report.pools[0].health, PoolHealth::Online);
        assert!(
            matches!(&report.volumes[0].health, VolumeHealth::Faulted(p) if p.reason == Reason::VolumeMissing)
        );
    });
}

#[test]
fn a_missing_disk_is_not_lost_data() {
    run(7, |handle| async move {
        let (node, agent, id) = with_one_volume(&handle).await;
        agent.stop();
        let disk = node.disks.borrow_mut().remove("/disk").unwrap();
        let agent = node.start(&handle).await;
        let known = DesiredVolume { provision: Provision::Expect, ..wanted(1, MIB) };
        let mut state = DesiredNode { volumes: vec![known], ..desired(2) };
        state.pools[0].id = id;
        agent.apply(state).await.unwrap();
        let report = settled(&handle, &agent).await;
        let VolumeHealth::Unavailable(problem) = &report.volumes[0].health else { panic!("{report:?}") };
        assert_eq!(problem.reason, Reason::PoolNotReady);
        node.disks.borrow_mut().insert("/disk".into(), disk);
        eventually(&handle, &agent, |report| report.volumes[0].health == VolumeHealth::Online).await;
    });
}

/// What `on_disks` says, with a volume that was there once.
fn with_volume(index: u64, id: Option<PoolId>, paths: &[&str]) -> DesiredNode {
    let known = DesiredVolume { provision: Provision::Expect, ..wanted(1, MIB) };
    DesiredNode { volumes: vec![known], ..on_disks(index, id, paths) }
}

fn pool_reason(report: &NodeReport) -> Option<Reason> {
    report.pools[0].problem.as_ref().map(|problem| problem.reason)
}

#[test]
fn a_disk_that_a_pool_runs_on_is_told_also_when_another_one_is_named() {
    run(21, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.disks.borrow_mut().insert("/other".into(), Ok(ram(64 * MIB)));
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, MIB)], ..desired(1) }).await.unwrap();
        let id = settled(&handle, &agent).await.pools[0].id;
        agent.apply(with_volume(2, id, &["/other"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        let seen: Vec<_> =
            report.pools[0].disks.iter().map(|disk| (disk.path.as_str(), disk.health)).collect();
        assert_eq!(seen, [("/other", DiskHealth::Offline), ("/disk", DiskHealth::Online)]);
        let reasons: Vec<_> =
            report.pools[0].disks.iter().map(|disk| disk.problem.as_ref().unwrap().reason).collect();
        assert_eq!(reasons, [Reason::DiskNotInUse, Reason::DiskNotNamed]);
        assert_eq!(report.pools[0].disks[1].capacity, 64 * MIB);
        let problem = report.pools[0].problem.as_ref().unwrap();
        assert_eq!(problem.reason, Reason::DiskNotNamed);
        assert!(problem.message.starts_with("/disk is a disk of the pool and is not named any more"));
        assert_eq!(report.volumes[0].health, VolumeHealth::Online, "what runs goes on");

        // After a restart the pool is not found on the blank disk, and that is no loss.
        agent.stop();
        let agent = node.start(&handle).await;
        agent.apply(with_volume(3, id, &["/other"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(pool_reason(&report), Some(Reason::PoolMissing));
        let VolumeHealth::Unavailable(problem) = &report.volumes[0].health else { panic!("{report:?}") };
        assert!(
            problem.message.contains("it was on /disk, which is not named any more"),
            "{}",
            problem.message
        );
        agent.apply(with_volume(4, id, &["/disk"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((&report.volumes[0].health, pool_reason(&report)), (&VolumeHealth::Online, None));
    });
}

#[test]
fn a_disk_that_moved_is_found_and_where_it_was_is_forgotten() {
    run(40, |handle| async move {
        let (node, agent, id) = with_one_volume(&handle).await;
        agent.stop();
        let disk = node.disks.borrow_mut().remove("/disk").unwrap();
        node.disks.borrow_mut().insert("/moved".into(), disk);
        let agent = node.start(&handle).await;
        settled(&handle, &agent).await;
        agent.apply(with_volume(2, id, &["/moved"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((&report.volumes[0].health, pool_reason(&report)), (&VolumeHealth::Online, None));
        agent.apply(with_volume(3, id, &["/moved"])).await.unwrap();
        agent.stop();
        // What is blank now is what the pool was on.
        node.disks.borrow_mut().insert("/moved".into(), Ok(ram(64 * MIB)));
        let agent = node.start(&handle).await;
        let health = settled(&handle, &agent).await.volumes[0].health.clone();
        assert!(matches!(&health, VolumeHealth::Faulted(p) if p.reason == Reason::PoolMissing), "{health:?}");
    });
}

/// A disk with the same content.
async fn copied(handle: &Handle, node: &Node, path: &str) -> Arc<dyn BlockDevice> {
    let disk = node.disks.borrow()[path].clone().unwrap();
    let copy = ram(disk.info().bytes());
    let (from, to) = (Bytes::open(handle, &*disk), Bytes::open(handle, &*copy));
    for at in (0..disk.info().bytes()).step_by(64 << 10) {
        to.write(at, &from.read(at, 64 << 10).await.unwrap()).await.unwrap();
    }
    copy
}

#[test]
fn a_copy_of_a_disk_is_told_from_it_or_a_person_asked() {
    run(46, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.disks.borrow_mut().insert("/member".into(), Ok(ram(32 * MIB)));
        let agent = node.start(&handle).await;
        let mut first = with_volume(1, None, &["/disk", "/member"]);
        first.volumes[0].provision = Provision::Create;
        agent.apply(first).await.unwrap();
        let id = settled(&handle, &agent).await.pools[0].id;
        // One of the pool's only lead, which nothing tells from it: either can be taken out again.
        agent.stop();
        let copy = copied(&handle, &node, "/disk").await;
        node.disks.borrow_mut().insert("/copy".into(), Ok(copy));
        let agent = node.start(&handle).await;
        agent.apply(with_volume(2, id, &["/disk", "/member", "/copy"])).await.unwrap();
        let reasons = |report: &NodeReport| {
            let disks = report.pools[0].disks.iter();
            disks.map(|disk| disk.problem.as_ref().map(|problem| problem.reason)).collect::<Vec<_>>()
        };
        agent.stop();
        let agent = node.start(&handle).await;
        let report = settled(&handle, &agent).await;
        assert_eq!(reasons(&report), [Some(Reason::DiskTwice), None, Some(Reason::DiskTwice)]);
        assert!(matches!(report.volumes[0].health, VolumeHealth::Unavailable(_)), "{report:?}");
        agent.apply(with_volume(3, id, &["/disk", "/member"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((&report.volumes[0].health, reasons(&report)), (&VolumeHealth::Online, vec![None, None]));
        // One of a member from before the pool was opened anew, in the member's place.
        agent.stop();
        let copy = copied(&handle, &node, "/member").await;
        let agent = node.start(&handle).await;
        settled(&handle, &agent).await;
        agent.stop();
        let member = node.disks.borrow_mut().insert("/member".into(), Ok(copy)).unwrap();
        let agent = node.start(&handle).await;
        let report = settled(&handle, &agent).await;
        assert_eq!(reasons(&report), [None, Some(Reason::DiskOutdated)]);
        assert_eq!(pool_reason(&report), Some(Reason::DiskMissing));
        assert_eq!(report.volumes[0].health, VolumeHealth::Online, "it has nothing there");
        agent.stop();
        node.disks.borrow_mut().insert("/member".into(), member);
        let agent = node.start(&handle).await;
        let report = settled(&handle, &agent).await;
        assert_eq!((&report.volumes[0].health, reasons(&report)), (&VolumeHealth::Online, vec![None, None]));
    });
}

#[test]
fn an_old_copy_of_a_pools_only_disk_is_refused() {
    run(47, |handle| async move {
        let (node, agent, id) = with_one_volume(&handle).await;
        agent.apply(with_volume(1, id, &["/disk"])).await.unwrap();
        settled(&handle, &agent).await;
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        bytes.write_durably(0, &[1; 4096]).await.unwrap();
        agent.prepare_for_end().await;
        let copy = copied(&handle, &node, "/disk").await;
        let agent = node.start(&handle).await;
        settled(&handle, &agent).await;
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        bytes.write_durably(0, &[2; 4096]).await.unwrap();
        // Nothing but data has changed since, and the process is killed.
        agent.stop();
        let original = node.disks.borrow_mut().insert("/disk".into(), Ok(Arc::clone(&copy))).unwrap();
        let agent = node.start(&handle).await;
        assert_eq!(pool_reason(&settled(&handle, &agent).await), Some(Reason::DiskOutdated));
        agent.stop();
        node.disks.borrow_mut().insert("/disk".into(), original);
        let agent = node.start(&handle).await;
        settled(&handle, &agent).await;
        let mut orders = with_volume(2, id, &["/disk"]);
        orders.volumes.push(DesiredVolume { thin: true, ..wanted(2, 4 * MIB) });
        agent.apply(orders.clone()).await.unwrap();
        assert_eq!(health_of(&settled(&handle, &agent).await, 2), VolumeHealth::Online);
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        bytes.write_durably(0, &[2; 4096]).await.unwrap();
        agent.prepare_for_end().await;
        let disk = node.disks.borrow_mut().insert("/disk".into(), Ok(copy)).unwrap();
        let agent = node.start(&handle).await;
        let report = settled(&handle, &agent).await;
        assert_eq!(pool_reason(&report), Some(Reason::DiskOutdated));
        assert_eq!(report.pools[0].disks[0].problem.as_ref().unwrap().reason, Reason::DiskOutdated);
        for number in [1, 2] {
            let health = health_of(&report, number);
            assert!(matches!(health, VolumeHealth::Unavailable(_)), "nothing is lost: {health:?}");
        }
        // Beside the disk it does no harm.
        let copy = node.disks.borrow_mut().insert("/disk".into(), disk.clone()).unwrap();
        node.disks.borrow_mut().insert("/copy".into(), copy.clone());
        agent.stop();
        let agent = node.start(&handle).await;
        let mut beside = orders.clone();
        beside.revision.index += 1;
        beside.pools[0].disks.insert(0, DesiredDisk { path: "/copy".into(), overwrite_foreign_data: false });
        agent.apply(beside).await.unwrap();
        agent.stop();
        let agent = node.start(&handle).await;
        let report = settled(&handle, &agent).await;
        assert_eq!(health_of(&report, 1), VolumeHealth::Online, "{report:?}");
        assert_eq!(report.pools[0].disks[0].problem.as_ref().unwrap().reason, Reason::DiskNotInUse);
        agent.stop();
        node.disks.borrow_mut().insert("/disk".into(), copy);
        let agent = node.start(&handle).await;
        orders.revision.index += 2;
        agent.apply(orders.clone()).await.unwrap();
        assert_eq!(pool_reason(&settled(&handle, &agent).await), Some(Reason::DiskOutdated));
        // Also when it is ordered once more, or something else is.
        orders.revision.index += 1;
        agent.apply(orders.clone()).await.unwrap();
        assert_eq!(pool_reason(&settled(&handle, &agent).await), Some(Reason::DiskOutdated));
        agent.stop();
        node.disks.borrow_mut().insert("/disk".into(), disk);
        let agent = node.start(&handle).await;
        let report = settled(&handle, &agent).await;
        assert_eq!((pool_reason(&report), health_of(&report, 1)), (None, VolumeHealth::Online));
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        assert_eq!(bytes.read(0, 4096).await.unwrap(), [2; 4096]);
    });
}

/// How many hold the disk, besides the test.
fn holders(node: &Node, path: &str) -> usize {
    Arc::strong_count(node.disks.borrow()[path].as_ref().unwrap()) - 1
}

#[test]
fn a_pool_that_is_not_wanted_any_more_is_closed_and_its_disk_is_free() {
    run(41, |handle| async move {
        let (node, agent, id) = with_one_volume(&handle).await;
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        bytes.write(0, &[9; 4096]).await.unwrap();
        drop(bytes);
        let renamed = |index| {
            let mut desired = on_disks(index, None, &["/disk"]);
            desired.pools[0].name = "another".into();
            desired
        };
        // Nobody has said that what is served shall not be any more.
        agent.apply(renamed(2)).await.unwrap();
        settled(&handle, &agent).await;
        assert_eq!((agent.pool_counts().len(), node.exports.borrow().len()), (1, 1));
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        assert_eq!(bytes.read(0, 4096).await.unwrap(), vec![9; 4096]);
        drop(bytes);
        let known = DesiredVolume { serve: false, generation: Generation(2), ..wanted(1, MIB) };
        agent.apply(DesiredNode { volumes: vec![known], ..on_disks(3, id, &["/disk"]) }).await.unwrap();
        settled(&handle, &agent).await;

        // Nor is a pool closed of one of whose volumes something is known, served or not.
        let aside = DesiredVolume { serve: false, generation: Generation(2), ..wanted(1, MIB) };
        agent.apply(DesiredNode { volumes: vec![aside], ..renamed(4) }).await.unwrap();
        settled(&handle, &agent).await;
        assert_eq!((agent.pool_counts().len(), node.exports.borrow().len()), (1, 0));

        agent.apply(renamed(5)).await.unwrap();
        let report = settled(&handle, &agent).await;
        let problem = report.pools[0].problem.as_ref().unwrap();
        assert_eq!(problem.reason, Reason::DiskOfAnotherPool);
        let remedy = format!("basaltd pool wipe /disk --destroy-pool {}", id.unwrap());
        assert!(problem.message.contains(&remedy), "{}", problem.message);
        assert_eq!((report.pools.len(), agent.pool_counts().len()), (1, 0));
        assert_eq!(holders(&node, "/disk"), 0);

        // It is as it was.
        let known =
            DesiredVolume { provision: Provision::Expect, generation: Generation(3), ..wanted(1, MIB) };
        agent.apply(DesiredNode { volumes: vec![known], ..on_disks(6, id, &["/disk"]) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((&report.volumes[0].health, pool_reason(&report)), (&VolumeHealth::Online, None));
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        assert_eq!(bytes.read(0, 4096).await.unwrap(), vec![9; 4096]);
    });
}

#[test]
fn another_pool_of_the_same_name_takes_the_place_of_one_that_was_taken_out() {
    run(42, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.disks.borrow_mut().insert("/other".into(), Ok(ram(32 * MIB)));
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, MIB)], ..desired(1) }).await.unwrap();
        let id = settled(&handle, &agent).await.pools[0].id;
        agent
            .apply(DesiredNode { tombstones: vec![tombstone(1, 1)], ..on_disks(2, id, &["/disk"]) })
            .await
            .unwrap();
        settled(&handle, &agent).await;
        // The order without the pool was never seen.
        agent.apply(on_disks(3, None, &["/other"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.pools[0].health, pool_reason(&report)), (PoolHealth::Online, None));
        assert_ne!(report.pools[0].id, id);
        assert_eq!((holders(&node, "/disk"), report.pools[0].disks.len()), (0, 1));
        // And without any the last one is closed too.
        agent.apply(DesiredNode { pools: Vec::new(), ..desired(4) }).await.unwrap();
        settled(&handle, &agent).await;
        assert_eq!(holders(&node, "/other"), 0);
    });
}

/// The desired state of a pool that exists, on these disks.
fn on_disks(index: u64, id: Option<PoolId>, paths: &[&str]) -> DesiredNode {
    let disk = |path: &&str| DesiredDisk { path: (*path).to_owned(), overwrite_foreign_data: false };
    let mut desired = desired(index);
    desired.pools[0].id = id;
    desired.pools[0].disks = paths.iter().map(disk).collect();
    desired
}

#[test]
fn a_pool_grows_by_a_disk_that_is_named_later() {
    run(30, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        agent.apply(desired(1)).await.unwrap();
        let before = settled(&handle, &agent).await.pools[0].clone();
        // Not there yet: the pool goes on, and takes it when it comes.
        agent.apply(on_disks(2, before.id, &["/disk", "/second"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.pools[0].health, report.pools[0].capacity), (PoolHealth::Online, before.capacity));
        assert_eq!(pool_reason(&report), Some(Reason::DiskNotAdded));
        let problem = report.pools[0].disks[1].problem.as_ref().unwrap();
        assert_eq!(problem.reason, Reason::DiskNotInUse, "none of the pool's disks is missing");
        // Nothing is left of it when it is taken out again.
        agent.apply(on_disks(3, before.id, &["/disk"])).await.unwrap();
        assert_eq!(settled(&handle, &agent).await.pools[0].problem, None);
        agent.apply(on_disks(4, before.id, &["/disk", "/second"])).await.unwrap();
        assert_eq!(pool_reason(&settled(&handle, &agent).await), Some(Reason::DiskNotAdded));
        node.disks.borrow_mut().insert("/second".into(), Ok(ram(32 * MIB)));
        let grown = |report: &NodeReport| report.pools[0].capacity > before.capacity + 24 * MIB;
        let report = eventually(&handle, &agent, grown).await;
        assert_eq!((&report.pools[0].problem, &report.pools[0].disks[1].problem), (&None, &None));
        agent.stop();
        // A third one is named while the daemon is away.
        node.disks.borrow_mut().insert("/third".into(), Ok(ram(32 * MIB)));
        *node.kept.borrow_mut() = Some(on_disks(5, before.id, &["/disk", "/second", "/third"]));
        let agent = node.start(&handle).await;
        let grown = |report: &NodeReport| report.pools[0].capacity > before.capacity + 48 * MIB;
        let report = eventually(&handle, &agent, grown).await;
        assert!(report.pools[0].disks.iter().all(|disk| disk.health == DiskHealth::Online));
    });
}

#[test]
fn a_pool_that_is_named_anew_with_a_blank_disk_beside_its_own_grows_by_that() {
    run(43, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.disks.borrow_mut().insert("/blank".into(), Ok(ram(32 * MIB)));
        let agent = node.start(&handle).await;
        agent.apply(desired(1)).await.unwrap();
        let before = settled(&handle, &agent).await.pools[0].clone();
        agent.apply(DesiredNode { pools: Vec::new(), ..desired(2) }).await.unwrap();
        settled(&handle, &agent).await;
        agent.apply(on_disks(3, None, &["/blank", "/disk"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.pools[0].id, pool_reason(&report)), (before.id, None));
        assert!(report.pools[0].capacity > before.capacity + 24 * MIB);
    });
}

#[test]
fn a_pool_is_made_with_the_layout_that_is_asked_for() {
    run(33, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.disks.borrow_mut().insert("/second".into(), Ok(ram(32 * MIB)));
        let agent = node.start(&handle).await;
        let mut wanted = on_disks(1, None, &["/disk", "/second"]);
        wanted.pools[0].layout = DiskLayout::Striped;
        agent.apply(wanted).await.unwrap();
        assert_eq!(settled(&handle, &agent).await.pools[0].health, PoolHealth::Online);
        let disks = ["/disk", "/second"].map(|path| {
            let device = node.disks.borrow()[path].clone().unwrap();
            basalt_lvol::PoolDisk { name: path.into(), device }
        });
        let found = basalt_lvol::inspect(&handle, disks.to_vec()).await.unwrap();
        assert_eq!(found.layout, DiskLayout::Striped);
        // It keeps that, and says so, when it is taken out and named anew otherwise.
        agent.apply(DesiredNode { pools: Vec::new(), ..desired(2) }).await.unwrap();
        settled(&handle, &agent).await;
        agent.apply(on_disks(3, None, &["/disk", "/second"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(
            (report.pools[0].health, pool_reason(&report)),
            (PoolHealth::Online, Some(Reason::PoolLayoutDiffers))
        );
        let problem = report.pools[0].problem.as_ref().unwrap();
        assert!(problem.message.starts_with("the pool was made Striped and stays so"), "{}", problem.message);
    });
}

#[test]
fn hosts_write_to_a_volume_only_while_they_may() {
    run(45, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        let orders = |generation, read_only| {
            let volume =
                DesiredVolume { generation: Generation(generation), read_only, ..wanted(1, 4 * MIB) };
            DesiredNode { volumes: vec![volume], ..desired(generation) }
        };
        agent.apply(orders(1, true)).await.unwrap();
        settled(&handle, &agent).await;
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        assert_eq!(bytes.write(0, &[1; 4096]).await, Err(IoError::ReadOnly));
        agent.apply(orders(2, false)).await.unwrap();
        settled(&handle, &agent).await;
        bytes.write(0, &[2; 4096]).await.unwrap();
        // Whoever has it open is kept from writing at once, and reads what was written.
        agent.apply(orders(3, true)).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(
            (&report.volumes[0].health, report.volumes[0].generation),
            (&VolumeHealth::Online, Generation(3))
        );
        assert_eq!(bytes.write(0, &[3; 4096]).await, Err(IoError::ReadOnly));
        assert_eq!(bytes.unmap(0, 4096).await, Err(IoError::ReadOnly));
        assert_eq!(bytes.read(0, 4096).await.unwrap(), [2; 4096]);
        // It grows all the same, and stays so after a restart.
        let mut larger = orders(4, true);
        larger.volumes[0].size = 8 * MIB;
        agent.apply(larger).await.unwrap();
        assert_eq!(settled(&handle, &agent).await.volumes[0].size, 8 * MIB);
        agent.stop();
        let agent = node.start(&handle).await;
        settled(&handle, &agent).await;
        let device = node.device(volume_id(1));
        assert!(device.info().read_only());
        assert_eq!(Bytes::open(&handle, &*device).write(0, &[3; 4096]).await, Err(IoError::ReadOnly));
        // Whoever is fenced changes nothing.
        let mut fenced = orders(5, false);
        fenced.volumes[0].size = 8 * MIB;
        fenced.volumes[0].epoch = Epoch { incarnation: 0, counter: 1 };
        agent.apply(fenced).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(problem_of(&report.volumes[0].health).reason, Reason::Fenced);
        assert!(device.info().read_only());
    });
}

#[test]
fn what_people_call_a_volume_stands_on_the_disks() {
    run(44, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        let volumes = vec![DesiredVolume { thin: true, ..wanted(1, 4 * MIB) }, snapshot(2, 1)];
        agent.apply(DesiredNode { volumes: volumes[..1].to_vec(), ..desired(1) }).await.unwrap();
        settled(&handle, &agent).await;
        agent.apply(DesiredNode { volumes: volumes.clone(), ..desired(2) }).await.unwrap();
        settled(&handle, &agent).await;
        let names = async || {
            let device = node.disks.borrow()["/disk"].clone().unwrap();
            let disk = basalt_lvol::PoolDisk { name: "/disk".into(), device };
            let found = basalt_lvol::inspect(&handle, vec![disk]).await.unwrap().volumes;
            found.into_iter().map(|volume| volume.detail.unwrap().name).collect::<Vec<_>>()
        };
        assert_eq!(names().await, ["volume-1", "volume-2"]);
        // Adopted by another object each has that one's name.
        let renamed = |(mut volume, name): (DesiredVolume, &str)| {
            volume.generation.0 += 1;
            volume.name = name.into();
            volume
        };
        let volumes: Vec<_> = volumes.into_iter().zip(["postgres", "monday"]).map(renamed).collect();
        agent.apply(DesiredNode { volumes: volumes.clone(), ..desired(3) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert!(report.volumes.iter().all(|volume| volume.health == VolumeHealth::Online), "{report:?}");
        assert_eq!(names().await, ["postgres", "monday"]);
        // One that no record can hold is told of, and the volume served on.
        let long = renamed((volumes[0].clone(), &"n".repeat(254)));
        agent.apply(DesiredNode { volumes: vec![long, volumes[1].clone()], ..desired(4) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(health_of(&report, 1), VolumeHealth::Online);
        assert_eq!(report.volumes[0].shortfall.as_ref().unwrap().reason, Reason::VolumeConflict);
        assert_eq!(names().await, ["postgres", "monday"]);
        agent.apply(DesiredNode { volumes, ..desired(5) }).await.unwrap();
        settled(&handle, &agent).await;
    });
}

#[test]
fn a_pool_is_made_with_the_extents_that_are_asked_for() {
    run(38, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        let mut wanted = on_disks(1, None, &["/disk"]);
        wanted.pools[0].extent_bytes = 96 << 10;
        agent.apply(wanted.clone()).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(
            (report.pools[0].health, pool_reason(&report)),
            (PoolHealth::Faulted, Some(Reason::DiskFailed))
        );
        wanted.pools[0].extent_bytes = 64 << 10;
        wanted.revision.index += 1;
        wanted.volumes = vec![DesiredVolume { thin: true, ..self::wanted(1, 8 * MIB) }];
        agent.apply(wanted).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.pools[0].health, pool_reason(&report)), (PoolHealth::Online, None));
        assert_eq!((report.pools[0].allocation_unit, report.pools[0].used), (64 << 10, 0));
        // A write takes that much.
        let bytes = Bytes::open(&handle, &*node.device(volume_id(1)));
        bytes.write(MIB, &[9; 4096]).await.unwrap();
        drop(bytes);
        eventually(&handle, &agent, |report| report.pools[0].used == 64 << 10).await;
        // It keeps that, and says so, when it is taken out and named anew otherwise.
        agent.apply(DesiredNode { pools: Vec::new(), ..desired(3) }).await.unwrap();
        settled(&handle, &agent).await;
        agent.apply(on_disks(4, None, &["/disk"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(
            (report.pools[0].health, pool_reason(&report)),
            (PoolHealth::Online, Some(Reason::PoolUnitDiffers))
        );
        assert_eq!(report.pools[0].allocation_unit, 64 << 10);
        let problem = report.pools[0].problem.as_ref().unwrap();
        assert!(
            problem.message.starts_with("the pool was made with units of 64 KiB and stays so"),
            "{}",
            problem.message
        );
    });
}

/// Changes a bit of a disk.
async fn rot(handle: &Handle, node: &Node, path: &str, offset: u64) {
    let device = node.disks.borrow()[path].clone().unwrap();
    let channel = AsyncChannel::new(handle, device.open(handle).unwrap());
    let (at, count) = (Lba(offset / 512), BlockCount(1));
    let mut sector = channel.read(at, count, Buffer::zeroed(512)).await.unwrap();
    sector[usize::try_from(offset % 512).unwrap()] ^= 4;
    drop(channel.write(at, count, sector, false).await.unwrap());
}

#[test]
fn metadata_that_rots_under_a_pool_is_made_good_or_told_of() {
    run(34, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.disks.borrow_mut().insert("/second".into(), Ok(ram(32 * MIB)));
        let interval = Duration::from_secs(60);
        let scrub = ScrubSettings { interval, ..ScrubSettings::default() };
        let agent = node.start_with(&handle, AgentConfig { scrub, ..AgentConfig::default() }).await;
        agent.apply(on_disks(1, None, &["/disk", "/second"])).await.unwrap();
        assert_eq!(settled(&handle, &agent).await.pools[0].problem, None);
        // One of two: it is made good from the other one.
        rot(&handle, &node, "/second", SLOT_OFFSETS[0] + 140).await;
        handle.sleep(2 * interval).await;
        let counts = &agent.pool_counts()[0];
        assert_eq!((counts.scrub.findings, counts.scrub.repaired), (1, 1), "{counts:?}");
        assert!(counts.scrub.runs >= 1 && counts.scrubbed.is_some_and(|ago| ago <= interval));
        assert_eq!(agent.report().pools[0].problem, None);
        // Somebody else's is in both: it is told of for as long as it is so.
        let second = node.disks.borrow()["/second"].clone().unwrap();
        let slots = |first: [u8; 4]| {
            let bytes = Bytes::open(&handle, &*second);
            async move {
                let mut content = vec![0; 4096];
                bytes.write(SLOT_OFFSETS[1], &content).await.unwrap();
                content[..4].copy_from_slice(&first);
                bytes.write(SLOT_OFFSETS[0], &content).await.unwrap();
            }
        };
        slots(*b"XFSB").await;
        handle.sleep(2 * interval).await;
        let pool = agent.report().pools[0].clone();
        let problem = pool.problem.unwrap();
        assert_eq!((pool.health, problem.reason), (PoolHealth::Online, Reason::PoolDamaged));
        assert!(problem.message.starts_with("/second: it holds an XFS file system"), "{}", problem.message);
        slots([0; 4]).await;
        handle.sleep(2 * interval).await;
        assert_eq!(agent.report().pools[0].problem, None);
    });
}

#[test]
fn a_disk_of_the_pool_whose_superblocks_have_rotted_is_not_taken_for_somebody_elses() {
    run(48, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.disks.borrow_mut().insert("/second".into(), Ok(ram(32 * MIB)));
        let agent = node.start(&handle).await;
        agent.apply(on_disks(1, None, &["/disk", "/second"])).await.unwrap();
        let id = settled(&handle, &agent).await.pools[0].id;
        agent.apply(on_disks(2, id, &["/disk", "/second"])).await.unwrap();
        settled(&handle, &agent).await;
        agent.stop();
        for slot in SLOT_OFFSETS {
            rot(&handle, &node, "/second", slot + 140).await;
        }
        let agent = node.start(&handle).await;
        let report = settled(&handle, &agent).await;
        // With this reason it can be taken out of the pool no more than one that is missing.
        assert_eq!(report.pools[0].disks[1].problem.as_ref().unwrap().reason, Reason::PoolDamaged);
        for slot in SLOT_OFFSETS {
            rot(&handle, &node, "/second", slot + 140).await;
        }
        agent.stop();
        let agent = node.start(&handle).await;
        assert_eq!(settled(&handle, &agent).await.pools[0].problem, None);
    });
}

#[test]
fn a_pool_takes_no_other_disk_in_the_place_of_one_that_is_missing() {
    run(31, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.disks.borrow_mut().insert("/second".into(), Ok(ram(32 * MIB)));
        let agent = node.start(&handle).await;
        agent.apply(on_disks(1, None, &["/disk", "/second"])).await.unwrap();
        let before = settled(&handle, &agent).await.pools[0].clone();
        agent.stop();
        let second = node.disks.borrow_mut().insert("/second".into(), Ok(ram(32 * MIB))).unwrap();
        *node.kept.borrow_mut() = Some(on_disks(2, before.id, &["/disk", "/second"]));
        let agent = node.start(&handle).await;
        let told = |report: &NodeReport| {
            let problem = report.pools.first().and_then(|pool| pool.problem.as_ref());
            problem.is_some_and(|problem| problem.message.contains("is missing: bring that back first"))
        };
        let report = eventually(&handle, &agent, told).await;
        let seen = report.pools[0].disks[1].problem.as_ref().unwrap().reason;
        assert_eq!((pool_reason(&report), seen), (Some(Reason::DiskMissing), Reason::DiskNotAdded));
        // The pool misses it also when nobody names it.
        agent.apply(on_disks(3, before.id, &["/disk"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.pools[0].disks.len(), pool_reason(&report)), (1, Some(Reason::DiskMissing)));
        let problem = report.pools[0].problem.as_ref().unwrap();
        assert!(problem.message.contains("name the path that it has"), "{}", problem.message);
        // When the right one comes, it is told what to do.
        node.disks.borrow_mut().insert("/second".into(), second);
        agent.apply(on_disks(4, before.id, &["/disk", "/second"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        let problem = report.pools[0].disks[1].problem.as_ref().unwrap();
        assert_eq!(
            (pool_reason(&report), problem.reason),
            (Some(Reason::DiskMissing), Reason::DiskAwaitsRestart)
        );
        assert!(problem.message.contains("restart the daemon"), "{}", problem.message);
        agent.stop();
        // Nothing was written on the blank one, and the right one is known again.
        let agent = node.start(&handle).await;
        let whole =
            |report: &NodeReport| report.pools.first().is_some_and(|pool| pool.capacity == before.capacity);
        assert_eq!(eventually(&handle, &agent, whole).await.pools[0].problem, None);
    });
}

#[test]
fn a_copy_of_a_disk_that_the_pool_runs_on_is_told_from_one_that_came_back() {
    run(43, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, MIB)], ..desired(1) }).await.unwrap();
        let before = settled(&handle, &agent).await;
        let copy = ram(64 * MIB);
        let disk = node.disks.borrow()["/disk"].clone().unwrap();
        let (from, to) = (Bytes::open(&handle, &*disk), Bytes::open(&handle, &*copy));
        for at in (0..64).map(|mib| mib * MIB) {
            to.write(at, &from.read(at, 1 << 20).await.unwrap()).await.unwrap();
        }
        node.disks.borrow_mut().insert("/copy".into(), Ok(copy));
        let id = before.pools[0].id;
        agent.apply(with_volume(2, id, &["/disk", "/copy"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        let problem = report.pools[0].disks[1].problem.as_ref().unwrap();
        assert_eq!(problem.reason, Reason::DiskNotInUse, "it may be taken out again");
        let words = &problem.message;
        assert!(words.starts_with("/copy is a copy of /disk") && !words.contains("restart"), "{words}");
        assert!(words.contains("take /copy out of spec.pools[].disks"), "{words}");
        assert_eq!(pool_reason(&report), Some(Reason::DiskNotAdded));
        assert_eq!(report.volumes[0].health, VolumeHealth::Online, "what runs goes on");
        agent.apply(with_volume(3, id, &["/disk"])).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((&report.pools[0].problem, report.pools[0].disks.len()), (&None, 1));
    });
}

#[test]
fn disks_of_others_are_left_alone() {
    run(8, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        agent.apply(desired(1)).await.unwrap();
        settled(&handle, &agent).await;
        agent.stop();
        *node.kept.borrow_mut() = None;
        let agent = node.start(&handle).await;
        let other = DesiredNode { cluster: ClusterId(uuid::Uuid::from_u128(2)), ..desired(1) };
        agent.apply(other).await.unwrap();
        let report = settled(&handle, &agent).await;
        let problem = report.pools[0].problem.as_ref().unwrap();
        assert_eq!(problem.reason, Reason::DiskOfAnotherCluster);
        assert_eq!(report.pools[0].disks[0].health, DiskHealth::Faulted);
        agent.stop();
        *node.kept.borrow_mut() = None;
        let agent = node.start(&handle).await;
        let mut renamed = desired(1);
        renamed.pools[0].name = "another".into();
        agent.apply(renamed).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(report.pools[0].problem.as_ref().unwrap().reason, Reason::DiskOfAnotherPool);
    });
}

#[test]
fn serving_follows_what_is_wanted() {
    run(9, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, MIB)], ..desired(1) }).await.unwrap();
        settled(&handle, &agent).await;
        let aside = DesiredVolume { serve: false, generation: Generation(2), ..wanted(1, MIB) };
        agent.apply(DesiredNode { volumes: vec![aside], ..desired(2) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(problem_of(&report.volumes[0].health).reason, Reason::NotServed);
        assert_eq!(report.volumes[0].generation, Generation(2));
        assert!(node.exports.borrow().is_empty());
        let hosts = AllowedHosts::Listed(BTreeSet::from(["nqn.host".to_owned()]));
        let back =
            DesiredVolume { allowed_hosts: hosts.clone(), generation: Generation(3), ..wanted(1, MIB) };
        agent.apply(DesiredNode { volumes: vec![back], ..desired(3) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(report.volumes[0].health, VolumeHealth::Online);
        assert_eq!(node.exports.borrow()[&volume_id(1)].allowed_hosts, hosts);
        assert_eq!(&node.exports.borrow()[&volume_id(1)].serial, b"BSLT1               ");
        // A lower epoch than the volume has seen is not served, whatever the revision.
        let higher = Epoch { incarnation: 1, counter: 2 };
        let raised = DesiredVolume { epoch: higher, generation: Generation(4), ..wanted(1, MIB) };
        agent.apply(DesiredNode { volumes: vec![raised], ..desired(4) }).await.unwrap();
        settled(&handle, &agent).await;
        let lower = DesiredVolume { generation: Generation(5), ..wanted(1, MIB) };
        agent.apply(DesiredNode { volumes: vec![lower], ..desired(5) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(problem_of(&report.volumes[0].health).reason, Reason::Fenced);
        assert!(node.exports.borrow().is_empty());
    });
}

#[test]
fn a_hundred_volumes_at_once() {
    run(10, |handle| async move {
        let node = Node::with_disk("/disk", 256 * MIB);
        let agent = node.start(&handle).await;
        let volumes = (0..100).map(|number| wanted(number, 2 * MIB)).collect();
        agent.apply(DesiredNode { volumes, ..desired(1) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert!(report.volumes.iter().all(|volume| volume.health == VolumeHealth::Online));
        assert_eq!(node.exports.borrow().len(), 100);
        let tombstones = (0..100).map(|number| tombstone(number, 1)).collect();
        agent.apply(DesiredNode { tombstones, ..desired(2) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.deleted.len(), report.pools[0].used), (100, 0));
    });
}

#[test]
fn a_pool_whose_disk_was_full_goes_on_by_itself() {
    run(12, |handle| async move {
        let faulty = FaultyDevice::new(ram(64 * MIB));
        let faults = Arc::clone(faulty.faults());
        let node = Rc::new(Node::default());
        node.disks.borrow_mut().insert("/disk".into(), Ok(Arc::new(faulty)));
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, MIB)], ..desired(1) }).await.unwrap();
        settled(&handle, &agent).await;
        faults.inject(Fault {
            range: Lba(0)..Lba(5 * MIB / 512),
            ..Fault::always(OperationKind::Write, IoError::CapacityExceeded)
        });
        let both = vec![wanted(1, MIB), wanted(2, MIB)];
        agent.apply(DesiredNode { volumes: both, ..desired(2) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(report.pools[0].health, PoolHealth::ReadOnly);
        assert_eq!(report.volumes[0].health, VolumeHealth::Online);
        let shortfall = report.volumes[0].shortfall.as_ref().map(|problem| problem.reason);
        assert_eq!(shortfall, Some(Reason::PoolReadOnly), "what hosts write may be refused");
        assert_eq!(problem_of(&report.volumes[1].health).reason, Reason::IoError);
        faults.clear();
        let online =
            |report: &NodeReport| report.volumes.iter().all(|volume| volume.health == VolumeHealth::Online);
        let report = eventually(&handle, &agent, online).await;
        assert_eq!(report.pools[0].health, PoolHealth::Online);
    });
}

#[test]
fn a_state_that_cannot_be_kept_is_told_and_not_acted_upon() {
    run(13, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.store_full.set(true);
        let agent = node.start(&handle).await;
        let told = |report: &NodeReport| {
            report.problems.iter().any(|problem| problem.reason == Reason::StateNotKept)
        };
        // The very first one, and one that follows another.
        assert!(matches!(agent.apply(desired(1)).await, Err(Refused::NotKept(_))));
        let report = eventually(&handle, &agent, told).await;
        assert_eq!((report.revision, report.pools.len()), (Revision::default(), 0));
        node.store_full.set(false);
        agent.apply(desired(1)).await.unwrap();
        assert_eq!(settled(&handle, &agent).await.problems, []);
        node.store_full.set(true);
        let next = DesiredNode { volumes: vec![wanted(1, MIB)], ..desired(2) };
        assert!(matches!(agent.apply(next.clone()).await, Err(Refused::NotKept(_))));
        let report = eventually(&handle, &agent, told).await;
        assert_eq!((report.revision.index, report.volumes.len()), (1, 0), "nothing is done for it");
        assert!(report.problems[0].message.contains("data directory"), "{:?}", report.problems);
        let reports = node.reports.borrow().len();
        assert!(matches!(agent.apply(next.clone()).await, Err(Refused::NotKept(_))));
        handle.sleep(Duration::from_secs(1)).await;
        assert_eq!(node.reports.borrow().len(), reports, "the same again is no news");
        node.store_full.set(false);
        agent.apply(next).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.problems, report.volumes.len()), (Vec::new(), 1));
    });
}

/// A node with one volume of a megabyte on a disk that fails by rule.
async fn on_a_faulty_disk(handle: &Handle) -> (Rc<Node>, Agent, Arc<Faults>, Bytes) {
    let faulty = FaultyDevice::new(ram(64 * MIB));
    let faults = Arc::clone(faulty.faults());
    let node = Rc::new(Node::default());
    node.disks.borrow_mut().insert("/disk".into(), Ok(Arc::new(faulty)));
    let agent = node.start(handle).await;
    agent.apply(DesiredNode { volumes: vec![wanted(1, MIB)], ..desired(1) }).await.unwrap();
    assert_eq!(settled(handle, &agent).await.volumes[0].health, VolumeHealth::Online);
    let bytes = Bytes::open(handle, &*node.device(volume_id(1)));
    (node, agent, faults, bytes)
}

#[test]
fn a_disk_that_turns_read_only_is_told_and_trusted_again_later() {
    run(14, |handle| async move {
        let (_node, agent, faults, bytes) = on_a_faulty_disk(&handle).await;
        faults.inject(Fault::always(OperationKind::Write, IoError::ReadOnly));
        bytes.write(0, &[1; 512]).await.unwrap_err();
        let failing = |report: &NodeReport| report.pools[0].disks[0].health == DiskHealth::Faulted;
        let report = eventually(&handle, &agent, failing).await;
        let pool = &report.pools[0];
        assert_eq!(pool.health, PoolHealth::ReadOnly);
        for problem in [&pool.problem, &pool.disks[0].problem] {
            let problem = problem.as_ref().unwrap();
            assert_eq!(problem.reason, Reason::DiskErrors);
            assert!(problem.message.starts_with("writes of /disk fail (the device is read-only)"));
        }
        let problem = problem_of(&report.volumes[0].health);
        assert_eq!(problem.reason, Reason::DiskErrors);
        assert!(problem.message.starts_with("pool pool: writes of /disk fail"), "{}", problem.message);
        handle.sleep(Duration::from_secs(100)).await;
        assert!(failing(&agent.report()));
        // No host has a path, so nobody asks the disk for anything: it is found to work all the same.
        faults.clear();
        handle.sleep(Duration::from_secs(60)).await;
        let report = agent.report();
        assert_eq!((report.pools[0].health, &report.pools[0].problem), (PoolHealth::Online, &None));
        assert_eq!(report.pools[0].disks[0].health, DiskHealth::Online);
        assert_eq!(report.volumes[0].health, VolumeHealth::Online);
    });
}

#[test]
fn a_disk_of_several_takes_only_the_volumes_with_it_that_have_data_there() {
    run(35, |handle| async move {
        let node = Node::with_disk("/disk", 16 * MIB);
        let faulty = FaultyDevice::new(ram(64 * MIB));
        let faults = Arc::clone(faulty.faults());
        node.disks.borrow_mut().insert("/second".into(), Ok(Arc::new(faulty)));
        let agent = node.start(&handle).await;
        // The first one has room for eleven extents.
        let thin = DesiredVolume { thin: true, ..wanted(3, 4 * MIB) };
        let volumes = vec![wanted(1, 8 * MIB), wanted(2, 8 * MIB), thin];
        let desired = DesiredNode { volumes, ..on_disks(1, None, &["/disk", "/second"]) };
        agent.apply(desired).await.unwrap();
        settled(&handle, &agent).await;
        let [own, other, thin] =
            [1, 2, 3].map(|number| Bytes::open(&handle, &*node.device(volume_id(number))));
        thin.write(0, &[1; 512]).await.unwrap();
        thin.flush().await.unwrap();
        faults.inject(Fault::always(OperationKind::Any, IoError::DeviceGone));
        other.write(0, &[1; 512]).await.unwrap_err();
        let failing = |report: &NodeReport| report.pools[0].disks[1].health == DiskHealth::Faulted;
        let report = eventually(&handle, &agent, failing).await;
        assert_eq!(report.pools[0].health, PoolHealth::ReadOnly);
        let healths = |report: &NodeReport| {
            report.volumes.iter().map(|volume| volume.health.clone()).collect::<Vec<_>>()
        };
        let [first, second, third] = healths(&report).try_into().unwrap();
        assert_eq!([first, third], [VolumeHealth::Online, VolumeHealth::Online]);
        let problem = problem_of(&second);
        assert!(problem.message.starts_with("pool pool: writes of /second fail"), "{}", problem.message);
        // And so it is: what lies on the other disk is served and kept.
        for bytes in [&own, &thin] {
            bytes.write(0, &[7; 512]).await.unwrap();
            bytes.flush().await.unwrap();
            assert_eq!(bytes.read(0, 512).await.unwrap(), [7; 512]);
        }
        // A first write needs all disks; from then on its volume is not what it promises.
        thin.write(MIB, &[1; 512]).await.unwrap_err();
        let third = |report: &NodeReport| !matches!(report.volumes[2].health, VolumeHealth::Online);
        let report = eventually(&handle, &agent, third).await;
        assert_eq!(healths(&report)[0], VolumeHealth::Online);
        faults.clear();
        handle.sleep(Duration::from_secs(60)).await;
        let report = agent.report();
        assert_eq!(healths(&report), [const { VolumeHealth::Online }; 3]);
        assert_eq!((report.pools[0].health, &report.pools[0].problem), (PoolHealth::Online, &None));
    });
}

#[test]
fn a_disk_whose_file_was_cut_is_faulted_for_good() {
    run(52, |handle| async move {
        let disk = ram(64 * MIB);
        let node = Node::with_disk("/disk", MIB);
        node.disks.borrow_mut().insert("/disk".into(), Ok(Arc::clone(&disk)));
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, 8 * MIB)], ..desired(1) }).await.unwrap();
        settled(&handle, &agent).await;
        disk.info().set_shortened(20 * MIB);
        let failing = |report: &NodeReport| report.pools[0].disks[0].health == DiskHealth::Faulted;
        eventually(&handle, &agent, failing).await;
        handle.sleep(Duration::from_secs(60)).await;
        let report = agent.report();
        let problem = report.pools[0].disks[0].problem.clone().unwrap();
        assert_eq!((problem.reason, report.pools[0].health), (Reason::DiskTooSmall, PoolHealth::ReadOnly));
        assert!(
            problem.message.starts_with(
                "/disk: the file was cut from 67108864 to 20971520 bytes; what was behind is lost"
            ),
            "{}",
            problem.message
        );
        assert_eq!(problem_of(&report.volumes[0].health).reason, Reason::DiskTooSmall);
    });
}

#[test]
fn a_disk_that_was_deleted_or_moved_is_told_and_serves_until_it_is_back() {
    run(53, |handle| async move {
        let disk = ram(64 * MIB);
        let node = Node::with_disk("/disk", MIB);
        node.disks.borrow_mut().insert("/disk".into(), Ok(Arc::clone(&disk)));
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, 8 * MIB)], ..desired(1) }).await.unwrap();
        settled(&handle, &agent).await;
        for (place, said) in [(Place::Deleted, "the file was deleted"), (Place::Elsewhere, "this path")] {
            disk.info().note_place(place);
            let said = format!("/disk: {said}");
            let told = |report: &NodeReport| {
                let problem = report.pools[0].disks[0].problem.as_ref();
                problem.is_some_and(|problem| problem.message.starts_with(&said))
            };
            let report = eventually(&handle, &agent, told).await;
            let disk = &report.pools[0].disks[0];
            let problem = disk.problem.clone().unwrap();
            assert_eq!((disk.health, problem.reason), (DiskHealth::Suspected, Reason::DiskMissing));
            assert_eq!(
                (report.pools[0].health, &report.pools[0].problem),
                (PoolHealth::Online, &Some(problem)),
                "with this reason nothing new is placed there"
            );
            assert_eq!(report.volumes[0].health, VolumeHealth::Online);
            assert_eq!(node.exports.borrow().len(), 1);
        }
        disk.info().note_place(Place::AtItsPath);
        let sound = |report: &NodeReport| report.pools[0].disks[0].problem.is_none();
        let report = eventually(&handle, &agent, sound).await;
        assert_eq!((report.pools[0].health, &report.pools[0].problem), (PoolHealth::Online, &None));
    });
}

#[test]
fn a_pool_on_a_full_file_system_says_so_until_there_is_room() {
    run(54, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        node.disks_full.set(true);
        let agent = node.start(&handle).await;
        agent.apply(DesiredNode { volumes: vec![wanted(1, 8 * MIB)], ..desired(1) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        let problem = report.pools[0].problem.clone().unwrap();
        assert_eq!((report.pools[0].health, problem.reason), (PoolHealth::Online, Reason::FileSystemFull));
        assert!(problem.message.contains("/disk lies on has no room for the 5 MiB"), "{}", problem.message);
        assert_eq!(report.volumes[0].health, VolumeHealth::Online);
        handle.sleep(Duration::from_secs(60)).await;
        assert_eq!(agent.report().pools[0].problem, Some(problem), "it is tried again");
        node.disks_full.set(false);
        let sound = |report: &NodeReport| report.pools[0].problem.is_none();
        eventually(&handle, &agent, sound).await;
        assert_eq!(node.allocated.get(), 5 * MIB);
    });
}

#[test]
fn a_pool_whose_disk_is_dead_is_closed_and_a_new_one_takes_its_place() {
    run(43, |handle| async move {
        let (node, agent, faults, bytes) = on_a_faulty_disk(&handle).await;
        for kind in [OperationKind::Write, OperationKind::Read, OperationKind::Flush] {
            faults.inject(Fault::always(kind, IoError::DeviceGone));
        }
        bytes.write(0, &[1; 512]).await.unwrap_err();
        drop(bytes);
        let id = agent.report().pools[0].id;
        let going = DesiredNode { tombstones: vec![tombstone(1, 1)], ..on_disks(2, id, &["/disk"]) };
        agent.apply(going).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!((report.pools[0].health, report.deleted.len()), (PoolHealth::ReadOnly, 0));
        assert!(node.exports.borrow().is_empty(), "what is to be deleted is not served");
        // Somebody has said that the disks are lost, and taken the pool out; then there is another disk at its path.
        agent.apply(DesiredNode { pools: Vec::new(), ..desired(3) }).await.unwrap();
        settled(&handle, &agent).await;
        assert_eq!(holders(&node, "/disk"), 0);
        node.disks.borrow_mut().insert("/disk".into(), Ok(ram(64 * MIB)));
        let again = DesiredVolume { pool: "pool".into(), ..wanted(2, MIB) };
        agent.apply(DesiredNode { volumes: vec![again], ..desired(4) }).await.unwrap();
        let report = settled(&handle, &agent).await;
        assert_eq!(
            (report.pools[0].health, &report.volumes[0].health),
            (PoolHealth::Online, &VolumeHealth::Online)
        );
        assert_ne!(report.pools[0].id, id);
    });
}

#[test]
fn a_disk_with_a_bad_sector_is_suspected_and_serves_on() {
    run(15, |handle| async move {
        let (_node, agent, faults, bytes) = on_a_faulty_disk(&handle).await;
        faults.inject(Fault { count: 1, ..Fault::always(OperationKind::Read, IoError::Medium) });
        bytes.read(0, 512).await.unwrap_err();
        let suspected = |report: &NodeReport| report.pools[0].disks[0].health == DiskHealth::Suspected;
        let report = eventually(&handle, &agent, suspected).await;
        let problem = report.pools[0].disks[0].problem.as_ref().unwrap();
        assert!(problem.message.starts_with("reads of /disk have failed (the medium"), "{}", problem.message);
        assert_eq!(report.pools[0].health, PoolHealth::Online);
        assert_eq!(report.volumes[0].health, VolumeHealth::Online);
        bytes.read(0, 512).await.unwrap();
        handle.sleep(Duration::from_secs(40)).await;
        assert_eq!(agent.report().pools[0].disks[0].health, DiskHealth::Online);
    });
}

#[test]
fn writes_that_fail_again_and_again_make_a_disk_faulted() {
    run(16, |handle| async move {
        let (_node, agent, faults, bytes) = on_a_faulty_disk(&handle).await;
        faults.inject(Fault::always(OperationKind::Flush, IoError::Medium));
        faults.inject(Fault::always(OperationKind::Write, IoError::Medium));
        let mut seen = Vec::new();
        for _ in 0..10 {
            bytes.write(0, &[1; 512]).await.unwrap_err();
            handle.sleep(Duration::from_secs(1)).await;
            seen.push(agent.report().pools[0].disks[0].health);
        }
        seen.dedup();
        assert!(seen.ends_with(&[DiskHealth::Suspected, DiskHealth::Faulted]), "{seen:?}");
    });
}

#[test]
fn malformed_states_are_refused() {
    run(11, |handle| async move {
        let node = Node::with_disk("/disk", 64 * MIB);
        let agent = node.start(&handle).await;
        let twice = DesiredNode { volumes: vec![wanted(1, MIB), wanted(1, MIB)], ..desired(1) };
        let both =
            DesiredNode { volumes: vec![wanted(1, MIB)], tombstones: vec![tombstone(1, 1)], ..desired(1) };
        let serial = DesiredVolume { serial: "x".repeat(21), ..wanted(1, MIB) };
        let serial = DesiredNode { volumes: vec![serial], ..desired(1) };
        let mut pools = desired(1);
        pools.pools.push(pools.pools[0].clone());
        for malformed in [twice, both, serial, pools] {
            assert!(matches!(agent.apply(malformed).await, Err(Refused::Malformed(_))));
        }
        assert!(node.kept.borrow().is_none());
    });
}

#[cfg(basalt_planted)]
#[test]
fn every_planted_bug_is_found() {
    let finders: [(&str, fn()); 2] = [
        ("agent-foreign-tombstone", only_a_matching_tombstone_deletes),
        ("agent-recreates-lost-volume", lost_data_is_reported_and_never_replaced_by_nothing),
    ];
    std::panic::set_hook(Box::new(|_| {}));
    for (bug, finder) in finders {
        basalt_clock::fault::plant(Some(bug));
        let found = std::panic::catch_unwind(finder).is_err();
        basalt_clock::fault::plant(None);
        assert!(found, "{bug} was not found");
    }
}
