//! How full a pool is, and what follows from that.

use std::rc::Rc;

use super::journal::Until;
use super::{Pool, Volume};
use crate::id::VolumeId;

/// Above this part of its capacity (in hundredths) a pool is near full: somebody should look.
const NEAR_FULL: u64 = 85;
/// So much of the extents (in hundredths, rounded down to whole ones) is given to first writes and to writes after a snapshot at most.
pub const RESERVE_LIMIT: u64 = 95;

/// How full a pool is. All but the counts in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// For data, on the disks that are present.
    pub capacity: u64,
    /// Taken, or not usable again yet.
    pub used: u64,
    /// The unit of allocation.
    pub extent: u64,
    /// Of that, kept from use because it may be a damaged volume's.
    pub withheld: u64,
    /// What the volumes could hold, snapshots left out. More than the capacity means that the pool is overcommitted.
    pub provisioned: u64,
    /// Volumes, snapshots left out.
    pub volumes: usize,
    /// Snapshots.
    pub snapshots: usize,
    /// Separate stretches of free space.
    pub free_runs: usize,
    /// Metadata areas.
    pub metadata_capacity: u64,
    /// Of these, in use.
    pub metadata_used: u64,
    /// One of the two journals.
    pub journal_capacity: u64,
    /// Of it, in use since the last checkpoint.
    pub journal_used: u64,
    /// Checkpoints that were written over the pool's life.
    pub checkpoints: u64,
    /// Groups of the journal that were written over the pool's life.
    pub journal_groups: u64,
}

impl PoolUsage {
    /// More than 0.85 of the capacity is used.
    #[must_use]
    pub fn is_near_full(&self) -> bool {
        exceeds(self.used, self.capacity, NEAR_FULL)
    }

    /// More than 0.90 is used: rebuilds onto the pool stop.
    #[must_use]
    pub fn stops_rebuilds(&self) -> bool {
        exceeds(self.used, self.capacity, 90)
    }

    /// No extent is given to first writes any more: that is so from the last one on that they may have.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let extent = self.extent.max(1);
        self.used / extent >= extent_limit(self.capacity / extent)
    }
}

fn exceeds(used: u64, capacity: u64, hundredths: u64) -> bool {
    u128::from(used) * 100 > u128::from(capacity) * u128::from(hundredths)
}

/// Extents that may be used before first writes are refused.
pub(super) fn extent_limit(total: u64) -> u64 {
    u64::try_from(u128::from(total) * u128::from(RESERVE_LIMIT) / 100).unwrap_or(total)
}

/// How much of a pool a volume takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeUsage {
    /// What the volume can hold.
    pub provisioned: u64,
    /// What of it lies somewhere, shared or not, in whole pieces.
    pub mapped: u64,
    /// Extents that this volume alone refers to.
    pub exclusive: u64,
}

impl Pool {
    /// How full the pool is.
    #[must_use]
    pub fn usage(&self) -> PoolUsage {
        let inner = &self.inner;
        let state = inner.state.borrow();
        let extent = inner.shared.extent_bytes;
        let page = crate::layout::PAGE_BYTES as u64;
        let (total, free) = (inner.pages.total() as u64, inner.pages.free().1 as u64);
        let mut usage = PoolUsage {
            capacity: state.space.total() * extent,
            used: (state.space.total() - state.space.free()) * extent,
            extent,
            withheld: state.withheld.iter().map(|run| u64::from(run.extents)).sum::<u64>() * extent,
            free_runs: state.space.free_runs(),
            metadata_capacity: total * page,
            metadata_used: (total - free) * page,
            journal_capacity: state.superblock.geometry.journal_bytes,
            journal_used: state.journal.used,
            checkpoints: state.superblock.sequence,
            journal_groups: state.journal.sequence.saturating_sub(1),
            ..PoolUsage::default()
        };
        for data in state.volumes.values().filter_map(Volume::data) {
            match data.record.flags.snapshot {
                true => usage.snapshots += 1,
                false => {
                    usage.volumes += 1;
                    usage.provisioned += data.record.size;
                }
            }
        }
        usage
    }

    /// Gives back in the background what was freed and could not be used again at once: changes of maps have to be durable before.
    /// Under load the next checkpoint does it; call this now and then for a pool that has come to rest.
    pub fn tidy(&self) {
        if self.inner.state.borrow().limbo.len() == 0 {
            return;
        }
        let inner = Rc::clone(&self.inner);
        drop(self.inner.handle.spawn(async move {
            // What fails is told by the pool's health.
            if inner.settle_maps(Until::Durable).await.is_ok() {
                inner.reclaim().await;
            }
        }));
    }

    /// What of each volume lies somewhere, shared or not, in bytes; snapshots included. Looks at no map.
    #[must_use]
    pub fn allocated(&self) -> Vec<(VolumeId, u64)> {
        let piece = self.inner.shared.extent_bytes / crate::layout::PIECES as u64;
        let state = self.inner.state.borrow();
        let volumes = state.volumes.iter().filter_map(|(id, volume)| Some((*id, volume.data()?)));
        volumes.map(|(id, data)| (id, data.tree.mapped() * piece)).collect()
    }

    /// How much of the pool a volume takes; `None` if it is not there or not understood. Looks at all of its map.
    #[must_use]
    pub fn volume_usage(&self, id: VolumeId) -> Option<VolumeUsage> {
        let state = self.inner.state.borrow();
        let data = state.volumes.get(&id)?.data()?;
        let extent = self.inner.shared.extent_bytes;
        let mut usage = VolumeUsage { provisioned: data.record.size, ..VolumeUsage::default() };
        data.tree.each(|at, pieces| {
            let (_, own) = data.own(at, &state.refs);
            usage.mapped += pieces.mapped() * extent / crate::layout::PIECES as u64;
            for place in pieces.places() {
                let within = pieces.within(place);
                if own & within == within {
                    usage.exclusive += extent;
                }
            }
        });
        Some(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_exceeded_and_not_met() {
        let at = |used| PoolUsage { capacity: 1000, used, extent: 1, ..PoolUsage::default() };
        assert!(!at(850).is_near_full() && at(851).is_near_full());
        assert!(!at(900).stops_rebuilds() && at(901).stops_rebuilds());
        assert_eq!((extent_limit(1000), extent_limit(3), extent_limit(0)), (950, 2, 0));
    }

    #[test]
    fn a_pool_is_full_when_its_last_extent_for_first_writes_is_taken() {
        for (extents, limit) in [(1000, 950), (123, 116), (40, 38), (21, 19), (3, 2), (953_674, 905_990)] {
            for extent in [64 << 10, 1 << 20] {
                let at = |used| PoolUsage {
                    capacity: extents * extent,
                    used: used * extent,
                    extent,
                    ..PoolUsage::default()
                };
                assert_eq!(extent_limit(extents), limit);
                assert!(!at(limit - 1).is_full() && at(limit).is_full(), "{extents} extents");
            }
        }
    }
}
