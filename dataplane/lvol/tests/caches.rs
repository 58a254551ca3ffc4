//! What is in volatile write caches: what was acknowledged survives the end of the process, and a flush all that may end.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use basalt_bdev::{BlockDevice, IoError};
use basalt_device_mem::{Fault, FaultyDevice, ImageDevice, OperationKind};
use basalt_lvol::layout::{DamageReason, DiskLayout, EXTENT_BYTES};
use basalt_lvol::{GrowError, NewPoolDisk, Pool, PoolHealth, ReadOnlyReason, VolumeStatus};
use basalt_reactor::Handle;
use support::{Bytes, CLUSTER, MIB, create, create_as, in_life, named, named_all, ram, run, thin, volume_id};

fn new_disk(name: &str, device: Arc<dyn BlockDevice>) -> NewPoolDisk {
    NewPoolDisk { disk: named(name, &device), overwrite_foreign_data: false }
}

async fn striped(handle: &Handle, devices: &[Arc<ImageDevice>]) -> Pool {
    let disk = |device: &Arc<ImageDevice>| Arc::clone(device) as Arc<dyn BlockDevice>;
    let disks = devices.iter().enumerate().map(|(index, device)| new_disk(&index.to_string(), disk(device)));
    create_as(handle, disks.collect(), EXTENT_BYTES, DiskLayout::Striped).await.unwrap()
}

async fn imported(handle: &Handle, devices: &[Arc<ImageDevice>]) -> Pool {
    let devices: Vec<_> = devices.iter().map(|device| Arc::clone(device) as Arc<dyn BlockDevice>).collect();
    Pool::import(handle, CLUSTER, named_all(&devices)).await.unwrap()
}

fn volume(handle: &Handle, pool: &Pool, number: u8) -> Bytes {
    match pool.volume(volume_id(number)) {
        Some(VolumeStatus::Ready(_, device)) => Bytes::open(handle, &*device),
        other => panic!("volume {number} is {other:?}"),
    }
}

#[test]
fn a_flush_while_a_disk_is_added_covers_what_was_written_before() {
    run(1, |handle| async move {
        let disk = in_life(vec![0; 16 << 20], 1);
        let pool = create(&handle, &[Arc::clone(&disk) as Arc<dyn BlockDevice>]).await.unwrap();
        pool.create_volume(thin(1, MIB)).await.unwrap();
        let bytes = volume(&handle, &pool, 1);
        bytes.write(0, &[7; 4096]).await.unwrap();
        // It can be read and not be written.
        let full = FaultyDevice::new(in_life(vec![0; 16 << 20], 1));
        full.faults().inject(Fault::always(OperationKind::Write, IoError::Medium));
        pool.add_disk(new_disk("full", Arc::new(full))).await.unwrap_err();
        bytes.flush().await.unwrap();
        // Power fails.
        let pool = imported(&handle, &[in_life(disk.to_vec(), 2)]).await;
        assert_eq!(volume(&handle, &pool, 1).read(0, 4096).await, Ok(vec![7; 4096]));
    });
}

#[test]
fn a_disk_whose_cache_is_new_takes_nothing_from_volumes_that_are_not_on_it() {
    run(2, |handle| async move {
        let both = [in_life(vec![0; 16 << 20], 1), in_life(vec![0; 16 << 20], 1)];
        drop(create(&handle, &both.each_ref().map(|disk| Arc::clone(disk) as _)).await.unwrap());
        let pool = imported(&handle, &both).await;
        pool.create_volume(thin(1, MIB)).await.unwrap();
        volume(&handle, &pool, 1).write(0, &[7; 4096]).await.unwrap();
        drop(pool);
        let pool = imported(&handle, &both[..1]).await;
        assert!(matches!(pool.health(), PoolHealth::Online), "nothing is to be waited for");
        assert_eq!(volume(&handle, &pool, 1).read(0, 4096).await, Ok(vec![7; 4096]));
        drop(pool);
        let pool = imported(&handle, &[Arc::clone(&both[0]), in_life(both[1].to_vec(), 2)]).await;
        assert_eq!(volume(&handle, &pool, 1).read(0, 4096).await, Ok(vec![7; 4096]));
    });
}

#[test]
fn what_was_acknowledged_survives_a_disk_that_comes_or_goes_with_a_restart() {
    run(3, |handle| async move {
        for missing_at_first in [true, false] {
            let both = [in_life(vec![0; 16 << 20], 1), in_life(vec![0; 16 << 20], 1)];
            drop(striped(&handle, &both).await);
            let pool = imported(&handle, if missing_at_first { &both[..1] } else { &both }).await;
            pool.create_volume(thin(1, 4 * MIB)).await.unwrap();
            pool.create_volume(thin(2, 4 * MIB)).await.unwrap();
            let bytes = volume(&handle, &pool, 1);
            for extent in 0..4 {
                bytes.write(extent * MIB, &[7; 4096]).await.unwrap();
            }
            // Nothing was flushed, and no cache was lost: the process ends, and again.
            drop((bytes, pool));
            if !missing_at_first {
                let pool = imported(&handle, &both[..1]).await;
                assert!(matches!(pool.health(), PoolHealth::ReadOnly(ReadOnlyReason::Unreadable)));
                // Seed 1837 of the simulator's data: what was there before is not served meanwhile, and what did not change is.
                let status = pool.volume(volume_id(1));
                let waits = matches!(&status, Some(VolumeStatus::Isolated(_, DamageReason::DiskMissing(1))));
                assert!(waits, "{status:?}");
                assert_eq!(volume(&handle, &pool, 2).read(0, 4096).await, Ok(vec![0; 4096]));
            }
            let pool = imported(&handle, &both).await;
            for extent in 0..4 {
                let read = volume(&handle, &pool, 1).read(extent * MIB, 4096).await;
                assert_eq!(read, Ok(vec![7; 4096]), "extent {extent}");
            }
        }
    });
}

#[test]
fn a_lost_group_shows_no_volume_what_is_anothers() {
    run(4, |handle| async move {
        let disk = in_life(vec![0; 16 << 20], 1);
        let pool = create(&handle, &[Arc::clone(&disk) as Arc<dyn BlockDevice>]).await.unwrap();
        pool.create_volume(thin(1, MIB)).await.unwrap();
        pool.create_volume(thin(2, 16 * MIB)).await.unwrap();
        let (first, second) = (volume(&handle, &pool, 1), volume(&handle, &pool, 2));
        first.write_durably(0, &[1; 4096]).await.unwrap();
        first.unmap(0, MIB).await.unwrap();
        first.flush().await.unwrap();
        // What the first one gave back comes to the second one.
        for extent in 0..10 {
            second.write_durably(extent * MIB, &[2; 4096]).await.unwrap();
        }
        drop((first, second, pool));
        // Both copies of the group that gave it back rot.
        let mut image = disk.to_vec();
        let groups: Vec<usize> =
            (0..image.len()).step_by(512).filter(|at| image[*at..].starts_with(b"BSLTJRNL")).collect();
        for copy in &groups[2..4] {
            image[copy + 70] ^= 1;
        }
        let pool = imported(&handle, &[in_life(image, 1)]).await;
        assert!(matches!(pool.health(), PoolHealth::ReadOnly(ReadOnlyReason::JournalDamaged)));
        for number in [1, 2] {
            let status = pool.volume(volume_id(number));
            assert!(matches!(&status, Some(VolumeStatus::Isolated(_, DamageReason::Journal))), "{status:?}");
        }
    });
}

#[test]
fn a_disk_with_a_cache_does_not_join_disks_that_have_none() {
    run(5, |handle| async move {
        let pool = create(&handle, &[ram(16 * MIB)]).await.unwrap();
        let refused = pool.add_disk(new_disk("cached", in_life(vec![0; 16 << 20], 1))).await.unwrap_err();
        assert!(matches!(&refused, GrowError::VolatileCache), "{refused}");
        pool.add_disk(new_disk("plain", ram(16 * MIB))).await.unwrap();
    });
}

#[test]
fn a_pool_that_is_left_in_good_order_needs_no_cache() {
    run(6, |handle| async move {
        let disk = in_life(vec![0; 16 << 20], 1);
        let pool = create(&handle, &[Arc::clone(&disk) as Arc<dyn BlockDevice>]).await.unwrap();
        pool.create_volume(thin(1, MIB)).await.unwrap();
        let bytes = volume(&handle, &pool, 1);
        bytes.write(0, &[7; 4096]).await.unwrap();
        pool.prepare_for_end().await.unwrap();
        bytes.write(8192, &[8; 4096]).await.unwrap();
        // The machine starts anew, and has flushed its disks before.
        let pool = imported(&handle, &[in_life(disk.to_vec(), 2)]).await;
        let bytes = volume(&handle, &pool, 1);
        assert_eq!(bytes.read(0, 4096).await, Ok(vec![7; 4096]));
        assert_eq!(bytes.read(8192, 4096).await, Ok(vec![8; 4096]));
    });
}
