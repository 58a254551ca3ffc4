use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use crate::block::Block;
use crate::buffer::Buffer;
use crate::slab::{Ledger, RegionChange, Regions, Slab};

/// Capacity of the smallest size class in bytes.
pub const MIN_CLASS_BYTES: usize = 4096;
/// Capacity of the largest size class in bytes; a pool has no larger buffers.
pub const MAX_CLASS_BYTES: usize = 1 << 20;
/// Memory is taken from the system in pieces of this size at most, unless one block needs more.
const SLAB_BYTES: usize = 256 << 10;
/// A pool of the smallest size still has about this many pieces.
const SLABS_MIN: usize = 64;
const CLASSES: usize = (MAX_CLASS_BYTES.ilog2() - MIN_CLASS_BYTES.ilog2() + 1) as usize;

/// One reactor's supply of buffers in size classes of powers of two, 4 KiB to 1 MiB. Cheap to clone.
///
/// Memory that was handed back is handed out again without allocation. All memory together, in use or idle, stays
/// below a limit: then [`BufferPool::take`] answers nothing, which callers treat like a full queue.
#[derive(Clone)]
pub struct BufferPool(Rc<PoolState>);

struct PoolState {
    limit_bytes: usize,
    ledger: Rc<Ledger>,
    regions: Rc<Regions>,
    shelves: [Rc<Shelf>; CLASSES],
}

/// The idle blocks of one size class.
pub(crate) struct Shelf {
    class_bytes: usize,
    /// Where the next block is cut from when none is idle.
    slab: RefCell<Option<Rc<Slab>>>,
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
            Rc::new(Shelf {
                class_bytes: MIN_CLASS_BYTES << class,
                slab: RefCell::new(None),
                idle: RefCell::new(Vec::new()),
            })
        };
        let shelves = std::array::from_fn(shelf);
        let (ledger, regions) = (Rc::default(), Rc::default());
        Self(Rc::new(PoolState { limit_bytes, ledger, regions, shelves }))
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
            held_bytes: self.0.ledger.held_bytes.get(),
            idle_bytes: self.0.shelves.iter().map(idle).sum::<usize>() + self.0.ledger.uncut_bytes.get(),
            limit_bytes: self.0.limit_bytes,
        }
    }

    fn grow(&self, shelf: &Rc<Shelf>) -> Option<Rc<Block>> {
        let cut = |slab: &Rc<Slab>| Block::cut(slab, shelf.class_bytes, Rc::downgrade(shelf)).map(Rc::new);
        if let Some(block) = shelf.slab.borrow().as_ref().and_then(cut) {
            return Some(block);
        }
        if self.room() < shelf.class_bytes {
            self.trim();
        }
        let slab = self.slab_bytes(shelf.class_bytes).min(self.room());
        let blocks = slab / shelf.class_bytes;
        if blocks == 0 {
            return None;
        }
        let slab = Rc::new(Slab::new(blocks * shelf.class_bytes, &self.0.regions, &self.0.ledger));
        let block = cut(&slab);
        *shelf.slab.borrow_mut() = Some(slab);
        block
    }

    fn room(&self) -> usize {
        self.0.limit_bytes.saturating_sub(self.0.ledger.held_bytes.get())
    }

    /// How much is asked of the system at a time for blocks of `class_bytes`: in a small pool less, so that no class takes all.
    fn slab_bytes(&self, class_bytes: usize) -> usize {
        (self.0.limit_bytes / SLABS_MIN).clamp(class_bytes, SLAB_BYTES.max(class_bytes))
    }

    /// Gives idle memory of all classes back to the system: one class must not starve another. What shares a slab with memory in
    /// use goes when that does.
    fn trim(&self) {
        for shelf in &self.0.shelves {
            shelf.idle.borrow_mut().clear();
            shelf.slab.borrow_mut().take();
        }
    }

    /// True if [`BufferPool::take_region_changes`] has something to tell.
    #[must_use]
    pub fn regions_changed(&self) -> bool {
        self.0.regions.have_changed()
    }

    /// The regions of memory that came and went since the last call, in order. Where a region went, nothing of it is in use.
    #[must_use]
    pub fn take_region_changes(&self) -> Vec<RegionChange> {
        self.0.regions.take_changes()
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
        let pool = BufferPool::new(1 << 15);
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
    fn memory_comes_in_regions_whose_numbers_return() {
        let pool = BufferPool::new(1 << 20);
        let buffers: Vec<_> = (0..5).map(|_| pool.take(4096).unwrap()).collect();
        let [RegionChange::Added { id: first, start, len }, RegionChange::Added { id: second, .. }] =
            pool.take_region_changes()[..]
        else {
            panic!("five blocks are in two slabs of four")
        };
        assert_eq!((len, start.as_ptr().cast_const()), (16 << 10, buffers[0].as_ptr()));
        let regions: Vec<_> = buffers.iter().map(|buffer| buffer.region().unwrap()).collect();
        assert_eq!(regions, [first, first, first, first, second]);
        assert_eq!(Buffer::zeroed(4096).region(), None);
        assert!(!pool.regions_changed());
        let kept = buffers.into_iter().next_back().unwrap();
        // A block that is as large as all that is left makes the pool give back what is idle.
        let large = pool.take(1 << 19).unwrap();
        let rest: Vec<_> = std::iter::from_fn(|| pool.take(1 << 17)).collect();
        assert_eq!((rest.len(), kept.region()), (3, Some(second)));
        let changes = pool.take_region_changes();
        assert!(changes.iter().any(|change| matches!(change, RegionChange::Removed(id) if *id == first)));
        drop((large, rest));
        let again: Vec<_> = (0..200).map_while(|_| pool.take(4096)).collect();
        assert!(again.iter().any(|buffer| buffer.region() == Some(first)), "the number is given out again");
    }

    #[test]
    fn a_region_that_went_before_it_was_told_of_is_not_told_of() {
        let pool = BufferPool::new(4096 * 2);
        drop(pool.take(4096));
        drop(pool.take(8192).unwrap());
        let changes = pool.take_region_changes();
        assert!(matches!(changes[..], [RegionChange::Added { len: 8192, .. }]), "{changes:?}");
    }

    #[test]
    fn buffers_outlive_their_pool() {
        let mut buffer = BufferPool::new(4096).take_zeroed(4096).unwrap();
        buffer.fill(7);
        assert_eq!(buffer[4095], 7);
    }
}
