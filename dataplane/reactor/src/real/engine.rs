use std::os::fd::RawFd;
use std::sync::Arc;

use basalt_dma::{RegionChange, RegionId};

use super::epoll::{Epoll, EventFd};
use super::threads::ThreadEngine;
use super::uring::UringEngine;

/// What a transfer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write { durable: bool },
    Sync,
    Allocate { mode: i32 },
}

/// One call to the kernel that may take long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transfer {
    pub(super) fd: RawFd,
    /// Place of the file in the table of disks.
    pub(super) disk: u32,
    /// The disk can be asked for completions.
    pub(super) polled: bool,
    /// Region of the one part, if it lies in one.
    pub(super) region: Option<RegionId>,
    pub(super) kind: Kind,
    pub(super) offset: u64,
    /// Bytes, for what moves none.
    pub(super) length: u64,
    pub(super) parts: *const libc::iovec,
    pub(super) parts_len: usize,
}

/// The end of a transfer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished {
    /// What the transfer was started as.
    pub(super) place: usize,
    /// A count of bytes or a negative error number.
    pub(super) result: i32,
}

/// How transfers are done.
#[derive(Debug)]
pub(super) enum Engine {
    Uring(Box<UringEngine>),
    Threads(ThreadEngine),
}

impl Engine {
    /// io_uring where the kernel offers and the container permits it, else threads.
    pub(super) fn new(epoll: &Epoll, wake: &Arc<EventFd>, poll: bool) -> Self {
        match UringEngine::new(epoll, poll) {
            Ok(engine) => Self::Uring(Box::new(engine)),
            Err(_refused) => Self::threads(wake),
        }
    }

    pub(super) fn threads(wake: &Arc<EventFd>) -> Self {
        Self::Threads(ThreadEngine::new(Arc::clone(wake)))
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "io_uring",
            Self::Threads(_) => "threads",
        }
    }

    /// Whether disks that can be are asked for their completions.
    pub(super) fn polls(&self) -> bool {
        match self {
            Self::Uring(engine) => engine.polls(),
            Self::Threads(_) => false,
        }
    }

    /// Makes a file known under its place in the table of disks, until `forget_file`.
    pub(super) fn know_file(&mut self, disk: u32, fd: RawFd) {
        match self {
            Self::Uring(engine) => engine.know_file(disk, fd),
            Self::Threads(_) => {}
        }
    }

    /// The file is about to be closed; nothing of it is under way.
    pub(super) fn forget_file(&mut self, disk: u32) {
        match self {
            Self::Uring(engine) => engine.forget_file(disk),
            Self::Threads(_) => {}
        }
    }

    /// Pieces of the reactor's memory came or went.
    pub(super) fn memory_changed(&mut self, changes: &[RegionChange]) {
        match self {
            Self::Uring(engine) => engine.memory_changed(changes),
            Self::Threads(_) => {}
        }
    }

    /// Starts a transfer, at the latest with the next `flush` or `reap`.
    ///
    /// # Safety
    /// The parts and the memory that they name stay valid, and for reads unused by others, until the transfer is reported.
    pub(super) unsafe fn start(&mut self, place: usize, transfer: &Transfer) {
        match self {
            // SAFETY: the caller's promise is handed on.
            Self::Uring(engine) => unsafe { engine.start(place, transfer) },
            // SAFETY: the caller's promise is handed on.
            Self::Threads(engine) => unsafe { engine.start(place, transfer) },
        }
    }

    /// Before a wait for `wake`: makes the end of a transfer end it. False if there is something to reap already.
    pub(super) fn arm(&mut self, wake: &EventFd) -> bool {
        match self {
            Self::Uring(engine) => engine.arm(wake),
            Self::Threads(_) => true,
        }
    }

    /// After the wait.
    pub(super) fn disarm(&mut self) {
        match self {
            Self::Uring(engine) => engine.disarm(),
            Self::Threads(_) => {}
        }
    }

    pub(super) fn flush(&mut self) {
        match self {
            Self::Uring(engine) => engine.flush(),
            Self::Threads(_) => {}
        }
    }

    /// Appends what is finished, without waiting.
    pub(super) fn reap(&mut self, finished: &mut Vec<Finished>) {
        match self {
            Self::Uring(engine) => engine.reap(finished),
            Self::Threads(engine) => engine.reap(finished),
        }
    }

    /// Waits for at least one end; false if that is not possible.
    pub(super) fn wait(&mut self, finished: &mut Vec<Finished>) -> bool {
        match self {
            Self::Uring(engine) => engine.wait(finished),
            Self::Threads(engine) => engine.wait(finished),
        }
    }
}
