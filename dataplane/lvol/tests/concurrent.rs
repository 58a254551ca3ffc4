//! Many users of one volume at once, on channels of their own, while snapshots are taken, space changes hands and disks take their time.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_clock::{Random, SeededRandom};
use basalt_device_mem::ImageDevice;
use basalt_lvol::id::Generation;
use basalt_lvol::{LogicalVolume, NewPoolDisk, Pool};
use basalt_reactor::Handle;
use support::late::LateDevice;
use support::{Bytes, MIB, create_of, named_all, run, snapshot, thin, volume, volume_id};

const SECTOR: usize = 512;
const USERS: u64 = 4;
/// Sectors of the volume; a user owns those whose number has its remainder, so that all of them meet in every piece.
const SECTORS: u64 = 1024;

/// Every value that a sector has had, in order.
type Values = Rc<RefCell<Vec<Vec<u64>>>>;

struct World {
    handle: Handle,
    pool: Pool,
    values: Values,
    problem: Rc<RefCell<Option<String>>>,
}

impl World {
    fn wrong(&self, what: String) {
        self.problem.borrow_mut().get_or_insert(what);
    }
}

async fn user(world: Rc<World>, device: Arc<LogicalVolume>, number: u64, mut random: SeededRandom) {
    let bytes = Bytes::open(&world.handle, &*device);
    for step in 1..60 {
        let sector = random.below(SECTORS / USERS) * USERS + number;
        let at = usize::try_from(sector).unwrap();
        let stamp = number << 32 | step << 16 | sector;
        let offset = sector * SECTOR as u64;
        match random.below(8) {
            0..=4 => {
                world.values.borrow_mut()[at].push(stamp);
                bytes.write(offset, &stamp.to_le_bytes().repeat(SECTOR / 8)).await.unwrap();
            }
            5 => {
                world.values.borrow_mut()[at].push(0);
                bytes.write_zeroes(offset, SECTOR as u64).await.unwrap();
            }
            6 => bytes.flush().await.unwrap(),
            _ => world.handle.sleep(Duration::from_micros(random.below(100))).await,
        }
        let found = bytes.read(offset, SECTOR).await.unwrap();
        let expected = world.values.borrow()[at].last().copied().unwrap();
        if found != expected.to_le_bytes().repeat(SECTOR / 8) {
            world.wrong(format!("sector {sector} is not what its only user wrote, {expected:#x}"));
        }
    }
}

/// Takes snapshots, and looks at each twice: it must hold values of its time, and the same ones later.
async fn photographer(world: Rc<World>, mut random: SeededRandom) {
    let lengths = |world: &World| world.values.borrow().iter().map(Vec::len).collect::<Vec<usize>>();
    for number in 10..16 {
        world.handle.sleep(Duration::from_micros(random.below(1500))).await;
        let before = lengths(&world);
        let taken = world.pool.snapshot(volume_id(1), snapshot(number)).await.unwrap();
        let after = lengths(&world);
        let bytes = Bytes::open(&world.handle, &*taken);
        let first = bytes.read(0, usize::try_from(SECTORS).unwrap() * SECTOR).await.unwrap();
        for (sector, found) in first.chunks(SECTOR).enumerate() {
            let stamp = u64::from_le_bytes(found[..8].try_into().unwrap());
            let values = &world.values.borrow()[sector];
            // The last value before, whose write may be under way with the one before it, up to the last one after.
            let possible = &values[before[sector].saturating_sub(2)..after[sector]];
            if !possible.contains(&stamp) || found[8..] != found[..SECTOR - 8] {
                world.wrong(format!("snapshot {number}: sector {sector} holds {stamp:#x} of {possible:x?}"));
            }
        }
        world.handle.sleep(Duration::from_micros(random.below(3000))).await;
        let again = bytes.read(0, usize::try_from(SECTORS).unwrap() * SECTOR).await.unwrap();
        if again != first {
            world.wrong(format!("snapshot {number} has changed"));
        }
        if random.chance(1, 2) {
            world.pool.delete_volume(volume_id(number), Generation(10)).await.unwrap();
        }
    }
}

/// Lets space change hands: volumes come, are written all over, and go while they are written.
async fn neighbour(world: Rc<World>, mut random: SeededRandom) {
    for number in 100..108 {
        let device = world.pool.create_volume(thin(number, MIB)).await.unwrap();
        let own = world.handle.clone();
        let writing = world.handle.spawn(async move {
            let bytes = Bytes::open(&own, &*device);
            // The second time in place.
            for offset in (0..MIB).step_by(256 << 10).chain((0..MIB).step_by(256 << 10)) {
                if bytes.write(offset, &vec![0xee; 256 << 10]).await.is_err() {
                    return;
                }
            }
        });
        world.handle.sleep(Duration::from_micros(random.below(60_000))).await;
        world.pool.delete_volume(volume_id(number), Generation(10)).await.unwrap();
        // While writes of a volume that is gone are still under way.
        let fresh = world.pool.create_volume(thin(200, MIB)).await.unwrap();
        let bytes = Bytes::open(&world.handle, &*fresh);
        bytes.write(0, &vec![0x11; 1 << 20]).await.unwrap();
        writing.await;
        world.handle.sleep(Duration::from_millis(8)).await;
        if bytes.read(0, 1 << 20).await.unwrap() != vec![0x11; 1 << 20] {
            world.wrong("writes of a volume that is gone reached another one".into());
        }
        world.pool.delete_volume(volume_id(200), Generation(10)).await.unwrap();
    }
}

fn try_seed(seed: u64) -> Result<(), String> {
    run(seed, move |handle| async move {
        let mut random = SeededRandom::new(seed);
        // The lead is quick; what lies on the member may be under way for longer than a commit takes.
        let disks: Vec<Arc<dyn BlockDevice>> = [(8 * MIB, 100), (9 * MIB, 200 + 3000 * (seed % 3))]
            .into_iter()
            .map(|(bytes, write)| {
                let image = vec![0; usize::try_from(bytes).unwrap()];
                let image = ImageDevice::new(Arc::new(image), BlockSize::B512, seed.is_multiple_of(2));
                let late =
                    LateDevice::new(Arc::new(image), Duration::from_micros(10), Duration::from_micros(write));
                Arc::new(late) as Arc<dyn BlockDevice>
            })
            .collect();
        let named = named_all(&disks).into_iter();
        let named = named.map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
        let pool = create_of(&handle, named, 64 << 10).await.unwrap();
        pool.create_volume(volume(250, 3 * MIB)).await.unwrap();
        let device = pool.create_volume(thin(1, SECTORS * SECTOR as u64)).await.unwrap();
        let values = vec![vec![0]; usize::try_from(SECTORS).unwrap()];
        let world = Rc::new(World {
            handle: handle.clone(),
            pool,
            values: Rc::new(RefCell::new(values)),
            problem: Rc::default(),
        });
        let mut tasks: Vec<_> = (0..USERS)
            .map(|number| handle.spawn(user(Rc::clone(&world), Arc::clone(&device), number, random.fork())))
            .collect();
        tasks.push(handle.spawn(photographer(Rc::clone(&world), random.fork())));
        tasks.push(handle.spawn(neighbour(Rc::clone(&world), random.fork())));
        for task in tasks {
            task.await;
        }
        let problem = world.problem.borrow_mut().take();
        problem.map_or(Ok(()), Err)
    })
}

#[test]
fn users_and_snapshots_do_not_get_in_each_others_way() {
    for seed in 0..30 {
        if let Err(wrong) = try_seed(seed) {
            panic!("seed {seed}: {wrong}");
        }
    }
}

#[cfg(basalt_planted)]
#[test]
fn every_planted_bug_is_found() {
    std::panic::set_hook(Box::new(|_| {}));
    let mut hidden = Vec::new();
    for bug in ["lvol-snapshot-without-grace", "lvol-rest-of-piece-not-zeroed"] {
        basalt_clock::fault::plant(Some(bug));
        let found = (0..100).find_map(|seed| match std::panic::catch_unwind(|| try_seed(seed)) {
            Ok(Ok(())) => None,
            Ok(Err(wrong)) => Some((seed, wrong)),
            Err(_) => Some((seed, "a panic".to_owned())),
        });
        basalt_clock::fault::plant(None);
        match found {
            Some((seed, wrong)) => println!("{bug}: found after {} seeds: {wrong}", seed + 1),
            None => hidden.push(bug),
        }
    }
    assert!(hidden.is_empty(), "not found: {hidden:?}");
}
