//! Commands about volumes.

use super::Context;
use crate::command::{CreateVolume, FeatureLevel, Receipt, VolumeChange};
use crate::ids::{Bytes, NodeName, ObjectUid, VolumeId, VolumeName};
use crate::node::PoolHealth;
use crate::placement::{Demand, Placement};
use crate::refusal::{Feature, Field, Limited, Refusal, Rule};
use crate::space::Claim;
use crate::state::{Change, State};
use crate::volume::{
    AllowedHosts, Lifecycle, Tombstone, Volume, VolumeHealth, VolumeObserved, VolumeSpec, VolumeState,
};

/// The largest volume.
const SIZE_MAX: Bytes = Bytes(1 << 60);

impl State {
    pub(super) fn create_volume(
        &mut self,
        context: &mut Context<'_>,
        create: &CreateVolume,
    ) -> Result<Receipt, Refusal> {
        self.check_volume(&create.spec)?;
        if let Some(present) = self.volume_named(&create.name) {
            return same_volume(present, create).map(|()| Receipt::of(present));
        }
        if create.adopt {
            return self.adopt_volume(context, create);
        }
        if self.volumes.contains_key(&create.id) || self.snapshots.contains_key(&create.id) {
            return Err(Refusal::VolumeIdTaken { id: create.id });
        }
        if self.volumes.len() >= Self::MAX_VOLUMES {
            return Err(Refusal::LimitReached { what: Limited::Volumes, limit: Self::MAX_VOLUMES as u64 });
        }
        let demand = Demand { size: create.size, thin: create.spec.thin };
        if let Some(id) = create.restored_from {
            let snapshot = self.snapshot_to_restore(id, demand)?;
            // Its data is there, and only there.
            if snapshot.placement != create.placement {
                let Placement { node, pool } = create.placement.clone();
                return Err(Refusal::PoolNotUsable { node, pool });
            }
        }
        let footprint = self.room_for(&create.placement, demand, Claim::default())?.guaranteed;
        let epoch = self.issue_epoch();
        let volume = Volume {
            id: create.id,
            name: create.name.clone(),
            uid: create.uid.clone(),
            spec: create.spec.clone(),
            size: create.size,
            footprint,
            identity: create.identity.clone(),
            placement: create.placement.clone(),
            restored_from: create.restored_from,
            epoch,
            generation: 1,
            lifecycle: Lifecycle::Active,
            state: VolumeState::Creating,
            observed: None,
            provisioned: false,
            created_at: context.command.issued_at,
            created: context.revision,
            modified: context.revision,
        };
        self.index.add(&volume);
        context.changed(Change::Volume(volume.id));
        context.desired(&volume.placement.node);
        let receipt = Receipt::of(&volume);
        self.volumes.insert(volume.id, volume);
        Ok(receipt)
    }

    /// What a volume takes from a pool, if there is room for what it does not have yet.
    pub(super) fn room_for(
        &self,
        placement: &Placement,
        demand: Demand,
        has: Claim,
    ) -> Result<Claim, Refusal> {
        let Placement { node, pool } = placement.clone();
        let usable = self
            .nodes
            .get(&node)
            .filter(|node| node.spec.pools.contains_key(&pool))
            .and_then(|node| node.pool(&pool))
            .filter(|observed| observed.health == PoolHealth::Online);
        let (Some(observed), Some(room)) = (usable, self.room(placement)) else {
            return Err(Refusal::PoolNotUsable { node, pool });
        };
        self.check_whole(placement)?;
        if demand.thin && room.near_full {
            return Err(Refusal::PoolNearFull { node, pool });
        }
        let free = demand.most(&room);
        match demand.claim(observed.allocation_unit) {
            Some(claim) if claim.total().0 <= has.total().0.saturating_add(free.0) => Ok(claim),
            claim => {
                let needed = claim.map_or(SIZE_MAX, Claim::total);
                let needed = Bytes(needed.0 - has.total().0);
                Err(Refusal::PoolTooSmall { node, pool, free, needed })
            }
        }
    }

    /// Size and footprint of a volume that is asked to have at least this size. It never shrinks.
    fn grown(&self, volume: &Volume, asked: Bytes) -> Result<(Bytes, Bytes), Refusal> {
        let size = asked.round_up(Volume::SIZE_UNIT).unwrap_or(SIZE_MAX);
        if size <= volume.size {
            return Ok((volume.size, volume.footprint));
        }
        self.needs(FeatureLevel::THIN)?;
        if let Some(snapshot) = self.snapshots_to_take(volume).next() {
            let (volume, snapshot) = (volume.name.clone(), snapshot.name.clone());
            return Err(Refusal::BeingSnapshotted { volume, snapshot });
        }
        let demand = Demand { size, thin: volume.spec.thin };
        let claim = self.room_for(&volume.placement, demand, volume.claim())?;
        Ok((size, claim.guaranteed))
    }

    fn adopt_volume(&mut self, context: &mut Context<'_>, create: &CreateVolume) -> Result<Receipt, Refusal> {
        let released = self.volumes.get(&create.id).filter(|volume| volume.lifecycle == Lifecycle::Released);
        let Some(volume) = released else {
            return Err(self.nothing_to_adopt(create.id));
        };
        if self.level >= FeatureLevel::ADOPTION {
            self.check_adoption(volume, &create.spec)?;
        }
        // What it is stays what it is: older members did not look at what the new object says.
        let spec = VolumeSpec { thin: volume.spec.thin, ..create.spec.clone() };
        let (size, footprint) = self.grown(volume, spec.size)?;
        let node = volume.placement.node.clone();
        let epoch = self.issue_epoch();
        self.touch_volume(context, create.id, |volume| {
            volume.name = create.name.clone();
            volume.uid = create.uid.clone();
            volume.spec = spec;
            (volume.size, volume.footprint) = (size, footprint);
            volume.lifecycle = Lifecycle::Active;
            volume.epoch = epoch;
            volume.generation += 1;
        });
        context.desired(&node);
        Ok(Receipt::Volume { id: create.id })
    }

    /// Refuses a specification that is not true of what it adopts, and cannot become so.
    fn check_adoption(&self, volume: &Volume, spec: &VolumeSpec) -> Result<(), Refusal> {
        let Placement { node, pool } = &volume.placement;
        let placed = self.nodes.get(node).and_then(|node| node.spec.pools.get(pool));
        let differs = match () {
            () if spec.size < volume.size => {
                Some((Field::Size, format!("at least {}Mi, for a volume never shrinks", volume.size.0 >> 20)))
            }
            () if spec.thin != volume.spec.thin => {
                Some((Field::Thin, format!("{}; delete this object and create it so", volume.spec.thin)))
            }
            () if placed.is_some_and(|placed| !spec.selector.chooses(node, pool, placed)) => {
                Some((Field::Topology, format!("true of pool {pool} of node {node}, where it is")))
            }
            () => None,
        };
        match differs {
            Some((field, is)) => Err(Refusal::AdoptedAsItIs { id: volume.id, field, is }),
            None => Ok(()),
        }
    }

    /// Why nothing of this id can be adopted.
    pub(super) fn nothing_to_adopt(&self, id: VolumeId) -> Refusal {
        let volume = self.volumes.get(&id).filter(|volume| volume.lifecycle == Lifecycle::Active);
        let snapshot = self.snapshots.get(&id).filter(|snapshot| snapshot.lifecycle == Lifecycle::Active);
        let present = match (volume, snapshot) {
            (Some(volume), _) => format!("volume {}", volume.name),
            (None, Some(snapshot)) => format!("snapshot {}", snapshot.name),
            (None, None) => return Refusal::NothingToAdopt { id },
        };
        match self.level >= FeatureLevel::ADOPTION {
            true => Refusal::NotPutAside { id, present },
            false => Refusal::NothingToAdopt { id },
        }
    }

    pub(super) fn update_volume(
        &mut self,
        context: &mut Context<'_>,
        name: &VolumeName,
        uid: Option<&ObjectUid>,
        change: &VolumeChange,
    ) -> Result<Receipt, Refusal> {
        let volume = self.active(name, uid)?;
        let (id, node) = (volume.id, volume.placement.node.clone());
        let mut spec = volume.spec.clone();
        if let Some(hosts) = &change.allowed_hosts {
            spec.allowed_hosts = hosts.clone();
        }
        if let Some(reclaim) = change.reclaim {
            spec.reclaim = reclaim;
        }
        if let Some(read_only) = change.read_only {
            spec.read_only = read_only;
        }
        if let Some(size) = change.size {
            if size < spec.size {
                return Err(Refusal::OutOfRange { field: Field::Size, rule: Rule::NotShrink });
            }
            spec.size = size;
        }
        self.check_volume(&spec)?;
        if spec == volume.spec {
            return Ok(Receipt::Volume { id });
        }
        let (size, footprint) = self.grown(volume, spec.size)?;
        let is = &volume.spec;
        let node_acts =
            spec.allowed_hosts != is.allowed_hosts || spec.read_only != is.read_only || size > volume.size;
        self.touch_volume(context, id, |volume| {
            volume.spec = spec;
            (volume.size, volume.footprint) = (size, footprint);
            volume.generation += u64::from(node_acts);
        });
        if node_acts {
            context.desired(&node);
        }
        Ok(Receipt::Volume { id })
    }

    pub(super) fn delete_volume(
        &mut self,
        context: &mut Context<'_>,
        name: &VolumeName,
        uid: Option<&ObjectUid>,
    ) -> Result<Receipt, Refusal> {
        let cluster = self.cluster.ok_or(Refusal::NotBootstrapped)?;
        let volume = self.owned(name, uid)?;
        let id = volume.id;
        if matches!(volume.lifecycle, Lifecycle::Deleting(_)) {
            return Ok(Receipt::Volume { id });
        }
        let Placement { node, pool } = volume.placement.clone();
        let lost = self.nodes.get(&node).is_some_and(|node| node.is_lost(&pool));
        // What was put aside before it was taken never will be, once the volume's data is lost.
        let never = match lost && self.level >= FeatureLevel::POOLS {
            true => self.put_aside_untaken(volume),
            false => Vec::new(),
        };
        if let Some(snapshot) =
            self.snapshots_to_take(volume).find(|snapshot| never.iter().all(|(id, _)| *id != snapshot.id))
        {
            let (volume, snapshot) = (name.clone(), snapshot.name.clone());
            return Err(Refusal::BeingSnapshotted { volume, snapshot });
        }
        let generation = volume.generation + 1;
        let order = Tombstone { cluster, volume: id, generation, node: node.clone(), pool };
        if lost {
            for (volume, generation) in never {
                self.forget(context, Tombstone { volume, generation, ..order.clone() });
            }
            self.forget(context, order);
            return Ok(Receipt::Volume { id });
        }
        context.desired(&node);
        self.touch_volume(context, id, |volume| {
            volume.generation = generation;
            volume.lifecycle = Lifecycle::Deleting(order);
        });
        Ok(Receipt::Volume { id })
    }

    pub(super) fn release_volume(
        &mut self,
        context: &mut Context<'_>,
        name: &VolumeName,
        uid: Option<&ObjectUid>,
    ) -> Result<Receipt, Refusal> {
        let volume = self.active(name, uid)?;
        let (id, node) = (volume.id, volume.placement.node.clone());
        self.touch_volume(context, id, |volume| {
            volume.uid = None;
            volume.spec.allowed_hosts = AllowedHosts::default();
            volume.lifecycle = Lifecycle::Released;
            volume.generation += 1;
        });
        context.desired(&node);
        Ok(Receipt::Volume { id })
    }

    pub(super) fn confirm_deleted(
        &mut self,
        context: &mut Context<'_>,
        node: &NodeName,
        id: VolumeId,
        generation: u64,
    ) -> Result<Receipt, Refusal> {
        let confirmed = self.volumes.get(&id).is_some_and(|volume| match &volume.lifecycle {
            Lifecycle::Deleting(tombstone) => tombstone.node == *node && tombstone.generation == generation,
            _ => false,
        });
        if !confirmed && let Some(receipt) = self.confirm_snapshot_deleted(context, node, id, generation) {
            return Ok(receipt);
        }
        if !confirmed {
            return self.confirm_forgotten(context, node, id, generation);
        }
        self.remove_volume(context, id);
        Ok(Receipt::Volume { id })
    }

    /// Forgets a volume whose data is gone.
    pub(super) fn remove_volume(&mut self, context: &mut Context<'_>, id: VolumeId) {
        if let Some(volume) = self.volumes.remove(&id) {
            self.index.remove(&volume);
            context.desired(&volume.placement.node);
            context.changed(Change::VolumeRemoved(id, volume.name));
        }
    }

    /// The volume of this name and object.
    fn owned(&self, name: &VolumeName, uid: Option<&ObjectUid>) -> Result<&Volume, Refusal> {
        let volume = self.volume_named(name).ok_or_else(|| Refusal::NoSuchVolume { volume: name.clone() })?;
        if volume.uid.as_ref() == uid {
            Ok(volume)
        } else {
            Err(Refusal::NameTaken { name: name.to_string() })
        }
    }

    /// The volume of this name and object, which must be in use.
    fn active(&self, name: &VolumeName, uid: Option<&ObjectUid>) -> Result<&Volume, Refusal> {
        let volume = self.owned(name, uid)?;
        match volume.lifecycle {
            Lifecycle::Active => Ok(volume),
            Lifecycle::Released | Lifecycle::Deleting(_) => {
                Err(Refusal::BeingDeleted { volume: name.clone() })
            }
        }
    }

    fn check_volume(&self, spec: &VolumeSpec) -> Result<(), Refusal> {
        if spec.size.0 == 0 || spec.size > SIZE_MAX {
            return Err(Refusal::OutOfRange { field: Field::Size, rule: Rule::Positive });
        }
        match spec.replicas {
            0 => return Err(Refusal::OutOfRange { field: Field::Replicas, rule: Rule::AtLeastOne }),
            1 => {}
            _ => return Err(Refusal::Unsupported { what: Feature::Replication }),
        }
        if spec.thin {
            self.needs(FeatureLevel::THIN)?;
        }
        if spec.read_only {
            self.needs(FeatureLevel::READ_ONLY)?;
        }
        if spec.source.is_some() && !spec.thin {
            return Err(Refusal::OutOfRange { field: Field::Thin, rule: Rule::ThinAsItsSource });
        }
        if spec.allowed_hosts.0.len() > AllowedHosts::MAX {
            return Err(Refusal::OutOfRange { field: Field::AllowedHosts, rule: Rule::NotTooMany });
        }
        Ok(())
    }

    /// Changes a volume and what follows from it.
    pub(super) fn touch_volume(
        &mut self,
        context: &mut Context<'_>,
        id: VolumeId,
        change: impl FnOnce(&mut Volume),
    ) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        self.index.remove(volume);
        change(volume);
        volume.modified = context.revision;
        self.index.add(volume);
        context.changed(Change::Volume(id));
        self.refresh_volume(context, id);
    }

    /// Recomputes a volume's state.
    pub(super) fn refresh_volume(&mut self, context: &mut Context<'_>, id: VolumeId) {
        let Some(volume) = self.volumes.get_mut(&id) else { return };
        let node = &volume.placement.node;
        let live = self.nodes.get(node).is_some_and(|node| node.liveness.is_live());
        let observed = volume.observed.as_ref();
        let state = derive_state(&volume.lifecycle, observed, volume.provisioned, node, live);
        if state != volume.state {
            volume.state = state;
            volume.modified = context.revision;
            context.changed(Change::Volume(id));
        }
    }
}

/// What follows from all that is known about a volume or snapshot.
pub(super) fn derive_state(
    lifecycle: &Lifecycle,
    observed: Option<&VolumeObserved>,
    reported_once: bool,
    node: &NodeName,
    node_live: bool,
) -> VolumeState {
    match lifecycle {
        Lifecycle::Deleting(_) => return VolumeState::Deleting,
        Lifecycle::Released => return VolumeState::Released,
        Lifecycle::Active => {}
    }
    let Some(observed) = observed.filter(|_| reported_once || node_live) else {
        return VolumeState::Creating;
    };
    if !node_live {
        return VolumeState::Unavailable {
            reason: "NodeNotConnected".to_owned(),
            message: format!("node {node} is not connected to the control plane"),
        };
    }
    match &observed.health {
        VolumeHealth::Creating => VolumeState::Creating,
        VolumeHealth::Online => VolumeState::Online,
        VolumeHealth::Unavailable { reason, message } => {
            VolumeState::Unavailable { reason: reason.clone(), message: message.clone() }
        }
        VolumeHealth::Faulted { reason, message } => {
            VolumeState::Faulted { reason: reason.clone(), message: message.clone() }
        }
    }
}

/// Whether a volume that exists is the one that is being created again.
fn same_volume(present: &Volume, create: &CreateVolume) -> Result<(), Refusal> {
    if matches!(present.lifecycle, Lifecycle::Deleting(_)) {
        return Err(Refusal::BeingDeleted { volume: present.name.clone() });
    }
    if present.uid.is_none() || present.uid != create.uid {
        return Err(Refusal::NameTaken { name: present.name.to_string() });
    }
    let other = present.spec.size != create.spec.size || present.spec.source != create.spec.source;
    if other || (create.adopt && present.id != create.id) {
        return Err(Refusal::Different { volume: present.name.clone() });
    }
    Ok(())
}
