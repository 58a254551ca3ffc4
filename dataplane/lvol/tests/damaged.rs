//! A volume whose metadata is damaged: the others go on, with new extents as well, and none of them is one of its own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use basalt_bdev::{BlockDevice, IoError};
use basalt_lvol::id::Generation;
use basalt_lvol::layout::DamageReason;
use basalt_lvol::{LogicalVolume, NewPoolDisk, Pool, PoolHealth, ReadOnlyReason, VolumeError, VolumeStatus};
use basalt_reactor::Handle;
use support::{
    Bytes, CLUSTER, LEAF, MIB, OVERFLOW, create, create_of, flip, named_all, page_of_volume, pages_of, ram,
    run, snapshot, thin, volume, volume_id,
};

fn device(pool: &Pool, number: u8) -> Arc<LogicalVolume> {
    match pool.volume(volume_id(number)) {
        Some(VolumeStatus::Ready(_, device)) => device,
        other => panic!("volume {number}: {other:?}"),
    }
}

/// Extents of a disk that are full of a byte.
async fn extents_of(
    handle: &Handle,
    pool: &Pool,
    disks: &[Arc<dyn BlockDevice>],
    byte: u8,
) -> Vec<(usize, u64)> {
    let mut found = Vec::new();
    for (index, (disk, status)) in disks.iter().zip(pool.disks()).enumerate() {
        let bytes = Bytes::open(handle, &**disk);
        for extent in 0..status.record.extents {
            let content = bytes.read(status.record.data_offset + extent * MIB, 1 << 20).await.unwrap();
            if content.iter().all(|found| *found == byte) {
                found.push((index, extent));
            }
        }
    }
    found
}

/// Writes to extents of a volume that have none yet until that is refused; how many there were.
async fn fill(handle: &Handle, pool: &Pool, number: u8, first: u64, byte: u8) -> u64 {
    let bytes = Bytes::open(handle, &*device(pool, number));
    for extent in first.. {
        match bytes.write(extent * MIB, &vec![byte; 1 << 20]).await {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error, IoError::CapacityExceeded);
                return extent - first;
            }
        }
    }
    0
}

const OLD: u8 = 0xd1;
const NEW: u8 = 0xd2;

/// A pool over two disks with a volume that has extents of its own, some shared with a snapshot, and some that only the journal knows.
async fn victim(handle: &Handle, disks: &[Arc<dyn BlockDevice>]) {
    let pool = create(handle, disks).await.unwrap();
    pool.create_volume(volume(3, 2 * MIB)).await.unwrap();
    let victim = pool.create_volume(thin(1, 200 * MIB)).await.unwrap();
    pool.create_volume(thin(2, 200 * MIB)).await.unwrap();
    let bytes = Bytes::open(handle, &*victim);
    for extent in 0..12 {
        bytes.write(extent * MIB, &vec![OLD; 1 << 20]).await.unwrap();
    }
    pool.snapshot(volume_id(1), snapshot(9)).await.unwrap();
    bytes.unmap(11 * MIB, MIB).await.unwrap();
    for extent in 20..23 {
        bytes.write(extent * MIB, &vec![NEW; 1 << 20]).await.unwrap();
    }
    bytes.flush().await.unwrap();
}

#[test]
fn the_others_take_new_extents_and_none_that_may_be_its_own() {
    run(1, |handle| async move {
        let disks = [ram(40 * MIB), ram(24 * MIB)];
        victim(&handle, &disks).await;
        let page = page_of_volume(&handle, &*disks[0], volume_id(1)).await;
        flip(&handle, &*disks[0], page + 700).await;
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::Online));
        assert!(matches!(pool.volume(volume_id(1)), Some(VolumeStatus::Isolated(_, DamageReason::Checksum))));
        let own = extents_of(&handle, &pool, &disks, NEW).await;
        let shared = extents_of(&handle, &pool, &disks, OLD).await;
        assert_eq!((own.len(), shared.len()), (3, 12));
        assert_eq!(pool.usage().withheld, 3 * MIB, "the snapshot has the others, and is understood");
        let written = fill(&handle, &pool, 2, 0, 0xee).await;
        // 35 and 23 extents, of which 0.95 may be taken; 2, 12 and 3 are.
        assert_eq!(written, 55 - 17);
        // So it is after another import, whose maps do not show them either.
        drop(pool);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!(fill(&handle, &pool, 2, written, 0xee).await, 0);
        let refused = pool.create_volume(volume(4, 6 * MIB)).await.unwrap_err();
        assert!(matches!(refused, VolumeError::DamagedNeighbour { .. }), "{refused}");
        pool.create_volume(volume(4, 3 * MIB)).await.unwrap();
        assert_eq!((pool.free(), pool.usage().withheld), (0, 3 * MIB));
        assert_eq!(extents_of(&handle, &pool, &disks, NEW).await, own);
        assert_eq!(extents_of(&handle, &pool, &disks, OLD).await, shared);
        // Deleting it gives all of it back.
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        assert_eq!((pool.free(), pool.usage().withheld), (3 * MIB, 0));
        pool.delete_volume(volume_id(9), Generation(10)).await.unwrap();
        assert_eq!(pool.free(), 15 * MIB);
    });
}

#[test]
fn space_is_withheld_until_no_volume_is_damaged_any_more() {
    run(2, |handle| async move {
        let disks = [ram(40 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        for number in 1..=3 {
            pool.create_volume(volume(number, 3 * MIB)).await.unwrap();
        }
        let all = pool.free();
        drop(pool);
        for number in [1, 3] {
            let page = page_of_volume(&handle, &*disks[0], volume_id(number)).await;
            flip(&handle, &*disks[0], page + 90).await;
        }
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!((pool.free(), pool.usage().withheld), (all, 6 * MIB));
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        assert_eq!((pool.free(), pool.usage().withheld), (all, 6 * MIB), "whose is whose is not known");
        pool.delete_volume(volume_id(3), Generation(10)).await.unwrap();
        assert_eq!((pool.free(), pool.usage().withheld), (all + 6 * MIB, 0));
    });
}

#[test]
fn a_map_on_a_disk_that_is_missing_is_not_written_out_as_damaged() {
    run(3, |handle| async move {
        // The lead's area has room for 576 pages of maps; those that follow lie on the member.
        let disks = [ram(64 * MIB), ram(260 * MIB)];
        let new = named_all(&disks).into_iter();
        let new = new.map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
        let pool = create_of(&handle, new, 64 << 10).await.unwrap();
        let device = pool.create_volume(thin(1, 64 << 30)).await.unwrap();
        let bytes = Bytes::open(&handle, &*device);
        for leaf in 0..600 {
            bytes.write(leaf * 256 * (64 << 10), &[7; 512]).await.unwrap();
        }
        pool.create_volume(thin(2, MIB)).await.unwrap();
        drop((bytes, device, pool));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks[..1])).await.unwrap();
        assert!(matches!(
            pool.volume(volume_id(1)),
            Some(VolumeStatus::Isolated(_, DamageReason::DiskMissing(1)))
        ));
        assert!(matches!(pool.health(), PoolHealth::ReadOnly(ReadOnlyReason::Unreadable)));
        drop(pool);
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::Online));
        let bytes = Bytes::open(&handle, &*self::device(&pool, 1));
        assert_eq!(bytes.read(599 * 256 * (64 << 10), 512).await.unwrap(), [7; 512]);
    });
}

/// The page of a kind that covers volume extents from `first` on, or lies anywhere.
async fn page_from(handle: &Handle, disk: &dyn BlockDevice, kind: u16, first: u64) -> u64 {
    let pages = pages_of(handle, disk, kind).await;
    pages.into_iter().find(|(_, page)| page[48..56] == first.to_le_bytes()).unwrap().0
}

/// Writes checkpoints until each page that counts as free was written over.
async fn use_all_pages(pool: &Pool) {
    for number in 0..400 {
        pool.rename(volume_id(2), &format!("name-{number}")).await.unwrap();
    }
}

#[test]
fn what_can_be_reached_of_it_is_not_written_over_and_it_can_become_whole_again() {
    run(7, |handle| async move {
        for (kind, first) in [(LEAF, 256), (LEAF, 512), (OVERFLOW, 0)] {
            let disks = [ram(200 * MIB)];
            let pool = create(&handle, &disks).await.unwrap();
            let owner = pool.create_volume(thin(1, 1000 * MIB)).await.unwrap();
            pool.create_volume(thin(2, 10 * MIB)).await.unwrap();
            let bytes = Bytes::open(&handle, &*owner);
            // So many pieces with holes that one leaf needs another page for them.
            let written = (0..120).chain([300, 600]);
            for extent in written.clone() {
                bytes.write(extent * MIB, &[1; 512]).await.unwrap();
            }
            pool.rename(volume_id(1), "own").await.unwrap();
            drop((bytes, owner, pool));
            let page = page_from(&handle, &*disks[0], kind, first).await;
            flip(&handle, &*disks[0], page + 2000).await;
            let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            assert!(matches!(
                pool.volume(volume_id(1)),
                Some(VolumeStatus::Isolated(_, DamageReason::Checksum))
            ));
            use_all_pages(&pool).await;
            drop(pool);
            // And the next import knows as much.
            let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            use_all_pages(&pool).await;
            drop(pool);
            flip(&handle, &*disks[0], page + 2000).await;
            let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            let bytes = Bytes::open(&handle, &*device(&pool, 1));
            for extent in written {
                let found = bytes.read(extent * MIB, 512).await.unwrap();
                assert_eq!(found, [1; 512], "kind {kind} at {first}: extent {extent}");
            }
            let pages = pool.usage().metadata_used;
            drop(bytes);
            pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
            assert!(pool.usage().metadata_used < pages);
        }
    });
}

#[test]
fn its_pages_are_free_when_it_was_deleted() {
    run(8, |handle| async move {
        let disks = [ram(40 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        pool.create_volume(thin(2, 10 * MIB)).await.unwrap();
        let without = pool.usage().metadata_used;
        let owner = pool.create_volume(thin(1, 1000 * MIB)).await.unwrap();
        for extent in [0, 300, 600] {
            Bytes::open(&handle, &*owner).write(extent * MIB, &[1; 512]).await.unwrap();
        }
        pool.rename(volume_id(1), "own").await.unwrap();
        let with = pool.usage().metadata_used;
        drop((owner, pool));
        let page = page_from(&handle, &*disks[0], LEAF, 256).await;
        flip(&handle, &*disks[0], page + 2000).await;
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!(pool.usage().metadata_used, with);
        pool.rename(volume_id(2), "another").await.unwrap();
        assert_eq!(pool.usage().metadata_used, with);
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        assert_eq!(pool.usage().metadata_used, without);
    });
}

#[test]
fn one_that_would_not_be_what_it_was_does_not_become_whole_again() {
    run(9, |handle| async move {
        for shared in [true, false] {
            let disks = [ram(40 * MIB)];
            let pool = create(&handle, &disks).await.unwrap();
            let owner = pool.create_volume(thin(1, 1000 * MIB)).await.unwrap();
            pool.create_volume(thin(2, 10 * MIB)).await.unwrap();
            let bytes = Bytes::open(&handle, &*owner);
            for extent in [0, 300, 600] {
                bytes.write(extent * MIB, &[1; 512]).await.unwrap();
            }
            pool.rename(volume_id(1), "own").await.unwrap();
            if shared {
                pool.snapshot(volume_id(1), snapshot(9)).await.unwrap();
                bytes.write(300 * MIB, &[2; 512]).await.unwrap();
                pool.rename(volume_id(1), "again").await.unwrap();
            } else {
                // Only the journal has it, and the next checkpoint is without that.
                bytes.write(MIB, &[1; 512]).await.unwrap();
                bytes.flush().await.unwrap();
            }
            drop((bytes, owner, pool));
            let page = page_from(&handle, &*disks[0], LEAF, 256).await;
            flip(&handle, &*disks[0], page + 2000).await;
            let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            if shared {
                // It frees what the damaged one has as well.
                pool.delete_volume(volume_id(9), Generation(10)).await.unwrap();
            }
            use_all_pages(&pool).await;
            drop(pool);
            flip(&handle, &*disks[0], page + 2000).await;
            let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            let status = pool.volume(volume_id(1));
            assert!(matches!(status, Some(VolumeStatus::Isolated(..))), "shared: {shared}, {status:?}");
        }
    });
}
