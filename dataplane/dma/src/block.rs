use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use crate::ALIGNMENT;
use crate::pool::Shelf;
use crate::slab::{RegionId, Slab};

/// One contiguous piece of memory. Buffers hold disjoint ranges of it, lent views any ranges.
pub(crate) struct Block {
    memory: Memory,
    /// Where the block goes when nothing refers to it any more; dangling for blocks of no pool.
    pub(crate) home: Weak<Shelf>,
}

enum Memory {
    /// From the global allocator with this layout; given back on drop.
    Heap(NonNull<u8>, Layout),
    /// A part of a pool's memory, from here and of this size.
    Slab { slab: Rc<Slab>, start: NonNull<u8>, size: usize },
    /// Owned by something else, which is kept alive here. Never written through a block.
    Foreign { _owner: Box<dyn Any> },
}

impl Block {
    /// Zeroed memory of at least `bytes` bytes, rounded up to whole pages, of no pool.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let size = bytes.max(1).next_multiple_of(ALIGNMENT);
        let Ok(layout) = Layout::from_size_align(size, ALIGNMENT) else {
            panic!("a buffer of {bytes} bytes does not fit the address space");
        };
        // SAFETY: the layout's size is at least one page, so not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { memory: Memory::Heap(start, layout), home: Weak::new() }
    }

    /// The next `size` bytes of a slab; none when it is used up.
    pub(crate) fn cut(slab: &Rc<Slab>, size: usize, home: Weak<Shelf>) -> Option<Self> {
        let start = slab.cut(size)?;
        Some(Self { memory: Memory::Slab { slab: Rc::clone(slab), start, size }, home })
    }

    /// A block that only keeps `owner` alive.
    pub(crate) fn foreign(owner: Box<dyn Any>) -> Self {
        Self { memory: Memory::Foreign { _owner: owner }, home: Weak::new() }
    }

    /// First byte and size in bytes; `None` for foreign memory.
    pub(crate) fn heap(&self) -> Option<(NonNull<u8>, usize)> {
        match &self.memory {
            Memory::Heap(start, layout) => Some((*start, layout.size())),
            Memory::Slab { start, size, .. } => Some((*start, *size)),
            Memory::Foreign { .. } => None,
        }
    }

    /// The region that the memory lies in.
    pub(crate) fn region(&self) -> Option<RegionId> {
        match &self.memory {
            Memory::Slab { slab, .. } => slab.region(),
            Memory::Heap(..) | Memory::Foreign { .. } => None,
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Memory::Heap(start, layout) = self.memory {
            // SAFETY: `start` came from `alloc_zeroed` with this layout and nothing refers to the block any more.
            unsafe { dealloc(start.as_ptr(), layout) }
        }
    }
}
