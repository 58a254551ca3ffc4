//! A pool: the disks of one node that hold logical volumes.

mod checkpoint;
mod create;
mod found;
mod freeze;
mod grants;
mod grow;
mod import;
mod inspect;
mod journal;
mod load;
mod obstacles;
mod openings;
mod owner;
mod remains;
mod scrub;
mod settle;
mod snapshots;
mod starving;
mod usage;
mod volumes;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

use basalt_bdev::BlockSize;
use basalt_reactor::Handle;

pub use create::{NewPool, NewPoolDisk};
pub use inspect::{
    Finding, InspectedDisk, InspectedVolume, Inspection, Remedy, VolumeDetail, difference, inspect, repair,
};
pub use scrub::{ScrubError, ScrubSettings, ScrubStatus};
pub use snapshots::{NewSnapshot, SnapshotDifference};
pub use usage::{PoolUsage, RESERVE_LIMIT, VolumeUsage};
pub use volumes::{NewVolume, VolumeStatus};

use crate::disk::DiskIo;
use crate::error::ReadOnlyReason;
use crate::id::{ClusterId, Epoch, Generation, PoolId, Revision, VolumeId};
use crate::layout::{
    DamageReason, DirectoryRecord, DiskLayout, DiskRecord, JournalRecord, PagePointer, Pieces, Superblock,
    VolumeRecord,
};
use crate::pages::{PageHold, Pages};
use crate::port::{Message, Port};
use crate::refs::{Limbo, Refs};
use crate::space::{Run, Space};
use crate::tree::{Counts, Tree};
use crate::turns::Turns;
use crate::volume::{LogicalVolume, PoolShared};
use checkpoint::{Checkpoint, PageBytes, Written};
use grants::OpenGrant;
use remains::Kept;
use scrub::Marks;
use starving::Starving;

/// An imported pool. Lives on one reactor; its volumes are block devices for all.
///
/// Cheap to clone. Changes are durable when their future has ended; several that are under way at a time share their writes.
/// A future of a change that is dropped before its end may leave space taken until the next import, and nothing worse.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    handle: Handle,
    cluster: ClusterId,
    id: PoolId,
    name: String,
    block: BlockSize,
    /// By index in the pool; `None`: missing.
    disks: RefCell<Vec<Option<Rc<DiskIo>>>>,
    records: RefCell<Vec<DiskRecord>>,
    shared: Arc<PoolShared>,
    port: Port,
    pages: Rc<Pages>,
    state: RefCell<State>,
    /// Held while a checkpoint is written.
    committing: Turns,
    /// Held while a group of the journal is written.
    journaling: Turns,
    unmap_failures: Cell<u64>,
    /// Times that extents are just being given back.
    returning: Cell<u32>,
    scrub: RefCell<ScrubStatus>,
    /// Background work of which one at a time suffices.
    checkpoint_wanted: Cell<bool>,
    relieving: Cell<bool>,
    growing: Cell<bool>,
}

struct State {
    /// The lead's superblock as it was written last.
    superblock: Superblock,
    openings: u32,
    revision: Revision,
    space: Space,
    /// Extents that may be a damaged volume's: taken until there is none any more.
    withheld: Vec<Run>,
    refs: Refs,
    limbo: Limbo,
    volumes: BTreeMap<VolumeId, Volume>,
    /// Counts changes that need a checkpoint, and how many of them are durable.
    changes: u64,
    durable: u64,
    /// Counts changes of maps, and how many of them are durable.
    map_changes: u64,
    map_durable: u64,
    /// How many of them are in a group that was written and may not be durable.
    map_written: u64,
    /// Bits of the disks on whose caches the groups depend that follow the last firm one; 0 if none does.
    loose_disks: u64,
    /// Extents whose last change was in no group that was written when it was noted, by the number of that change.
    unwritten: VecDeque<(u64, VolumeId, u64)>,
    /// Changes of maps that no group of the journal has yet.
    pending: Vec<JournalRecord>,
    journal: Journal,
    grants: BTreeMap<u64, OpenGrant>,
    grants_made: u64,
    /// Requests that wait for space or for room in the metadata areas, and how many ever did.
    starving: VecDeque<Starving>,
    starved: u64,
    read_only: Option<ReadOnlyReason>,
    /// What was being written when a write of metadata failed.
    unfinished: Option<Checkpoint>,
    /// Pages that a checkpoint prepared which then found no room.
    left_over: PageBytes,
    /// The state that the disk holds: its pages stay in use.
    on_disk: Option<Rc<Written>>,
    /// While the pool is looked over: whose the extents are that were come across.
    marks: Option<Marks>,
}

/// Where the next group goes.
#[derive(Clone, Copy, Debug)]
struct Journal {
    /// Bytes of the current journal that are in use.
    used: u64,
    /// The next group's sequence number.
    sequence: u64,
    /// The checkpoint that its groups follow.
    checkpoint: u64,
    /// Sequence number of its first group.
    first: u64,
}

/// What a pool knows about a volume.
enum Volume {
    /// Its space is being zeroed; no checkpoint knows it.
    Preparing(Box<VolumeData>),
    /// The next checkpoint has it.
    Committing(Box<VolumeData>),
    /// In service.
    Ready(Box<VolumeData>),
    /// Understood, and a disk of it is missing, or its block size is not the disks'.
    Isolated(Box<VolumeData>, DamageReason),
    /// Not understood; kept as it was found.
    Damaged { directory: DirectoryRecord, kept: Rc<Kept>, reason: DamageReason },
    /// The next checkpoint does not have it any more.
    Deleting(Option<Box<VolumeData>>),
}

/// A volume that is understood.
struct VolumeData {
    record: VolumeRecord,
    tree: Tree,
    /// Bits of the disks that the map may name.
    disks: u64,
    /// The page that holds the record and names the map; `None`: the next checkpoint writes one.
    page: Option<Rc<StoredPage>>,
    device: Option<Arc<LogicalVolume>>,
    /// Extents that somebody has a grant for.
    locked: BTreeSet<u64>,
    /// Requests that wait for a lock, or for the end of a freeze, in the order in which they came.
    waiting: VecDeque<Message>,
    /// Extents whose last change may be in no group that was written, with that change. They are not overwritten in place
    /// behind the owner's back: what is acknowledged there must not depend on a change that the end of the process undoes.
    unwritten: BTreeMap<u64, u64>,
    /// No grant is given while this is not zero: a snapshot is being taken.
    frozen: u32,
    /// Grants that were given and not ended.
    granted: u32,
}

/// A page of a checkpoint.
#[derive(Debug)]
struct StoredPage {
    pointer: PagePointer,
    #[allow(dead_code, reason = "held for its drop")]
    hold: PageHold,
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

    /// Bytes of its unit of allocation.
    #[must_use]
    pub fn extent_bytes(&self) -> u64 {
        self.inner.shared.extent_bytes
    }

    /// From which of its disks extents are taken.
    #[must_use]
    pub fn layout(&self) -> DiskLayout {
        self.inner.state.borrow().space.layout()
    }

    /// The last checkpoint that is on its disks: a copy of them that knows a lower one is older.
    #[must_use]
    pub fn last_checkpoint(&self) -> u64 {
        self.inner.state.borrow().superblock.sequence
    }

    /// Bytes for data on the disks that are present, used or free.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.inner.state.borrow().space.total() * self.extent_bytes()
    }

    /// Bytes that can be given to volumes.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.inner.state.borrow().space.free() * self.extent_bytes()
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
        let disks = self.inner.disks.borrow();
        let names = disks.iter().map(|disk| disk.as_ref().map(|disk| disk.name.clone()));
        let records = self.inner.records.borrow();
        records.iter().zip(names).map(|(record, name)| DiskStatus { record: *record, name }).collect()
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

impl Inner {
    fn disk(&self, index: usize) -> Option<Rc<DiskIo>> {
        self.disks.borrow().get(index)?.clone()
    }

    fn lead(&self) -> Rc<DiskIo> {
        self.disk(0).expect("a pool without its lead is not imported")
    }

    fn present_disks(&self) -> Vec<Rc<DiskIo>> {
        self.disks.borrow().iter().flatten().cloned().collect()
    }
}

impl VolumeData {
    fn new(record: VolumeRecord, tree: Tree, page: Option<Rc<StoredPage>>) -> Self {
        Self {
            record,
            tree,
            disks: 0,
            page,
            device: None,
            locked: BTreeSet::new(),
            waiting: VecDeque::new(),
            unwritten: BTreeMap::new(),
            frozen: 0,
            granted: 0,
        }
    }
}

impl VolumeData {
    /// Something changed that its page says: the next checkpoint writes another one.
    fn touch(&mut self) {
        self.page = None;
    }

    /// Moves the pieces of an extent.
    fn set(&mut self, extent: u64, pieces: &Pieces, counts: &mut impl Counts) {
        self.tree.set(extent, pieces, counts);
        self.disks |= pieces.disks();
    }
}

impl Volume {
    fn data(&self) -> Option<&VolumeData> {
        match self {
            Self::Preparing(data) | Self::Committing(data) | Self::Ready(data) | Self::Isolated(data, _) => {
                Some(data)
            }
            Self::Deleting(data) => data.as_deref(),
            Self::Damaged { .. } => None,
        }
    }

    fn data_mut(&mut self) -> Option<&mut VolumeData> {
        match self {
            Self::Preparing(data) | Self::Committing(data) | Self::Ready(data) | Self::Isolated(data, _) => {
                Some(data)
            }
            Self::Deleting(data) => data.as_deref_mut(),
            Self::Damaged { .. } => None,
        }
    }

    fn generation(&self) -> Option<Generation> {
        match self {
            Self::Damaged { directory, .. } => Some(directory.generation),
            Self::Deleting(_) => None,
            _ => self.data().map(|data| data.record.generation),
        }
    }

    fn epoch(&self) -> Epoch {
        match self {
            Self::Damaged { .. } | Self::Deleting(_) => Epoch::default(),
            _ => self.data().map_or_else(Epoch::default, |data| data.record.epoch),
        }
    }
}

impl State {
    /// A volume in service.
    fn ready_mut(&mut self, id: VolumeId) -> Option<&mut VolumeData> {
        match self.volumes.get_mut(&id) {
            Some(Volume::Ready(data)) => Some(data),
            _ => None,
        }
    }

    /// A volume that is not understood, or was not and is being deleted: what its map names is unknown.
    fn damaged(&self) -> Option<VolumeId> {
        let damaged = |(_, volume): &(&VolumeId, &Volume)| {
            matches!(volume, Volume::Damaged { .. } | Volume::Deleting(None))
        };
        self.volumes.iter().find(damaged).map(|(id, _)| *id)
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
