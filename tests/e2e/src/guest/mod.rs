//! A Linux guest under QEMU's software emulation, with the kernel's own NVMe/TCP host.
//!
//! [`Image`] builds kernel and root once. [`Guest::run`] boots them, runs a script as root and gives back what it printed and
//! its status. In the guest the host's 127.0.0.1 is 10.0.2.2. `host-call NAME ARGS` in the script runs a hook of the test on
//! the host and ends with its status, so that a script can kill what it is talking to. Time in a guest is distorted: a script
//! judges what is right, never how fast.

mod image;
mod machine;

pub use image::Image;
pub use machine::{Guest, Hook, Outcome};
