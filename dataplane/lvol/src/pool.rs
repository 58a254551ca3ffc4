//! A pool: the disks of one node that hold logical volumes.

mod commit;
mod create;
mod import;
mod volumes;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use basalt_bdev::BlockSize;
use futures::lock::Mutex;

pub use create::{NewPool, NewPoolDisk};
pub use volumes::{NewVolume, VolumeStatus};

use crate::disk::DiskIo;
use crate::error::ReadOnlyReason;
use crate::id::{ClusterId, Epoch, Generation, PoolId, Revision, VolumeId};
use crate::layout::{
    DamageReason, DirectoryRecord, DiskRecord, EXTENT_BYTES, EncodedTable, Run, Superblock, VolumeRecord,
};
use crate::space::Space;
use crate::volume::{LogicalVolume, MappedDisk};

/// An imported pool. Lives on one reactor; its volumes are block devices for all.
///
/// Cheap to clone. Changes are durable when their future has ended; several that are under way at a time share their writes.
/// A future of a change that is dropped before its end may leave space taken until the next import, and nothing worse.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    cluster: ClusterId,
    id: PoolId,
    name: String,
    block: BlockSize,
    /// By index in the pool; `None`: missing.
    disks: Vec<Option<DiskIo>>,
    mapped: Vec<Option<MappedDisk>>,
    records: Vec<DiskRecord>,
    state: RefCell<State>,
    /// Held while a table is written.
    committing: Mutex<()>,
    unmap_failures: Cell<u64>,
}

struct State {
    /// The lead's superblock as it was written last.
    superblock: Superblock,
    revision: Revision,
    space: Space,
    volumes: BTreeMap<VolumeId, Volume>,
    /// Space of deleted volumes that may still have requests under way.
    drained_later: Vec<(Arc<LogicalVolume>, Vec<Run>)>,
    /// Counts changes of what a table holds, and how many of them are durable.
    changes: u64,
    durable: u64,
    read_only: Option<ReadOnlyReason>,
    /// What was being written when a write of metadata failed.
    unfinished: Option<Commit>,
}

/// A state of the pool on its way to the lead disk.
struct Commit {
    superblock: Superblock,
    table: EncodedTable,
    /// Changes that it holds.
    changes: u64,
}

/// What a pool knows about a volume.
enum Volume {
    /// Its space is being zeroed; no table knows it.
    Preparing(VolumeRecord),
    /// The next table has it.
    Committing(VolumeRecord),
    /// In service.
    Ready(VolumeRecord, Arc<LogicalVolume>),
    /// Understood, and a disk of it is missing, or its block size is not the disks'.
    Isolated(VolumeRecord, DamageReason),
    /// Not understood; kept as it was found.
    Damaged { directory: DirectoryRecord, bytes: Vec<u8>, reason: DamageReason },
    /// The next table does not have it any more.
    Deleting { runs: Vec<Run>, device: Option<Arc<LogicalVolume>> },
}

/// Whether a pool takes changes.
#[derive(Clone, Debug)]
pub enum PoolHealth {
    /// It does.
    Online,
    /// It does not.
    ReadOnly(ReadOnlyReason),
}

/// A disk of a pool.
#[derive(Clone, Debug)]
pub struct DiskStatus {
    /// What is written on it.
    pub record: DiskRecord,
    /// What the caller calls it; `None` while it is missing.
    pub name: Option<String>,
}

impl Pool {
    /// The cluster that the pool belongs to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.inner.cluster
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> PoolId {
        self.inner.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Block size of its disks, and so of its volumes.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.inner.block
    }

    /// Bytes for data on the disks that are present, used or free.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.inner.state.borrow().space.total() * EXTENT_BYTES
    }

    /// Bytes that can be given to new volumes.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.inner.release_drained();
        self.inner.state.borrow().space.free() * EXTENT_BYTES
    }

    /// Whether it takes changes.
    #[must_use]
    pub fn health(&self) -> PoolHealth {
        match &self.inner.state.borrow().read_only {
            None => PoolHealth::Online,
            Some(reason) => PoolHealth::ReadOnly(reason.clone()),
        }
    }

    /// Its disks, the lead first.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskStatus> {
        let names = self.inner.disks.iter().map(|disk| disk.as_ref().map(|disk| disk.name.clone()));
        self.inner
            .records
            .iter()
            .zip(names)
            .map(|(record, name)| DiskStatus { record: *record, name })
            .collect()
    }

    /// The highest desired state that was noted on the disks.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.inner.state.borrow().revision
    }

    /// Notes a desired state; the next change takes it to the disks.
    pub fn note_revision(&self, revision: Revision) {
        let mut state = self.inner.state.borrow_mut();
        state.revision = state.revision.max(revision);
    }

    /// How many times a disk failed to take back freed space. Harmless but for space on a sparse disk.
    #[must_use]
    pub fn unmap_failures(&self) -> u64 {
        self.inner.unmap_failures.get()
    }
}

impl Volume {
    fn generation(&self) -> Option<Generation> {
        match self {
            Self::Preparing(record)
            | Self::Committing(record)
            | Self::Ready(record, _)
            | Self::Isolated(record, _) => Some(record.generation),
            Self::Damaged { directory, .. } => Some(directory.generation),
            Self::Deleting { .. } => None,
        }
    }

    fn epoch(&self) -> Epoch {
        match self {
            Self::Preparing(record)
            | Self::Committing(record)
            | Self::Ready(record, _)
            | Self::Isolated(record, _) => record.epoch,
            Self::Damaged { .. } | Self::Deleting { .. } => Epoch::default(),
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("id", &self.inner.id)
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}
