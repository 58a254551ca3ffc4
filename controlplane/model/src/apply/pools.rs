//! What may become of a node's pools: which disks stay named while a pool holds something, where nothing new is put, and what follows when
//! the disks of one are given up.

use super::Context;
use crate::command::{FeatureLevel, Receipt};
use crate::ids::{DiskPath, NodeName, PoolName, VolumeId};
use crate::node::{DiskHealth, DiskObserved, Node, NodeSpec, PoolHealth, PoolObserved, PoolSpec};
use crate::placement::Placement;
use crate::refusal::Refusal;
use crate::state::State;
use crate::volume::Tombstone;

impl State {
    /// Refuses a specification that takes away pools that hold something, or disks that they need.
    pub(super) fn check_pools(&self, node: &Node, spec: &NodeSpec) -> Result<(), Refusal> {
        for (pool, present) in &node.spec.pools {
            let volumes = self.held(&node.name, pool);
            if volumes == 0 {
                continue;
            }
            let Some(asked) = spec.pools.get(pool) else {
                let (node, pool) = (node.name.clone(), pool.clone());
                return Err(Refusal::PoolHoldsVolumes { node, pool, volumes });
            };
            if self.level >= FeatureLevel::POOLS && !node.is_lost(pool) {
                check_disks(self.level, node, pool, present, asked, volumes)?;
            }
        }
        Ok(())
    }

    /// Lets deletions on a pool be without it. They are kept as orders all the same, for disks that were given up may come back.
    pub(super) fn abandon_pool(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
        pool: &PoolName,
    ) -> Result<Receipt, Refusal> {
        let node = self.node(name)?;
        if !node.spec.pools.contains_key(pool) {
            return Err(Refusal::NoSuchPool { node: name.clone(), pool: pool.clone() });
        }
        if node.has_online(pool) {
            return Err(Refusal::PoolOnline { node: name.clone(), pool: pool.clone() });
        }
        if !node.abandoned_pools.contains(pool) {
            self.touch_node(context, name, |node| {
                node.abandoned_pools.insert(pool.clone());
            });
        }
        let orders: Vec<_> = self.tombstones_on(name).filter(|order| order.pool == *pool).cloned().collect();
        orders.into_iter().for_each(|order| self.forget(context, order));
        Ok(Receipt::Done)
    }

    /// Forgets a volume or snapshot on a pool or node that was given up.
    pub(super) fn forget(&mut self, context: &mut Context<'_>, order: Tombstone) {
        let id = order.volume;
        if !self.volumes.contains_key(&id) && !self.snapshots.contains_key(&id) {
            return;
        }
        // A node that was given up as a whole is bound to no daemon that could be ordered anything.
        if self.nodes.get(&order.node).is_some_and(|node| !node.abandoned) {
            let node = order.node.clone();
            self.touch_node(context, &node, |node| node.forgotten.push(order));
        }
        self.remove_volume(context, id);
        self.remove_snapshot(context, id);
    }

    /// A node has carried out the order to delete what was forgotten.
    pub(super) fn confirm_forgotten(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
        id: VolumeId,
        generation: u64,
    ) -> Result<Receipt, Refusal> {
        let ordered = |order: &Tombstone| order.volume == id && order.generation == generation;
        if !self.nodes.get(name).is_some_and(|node| node.forgotten.iter().any(ordered)) {
            return Err(Refusal::NoSuchTombstone { volume: id });
        }
        self.touch_node(context, name, |node| node.forgotten.retain(|order| !ordered(order)));
        context.desired(name);
        Ok(Receipt::Done)
    }

    /// How many volumes and snapshots a pool holds.
    pub(super) fn held(&self, node: &NodeName, pool: &PoolName) -> u64 {
        let volumes = self.volumes_on(node).map(|volume| &volume.placement);
        let held = volumes.chain(self.snapshots_on(node).map(|snapshot| &snapshot.placement));
        held.filter(|placement| placement.pool == *pool).count() as u64
    }

    /// Refuses to put anything on a pool whose disks are not those that are named.
    pub(super) fn check_whole(&self, placement: &Placement) -> Result<(), Refusal> {
        let observed = self.nodes.get(&placement.node).and_then(|node| node.pool(&placement.pool));
        let problem = observed.and_then(PoolObserved::other_disks);
        let Some(problem) = problem.filter(|_| self.level >= FeatureLevel::POOLS) else { return Ok(()) };
        let (Placement { node, pool }, problem) = (placement.clone(), problem.message.clone());
        Err(Refusal::PoolHasOtherDisks { node, pool, problem })
    }
}

/// The disks of a pool that holds something are neither exchanged nor taken away, but one may be found under another path.
///
/// What the pool is running on stays named as it is. Anything else that may be its disk can be named anew, for nothing is lost by a
/// wrong name that can be corrected. An entry goes only if its node said that it is no disk of the pool.
fn check_disks(
    level: FeatureLevel,
    node: &Node,
    pool: &PoolName,
    present: &PoolSpec,
    asked: &PoolSpec,
    volumes: u64,
) -> Result<(), Refusal> {
    let gone: Vec<&DiskPath> = present.disks.iter().filter(|disk| !asked.disks.contains(disk)).collect();
    let seen = |disk: &DiskPath| node.observed.pools.get(pool).and_then(|seen| seen.disks.get(disk));
    let runs =
        node.pool(pool).is_some_and(|seen| matches!(seen.health, PoolHealth::Online | PoolHealth::ReadOnly));
    let in_service = |disk: &DiskPath| {
        let health = seen(disk).map(|disk| disk.health);
        runs && matches!(health, Some(DiskHealth::Online | DiskHealth::Suspected))
    };
    if let Some(disk) = gone.iter().find(|disk| in_service(disk)) {
        let (node, pool, disk) = (node.name.clone(), pool.clone(), (*disk).clone());
        return Err(Refusal::DiskInService { node, pool, disk, volumes });
    }
    let named_anew = asked.disks.iter().filter(|disk| !present.disks.contains(disk)).count();
    let stranger = |disk: &DiskObserved| {
        disk.is_not_the_pools() || (level >= FeatureLevel::COPIES && disk.may_be_a_copy())
    };
    let missed = gone.iter().filter(|disk| !seen(disk).is_some_and(stranger));
    if let Some(disk) = missed.skip(named_anew).last() {
        let (node, pool, disk) = (node.name.clone(), pool.clone(), (*disk).clone());
        return Err(Refusal::DiskNeeded { node, pool, disk, volumes });
    }
    Ok(())
}
