//! Creating, changing and deleting volumes.

use std::sync::Arc;

use basalt_clock::{mark, planted};

use super::{Inner, Pool, State, Volume};
use crate::disk::DiskIo;
use crate::error::{DiskFault, ReadOnlyReason, VolumeError};
use crate::id::{Epoch, Generation, VolumeId};
use crate::layout::{
    DISKS_MAX, DamageReason, EXTENT_BYTES, NAME_BYTES_MAX, NQN_BYTES_MAX, PAGE_BYTES, Run, VolumeFlags,
    VolumeIdentity, VolumeRecord, table_bytes,
};
use crate::volume::LogicalVolume;

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
}

/// A volume as its pool knows it.
#[derive(Clone, Debug)]
pub enum VolumeStatus {
    /// It is being created or deleted.
    Changing,
    /// It is in service.
    Ready(VolumeRecord, Arc<LogicalVolume>),
    /// It is there and cannot be used.
    Isolated(Generation, DamageReason),
}

impl Pool {
    /// Creates a thick volume. All of it reads as zeroes. It is visible, on disk and here, once this has ended well.
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
        let record = {
            let mut state = inner.state.borrow_mut();
            let record = match state.volumes.remove(&id) {
                Some(Volume::Preparing(record)) => record,
                _ => panic!("only its creation changes a volume that is being prepared"),
            };
            if let Err(fault) = zeroed {
                state.space.release(&runs);
                return Err(fault.into());
            }
            state.volumes.insert(id, Volume::Committing(record.clone()));
            record
        };
        // If this fails, whether it is on disk is unknown: it and its space stay as they are until that is settled.
        inner.commit().await?;
        Ok(inner.take_into_service(record))
    }

    /// Deletes a volume and all of its data. Requests that are under way end; new ones are refused. The space is used again once
    /// the deletion is durable and all channels are closed.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`] if it is not there; [`VolumeError::StaleGeneration`] if it has seen a higher generation.
    pub async fn delete_volume(&self, id: VolumeId, generation: Generation) -> Result<(), VolumeError> {
        let inner = &self.inner;
        {
            let mut state = inner.state.borrow_mut();
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
            if matches!(volume, Volume::Preparing(_) | Volume::Committing(_) | Volume::Deleting { .. }) {
                return Err(VolumeError::Busy(id));
            }
            let nothing = Volume::Deleting { runs: Vec::new(), device: None };
            let (runs, device) = match std::mem::replace(volume, nothing) {
                Volume::Ready(record, device) => (record.runs, Some(device)),
                Volume::Isolated(record, _) => (record.runs, None),
                _ => (Vec::new(), None),
            };
            if let Some(device) = &device {
                device.remove();
            }
            let freed = if planted!("lvol-extent-freed-before-commit") { runs.clone() } else { Vec::new() };
            *volume = Volume::Deleting { runs, device };
            state.space.release(&freed);
        }
        if !planted!("lvol-deletion-not-committed") {
            inner.commit().await?;
        }
        if let Some(runs) = inner.take_out_of_service(id) {
            inner.unmap(&runs).await;
            inner.state.borrow_mut().space.release(&runs);
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
            match volume {
                Volume::Ready(record, _) | Volume::Isolated(record, _) => {
                    record.generation = record.generation.max(generation);
                    record.epoch = record.epoch.max(epoch);
                }
                Volume::Damaged { reason, .. } => return Err((*reason).into()),
                Volume::Preparing(_) | Volume::Committing(_) | Volume::Deleting { .. } => {
                    return Err(VolumeError::Busy(id));
                }
            }
        }
        if planted!("lvol-raise-not-committed") {
            return Ok(());
        }
        Ok(self.inner.commit().await?)
    }

    /// Tries to make a pool take changes again after a write of metadata failed. Volumes whose creation or deletion was cut
    /// off are there, or gone, afterwards.
    ///
    /// # Errors
    /// The pool takes no change still, or for another reason.
    pub async fn resume(&self) -> Result<(), ReadOnlyReason> {
        self.inner.resume().await
    }

    /// What the pool knows about a volume.
    #[must_use]
    pub fn volume(&self, id: VolumeId) -> Option<VolumeStatus> {
        self.inner.state.borrow().volumes.get(&id).map(Volume::status)
    }

    /// All volumes by id.
    #[must_use]
    pub fn volumes(&self) -> Vec<(VolumeId, VolumeStatus)> {
        self.inner.state.borrow().volumes.iter().map(|(id, volume)| (*id, volume.status())).collect()
    }
}

impl Volume {
    fn status(&self) -> VolumeStatus {
        match self {
            Self::Preparing(_) | Self::Committing(_) | Self::Deleting { .. } => VolumeStatus::Changing,
            Self::Ready(record, device) => VolumeStatus::Ready(record.clone(), Arc::clone(device)),
            Self::Isolated(record, reason) => VolumeStatus::Isolated(record.generation, *reason),
            Self::Damaged { directory, reason, .. } => VolumeStatus::Isolated(directory.generation, *reason),
        }
    }

    /// Length of its entry in bytes, also of one that is not in a table at the moment.
    fn entry_bytes(&self) -> usize {
        match self {
            Self::Preparing(record)
            | Self::Committing(record)
            | Self::Ready(record, _)
            | Self::Isolated(record, _) => record.encoded_bytes(),
            Self::Damaged { bytes, .. } => bytes.len(),
            Self::Deleting { .. } => 0,
        }
    }
}

impl State {
    /// The first thing that is wrong with what was asked.
    fn check(&self, new: &NewVolume) -> Result<(), VolumeError> {
        if let Some(reason) = &self.read_only {
            return Err(reason.clone().into());
        }
        if new.size == 0 || !new.size.is_multiple_of(PAGE_BYTES as u64) {
            return Err(VolumeError::OutOfBounds("size"));
        }
        if new.name.len() > NAME_BYTES_MAX {
            return Err(VolumeError::OutOfBounds("name"));
        }
        if new.identity.nqn.len() > NQN_BYTES_MAX {
            return Err(VolumeError::OutOfBounds("NQN"));
        }
        if self.volumes.contains_key(&new.id) {
            return Err(VolumeError::Exists(new.id));
        }
        for (id, volume) in &self.volumes {
            match volume {
                Volume::Damaged { .. } => return Err(VolumeError::DamagedNeighbour(*id)),
                Volume::Preparing(record)
                | Volume::Committing(record)
                | Volume::Ready(record, _)
                | Volume::Isolated(record, _)
                    if record.identity.nqn == new.identity.nqn =>
                {
                    return Err(VolumeError::NqnTaken(new.identity.nqn.clone()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Inner {
    /// Checks a new volume, takes its space and notes it.
    fn accept(&self, new: NewVolume) -> Result<Vec<Run>, VolumeError> {
        self.release_drained();
        let mut state = self.state.borrow_mut();
        state.check(&new)?;
        let full = |free: u64| VolumeError::Full { needed: new.size, free: free * EXTENT_BYTES };
        let Some(runs) = state.space.allocate(new.size.div_ceil(EXTENT_BYTES)) else {
            return Err(full(state.space.free()));
        };
        let record = VolumeRecord {
            id: new.id,
            generation: new.generation,
            epoch: new.epoch,
            set_version: 0,
            name: new.name,
            identity: new.identity,
            size: new.size,
            block_bytes: self.block.bytes(),
            flags: VolumeFlags::default(),
            runs: runs.clone(),
        };
        let volume = Volume::Preparing(record);
        let entries = state.volumes.values().chain([&volume]).map(Volume::entry_bytes);
        if table_bytes(entries) > state.superblock.geometry.area_bytes {
            state.space.release(&runs);
            return Err(VolumeError::MetadataFull);
        }
        state.volumes.insert(new.id, volume);
        Ok(runs)
    }

    /// A volume that is durable becomes visible, unless it is already.
    fn take_into_service(&self, record: VolumeRecord) -> Arc<LogicalVolume> {
        let mut state = self.state.borrow_mut();
        if let Some(Volume::Ready(_, device)) = state.volumes.get(&record.id) {
            return Arc::clone(device);
        }
        let device = Arc::new(LogicalVolume::new(&record, &self.mapped, self.block, false));
        state.volumes.insert(record.id, Volume::Ready(record, Arc::clone(&device)));
        device
    }

    /// A volume whose deletion is durable is forgotten; its space is the caller's if nothing can be under way there, else it
    /// waits. Nothing happens if that was done already.
    fn take_out_of_service(&self, id: VolumeId) -> Option<Vec<Run>> {
        let mut state = self.state.borrow_mut();
        if !matches!(state.volumes.get(&id), Some(Volume::Deleting { .. })) {
            return None;
        }
        match state.volumes.remove(&id) {
            _ if planted!("lvol-extent-freed-before-commit") => None,
            Some(Volume::Deleting { runs, device: Some(device) }) if !device.is_drained() => {
                state.drained_later.push((device, runs));
                None
            }
            Some(Volume::Deleting { runs, .. }) => Some(runs),
            _ => None,
        }
    }

    /// All that is in memory is durable: what was cut off by a failure has happened.
    pub(super) fn settle(&self) {
        let mut ids = (Vec::new(), Vec::new());
        for (id, volume) in &self.state.borrow().volumes {
            match volume {
                Volume::Committing(record) => ids.0.push(record.clone()),
                Volume::Deleting { .. } => ids.1.push(*id),
                _ => {}
            }
        }
        let (created, deleted) = ids;
        for record in created {
            drop(self.take_into_service(record));
        }
        for id in deleted {
            if let Some(runs) = self.take_out_of_service(id) {
                self.state.borrow_mut().space.release(&runs);
            }
        }
    }

    /// Makes extents read as zeroes, durably.
    async fn zero(&self, runs: &[Run]) -> Result<(), DiskFault> {
        for run in runs {
            let (disk, offset, bytes) = self.locate(run);
            disk.write_zeroes(offset, bytes).await?;
        }
        for index in 0..DISKS_MAX {
            if runs.iter().any(|run| run.disk as usize == index) && !planted!("lvol-zeroes-not-flushed") {
                self.disk(index).flush().await?;
            }
        }
        Ok(())
    }

    /// Gives extents back to their disks: a sparse disk gets its space back. A disk that cannot is not at fault.
    async fn unmap(&self, runs: &[Run]) {
        for run in runs {
            if self.disks[run.disk as usize].is_none() {
                continue;
            }
            let (disk, offset, bytes) = self.locate(run);
            if disk.unmap(offset, bytes).await.is_err() {
                self.unmap_failures.set(self.unmap_failures.get() + 1);
            }
        }
    }

    fn disk(&self, index: usize) -> &DiskIo {
        self.disks[index].as_ref().expect("space is taken of present disks only")
    }

    fn locate(&self, run: &Run) -> (&DiskIo, u64, u64) {
        let index = run.disk as usize;
        let offset = self.records[index].data_offset + run.first * EXTENT_BYTES;
        (self.disk(index), offset, u64::from(run.extents) * EXTENT_BYTES)
    }

    /// Makes the space of deleted volumes free whose last channel is closed.
    pub(super) fn release_drained(&self) {
        let mut state = self.state.borrow_mut();
        let State { drained_later, space, .. } = &mut *state;
        drained_later.retain(|(device, runs)| {
            let drained = device.is_drained();
            if drained {
                mark!("lvol-space-released");
                space.release(runs);
            }
            !drained
        });
    }
}
