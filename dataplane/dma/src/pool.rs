use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use crate::block::Block;
use crate::buffer::Buffer;

/// Capacity of the smallest size class in bytes.
pub const MIN_CLASS_BYTES: usize = 4096;
/// Capacity of the largest size class in bytes; a pool has no larger buffers.
pub const MAX_CLASS_BYTES: usize = 1 << 20;
const CLASSES: usize = (MAX_CLASS_BYTES.ilog2() - MIN_CLASS_BYTES.ilog2() + 1) as usize;

/// One reactor's supply of buffers in size classes of powers of two, 4 KiB to 1 MiB. Cheap to clone.
///
/// Memory that was handed back is handed out again without allocation. All memory together, in use or idle, stays
/// below a limit: then [`BufferPool::take`] answers nothing, which callers treat like a full queue.
#[derive(Clone)]
pub struct BufferPool(Rc<PoolState>);

struct PoolState {
    limit_bytes: usize,
    held_bytes: Cell<usize>,
    shelves: [Rc<Shelf>; CLASSES],
}

/// The idle blocks of one size class.
pub(crate) struct Shelf {
    class_bytes: usize,
    idle: RefCell<Vec<Rc<Block>>>,
}

/// What a pool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStats {
    /// Memory taken from the system, idle or in use.
    pub held_bytes: usize,
    /// The part of it that no one uses.
    pub idle_bytes: usize,
    /// What `held_bytes` will not exceed.
    pub limit_bytes: usize,
}

/// Ends one user's hold on a block: the last one puts it back onto its shelf.
pub(crate) fn give_back(block: Rc<Block>) {
    if Rc::strong_count(&block) == 1
        && let Some(shelf) = block.home.upgrade()
    {
        shelf.idle.borrow_mut().push(block);
    }
}

impl BufferPool {
    /// A pool that holds at most `limit_bytes` bytes and takes memory from the system as it is first needed.
    #[must_use]
    pub fn new(limit_bytes: usize) -> Self {
        let shelf = |class: usize| {
            Rc::new(Shelf { class_bytes: MIN_CLASS_BYTES << class, idle: RefCell::new(Vec::new()) })
        };
        let shelves = std::array::from_fn(shelf);
        Self(Rc::new(PoolState { limit_bytes, held_bytes: Cell::new(0), shelves }))
    }

    /// A buffer of length `len` whose bytes are whatever its last user left; `None` at the pool's limit and for `len` above
    /// [`MAX_CLASS_BYTES`].
    #[must_use]
    pub fn take(&self, len: usize) -> Option<Buffer> {
        let class = class_of(len)?;
        let shelf = &self.0.shelves[class];
        let idle = shelf.idle.borrow_mut().pop();
        let block = match idle {
            Some(block) => block,
            None => self.grow(shelf)?,
        };
        let mut buffer = Buffer::whole(block);
        buffer.set_len(len);
        Some(buffer)
    }

    /// The same with all bytes zero.
    #[must_use]
    pub fn take_zeroed(&self, len: usize) -> Option<Buffer> {
        let mut buffer = self.take(len)?;
        buffer.fill(0);
        Some(buffer)
    }

    /// What the pool holds now.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let idle = |shelf: &Rc<Shelf>| shelf.idle.borrow().len() * shelf.class_bytes;
        PoolStats {
            held_bytes: self.0.held_bytes.get(),
            idle_bytes: self.0.shelves.iter().map(idle).sum(),
            limit_bytes: self.0.limit_bytes,
        }
    }

    fn grow(&self, shelf: &Rc<Shelf>) -> Option<Rc<Block>> {
        if self.0.held_bytes.get() + shelf.class_bytes > self.0.limit_bytes {
            self.trim();
        }
        let held = self.0.held_bytes.get() + shelf.class_bytes;
        if held > self.0.limit_bytes {
            return None;
        }
        self.0.held_bytes.set(held);
        Some(Rc::new(Block::zeroed(shelf.class_bytes, Rc::downgrade(shelf))))
    }

    /// Gives idle memory of all classes back to the system: one class must not starve another.
    fn trim(&self) {
        for shelf in &self.0.shelves {
            let idle = std::mem::take(&mut *shelf.idle.borrow_mut());
            self.0.held_bytes.set(self.0.held_bytes.get() - idle.len() * shelf.class_bytes);
        }
    }
}

/// Index of the smallest class that holds `len` bytes.
fn class_of(len: usize) -> Option<usize> {
    if len > MAX_CLASS_BYTES {
        return None;
    }
    let class_bytes = len.max(MIN_CLASS_BYTES).next_power_of_two();
    Some((class_bytes.ilog2() - MIN_CLASS_BYTES.ilog2()) as usize)
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_two() {
        assert_eq!([class_of(0), class_of(4096), class_of(4097)], [Some(0), Some(0), Some(1)]);
        assert_eq!([class_of(1 << 20), class_of((1 << 20) + 1)], [Some(CLASSES - 1), None]);
    }

    #[test]
    fn memory_is_recycled_and_bounded() {
        let pool = BufferPool::new(3 * 4096);
        let first = pool.take(4096).unwrap();
        let start = first.as_ptr();
        drop(first);
        let again = pool.take(100).unwrap();
        assert_eq!((again.as_ptr(), again.len()), (start, 100));
        let double = pool.take(8192).unwrap();
        assert!(pool.take(1).is_none());
        drop(again);
        assert_eq!(pool.stats(), PoolStats { held_bytes: 3 * 4096, idle_bytes: 4096, limit_bytes: 3 * 4096 });
        drop(double);
        // Idle memory of one class serves another.
        let fresh: Vec<_> = (0..3).map(|_| pool.take(1).unwrap()).collect();
        assert!(fresh.len() == 3 && pool.take(1).is_none());
    }

    #[test]
    fn split_and_lent_memory_returns_once_after_its_last_user() {
        let pool = BufferPool::new(1 << 20);
        let mut head = pool.take(8192).unwrap();
        let tail = head.split_off(4096);
        drop(head);
        assert_eq!(pool.stats().idle_bytes, 0);
        let view = tail.into_lent();
        let other = view.clone();
        drop(view);
        assert_eq!(pool.stats().idle_bytes, 0);
        drop(other);
        assert_eq!(pool.stats().idle_bytes, 8192);
        assert_eq!(pool.take(8192).unwrap().capacity(), 8192);
    }

    #[test]
    fn buffers_outlive_their_pool() {
        let mut buffer = BufferPool::new(4096).take_zeroed(4096).unwrap();
        buffer.fill(7);
        assert_eq!(buffer[4095], 7);
    }
}
