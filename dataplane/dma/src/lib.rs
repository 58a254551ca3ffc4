//! Memory for input and output: aligned, owned, recycled.
//!
//! Owns [`Buffer`] (memory that moves with a request and comes back with its completion), [`BufferPool`] (hands out and
//! takes back without allocation), [`Lent`] (a read-only view of memory that someone else owns) and [`Payload`] (what a
//! request carries). Nothing here is `Send`: memory stays on the reactor that took it. Never does I/O.
//! Begin reading at [`Buffer`].
#![allow(unsafe_code, reason = "raw aligned memory is this crate's job")]

mod block;
mod buffer;
mod lent;
mod pages;
mod payload;
mod pool;
mod segment;
mod shared;
mod slab;

pub use buffer::Buffer;
pub use lent::{Lender, Lent};
pub use payload::Payload;
pub use pool::{BufferPool, MAX_CLASS_BYTES, MIN_CLASS_BYTES, PoolStats};
pub use segment::Segment;
pub use shared::{MemoryLender, SharedMemory};
pub use slab::{REGIONS_MAX, RegionChange, RegionId};

/// Alignment of every buffer's start in bytes: a page, which satisfies O_DIRECT on every device.
pub const ALIGNMENT: usize = 4096;
