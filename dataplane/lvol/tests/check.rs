//! Inspection, check and repair of pools that are not in service; limits of metadata; disks that grow.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use basalt_bdev::{BlockDevice, BlockSize, IoError};
use basalt_device_mem::ImageDevice;
use basalt_lvol::id::{Epoch, Generation};
use basalt_lvol::layout::{DamageReason, HistoryEntry, ReplicaRecord, SLOT_OFFSETS};
use basalt_lvol::{NewPoolDisk, Pool, PoolHealth, ReadOnlyReason, Remedy, VolumeStatus, inspect, repair};
use basalt_reactor::Handle;
use support::{
    Bytes, CLUSTER, MIB, create, create_of, flip, named_all, page_of_volume, ram, run, snapshot, thin,
    volume, volume_id,
};

#[test]
fn an_inspection_shows_what_the_disks_say_and_writes_nothing() {
    run(1, |handle| async move {
        let disks = [ram(12 * MIB), ram(8 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        pool.create_volume(volume(1, MIB)).await.unwrap();
        let device = pool.create_volume(thin(2, 100 * MIB)).await.unwrap();
        Bytes::open(&handle, &*device).write(70 * MIB, &[1; 512]).await.unwrap();
        pool.snapshot(volume_id(2), snapshot(3)).await.unwrap();
        let replica = ReplicaRecord {
            in_sync: true,
            boot: [9; 16],
            history: vec![HistoryEntry { epoch: Epoch { incarnation: 1, counter: 2 }, set_version: 5 }],
            ..ReplicaRecord::default()
        };
        pool.note_replica(volume_id(2), replica).await.unwrap();
        Bytes::open(&handle, &*device).write(70 * MIB, &[2; 512]).await.unwrap();
        drop((pool, device));
        let sequence = |found: &basalt_lvol::Inspection| found.checkpoint;
        let found = inspect(&handle, named_all(&disks)).await.unwrap();
        let again = inspect(&handle, named_all(&disks)).await.unwrap();
        assert_eq!(sequence(&found), sequence(&again), "nothing was written");
        assert_eq!((found.name.as_str(), found.version, found.disks.len()), ("pool", 1, 2));
        assert_eq!((found.extents_used, found.journal_records), (3, 1));
        assert!(found.findings.is_empty(), "{:?}", found.findings);
        let kinds: Vec<_> = found.volumes.iter().map(|volume| volume.detail.as_ref().unwrap().kind).collect();
        assert_eq!(kinds, ["thick", "thin", "snapshot"]);
        let detail = found.volumes[1].detail.as_ref().unwrap();
        assert!(detail.in_sync && detail.boot.as_bytes() == &[9; 16]);
        assert_eq!(detail.history, [(Epoch { incarnation: 1, counter: 2 }, 5)]);
        assert_eq!(found.volumes[2].detail.as_ref().unwrap().origin, Some(volume_id(2)));
        // A missing member and a damaged volume are found and explained.
        let page = page_of_volume(&handle, &*disks[0], volume_id(2)).await;
        flip(&handle, &*disks[0], page + 700).await;
        let found = inspect(&handle, named_all(&disks[..1])).await.unwrap();
        let subjects: Vec<&str> = found.findings.iter().map(|finding| finding.subject.as_str()).collect();
        assert!(subjects[0].starts_with("disk 1") && subjects[1].ends_with("7002"), "{subjects:?}");
        assert!(found.findings.iter().all(|finding| finding.remedy == Remedy::ByHand));
    });
}

#[test]
fn what_has_a_copy_is_repaired_and_what_is_lost_is_said_before() {
    run(2, |handle| async move {
        let disks = [ram(12 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        let device = pool.create_volume(thin(1, 8 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        for extent in 0..3_u64 {
            bytes.write(extent * MIB, &[1 + u8::try_from(extent).unwrap(); 512]).await.unwrap();
            bytes.flush().await.unwrap();
        }
        drop((bytes, device, pool));
        flip(&handle, &*disks[0], SLOT_OFFSETS[1] + 50).await;
        // Both copies of the second of three groups, each of one block twice: checkpoint 2 has journal 0.
        for copy in [2, 3] {
            flip(&handle, &*disks[0], MIB + copy * 512 + 70).await;
        }
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::ReadOnly(ReadOnlyReason::JournalDamaged)));
        // What the lost group changed is not known: it may have given space of one volume to another one.
        let status = pool.volume(volume_id(1));
        assert!(matches!(&status, Some(VolumeStatus::Isolated(_, DamageReason::Journal))), "{status:?}");
        drop(pool);
        let found = inspect(&handle, named_all(&disks)).await.unwrap();
        let remedies: Vec<Remedy> = found.findings.iter().map(|finding| finding.remedy).collect();
        assert_eq!(remedies, [Remedy::Rewrite, Remedy::AcceptLoss], "{:?}", found.findings);
        let after = repair(&handle, named_all(&disks)).await.unwrap();
        assert!(after.findings.is_empty(), "{:?}", after.findings);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::Online));
        let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(1)) else { panic!("there") };
        let bytes = Bytes::open(&handle, &*device);
        for (extent, expected) in [(0, 1), (1, 0), (2, 0)] {
            assert_eq!(bytes.read(extent * MIB, 512).await.unwrap(), [expected; 512], "extent {extent}");
        }
        bytes.write(MIB, &[5; 512]).await.unwrap();
    });
}

#[test]
fn a_damaged_copy_of_a_group_is_found_and_written_anew() {
    run(5, |handle| async move {
        // Either copy, of the first group and of one that others follow.
        for block in [0, 1, 4, 5] {
            let disks = [ram(12 * MIB)];
            let pool = create(&handle, &disks).await.unwrap();
            let device = pool.create_volume(thin(1, 8 * MIB)).await.unwrap();
            let bytes = Bytes::open(&handle, &*device);
            for extent in 0..3 {
                bytes.write(extent * MIB, &[7; 512]).await.unwrap();
            }
            drop((bytes, device, pool));
            let sound = inspect(&handle, named_all(&disks)).await.unwrap();
            assert!(sound.findings.is_empty() && sound.journal_records == 3, "{:?}", sound.findings);
            flip(&handle, &*disks[0], MIB + block * 512 + 200).await;
            let found = inspect(&handle, named_all(&disks)).await.unwrap();
            let findings: Vec<_> =
                found.findings.iter().map(|finding| (finding.subject.as_str(), finding.remedy)).collect();
            assert_eq!(findings, [("journal", Remedy::Rewrite)], "block {block}");
            assert!(found.findings[0].explanation.contains("one group"), "{:?}", found.findings);
            let after = repair(&handle, named_all(&disks)).await.unwrap();
            assert!(after.findings.is_empty() && after.checkpoint > found.checkpoint, "{:?}", after.findings);
            let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(1)) else { panic!("there") };
            for extent in 0..3 {
                assert_eq!(Bytes::open(&handle, &*device).read(extent * MIB, 512).await.unwrap(), [7; 512]);
            }
        }
    });
}

#[test]
fn a_repair_writes_nothing_where_there_is_nothing_to_repair() {
    run(6, |handle| async move {
        for exported in [false, true] {
            let device = Arc::new(ImageDevice::new(Arc::new(vec![0; 12 << 20]), BlockSize::B512, true));
            let disks = [Arc::<ImageDevice>::clone(&device) as Arc<dyn BlockDevice>];
            let pool = create(&handle, &disks).await.unwrap();
            let volume = pool.create_volume(thin(1, 8 * MIB)).await.unwrap();
            Bytes::open(&handle, &*volume).write(0, &[7; 512]).await.unwrap();
            if exported {
                pool.export().await.unwrap();
            }
            drop((volume, pool));
            let before = device.to_vec();
            let after = repair(&handle, named_all(&disks)).await.unwrap();
            assert_eq!((after.findings, after.exported), (Vec::new(), exported));
            assert!(device.to_vec() == before, "exported: {exported}");
            // Where something is, the pool stays as it was otherwise.
            flip(&handle, &*disks[0], SLOT_OFFSETS[0] + 50).await;
            let after = repair(&handle, named_all(&disks)).await.unwrap();
            assert_eq!((after.findings, after.exported), (Vec::new(), exported));
        }
    });
}

async fn small_extents(handle: &Handle, disks: &[Arc<dyn BlockDevice>]) -> Pool {
    let disks = named_all(disks).into_iter();
    let disks = disks.map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
    create_of(handle, disks, 64 << 10).await.unwrap()
}

#[test]
fn full_metadata_areas_refuse_first_writes_and_nothing_else() {
    run(3, |handle| async move {
        let disks = [ram(64 * MIB)];
        let pool = small_extents(&handle, &disks).await;
        let device = pool.create_volume(thin(1, 64 << 30)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        // Each write needs a leaf of its own.
        let leaf = 256 * (64 << 10);
        let mut written = 0;
        let refused = loop {
            match bytes.write(written * leaf, &[7; 512]).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, IoError::CapacityExceeded);
        assert!(written > 200 && pool.free() > 20 * MIB, "{written} leaves, {} bytes free", pool.free());
        assert!(matches!(pool.health(), PoolHealth::Online));
        bytes.write(512, &[8; 512]).await.unwrap();
        bytes.write(64 << 10, &[9; 512]).await.unwrap_err();
        pool.rename(volume_id(1), "full").await.unwrap();
        for at in 0..written / 2 {
            bytes.unmap(at * leaf, 64 << 10).await.unwrap();
        }
        drop((bytes, device));
        assert!(matches!(pool.health(), PoolHealth::Online));
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        assert_eq!(pool.free(), pool.capacity());
        let device = pool.create_volume(thin(2, 64 << 30)).await.unwrap();
        Bytes::open(&handle, &*device).write(5 * leaf, &[7; 512]).await.unwrap();
        drop((device, pool));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!((pool.volumes().len(), pool.capacity() - pool.free()), (1, 64 << 10));
    });
}

#[test]
fn a_disk_that_has_grown_gives_more_extents() {
    run(4, |handle| async move {
        let image = |bytes: Vec<u8>| Arc::new(ImageDevice::new(Arc::new(bytes), BlockSize::B512, true));
        let before = [image(vec![0; 8 << 20]), image(vec![0; 6 << 20])];
        let disks: Vec<Arc<dyn BlockDevice>> =
            before.iter().map(|disk| Arc::<ImageDevice>::clone(disk) as Arc<dyn BlockDevice>).collect();
        let pool = create(&handle, &disks).await.unwrap();
        pool.create_volume(volume(1, 8 * MIB)).await.unwrap();
        assert_eq!(pool.free(), 0);
        drop(pool);
        let larger: Vec<Arc<dyn BlockDevice>> = before
            .iter()
            .map(|disk| {
                let mut bytes = disk.to_vec();
                bytes.resize(bytes.len() + (4 << 20), 0);
                image(bytes) as Arc<dyn BlockDevice>
            })
            .collect();
        let pool = Pool::import(&handle, CLUSTER, named_all(&larger)).await.unwrap();
        assert_eq!(pool.free(), 0, "growth is asked for");
        pool.grow_disk(0).await.unwrap();
        pool.grow_disk(1).await.unwrap();
        pool.grow_disk(1).await.unwrap();
        assert!(pool.grow_disk(2).await.is_err());
        assert_eq!(pool.free(), 8 * MIB);
        let device = pool.create_volume(volume(2, 8 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        bytes.write(8 * MIB - 512, &[3; 512]).await.unwrap();
        drop((bytes, device, pool));
        let pool = Pool::import(&handle, CLUSTER, named_all(&larger)).await.unwrap();
        assert_eq!((pool.capacity(), pool.free()), (16 * MIB, 0));
        let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(2)) else { panic!("there") };
        let found = Bytes::open(&handle, &*device).read(8 * MIB - 512, 512).await.unwrap();
        assert_eq!(found, [3; 512]);
    });
}
