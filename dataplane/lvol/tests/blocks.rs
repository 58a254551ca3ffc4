//! A pool on devices whose blocks are smaller than those of the disks that it was made on, such as an image of them in a file.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_device_mem::ImageDevice;
use basalt_lvol::layout::SLOT_OFFSETS;
use basalt_lvol::{Pool, PoolHealth, Remedy, VolumeStatus, inspect, repair};
use basalt_reactor::Handle;
use support::{Bytes, CLUSTER, MIB, create, flip, named_all, run, snapshot, thin, volume, volume_id};

type Images = Vec<Arc<ImageDevice>>;

fn images(contents: Vec<Vec<u8>>, block: BlockSize) -> Images {
    let image = |content| Arc::new(ImageDevice::new(Arc::new(content), block, true).with_cache_lifetime(1));
    contents.into_iter().map(image).collect()
}

fn contents(images: &Images) -> Vec<Vec<u8>> {
    images.iter().map(|image| image.to_vec()).collect()
}

fn devices(images: &Images) -> Vec<Arc<dyn BlockDevice>> {
    images.iter().map(|image| Arc::clone(image) as Arc<dyn BlockDevice>).collect()
}

/// The disks of a pool on blocks of 4096 bytes, with changes that only the journal knows, each flushed.
async fn made(handle: &Handle) -> Vec<Vec<u8>> {
    let disks = images(vec![vec![0; 16 << 20], vec![0; 8 << 20]], BlockSize::B4096);
    let pool = create(handle, &devices(&disks)).await.unwrap();
    pool.create_volume(volume(1, MIB)).await.unwrap();
    let device = pool.create_volume(thin(2, 100 * MIB)).await.unwrap();
    let bytes = Bytes::open(handle, &*device);
    bytes.write(0, &[1; 4096]).await.unwrap();
    pool.snapshot(volume_id(2), snapshot(3)).await.unwrap();
    for extent in 0..12 {
        bytes.write(extent * MIB + 8192, &[2; 4096]).await.unwrap();
        bytes.flush().await.unwrap();
    }
    contents(&disks)
}

async fn import(handle: &Handle, disks: &Images) -> Pool {
    Pool::import(handle, CLUSTER, named_all(&devices(disks))).await.unwrap()
}

fn device(pool: &Pool, number: u8) -> Arc<basalt_lvol::LogicalVolume> {
    match pool.volume(volume_id(number)) {
        Some(VolumeStatus::Ready(_, device)) => device,
        other => panic!("volume {number} is {other:?}"),
    }
}

async fn has_all(handle: &Handle, pool: &Pool) {
    assert!(matches!(pool.health(), PoolHealth::Online), "{:?}", pool.health());
    assert_eq!(pool.block_size(), BlockSize::B4096);
    let volume = device(pool, 2);
    assert_eq!(volume.info().block_size(), BlockSize::B4096, "hosts see the block that they know");
    let bytes = Bytes::open(handle, &*volume);
    assert_eq!(bytes.read(0, 4096).await.unwrap(), [1; 4096]);
    for extent in 0..12 {
        let found = bytes.read(extent * MIB + 8192, 4096).await.unwrap();
        assert_eq!(found, [2; 4096], "extent {extent}");
    }
}

#[test]
fn it_is_inspected_and_repaired_as_on_its_own_disks() {
    run(1, |handle| async move {
        let made = made(&handle).await;
        let [own, smaller] = [BlockSize::B4096, BlockSize::B512].map(|block| images(made.clone(), block));
        let [expected, found] = [
            inspect(&handle, named_all(&devices(&own))).await.unwrap(),
            inspect(&handle, named_all(&devices(&smaller))).await.unwrap(),
        ];
        assert_eq!(expected.journal_records, 12);
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        flip(&handle, &*smaller[0], SLOT_OFFSETS[1] + 50).await;
        let after = repair(&handle, named_all(&devices(&smaller))).await.unwrap();
        assert!(after.findings.is_empty(), "{:?}", after.findings);
        has_all(&handle, &import(&handle, &smaller).await).await;
    });
}

#[test]
fn it_is_served_and_goes_back_to_its_own_disks() {
    run(2, |handle| async move {
        let smaller = images(made(&handle).await, BlockSize::B512);
        let pool = import(&handle, &smaller).await;
        has_all(&handle, &pool).await;
        let bytes = Bytes::open(&handle, &*device(&pool, 2));
        bytes.write(20 * MIB, &vec![3; 1 << 20]).await.unwrap();
        bytes.write(0, &[4; 4096]).await.unwrap();
        bytes.write_zeroes(MIB + 8192, 4096).await.unwrap();
        bytes.unmap(2 * MIB, MIB).await.unwrap();
        bytes.write(2 * MIB + 8192, &[5; 4096]).await.unwrap();
        bytes.flush().await.unwrap();
        assert_eq!(pool.scrub(u64::MAX).await.unwrap(), []);
        drop((bytes, pool));
        let own = images(contents(&smaller), BlockSize::B4096);
        let found = inspect(&handle, named_all(&devices(&own))).await.unwrap();
        assert!(found.findings.is_empty() && found.journal_records > 0, "{found:?}");
        let pool = import(&handle, &own).await;
        let bytes = Bytes::open(&handle, &*device(&pool, 2));
        for (offset, value) in
            [(0, 4), (MIB + 8192, 0), (2 * MIB + 8192, 5), (3 * MIB + 8192, 2), (21 * MIB - 4096, 3)]
        {
            assert_eq!(bytes.read(offset, 4096).await.unwrap(), [value; 4096], "at {offset}");
        }
    });
}

#[test]
fn a_torn_group_at_its_end_is_no_damage_there_either() {
    run(3, |handle| async move {
        let mut made = made(&handle).await;
        let found =
            inspect(&handle, named_all(&devices(&images(made.clone(), BlockSize::B4096)))).await.unwrap();
        let journal = usize::try_from(MIB + found.checkpoint % 2 * (512 << 10)).unwrap();
        // Each write has a group, and each flush one without records. Both copies of the last two, in a block each.
        let damage = |made: &mut [Vec<u8>], group: usize| {
            [0, 1].map(|copy| made[0][journal + group * 8192 + copy * 4096 + 20] ^= 1)
        };
        damage(&mut made, 22);
        damage(&mut made, 23);
        for block in [BlockSize::B4096, BlockSize::B512] {
            let disks = images(made.clone(), block);
            let found = inspect(&handle, named_all(&devices(&disks))).await.unwrap();
            assert_eq!((found.journal_records, found.findings.as_slice()), (11, [].as_slice()));
        }
        // And of one in the middle.
        damage(&mut made, 10);
        for block in [BlockSize::B4096, BlockSize::B512] {
            let disks = images(made.clone(), block);
            let found = inspect(&handle, named_all(&devices(&disks))).await.unwrap();
            assert_eq!((found.journal_records, found.findings[0].remedy), (5, Remedy::AcceptLoss));
        }
    });
}

#[test]
fn larger_blocks_are_refused_with_words_and_nothing_is_written() {
    run(1, |handle| async move {
        let own = images(vec![vec![0; 16 << 20]], BlockSize::B512);
        let pool = create(&handle, &devices(&own)).await.unwrap();
        pool.create_volume(volume(1, MIB)).await.unwrap();
        let before = contents(&own);
        let larger = images(before.clone(), BlockSize::B4096);
        let refused =
            Pool::import(&handle, CLUSTER, named_all(&devices(&larger))).await.unwrap_err().to_string();
        assert!(
            refused.contains("has blocks of 4096 bytes, and its pool was made with blocks of 512"),
            "{refused}"
        );
        repair(&handle, named_all(&devices(&larger))).await.unwrap_err();
        assert!(contents(&larger) == before);
    });
}
