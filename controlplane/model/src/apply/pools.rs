//! What may become of a node's pools: which disks stay named while a pool holds something, and where nothing new is put.

use crate::command::FeatureLevel;
use crate::ids::{DiskPath, NodeName, PoolName};
use crate::node::{DiskHealth, DiskObserved, Node, NodeSpec, PoolHealth, PoolObserved, PoolSpec};
use crate::placement::Placement;
use crate::refusal::Refusal;
use crate::state::State;

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
            if self.level >= FeatureLevel::POOLS && !node.abandoned {
                check_disks(node, pool, present, asked, volumes)?;
            }
        }
        Ok(())
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
    let missed = gone.iter().filter(|disk| !seen(disk).is_some_and(DiskObserved::is_not_the_pools));
    if let Some(disk) = missed.skip(named_anew).last() {
        let (node, pool, disk) = (node.name.clone(), pool.clone(), (*disk).clone());
        return Err(Refusal::DiskNeeded { node, pool, disk, volumes });
    }
    Ok(())
}
