use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use basalt_clock::{Random, SeededRandom};
use basalt_dma::Payload;

use super::medium::{Change, Medium, SECTOR_BYTES};
use super::world::{Event, NodeId, State};
use crate::driver::{
    Claim, DiskCompletion, DiskError, DiskId, DiskInfo, DiskKind, DiskLock, DiskOperation, DiskOptions,
    DiskRequest,
};

/// A probability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chance {
    /// So many ...
    pub numerator: u64,
    /// ... of so many cases.
    pub denominator: u64,
}

impl Chance {
    /// It does not happen.
    pub const NEVER: Self = Self { numerator: 0, denominator: 1 };
    /// It always happens.
    pub const ALWAYS: Self = Self { numerator: 1, denominator: 1 };

    pub(super) fn draw(self, random: &mut SeededRandom) -> bool {
        // Draws nothing when the outcome is certain, so that faults that are off do not shift the sequence.
        match self.numerator {
            0 => false,
            numerator => numerator >= self.denominator || random.chance(numerator, self.denominator),
        }
    }
}

/// What goes wrong at a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskFaults {
    /// Reads that fail with a medium error.
    pub read: Chance,
    /// Writes that fail with a medium error; some of their sectors may be changed.
    pub write: Chance,
    /// Syncs, and writes with FUA, that fail; what they should have saved stays unsafe.
    pub sync: Chance,
    /// Ranges in bytes whose reads always fail.
    pub bad: Vec<Range<u64>>,
    /// Every write fails for lack of space.
    pub full: bool,
}

impl Default for DiskFaults {
    fn default() -> Self {
        Self { read: Chance::NEVER, write: Chance::NEVER, sync: Chance::NEVER, bad: Vec::new(), full: false }
    }
}

#[derive(Debug)]
struct SimDisk {
    length: u64,
    medium: Medium,
    faults: DiskFaults,
    /// How often power failed.
    failures: u64,
    claim: Weak<u64>,
}

#[derive(Debug)]
struct OpenDisk {
    id: DiskId,
    path: PathBuf,
    read_only: bool,
    sync_failed: Option<DiskError>,
    /// Held as long as it is open.
    claim: Option<Arc<u64>>,
}

/// What one driver has open and what is done for it.
#[derive(Debug, Default)]
struct DriverDisks {
    open: Vec<Option<OpenDisk>>,
    opened: u32,
    in_flight: usize,
    done: Vec<DiskCompletion>,
}

#[derive(Debug)]
struct InFlight {
    driver: usize,
    request: DiskRequest,
    /// For syncs: what it covers.
    position: u64,
}

/// All disks of a world.
#[derive(Debug, Default)]
pub(super) struct Disks {
    disks: BTreeMap<(NodeId, PathBuf), SimDisk>,
    drivers: Vec<DriverDisks>,
    in_flight: BTreeMap<u64, InFlight>,
    submitted: u64,
}

impl Disks {
    pub(super) fn add_driver(&mut self) {
        self.drivers.push(DriverDisks::default());
    }

    pub(super) fn create(&mut self, node: NodeId, path: PathBuf, length: u64) {
        let disk = SimDisk {
            length,
            medium: Medium::default(),
            faults: DiskFaults::default(),
            failures: 0,
            claim: Weak::new(),
        };
        self.disks.insert((node, path), disk);
    }

    fn disk_mut(&mut self, node: NodeId, path: &Path) -> Option<&mut SimDisk> {
        self.disks.get_mut(&(node, path.to_owned()))
    }

    fn existing(&mut self, node: NodeId, path: &Path) -> &mut SimDisk {
        match self.disk_mut(node, path) {
            Some(disk) => disk,
            None => panic!("{node:?} has no disk {}", path.display()),
        }
    }

    pub(super) fn set_faults(&mut self, node: NodeId, path: &Path, faults: DiskFaults) {
        self.existing(node, path).faults = faults;
    }

    pub(super) fn corrupt(
        &mut self,
        node: NodeId,
        path: &Path,
        offset: u64,
        length: u64,
        random: &mut SeededRandom,
    ) {
        self.existing(node, path).medium.corrupt(offset, length, random);
    }

    pub(super) fn grow(&mut self, node: NodeId, path: &Path, length: u64) {
        let disk = self.existing(node, path);
        disk.length = disk.length.max(length);
    }

    pub(super) fn remove(&mut self, node: NodeId, path: &Path) {
        self.disks.remove(&(node, path.to_owned()));
    }

    pub(super) fn read(&self, node: NodeId, path: &Path, offset: u64, length: usize) -> Vec<u8> {
        let Some(disk) = self.disks.get(&(node, path.to_owned())) else {
            panic!("{node:?} has no disk {}", path.display())
        };
        let mut bytes = vec![0; length];
        disk.medium.read(offset, &mut bytes);
        bytes
    }

    pub(super) fn lock(
        &mut self,
        node: NodeId,
        incarnation: u64,
        path: &Path,
        options: &DiskOptions,
    ) -> Result<DiskLock, DiskError> {
        self.make(node, path, options)?;
        let disk = self.existing(node, path);
        // A claim of a process that was killed may still be held by values of its that were not dropped yet.
        if disk.claim.upgrade().is_some_and(|holder| *holder == incarnation) {
            return Err(DiskError::InUse);
        }
        let claim = Arc::new(incarnation);
        disk.claim = Arc::downgrade(&claim);
        Ok(DiskLock::new(path, path, options.read_only, Claim::Simulated(claim)))
    }

    /// Makes a disk, or makes it longer, where the options say so.
    fn make(&mut self, node: NodeId, path: &Path, options: &DiskOptions) -> Result<(), DiskError> {
        match (self.disk_mut(node, path), options.create_with_length) {
            (None, None) => return Err(DiskError::NotFound),
            (None, Some(length)) => self.create(node, path.to_owned(), length),
            (Some(disk), Some(length)) => disk.length = disk.length.max(length),
            (Some(_), None) => {}
        }
        Ok(())
    }

    /// The claim holds until this is closed too.
    pub(super) fn open_locked(
        &mut self,
        node: NodeId,
        driver: usize,
        lock: &DiskLock,
    ) -> Result<DiskInfo, DiskError> {
        let options = DiskOptions { read_only: lock.read_only(), ..DiskOptions::default() };
        let info = self.open(node, driver, lock.path(), &options)?;
        if let (Claim::Simulated(claim), Some(disk)) = (lock.claim(), self.open_disk(driver, info.id)) {
            disk.claim = Some(Arc::clone(claim));
        }
        Ok(info)
    }

    pub(super) fn open(
        &mut self,
        node: NodeId,
        driver: usize,
        path: &Path,
        options: &DiskOptions,
    ) -> Result<DiskInfo, DiskError> {
        self.make(node, path, options)?;
        let found = self.existing(node, path);
        let (length, failures) = (found.length, found.failures);
        let length = length - length % SECTOR_BYTES;
        let drivers = &mut self.drivers[driver];
        drivers.opened += 1;
        let free = drivers.open.iter().position(Option::is_none);
        let place = free.unwrap_or_else(|| {
            drivers.open.push(None);
            drivers.open.len() - 1
        });
        let index = u32::try_from(place).map_err(|_| DiskError::TooManyOpen)?;
        let id = DiskId { index, generation: drivers.opened };
        let read_only = options.read_only;
        drivers.open[place] =
            Some(OpenDisk { id, path: path.to_owned(), read_only, sync_failed: None, claim: None });
        Ok(DiskInfo {
            polled: false,
            id,
            length,
            block_bytes: 512,
            optimal_bytes: 4096,
            kind: DiskKind::File,
            direct: !options.buffered,
            read_only,
            volatile_cache: true,
            cache_lifetime: Some(failures),
            discard: true,
        })
    }

    fn open_disk(&mut self, driver: usize, disk: DiskId) -> Option<&mut OpenDisk> {
        let open = self.drivers[driver].open.get_mut(disk.index as usize)?.as_mut()?;
        (open.id == disk).then_some(open)
    }

    pub(super) fn close(&mut self, driver: usize, disk: DiskId) {
        if self.open_disk(driver, disk).is_some() {
            self.drivers[driver].open[disk.index as usize] = None;
        }
    }

    pub(super) fn collect(&mut self, driver: usize, completions: &mut Vec<DiskCompletion>) -> bool {
        let done = &mut self.drivers[driver].done;
        let any = !done.is_empty();
        completions.append(done);
        any
    }

    fn check(&mut self, node: NodeId, driver: usize, request: &DiskRequest) -> Result<PathBuf, DiskError> {
        let open = self.open_disk(driver, request.disk).ok_or(DiskError::Gone)?;
        let (path, read_only) = (open.path.clone(), open.read_only);
        let length = self.disks.get(&(node, path.clone())).ok_or(DiskError::Gone)?.length;
        let moves = match request.operation {
            DiskOperation::Sync => return Ok(path),
            DiskOperation::Read => true,
            _ if read_only => return Err(DiskError::ReadOnly),
            DiskOperation::Write { .. } => true,
            DiskOperation::Discard | DiskOperation::WriteZeroes => false,
        };
        let inside = request.offset.0.checked_add(request.length).is_some_and(|end| end <= length);
        let aligned =
            request.offset.0.is_multiple_of(SECTOR_BYTES) && request.length.is_multiple_of(SECTOR_BYTES);
        let fits = !moves || request.payload.len() as u64 == request.length;
        if inside && aligned && fits && request.length > 0 { Ok(path) } else { Err(DiskError::OutOfRange) }
    }
}

impl State {
    pub(super) fn submit_operation(
        &mut self,
        driver: usize,
        request: DiskRequest,
    ) -> Result<(), DiskRequest> {
        let queued = self.disks.drivers[driver].in_flight + self.disks.drivers[driver].done.len();
        if queued >= self.options.disk.queue_depth {
            return Err(request);
        }
        let node = self.drivers[driver].node;
        let position = match self.disks.check(node, driver, &request) {
            Ok(path) => self.disks.disk_mut(node, &path).map_or(0, |disk| disk.medium.position()),
            Err(error) => {
                let DiskRequest { disk, tag, payload, .. } = request;
                self.disks.drivers[driver].done.push(DiskCompletion {
                    disk,
                    tag,
                    result: Err(error),
                    payload,
                });
                self.drivers[driver].activity = true;
                return Ok(());
            }
        };
        let model = self.options.disk.clone();
        let mut takes = match request.operation {
            DiskOperation::Read => self.duration(&model.read),
            DiskOperation::Write { fua: true } => self.duration(&model.write) + self.duration(&model.sync),
            DiskOperation::Write { fua: false } | DiskOperation::Discard | DiskOperation::WriteZeroes => {
                self.duration(&model.write)
            }
            DiskOperation::Sync => self.duration(&model.sync),
        };
        if model.stall.draw(&mut self.random) {
            takes *= 100;
        }
        self.disks.submitted += 1;
        let operation = self.disks.submitted;
        self.disks.drivers[driver].in_flight += 1;
        self.disks.in_flight.insert(operation, InFlight { driver, request, position });
        self.schedule(self.now + takes, Event::Disk { operation });
        Ok(())
    }

    /// A disk operation ends, unless its process did before.
    pub(super) fn finish_operation(&mut self, operation: u64) {
        let Some(InFlight { driver, mut request, position }) = self.disks.in_flight.remove(&operation) else {
            return;
        };
        self.disks.drivers[driver].in_flight -= 1;
        self.note([16 + driver as u64, request.offset.0]);
        let result = self.perform(driver, &mut request, position);
        let DiskRequest { disk, tag, payload, .. } = request;
        self.disks.drivers[driver].done.push(DiskCompletion { disk, tag, result, payload });
        self.drivers[driver].activity = true;
    }

    fn perform(&mut self, driver: usize, request: &mut DiskRequest, position: u64) -> Result<(), DiskError> {
        let node = self.drivers[driver].node;
        let Some(open) = self.disks.open_disk(driver, request.disk) else { return Err(DiskError::Gone) };
        let (path, sync_failed) = (open.path.clone(), open.sync_failed);
        let random = &mut self.random;
        let disk = self.disks.disks.get_mut(&(node, path)).ok_or(DiskError::Gone)?;
        let (offset, length) = (request.offset.0, request.length);
        match request.operation {
            DiskOperation::Read => {
                let bad = disk.faults.bad.iter().any(|bad| bad.start < offset + length && offset < bad.end);
                if bad || disk.faults.read.draw(random) {
                    return Err(DiskError::Medium);
                }
                read_into(&disk.medium, offset, &mut request.payload);
                return Ok(());
            }
            DiskOperation::Sync => {
                if let Some(error) = sync_failed {
                    return Err(error);
                }
                if !disk.faults.sync.draw(random) {
                    disk.medium.sync(position);
                    return Ok(());
                }
                if let Some(open) = self.disks.open_disk(driver, request.disk) {
                    open.sync_failed = Some(DiskError::Medium);
                }
                return Err(DiskError::Medium);
            }
            DiskOperation::Write { .. } | DiskOperation::Discard | DiskOperation::WriteZeroes => {}
        }
        if disk.faults.full {
            return Err(DiskError::NoSpace);
        }
        let mut change = change_of(request);
        if disk.faults.write.draw(random) {
            disk.medium.tear(&change, random);
            return Err(DiskError::Medium);
        }
        if change.durable && disk.faults.sync.draw(random) {
            change.durable = false;
            disk.medium.change(change);
            return Err(DiskError::Medium);
        }
        disk.medium.change(change);
        Ok(())
    }

    /// The processes of a node end: what they had under way happens, does not, or is torn.
    pub(super) fn abandon_operations(&mut self, node: NodeId) {
        let mine: Vec<u64> = self
            .disks
            .in_flight
            .iter()
            .filter_map(|(id, operation)| (self.drivers[operation.driver].node == node).then_some(*id))
            .collect();
        for id in mine {
            let Some(InFlight { driver, request, .. }) = self.disks.in_flight.remove(&id) else { continue };
            self.disks.drivers[driver].in_flight -= 1;
            let changes = !matches!(request.operation, DiskOperation::Read | DiskOperation::Sync);
            let Some(open) = self.disks.open_disk(driver, request.disk).filter(|_| changes) else { continue };
            let key = (node, open.path.clone());
            let Some(disk) = self.disks.disks.get_mut(&key) else { continue };
            let change = Change { durable: false, ..change_of(&request) };
            match self.random.below(3) {
                0 => {}
                1 => disk.medium.change(change),
                _ => disk.medium.tear(&change, &mut self.random),
            }
        }
        for (driver, disks) in self.disks.drivers.iter_mut().enumerate() {
            if self.drivers[driver].node == node {
                disks.open.clear();
                disks.done.clear();
            }
        }
    }

    pub(super) fn disks_lose_power(&mut self, node: NodeId) {
        for ((_, _), disk) in self.disks.disks.iter_mut().filter(|((owner, _), _)| *owner == node) {
            disk.failures += 1;
            disk.medium.power_fail(&mut self.random);
        }
    }
}

fn change_of(request: &DiskRequest) -> Change {
    let (data, durable) = match request.operation {
        DiskOperation::Write { fua } => (Some(request.payload.to_vec()), fua),
        _ => (None, false),
    };
    Change { offset: request.offset.0, length: request.length, data, durable }
}

fn read_into(medium: &Medium, offset: u64, payload: &mut Payload) {
    let mut at = offset;
    for buffer in payload.buffers_mut() {
        medium.read(at, buffer);
        at += buffer.len() as u64;
    }
}
