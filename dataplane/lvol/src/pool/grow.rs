//! Letting a pool grow: by another disk, or because one of its disks has grown.

use std::rc::Rc;
use std::sync::Arc;

use basalt_clock::mark;

use super::create::{NewPoolDisk, prepare, superblock_of};
use super::journal::Until;
use super::{Inner, Pool};
use crate::error::{DiskRefusal, GrowError};
use crate::layout::{DISKS_MAX, DiskRecord, Role, Superblock};
use crate::volume::{MappedDisk, PoolShared};

impl Pool {
    /// Adds a disk. Its space is there once this has ended well; a failure leaves the pool as it was.
    ///
    /// # Errors
    /// Says why not. After a failure of a disk the same disk can be added again.
    pub async fn add_disk(&self, new: NewPoolDisk) -> Result<(), GrowError> {
        let inner = &self.inner;
        let _growing = Growing::begin(inner)?;
        let index = inner.records.borrow().len();
        if index >= DISKS_MAX {
            return Err(GrowError::TooManyDisks);
        }
        if let Some(reason) = inner.state.borrow().read_only.clone() {
            return Err(reason.into());
        }
        let twin = inner.present_disks().into_iter().find(|disk| Arc::ptr_eq(&disk.device, &new.disk.device));
        if let Some(twin) = twin {
            let (first, second) = (twin.name.clone(), new.disk.name.clone());
            return Err(DiskRefusal::Twice { first, second }.into());
        }
        let extent_bytes = inner.shared.extent_bytes;
        let disk = prepare(&inner.handle, &new, inner.cluster, extent_bytes, false).await?;
        if disk.io.block() != inner.block {
            return Err(GrowError::MixedBlocks);
        }
        if disk.io.device.info().volatile_write_cache() && !inner.shared.volatile {
            return Err(GrowError::VolatileCache);
        }
        if disk.wipe {
            disk.io.wipe().await?;
        }
        // What is written meanwhile is to be believed with the disk and without it.
        inner.shared.trust_caches(false);
        let _trusted = Trusted(&inner.shared);
        inner.settle_maps(Until::Durable).await?;
        let place = u32::try_from(index).unwrap_or(u32::MAX);
        // In creation, until the pool knows it for certain: a disk that no pool knows can be used again.
        let opening = inner.state.borrow().openings;
        let superblock = superblock_of(inner.cluster, inner.id, &disk, place, Role::MemberInCreation);
        let superblock = Superblock { opening, ..superblock };
        disk.io.write_superblock(&superblock).await?;
        let record = DiskRecord { opening, ..disk.record() };
        let mapped = MappedDisk { device: Arc::clone(&disk.io.device), data_offset: record.data_offset };
        let io = Rc::new(disk.io);
        inner.disks.borrow_mut().push(Some(Rc::clone(&io)));
        inner.records.borrow_mut().push(record);
        inner.shared.add_disk(Some(mapped));
        // Nothing is taken of it before the pool's disks say that it belongs to them.
        inner.state.borrow_mut().space.add_disk(0, true);
        inner.commit().await?;
        inner.pages.add_area(record.metadata_pages);
        inner.state.borrow_mut().space.grow_disk(index, record.extents);
        io.write_superblock(&Superblock { role: Role::Member, sequence: 2, ..superblock }).await?;
        mark!("lvol-disk-added");
        Ok(())
    }

    /// Uses what a disk has grown by since the pool was made, or since it grew last. Nothing happens if it has not.
    ///
    /// # Errors
    /// Says why not.
    pub async fn grow_disk(&self, index: u32) -> Result<(), GrowError> {
        let inner = &self.inner;
        let _growing = Growing::begin(inner)?;
        let at = index as usize;
        let disk = inner.disk(at).ok_or(GrowError::NoSuchDisk(index))?;
        if let Some(reason) = inner.state.borrow().read_only.clone() {
            return Err(reason.into());
        }
        let found = match at {
            0 => inner.state.borrow().superblock.clone(),
            _ => disk.read_superblock().await?.map_err(|source| {
                let disk = disk.name.clone();
                GrowError::Disk(DiskRefusal::Unusable { disk, source })
            })?,
        };
        let Some(geometry) = found.geometry.grown(disk.bytes()) else { return Ok(()) };
        match at {
            // The lead's superblock is written with the next checkpoint.
            0 => inner.state.borrow_mut().superblock.geometry = geometry,
            _ => {
                let sequence = found.sequence + 1;
                disk.write_superblock(&Superblock { geometry, sequence, ..found }).await?;
            }
        }
        {
            let mut records = inner.records.borrow_mut();
            records[at].device_bytes = geometry.device_bytes;
            records[at].extents = geometry.extents;
        }
        inner.commit().await?;
        inner.state.borrow_mut().space.grow_disk(at, geometry.extents);
        mark!("lvol-disk-grown");
        Ok(())
    }
}

/// Lets groups be written without a flush again at its end.
struct Trusted<'a>(&'a PoolShared);

impl Drop for Trusted<'_> {
    fn drop(&mut self) {
        self.0.trust_caches(true);
    }
}

/// One growth at a time.
pub(super) struct Growing<'a>(&'a Inner);

impl<'a> Growing<'a> {
    pub(super) fn begin(inner: &'a Inner) -> Result<Self, GrowError> {
        match inner.growing.replace(true) {
            true => Err(GrowError::Busy),
            false => Ok(Self(inner)),
        }
    }
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        self.0.growing.set(false);
    }
}
