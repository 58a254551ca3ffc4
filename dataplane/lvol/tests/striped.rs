//! Pools that take extents from their disks in turn.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use basalt_bdev::BlockDevice;
use basalt_lvol::layout::{DiskLayout, EXTENT_BYTES};
use basalt_lvol::{LogicalVolume, NewPoolDisk, Pool, VolumeStatus, inspect};
use basalt_reactor::Handle;
use support::{
    Bytes, CLUSTER, MIB, create_as, named, named_all, ram, run, snapshot, thin, volume, volume_id,
};

async fn striped(handle: &Handle, disks: &[Arc<dyn BlockDevice>]) -> Pool {
    let new = named_all(disks).into_iter();
    let new = new.map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
    create_as(handle, new, EXTENT_BYTES, DiskLayout::Striped).await.unwrap()
}

/// Marks an extent of a volume so that it can be found on a disk.
async fn mark(bytes: &Bytes, volume: u8, extent: u64) {
    let mark = [u64::from(volume), extent].map(u64::to_le_bytes).concat().repeat(32);
    bytes.write(extent * MIB, &mark).await.unwrap();
}

/// By extent of a volume, which disk has it: those that bear its mark.
async fn where_it_lies(
    handle: &Handle,
    pool: &Pool,
    disks: &[Arc<dyn BlockDevice>],
    volume: u8,
) -> Vec<usize> {
    let mut found = Vec::new();
    for (index, (disk, status)) in disks.iter().zip(pool.disks()).enumerate() {
        let bytes = Bytes::open(handle, &**disk);
        for extent in 0..status.record.extents {
            let content = bytes.read(status.record.data_offset + extent * MIB, 512).await.unwrap();
            let field = |at: usize| u64::from_le_bytes(content[at..at + 8].try_into().unwrap());
            if field(0) == u64::from(volume) && content[..16] == content[496..] {
                found.push((field(8), index));
            }
        }
    }
    found.sort_unstable();
    assert!(found.iter().zip(0..).all(|((extent, _), expected)| *extent == expected), "each once: {found:?}");
    found.into_iter().map(|(_, disk)| disk).collect()
}

fn device(pool: &Pool, number: u8) -> Arc<LogicalVolume> {
    match pool.volume(volume_id(number)) {
        Some(VolumeStatus::Ready(_, device)) => device,
        other => panic!("volume {number}: {other:?}"),
    }
}

/// How many of the extents each of three disks has.
fn shares(disks: &[usize]) -> [usize; 3] {
    [0, 1, 2].map(|disk| disks.iter().filter(|of| **of == disk).count())
}

#[test]
fn thick_and_thin_volumes_are_spread_over_all_disks() {
    run(1, |handle| async move {
        let disks = [ram(24 * MIB), ram(20 * MIB), ram(20 * MIB)];
        let pool = striped(&handle, &disks).await;
        let thick = pool.create_volume(volume(1, 12 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*thick);
        for extent in 0..12 {
            mark(&bytes, 1, extent).await;
        }
        let found = where_it_lies(&handle, &pool, &disks, 1).await;
        assert_eq!(shares(&found), [4; 3]);
        assert!(found.windows(3).all(|three| shares(three) == [1; 3]), "{found:?}");
        // Whatever the order in which it is written.
        let volume = pool.create_volume(thin(2, 100 * MIB)).await.unwrap();
        let other = pool.create_volume(thin(3, 100 * MIB)).await.unwrap();
        let (bytes, neighbour) = (Bytes::open(&handle, &*volume), Bytes::open(&handle, &*other));
        for step in 0..12 {
            mark(&bytes, 2, step * 5 % 12).await;
            mark(&neighbour, 3, step).await;
        }
        for number in [2, 3] {
            let found = where_it_lies(&handle, &pool, &disks, number).await;
            assert!(found.windows(3).all(|three| shares(three) == [1; 3]), "{found:?}");
        }
        // A snapshot's origin moves to where the turn is.
        pool.snapshot(volume_id(2), snapshot(4)).await.unwrap();
        bytes.write(MIB, &vec![0x77; 1 << 20]).await.unwrap();
        assert_eq!(bytes.read(MIB, 1 << 20).await.unwrap(), vec![0x77; 1 << 20]);
    });
}

#[test]
fn a_volume_that_grows_goes_on_with_the_turn() {
    run(2, |handle| async move {
        let disks = [ram(24 * MIB), ram(20 * MIB), ram(20 * MIB)];
        let pool = striped(&handle, &disks).await;
        let thick = pool.create_volume(volume(1, 4 * MIB)).await.unwrap();
        pool.resize(volume_id(1), 9 * MIB).await.unwrap();
        let bytes = Bytes::open(&handle, &*thick);
        for extent in 0..9 {
            assert_eq!(bytes.read(extent * MIB, 1 << 20).await.unwrap(), vec![0; 1 << 20]);
            mark(&bytes, 1, extent).await;
        }
        let found = where_it_lies(&handle, &pool, &disks, 1).await;
        assert!(found.windows(3).all(|three| shares(three) == [1; 3]), "{found:?}");
    });
}

#[test]
fn disks_of_unequal_size_are_used_to_their_ends() {
    run(3, |handle| async move {
        // 5, 11 and 31 extents.
        let disks = [ram(10 * MIB), ram(12 * MIB), ram(32 * MIB)];
        let pool = striped(&handle, &disks).await;
        assert_eq!(pool.capacity(), 47 * MIB);
        let thick = pool.create_volume(volume(1, 47 * MIB)).await.unwrap();
        assert_eq!(pool.free(), 0);
        let bytes = Bytes::open(&handle, &*thick);
        for extent in 0..47 {
            mark(&bytes, 1, extent).await;
        }
        let found = where_it_lies(&handle, &pool, &disks, 1).await;
        assert_eq!(shares(&found), [5, 11, 31]);
        assert_eq!(shares(&found[..15]), [5; 3]);
        assert_eq!(shares(&found[15..27]), [0, 6, 6]);
    });
}

#[test]
fn a_striped_volume_keeps_the_promises_of_block_devices() {
    run(4, |handle| async move {
        let pool = striped(&handle, &[ram(16 * MIB), ram(8 * MIB), ram(9 * MIB)]).await;
        let thick = pool.create_volume(volume(1, 4 * MIB)).await.unwrap();
        basalt_bdev::conformance::run(handle.clone(), &*thick, 14).await;
        let thin = pool.create_volume(thin(2, 4 * MIB)).await.unwrap();
        basalt_bdev::conformance::run(handle.clone(), &*thin, 15).await;
        pool.snapshot(volume_id(2), snapshot(3)).await.unwrap();
        basalt_bdev::conformance::run(handle, &*thin, 16).await;
    });
}

#[test]
fn the_layout_is_the_pools_for_good() {
    run(5, |handle| async move {
        let disks = [ram(24 * MIB), ram(20 * MIB), ram(20 * MIB)];
        let pool = striped(&handle, &disks[..2]).await;
        pool.create_volume(thin(1, 100 * MIB)).await.unwrap();
        drop(pool);
        let seen = inspect(&handle, named_all(&disks[..2])).await.unwrap();
        assert_eq!((seen.layout, seen.layout.to_string()), (DiskLayout::Striped, "striped".to_owned()));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks[..2])).await.unwrap();
        assert_eq!(pool.layout(), DiskLayout::Striped);
        // A disk that joins takes its turn.
        let new = NewPoolDisk { disk: named("disk-2", &disks[2]), overwrite_foreign_data: false };
        pool.add_disk(new).await.unwrap();
        let bytes = Bytes::open(&handle, &*device(&pool, 1));
        for extent in 0..12 {
            mark(&bytes, 1, extent).await;
        }
        assert_eq!(shares(&where_it_lies(&handle, &pool, &disks, 1).await), [4; 3]);
        bytes.flush().await.unwrap();
        drop((bytes, pool));
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert_eq!(pool.layout(), DiskLayout::Striped);
        let bytes = Bytes::open(&handle, &*device(&pool, 1));
        for extent in 0..12 {
            let content = bytes.read(extent * MIB, 512).await.unwrap();
            assert_eq!(content[8..16], extent.to_le_bytes());
        }
    });
}
