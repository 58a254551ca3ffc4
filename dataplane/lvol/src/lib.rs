//! Pools and logical volumes.
//!
//! A [pool](layout) turns the disks of one node into volumes. This crate owns the format of those disks (docs/disk-format.md; the
//! pure code for it is [`layout`]), the allocation of their space, and the mapping from a volume's blocks to them. It stands
//! on block devices only: it never calls the operating system and never knows who uses a volume.
//!
//! Begin reading with [`layout`].

pub mod id;
pub mod layout;
