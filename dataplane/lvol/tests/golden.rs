//! Pools as they were written when their version was new: later programs must read them, or refuse them with words.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;

use basalt_bdev::{BlockDevice, IoError};
use basalt_lvol::id::{Epoch, Generation, Revision};
use basalt_lvol::layout::{SLOT_OFFSETS, Superblock, SuperblockError};
use basalt_lvol::{DiskRefusal, ImportError, Pool, PoolHealth, VolumeStatus};
use basalt_reactor::Handle;
use support::{
    Bytes, CLUSTER, MIB, create, flip, named_all, page_of_volume, ram, run, snapshot, thin, volume, volume_id,
};

const PAGE: usize = 4096;
/// Sizes of the disks: a lead and a member.
const DISKS: [u64; 2] = [12 * MIB, 5 * MIB];

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Pages that are not zero, each behind its disk and offset.
async fn image_of(handle: &Handle, disks: &[Arc<dyn BlockDevice>]) -> Vec<u8> {
    let mut image = Vec::new();
    for (index, disk) in (0_u64..).zip(disks) {
        let bytes = Bytes::open(handle, &**disk);
        for offset in (0..disk.info().bytes()).step_by(PAGE) {
            let page = bytes.read(offset, PAGE).await.unwrap();
            if page.iter().any(|byte| *byte != 0) {
                image.extend(index.to_le_bytes());
                image.extend(offset.to_le_bytes());
                image.extend(page);
            }
        }
    }
    image
}

async fn disks_of(handle: &Handle, image: &[u8], sizes: [u64; 2]) -> [Arc<dyn BlockDevice>; 2] {
    let disks = sizes.map(ram);
    for record in image.chunks(16 + PAGE) {
        let disk = usize::try_from(u64::from_le_bytes(record[..8].try_into().unwrap())).unwrap();
        let offset = u64::from_le_bytes(record[8..16].try_into().unwrap());
        Bytes::open(handle, &*disks[disk]).write(offset, &record[16..]).await.unwrap();
    }
    disks
}

/// Makes the pool whose image is kept: thick and thin volumes, a deleted one, a snapshot, a clone, extents in pieces, and changes
/// that only the journal has. `BASALT_WRITE_GOLDEN=1` writes the file if it is missing; it is never written again.
fn write_missing() {
    let path = path("v1-pool.pages");
    if path.exists() || std::env::var_os("BASALT_WRITE_GOLDEN").is_none() {
        return;
    }
    let image = run(1, |handle| async move {
        let disks = DISKS.map(ram);
        let pool = create(&handle, &disks).await.unwrap();
        let first = pool.create_volume(volume(1, MIB)).await.unwrap();
        pool.create_volume(volume(2, MIB)).await.unwrap();
        let third = pool.create_volume(thin(3, 700 * MIB)).await.unwrap();
        Bytes::open(&handle, &*first).write(4096, &[1; PAGE]).await.unwrap();
        let bytes = Bytes::open(&handle, &*third);
        bytes.write(3 * 4096, &[3; PAGE]).await.unwrap();
        bytes.write(600 * MIB, &[4; PAGE]).await.unwrap();
        pool.delete_volume(volume_id(2), Generation(10)).await.unwrap();
        pool.snapshot(volume_id(3), snapshot(5)).await.unwrap();
        bytes.write(3 * 4096, &[5; PAGE]).await.unwrap();
        let clone = pool.clone_snapshot(volume_id(5), thin(6, 701 * MIB)).await.unwrap();
        pool.raise(volume_id(3), Generation(12), Epoch { incarnation: 2, counter: 1 }).await.unwrap();
        Bytes::open(&handle, &*clone).write(100 * 4096, &[6; PAGE]).await.unwrap();
        bytes.write(200 * 4096, &[7; PAGE]).await.unwrap();
        bytes.unmap(600 * MIB, MIB).await.unwrap();
        image_of(&handle, &disks).await
    });
    std::fs::write(path, image).unwrap();
}

#[test]
fn the_first_pool_of_version_1_is_still_read() {
    write_missing();
    let image = std::fs::read(path("v1-pool.pages")).unwrap();
    run(2, |handle| async move {
        let disks = disks_of(&handle, &image, DISKS).await;
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::Online));
        assert_eq!((pool.name(), pool.revision()), ("pool", Revision { incarnation: 1, index: 5 }));
        let ids: Vec<_> = pool.volumes().into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [1, 3, 5, 6].map(volume_id));
        type Content<'a> = &'a [(u64, u8)];
        let expected: [(u8, u64, Content<'_>); 4] = [
            (1, MIB, &[(4096, 1)]),
            (3, 700 * MIB, &[(3 * 4096, 5), (200 * 4096, 7), (600 * MIB, 0)]),
            (5, 700 * MIB, &[(3 * 4096, 3), (200 * 4096, 0), (600 * MIB, 4)]),
            (6, 701 * MIB, &[(3 * 4096, 3), (100 * 4096, 6), (600 * MIB, 4)]),
        ];
        for (number, size, content) in expected {
            let Some(VolumeStatus::Ready(record, device)) = pool.volume(volume_id(number)) else {
                panic!("volume {number} is there")
            };
            assert_eq!((&record.identity, record.size), (&volume(number, MIB).identity, size));
            assert_eq!(record.generation, Generation(if number == 3 { 12 } else { 10 }));
            assert_eq!(record.flags.thick, number == 1);
            assert_eq!(record.flags.snapshot, number == 5);
            let bytes = Bytes::open(&handle, &*device);
            for (offset, value) in content {
                assert_eq!(bytes.read(*offset, PAGE).await.unwrap(), [*value; PAGE], "{number} at {offset}");
            }
        }
        // It can be gone on with.
        pool.delete_volume(volume_id(5), Generation(10)).await.unwrap();
        pool.create_volume(volume(7, 2 * MIB)).await.unwrap();
    });
}

#[test]
fn an_old_pool_with_a_damaged_volume_gives_nothing_out() {
    let image = std::fs::read(path("v1-pool.pages")).unwrap();
    run(4, |handle| async move {
        let disks = disks_of(&handle, &image, DISKS).await;
        let page = page_of_volume(&handle, &*disks[0], volume_id(1)).await;
        flip(&handle, &*disks[0], page + 700).await;
        // It does not say what of its space is free for certain; nor does what is written from then on.
        for _ in 0..2 {
            let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
            assert!(matches!(pool.health(), PoolHealth::Online));
            assert_eq!(pool.free(), 0);
            let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(6)) else { panic!("served") };
            let written = Bytes::open(&handle, &*device).write(50 * MIB, &[1; PAGE]).await;
            assert_eq!(written, Err(IoError::CapacityExceeded));
            pool.rename(volume_id(6), "changed").await.unwrap();
        }
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        pool.delete_volume(volume_id(1), Generation(10)).await.unwrap();
        assert!(pool.free() > 4 * MIB);
        let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(6)) else { panic!("served") };
        Bytes::open(&handle, &*device).write(50 * MIB, &[1; PAGE]).await.unwrap();
    });
}

#[test]
fn a_pool_of_version_0_is_refused_with_words_and_left_alone() {
    let image = std::fs::read(path("v0-pool.pages")).unwrap();
    run(3, |handle| async move {
        let disks = disks_of(&handle, &image, [8 * MIB, 5 * MIB]).await;
        let before = image_of(&handle, &disks).await;
        let refused = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap_err();
        assert!(matches!(refused, ImportError::Disk(DiskRefusal::Unusable { .. })));
        assert!(refused.to_string().contains("format version 0, this program reads version 1"), "{refused}");
        assert!(create(&handle, &disks).await.is_err());
        assert!(image_of(&handle, &disks).await == before, "nothing was written");
    });
    let superblock = std::fs::read(path("v0-superblock.bin")).unwrap();
    assert_eq!(Superblock::decode(&superblock, 1), Err(SuperblockError::Version(0)));
}

#[test]
fn the_superblock_is_written_as_it_was() {
    let image = std::fs::read(path("v1-pool.pages")).unwrap();
    for record in image.chunks(16 + PAGE) {
        let offset = u64::from_le_bytes(record[8..16].try_into().unwrap());
        for (slot, place) in (0..).zip(SLOT_OFFSETS) {
            if offset == place {
                let superblock = Superblock::decode(&record[16..], slot).unwrap();
                assert_eq!(superblock.encode(slot), record[16..]);
            }
        }
    }
}
