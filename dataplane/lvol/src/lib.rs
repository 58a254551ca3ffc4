//! Pools and logical volumes.
//!
//! A pool turns the disks of one node into volumes: thick and thin ones, snapshots, clones. This crate owns the format of those
//! disks (docs/disk-format.md; the pure code for it is [`layout`]), the allocation of their space, and the mapping from a
//! volume's blocks to them. It stands on block devices only: it never calls the operating system and never knows who uses a
//! volume.
//!
//! A pool lives on one reactor, its *owner*: all changes of metadata happen there. Requests run on any reactor through a
//! channel: what lies where it may be read or written goes to the disk after one look at a shared map; everything else asks the
//! owner. Begin reading with [`Pool`]; then `channel` (the hot path), `slow` (the rest), `pool::grants` (who may write where) and
//! `pool::checkpoint` (how it becomes durable).

mod channel;
mod disk;
mod error;
mod foreign;
mod gates;
mod hot;
pub mod id;
mod larger_blocks;
pub mod layout;
mod memory;
mod pages;
mod pool;
mod port;
mod refs;
mod slow;
mod space;
mod tree;
mod turns;
mod volume;

pub use disk::{DiskContent, PoolDisk, examine, wipe};
pub use error::{
    CreateError, DifferenceError, DiskFault, DiskRefusal, FaultCause, GrowError, ImportError, ReadOnlyReason,
    VolumeError,
};
pub use foreign::ForeignContent;
pub use pool::{
    DiskStatus, Finding, InspectedDisk, InspectedVolume, Inspection, NewPool, NewPoolDisk, NewSnapshot,
    NewVolume, Pool, PoolHealth, PoolUsage, RESERVE_LIMIT, Remedy, ScrubError, ScrubSettings, ScrubStatus,
    SnapshotDifference, VolumeDetail, VolumeStatus, VolumeUsage, difference, inspect, repair,
};
pub use volume::{LogicalVolume, VolumeAtEpoch};
