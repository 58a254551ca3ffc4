//! Lines about large pools: how long a snapshot and an import take, and how much memory a map.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use basalt_bdev::{AsyncChannel, BlockCount, BlockDevice, BlockSize, IoError, Lba};
use basalt_clock::{Random, SeededRandom};
use basalt_dma::{Buffer, Payload};
use basalt_lvol::{Pool, PoolHealth, VolumeStatus};
use basalt_reactor::Handle;
use serde::{Deserialize, Serialize};

use super::file::{Backing, open};
use super::rig::{CLUSTER, GIB, MIB, id, named, snapshot, told};
use super::sparse::SparseDisk;
use super::{Effort, Line, Rig};

const TIB: u64 = 1 << 40;
/// Writes that are under way.
const DEPTH: usize = 32;
/// Snapshots whose pauses are looked at.
const SNAPSHOTS: u32 = 100;
/// What still counts as a snapshot's pause after its end.
const AFTERWARDS: Duration = Duration::from_millis(10);
/// Blocks of 4 KiB in a megabyte, the extent of these pools.
const EXTENT_BLOCKS: u64 = MIB / 4096;

/// A pool on one disk whose data is forgotten.
fn sparse_pool(rig: &mut Rig, bytes: u64) -> Result<(Arc<SparseDisk>, Pool)> {
    let disk = Arc::new(SparseDisk::new(bytes));
    let pool = rig.pool(Arc::clone(&disk) as Arc<dyn BlockDevice>)?;
    disk.forget_from(pool.disks()[0].record.data_offset);
    Ok((disk, pool))
}

/// So many different extents of a volume, in the order of chance.
fn scattered(random: &mut SeededRandom, count: u64, extents: u64) -> Vec<u64> {
    let mut seen = std::collections::BTreeSet::new();
    let mut chosen = Vec::new();
    while (chosen.len() as u64) < count {
        let extent = random.below(extents);
        if seen.insert(extent) {
            chosen.push(extent);
        }
    }
    chosen
}

/// Writes whole extents, so that they are mapped.
fn map(rig: &mut Rig, device: &dyn BlockDevice, extents: Vec<u64>) -> Result<()> {
    let channel = AsyncChannel::new(&rig.handle, device.open(&rig.handle)?);
    let extents = Rc::new(RefCell::new(extents.into_iter()));
    let tasks: Vec<_> = (0..DEPTH)
        .map(|_| {
            let (channel, extents) = (channel.clone(), Rc::clone(&extents));
            rig.handle.spawn(async move {
                let mut payload = Payload::from(Buffer::zeroed(1 << 20));
                loop {
                    let Some(extent) = extents.borrow_mut().next() else { return Ok(()) };
                    let (lba, blocks) = (Lba(extent * EXTENT_BLOCKS), BlockCount(EXTENT_BLOCKS));
                    payload = channel.write(lba, blocks, payload, false).await?;
                }
            })
        })
        .collect();
    for task in tasks {
        let ended: Result<(), IoError> = rig.wait(task);
        ended.context("a write failed")?;
    }
    Ok(())
}

/// When writes completed.
struct Pauses {
    last: Cell<Instant>,
    longest: Cell<Duration>,
    completed: Cell<u64>,
    stop: Cell<bool>,
}

impl Pauses {
    fn completed(&self) {
        let now = Instant::now();
        self.longest.set(self.longest.get().max(now - self.last.replace(now)));
        self.completed.set(self.completed.get() + 1);
    }
}

/// Overwrites blocks of mapped extents until it is stopped.
async fn overwrite(
    channel: AsyncChannel,
    extents: Rc<Vec<u64>>,
    pauses: Rc<Pauses>,
    seed: u64,
) -> Result<()> {
    let mut random = SeededRandom::new(seed);
    let mut payload = Payload::from(Buffer::zeroed(4096));
    while !pauses.stop.get() {
        let extent = extents[usize::try_from(random.below(extents.len() as u64))?];
        let lba = Lba(extent * EXTENT_BLOCKS + random.below(EXTENT_BLOCKS));
        payload = channel.write(lba, BlockCount(1), payload, false).await?;
        pauses.completed();
    }
    Ok(())
}

/// Takes snapshots and answers the longest time without a completed write around each.
async fn take_snapshots(handle: Handle, pool: Pool, pauses: Rc<Pauses>) -> Result<Vec<Duration>> {
    let mut longest = Vec::new();
    for number in 0..SNAPSHOTS {
        handle.sleep(AFTERWARDS).await;
        pauses.longest.set(Duration::ZERO);
        pool.snapshot(id(1), snapshot(100 + number)).await.map_err(told)?;
        handle.sleep(AFTERWARDS).await;
        longest.push(pauses.longest.get());
    }
    pauses.stop.set(true);
    Ok(longest)
}

pub(super) fn snapshot_pause(_: &Effort) -> Result<Vec<Line>> {
    let mut rig = Rig::new()?;
    let (_disk, pool) = sparse_pool(&mut rig, 2 * TIB)?;
    let volume = rig.volume(&pool, 1, TIB)?;
    let extents = scattered(&mut SeededRandom::new(1), 100 * GIB / MIB, TIB / MIB);
    map(&mut rig, &*volume, extents.clone())?;
    let extents = Rc::new(extents);
    let pauses = Rc::new(Pauses {
        last: Cell::new(Instant::now()),
        longest: Cell::default(),
        completed: Cell::default(),
        stop: Cell::default(),
    });
    let channel = AsyncChannel::new(&rig.handle, volume.open(&rig.handle)?);
    let writers: Vec<_> = (0..DEPTH as u64)
        .map(|seed| {
            let (channel, extents) = (channel.clone(), Rc::clone(&extents));
            rig.handle.spawn(overwrite(channel, extents, Rc::clone(&pauses), seed))
        })
        .collect();
    let handle = rig.handle.clone();
    // The pool stays until the last writes have ended.
    let mut longest = rig.wait(take_snapshots(handle, pool.clone(), Rc::clone(&pauses)))?;
    for writer in writers {
        rig.wait(writer)?;
    }
    longest.sort();
    let p99 = longest[longest.len() * 99 / 100 - 1];
    let name = "snapshot of 1 TiB, 100 GiB mapped at random, RAM: pause of writes, p99";
    let detail = format!(
        "median {:.2} ms, {} writes meanwhile",
        longest[longest.len() / 2].as_secs_f64() * 1e3,
        pauses.completed.get()
    );
    Ok(vec![Line::below(name, 10.0, p99.as_secs_f64() * 1e3, "ms", detail)])
}

/// What an import took.
#[derive(Debug, Serialize, Deserialize)]
struct Imported {
    seconds: f64,
    /// At the highest, beyond what there was before.
    peak_mib: f64,
    /// Afterwards, beyond what there was before.
    mib: f64,
}

pub(super) fn import(effort: &Effort) -> Result<Vec<Line>> {
    const VOLUMES: u32 = 1000;
    let backing = Backing::new(&effort.folder, "large")?;
    let pages = {
        let mut rig = Rig::new()?;
        let (disk, pool) = sparse_pool(&mut rig, 10 * TIB)?;
        let mut random = SeededRandom::new(2);
        for number in 0..VOLUMES {
            let volume = rig.volume(&pool, 1 + number, 10 * GIB)?;
            let extents = scattered(&mut random, TIB / MIB / u64::from(VOLUMES) + 1, 10 * GIB / MIB);
            map(&mut rig, &*volume, extents)?;
        }
        for number in 0..VOLUMES {
            rig.snapshot(&pool, 1 + number, 10_000 + number)?;
        }
        disk.save(backing.path())?
    };
    let imported = in_child(backing.path(), false)?;
    let detail = format!("from a file with O_DIRECT, {pages} pages");
    let name = "import of 10 TiB, 1,000 volumes, 1,000 snapshots, 1 TiB mapped";
    let name_memory = "memory of that import at its highest";
    Ok(vec![
        Line::below(name, 2.0, imported.seconds, "s", detail),
        Line::below(name_memory, 256.0, imported.peak_mib, "MiB", String::new()),
    ])
}

pub(super) fn memory(effort: &Effort) -> Result<Vec<Line>> {
    let backing = Backing::new(&effort.folder, "mapped")?;
    {
        let mut rig = Rig::new()?;
        let (disk, pool) = sparse_pool(&mut rig, TIB + TIB / 8)?;
        let volume = rig.volume(&pool, 1, TIB)?;
        map(&mut rig, &*volume, (0..TIB / MIB).collect())?;
        rig.snapshot(&pool, 1, 2)?;
        rig.delete(&pool, 2)?;
        disk.save(backing.path())?;
    }
    let imported = in_child(backing.path(), true)?;
    let name = "memory per TiB mapped, all of its map in use";
    Ok(vec![Line::below(name, 48.0, imported.mib, "MiB", String::new())])
}

fn in_child(path: &Path, look: bool) -> Result<Imported> {
    let mut child = Command::new(std::env::current_exe()?);
    child.args(["pool", "import"]).arg(path);
    if look {
        child.arg("--look");
    }
    let output = child.output().context("cannot run the import")?;
    ensure!(output.status.success(), "the import failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// In a process of its own.
pub(super) fn import_child(path: &Path, look: bool) -> Result<()> {
    let mut rig = Rig::new()?;
    let device = open(&rig, path, 0, Some(BlockSize::B4096))?;
    rig.turn();
    let before = memory_mib("VmRSS:")?;
    let (handle, disks) = (rig.handle.clone(), vec![named(device)]);
    let began = Instant::now();
    let pool = rig.wait(async move { Pool::import(&handle, CLUSTER, disks).await })?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(matches!(pool.health(), PoolHealth::Online), "the pool is read-only");
    if look {
        let Some(VolumeStatus::Ready(record, device)) = pool.volume(id(1)) else {
            anyhow::bail!("the volume cannot be used: {:?}", pool.volume(id(1)));
        };
        let channel = AsyncChannel::new(&rig.handle, device.open(&rig.handle)?);
        rig.wait(async move {
            let mut buffer = Buffer::zeroed(4096);
            for at in (0..record.size).step_by(256 << 20) {
                let lba = Lba(device.info().block_size().blocks_in(at).0);
                buffer = channel.read(lba, device.info().block_size().blocks_in(4096), buffer).await?;
            }
            Ok::<_, IoError>(())
        })
        .context("a read failed")?;
    }
    let (peak_mib, mib) = (memory_mib("VmHWM:")? - before, memory_mib("VmRSS:")? - before);
    println!("{}", serde_json::to_string(&Imported { seconds, peak_mib, mib })?);
    Ok(())
}

/// A line of this process' memory.
fn memory_mib(field: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such line of memory")?;
    let kib: u32 = line.split_whitespace().nth(1).context("no amount")?.parse()?;
    Ok(f64::from(kib) / 1024.0)
}
