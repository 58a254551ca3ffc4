//! Which pages of the metadata areas are in use. Pure bookkeeping in memory.
//!
//! A page is free again when the last thing lets go of it that refers to it, on disk or in memory: the state on disk is held in
//! memory until the next one is durable, so no page that it names is ever written over.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use crate::layout::{DamageReason, PageNumber};

/// Part of the lead's pages that only the top of the metadata may take, so that maps never leave it without room.
const TOP_SHARE: u32 = 4;

/// The metadata areas of all disks of a pool.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    areas: RefCell<Vec<Area>>,
    /// Pages that the next checkpoint must write.
    dirty: Cell<usize>,
}

/// The metadata area of one disk.
#[derive(Debug)]
struct Area {
    pages: u32,
    free: u32,
    /// One bit for each page: set while it is in use.
    words: Vec<u64>,
    /// Where the search for a free page goes on.
    next: usize,
}

/// A page in use. Dropping it frees it.
pub(crate) struct PageHold {
    pages: Rc<Pages>,
    number: PageNumber,
}

/// Something that the next checkpoint must write. Dropping it takes that back.
#[derive(Debug)]
pub(crate) struct DirtyHold {
    pages: Rc<Pages>,
}

impl Pages {
    /// Adds the area of the next disk; of a disk that is missing it has no pages.
    pub(crate) fn add_area(&self, pages: u32) {
        let mut areas = self.areas.borrow_mut();
        let mut area = Area { pages, free: pages, words: vec![0; pages.div_ceil(64) as usize], next: 0 };
        if areas.is_empty() && pages > 0 {
            // Page 0 of the lead stands for no page.
            area.words[0] = 1;
            area.free -= 1;
        }
        areas.push(area);
    }

    /// Takes a free page of any disk; on the lead the last quarter is left to the top of the metadata. `None`: there is none.
    pub(crate) fn allocate(self: &Rc<Self>, top: bool) -> Option<PageHold> {
        let mut areas = self.areas.borrow_mut();
        for (disk, area) in areas.iter_mut().enumerate() {
            let kept = if disk == 0 && !top { area.pages / TOP_SHARE } else { 0 };
            if area.free <= kept || (top && disk > 0) {
                continue;
            }
            if let Some(number) = area.take_next().and_then(|index| PageNumber::new(disk, index)) {
                return Some(PageHold { pages: Rc::clone(self), number });
            }
        }
        None
    }

    /// Takes this very page.
    ///
    /// # Errors
    /// It does not exist, or is in use.
    pub(crate) fn claim(self: &Rc<Self>, number: PageNumber) -> Result<PageHold, DamageReason> {
        let mut areas = self.areas.borrow_mut();
        let area = areas.get_mut(number.disk()).filter(|area| number.index() < area.pages);
        let area = area.ok_or(DamageReason::Field("page beyond the metadata area"))?;
        let (word, bit) = (number.index() as usize / 64, 1 << (number.index() % 64));
        if area.words[word] & bit != 0 {
            return Err(DamageReason::Field("page with two uses"));
        }
        area.words[word] |= bit;
        area.free -= 1;
        Ok(PageHold { pages: Rc::clone(self), number })
    }

    /// Pages that maps can still take, and all that are free.
    pub(crate) fn free(&self) -> (usize, usize) {
        let areas = self.areas.borrow();
        let all: u32 = areas.iter().map(|area| area.free).sum();
        let kept = areas.first().map_or(0, |lead| lead.free.min(lead.pages / TOP_SHARE));
        ((all - kept) as usize, all as usize)
    }

    /// All pages.
    pub(crate) fn total(&self) -> usize {
        self.areas.borrow().iter().map(|area| area.pages as usize).sum()
    }

    /// Counts something that the next checkpoint must write.
    pub(crate) fn dirty(self: &Rc<Self>) -> DirtyHold {
        self.dirty.set(self.dirty.get() + 1);
        DirtyHold { pages: Rc::clone(self) }
    }

    /// How many pages the next checkpoint must write, at least.
    pub(crate) fn dirty_count(&self) -> usize {
        self.dirty.get()
    }
}

impl Area {
    fn take_next(&mut self) -> Option<u32> {
        let count = self.words.len();
        let at = (0..count).map(|step| (self.next + step) % count).find(|at| {
            let valid = self.pages - u32::try_from(at * 64).unwrap_or(self.pages);
            self.words[*at].trailing_ones() < valid.min(64)
        })?;
        let bit = self.words[at].trailing_ones();
        self.words[at] |= 1 << bit;
        self.free -= 1;
        self.next = at;
        u32::try_from(at * 64).ok().map(|first| first + bit)
    }
}

impl PageHold {
    pub(crate) fn number(&self) -> PageNumber {
        self.number
    }
}

impl Drop for PageHold {
    fn drop(&mut self) {
        let mut areas = self.pages.areas.borrow_mut();
        let area = &mut areas[self.number.disk()];
        let (word, bit) = (self.number.index() as usize / 64, 1 << (self.number.index() % 64));
        assert!(area.words[word] & bit != 0, "a page is freed once");
        area.words[word] &= !bit;
        area.free += 1;
    }
}

impl Drop for DirtyHold {
    fn drop(&mut self) {
        self.pages.dirty.set(self.pages.dirty.get() - 1);
    }
}

impl fmt::Debug for PageHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_given_out_once_and_come_back() {
        let pages = Rc::new(Pages::default());
        pages.add_area(100);
        pages.add_area(70);
        let mut held = Vec::new();
        while let Some(page) = pages.allocate(false) {
            assert!(held.iter().all(|other: &PageHold| other.number != page.number));
            held.push(page);
        }
        // A quarter of the lead and its page 0 are left.
        assert_eq!(held.len(), 75 - 1 + 70);
        assert_eq!(pages.free(), (0, 25));
        let top: Vec<PageHold> = std::iter::from_fn(|| pages.allocate(true)).collect();
        assert_eq!((top.len(), pages.free()), (25, (0, 0)));
        let number = held.pop().unwrap().number;
        assert!(pages.claim(number).is_ok());
        assert_eq!(pages.claim(held[0].number).unwrap_err(), DamageReason::Field("page with two uses"));
        assert!(pages.claim(PageNumber::new(2, 0).unwrap()).is_err());
        assert!(pages.claim(PageNumber::new(1, 70).unwrap()).is_err());
        drop((held, top));
        assert_eq!(pages.free().1, 169);
    }
}
