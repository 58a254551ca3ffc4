//! One reactor's queue pair to a disk: block requests as disk requests, and what a disk cannot do by itself in several steps.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use basalt_bdev::provider::{self, DEFAULT_QUEUE_DEPTH};
use basalt_bdev::{Channel, Completion, DeviceState, IoError, Operation, Rejected, Request};
use basalt_dma::{Buffer, Payload};
use basalt_reactor::{ByteOffset, Disk, DiskCompletion, DiskError, DiskOperation, DiskRequest, Handle};

use crate::device::Below;
use crate::swap_gate::{Member, Stripes};

/// Time until the next look at writes that a compare-and-write waits for, or at one that holds writes off.
const LOOK_AGAIN: Duration = Duration::from_micros(20);

/// One reactor's queue pair to a disk.
pub(crate) struct UringChannel {
    handle: Handle,
    disk: Disk,
    below: Arc<Below>,
    member: Member,
    /// Bytes that there are, as far as somebody has looked.
    reach: Arc<AtomicU64>,
    pending: Vec<Pending>,
    free: Vec<usize>,
    /// Places whose next step the disk had no room for.
    to_resume: Vec<usize>,
    /// Compare-and-writes in order; the first may have closed its stripes and be under way.
    swaps: VecDeque<usize>,
    refused: Vec<Completion>,
    reaped: Vec<DiskCompletion>,
}

/// What is remembered of a request while the disk has it.
struct Pending {
    tag: u64,
    operation: Operation,
    stripes: Stripes,
    stage: Stage,
}

/// What becomes of a request when the disk has done its part.
enum Stage {
    /// Nothing is here.
    Free,
    /// It is complete.
    Last,
    /// A sync follows.
    ThenSync,
    /// What was read is compared.
    Compare { expected: Payload },
    /// A compare-and-write.
    Swap(Box<Swap>),
}

/// A compare-and-write: the expected bytes and then the new ones, as they came.
struct Swap {
    payload: Payload,
    offset: ByteOffset,
    length: usize,
    fua: bool,
    step: SwapStep,
}

enum SwapStep {
    /// Writes in its stripes are to end, and new ones to wait.
    Waits {
        closed: bool,
    },
    Reads,
    /// The content is as expected: this is to be written.
    Writes(Option<Buffer>),
}

impl UringChannel {
    pub(crate) fn new(
        handle: Handle,
        disk: Disk,
        below: Arc<Below>,
        member: Member,
        reach: Arc<AtomicU64>,
    ) -> Self {
        Self {
            handle,
            disk,
            below,
            member,
            reach,
            pending: Vec::new(),
            free: Vec::new(),
            to_resume: Vec::new(),
            swaps: VecDeque::new(),
            refused: Vec::new(),
            reaped: Vec::new(),
        }
    }

    /// The disk's operation for a checked request, and what follows.
    fn translate(request: &mut Request) -> (DiskOperation, Stage) {
        match request.operation {
            Operation::Read => (DiskOperation::Read, Stage::Last),
            Operation::Write { fua } => (DiskOperation::Write { fua }, Stage::Last),
            Operation::Flush => (DiskOperation::Sync, Stage::Last),
            Operation::Unmap => (DiskOperation::Discard, Stage::Last),
            Operation::WriteZeroes { fua: false, .. } => (DiskOperation::WriteZeroes, Stage::Last),
            Operation::WriteZeroes { fua: true, .. } => (DiskOperation::WriteZeroes, Stage::ThenSync),
            Operation::Compare | Operation::CompareAndWrite { .. } => {
                (DiskOperation::Read, Stage::Compare { expected: std::mem::take(&mut request.payload) })
            }
        }
    }

    fn place(&mut self, pending: Pending) -> usize {
        match self.free.pop() {
            Some(place) => {
                self.pending[place] = pending;
                place
            }
            None => {
                self.pending.push(pending);
                self.pending.len() - 1
            }
        }
    }

    /// Gives a place back; what was there.
    fn vacate(&mut self, place: usize) -> Pending {
        let nothing =
            Pending { tag: 0, operation: Operation::Flush, stripes: Stripes::NONE, stage: Stage::Free };
        let pending = std::mem::replace(&mut self.pending[place], nothing);
        self.free.push(place);
        pending
    }

    fn disk_request(
        &self,
        place: usize,
        operation: DiskOperation,
        offset: ByteOffset,
        payload: Payload,
    ) -> DiskRequest {
        let length = payload.len() as u64;
        DiskRequest { disk: self.disk.info().id, tag: place as u64, operation, offset, length, payload }
    }

    /// Begins the next step of a request that is under way: a sync, or the write of a compare-and-write.
    fn resume(&mut self, place: usize) {
        let (operation, offset, payload) = match &mut self.pending[place].stage {
            Stage::Swap(swap) => {
                let SwapStep::Writes(buffer) = &mut swap.step else {
                    unreachable!("only its write is resumed")
                };
                let Some(buffer) = buffer.take() else { unreachable!("it has not been written") };
                (DiskOperation::Write { fua: swap.fua }, swap.offset, Payload::Buffer(buffer))
            }
            _ => (DiskOperation::Sync, ByteOffset(0), Payload::None),
        };
        let request = self.disk_request(place, operation, offset, payload);
        if let Err(back) = self.disk.submit(request) {
            if let Stage::Swap(swap) = &mut self.pending[place].stage {
                swap.step = SwapStep::Writes(back.payload.into_buffer());
            }
            self.to_resume.push(place);
        }
    }

    /// Takes the first compare-and-write a step further.
    fn advance_swap(&mut self) {
        let Some(place) = self.swaps.front().copied() else { return };
        let Pending { stripes, stage: Stage::Swap(swap), .. } = &mut self.pending[place] else {
            unreachable!("it is a compare-and-write")
        };
        let SwapStep::Waits { closed } = &mut swap.step else { return };
        if !*closed {
            *closed = self.member.close(*stripes);
        }
        let ready = *closed && self.member.is_quiet();
        let buffer = if ready { self.handle.buffers().take(swap.length) } else { None };
        let Some(buffer) = buffer else {
            self.handle.wake_at(self.handle.now() + LOOK_AGAIN);
            return;
        };
        let offset = swap.offset;
        swap.step = SwapStep::Reads;
        let request = self.disk_request(place, DiskOperation::Read, offset, Payload::Buffer(buffer));
        if self.disk.submit(request).is_err()
            && let Stage::Swap(swap) = &mut self.pending[place].stage
        {
            swap.step = SwapStep::Waits { closed: true };
            self.handle.wake_at(self.handle.now() + LOOK_AGAIN);
        }
    }

    /// How a request ended that the disk has done; what may be the file's fault is looked into.
    fn result_of(&self, finished: &DiskCompletion) -> Result<(), IoError> {
        finished.result.map_err(|error| {
            self.below.suspect(error);
            match error {
                DiskError::OutOfRange if self.below.info.state() == DeviceState::Shortened => {
                    IoError::Shortened
                }
                error => error_of(error),
            }
        })
    }

    fn finish(&mut self, finished: DiskCompletion) -> Option<Completion> {
        let place = usize::try_from(finished.tag).ok().filter(|place| *place < self.pending.len());
        let Some(place) = place else { panic!("the disk completed a tag that it was never given") };
        match &mut self.pending[place].stage {
            Stage::ThenSync if finished.result.is_ok() => {
                self.pending[place].stage = Stage::Last;
                self.resume(place);
                return None;
            }
            Stage::Swap(_) => return self.finish_swap(place, finished),
            Stage::Free => panic!("the disk completed a request twice"),
            Stage::Last | Stage::ThenSync | Stage::Compare { .. } => {}
        }
        let Pending { tag, operation, stripes, stage } = self.vacate(place);
        self.member.leave(stripes);
        let result = self.result_of(&finished);
        self.below.info.note(operation, result);
        Some(match stage {
            Stage::Compare { expected } => {
                let result = result.and_then(|()| compare(&finished.payload, &expected));
                Completion { tag, result, payload: expected }
            }
            _ => Completion { tag, result, payload: finished.payload },
        })
    }

    /// The disk has done one of a compare-and-write's two steps.
    fn finish_swap(&mut self, place: usize, finished: DiskCompletion) -> Option<Completion> {
        let mut result = self.result_of(&finished);
        let Stage::Swap(swap) = &mut self.pending[place].stage else { unreachable!("it is one") };
        let reads = matches!(swap.step, SwapStep::Reads);
        let step = if reads { Operation::Read } else { Operation::Write { fua: swap.fua } };
        self.below.info.note(step, result);
        if reads && result.is_ok() {
            result = compare(&finished.payload, &swap.payload);
            if self.below.info.state() == DeviceState::Shortened {
                result = Err(IoError::Shortened);
            }
            if let (Ok(()), Some(mut buffer)) = (result, finished.payload.into_buffer()) {
                swap.payload.copy_to(swap.length, &mut buffer);
                swap.step = SwapStep::Writes(Some(buffer));
                self.resume(place);
                return None;
            }
        }
        self.member.open();
        self.swaps.pop_front();
        let Pending { tag, stage: Stage::Swap(swap), .. } = self.vacate(place) else {
            unreachable!("it is one")
        };
        Some(Completion { tag, result, payload: swap.payload })
    }

    fn submit_swap(&mut self, request: Request, fua: bool) {
        let (offset, length) = self.range(&request);
        let stripes = Stripes::of(offset.0, length);
        let swap = Swap {
            payload: request.payload,
            offset,
            length: usize::try_from(length).unwrap_or(usize::MAX),
            fua,
            step: SwapStep::Waits { closed: false },
        };
        let (tag, operation) = (request.tag, request.operation);
        let place = self.place(Pending { tag, operation, stripes, stage: Stage::Swap(Box::new(swap)) });
        self.swaps.push_back(place);
        self.advance_swap();
    }

    fn range(&self, request: &Request) -> (ByteOffset, u64) {
        let block_size = self.below.info.block_size();
        (ByteOffset(block_size.offset_of(request.lba)), block_size.bytes_of(request.blocks))
    }
}

impl Channel for UringChannel {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        if self.pending.len() - self.free.len() + self.refused.len() >= DEFAULT_QUEUE_DEPTH {
            return Err(Rejected(request));
        }
        if let Err(error) = provider::check(&self.below.info, &request) {
            self.refused.push(request.complete(Err(error)));
            return Ok(());
        }
        let (offset, length) = self.range(&request);
        if request.operation.modifies() && offset.0 + length > self.reach.load(Ordering::Relaxed) {
            self.refused.push(request.complete(Err(IoError::Medium)));
            return Ok(());
        }
        if let Operation::CompareAndWrite { fua } = request.operation {
            self.submit_swap(request, fua);
            return Ok(());
        }
        let reads = matches!(request.operation, Operation::Read | Operation::Compare);
        let own = request.operation == Operation::Compare || matches!(request.payload, Payload::None);
        // Memory that the request does not bring.
        let mut memory = Payload::None;
        if reads && own {
            let len = usize::try_from(length).unwrap_or(usize::MAX);
            let Some(buffer) = self.handle.buffers().take(len) else { return Err(Rejected(request)) };
            memory = Payload::Buffer(buffer);
        }
        let stripes =
            if request.operation.modifies() { Stripes::of(offset.0, length) } else { Stripes::NONE };
        if !self.member.enter(stripes) {
            // It is let in soon, and nothing else may wake this reactor then.
            self.handle.wake_at(self.handle.now() + LOOK_AGAIN);
            return Err(Rejected(request));
        }
        let (operation, stage) = Self::translate(&mut request);
        let payload = if memory.is_empty() { std::mem::take(&mut request.payload) } else { memory };
        let (tag, asked) = (request.tag, request.operation);
        let place = self.place(Pending { tag, operation: asked, stripes, stage });
        let disk_request =
            DiskRequest { disk: self.disk.info().id, tag: place as u64, operation, offset, length, payload };
        self.disk.submit(disk_request).map_err(|back| {
            let Pending { stage, .. } = self.vacate(place);
            self.member.leave(stripes);
            request.payload = match stage {
                Stage::Compare { expected } => expected,
                _ if reads && own => Payload::None,
                _ => back.payload,
            };
            Rejected(request)
        })
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        completions.append(&mut self.refused);
        for place in std::mem::take(&mut self.to_resume) {
            self.resume(place);
        }
        let mut reaped = std::mem::take(&mut self.reaped);
        self.disk.poll(&mut reaped);
        for finished in reaped.drain(..) {
            completions.extend(self.finish(finished));
        }
        self.reaped = reaped;
        self.advance_swap();
        completions.len() - before
    }
}

/// Whether `found` is what `expected` begins with.
fn compare(found: &Payload, expected: &Payload) -> Result<(), IoError> {
    const PIECE: usize = 4096;
    let (mut left, mut right) = ([0; PIECE], [0; PIECE]);
    let mut at = 0;
    while at < found.len() {
        let count = PIECE.min(found.len() - at);
        found.copy_to(at, &mut left[..count]);
        expected.copy_to(at, &mut right[..count]);
        if left[..count] != right[..count] {
            return Err(IoError::Miscompare);
        }
        at += count;
    }
    Ok(())
}

fn error_of(error: DiskError) -> IoError {
    match error {
        DiskError::NoSpace => IoError::CapacityExceeded,
        DiskError::ReadOnly | DiskError::PermissionDenied => IoError::ReadOnly,
        DiskError::Gone | DiskError::NotFound | DiskError::NotADisk | DiskError::TooSmall { .. } => {
            IoError::DeviceGone
        }
        DiskError::Unsupported => IoError::Unsupported,
        DiskError::Shortened { .. } => IoError::Shortened,
        // The request was checked against the device, so a block device must have shrunk, or the memory is not aligned for it.
        DiskError::OutOfRange => IoError::Medium,
        DiskError::Medium
        | DiskError::Exists
        | DiskError::InUse
        | DiskError::TooManyOpen
        | DiskError::System(_) => IoError::Medium,
    }
}
