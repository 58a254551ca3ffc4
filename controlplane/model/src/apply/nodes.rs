//! Commands about nodes.

use super::Context;
use crate::command::{FeatureLevel, NodeReport, Receipt};
use crate::ids::{InstanceId, NodeName, ObjectUid, PoolId, PoolName};
use crate::node::{Cores, Liveness, Node, NodeObserved, NodeSpec};
use crate::refusal::{Field, Limited, Refusal, Rule};
use crate::space::OverProvisioning;
use crate::state::{Change, State};
use crate::volume::{Lifecycle, VolumeHealth, VolumeObserved};
use std::collections::{BTreeMap, BTreeSet};

/// Most pools of a node.
const POOLS_MAX: usize = 32;
/// Most disks of a pool.
const DISKS_MAX: usize = 64;
/// Most listeners of a node.
const LISTENERS_MAX: usize = 16;
/// Most reactor cores of a node.
const CORES_MAX: u32 = 1_024;
/// Most labels of a pool.
const LABELS_MAX: usize = 64;

impl State {
    pub(super) fn put_node(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
        uid: Option<&ObjectUid>,
        spec: &NodeSpec,
    ) -> Result<Receipt, Refusal> {
        check_spec(spec)?;
        if spec.pools.values().any(|pool| !pool.over_provisioning.is_default()) {
            self.needs(FeatureLevel::THIN)?;
        }
        if spec.pools.values().any(|pool| !pool.layout.is_default()) {
            self.needs(FeatureLevel::STRIPED)?;
        }
        if spec.pools.values().any(|pool| !pool.allocation_unit.is_default()) {
            self.needs(FeatureLevel::ALLOCATION_UNIT)?;
        }
        let Some(node) = self.nodes.get(name) else {
            return self.create_node(context, name, uid, spec);
        };
        check_uid(node.uid.as_ref(), uid, name)?;
        check_kept(node, spec)?;
        self.check_pools(node, spec)?;
        let node = self.nodes.get_mut(name).ok_or_else(|| Refusal::NoSuchNode { node: name.clone() })?;
        let adopted = node.uid.is_none() && uid.is_some();
        if node.spec == *spec && !adopted {
            return Ok(Receipt::Done);
        }
        if adopted {
            node.uid = uid.cloned();
        }
        if node.spec != *spec {
            node.pool_ids.retain(|pool, _| spec.pools.contains_key(pool));
            node.observed.pools.retain(|pool, _| spec.pools.contains_key(pool));
            node.abandoned_pools.retain(|pool| spec.pools.contains_key(pool));
            node.forgotten.retain(|tombstone| spec.pools.contains_key(&tombstone.pool));
            node.spec = spec.clone();
            context.desired(name);
        }
        node.modified = context.revision;
        context.changed(Change::Node(name.clone()));
        Ok(Receipt::Done)
    }

    fn create_node(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
        uid: Option<&ObjectUid>,
        spec: &NodeSpec,
    ) -> Result<Receipt, Refusal> {
        if self.nodes.len() >= Self::MAX_NODES {
            return Err(Refusal::LimitReached { what: Limited::Nodes, limit: Self::MAX_NODES as u64 });
        }
        let node = Node {
            name: name.clone(),
            uid: uid.cloned(),
            spec: spec.clone(),
            binding: None,
            abandoned: false,
            abandoned_pools: BTreeSet::new(),
            forgotten: Vec::new(),
            pool_ids: BTreeMap::new(),
            observed: NodeObserved::default(),
            liveness: Liveness::Never,
            desired: context.revision,
            created: context.revision,
            modified: context.revision,
        };
        self.nodes.insert(name.clone(), node);
        context.changed(Change::Node(name.clone()));
        context.desired(name);
        Ok(Receipt::Done)
    }

    pub(super) fn delete_node(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
        uid: Option<&ObjectUid>,
    ) -> Result<Receipt, Refusal> {
        let node = self.node(name)?;
        check_uid(node.uid.as_ref(), uid, name)?;
        let volumes = self.volumes_on(name).count() + self.snapshots_on(name).count();
        if volumes > 0 {
            return Err(Refusal::NodeHoldsVolumes { node: name.clone(), volumes: volumes as u64 });
        }
        self.nodes.remove(name);
        context.changed(Change::NodeRemoved(name.clone()));
        Ok(Receipt::Done)
    }

    pub(super) fn unbind_node(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
    ) -> Result<Receipt, Refusal> {
        if self.node(name)?.binding.is_some() {
            self.touch_node(context, name, |node| node.binding = None);
        }
        Ok(Receipt::Done)
    }

    pub(super) fn abandon_node(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
    ) -> Result<Receipt, Refusal> {
        self.needs(FeatureLevel::ABANDON)?;
        let node = self.node(name)?;
        if node.liveness.is_live() {
            return Err(Refusal::NodeConnected { node: name.clone() });
        }
        if !node.abandoned {
            self.touch_node(context, name, |node| {
                node.abandoned = true;
                node.binding = None;
            });
        }
        let going = self.volumes_on(name).filter(|volume| matches!(volume.lifecycle, Lifecycle::Deleting(_)));
        let ids: Vec<_> = going.map(|volume| volume.id).collect();
        for id in ids {
            self.remove_volume(context, id);
        }
        let going =
            self.snapshots_on(name).filter(|snapshot| matches!(snapshot.lifecycle, Lifecycle::Deleting(_)));
        let ids: Vec<_> = going.map(|snapshot| snapshot.id).collect();
        for id in ids {
            self.remove_snapshot(context, id);
        }
        Ok(Receipt::Done)
    }

    pub(super) fn bind_node(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
        instance: InstanceId,
    ) -> Result<Receipt, Refusal> {
        match self.node(name)?.binding {
            Some(bound) if bound == instance => Ok(Receipt::Done),
            Some(bound) => Err(Refusal::OtherInstance { node: name.clone(), bound }),
            None => {
                self.touch_node(context, name, |node| {
                    node.binding = Some(instance);
                    node.abandoned = false;
                });
                Ok(Receipt::Done)
            }
        }
    }

    pub(super) fn report_node(
        &mut self,
        context: &mut Context<'_>,
        report: &NodeReport,
    ) -> Result<Receipt, Refusal> {
        let node = self.node(&report.node)?;
        match node.binding {
            Some(bound) if bound == report.instance => {}
            Some(bound) => return Err(Refusal::OtherInstance { node: report.node.clone(), bound }),
            None => return Err(Refusal::NotBound { node: report.node.clone() }),
        }
        let Some(news) = self.news(report) else { return Ok(Receipt::Done) };
        if let Some(observed) = news.observed {
            let new_ids = new_pool_ids(self.node(&report.node)?, &observed);
            if !new_ids.is_empty() {
                context.desired(&report.node);
            }
            self.touch_node(context, &report.node, |node| {
                node.observed = observed;
                node.pool_ids.extend(new_ids);
                let mut abandoned = std::mem::take(&mut node.abandoned_pools);
                abandoned.retain(|pool| !node.has_online(pool));
                node.abandoned_pools = abandoned;
            });
        }
        for (id, observed) in news.volumes {
            if self.snapshots.contains_key(&id) {
                self.report_snapshot(context, &report.node, id, observed);
                continue;
            }
            let first = observed.health == VolumeHealth::Online
                && self.volumes.get(&id).is_some_and(|volume| !volume.provisioned);
            if first {
                context.desired(&report.node);
            }
            self.touch_volume(context, id, |volume| {
                volume.observed = Some(observed);
                volume.provisioned |= first;
            });
        }
        Ok(Receipt::Done)
    }

    /// The part of a report that would change the state; `None` when nothing would.
    pub fn news(&self, report: &NodeReport) -> Option<NodeReport> {
        let node = self.nodes.get(&report.node)?;
        let observed = report.observed.as_ref().map(|observed| {
            let mut observed = observed.clone();
            observed.boot = Some(report.boot);
            observed.pools.retain(|pool, _| node.spec.pools.contains_key(pool));
            observed
        });
        let observed = observed.filter(|o| node.observed != *o || !new_pool_ids(node, o).is_empty());
        let volumes: BTreeMap<_, _> = report
            .volumes
            .iter()
            .map(|(id, seen)| (*id, self.understood(seen)))
            .filter(|(id, seen)| {
                let volume = self.volumes.get(id).map(|volume| (&volume.placement, &volume.observed));
                let snapshot = || self.snapshots.get(id).map(|seen| (&seen.placement, &seen.observed));
                volume.or_else(snapshot).is_some_and(|(placement, observed)| {
                    placement.node == report.node && observed.as_ref() != Some(seen)
                })
            })
            .collect();
        if observed.is_none() && volumes.is_empty() {
            return None;
        }
        Some(NodeReport { observed, volumes, ..report.clone() })
    }

    /// What a daemon says of a volume, as far as all members keep it.
    fn understood(&self, seen: &VolumeObserved) -> VolumeObserved {
        let known = self.level >= FeatureLevel::THIN;
        let allocated = seen.allocated.filter(|_| known);
        let shortfall = seen.shortfall.clone().filter(|_| known);
        VolumeObserved { allocated, shortfall, ..seen.clone() }
    }

    pub(super) fn set_liveness(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
        liveness: Liveness,
    ) -> Result<Receipt, Refusal> {
        if self.node(name)?.liveness == liveness {
            return Ok(Receipt::Done);
        }
        self.touch_node(context, name, |node| node.liveness = liveness);
        let ids: Vec<_> = self.volumes_on(name).map(|volume| volume.id).collect();
        for id in ids {
            self.refresh_volume(context, id);
        }
        let ids: Vec<_> = self.snapshots_on(name).map(|snapshot| snapshot.id).collect();
        for id in ids {
            self.refresh_snapshot(context, id);
        }
        Ok(Receipt::Done)
    }

    pub(super) fn node(&self, name: &NodeName) -> Result<&Node, Refusal> {
        self.nodes.get(name).ok_or_else(|| Refusal::NoSuchNode { node: name.clone() })
    }

    pub(super) fn touch_node(
        &mut self,
        context: &mut Context<'_>,
        name: &NodeName,
        change: impl FnOnce(&mut Node),
    ) {
        if let Some(node) = self.nodes.get_mut(name) {
            change(node);
            node.modified = context.revision;
            context.changed(Change::Node(name.clone()));
        }
    }
}

/// The caller's UID must be the object's, once that is known.
fn check_uid(present: Option<&ObjectUid>, given: Option<&ObjectUid>, name: &NodeName) -> Result<(), Refusal> {
    match (present, given) {
        (Some(present), Some(given)) if present != given => {
            Err(Refusal::NameTaken { name: name.to_string() })
        }
        (Some(_), None) => Err(Refusal::NameTaken { name: name.to_string() }),
        _ => Ok(()),
    }
}

/// The UUIDs of pools that are reported for the first time.
fn new_pool_ids(node: &Node, observed: &NodeObserved) -> Vec<(PoolName, PoolId)> {
    let unknown = observed.pools.iter().filter(|(pool, _)| !node.pool_ids.contains_key(*pool));
    unknown.filter_map(|(pool, seen)| seen.id.map(|id| (pool.clone(), id))).collect()
}

/// A pool that is there keeps what it was made with.
fn check_kept(node: &Node, spec: &NodeSpec) -> Result<(), Refusal> {
    let made = node.spec.pools.iter().filter(|(pool, _)| node.pool_ids.contains_key(*pool));
    for (before, pool) in made.filter_map(|(pool, before)| Some((before, spec.pools.get(pool)?))) {
        let field = match () {
            () if before.layout != pool.layout => Field::Layout,
            () if before.allocation_unit != pool.allocation_unit => Field::AllocationUnit,
            () => continue,
        };
        return Err(Refusal::OutOfRange { field, rule: Rule::Kept });
    }
    Ok(())
}

fn check_spec(spec: &NodeSpec) -> Result<(), Refusal> {
    let out_of_range = |field, rule| Err(Refusal::OutOfRange { field, rule });
    if spec.listeners.is_empty() {
        return out_of_range(Field::Listeners, Rule::AtLeastOne);
    }
    if spec.listeners.len() > LISTENERS_MAX {
        return out_of_range(Field::Listeners, Rule::NotTooMany);
    }
    if spec.pools.len() > POOLS_MAX {
        return out_of_range(Field::Pools, Rule::NotTooMany);
    }
    let mut disks = BTreeSet::new();
    for pool in spec.pools.values() {
        if pool.disks.is_empty() {
            return out_of_range(Field::Disks, Rule::AtLeastOne);
        }
        if pool.disks.len() > DISKS_MAX || pool.labels.len() > LABELS_MAX {
            return out_of_range(Field::Disks, Rule::NotTooMany);
        }
        if !(OverProvisioning::MIN.0..=OverProvisioning::MAX.0).contains(&pool.over_provisioning.0) {
            return out_of_range(Field::OverProvisioning, Rule::Percentage);
        }
        if !pool.allocation_unit.is_possible() {
            return out_of_range(Field::AllocationUnit, Rule::Unit);
        }
        if !pool.disks.iter().all(|disk| disks.insert(disk)) {
            return out_of_range(Field::Disks, Rule::Distinct);
        }
    }
    match &spec.cores {
        Cores::Count(0) => out_of_range(Field::Cores, Rule::AtLeastOne),
        Cores::Count(count) if *count > CORES_MAX => out_of_range(Field::Cores, Rule::NotTooMany),
        Cores::Count(_) => Ok(()),
        Cores::List(list) if list.is_empty() => out_of_range(Field::Cores, Rule::AtLeastOne),
        Cores::List(list) if list.len() > CORES_MAX as usize => out_of_range(Field::Cores, Rule::NotTooMany),
        Cores::List(list) if list.iter().collect::<BTreeSet<_>>().len() != list.len() => {
            out_of_range(Field::Cores, Rule::Distinct)
        }
        Cores::List(_) => Ok(()),
    }
}
