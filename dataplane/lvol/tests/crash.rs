//! Power cuts: from recorded workloads, states that a crash can leave are built, imported and compared with what was promised.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_clock::{Random, SeededRandom};
use basalt_device_mem::{DelayDevice, Delays, RamDevice, Recording, RecordingDevice};
use basalt_lvol::id::{Epoch, Generation, VolumeId};
use basalt_lvol::{LogicalVolume, Pool, VolumeStatus};
use basalt_reactor::Handle;
use support::{Bytes, CLUSTER, MIB, create, named_all, run, volume, volume_id};

const SECTOR: usize = 512;

/// How many events each disk had seen. Moments of one run are ordered.
type Moment = Vec<usize>;

fn reached(moment: &Moment, point: &Moment) -> bool {
    moment.iter().zip(point).all(|(moment, point)| moment <= point)
}

/// Something happened since the moment, so what began there may have had effects.
fn passed(moment: &Moment, point: &Moment) -> bool {
    reached(moment, point) && moment != point
}

/// One write of a stamp to a range of sectors.
#[derive(Clone, Debug)]
struct Write {
    first: u64,
    sectors: u64,
    stamp: u64,
    began: Moment,
    acknowledged: Option<Moment>,
    durable: Option<Moment>,
}

/// What was asked of one volume, and when it was acknowledged.
#[derive(Clone, Debug)]
struct History {
    size: u64,
    generation: Generation,
    creation: (Moment, Option<Moment>),
    deletion: Option<(Moment, Option<Moment>)>,
    raised: Vec<(Generation, Moment, Option<Moment>)>,
    writes: Vec<Write>,
}

/// A run of a workload.
struct Run {
    disks: Vec<u64>,
    recordings: Vec<Arc<Recording>>,
    pool_created: Moment,
    histories: BTreeMap<VolumeId, History>,
    /// Moments at which the machine may lose power.
    points: Vec<Moment>,
}

#[derive(Clone)]
struct World {
    recordings: Vec<Arc<Recording>>,
    histories: Rc<RefCell<BTreeMap<VolumeId, History>>>,
    points: Rc<RefCell<BTreeSet<Moment>>>,
}

impl World {
    fn now(&self) -> Moment {
        self.recordings.iter().map(|recording| recording.len()).collect()
    }

    fn change(&self, id: VolumeId, change: impl FnOnce(&mut History)) {
        change(self.histories.borrow_mut().get_mut(&id).unwrap());
    }
}

/// A workload that the seed determines, on disks that record.
fn workload(seed: u64, disks: &[u64], users: u64) -> Run {
    let disks = disks.to_vec();
    run(seed, move |handle| async move {
        let mut devices: Vec<Arc<dyn BlockDevice>> = Vec::new();
        let mut recordings = Vec::new();
        for bytes in &disks {
            let ram = RamDevice::new("ram", uuid::Uuid::nil(), BlockSize::B512, *bytes).unwrap();
            let delays = Delays {
                read: Duration::from_micros(5),
                write: Duration::from_micros(20),
                flush: Duration::from_micros(50),
            };
            let recorder = RecordingDevice::new(Arc::new(DelayDevice::new(Arc::new(ram), delays)));
            recordings.push(Arc::clone(recorder.recording()));
            devices.push(Arc::new(recorder));
        }
        let world = World { recordings, histories: Rc::default(), points: Rc::default() };
        let observed = world.clone();
        let observer = handle.add_poller(move || {
            observed.points.borrow_mut().insert(observed.now());
            basalt_reactor::Progress::Idle
        });
        let pool = create(&handle, &devices).await.unwrap();
        let pool_created = world.now();
        let tasks: Vec<_> = (0..users)
            .map(|task| {
                let random = SeededRandom::new(seed * 16 + task);
                handle.spawn(user(handle.clone(), pool.clone(), world.clone(), task, random))
            })
            .collect();
        for task in tasks {
            task.await;
        }
        handle.remove_poller(observer);
        let points = match world.recordings.len() {
            1 => (0..=world.recordings[0].len()).map(|point| vec![point]).collect(),
            _ => world.points.take().into_iter().collect(),
        };
        let histories = world.histories.take();
        Run { disks, recordings: world.recordings, pool_created, histories, points }
    })
}

/// Creates, writes, flushes, raises and deletes volumes of its own.
async fn user(handle: Handle, pool: Pool, world: World, task: u64, mut random: SeededRandom) {
    let mut current: Option<(VolumeId, Arc<LogicalVolume>, Bytes)> = None;
    for step in 0..24_u64 {
        handle.sleep(Duration::from_micros(random.below(60))).await;
        let Some((id, _, bytes)) = &current else {
            let number = u8::try_from(task * 64 + step).unwrap();
            let size = (1 + random.below(2)) * MIB;
            let id = volume_id(number);
            let history = History {
                size,
                generation: Generation(10),
                creation: (world.now(), None),
                deletion: None,
                raised: Vec::new(),
                writes: Vec::new(),
            };
            world.histories.borrow_mut().insert(id, history);
            if let Ok(device) = pool.create_volume(volume(number, size)).await {
                world.change(id, |history| history.creation.1 = Some(world.now()));
                let bytes = Bytes::open(&handle, &*device);
                current = Some((id, device, bytes));
            } else {
                world.histories.borrow_mut().remove(&id);
            }
            continue;
        };
        let id = *id;
        match random.below(10) {
            0..=4 => write(&world, id, bytes, task << 32 | step, &mut random).await,
            5..=6 => {
                let covered: Vec<usize> = {
                    let histories = world.histories.borrow();
                    let writes = histories[&id].writes.iter().enumerate();
                    writes.filter(|(_, write)| write.acknowledged.is_some()).map(|(index, _)| index).collect()
                };
                bytes.flush().await.unwrap();
                let now = world.now();
                world.change(id, |history| {
                    for index in covered {
                        history.writes[index].durable.get_or_insert(now.clone());
                    }
                });
            }
            7 => {
                let generation = Generation(100 + step);
                world.change(id, |history| history.raised.push((generation, world.now(), None)));
                pool.raise(id, generation, Epoch { incarnation: 1, counter: step }).await.unwrap();
                world.change(id, |history| history.raised.last_mut().unwrap().2 = Some(world.now()));
            }
            _ => {
                world.change(id, |history| history.deletion = Some((world.now(), None)));
                current = None;
                pool.delete_volume(id, Generation(u64::MAX)).await.unwrap();
                world.change(id, |history| history.deletion.as_mut().unwrap().1 = Some(world.now()));
            }
        }
    }
}

async fn write(world: &World, id: VolumeId, bytes: &Bytes, stamp: u64, random: &mut SeededRandom) {
    let size = world.histories.borrow()[&id].size / SECTOR as u64;
    // Half of the writes meet at the border of two extents.
    let first = match random.chance(1, 2) {
        true => (MIB / SECTOR as u64 - 8 + random.below(8)).min(size - 16),
        false => random.below(size - 16),
    };
    let sectors = 1 + random.below(16);
    let content = stamp.to_le_bytes().repeat(SECTOR / 8 * usize::try_from(sectors).unwrap());
    let write = Write { first, sectors, stamp, began: world.now(), acknowledged: None, durable: None };
    world.change(id, |history| history.writes.push(write));
    bytes.write(first * SECTOR as u64, &content).await.unwrap();
    world.change(id, |history| history.writes.last_mut().unwrap().acknowledged = Some(world.now()));
}

/// Disks as a power cut leaves them.
fn images(run: &Run, point: &Moment, seed: u64) -> Vec<Vec<u8>> {
    let mut random = SeededRandom::new(seed);
    let images = run.disks.iter().zip(&run.recordings).zip(point);
    images
        .map(|((bytes, recording), point)| {
            let mut image = vec![0; usize::try_from(*bytes).unwrap()];
            recording.crash(&mut image, BlockSize::B512, *point, &mut random);
            image
        })
        .collect()
}

async fn disk_of(handle: &Handle, image: &[u8]) -> Arc<dyn BlockDevice> {
    let device = support::ram(image.len() as u64);
    let bytes = Bytes::open(handle, &*device);
    for (index, chunk) in image.chunks(128 << 10).enumerate() {
        if chunk.iter().any(|byte| *byte != 0) {
            bytes.write(index as u64 * (128 << 10), chunk).await.unwrap();
        }
    }
    device
}

/// What is wrong with a state after a crash; nothing if all promises were kept.
async fn judge(
    handle: &Handle,
    run: &Run,
    point: &Moment,
    images: &[Vec<u8>],
    fill: bool,
) -> Result<(), String> {
    let mut disks = Vec::new();
    for image in images {
        disks.push(disk_of(handle, image).await);
    }
    let pool = match Pool::import(handle, CLUSTER, named_all(&disks)).await {
        Ok(pool) => pool,
        Err(_) if !reached(&run.pool_created, point) => {
            return create(handle, &disks)
                .await
                .map(drop)
                .map_err(|error| format!("creating again: {error}"));
        }
        Err(error) => return Err(format!("import: {error}")),
    };
    if !matches!(pool.health(), basalt_lvol::PoolHealth::Online) {
        return Err("the pool is not online".into());
    }
    let mut contents = BTreeMap::new();
    for (id, history) in &run.histories {
        if let Some(content) = judge_volume(handle, &pool, *id, history, point).await? {
            contents.insert(*id, content);
        }
    }
    if let Some((id, _)) = pool.volumes().iter().find(|(id, _)| !run.histories.contains_key(id)) {
        return Err(format!("volume {id} was never asked for"));
    }
    if fill { fill_up(handle, &pool, &contents).await } else { Ok(()) }
}

/// Checks one volume; its content if it is there.
async fn judge_volume(
    handle: &Handle,
    pool: &Pool,
    id: VolumeId,
    history: &History,
    point: &Moment,
) -> Result<Option<Vec<u8>>, String> {
    let by = |moment: &Option<Moment>| moment.as_ref().is_some_and(|moment| reached(moment, point));
    let created = by(&history.creation.1);
    let deletion_began = history.deletion.as_ref().is_some_and(|(began, _)| passed(began, point));
    let deleted = history.deletion.as_ref().is_some_and(|(_, ended)| by(ended));
    let (record, device) = match pool.volume(id) {
        None if created && !deletion_began => return Err(format!("volume {id} is lost")),
        None => return Ok(None),
        Some(_) if deleted => return Err(format!("volume {id} is back from deletion")),
        Some(VolumeStatus::Ready(record, device)) => (record, device),
        Some(other) => return Err(format!("volume {id}: {other:?}")),
    };
    if record.size != history.size {
        return Err(format!("volume {id} has another size"));
    }
    let raised =
        history.raised.iter().filter(|(_, _, ended)| by(ended)).map(|(generation, ..)| *generation).max();
    if record.generation < raised.unwrap_or(history.generation) {
        return Err(format!("volume {id} forgot that it was raised to {raised:?}"));
    }
    let bytes = Bytes::open(handle, &*device);
    let mut content = Vec::new();
    for offset in (0..history.size).step_by(1 << 20) {
        content.extend(bytes.read(offset, 1 << 20).await.map_err(|error| format!("reading {id}: {error}"))?);
    }
    for (sector, found) in content.chunks(SECTOR).enumerate() {
        judge_sector(history, point, sector as u64, found)
            .map_err(|wrong| format!("volume {id}: {wrong}"))?;
    }
    Ok(Some(content))
}

fn judge_sector(history: &History, point: &Moment, sector: u64, found: &[u8]) -> Result<(), String> {
    let stamp = u64::from_le_bytes(found[..8].try_into().unwrap());
    if !found.chunks(8).all(|word| word == &found[..8]) {
        return Err(format!("sector {sector} is torn"));
    }
    // The last durable write, and each one after it, may be there.
    let mut allowed = vec![0];
    for write in &history.writes {
        if !(write.first..write.first + write.sectors).contains(&sector) || !passed(&write.began, point) {
            continue;
        }
        if write.durable.as_ref().is_some_and(|durable| reached(durable, point)) {
            allowed.clear();
        }
        allowed.push(write.stamp);
    }
    match allowed.contains(&stamp) {
        true => Ok(()),
        false => Err(format!("sector {sector} holds {stamp:#x}, allowed are {allowed:x?}")),
    }
}

/// Gives all free space to a new volume and writes all of it: what the others hold must not change.
async fn fill_up(handle: &Handle, pool: &Pool, contents: &BTreeMap<VolumeId, Vec<u8>>) -> Result<(), String> {
    let free = pool.free();
    if free > 0 {
        let filler =
            pool.create_volume(volume(255, free)).await.map_err(|error| format!("filling: {error}"))?;
        let bytes = Bytes::open(handle, &*filler);
        for offset in (0..free).step_by(1 << 20) {
            if bytes.read(offset, 1 << 20).await.unwrap().iter().any(|byte| *byte != 0) {
                return Err("a new volume shows old data".into());
            }
            bytes.write(offset, &vec![0xff; 1 << 20]).await.unwrap();
        }
    }
    for (id, before) in contents {
        let Some(VolumeStatus::Ready(_, device)) = pool.volume(*id) else {
            return Err(format!("volume {id} went away"));
        };
        let bytes = Bytes::open(handle, &*device);
        for (index, before) in before.chunks(1 << 20).enumerate() {
            if bytes.read((index as u64) << 20, before.len()).await.unwrap() != before {
                return Err(format!("volume {id} shares space with another one"));
            }
        }
    }
    Ok(())
}

/// Runs one workload and judges `states` of its crash states. The number of distinct ones, or the first that is wrong.
fn try_seed(seed: u64, states: usize) -> Result<usize, String> {
    let disks: &[u64] = if seed.is_multiple_of(3) { &[10 * MIB, 5 * MIB] } else { &[11 * MIB] };
    try_workload(seed, workload(seed, disks, 3), states)
}

fn try_workload(seed: u64, recorded: Run, states: usize) -> Result<usize, String> {
    let recorded = Rc::new(recorded);
    let mut random = SeededRandom::new(seed ^ 0xc4a5);
    let mut distinct = BTreeSet::new();
    for state in 0..states {
        // All points are visited if there are states enough.
        let points = recorded.points.len();
        let index = match states >= points {
            true => state % points,
            false => usize::try_from(random.below(points as u64)).unwrap(),
        };
        let point = recorded.points[index].clone();
        let tear = random.next_u64();
        let images = images(&recorded, &point, tear);
        let sums: Vec<u64> = images.iter().map(|image| basalt_lvol::layout::checksum(image)).collect();
        if !distinct.insert((point.clone(), sums)) {
            continue;
        }
        let run_of_state = Rc::clone(&recorded);
        let shown = format!("seed {seed}, point {point:?}, tear {tear:#x}");
        let judged = run(tear, move |handle| async move {
            judge(&handle, &run_of_state, &point, &images, state % 4 == 0).await
        });
        judged.map_err(|wrong| format!("{shown}: {wrong}"))?;
    }
    Ok(distinct.len())
}

/// Seeds and states per seed: `BASALT_CRASH_SEEDS` and `BASALT_CRASH_STATES` ask for more.
fn amount(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn every_crash_state_keeps_every_promise() {
    let states = usize::try_from(amount("BASALT_CRASH_STATES", 40)).unwrap();
    let mut distinct = 0;
    for seed in 0..amount("BASALT_CRASH_SEEDS", 30) {
        match try_seed(seed, states) {
            Ok(count) => distinct += count,
            Err(wrong) => panic!("{wrong}"),
        }
    }
    println!("{distinct} distinct states");
    assert!(distinct >= states, "crashes differ");
}

#[test]
fn the_creation_of_a_pool_can_be_cut_anywhere() {
    for disks in [&[8 * MIB][..], &[8 * MIB, 5 * MIB, 4 * MIB]] {
        let recorded = workload(1, disks, 0);
        let points = recorded.points.len();
        if let Err(wrong) = try_workload(1, recorded, 8 * points) {
            panic!("{wrong}")
        }
    }
}

#[cfg(basalt_planted)]
#[test]
fn every_planted_bug_is_found() {
    let bugs = [
        "lvol-no-flush-before-superblock",
        "lvol-superblock-before-table",
        "lvol-extent-freed-before-commit",
        "lvol-space-not-zeroed",
        "lvol-zeroes-not-flushed",
        "lvol-early-acknowledgement",
        "lvol-deletion-not-committed",
        "lvol-raise-not-committed",
        "lvol-import-forgets-space",
    ];
    std::panic::set_hook(Box::new(|_| {}));
    for bug in bugs {
        basalt_clock::fault::plant(Some(bug));
        let found = (0..50).find_map(|seed| match std::panic::catch_unwind(|| try_seed(seed, 40)) {
            Ok(Ok(_)) => None,
            Ok(Err(wrong)) => Some((seed, wrong)),
            Err(_) => Some((seed, "a panic".to_owned())),
        });
        basalt_clock::fault::plant(None);
        let (seed, wrong) = found.unwrap_or_else(|| panic!("{bug} was not found"));
        println!("{bug}: found after {} seeds: {wrong}", seed + 1);
    }
}
