//! What the node holds and serves, as it is.

use std::fmt;
use std::net::SocketAddr;

use basalt_lvol::id::{Generation, PoolId, Revision, VolumeId};

/// What one node holds and serves, as observed; never what was intended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// The desired state that this report is about: the highest that was accepted.
    pub revision: Revision,
    /// True once everything of that revision was tried, whether it worked or not.
    pub settled: bool,
    /// Pools of the desired state, in its order.
    pub pools: Vec<PoolReport>,
    /// Volumes of the desired state, in its order.
    pub volumes: Vec<VolumeReport>,
    /// Tombstones of the desired state whose volume is not on its pool (any more).
    pub deleted: Vec<DeletedVolume>,
    /// Addresses at which hosts reach the node now.
    pub endpoints: Vec<SocketAddr>,
    /// What is wrong with the node itself: a desired state that could not be kept, listeners, refused tombstones.
    pub problems: Vec<Problem>,
}

/// A pool as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolReport {
    /// Its name.
    pub name: String,
    /// The UUID in its superblock, once it exists.
    pub id: Option<PoolId>,
    /// Whether it is in service.
    pub health: PoolHealth,
    /// Bytes for data, used or free.
    pub capacity: u64,
    /// Bytes that hold data. A little old.
    pub used: u64,
    /// Volumes take a multiple of this many bytes.
    pub allocation_unit: u64,
    /// Its disks in the order of the desired state, then those that it runs on and that are not named any more.
    pub disks: Vec<DiskReport>,
    /// Why it is not online, if it is not.
    pub problem: Option<Problem>,
}

/// Whether a pool is in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolHealth {
    /// Being created or imported.
    Pending,
    /// In service.
    Online,
    /// Volumes are served as far as the disks do it, and nothing can be created or deleted.
    ReadOnly,
    /// Not in service.
    Faulted,
}

/// A disk as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskReport {
    /// Its path in the desired state.
    pub path: String,
    /// Whether it is in service.
    pub health: DiskHealth,
    /// Size in bytes; 0 while unknown.
    pub capacity: u64,
    /// Why it is not online, if it is not.
    pub problem: Option<Problem>,
}

/// Whether a disk is in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskHealth {
    /// In service.
    Online,
    /// In service, and requests have failed on it.
    Suspected,
    /// There, and refused or failed; or in service, and its requests fail.
    Faulted,
    /// Not there.
    Offline,
}

/// A volume as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeReport {
    /// Which volume.
    pub id: VolumeId,
    /// The generation that was put into effect; 0 if none was yet.
    pub generation: Generation,
    /// Whether it is served.
    pub health: VolumeHealth,
    /// Its size in bytes; 0 while it does not exist.
    pub size: u64,
    /// Bytes of it that lie on disks, shared with snapshots or not. A little old.
    pub allocated: u64,
    /// What of what was ordered could not be put into effect, while it is served all the same.
    pub shortfall: Option<Problem>,
    /// Addresses at which hosts reach it through this node. All paths are optimized: the node is the target.
    pub paths: Vec<SocketAddr>,
}

/// Whether a volume is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeHealth {
    /// Being created; its data is not complete.
    Creating,
    /// Served.
    Online,
    /// Its data is there, or may be, and is not served, or only in parts.
    Unavailable(Problem),
    /// Its data is lost.
    Faulted(Problem),
}

/// A tombstone that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeletedVolume {
    /// Which volume.
    pub id: VolumeId,
    /// The tombstone's generation.
    pub generation: Generation,
}

/// Something that did not work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What kind of thing; for programs.
    pub reason: Reason,
    /// A sentence for a person, with what to do where something can be done.
    pub message: String,
}

impl Problem {
    /// A problem with its sentence.
    pub fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string() }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Kinds of problems. Shown as one CamelCase word.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
        }

        impl Reason {
            /// The word for it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

reasons! {
    /// A disk is not at its path, or not any more.
    DiskMissing,
    /// A disk could not be opened or read.
    DiskFailed,
    /// Reads or writes of a disk that is in service fail.
    DiskErrors,
    /// A disk is not part of the pool that runs: it was named later.
    DiskNotInUse,
    /// A disk that was named later is not added to the pool that runs: it cannot be, or one of the pool's own is missing.
    DiskNotAdded,
    /// A disk of the pool came after the pool was opened without it.
    DiskAwaitsRestart,
    /// A disk that a pool runs on is not named any more.
    DiskNotNamed,
    /// A disk is open in another process.
    DiskInUse,
    /// Two of the disks that are named are one, or one is a copy of the other.
    DiskTwice,
    /// A disk is an old copy of one of the pool's.
    DiskOutdated,
    /// A disk holds data that is not Basalt's.
    DiskHoldsForeignData,
    /// A disk belongs to another cluster.
    DiskOfAnotherCluster,
    /// A disk belongs to another pool of this cluster.
    DiskOfAnotherPool,
    /// A disk is smaller than a pool needs, or smaller than it was.
    DiskTooSmall,
    /// The disks do not hold the pool that was there once.
    PoolMissing,
    /// A pool has another layout than is asked for.
    PoolLayoutDiffers,
    /// A pool has another unit of allocation than is asked for.
    PoolUnitDiffers,
    /// The metadata of a pool is damaged.
    PoolDamaged,
    /// A pool takes no change.
    PoolReadOnly,
    /// A pool of the volume's name is not in the desired state.
    PoolUnknown,
    /// The pool is not in service.
    PoolNotReady,
    /// The file system that a disk lies on has no room for what the pool keeps for itself.
    FileSystemFull,
    /// The pool has too little free space.
    PoolFull,
    /// The volume is not on its pool although it was there once.
    VolumeMissing,
    /// The metadata of a volume is damaged.
    VolumeDamaged,
    /// What was asked contradicts what is there.
    VolumeConflict,
    /// The volume has seen a higher epoch: another node is its target.
    Fenced,
    /// Not served because the control plane said so.
    NotServed,
    /// The volume could not be exported.
    ExportFailed,
    /// Nobody listens: the volume cannot be reached.
    NoListener,
    /// An address could not be listened on.
    ListenFailed,
    /// A tombstone was refused.
    TombstoneRefused,
    /// A write or read of metadata failed.
    IoError,
    /// The newest desired state could not be made durable, so it is not acted upon.
    StateNotKept,
    /// The machine does not have the cores that are wanted, or does not give them to the daemon.
    CoresNotPossible,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
