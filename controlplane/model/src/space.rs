//! What volumes take from a pool: room of their own, or a promise that shares what is left.
//!
//! A thick volume has all of its space from the beginning: its guarantee. Thin volumes share the rest of the pool, and together
//! may be promised more than that, up to the pool's [`OverProvisioning`]; when the pool is full, it is their first writes that
//! are refused, and nothing that a thick volume was given. `docs/decisions/0050` says why the rules are these.

use crate::ids::Bytes;
use crate::node::PoolObserved;
use serde::{Deserialize, Serialize};

/// Above this part of a pool (in hundredths) nothing thin is placed on it any more.
pub const NEAR_FULL: u64 = 85;

/// Of this part of a pool (in hundredths) its node gives whole units of allocation to first writes of thin volumes, and refuses them then.
pub const FULL: u64 = 95;

/// How much thin volumes may be promised together, in hundredths of what thick volumes leave of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OverProvisioning(pub u32);

impl OverProvisioning {
    /// The least: thin volumes are promised no more than there is.
    pub const MIN: Self = Self(100);
    /// The most.
    pub const MAX: Self = Self(10_000);

    /// Whether it is what pools have that say nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Default for OverProvisioning {
    fn default() -> Self {
        Self(400)
    }
}

/// What volumes take from one pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claim {
    /// Room that nobody else is given.
    pub guaranteed: Bytes,
    /// The sizes of volumes that take space when it is first written.
    pub promised: Bytes,
    /// What of the guaranteed room is taken already, as far as it was reported.
    pub held: Bytes,
}

impl Claim {
    /// Adds another one.
    pub fn add(&mut self, other: Self) {
        self.guaranteed.0 += other.guaranteed.0;
        self.promised.0 += other.promised.0;
        self.held.0 += other.held.0;
    }

    /// All of it, whatever its kind.
    pub fn total(self) -> Bytes {
        Bytes(self.guaranteed.0 + self.promised.0)
    }

    /// Takes one out that was added before.
    pub(crate) fn remove(&mut self, other: Self) {
        self.guaranteed.0 -= other.guaranteed.0;
        self.promised.0 -= other.promised.0;
        self.held.0 -= other.held.0;
    }
}

/// The room of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Space for data, whether used or free.
    pub capacity: Bytes,
    /// What holds data and is nobody's guaranteed room: written by thin volumes, and kept by snapshots.
    pub written: Bytes,
    /// What volumes take from it.
    pub claim: Claim,
    /// More than [`NEAR_FULL`] is used.
    pub near_full: bool,
    over: OverProvisioning,
}

impl Room {
    /// The room of a pool as it was reported, with what volumes take from it.
    pub fn new(pool: &PoolObserved, over: OverProvisioning, claim: Claim) -> Self {
        Self {
            capacity: pool.capacity,
            written: Bytes(pool.used.0.saturating_sub(claim.held.0)),
            claim,
            near_full: is_near_full(pool.used, pool.capacity),
            over,
        }
    }

    /// What thick volumes leave.
    fn shared(&self) -> Bytes {
        Bytes(self.capacity.0.saturating_sub(self.claim.guaranteed.0))
    }

    /// The most that can still be guaranteed: what nobody has, and without which thin volumes are promised no more than they may be.
    pub fn for_guarantee(&self) -> Bytes {
        let shared = self.shared().0;
        let needed = (u128::from(self.claim.promised.0) * 100).div_ceil(u128::from(self.over.0.max(1)));
        let needed = u64::try_from(needed).unwrap_or(u64::MAX).max(self.written.0);
        Bytes(shared.saturating_sub(needed))
    }

    /// The most that thin volumes can still be promised.
    pub fn for_promise(&self) -> Bytes {
        if self.near_full {
            return Bytes(0);
        }
        let most = u128::from(self.shared().0) * u128::from(self.over.0) / 100;
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        Bytes(most.saturating_sub(self.claim.promised.0))
    }
}

/// Whether more than [`NEAR_FULL`] of a pool is used.
pub fn is_near_full(used: Bytes, capacity: Bytes) -> bool {
    exceeds(used, capacity, NEAR_FULL)
}

/// Whether a pool's node gives no space to first writes any more. One that shows no capacity is not in service and says nothing.
pub fn is_full(pool: &PoolObserved) -> bool {
    let unit = pool.allocation_unit.0.max(1);
    let units = u128::from(pool.capacity.0 / unit);
    units > 0 && u128::from(pool.used.0 / unit) >= units * u128::from(FULL) / 100
}

fn exceeds(used: Bytes, capacity: Bytes, hundredths: u64) -> bool {
    u128::from(used.0) * 100 > u128::from(capacity.0) * u128::from(hundredths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::PoolHealth;
    use std::collections::BTreeMap;

    fn pool(used: u64, capacity: u64, unit: u64) -> PoolObserved {
        PoolObserved {
            id: None,
            health: PoolHealth::Online,
            capacity: Bytes(capacity),
            used: Bytes(used),
            allocation_unit: Bytes(unit),
            disks: BTreeMap::new(),
            problem: None,
        }
    }

    fn room(used: u64, claim: Claim) -> Room {
        Room::new(&pool(used, 100, 1), OverProvisioning(200), claim)
    }

    fn claim(guaranteed: u64, promised: u64, held: u64) -> Claim {
        Claim { guaranteed: Bytes(guaranteed), promised: Bytes(promised), held: Bytes(held) }
    }

    #[test]
    fn an_empty_pool_guarantees_all_and_promises_twice_that() {
        let room = room(0, Claim::default());
        assert_eq!((room.for_guarantee(), room.for_promise()), (Bytes(100), Bytes(200)));
    }

    #[test]
    fn thin_volumes_share_what_thick_ones_leave() {
        let room = room(40, claim(40, 100, 40));
        assert_eq!(room.for_promise(), Bytes(20));
        // Half of what was promised must stay, or it would be promised more than twice.
        assert_eq!(room.for_guarantee(), Bytes(10));
    }

    #[test]
    fn what_was_written_is_not_given_away() {
        assert_eq!(room(70, claim(40, 10, 40)).for_guarantee(), Bytes(30));
        // A thick volume that is being created has not taken its space yet.
        assert_eq!(room(30, claim(40, 10, 0)).for_guarantee(), Bytes(30));
    }

    #[test]
    fn near_full_nothing_is_promised_and_what_is_free_is_still_guaranteed() {
        let room = room(86, claim(86, 0, 86));
        assert_eq!((room.for_promise(), room.for_guarantee()), (Bytes(0), Bytes(14)));
        assert!(!is_near_full(Bytes(85), Bytes(100)));
    }

    #[test]
    fn a_pool_is_full_with_its_last_unit_for_first_writes() {
        for unit in [64 << 10, 1 << 20] {
            for (units, limit) in [(1000, 950), (123, 116), (40, 38), (3, 2)] {
                let full = |used| is_full(&pool(used * unit, units * unit, unit));
                assert!(!full(limit - 1) && full(limit) && full(units), "{units} units");
            }
        }
        assert!(!is_full(&pool(0, 0, 1 << 20)), "it was not reported yet");
    }
}
