//! The report: what is, from what the agent and its pools know.

use basalt_lvol::{Pool, PoolHealth as Health, ReadOnlyReason};

use crate::agent::Inner;
use crate::desired::{Content, DesiredNode, DesiredPool, DesiredVolume, Provision};
use crate::disk_health::DiskWatch;
use crate::items::{Items, Key, PoolItem};
use crate::report::{
    DeletedVolume, DiskHealth, DiskReport, NodeReport, PoolHealth, PoolReport, Problem, Reason, VolumeHealth,
    VolumeReport,
};

impl Inner {
    /// What is now.
    pub(crate) fn observe(&self) -> NodeReport {
        let not_kept = self.not_kept.borrow().clone();
        let Some(desired) = self.desired.borrow().clone() else {
            return NodeReport { problems: not_kept.into_iter().collect(), ..NodeReport::default() };
        };
        let mut items = self.items.borrow_mut();
        items.forget_all_but(&desired);
        items.look_at_usage(self.handle.now());
        NodeReport {
            revision: desired.revision,
            settled: items.is_settled(&desired),
            pools: desired.pools.iter().map(|pool| pool_report(&items, pool)).collect(),
            volumes: desired.volumes.iter().map(|volume| volume_report(&items, &desired, volume)).collect(),
            deleted: deleted(&items, &desired),
            endpoints: items.endpoints(),
            problems: not_kept.into_iter().chain(problems(&items, &desired)).collect(),
        }
    }
}

fn deleted(items: &Items, desired: &DesiredNode) -> Vec<DeletedVolume> {
    let carried_out = |volume, generation| items.deleted.get(&volume) == Some(&generation);
    desired
        .tombstones
        .iter()
        .filter(|tombstone| carried_out(tombstone.volume, tombstone.generation))
        .map(|tombstone| DeletedVolume { id: tombstone.volume, generation: tombstone.generation })
        .collect()
}

fn problems<'a>(items: &'a Items, desired: &'a DesiredNode) -> impl Iterator<Item = Problem> + 'a {
    let listeners = desired.listeners.iter().map(|listener| Key::Listener(listener.bind));
    let deletions = desired.tombstones.iter().map(|tombstone| Key::Deletion(tombstone.volume));
    let failures = listeners.chain(deletions).filter_map(|key| items.failure(&key));
    failures.map(|failure| failure.problem.clone())
}

/// How a pool comes to other disks.
const AFRESH: &str =
    "take the pool out of spec.pools if it holds nothing, and name it anew once that is in effect";

fn not_in_use(path: &str) -> Problem {
    let message = format!(
        "{path} is not a disk of the pool, which runs on the disks that it began with; disks cannot be exchanged yet: name those again, and \
         this one beside them, or {AFRESH}"
    );
    Problem::new(Reason::DiskNotInUse, message)
}

fn still_in_use(path: &str) -> Problem {
    let message = format!(
        "{path} is a disk of the pool and is not named any more; disks cannot be taken away yet: name it again before the daemon starts anew, \
         or what lies on it will be missing; or {AFRESH}"
    );
    Problem::new(Reason::DiskNotNamed, message)
}

/// What is said of an open pool that runs without a disk of its own, whether that is named or not.
fn without_disk(item: &PoolItem, pool: &Pool, desired: &DesiredPool) -> Option<Problem> {
    let disks = pool.disks();
    let missing = disks.iter().find(|disk| disk.name.is_none())?;
    let named = desired.disks.iter().map(|disk| disk.path.as_str()).filter(|path| !item.runs_on(path));
    let seen = named.filter_map(|path| item.disks.iter().find(|seen| seen.path == path));
    // Which of them is the one that is missing, nobody knows.
    let told: Vec<&str> = seen.filter_map(|seen| Some(seen.problem.as_ref()?.message.as_str())).collect();
    let why = match told[..] {
        [] => "name the path that it has in spec.pools[].disks, and restart the daemon".to_owned(),
        _ => told.join("; "),
    };
    let message = format!(
        "the pool runs without its disk {}, and what lies on that is not served: {why}",
        missing.record.id
    );
    Some(Problem::new(Reason::DiskMissing, message))
}

/// What is said of an open pool that was made otherwise than is asked for now.
fn made_otherwise(pool: &Pool, desired: &DesiredPool) -> Option<Problem> {
    let kib = |bytes: u64| format!("units of {} KiB", bytes >> 10);
    let (reason, is, wanted) = match () {
        () if pool.layout() != desired.layout => {
            (Reason::PoolLayoutDiffers, format!("{:?}", pool.layout()), format!("{:?}", desired.layout))
        }
        () if pool.extent_bytes() != desired.extent_bytes => {
            let is = format!("with {}", kib(pool.extent_bytes()));
            (Reason::PoolUnitDiffers, is, kib(desired.extent_bytes))
        }
        () => return None,
    };
    let message = format!(
        "the pool was made {is} and stays so, while what is asked for is {wanted}: take it out of spec.pools if it holds nothing, and name it as \
         it is; or wipe its disks then, for a new one, with basaltd pool wipe DISK --destroy-pool {} on the node",
        pool.id()
    );
    Some(Problem::new(reason, message))
}

/// What was found to be wrong with an open pool's metadata and could not be made good.
fn rotten(pool: &Pool) -> Option<Problem> {
    let open = pool.scrub_status().open;
    let first = open.first()?;
    let more = match open.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more, which the daemon's log names)"),
    };
    let message = format!("{}: {}{more}", first.subject, first.explanation);
    Some(Problem::new(Reason::PoolDamaged, message))
}

/// How the disks fare that a pool runs on and that are not named any more.
fn unnamed<'a>(item: &'a PoolItem, desired: &'a DesiredPool) -> impl Iterator<Item = &'a DiskWatch> {
    item.watches.iter().filter(|watch| desired.disks.iter().all(|disk| disk.path != watch.path()))
}

fn unnamed_disks<'a>(
    item: Option<&'a PoolItem>,
    desired: &'a DesiredPool,
) -> impl Iterator<Item = DiskReport> + 'a {
    item.into_iter().flat_map(move |item| unnamed(item, desired)).map(|watch| {
        let (health, problem) = watch.judgement();
        let path = watch.path().to_owned();
        let problem = problem.unwrap_or_else(|| still_in_use(&path));
        DiskReport { path, health, capacity: watch.capacity(), problem: Some(problem) }
    })
}

fn pool_report(items: &Items, desired: &DesiredPool) -> PoolReport {
    let item = items.pools.get(&desired.name);
    let disks = desired.disks.iter().map(|disk| {
        let seen = item.and_then(|item| item.disks.iter().find(|report| report.path == disk.path));
        let watch = item.and_then(|item| item.watches.iter().find(|watch| watch.path() == disk.path));
        if let (Some(seen), Some((health, Some(problem)))) = (seen, watch.map(DiskWatch::judgement)) {
            return DiskReport { health, problem: Some(problem), ..seen.clone() };
        }
        seen.cloned().unwrap_or_else(|| DiskReport {
            path: disk.path.clone(),
            health: DiskHealth::Offline,
            capacity: 0,
            problem: item.and_then(|item| item.pool.as_ref()).map(|_| not_in_use(&disk.path)),
        })
    });
    let disks = disks.chain(unnamed_disks(item, desired)).collect();
    let failure = items.failure(&Key::Pool(desired.name.clone()));
    let Some((item, pool)) = item.and_then(|item| item.pool.as_ref().map(|pool| (item, pool))) else {
        return PoolReport {
            name: desired.name.clone(),
            id: desired.id,
            health: if failure.is_some() { PoolHealth::Faulted } else { PoolHealth::Pending },
            capacity: 0,
            used: 0,
            allocation_unit: desired.extent_bytes,
            disks,
            problem: failure.map(|failure| failure.problem.clone()),
        };
    };
    let trouble = || {
        let unnamed = unnamed(item, desired).next().map(|watch| still_in_use(watch.path()));
        unnamed
            .or_else(|| without_disk(item, pool, desired))
            .or_else(|| item.displaced_disk())
            .or_else(|| failure.map(|failure| failure.problem.clone()))
            .or_else(|| item.problem.clone())
            .or_else(|| made_otherwise(pool, desired))
            .or_else(|| rotten(pool))
    };
    let (health, problem) = match pool.health() {
        Health::Online => match item.failing_disk() {
            Some(problem) => (PoolHealth::ReadOnly, Some(problem)),
            None => (PoolHealth::Online, trouble()),
        },
        Health::ReadOnly(reason) => {
            let missing = match reason {
                ReadOnlyReason::Unreadable => without_disk(item, pool, desired),
                _ => None,
            };
            let missing = missing.map(|Problem { reason, message }| {
                Problem::new(reason, format!("{message}; nothing can be written to the pool before that"))
            });
            (PoolHealth::ReadOnly, missing.or_else(|| Some(Problem::new(Reason::PoolReadOnly, reason))))
        }
    };
    PoolReport {
        name: desired.name.clone(),
        id: Some(pool.id()),
        health,
        capacity: pool.capacity(),
        used: items.usage.of_pool(&desired.name),
        allocation_unit: pool.extent_bytes(),
        disks,
        problem,
    }
}

fn volume_report(items: &Items, desired: &DesiredNode, volume: &DesiredVolume) -> VolumeReport {
    let item = items.volumes.get(&volume.id);
    let applied = item.and_then(|item| item.applied.as_ref());
    let health = volume_health(items, desired, volume);
    let paths = if health == VolumeHealth::Online && volume.serve { items.endpoints() } else { Vec::new() };
    VolumeReport {
        id: volume.id,
        generation: applied.map_or(Default::default(), |applied| applied.generation),
        health,
        size: item.map_or(0, |item| item.size),
        allocated: items.usage.of_volume(volume.id),
        shortfall: item.filter(|item| item.exported).and_then(|_| shortfall(items, volume)),
        paths,
    }
}

/// Why a volume that is served is not all that was ordered.
fn shortfall(items: &Items, volume: &DesiredVolume) -> Option<Problem> {
    let failure = items.failure(&Key::Volume(volume.id)).map(|failure| failure.problem.clone());
    failure.or_else(|| match items.pool(&volume.pool)?.health() {
        Health::Online => None,
        Health::ReadOnly(reason) => {
            let message = format!(
                "hosts can read; what they write may be refused, for pool {} takes no change: {reason}",
                volume.pool
            );
            Some(Problem::new(Reason::PoolReadOnly, message))
        }
    })
}

fn volume_health(items: &Items, desired: &DesiredNode, volume: &DesiredVolume) -> VolumeHealth {
    let unavailable = |reason, message: String| VolumeHealth::Unavailable(Problem::new(reason, message));
    let item = items.volumes.get(&volume.id);
    if item.is_some_and(|item| item.exported) {
        let pool = items.pools.get(&volume.pool);
        let failing = pool.and_then(|pool| pool.failing_disk_of(volume.id));
        return match (items.listeners.is_empty(), failing) {
            (true, _) => unavailable(Reason::NoListener, "the node listens on no address".to_owned()),
            (false, Some(problem)) => {
                unavailable(problem.reason, format!("pool {}: {}", volume.pool, problem.message))
            }
            (false, None) => VolumeHealth::Online,
        };
    }
    let pool = &volume.pool;
    if !desired.pools.iter().any(|desired| desired.name == *pool) {
        return unavailable(Reason::PoolUnknown, format!("the node has no pool {pool}"));
    }
    if items.pool(pool).is_none() {
        return match items.failure(&Key::Pool(pool.clone())) {
            Some(failure) if failure.lost => VolumeHealth::Faulted(failure.problem.clone()),
            Some(failure) => {
                unavailable(Reason::PoolNotReady, format!("pool {pool}: {}", failure.problem.message))
            }
            None => opening(volume),
        };
    }
    match items.failure(&Key::Volume(volume.id)) {
        Some(failure) if failure.lost => VolumeHealth::Faulted(failure.problem.clone()),
        Some(failure) => VolumeHealth::Unavailable(failure.problem.clone()),
        // Nobody is served by a snapshot: it is there, and that is all.
        None if item.is_some_and(|item| item.applied.is_some())
            && matches!(volume.content, Content::SnapshotOf(_)) =>
        {
            VolumeHealth::Online
        }
        None if item.is_some_and(|item| item.applied.is_some()) => {
            unavailable(Reason::NotServed, "the volume is put aside".to_owned())
        }
        None => opening(volume),
    }
}

/// The health of a volume that was not tried yet.
fn opening(volume: &DesiredVolume) -> VolumeHealth {
    match volume.provision {
        Provision::Create => VolumeHealth::Creating,
        Provision::Expect => {
            let message = "the volume is being taken into service";
            VolumeHealth::Unavailable(Problem::new(Reason::PoolNotReady, message))
        }
    }
}
