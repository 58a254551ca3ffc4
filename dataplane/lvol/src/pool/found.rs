//! The disks of a pool that is read: opened, told apart, and put to their places.

use std::collections::BTreeMap;
use std::rc::Rc;

use basalt_bdev::BlockSize;
use basalt_reactor::Handle;

use crate::disk::{DiskContent, DiskIo, PoolDisk};
use crate::error::{DiskRefusal, ImportError};
use crate::id::ClusterId;
use crate::layout::{DiskRecord, Superblock};

/// A disk that was opened and says that it belongs to a pool of this cluster.
pub(super) struct FoundDisk {
    pub(super) io: Rc<DiskIo>,
    pub(super) superblock: Superblock,
}

impl FoundDisk {
    pub(super) async fn read(
        handle: &Handle,
        disk: &PoolDisk,
        cluster: ClusterId,
    ) -> Result<Self, DiskRefusal> {
        let io = DiskIo::open(handle, disk)?;
        // What is read must not be lost afterwards: after the death of a process it may be in a volatile cache.
        io.flush().await?;
        let disk = io.name.clone();
        let superblock = match io.examine().await? {
            DiskContent::Pool(superblock) => *superblock,
            DiskContent::Blank => return Err(DiskRefusal::Blank { disk }),
            DiskContent::Foreign(content) => return Err(DiskRefusal::Foreign { disk, content }),
            DiskContent::Unusable(source) => return Err(DiskRefusal::Unusable { disk, source }),
        };
        if superblock.cluster != cluster {
            return Err(DiskRefusal::OtherCluster { disk, cluster: superblock.cluster });
        }
        if io.bytes() < superblock.geometry.device_bytes {
            let (bytes, expected) = (io.bytes(), superblock.geometry.device_bytes);
            return Err(DiskRefusal::Shrunk { disk, bytes, expected });
        }
        // The pool's block counts for all that is written and for the volumes, whatever the device could do.
        let pool_block_bytes = superblock.geometry.block_bytes;
        let block = BlockSize::new(pool_block_bytes).filter(|block| *block >= io.block());
        let Some(block) = block else {
            return Err(DiskRefusal::BlocksTooLarge {
                disk,
                block_bytes: io.block().bytes(),
                pool_block_bytes,
            });
        };
        if !io.takes_pieces() {
            return Err(io.unsuitable());
        }
        Ok(Self { io: Rc::new(io.in_blocks_of(handle, block)?), superblock })
    }
}

/// All disks belong to one pool, and each is there once. Of a member and a copy of it from before a later opening, the copy is left out.
pub(super) fn check_together(found: &mut Vec<FoundDisk>) -> Result<(), ImportError> {
    let mut latest = BTreeMap::new();
    for FoundDisk { superblock, .. } in found.iter() {
        let opening = latest.entry(superblock.disk).or_insert(0);
        *opening = superblock.opening.max(*opening);
    }
    found.retain(|FoundDisk { superblock, .. }| latest.get(&superblock.disk) == Some(&superblock.opening));
    for (index, disk) in found.iter().enumerate() {
        let pool = found[0].superblock.pool;
        if disk.superblock.pool != pool {
            let refusal = DiskRefusal::OtherPool { disk: disk.io.name.clone(), pool: disk.superblock.pool };
            return Err(refusal.into());
        }
        let twin = found[..index].iter().find(|other| other.superblock.disk == disk.superblock.disk);
        if let Some(twin) = twin {
            let (first, second) = (twin.io.name.clone(), disk.io.name.clone());
            return Err(DiskRefusal::Twice { first, second }.into());
        }
    }
    Ok(())
}

/// Puts each disk to its place in the pool.
pub(super) fn assign(
    found: Vec<FoundDisk>,
    records: &[DiskRecord],
) -> Result<Vec<Option<FoundDisk>>, ImportError> {
    let mut present: Vec<Option<FoundDisk>> = records.iter().map(|_| None).collect();
    for disk in found {
        let superblock = &disk.superblock;
        let place = records.iter().position(|record| record.id == superblock.disk);
        let agrees = |index: usize| {
            let (record, geometry) = (&records[index], &superblock.geometry);
            superblock.disk_index as usize == index
                && record.data_offset == geometry.data_offset
                && record.metadata_pages == geometry.metadata_pages()
                && record.extents <= geometry.extents
        };
        match place {
            Some(index) if agrees(index) => present[index] = Some(disk),
            Some(_) | None => return Err(ImportError::Stranger(disk.io.name.clone())),
        }
    }
    Ok(present)
}
