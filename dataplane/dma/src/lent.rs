use std::any::Any;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};
use std::rc::Rc;

use crate::block::Block;
use crate::buffer::Buffer;
use crate::pool::give_back;
use crate::slab::RegionId;

/// The right to lend views of memory that a device owns: made once per channel, so that lending costs no allocation.
#[derive(Clone)]
pub struct Lender(Rc<Block>);

impl Lender {
    /// A lender whose views keep `owner` alive.
    #[must_use]
    pub fn new(owner: impl Any) -> Self {
        Self(Rc::new(Block::foreign(Box::new(owner))))
    }

    /// A view of `len` bytes from `start`.
    ///
    /// # Safety
    /// The range stays mapped and readable as long as the lender's owner lives. It may be written meanwhile: readers of a
    /// view copy bytes and never form references to them.
    ///
    /// # Panics
    /// If `len` is above 4 GiB.
    #[must_use]
    pub unsafe fn lend(&self, start: NonNull<u8>, len: usize) -> Lent {
        let Ok(len) = u32::try_from(len) else { panic!("a view has at most 4 GiB") };
        Lent { block: ManuallyDrop::new(Rc::clone(&self.0)), start, len, capacity: 0 }
    }
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lender").field("views", &(Rc::strong_count(&self.0) - 1)).finish_non_exhaustive()
    }
}

/// What [`Lent::prefetch`] asks for at most; what follows is fetched by the processor itself.
const PREFETCH_BYTES: usize = 4096;
const CACHE_LINE_BYTES: usize = 64;

/// Asks the processor to have a range in its cache soon. Only a hint: the range need not be readable.
pub(crate) fn prefetch(start: NonNull<u8>, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..len).step_by(CACHE_LINE_BYTES) {
        let at = start.as_ptr().wrapping_add(line);
        // SAFETY: a hint about any address is allowed.
        unsafe { core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.cast()) };
    }
}

/// A read-only view of memory that is kept alive by its owner: a device's memory, or a [`Buffer`] that several read.
///
/// The bytes of a device's memory may change while the view exists, as two concurrent commands may; whoever needs them to
/// stand still (a digest, a comparison) copies them first. Therefore there is no access as a slice.
pub struct Lent {
    /// Taken once: by `drop` or by `try_into_buffer`.
    block: ManuallyDrop<Rc<Block>>,
    start: NonNull<u8>,
    len: u32,
    /// Of the buffer that this view was made from, so that it can become one again; zero for a device's memory.
    capacity: u32,
}

impl Lent {
    pub(crate) fn of_buffer(block: Rc<Block>, start: NonNull<u8>, len: u32, capacity: u32) -> Self {
        Self { block: ManuallyDrop::new(block), start, len, capacity }
    }

    /// Bytes in view.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True if no byte is in view.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// First byte, for descriptors that the kernel reads.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// The region of a pool that the memory lies in; none for a device's.
    #[must_use]
    pub fn region(&self) -> Option<RegionId> {
        self.block.region()
    }

    /// Asks the processor to have the first page in its cache soon: several views of a batch are then fetched at once, where copying one
    /// after the other waits for each. Only a hint.
    pub fn prefetch(&self) {
        prefetch(self.start, self.len().min(PREFETCH_BYTES));
    }

    /// The bytes, where they stand still: those of a buffer, which nobody writes to as long as there are views of it. None for a device's
    /// memory.
    #[must_use]
    pub fn still(&self) -> Option<&[u8]> {
        self.block.heap()?;
        // SAFETY: the view's range is initialised memory of the block, which lives as long as the view. Its buffer gave up writing to
        // become a view, and comes back only when no view is left; other buffers of the block have other ranges.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len()) })
    }

    /// Copies the view's bytes from `offset` on into all of `target`.
    ///
    /// # Panics
    /// If the view ends before `target` is full.
    pub fn copy_to(&self, offset: usize, target: &mut [u8]) {
        let end = offset.checked_add(target.len());
        assert!(end.is_some_and(|end| end <= self.len()), "copy beyond the end of a view");
        // SAFETY: the range was checked and the owner keeps it mapped. A writer may run at the same time; then the copy
        // holds a mix of both, which is what two concurrent commands may see. `target` is exclusive, so disjoint.
        unsafe {
            ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), target.as_mut_ptr(), target.len())
        }
    }

    /// A copy of the bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len()];
        self.copy_to(0, &mut bytes);
        bytes
    }

    /// A narrower view of the same memory.
    ///
    /// # Panics
    /// If `offset + len` is beyond the end of this view.
    #[must_use]
    pub fn slice(&self, offset: usize, len: usize) -> Self {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len()), "slice beyond the end of a view");
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the view's length, a u32")]
        let len = len as u32;
        // SAFETY: `offset` is at most the view's length.
        let start = unsafe { self.start.add(offset) };
        Self { block: self.block.clone(), start, len, capacity: 0 }
    }

    /// The buffer that this view was made from.
    ///
    /// # Errors
    /// Hands the view back if others still look at the memory, if it is a narrower view, or if it is a device's.
    pub fn try_into_buffer(self) -> Result<Buffer, Self> {
        if self.capacity == 0 || Rc::strong_count(&self.block) != 1 {
            return Err(self);
        }
        let mut view = ManuallyDrop::new(self);
        // SAFETY: `view` is never dropped nor used again, so its block is taken once.
        let block = unsafe { ManuallyDrop::take(&mut view.block) };
        // SAFETY: the count was one, so this view was the block's only user; `start` and `capacity` are those of the buffer
        // that became this view, which had a heap block as its capacity is not zero.
        Ok(unsafe { Buffer::reclaim(block, view.start, view.len, view.capacity) })
    }
}

impl Clone for Lent {
    fn clone(&self) -> Self {
        Self { block: self.block.clone(), start: self.start, len: self.len, capacity: self.capacity }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // SAFETY: nothing uses the field after `drop`.
        give_back(unsafe { ManuallyDrop::take(&mut self.block) });
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lent").field("len", &self.len).finish_non_exhaustive()
    }
}
