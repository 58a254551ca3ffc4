//! Memory from the global allocator, in whole pages.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::ALIGNMENT;

/// Zeroed pages that belong to the value; whoever has their address keeps it alive.
pub(crate) struct Pages {
    start: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    /// At least `bytes` bytes, and at least a page.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
        let Ok(layout) = Layout::from_size_align(size, ALIGNMENT) else {
            panic!("memory of {bytes} bytes does not fit the address space");
        };
        // SAFETY: the layout's size is at least one page, so not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }

    /// First byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Bytes there are.
    pub(crate) fn size(&self) -> usize {
        self.layout.size()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this layout, and nothing refers to the memory any more.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
