//! Files and kernel block devices as block devices, through the reactor's disks.
//!
//! Owns [`UringDevice`]. Every reactor has its own descriptor; the claim on the disk is the device's, so that one process uses it at a
//! time. Makes no system calls itself: under the simulation it runs on simulated disks. Begin reading at
//! [`UringDevice::open`].

mod channel;
mod device;
mod swap_gate;

pub use device::{UringDevice, UringError, UringOptions};
