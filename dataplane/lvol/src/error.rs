//! Why something about a pool did not work.

use std::rc::Rc;

use basalt_bdev::{IoError, OpenError};
use thiserror::Error;

use crate::foreign::ForeignContent;
use crate::id::{ClusterId, Epoch, Generation, PoolId, VolumeId};
use crate::layout::{DamageReason, RootError, SuperblockError};

/// A disk failed to do what it was asked.
#[derive(Clone, Debug, Error)]
#[error("disk {disk}: {operation} failed: {source}")]
pub struct DiskFault {
    /// The disk as the caller named it.
    pub disk: String,
    /// What it was asked for.
    pub operation: &'static str,
    /// Why it failed.
    pub source: FaultCause,
}

/// Why a disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FaultCause {
    /// It gave no channel.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It answered with an error.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Why a disk cannot be part of a pool.
#[derive(Clone, Debug, Error)]
pub enum DiskRefusal {
    /// It failed.
    #[error(transparent)]
    Fault(#[from] DiskFault),
    /// It holds somebody else's data.
    #[error("disk {disk} holds {content}{}", .content.remedy(.disk))]
    Foreign {
        /// The disk as the caller named it.
        disk: String,
        /// What it holds.
        content: ForeignContent,
    },
    /// It holds a pool that this program cannot read.
    #[error("disk {disk}: {source}")]
    Unusable {
        /// The disk as the caller named it.
        disk: String,
        /// Why.
        source: SuperblockError,
    },
    /// It belongs to another cluster.
    #[error(
        "disk {disk} belongs to another cluster ({cluster}); it is left alone: name another disk, or wipe it if nothing on it is needed \
         (basaltd pool inspect {disk} shows its pool, basaltd pool wipe {disk} --destroy-pool UUID destroys that)"
    )]
    OtherCluster {
        /// The disk as the caller named it.
        disk: String,
        /// The cluster that it belongs to.
        cluster: ClusterId,
    },
    /// It belongs to another pool.
    #[error("disk {disk} belongs to the pool {pool} already")]
    OtherPool {
        /// The disk as the caller named it.
        disk: String,
        /// The pool that it belongs to.
        pool: PoolId,
    },
    /// It is a disk of this pool, and named twice.
    #[error(
        "{first} and {second} are the same disk, or one is a copy of the other: take the one out that is not the pool's"
    )]
    Twice {
        /// One name of the disk.
        first: String,
        /// The other.
        second: String,
    },
    /// It is as it was at an earlier opening of the pool, which went on with what it is a copy of.
    #[error(
        "disk {disk} is an old copy: it was last in use at opening {opening} of its pool, which is known to have run with it at opening \
         {expected}; put the disk back that it is a copy of, or name the path that one has now"
    )]
    Outdated {
        /// The disk as the caller named it.
        disk: String,
        /// The opening that it knows.
        opening: u32,
        /// The one that another disk knows.
        expected: u32,
    },
    /// It is too small to be used, or its block size is not supported.
    #[error(
        "disk {disk} has {bytes} bytes in blocks of {block_bytes}; a pool needs 8 MiB in blocks of 512 or 4096"
    )]
    Unsuitable {
        /// The disk as the caller named it.
        disk: String,
        /// Its size.
        bytes: u64,
        /// Its logical block.
        block_bytes: u32,
    },
    /// Its blocks are larger than those that the pool was made with, so that what the pool writes cannot be written.
    #[error(
        "disk {disk} has blocks of {block_bytes} bytes, and its pool was made with blocks of {pool_block_bytes}: give it as a device with \
         blocks of {pool_block_bytes}"
    )]
    BlocksTooLarge {
        /// The disk as the caller named it.
        disk: String,
        /// Its logical block.
        block_bytes: u32,
        /// The pool's.
        pool_block_bytes: u32,
    },
    /// It is smaller than when the pool was made.
    #[error(
        "disk {disk} has {bytes} bytes, less than the {expected} that its pool was made with: name the whole disk, or a copy that was not cut short"
    )]
    Shrunk {
        /// The disk as the caller named it.
        disk: String,
        /// Its size.
        bytes: u64,
        /// Its size when the pool was made.
        expected: u64,
    },
    /// It is blank where a pool was expected.
    #[error("disk {disk} is blank; the pool is not on it")]
    Blank {
        /// The disk as the caller named it.
        disk: String,
    },
}

/// Why a pool could not be created.
#[derive(Clone, Debug, Error)]
pub enum CreateError {
    /// A disk cannot be part of it.
    #[error(transparent)]
    Disk(#[from] DiskRefusal),
    /// No disk, or more than a pool may have.
    #[error("a pool has 1 to 64 disks, not {0}")]
    DiskCount(usize),
    /// The name is too long.
    #[error("the name of a pool has at most 64 bytes, not {0}")]
    NameTooLong(usize),
    /// The unit of allocation is not supported.
    #[error("the unit of allocation is a power of two from 64 KiB to 1 MiB, not {0} bytes")]
    ExtentBytes(u64),
    /// The disks have different block sizes.
    #[error("the disks of a pool must have the same logical block")]
    MixedBlocks,
    /// What was written could not be read back.
    #[error("the new pool could not be read back: {0}")]
    NotReadBack(#[source] Box<ImportError>),
}

impl From<DiskFault> for CreateError {
    fn from(fault: DiskFault) -> Self {
        Self::Disk(fault.into())
    }
}

/// Why a disk could not be added to a pool, or a pool not be grown.
#[derive(Clone, Debug, Error)]
pub enum GrowError {
    /// The disk cannot be part of it.
    #[error(transparent)]
    Disk(#[from] DiskRefusal),
    /// The pool takes no change.
    #[error(transparent)]
    ReadOnly(#[from] ReadOnlyReason),
    /// The pool has as many disks as it may have.
    #[error("a pool has at most 64 disks")]
    TooManyDisks,
    /// The pool has no such disk, or it is missing.
    #[error("the pool has no disk {0} that is there")]
    NoSuchDisk(u32),
    /// The block of the disk is not that of the pool.
    #[error("the disks of a pool must have the same logical block")]
    MixedBlocks,
    /// Hosts of the pool's volumes were told that nothing needs to be flushed, and would not flush what lies there.
    #[error(
        "it has a volatile write cache and the other disks of the pool have none, so that hosts would not flush it: switch its write cache \
         off, or make another pool of it"
    )]
    VolatileCache,
    /// Another growth is under way.
    #[error("the pool is growing already")]
    Busy,
}

impl From<DiskFault> for GrowError {
    fn from(fault: DiskFault) -> Self {
        Self::Disk(fault.into())
    }
}

/// Why a pool could not be imported.
#[derive(Clone, Debug, Error)]
pub enum ImportError {
    /// A disk is not, or cannot be, part of it.
    #[error(transparent)]
    Disk(#[from] DiskRefusal),
    /// None of the disks is the lead.
    #[error("the lead disk of the pool is missing; name all disks of the pool")]
    LeadMissing,
    /// The lead does not list this disk.
    #[error("disk {0} says that it belongs to the pool, and the pool does not know it")]
    Stranger(String),
    /// The top of the pool's metadata is damaged beyond what import can do without.
    #[error("the metadata of the pool is damaged: {0}")]
    Damaged(#[source] RootError),
}

impl From<DiskFault> for ImportError {
    fn from(fault: DiskFault) -> Self {
        Self::Disk(fault.into())
    }
}

/// Why a pool takes no change.
#[derive(Clone, Debug, Error)]
pub enum ReadOnlyReason {
    /// A disk has ro-compat features that this program does not know.
    #[error("the pool uses features that this program does not know; use a newer one")]
    UnknownFeature,
    /// A part of the metadata could not be read: the volumes in it are isolated and must not be written out as damaged.
    #[error(
        "a part of the metadata cannot be read; the pool takes no change until it is imported without a read error"
    )]
    Unreadable,
    /// A group of the journal is damaged and later ones are not: what was written since then is missing.
    #[error(
        "the journal is damaged: changes that were flushed are missing; the pool was imported as it was before them"
    )]
    JournalDamaged,
    /// There is no room in the metadata areas for what has changed.
    #[error("the metadata areas are full; delete snapshots or volumes, or add a disk")]
    MetadataFull,
    /// The pool was exported.
    #[error("the pool was exported")]
    Exported,
    /// A write of metadata failed: it is unknown what the disk holds.
    #[error("a write of metadata failed ({0}); the pool takes no change until one succeeds")]
    MetadataWriteFailed(Rc<DiskFault>),
}

/// Why a volume could not be created, changed or deleted.
#[derive(Clone, Debug, Error)]
pub enum VolumeError {
    /// The pool takes no change.
    #[error(transparent)]
    ReadOnly(#[from] ReadOnlyReason),
    /// A disk failed while the volume was prepared. The pool is as before.
    #[error(transparent)]
    Disk(#[from] DiskFault),
    /// The id is in use.
    #[error("the volume {0} exists already")]
    Exists(VolumeId),
    /// Another volume has the NQN.
    #[error("another volume of the pool has the NQN {0}")]
    NqnTaken(String),
    /// There is no such volume.
    #[error("there is no volume {0} in the pool")]
    NotFound(VolumeId),
    /// Another change of it is under way.
    #[error("the volume {0} is being created or deleted")]
    Busy(VolumeId),
    /// Too little free space.
    #[error("the pool has {free} bytes free, the volume needs {needed}")]
    Full {
        /// Bytes that the volume needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The metadata areas are full.
    #[error("the pool has no room for the metadata of another volume")]
    MetadataFull,
    /// What a damaged volume owns is unknown, so space that may be its own is not given out, and the rest is too little.
    #[error(
        "the pool has {free} bytes free and the volume needs {needed}; the volume {id} is damaged, and what may be its own is not \
         given out until it is deleted"
    )]
    DamagedNeighbour {
        /// The damaged volume.
        id: VolumeId,
        /// Bytes that the volume needs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The volume has snapshots or clones, or is one, so this cannot be done to it.
    #[error("the volume {0} is {1}")]
    WrongKind(VolumeId, &'static str),
    /// The order comes from a lower epoch than the volume has seen.
    #[error("the order names epoch {ordered}, the volume has seen {seen}")]
    StaleEpoch {
        /// Epoch of the order.
        ordered: Epoch,
        /// Epoch of the volume.
        seen: Epoch,
    },
    /// A volume never shrinks.
    #[error("the volume has {is} bytes and cannot shrink to {wanted}")]
    Shrinks {
        /// Its size.
        is: u64,
        /// The size that was asked for.
        wanted: u64,
    },
    /// Size, block, name or NQN is out of bounds.
    #[error("the volume's {0} is out of bounds")]
    OutOfBounds(&'static str),
    /// A deletion that is older than what the volume has seen.
    #[error("the order to delete names generation {ordered}, the volume has seen {seen}")]
    StaleGeneration {
        /// Generation of the order.
        ordered: Generation,
        /// Generation of the volume.
        seen: Generation,
    },
    /// The volume is isolated.
    #[error("the volume cannot be used: {0}")]
    Isolated(#[from] DamageReason),
}

/// Why it cannot be told where two volumes of a pool that is not in service lie apart.
#[derive(Debug, Error)]
pub enum DifferenceError {
    /// The pool cannot be read.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// There is no such volume.
    #[error("there is no volume {0}")]
    NotFound(VolumeId),
    /// A volume is isolated.
    #[error("the volume {0} cannot be used: {1}")]
    Isolated(VolumeId, DamageReason),
    /// Nothing of one was ever the other one's.
    #[error(
        "the volumes {0} and {1} never shared data: name two snapshots of one volume, or a volume and a snapshot of it"
    )]
    Unrelated(VolumeId, VolumeId),
}
