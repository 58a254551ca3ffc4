use std::sync::Arc;

use basalt_bdev::provider;
use basalt_bdev::{BlockDevice, Channel, Completion, DeviceInfo, IoError, OpenError, Rejected, Request};
use basalt_reactor::Handle;

/// A layer that reads, writes and flushes, and does nothing else that the device below can: for tests of what such a device leads to.
#[derive(Debug)]
pub struct PlainDevice {
    inner: Arc<dyn BlockDevice>,
    info: Arc<DeviceInfo>,
}

impl PlainDevice {
    /// `inner` without its capabilities. It keeps the size that it has now.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        let below = inner.info();
        let info = DeviceInfo::new(below.name(), below.uuid(), below.block_size(), below.blocks())
            .with_volatile_write_cache(below.volatile_write_cache())
            .with_cache_lifetime(below.cache_lifetime())
            .with_read_only(below.read_only())
            .with_atomic_write(below.atomic_write())
            .with_max_transfer(below.max_transfer());
        Self { info: Arc::new(info), inner }
    }
}

impl BlockDevice for PlainDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        let inner = self.inner.open(handle)?;
        Ok(Box::new(PlainChannel { inner, info: Arc::clone(&self.info), refused: Vec::new() }))
    }
}

struct PlainChannel {
    inner: Box<dyn Channel>,
    info: Arc<DeviceInfo>,
    refused: Vec<Completion>,
}

impl Channel for PlainChannel {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        match provider::check(&self.info, &request) {
            Err(IoError::Unsupported) if self.refused.len() < provider::DEFAULT_QUEUE_DEPTH => {
                self.refused.push(request.complete(Err(IoError::Unsupported)));
                Ok(())
            }
            Err(IoError::Unsupported) => Err(Rejected(request)),
            _ => self.inner.submit(request),
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let refused = self.refused.len();
        completions.append(&mut self.refused);
        refused + self.inner.poll(completions)
    }

    fn abort(&mut self, tag: u64) {
        self.inner.abort(tag);
    }
}
