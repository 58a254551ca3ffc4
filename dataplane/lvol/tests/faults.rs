//! Failing disks: errors stay where they belong, and nothing is said that is not so.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use basalt_bdev::{BlockDevice, IoError, Lba};
use basalt_device_mem::{Fault, FaultyDevice, OperationKind};
use basalt_lvol::id::{Epoch, Generation};
use basalt_lvol::layout::DamageReason;
use basalt_lvol::{DiskRefusal, ImportError, Pool, PoolHealth, ReadOnlyReason, VolumeError, VolumeStatus};
use support::{
    Bytes, CLUSTER, MIB, create, in_life, named_all, page_of_volume, ram, run, thin, volume, volume_id,
};

/// Journals and metadata area of the smallest lead disk, in blocks of 512 bytes.
const METADATA: std::ops::Range<Lba> = Lba(MIB / 512)..Lba(5 * MIB / 512);

fn fault(kind: OperationKind, range: std::ops::Range<Lba>) -> Fault {
    Fault { range, ..Fault::always(kind, IoError::Medium) }
}

#[test]
fn a_failed_metadata_write_stops_changes_and_nothing_else() {
    run(1, |handle| async move {
        for (kind, skip) in [(OperationKind::Write, 0), (OperationKind::Flush, 1), (OperationKind::Flush, 2)]
        {
            let faulty = FaultyDevice::new(ram(16 * MIB));
            let faults = Arc::clone(faulty.faults());
            let disks: [Arc<dyn BlockDevice>; 1] = [Arc::new(faulty)];
            let pool = create(&handle, &disks).await.unwrap();
            let device = pool.create_volume(volume(1, MIB)).await.unwrap();
            let bytes = Bytes::open(&handle, &*device);
            bytes.write(0, &[1; 4096]).await.unwrap();
            let range = if kind == OperationKind::Write { METADATA } else { Lba(0)..Lba(u64::MAX) };
            faults.inject(Fault { skip, ..fault(kind, range) });
            let failed = pool.create_volume(volume(2, MIB)).await.unwrap_err();
            assert!(
                matches!(&failed, VolumeError::ReadOnly(ReadOnlyReason::MetadataWriteFailed(_))),
                "{failed}"
            );
            assert!(matches!(pool.health(), PoolHealth::ReadOnly(_)));
            assert!(!matches!(pool.volume(volume_id(2)), Some(VolumeStatus::Ready(..))));
            let deletion = pool.delete_volume(volume_id(1), Generation(10)).await;
            assert!(matches!(deletion, Err(VolumeError::ReadOnly(_))));
            let raised = pool.raise(volume_id(1), Generation(11), Epoch::default()).await;
            assert!(matches!(raised, Err(VolumeError::ReadOnly(_))));
            assert!(matches!(pool.resume().await, Err(ReadOnlyReason::MetadataWriteFailed(_))));
            faults.clear();
            // The disk is fine again, and still it is unknown what it holds.
            assert!(matches!(pool.create_volume(volume(3, MIB)).await, Err(VolumeError::ReadOnly(_))));
            bytes.write(4096, &[2; 4096]).await.unwrap();
            assert_eq!(bytes.read(0, 8192).await.unwrap(), [vec![1; 4096], vec![2; 4096]].concat());
            drop(pool);
            let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            assert!(matches!(pool.health(), PoolHealth::Online));
            assert!(matches!(pool.volume(volume_id(1)), Some(VolumeStatus::Ready(..))));
            pool.create_volume(volume(3, MIB)).await.unwrap();
        }
    });
}

#[test]
fn what_a_failure_cut_off_is_ended_when_the_disk_is_fine_again() {
    run(6, |handle| async move {
        let faulty = FaultyDevice::new(ram(16 * MIB));
        let faults = Arc::clone(faulty.faults());
        let disks: [Arc<dyn BlockDevice>; 1] = [Arc::new(faulty)];
        let pool = create(&handle, &disks).await.unwrap();
        let capacity = pool.free();
        pool.create_volume(volume(1, MIB)).await.unwrap();
        pool.create_volume(volume(2, MIB)).await.unwrap();
        faults.inject(fault(OperationKind::Write, METADATA));
        let deleting = handle.spawn({
            let pool = pool.clone();
            async move { pool.delete_volume(volume_id(1), Generation(10)).await }
        });
        let creating = handle.spawn({
            let pool = pool.clone();
            async move { pool.create_volume(volume(3, 2 * MIB)).await }
        });
        assert!(matches!(deleting.await, Err(VolumeError::ReadOnly(_))));
        assert!(creating.await.is_err());
        faults.clear();
        pool.resume().await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::Online));
        assert!(pool.volume(volume_id(1)).is_none());
        let cut_off = pool.volume(volume_id(3));
        assert!(matches!(cut_off, Some(VolumeStatus::Ready(..))), "{cut_off:?}");
        assert_eq!(pool.free(), capacity - 3 * MIB);
        pool.create_volume(volume(4, MIB)).await.unwrap();
        drop(pool);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        let ids: Vec<_> = pool.volumes().into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [2, 3, 4].map(volume_id));
    });
}

#[test]
fn space_that_cannot_be_zeroed_is_not_given_out() {
    run(2, |handle| async move {
        let faulty = FaultyDevice::new(ram(16 * MIB));
        let faults = Arc::clone(faulty.faults());
        let pool = create(&handle, &[Arc::new(faulty) as Arc<dyn BlockDevice>]).await.unwrap();
        let free = pool.free();
        for fault in [
            fault(OperationKind::Write, METADATA.end..Lba(u64::MAX)),
            fault(OperationKind::Flush, Lba(0)..Lba(u64::MAX)),
        ] {
            faults.inject(fault);
            let failed = pool.create_volume(volume(1, 2 * MIB)).await.unwrap_err();
            assert!(matches!(failed, VolumeError::Disk(_)), "{failed}");
            assert_eq!(pool.free(), free);
            assert!(pool.volume(volume_id(1)).is_none());
            assert!(matches!(pool.health(), PoolHealth::Online));
            faults.clear();
        }
        pool.create_volume(volume(1, 2 * MIB)).await.unwrap();
    });
}

#[test]
fn a_data_error_is_an_error_for_that_range() {
    run(3, |handle| async move {
        let faulty = FaultyDevice::new(ram(16 * MIB));
        let faults = Arc::clone(faulty.faults());
        let pool = create(&handle, &[Arc::new(faulty) as Arc<dyn BlockDevice>]).await.unwrap();
        let device = pool.create_volume(volume(1, 3 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        let bad = Lba(METADATA.end.0 + 2048);
        faults.inject(fault(OperationKind::Read, bad..Lba(bad.0 + 1)));
        assert_eq!(bytes.read(MIB, 512).await, Err(IoError::Medium));
        assert_eq!(bytes.read(MIB + 512, 512).await, Ok(vec![0; 512]));
        assert_eq!(bytes.read(0, 4096).await, Ok(vec![0; 4096]));
        faults.inject(fault(OperationKind::Flush, Lba(0)..Lba(u64::MAX)));
        assert_eq!(bytes.flush().await, Err(IoError::Medium));
        assert!(matches!(pool.health(), PoolHealth::Online));
    });
}

#[test]
fn an_unreadable_entry_isolates_one_volume() {
    run(4, |handle| async move {
        let faulty = FaultyDevice::new(ram(16 * MIB));
        let faults = Arc::clone(faulty.faults());
        let disks: [Arc<dyn BlockDevice>; 1] = [Arc::new(faulty)];
        let pool = create(&handle, &disks).await.unwrap();
        pool.create_volume(volume(1, MIB)).await.unwrap();
        pool.create_volume(volume(2, MIB)).await.unwrap();
        drop(pool);
        let entry = Lba(page_of_volume(&handle, &*disks[0], volume_id(1)).await / 512);
        faults.inject(fault(OperationKind::Read, entry..Lba(entry.0 + 8)));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.volume(volume_id(1)), Some(VolumeStatus::Isolated(_, DamageReason::Checksum))));
        assert!(matches!(pool.volume(volume_id(2)), Some(VolumeStatus::Ready(..))));
        // What cannot be read now may be read next time: nothing is written meanwhile.
        assert!(matches!(pool.health(), PoolHealth::ReadOnly(ReadOnlyReason::Unreadable)));
        drop(pool);
        // A slot that cannot be read is made good by the other one.
        faults.clear();
        faults.inject(fault(OperationKind::Read, Lba(0)..Lba(8)));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!(pool.volumes().len(), 2);
    });
}

#[test]
fn a_disk_that_fails_altogether_is_named() {
    run(5, |handle| async move {
        let faulty = FaultyDevice::new(ram(16 * MIB));
        let faults = Arc::clone(faulty.faults());
        let disks: [Arc<dyn BlockDevice>; 1] = [Arc::new(faulty)];
        create(&handle, &disks).await.unwrap();
        faults.inject(Fault::always(OperationKind::Any, IoError::DeviceGone));
        let failed = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap_err();
        assert!(matches!(&failed, ImportError::Disk(DiskRefusal::Fault(_))));
        assert_eq!(failed.to_string(), "disk disk-0: flush failed: the device is gone");
    });
}

/// Seed 316 of the simulator's data.
#[test]
fn a_flush_covers_what_only_the_journal_says_after_a_restart() {
    run(7, |handle| async move {
        let disk = in_life(vec![0; 16 << 20], 1);
        let pool = create(&handle, &[Arc::clone(&disk) as Arc<dyn BlockDevice>]).await.unwrap();
        let device = pool.create_volume(thin(1, MIB)).await.unwrap();
        Bytes::open(&handle, &*device).write(0, &[7; 4096]).await.unwrap();
        // The process ends. The next one believes the group, as the cache is the same, and cannot write a checkpoint.
        drop((device, pool));
        let faulty = FaultyDevice::new(Arc::clone(&disk) as Arc<dyn BlockDevice>);
        let faults = Arc::clone(faulty.faults());
        faults.inject(fault(OperationKind::Write, METADATA));
        let disks = [Arc::new(faulty) as Arc<dyn BlockDevice>];
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(1)) else { panic!("it is there") };
        let bytes = Bytes::open(&handle, &*device);
        assert_eq!(bytes.read(0, 4096).await, Ok(vec![7; 4096]));
        assert!(bytes.flush().await.is_err(), "it cannot be made durable");
        faults.clear();
        pool.resume().await.unwrap();
        bytes.flush().await.unwrap();
        // Power fails: only firm groups count.
        let later = [in_life(disk.to_vec(), 2) as Arc<dyn BlockDevice>];
        let pool = Pool::import(&handle, CLUSTER, named_all(&later)).await.unwrap();
        let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(1)) else { panic!("it is there") };
        assert_eq!(Bytes::open(&handle, &*device).read(0, 4096).await, Ok(vec![7; 4096]));
    });
}

/// Seed 12 of the simulator's data: what cannot be read is not taken for damage, behind which older data would be served.
#[test]
fn a_journal_that_cannot_be_read_is_waited_for() {
    run(8, |handle| async move {
        let faulty = FaultyDevice::new(ram(16 * MIB));
        let faults = Arc::clone(faulty.faults());
        let disks: [Arc<dyn BlockDevice>; 1] = [Arc::new(faulty)];
        let pool = create(&handle, &disks).await.unwrap();
        let device = pool.create_volume(thin(1, MIB)).await.unwrap();
        Bytes::open(&handle, &*device).write_durably(0, &[7; 4096]).await.unwrap();
        drop((device, pool));
        let raw = Bytes::open(&handle, &*disks[0]);
        let mut copies = Vec::new();
        for block in METADATA.start.0..METADATA.end.0 {
            if raw.read(block * 512, 512).await.unwrap().starts_with(b"BSLTJRNL") {
                copies.push(block);
            }
        }
        let [.., first, second] = copies[..] else { panic!("a group has two copies: {copies:?}") };
        let unreadable = |block: u64| fault(OperationKind::Read, Lba(block)..Lba(block + 1));
        faults.inject(unreadable(first));
        faults.inject(unreadable(second));
        let failed = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap_err();
        assert!(matches!(&failed, ImportError::Disk(DiskRefusal::Fault(_))), "{failed}");
        // One copy is enough, and one block behind the last group cannot hide another one.
        for alone in [first, second, second + 1, second + 9] {
            faults.clear();
            faults.inject(unreadable(alone));
            let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(1)) else {
                panic!("it is there")
            };
            assert_eq!(Bytes::open(&handle, &*device).read(0, 4096).await, Ok(vec![7; 4096]), "{alone}");
        }
    });
}
