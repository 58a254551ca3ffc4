//! Disks that say more, or are less, than this program can deal with: nothing is written to them, and why is said.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_device_mem::ImageDevice;
use basalt_lvol::layout::{SLOT_OFFSETS, checksum};
use basalt_lvol::{
    DiskContent, Pool, PoolDisk, PoolHealth, ReadOnlyReason, Remedy, VolumeStatus, examine, inspect, repair,
};
use basalt_reactor::Handle;
use support::{Bytes, CLUSTER, MIB, create, flip, named_all, run, thin, volume_id};

/// Byte of the superblock where a field begins.
const RO_COMPAT: usize = 32;
const ROLE: usize = 140;
const ENCRYPTION_KEY: usize = 96;

fn images(contents: Vec<Vec<u8>>) -> Vec<Arc<ImageDevice>> {
    let image = |content| Arc::new(ImageDevice::new(Arc::new(content), BlockSize::B512, true));
    contents.into_iter().map(image).collect()
}

fn contents(images: &[Arc<ImageDevice>]) -> Vec<Vec<u8>> {
    images.iter().map(|image| image.to_vec()).collect()
}

fn devices(images: &[Arc<ImageDevice>]) -> Vec<Arc<dyn BlockDevice>> {
    images.iter().map(|image| Arc::clone(image) as Arc<dyn BlockDevice>).collect()
}

/// The disks of a pool with a volume and two groups in the journal.
async fn made(handle: &Handle) -> Vec<Vec<u8>> {
    let disks = images(vec![vec![0; 16 << 20], vec![0; 8 << 20]]);
    let pool = create(handle, &devices(&disks)).await.unwrap();
    let device = pool.create_volume(thin(1, 20 * MIB)).await.unwrap();
    let bytes = Bytes::open(handle, &*device);
    for extent in 0..3_u64 {
        bytes.write(extent * MIB, &[7; 512]).await.unwrap();
        bytes.flush().await.unwrap();
    }
    contents(&disks)
}

/// Changes a field of a superblock and makes the checksum right again.
fn patch(disk: &mut [u8], slots: &[u64], offset: usize, bytes: &[u8]) {
    for slot in slots {
        let page = &mut disk[usize::try_from(*slot).unwrap()..][..4096];
        page[offset..offset + bytes.len()].copy_from_slice(bytes);
        let sum = checksum(&page[..504]);
        page[504..512].copy_from_slice(&sum.to_le_bytes());
    }
}

async fn nothing_is_written(handle: &Handle, made: Vec<Vec<u8>>, what: &str) {
    let disks = images(made.clone());
    let pool = Pool::import(handle, CLUSTER, named_all(&devices(&disks))).await.unwrap();
    let health = pool.health();
    assert!(matches!(health, PoolHealth::ReadOnly(ReadOnlyReason::UnknownFeature)), "{what}: {health:?}");
    if let Some(VolumeStatus::Ready(_, device)) = pool.volume(volume_id(1)) {
        let bytes = Bytes::open(handle, &*device);
        assert_eq!(bytes.read(MIB, 512).await.unwrap(), [7; 512]);
        bytes.write(0, &[8; 512]).await.unwrap_err();
    }
    drop(pool);
    let before = inspect(handle, named_all(&devices(&disks))).await.unwrap();
    let named = before.findings.iter().any(|finding| {
        finding.subject == "disk-1"
            && finding.explanation.contains("features that this program does not know")
    });
    assert!(named, "{what}: {:?}", before.findings);
    assert!(
        before.findings.iter().all(|finding| finding.remedy == Remedy::ByHand),
        "{what}: {:?}",
        before.findings
    );
    let after = repair(handle, named_all(&devices(&disks))).await.unwrap();
    assert_eq!(after.findings, before.findings, "{what}");
    assert!(contents(&disks) == made, "{what}: something was written");
}

#[test]
fn features_of_a_member_that_are_not_known_keep_the_pool_from_being_written() {
    run(1, |handle| async move {
        let made = made(&handle).await;
        let mut both = made.clone();
        patch(&mut both[1], &SLOT_OFFSETS, RO_COMPAT, &[1]);
        nothing_is_written(&handle, both.clone(), "a member").await;
        let mut one = made.clone();
        patch(&mut one[1], &SLOT_OFFSETS[..1], RO_COMPAT, &[1]);
        nothing_is_written(&handle, one, "one slot of a member").await;
        let mut in_creation = both.clone();
        patch(&mut in_creation[1], &SLOT_OFFSETS, ROLE, &[3]);
        nothing_is_written(&handle, in_creation, "a member in creation").await;
        // Something that a repair would write anew otherwise, or accept as lost.
        let slot = images(both.clone());
        flip(&handle, &*slot[0], SLOT_OFFSETS[1] + 50).await;
        nothing_is_written(&handle, contents(&slot), "with a damaged slot").await;
        let mut journal = both;
        for copy in [4, 5] {
            journal[0][(1 << 20) + copy * 512 + 70] ^= 1;
        }
        nothing_is_written(&handle, journal, "with a damaged journal").await;
    });
}

/// What whoever wants to use, look at or mend these disks is told.
async fn refusals(handle: &Handle, disks: &[PoolDisk]) -> [String; 3] {
    [
        Pool::import(handle, CLUSTER, disks.to_vec()).await.map(drop).unwrap_err(),
        inspect(handle, disks.to_vec()).await.map(drop).unwrap_err(),
        repair(handle, disks.to_vec()).await.map(drop).unwrap_err(),
    ]
    .map(|refused| refused.to_string())
}

#[test]
fn an_encrypted_disk_is_refused_with_words_and_left_alone() {
    run(2, |handle| async move {
        let made = made(&handle).await;
        for (disk, slots) in [(0, &SLOT_OFFSETS[..]), (1, &SLOT_OFFSETS[..]), (0, &SLOT_OFFSETS[1..])] {
            let mut encrypted = made.clone();
            patch(&mut encrypted[disk], slots, ENCRYPTION_KEY + 31, &[1]);
            let disks = images(encrypted.clone());
            let named = named_all(&devices(&disks));
            for refused in refusals(&handle, &named).await {
                assert_eq!(
                    refused,
                    format!(
                        "disk disk-{disk}: the disk is encrypted, which this program cannot read; use a newer one"
                    )
                );
            }
            assert!(matches!(examine(&handle, &named[disk]).await, Ok(DiskContent::Unusable(_))));
            assert!(contents(&disks) == encrypted, "nothing was written");
        }
    });
}

#[test]
fn a_disk_that_was_cut_says_how_long_it_is_and_must_be() {
    run(3, |handle| async move {
        let made = made(&handle).await;
        for (disk, whole) in [(0, 16 << 20), (1, 8 << 20)] {
            for bytes in [4096, 508 << 10, 512 << 10, 516 << 10, 1 << 20, whole - 4096] {
                let mut cut = made.clone();
                cut[disk].truncate(bytes);
                let disks = images(cut.clone());
                for refused in refusals(&handle, &named_all(&devices(&disks))).await {
                    let begin = format!(
                        "disk disk-{disk} has {bytes} bytes, less than the {whole} that its pool was made with"
                    );
                    assert!(refused.starts_with(&begin), "{refused}");
                }
                assert!(contents(&disks) == cut, "nothing was written");
            }
        }
    });
}
