//! Files that are cut while they are served: nothing may make them longer again, for what was lost would read as zeroes. And files that
//! are deleted or moved.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_bdev::{AsyncChannel, Backing, BlockDevice, BlockSize, IoError};
use basalt_device_uring::{UringDevice, UringOptions};
use basalt_dma::Buffer;
use basalt_reactor::real::RealDriver;
use basalt_reactor::{DiskOptions, Handle, Reactor, ReactorOptions};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const LEN: usize = 4096;

fn run<T: 'static>(path: &Path, test: impl AsyncFnOnce(Handle, Arc<UringDevice>) -> T + 'static) -> T {
    let mut reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &ReactorOptions::default());
    let handle = reactor.handle();
    let disk = DiskOptions { create_with_length: Some(8 * MIB), ..DiskOptions::default() };
    let block_size = Some(BlockSize::B4096);
    let options = UringOptions { name: "disk".to_owned(), uuid: Uuid::nil(), block_size, disk };
    let device = Arc::new(UringDevice::open(&handle, path, &options).unwrap());
    let mut task = reactor.handle().spawn(async move { test(handle, device).await });
    let began = Instant::now();
    loop {
        reactor.turn();
        if let Some(output) = task.take_output() {
            return output;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no progress");
    }
}

fn channel(handle: &Handle, device: &UringDevice) -> AsyncChannel {
    AsyncChannel::new(handle, device.open(handle).unwrap())
}

fn resize(path: &Path, length: u64) {
    File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

async fn read(channel: &AsyncChannel, offset: u64) -> Result<(), IoError> {
    let (at, count) = (BlockSize::B4096.blocks_in(offset), BlockSize::B4096.blocks_in(LEN as u64));
    channel.read(basalt_bdev::Lba(at.0), count, Buffer::zeroed(LEN)).await.map(drop)
}

async fn write(channel: &AsyncChannel, offset: u64) -> Result<(), IoError> {
    let (at, count) = (BlockSize::B4096.blocks_in(offset), BlockSize::B4096.blocks_in(LEN as u64));
    channel.write(basalt_bdev::Lba(at.0), count, Buffer::zeroed(LEN), false).await.map(drop)
}

#[test]
fn a_read_that_finds_the_end_of_a_file_ends_its_service() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    run(&path.clone(), async move |handle, device| {
        let channel = channel(&handle, &device);
        assert_eq!(write(&channel, 0).await, Ok(()));
        resize(&path, 2 * MIB);
        assert_eq!(read(&channel, 3 * MIB).await, Err(IoError::Shortened));
        assert_eq!(device.info().backing(), Backing::Shortened { was: 8 * MIB, is: 2 * MIB });
        for offset in [0, MIB, 6 * MIB] {
            assert_eq!(write(&channel, offset).await, Err(IoError::Shortened), "at {offset}");
            assert_eq!(read(&channel, offset).await, Err(IoError::Shortened), "at {offset}");
        }
        assert_eq!(length(&path), 2 * MIB);
        assert_eq!(device.info().faults().reads.last, Some(IoError::Shortened));
        // It has its length again, but not what it held.
        resize(&path, 8 * MIB);
        device.look();
        assert_eq!(read(&channel, 0).await, Err(IoError::Shortened));
    });
}

#[test]
fn a_file_that_was_cut_is_noticed_by_looking_and_by_a_new_channel() {
    for by_looking in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        run(&path.clone(), async move |handle, device| {
            let before = channel(&handle, &device);
            resize(&path, 2 * MIB + 7);
            if by_looking {
                device.look();
            }
            // That of a host that comes later.
            let later = channel(&handle, &device);
            assert_eq!(write(&later, 6 * MIB).await, Err(IoError::Shortened));
            assert_eq!(write(&before, 6 * MIB).await, Err(IoError::Shortened));
            assert_eq!(length(&path), 2 * MIB + 7);
            assert_eq!(device.info().backing(), Backing::Shortened { was: 8 * MIB, is: 2 * MIB + 7 });
        });
    }
}

#[test]
fn a_write_that_makes_a_cut_file_longer_does_not_hide_that_it_was_cut() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    run(&path.clone(), async move |handle, device| {
        let channel = channel(&handle, &device);
        resize(&path, 2 * MIB);
        // Before anybody has looked.
        assert_eq!(write(&channel, 6 * MIB).await, Ok(()));
        device.look();
        let is = 6 * MIB + LEN as u64;
        assert_eq!(device.info().backing(), Backing::Shortened { was: 8 * MIB, is });
        assert_eq!(read(&channel, 3 * MIB).await, Err(IoError::Shortened), "it would be zeroes");
    });
}

#[test]
fn a_file_that_grows_is_as_sound_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    run(&path.clone(), async move |handle, device| {
        let channel = channel(&handle, &device);
        resize(&path, 9 * MIB);
        device.look();
        resize(&path, 8 * MIB);
        device.look();
        assert_eq!(device.info().backing(), Backing::Sound);
        assert_eq!(write(&channel, 6 * MIB).await, Ok(()));
        device.rescan(&handle).unwrap();
    });
}

#[test]
fn a_file_that_is_deleted_or_moved_is_told_until_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let (path, other) = (directory.path().join("disk"), directory.path().join("other"));
    run(&path.clone(), async move |handle, device| {
        let channel = channel(&handle, &device);
        let found = || {
            device.look();
            device.info().backing()
        };
        assert_eq!(found(), Backing::Sound);
        std::fs::rename(&path, &other).unwrap();
        assert_eq!(found(), Backing::Elsewhere, "nothing is there");
        std::fs::write(&path, [0; 512]).unwrap();
        assert_eq!(found(), Backing::Elsewhere, "another file is there");
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert_eq!(found(), Backing::Sound, "it is found there");
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(found(), Backing::Sound);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(found(), Backing::Deleted);
        assert_eq!(
            (write(&channel, 0).await, read(&channel, 0).await),
            (Ok(()), Ok(())),
            "it is served all the same"
        );
    });
}
