use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basalt_dma::{Payload, RegionChange};

use super::engine::{Engine, Finished, Kind, Transfer};
use super::epoll::EventFd;
use super::open;
use crate::driver::{
    Claim, DiskCompletion, DiskError, DiskId, DiskInfo, DiskKind, DiskLock, DiskOperation, DiskOptions,
    DiskRequest, Errno, FileClaim, Progress,
};

/// Operations under way on one driver. Beyond it `submit` hands requests back.
pub(super) const IN_FLIGHT_MAX: usize = 1024;
/// Parts of one vectored transfer; a payload of more is moved in several.
const PARTS_MAX: usize = 1024;
/// Zeroes written at a time where a disk cannot make them by itself.
const ZERO_CHUNK: usize = 256 << 10;

static ZEROES: Zeroes = Zeroes([0; ZERO_CHUNK]);

/// On a page, so that it can be written directly.
#[repr(align(4096))]
struct Zeroes([u8; ZERO_CHUNK]);

/// The disks of one driver and what is under way on them.
#[derive(Debug)]
pub(super) struct Disks {
    engine: Engine,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    operations: Vec<Operation>,
    free_operations: Vec<usize>,
    finished: Vec<Finished>,
    /// Completions of requests that were wrong from the start.
    refused: VecDeque<DiskCompletion>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// Kept until the last operation is done, also after closing.
    open: Option<(File, DiskInfo)>,
    /// What it was opened through: it holds as long.
    claim: Option<Arc<FileClaim>>,
    in_flight: usize,
    closing: bool,
    /// It is asked for its completions.
    polled: bool,
    /// A sync failed once. The kernel has forgotten which data was lost, so no later one may succeed.
    sync_failed: Option<DiskError>,
}

/// What is known of an operation while the kernel has it.
#[derive(Debug)]
struct Operation {
    request: Option<DiskRequest>,
    kind: Kind,
    /// Its disk is asked for its completion.
    polled: bool,
    /// What is left to move: parts of the payload, or of the zeroes.
    parts: Vec<libc::iovec>,
    /// Bytes moved.
    done: u64,
    /// How the zeroes of a `WriteZeroes` are made: tried in this order, as disks differ.
    zeroing: Zeroing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeroing {
    ZeroRange,
    PunchHole,
    Write,
}

impl Disks {
    pub(super) fn new(engine: Engine) -> Self {
        Self {
            engine,
            slots: Vec::new(),
            free_slots: Vec::new(),
            operations: Vec::new(),
            free_operations: Vec::new(),
            finished: Vec::new(),
            refused: VecDeque::new(),
        }
    }

    /// Name of the mechanism in use, for logs.
    pub(super) fn engine_name(&self) -> &'static str {
        self.engine.name()
    }

    pub(super) fn lock(path: &Path, options: &DiskOptions) -> Result<DiskLock, DiskError> {
        let claim = open::lock(path, options)?;
        // The descriptor's own name leads to the file that is open, also when it has another path by now, or none.
        let again = PathBuf::from(format!("/proc/self/fd/{}", claim.file.as_raw_fd()));
        Ok(DiskLock::new(path, &again, options.read_only, Claim::File(Arc::new(claim))))
    }

    pub(super) fn open(&mut self, path: &Path, options: &DiskOptions) -> Result<DiskInfo, DiskError> {
        self.open_with(options.read_only, None, || open::open(path, options))
    }

    /// The kernel holds what is being written, and so the open file that holds the claim.
    pub(super) fn open_locked(&mut self, lock: &DiskLock) -> Result<DiskInfo, DiskError> {
        let Claim::File(claim) = lock.claim() else { return Err(DiskError::NotADisk) };
        let again = || claim.file.try_clone().map_err(|error| open::cause(&error));
        self.open_with(lock.read_only(), Some(Arc::clone(claim)), again)
    }

    fn open_with(
        &mut self,
        read_only: bool,
        claim: Option<Arc<FileClaim>>,
        open: impl FnOnce() -> Result<File, DiskError>,
    ) -> Result<DiskInfo, DiskError> {
        let index = match self.free_slots.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).map_err(|_| DiskError::TooManyOpen)?;
                let slot = Slot {
                    generation: 0,
                    open: None,
                    claim: None,
                    in_flight: 0,
                    closing: false,
                    polled: false,
                    sync_failed: None,
                };
                self.slots.push(slot);
                index
            }
        };
        let slot = &mut self.slots[index as usize];
        let id = DiskId { index, generation: slot.generation.wrapping_add(1) };
        let polls = self.engine.polls();
        let opened = open().and_then(|file| Ok((open::describe(&file, read_only, id, polls)?, file)));
        match opened {
            Ok((info, file)) => {
                self.engine.know_file(index, file.as_raw_fd());
                slot.polled = info.polled;
                slot.generation = id.generation;
                slot.open = Some((file, info.clone()));
                slot.claim = claim;
                slot.closing = false;
                slot.sync_failed = None;
                Ok(info)
            }
            Err(error) => {
                self.free_slots.push(index);
                Err(error)
            }
        }
    }

    pub(super) fn close(&mut self, disk: DiskId) {
        if let Some(slot) = self.slots.get_mut(disk.index as usize)
            && slot.generation == disk.generation
            && slot.open.is_some()
        {
            slot.closing = true;
            self.close_if_done(disk.index);
        }
    }

    fn close_if_done(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.closing && slot.in_flight == 0 {
            slot.closing = false;
            self.engine.forget_file(index);
            slot.open = None;
            slot.claim = None;
            self.free_slots.push(index);
        }
    }

    pub(super) fn memory_changed(&mut self, changes: &[RegionChange]) {
        self.engine.memory_changed(changes);
    }

    pub(super) fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        if self.operations.len() - self.free_operations.len() + self.refused.len() >= IN_FLIGHT_MAX {
            return Err(request);
        }
        if let Err(error) = self.check(&request) {
            let DiskRequest { disk, tag, payload, .. } = request;
            self.refused.push_back(DiskCompletion { disk, tag, result: Err(error), payload });
            return Ok(());
        }
        let place = self.free_operations.pop().unwrap_or_else(|| {
            self.operations.push(Operation::idle());
            self.operations.len() - 1
        });
        self.slots[request.disk.index as usize].in_flight += 1;
        self.operations[place].begin(request);
        self.start(place);
        Ok(())
    }

    fn check(&mut self, request: &DiskRequest) -> Result<(), DiskError> {
        let slot = self.slots.get_mut(request.disk.index as usize);
        let slot = slot.filter(|slot| slot.generation == request.disk.generation && !slot.closing);
        let Some((file, info)) = slot.and_then(|slot| slot.open.as_mut()) else {
            return Err(DiskError::Gone);
        };
        let moves = match request.operation {
            DiskOperation::Sync => return Ok(()),
            DiskOperation::Read => true,
            DiskOperation::Write { .. } | DiskOperation::Discard | DiskOperation::WriteZeroes
                if info.read_only =>
            {
                return Err(DiskError::ReadOnly);
            }
            DiskOperation::Write { .. } => true,
            DiskOperation::Discard | DiskOperation::WriteZeroes => false,
        };
        let block = u64::from(info.block_bytes);
        let end = request.offset.0.checked_add(request.length);
        if end.is_some_and(|end| end > info.length) {
            // It may have grown.
            info.length = open::length(file, info.block_bytes).unwrap_or(info.length);
        }
        let inside = end.is_some_and(|end| end <= info.length) && request.length > 0;
        let aligned = request.offset.0.is_multiple_of(block) && request.length.is_multiple_of(block);
        let fits = !moves || request.payload.len() as u64 == request.length;
        if inside && aligned && fits { Ok(()) } else { Err(DiskError::OutOfRange) }
    }

    /// Gives what is left of an operation to the engine.
    fn start(&mut self, place: usize) {
        let operation = &mut self.operations[place];
        let Some(request) = &operation.request else { panic!("an idle operation was started") };
        let Some((file, _)) = &self.slots[request.disk.index as usize].open else {
            panic!("a disk was closed under an operation")
        };
        operation.polled = self.slots[request.disk.index as usize].polled;
        let parts = operation.parts.len().min(PARTS_MAX);
        let transfer = Transfer {
            fd: file.as_raw_fd(),
            disk: request.disk.index,
            polled: operation.polled,
            region: if operation.zeroing == Zeroing::Write { None } else { request.payload.region() },
            kind: operation.kind,
            offset: request.offset.0 + operation.done,
            length: request.length - operation.done,
            parts: operation.parts.as_ptr(),
            parts_len: parts,
        };
        // SAFETY: the payload and the list of parts stay where they are in `operations` until the engine reports the end;
        // the vector may grow meanwhile, which moves neither the list's heap memory nor the buffers; `Disks::drop` waits.
        unsafe { self.engine.start(place, &transfer) }
    }

    pub(super) fn poll(&mut self, completions: &mut Vec<DiskCompletion>) -> Progress {
        let before = completions.len();
        completions.extend(self.refused.drain(..));
        if self.operations.len() > self.free_operations.len() {
            let mut finished = std::mem::take(&mut self.finished);
            self.engine.reap(&mut finished);
            for Finished { place, result } in finished.drain(..) {
                completions.extend(self.finish(place, result));
            }
            self.finished = finished;
        }
        Progress::busy_if(completions.len() > before)
    }

    /// Starts what is queued, and makes the end of an operation end a wait for `wake`. False if there is no need to wait.
    pub(super) fn begin_wait(&mut self, wake: &EventFd) -> bool {
        self.engine.flush();
        self.engine.arm(wake)
    }

    /// After the wait.
    pub(super) fn end_wait(&mut self) {
        self.engine.disarm();
    }

    /// Takes the end of a transfer in; the completion if the operation is over.
    fn finish(&mut self, place: usize, result: i32) -> Option<DiskCompletion> {
        let (block, kind) = {
            let request = self.operations[place].request.as_ref()?;
            let slot = &mut self.slots[request.disk.index as usize];
            if result == -libc::EOPNOTSUPP && self.operations[place].polled {
                // The queue polls, but not for this disk: interrupts do.
                slot.polled = false;
                self.start(place);
                return None;
            }
            let (_, info) = self.slots[request.disk.index as usize].open.as_ref()?;
            (u64::from(info.block_bytes), info.kind)
        };
        let result = match self.operations[place].advance(result, block, kind) {
            Step::Again => {
                self.start(place);
                return None;
            }
            Step::Done => Ok(()),
            Step::Failed(error) => Err(error),
        };
        let operation = &mut self.operations[place];
        operation.parts.clear();
        let DiskRequest { disk, tag, payload, operation: what, .. } = operation.request.take()?;
        self.free_operations.push(place);
        let slot = &mut self.slots[disk.index as usize];
        slot.in_flight -= 1;
        let mut result = result;
        if what == DiskOperation::Sync {
            if let Err(error) = result {
                slot.sync_failed.get_or_insert(error);
            }
            result = slot.sync_failed.map_or(result, Err);
        }
        self.close_if_done(disk.index);
        Some(DiskCompletion { disk, tag, result, payload })
    }
}

enum Step {
    Again,
    Done,
    Failed(DiskError),
}

impl Operation {
    fn idle() -> Self {
        Self {
            request: None,
            kind: Kind::Sync,
            polled: false,
            parts: Vec::new(),
            done: 0,
            zeroing: Zeroing::ZeroRange,
        }
    }

    fn begin(&mut self, mut request: DiskRequest) {
        self.done = 0;
        self.zeroing = Zeroing::ZeroRange;
        self.parts.clear();
        self.kind = match request.operation {
            DiskOperation::Read => {
                fill_parts(&mut self.parts, &mut request.payload);
                Kind::Read
            }
            DiskOperation::Write { fua } => {
                fill_parts(&mut self.parts, &mut request.payload);
                Kind::Write { durable: fua }
            }
            DiskOperation::Sync => Kind::Sync,
            DiskOperation::Discard => Kind::Allocate { mode: PUNCH_HOLE },
            DiskOperation::WriteZeroes => Kind::Allocate { mode: ZERO_RANGE },
        };
        self.request = Some(request);
    }

    /// What follows from the result of a transfer: a count of bytes or a negative error number.
    fn advance(&mut self, result: i32, block: u64, disk: DiskKind) -> Step {
        let Ok(count) = u64::try_from(result) else {
            return match -result {
                libc::EAGAIN | libc::EINTR => Step::Again,
                errno => self.fall_back(errno),
            };
        };
        match self.kind {
            Kind::Sync | Kind::Allocate { .. } => return Step::Done,
            Kind::Read | Kind::Write { .. } => {}
        }
        let Some(request) = &self.request else { panic!("an idle operation ended") };
        self.done += count;
        if self.done >= request.length {
            return Step::Done;
        }
        // Nothing more, or a part of a block: the file is shorter than it was.
        if count == 0 || !count.is_multiple_of(block) {
            return Step::Failed(match (self.kind, disk) {
                (Kind::Read, DiskKind::File) => DiskError::Shortened { end: request.offset.0 + self.done },
                _ => DiskError::Medium,
            });
        }
        if self.zeroing == Zeroing::Write {
            self.next_zeroes();
        } else {
            skip_parts(&mut self.parts, count);
        }
        Step::Again
    }

    /// Another way to make zeroes, if there is one.
    fn fall_back(&mut self, errno: i32) -> Step {
        let zeroes =
            self.request.as_ref().is_some_and(|request| request.operation == DiskOperation::WriteZeroes);
        let unsupported = matches!(errno, libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::EINVAL);
        if !zeroes || !unsupported || self.zeroing == Zeroing::Write {
            return Step::Failed(error_of(errno));
        }
        if self.zeroing == Zeroing::ZeroRange {
            self.zeroing = Zeroing::PunchHole;
            self.kind = Kind::Allocate { mode: PUNCH_HOLE };
        } else {
            self.zeroing = Zeroing::Write;
            self.kind = Kind::Write { durable: false };
            self.next_zeroes();
        }
        Step::Again
    }

    fn next_zeroes(&mut self) {
        let length = self.request.as_ref().map_or(0, |request| request.length);
        let left = usize::try_from(length - self.done).unwrap_or(usize::MAX);
        let base = ZEROES.0.as_ptr().cast_mut().cast();
        self.parts.clear();
        self.parts.push(libc::iovec { iov_base: base, iov_len: left.min(ZERO_CHUNK) });
    }
}

const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

fn fill_parts(parts: &mut Vec<libc::iovec>, payload: &mut Payload) {
    if let Payload::Lent(view) = payload {
        parts.push(libc::iovec { iov_base: view.as_ptr().cast_mut().cast(), iov_len: view.len() });
        return;
    }
    for buffer in payload.buffers_mut().iter_mut().filter(|buffer| !buffer.is_empty()) {
        parts.push(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
    }
}

/// Removes the first `count` bytes.
fn skip_parts(parts: &mut Vec<libc::iovec>, count: u64) {
    let mut left = usize::try_from(count).unwrap_or(usize::MAX);
    let whole = parts.iter().take_while(|part| {
        let inside = left >= part.iov_len;
        if inside {
            left -= part.iov_len;
        }
        inside
    });
    let whole = whole.count();
    parts.drain(..whole);
    if let Some(first) = parts.first_mut() {
        first.iov_base = first.iov_base.cast::<u8>().wrapping_add(left).cast();
        first.iov_len -= left;
    }
}

/// The cause that an error number stands for.
pub(super) fn error_of(errno: i32) -> DiskError {
    match errno {
        libc::ENOENT => DiskError::NotFound,
        libc::EEXIST => DiskError::Exists,
        libc::EBUSY | libc::EWOULDBLOCK => DiskError::InUse,
        libc::EACCES | libc::EPERM => DiskError::PermissionDenied,
        libc::EROFS => DiskError::ReadOnly,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => DiskError::NoSpace,
        libc::EINVAL => DiskError::OutOfRange,
        libc::EIO | libc::ENODATA | libc::EREMOTEIO | libc::EILSEQ | libc::EUCLEAN => DiskError::Medium,
        libc::ENODEV | libc::ENXIO | libc::ESTALE | libc::EBADF => DiskError::Gone,
        libc::EOPNOTSUPP | libc::ENOSYS => DiskError::Unsupported,
        libc::EMFILE | libc::ENFILE => DiskError::TooManyOpen,
        errno => DiskError::System(Errno(errno)),
    }
}

impl Drop for Disks {
    /// Waits for what is under way: the kernel writes into the buffers until then.
    fn drop(&mut self) {
        while self.operations.len() > self.free_operations.len() {
            let mut finished = std::mem::take(&mut self.finished);
            if !self.engine.wait(&mut finished) {
                // The kernel does not answer. Leaking the buffers is safe, freeing them is not.
                std::mem::forget(std::mem::take(&mut self.operations));
                return;
            }
            for Finished { place, .. } in finished.drain(..) {
                let operation = &mut self.operations[place];
                operation.request = None;
                self.free_operations.push(place);
            }
            self.finished = finished;
        }
    }
}
