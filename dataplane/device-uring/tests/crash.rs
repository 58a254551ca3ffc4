//! What a device over a simulated disk keeps through power failures: what was flushed or forced is there, every other block
//! holds, sector by sector, the old data or the data of a write that was under way.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use basalt_bdev::{AsyncChannel, BlockCount, BlockDevice, BlockSize, Lba};
use basalt_clock::{Random, SeededRandom};
use basalt_device_uring::{UringDevice, UringOptions};
use basalt_dma::Buffer;
use basalt_reactor::sim::{NodeId, World, WorldOptions};
use basalt_reactor::{DiskOptions, Handle, Progress, Reactor, ReactorOptions};
use uuid::Uuid;

const DISK: &str = "/disk";
const BLOCKS: u64 = 16;

/// Per block: what may be found there, last write last; the first is what is durable.
type Possible = Rc<RefCell<Vec<Vec<u8>>>>;

/// Turns a reactor until the world has reached `end` or the task is done.
fn run(world: &World, node: NodeId, end: Duration, body: impl AsyncFnOnce(Handle) + 'static) {
    let mut reactor = Reactor::new(Box::new(world.driver(node)), &ReactorOptions::default());
    let handle = reactor.handle();
    let task = handle.clone().spawn(async move { body(handle).await });
    let end = world.now() + end;
    while !task.is_done() {
        let turn = reactor.turn();
        if turn.progress == Progress::Busy {
            continue;
        }
        match [turn.next_timer, world.next_event()].into_iter().flatten().min() {
            Some(next) if next <= end => world.advance_to(next.max(world.now())),
            _ => return,
        }
    }
}

async fn device(handle: &Handle) -> (UringDevice, AsyncChannel) {
    let options = UringOptions {
        name: "disk".to_owned(),
        uuid: Uuid::nil(),
        block_size: Some(BlockSize::B4096),
        disk: DiskOptions::default(),
    };
    let device = UringDevice::open(handle, Path::new(DISK), &options).unwrap();
    let channel = AsyncChannel::new(handle, device.open(handle).unwrap());
    (device, channel)
}

/// Writes blocks full of one byte each, forcing or flushing some, for ever.
async fn write(handle: Handle, mut random: SeededRandom, possible: Possible) {
    let (_device, channel) = device(&handle).await;
    loop {
        if random.chance(1, 6) {
            channel.flush().await.unwrap();
            // Nothing else is under way, so every block's last write is durable.
            possible.borrow_mut().iter_mut().for_each(|bytes| bytes.drain(..bytes.len() - 1).for_each(drop));
            continue;
        }
        let block = random.below(BLOCKS);
        let place = usize::try_from(block).unwrap();
        let byte = u8::try_from(1 + random.below(255)).unwrap();
        let force = random.chance(1, 4);
        possible.borrow_mut()[place].push(byte);
        let mut buffer = Buffer::zeroed(4096);
        buffer.fill(byte);
        channel.write(Lba(block), BlockCount(1), buffer, force).await.unwrap();
        if force {
            possible.borrow_mut()[place] = vec![byte];
        }
    }
}

async fn check(handle: Handle, seed: u64, possible: Possible) {
    let (_device, channel) = device(&handle).await;
    for block in 0..BLOCKS {
        let bytes = channel.read(Lba(block), BlockCount(1), Buffer::zeroed(4096)).await.unwrap();
        let may = &mut possible.borrow_mut()[usize::try_from(block).unwrap()];
        for sector in bytes.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "seed {seed}: a sector is torn");
            assert!(may.contains(&sector[0]), "seed {seed}: block {block} holds {} of {may:?}", sector[0]);
        }
    }
}

#[test]
fn durable_data_survives_power_failures() {
    for seed in 0..60 {
        let world = World::new(seed, WorldOptions::default());
        let node = world.add_node("10.0.0.1".parse().unwrap());
        world.create_disk(node, DISK, BLOCKS * 4096);
        let mut random = world.fork_random();
        let possible: Possible = Rc::new(RefCell::new(vec![vec![0]; usize::try_from(BLOCKS).unwrap()]));
        for _ in 0..3 {
            let (written, sequence) = (Rc::clone(&possible), random.fork());
            let lifetime = Duration::from_micros(random.within(1_000..40_000));
            run(&world, node, lifetime, async move |handle| write(handle, sequence, written).await);
            world.power_fail(node);
            world.power_on(node);
            let found = Rc::clone(&possible);
            run(&world, node, Duration::from_secs(60), async move |handle| {
                check(handle.clone(), seed, Rc::clone(&found)).await;
                // What is found is what is there from now on: force it so that the next round begins with certainty.
                let (_device, channel) = device(&handle).await;
                for block in 0..BLOCKS {
                    let mut buffer = Buffer::zeroed(4096);
                    buffer.fill(0);
                    channel.write(Lba(block), BlockCount(1), buffer, true).await.unwrap();
                    found.borrow_mut()[usize::try_from(block).unwrap()] = vec![0];
                }
            });
            world.kill(node);
        }
    }
}
