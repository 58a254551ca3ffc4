//! Commands about snapshots.

use super::Context;
use super::volumes::derive_state;
use crate::command::{CreateSnapshot, FeatureLevel, Receipt};
use crate::ids::{NodeName, ObjectUid, SnapshotName, VolumeId};
use crate::placement::{Demand, Placement};
use crate::refusal::{Limited, Refusal};
use crate::snapshot::Snapshot;
use crate::space::Claim;
use crate::state::{Change, State};
use crate::volume::{Lifecycle, Tombstone, Volume, VolumeHealth, VolumeObserved, VolumeState};

impl State {
    pub(super) fn create_snapshot(
        &mut self,
        context: &mut Context<'_>,
        create: &CreateSnapshot,
    ) -> Result<Receipt, Refusal> {
        if let Some(present) = self.snapshot_named(&create.name) {
            return same_snapshot(present, create).map(|()| Receipt::Snapshot { id: present.id });
        }
        if create.adopt {
            return self.adopt_snapshot(context, create);
        }
        if self.volumes.contains_key(&create.id) || self.snapshots.contains_key(&create.id) {
            return Err(Refusal::VolumeIdTaken { id: create.id });
        }
        if self.snapshots.len() >= Self::MAX_SNAPSHOTS {
            let limit = Self::MAX_SNAPSHOTS as u64;
            return Err(Refusal::LimitReached { what: Limited::Snapshots, limit });
        }
        let volume = self.volume_named(&create.volume);
        let volume = volume.ok_or_else(|| Refusal::NoSuchVolume { volume: create.volume.clone() })?;
        if volume.lifecycle != Lifecycle::Active {
            return Err(Refusal::BeingDeleted { volume: create.volume.clone() });
        }
        if !volume.provisioned {
            return Err(Refusal::VolumeNotReady { volume: create.volume.clone() });
        }
        let claim = self.room_for_snapshot(volume)?;
        let (source, size, placement) = (volume.id, volume.size, volume.placement.clone());
        let snapshot = Snapshot {
            id: create.id,
            name: create.name.clone(),
            uid: create.uid.clone(),
            volume: create.volume.clone(),
            source,
            size,
            footprint: claim.guaranteed,
            identity: create.identity.clone(),
            placement,
            epoch: self.issue_epoch(),
            generation: 1,
            lifecycle: Lifecycle::Active,
            state: VolumeState::Creating,
            observed: None,
            taken_at: None,
            created_at: context.command.issued_at,
            created: context.revision,
            modified: context.revision,
        };
        self.index.add_snapshot(&snapshot);
        context.changed(Change::Snapshot(snapshot.id));
        context.desired(&snapshot.placement.node);
        let id = snapshot.id;
        self.snapshots.insert(id, snapshot);
        Ok(Receipt::Snapshot { id })
    }

    /// What a snapshot takes from its pool. All of a thick volume may be overwritten after it, and every write must find space.
    fn room_for_snapshot(&self, volume: &Volume) -> Result<Claim, Refusal> {
        let demand = Demand { size: volume.size, thin: volume.spec.thin };
        self.check_whole(&volume.placement)?;
        if demand.thin {
            let Placement { node, pool } = volume.placement.clone();
            return match self.room(&volume.placement) {
                Some(room) if room.near_full => Err(Refusal::PoolNearFull { node, pool }),
                _ => Ok(Claim::default()),
            };
        }
        self.room_for(&volume.placement, demand, Claim::default())
    }

    fn adopt_snapshot(
        &mut self,
        context: &mut Context<'_>,
        create: &CreateSnapshot,
    ) -> Result<Receipt, Refusal> {
        let released = self.snapshots.get(&create.id);
        let Some(snapshot) = released.filter(|snapshot| snapshot.lifecycle == Lifecycle::Released) else {
            return Err(self.nothing_to_adopt(create.id));
        };
        if snapshot.volume != create.volume {
            return Err(Refusal::OfAnotherVolume { id: create.id, volume: snapshot.volume.clone() });
        }
        let (told, node) = (self.level >= FeatureLevel::NAMES, snapshot.placement.node.clone());
        self.touch_snapshot(context, create.id, |snapshot| {
            snapshot.name = create.name.clone();
            snapshot.uid = create.uid.clone();
            snapshot.lifecycle = Lifecycle::Active;
            snapshot.generation += u64::from(told);
        });
        if told {
            context.desired(&node);
        }
        Ok(Receipt::Snapshot { id: create.id })
    }

    pub(super) fn delete_snapshot(
        &mut self,
        context: &mut Context<'_>,
        name: &SnapshotName,
        uid: Option<&ObjectUid>,
    ) -> Result<Receipt, Refusal> {
        let cluster = self.cluster.ok_or(Refusal::NotBootstrapped)?;
        let snapshot = self.owned_snapshot(name, uid)?;
        let id = snapshot.id;
        if matches!(snapshot.lifecycle, Lifecycle::Deleting(_)) {
            return Ok(Receipt::Snapshot { id });
        }
        let Placement { node, pool } = snapshot.placement.clone();
        let restoring = self.volumes_on(&node).find(|volume| {
            let waits = volume.lifecycle == Lifecycle::Active && !volume.provisioned;
            waits && volume.restored_from == Some(id)
        });
        if let Some(volume) = restoring {
            let (snapshot, volume) = (name.clone(), volume.name.clone());
            return Err(Refusal::BeingRestored { snapshot, volume });
        }
        let lost = self.nodes.get(&node).is_some_and(|node| node.is_lost(&pool));
        let generation = snapshot.generation + 1;
        let order = Tombstone { cluster, volume: id, generation, node: node.clone(), pool };
        if lost {
            self.forget(context, order);
            return Ok(Receipt::Snapshot { id });
        }
        context.desired(&node);
        self.touch_snapshot(context, id, |snapshot| {
            snapshot.generation = generation;
            snapshot.lifecycle = Lifecycle::Deleting(order);
        });
        Ok(Receipt::Snapshot { id })
    }

    pub(super) fn release_snapshot(
        &mut self,
        context: &mut Context<'_>,
        name: &SnapshotName,
        uid: Option<&ObjectUid>,
    ) -> Result<Receipt, Refusal> {
        let snapshot = self.owned_snapshot(name, uid)?;
        let id = snapshot.id;
        if matches!(snapshot.lifecycle, Lifecycle::Deleting(_)) {
            return Err(Refusal::SnapshotBeingDeleted { snapshot: name.clone() });
        }
        self.touch_snapshot(context, id, |snapshot| {
            snapshot.uid = None;
            snapshot.lifecycle = Lifecycle::Released;
        });
        Ok(Receipt::Snapshot { id })
    }

    /// A node has carried out the tombstone of a snapshot; `None` if there is none of this id.
    pub(super) fn confirm_snapshot_deleted(
        &mut self,
        context: &mut Context<'_>,
        node: &NodeName,
        id: VolumeId,
        generation: u64,
    ) -> Option<Receipt> {
        let snapshot = self.snapshots.get(&id)?;
        let Lifecycle::Deleting(tombstone) = &snapshot.lifecycle else { return None };
        if tombstone.node != *node || tombstone.generation != generation {
            return None;
        }
        self.remove_snapshot(context, id);
        Some(Receipt::Snapshot { id })
    }

    /// Forgets a snapshot whose data is gone.
    pub(super) fn remove_snapshot(&mut self, context: &mut Context<'_>, id: VolumeId) {
        if let Some(snapshot) = self.snapshots.remove(&id) {
            self.index.remove_snapshot(&snapshot);
            context.desired(&snapshot.placement.node);
            context.changed(Change::SnapshotRemoved(id, snapshot.name));
        }
    }

    /// The snapshots that nobody has taken yet, of this volume: the volume has to stay until then.
    pub(super) fn snapshots_to_take(&self, volume: &Volume) -> impl Iterator<Item = &Snapshot> {
        let source = volume.id;
        self.snapshots_on(&volume.placement.node).filter(move |snapshot| {
            snapshot.source == source
                && snapshot.taken_at.is_none()
                && !matches!(snapshot.lifecycle, Lifecycle::Deleting(_))
        })
    }

    /// Those of them that were put aside, with the generation at which they go: nobody can delete them first, for they have no name any
    /// more.
    pub(super) fn put_aside_untaken(&self, volume: &Volume) -> Vec<(VolumeId, u64)> {
        let aside =
            self.snapshots_to_take(volume).filter(|snapshot| snapshot.lifecycle == Lifecycle::Released);
        aside.map(|snapshot| (snapshot.id, snapshot.generation + 1)).collect()
    }

    /// A node said something new about a snapshot.
    pub(super) fn report_snapshot(
        &mut self,
        context: &mut Context<'_>,
        node: &NodeName,
        id: VolumeId,
        observed: VolumeObserved,
    ) {
        let Some(snapshot) = self.snapshots.get(&id) else { return };
        let first = observed.health == VolumeHealth::Online && snapshot.taken_at.is_none();
        if first {
            context.desired(node);
        }
        let now = context.command.issued_at;
        self.touch_snapshot(context, id, |snapshot| {
            if first {
                snapshot.taken_at = Some(now);
                snapshot.size = observed.size;
            }
            snapshot.observed = Some(observed);
        });
    }

    /// The snapshot of this name and object.
    fn owned_snapshot(&self, name: &SnapshotName, uid: Option<&ObjectUid>) -> Result<&Snapshot, Refusal> {
        let missing = || Refusal::NoSuchSnapshot { snapshot: name.clone() };
        let snapshot = self.snapshot_named(name).ok_or_else(missing)?;
        match snapshot.uid.as_ref() == uid {
            true => Ok(snapshot),
            false => Err(Refusal::NameTaken { name: name.to_string() }),
        }
    }

    /// Changes a snapshot and what follows from it.
    pub(super) fn touch_snapshot(
        &mut self,
        context: &mut Context<'_>,
        id: VolumeId,
        change: impl FnOnce(&mut Snapshot),
    ) {
        let Some(snapshot) = self.snapshots.get_mut(&id) else { return };
        self.index.remove_snapshot(snapshot);
        change(snapshot);
        snapshot.modified = context.revision;
        self.index.add_snapshot(snapshot);
        context.changed(Change::Snapshot(id));
        self.refresh_snapshot(context, id);
    }

    /// Recomputes a snapshot's state.
    pub(super) fn refresh_snapshot(&mut self, context: &mut Context<'_>, id: VolumeId) {
        let Some(snapshot) = self.snapshots.get_mut(&id) else { return };
        let node = &snapshot.placement.node;
        let live = self.nodes.get(node).is_some_and(|node| node.liveness.is_live());
        let observed = snapshot.observed.as_ref();
        let state = derive_state(&snapshot.lifecycle, observed, snapshot.taken_at.is_some(), node, live);
        if state != snapshot.state {
            snapshot.state = state;
            snapshot.modified = context.revision;
            context.changed(Change::Snapshot(id));
        }
    }

    /// The snapshot that a volume is restored from.
    pub(super) fn snapshot_to_restore(&self, id: VolumeId, asked: Demand) -> Result<&Snapshot, Refusal> {
        self.needs(FeatureLevel::THIN)?;
        let snapshot = self.snapshots.get(&id).ok_or(Refusal::NothingToRestore { id })?;
        if !snapshot.is_usable() {
            return Err(Refusal::SnapshotNotReady { snapshot: snapshot.name.clone() });
        }
        if asked.size < snapshot.size {
            let (snapshot, size) = (snapshot.name.clone(), snapshot.size);
            return Err(Refusal::SmallerThanSnapshot { snapshot, size });
        }
        Ok(snapshot)
    }
}

/// Whether a snapshot that exists is the one that is being created again.
fn same_snapshot(present: &Snapshot, create: &CreateSnapshot) -> Result<(), Refusal> {
    if matches!(present.lifecycle, Lifecycle::Deleting(_)) {
        return Err(Refusal::SnapshotBeingDeleted { snapshot: present.name.clone() });
    }
    if present.uid.is_none() || present.uid != create.uid {
        return Err(Refusal::NameTaken { name: present.name.to_string() });
    }
    if present.volume != create.volume || (create.adopt && present.id != create.id) {
        return Err(Refusal::OfAnotherVolume { id: present.id, volume: present.volume.clone() });
    }
    Ok(())
}
