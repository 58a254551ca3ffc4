//! Lines over files that were fully written before: what first writes cost on a real disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use basalt_bdev::{BlockDevice, BlockSize};
use basalt_device_mem::PlainDevice;
use basalt_device_uring::{UringDevice, UringOptions};
use basalt_reactor::DiskOptions;
use uuid::Uuid;

use super::rig::{End, GIB, MIB, random, sequential};
use super::{Effort, Line, Rig};

/// What one run of a fill writes.
const FILL: u64 = GIB;
/// Sequential writes that are under way.
const FILL_DEPTH: usize = 8;
/// Volumes that are written at random.
const SCATTERED: u64 = 2 * GIB;
/// Random first writes of one run: few enough that hardly any block is met twice.
const FIRST_WRITES: u64 = 32 << 10;

/// A file that goes when this is dropped.
pub(super) struct Backing(PathBuf);

impl Drop for Backing {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("{}: cannot be removed: {error}", self.0.display());
        }
    }
}

impl Backing {
    pub(super) fn new(folder: &Path, name: &str) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self(folder.join(format!("{name}-{}", std::process::id()))))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// A device of it, fully written. What is given back is not punched out of the file.
    fn written(&self, rig: &mut Rig, bytes: u64) -> Result<Arc<dyn BlockDevice>> {
        let device = open(rig, &self.0, bytes, None)?;
        rig.fill(&*device)?;
        Ok(Arc::new(PlainDevice::new(device)))
    }
}

/// A file as a device; it gets this length at least.
pub(super) fn open(
    rig: &Rig,
    path: &Path,
    bytes: u64,
    block_size: Option<BlockSize>,
) -> Result<Arc<dyn BlockDevice>> {
    let disk = DiskOptions { create_with_length: Some(bytes), ..DiskOptions::default() };
    let options = UringOptions { name: "bench".into(), uuid: Uuid::nil(), block_size, disk };
    Ok(Arc::new(UringDevice::open(&rig.handle, path, &options)?))
}

pub(super) fn sequential_fill(effort: &Effort) -> Result<Vec<Line>> {
    let mut rig = Rig::new()?;
    let (alone, pooled) = (Backing::new(&effort.folder, "alone")?, Backing::new(&effort.folder, "pooled")?);
    let bare = alone.written(&mut rig, FILL)?;
    let below = pooled.written(&mut rig, FILL + 256 * MIB)?;
    let pool = rig.pool(below)?;
    let mut pairs = Vec::new();
    for pair in 0..effort.pairs {
        let mut sides = [0.0; 2];
        for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
            let volume = rig.volume(&pool, 1 + pair, FILL)?;
            let device: &dyn BlockDevice = if side == 0 { &*volume } else { &*bare };
            let load = sequential(device, FILL_DEPTH);
            sides[side] = rig.load(device, load, End::Requests(FILL / MIB))?.per_second;
            rig.delete(&pool, 1 + pair)?;
        }
        pairs.push((sides[0], sides[1]));
    }
    Ok(vec![Line::of_pairs("first sequential fill, 1 MiB writes, QD8, file, to the device", 0.95, &pairs)?])
}

pub(super) fn first_writes(effort: &Effort) -> Result<Vec<Line>> {
    let mut rig = Rig::new()?;
    let pooled = Backing::new(&effort.folder, "pooled")?;
    let below = pooled.written(&mut rig, 2 * SCATTERED + GIB)?;
    let pool = rig.pool(below)?;
    let allocated = rig.volume(&pool, 1, SCATTERED)?;
    rig.fill(&*allocated)?;
    let mut lines = Vec::new();
    let works = [
        ("4 KiB random first writes, QD32, file, to allocated space", 32),
        ("4 KiB random first writes, QD128, file, to allocated space", 128),
    ];
    for (name, depth) in works {
        let mut pairs = Vec::new();
        for pair in 0..effort.pairs {
            let mut sides = [0.0; 2];
            for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
                let fresh = rig.volume(&pool, 2, SCATTERED)?;
                let device: &dyn BlockDevice = if side == 0 { &*fresh } else { &*allocated };
                let load = random(device, 0, depth, u64::from(pair));
                let run = rig.load(device, load, End::Requests(FIRST_WRITES));
                let found = || format!("the pool is {:?} with {:?}", pool.health(), pool.usage());
                sides[side] = run.with_context(found)?.per_second;
                rig.delete(&pool, 2)?;
            }
            pairs.push((sides[0], sides[1]));
        }
        lines.push(Line::of_pairs(name, 0.7, &pairs)?);
    }
    Ok(lines)
}
