use std::fmt;
use std::marker::PhantomData;

use crate::lent::Lent;

/// One contiguous source of bytes in the form of an `iovec`: borrowed bytes or a lent view. Read only.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Segment<'a> {
    vector: libc::iovec,
    source: PhantomData<&'a [u8]>,
}

impl<'a> Segment<'a> {
    /// A segment of no bytes.
    pub const EMPTY: Segment<'static> =
        Segment { vector: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }, source: PhantomData };

    /// The segment of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        Self { vector, source: PhantomData }
    }

    /// The segment of a lent view.
    #[must_use]
    pub fn lent(view: &'a Lent) -> Self {
        let vector = libc::iovec { iov_base: view.as_ptr().cast_mut().cast(), iov_len: view.len() };
        Self { vector, source: PhantomData }
    }

    /// Bytes in the segment.
    #[must_use]
    pub fn len(&self) -> usize {
        self.vector.iov_len
    }

    /// True if there is no byte in the segment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// First byte.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.vector.iov_base.cast_const().cast()
    }

    /// The segment without its first `count` bytes: what is left after a short write.
    ///
    /// # Panics
    /// If the segment is shorter.
    #[must_use]
    pub fn skip(self, count: usize) -> Self {
        assert!(count <= self.len(), "skip beyond the end of a segment");
        let base = self.vector.iov_base.cast::<u8>().wrapping_add(count).cast();
        let vector = libc::iovec { iov_base: base, iov_len: self.len() - count };
        Self { vector, source: PhantomData }
    }

    /// The segment's first `count` bytes, or all of it if it is shorter.
    #[must_use]
    pub fn truncate(self, count: usize) -> Self {
        let iov_len = self.len().min(count);
        Self { vector: libc::iovec { iov_base: self.vector.iov_base, iov_len }, source: PhantomData }
    }

    /// Appends the segment's bytes to `target`.
    pub fn append_to(&self, target: &mut Vec<u8>) {
        if self.is_empty() {
            return;
        }
        target.reserve(self.len());
        // SAFETY: the source is readable for `'a`; `reserve` made room behind the vector's end; the bytes are set before the
        // length is. A lent source may be written meanwhile, as two concurrent commands may; no reference to it is formed.
        unsafe {
            std::ptr::copy_nonoverlapping(self.as_ptr(), target.as_mut_ptr().add(target.len()), self.len());
            target.set_len(target.len() + self.len());
        }
    }
}

impl<'a> From<&'a [u8]> for Segment<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::new(bytes)
    }
}

impl fmt::Debug for Segment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("len", &self.len()).finish_non_exhaustive()
    }
}
