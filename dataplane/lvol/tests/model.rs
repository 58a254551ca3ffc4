//! A pool against a model that is a map of bytes: random operations, snapshots, clones, growth, trims and restarts, and after each restart
//! every byte of every volume.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockDevice, IoError};
use basalt_clock::{Random, SeededRandom};
use basalt_lvol::id::Generation;
use basalt_lvol::{LogicalVolume, NewPoolDisk, Pool, VolumeError, VolumeStatus, inspect};
use basalt_reactor::Handle;
use support::{
    Bytes, CLUSTER, MIB, create_of, named, named_all, ram, run, snapshot, thin, volume, volume_id,
};

const SECTOR: u64 = 512;
const SEEDS: u64 = 30;
const STEPS: u64 = 250;
const VOLUMES_MAX: usize = 12;

/// What one volume must hold, and what may be done with it.
#[derive(Clone)]
struct Expected {
    bytes: Vec<u8>,
    snapshot: bool,
    read_only: bool,
    /// The snapshot that it was cloned from, or the volume that it is a snapshot of.
    relative: Option<u8>,
}

struct Session {
    handle: Handle,
    random: SeededRandom,
    disks: Vec<Arc<dyn BlockDevice>>,
    pool: Pool,
    extent: u64,
    expected: BTreeMap<u8, Expected>,
    next: u8,
    refused: u32,
}

impl Session {
    async fn begin(handle: Handle, seed: u64) -> Self {
        let mut random = SeededRandom::new(seed);
        let disks = vec![ram(8 * MIB), ram(6 * MIB)];
        let extent = [64 << 10, 128 << 10, 256 << 10][usize::try_from(random.below(3)).unwrap()];
        let new = named_all(&disks).into_iter();
        let new = new.map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
        let pool = create_of(&handle, new, extent).await.unwrap();
        Self { handle, random, disks, pool, extent, expected: BTreeMap::new(), next: 0, refused: 0 }
    }

    fn device(&self, number: u8) -> Arc<LogicalVolume> {
        match self.pool.volume(volume_id(number)) {
            Some(VolumeStatus::Ready(_, device)) => device,
            other => panic!("volume {number}: {other:?}"),
        }
    }

    fn open(&self, number: u8) -> Bytes {
        Bytes::open(&self.handle, &*self.device(number))
    }

    /// One of the volumes that are as wanted.
    fn chosen(&mut self, wanted: impl Fn(&Expected) -> bool) -> Option<u8> {
        let fitting = self.expected.iter().filter(|(_, expected)| wanted(expected));
        let numbers: Vec<u8> = fitting.map(|(number, _)| *number).collect();
        let at = (!numbers.is_empty()).then(|| self.random.below(numbers.len() as u64))?;
        Some(numbers[usize::try_from(at).unwrap()])
    }

    /// A range of whole sectors of a volume; often at the borders of pieces and extents.
    fn range(&mut self, number: u8) -> std::ops::Range<usize> {
        let sectors = self.expected[&number].bytes.len() as u64 / SECTOR;
        let piece = self.extent / 16 / SECTOR;
        let first = match self.random.below(3) {
            0 => self.random.below(sectors),
            1 => self.random.below(sectors / piece + 1) * piece,
            _ => (self.random.below(sectors / (16 * piece) + 1) * 16 * piece)
                .saturating_sub(self.random.below(3)),
        };
        let first = first.min(sectors - 1);
        let longest = [1, 8, 16, 16 * piece, 40 * piece][usize::try_from(self.random.below(5)).unwrap()];
        let end = (first + 1 + self.random.below(longest)).min(sectors);
        usize::try_from(first * SECTOR).unwrap()..usize::try_from(end * SECTOR).unwrap()
    }

    async fn step(&mut self) {
        match self.random.below(100) {
            0..=34 => self.write().await,
            35..=49 => self.clear().await,
            50..=61 => self.read().await,
            62..=67 => self.create().await,
            68..=74 => self.take_snapshot().await,
            75..=79 => self.clone().await,
            80..=85 => self.delete().await,
            86..=89 => self.grow().await,
            90..=91 => self.toggle_read_only().await,
            92..=93 => self.compare_relatives().await,
            94 => self.add_disk().await,
            95..=96 => self.handle.sleep(Duration::from_millis(20)).await,
            _ => self.restart().await,
        }
    }

    async fn write(&mut self) {
        let Some(number) = self.chosen(|expected| !expected.snapshot) else { return };
        let range = self.range(number);
        let mut content = vec![0; range.len()];
        self.random.fill(&mut content);
        let bytes = self.open(number);
        let written = match self.random.chance(1, 4) {
            true => bytes.write_durably(range.start as u64, &content).await,
            false => bytes.write(range.start as u64, &content).await,
        };
        self.settle(number, range, &content, written).await;
    }

    async fn clear(&mut self) {
        let Some(number) = self.chosen(|expected| !expected.snapshot) else { return };
        let range = self.range(number);
        let bytes = self.open(number);
        let cleared = match self.random.chance(1, 2) {
            true => bytes.unmap(range.start as u64, range.len() as u64).await,
            false => bytes.write_zeroes(range.start as u64, range.len() as u64).await,
        };
        let zeroes = vec![0; range.len()];
        self.settle(number, range, &zeroes, cleared).await;
    }

    /// Takes over what a write did: all of it; nothing, if the volume is read-only; of one that met a full pool any sectors.
    async fn settle(
        &mut self,
        number: u8,
        range: std::ops::Range<usize>,
        new: &[u8],
        ended: Result<(), IoError>,
    ) {
        let found = match ended {
            Ok(()) => new.to_vec(),
            Err(IoError::CapacityExceeded) => {
                self.refused += 1;
                self.read_range(number, range.clone()).await
            }
            Err(error) => {
                assert_eq!(
                    (error, self.expected[&number].read_only),
                    (IoError::ReadOnly, true),
                    "volume {number}"
                );
                return;
            }
        };
        let expected = self.expected.get_mut(&number).unwrap();
        assert!(ended.is_err() || !expected.read_only, "volume {number} is read-only and was written");
        let old = &mut expected.bytes[range];
        let sector = usize::try_from(SECTOR).unwrap();
        for ((found, new), old) in found.chunks(sector).zip(new.chunks(sector)).zip(old.chunks_mut(sector)) {
            assert!(found == new || found == old, "volume {number}: a refused write left something else");
            old.copy_from_slice(found);
        }
    }

    /// Reads a range in requests that are not too long.
    async fn read_range(&self, number: u8, range: std::ops::Range<usize>) -> Vec<u8> {
        let bytes = self.open(number);
        let mut found = Vec::with_capacity(range.len());
        for offset in range.clone().step_by(1 << 19) {
            let len = (range.end - offset).min(1 << 19);
            found.extend(bytes.read(offset as u64, len).await.unwrap());
        }
        found
    }

    async fn read(&mut self) {
        let Some(number) = self.chosen(|_| true) else { return };
        let range = self.range(number);
        self.check(number, range).await;
    }

    async fn check(&self, number: u8, range: std::ops::Range<usize>) {
        let found = self.read_range(number, range.clone()).await;
        let expected = &self.expected[&number].bytes[range.clone()];
        if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
            panic!("volume {number} differs from the model at byte {} of {range:?}", range.start + at);
        }
    }

    async fn check_all(&self) {
        for (number, expected) in &self.expected {
            assert_eq!(self.device(*number).info().bytes(), expected.bytes.len() as u64, "volume {number}");
            self.check(*number, 0..expected.bytes.len()).await;
        }
        assert_eq!(self.pool.volumes().len(), self.expected.len(), "volumes that nobody made");
    }

    fn number(&mut self) -> Option<u8> {
        if self.expected.len() >= VOLUMES_MAX || self.next == 250 {
            return None;
        }
        self.next += 1;
        Some(self.next)
    }

    fn created(&mut self, number: u8, expected: Expected, outcome: Result<Arc<LogicalVolume>, VolumeError>) {
        match outcome {
            Ok(device) => {
                assert_eq!(device.info().bytes(), expected.bytes.len() as u64);
                self.expected.insert(number, expected);
            }
            Err(error) => {
                let no_room = matches!(error, VolumeError::Full { .. } | VolumeError::MetadataFull);
                assert!(no_room, "volume {number}: {error}");
                self.refused += 1;
            }
        }
    }

    async fn create(&mut self) {
        let Some(number) = self.number() else { return };
        let size = (1 + self.random.below(3 * MIB / self.extent)) * self.extent - self.random.below(2) * 4096;
        let new = if self.random.chance(2, 3) { thin(number, size) } else { volume(number, size) };
        let outcome = self.pool.create_volume(new).await;
        let bytes = vec![0; usize::try_from(size).unwrap()];
        let expected = Expected { bytes, snapshot: false, read_only: false, relative: None };
        self.created(number, expected, outcome);
    }

    async fn take_snapshot(&mut self) {
        let Some(origin) = self.chosen(|expected| !expected.snapshot) else { return };
        let Some(number) = self.number() else { return };
        let outcome = self.pool.snapshot(volume_id(origin), snapshot(number)).await;
        let bytes = self.expected[&origin].bytes.clone();
        let expected = Expected { bytes, snapshot: true, read_only: true, relative: Some(origin) };
        self.created(number, expected, outcome);
    }

    async fn clone(&mut self) {
        let Some(origin) = self.chosen(|expected| expected.snapshot) else { return };
        let Some(number) = self.number() else { return };
        let mut bytes = self.expected[&origin].bytes.clone();
        let size = bytes.len() as u64 + self.random.below(3) * 4096;
        bytes.resize(usize::try_from(size).unwrap(), 0);
        let outcome = self.pool.clone_snapshot(volume_id(origin), thin(number, size)).await;
        let expected = Expected { bytes, snapshot: false, read_only: false, relative: Some(origin) };
        self.created(number, expected, outcome);
    }

    async fn delete(&mut self) {
        let Some(number) = self.chosen(|_| true) else { return };
        self.pool.delete_volume(volume_id(number), Generation(u64::MAX)).await.unwrap();
        self.expected.remove(&number);
    }

    async fn grow(&mut self) {
        let Some(number) = self.chosen(|expected| !expected.snapshot) else { return };
        let size = self.expected[&number].bytes.len() as u64 + 4096 * (1 + self.random.below(50));
        match self.pool.resize(volume_id(number), size).await {
            Ok(()) => {
                let bytes = &mut self.expected.get_mut(&number).unwrap().bytes;
                bytes.resize(usize::try_from(size).unwrap(), 0);
            }
            Err(error) => {
                assert!(matches!(error, VolumeError::Full { .. } | VolumeError::MetadataFull), "{error}");
                self.refused += 1;
            }
        }
    }

    async fn toggle_read_only(&mut self) {
        let Some(number) = self.chosen(|expected| !expected.snapshot) else { return };
        let read_only = !self.expected[&number].read_only;
        self.pool.set_read_only(volume_id(number), read_only).await.unwrap();
        self.expected.get_mut(&number).unwrap().read_only = read_only;
    }

    /// What differs between a volume and its relative lies in the ranges that are listed.
    async fn compare_relatives(&mut self) {
        let Some(number) = self.chosen(|expected| expected.relative.is_some()) else { return };
        let Some(other) = self.expected[&number].relative else { return };
        let (Some(one), Some(two)) = (self.expected.get(&number), self.expected.get(&other)) else { return };
        let listed = self.pool.difference(volume_id(other), volume_id(number)).unwrap().ranges;
        for (at, (one, two)) in one.bytes.iter().zip(&two.bytes).enumerate() {
            let told = || listed.iter().any(|range| range.contains(&(at as u64)));
            assert!(one == two || told(), "byte {at} of {number} and {other} differs; told were {listed:?}");
        }
    }

    async fn add_disk(&mut self) {
        if self.disks.len() > 2 {
            return;
        }
        let disk = ram(6 * MIB);
        let new = NewPoolDisk { disk: named("disk-2", &disk), overwrite_foreign_data: false };
        self.pool.add_disk(new).await.unwrap();
        self.disks.push(disk);
    }

    /// Ends the pool, in order or as a killed process does, and imports it again.
    async fn restart(&mut self) {
        if self.random.chance(1, 2) {
            self.pool.export().await.unwrap();
        }
        // Another pool takes its place first: the old one does nothing any more once nobody has it.
        let scratch = [ram(12 * MIB)];
        let new = named_all(&scratch).into_iter();
        let new = new.map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
        self.pool = create_of(&self.handle, new, self.extent).await.unwrap();
        let found = inspect(&self.handle, named_all(&self.disks)).await.unwrap();
        assert!(found.findings.is_empty(), "{:?}", found.findings);
        self.pool = Pool::import(&self.handle, CLUSTER, named_all(&self.disks)).await.unwrap();
        self.check_all().await;
    }

    /// Everything goes, and all space comes back.
    async fn end(mut self) -> u32 {
        self.restart().await;
        let numbers: Vec<u8> = self.expected.keys().copied().collect();
        for number in numbers {
            self.pool.delete_volume(volume_id(number), Generation(u64::MAX)).await.unwrap();
        }
        self.pool.tidy();
        self.handle.sleep(Duration::from_millis(100)).await;
        assert_eq!(self.pool.free(), self.pool.capacity(), "space was lost");
        self.refused
    }
}

#[test]
fn a_pool_holds_what_a_map_of_bytes_holds() {
    let mut refused = 0;
    for seed in 0..SEEDS {
        let session = move || {
            run(seed, move |handle| async move {
                let mut session = Session::begin(handle, seed).await;
                for _ in 0..STEPS {
                    session.step().await;
                }
                session.end().await
            })
        };
        match std::panic::catch_unwind(session) {
            Ok(count) => refused += count,
            Err(_) => panic!("it was seed {seed}"),
        }
    }
    assert!(u64::from(refused) > SEEDS, "hardly any pool was ever full: {refused}");
}
