//! Files as block devices: the conformance test, errors at opening, persistence.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::path::Path;
use std::time::{Duration, Instant};

use basalt_bdev::{AsyncChannel, BlockCount, BlockDevice, BlockSize, IoError, Lba, conformance};
use basalt_device_uring::{UringDevice, UringError, UringOptions};
use basalt_dma::Buffer;
use basalt_reactor::real::RealDriver;
use basalt_reactor::sim::{World, WorldOptions};
use basalt_reactor::{DiskError, DiskOptions, Handle, Progress, Reactor, ReactorOptions};
use uuid::Uuid;

fn options(block_size: Option<BlockSize>, length: Option<u64>) -> UringOptions {
    let disk = DiskOptions { create_with_length: length, ..DiskOptions::default() };
    UringOptions { name: "disk".to_owned(), uuid: Uuid::nil(), block_size, disk }
}

fn run(driver: RealDriver, test: impl AsyncFnOnce(Handle) + 'static) {
    let mut reactor = Reactor::new(Box::new(driver), &ReactorOptions::default());
    let handle = reactor.handle();
    let task = handle.clone().spawn(async move { test(handle).await });
    let began = Instant::now();
    while !task.is_done() {
        reactor.turn();
        assert!(began.elapsed() < Duration::from_secs(60), "no progress");
    }
}

fn conforms(path: &Path, block_size: Option<BlockSize>) {
    for driver in [RealDriver::new().unwrap(), RealDriver::with_threads().unwrap()] {
        let path = path.to_owned();
        run(driver, async move |handle| {
            let options = options(block_size, Some(8 << 20));
            let device = UringDevice::open(&handle, &path, &options).unwrap();
            conformance::run(handle, &device, 11).await;
        });
    }
}

#[test]
fn a_file_conforms_with_its_own_and_with_larger_blocks() {
    let directory = tempfile::tempdir().unwrap();
    conforms(&directory.path().join("small"), None);
    conforms(&directory.path().join("large"), Some(BlockSize::B4096));
}

#[test]
fn a_device_stays_with_its_disk_whatever_takes_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    run(RealDriver::new().unwrap(), async move |handle| {
        let device = UringDevice::open(&handle, &path, &options(None, Some(1 << 20))).unwrap();
        let open = || AsyncChannel::new(&handle, device.open(&handle).unwrap());
        let block = |byte| Buffer::copy_of(&[byte; 512]);
        open().write(Lba(3), BlockCount(1), block(7), false).await.unwrap();
        std::fs::rename(&path, path.with_extension("moved")).unwrap();
        let later = open();
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        for channel in [later, open()] {
            let found = channel.read(Lba(3), BlockCount(1), Buffer::zeroed(512)).await.unwrap();
            assert!(found.iter().all(|byte| *byte == 7), "it reads another disk");
            channel.write(Lba(4), BlockCount(1), block(8), false).await.unwrap();
        }
        assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0), "it wrote on another disk");
    });
}

#[test]
fn what_a_disk_lost_by_becoming_shorter_fails() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    run(RealDriver::new().unwrap(), async move |handle| {
        let device = UringDevice::open(&handle, &path, &options(None, Some(1 << 20))).unwrap();
        let before = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 19).unwrap();
        let after = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        for channel in [before, after] {
            let lost = channel.read(Lba(1500), BlockCount(1), Buffer::zeroed(512)).await;
            assert_eq!(lost.unwrap_err(), IoError::Shortened);
        }
    });
}

#[test]
fn a_disk_is_opened_by_one_device_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    run(RealDriver::new().unwrap(), async move |handle| {
        let missing = UringDevice::open(&handle, &path, &options(None, None)).unwrap_err();
        assert!(matches!(missing, UringError::Disk { source: DiskError::NotFound, .. }), "{missing}");
        let first = UringDevice::open(&handle, &path, &options(None, Some(1 << 20))).unwrap();
        assert!(first.info().volatile_write_cache());
        let second = UringDevice::open(&handle, &path, &options(None, None)).unwrap_err();
        assert!(matches!(second, UringError::Disk { source: DiskError::InUse, .. }), "{second}");
        drop(first);
        UringDevice::open(&handle, &path, &options(None, None)).unwrap();
    });
}

#[test]
fn a_file_that_grew_is_usable_through_open_channels() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    run(RealDriver::new().unwrap(), async move |handle| {
        let device = UringDevice::open(&handle, &path, &options(None, Some(1 << 20))).unwrap();
        let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
        let block = Lba((1 << 20) / u64::from(device.info().block_size().bytes()));
        let len = device.info().block_size().bytes() as usize;
        let beyond = channel.read(block, BlockCount(1), Buffer::zeroed(len)).await;
        assert_eq!(beyond.unwrap_err(), IoError::OutOfRange);
        device.rescan(&handle).unwrap();
        assert_eq!((device.info().bytes(), device.info().generation()), (2 << 20, 1));
        channel.read(block, BlockCount(1), Buffer::zeroed(len)).await.unwrap();
    });
}

#[test]
fn a_simulated_disk_conforms() {
    for seed in 0..3 {
        let world = World::new(seed, WorldOptions::default());
        let node = world.add_node("10.0.0.1".parse().unwrap());
        world.create_disk(node, "/disk", 1 << 20);
        let mut reactor = Reactor::new(Box::new(world.driver(node)), &ReactorOptions::default());
        let handle = reactor.handle();
        let task = handle.clone().spawn(async move {
            let device = UringDevice::open(&handle, Path::new("/disk"), &options(None, None)).unwrap();
            conformance::run(handle, &device, seed).await;
        });
        while !task.is_done() {
            let turn = reactor.turn();
            if turn.progress == Progress::Idle {
                let next = [turn.next_timer, world.next_event()].into_iter().flatten().min();
                world.advance_to(next.expect("the test waits for something"));
            }
        }
    }
}
