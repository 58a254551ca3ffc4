//! Memory from the system, in pieces that are large enough to be told to the kernel once and used for long.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;
use std::rc::Rc;

use crate::ALIGNMENT;
use crate::pages::Pages;

/// Regions that exist at a time at most; memory beyond has no number.
pub const REGIONS_MAX: u16 = 4096;

/// Number of a piece of pool memory, below [`REGIONS_MAX`]: whoever was told of the region can name its memory by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(u16);

impl RegionId {
    /// The number.
    #[must_use]
    pub fn index(self) -> u16 {
        self.0
    }
}

/// A piece of pool memory that came or went.
#[derive(Debug, Clone, Copy)]
pub enum RegionChange {
    /// It is there from now on.
    Added {
        /// Its number.
        id: RegionId,
        /// Its first byte, on a page.
        start: NonNull<u8>,
        /// Its length in bytes.
        len: usize,
    },
    /// It is gone; the number may come again.
    Removed(RegionId),
}

/// The regions of one pool.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    free: RefCell<Vec<RegionId>>,
    used: Cell<u16>,
    changes: RefCell<Vec<RegionChange>>,
}

impl Regions {
    fn add(&self, start: NonNull<u8>, len: usize) -> Option<RegionId> {
        let id = self.free.borrow_mut().pop().or_else(|| {
            let next = self.used.get();
            (next < REGIONS_MAX).then(|| {
                self.used.set(next + 1);
                RegionId(next)
            })
        })?;
        self.changes.borrow_mut().push(RegionChange::Added { id, start, len });
        Some(id)
    }

    fn remove(&self, gone: RegionId) {
        let mut changes = self.changes.borrow_mut();
        let untold =
            changes.iter().position(|change| matches!(change, RegionChange::Added { id, .. } if *id == gone));
        match untold {
            Some(place) => {
                changes.remove(place);
                self.free.borrow_mut().push(gone);
            }
            None => changes.push(RegionChange::Removed(gone)),
        }
    }

    pub(crate) fn have_changed(&self) -> bool {
        !self.changes.borrow().is_empty()
    }

    /// What changed since the last call. Numbers of what is gone are given out again from now on.
    pub(crate) fn take_changes(&self) -> Vec<RegionChange> {
        let changes = std::mem::take(&mut *self.changes.borrow_mut());
        let gone = changes.iter().filter_map(|change| match change {
            RegionChange::Added { .. } => None,
            RegionChange::Removed(id) => Some(*id),
        });
        self.free.borrow_mut().extend(gone);
        changes
    }
}

/// A piece of memory that blocks of one size are cut from. It goes back to the system with the last of them.
pub(crate) struct Slab {
    pages: Pages,
    cut: Cell<usize>,
    region: Option<RegionId>,
    regions: Rc<Regions>,
    ledger: Rc<Ledger>,
}

/// What the slabs of one pool hold.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// In all.
    pub(crate) held_bytes: Cell<usize>,
    /// The part that no block was cut from yet.
    pub(crate) uncut_bytes: Cell<usize>,
}

impl Slab {
    /// Zeroed memory of `bytes` bytes, whole pages.
    pub(crate) fn new(bytes: usize, regions: &Rc<Regions>, ledger: &Rc<Ledger>) -> Self {
        assert!(bytes > 0 && bytes.is_multiple_of(ALIGNMENT), "a slab holds whole blocks, at least one");
        let pages = Pages::zeroed(bytes);
        ledger.held_bytes.update(|held| held + bytes);
        ledger.uncut_bytes.update(|uncut| uncut + bytes);
        Self {
            region: regions.add(pages.start(), bytes),
            pages,
            cut: Cell::new(0),
            regions: Rc::clone(regions),
            ledger: Rc::clone(ledger),
        }
    }

    /// The next `bytes` bytes that nobody had yet; none when all are cut.
    pub(crate) fn cut(&self, bytes: usize) -> Option<NonNull<u8>> {
        let at = self.cut.get();
        let end = at.checked_add(bytes).filter(|end| *end <= self.pages.size())?;
        self.cut.set(end);
        self.ledger.uncut_bytes.update(|uncut| uncut - bytes);
        // SAFETY: `at` lies within the slab.
        Some(unsafe { self.pages.start().add(at) })
    }

    pub(crate) fn region(&self) -> Option<RegionId> {
        self.region
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        if let Some(region) = self.region {
            self.regions.remove(region);
        }
        self.ledger.held_bytes.update(|held| held - self.pages.size());
        self.ledger.uncut_bytes.update(|uncut| uncut - (self.pages.size() - self.cut.get()));
    }
}
