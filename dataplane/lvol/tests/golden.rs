//! A pool as version 0 wrote it when it was new: later programs must read it, or refuse it with words.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::PathBuf;

use basalt_lvol::id::{Epoch, Generation, Revision};
use basalt_lvol::{Pool, PoolHealth, VolumeStatus};
use support::{Bytes, CLUSTER, MIB, create, named_all, ram, run, volume, volume_id};

const PAGE: usize = 4096;
/// Sizes of the disks: a lead and a member.
const DISKS: [u64; 2] = [8 * MIB, 5 * MIB];

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v0-pool.pages")
}

/// Makes the pool whose image is kept: pages that are not zero, each behind its disk and offset.
/// `BASALT_WRITE_GOLDEN=1` writes the file if it is missing; it is never written again.
fn write_missing() {
    if path().exists() || std::env::var_os("BASALT_WRITE_GOLDEN").is_none() {
        return;
    }
    let image = run(1, |handle| async move {
        let disks = DISKS.map(ram);
        let pool = create(&handle, &disks).await.unwrap();
        for number in 1..=3 {
            let device = pool.create_volume(volume(number, MIB)).await.unwrap();
            let bytes = Bytes::open(&handle, &*device);
            bytes.write(u64::from(number) * 4096, &[number; PAGE]).await.unwrap();
        }
        pool.delete_volume(volume_id(2), Generation(10)).await.unwrap();
        pool.create_volume(volume(4, 5 * MIB)).await.unwrap();
        pool.raise(volume_id(3), Generation(12), Epoch { incarnation: 2, counter: 1 }).await.unwrap();
        let mut image = Vec::new();
        for (index, disk) in (0u64..).zip(&disks) {
            let bytes = Bytes::open(&handle, &**disk);
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
    });
    std::fs::write(path(), image).unwrap();
}

#[test]
fn the_first_pool_is_still_read() {
    write_missing();
    let image = std::fs::read(path()).unwrap();
    run(2, |handle| async move {
        let disks = DISKS.map(ram);
        for record in image.chunks(16 + PAGE) {
            let disk = usize::try_from(u64::from_le_bytes(record[..8].try_into().unwrap())).unwrap();
            let offset = u64::from_le_bytes(record[8..16].try_into().unwrap());
            Bytes::open(&handle, &*disks[disk]).write(offset, &record[16..]).await.unwrap();
        }
        let pool = Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap();
        assert!(matches!(pool.health(), PoolHealth::Online));
        assert_eq!((pool.name(), pool.revision()), ("pool", Revision { incarnation: 1, index: 5 }));
        let ids: Vec<_> = pool.volumes().into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [1, 3, 4].map(volume_id));
        for number in [1, 3] {
            let Some(VolumeStatus::Ready(record, device)) = pool.volume(volume_id(number)) else {
                panic!("it is there")
            };
            assert_eq!(record.identity, volume(number, MIB).identity);
            assert_eq!(record.generation, Generation(if number == 3 { 12 } else { 10 }));
            let bytes = Bytes::open(&handle, &*device);
            let found = bytes.read(u64::from(number) * 4096, PAGE).await.unwrap();
            assert_eq!(found, [number; PAGE]);
        }
        // It can be gone on with.
        pool.delete_volume(volume_id(4), Generation(10)).await.unwrap();
        pool.create_volume(volume(5, 5 * MIB)).await.unwrap();
    });
}
