//! A reactor on this thread, pools on it, and loads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use basalt_bdev::load::{Load, LoadOptions};
use basalt_bdev::{BlockCount, BlockDevice};
use basalt_lvol::id::{ClusterId, Epoch, Generation, Revision, VolumeId};
use basalt_lvol::layout::{DiskLayout, EXTENT_BYTES, VolumeIdentity};
use basalt_lvol::{LogicalVolume, NewPool, NewPoolDisk, NewSnapshot, NewVolume, Pool, PoolDisk, VolumeError};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{Handle, Reactor, ReactorOptions};
use uuid::Uuid;

pub(super) const CLUSTER: ClusterId = ClusterId(Uuid::from_u128(0xb));
pub(super) const MIB: u64 = 1 << 20;
pub(super) const GIB: u64 = 1 << 30;

/// Turns between two looks at how far a load is.
const LOOK_TURNS: u32 = 16;

/// See the module's page.
pub(super) struct Rig {
    reactor: Reactor,
    pub(super) handle: Handle,
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    After(Duration),
    Requests(u64),
}

/// What a load achieved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Requests per second.
    pub(super) per_second: f64,
    /// Requests per second of this thread's processor time.
    pub(super) per_processor_second: f64,
}

impl Rig {
    pub(super) fn new() -> Result<Self> {
        let options = ReactorOptions { buffer_bytes: 256 << 20, ..ReactorOptions::default() };
        let reactor = Reactor::new(Box::new(RealDriver::new()?), &options);
        let handle = reactor.handle();
        Ok(Self { reactor, handle })
    }

    pub(super) fn turn(&mut self) {
        self.reactor.turn();
    }

    /// Runs a future to its end.
    pub(super) fn wait<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let mut task = self.handle.spawn(future);
        loop {
            self.reactor.turn();
            if let Some(output) = task.take_output() {
                return output;
            }
        }
    }

    /// Runs a load to its end; nothing of it may fail.
    pub(super) fn load(&mut self, device: &dyn BlockDevice, options: LoadOptions, end: End) -> Result<Run> {
        let mut load = Load::new(&self.handle, device, options)?;
        let (busy, began) = (processor_time()?, Instant::now());
        let enough = |load: &Load| match end {
            End::After(duration) => began.elapsed() >= duration,
            End::Requests(count) => load.report().completed >= count,
        };
        while !enough(&load) {
            for _ in 0..LOOK_TURNS {
                load.poll();
                self.reactor.turn();
            }
        }
        let (busy, elapsed, report) = (processor_time()? - busy, began.elapsed(), load.report());
        load.stop();
        while !load.is_quiet() {
            load.poll();
            self.reactor.turn();
        }
        let failed = load.report().failed;
        ensure!(failed == 0, "{failed} requests of the load failed");
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        let completed = report.completed as f64;
        Ok(Run {
            per_second: completed / elapsed.as_secs_f64(),
            per_processor_second: completed / busy.as_secs_f64(),
        })
    }

    /// Writes all of a device, one megabyte after the other.
    pub(super) fn fill(&mut self, device: &dyn BlockDevice) -> Result<Run> {
        let requests = device.info().bytes() / MIB;
        self.load(device, sequential(device, 16), End::Requests(requests))
    }

    /// A pool on one device, which may hold anything.
    pub(super) fn pool(&mut self, device: Arc<dyn BlockDevice>) -> Result<Pool> {
        let disk = NewPoolDisk { disk: named(device), overwrite_foreign_data: true };
        let new = NewPool {
            cluster: CLUSTER,
            name: "bench".into(),
            revision: Revision::default(),
            extent_bytes: EXTENT_BYTES,
            layout: DiskLayout::default(),
            disks: vec![disk],
        };
        let handle = self.handle.clone();
        self.wait(async move { Pool::create(&handle, new).await }).context("cannot make the pool")
    }

    /// A new thin volume.
    pub(super) fn volume(&mut self, pool: &Pool, number: u32, size: u64) -> Result<Arc<LogicalVolume>> {
        let (pool, new) = (pool.clone(), thin(number, size));
        self.wait(async move { pool.create_volume(new).await }).map_err(told)
    }

    pub(super) fn delete(&mut self, pool: &Pool, number: u32) -> Result<()> {
        let pool = pool.clone();
        self.wait(async move { pool.delete_volume(id(number), Generation(u64::MAX)).await }).map_err(told)
    }

    pub(super) fn snapshot(&mut self, pool: &Pool, of: u32, number: u32) -> Result<()> {
        let pool = pool.clone();
        self.wait(async move { pool.snapshot(id(of), snapshot(number)).await.map(drop) }).map_err(told)
    }
}

/// Random requests of 4 KiB over a whole device.
pub(super) fn random(device: &dyn BlockDevice, read_percent: u8, depth: usize, seed: u64) -> LoadOptions {
    let info = device.info();
    LoadOptions {
        read_percent,
        depth,
        blocks: info.block_size().blocks_in(4096),
        working_set: info.blocks(),
        sequential: false,
        own_memory: true,
        seed,
    }
}

/// Writes of a megabyte, one after the other.
pub(super) fn sequential(device: &dyn BlockDevice, depth: usize) -> LoadOptions {
    let blocks: BlockCount = device.info().block_size().blocks_in(MIB);
    LoadOptions { sequential: true, blocks, ..random(device, 0, depth, 1) }
}

/// An error that stays on its reactor, for others.
pub(super) fn told(error: VolumeError) -> anyhow::Error {
    anyhow!("{error}")
}

pub(super) fn named(device: Arc<dyn BlockDevice>) -> PoolDisk {
    PoolDisk { name: "bench".into(), device }
}

pub(super) fn id(number: u32) -> VolumeId {
    VolumeId(Uuid::from_u128(0x7000_0000 + u128::from(number)))
}

fn thin(number: u32, size: u64) -> NewVolume {
    let nguid = id(number).to_bytes();
    NewVolume {
        id: id(number),
        generation: Generation(1),
        epoch: Epoch::default(),
        name: format!("volume-{number}"),
        identity: VolumeIdentity {
            nqn: format!("nqn.2026-01.storage.basalt:bench:{number}"),
            nsid: 1,
            uuid: nguid,
            nguid,
            serial: [b' '; 20],
        },
        size,
        thin: true,
        hidden: false,
    }
}

pub(super) fn snapshot(number: u32) -> NewSnapshot {
    let NewVolume { id, generation, epoch, name, identity, .. } = thin(number, 0);
    NewSnapshot { id, generation, epoch, name, identity }
}

/// Time that this thread had on a processor: machines that others use, too, still give a figure per core.
fn processor_time() -> Result<Duration> {
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = schedule.split_whitespace().next().context("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}
