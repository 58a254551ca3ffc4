//! One reactor's queue pair to a logical volume.
//!
//! A request whose blocks lie together, and which may write them there, goes to its disk as it is, with the index of its slot as
//! its tag: one look at the map, no lock, no allocation. Everything else is a task of [`crate::slow`].

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use basalt_bdev::provider::{Channel, DEFAULT_QUEUE_DEPTH, OpenError, check};
use basalt_bdev::{Completion, IoError, Lba, Operation, Rejected, Request};
use basalt_clock::planted;
use basalt_dma::Payload;
use basalt_reactor::Handle;

use crate::gates::LocalGate;
use crate::slow::Slow;
use crate::volume::{Found, VolumeCore};

/// How often a channel that was dropped with requests under way looks for their ends.
const DRAIN_INTERVAL: Duration = Duration::from_micros(100);

/// See the module's page.
pub(crate) struct VolumeChannel {
    volume: Arc<VolumeCore>,
    /// The volume's fence when this was opened.
    fence: u64,
    fast: Fast,
    slow: Rc<Slow>,
    handle: Handle,
    /// Completions of requests that ended at once; at most [`DEFAULT_QUEUE_DEPTH`].
    ended: Vec<Completion>,
    /// Recycled between polls.
    scratch: Vec<Completion>,
}

/// Requests that are with a disk as they are.
struct Fast {
    /// By disk; opened when first used.
    children: Vec<Option<Box<dyn Channel>>>,
    slots: Box<[Slot]>,
    /// Indexes of free slots.
    free: Vec<usize>,
    gate: Rc<RefCell<LocalGate>>,
}

/// A request under way.
#[derive(Clone, Copy)]
struct Slot {
    /// The caller's tag.
    tag: u64,
    work: Work,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Free,
    /// With a disk since this epoch of the gates.
    Disk(u64),
    /// The same, and its completion was made up already; only a planted bug does that.
    Forgotten(u64),
}

impl VolumeChannel {
    pub(crate) fn open(volume: &Arc<VolumeCore>, handle: &Handle) -> Result<Self, OpenError> {
        Self::open_at(volume, handle, volume.fence.load(Ordering::SeqCst))
    }

    pub(crate) fn open_at(volume: &Arc<VolumeCore>, handle: &Handle, fence: u64) -> Result<Self, OpenError> {
        let gate = Rc::new(RefCell::new(volume.shared.gates.open()));
        let mut fast = Fast {
            children: Vec::new(),
            slots: vec![Slot { tag: 0, work: Work::Free }; DEFAULT_QUEUE_DEPTH].into(),
            free: (0..DEFAULT_QUEUE_DEPTH).rev().collect(),
            gate: Rc::clone(&gate),
        };
        let used = volume.used.load(Ordering::Acquire);
        for disk in (0..64).filter(|disk| used & 1 << disk != 0) {
            fast.child(volume, handle, disk)?;
        }
        let slow = Rc::new(Slow::new(volume, handle, gate, fence));
        Ok(Self {
            volume: Arc::clone(volume),
            fence,
            fast,
            slow,
            handle: handle.clone(),
            ended: Vec::new(),
            scratch: Vec::new(),
        })
    }

    fn end(&mut self, request: Request, result: Result<(), IoError>) -> Result<(), Rejected> {
        if self.ended.len() >= DEFAULT_QUEUE_DEPTH {
            return Err(Rejected(request));
        }
        self.ended.push(request.complete(result));
        Ok(())
    }

    fn start_slow(&self, request: Request) -> Result<(), Rejected> {
        if self.slow.running() >= DEFAULT_QUEUE_DEPTH {
            return Err(Rejected(request));
        }
        Slow::start(&self.slow, request);
        Ok(())
    }

    /// The only disk of the volume, if a flush of it alone will do.
    fn only_disk(&self) -> Option<usize> {
        let used = self.volume.used.load(Ordering::Acquire);
        let single = used.is_power_of_two() && !self.volume.is_pending();
        single.then(|| used.trailing_zeros() as usize)
    }

    /// Gives a flush to the volume's only disk, if it has one and its map needs nothing.
    fn submit_flush(&mut self, request: Request) -> Result<(), Rejected> {
        let current = self.volume.fence.load(Ordering::Acquire) == self.fence;
        match self.only_disk() {
            Some(disk) if current && self.fast.child(&self.volume, &self.handle, disk).is_ok() => {
                let epoch = self.fast.gate.borrow_mut().enter();
                self.fast.submit(&self.volume, &self.handle, request, (disk, Lba::ZERO), epoch)
            }
            _ => self.start_slow(request),
        }
    }

    /// Gives a request to a disk if it can go there as it is.
    fn submit_fast(&mut self, request: Request) -> Result<(), Rejected> {
        let write = request.operation.modifies();
        let epoch = self.fast.gate.borrow_mut().enter();
        // After the gate: whoever raises the fence waits for what entered before.
        if self.volume.fence.load(Ordering::Acquire) != self.fence {
            self.fast.gate.borrow_mut().leave(epoch);
            return self.end(request, Err(IoError::Fenced));
        }
        let found = self.volume.find(request.lba.0, request.blocks.0, write);
        let forced = request.operation.forces() && self.volume.is_pending();
        match found {
            Found::At { disk, target, blocks } if blocks == request.blocks.0 && !forced => {
                if self.fast.child(&self.volume, &self.handle, disk).is_err() {
                    self.fast.gate.borrow_mut().leave(epoch);
                    return self.end(request, Err(IoError::DeviceGone));
                }
                self.fast.submit(&self.volume, &self.handle, request, (disk, target), epoch)
            }
            _ => {
                self.fast.gate.borrow_mut().leave(epoch);
                self.start_slow(request)
            }
        }
    }
}

impl Fast {
    /// The channel to a disk.
    fn child(
        &mut self,
        volume: &VolumeCore,
        handle: &Handle,
        disk: usize,
    ) -> Result<&mut Box<dyn Channel>, OpenError> {
        if self.children.len() <= disk {
            self.children.resize_with(disk + 1, || None);
        }
        let child = &mut self.children[disk];
        if child.is_none() {
            let device = volume.shared.device(disk).ok_or(OpenError::DeviceGone)?;
            *child = Some(device.open(handle)?);
        }
        child.as_mut().ok_or(OpenError::DeviceGone)
    }

    fn submit(
        &mut self,
        volume: &VolumeCore,
        handle: &Handle,
        mut request: Request,
        (disk, target): (usize, Lba),
        epoch: u64,
    ) -> Result<(), Rejected> {
        let Some(slot) = self.free.pop() else {
            self.gate.borrow_mut().leave(epoch);
            return Err(Rejected(request));
        };
        let tag = mem::replace(&mut request.tag, slot as u64);
        let lba = mem::replace(&mut request.lba, target);
        let submitted = match self.child(volume, handle, disk) {
            Ok(child) => child.submit(request),
            // Opened before; else as if its queue were full.
            Err(_) => Err(Rejected(request)),
        };
        match submitted {
            Ok(()) => {
                self.slots[slot] = Slot { tag, work: Work::Disk(epoch) };
                Ok(())
            }
            Err(Rejected(request)) => {
                self.free.push(slot);
                self.gate.borrow_mut().leave(epoch);
                Err(Rejected(Request { tag, lba, ..request }))
            }
        }
    }

    fn poll(&mut self, scratch: &mut Vec<Completion>, completions: &mut Vec<Completion>) {
        for child in self.children.iter_mut().flatten() {
            child.poll(scratch);
        }
        for completion in scratch.drain(..) {
            let slot = usize::try_from(completion.tag).unwrap_or(usize::MAX);
            assert!(slot < self.slots.len(), "a disk completed a tag that was never submitted");
            let Slot { tag, work } = mem::replace(&mut self.slots[slot], Slot { tag: 0, work: Work::Free });
            self.free.push(slot);
            match work {
                Work::Disk(epoch) => {
                    self.gate.borrow_mut().leave(epoch);
                    completions.push(Completion { tag, ..completion });
                }
                Work::Forgotten(epoch) => self.gate.borrow_mut().leave(epoch),
                Work::Free => panic!("a disk completed a request twice"),
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }
}

impl Channel for VolumeChannel {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        if let Err(error) = check(&self.volume.info, &request) {
            return self.end(request, Err(error));
        }
        match request.operation {
            Operation::Flush => self.submit_flush(request),
            Operation::Write { .. } if planted!("lvol-early-acknowledgement") => {
                let tag = request.tag;
                let before = self.fast.free.last().copied();
                self.submit_fast(request)?;
                if let Some(slot) = before
                    && let Work::Disk(epoch) = self.fast.slots[slot].work
                {
                    self.fast.slots[slot].work = Work::Forgotten(epoch);
                    self.ended.push(Completion { tag, result: Ok(()), payload: Payload::None });
                }
                Ok(())
            }
            Operation::Read | Operation::Write { .. } | Operation::CompareAndWrite { .. } => {
                self.submit_fast(request)
            }
            Operation::Unmap | Operation::WriteZeroes { .. } | Operation::Compare => self.start_slow(request),
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        self.fast.poll(&mut self.scratch, completions);
        self.slow.take_done(completions);
        completions.append(&mut self.ended);
        completions.len() - before
    }

    fn abort(&mut self, tag: u64) {
        for (index, slot) in self.fast.slots.iter().enumerate() {
            if slot.tag == tag && matches!(slot.work, Work::Disk(_)) {
                self.fast.children.iter_mut().flatten().for_each(|child| child.abort(index as u64));
            }
        }
    }
}

impl Drop for VolumeChannel {
    /// What is under way runs to its end before its space can be used for something else.
    fn drop(&mut self) {
        if self.fast.is_idle() {
            return;
        }
        let nothing = Fast {
            children: Vec::new(),
            slots: Box::default(),
            free: Vec::new(),
            gate: Rc::clone(&self.fast.gate),
        };
        let mut fast = mem::replace(&mut self.fast, nothing);
        let handle = self.handle.clone();
        drop(self.handle.spawn(async move {
            let (mut scratch, mut ended) = (Vec::new(), Vec::new());
            while !fast.is_idle() {
                fast.poll(&mut scratch, &mut ended);
                ended.clear();
                if !fast.is_idle() {
                    handle.sleep(DRAIN_INTERVAL).await;
                }
            }
        }));
    }
}
