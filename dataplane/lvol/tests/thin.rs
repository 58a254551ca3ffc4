//! Thin volumes, snapshots and clones on disks in memory.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use basalt_bdev::{BlockDevice, IoError};
use basalt_lvol::id::{Epoch, Generation};
use basalt_lvol::{
    DifferenceError, LogicalVolume, NewPoolDisk, Pool, PoolHealth, VolumeError, VolumeStatus, difference,
};
use support::{
    Bytes, CLUSTER, MIB, create, create_of, named, named_all, ram, run, snapshot, thin, volume, volume_id,
};

const PIECE: u64 = 64 << 10;

fn device(pool: &Pool, number: u8) -> Arc<LogicalVolume> {
    match pool.volume(volume_id(number)) {
        Some(VolumeStatus::Ready(_, device)) => device,
        other => panic!("volume {number}: {other:?}"),
    }
}

#[test]
fn space_is_taken_by_writes_and_given_back_by_trims() {
    run(1, |handle| async move {
        let disks = [ram(64 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        let all = pool.free();
        let volume = pool.create_volume(thin(1, 10_000 * MIB)).await.unwrap();
        assert_eq!(pool.free(), all);
        let bytes = Bytes::open(&handle, &*volume);
        assert_eq!(bytes.read(5000 * MIB - 512, 1024).await.unwrap(), [0; 1024]);
        bytes.write(5 * MIB - 512, &[7; 1024]).await.unwrap();
        bytes.write(9999 * MIB, &[8; 4096]).await.unwrap();
        assert_eq!(pool.free(), all - 3 * MIB);
        assert_eq!(
            bytes.read(5 * MIB - 1024, 2048).await.unwrap(),
            [[0; 512], [7; 512], [7; 512], [0; 512]].concat()
        );
        assert_eq!(pool.volume_usage(volume_id(1)).unwrap().mapped, 3 * PIECE);
        bytes.unmap(4 * MIB, 2 * MIB).await.unwrap();
        bytes.flush().await.unwrap();
        // Space comes back once a commit has made that durable and nothing is under way there.
        pool.rename(volume_id(1), "another name").await.unwrap();
        bytes.write_zeroes(9999 * MIB - 512, 1024).await.unwrap();
        assert_eq!(bytes.read(9999 * MIB, 4096).await.unwrap(), [vec![0; 512], vec![8; 3584]].concat());
        drop((bytes, volume, pool));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!(pool.free(), all - MIB);
        let bytes = Bytes::open(&handle, &*device(&pool, 1));
        assert_eq!(bytes.read(5 * MIB - 1024, 2048).await.unwrap(), [0; 2048]);
        assert_eq!(bytes.read(9999 * MIB, 4096).await.unwrap(), [vec![0; 512], vec![8; 3584]].concat());
    });
}

#[test]
fn a_thin_volume_keeps_the_promises_of_block_devices() {
    run(2, |handle| async move {
        let pool = create(&handle, &[ram(16 * MIB), ram(8 * MIB)]).await.unwrap();
        let device = pool.create_volume(thin(1, 4 * MIB)).await.unwrap();
        basalt_bdev::conformance::run(handle.clone(), &*device, 14).await;
        pool.snapshot(volume_id(1), snapshot(2)).await.unwrap();
        basalt_bdev::conformance::run(handle, &*device, 15).await;
    });
}

#[test]
fn snapshots_keep_and_clones_diverge() {
    run(3, |handle| async move {
        let disks = [ram(64 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        let origin = pool.create_volume(volume(1, 4 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*origin);
        for piece in 0..64 {
            bytes.write(piece * PIECE, &[u8::try_from(piece).unwrap(); 512]).await.unwrap();
        }
        let before = pool.free();
        let snap = pool.snapshot(volume_id(1), snapshot(2)).await.unwrap();
        assert_eq!(pool.free(), before, "a snapshot takes no data");
        let old = Bytes::open(&handle, &*snap);
        assert_eq!(old.write(0, &[1; 512]).await, Err(IoError::ReadOnly));
        bytes.write(3 * PIECE + 512, &[0xaa; 512]).await.unwrap();
        assert_eq!(pool.free(), before - MIB);
        assert_eq!(bytes.read(3 * PIECE, 1024).await.unwrap(), [[3; 512], [0xaa; 512]].concat());
        assert_eq!(old.read(3 * PIECE, 1024).await.unwrap(), [[3; 512], [0; 512]].concat());
        let clone = pool.clone_snapshot(volume_id(2), thin(3, 5 * MIB)).await.unwrap();
        let other = Bytes::open(&handle, &*clone);
        other.write(3 * PIECE, &[0xbb; 512]).await.unwrap();
        other.write(5 * MIB - 512, &[0xcc; 512]).await.unwrap();
        assert_eq!(old.read(3 * PIECE, 512).await.unwrap(), [3; 512]);
        assert_eq!(other.read(63 * PIECE, 512).await.unwrap(), [63; 512]);
        let changed = pool.difference(volume_id(2), volume_id(1)).unwrap();
        assert_eq!(changed.ranges, vec![0..MIB; 1]);
        let changed = pool.difference(volume_id(2), volume_id(3)).unwrap();
        assert_eq!(changed.ranges, [0..MIB, 4 * MIB..5 * MIB]);
        // The disks say the same to somebody who only reads them.
        other.flush().await.unwrap();
        let listed =
            async |from, to| difference(&handle, named_all(&disks), volume_id(from), volume_id(to)).await;
        assert_eq!(listed(2, 3).await.unwrap(), changed);
        assert_eq!(listed(2, 2).await.unwrap().ranges, []);
        assert!(matches!(listed(2, 9).await, Err(DifferenceError::NotFound(_))));
        pool.delete_volume(volume_id(2), Generation(10)).await.unwrap();
        assert_eq!(old.read(0, 512).await, Err(IoError::DeviceGone));
        for piece in 4..64 {
            let expected = [u8::try_from(piece).unwrap(); 512];
            assert_eq!(bytes.read(piece * PIECE, 512).await.unwrap(), expected);
            assert_eq!(other.read(piece * PIECE, 512).await.unwrap(), expected);
        }
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        assert_eq!(other.read(63 * PIECE, 512).await.unwrap(), [63; 512]);
        pool.delete_volume(volume_id(3), Generation(10)).await.unwrap();
        assert_eq!(pool.free(), pool.capacity());
    });
}

#[test]
fn a_chain_of_snapshots_collapses_and_every_depth_reads() {
    run(4, |handle| async move {
        let disks = [ram(64 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        let origin = pool.create_volume(thin(1, MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*origin);
        // Piece n is written before snapshot n and never after it.
        for n in 0..16_u8 {
            bytes.write(u64::from(n) * PIECE, &vec![n + 1; 1 << 16]).await.unwrap();
            pool.snapshot(volume_id(1), snapshot(100 + n)).await.unwrap();
        }
        let check = |pool: &Pool, number: u8, upto: u8| {
            let bytes = Bytes::open(&handle, &*device(pool, number));
            async move {
                let found = bytes.read(0, 1 << 20).await.unwrap();
                for (n, piece) in found.chunks(1 << 16).enumerate() {
                    let expected = if n < usize::from(upto) { u8::try_from(n + 1).unwrap() } else { 0 };
                    assert!(piece.iter().all(|byte| *byte == expected), "volume {number}, piece {n}");
                }
            }
        };
        for n in 0..16 {
            check(&pool, 100 + n, n + 1).await;
        }
        assert_eq!(pool.free(), pool.capacity() - 16 * MIB);
        for n in (1..15).step_by(2) {
            pool.delete_volume(volume_id(100 + n), Generation(10)).await.unwrap();
        }
        drop((bytes, origin, pool));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        for n in (0..16).step_by(2) {
            check(&pool, 100 + n, n + 1).await;
        }
        check(&pool, 1, 16).await;
        // Overwritten whole, the volume needs one extent, and the others are the snapshots'.
        Bytes::open(&handle, &*device(&pool, 1)).write(0, &vec![9; 1 << 20]).await.unwrap();
        for n in (0..16).step_by(2).chain([15]) {
            pool.delete_volume(volume_id(100 + n), Generation(10)).await.unwrap();
        }
        assert_eq!(pool.free(), pool.capacity() - MIB);
        assert_eq!(pool.volume_usage(volume_id(1)).unwrap().exclusive, MIB);
    });
}

#[test]
fn volumes_grow_and_never_shrink() {
    run(5, |handle| async move {
        let disks = [ram(64 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        for (number, new) in [(1, volume(1, 2 * MIB - 4096)), (2, thin(2, 2 * MIB - 4096))] {
            let device = pool.create_volume(new).await.unwrap();
            let bytes = Bytes::open(&handle, &*device);
            bytes.write(MIB, &[1; 4096]).await.unwrap();
            assert_eq!(bytes.read(2 * MIB - 4096, 512).await, Err(IoError::OutOfRange));
            let generation = device.info().generation();
            pool.resize(volume_id(number), 5 * MIB).await.unwrap();
            assert!(device.info().generation() > generation, "an open device tells that it has grown");
            assert_eq!(bytes.read(2 * MIB - 8192, 1 << 20).await.unwrap(), vec![0; 1 << 20]);
            bytes.write(5 * MIB - 512, &[2; 512]).await.unwrap();
            let shrinks = pool.resize(volume_id(number), MIB).await.unwrap_err();
            assert!(matches!(shrinks, VolumeError::Shrinks { .. }), "{shrinks}");
        }
        drop(pool);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        for number in [1, 2] {
            let bytes = Bytes::open(&handle, &*device(&pool, number));
            assert_eq!(bytes.read(5 * MIB - 512, 512).await.unwrap(), [2; 512]);
            assert_eq!(bytes.read(MIB, 512).await.unwrap(), [1; 512]);
        }
    });
}

#[test]
fn a_pool_says_that_it_is_full_when_it_refuses_first_writes() {
    run(16, |handle| async move {
        // 123 extents, as a file of 128 MiB gives, and others for which 0.95 is no whole number.
        for size in [128, 45, 26, 53, 105] {
            let pool = create(&handle, &[ram(size * MIB)]).await.unwrap();
            let volume = pool.create_volume(thin(1, 200 * MIB)).await.unwrap();
            let bytes = Bytes::open(&handle, &*volume);
            for extent in 0.. {
                let full = pool.usage().is_full();
                match bytes.write(extent * MIB, &[1; 512]).await {
                    Ok(()) => assert!(!full, "{size} MiB: full with {extent} extents"),
                    Err(error) => {
                        assert_eq!(
                            (error, full),
                            (IoError::CapacityExceeded, true),
                            "{size} MiB, {extent} extents"
                        );
                        break;
                    }
                }
            }
            bytes.unmap(0, MIB).await.unwrap();
            bytes.flush().await.unwrap();
            pool.tidy();
            handle.sleep(std::time::Duration::from_secs(1)).await;
            assert!(!pool.usage().is_full(), "{size} MiB: one was given back");
        }
    });
}

#[test]
fn a_full_pool_refuses_first_writes_only() {
    run(6, |handle| async move {
        let pool = create(&handle, &[ram(45 * MIB)]).await.unwrap();
        assert_eq!(pool.capacity(), 40 * MIB);
        let thick = pool.create_volume(volume(9, 2 * MIB)).await.unwrap();
        let volume = pool.create_volume(thin(1, 100 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*volume);
        let mut written = 0;
        let refused = loop {
            match bytes.write(written * MIB, &[1; 512]).await {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        // 0.95 of 40 extents, two of which are the thick volume's.
        assert_eq!((refused, written), (IoError::CapacityExceeded, 36));
        assert!(pool.usage().is_near_full() && pool.usage().stops_rebuilds() && pool.usage().is_full());
        assert!(matches!(pool.health(), PoolHealth::Online));
        bytes.write(512, &[2; 512]).await.unwrap();
        Bytes::open(&handle, &*thick).write(MIB, &[3; 512]).await.unwrap();
        bytes.unmap(0, 3 * MIB).await.unwrap();
        for extent in 40..43 {
            bytes.write(extent * MIB, &[4; 512]).await.unwrap();
        }
        assert_eq!(bytes.write(50 * MIB, &[4; 512]).await, Err(IoError::CapacityExceeded));
        pool.snapshot(volume_id(1), snapshot(2)).await.unwrap();
        assert_eq!(bytes.write(3 * MIB, &[5; 512]).await, Err(IoError::CapacityExceeded));
        assert_eq!(bytes.read(3 * MIB, 512).await.unwrap(), [1; 512]);
        pool.delete_volume(volume_id(2), Generation(10)).await.unwrap();
        bytes.write(3 * MIB, &[5; 512]).await.unwrap();
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        assert_eq!(pool.free(), 38 * MIB);
    });
}

#[test]
fn reused_space_shows_nothing_old() {
    run(7, |handle| async move {
        let pool = create(&handle, &[ram(9 * MIB)]).await.unwrap();
        let first = pool.create_volume(thin(1, 3 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*first);
        for extent in 0..3 {
            bytes.write(extent * MIB, &vec![0xee; 1 << 20]).await.unwrap();
        }
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        let second = pool.create_volume(thin(2, 3 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*second);
        for extent in 0..3 {
            bytes.write(extent * MIB + 70_144, &[1; 512]).await.unwrap();
            let mut expected = vec![0; 1 << 20];
            expected[70_144..70_656].fill(1);
            assert!(bytes.read(extent * MIB, 1 << 20).await.unwrap() == expected);
        }
    });
}

#[test]
fn a_higher_epoch_fences_lower_ones() {
    run(8, |handle| async move {
        let disks = [ram(16 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        let device = pool.create_volume(thin(1, 4 * MIB)).await.unwrap();
        let old = Bytes::open(&handle, &*device);
        old.write(0, &[1; 512]).await.unwrap();
        let epoch = |counter| Epoch { incarnation: 1, counter };
        let served = pool.raise_epoch(volume_id(1), epoch(5)).await.unwrap();
        assert_eq!(served.epoch(), epoch(5));
        for result in [
            old.write(0, &[2; 512]).await,
            old.write(MIB, &[2; 512]).await,
            old.unmap(0, MIB).await,
            old.flush().await,
            old.read(0, 512).await.map(drop),
        ] {
            assert_eq!(result, Err(IoError::Fenced));
        }
        let new = Bytes::open(&handle, &served);
        assert_eq!(new.read(0, 512).await.unwrap(), [1; 512]);
        new.write(0, &[3; 512]).await.unwrap();
        // The same epoch again is answered alike; a lower one is refused.
        pool.raise_epoch(volume_id(1), epoch(5)).await.unwrap();
        new.write(0, &[4; 512]).await.unwrap();
        let stale = pool.raise_epoch(volume_id(1), epoch(4)).await.unwrap_err();
        assert!(matches!(stale, VolumeError::StaleEpoch { .. }), "{stale}");
        drop(pool);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        let Some(VolumeStatus::Ready(record, _)) = pool.volume(volume_id(1)) else { panic!("it is there") };
        assert_eq!(record.epoch, epoch(5));
    });
}

#[test]
fn names_marks_and_hiding_are_kept() {
    run(9, |handle| async move {
        let disks = [ram(16 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        let device = pool.create_volume(thin(1, MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        pool.rename(volume_id(1), "renamed").await.unwrap();
        pool.set_read_only(volume_id(1), true).await.unwrap();
        assert_eq!(bytes.write(0, &[1; 512]).await, Err(IoError::ReadOnly));
        let hidden = basalt_lvol::NewVolume { hidden: true, ..thin(2, MIB) };
        pool.create_volume(hidden).await.unwrap();
        drop(pool);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.volume(volume_id(2)), Some(VolumeStatus::Changing)));
        pool.reveal(volume_id(2)).await.unwrap();
        assert!(matches!(pool.volume(volume_id(2)), Some(VolumeStatus::Ready(..))));
        let Some(VolumeStatus::Ready(record, device)) = pool.volume(volume_id(1)) else { panic!("there") };
        assert_eq!(record.name, "renamed");
        assert!(record.flags.read_only && device.info().read_only());
        let (bytes, generation) = (Bytes::open(&handle, &*device), device.info().generation());
        pool.set_read_only(volume_id(1), false).await.unwrap();
        assert_eq!(bytes.write(0, &[1; 512]).await, Ok(()), "without another import");
        assert!(device.info().generation() > generation, "hosts are told");
    });
}

#[test]
fn the_unit_of_allocation_is_the_pools_own() {
    run(10, |handle| async move {
        let disks = [ram(16 * MIB)];
        let new = |bytes| {
            let disks = vec![NewPoolDisk { disk: named("disk", &disks[0]), overwrite_foreign_data: false }];
            create_of(&handle, disks, bytes)
        };
        assert!(new(3 << 18).await.is_err());
        assert!(new(2 << 20).await.is_err());
        let pool = new(64 << 10).await.unwrap();
        let all = pool.free();
        let device = pool.create_volume(thin(1, 100 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        bytes.write(MIB, &[1; 512]).await.unwrap();
        assert_eq!(pool.free(), all - (64 << 10));
        assert_eq!(pool.volume_usage(volume_id(1)).unwrap().mapped, 4096);
        drop((bytes, device, pool));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!((pool.extent_bytes(), pool.free()), (64 << 10, all - (64 << 10)));
    });
}

#[test]
fn an_exported_pool_moves_and_takes_no_change() {
    run(11, |handle| async move {
        let disks = [ram(16 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        let device = pool.create_volume(thin(1, 4 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        bytes.write(0, &[1; 512]).await.unwrap();
        pool.export().await.unwrap();
        assert_eq!(bytes.write(0, &[2; 512]).await, Err(IoError::DeviceGone));
        assert!(matches!(pool.create_volume(thin(2, MIB)).await, Err(VolumeError::ReadOnly(_))));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device_of(&pool));
        assert_eq!(bytes.read(0, 512).await.unwrap(), [1; 512]);
        bytes.write(0, &[2; 512]).await.unwrap();
    });
}

fn device_of(pool: &Pool) -> Arc<LogicalVolume> {
    device(pool, 1)
}

#[test]
fn a_pool_grows_by_a_disk() {
    run(12, |handle| async move {
        let disks = [ram(8 * MIB), ram(20 * MIB)];
        let pool = create(&handle, &disks[..1]).await.unwrap();
        let volume = pool.create_volume(thin(1, 100 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*volume);
        for extent in 0..2 {
            bytes.write(extent * MIB, &[1; 512]).await.unwrap();
        }
        assert_eq!(bytes.write(2 * MIB, &[1; 512]).await, Err(IoError::CapacityExceeded));
        let new = NewPoolDisk { disk: named("disk-1", &disks[1]), overwrite_foreign_data: false };
        pool.add_disk(new.clone()).await.unwrap();
        assert!(pool.add_disk(new).await.is_err());
        assert_eq!((pool.capacity(), pool.disks().len()), (22 * MIB, 2));
        for extent in 2..20 {
            bytes.write(extent * MIB, &[u8::try_from(extent).unwrap(); 512]).await.unwrap();
        }
        bytes.flush().await.unwrap();
        drop((bytes, volume, pool));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device(&pool, 1));
        for extent in 2..20 {
            let expected = [u8::try_from(extent).unwrap(); 512];
            assert_eq!(bytes.read(extent * MIB, 512).await.unwrap(), expected);
        }
    });
}
