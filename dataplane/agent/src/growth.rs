//! Letting an open pool grow: by disks that were named later, and by what its disks have grown by.

use std::sync::Arc;

use basalt_lvol::layout::{Role, Superblock};
use basalt_lvol::{DiskContent, DiskRefusal, GrowError, NewPoolDisk, Pool, PoolDisk, PoolHealth, examine};

use crate::agent::Inner;
use crate::desired::{DesiredDisk, DesiredPool};
use crate::disk_health::DiskWatch;
use crate::items::PoolItem;
use crate::pools::{Obstacle, opened};
use crate::report::{DiskHealth, DiskReport, Problem, Reason};

/// Disks that were named after the pool was made, or that were missing. None while a disk that the pool runs on is not named any more:
/// that is an exchange, which this is not.
pub(crate) fn newcomers<'a>(
    item: &'a PoolItem,
    wanted: &'a DesiredPool,
) -> impl Iterator<Item = &'a DesiredDisk> {
    let named = |path: &str| wanted.disks.iter().any(|disk| disk.path == path);
    let whole = item.watches.iter().all(|watch| named(watch.path()));
    wanted.disks.iter().filter(move |disk| whole && !item.runs_on(&disk.path))
}

impl Inner {
    /// Adds the disks that the pool does not run on yet, one after the other. Answers the first problem.
    pub(crate) async fn grow_pool(&self, pool: &Pool, wanted: &DesiredPool) -> Option<Problem> {
        let disks: Vec<DesiredDisk> = {
            let items = self.items.borrow();
            items
                .pools
                .get(&wanted.name)
                .map_or(Vec::new(), |item| newcomers(item, wanted).cloned().collect())
        };
        let mut obstacle = None;
        for disk in disks {
            let (watch, mut report) = self.add_disk(pool, &disk).await;
            // Where none of the pool's disks is missing, it is certain that this is none of them.
            if let Some(problem) = &mut report.problem
                && pool.disks().iter().all(|disk| disk.name.is_some())
            {
                problem.reason = Reason::DiskNotInUse;
            }
            let told = report.problem.as_ref().map(|problem| &problem.message);
            obstacle = obstacle.or_else(|| told.map(|message| Problem::new(Reason::DiskNotAdded, message)));
            let mut items = self.items.borrow_mut();
            let item = items.pools.entry(wanted.name.clone()).or_default();
            item.watches.extend(watch);
            match item.disks.iter_mut().find(|seen| seen.path == report.path) {
                Some(seen) => *seen = report,
                None => item.disks.push(report),
            }
        }
        obstacle
    }

    /// Opens a disk and makes it one of the pool's: how it is watched from then on, unless its report has a problem.
    async fn add_disk(&self, pool: &Pool, wanted: &DesiredDisk) -> (Option<DiskWatch>, DiskReport) {
        let (device, report) = opened(&wanted.path, true, self.ports.disks.open(&wanted.path).await);
        let Some(device) = device else { return (None, report) };
        let watch = DiskWatch::new(wanted.path.clone(), Arc::clone(&device.device));
        match self.add_opened(pool, device, wanted.overwrite_foreign_data).await {
            Ok(()) => {
                tracing::info!(disk = wanted.path, pool = pool.name(), "the pool has another disk");
                (Some(watch), report)
            }
            Err(problem) => {
                (None, DiskReport { health: DiskHealth::Faulted, problem: Some(problem), ..report })
            }
        }
    }

    async fn add_opened(&self, pool: &Pool, disk: PoolDisk, overwrite: bool) -> Result<(), Problem> {
        let path = disk.name.clone();
        let content =
            examine(&self.handle, &disk).await.map_err(|fault| Obstacle::of_fault(fault).problem)?;
        if let DiskContent::Pool(found) = &content
            && found.pool == pool.id()
            && found.role != Role::MemberInCreation
        {
            return Err(of_the_pool(pool, &path, found));
        }
        if let Some(missing) = pool.disks().iter().find(|disk| disk.name.is_none()) {
            if let Some(damage) = damage_of(&path, content) {
                let message =
                    format!("{damage}; it may be disk {} of the pool, which is missing", missing.record.id);
                return Err(Problem::new(Reason::PoolDamaged, message));
            }
            let message = format!(
                "{path} is not added while disk {} of the pool is missing: bring that back first",
                missing.record.id
            );
            return Err(Problem::new(Reason::DiskNotAdded, message));
        }
        let added = pool.add_disk(NewPoolDisk { disk, overwrite_foreign_data: overwrite }).await;
        added.map_err(|error| Problem::new(Reason::DiskNotInUse, format!("{path} is not added: {error}")))
    }
}

/// What is wrong with a disk that held a pool of ours and cannot be read.
fn damage_of(path: &str, content: DiskContent) -> Option<DiskRefusal> {
    let disk = path.to_owned();
    match content {
        DiskContent::Foreign(content) if content.is_damaged_pool() => {
            Some(DiskRefusal::Foreign { disk, content })
        }
        DiskContent::Unusable(source) => Some(DiskRefusal::Unusable { disk, source }),
        DiskContent::Blank | DiskContent::Foreign(_) | DiskContent::Pool(_) => None,
    }
}

/// What a disk is that says that it is of the pool, and that the pool does not run on.
fn of_the_pool(pool: &Pool, path: &str, found: &Superblock) -> Problem {
    let known = pool.disks().into_iter().find(|disk| disk.record.id == found.disk);
    let known = known.map(|disk| disk.name);
    if let (Some(None), Some(outdated)) = (&known, pool.outdated(path, found)) {
        return Problem::new(Reason::DiskOutdated, outdated);
    }
    match known {
        Some(None) => {
            let message = format!(
                "{path} is a disk of the pool that was not there when the daemon started: restart the daemon"
            );
            Problem::new(Reason::DiskAwaitsRestart, message)
        }
        // A restart would find two that say the same, and could not tell which one is the later.
        Some(Some(original)) => {
            let message = format!(
                "{path} is a copy of {original}, which the pool runs on, or another path to it: take {path} out of spec.pools[].disks before the \
                 daemon starts anew; if it is a disk of its own that is to be used otherwise, wipe it then: basaltd pool wipe {path} \
                 --destroy-pool {}",
                pool.id()
            );
            Problem::new(Reason::DiskNotInUse, message)
        }
        None => {
            let message = format!(
                "{path} says that it is a disk of the pool, and the pool does not know it: it is of an earlier or later state of the pool, or \
                 of a copy of it. Take {path} out of spec.pools[].disks before the daemon starts anew"
            );
            Problem::new(Reason::DiskNotInUse, message)
        }
    }
}

/// Takes what the disks of a pool that was just imported have grown by. What is wrong, if that does not work: the pool is as large as
/// it was then.
pub(crate) async fn grow_disks(pool: &Pool) -> Option<Problem> {
    if !matches!(pool.health(), PoolHealth::Online) {
        return None;
    }
    let mut problem = None;
    for (index, disk) in (0..).zip(pool.disks()) {
        let Some(name) = disk.name else { continue };
        if let Err(error) = pool.grow_disk(index).await {
            problem = problem.or_else(|| Some(not_grown(&name, &error)));
        }
    }
    problem
}

fn not_grown(path: &str, error: &GrowError) -> Problem {
    Problem::new(Reason::DiskFailed, format!("{path} cannot be used to its end: {error}"))
}
