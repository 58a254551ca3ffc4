//! Block devices: the waist of the data plane.
//!
//! This page is what a consumer sees. A [`BlockDevice`] is shared between reactors; [`BlockDevice::open`] gives one reactor's
//! [`Channel`], a queue pair: requests go in, completions come out, nothing blocks and nothing is called back. Who implements a
//! device begins reading at [`provider`]. [`AsyncChannel`] serves code that would rather await.
//!
//! Promises of every device:
//! * A request that was taken by [`Channel::submit`] completes exactly once, with its tag and its memory, in any order with
//!   respect to others. Requests that overlap in time and place are not ordered: consumers order them by waiting.
//! * A write is durable once a flush that was submitted after its completion has completed, or, with FUA, once it has completed itself.
//!   On devices without a volatile write cache every completed write is durable.
//! * After a crash, each atomic write unit of a write that was not durable holds the old or the new data.
//! * Unmapped blocks read as zeroes unless the device says otherwise.

mod async_channel;
mod backing;
pub mod conformance;
mod device;
mod error;
mod faults;
mod histogram;
mod io_stats;
pub mod load;
mod metered;
pub mod provider;
mod request;
mod units;

pub use async_channel::AsyncChannel;
pub use backing::{Backing, Place};
pub use device::{BlockDevice, Capabilities, Channel, DeviceInfo, DeviceState, OpenError};
pub use error::IoError;
pub use faults::{DeviceFaults, FaultCounts};
pub use histogram::{HistogramSnapshot, LatencyHistogram};
pub use io_stats::{IoSnapshot, IoStats, MeteredKind};
pub use metered::MeteredDevice;
pub use request::{Completion, Operation, Rejected, Request};
pub use units::{BlockCount, BlockSize, Lba};
