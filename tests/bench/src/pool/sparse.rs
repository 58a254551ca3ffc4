//! A disk of any size of which only the metadata is kept: pages in memory, and data that is forgotten.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use basalt_bdev::provider::{Channel, check};
use basalt_bdev::{
    BlockDevice, BlockSize, Completion, DeviceInfo, IoError, OpenError, Operation, Rejected, Request,
};
use basalt_reactor::Handle;
use uuid::Uuid;

/// Unit in which it keeps what is written; all metadata is written in whole ones.
const PAGE: u64 = 4096;

/// See the module's page.
#[derive(Debug)]
pub(super) struct SparseDisk {
    medium: Arc<Medium>,
}

#[derive(Debug)]
struct Medium {
    info: DeviceInfo,
    /// Bytes from the start that are kept.
    kept: AtomicU64,
    pages: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Medium {
    fn pages(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carry_out(&self, request: &mut Request) -> Result<(), IoError> {
        check(&self.info, request)?;
        let start = request.lba.0 * PAGE;
        if start >= self.kept.load(Ordering::Relaxed) {
            return Ok(());
        }
        match request.operation {
            Operation::Read => {
                let pages = self.pages();
                let mut at = start;
                for buffer in request.payload.buffers_mut() {
                    for part in buffer.chunks_mut(4096) {
                        match pages.get(&at) {
                            Some(page) => part.copy_from_slice(page),
                            None => part.fill(0),
                        }
                        at += PAGE;
                    }
                }
            }
            Operation::Write { .. } => {
                let content = request.payload.to_vec();
                let mut pages = self.pages();
                for (at, page) in (start..).step_by(4096).zip(content.chunks(4096)) {
                    pages.insert(at, page.to_vec());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl SparseDisk {
    /// A disk of `bytes` bytes that keeps what is written to it.
    pub(super) fn new(bytes: u64) -> Self {
        let block = BlockSize::B4096;
        let info = DeviceInfo::new("sparse", Uuid::nil(), block, block.blocks_in(bytes));
        let kept = AtomicU64::new(u64::MAX);
        Self { medium: Arc::new(Medium { info, kept, pages: Mutex::default() }) }
    }

    /// Forgets what is written beyond `offset` from now on.
    pub(super) fn forget_from(&self, offset: u64) {
        self.medium.kept.store(offset, Ordering::Relaxed);
    }

    /// Writes what it holds to a file with holes.
    pub(super) fn save(&self, path: &Path) -> Result<u64> {
        let file = std::fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        file.set_len(self.medium.info.bytes())?;
        let pages = self.medium.pages();
        for (offset, page) in pages.iter() {
            file.write_all_at(page, *offset)?;
        }
        file.sync_all()?;
        Ok(pages.len() as u64)
    }
}

impl BlockDevice for SparseDisk {
    fn info(&self) -> &DeviceInfo {
        &self.medium.info
    }

    fn open(&self, _handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(SparseChannel { medium: Arc::clone(&self.medium), done: Vec::new() }))
    }
}

struct SparseChannel {
    medium: Arc<Medium>,
    done: Vec<Completion>,
}

impl Channel for SparseChannel {
    fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        let result = self.medium.carry_out(&mut request);
        self.done.push(request.complete(result));
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        let count = self.done.len();
        completions.append(&mut self.done);
        count
    }
}
