//! One io_uring of a reactor.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use basalt_dma::RegionChange;
use io_uring::{IoUring, Probe, opcode, squeue};

use super::known::Known;
use crate::real::disks::IN_FLIGHT_MAX;
use crate::real::engine::{Finished, Transfer};
use crate::real::epoll::EventFd;

/// Entries that wait for the next submission; a full queue is submitted at once.
const SUBMISSION_ENTRIES: u32 = 256;

/// How completions come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completions {
    /// The device interrupts.
    Interrupts,
    /// The device is asked; only transfers of disks that can be asked may be started.
    Polled,
}

/// A ring, and what is under way on it.
pub(super) struct Ring {
    ring: IoUring,
    in_flight: usize,
    /// Entries that the ring had no room for.
    waiting: VecDeque<squeue::Entry>,
    /// An event descriptor is registered.
    armed: bool,
    known: Known,
}

impl Ring {
    pub(super) fn new(completions: Completions) -> io::Result<Self> {
        let ring = build(completions)?;
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
        let known = Known::of(&ring, &probe);
        Ok(Self { ring, in_flight: 0, waiting: VecDeque::new(), armed: false, known })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn know_file(&mut self, disk: u32, fd: RawFd) {
        self.known.file(&self.ring.submitter(), disk, fd);
    }

    pub(super) fn forget_file(&mut self, disk: u32) {
        self.known.forget_file(&self.ring.submitter(), disk);
    }

    pub(super) fn memory_changed(&mut self, changes: &[RegionChange]) {
        self.known.memory_changed(&self.ring.submitter(), changes);
    }

    /// # Safety
    /// As for `Engine::start`.
    pub(super) unsafe fn start(&mut self, place: usize, transfer: &Transfer) {
        let entry = self.known.entry(transfer).user_data(place as u64);
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

    /// Of a polled ring: submits, and asks the devices once.
    pub(super) fn ask(&mut self, finished: &mut Vec<Finished>) {
        self.fill();
        self.enter(0);
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

    /// Waits for at least one end; false if that is not possible.
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
fn build(how: Completions) -> io::Result<IoUring> {
    let completions = u32::try_from(2 * IN_FLIGHT_MAX).unwrap_or(SUBMISSION_ENTRIES);
    if how == Completions::Polled {
        return IoUring::builder()
            .setup_iopoll()
            .setup_cqsize(completions)
            .setup_single_issuer()
            .dontfork()
            .build(SUBMISSION_ENTRIES);
    }
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

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("fd", &self.ring.as_raw_fd())
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use basalt_dma::{Buffer, BufferPool, Payload};

    use super::super::known::FILES_MAX;
    use super::*;
    use crate::real::engine::Kind;

    const READ: u32 = opcode::Read::CODE as u32;
    const READ_FIXED: u32 = opcode::ReadFixed::CODE as u32;

    struct Rig {
        ring: Ring,
        file: File,
    }

    impl Rig {
        /// None where the kernel or the container has no io_uring; nothing is to be tested then.
        fn new() -> Option<Self> {
            let ring = Ring::new(Completions::Interrupts).ok()?;
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[7; 8192]).unwrap();
            Some(Self { ring, file })
        }

        /// Reads 4 KiB; the opcode that did it.
        fn read(&mut self, disk: u32, buffer: Buffer) -> (u32, Buffer) {
            let mut payload = Payload::Buffer(buffer);
            let region = payload.region();
            let target = &mut payload.buffers_mut()[0];
            let part = libc::iovec { iov_base: target.as_mut_ptr().cast(), iov_len: target.len() };
            let transfer = Transfer {
                fd: self.file.as_raw_fd(),
                disk,
                polled: false,
                region,
                kind: Kind::Read,
                offset: 4096,
                length: 4096,
                parts: &raw const part,
                parts_len: 1,
            };
            let opcode = self.ring.known.entry(&transfer).get_opcode();
            // SAFETY: part and buffer live until the end was reported.
            unsafe { self.ring.start(3, &transfer) };
            let mut finished = Vec::new();
            while finished.is_empty() {
                assert!(self.ring.wait(&mut finished));
            }
            assert_eq!((finished[0].place, finished[0].result), (3, 4096));
            (opcode, payload.into_buffer().unwrap())
        }
    }

    #[test]
    fn memory_and_files_that_were_told_of_are_used_by_number() {
        let Some(mut rig) = Rig::new() else { return };
        let pool = BufferPool::new(1 << 20);
        let own = Buffer::zeroed(4096);
        let (opcode, own) = rig.read(0, own);
        assert_eq!((opcode, own[0]), (READ, 7), "memory of no pool");
        let untold = pool.take_zeroed(4096).unwrap();
        let (opcode, buffer) = rig.read(0, untold);
        assert_eq!(opcode, READ, "nobody was told of the pool's memory yet");
        rig.ring.memory_changed(&pool.take_region_changes());
        let fd = rig.file.as_raw_fd();
        rig.ring.know_file(0, fd);
        if rig.ring.known.regions.iter().all(|known| !known) {
            // The container locks no memory.
            return;
        }
        let mut buffer = buffer;
        buffer.fill(0);
        let (opcode, buffer) = rig.read(0, buffer);
        assert_eq!((opcode, buffer[4095]), (READ_FIXED, 7));
        // Another disk than the one that is known.
        assert_eq!(rig.read(FILES_MAX + 1, buffer).1[0], 7);
        rig.ring.forget_file(0);
        assert_eq!(rig.read(0, pool.take(4096).unwrap()).1[0], 7);
    }

    #[test]
    fn memory_that_went_is_forgotten() {
        let Some(mut rig) = Rig::new() else { return };
        let pool = BufferPool::new(8192);
        let buffer = pool.take(4096).unwrap();
        rig.ring.memory_changed(&pool.take_region_changes());
        drop(buffer);
        // All that there is: the first region goes for it.
        let large = pool.take_zeroed(8192).unwrap();
        let (opcode, mut large) = {
            let mut large = large;
            large.set_len(4096);
            rig.read(0, large)
        };
        assert_eq!((opcode, large[0]), (READ, 7), "it has a number that means nothing yet");
        rig.ring.memory_changed(&pool.take_region_changes());
        large.fill(0);
        let known = rig.ring.known.regions.iter().filter(|known| **known).count();
        assert!(known <= 1, "{known} regions are known, and there is one");
        assert_eq!(rig.read(0, large).1[0], 7);
    }
}
