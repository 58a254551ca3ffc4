use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{
    BlockDevice, Channel, Completion, DeviceInfo, IoError, OpenError, Operation, Rejected, Request,
};
use basalt_clock::Instant;
use basalt_reactor::Handle;

/// How much later operations complete than the device below lets them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delays {
    /// Reads and compares.
    pub read: Duration,
    /// Writes of every kind.
    pub write: Duration,
    /// Flushes.
    pub flush: Duration,
}

/// A layer that makes a device slower.
#[derive(Debug)]
pub struct DelayDevice {
    inner: Arc<dyn BlockDevice>,
    delays: Delays,
}

impl DelayDevice {
    /// `inner`, slower by `delays`.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>, delays: Delays) -> Self {
        Self { inner, delays }
    }
}

impl BlockDevice for DelayDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(DelayChannel {
            inner: self.inner.open(handle)?,
            handle: handle.clone(),
            delays: self.delays,
            pending: Vec::new(),
            free: Vec::new(),
            held: BTreeMap::new(),
            held_count: 0,
            collected: Vec::new(),
            aborted: Vec::new(),
        }))
    }
}

/// What the layer remembers of a request while the device has it.
struct Pending {
    tag: u64,
    due: Instant,
}

struct DelayChannel {
    inner: Box<dyn Channel>,
    handle: Handle,
    delays: Delays,
    pending: Vec<Pending>,
    free: Vec<usize>,
    /// Done below, to be told at this time, in the order of completion.
    held: BTreeMap<(Instant, u64), Completion>,
    held_count: u64,
    collected: Vec<Completion>,
    /// Told as aborted with the next poll.
    aborted: Vec<Completion>,
}

/// Completions that are held back; beyond it nothing more is submitted.
const HELD_MAX: usize = 4096;

impl Channel for DelayChannel {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        if self.held.len() >= HELD_MAX {
            return Err(Rejected(request));
        }
        let delay = match request.operation {
            Operation::Read | Operation::Compare => self.delays.read,
            Operation::Flush => self.delays.flush,
            Operation::Write { .. }
            | Operation::Unmap
            | Operation::WriteZeroes { .. }
            | Operation::CompareAndWrite { .. } => self.delays.write,
        };
        let pending = Pending { tag: request.tag, due: self.handle.now() + delay };
        let place = match self.free.pop() {
            Some(place) => {
                self.pending[place] = pending;
                place
            }
            None => {
                self.pending.push(pending);
                self.pending.len() - 1
            }
        };
        request.tag = place as u64;
        self.inner.submit(request).map_err(|Rejected(mut request)| {
            request.tag = self.pending[place].tag;
            self.free.push(place);
            Rejected(request)
        })
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        self.inner.poll(&mut self.collected);
        for mut completion in self.collected.drain(..) {
            let place = usize::try_from(completion.tag).ok().filter(|place| *place < self.pending.len());
            let Some(place) = place else {
                panic!("the device below completed a tag that it was never given")
            };
            completion.tag = self.pending[place].tag;
            self.free.push(place);
            self.held_count += 1;
            self.held.insert((self.pending[place].due, self.held_count), completion);
        }
        let now = self.handle.now();
        let mut count = self.aborted.len();
        completions.append(&mut self.aborted);
        while let Some(first) = self.held.first_entry() {
            if first.key().0 > now {
                self.handle.wake_at(first.key().0);
                break;
            }
            completions.push(first.remove());
            count += 1;
        }
        count
    }

    /// What is only held back ends at once; the rest as soon as the device below lets it.
    fn abort(&mut self, tag: u64) {
        let held = self.held.extract_if(.., |_, completion| completion.tag == tag);
        self.aborted
            .extend(held.map(|(_, completion)| Completion { result: Err(IoError::Aborted), ..completion }));
        let now = self.handle.now();
        for (place, pending) in self.pending.iter_mut().enumerate() {
            if pending.tag == tag && !self.free.contains(&place) {
                pending.due = now;
                self.inner.abort(place as u64);
            }
        }
        self.handle.wake_at(now);
    }
}
