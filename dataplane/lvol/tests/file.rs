//! Pools on files of this machine, through the real driver.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use basalt_bdev::BlockDevice;
use basalt_device_uring::{UringDevice, UringOptions};
use basalt_lvol::id::Generation;
use basalt_lvol::{Pool, PoolHealth, VolumeStatus};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{DiskOptions, Handle, Reactor, ReactorOptions};
use support::{Bytes, CLUSTER, MIB, create, named_all, thin, volume, volume_id};

/// Runs a future on a reactor of this thread and machine.
fn on_machine<F: Future<Output = ()> + 'static>(body: impl FnOnce(Handle) -> F) {
    let options = ReactorOptions { buffer_bytes: 32 << 20, ..ReactorOptions::default() };
    let mut reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &options);
    let handle = reactor.handle();
    let future = body(handle.clone());
    let mut task = handle.clone().spawn(async move {
        future.await;
        handle.stop();
    });
    reactor.run();
    assert!(task.take_output().is_some(), "the task ran to its end");
}

fn open(handle: &Handle, path: &Path) -> Arc<UringDevice> {
    let options = UringOptions {
        name: "file".into(),
        uuid: uuid::Uuid::nil(),
        block_size: None,
        disk: DiskOptions { create_with_length: Some(64 * MIB), ..DiskOptions::default() },
    };
    Arc::new(UringDevice::open(handle, path, &options).unwrap())
}

#[test]
fn a_pool_on_files_survives_its_process() {
    let directory = tempfile::tempdir().unwrap();
    let paths = [directory.path().join("lead"), directory.path().join("member")];
    let again = paths.clone();
    on_machine(|handle| async move {
        let disks = paths.map(|path| open(&handle, &path) as Arc<dyn BlockDevice>);
        let pool = create(&handle, &disks).await.unwrap();
        // The second volume lies on both disks.
        pool.create_volume(volume(1, 8 * MIB)).await.unwrap();
        let device = pool.create_volume(volume(2, 60 * MIB)).await.unwrap();
        pool.create_volume(volume(3, 40 * MIB)).await.unwrap();
        pool.delete_volume(volume_id(2), Generation(10)).await.unwrap();
        drop(device);
        let device = pool.create_volume(volume(4, 70 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        for offset in (0..70 * MIB - MIB).step_by(3 << 19) {
            let stamp = u8::try_from(offset >> 19).unwrap();
            bytes.write(offset + 512, &vec![stamp; 1 << 20]).await.unwrap();
        }
        bytes.write_zeroes(5 * MIB, 512).await.unwrap();
        bytes.flush().await.unwrap();
    });
    on_machine(|handle| async move {
        let disks = again.map(|path| open(&handle, &path) as Arc<dyn BlockDevice>);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(4)) else { panic!("it is there") };
        let bytes = Bytes::open(&handle, &*device);
        for offset in (0..70 * MIB - MIB).step_by(3 << 19) {
            let mut expected = vec![u8::try_from(offset >> 19).unwrap(); 1 << 20];
            for (index, byte) in (offset + 512..).zip(&mut expected) {
                if (5 * MIB..5 * MIB + 512).contains(&index) {
                    *byte = 0;
                }
            }
            assert!(bytes.read(offset + 512, 1 << 20).await.unwrap() == expected, "at {offset}");
        }
    });
}

/// A small file system in memory; it is unmounted with this value.
struct Mount(PathBuf);

impl Mount {
    fn of(target: &Path, mebibytes: u32) -> Self {
        std::fs::create_dir_all(target).unwrap();
        let size = format!("size={mebibytes}m");
        let made =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "basalt-test"]).arg(target).status();
        assert!(made.unwrap().success(), "mounting needs root");
        Self(target.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let gone = Command::new("umount").arg("--lazy").arg(&self.0).status();
        assert!(gone.unwrap().success() || std::thread::panicking());
    }
}

#[test]
fn where_the_file_system_is_full_volumes_are_trimmed_overwritten_and_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let mount = Mount::of(&directory.path().join("small"), 12);
    let path = mount.0.join("disk.img");
    on_machine(|handle| async move {
        let disk = open(&handle, &path);
        let pool = create(&handle, &[Arc::clone(&disk) as Arc<dyn BlockDevice>]).await.unwrap();
        disk.allocate(pool.disks()[0].record.data_offset).unwrap();
        let other = pool.create_volume(thin(2, 16 * MIB)).await.unwrap();
        let device = pool.create_volume(thin(1, 32 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        let mut written = 0;
        while bytes.write(written * MIB, &vec![7; 1 << 20]).await.is_ok() {
            written += 1;
        }
        assert!((3..12).contains(&written), "{written} MiB have room");
        // Not a block is left.
        let mut filler = std::fs::File::create(path.with_file_name("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        assert!(matches!(pool.health(), PoolHealth::Online), "{:?}", pool.health());
        bytes.write(MIB, &vec![8; 1 << 20]).await.unwrap();
        bytes.flush().await.unwrap();
        pool.delete_volume(volume_id(2), Generation(10)).await.unwrap();
        drop(other);
        bytes.unmap(0, MIB).await.unwrap();
        bytes.flush().await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::Online), "{:?}", pool.health());
        assert_eq!(bytes.read(MIB, 4096).await.unwrap(), [8; 4096]);
        drop(bytes);
        drop(device);
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::Online), "{:?}", pool.health());
    });
}
