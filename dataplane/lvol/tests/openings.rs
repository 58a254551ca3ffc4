//! Copies of disks from before a later opening of their pool.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use basalt_bdev::BlockDevice;
use basalt_lvol::id::Generation;
use basalt_lvol::layout::{DamageReason, DiskLayout, EXTENT_BYTES};
use basalt_lvol::{
    DiskRefusal, ImportError, LogicalVolume, NewPoolDisk, Pool, PoolDisk, VolumeStatus, inspect,
};
use basalt_reactor::Handle;
use support::{Bytes, CLUSTER, MIB, create, create_as, named, named_all, ram, run, thin, volume_id};

/// A disk with the same content.
async fn copied(handle: &Handle, disk: &Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
    let copy = ram(disk.info().bytes());
    let (from, to) = (Bytes::open(handle, &**disk), Bytes::open(handle, &*copy));
    for at in (0..disk.info().bytes()).step_by(64 << 10) {
        to.write(at, &from.read(at, 64 << 10).await.unwrap()).await.unwrap();
    }
    copy
}

async fn import(handle: &Handle, disks: &[Arc<dyn BlockDevice>]) -> Result<Pool, ImportError> {
    Pool::import(handle, CLUSTER, named_all(disks)).await
}

async fn reopen(handle: &Handle, pool: Pool, disks: &[Arc<dyn BlockDevice>]) -> Pool {
    pool.export().await.unwrap();
    drop(pool);
    import(handle, disks).await.unwrap()
}

fn device(pool: &Pool, number: u8) -> Arc<LogicalVolume> {
    match pool.volume(volume_id(number)) {
        Some(VolumeStatus::Ready(_, device)) => device,
        other => panic!("volume {number}: {other:?}"),
    }
}

/// Which disk is said to be old.
fn outdated(imported: Result<Pool, ImportError>) -> String {
    match imported {
        Err(ImportError::Disk(DiskRefusal::Outdated { disk, .. })) => disk,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_old_copy_of_a_disk_never_takes_the_place_of_the_disk() {
    try_old_copies();
}

#[cfg(basalt_planted)]
#[test]
fn every_planted_bug_is_found() {
    basalt_clock::fault::plant(Some("lvol-old-copy-believed"));
    let tried = std::panic::catch_unwind(try_old_copies);
    basalt_clock::fault::plant(None);
    assert!(tried.is_err(), "an old copy was believed, and nothing was found");
}

fn try_old_copies() {
    run(1, |handle| async move {
        let mut disks = vec![ram(16 * MIB), ram(16 * MIB)];
        let pool = create(&handle, &disks).await.unwrap();
        pool.create_volume(thin(1, 40 * MIB)).await.unwrap();
        pool.create_volume(thin(2, 40 * MIB)).await.unwrap();
        for extent in 0..20 {
            Bytes::open(&handle, &*device(&pool, 1)).write(extent * MIB, &[1; 4096]).await.unwrap();
        }
        let pool = reopen(&handle, pool, &disks).await;
        let old = [copied(&handle, &disks[0]).await, copied(&handle, &disks[1]).await];
        let pool = reopen(&handle, pool, &disks).await;
        // What one volume has given back is another one's now.
        Bytes::open(&handle, &*device(&pool, 1)).unmap(0, 40 * MIB).await.unwrap();
        let bytes = Bytes::open(&handle, &*device(&pool, 2));
        for extent in 0..20 {
            bytes.write(extent * MIB, &[2; 4096]).await.unwrap();
        }
        bytes.flush().await.unwrap();
        pool.export().await.unwrap();
        drop((bytes, pool));
        assert_eq!(outdated(import(&handle, &[Arc::clone(&old[0]), Arc::clone(&disks[1])]).await), "disk-0");
        // An old member is as if it were missing.
        let exchanged = [Arc::clone(&disks[0]), Arc::clone(&old[1])];
        let looked = inspect(&handle, named_all(&exchanged)).await.unwrap();
        assert!(
            looked
                .findings
                .iter()
                .any(|finding| finding.explanation.starts_with("disk disk-1 is an old copy"))
        );
        let pool = import(&handle, &exchanged).await.unwrap();
        assert_eq!(pool.disks()[1].name, None);
        for number in [1, 2] {
            let volume = pool.volume(volume_id(number));
            let isolated = matches!(volume, Some(VolumeStatus::Isolated(_, DamageReason::DiskMissing(_))));
            // One has nothing on it any more.
            assert_eq!(isolated, number == 2, "{volume:?}");
        }
        drop(pool);
        // Nothing was written to it, and the right disks are taken again, whatever stands beside them.
        let beside = vec![
            named("disk-0", &disks[0]),
            PoolDisk { name: "copy".into(), device: Arc::clone(&old[1]) },
            named("disk-1", &disks[1]),
        ];
        let pool = Pool::import(&handle, CLUSTER, beside).await.unwrap();
        let names: Vec<_> = pool.disks().into_iter().map(|disk| disk.name.unwrap()).collect();
        assert_eq!(names, ["disk-0", "disk-1"]);
        assert_eq!(Bytes::open(&handle, &*device(&pool, 2)).read(19 * MIB, 4096).await.unwrap(), [2; 4096]);
        assert_eq!(Bytes::open(&handle, &*device(&pool, 1)).read(19 * MIB, 4096).await.unwrap(), [0; 4096]);
        // A copy of the same opening cannot be told from the disk: a person must say which.
        pool.export().await.unwrap();
        drop(pool);
        disks.push(copied(&handle, &disks[1]).await);
        let refused = import(&handle, &disks).await.unwrap_err();
        assert!(matches!(refused, ImportError::Disk(DiskRefusal::Twice { .. })), "{refused}");
    });
}

#[test]
fn a_disk_that_was_away_is_no_old_copy() {
    run(2, |handle| async move {
        let disks = [ram(16 * MIB), ram(16 * MIB)];
        let lead = NewPoolDisk { disk: named("disk-0", &disks[0]), overwrite_foreign_data: false };
        let pool = create_as(&handle, vec![lead], EXTENT_BYTES, DiskLayout::Striped).await.unwrap();
        pool.create_volume(thin(1, 40 * MIB)).await.unwrap();
        let new = NewPoolDisk { disk: named("disk-1", &disks[1]), overwrite_foreign_data: false };
        pool.add_disk(new).await.unwrap();
        for extent in 0..8 {
            Bytes::open(&handle, &*device(&pool, 1)).write(extent * MIB, &[1; 4096]).await.unwrap();
        }
        let mut pool = reopen(&handle, pool, &disks).await;
        for round in 0..3 {
            pool = reopen(&handle, pool, &disks[..1]).await;
            assert!(matches!(pool.volume(volume_id(1)), Some(VolumeStatus::Isolated(..))));
            let other = pool.create_volume(thin(2 + round, 8 * MIB)).await.unwrap();
            Bytes::open(&handle, &*other).write_durably(0, &[2; 4096]).await.unwrap();
        }
        pool = reopen(&handle, pool, &disks).await;
        assert_eq!(Bytes::open(&handle, &*device(&pool, 1)).read(7 * MIB, 4096).await.unwrap(), [1; 4096]);
        pool.delete_volume(volume_id(2), Generation(99)).await.unwrap();
        // A copy from before it was away is as good: nothing was written to it meanwhile, and from now on it is told apart.
        let copy = copied(&handle, &disks[1]).await;
        let pool = reopen(&handle, pool, &disks).await;
        pool.export().await.unwrap();
        drop(pool);
        let pool = import(&handle, &[Arc::clone(&disks[0]), copy]).await.unwrap();
        assert!(matches!(pool.volume(volume_id(1)), Some(VolumeStatus::Isolated(..))));
        drop(pool);
        import(&handle, &disks).await.unwrap();
    });
}
