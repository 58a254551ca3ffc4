use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;
use std::slice;

use crate::block::Block;
use crate::lent::Lent;
use crate::pool::give_back;
use crate::slab::RegionId;

/// A piece of memory that one request owns: starts on a page, has a fixed capacity and an adjustable length.
///
/// It dereferences to its first `len` bytes. Memory from a pool holds whatever its last user left there, never uninitialised
/// bytes. Dropping gives the memory back to its pool. [`Buffer::default`] is empty and costs nothing.
#[derive(Default)]
pub struct Buffer {
    /// The block and the first byte of this buffer's range in it; `None` for the empty buffer.
    place: Option<(Rc<Block>, NonNull<u8>)>,
    capacity: u32,
    len: u32,
}

impl Buffer {
    /// Zeroed memory of its own, outside any pool: for tests and for what happens rarely.
    ///
    /// # Panics
    /// If `len` is above 2 GiB.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::whole(Rc::new(Block::zeroed(len)));
        buffer.set_len(len);
        buffer
    }

    /// Memory of its own with a copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// The buffer that covers all of a heap block which nothing else refers to; its length is zero.
    pub(crate) fn whole(block: Rc<Block>) -> Self {
        assert_eq!(Rc::strong_count(&block), 1, "the block must be unshared");
        let Some((start, size)) = block.heap() else { panic!("foreign memory is never a buffer") };
        let Ok(capacity) = u32::try_from(size) else { panic!("a buffer has at most 4 GiB") };
        Self { place: Some((block, start)), capacity, len: 0 }
    }

    /// Bytes in use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True if no byte is in use.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that could be in use.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Changes how many bytes are in use; bytes that come into use hold what was there before.
    ///
    /// # Panics
    /// If `len` is above the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "length {len} above the capacity {}", self.capacity);
        // The assertion bounds `len` by a u32.
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the capacity, a u32")]
        let len = len as u32;
        self.len = len;
    }

    /// First byte, for descriptors that the kernel or a device reads. Dangling for an empty buffer.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.start().as_ptr()
    }

    /// First byte, for descriptors through which the kernel or a device writes.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start().as_ptr()
    }

    /// The region of its pool that the memory lies in; none for memory of its own.
    #[must_use]
    pub fn region(&self) -> Option<RegionId> {
        self.place.as_ref().and_then(|(block, _)| block.region())
    }

    fn start(&self) -> NonNull<u8> {
        self.place.as_ref().map_or(NonNull::dangling(), |(_, start)| *start)
    }

    /// Cuts the buffer in two without copying: `self` keeps the first `at` bytes of its capacity, the answer owns the rest.
    /// Lengths are cut alike. [`Buffer::unsplit`] undoes it.
    ///
    /// # Panics
    /// If `at` is above the capacity.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at <= self.capacity(), "cut at {at} beyond the capacity {}", self.capacity);
        #[expect(clippy::cast_possible_truncation, reason = "bounded by the capacity, a u32")]
        let at = at as u32;
        let place = self.place.as_ref().map(|(block, start)| {
            // SAFETY: `at` is at most the capacity, so the sum points into the block or one past this range's end.
            (Rc::clone(block), unsafe { start.add(at as usize) })
        });
        let tail = Self { place, capacity: self.capacity - at, len: self.len.saturating_sub(at) };
        self.capacity = at;
        self.len = self.len.min(at);
        tail
    }

    /// Joins a buffer that was split off from the end of this one.
    ///
    /// # Errors
    /// Hands `tail` back if it does not begin where this buffer's capacity ends, or if this buffer is not full while `tail`
    /// holds bytes.
    pub fn unsplit(&mut self, tail: Self) -> Result<(), Self> {
        if tail.capacity == 0 {
            return Ok(());
        }
        let (Some((own, start)), Some((other, tail_start))) = (&self.place, &tail.place) else {
            return Err(tail);
        };
        let adjacent = Rc::ptr_eq(own, other)
            && start.as_ptr().wrapping_add(self.capacity as usize) == tail_start.as_ptr()
            && (self.len == self.capacity || tail.len == 0);
        if !adjacent {
            return Err(tail);
        }
        self.capacity += tail.capacity;
        self.len += tail.len;
        Ok(())
    }

    /// Gives up writing: the answer can be cloned and read by several users at a time. No copy, no allocation.
    #[must_use]
    pub fn into_lent(mut self) -> Lent {
        let (capacity, len) = (self.capacity, self.len);
        let (block, start) =
            self.place.take().unwrap_or_else(|| (Rc::new(Block::foreign(Box::new(()))), NonNull::dangling()));
        Lent::of_buffer(block, start, len, capacity)
    }

    /// The buffer over a range that no one else can reach.
    ///
    /// # Safety
    /// `start..start + capacity` lies in `block`, which is a heap block, and no other buffer or lent view covers any of it.
    pub(crate) unsafe fn reclaim(block: Rc<Block>, start: NonNull<u8>, len: u32, capacity: u32) -> Self {
        Self { place: Some((block, start)), capacity, len }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some((block, _)) = self.place.take() {
            give_back(block);
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the range is initialised memory of the block, which lives as long as `self`, and no other buffer covers it.
        unsafe { slice::from_raw_parts(self.start().as_ptr(), self.len()) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only view of the range.
        unsafe { slice::from_raw_parts_mut(self.start().as_ptr(), self.len()) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("capacity", &self.capacity).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ALIGNMENT;

    #[test]
    fn empty_buffer_is_an_empty_slice() {
        let mut buffer = Buffer::default();
        assert!(buffer.is_empty() && buffer.deref().is_empty() && buffer.deref_mut().is_empty());
        assert_eq!(buffer.clone_len(), 0);
    }

    impl Buffer {
        fn clone_len(&self) -> usize {
            self.iter().count()
        }
    }

    #[test]
    fn starts_on_a_page_and_rounds_up() {
        let buffer = Buffer::zeroed(5000);
        assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!((buffer.len(), buffer.capacity()), (5000, 8192));
        assert!(buffer.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn split_ranges_are_disjoint_and_join_again() {
        let mut head = Buffer::zeroed(8192);
        let mut tail = head.split_off(4096);
        head.fill(1);
        tail.fill(2);
        assert!(head.iter().all(|byte| *byte == 1));
        head.unsplit(tail).unwrap();
        assert_eq!(head.len(), 8192);
        assert_eq!((head[4095], head[4096]), (1, 2));
    }

    #[test]
    fn strangers_do_not_join() {
        let mut head = Buffer::zeroed(8192);
        let mut middle = head.split_off(2048);
        let tail = middle.split_off(2048);
        let tail = head.unsplit(tail).unwrap_err();
        assert!(head.unsplit(Buffer::zeroed(10)).is_err());
        head.set_len(0);
        let middle = head.unsplit(middle).unwrap_err();
        drop((middle, tail));
    }

    #[test]
    #[should_panic(expected = "above the capacity")]
    fn length_is_bounded() {
        Buffer::zeroed(1).set_len(4097);
    }
}
