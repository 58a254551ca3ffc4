//! Whole NVMe/TCP sessions in a simulated world: the production target, a legitimate host on one machine, and somebody hostile on
//! another.
//!
//! The hostile host has a subsystem and a namespace of its own, beside the legitimate one's, on the same reactor. Whatever it does:
//! nobody panics or hangs, the legitimate host's commands succeed and its data is right, and once the hostile host is gone the target
//! has nothing left of it.

mod hostile;
mod legitimate;
mod mallory;
mod relay;
mod rig;
mod script;
mod stream;

pub use hostile::hostile_host;
pub use mallory::hostile_controller;
pub use relay::{Recorded, hostile_wire, record};
pub use stream::hostile_stream;
