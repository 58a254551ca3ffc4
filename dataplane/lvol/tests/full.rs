//! Pools without free space: a write that needs some waits for what is about to come back, and is refused when nothing is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockDevice, IoError};
use basalt_lvol::id::Generation;
use basalt_lvol::{LogicalVolume, Pool};
use basalt_reactor::Handle;
use support::late::LateDevice;
use support::{Bytes, MIB, create, ram, run, snapshot, thin, volume_id};

/// Extents of [`full`] that may be taken: 0.95 of 40.
const EXTENTS: u64 = 38;

/// A pool of which a volume has all that there is, and another one that has nothing. Reads of the disk take that long.
async fn full(handle: &Handle, read: Duration) -> (Pool, [Arc<LogicalVolume>; 2]) {
    let disk: Arc<dyn BlockDevice> =
        Arc::new(LateDevice::new(ram(45 * MIB), read, Duration::from_micros(10)));
    let pool = create(handle, &[disk]).await.unwrap();
    let owner = pool.create_volume(thin(1, 100 * MIB)).await.unwrap();
    let other = pool.create_volume(thin(2, 100 * MIB)).await.unwrap();
    let bytes = Bytes::open(handle, &*owner);
    for extent in 0..EXTENTS {
        bytes.write(extent * MIB, &[1; 512]).await.unwrap();
    }
    (pool, [owner, other])
}

/// Begins a read on a queue of its own; it is with the disk when this has ended.
async fn begin_read(
    handle: &Handle,
    volume: &Arc<LogicalVolume>,
    offset: u64,
) -> impl Future<Output = Result<Vec<u8>, IoError>> {
    let reader = Bytes::open(handle, &**volume);
    let reading = handle.spawn(async move { reader.read(offset, 512).await });
    handle.sleep(Duration::from_micros(100)).await;
    reading
}

/// A first write, and how long it took.
async fn first_write(handle: &Handle, volume: &Arc<LogicalVolume>) -> (Result<(), IoError>, Duration) {
    let begun = handle.now();
    let written = Bytes::open(handle, &**volume).write(0, &[2; 512]).await;
    (written, handle.now() - begun)
}

#[test]
fn a_write_waits_for_freed_space_that_a_slow_request_holds_up() {
    run(1, |handle| async move {
        let (pool, [owner, other]) = full(&handle, Duration::from_millis(300)).await;
        let reading = begin_read(&handle, &owner, 0).await;
        Bytes::open(&handle, &*owner).unmap(0, EXTENTS * MIB).await.unwrap();
        let (written, took) = first_write(&handle, &other).await;
        assert_eq!(written, Ok(()));
        assert!((290..350).contains(&took.as_millis()), "{took:?}");
        // What was being read was not given to anybody before.
        assert_eq!(reading.await.unwrap(), [1; 512]);
        assert_eq!(pool.free(), pool.capacity() - MIB);
    });
}

#[test]
fn a_write_waits_for_a_deletion_that_is_under_way() {
    run(2, |handle| async move {
        let (pool, [owner, other]) = full(&handle, Duration::from_millis(300)).await;
        pool.snapshot(volume_id(1), snapshot(3)).await.unwrap();
        let reading = begin_read(&handle, &owner, MIB).await;
        let deleting = handle.spawn({
            let pool = pool.clone();
            async move { pool.delete_volume(volume_id(3), Generation(10)).await }
        });
        handle.sleep(Duration::from_micros(100)).await;
        // The owner's extents are shared as long as the snapshot is there, and all are taken.
        let (overwritten, took) = first_write(&handle, &owner).await;
        assert_eq!(overwritten, Ok(()));
        assert!((290..350).contains(&took.as_millis()), "{took:?}");
        assert_eq!(reading.await.unwrap(), [1; 512]);
        deleting.await.unwrap();
        assert_eq!(first_write(&handle, &other).await.0, Err(IoError::CapacityExceeded));
    });
}

#[test]
fn a_write_is_refused_at_once_when_nothing_can_come() {
    run(3, |handle| async move {
        let (_pool, [owner, other]) = full(&handle, Duration::from_secs(3)).await;
        let reading = begin_read(&handle, &owner, 0).await;
        let (written, took) = first_write(&handle, &other).await;
        assert_eq!(written, Err(IoError::CapacityExceeded));
        assert!(took < Duration::from_millis(10), "{took:?}");
        assert_eq!(reading.await.unwrap(), [1; 512]);
    });
}

#[test]
fn more_writes_than_come_by_space_are_told_so() {
    run(4, |handle| async move {
        let (_pool, [owner, other]) = full(&handle, Duration::from_millis(50)).await;
        let reading = begin_read(&handle, &owner, 0).await;
        Bytes::open(&handle, &*owner).unmap(0, 5 * MIB).await.unwrap();
        let writes: Vec<_> = (0..9)
            .map(|extent| {
                let bytes = Bytes::open(&handle, &*other);
                handle.spawn(async move { bytes.write(extent * MIB, &[2; 512]).await })
            })
            .collect();
        let mut written = Vec::new();
        for write in writes {
            written.push(write.await);
        }
        assert_eq!(written.iter().filter(|result| result.is_ok()).count(), 5, "{written:?}");
        assert_eq!(written[..5], [Ok(()); 5], "in the order in which they came");
        assert_eq!(written[5..], [Err(IoError::CapacityExceeded); 4]);
        assert_eq!(reading.await.unwrap(), [1; 512]);
    });
}

#[test]
fn a_request_that_does_not_end_holds_writes_up_for_a_while_only() {
    run(5, |handle| async move {
        let (_pool, [owner, other]) = full(&handle, Duration::from_secs(60)).await;
        let reading = begin_read(&handle, &owner, 0).await;
        Bytes::open(&handle, &*owner).unmap(0, EXTENTS * MIB).await.unwrap();
        let (written, took) = first_write(&handle, &other).await;
        assert_eq!(written, Err(IoError::CapacityExceeded));
        assert!((10_000..10_010).contains(&took.as_millis()), "{took:?}");
        drop(reading);
    });
}
