use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use basalt_bdev::provider;
use basalt_bdev::{
    BlockDevice, BlockSize, Capabilities, Channel, DeviceInfo, IoError, OpenError, Operation, Request,
};
use basalt_dma::{Buffer, Payload};
use basalt_reactor::Handle;
use uuid::Uuid;

use crate::immediate::{Execute, Immediate, range};

/// Unit in which content that differs from the base is kept.
pub(crate) const PAGE: usize = 4096;

/// What differs from the base, by page.
pub(crate) type Overlay = BTreeMap<usize, Box<[u8; PAGE]>>;

/// A device over a shared image that it never changes: what is written is kept beside it. Making one costs nothing, so that a
/// test can look at thousands of images. For tests only.
pub struct ImageDevice {
    info: Arc<DeviceInfo>,
    content: Arc<Content>,
}

struct Content {
    base: Arc<Vec<u8>>,
    overlay: Mutex<Overlay>,
}

impl ImageDevice {
    /// A device of `base`, with the write cache that it is to claim.
    ///
    /// # Panics
    /// If the image is empty or not a whole number of pages.
    #[must_use]
    pub fn new(base: Arc<Vec<u8>>, block_size: BlockSize, volatile: bool) -> Self {
        Self::with_overlay(base, Overlay::new(), block_size, volatile)
    }

    pub(crate) fn with_overlay(
        base: Arc<Vec<u8>>,
        overlay: Overlay,
        block_size: BlockSize,
        volatile: bool,
    ) -> Self {
        assert!(!base.is_empty() && base.len().is_multiple_of(PAGE), "an image has whole pages");
        let blocks = block_size.blocks_in(base.len() as u64);
        let info = DeviceInfo::new("image", Uuid::nil(), block_size, blocks)
            .with_volatile_write_cache(volatile)
            .with_capabilities(
                Capabilities::UNMAP
                    | Capabilities::WRITE_ZEROES
                    | Capabilities::COMPARE
                    | Capabilities::COMPARE_AND_WRITE,
            );
        Self { info: Arc::new(info), content: Arc::new(Content { base, overlay: Mutex::new(overlay) }) }
    }

    /// The same with a write cache of that lifetime.
    ///
    /// # Panics
    /// If a channel was opened before.
    #[must_use]
    pub fn with_cache_lifetime(self, lifetime: u64) -> Self {
        let info = Arc::into_inner(self.info).expect("no channel was opened");
        Self { info: Arc::new(info.with_cache_lifetime(Some(lifetime))), content: self.content }
    }

    /// A copy of all that the device holds now.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = (*self.content.base).clone();
        let overlay = self.content.overlay.lock().unwrap_or_else(PoisonError::into_inner);
        for (page, content) in &*overlay {
            bytes[page * PAGE..(page + 1) * PAGE].copy_from_slice(&content[..]);
        }
        bytes
    }
}

/// Writes bytes to an overlay of a base.
pub(crate) fn write_over(base: &[u8], overlay: &mut Overlay, mut offset: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let (page, within) = (offset / PAGE, offset % PAGE);
        let count = bytes.len().min(PAGE - within);
        let content = overlay.entry(page).or_insert_with(|| {
            let mut copy = Box::new([0; PAGE]);
            copy.copy_from_slice(&base[page * PAGE..(page + 1) * PAGE]);
            copy
        });
        content[within..within + count].copy_from_slice(&bytes[..count]);
        offset += count;
        bytes = &bytes[count..];
    }
}

impl Content {
    fn read(&self, mut offset: usize, mut into: &mut [u8]) {
        let overlay = self.overlay.lock().unwrap_or_else(PoisonError::into_inner);
        while !into.is_empty() {
            let (page, within) = (offset / PAGE, offset % PAGE);
            let count = into.len().min(PAGE - within);
            let (now, rest) = into.split_at_mut(count);
            match overlay.get(&page) {
                Some(content) => now.copy_from_slice(&content[within..within + count]),
                None => now.copy_from_slice(&self.base[offset..offset + count]),
            }
            offset += count;
            into = rest;
        }
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        let mut overlay = self.overlay.lock().unwrap_or_else(PoisonError::into_inner);
        write_over(&self.base, &mut overlay, offset, bytes);
    }
}

impl BlockDevice for ImageDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn open(&self, _handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(Immediate::new(ImageExecutor {
            info: Arc::clone(&self.info),
            content: Arc::clone(&self.content),
        })))
    }
}

impl fmt::Debug for ImageDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageDevice").field("bytes", &self.content.base.len()).finish_non_exhaustive()
    }
}

struct ImageExecutor {
    info: Arc<DeviceInfo>,
    content: Arc<Content>,
}

impl Execute for ImageExecutor {
    fn execute(&self, request: &mut Request) -> Result<(), IoError> {
        provider::check(&self.info, request)?;
        let (offset, len) = range(self.info.block_size(), request)?;
        match request.operation {
            Operation::Read => {
                if matches!(request.payload, Payload::None) {
                    request.payload = Payload::Buffer(Buffer::zeroed(len));
                }
                let mut at = offset;
                for buffer in request.payload.buffers_mut() {
                    self.content.read(at, buffer);
                    at += buffer.len();
                }
            }
            Operation::Write { .. } => self.content.write(offset, &request.payload.to_vec()),
            Operation::Flush => {}
            Operation::Unmap | Operation::WriteZeroes { .. } => self.content.write(offset, &vec![0; len]),
            Operation::Compare => self.compare(offset, &request.payload.to_vec())?,
            Operation::CompareAndWrite { .. } => {
                let both = request.payload.to_vec();
                self.compare(offset, &both[..len])?;
                self.content.write(offset, &both[len..]);
            }
        }
        Ok(())
    }
}

impl ImageExecutor {
    fn compare(&self, offset: usize, expected: &[u8]) -> Result<(), IoError> {
        let mut found = vec![0; expected.len()];
        self.content.read(offset, &mut found);
        if found == expected { Ok(()) } else { Err(IoError::Miscompare) }
    }
}
