use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use basalt_dma::{REGIONS_MAX, RegionChange};
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
    known: Known,
}

/// What the kernel was told of beforehand, so that it need not look it up and hold it anew for every transfer. A container may
/// limit how much memory is locked, and an old kernel knows no such tables: then transfers go without.
#[derive(Default)]
struct Known {
    /// By the place of a disk.
    files: Vec<bool>,
    /// By the number of a region.
    regions: Vec<bool>,
}

/// Disks that are known at a time; others are named by their descriptors.
const FILES_MAX: u32 = 64;

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
        let known = Known::of(&ring, &probe);
        Ok(Self { ring, in_flight: 0, waiting: std::collections::VecDeque::new(), armed: false, known })
    }

    pub(super) fn know_file(&mut self, disk: u32, fd: RawFd) {
        let Some(known) = self.known.files.get_mut(disk as usize) else { return };
        *known = self.ring.submitter().register_files_update(disk, &[fd]).is_ok();
    }

    pub(super) fn forget_file(&mut self, disk: u32) {
        let Some(known) = self.known.files.get_mut(disk as usize) else { return };
        if std::mem::take(known) {
            // It cannot fail for a place of the table. The kernel lets go of the file.
            drop(self.ring.submitter().register_files_update(disk, &[-1]));
        }
    }

    pub(super) fn memory_changed(&mut self, changes: &[RegionChange]) {
        for change in changes {
            let (id, iov_base, iov_len) = match change {
                RegionChange::Added { id, start, len } => (*id, start.as_ptr().cast(), *len),
                RegionChange::Removed(id) => (*id, std::ptr::null_mut(), 0),
            };
            let Some(known) = self.known.regions.get_mut(usize::from(id.index())) else { continue };
            let region = [libc::iovec { iov_base, iov_len }];
            // SAFETY: the kernel holds the pages by itself. A transfer names a region only while a buffer of it lives, and a
            // region that went is forgotten here before its number comes again.
            let told =
                unsafe { self.ring.submitter().register_buffers_update(id.index().into(), &region, None) };
            *known = told.is_ok() && iov_len > 0;
        }
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

/// An opcode's entry for a file, known or by its descriptor.
macro_rules! for_file {
    ($known:expr, $transfer:expr, |$fd:ident| $entry:expr) => {
        if $known {
            let $fd = types::Fixed($transfer.disk);
            $entry
        } else {
            let $fd = types::Fd($transfer.fd);
            $entry
        }
    };
}

impl Known {
    /// Tables with room, as far as the kernel gives them.
    fn of(ring: &IoUring, probe: &Probe) -> Self {
        let submitter = ring.submitter();
        let table = |made: io::Result<()>, size: usize| vec![false; if made.is_ok() { size } else { 0 }];
        let fixed =
            probe.is_supported(opcode::ReadFixed::CODE) && probe.is_supported(opcode::WriteFixed::CODE);
        let files = table(submitter.register_files_sparse(FILES_MAX), FILES_MAX as usize);
        let regions = if fixed { REGIONS_MAX.into() } else { 0 };
        let regions = table(submitter.register_buffers_sparse(REGIONS_MAX.into()), regions);
        Self { files, regions }
    }

    fn entry(&self, transfer: &Transfer) -> squeue::Entry {
        let known = self.files.get(transfer.disk as usize) == Some(&true);
        for_file!(known, transfer, |fd| match transfer.kind {
            Kind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Kind::Allocate { mode } => {
                opcode::Fallocate::new(fd, transfer.length).offset(transfer.offset).mode(mode).build()
            }
            Kind::Read => match self.memory(transfer) {
                Memory::Region(base, len, region) => {
                    opcode::ReadFixed::new(fd, base, len, region).offset(transfer.offset).build()
                }
                Memory::Part(base, len) => opcode::Read::new(fd, base, len).offset(transfer.offset).build(),
                Memory::Parts(parts, count) => {
                    opcode::Readv::new(fd, parts, count).offset(transfer.offset).build()
                }
            },
            Kind::Write { durable } => {
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                match self.memory(transfer) {
                    Memory::Region(base, len, region) => opcode::WriteFixed::new(fd, base, len, region)
                        .offset(transfer.offset)
                        .rw_flags(flags)
                        .build(),
                    Memory::Part(base, len) => {
                        opcode::Write::new(fd, base, len).offset(transfer.offset).rw_flags(flags).build()
                    }
                    Memory::Parts(parts, count) => {
                        opcode::Writev::new(fd, parts, count).offset(transfer.offset).rw_flags(flags).build()
                    }
                }
            }
        })
    }

    fn memory(&self, transfer: &Transfer) -> Memory {
        if transfer.parts_len != 1 {
            return Memory::Parts(transfer.parts, u32::try_from(transfer.parts_len).unwrap_or(0));
        }
        // SAFETY: the caller's list has `parts_len` entries.
        let part = unsafe { *transfer.parts };
        let (base, len) = (part.iov_base.cast::<u8>(), u32::try_from(part.iov_len).unwrap_or(u32::MAX));
        let region = transfer.region.map(|region| region.index());
        match region.filter(|region| self.regions.get(usize::from(*region)) == Some(&true)) {
            Some(region) => Memory::Region(base, len, region),
            None => Memory::Part(base, len),
        }
    }
}

/// Where a transfer's bytes are.
enum Memory {
    /// In one piece of a region that the kernel knows.
    Region(*mut u8, u32, u16),
    /// In one piece.
    Part(*mut u8, u32),
    Parts(*const libc::iovec, u32),
}

impl fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringEngine")
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

    use super::*;

    const READ: u32 = opcode::Read::CODE as u32;
    const READ_FIXED: u32 = opcode::ReadFixed::CODE as u32;

    struct Rig {
        engine: UringEngine,
        file: File,
    }

    impl Rig {
        /// None where the kernel or the container has no io_uring; nothing is to be tested then.
        fn new() -> Option<Self> {
            let engine = UringEngine::new(&Epoll::new().unwrap()).ok()?;
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[7; 8192]).unwrap();
            Some(Self { engine, file })
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
                region,
                kind: Kind::Read,
                offset: 4096,
                length: 4096,
                parts: &raw const part,
                parts_len: 1,
            };
            let opcode = self.engine.known.entry(&transfer).get_opcode();
            // SAFETY: part and buffer live until the end was reported.
            unsafe { self.engine.start(3, &transfer) };
            let mut finished = Vec::new();
            while finished.is_empty() {
                assert!(self.engine.wait(&mut finished));
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
        rig.engine.memory_changed(&pool.take_region_changes());
        let fd = rig.file.as_raw_fd();
        rig.engine.know_file(0, fd);
        if rig.engine.known.regions.iter().all(|known| !known) {
            // The container locks no memory.
            return;
        }
        let mut buffer = buffer;
        buffer.fill(0);
        let (opcode, buffer) = rig.read(0, buffer);
        assert_eq!((opcode, buffer[4095]), (READ_FIXED, 7));
        // Another disk than the one that is known.
        assert_eq!(rig.read(FILES_MAX + 1, buffer).1[0], 7);
        rig.engine.forget_file(0);
        assert_eq!(rig.read(0, pool.take(4096).unwrap()).1[0], 7);
    }

    #[test]
    fn memory_that_went_is_forgotten() {
        let Some(mut rig) = Rig::new() else { return };
        let pool = BufferPool::new(8192);
        let buffer = pool.take(4096).unwrap();
        rig.engine.memory_changed(&pool.take_region_changes());
        drop(buffer);
        // All that there is: the first region goes for it.
        let large = pool.take_zeroed(8192).unwrap();
        let (opcode, mut large) = {
            let mut large = large;
            large.set_len(4096);
            rig.read(0, large)
        };
        assert_eq!((opcode, large[0]), (READ, 7), "it has a number that means nothing yet");
        rig.engine.memory_changed(&pool.take_region_changes());
        large.fill(0);
        let known = rig.engine.known.regions.iter().filter(|known| **known).count();
        assert!(known <= 1, "{known} regions are known, and there is one");
        assert_eq!(rig.read(0, large).1[0], 7);
    }
}
