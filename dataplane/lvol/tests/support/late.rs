//! A disk that takes its time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockDevice, Channel, Completion, DeviceInfo, OpenError, Operation, Rejected, Request};
use basalt_clock::Instant;
use basalt_reactor::Handle;

/// A device whose requests reach the one below only after a while: what is under way has had no effect yet.
#[derive(Debug)]
pub struct LateDevice {
    inner: Arc<dyn BlockDevice>,
    read: Duration,
    write: Duration,
}

struct LateChannel {
    inner: Box<dyn Channel>,
    handle: Handle,
    read: Duration,
    write: Duration,
    held: BTreeMap<(Instant, u64), Request>,
    count: u64,
}

impl LateDevice {
    /// Reads take that long, and whatever changes something that long.
    pub fn new(inner: Arc<dyn BlockDevice>, read: Duration, write: Duration) -> Self {
        Self { inner, read, write }
    }
}

impl BlockDevice for LateDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        let inner = self.inner.open(handle)?;
        let (handle, read, write) = (handle.clone(), self.read, self.write);
        Ok(Box::new(LateChannel { inner, handle, read, write, held: BTreeMap::new(), count: 0 }))
    }
}

impl Channel for LateChannel {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        let wait = match request.operation {
            Operation::Read => self.read,
            operation if operation.modifies() => self.write,
            _ => Duration::from_micros(10),
        };
        let due = self.handle.now() + wait;
        self.handle.wake_at(due);
        self.count += 1;
        self.held.insert((due, self.count), request);
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        while let Some(entry) = self.held.first_entry().filter(|entry| entry.key().0 <= self.handle.now()) {
            let (key, request) = entry.remove_entry();
            if let Err(Rejected(request)) = self.inner.submit(request) {
                self.held.insert(key, request);
                break;
            }
        }
        self.inner.poll(completions)
    }
}
