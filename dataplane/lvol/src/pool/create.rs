//! Creating a pool.

use std::rc::Rc;

use basalt_clock::mark;
use basalt_reactor::Handle;
use uuid::Builder;

use super::Pool;
use super::checkpoint::{PageBytes, PageMaker};
use crate::disk::{DiskContent, DiskIo, PoolDisk};
use crate::error::{CreateError, DiskRefusal, ImportError};
use crate::id::{ClusterId, DiskId, PoolId, Revision};
use crate::layout::{
    DISKS_MAX, DiskGeometry, DiskLayout, DiskRecord, EXTENT_BYTES_MAX, EXTENT_BYTES_MIN, PAGE_BYTES,
    POOL_NAME_BYTES_MAX, Role, Root, Stretches, Superblock, TakenMap,
};
use crate::pages::Pages;

/// What a new pool is made of.
#[derive(Clone, Debug)]
pub struct NewPool {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its name; at most 64 bytes.
    pub name: String,
    /// The desired state that asks for it.
    pub revision: Revision,
    /// Its unit of allocation in bytes: a power of two from 64 KiB to 1 MiB.
    pub extent_bytes: u64,
    /// From which of its disks extents are taken.
    pub layout: DiskLayout,
    /// Its disks, the lead first; 1 to 64 with the same block size.
    pub disks: Vec<NewPoolDisk>,
}

/// A disk of a new pool.
#[derive(Clone, Debug)]
pub struct NewPoolDisk {
    /// The disk.
    pub disk: PoolDisk,
    /// Whatever it holds may be overwritten, but never a disk of a pool.
    pub overwrite_foreign_data: bool,
}

/// A disk that was checked and may be written.
pub(super) struct Prepared {
    pub(super) io: DiskIo,
    pub(super) geometry: DiskGeometry,
    pub(super) id: DiskId,
    pub(super) wipe: bool,
}

impl Pool {
    /// Makes a pool of disks that are blank, or hold foreign data that may be overwritten, or were left by a creation that did
    /// not end. A disk of a pool is refused always: wiping it is a deliberate act outside of this program.
    ///
    /// # Errors
    /// Says which disk is the obstacle. Nothing was written if it is a refusal; after a fault the creation can be tried again.
    pub async fn create(handle: &Handle, new: NewPool) -> Result<Self, CreateError> {
        if new.disks.is_empty() || new.disks.len() > DISKS_MAX {
            return Err(CreateError::DiskCount(new.disks.len()));
        }
        if new.name.len() > POOL_NAME_BYTES_MAX {
            return Err(CreateError::NameTooLong(new.name.len()));
        }
        let fits = new.extent_bytes.is_power_of_two()
            && (EXTENT_BYTES_MIN..=EXTENT_BYTES_MAX).contains(&new.extent_bytes);
        if !fits {
            return Err(CreateError::ExtentBytes(new.extent_bytes));
        }
        let mut disks = Vec::with_capacity(new.disks.len());
        for (index, disk) in new.disks.iter().enumerate() {
            disks.push(prepare(handle, disk, new.cluster, new.extent_bytes, index == 0).await?);
        }
        if disks.iter().any(|disk| disk.io.block() != disks[0].io.block()) {
            return Err(CreateError::MixedBlocks);
        }
        let pool = PoolId(random_uuid(handle));
        write_pool(&new, pool, &disks).await?;
        drop(disks);
        let members = new.disks.into_iter().map(|disk| disk.disk).collect();
        Self::import(handle, new.cluster, members).await.map_err(|error| match error {
            ImportError::Disk(refusal) => CreateError::Disk(refusal),
            ImportError::LeadMissing | ImportError::Stranger(_) | ImportError::Damaged(_) => {
                CreateError::NotReadBack(Box::new(error))
            }
        })
    }
}

pub(super) async fn prepare(
    handle: &Handle,
    new: &NewPoolDisk,
    cluster: ClusterId,
    extent_bytes: u64,
    lead: bool,
) -> Result<Prepared, DiskRefusal> {
    let io = DiskIo::open(handle, &new.disk)?;
    let block_bytes = io.block().bytes();
    let geometry = match lead {
        true => DiskGeometry::lead(io.bytes(), block_bytes, extent_bytes),
        false => DiskGeometry::member(io.bytes(), block_bytes, extent_bytes),
    };
    let geometry = geometry.filter(|_| io.takes_pieces()).ok_or_else(|| io.unsuitable())?;
    let disk = io.name.clone();
    let wipe = match io.examine().await? {
        DiskContent::Blank => false,
        DiskContent::Foreign(_) if new.overwrite_foreign_data => true,
        DiskContent::Foreign(content) => return Err(DiskRefusal::Foreign { disk, content }),
        DiskContent::Unusable(source) => return Err(DiskRefusal::Unusable { disk, source }),
        DiskContent::Pool(found) if found.cluster != cluster => {
            return Err(DiskRefusal::OtherCluster { disk, cluster: found.cluster });
        }
        DiskContent::Pool(found) if found.role == Role::MemberInCreation => {
            mark!("lvol-creation-resumed");
            true
        }
        DiskContent::Pool(found) => return Err(DiskRefusal::OtherPool { disk, pool: found.pool }),
    };
    Ok(Prepared { io, geometry, id: DiskId(random_uuid(handle)), wipe })
}

/// Members, then the lead, then (when the pool is imported) the members again as full members.
async fn write_pool(new: &NewPool, pool: PoolId, disks: &[Prepared]) -> Result<(), CreateError> {
    for disk in disks.iter().filter(|disk| disk.wipe) {
        disk.io.wipe().await?;
    }
    for (index, disk) in (0..).zip(disks).skip(1) {
        let superblock = superblock_of(new.cluster, pool, disk, index, Role::MemberInCreation);
        disk.io.write_superblock(&superblock).await?;
    }
    let lead = &disks[0];
    let superblock = superblock_of(new.cluster, pool, lead, 0, Role::Lead);
    let pages = Rc::new(Pages::default());
    pages.add_area(lead.geometry.metadata_pages());
    let sequence = superblock.sequence;
    let mut maker = PageMaker { pages: &pages, pool, sequence, made: PageBytes::new() };
    let extents: Vec<u64> = disks.iter().map(|disk| disk.geometry.extents).collect();
    let root = Root {
        name: new.name.clone(),
        layout: new.layout,
        openings: 0,
        revision: new.revision,
        disks: disks.iter().map(Prepared::record).collect(),
        volumes: 0,
        directory: None,
        first_group: 1,
        taken: Some(TakenMap::new(Stretches::of(&extents), std::iter::empty())),
    };
    let (twin, _holds) = maker.root(&root).expect("an empty area has room for a root");
    for (number, bytes) in maker.made {
        let offset = lead.geometry.metadata_offset + u64::from(number.index()) * PAGE_BYTES as u64;
        lead.io.write(offset, &bytes).await?;
    }
    lead.io.flush().await?;
    lead.io.write_superblock(&Superblock { root: Some(twin), ..superblock }).await?;
    Ok(())
}

pub(super) fn superblock_of(
    cluster: ClusterId,
    pool: PoolId,
    disk: &Prepared,
    index: u32,
    role: Role,
) -> Superblock {
    Superblock {
        cluster,
        pool,
        disk: disk.id,
        sequence: 1,
        role,
        disk_index: index,
        geometry: disk.geometry,
        root: None,
        exported: false,
        opening: 0,
        read_only: false,
    }
}

impl Prepared {
    pub(super) fn record(&self) -> DiskRecord {
        DiskRecord {
            id: self.id,
            device_bytes: self.geometry.device_bytes,
            data_offset: self.geometry.data_offset,
            extents: self.geometry.extents,
            metadata_pages: self.geometry.metadata_pages(),
            opening: 0,
        }
    }
}

/// A random UUID (RFC 9562, version 4) from the reactor's source of randomness.
fn random_uuid(handle: &Handle) -> uuid::Uuid {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&handle.random_u64().to_le_bytes());
    bytes[8..].copy_from_slice(&handle.random_u64().to_le_bytes());
    Builder::from_random_bytes(bytes).into_uuid()
}
