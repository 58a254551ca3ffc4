//! Opening pools: importing what is there, creating what never was.

use std::fmt;
use std::sync::Arc;

use basalt_bdev::BlockDevice;
use basalt_clock::mark;
use basalt_lvol::id::{ClusterId, PoolId};
use basalt_lvol::layout::{DamageReason, Role, Superblock};
use basalt_lvol::{
    CreateError, DiskContent, DiskFault, DiskRefusal, Finding, ImportError, NewPool, NewPoolDisk, Pool,
    PoolDisk, Remedy, examine,
};
use basalt_reactor::DiskError;

use crate::agent::Inner;
use crate::desired::{DesiredNode, DesiredPool};
use crate::disk_health::DiskWatch;
use crate::growth::grow_disks;
use crate::items::{Key, needs_resumption};
use crate::report::{DiskHealth, DiskReport, Problem, Reason};

/// What a disk says that it is, if it says that it is a pool's.
type Found = Option<Box<Superblock>>;

/// Why a pool is not open: the problem of the pool, and of the disk that is the obstacle.
pub(crate) struct Obstacle {
    pub(crate) problem: Problem,
    /// Paths of the disks: the one, or a disk and its copy.
    disks: Vec<String>,
    /// The pool that was there once is not there any more.
    lost: bool,
}

impl Inner {
    /// Opens a pool.
    pub(crate) async fn work_pool(&self, name: &str, desired: &DesiredNode) {
        let key = Key::Pool(name.to_owned());
        if self.items.borrow().is_to_close(name, desired) {
            return self.close_pool(key, name).await;
        }
        let Some(wanted) = desired.pools.iter().find(|pool| pool.name == name) else {
            return;
        };
        let open = self.items.borrow().pool(name).cloned();
        if let Some(pool) = open {
            return match needs_resumption(&pool) {
                true => self.resume_pool(key, &pool).await,
                false => self.complete_pool(key, &pool, wanted).await,
            };
        }
        let (devices, mut reports) = self.open_disks(wanted).await;
        let watch = |disk: &PoolDisk| DiskWatch::new(disk.name.clone(), Arc::clone(&disk.device));
        let mut watches: Vec<DiskWatch> = devices.iter().map(watch).collect();
        let missing = reports.iter().find_map(|report| report.problem.clone());
        let opened = match (&missing, wanted.id) {
            // A pool that never was is not made of a part of its disks.
            (Some(problem), None) => Err(Obstacle::of(problem.clone())),
            _ => self.open_pool(wanted, desired, devices).await,
        };
        match opened {
            Ok(pool) => {
                // Those that the pool does not know yet are added next.
                let names: Vec<_> = pool.disks().into_iter().filter_map(|disk| disk.name).collect();
                watches.retain(|watch| names.iter().any(|name| name == watch.path()));
                let not_grown = grow_disks(&pool).await;
                pool.note_revision(desired.revision);
                // If that cannot be written, the pool's health says so, and copies are told by what was seen before.
                if let Err(reason) = pool.outdate_copies().await {
                    tracing::warn!(
                        pool = name,
                        "older copies of the pool's disks cannot be told yet: {reason}"
                    );
                }
                self.scrub(name, &pool);
                let unallocated = self.allocate(&pool).await.err();
                let mut items = self.items.borrow_mut();
                let item = items.pools.entry(name.to_owned()).or_default();
                item.pool = Some(pool);
                item.problem = not_grown;
                item.watches = watches;
                item.unallocated = unallocated.is_some();
                items.succeeded(&key);
                drop(items);
                if let Some(problem) = unallocated {
                    self.failed(key, problem);
                }
            }
            Err(Obstacle { problem, disks, lost }) => {
                for report in reports.iter_mut().filter(|report| disks.contains(&report.path)) {
                    report.health = DiskHealth::Faulted;
                    report.problem = Some(problem.clone());
                }
                // Where a disk is missing, or others are named than before, that is the reason, whatever follows from it; and
                // nothing is lost yet.
                let renamed =
                    (lost && !wanted.former.is_empty()).then(|| not_there(&problem, &wanted.former));
                let lost = lost && missing.is_none() && renamed.is_none();
                let problem = missing.or(renamed).unwrap_or(problem);
                if lost { self.lost(key, problem) } else { self.failed(key, problem) }
            }
        }
        self.items.borrow_mut().pools.entry(name.to_owned()).or_default().disks = reports;
        self.keep_checkpoints().await;
    }

    /// Adds to an open pool what it does not have yet: disks, and room for what it keeps for itself.
    async fn complete_pool(&self, key: Key, pool: &Pool, wanted: &DesiredPool) {
        let not_grown = self.grow_pool(pool, wanted).await;
        let unallocated = self.allocate(pool).await.err();
        {
            let mut items = self.items.borrow_mut();
            if let Some(item) = items.pools.get_mut(&wanted.name) {
                item.unallocated = unallocated.is_some();
            }
        }
        // A disk that cannot be added is the greater problem.
        match not_grown.or(unallocated) {
            None => self.items.borrow_mut().succeeded(&key),
            Some(problem) => self.failed(key, problem),
        }
    }

    /// Gives what a pool keeps for itself its place in the file systems that its disks lie on: a pool that cannot write that takes no
    /// change, so that nothing could be trimmed or deleted to make room.
    async fn allocate(&self, pool: &Pool) -> Result<(), Problem> {
        for disk in pool.disks() {
            let Some(path) = disk.name else { continue };
            match self.ports.disks.allocate(&path, disk.record.data_offset).await {
                Ok(()) => {}
                Err(DiskError::NoSpace) => {
                    let message = format!(
                        "the file system that {path} lies on has no room for the {} MiB that the pool keeps for itself there; once it is full, nothing can be \
                         written, trimmed or deleted: make room on it; it is tried again",
                        disk.record.data_offset >> 20
                    );
                    return Err(Problem::new(Reason::FileSystemFull, message));
                }
                Err(error) => {
                    tracing::warn!(disk = path, %error, "the file system does not keep room for the pool")
                }
            }
        }
        Ok(())
    }

    /// Lets the pool be looked over from now on.
    fn scrub(&self, name: &str, pool: &Pool) {
        let name = name.to_owned();
        pool.scrub_every(self.config.scrub, move |Finding { subject, explanation, remedy }| match remedy {
            Remedy::Rewrite => tracing::warn!(pool = name, "{subject}: {explanation}"),
            Remedy::AcceptLoss | Remedy::ByHand => tracing::error!(pool = name, "{subject}: {explanation}"),
        });
    }

    /// Closes a pool that is not wanted any more, so that its disks are free. What is on it stays as it is.
    async fn close_pool(&self, key: Key, name: &str) {
        // Nobody begins anything on it from here on.
        let item = self.items.borrow_mut().pools.remove(name);
        if let Some(pool) = item.and_then(|item| item.pool) {
            match pool.export().await {
                Ok(()) => tracing::info!(pool = name, "the pool is not wanted any more and is closed"),
                Err(reason) => {
                    tracing::warn!(
                        pool = name,
                        "the pool is closed as by a crash, for it takes no change: {reason}"
                    );
                }
            }
        }
        let mut items = self.items.borrow_mut();
        items.succeeded(&key);
        // What failed for want of its disks is tried at once.
        items.retry_now();
    }

    /// Makes a pool take changes again after a write of its metadata failed. Its volumes are served all the time.
    async fn resume_pool(&self, key: Key, pool: &Pool) {
        match pool.resume().await {
            Ok(()) => {
                mark!("agent-pool-resumed");
                let mut items = self.items.borrow_mut();
                items.succeeded(&key);
                // What failed for want of the pool is tried at once.
                items.retry_now();
            }
            Err(reason) => self.failed(key, Problem::new(Reason::IoError, reason)),
        }
    }

    async fn open_disks(&self, wanted: &DesiredPool) -> (Vec<PoolDisk>, Vec<DiskReport>) {
        let (mut devices, mut reports) = (Vec::new(), Vec::new());
        for disk in &wanted.disks {
            let (device, report) =
                opened(&disk.path, wanted.id.is_some(), self.ports.disks.open(&disk.path).await);
            devices.extend(device);
            reports.push(report);
        }
        (devices, reports)
    }

    async fn open_pool(
        &self,
        wanted: &DesiredPool,
        desired: &DesiredNode,
        devices: Vec<PoolDisk>,
    ) -> Result<Pool, Obstacle> {
        let pool = match wanted.id {
            Some(id) => self.import_known(id, wanted.checkpoint, desired.cluster, devices).await?,
            None => self.import_or_create(wanted, desired, devices).await?,
        };
        let twin = self.items.borrow().pools.iter().find_map(|(name, item)| {
            let same = item.pool.as_ref().is_some_and(|open| open.id() == pool.id());
            (same && *name != wanted.name).then(|| name.clone())
        });
        match twin {
            None => Ok(pool),
            Some(name) => Err(Obstacle::of(Problem::new(
                Reason::DiskInUse,
                format!("these are the disks of the pool {name}, which is open"),
            ))),
        }
    }

    async fn import_known(
        &self,
        id: PoolId,
        checkpoint: u64,
        cluster: ClusterId,
        devices: Vec<PoolDisk>,
    ) -> Result<Pool, Obstacle> {
        let found = self.pools_on(&devices).await?;
        let (devices, found) = without_old_leads(id, checkpoint, devices, found)?;
        let devices = without_newcomers(id, devices, &found);
        let pool = Pool::import(&self.handle, cluster, devices).await.map_err(Obstacle::of_import)?;
        if pool.id() == id {
            mark!("agent-pool-imported");
            return Ok(pool);
        }
        let message = format!("the disks hold the pool {}, expected was {id}", pool.id());
        Err(Obstacle::of(of_another_pool(message, &first_disk(&pool), pool.id())))
    }

    /// Of which pool each disk says that it is, and as what.
    async fn pools_on(&self, devices: &[PoolDisk]) -> Result<Vec<Found>, Obstacle> {
        let mut pools = Vec::with_capacity(devices.len());
        for device in devices {
            let content = examine(&self.handle, device).await.map_err(Obstacle::of_fault)?;
            pools.push(match content {
                DiskContent::Pool(found) => Some(found),
                _ => None,
            });
        }
        Ok(pools)
    }

    /// For a pool that the control plane has not heard of. It may be there all the same: created, and not reported before the
    /// process ended.
    async fn import_or_create(
        &self,
        wanted: &DesiredPool,
        desired: &DesiredNode,
        devices: Vec<PoolDisk>,
    ) -> Result<Pool, Obstacle> {
        let found = self.pools_on(&devices).await?;
        if let Some(known) = found.iter().flatten().find(|disk| disk.role != Role::MemberInCreation) {
            let devices = without_newcomers(known.pool, devices, &found);
            let pool = Pool::import(&self.handle, desired.cluster, devices).await;
            let pool = pool.map_err(Obstacle::of_import)?;
            if pool.name() != wanted.name {
                let message = format!("the disks hold the pool {} ({})", pool.name(), pool.id());
                return Err(Obstacle::of(of_another_pool(message, &first_disk(&pool), pool.id())));
            }
            mark!("agent-pool-adopted");
            return Ok(pool);
        }
        let overwrite = |device: &PoolDisk| {
            wanted.disks.iter().any(|disk| disk.path == device.name && disk.overwrite_foreign_data)
        };
        let disks = devices
            .into_iter()
            .map(|disk| NewPoolDisk { overwrite_foreign_data: overwrite(&disk), disk })
            .collect();
        let (cluster, name, revision) = (desired.cluster, wanted.name.clone(), desired.revision);
        let (extent_bytes, layout) = (wanted.extent_bytes, wanted.layout);
        let new = NewPool { cluster, name, revision, extent_bytes, layout, disks };
        let pool = Pool::create(&self.handle, new).await;
        pool.map_err(|error| match error {
            CreateError::Disk(refusal) => Obstacle::of_refusal(&refusal),
            CreateError::NotReadBack(_) => Obstacle::of(Problem::new(Reason::PoolDamaged, &error)),
            CreateError::DiskCount(_)
            | CreateError::NameTooLong(_)
            | CreateError::ExtentBytes(_)
            | CreateError::MixedBlocks => Obstacle::of(Problem::new(Reason::DiskFailed, &error)),
        })
    }
}

/// The disks that say that they are of this pool, the others being named for it to grow by; all if none does, so that what is wrong
/// with them is said.
fn without_newcomers(id: PoolId, devices: Vec<PoolDisk>, found: &[Found]) -> Vec<PoolDisk> {
    let own = |found: &Found| found.as_ref().is_some_and(|found| found.pool == id);
    if !found.iter().any(own) {
        return devices;
    }
    devices.into_iter().zip(found).filter_map(|(device, found)| own(found).then_some(device)).collect()
}

/// Leaves out leads that are older than the pool was seen. Where there is no other one, that is the obstacle.
fn without_old_leads(
    id: PoolId,
    checkpoint: u64,
    devices: Vec<PoolDisk>,
    found: Vec<Found>,
) -> Result<(Vec<PoolDisk>, Vec<Found>), Obstacle> {
    let lead = |found: &Found| {
        found
            .as_ref()
            .filter(|found| found.pool == id && found.role == Role::Lead)
            .map(|found| found.sequence)
    };
    let is_old = |found: &Found| lead(found).is_some_and(|sequence| sequence < checkpoint);
    let old = devices.iter().zip(&found).find(|(_, found)| is_old(found));
    if let Some((device, disk)) = old {
        mark!("agent-old-copy-refused");
        let current = found.iter().any(|found| lead(found).is_some_and(|sequence| sequence >= checkpoint));
        if !current {
            return Err(Obstacle::of_old_copy(&device.name, lead(disk).unwrap_or(0), checkpoint));
        }
    }
    Ok(devices.into_iter().zip(found).filter(|(_, found)| !is_old(found)).unzip())
}

/// A disk as it was opened, and what is reported of it. That of a pool which exists may be somewhere else.
pub(crate) fn opened(
    path: &str,
    exists: bool,
    outcome: Result<Arc<dyn BlockDevice>, DiskError>,
) -> (Option<PoolDisk>, DiskReport) {
    let path = path.to_owned();
    match outcome {
        Ok(device) => {
            let capacity = device.info().bytes();
            let disk = PoolDisk { name: path.clone(), device };
            (Some(disk), DiskReport { path, health: DiskHealth::Online, capacity, problem: None })
        }
        Err(error) => {
            let reason = reason_of(error);
            let (health, remedy) = match reason {
                Reason::DiskMissing if exists => {
                    (DiskHealth::Offline, ", bring the disk back, or name the path that it has now")
                }
                Reason::DiskMissing => (DiskHealth::Offline, ""),
                _ => (DiskHealth::Faulted, ""),
            };
            let problem = Problem::new(reason, format!("{path}: {error}{remedy}"));
            (None, DiskReport { path, health, capacity: 0, problem: Some(problem) })
        }
    }
}

/// What to do with a disk that another pool is on.
fn of_another_pool(what: impl fmt::Display, disk: &str, pool: PoolId) -> Problem {
    let message = format!(
        "{what}: name another disk, or the disk in that pool; if nothing on it is needed any more, run basaltd pool wipe {disk} \
         --destroy-pool {pool} on the node"
    );
    Problem::new(Reason::DiskOfAnotherPool, message)
}

fn first_disk(pool: &Pool) -> String {
    pool.disks().into_iter().find_map(|disk| disk.name).unwrap_or_default()
}

/// What to do about a pool that is not on the disks that are named in the place of others.
fn not_there(problem: &Problem, former: &[String]) -> Problem {
    let former = former.join(", ");
    let message =
        format!("{}; it was on {former}, which is not named any more: name that again", problem.message);
    Problem::new(problem.reason, message)
}

fn reason_of(error: DiskError) -> Reason {
    match error {
        DiskError::NotFound | DiskError::Gone => Reason::DiskMissing,
        DiskError::InUse => Reason::DiskInUse,
        DiskError::TooSmall { .. } => Reason::DiskTooSmall,
        _ => Reason::DiskFailed,
    }
}

impl Obstacle {
    fn of(problem: Problem) -> Self {
        Self { problem, disks: Vec::new(), lost: false }
    }

    pub(crate) fn of_fault(fault: DiskFault) -> Self {
        Self { problem: Problem::new(Reason::DiskFailed, &fault), disks: vec![fault.disk], lost: false }
    }

    /// The lead of a pool is older than it was.
    fn of_old_copy(disk: &str, holds: u64, held: u64) -> Self {
        let message = format!(
            "{disk} is an old copy: it holds checkpoint {holds} of the pool, and this daemon has seen {held}. Put the right disk back, or name \
             the path that it has now; docs/node-operations.md says how to go on with the old one"
        );
        Self { disks: vec![disk.to_owned()], ..Self::of(Problem::new(Reason::DiskOutdated, message)) }
    }

    fn of_import(error: ImportError) -> Self {
        match &error {
            ImportError::Disk(refusal) => Self::of_refusal(refusal),
            ImportError::LeadMissing => {
                Self { lost: true, ..Self::of(Problem::new(Reason::PoolMissing, &error)) }
            }
            ImportError::Stranger(disk) => Self {
                problem: Problem::new(Reason::DiskOfAnotherPool, &error),
                disks: vec![disk.clone()],
                lost: false,
            },
            ImportError::Damaged(_) => Self::of(Problem::new(Reason::PoolDamaged, &error)),
        }
    }

    fn of_refusal(refusal: &DiskRefusal) -> Self {
        let (reason, disk) = match refusal {
            DiskRefusal::Fault(fault) => (Reason::DiskFailed, &fault.disk),
            DiskRefusal::BlocksTooLarge { disk, .. } => (Reason::DiskFailed, disk),
            DiskRefusal::Foreign { disk, content } if content.is_damaged_pool() => {
                (Reason::PoolDamaged, disk)
            }
            DiskRefusal::Foreign { disk, .. } => (Reason::DiskHoldsForeignData, disk),
            DiskRefusal::Unusable { disk, .. } => (Reason::PoolDamaged, disk),
            DiskRefusal::OtherCluster { disk, .. } => (Reason::DiskOfAnotherCluster, disk),
            DiskRefusal::OtherPool { disk, .. } => (Reason::DiskOfAnotherPool, disk),
            DiskRefusal::Twice { second, .. } => (Reason::DiskTwice, second),
            DiskRefusal::Outdated { disk, .. } => (Reason::DiskOutdated, disk),
            DiskRefusal::Unsuitable { disk, .. } | DiskRefusal::Shrunk { disk, .. } => {
                (Reason::DiskTooSmall, disk)
            }
            DiskRefusal::Blank { disk } => (Reason::PoolMissing, disk),
        };
        let problem = match refusal {
            DiskRefusal::OtherPool { disk, pool } => of_another_pool(refusal, disk, *pool),
            DiskRefusal::Blank { .. } => {
                let remedy = "bring back the disk that it is on, or name the path that this one has now";
                Problem::new(reason, format!("{refusal}: {remedy}"))
            }
            _ => Problem::new(reason, refusal),
        };
        let other = match refusal {
            DiskRefusal::Twice { first, .. } => Some(first),
            _ => None,
        };
        let disks = other.into_iter().chain([disk]).cloned().collect();
        Self { problem, disks, lost: reason == Reason::PoolMissing }
    }
}

/// The problem of a volume that its pool has isolated, and whether its data is lost.
pub(crate) fn isolated(reason: DamageReason) -> (Problem, bool) {
    match reason {
        DamageReason::DiskMissing(_) => (Problem::new(Reason::DiskMissing, reason), false),
        DamageReason::Journal => (Problem::new(Reason::VolumeDamaged, reason), false),
        DamageReason::Checksum
        | DamageReason::Field(_)
        | DamageReason::OutOfRange
        | DamageReason::Overlap => (Problem::new(Reason::VolumeDamaged, reason), true),
    }
}
