use std::fmt;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::disks::IN_FLIGHT_MAX;
use super::engine::{Finished, Kind, Transfer};
use super::epoll::{Epoll, EventFd, URING};

/// Entries that wait for the next submission; a full queue is submitted at once.
const SUBMISSION_ENTRIES: u32 = 256;

/// Transfers through io_uring.
pub(super) struct UringEngine {
    ring: IoUring,
    in_flight: usize,
    /// Entries that the ring had no room for.
    waiting: std::collections::VecDeque<squeue::Entry>,
    /// An event descriptor is registered.
    armed: bool,
}

impl UringEngine {
    /// A ring whose completions make `epoll` ready.
    pub(super) fn new(epoll: &Epoll) -> io::Result<Self> {
        let ring = build()?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Write::CODE,
            opcode::Readv::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        epoll.add(&ring, URING, false)?;
        Ok(Self { ring, in_flight: 0, waiting: std::collections::VecDeque::new(), armed: false })
    }

    /// # Safety
    /// As for `Engine::start`.
    pub(super) unsafe fn start(&mut self, place: usize, transfer: &Transfer) {
        let entry = entry(transfer).user_data(place as u64);
        self.in_flight += 1;
        self.waiting.push_back(entry);
        self.fill();
    }

    /// Moves entries into the ring, submitting when it is full.
    fn fill(&mut self) {
        while let Some(entry) = self.waiting.pop_front() {
            // SAFETY: `start`'s caller keeps everything that the entry names valid until the completion.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.waiting.push_front(entry);
                // On failure the entries stay queued and the next `reap` tries again.
                if self.ring.submit().is_err() {
                    return;
                }
            }
        }
    }

    /// Makes the end of a transfer wake whoever waits for `wake`; true if it is worth to wait. The ring's own readiness does not
    /// do: completions that the kernel keeps for this thread make the ring readable without waking who waits for it.
    pub(super) fn arm(&mut self, wake: &EventFd) -> bool {
        if self.in_flight == 0 {
            return true;
        }
        self.armed = self.ring.submitter().register_eventfd(wake.as_raw_fd()).is_ok();
        // What ended before is not told again.
        let (deferred, overflow) = {
            let submission = self.ring.submission();
            (submission.taskrun(), submission.cq_overflow())
        };
        self.armed && !deferred && !overflow && self.ring.completion().is_empty()
    }

    /// Ends what `arm` began.
    pub(super) fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            // It cannot fail for a descriptor that is registered.
            drop(self.ring.submitter().unregister_eventfd());
        }
    }

    /// Submits what is queued.
    pub(super) fn flush(&mut self) {
        self.fill();
        if !self.ring.submission().is_empty() {
            // On failure (the kernel is short of memory) the entries stay queued and the next call tries again.
            drop(self.ring.submit());
        }
    }

    pub(super) fn reap(&mut self, finished: &mut Vec<Finished>) {
        self.fill();
        let (queued, deferred) = {
            let submission = self.ring.submission();
            (submission.len(), submission.taskrun())
        };
        if queued > 0 || deferred || self.ring.submission().cq_overflow() {
            self.enter(0);
        }
        self.collect(finished);
    }

    /// Submits, and lets the kernel post completions that it has kept for this thread.
    fn enter(&mut self, want: u32) -> bool {
        let queued = u32::try_from(self.ring.submission().len()).unwrap_or(SUBMISSION_ENTRIES);
        let flags = 1; // IORING_ENTER_GETEVENTS
        // SAFETY: there is no argument beyond the numbers.
        let result = unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, want, flags, None) };
        match result {
            Ok(_) => true,
            // Busy: completions must be collected first; interrupted: the caller looks again.
            Err(error) => matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EINTR | libc::EAGAIN)),
        }
    }

    fn collect(&mut self, finished: &mut Vec<Finished>) {
        for completion in self.ring.completion() {
            let Ok(place) = usize::try_from(completion.user_data()) else {
                panic!("the kernel completed what was never started")
            };
            self.in_flight -= 1;
            finished.push(Finished { place, result: completion.result() });
        }
    }

    pub(super) fn wait(&mut self, finished: &mut Vec<Finished>) -> bool {
        self.fill();
        if !self.enter(1) {
            return false;
        }
        self.collect(finished);
        true
    }
}

/// The ring with the best set-up that this kernel knows.
fn build() -> io::Result<IoUring> {
    let completions = u32::try_from(2 * IN_FLIGHT_MAX).unwrap_or(SUBMISSION_ENTRIES);
    // Completions are posted only when this thread enters the kernel for them, which it does once per turn.
    let best = IoUring::builder()
        .setup_cqsize(completions)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .dontfork()
        .build(SUBMISSION_ENTRIES);
    best.or_else(|_| IoUring::builder().setup_cqsize(completions).dontfork().build(SUBMISSION_ENTRIES))
}

fn entry(transfer: &Transfer) -> squeue::Entry {
    let fd = types::Fd(transfer.fd);
    match transfer.kind {
        Kind::Read | Kind::Write { .. } => {}
        Kind::Sync => return opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        Kind::Allocate { mode } => {
            return opcode::Fallocate::new(fd, transfer.length).offset(transfer.offset).mode(mode).build();
        }
    }
    let flags = if transfer.kind == (Kind::Write { durable: true }) { libc::RWF_DSYNC } else { 0 };
    let reads = transfer.kind == Kind::Read;
    let parts = u32::try_from(transfer.parts_len).unwrap_or(0);
    if parts == 1 {
        // SAFETY: the caller's list has `parts_len` entries.
        let part = unsafe { *transfer.parts };
        let len = u32::try_from(part.iov_len).unwrap_or(u32::MAX);
        let base = part.iov_base.cast::<u8>();
        return if reads {
            opcode::Read::new(fd, base, len).offset(transfer.offset).build()
        } else {
            opcode::Write::new(fd, base, len).offset(transfer.offset).rw_flags(flags).build()
        };
    }
    if reads {
        opcode::Readv::new(fd, transfer.parts, parts).offset(transfer.offset).build()
    } else {
        opcode::Writev::new(fd, transfer.parts, parts).offset(transfer.offset).rw_flags(flags).build()
    }
}

impl fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringEngine")
            .field("fd", &self.ring.as_raw_fd())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
