//! How much of pools and volumes is used, looked at now and then: under load it changes with every request, and each change that is
//! reported is a command of the control plane.

use std::collections::BTreeMap;
use std::time::Duration;

use basalt_clock::Instant;
use basalt_lvol::id::VolumeId;
use basalt_lvol::{Pool, PoolUsage};

/// How long what was seen is reported, unless work has ended or a threshold was crossed meanwhile.
const INTERVAL: Duration = Duration::from_secs(15);

/// What was seen last.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    seen_at: Option<Instant>,
    pools: BTreeMap<String, Seen>,
    allocated: BTreeMap<VolumeId, u64>,
}

/// A pool as it was seen last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    used: u64,
    thresholds: [bool; 3],
}

impl Seen {
    fn of(pool: &Pool) -> Self {
        let (capacity, extent) = (pool.capacity(), pool.extent_bytes());
        let usage = PoolUsage { capacity, used: capacity - pool.free(), extent, ..PoolUsage::default() };
        let thresholds = [usage.is_near_full(), usage.stops_rebuilds(), usage.is_full()];
        Self { used: usage.used, thresholds }
    }
}

impl Usage {
    /// Makes the next look a new one: something was created, deleted or changed.
    pub(crate) fn forget(&mut self) {
        self.seen_at = None;
    }

    /// Looks at the open pools and their volumes again, if it is time to.
    pub(crate) fn look<'a>(&mut self, now: Instant, pools: impl Iterator<Item = (&'a String, &'a Pool)>) {
        let pools: Vec<_> = pools.map(|(name, pool)| (name, pool, Seen::of(pool))).collect();
        let crossed = pools.iter().any(|(name, _, seen)| {
            self.pools.get(*name).is_none_or(|before| before.thresholds != seen.thresholds)
        });
        if !crossed && self.seen_at.is_some_and(|at| now.since(at) < INTERVAL) {
            return;
        }
        self.seen_at = Some(now);
        // What hosts have given back counts as free in the next look.
        pools.iter().for_each(|(_, pool, _)| pool.tidy());
        self.allocated = pools.iter().flat_map(|(_, pool, _)| pool.allocated()).collect();
        self.pools = pools.into_iter().map(|(name, _, seen)| (name.clone(), seen)).collect();
    }

    /// Bytes of a pool that are used.
    pub(crate) fn of_pool(&self, name: &str) -> u64 {
        self.pools.get(name).map_or(0, |seen| seen.used)
    }

    /// Bytes of a volume that lie on disks.
    pub(crate) fn of_volume(&self, id: VolumeId) -> u64 {
        self.allocated.get(&id).copied().unwrap_or(0)
    }
}
