//! Pools on disks in memory: what a user may do, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use basalt_bdev::{BlockDevice, IoError, OpenError};
use basalt_lvol::id::{ClusterId, Epoch, Generation, Revision};
use basalt_lvol::layout::{DamageReason, DiskLayout, RootError, SLOT_OFFSETS};
use basalt_lvol::{
    CreateError, DiskContent, DiskRefusal, ImportError, NewPool, NewPoolDisk, Pool, PoolHealth, VolumeError,
    VolumeStatus, examine,
};
use support::{
    Bytes, CLUSTER, DIRECTORY, MIB, ROOT, create, flip, named, named_all, page_of_volume, pages_of, ram, run,
    volume, volume_id,
};

#[test]
fn a_volume_is_created_written_and_found_again() {
    run(1, |handle| async move {
        let disks = [ram(64 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        let free = pool.free();
        assert_eq!(free, pool.capacity());
        let device = pool.create_volume(volume(1, 5 * MIB)).await.unwrap();
        assert_eq!(pool.free(), free - 5 * MIB);
        assert_eq!(device.info().bytes(), 5 * MIB);
        let bytes = Bytes::open(&handle, &*device);
        assert_eq!(bytes.read(0, 4096).await.unwrap(), vec![0; 4096]);
        bytes.write(MIB - 512, &[7; 1024]).await.unwrap();
        bytes.flush().await.unwrap();
        drop((bytes, pool));

        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!((pool.name(), pool.revision()), ("pool", Revision { incarnation: 1, index: 5 }));
        assert_eq!(pool.free(), free - 5 * MIB);
        let Some(VolumeStatus::Ready(record, device)) = pool.volume(volume_id(1)) else {
            panic!("it is there")
        };
        assert_eq!(record.identity, volume(1, 0).identity);
        let bytes = Bytes::open(&handle, &*device);
        assert_eq!(bytes.read(MIB - 512, 1024).await.unwrap(), vec![7; 1024]);
        assert_eq!(bytes.read(5 * MIB - 512, 1024).await, Err(IoError::OutOfRange));
    });
}

#[test]
fn deleted_space_is_used_again_and_reads_as_zeroes() {
    run(2, |handle| async move {
        let pool = create(&handle, &[ram(8 * MIB)]).await.unwrap();
        let size = pool.free();
        let first = pool.create_volume(volume(1, size)).await.unwrap();
        let bytes = Bytes::open(&handle, &*first);
        for offset in (0..size).step_by(64 << 10) {
            bytes.write(offset, &vec![0xee; 64 << 10]).await.unwrap();
        }
        let full = pool.create_volume(volume(2, MIB)).await.unwrap_err();
        assert!(matches!(full, VolumeError::Full { needed: MIB, free: 0 }), "{full}");
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        assert_eq!(bytes.read(0, 512).await, Err(IoError::DeviceGone));
        assert_eq!(pool.free(), size);
        assert!(matches!(first.open(&handle), Err(OpenError::DeviceGone)));
        let second = pool.create_volume(volume(2, size)).await.unwrap();
        let bytes = Bytes::open(&handle, &*second);
        for offset in (0..size).step_by(64 << 10) {
            assert_eq!(bytes.read(offset, 64 << 10).await.unwrap(), vec![0; 64 << 10]);
        }
    });
}

#[test]
fn requests_across_disks_and_fragments_are_cut_and_joined() {
    run(3, |handle| async move {
        let disks = [ram(8 * MIB), ram(6 * MIB), ram(4 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        for number in 0..6 {
            pool.create_volume(volume(number, MIB)).await.unwrap();
        }
        for number in [0, 2, 4] {
            pool.delete_volume(volume_id(number), Generation(10)).await.unwrap();
        }
        let size = pool.free();
        let device = pool.create_volume(volume(9, size)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        let step = 768 << 10;
        let pattern = |offset: u64| -> Vec<u8> {
            (0..step).map(|i| u8::try_from((offset / 512 + i / 512) % 251).unwrap()).collect()
        };
        let mut offset = 0;
        while offset + step <= size {
            bytes.write(offset, &pattern(offset)).await.unwrap();
            offset += step;
        }
        bytes.flush().await.unwrap();
        bytes.unmap(MIB - 4096, 2 * MIB).await.unwrap();
        bytes.write_zeroes(4 * MIB - 512, 1024).await.unwrap();
        let mut offset = 0;
        while offset + step <= size {
            let mut expected = pattern(offset);
            for (index, byte) in (offset..).zip(&mut expected) {
                let unmapped = (MIB - 4096..3 * MIB - 4096).contains(&index);
                let zeroed = (4 * MIB - 512..4 * MIB + 512).contains(&index);
                if unmapped || zeroed {
                    *byte = 0;
                }
            }
            let read = bytes.read(offset, usize::try_from(step).unwrap()).await.unwrap();
            assert!(read == expected, "at {offset}");
            offset += step;
        }
        for number in [1, 3, 5] {
            let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(number)) else { panic!("kept") };
            let bytes = Bytes::open(&handle, &*device);
            assert_eq!(bytes.read(0, 1 << 20).await.unwrap(), vec![0; 1 << 20], "neighbour {number}");
        }
    });
}

#[test]
fn many_creations_at_once_share_commits() {
    run(4, |handle| async move {
        let disks = [ram(160 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        let tasks: Vec<_> = (0..100)
            .map(|number| {
                let pool = pool.clone();
                handle.spawn(async move { pool.create_volume(volume(number, MIB)).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        drop(pool);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!(pool.volumes().len(), 100);
        let DiskContent::Pool(superblock) = examine(&handle, &named("disk", &disks[0])).await.unwrap() else {
            panic!("a pool")
        };
        assert!(superblock.sequence < 20, "{} commits for 100 volumes", superblock.sequence);
    });
}

#[test]
fn what_was_asked_is_checked() {
    run(5, |handle| async move {
        let pool = create(&handle, &[ram(16 * MIB)]).await.unwrap();
        pool.create_volume(volume(1, MIB)).await.unwrap();
        let exists = pool.create_volume(volume(1, MIB)).await.unwrap_err();
        assert!(matches!(exists, VolumeError::Exists(id) if id == volume_id(1)));
        let mut twin = volume(2, MIB);
        twin.identity.nqn = volume(1, 0).identity.nqn;
        assert!(matches!(pool.create_volume(twin).await, Err(VolumeError::NqnTaken(_))));
        for size in [0, 512, MIB + 1] {
            assert!(matches!(
                pool.create_volume(volume(3, size)).await,
                Err(VolumeError::OutOfBounds("size"))
            ));
        }
        let missing = pool.delete_volume(volume_id(7), Generation(10)).await;
        assert!(matches!(missing, Err(VolumeError::NotFound(_))));
        pool.raise(volume_id(1), Generation(12), Epoch::default()).await.unwrap();
        let stale = pool.delete_volume(volume_id(1), Generation(11)).await.unwrap_err();
        assert!(matches!(
            stale,
            VolumeError::StaleGeneration { ordered: Generation(11), seen: Generation(12) }
        ));
        pool.delete_volume(volume_id(1), Generation(12)).await.unwrap();
        assert!(pool.volume(volume_id(1)).is_none());
    });
}

#[test]
fn generation_and_epoch_only_rise_and_are_durable() {
    run(6, |handle| async move {
        let disks = [ram(16 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        pool.create_volume(volume(1, MIB)).await.unwrap();
        let epoch = Epoch { incarnation: 2, counter: 0 };
        pool.raise(volume_id(1), Generation(11), epoch).await.unwrap();
        pool.raise(volume_id(1), Generation(3), Epoch { incarnation: 1, counter: 9 }).await.unwrap();
        drop(pool);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        let Some(VolumeStatus::Ready(record, _)) = pool.volume(volume_id(1)) else { panic!("it is there") };
        assert_eq!((record.generation, record.epoch), (Generation(11), epoch));
    });
}

#[test]
fn foreign_data_is_refused_unless_the_disk_is_named() {
    run(7, |handle| async move {
        let disk = ram(16 * MIB);
        Bytes::open(&handle, &*disk).write(0, b"XFSB".repeat(128).as_slice()).await.unwrap();
        let refused = create(&handle, std::slice::from_ref(&disk)).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "disk disk-0 holds an XFS file system; if that may be lost, wipe it: basaltd pool wipe disk-0 --force disk-0"
        );
        let forced = NewPoolDisk { disk: named("disk-0", &disk), overwrite_foreign_data: true };
        let new = NewPool {
            cluster: CLUSTER,
            name: "p".into(),
            revision: Revision::default(),
            extent_bytes: MIB,
            layout: DiskLayout::default(),
            disks: vec![forced.clone()],
        };
        Pool::create(&handle, new.clone()).await.unwrap();
        // Force is for foreign data and never for a pool.
        assert!(matches!(
            Pool::create(&handle, new).await,
            Err(CreateError::Disk(DiskRefusal::OtherPool { .. }))
        ));
    });
}

#[test]
fn disks_of_others_are_refused_with_words() {
    run(8, |handle| async move {
        let (a, b) = (ram(16 * MIB), ram(16 * MIB));
        create(&handle, std::slice::from_ref(&a)).await.unwrap();
        let other = ClusterId(uuid::Uuid::from_u128(0xc2));
        let refused = Pool::import(&handle, other, vec![named("a", &a)]).await.unwrap_err();
        assert!(matches!(refused, ImportError::Disk(DiskRefusal::OtherCluster { .. })), "{refused}");
        let blank = Pool::import(&handle, CLUSTER, vec![named("b", &b)]).await.unwrap_err();
        assert!(matches!(blank, ImportError::Disk(DiskRefusal::Blank { .. })), "{blank}");
        let twice =
            Pool::import(&handle, CLUSTER, vec![named("a", &a), named("alias", &a)]).await.unwrap_err();
        assert!(twice.to_string().starts_with("a and alias are the same disk"), "{twice}");
        create(&handle, std::slice::from_ref(&b)).await.unwrap();
        let mixed = Pool::import(&handle, CLUSTER, vec![named("a", &a), named("b", &b)]).await.unwrap_err();
        assert!(matches!(mixed, ImportError::Disk(DiskRefusal::OtherPool { .. })), "{mixed}");
        let small = create(&handle, &[ram(MIB)]).await.unwrap_err();
        assert!(matches!(small, CreateError::Disk(DiskRefusal::Unsuitable { .. })), "{small}");
    });
}

#[test]
fn a_missing_member_isolates_its_volumes_only() {
    run(9, |handle| async move {
        let disks = [ram(8 * MIB), ram(8 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        pool.create_volume(volume(1, 3 * MIB)).await.unwrap();
        pool.create_volume(volume(2, 7 * MIB)).await.unwrap();
        drop(pool);
        let alone = Pool::import(&handle, CLUSTER, vec![named("lead", &disks[0])]).await.unwrap();
        assert!(matches!(alone.volume(volume_id(1)), Some(VolumeStatus::Ready(..))));
        assert!(matches!(
            alone.volume(volume_id(2)),
            Some(VolumeStatus::Isolated(_, DamageReason::DiskMissing(1)))
        ));
        assert_eq!(alone.free(), 0);
        drop(alone);
        let lead_missing =
            Pool::import(&handle, CLUSTER, vec![named("member", &disks[1])]).await.unwrap_err();
        assert!(matches!(lead_missing, ImportError::LeadMissing));
        let reversed = vec![named("member", &disks[1]), named("lead", &disks[0])];
        let pool = Pool::import(&handle, CLUSTER, reversed).await.unwrap();
        assert!(matches!(pool.volume(volume_id(2)), Some(VolumeStatus::Ready(..))));
    });
}

#[test]
fn a_volume_keeps_the_promises_of_block_devices() {
    run(14, |handle| async move {
        let pool = create(&handle, &[ram(16 * MIB)]).await.unwrap();
        let device = pool.create_volume(volume(1, MIB)).await.unwrap();
        basalt_bdev::conformance::run(handle, &*device, 14).await;
    });
}

#[test]
fn one_damaged_volume_stays_alone() {
    run(10, |handle| async move {
        let disks = [ram(16 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        for number in 1..=3 {
            pool.create_volume(volume(number, MIB)).await.unwrap();
        }
        drop(pool);
        let page = page_of_volume(&handle, &*disks[0], volume_id(2)).await;
        flip(&handle, &*disks[0], page + 130).await;
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.volume(volume_id(1)), Some(VolumeStatus::Ready(..))));
        assert!(matches!(pool.volume(volume_id(2)), Some(VolumeStatus::Isolated(_, DamageReason::Checksum))));
        assert!(matches!(pool.volume(volume_id(3)), Some(VolumeStatus::Ready(..))));
        // Of eleven extents three are taken.
        pool.create_volume(volume(4, 7 * MIB)).await.unwrap();
        let refused = pool.create_volume(volume(5, 2 * MIB)).await.unwrap_err();
        let of_it = |id: &_| *id == volume_id(2);
        assert!(matches!(&refused, VolumeError::DamagedNeighbour { id, .. } if of_it(id)), "{refused}");
        // Other changes go on, and the damaged entry is kept.
        pool.delete_volume(volume_id(3), Generation(10)).await.unwrap();
        // From the next checkpoint on the disk knows that its space is free.
        pool.rename(volume_id(1), "kept").await.unwrap();
        drop(pool);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.volume(volume_id(2)), Some(VolumeStatus::Isolated(..))));
        assert_eq!((pool.free(), pool.usage().withheld), (2 * MIB, MIB));
        pool.delete_volume(volume_id(2), Generation(10)).await.unwrap();
        assert_eq!((pool.free(), pool.usage().withheld), (3 * MIB, 0));
        pool.create_volume(volume(5, 2 * MIB)).await.unwrap();
    });
}

#[test]
fn damage_above_the_volumes_is_healed_from_the_second_copy() {
    run(11, |handle| async move {
        for kind in [ROOT, DIRECTORY] {
            let disks = [ram(16 * MIB)];
            let pool = create(&handle, &disks).await.unwrap();
            pool.create_volume(volume(1, MIB)).await.unwrap();
            drop(pool);
            let copies = pages_of(&handle, &*disks[0], kind).await;
            for copy in [0, 1] {
                flip(&handle, &*disks[0], copies[copy].0 + 200).await;
                let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
                assert!(matches!(pool.health(), PoolHealth::Online));
                assert!(matches!(pool.volume(volume_id(1)), Some(VolumeStatus::Ready(..))));
            }
            // Each import wrote both copies anew; without either there is no pool.
            let copies = pages_of(&handle, &*disks[0], kind).await;
            flip(&handle, &*disks[0], copies[0].0 + 200).await;
            flip(&handle, &*disks[0], copies[1].0 + 200).await;
            let refused = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap_err();
            assert!(matches!(refused, ImportError::Damaged(RootError::BothCopies(_))), "{refused}");
        }
    });
}

#[test]
fn a_rotten_superblock_is_made_good_by_the_other_one() {
    run(12, |handle| async move {
        let disks = [ram(16 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        pool.create_volume(volume(1, MIB)).await.unwrap();
        pool.create_volume(volume(2, MIB)).await.unwrap();
        drop(pool);
        flip(&handle, &*disks[0], SLOT_OFFSETS[0] + 40).await;
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::Online));
        assert_eq!(pool.volumes().len(), 2);
        drop(pool);
        for slot in SLOT_OFFSETS {
            flip(&handle, &*disks[0], slot + 90).await;
        }
        let refused =
            || async { Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap_err().to_string() };
        let words = refused().await;
        assert!(
            words
                .starts_with("disk disk-0 holds a damaged Basalt pool: both of its superblocks are unusable"),
            "{words}"
        );
        let (keeps, wipes) =
            (words.find("may still be there"), words.find("basaltd pool wipe disk-0 --force disk-0"));
        assert!(keeps.is_some() && keeps < wipes, "a wipe is the last resort: {words}");
        // What recognises it has rotted as well.
        for slot in SLOT_OFFSETS {
            flip(&handle, &*disks[0], slot + 3).await;
        }
        assert_eq!(refused().await, words);
    });
}

#[test]
fn another_version_is_refused_with_words() {
    run(13, |handle| async move {
        let disks = [ram(16 * MIB)];
        create(&handle, &disks).await.unwrap();
        let bytes = Bytes::open(&handle, &*disks[0]);
        let mut sector = bytes.read(SLOT_OFFSETS[1], 512).await.unwrap();
        sector[16] = 2;
        let sum = basalt_lvol::layout::checksum(&sector[..504]);
        sector[504..].copy_from_slice(&sum.to_le_bytes());
        bytes.write(SLOT_OFFSETS[1], &sector).await.unwrap();
        let refused = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap_err();
        assert!(refused.to_string().contains("format version 2, this program reads version 1"), "{refused}");
        let refused = create(&handle, &disks).await.unwrap_err();
        assert!(matches!(refused, CreateError::Disk(DiskRefusal::Unusable { .. })), "{refused}");
    });
}
