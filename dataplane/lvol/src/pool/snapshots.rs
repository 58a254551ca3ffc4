//! Snapshots and clones: a second map that shares everything with the first one.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use basalt_clock::{mark, planted};
use serde::Serialize;

use super::volumes::NewVolume;
use super::{Inner, Pool, State, Volume, VolumeData};
use crate::error::VolumeError;
use crate::id::{Epoch, Generation, VolumeId};
use crate::layout::{VolumeFlags, VolumeIdentity, VolumeRecord};
use crate::tree::Tree;
use crate::volume::LogicalVolume;

/// What a new snapshot is.
#[derive(Clone, Debug)]
pub struct NewSnapshot {
    /// Its identity among the volumes.
    pub id: VolumeId,
    /// The generation that asks for it.
    pub generation: Generation,
    /// The epoch at which it is asked for.
    pub epoch: Epoch,
    /// A name for people; at most 253 bytes.
    pub name: String,
    /// How hosts will know it if it is served; an NQN of at most 223 bytes.
    pub identity: VolumeIdentity,
}

/// Where two volumes of one family differ, as ranges of bytes in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotDifference {
    /// Whole extents, joined where they are neighbours, and cut at the end of the larger volume.
    pub ranges: Vec<Range<u64>>,
}

impl Pool {
    /// Takes a snapshot: a volume that can be read and never changes. It holds every write that had completed when this was
    /// called, and of later ones those that completed before all that it does not hold. Writes pause while those that are under
    /// way end. It is durable, with all that it holds, once this has ended well.
    ///
    /// # Errors
    /// Says why not; the pool is as before unless it says that it became read-only.
    pub async fn snapshot(
        &self,
        origin: VolumeId,
        new: NewSnapshot,
    ) -> Result<Arc<LogicalVolume>, VolumeError> {
        let inner = Rc::clone(&self.inner);
        // A task of its own: a caller that goes away must not leave the volume frozen.
        self.inner.handle.spawn(async move { inner.take_snapshot(origin, new).await }).await
    }

    /// Makes a volume that begins with what a snapshot holds and is written independently. `new.size` may be larger.
    ///
    /// # Errors
    /// [`VolumeError::WrongKind`] if `snapshot` is not one; else as for a new volume.
    pub async fn clone_snapshot(
        &self,
        snapshot: VolumeId,
        new: NewVolume,
    ) -> Result<Arc<LogicalVolume>, VolumeError> {
        let id = new.id;
        self.inner.share(snapshot, new)?;
        self.inner.commit().await?;
        self.inner.take_into_service(id)
    }

    /// Where the data of two volumes of one family lies apart: what changed between two snapshots, or since one. A range may hold
    /// the same bytes all the same.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`]; [`VolumeError::WrongKind`] if the two never shared data.
    pub fn difference(&self, from: VolumeId, to: VolumeId) -> Result<SnapshotDifference, VolumeError> {
        let state = self.inner.state.borrow();
        let data = |id| state.volumes.get(&id).and_then(Volume::data).ok_or(VolumeError::NotFound(id));
        let (from, to) = (data(from)?, data(to)?);
        let unrelated = VolumeError::WrongKind(to.record.id, "of another family");
        SnapshotDifference::between(from, to, self.inner.shared.extent_bytes).ok_or(unrelated)
    }
}

impl SnapshotDifference {
    /// `None` if the two never shared data.
    pub(super) fn between(from: &VolumeData, to: &VolumeData, extent_bytes: u64) -> Option<Self> {
        if from.record.family != to.record.family {
            return None;
        }
        let end = from.record.size.max(to.record.size);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        from.tree.each_difference(&to.tree, |extent| {
            let range = extent * extent_bytes..((extent + 1) * extent_bytes).min(end);
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
        });
        Some(Self { ranges })
    }
}

impl Inner {
    async fn take_snapshot(
        self: Rc<Self>,
        origin: VolumeId,
        new: NewSnapshot,
    ) -> Result<Arc<LogicalVolume>, VolumeError> {
        let id = new.id;
        self.freeze(origin, new)?;
        if !planted!("lvol-snapshot-without-grace") {
            self.quiesce(origin).await;
        }
        let cut = self.cut(origin, id);
        self.wake(origin);
        cut?;
        if !planted!("lvol-snapshot-not-committed") {
            self.commit().await?;
        }
        mark!("lvol-snapshot-taken");
        self.take_into_service(id)
    }

    /// Holds off all writes and notes the snapshot.
    fn freeze(&self, origin: VolumeId, new: NewSnapshot) -> Result<(), VolumeError> {
        let mut state = self.state.borrow_mut();
        state.check_new(self, new.id, &new.name, &new.identity)?;
        let data = state.ready_mut(origin).ok_or(VolumeError::NotFound(origin))?;
        let record = VolumeRecord {
            id: new.id,
            generation: new.generation,
            epoch: new.epoch,
            set_version: data.record.set_version,
            name: new.name,
            identity: new.identity,
            flags: VolumeFlags { snapshot: true, ..VolumeFlags::default() },
            origin: Some(origin),
            replica: crate::layout::ReplicaRecord::default(),
            created: 0,
            ..data.record.clone()
        };
        data.frozen += 1;
        if let Some(device) = &data.device {
            // From here on no request believes that it may overwrite anything in place.
            device.core().token.fetch_add(1, Ordering::AcqRel);
        }
        let placeholder = VolumeData::new(record, Tree::new(&self.pages), None);
        state.volumes.insert(new.id, Volume::Preparing(Box::new(placeholder)));
        Ok(())
    }

    /// Shares the map, now that nothing is under way, and lets writes go on.
    fn cut(&self, origin: VolumeId, id: VolumeId) -> Result<(), VolumeError> {
        let mut state = self.state.borrow_mut();
        let sequence = state.superblock.sequence + 1;
        let Some(Volume::Preparing(mut snapshot)) = state.volumes.remove(&id) else {
            panic!("only its creation changes a volume that is being prepared")
        };
        let Some(data) = state.volumes.get_mut(&origin).and_then(Volume::data_mut) else {
            return Err(VolumeError::NotFound(origin));
        };
        data.frozen -= 1;
        snapshot.tree = data.tree.share();
        snapshot.disks = data.disks;
        snapshot.record.size = data.record.size;
        snapshot.record.created = sequence;
        if !matches!(state.volumes.get(&origin), Some(Volume::Ready(_))) {
            // It is being deleted: what was shared is given up again.
            snapshot.tree.release(&mut state.refs);
            return Err(VolumeError::NotFound(origin));
        }
        state.volumes.insert(id, Volume::Committing(snapshot));
        Ok(())
    }

    /// Notes a clone.
    fn share(&self, snapshot: VolumeId, new: NewVolume) -> Result<(), VolumeError> {
        let mut state = self.state.borrow_mut();
        state.check_new(self, new.id, &new.name, &new.identity)?;
        let sequence = state.superblock.sequence + 1;
        let data = state.ready_mut(snapshot).ok_or(VolumeError::NotFound(snapshot))?;
        if !data.record.flags.snapshot {
            return Err(VolumeError::WrongKind(snapshot, "no snapshot"));
        }
        if new.size < data.record.size {
            return Err(VolumeError::Shrinks { is: data.record.size, wanted: new.size });
        }
        let family = data.record.family;
        let record = new.into_record(self, family, Some(snapshot), sequence)?;
        let (tree, disks) = (data.tree.share(), data.disks);
        let clone = VolumeData { disks, ..VolumeData::new(record, tree, None) };
        state.volumes.insert(clone.record.id, Volume::Committing(Box::new(clone)));
        Ok(())
    }
}

impl State {
    /// The first thing that is wrong with a new volume, whatever kind it is.
    pub(super) fn check_new(
        &self,
        inner: &Inner,
        id: VolumeId,
        name: &str,
        identity: &VolumeIdentity,
    ) -> Result<(), VolumeError> {
        if let Some(reason) = &self.read_only {
            return Err(reason.clone().into());
        }
        if name.len() > crate::layout::NAME_BYTES_MAX {
            return Err(VolumeError::OutOfBounds("name"));
        }
        if identity.nqn.len() > crate::layout::NQN_BYTES_MAX {
            return Err(VolumeError::OutOfBounds("NQN"));
        }
        if self.volumes.contains_key(&id) {
            return Err(VolumeError::Exists(id));
        }
        let taken = self
            .volumes
            .values()
            .filter(|volume| !matches!(volume, Volume::Deleting(_)))
            .filter_map(Volume::data)
            .any(|data| data.record.identity.nqn == identity.nqn);
        if taken {
            return Err(VolumeError::NqnTaken(identity.nqn.clone()));
        }
        // Its page, and the directory twice, once for the state on disk and once for the next one.
        let needed = 4 * (self.volumes.len() / crate::layout::DIRECTORY_RECORDS + 1) + 8;
        if inner.pages.free().1 <= inner.pages.dirty_count() + needed {
            return Err(VolumeError::MetadataFull);
        }
        Ok(())
    }
}
