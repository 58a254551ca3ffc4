//! A simulated world: time, disks and a network that one seed determines, and the driver that stands in it.
//!
//! A [`World`] holds nodes with disks and addresses. [`World::driver`] gives a reactor on a node its driver; the reactor then runs
//! production code unchanged. Whoever drives the simulation does, over and over: turn every reactor until none is busy,
//! then [`World::advance_to`] the earliest of [`World::next_event`] and the reactors' next timers. [`World::kill`] and
//! [`World::power_fail`] end a node's processes; their reactors are dropped (calls of what is left have no effect) and new drivers
//! are asked for. A paused process is one that is not turned. The same seed and calls give the same events, see
//! [`World::digest`].

mod disks;
mod driver;
mod medium;
mod network;
mod world;

pub use disks::{Chance, DiskFaults};
pub use driver::SimDriver;
pub use medium::SECTOR_BYTES;
pub use world::{DiskModel, NetworkModel, NodeId, World, WorldOptions};
