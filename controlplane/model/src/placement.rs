//! Choosing the pool for a new volume. Pure; the leader calls it before it proposes.

use crate::ids::{Bytes, NodeName, PoolName};
use crate::node::{PoolHealth, PoolSpec};
use crate::space::{Claim, Room};
use crate::state::State;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// Where a volume's data is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Placement {
    /// The node.
    pub node: NodeName,
    /// The pool on it.
    pub pool: PoolName,
}

/// What a user asks of a placement. An empty one fits every pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selector {
    /// Only on this node.
    pub node: Option<NodeName>,
    /// Only in pools of this name.
    pub pool: Option<PoolName>,
    /// Only in pools that have all these labels.
    pub labels: BTreeMap<String, String>,
}

impl Selector {
    /// Whether a volume may be in this pool.
    pub fn chooses(&self, node: &NodeName, pool: &PoolName, spec: &PoolSpec) -> bool {
        self.node.as_ref().is_none_or(|name| name == node)
            && self.pool.as_ref().is_none_or(|name| name == pool)
            && self.labels.iter().all(|(key, value)| spec.labels.get(key) == Some(value))
    }
}

/// Why no pool fits, by how many pools each reason rules out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoFit {
    /// Pools of the cluster.
    pub pools: u32,
    /// Ruled out by the volume's selector.
    pub not_selected: u32,
    /// On nodes that take no new volumes.
    pub unschedulable: u32,
    /// On nodes that are not connected.
    pub not_live: u32,
    /// Not yet, or not, in service.
    pub not_online: u32,
    /// Running on other disks than those that are named.
    #[serde(default)]
    pub other_disks: u32,
    /// Too full for anything thin.
    pub near_full: u32,
    /// Without enough free space.
    pub too_small: u32,
    /// The most free space among those that are too small.
    pub largest_free: Bytes,
    /// What is needed.
    pub demand: Demand,
}

/// What a new volume needs of a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Its size.
    pub size: Bytes,
    /// Whether it takes space only when it is written.
    pub thin: bool,
}

impl Demand {
    /// What it takes of a pool with this unit of allocation; `None` if that cannot be counted.
    pub fn claim(self, allocation_unit: Bytes) -> Option<Claim> {
        if self.thin {
            return Some(Claim { promised: self.size, ..Claim::default() });
        }
        self.size.round_up(allocation_unit).map(|size| Claim { guaranteed: size, ..Claim::default() })
    }

    /// The most of its kind that a pool can take.
    pub fn most(self, room: &Room) -> Bytes {
        if self.thin { room.for_promise() } else { room.for_guarantee() }
    }
}

impl std::error::Error for NoFit {}

impl fmt::Display for NoFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pools == 0 {
            return f.write_str("there is no pool yet");
        }
        if self.not_selected == self.pools {
            let pools = self.pools;
            return write!(
                f,
                "no pool is what spec.topology asks for (there are {pools}): check the names and labels in it"
            );
        }
        write!(f, "no pool can take it: of {} pools", self.pools)?;
        let reasons = [
            (self.not_selected, "not selected"),
            (self.unschedulable, "on unschedulable nodes"),
            (self.not_live, "on nodes that are not connected"),
            (self.not_online, "not online"),
            (self.other_disks, "running without some of their disks, or otherwise than is asked for"),
            (self.near_full, "too full for thin volumes"),
            (self.too_small, "with too little free space"),
        ];
        for (count, reason) in reasons.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {reason}")?;
        }
        if self.too_small > 0 {
            let (largest, needed) = (self.largest_free.0, self.demand.size.0);
            match self.demand.thin {
                true => write!(
                    f,
                    " (the largest may promise {largest} bytes more to thin volumes, {needed} are asked for; the pools' \
                     overProvisioningPercent sets the limit)"
                )?,
                false => write!(f, " (the largest has {largest} bytes free, {needed} are needed)")?,
            }
        }
        Ok(())
    }
}

impl NoFit {
    /// Whether pools may only not be there yet: none that could be asked is too small.
    #[must_use]
    pub const fn is_waiting(&self) -> bool {
        self.too_small == 0
            && self.near_full == 0
            && (self.pools == 0 || self.not_live > 0 || self.not_online > 0 || self.other_disks > 0)
    }
}

/// Chooses the fitting pool with the most free space; among equals the first by name.
///
/// `reserved` is space that commands which are not applied yet will take.
pub fn place(
    state: &State,
    selector: &Selector,
    demand: Demand,
    reserved: &BTreeMap<Placement, Claim>,
) -> Result<Placement, NoFit> {
    let mut refused = NoFit { demand, ..NoFit::default() };
    let mut best: Option<(Bytes, Placement)> = None;
    for node in state.nodes().values() {
        for (pool, spec) in &node.spec.pools {
            refused.pools += 1;
            if !selector.chooses(&node.name, pool, spec) {
                refused.not_selected += 1;
                continue;
            }
            if node.spec.unschedulable {
                refused.unschedulable += 1;
                continue;
            }
            if !node.liveness.is_live() {
                refused.not_live += 1;
                continue;
            }
            let Some(observed) = node.pool(pool).filter(|p| p.health == PoolHealth::Online) else {
                refused.not_online += 1;
                continue;
            };
            if observed.other_disks().or(observed.unfit()).is_some() {
                refused.other_disks += 1;
                continue;
            }
            let placement = Placement { node: node.name.clone(), pool: pool.clone() };
            let mut claim = state.claim(&placement);
            claim.add(reserved.get(&placement).copied().unwrap_or_default());
            let room = Room::new(observed, spec.over_provisioning, claim);
            if demand.thin && room.near_full {
                refused.near_full += 1;
                continue;
            }
            let free = demand.most(&room);
            let needed = demand.claim(observed.allocation_unit).map(Claim::total);
            if needed.is_none_or(|needed| needed > free) {
                refused.too_small += 1;
                refused.largest_free = refused.largest_free.max(free);
                continue;
            }
            if best.as_ref().is_none_or(|(most, _)| free > *most) {
                best = Some((free, placement));
            }
        }
    }
    best.map(|(_, placement)| placement).ok_or(refused)
}
