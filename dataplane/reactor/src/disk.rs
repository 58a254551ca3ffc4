use std::fmt;

use crate::driver::{DiskCompletion, DiskId, DiskInfo, DiskRequest};
use crate::handle::Handle;

/// Finished operations per open disk, until their owners collect them.
#[derive(Default)]
pub(crate) struct DiskQueues {
    queues: Vec<Option<(DiskId, Vec<DiskCompletion>)>>,
}

impl DiskQueues {
    fn open(&mut self, disk: DiskId) {
        let index = disk.index as usize;
        if self.queues.len() <= index {
            self.queues.resize_with(index + 1, || None);
        }
        self.queues[index] = Some((disk, Vec::new()));
    }

    fn close(&mut self, disk: DiskId) -> Option<(DiskId, Vec<DiskCompletion>)> {
        self.queues[disk.index as usize].take()
    }

    /// Sorts completions to their disks; those of closed disks are dropped.
    pub(crate) fn deliver(&mut self, completions: &mut Vec<DiskCompletion>) {
        for completion in completions.drain(..) {
            if let Some(Some((disk, queue))) = self.queues.get_mut(completion.disk.index as usize)
                && *disk == completion.disk
            {
                queue.push(completion);
            }
        }
    }

    fn take(&mut self, disk: DiskId, completions: &mut Vec<DiskCompletion>) -> usize {
        match self.queues.get_mut(disk.index as usize) {
            Some(Some((_, queue))) if !queue.is_empty() => {
                let count = queue.len();
                completions.append(queue);
                count
            }
            _ => 0,
        }
    }
}

/// An open disk on one reactor. Closes when it is dropped; operations under way run to their end.
pub struct Disk {
    handle: Handle,
    info: DiskInfo,
}

impl Disk {
    pub(crate) fn new(handle: Handle, info: DiskInfo) -> Self {
        handle.local().disks.borrow_mut().open(info.id);
        Self { handle, info }
    }

    /// The disk's properties.
    #[must_use]
    pub fn info(&self) -> &DiskInfo {
        &self.info
    }

    /// Queues an operation; its `disk` is set to this one. It starts at the end of the turn, together with others.
    ///
    /// # Errors
    /// Hands the request back if the bounded queue is full: try again in the next turn.
    pub fn submit(&self, mut request: DiskRequest) -> Result<(), DiskRequest> {
        request.disk = self.info.id;
        self.handle.driver().submit(request)
    }

    /// Appends what is finished and answers how many there were.
    pub fn poll(&self, completions: &mut Vec<DiskCompletion>) -> usize {
        self.handle.local().disks.borrow_mut().take(self.info.id, completions)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let left = self.handle.local().disks.borrow_mut().close(self.info.id);
        drop(left);
        self.handle.driver().close_disk(self.info.id);
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk").field("info", &self.info).finish_non_exhaustive()
    }
}
