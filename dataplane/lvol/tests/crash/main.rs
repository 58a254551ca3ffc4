//! Power cuts: from recorded workloads, states that a crash can leave are built, imported and compared with what was promised.
//!
//! `BASALT_CRASH_SEEDS` (workloads), `BASALT_CRASH_STATES` (states of each), `BASALT_CRASH_FROM` (first seed) and `BASALT_CRASH_LEAST`
//! (distinct states that there must be) ask for more; `cargo xtask crash` sets them.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test may panic")]

mod oracle;
#[path = "../support/mod.rs"]
mod support;
mod workload;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_clock::{Random, SeededRandom};
use basalt_device_mem::{CrashState, Crashes};
use basalt_lvol::id::VolumeId;
use basalt_lvol::{Pool, PoolHealth, VolumeStatus, inspect};
use basalt_reactor::Handle;
use oracle::{Cut, Histories, History, Moment, Presence, SECTOR};
use support::{Bytes, CLUSTER, MIB, create, named_all, run, volume};
use workload::{Run, Start, in_life, workload};

/// One state in so many is lived on in, and crashed in again.
const SECOND_LIFE: u64 = 23;

/// In one state in so many only the process has ended.
const PROCESS_ENDS: u64 = 5;

/// What is wrong with a state after a crash; what it holds if all promises were kept, unless there is no pool yet.
async fn judge(
    handle: &Handle,
    run: &Run,
    (point, cut): (&Moment, Cut),
    disks: &[Arc<dyn BlockDevice>],
    fill: bool,
) -> Result<Option<BTreeMap<VolumeId, Vec<u8>>>, String> {
    if fill && let Ok(found) = inspect(handle, named_all(disks)).await {
        let of_space = found.findings.into_iter().find(|finding| finding.subject == "free space");
        of_space.map_or(Ok(()), |finding| Err(finding.explanation))?;
    }
    let pool = match Pool::import(handle, CLUSTER, named_all(disks)).await {
        Ok(pool) => pool,
        Err(_) if run.start.existing.is_empty() && !oracle::reached(&run.pool_created, point) => {
            let again = create(handle, disks).await;
            return again.map(|_| None).map_err(|error| format!("creating again: {error}"));
        }
        Err(error) => return Err(format!("import: {error}")),
    };
    if let PoolHealth::ReadOnly(reason) = pool.health() {
        return Err(format!("the pool is not online: {reason}"));
    }
    let mut contents = BTreeMap::new();
    for (id, history) in &run.histories {
        let judged = judge_volume(handle, &pool, *id, history, (point, cut)).await;
        if let Some(content) = judged.map_err(|wrong| format!("volume {id}: {wrong}"))? {
            contents.insert(*id, content);
        }
    }
    if let Some((id, _)) = pool.volumes().iter().find(|(id, _)| !run.histories.contains_key(id)) {
        return Err(format!("volume {id} was never asked for"));
    }
    if fill {
        fill_up(handle, &pool, &contents).await?;
    }
    Ok(Some(contents))
}

/// Checks one volume; its content if it is there.
async fn judge_volume(
    handle: &Handle,
    pool: &Pool,
    id: VolumeId,
    history: &History,
    (point, cut): (&Moment, Cut),
) -> Result<Option<Vec<u8>>, String> {
    let presence = history.presence(point);
    let (record, device) = match pool.volume(id) {
        None if presence == Presence::There => return Err("it is lost".into()),
        None => return Ok(None),
        Some(_) if presence == Presence::Gone => return Err("it is back from deletion".into()),
        Some(VolumeStatus::Ready(record, device)) => (record, device),
        Some(other) => return Err(format!("{other:?}")),
    };
    history.judge_size(point, record.size)?;
    if let Some(epoch) = history.least_epoch(point).filter(|epoch| record.epoch < *epoch) {
        return Err(format!("it forgot that it belongs to epoch {epoch}"));
    }
    let least = history.least_generation(point);
    if record.generation < least {
        return Err(format!("it forgot that it was raised to {least:?}"));
    }
    let content = read_all(handle, &*device).await?;
    history.judge_content(point, cut, &content)?;
    Ok(Some(content))
}

async fn read_all(handle: &Handle, device: &dyn BlockDevice) -> Result<Vec<u8>, String> {
    let bytes = Bytes::open(handle, device);
    let size = usize::try_from(device.info().bytes()).unwrap();
    let mut content = Vec::with_capacity(size);
    while content.len() < size {
        let count = (size - content.len()).min(1 << 20);
        let part = bytes.read(content.len() as u64, count).await;
        content.extend(part.map_err(|error| format!("reading: {error}"))?);
    }
    Ok(content)
}

/// Gives all free space to a new volume and writes all of it: what the others hold must not change.
async fn fill_up(handle: &Handle, pool: &Pool, contents: &BTreeMap<VolumeId, Vec<u8>>) -> Result<(), String> {
    let free = pool.free();
    if free > 0 {
        let filler =
            pool.create_volume(volume(255, free)).await.map_err(|error| format!("filling: {error}"))?;
        if read_all(handle, &*filler).await?.iter().any(|byte| *byte != 0) {
            return Err("a new volume shows old data".into());
        }
        let bytes = Bytes::open(handle, &*filler);
        for offset in (0..free).step_by(1 << 20) {
            let count = usize::try_from((free - offset).min(1 << 20)).unwrap();
            bytes.write(offset, &vec![0xff; count]).await.unwrap();
        }
    }
    for (id, before) in contents {
        let Some(VolumeStatus::Ready(_, device)) = pool.volume(*id) else {
            return Err(format!("volume {id} went away"));
        };
        if read_all(handle, &*device).await? != *before {
            return Err(format!("volume {id} shares space with another one"));
        }
    }
    Ok(())
}

/// The volumes of a state, to live on with: what was found is on the medium for good.
fn survivors(run: &Run, contents: &BTreeMap<VolumeId, Vec<u8>>) -> Histories {
    let began: Moment = run.start.images.iter().map(|_| 0).collect();
    contents
        .iter()
        .map(|(id, content)| {
            let stamps = content.chunks(SECTOR);
            let base = stamps.map(|sector| u64::from_le_bytes(sector[..8].try_into().unwrap())).collect();
            let mut history = History::new(content.len() as u64, base, began.clone());
            history.creation.1 = Some(began.clone());
            (*id, history)
        })
        .collect()
}

/// What life goes on with in a state.
fn second_life(
    recorded: &Run,
    (tear, cut, life): (u64, Cut, Option<u64>),
    images: Vec<Vec<u8>>,
    contents: &BTreeMap<VolumeId, Vec<u8>>,
) -> Start {
    Start {
        seed: tear >> 24,
        images,
        volatile: recorded.start.volatile,
        life,
        extent: recorded.start.extent,
        in_caches: life.is_some() && cut == Cut::Process,
        users: 2,
        existing: survivors(recorded, contents),
        steps: 8,
    }
}

/// Judges crash states of a workload, as many as wanted, and lives on in some of them. The number of distinct states, or the first
/// that is wrong.
fn try_workload(recorded: Run, states: usize, again: bool) -> Result<usize, String> {
    let seed = recorded.start.seed;
    let recorded = Rc::new(recorded);
    let mut random = SeededRandom::new(seed ^ 0xc4a5);
    let disks = recorded.recordings.iter().zip(&recorded.start.images);
    let mut power: Vec<Crashes> = disks
        .map(|(recording, image)| {
            Crashes::new(recording, image.clone(), BlockSize::B512, recorded.start.volatile)
        })
        .collect();
    let disks = recorded.recordings.iter().zip(&recorded.start.images);
    let mut process: Vec<Crashes> = disks
        .map(|(recording, image)| {
            let crashes = Crashes::new(recording, image.clone(), BlockSize::B512, recorded.start.volatile);
            crashes.of_process_ends()
        })
        .collect();
    let (mut judged_already, mut distinct) = (BTreeSet::new(), BTreeSet::new());
    let mut lives = Vec::new();
    let points = recorded.points.len();
    for (index, point) in recorded.points.iter().enumerate() {
        // States are spread over all points; which points have one more is the seed's choice.
        let here = (states * (index + 1) / points) - (states * index / points);
        let here =
            if states < points { usize::from(random.below(points as u64) < states as u64) } else { here };
        if here == 0 {
            continue;
        }
        for crashes in [&mut power, &mut process] {
            crashes.iter_mut().zip(point).for_each(|(crashes, point)| crashes.advance(*point));
        }
        for _ in 0..here {
            let tear = random.next_u64();
            let mut choice = SeededRandom::new(tear);
            let cut = if tear.is_multiple_of(PROCESS_ENDS) { Cut::Process } else { Cut::Power };
            let crashes = if cut == Cut::Process { &process } else { &power };
            let found: Vec<CrashState> = crashes.iter().map(|crashes| crashes.state(&mut choice)).collect();
            let prints: Vec<u64> = found.iter().map(|state| state.fingerprint).collect();
            distinct.insert(prints.clone());
            if !judged_already.insert((point.clone(), cut == Cut::Process, prints)) {
                continue;
            }
            let images = tear.is_multiple_of(SECOND_LIFE) && again;
            let images: Vec<Vec<u8>> =
                found.iter().filter(|_| images).map(|state| state.device.to_vec()).collect();
            let life = recorded.start.life.map(|life| if cut == Cut::Process { life } else { life + 1 });
            let disks = found.into_iter().map(|state| in_life(state.device, life));
            let disks: Vec<Arc<dyn BlockDevice>> =
                disks.map(|disk| Arc::new(disk) as Arc<dyn BlockDevice>).collect();
            let (of_state, at) = (Rc::clone(&recorded), point.clone());
            let judged = run(tear, move |handle| async move {
                judge(&handle, &of_state, (&at, cut), &disks, tear.is_multiple_of(7)).await
            });
            let shown = format!("seed {seed}, point {point:?}, {cut:?}, tear {tear:#x}");
            let contents = judged.map_err(|wrong| format!("{shown}: {wrong}"))?;
            if let Some(contents) = contents.filter(|contents| !images.is_empty() && !contents.is_empty()) {
                lives.push(second_life(&recorded, (tear, cut, life), images, &contents));
            }
        }
    }
    let mut count = distinct.len();
    for life in lives {
        count += try_workload(workload(life), states / 10 + 1, false)
            .map_err(|wrong| format!("second life of seed {seed}: {wrong}"))?;
    }
    Ok(count)
}

/// Runs one workload and judges `states` of its crash states.
fn try_seed(seed: u64, states: usize) -> Result<usize, String> {
    let disks: &[u64] = if seed.is_multiple_of(3) { &[8 * MIB, 4 * MIB] } else { &[9 * MIB] };
    try_workload(workload(Start::new(seed, disks, 2)), states, true)
}

fn amount(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

/// Tries seeds on two threads; the number of distinct states, or the first wrong one.
fn try_seeds(seeds: std::ops::Range<u64>, states: usize, bug: Option<&'static str>) -> Result<usize, String> {
    let next = AtomicU64::new(seeds.start);
    let worker = || {
        plant(bug);
        let mut count = 0;
        loop {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= seeds.end {
                return Ok(count);
            }
            let tried = std::panic::catch_unwind(|| try_seed(seed, states));
            let tried = tried.unwrap_or_else(|panic| {
                let words = panic.downcast_ref::<String>().cloned();
                let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| (*words).to_owned()));
                Err(format!("seed {seed}: a panic: {}", words.unwrap_or_default()))
            });
            match tried {
                Ok(distinct) => count += distinct,
                Err(wrong) => {
                    next.store(seeds.end, Ordering::SeqCst);
                    return Err(wrong);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(worker), scope.spawn(worker)];
        let results = threads.map(|thread| thread.join().unwrap());
        results.into_iter().try_fold(0, |sum, result| result.map(|count| sum + count))
    })
}

#[cfg(basalt_planted)]
fn plant(bug: Option<&'static str>) {
    basalt_clock::fault::plant(bug);
}

#[cfg(not(basalt_planted))]
fn plant(bug: Option<&'static str>) {
    assert!(bug.is_none(), "bugs are planted only with --cfg basalt_planted");
}

#[test]
fn every_crash_state_keeps_every_promise() {
    let states = usize::try_from(amount("BASALT_CRASH_STATES", 50)).unwrap();
    let from = amount("BASALT_CRASH_FROM", 0);
    let seeds = amount("BASALT_CRASH_SEEDS", 40);
    let began = std::time::Instant::now();
    match try_seeds(from..from + seeds, states, None) {
        Ok(distinct) => {
            println!("{seeds} workloads, {distinct} distinct states in {:?}", began.elapsed());
            let least = amount("BASALT_CRASH_LEAST", seeds * states as u64 / 2);
            assert!(distinct as u64 >= least, "{distinct} distinct states are fewer than {least}");
        }
        Err(wrong) => panic!("{wrong}"),
    }
}

#[test]
fn the_creation_of_a_pool_can_be_cut_anywhere() {
    for disks in [&[8 * MIB][..], &[8 * MIB, 5 * MIB, 4 * MIB]] {
        let recorded = workload(Start::new(1, disks, 0));
        let points = recorded.points.len();
        if let Err(wrong) = try_workload(recorded, 8 * points, false) {
            panic!("{wrong}")
        }
    }
}

#[cfg(basalt_planted)]
#[test]
fn every_planted_bug_is_found() {
    let bugs = [
        "lvol-no-flush-before-superblock",
        "lvol-superblock-before-pages",
        "lvol-extent-freed-before-commit",
        "lvol-space-not-zeroed",
        "lvol-early-acknowledgement",
        "lvol-deletion-not-committed",
        "lvol-raise-not-committed",
        "lvol-import-forgets-space",
        "lvol-journal-before-data",
        "lvol-journal-not-flushed",
        "lvol-loose-group-believed",
        "lvol-journal-not-replayed",
        "lvol-journal-replayed-halfway",
        "lvol-mapping-before-data",
        "lvol-rest-of-piece-not-zeroed",
        "lvol-discard-not-journalled",
        "lvol-snapshot-shares-writes",
        "lvol-unshared-before-commit",
        "lvol-acknowledged-before-journal",
        "lvol-epoch-not-committed",
    ];
    std::panic::set_hook(Box::new(|_| {}));
    let (mut hidden, mut found, mut slowest) = (Vec::new(), 0, (std::time::Duration::ZERO, ""));
    // `BASALT_PLANTED` chooses those whose name contains it.
    let only = std::env::var("BASALT_PLANTED").unwrap_or_default();
    for bug in bugs.into_iter().filter(|bug| bug.contains(&only)) {
        let began = std::time::Instant::now();
        match try_seeds(0..600, 60, Some(bug)) {
            Err(wrong) => {
                println!("{bug}: found after {:?}: {wrong:.160}", began.elapsed());
                found += 1;
                slowest = slowest.max((began.elapsed(), bug));
            }
            Ok(states) => {
                println!("{bug}: not found in {states} states");
                hidden.push(bug);
            }
        }
    }
    println!("{found} planted bugs of pools found, the slowest, {}, after {:?}", slowest.1, slowest.0);
    assert!(hidden.is_empty(), "not found: {hidden:?}");
}
