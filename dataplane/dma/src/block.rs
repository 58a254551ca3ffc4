use std::any::Any;
use std::ptr::NonNull;
use std::rc::{Rc, Weak};

use crate::pages::Pages;
use crate::pool::Shelf;
use crate::slab::{RegionId, Slab};

/// One contiguous piece of memory. Buffers hold disjoint ranges of it, lent views any ranges.
pub(crate) struct Block {
    memory: Memory,
    /// Where the block goes when nothing refers to it any more; dangling for blocks of no pool.
    pub(crate) home: Weak<Shelf>,
}

enum Memory {
    /// Its own.
    Own(Pages),
    /// A part of a pool's memory, from here and of this size.
    Slab { slab: Rc<Slab>, start: NonNull<u8>, size: usize },
    /// Owned by something else, which is kept alive here. Never written through a block.
    Foreign { _owner: Box<dyn Any> },
}

impl Block {
    /// Zeroed memory of at least `bytes` bytes, rounded up to whole pages, of no pool.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        Self { memory: Memory::Own(Pages::zeroed(bytes)), home: Weak::new() }
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
            Memory::Own(pages) => Some((pages.start(), pages.size())),
            Memory::Slab { start, size, .. } => Some((*start, *size)),
            Memory::Foreign { .. } => None,
        }
    }

    /// The region that the memory lies in.
    pub(crate) fn region(&self) -> Option<RegionId> {
        match &self.memory {
            Memory::Slab { slab, .. } => slab.region(),
            Memory::Own(_) | Memory::Foreign { .. } => None,
        }
    }
}
