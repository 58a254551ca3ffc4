//! Compare-and-writes on a file against what another reactor does to the same blocks at the same time.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use basalt_bdev::{
    AsyncChannel, BlockCount, BlockDevice, BlockSize, Capabilities, IoError, Lba, Operation, Request,
};
use basalt_device_uring::{UringDevice, UringOptions};
use basalt_dma::{Buffer, Payload};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{DiskOptions, Reactor, ReactorOptions};
use uuid::Uuid;

const BLOCKS: u64 = 8;
const LEN: usize = 8 * 512;
const ROUNDS: u64 = 200;

fn reactor(threads: bool) -> Reactor {
    let driver = if threads { RealDriver::with_threads() } else { RealDriver::new() };
    Reactor::new(Box::new(driver.unwrap()), &ReactorOptions::default())
}

fn open(reactor: &Reactor, path: &std::path::Path) -> Arc<UringDevice> {
    let disk = DiskOptions { create_with_length: Some(1 << 20), ..DiskOptions::default() };
    let block_size = Some(BlockSize::B512);
    let options = UringOptions { name: "disk".to_owned(), uuid: Uuid::nil(), block_size, disk };
    Arc::new(UringDevice::open(&reactor.handle(), path, &options).unwrap())
}

/// Runs `work` with a channel of its own on a reactor of its own.
fn on_a_reactor<T: 'static>(
    device: &UringDevice,
    threads: bool,
    work: impl AsyncFnOnce(AsyncChannel) -> T + 'static,
) -> T {
    let mut reactor = reactor(threads);
    let handle = reactor.handle();
    let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
    let mut task = handle.spawn(async move { work(channel).await });
    let began = Instant::now();
    loop {
        reactor.turn();
        if let Some(output) = task.take_output() {
            return output;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no progress");
    }
}

async fn read(channel: &AsyncChannel) -> Vec<u8> {
    channel.read(Lba(0), BlockCount(BLOCKS), Buffer::zeroed(LEN)).await.unwrap().to_vec()
}

async fn swap(channel: &AsyncChannel, old: &[u8], new: &[u8]) -> Result<(), IoError> {
    let payload = Payload::Scattered(vec![Buffer::copy_of(old), Buffer::copy_of(new)]);
    let operation = Operation::CompareAndWrite { fua: false };
    let request = Request { tag: 0, operation, lba: Lba(0), blocks: BlockCount(BLOCKS), payload };
    let completion = channel.run(request).await;
    assert_eq!(completion.payload.len(), 2 * LEN, "the memory comes back");
    completion.result
}

/// Counts the first block up to `ROUNDS` without changing the others; answers how often it won.
async fn count_up(channel: AsyncChannel) -> u64 {
    let mut wins = 0;
    loop {
        let old = read(&channel).await;
        let count = u64::from_le_bytes(*old.first_chunk().unwrap());
        if count == ROUNDS {
            return wins;
        }
        let mut new = old.clone();
        new[..8].copy_from_slice(&(count + 1).to_le_bytes());
        match swap(&channel, &old, &new).await {
            Ok(()) => wins += 1,
            Err(error) => assert_eq!(error, IoError::Miscompare),
        }
    }
}

fn swaps_and_writes_meet(threads: bool) {
    let folder = tempfile::tempdir().unwrap();
    let first = reactor(false);
    let device = open(&first, &folder.path().join("disk"));
    assert!(device.info().capabilities().contains(Capabilities::COMPARE | Capabilities::COMPARE_AND_WRITE));
    let wins: u64 = thread::scope(|scope| {
        let swapper = || scope.spawn(|| on_a_reactor(&device, threads, count_up));
        let swappers = [swapper(), swapper()];
        scope.spawn(|| {
            on_a_reactor(&device, threads, async |channel: AsyncChannel| {
                for number in 1..=ROUNDS {
                    let mut block = Buffer::zeroed(512);
                    block.fill(number.to_le_bytes()[0]);
                    channel.write(Lba(3), BlockCount(1), block, false).await.unwrap();
                    let found = read(&channel).await;
                    let kept = found[3 * 512..4 * 512].iter().all(|byte| *byte == number.to_le_bytes()[0]);
                    assert!(kept, "a compare-and-write undid write {number}");
                }
            });
        });
        swappers.into_iter().map(|swapper| swapper.join().unwrap()).sum()
    });
    assert_eq!(wins, ROUNDS, "two swaps of the same content won");
}

#[test]
fn swaps_and_writes_meet_on_a_ring() {
    swaps_and_writes_meet(false);
}

#[test]
fn swaps_and_writes_meet_on_threads() {
    swaps_and_writes_meet(true);
}
