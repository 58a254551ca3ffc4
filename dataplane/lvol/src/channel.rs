//! One reactor's queue pair to a logical volume: maps blocks and tags, nothing else.
//!
//! A request that lies in one span of one disk goes there as it is, with the index of its slot as its tag. One that does not is
//! carried out piece by piece, one piece at a time: spans are long, so this is rare.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;

use basalt_bdev::provider::{Channel, DEFAULT_QUEUE_DEPTH, DeviceState, check};
use basalt_bdev::{Completion, IoError, Lba, Operation, Rejected, Request};
use basalt_clock::planted;
use basalt_dma::Payload;
use basalt_reactor::Handle;

use crate::pieces::Pieces;
use crate::volume::VolumeCore;

/// See the module's page.
pub(crate) struct VolumeChannel {
    volume: Arc<VolumeCore>,
    /// One per disk of the volume.
    children: Vec<Box<dyn Channel>>,
    handle: Handle,
    slots: Box<[Slot]>,
    /// Indexes of free slots.
    free: Vec<usize>,
    /// Slots whose next piece found its disk's queue full.
    blocked: VecDeque<usize>,
    /// Completions of requests that ended without their disk's doing; at most as many as there are slots.
    ended: Vec<Completion>,
    /// Recycled between polls.
    scratch: Vec<Completion>,
}

/// A request under way.
struct Slot {
    /// The caller's tag.
    tag: u64,
    work: Work,
}

enum Work {
    Free,
    /// The whole request is with one disk.
    Whole,
    /// The request is carried out in pieces.
    Pieces(Box<Pieces>),
    /// Its completion was made up already; only a planted bug does that.
    Forgotten,
}

impl VolumeChannel {
    pub(crate) fn new(volume: Arc<VolumeCore>, children: Vec<Box<dyn Channel>>, handle: &Handle) -> Self {
        assert!(!children.is_empty(), "a volume lies on a disk");
        Self {
            volume,
            children,
            handle: handle.clone(),
            slots: (0..DEFAULT_QUEUE_DEPTH).map(|_| Slot { tag: 0, work: Work::Free }).collect(),
            free: (0..DEFAULT_QUEUE_DEPTH).rev().collect(),
            blocked: VecDeque::new(),
            ended: Vec::new(),
            scratch: Vec::new(),
        }
    }

    fn release(&mut self, slot: usize) -> u64 {
        self.slots[slot].work = Work::Free;
        self.free.push(slot);
        self.slots[slot].tag
    }

    fn refuse(&mut self, request: Request, error: IoError) -> Result<(), Rejected> {
        if self.ended.len() >= DEFAULT_QUEUE_DEPTH {
            return Err(Rejected(request));
        }
        self.ended.push(request.complete(Err(error)));
        Ok(())
    }

    /// Hands a request that lies in one span to its disk.
    fn submit_whole(&mut self, mut request: Request, disk: usize, target: Lba) -> Result<(), Rejected> {
        let Some(slot) = self.free.pop() else { return Err(Rejected(request)) };
        let early =
            planted!("lvol-early-acknowledgement") && matches!(request.operation, Operation::Write { .. });
        let tag = mem::replace(&mut request.tag, slot as u64);
        let lba = mem::replace(&mut request.lba, target);
        if let Err(Rejected(request)) = self.children[disk].submit(request) {
            self.free.push(slot);
            return Err(Rejected(Request { tag, lba, ..request }));
        }
        self.slots[slot] = Slot { tag, work: Work::Whole };
        if early {
            self.slots[slot].work = Work::Forgotten;
            self.ended.push(Completion { tag, result: Ok(()), payload: Payload::None });
        }
        Ok(())
    }

    /// Begins a request that touches several spans or disks.
    fn submit_pieces(&mut self, mut request: Request) -> Result<(), Rejected> {
        if matches!(request.operation, Operation::CompareAndWrite { .. }) {
            // It could not be one atomic step.
            return self.refuse(request, IoError::TooLarge);
        }
        let Some(slot) = self.free.pop() else { return Err(Rejected(request)) };
        if request.operation == Operation::Read && matches!(request.payload, Payload::None) {
            let bytes = self.volume.info.block_size().bytes_of(request.blocks);
            let buffer = usize::try_from(bytes).ok().and_then(|bytes| self.handle.buffers().take(bytes));
            let Some(buffer) = buffer else {
                self.free.push(slot);
                return self.refuse(request, IoError::NoMemory);
            };
            request.payload = Payload::Buffer(buffer);
        }
        let tag = request.tag;
        let pieces = Pieces::new(request, self.children.len());
        self.slots[slot] = Slot { tag, work: Work::Pieces(Box::new(pieces)) };
        self.advance(slot);
        Ok(())
    }

    /// Submits the next piece of a request, or ends it.
    fn advance(&mut self, slot: usize) {
        let removed = self.volume.info.state() == DeviceState::Removed;
        let Work::Pieces(pieces) = &mut self.slots[slot].work else {
            panic!("only a request in pieces has a next piece")
        };
        let outcome = match pieces.outcome() {
            None if removed => Some(Err(IoError::DeviceGone)),
            outcome => outcome,
        };
        if let Some(result) = outcome {
            let payload = pieces.join();
            let tag = self.release(slot);
            self.ended.push(Completion { tag, result, payload });
            return;
        }
        let (disk, request) = pieces.next(slot as u64, &self.volume.mapping, self.volume.info.block_size());
        if let Err(Rejected(request)) = self.children[disk].submit(request) {
            pieces.put_back(request.payload);
            self.blocked.push_back(slot);
        }
    }

    fn finish(&mut self, completion: Completion, completions: &mut Vec<Completion>) {
        let slot = usize::try_from(completion.tag).unwrap_or(usize::MAX);
        assert!(slot < self.slots.len(), "a disk completed a tag that was never submitted");
        match &mut self.slots[slot].work {
            Work::Whole => {
                let tag = self.release(slot);
                completions.push(Completion { tag, ..completion });
            }
            Work::Pieces(pieces) => {
                pieces.done(completion);
                self.advance(slot);
            }
            Work::Forgotten => {
                self.release(slot);
            }
            Work::Free => panic!("a disk completed a request twice"),
        }
    }
}

impl Channel for VolumeChannel {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        if let Err(error) = check(&self.volume.info, &request) {
            return self.refuse(request, error);
        }
        if request.operation == Operation::Flush {
            return match self.children.len() {
                1 => self.submit_whole(request, 0, Lba::ZERO),
                _ => self.submit_pieces(request),
            };
        }
        let span = *self.volume.mapping.span(request.lba);
        if request.lba.0 + request.blocks.0 <= span.end {
            let target = span.target_of(request.lba);
            return self.submit_whole(request, span.disk, target);
        }
        self.submit_pieces(request)
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        let mut scratch = mem::take(&mut self.scratch);
        for child in &mut self.children {
            child.poll(&mut scratch);
        }
        for completion in scratch.drain(..) {
            self.finish(completion, completions);
        }
        self.scratch = scratch;
        for _ in 0..self.blocked.len() {
            if let Some(slot) = self.blocked.pop_front() {
                self.advance(slot);
            }
        }
        completions.append(&mut self.ended);
        completions.len() - before
    }

    fn abort(&mut self, tag: u64) {
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.tag == tag) {
            match &mut slot.work {
                Work::Free | Work::Forgotten => continue,
                Work::Whole => {}
                Work::Pieces(pieces) => pieces.abort(),
            }
            for child in &mut self.children {
                child.abort(index as u64);
            }
        }
    }
}

impl Drop for VolumeChannel {
    fn drop(&mut self) {
        if self.free.len() == self.slots.len() {
            self.volume.channel_closed();
        }
    }
}
