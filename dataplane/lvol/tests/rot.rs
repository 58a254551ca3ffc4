//! Rot: a bit that has changed in any structure of the metadata is noticed, and what it damages stays alone.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_clock::{Random, SeededRandom};
use basalt_device_mem::ImageDevice;
use basalt_lvol::id::VolumeId;
use basalt_lvol::layout::SLOT_OFFSETS;
use basalt_lvol::{ImportError, NewPoolDisk, Pool, PoolHealth, ReadOnlyReason, VolumeStatus};
use basalt_reactor::Handle;
use support::{Bytes, CLUSTER, MIB, create_of, named_all, run, snapshot, thin, volume, volume_id};

const PAGE: usize = 4096;
const JOURNAL: std::ops::Range<usize> = 1 << 20..2 << 20;

/// Content of each volume.
type Contents = BTreeMap<VolumeId, Vec<u8>>;

fn device(image: Vec<u8>) -> Arc<ImageDevice> {
    Arc::new(ImageDevice::new(Arc::new(image), BlockSize::B512, true))
}

async fn read_all(handle: &Handle, device: &dyn BlockDevice) -> Vec<u8> {
    let bytes = Bytes::open(handle, device);
    let size = usize::try_from(device.info().bytes().min(3 * MIB)).unwrap();
    let mut content = Vec::new();
    while content.len() < size {
        let count = (size - content.len()).min(1 << 20);
        content.extend(bytes.read(content.len() as u64, count).await.unwrap());
    }
    content
}

/// A pool with every kind of page and groups in its journal, and what its volumes hold.
fn sample() -> (Vec<u8>, Contents) {
    run(1, |handle| async move {
        let disk = device(vec![0; 24 << 20]);
        let disks: [Arc<dyn BlockDevice>; 1] = [Arc::<ImageDevice>::clone(&disk)];
        let named = named_all(&disks).into_iter();
        let named = named.map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
        let pool = create_of(&handle, named, 64 << 10).await.unwrap();
        let thick = pool.create_volume(volume(1, 128 << 10)).await.unwrap();
        Bytes::open(&handle, &*thick).write(4096, &[1; 4096]).await.unwrap();
        // Two leaves and a node above them.
        let other = pool.create_volume(thin(2, 40 * MIB)).await.unwrap();
        let bytes = Bytes::open(&handle, &*other);
        for extent in 0..28_u64 {
            bytes.write(extent << 16, &[2; 65536]).await.unwrap();
        }
        bytes.write(39 * MIB, &[3; 4096]).await.unwrap();
        // Pieces of several extents, so many that a leaf needs overflow.
        for round in 0..8_u8 {
            pool.snapshot(volume_id(2), snapshot(10 + round)).await.unwrap();
            for extent in 0..28_u64 {
                let piece = u64::from(round) * 4096;
                bytes.write((extent << 16) + piece, &[40 + round; 4096]).await.unwrap();
            }
            pool.rename(volume_id(2), &format!("round {round}")).await.unwrap();
            if round > 0 {
                pool.delete_volume(volume_id(10 + round), basalt_lvol::id::Generation(10)).await.unwrap();
            }
        }
        // And what only the journal has: several groups.
        for extent in 0..5_u64 {
            bytes.write((extent << 16) + 60_000 / 512 * 512, &[9; 512]).await.unwrap();
            bytes.unmap((extent + 10) << 16, 65536).await.unwrap();
            bytes.flush().await.unwrap();
        }
        let mut contents = Contents::new();
        for (id, status) in pool.volumes() {
            let VolumeStatus::Ready(_, device) = status else { panic!("in service") };
            contents.insert(id, read_all(&handle, &*device).await);
        }
        (disk.to_vec(), contents)
    })
}

/// What importing a damaged image comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Effect {
    /// Nothing was noticed, and nothing is wrong.
    None,
    /// A copy was made good.
    Healed,
    /// These volumes are isolated.
    Isolated(Vec<VolumeId>),
    ReadOnly,
    Refused,
}

/// Imports a damaged image; volumes that are served must hold what they held.
fn effect(image: Vec<u8>, contents: &Contents) -> Effect {
    let contents = contents.clone();
    run(2, move |handle| async move {
        let sequence = |image: &[u8]| {
            SLOT_OFFSETS.map(|at| {
                let at = usize::try_from(at).unwrap();
                u64::from_le_bytes(image[at + 128..at + 136].try_into().unwrap())
            })
        };
        let before = sequence(&image);
        let disk = device(image);
        let disks: [Arc<dyn BlockDevice>; 1] = [Arc::<ImageDevice>::clone(&disk)];
        let pool = match Pool::import(&handle, CLUSTER, named_all(&disks)).await {
            Ok(pool) => pool,
            Err(ImportError::Damaged(_) | ImportError::Disk(_)) => return Effect::Refused,
            Err(error) => panic!("{error}"),
        };
        if let PoolHealth::ReadOnly(reason) = pool.health() {
            assert!(matches!(reason, ReadOnlyReason::JournalDamaged), "{reason}");
            return Effect::ReadOnly;
        }
        let mut isolated = Vec::new();
        for (id, expected) in &contents {
            match pool.volume(*id) {
                Some(VolumeStatus::Ready(_, device)) => {
                    assert!(read_all(&handle, &*device).await == *expected, "volume {id} lies");
                }
                Some(VolumeStatus::Isolated(..)) => isolated.push(*id),
                other => panic!("volume {id}: {other:?}"),
            }
        }
        assert_eq!(pool.volumes().len(), contents.len());
        if !isolated.is_empty() {
            return Effect::Isolated(isolated);
        }
        if sequence(&disk.to_vec()) == before { Effect::None } else { Effect::Healed }
    })
}

fn flipped(image: &[u8], bit: usize) -> Vec<u8> {
    let mut image = image.to_vec();
    image[bit / 8] ^= 1 << (bit % 8);
    image
}

/// A pool without groups in its journal: an import that finds nothing wrong writes nothing.
fn quiet() -> (Vec<u8>, Contents) {
    let (image, contents) = sample();
    let image = run(3, move |handle| async move {
        let disk = device(image);
        let disks: [Arc<dyn BlockDevice>; 1] = [Arc::<ImageDevice>::clone(&disk)];
        drop(Pool::import(&handle, CLUSTER, named_all(&disks)).await.unwrap());
        disk.to_vec()
    });
    (image, contents)
}

#[test]
fn every_page_in_use_is_guarded_in_every_byte() {
    let (image, contents) = quiet();
    assert_eq!(effect(image.clone(), &contents), Effect::None);
    let mut random = SeededRandom::new(5);
    let mut kinds: BTreeMap<u16, usize> = BTreeMap::new();
    for page in (2 << 20..image.len()).step_by(PAGE) {
        if !image[page..].starts_with(b"BSLTPAGE") {
            continue;
        }
        let first = effect(flipped(&image, 8 * (page + 100)), &contents);
        let kind = u16::from_le_bytes(image[page + 8..page + 10].try_into().unwrap());
        if first != Effect::None {
            *kinds.entry(kind).or_default() += 1;
        }
        assert!(!matches!(first, Effect::ReadOnly | Effect::Refused), "{kind}: {first:?}");
        // The header, the fields behind it, and bytes at random.
        let more: Vec<usize> = (0..10).map(|_| usize::try_from(random.below(4096)).unwrap()).collect();
        for byte in (0..128).step_by(11).chain(more) {
            let bit = 8 * (page + byte) + usize::try_from(random.below(8)).unwrap();
            let found = effect(flipped(&image, bit), &contents);
            assert_eq!(found, first, "kind {kind}, byte {byte} of the page at {page}");
        }
    }
    // Two roots, two pages of the directory, three volumes, and nodes, leaves and overflow of their maps.
    assert_eq!((kinds[&1], kinds[&2], kinds[&3]), (2, 2, 3), "{kinds:?}");
    assert!(kinds[&4] >= 1 && kinds[&5] >= 4 && kinds[&6] >= 1, "{kinds:?}");
}

#[test]
fn a_superblock_slot_is_made_good_by_the_other_one() {
    let (image, contents) = quiet();
    for slot in SLOT_OFFSETS {
        for byte in 0..512 {
            let bit = 8 * (usize::try_from(slot).unwrap() + byte) + byte % 8;
            let found = effect(flipped(&image, bit), &contents);
            assert_eq!(found, Effect::None, "byte {byte} of the slot at {slot}");
        }
    }
    let both = SLOT_OFFSETS
        .iter()
        .fold(image, |image, slot| flipped(&image, 8 * usize::try_from(*slot).unwrap() + 999));
    assert_eq!(effect(both, &contents), Effect::Refused);
}

#[test]
fn a_group_of_the_journal_is_made_good_by_its_copy_or_stops_the_pool() {
    let (image, contents) = sample();
    let mut copies = Vec::new();
    for at in JOURNAL.step_by(512) {
        if image[at..].starts_with(b"BSLTJRNL") {
            let field =
                |offset: usize| u64::from_le_bytes(image[at + offset..at + offset + 8].try_into().unwrap());
            copies.push((field(8), field(16), at));
        }
    }
    // Those of the last checkpoint, each twice.
    let last = copies.iter().map(|(checkpoint, ..)| *checkpoint).max().unwrap();
    copies.retain(|(checkpoint, ..)| *checkpoint == last);
    copies.sort_unstable();
    assert!(copies.len() >= 10 && copies.len().is_multiple_of(2), "{copies:?}");
    for pair in copies.chunks(2) {
        let [(_, sequence, first), (_, _, second)] = pair else { panic!("in pairs") };
        for byte in (0..512).step_by(7) {
            for at in [first, second] {
                let found = effect(flipped(&image, 8 * (at + byte) + byte % 8), &contents);
                assert_eq!(found, Effect::Healed, "group {sequence}, byte {byte}");
            }
        }
        let both = flipped(&flipped(&image, 8 * (first + 70)), 8 * (second + 80));
        if pair[0] != copies[copies.len() - 2] {
            assert_eq!(effect(both, &contents), Effect::ReadOnly, "group {sequence}");
        }
    }
}

#[test]
fn many_changed_bits_never_make_it_panic_or_lie_about_what_is_intact() {
    let (image, _) = sample();
    let mut random = SeededRandom::new(77);
    for _ in 0..150 {
        let mut damaged = image.clone();
        for _ in 0..1 + random.below(40) {
            let byte = usize::try_from(random.below(5 << 20)).unwrap();
            damaged[byte] ^= 1 << random.below(8);
            // And some where there certainly is something.
            let pages: Vec<usize> =
                (2 << 20..5 << 20).step_by(PAGE).filter(|at| image[*at..].starts_with(b"BSLTPAGE")).collect();
            let page = pages[usize::try_from(random.below(pages.len() as u64)).unwrap()];
            damaged[page + usize::try_from(random.below(4096)).unwrap()] ^= 1;
        }
        run(random.next_u64(), move |handle| async move {
            let disks: [Arc<dyn BlockDevice>; 1] = [device(damaged)];
            if let Ok(pool) = Pool::import(&handle, CLUSTER, named_all(&disks)).await {
                for (_, status) in pool.volumes() {
                    if let VolumeStatus::Ready(_, device) = status {
                        drop(read_all(&handle, &*device).await);
                    }
                }
            }
        });
    }
}
