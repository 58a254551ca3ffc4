//! Workloads that a seed determines, on disks that record.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_clock::{Random, SeededRandom};
use basalt_device_mem::{DelayDevice, Delays, ImageDevice, Recording, RecordingDevice};
use basalt_lvol::id::{Epoch, Generation, VolumeId};
use basalt_lvol::{LogicalVolume, NewPoolDisk, Pool, VolumeStatus};
use basalt_reactor::Handle;

use crate::oracle::{Histories, History, Moment, SECTOR, Write, reached};
use crate::support::{Bytes, CLUSTER, create_of, named_all, run, snapshot, thin, volume, volume_id};

const STEPS: u64 = 22;

/// What a workload begins with.
pub(crate) struct Start {
    pub(crate) seed: u64,
    pub(crate) images: Vec<Vec<u8>>,
    /// The disks claim to have a write cache.
    pub(crate) volatile: bool,
    /// And to know that this is its life, which only a power failure ends.
    pub(crate) life: Option<u64>,
    /// What volumes hold at the start may be lost again until the pool was imported: it was in write caches only.
    pub(crate) in_caches: bool,
    /// Unit of allocation of the pool: small, so that a little data touches many extents, and not always so small that a piece has
    /// no holes.
    pub(crate) extent: u64,
    /// How many users work at once; none: only the pool is created.
    pub(crate) users: u64,
    /// What volumes hold at the start; the pool exists if there are any.
    pub(crate) existing: Histories,
    pub(crate) steps: u64,
}

impl Start {
    pub(crate) fn new(seed: u64, disks: &[u64], users: u64) -> Self {
        let images = disks.iter().map(|bytes| vec![0; usize::try_from(*bytes).unwrap()]).collect();
        let volatile = !seed.is_multiple_of(4);
        let life = (seed % 5 < 3).then_some(1);
        let extent = if (seed / 2).is_multiple_of(2) { 64 << 10 } else { 256 << 10 };
        Self {
            seed,
            images,
            volatile,
            life,
            in_caches: false,
            extent,
            users,
            existing: Histories::new(),
            steps: STEPS,
        }
    }
}

/// A disk as it is in one life of its write cache.
pub(crate) fn in_life(disk: ImageDevice, life: Option<u64>) -> ImageDevice {
    match life {
        Some(life) => disk.with_cache_lifetime(life),
        None => disk,
    }
}

/// A workload that was run.
pub(crate) struct Run {
    pub(crate) start: Start,
    pub(crate) recordings: Vec<Arc<Recording>>,
    pub(crate) pool_created: Moment,
    pub(crate) histories: Histories,
    /// Moments at which the machine may lose power.
    pub(crate) points: Vec<Moment>,
}

#[derive(Clone)]
struct World {
    recordings: Vec<Arc<Recording>>,
    histories: Rc<RefCell<Histories>>,
    points: Rc<RefCell<BTreeSet<Moment>>>,
    numbers: Rc<RefCell<Vec<u8>>>,
}

impl World {
    fn now(&self) -> Moment {
        self.recordings.iter().map(|recording| recording.len()).collect()
    }

    fn change<T>(&self, id: VolumeId, change: impl FnOnce(&mut History) -> T) -> T {
        change(self.histories.borrow_mut().get_mut(&id).unwrap())
    }

    fn live(&self, id: VolumeId) -> Vec<u64> {
        self.histories.borrow()[&id].live.clone()
    }

    fn begin(&self, id: VolumeId, size: u64, base: Vec<u64>) {
        let history = History::new(size, base, self.now());
        self.histories.borrow_mut().insert(id, history);
    }

    /// Notes that all that was written to a volume is durable.
    fn flushed(&self, id: VolumeId, writes: usize) {
        let now = self.now();
        self.change(id, |history| {
            for write in history.writes[..writes].iter_mut().filter(|write| !write.failed) {
                write.durable.get_or_insert(now.clone());
            }
        });
    }

    /// A number that no volume had.
    fn number(&self) -> Option<u8> {
        self.numbers.borrow_mut().pop()
    }
}

fn disks(start: &Start) -> (Vec<Arc<dyn BlockDevice>>, Vec<Arc<Recording>>) {
    let mut devices: Vec<Arc<dyn BlockDevice>> = Vec::new();
    let mut recordings = Vec::new();
    let delays = Delays {
        read: Duration::from_micros(5),
        write: Duration::from_micros(20),
        flush: Duration::from_micros(50),
    };
    for image in &start.images {
        let image = ImageDevice::new(Arc::new(image.clone()), BlockSize::B512, start.volatile);
        let image = in_life(image, start.life);
        let recorder = RecordingDevice::new(Arc::new(DelayDevice::new(Arc::new(image), delays)));
        recordings.push(Arc::clone(recorder.recording()));
        devices.push(Arc::new(recorder));
    }
    (devices, recordings)
}

/// Runs a workload.
pub(crate) fn workload(start: Start) -> Run {
    let seed = start.seed;
    run(seed, move |handle| async move {
        let (devices, recordings) = disks(&start);
        let taken: BTreeSet<VolumeId> = start.existing.keys().copied().collect();
        let numbers = (0..250_u8).rev().filter(|number| !taken.contains(&volume_id(*number))).collect();
        let world = World {
            recordings,
            histories: Rc::new(RefCell::new(start.existing.clone())),
            points: Rc::default(),
            numbers: Rc::new(RefCell::new(numbers)),
        };
        let observed = world.clone();
        let observer = handle.add_poller(move || {
            observed.points.borrow_mut().insert(observed.now());
            basalt_reactor::Progress::Idle
        });
        let pool = match start.existing.is_empty() {
            true => {
                let disks = named_all(&devices).into_iter();
                let disks = disks.map(|disk| NewPoolDisk { disk, overwrite_foreign_data: false }).collect();
                create_of(&handle, disks, start.extent).await.unwrap()
            }
            false => Pool::import(&handle, CLUSTER, named_all(&devices)).await.unwrap(),
        };
        let pool_created = world.now();
        let owned: Vec<VolumeId> = start.existing.keys().copied().collect();
        let mut tasks = Vec::new();
        for user in 0..start.users {
            let random = SeededRandom::new(seed * 16 + user);
            let own = owned
                .iter()
                .skip(usize::try_from(user).unwrap())
                .step_by(usize::try_from(start.users).unwrap());
            let user = User {
                handle: handle.clone(),
                pool: pool.clone(),
                world: world.clone(),
                random,
                volumes: Vec::new(),
                family: seed % 2 == 1,
                extent: pool.extent_bytes(),
                stamps: seed << 32 | user << 24,
            };
            tasks.push(handle.spawn(user.work(own.copied().collect(), start.steps)));
        }
        for task in tasks {
            task.await;
        }
        handle.remove_poller(observer);
        let points: Vec<Moment> = match world.recordings.len() {
            1 => (0..=world.recordings[0].len()).map(|point| vec![point]).collect(),
            _ => world.points.take().into_iter().collect(),
        };
        let counts = |point: &Moment| !start.in_caches || reached(&pool_created, point);
        let points = points.into_iter().filter(counts).collect();
        let histories = world.histories.take();
        Run { start, recordings: world.recordings, pool_created, histories, points }
    })
}

/// An open volume of a user.
struct Open {
    id: VolumeId,
    device: Arc<LogicalVolume>,
    bytes: Bytes,
    snapshot: bool,
}

/// Creates, writes, snapshots, grows and deletes volumes of its own, one thing after the other.
struct User {
    handle: Handle,
    pool: Pool,
    world: World,
    random: SeededRandom,
    volumes: Vec<Open>,
    /// Which kind of workload this is.
    family: bool,
    /// The pool's unit of allocation.
    extent: u64,
    stamps: u64,
}

impl User {
    async fn work(mut self, own: Vec<VolumeId>, steps: u64) {
        for id in own {
            if let Some(VolumeStatus::Ready(record, device)) = self.pool.volume(id) {
                let bytes = Bytes::open(&self.handle, &*device);
                self.volumes.push(Open { id, device, bytes, snapshot: record.flags.snapshot });
            }
        }
        for _ in 0..steps {
            self.handle.sleep(Duration::from_micros(self.random.below(60))).await;
            if !self.volumes.iter().any(|open| !open.snapshot) {
                self.create().await;
                continue;
            }
            if self.family {
                // Volumes that share, discard and give up their share all the time, and hardly ever flush.
                match self.random.below(24) {
                    0..=7 => self.write().await,
                    8..=13 => self.discard().await,
                    14 => self.flush().await,
                    15..=17 => self.snapshot().await,
                    18..=19 => self.clone().await,
                    20 => self.diverge().await,
                    _ => self.delete(true).await,
                }
                continue;
            }
            match self.random.below(32) {
                0..=11 => self.write().await,
                12..=14 => self.discard().await,
                15..=18 => self.flush().await,
                19..=20 => self.read().await,
                21 if self.random.chance(1, 2) => self.raise().await,
                21 => self.give_to_next_epoch().await,
                22..=24 => self.snapshot().await,
                25 => self.clone().await,
                26 => self.grow().await,
                27..=28 => self.create().await,
                29 => self.delete(false).await,
                _ => self.delete(true).await,
            }
        }
    }

    fn chosen(&mut self, wanted: impl Fn(&Open) -> bool) -> Option<usize> {
        let places: Vec<usize> = (0..self.volumes.len()).filter(|at| wanted(&self.volumes[*at])).collect();
        if places.is_empty() {
            return None;
        }
        let at = self.random.below(places.len() as u64);
        Some(places[usize::try_from(at).unwrap()])
    }

    fn opened(&mut self, id: VolumeId, device: Arc<LogicalVolume>, snapshot: bool) {
        self.world.change(id, |history| history.creation.1 = Some(self.world.now()));
        let bytes = Bytes::open(&self.handle, &*device);
        self.volumes.push(Open { id, device, bytes, snapshot });
    }

    async fn create(&mut self) {
        let Some(number) = self.world.number() else { return };
        let size = (1 + self.random.below(6)) * self.extent - self.random.below(2) * 4096;
        let id = volume_id(number);
        self.world.begin(id, size, Vec::new());
        let new = if self.random.chance(3, 4) { thin(number, size) } else { volume(number, size) };
        match self.pool.create_volume(new).await {
            Ok(device) => self.opened(id, device, false),
            Err(_) => drop(self.world.histories.borrow_mut().remove(&id)),
        }
    }

    /// A range of sectors of a volume: half of them at the border of two extents or pieces.
    fn range(&mut self, at: usize) -> (u64, u64) {
        let sectors = self.volumes[at].device.info().bytes() / SECTOR as u64;
        let border = self.extent / SECTOR as u64 / 16;
        let first = match self.random.below(4) {
            0 => self.random.below(sectors),
            1 => (self.random.below(sectors / border + 1) * border).saturating_sub(self.random.below(4)),
            2 => self.random.below(sectors / border + 1) * border,
            _ => self.random.below(6) * 128,
        };
        let first = first.min(sectors - 1);
        let longest = [1, 4, 8, 24, 128, 200][usize::try_from(self.random.below(6)).unwrap()];
        (first, (1 + self.random.below(longest)).min(sectors - first))
    }

    /// Notes a write and answers its place in the history.
    fn begin_write(&mut self, at: usize, first: u64, sectors: u64, stamp: u64) {
        let began = self.world.now();
        self.world.change(self.volumes[at].id, |history| {
            history.writes.push(Write::new(first, sectors, stamp, began));
            let range = usize::try_from(first).unwrap()..usize::try_from(first + sectors).unwrap();
            history.live[range].fill(stamp);
        });
    }

    async fn write(&mut self) {
        let Some(at) = self.chosen(|open| !open.snapshot) else { return };
        let (first, sectors) = self.range(at);
        self.stamps += 1;
        let stamp = self.stamps;
        let content = stamp.to_le_bytes().repeat(SECTOR / 8 * usize::try_from(sectors).unwrap());
        let before = self.world.live(self.volumes[at].id);
        self.begin_write(at, first, sectors, stamp);
        let fua = self.random.chance(1, 5);
        let open = &self.volumes[at];
        let offset = first * SECTOR as u64;
        let written = match fua {
            true => open.bytes.write_durably(offset, &content).await,
            false => open.bytes.write(offset, &content).await,
        };
        match written {
            Ok(()) => self.acknowledged(at, fua),
            Err(error) => {
                // A part of it may have been written.
                assert_eq!(error, basalt_bdev::IoError::CapacityExceeded, "nothing else fails here");
                self.settle_failed(at, before).await;
            }
        }
    }

    /// Reads what a failed write has left, and takes it for what there is.
    async fn settle_failed(&mut self, at: usize, before: Vec<u64>) {
        let (id, size) = (self.volumes[at].id, before.len() * SECTOR);
        let mut found = Vec::new();
        for offset in (0..size).step_by(1 << 19) {
            let part =
                self.volumes[at].bytes.read(offset as u64, (size - offset).min(1 << 19)).await.unwrap();
            found.extend(
                part.chunks(SECTOR).map(|sector| u64::from_le_bytes(sector[..8].try_into().unwrap())),
            );
        }
        self.world.change(id, |history| {
            for (sector, stamp) in found.iter().enumerate() {
                let known = [before[sector], history.live[sector]];
                assert!(known.contains(stamp), "a failed write left something else");
            }
            history.live = found;
            history.settle_failed();
        });
    }

    /// Notes that the last write was acknowledged.
    fn acknowledged(&self, at: usize, fua: bool) {
        let durable = fua || !self.volumes[at].device.info().volatile_write_cache();
        let now = self.world.now();
        self.world.change(self.volumes[at].id, |history| {
            let write = history.writes.last_mut().unwrap();
            write.acknowledged = Some(now.clone());
            write.durable = durable.then_some(now);
        });
    }

    async fn discard(&mut self) {
        let Some(at) = self.chosen(|open| !open.snapshot) else { return };
        let (mut first, mut sectors) = self.range(at);
        if self.family || self.random.chance(1, 2) {
            // A whole extent.
            let extent = self.extent / SECTOR as u64;
            let end = self.world.live(self.volumes[at].id).len() as u64;
            first = first / extent * extent;
            sectors = extent.min(end - first);
        }
        let before = self.world.live(self.volumes[at].id);
        self.begin_write(at, first, sectors, 0);
        let (offset, bytes) = (first * SECTOR as u64, sectors * SECTOR as u64);
        let open = &self.volumes[at];
        let cleared = match self.random.chance(1, 2) {
            true => open.bytes.unmap(offset, bytes).await,
            false => open.bytes.write_zeroes(offset, bytes).await,
        };
        match cleared {
            Ok(()) => self.acknowledged(at, false),
            Err(_) => self.settle_failed(at, before).await,
        }
    }

    async fn flush(&mut self) {
        let Some(at) = self.chosen(|open| !open.snapshot) else { return };
        let id = self.volumes[at].id;
        let writes = self.world.change(id, |history| history.writes.len());
        self.volumes[at].bytes.flush().await.unwrap();
        self.world.flushed(id, writes);
    }

    /// Reads a range and compares it with what must be there.
    async fn read(&mut self) {
        let Some(at) = self.chosen(|_| true) else { return };
        let (first, sectors) = self.range(at);
        let open = &self.volumes[at];
        let len = usize::try_from(sectors).unwrap() * SECTOR;
        let found = open.bytes.read(first * SECTOR as u64, len).await.unwrap();
        let live = self.world.live(open.id);
        for (sector, found) in (first..).zip(found.chunks(SECTOR)) {
            let expected = live[usize::try_from(sector).unwrap()].to_le_bytes();
            assert!(
                found.chunks(8).all(|word| word == expected),
                "sector {sector} of {} reads {found:x?}, expected {expected:x?}",
                open.id
            );
        }
    }

    async fn raise(&mut self) {
        let Some(at) = self.chosen(|_| true) else { return };
        let id = self.volumes[at].id;
        self.stamps += 1;
        let generation = Generation(100 + (self.stamps & 0xff_ffff));
        let now = self.world.now();
        self.world.change(id, |history| history.raised.push((generation, now, None)));
        self.pool.raise(id, generation, Epoch { incarnation: 1, counter: self.stamps }).await.unwrap();
        self.world.change(id, |history| history.raised.last_mut().unwrap().2 = Some(self.world.now()));
    }

    /// Gives a volume to a higher epoch: what was open is refused from then on.
    async fn give_to_next_epoch(&mut self) {
        let Some(at) = self.chosen(|_| true) else { return };
        let id = self.volumes[at].id;
        self.stamps += 1;
        let epoch = Epoch { incarnation: 2, counter: self.stamps };
        let served = self.pool.raise_epoch(id, epoch).await.unwrap();
        self.world.change(id, |history| history.epochs.push((epoch, self.world.now())));
        let refused = self.volumes[at].bytes.read(0, SECTOR).await;
        assert_eq!(refused, Err(basalt_bdev::IoError::Fenced), "a lower epoch is fenced");
        self.volumes[at].bytes = Bytes::open(&self.handle, &served);
    }

    async fn snapshot(&mut self) {
        let Some(at) = self.chosen(|open| !open.snapshot) else { return };
        let Some(number) = self.world.number() else { return };
        let (origin, id) = (self.volumes[at].id, volume_id(number));
        let live = self.world.live(origin);
        let writes = self.world.change(origin, |history| history.writes.len());
        self.world.begin(id, (live.len() * SECTOR) as u64, live);
        match self.pool.snapshot(origin, snapshot(number)).await {
            Ok(device) => {
                self.opened(id, device, true);
                // What the snapshot holds is durable, and so is the same in its origin.
                self.world.flushed(origin, writes);
            }
            Err(_) => drop(self.world.histories.borrow_mut().remove(&id)),
        }
    }

    async fn clone(&mut self) {
        let Some(at) = self.chosen(|open| open.snapshot) else { return };
        let Some(number) = self.world.number() else { return };
        let (origin, id) = (self.volumes[at].id, volume_id(number));
        let live = self.world.live(origin);
        let size = (live.len() * SECTOR) as u64 + self.random.below(2) * self.extent;
        self.world.begin(id, size, live);
        match self.pool.clone_snapshot(origin, thin(number, size)).await {
            Ok(device) => self.opened(id, device, false),
            Err(_) => drop(self.world.histories.borrow_mut().remove(&id)),
        }
    }

    /// Two volumes share an extent; one gives it up, the other overwrites it at once.
    async fn diverge(&mut self) {
        let before = self.volumes.len();
        self.snapshot().await;
        let Some(at) = (before < self.volumes.len()).then_some(before) else { return };
        let Some(origin) = self.pool.volume(self.volumes[at].id).and_then(|status| match status {
            VolumeStatus::Ready(record, _) => record.origin,
            _ => None,
        }) else {
            return;
        };
        let (Some(number), snapshot) = (self.world.number(), self.volumes[at].id) else { return };
        let live = self.world.live(snapshot);
        let (id, size) = (volume_id(number), (live.len() * SECTOR) as u64);
        self.world.begin(id, size, live);
        match self.pool.clone_snapshot(snapshot, thin(number, size)).await {
            Ok(device) => self.opened(id, device, false),
            Err(_) => return drop(self.world.histories.borrow_mut().remove(&id)),
        }
        self.delete_at(at).await;
        let Some(clone) = self.volumes.iter().position(|open| open.id == id) else { return };
        let Some(origin) = self.volumes.iter().position(|open| open.id == origin) else { return };
        let extent = self.random.below(size / self.extent + 1) * self.extent;
        if extent + self.extent > size {
            return;
        }
        let (first, sectors) = (extent / SECTOR as u64, self.extent / SECTOR as u64);
        self.begin_write(clone, first, sectors, 0);
        self.volumes[clone].bytes.unmap(extent, self.extent).await.unwrap();
        self.acknowledged(clone, false);
        self.stamps += 1;
        let stamp = self.stamps;
        let before_write = self.world.live(self.volumes[origin].id);
        self.begin_write(origin, first, 8, stamp);
        let content = stamp.to_le_bytes().repeat(8 * SECTOR / 8);
        match self.volumes[origin].bytes.write(extent, &content).await {
            Ok(()) => self.acknowledged(origin, false),
            Err(_) => self.settle_failed(origin, before_write).await,
        }
    }

    async fn grow(&mut self) {
        let Some(at) = self.chosen(|open| !open.snapshot) else { return };
        let id = self.volumes[at].id;
        let size = (self.world.live(id).len() * SECTOR) as u64 + 4096 * (1 + self.random.below(20));
        let now = self.world.now();
        self.world.change(id, |history| history.growths.push((size, now, None)));
        match self.pool.resize(id, size).await {
            Ok(()) => {
                let now = self.world.now();
                self.world.change(id, |history| {
                    history.growths.last_mut().unwrap().2 = Some(now);
                    history.live.resize(usize::try_from(size).unwrap() / SECTOR, 0);
                });
            }
            Err(_) => drop(self.world.change(id, |history| history.growths.pop())),
        }
    }

    async fn delete(&mut self, snapshot: bool) {
        let Some(at) = self.chosen(|open| open.snapshot == snapshot) else { return };
        self.delete_at(at).await;
    }

    async fn delete_at(&mut self, at: usize) {
        let open = self.volumes.swap_remove(at);
        let now = self.world.now();
        self.world.change(open.id, |history| history.deletion = Some((now, None)));
        self.pool.delete_volume(open.id, Generation(u64::MAX)).await.unwrap();
        self.world.change(open.id, |history| history.deletion.as_mut().unwrap().1 = Some(self.world.now()));
    }
}
