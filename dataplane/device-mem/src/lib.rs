//! Block devices without hardware: RAM, null, and layers that delay, fail or record.
//!
//! Owns [`RamDevice`] and [`NullDevice`], and the layers [`DelayDevice`], [`FaultyDevice`], [`PlainDevice`] and [`RecordingDevice`] for tests over any
//! device. Knows no files. Begin reading at [`RamDevice`].

mod delay;
mod faulty;
mod null;
mod plain;
mod ram;
mod recording;
mod write_gate;

pub use delay::{DelayDevice, Delays};
pub use faulty::{Fault, Faults, FaultyDevice, OperationKind};
pub use null::NullDevice;
pub use plain::PlainDevice;
pub use ram::{RamDevice, RamError};
pub use recording::{Recording, RecordingDevice};
