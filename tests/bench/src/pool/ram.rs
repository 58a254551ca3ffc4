//! Lines over devices in memory: what a look at the map and a copy cost. Figures are per second of processor time.

use std::sync::Arc;

use anyhow::Result;
use basalt_bdev::{BlockDevice, BlockSize};
use basalt_device_mem::{PlainDevice, RamDevice};
use basalt_lvol::{LogicalVolume, Pool};
use uuid::Uuid;

use super::rig::{End, GIB, MIB, random};
use super::{Effort, Line, Rig};

/// More than caches hold.
const WORKING_SET: u64 = 256 * MIB;
/// What is overwritten after a snapshot.
const COPIED: u64 = GIB;
const SNAPSHOTS: u32 = 32;
/// Random writes between two snapshots: after all of them most pieces lie in another one than their neighbours.
const WRITES_BETWEEN: u64 = 128;

fn ram(bytes: u64) -> Result<Arc<dyn BlockDevice>> {
    Ok(Arc::new(RamDevice::new("ram", Uuid::nil(), BlockSize::B512, bytes)?))
}

/// A device alone, and a volume of the same size, both written once.
struct Sides {
    rig: Rig,
    bare: Arc<dyn BlockDevice>,
    pool: Pool,
    volume: Arc<LogicalVolume>,
}

impl Sides {
    fn new(bytes: u64, below: Arc<dyn BlockDevice>) -> Result<Self> {
        let mut rig = Rig::new()?;
        let bare = ram(bytes)?;
        rig.fill(&*bare)?;
        let pool = rig.pool(below)?;
        let volume = rig.volume(&pool, 1, bytes)?;
        rig.fill(&*volume)?;
        Ok(Self { rig, bare, pool, volume })
    }

    /// Pairs of runs of the volume and of the device alone.
    fn pairs(&mut self, effort: &Effort, read_percent: u8) -> Result<Vec<(f64, f64)>> {
        let mut pairs = Vec::new();
        for pair in 0..effort.pairs {
            let mut sides = [0.0; 2];
            for side in if pair % 2 == 0 { [0, 1] } else { [1, 0] } {
                let device: &dyn BlockDevice = if side == 0 { &*self.volume } else { &*self.bare };
                let load = random(device, read_percent, 128, u64::from(pair));
                sides[side] = self.rig.load(device, load, End::After(effort.seconds))?.per_processor_second;
            }
            pairs.push((sides[0], sides[1]));
        }
        Ok(pairs)
    }
}

pub(super) fn allocated(effort: &Effort) -> Result<Vec<Line>> {
    let mut sides = Sides::new(WORKING_SET, ram(2 * WORKING_SET)?)?;
    Ok(vec![
        Line::of_pairs(
            "4 KiB random read, thin over RAM, QD128, to the device",
            0.85,
            &sides.pairs(effort, 100)?,
        )?,
        Line::of_pairs(
            "4 KiB random write, thin over RAM, QD128, to the device",
            0.85,
            &sides.pairs(effort, 0)?,
        )?,
    ])
}

pub(super) fn through_snapshots(effort: &Effort) -> Result<Vec<Line>> {
    // Memory that is never touched costs nothing: a snapshot's copies are pieces.
    let mut sides = Sides::new(WORKING_SET, ram(8 * GIB)?)?;
    for number in 0..SNAPSHOTS {
        sides.rig.snapshot(&sides.pool, 1, 100 + number)?;
        let load = random(&*sides.volume, 0, 32, 1000 + u64::from(number));
        sides.rig.load(&*sides.volume, load, End::Requests(WRITES_BETWEEN))?;
    }
    let name = "4 KiB random read, 32 snapshots deep over RAM, QD128, to the device";
    Ok(vec![Line::of_pairs(name, 0.8, &sides.pairs(effort, 100)?)?])
}

/// The time right after a snapshot is as long as the runs that it is compared with; then all is copied.
pub(super) fn after_snapshot(effort: &Effort) -> Result<Vec<Line>> {
    // Memory that was written before, and stays: what the system does at its first use is not the volume's.
    let below = ram(COPIED * 5 / 2)?;
    Rig::new()?.fill(&*below)?;
    let mut sides = Sides::new(COPIED, Arc::new(PlainDevice::new(below)))?;
    let (mut right_after, mut copied) = (Vec::new(), Vec::new());
    let volume = Arc::clone(&sides.volume);
    for pair in 0..effort.pairs {
        let seed = u64::from(pair) * 3;
        let run = |sides: &mut Sides, seed| -> Result<f64> {
            let load = random(&*volume, 0, 32, seed);
            Ok(sides.rig.load(&*volume, load, End::After(effort.seconds))?.per_processor_second)
        };
        let before = run(&mut sides, seed)?;
        sides.rig.snapshot(&sides.pool, 1, 2)?;
        right_after.push((run(&mut sides, seed + 1)?, before));
        sides.rig.fill(&*volume)?;
        copied.push((run(&mut sides, seed + 2)?, before));
        sides.rig.delete(&sides.pool, 2)?;
    }
    Ok(vec![
        Line::of_pairs(
            "4 KiB random overwrite right after a snapshot, RAM, QD32, to before",
            0.35,
            &right_after,
        )?,
        Line::of_pairs("4 KiB random overwrite once all is copied, RAM, QD32, to before", 0.8, &copied)?,
    ])
}
