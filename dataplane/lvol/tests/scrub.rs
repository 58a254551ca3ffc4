//! A pool that is looked over while it is in service: what rots is found and made good, and nothing else is found.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockDevice, BlockSize, IoError, Lba};
use basalt_clock::{Random, SeededRandom};
use basalt_device_mem::{Fault, FaultyDevice, ImageDevice, OperationKind};
use basalt_lvol::id::Generation;
use basalt_lvol::layout::SLOT_OFFSETS;
use basalt_lvol::{
    Finding, LogicalVolume, NewPoolDisk, Pool, PoolHealth, Remedy, ScrubError, ScrubSettings, VolumeStatus,
};
use basalt_reactor::Handle;
use support::late::LateDevice;
use support::{
    Bytes, CLUSTER, DIRECTORY, LEAF, MIB, NODE, ROOT, VOLUME, create_of, flip, named_all, pages_of, ram, run,
    snapshot, thin, volume, volume_id,
};

const OVERFLOW: u16 = 6;
/// So fast that nothing waits for it.
const FAST: u64 = 1 << 40;
const EXTENT: u64 = 64 << 10;

async fn pool_of(handle: &Handle, disks: &[Arc<dyn BlockDevice>]) -> Pool {
    let new = named_all(disks).into_iter();
    let new = new.map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
    create_of(handle, new, EXTENT).await.unwrap()
}

/// A pool with every kind of page; each piece of volume 2 that was written holds its number.
async fn sample(handle: &Handle, disks: &[Arc<dyn BlockDevice>]) -> Pool {
    let pool = pool_of(handle, disks).await;
    pool.create_volume(volume(1, 2 * EXTENT)).await.unwrap();
    let device = pool.create_volume(thin(2, 40 * MIB)).await.unwrap();
    let bytes = Bytes::open(handle, &*device);
    for extent in 0..28 {
        bytes.write(extent * EXTENT, &vec![2; 1 << 16]).await.unwrap();
    }
    bytes.write(39 * MIB, &[3; 4096]).await.unwrap();
    // Pieces of several extents, so many that a leaf needs overflow.
    for round in 0..8_u8 {
        pool.snapshot(volume_id(2), snapshot(10 + round)).await.unwrap();
        for extent in 0..28 {
            bytes.write(extent * EXTENT + u64::from(round) * 4096, &[40 + round; 4096]).await.unwrap();
        }
        pool.rename(volume_id(2), &format!("round {round}")).await.unwrap();
        if round > 1 {
            pool.delete_volume(volume_id(10 + round), Generation(10)).await.unwrap();
        }
    }
    pool
}

fn device(pool: &Pool, number: u8) -> Arc<LogicalVolume> {
    match pool.volume(volume_id(number)) {
        Some(VolumeStatus::Ready(_, device)) => device,
        other => panic!("volume {number}: {other:?}"),
    }
}

/// What the sample's volumes hold is what they held, now and after an import that finds nothing wrong.
async fn is_whole(handle: &Handle, pool: Pool, disks: &[Arc<dyn BlockDevice>]) {
    for imported in [false, true] {
        let pool = match imported {
            false => pool.clone(),
            true => Pool::import(handle, CLUSTER, named_all(disks)).await.unwrap(),
        };
        assert!(matches!(pool.health(), PoolHealth::Online));
        for (number, rounds) in [(2, 8), (10, 0), (11, 1)] {
            let bytes = Bytes::open(handle, &*device(&pool, number));
            for extent in 0..28 {
                let found = bytes.read(extent * EXTENT, 1 << 16).await.unwrap();
                for (piece, found) in (0..16).zip(found.chunks(4096)) {
                    let expected = if piece < rounds { 40 + piece } else { 2 };
                    assert!(found.iter().all(|byte| *byte == expected), "volume {number}, piece {piece}");
                }
            }
        }
    }
    let found = basalt_lvol::inspect(handle, named_all(disks)).await.unwrap();
    assert_eq!(found.findings, []);
}

fn subjects(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.subject.as_str()).collect()
}

#[test]
fn every_kind_of_page_that_rots_is_found_and_written_anew() {
    run(1, |handle| async move {
        let disks = [ram(24 * MIB)];
        let pool = sample(&handle, &disks).await;
        assert_eq!(pool.scrub(FAST).await.unwrap(), []);
        let clean = pool.scrub_status();
        assert_eq!((clean.runs, clean.findings, clean.progress), (1, 0, None));
        assert!(clean.bytes > 12 * 4096 && clean.ended.is_some(), "{clean:?}");
        let mut repaired = 0;
        for (kind, subject) in [
            (ROOT, "pool"),
            (DIRECTORY, "pool"),
            (VOLUME, "volume"),
            (NODE, "volume"),
            (LEAF, "volume"),
            (OVERFLOW, "volume"),
        ] {
            for byte in [9, 100, 4000] {
                let mut found = Vec::new();
                for (offset, _) in pages_of(&handle, &*disks[0], kind).await {
                    flip(&handle, &*disks[0], offset + byte).await;
                    found = pool.scrub(FAST).await.unwrap();
                    if !found.is_empty() {
                        break;
                    }
                    // Nothing refers to it: it may hold anything.
                    flip(&handle, &*disks[0], offset + byte).await;
                }
                assert!(subjects(&found).iter().all(|of| of.starts_with(subject)), "kind {kind}: {found:?}");
                assert_eq!(found.len(), 1, "kind {kind}: {found:?}");
                assert_eq!(found[0].remedy, Remedy::Rewrite, "{found:?}");
                repaired += 1;
                assert_eq!(pool.scrub(FAST).await.unwrap(), [], "kind {kind} was made good");
            }
        }
        let status = pool.scrub_status();
        assert_eq!((status.findings, status.repaired, status.open), (repaired, repaired, Vec::new()));
        is_whole(&handle, pool, &disks).await;
    });
}

#[test]
fn a_pool_whose_metadata_rots_altogether_is_made_good_as_long_as_it_lives() {
    run(2, |handle| async move {
        let disks = [ram(24 * MIB)];
        let pool = sample(&handle, &disks).await;
        for kind in [ROOT, DIRECTORY, VOLUME, NODE, LEAF, OVERFLOW] {
            for (offset, _) in pages_of(&handle, &*disks[0], kind).await {
                flip(&handle, &*disks[0], offset + 90).await;
            }
        }
        assert!(pool.scrub(FAST).await.unwrap().len() > 10);
        // Below a root that was not intact the directory was not to be seen.
        assert_eq!(pool.scrub(FAST).await.unwrap(), []);
        is_whole(&handle, pool, &disks).await;
    });
}

#[test]
fn superblocks_and_the_journal_are_made_good() {
    run(3, |handle| async move {
        let disks = [ram(24 * MIB), ram(8 * MIB)];
        let pool = sample(&handle, &disks).await;
        for (disk, slot) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            flip(&handle, &*disks[disk], SLOT_OFFSETS[slot] + 140).await;
            let found = pool.scrub(FAST).await.unwrap();
            assert_eq!(subjects(&found), [format!("disk-{disk}")]);
            assert!(found[0].explanation.contains(&format!("slot {slot}")), "{found:?}");
            assert_eq!(pool.scrub(FAST).await.unwrap(), []);
        }
        // As if power had failed between the two, before the pool was imported: no rot.
        let slot = Bytes::open(&handle, &*disks[0]);
        let old = slot.read(SLOT_OFFSETS[1], 512).await.unwrap();
        pool.rename(volume_id(1), "another").await.unwrap();
        slot.write(SLOT_OFFSETS[1], &old).await.unwrap();
        assert_eq!(pool.scrub(FAST).await.unwrap(), []);
        assert!(slot.read(SLOT_OFFSETS[1], 512).await.unwrap() != old, "it was written anew");
        // Groups that follow the last checkpoint, each of a block twice.
        let bytes = Bytes::open(&handle, &*device(&pool, 2));
        for extent in 30..33 {
            bytes.write(extent * EXTENT, &[1; 4096]).await.unwrap();
            bytes.flush().await.unwrap();
        }
        let mut copies = Vec::new();
        let lead = Bytes::open(&handle, &*disks[0]);
        for offset in (MIB..2 * MIB).step_by(512) {
            let group = lead.read(offset, 512).await.unwrap();
            if group.starts_with(b"BSLTJRNL") {
                copies.push((u64::from_le_bytes(group[16..24].try_into().unwrap()), offset));
            }
        }
        copies.sort_unstable();
        let last = copies[copies.len() - 1].1;
        assert_eq!(pool.scrub(FAST).await.unwrap(), []);
        flip(&handle, &*disks[0], last + 85).await;
        assert_eq!(subjects(&pool.scrub(FAST).await.unwrap()), ["journal"]);
        assert_eq!(pool.scrub(FAST).await.unwrap(), []);
        is_whole(&handle, pool, &disks).await;
    });
}

#[test]
fn both_slots_of_a_disk_are_written_anew_from_memory() {
    run(4, |handle| async move {
        let disks = [ram(24 * MIB), ram(8 * MIB)];
        let pool = sample(&handle, &disks).await;
        for disk in [0, 1] {
            let bytes = Bytes::open(&handle, &*disks[disk]);
            // Of the magic, of what it says, and without a trace.
            for damage in [Some(3), Some(140), None] {
                for slot in SLOT_OFFSETS {
                    match damage {
                        Some(at) => flip(&handle, &*disks[disk], slot + at).await,
                        None => bytes.write(slot, &[0; 4096]).await.unwrap(),
                    }
                }
                let found = pool.scrub(FAST).await.unwrap();
                let subject = format!("disk-{disk}");
                assert_eq!(subjects(&found), [subject.as_str(), &subject], "{damage:?}: {found:?}");
                for (slot, finding) in found.iter().enumerate() {
                    assert!(finding.explanation.contains(&format!("slot {slot}")), "{finding:?}");
                    assert_eq!(finding.remedy, Remedy::Rewrite, "{finding:?}");
                }
                assert_eq!(pool.scrub(FAST).await.unwrap(), []);
            }
        }
        assert_eq!(pool.scrub_status().repaired, 12);
        is_whole(&handle, pool, &disks).await;
    });
}

#[test]
fn a_disk_that_somebody_else_has_taken_is_told_of_and_left_alone() {
    run(14, |handle| async move {
        let other = [ram(24 * MIB), ram(8 * MIB)];
        drop(sample(&handle, &other).await);
        for (disk, of_another_pool) in [(0, false), (0, true), (1, false), (1, true)] {
            let disks = [ram(24 * MIB), ram(8 * MIB)];
            let pool = sample(&handle, &disks).await;
            let bytes = Bytes::open(&handle, &*disks[disk]);
            let theirs = Bytes::open(&handle, &*other[disk]);
            for slot in SLOT_OFFSETS {
                let content = match of_another_pool {
                    true => theirs.read(slot, 4096).await.unwrap(),
                    false => vec![0; 4096],
                };
                bytes.write(slot, &content).await.unwrap();
            }
            if !of_another_pool {
                let mut content = vec![0; 4096];
                content[..4].copy_from_slice(b"XFSB");
                bytes.write(0, &content).await.unwrap();
            }
            let before = bytes.read(0, 1 << 20).await.unwrap();
            for _ in 0..2 {
                let found = pool.scrub(FAST).await.unwrap();
                assert_eq!((found.len(), found[0].remedy), (1, Remedy::ByHand), "{found:?}");
                let words = &found[0].explanation;
                let whose = if of_another_pool { "another pool" } else { "an XFS file system" };
                assert!(words.contains(whose) && words.contains("refuse"), "{words}");
                assert_eq!(pool.scrub_status().open, found);
            }
            assert!(bytes.read(0, 1 << 20).await.unwrap() == before, "nothing was written");
        }
    });
}

#[test]
fn copies_below_a_root_that_is_lost_are_found_and_counted() {
    run(15, |handle| async move {
        let disks = [ram(24 * MIB)];
        let mut pool = sample(&handle, &disks).await;
        for imported in [false, true] {
            if imported {
                pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            }
            for kind in [ROOT, DIRECTORY] {
                for (offset, _) in pages_of(&handle, &*disks[0], kind).await {
                    flip(&handle, &*disks[0], offset + 90).await;
                }
            }
            let before = pool.scrub_status().repaired;
            let found = pool.scrub(FAST).await.unwrap();
            assert_eq!(subjects(&found), ["pool"; 4], "{found:?}");
            for (what, count) in [("a copy of the root", 2), ("a copy of the directory", 2)] {
                let told = found.iter().filter(|finding| finding.explanation.contains(what));
                assert_eq!(told.count(), count, "{found:?}");
            }
            assert_eq!(pool.scrub_status().repaired, before + 4);
            assert_eq!(pool.scrub(FAST).await.unwrap(), []);
        }
        is_whole(&handle, pool, &disks).await;
    });
}

#[test]
fn a_page_that_cannot_be_read_is_written_elsewhere() {
    run(5, |handle| async move {
        let faulty = FaultyDevice::new(ram(24 * MIB));
        let faults = Arc::clone(faulty.faults());
        let disks: [Arc<dyn BlockDevice>; 1] = [Arc::new(faulty)];
        let pool = sample(&handle, &disks).await;
        let mut found = Vec::new();
        for (offset, _) in pages_of(&handle, &*disks[0], LEAF).await {
            faults.clear();
            let range = Lba(offset / 512)..Lba(offset / 512 + 8);
            faults.inject(Fault { range, ..Fault::always(OperationKind::Read, IoError::Medium) });
            found = pool.scrub(FAST).await.unwrap();
            if !found.is_empty() {
                break;
            }
        }
        assert_eq!((found.len(), found[0].remedy), (1, Remedy::Rewrite), "{found:?}");
        assert_eq!(pool.scrub(FAST).await.unwrap(), []);
        is_whole(&handle, pool, &disks).await;
        // A disk that fails altogether is no finding: others tell of it.
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        faults.inject(Fault::always(OperationKind::Read, IoError::DeviceGone));
        assert!(matches!(pool.scrub(FAST).await, Err(ScrubError::Disk(_))));
        let status = pool.scrub_status();
        assert_eq!((status.runs, status.findings, status.progress), (0, 0, None));
        assert!(status.cut_off.unwrap().contains("the device is gone"));
    });
}

#[test]
fn it_takes_its_time_and_comes_again() {
    run(6, |handle| async move {
        let disks = [ram(24 * MIB)];
        let pool = sample(&handle, &disks).await;
        let begun = handle.now();
        pool.scrub(64 << 10).await.unwrap();
        let (took, bytes) = ((handle.now() - begun).as_secs_f64(), pool.scrub_status().bytes);
        let pace = bytes as f64 / took;
        // Maps in memory are looked at at the same pace.
        assert!((16_384.0..70_000.0).contains(&pace), "{pace} bytes per second");
        let told = Rc::new(RefCell::new(Vec::new()));
        let tell = Rc::clone(&told);
        let settings = ScrubSettings { interval: Duration::from_secs(60), bytes_per_second: 1 << 20 };
        pool.scrub_every(settings, move |finding| tell.borrow_mut().push(finding.subject.clone()));
        handle.sleep(Duration::from_secs(10 * 60)).await;
        assert!((10..=11).contains(&pool.scrub_status().runs), "{:?}", pool.scrub_status());
        assert!(told.borrow().is_empty());
        flip(&handle, &*disks[0], SLOT_OFFSETS[1] + 50).await;
        handle.sleep(Duration::from_secs(90)).await;
        assert_eq!(*told.borrow(), ["disk-0"]);
        // Another run, begun by hand, and one that would be begun meanwhile.
        let slow = handle.spawn({
            let pool = pool.clone();
            async move { pool.scrub(4096).await }
        });
        handle.sleep(Duration::from_secs(5)).await;
        let (done, total) = pool.scrub_status().progress.unwrap();
        assert!(done > 0 && done < total, "{done} of {total}");
        assert!(matches!(pool.scrub(FAST).await, Err(ScrubError::Busy)));
        // Who lets go of the pool ends it, whatever is under way.
        drop(slow);
        drop(pool);
        handle.sleep(Duration::from_secs(120)).await;
        assert_eq!(Rc::strong_count(&told), 1, "the task has ended");
    });
}

/// Writes, trims and flushes on a volume.
async fn user(handle: Handle, device: Arc<LogicalVolume>, mut random: SeededRandom) {
    let bytes = Bytes::open(&handle, &*device);
    let extents = device.info().bytes() / EXTENT;
    for _ in 0..150 {
        let offset = random.below(extents) * EXTENT;
        match random.below(10) {
            0..=4 => bytes
                .write(offset + random.below(16) * 4096, &[u8::try_from(random.below(256)).unwrap(); 4096])
                .await
                .unwrap(),
            5 => bytes.write(offset, &vec![1; 1 << 16]).await.unwrap(),
            6..=7 => bytes.unmap(offset, EXTENT).await.unwrap(),
            8 => bytes.flush().await.unwrap(),
            _ => handle.sleep(Duration::from_micros(random.below(500))).await,
        }
    }
}

/// Snapshots, clones, names, and volumes that come and go.
async fn changer(handle: Handle, pool: Pool, mut random: SeededRandom) {
    for number in 20..32 {
        handle.sleep(Duration::from_micros(random.below(1500))).await;
        let origin = volume_id(1 + u8::try_from(random.below(2)).unwrap());
        pool.snapshot(origin, snapshot(number)).await.unwrap();
        match random.below(4) {
            0 => drop(pool.clone_snapshot(volume_id(number), thin(number + 40, 4 * MIB)).await.unwrap()),
            1 => pool.rename(origin, &format!("name {number}")).await.unwrap(),
            _ => drop(pool.create_volume(volume(number + 80, 4 * EXTENT)).await.unwrap()),
        }
        if random.chance(1, 2) {
            pool.delete_volume(volume_id(number), Generation(10)).await.unwrap();
        }
        if random.chance(1, 2) && number > 21 {
            // Whichever of these there is.
            drop(pool.delete_volume(volume_id(number + 39), Generation(10)).await);
            drop(pool.delete_volume(volume_id(number + 79), Generation(10)).await);
        }
    }
}

fn try_seed(seed: u64) -> Result<u64, String> {
    run(seed, move |handle| async move {
        let mut random = SeededRandom::new(seed);
        let disks: Vec<Arc<dyn BlockDevice>> = [24 * MIB, 12 * MIB]
            .into_iter()
            .map(|bytes| {
                let image = vec![0; usize::try_from(bytes).unwrap()];
                let image = ImageDevice::new(Arc::new(image), BlockSize::B512, seed.is_multiple_of(2));
                let (read, write) = (random.below(300), random.below(300));
                let late = LateDevice::new(
                    Arc::new(image),
                    Duration::from_micros(read),
                    Duration::from_micros(write),
                );
                Arc::new(late) as Arc<dyn BlockDevice>
            })
            .collect();
        let pool = pool_of(&handle, &disks).await;
        let mut tasks = Vec::new();
        for number in [1, 2] {
            let device = pool.create_volume(thin(number, 4 * MIB)).await.unwrap();
            for _ in 0..2 {
                let user = user(handle.clone(), Arc::clone(&device), random.fork());
                tasks.push(handle.spawn(user));
            }
        }
        tasks.push(handle.spawn(changer(handle.clone(), pool.clone(), random.fork())));
        // Fast and slow runs, over and over.
        let scrubbed = handle.spawn({
            let (pool, handle) = (pool.clone(), handle.clone());
            async move {
                for _ in 0..12 {
                    let pace = 1 << (18 + random.below(12));
                    let found = pool.scrub(pace).await.unwrap();
                    if !found.is_empty() {
                        return Err(format!("nothing had rotted: {found:?}"));
                    }
                    handle.sleep(Duration::from_micros(random.below(1000))).await;
                }
                Ok(())
            }
        });
        for task in tasks {
            task.await;
        }
        scrubbed.await?;
        let checkpoints = pool.usage().checkpoints;
        drop(pool);
        let found = basalt_lvol::inspect(&handle, named_all(&disks)).await.unwrap();
        match found.findings.is_empty() {
            true => Ok(checkpoints),
            false => Err(format!("{:?}", found.findings)),
        }
    })
}

#[test]
fn nothing_is_found_where_nothing_has_rotted_whatever_happens_meanwhile() {
    let mut checkpoints = 0;
    for seed in 0..60 {
        match try_seed(seed) {
            Ok(written) => checkpoints += written,
            Err(wrong) => panic!("seed {seed}: {wrong}"),
        }
    }
    assert!(checkpoints > 60 * 20, "{checkpoints} checkpoints were written meanwhile");
}
