use std::fmt;
use std::sync::Arc;

use basalt_clock::Instant;
use basalt_reactor::Handle;

use crate::device::{BlockDevice, Channel, DeviceInfo, OpenError};
use crate::io_stats::{ChannelMeter, IoStats, MeteredKind};
use crate::request::{Completion, Rejected, Request};
use crate::units::{BlockCount, BlockSize};

/// A layer that counts requests and how long they take, in steps of the reactor's turns, without locks or allocation per request.
pub struct MeteredDevice {
    inner: Arc<dyn BlockDevice>,
    stats: Arc<IoStats>,
}

impl MeteredDevice {
    /// `inner`, counted in `stats` from now on.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>, stats: Arc<IoStats>) -> Self {
        Self { inner, stats }
    }
}

impl BlockDevice for MeteredDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(MeteredChannel {
            inner: self.inner.open(handle)?,
            handle: handle.clone(),
            meter: self.stats.for_channel(),
            block_size: self.inner.info().block_size(),
            slots: Vec::new(),
            free: Vec::new(),
        }))
    }
}

impl fmt::Debug for MeteredDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeteredDevice").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy)]
struct Slot {
    tag: u64,
    began: Instant,
    blocks: BlockCount,
    kind: MeteredKind,
}

struct MeteredChannel {
    inner: Box<dyn Channel>,
    handle: Handle,
    meter: ChannelMeter,
    block_size: BlockSize,
    /// As many as there were requests under way at a time: the queue below has a bound.
    slots: Vec<Slot>,
    free: Vec<usize>,
}

impl Channel for MeteredChannel {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        let slot = Slot {
            tag: request.tag,
            began: self.handle.now(),
            blocks: request.blocks,
            kind: MeteredKind::of(request.operation),
        };
        let place = match self.free.pop() {
            Some(place) => {
                self.slots[place] = slot;
                place
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        request.tag = place as u64;
        self.inner.submit(request).map_err(|Rejected(mut request)| {
            request.tag = slot.tag;
            self.free.push(place);
            Rejected(request)
        })
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        let count = self.inner.poll(completions);
        let now = self.handle.now();
        for completion in &mut completions[before..] {
            let place = usize::try_from(completion.tag).ok().filter(|place| *place < self.slots.len());
            let Some(place) = place else {
                panic!("the device below completed a tag that it was never given")
            };
            let slot = self.slots[place];
            self.free.push(place);
            completion.tag = slot.tag;
            let bytes = self.block_size.bytes_of(slot.blocks);
            self.meter.record(slot.kind, bytes, now - slot.began, completion.result);
        }
        count
    }

    fn abort(&mut self, tag: u64) {
        let under_way = |place: &usize| !self.free.contains(place);
        let places = (0..self.slots.len()).filter(|place| self.slots[*place].tag == tag).filter(under_way);
        for place in places.collect::<Vec<_>>() {
            self.inner.abort(place as u64);
        }
    }
}
