//! Pools and logical volumes.
//!
//! A pool turns the disks of one node into volumes. This crate owns the format of those disks (docs/disk-format.md; the
//! pure code for it is [`layout`]), the allocation of their space, and the mapping from a volume's blocks to them. It stands
//! on block devices only: it never calls the operating system and never knows who uses a volume.
//!
//! Begin reading with [`Pool`].

mod channel;
mod disk;
mod error;
mod foreign;
pub mod id;
pub mod layout;
mod pieces;
mod pool;
mod space;
mod volume;

pub use disk::{DiskContent, PoolDisk, examine};
pub use error::{CreateError, DiskFault, DiskRefusal, FaultCause, ImportError, ReadOnlyReason, VolumeError};
pub use foreign::ForeignContent;
pub use pool::{DiskStatus, NewPool, NewPoolDisk, NewVolume, Pool, PoolHealth, VolumeStatus};
pub use volume::LogicalVolume;
