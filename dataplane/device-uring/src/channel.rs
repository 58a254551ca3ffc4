use std::sync::Arc;

use basalt_bdev::provider::{self, DEFAULT_QUEUE_DEPTH};
use basalt_bdev::{Channel, Completion, DeviceInfo, IoError, Operation, Rejected, Request};
use basalt_dma::Payload;
use basalt_reactor::{ByteOffset, Disk, DiskCompletion, DiskError, DiskOperation, DiskRequest, Handle};

/// One reactor's queue pair to a disk.
pub(crate) struct UringChannel {
    handle: Handle,
    disk: Disk,
    info: Arc<DeviceInfo>,
    pending: Vec<Pending>,
    free: Vec<usize>,
    /// Places whose zeroes are written and must be synced, when the disk had no room for the sync.
    to_sync: Vec<usize>,
    refused: Vec<Completion>,
    reaped: Vec<DiskCompletion>,
}

/// What is remembered of a request while the disk has it.
#[derive(Clone, Copy)]
struct Pending {
    tag: u64,
    /// A sync follows before the request is complete.
    then_sync: bool,
}

impl UringChannel {
    pub(crate) fn new(handle: Handle, disk: Disk, info: Arc<DeviceInfo>) -> Self {
        Self {
            handle,
            disk,
            info,
            pending: Vec::new(),
            free: Vec::new(),
            to_sync: Vec::new(),
            refused: Vec::new(),
            reaped: Vec::new(),
        }
    }

    /// The disk's operation for a checked request, and whether a sync must follow.
    fn translate(&self, operation: Operation) -> Option<(DiskOperation, bool)> {
        match operation {
            Operation::Read => Some((DiskOperation::Read, false)),
            Operation::Write { fua } => Some((DiskOperation::Write { fua }, false)),
            Operation::Flush => Some((DiskOperation::Sync, false)),
            Operation::Unmap => Some((DiskOperation::Discard, false)),
            Operation::WriteZeroes { fua, .. } => Some((DiskOperation::WriteZeroes, fua)),
            Operation::Compare | Operation::CompareAndWrite { .. } => None,
        }
    }

    fn refuse(&mut self, request: Request, error: IoError) {
        self.refused.push(request.complete(Err(error)));
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

    fn start_sync(&mut self, place: usize) {
        let request = DiskRequest {
            disk: self.disk.info().id,
            tag: place as u64,
            operation: DiskOperation::Sync,
            offset: ByteOffset(0),
            length: 0,
            payload: Payload::None,
        };
        if self.disk.submit(request).is_err() {
            self.to_sync.push(place);
        }
    }

    fn finish(&mut self, finished: DiskCompletion) -> Option<Completion> {
        let place = usize::try_from(finished.tag).ok().filter(|place| *place < self.pending.len());
        let Some(place) = place else { panic!("the disk completed a tag that it was never given") };
        if self.pending[place].then_sync && finished.result.is_ok() {
            self.pending[place].then_sync = false;
            self.start_sync(place);
            return None;
        }
        self.free.push(place);
        let result = finished.result.map_err(error_of);
        Some(Completion { tag: self.pending[place].tag, result, payload: finished.payload })
    }
}

impl Channel for UringChannel {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        if self.pending.len() - self.free.len() + self.refused.len() >= DEFAULT_QUEUE_DEPTH {
            return Err(Rejected(request));
        }
        if let Err(error) = provider::check(&self.info, &request) {
            self.refuse(request, error);
            return Ok(());
        }
        let Some((operation, then_sync)) = self.translate(request.operation) else {
            self.refuse(request, IoError::Unsupported);
            return Ok(());
        };
        let block_size = self.info.block_size();
        let length = block_size.bytes_of(request.blocks);
        let supplies = operation == DiskOperation::Read && matches!(request.payload, Payload::None);
        if supplies {
            let len = usize::try_from(length).unwrap_or(usize::MAX);
            let Some(buffer) = self.handle.buffers().take(len) else { return Err(Rejected(request)) };
            request.payload = Payload::Buffer(buffer);
        }
        let place = self.place(Pending { tag: request.tag, then_sync });
        let disk_request = DiskRequest {
            disk: self.disk.info().id,
            tag: place as u64,
            operation,
            offset: ByteOffset(block_size.offset_of(request.lba)),
            length,
            payload: std::mem::take(&mut request.payload),
        };
        self.disk.submit(disk_request).map_err(|back| {
            self.free.push(place);
            request.payload = if supplies { Payload::None } else { back.payload };
            Rejected(request)
        })
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let before = completions.len();
        completions.append(&mut self.refused);
        for place in std::mem::take(&mut self.to_sync) {
            self.start_sync(place);
        }
        let mut reaped = std::mem::take(&mut self.reaped);
        self.disk.poll(&mut reaped);
        for finished in reaped.drain(..) {
            completions.extend(self.finish(finished));
        }
        self.reaped = reaped;
        completions.len() - before
    }
}

fn error_of(error: DiskError) -> IoError {
    match error {
        DiskError::NoSpace => IoError::CapacityExceeded,
        DiskError::ReadOnly | DiskError::PermissionDenied => IoError::ReadOnly,
        DiskError::Gone | DiskError::NotFound | DiskError::NotADisk => IoError::DeviceGone,
        DiskError::Unsupported => IoError::Unsupported,
        // The request was checked against the device, so the disk must have shrunk, or the memory is not aligned for it.
        DiskError::OutOfRange => IoError::Malformed,
        DiskError::Medium
        | DiskError::Exists
        | DiskError::InUse
        | DiskError::TooManyOpen
        | DiskError::System(_) => IoError::Medium,
    }
}
