use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use basalt_bdev::{
    BlockDevice, Channel, Completion, DeviceInfo, IoError, Lba, OpenError, Operation, Rejected, Request,
};
use basalt_reactor::Handle;

/// Kinds of operation, for rules about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationKind {
    /// Reads and compares.
    Read,
    /// Everything that changes data.
    Write,
    /// Flushes.
    Flush,
    /// All of them.
    Any,
}

/// A rule by which requests fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Which operations.
    pub kind: OperationKind,
    /// Requests that touch one of these blocks; flushes match any range.
    pub range: Range<Lba>,
    /// So many matching requests are let through first.
    pub skip: u64,
    /// So many then fail.
    pub count: u64,
    /// With this error.
    pub error: IoError,
}

impl Fault {
    /// Everything of a kind fails until the rule is removed.
    #[must_use]
    pub fn always(kind: OperationKind, error: IoError) -> Self {
        Self { kind, range: Lba(0)..Lba(u64::MAX), skip: 0, count: u64::MAX, error }
    }

    fn matches(&self, request: &Request) -> bool {
        let kind = match request.operation {
            Operation::Read | Operation::Compare => OperationKind::Read,
            Operation::Flush => OperationKind::Flush,
            Operation::Write { .. }
            | Operation::Unmap
            | Operation::WriteZeroes { .. }
            | Operation::CompareAndWrite { .. } => OperationKind::Write,
        };
        let end = Lba(request.lba.0.saturating_add(request.blocks.0));
        let touches = request.lba < self.range.end && end > self.range.start;
        (self.kind == OperationKind::Any || self.kind == kind) && (kind == OperationKind::Flush || touches)
    }
}

/// The rules of a faulty device; may be changed from any thread while it runs.
#[derive(Default)]
pub struct Faults {
    armed: AtomicBool,
    rules: Mutex<Vec<Fault>>,
}

impl Faults {
    /// Adds a rule; the first that matches decides.
    pub fn inject(&self, fault: Fault) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.push(fault);
        self.armed.store(true, Ordering::Release);
    }

    /// Removes all rules.
    pub fn clear(&self) {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        rules.clear();
        self.armed.store(false, Ordering::Release);
    }

    fn verdict(&self, request: &Request) -> Result<(), IoError> {
        if !self.armed.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        for rule in rules.iter_mut().filter(|rule| rule.matches(request)) {
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.count > 0 {
                rule.count -= 1;
                return Err(rule.error);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("armed", &self.armed).finish_non_exhaustive()
    }
}

/// A layer that makes requests of a device fail by rule. A request that fails never reaches the device, and is noted as its fault.
#[derive(Debug)]
pub struct FaultyDevice {
    inner: Arc<dyn BlockDevice>,
    faults: Arc<Faults>,
}

impl FaultyDevice {
    /// `inner` without any rule yet.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        Self { inner, faults: Arc::default() }
    }

    /// The rules.
    #[must_use]
    pub fn faults(&self) -> &Arc<Faults> {
        &self.faults
    }
}

impl BlockDevice for FaultyDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        let inner = self.inner.open(handle)?;
        Ok(Box::new(FaultyChannel {
            device: Arc::clone(&self.inner),
            inner,
            faults: Arc::clone(&self.faults),
            failed: Vec::new(),
        }))
    }
}

struct FaultyChannel {
    device: Arc<dyn BlockDevice>,
    inner: Box<dyn Channel>,
    faults: Arc<Faults>,
    failed: Vec<Completion>,
}

/// Failures that wait to be collected; beyond it nothing more is submitted.
const FAILED_MAX: usize = 4096;

impl Channel for FaultyChannel {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        if self.failed.len() >= FAILED_MAX {
            return Err(Rejected(request));
        }
        let verdict = self.faults.verdict(&request);
        // What is let through succeeds, as far as this layer knows.
        self.device.info().note(request.operation, verdict);
        match verdict {
            Ok(()) => self.inner.submit(request),
            Err(error) => {
                self.failed.push(request.complete(Err(error)));
                Ok(())
            }
        }
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let failed = self.failed.len();
        completions.append(&mut self.failed);
        failed + self.inner.poll(completions)
    }

    fn abort(&mut self, tag: u64) {
        self.inner.abort(tag);
    }
}
