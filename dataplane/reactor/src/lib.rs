//! One thread per core that polls: pollers, tasks, timers, disks, sockets and messages from other threads.
//!
//! Owns [`Reactor`] (turns over and over), [`Handle`] (what code on the reactor uses), [`Remote`] (what other threads
//! use) and the [`Driver`] trait behind which everything outside of the process lies: [`real::RealDriver`] on a machine,
//! [`sim::SimDriver`] in a simulated world. Never blocks in a turn, never holds a lock during I/O, knows nothing of blocks, pools or
//! protocols. Begin reading at [`Reactor::turn`].
#![allow(unsafe_code, reason = "system calls, rings and descriptors are this crate's job")]

mod disk;
mod driver;
mod executor;
mod handle;
mod reactor;
pub mod real;
mod remote;
mod ring;
pub mod sim;
mod socket;
mod stats;
mod thread;
mod timer;
mod watch;

pub use disk::Disk;
pub use driver::{
    ByteOffset, DiskCompletion, DiskError, DiskId, DiskInfo, DiskKind, DiskLock, DiskOperation, DiskOptions,
    DiskRequest, Driver, Errno, ListenerId, Progress, Received, Sent, SharedListener, SocketError, SocketId,
    Wake,
};
pub use executor::Task;
pub use handle::{Handle, PollerId};
pub use reactor::{Polling, Reactor, ReactorOptions, Turn};
pub use remote::{PostError, Remote};
pub use socket::{Listener, Socket};
pub use stats::{ReactorStats, StatsSnapshot};
pub use thread::{ReactorThread, StartError, keep_off, start, usable_cores};
pub use timer::Sleep;
pub use watch::ReadyList;
