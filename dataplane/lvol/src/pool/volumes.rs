//! Creating, changing and deleting volumes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use basalt_bdev::BlockDevice;
use basalt_clock::{mark, planted};

use super::grants::turn_of;
use super::journal::Until;
use super::{Inner, Pool, State, Volume, VolumeData};
use crate::error::{DiskFault, ReadOnlyReason, VolumeError};
use crate::id::{Epoch, Generation, VolumeId};
use crate::layout::{
    DamageReason, NAME_BYTES_MAX, PAGE_BYTES, Pieces, ReplicaRecord, VOLUME_EXTENTS_MAX, VolumeFlags,
    VolumeIdentity, VolumeRecord,
};
use crate::space::{Run, in_order};
use crate::tree::Tree;
use crate::volume::{LogicalVolume, VolumeAtEpoch};

/// What a new volume is.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Which volume.
    pub id: VolumeId,
    /// The generation that asks for it.
    pub generation: Generation,
    /// The epoch at which it is asked for.
    pub epoch: Epoch,
    /// A name for people; at most 253 bytes.
    pub name: String,
    /// How hosts will know it; an NQN of at most 223 bytes.
    pub identity: VolumeIdentity,
    /// Size in bytes, a multiple of 4096, more than 0.
    pub size: u64,
    /// It takes space when it is first written, and gives back what is unmapped. A clone is always so.
    pub thin: bool,
    /// It is not complete: it is not to be served before [`Pool::reveal`].
    pub hidden: bool,
}

/// A volume as its pool knows it.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "made to be looked at, and seldom many at a time")]
pub enum VolumeStatus {
    /// It is being created or deleted.
    Changing,
    /// It is in service.
    Ready(VolumeRecord, Arc<LogicalVolume>),
    /// It is there and cannot be used.
    Isolated(Generation, DamageReason),
}

impl NewVolume {
    /// The record of it; checks what has bounds.
    pub(super) fn into_record(
        self,
        inner: &Inner,
        family: VolumeId,
        origin: Option<VolumeId>,
        created: u64,
    ) -> Result<VolumeRecord, VolumeError> {
        check_size(self.size, inner.shared.extent_bytes)?;
        Ok(VolumeRecord {
            id: self.id,
            generation: self.generation,
            epoch: self.epoch,
            set_version: 0,
            name: self.name,
            identity: self.identity,
            size: self.size,
            block_bytes: inner.block.bytes(),
            flags: VolumeFlags {
                thick: !self.thin && origin.is_none(),
                hidden: self.hidden,
                ..VolumeFlags::default()
            },
            origin,
            family,
            created,
            replica: ReplicaRecord::default(),
        })
    }
}

fn check_size(size: u64, extent_bytes: u64) -> Result<(), VolumeError> {
    let too_large = size.div_ceil(extent_bytes) > VOLUME_EXTENTS_MAX;
    match size == 0 || !size.is_multiple_of(PAGE_BYTES as u64) || too_large {
        true => Err(VolumeError::OutOfBounds("size")),
        false => Ok(()),
    }
}

impl Pool {
    /// Creates a volume. All of it reads as zeroes. It is visible, on disk and here, once this has ended well.
    ///
    /// # Errors
    /// Says why not; the pool is as before unless it says that it became read-only.
    pub async fn create_volume(&self, new: NewVolume) -> Result<Arc<LogicalVolume>, VolumeError> {
        let inner = &self.inner;
        let id = new.id;
        let runs = inner.accept(new)?;
        let zeroed = match planted!("lvol-space-not-zeroed") {
            true => Ok(()),
            false => inner.zero(&runs).await,
        };
        inner.prepared(id, &runs, zeroed)?;
        // If this fails, whether it is on disk is unknown: it and its space stay as they are until that is settled.
        inner.commit().await?;
        inner.take_into_service(id)
    }

    /// Deletes a volume and all of its data that no snapshot or clone shares. Requests that are under way end; new ones are
    /// refused. The space is used again once the deletion is durable and nothing is under way there.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`] if it is not there; [`VolumeError::StaleGeneration`] if it has seen a higher generation.
    pub async fn delete_volume(&self, id: VolumeId, generation: Generation) -> Result<(), VolumeError> {
        let inner = &self.inner;
        inner.begin_deletion(id, generation)?;
        inner.wake(id);
        if !planted!("lvol-deletion-not-committed") {
            inner.commit().await?;
        }
        inner.quiesce(id).await;
        inner.forget(id);
        // What it shared with others may be free only when their changes are durable. If that fails, the space comes back later.
        if inner.settle_maps(Until::Durable).await.is_ok() {
            inner.reclaim().await;
        }
        Ok(())
    }

    /// Raises what a volume has seen; lower values change nothing. Durable when this has ended well.
    ///
    /// # Errors
    /// Says why not.
    pub async fn raise(&self, id: VolumeId, generation: Generation, epoch: Epoch) -> Result<(), VolumeError> {
        {
            let mut state = self.inner.state.borrow_mut();
            let read_only = state.read_only.clone();
            let durable = state.durable == state.changes;
            let volume = state.volumes.get_mut(&id).ok_or(VolumeError::NotFound(id))?;
            if durable && volume.generation() >= Some(generation) && volume.epoch() >= epoch {
                return Ok(());
            }
            if let Some(reason) = read_only {
                return Err(reason.into());
            }
            let data = volume.settled_mut(id)?;
            data.record.generation = data.record.generation.max(generation);
            data.record.epoch = data.record.epoch.max(epoch);
            data.touch();
        }
        if planted!("lvol-raise-not-committed") {
            return Ok(());
        }
        Ok(self.inner.commit().await?)
    }

    /// Gives a volume to a higher epoch, or to the same one again. Channels that were opened before are refused everything from
    /// then on; once this has ended well the epoch is durable and nothing of theirs is under way. Use the answer to serve it.
    ///
    /// # Errors
    /// [`VolumeError::StaleEpoch`] if the volume has seen a higher one; else why it could not be made durable.
    pub async fn raise_epoch(&self, id: VolumeId, epoch: Epoch) -> Result<VolumeAtEpoch, VolumeError> {
        let (device, raised) = {
            let mut state = self.inner.state.borrow_mut();
            let read_only = state.read_only.clone();
            let data = state.ready_mut(id).ok_or(VolumeError::NotFound(id))?;
            let (seen, ordered) = (data.record.epoch, epoch);
            let device = data.device.clone().ok_or(VolumeError::NotFound(id))?;
            if ordered < seen {
                return Err(VolumeError::StaleEpoch { ordered, seen });
            }
            if ordered > seen {
                if let Some(reason) = read_only {
                    return Err(reason.into());
                }
                data.record.epoch = epoch;
                data.touch();
            }
            (device, ordered > seen)
        };
        if raised {
            device.core().fence.fetch_add(1, Ordering::SeqCst);
            mark!("lvol-epoch-raised");
        }
        // Also when it was raised before: that may not be durable yet, nor all be drained.
        if !planted!("lvol-epoch-not-committed") {
            self.inner.commit().await?;
        }
        self.inner.wake(id);
        self.inner.quiesce(id).await;
        Ok(VolumeAtEpoch::new(&device, epoch))
    }

    /// Lets a volume grow. Its channels see the new size at once when this has ended well; what is new reads as zeroes.
    ///
    /// # Errors
    /// [`VolumeError::Shrinks`] for a smaller size; else as for a new volume.
    pub async fn resize(&self, id: VolumeId, size: u64) -> Result<(), VolumeError> {
        let inner = &self.inner;
        let (runs, first, device) = inner.accept_growth(id, size)?;
        let zeroed = match planted!("lvol-growth-not-zeroed") {
            true => Ok(()),
            false => inner.zero(&runs).await,
        };
        if let Err(fault) = zeroed {
            inner.state.borrow_mut().space.release(&runs);
            return Err(fault.into());
        }
        {
            let mut state = inner.state.borrow_mut();
            let state = &mut *state;
            let Some(Volume::Ready(data)) = state.volumes.get_mut(&id) else {
                state.space.release(&runs);
                return Err(VolumeError::NotFound(id));
            };
            for (extent, place) in (first..).zip(runs.iter().copied().flat_map(Run::places)) {
                data.set(extent, &Pieces::whole(place), &mut state.refs);
                data.publish(extent, &state.refs);
            }
            data.record.size = data.record.size.max(size);
            data.touch();
        }
        if !planted!("lvol-growth-not-committed") {
            inner.commit().await?;
        }
        device.info().set_blocks(inner.block.blocks_in(size));
        mark!("lvol-volume-grown");
        Ok(())
    }

    /// Gives a volume another name for people.
    ///
    /// # Errors
    /// Says why not.
    pub async fn rename(&self, id: VolumeId, name: &str) -> Result<(), VolumeError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(VolumeError::OutOfBounds("name"));
        }
        self.inner.change(id, |data| data.record.name = name.to_owned()).await
    }

    /// Lets a volume refuse writes, or take them again. Channels obey at once, and whoever watches the device's generation is told.
    ///
    /// # Errors
    /// [`VolumeError::WrongKind`] for a snapshot, which always refuses them.
    pub async fn set_read_only(&self, id: VolumeId, read_only: bool) -> Result<(), VolumeError> {
        {
            let mut state = self.inner.state.borrow_mut();
            let data = state.ready_mut(id).ok_or(VolumeError::NotFound(id))?;
            if data.record.flags.snapshot {
                return Err(VolumeError::WrongKind(id, "a snapshot"));
            }
            if let Some(device) = &data.device {
                device.info().set_read_only(read_only || self.inner.shared.disks_are_read_only());
            }
        }
        self.inner.change(id, |data| data.record.flags.read_only = read_only).await
    }

    /// Lets a volume that was hidden be served.
    ///
    /// # Errors
    /// Says why not.
    pub async fn reveal(&self, id: VolumeId) -> Result<(), VolumeError> {
        self.inner.change(id, |data| data.record.flags.hidden = false).await
    }

    /// Notes what a volume knows as a replica.
    ///
    /// # Errors
    /// Says why not.
    pub async fn note_replica(&self, id: VolumeId, replica: ReplicaRecord) -> Result<(), VolumeError> {
        if replica.history.len() > crate::layout::HISTORY_MAX {
            return Err(VolumeError::OutOfBounds("history"));
        }
        self.inner.change(id, |data| data.record.replica = replica).await
    }

    /// Tries to make a pool take changes again after a write of metadata failed. Volumes whose creation or deletion was cut
    /// off are there, or gone, afterwards.
    ///
    /// # Errors
    /// The pool takes no change still, or for another reason.
    pub async fn resume(&self) -> Result<(), ReadOnlyReason> {
        self.inner.resume().await
    }

    /// Prepares for the end of the process in good order, which that of the machine may follow: no more groups are written that count only
    /// while the disks' write caches live on, and those that were are made good. Hosts may go on all the while.
    ///
    /// # Errors
    /// It could not be written. What hosts flushed is durable all the same.
    pub async fn prepare_for_end(&self) -> Result<(), ReadOnlyReason> {
        self.inner.shared.trust_caches(false);
        self.inner.sync().await
    }

    /// Writes a checkpoint although nothing asks for it: copies of the disks that were made before know a lower number from then on
    /// (`Pool::last_checkpoint`).
    ///
    /// # Errors
    /// The pool takes no change, or none any more.
    pub async fn outdate_copies(&self) -> Result<(), ReadOnlyReason> {
        self.inner.checkpoint().await
    }

    /// Gives the pool away: all is written, its journals are empty, and nothing is changed any more. Every volume is removed.
    ///
    /// # Errors
    /// It could not be written; the pool takes no change, and is imported elsewhere as after a crash.
    pub async fn export(&self) -> Result<(), ReadOnlyReason> {
        let devices: Vec<Arc<LogicalVolume>> = {
            let state = self.inner.state.borrow();
            state.volumes.values().filter_map(Volume::data).filter_map(|data| data.device.clone()).collect()
        };
        let ids: Vec<VolumeId> = devices.iter().map(|device| device.id()).collect();
        devices.iter().for_each(|device| device.remove());
        for id in ids {
            self.inner.wake(id);
            self.inner.quiesce(id).await;
        }
        self.inner.last_checkpoint().await
    }

    /// What the pool knows about a volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<VolumeStatus> {
        self.inner.state.borrow().volumes.get(&id).map(Volume::status)
    }

    /// Whether a volume needs a disk of the pool: it may have data there, or changes of its map are still to be made durable, for which all
    /// are needed. True for a volume that is not understood.
    #[must_use]
    pub fn needs_disk(&self, id: VolumeId, disk: usize) -> bool {
        let state = self.inner.state.borrow();
        let Some(data) = state.volumes.get(&id).and_then(Volume::data) else { return true };
        let stuck = state.read_only.is_some()
            && data.device.as_ref().is_some_and(|device| device.core().is_pending());
        stuck || data.disks & 1_u64.checked_shl(u32::try_from(disk).unwrap_or(u32::MAX)).unwrap_or(0) != 0
    }

    /// All volumes by id, snapshots included.
    #[must_use]
    pub fn volumes(&self) -> Vec<(VolumeId, VolumeStatus)> {
        self.inner.state.borrow().volumes.iter().map(|(id, volume)| (*id, volume.status())).collect()
    }
}

impl Volume {
    fn status(&self) -> VolumeStatus {
        match self {
            Self::Preparing(_) | Self::Committing(_) | Self::Deleting(_) => VolumeStatus::Changing,
            Self::Ready(data) => match &data.device {
                Some(device) if !data.record.flags.hidden => {
                    VolumeStatus::Ready(data.record.clone(), Arc::clone(device))
                }
                _ => VolumeStatus::Changing,
            },
            Self::Isolated(data, reason) => VolumeStatus::Isolated(data.record.generation, *reason),
            Self::Damaged { directory, reason, .. } => VolumeStatus::Isolated(directory.generation, *reason),
        }
    }

    /// The volume, if it is neither coming nor going.
    fn settled_mut(&mut self, id: VolumeId) -> Result<&mut VolumeData, VolumeError> {
        match self {
            Self::Ready(data) | Self::Isolated(data, _) => Ok(data),
            Self::Damaged { reason, .. } => Err((*reason).into()),
            Self::Preparing(_) | Self::Committing(_) | Self::Deleting(_) => Err(VolumeError::Busy(id)),
        }
    }
}

impl Inner {
    /// Changes a volume's record and makes that durable.
    async fn change(&self, id: VolumeId, change: impl FnOnce(&mut VolumeData)) -> Result<(), VolumeError> {
        {
            let mut state = self.state.borrow_mut();
            if let Some(reason) = &state.read_only {
                return Err(reason.clone().into());
            }
            let data = state.volumes.get_mut(&id).ok_or(VolumeError::NotFound(id))?.settled_mut(id)?;
            change(data);
            data.touch();
        }
        Ok(self.commit().await?)
    }

    /// Checks a new volume, takes its space and notes it.
    fn accept(&self, new: NewVolume) -> Result<Vec<Run>, VolumeError> {
        let mut state = self.state.borrow_mut();
        check_size(new.size, self.shared.extent_bytes)?;
        state.check_new(self, new.id, &new.name, &new.identity)?;
        let (id, thin, size) = (new.id, new.thin, new.size);
        let sequence = state.superblock.sequence + 1;
        let record = new.into_record(self, id, None, sequence)?;
        let runs = match thin {
            true => Vec::new(),
            false => self.take_space(&mut state, id, size, 0..size.div_ceil(self.shared.extent_bytes))?,
        };
        let data = VolumeData::new(record, Tree::new(&self.pages), None);
        state.volumes.insert(id, Volume::Preparing(Box::new(data)));
        Ok(runs)
    }

    fn take_space(
        &self,
        state: &mut State,
        volume: VolumeId,
        needed: u64,
        extents: Range<u64>,
    ) -> Result<Vec<Run>, VolumeError> {
        let (turn, extents) = (turn_of(volume, extents.start), extents.end - extents.start);
        // The map of a thick volume takes pages as well.
        let pages = extents / crate::layout::LEAF_EXTENTS as u64 + 2;
        if self.pages.free().0 as u64 <= 2 * self.pages.dirty_count() as u64 + pages {
            return Err(VolumeError::MetadataFull);
        }
        let free = state.space.free() * self.shared.extent_bytes;
        state.space.allocate(extents, turn).ok_or_else(|| {
            match state.damaged().filter(|_| !state.withheld.is_empty()) {
                Some(id) => VolumeError::DamagedNeighbour { id, needed, free },
                None => VolumeError::Full { needed, free },
            }
        })
    }

    /// The space of a new volume was zeroed, or not.
    fn prepared(&self, id: VolumeId, runs: &[Run], zeroed: Result<(), DiskFault>) -> Result<(), VolumeError> {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(Volume::Preparing(mut data)) = state.volumes.remove(&id) else {
            panic!("only its creation changes a volume that is being prepared")
        };
        if let Err(fault) = zeroed {
            state.space.release(runs);
            return Err(fault.into());
        }
        for (extent, place) in (0..).zip(runs.iter().copied().flat_map(Run::places)) {
            data.set(extent, &Pieces::whole(place), &mut state.refs);
        }
        state.volumes.insert(id, Volume::Committing(data));
        Ok(())
    }

    /// Checks a growth and takes what space it needs: runs, the first extent that they are for, and the volume.
    fn accept_growth(
        &self,
        id: VolumeId,
        size: u64,
    ) -> Result<(Vec<Run>, u64, Arc<LogicalVolume>), VolumeError> {
        let mut state = self.state.borrow_mut();
        if let Some(reason) = &state.read_only {
            return Err(reason.clone().into());
        }
        let extent_bytes = self.shared.extent_bytes;
        check_size(size, extent_bytes)?;
        let data = state.ready_mut(id).ok_or(VolumeError::NotFound(id))?;
        if data.record.flags.snapshot {
            return Err(VolumeError::WrongKind(id, "a snapshot"));
        }
        let is = data.record.size;
        if size < is {
            return Err(VolumeError::Shrinks { is, wanted: size });
        }
        let device = data.device.clone().ok_or(VolumeError::NotFound(id))?;
        let first = data.record.extents(extent_bytes);
        let more = size.div_ceil(extent_bytes) - first;
        if !data.record.flags.thick || more == 0 {
            return Ok((Vec::new(), first, device));
        }
        let runs = self.take_space(&mut state, id, size - is, first..first + more)?;
        Ok((runs, first, device))
    }

    /// A volume that is durable becomes visible, unless it is already.
    pub(super) fn take_into_service(&self, id: VolumeId) -> Result<Arc<LogicalVolume>, VolumeError> {
        let mut state = self.state.borrow_mut();
        let Some(volume) = state.volumes.get_mut(&id) else { return Err(VolumeError::NotFound(id)) };
        if let Volume::Committing(data) = volume {
            let nothing = Volume::Deleting(None);
            data.device = Some(self.device_of(data));
            if let Volume::Committing(data) = std::mem::replace(volume, nothing) {
                *volume = Volume::Ready(data);
            }
        }
        match volume {
            Volume::Ready(data) => data.device.clone().ok_or(VolumeError::NotFound(id)),
            _ => Err(VolumeError::NotFound(id)),
        }
    }

    /// The device of a volume.
    pub(super) fn device_of(&self, data: &VolumeData) -> Arc<LogicalVolume> {
        Arc::new(LogicalVolume::new(&data.record, &self.shared, &self.port, data.disks))
    }

    /// No request is taken any more, and the next checkpoint is without the volume.
    fn begin_deletion(&self, id: VolumeId, generation: Generation) -> Result<(), VolumeError> {
        let mut state = self.state.borrow_mut();
        if let Some(reason) = &state.read_only {
            return Err(reason.clone().into());
        }
        let volume = state.volumes.get_mut(&id).ok_or(VolumeError::NotFound(id))?;
        match volume.generation() {
            Some(seen) if seen > generation => {
                return Err(VolumeError::StaleGeneration { ordered: generation, seen });
            }
            _ => {}
        }
        let frozen = volume.data().is_some_and(|data| data.frozen > 0);
        if frozen || matches!(volume, Volume::Preparing(_) | Volume::Committing(_) | Volume::Deleting(_)) {
            return Err(VolumeError::Busy(id));
        }
        let data = match std::mem::replace(volume, Volume::Deleting(None)) {
            Volume::Ready(data) | Volume::Isolated(data, _) => Some(data),
            _ => None,
        };
        if let Some(device) = data.as_ref().and_then(|data| data.device.as_ref()) {
            device.remove();
        }
        *volume = Volume::Deleting(data);
        // What it still had to write down is of no interest any more.
        state.pending.retain(|record| record.volume != id);
        Ok(())
    }

    /// Makes extents read as zeroes, durably.
    async fn zero(&self, runs: &[Run]) -> Result<(), DiskFault> {
        for run in in_order(runs) {
            if let Some((disk, offset, bytes)) = self.locate(&run) {
                disk.write_zeroes(offset, bytes).await?;
            }
        }
        // The checkpoint flushes as well; but if a disk cannot, that is to fail while nothing has changed.
        let disks = self.disks.borrow().clone();
        for (index, disk) in (0_u32..).zip(disks) {
            if let Some(disk) = disk.filter(|_| runs.iter().any(|run| run.disk == index)) {
                disk.flush().await?;
            }
        }
        Ok(())
    }
}
