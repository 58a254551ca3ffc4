use std::fmt;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::ALIGNMENT;
use crate::lent::{Lender, Lent, prefetch};
use crate::segment::Segment;

/// Ranges from this length on are given back to the kernel to make them zero, instead of being written.
const RELEASE_BYTES_MIN: usize = 256 << 10;
/// What [`SharedMemory::prefetch`] asks for at most. Measured: whole pages are worse, as they take what the copy under way needs.
const PREFETCH_BYTES: usize = 512;

/// Zeroed memory that several threads copy into and out of at the same time: the medium of a RAM device.
///
/// As on a disk, copies that overlap in time and place leave or see a mix; nothing ever forms a reference to the bytes.
pub struct SharedMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory belongs to the value alone and is reached only by copies through raw pointers, which may race as
// transfers of a disk may.
unsafe impl Send for SharedMemory {}
// SAFETY: as above.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// `len` zeroed bytes; the system provides pages as they are first written.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let mapped = len.max(1).checked_next_multiple_of(ALIGNMENT).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let Some(start) = NonNull::new(start.cast::<u8>()) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        // SAFETY: the range is the mapping made above. Huge pages are a wish: without them it is only slower.
        unsafe { libc::madvise(start.as_ptr().cast(), mapped, libc::MADV_HUGEPAGE) };
        Ok(Self { start, len })
    }

    /// Size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address of a range.
    ///
    /// # Panics
    /// If it exceeds the memory: callers have checked their requests.
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        let end = offset.checked_add(len);
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} exceed a memory of {}",
            self.len
        );
        // SAFETY: `offset` was just checked to lie in the mapping.
        unsafe { self.start.add(offset) }
    }

    /// Asks the processor to have the beginning of a range in its cache soon: a copy that follows in a while need not wait for it, and
    /// has the rest fetched while it runs. Only a hint; nothing happens for a range beyond the end.
    pub fn prefetch(&self, offset: usize, len: usize) {
        if offset.checked_add(len).is_some_and(|end| end <= self.len) {
            prefetch(self.at(offset, len), len.min(PREFETCH_BYTES));
        }
    }

    /// Copies a segment's bytes to `offset`.
    ///
    /// # Panics
    /// If the range exceeds the memory.
    pub fn write(&self, offset: usize, source: &Segment<'_>) {
        let target = self.at(offset, source.len());
        if source.is_empty() {
            return;
        }
        // SAFETY: the target was checked, the source is readable for its length. A segment may be a view of this very memory,
        // so the ranges may overlap.
        unsafe { ptr::copy(source.as_ptr(), target.as_ptr(), source.len()) }
    }

    /// Copies bytes from `offset` into all of `target`.
    ///
    /// # Panics
    /// If the range exceeds the memory.
    pub fn read(&self, offset: usize, target: &mut [u8]) {
        let source = self.at(offset, target.len());
        // SAFETY: the source was checked; an exclusive slice never overlaps the mapping.
        unsafe { ptr::copy_nonoverlapping(source.as_ptr(), target.as_mut_ptr(), target.len()) }
    }

    /// Makes a range zero; large ones give their pages back to the system.
    ///
    /// # Panics
    /// If the range exceeds the memory.
    pub fn zero(&self, offset: usize, len: usize) {
        let start = self.at(offset, len);
        let (first_page, end) = (offset.next_multiple_of(ALIGNMENT), offset + len);
        let pages_end = end - end % ALIGNMENT;
        let release = pages_end.saturating_sub(first_page);
        if release >= RELEASE_BYTES_MIN {
            // SAFETY: whole pages within the checked range of a private anonymous mapping; they read as zeroes afterwards.
            let result = unsafe {
                libc::madvise(self.start.as_ptr().add(first_page).cast(), release, libc::MADV_DONTNEED)
            };
            if result == 0 {
                self.fill_zero(offset, first_page - offset);
                self.fill_zero(pages_end, end - pages_end);
                return;
            }
        }
        // SAFETY: the range was checked.
        unsafe { ptr::write_bytes(start.as_ptr(), 0, len) }
    }

    fn fill_zero(&self, offset: usize, len: usize) {
        let start = self.at(offset, len);
        // SAFETY: `at` checked the range.
        unsafe { ptr::write_bytes(start.as_ptr(), 0, len) }
    }

    /// True if the range at `offset` holds the segment's bytes.
    ///
    /// # Panics
    /// If the range exceeds the memory.
    #[must_use]
    pub fn equals(&self, offset: usize, expected: &Segment<'_>) -> bool {
        let own = self.at(offset, expected.len());
        if expected.is_empty() {
            return true;
        }
        // SAFETY: both ranges are readable for the length; `memcmp` forms no references.
        unsafe { libc::memcmp(own.as_ptr().cast(), expected.as_ptr().cast(), expected.len()) == 0 }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        let mapped = self.len.max(1).next_multiple_of(ALIGNMENT);
        // SAFETY: the mapping was made with this start and length and no one can refer to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), mapped) };
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Lends views of a shared memory on one reactor.
#[derive(Debug, Clone)]
pub struct MemoryLender {
    memory: Arc<SharedMemory>,
    lender: Lender,
}

impl MemoryLender {
    /// A lender of `memory`, which lives at least as long as any view.
    #[must_use]
    pub fn new(memory: Arc<SharedMemory>) -> Self {
        let lender = Lender::new(Arc::clone(&memory));
        Self { memory, lender }
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &SharedMemory {
        &self.memory
    }

    /// A view of `len` bytes at `offset`.
    ///
    /// # Panics
    /// If the range exceeds the memory.
    #[must_use]
    pub fn lend(&self, offset: usize, len: usize) -> Lent {
        let start = self.memory.at(offset, len);
        // SAFETY: the range was checked and the lender keeps the memory alive.
        unsafe { self.lender.lend(start, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_compared_and_lent() {
        let memory = Arc::new(SharedMemory::zeroed(10_000).unwrap());
        memory.write(100, &Segment::new(b"hello"));
        let mut bytes = [0; 7];
        memory.read(99, &mut bytes);
        assert_eq!(&bytes, b"\0hello\0");
        assert!(memory.equals(100, &Segment::new(b"hello")) && !memory.equals(101, &Segment::new(b"hello")));
        let view = MemoryLender::new(Arc::clone(&memory)).lend(101, 4);
        memory.write(110, &Segment::lent(&view));
        drop(memory);
        assert_eq!(view.to_vec(), b"ello");
        assert!(view.still().is_none(), "a device's memory may change under a view");
    }

    #[test]
    fn zeroing_covers_exactly_the_range_however_it_is_done() {
        for (offset, len) in [(5, 10), (4096, RELEASE_BYTES_MIN), (4095, RELEASE_BYTES_MIN + 4098), (1, 0)] {
            let memory = SharedMemory::zeroed(RELEASE_BYTES_MIN + 3 * 4096).unwrap();
            memory.write(0, &Segment::new(&vec![0xff; memory.len()]));
            memory.zero(offset, len);
            let mut bytes = vec![0; memory.len()];
            memory.read(0, &mut bytes);
            let zeroes = bytes.iter().enumerate().filter(|(_, byte)| **byte == 0);
            assert!(zeroes.clone().all(|(at, _)| at >= offset && at < offset + len));
            assert_eq!(zeroes.count(), len);
        }
    }

    #[test]
    #[should_panic(expected = "exceed a memory")]
    fn bounds_are_checked() {
        SharedMemory::zeroed(4096).unwrap().write(4095, &Segment::new(b"ab"));
    }
}
