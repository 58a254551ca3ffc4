//! Block devices without hardware: RAM, null, and layers that delay, fail or record.
//!
//! Owns [`RamDevice`] and [`NullDevice`], and the layers [`DelayDevice`], [`FaultyDevice`], [`PlainDevice`] and [`RecordingDevice`]
//! for tests over any device, and [`ImageDevice`] with [`Crashes`] for images that a power failure leaves. Knows no files. Begin reading
//! at [`RamDevice`].

mod delay;
mod faulty;
mod image;
mod immediate;
mod null;
mod plain;
mod ram;
mod recording;
mod write_gate;

pub use delay::{DelayDevice, Delays};
pub use faulty::{Fault, Faults, FaultyDevice, OperationKind};
pub use image::ImageDevice;
pub use null::NullDevice;
pub use plain::PlainDevice;
pub use ram::{RamDevice, RamError};
pub use recording::{CrashState, Crashes, Recording, RecordingDevice};
