//! Reservation notifications of one controller: masks, and log pages that wait to be read (Base 5.16.1.24, 5.27.1.26).

use std::collections::{BTreeMap, VecDeque};

use basalt_nvme_wire::reservation::{Notice, NotificationPage};
use zerocopy::little_endian::{U32, U64};

use crate::namespace::Nsid;

/// Pages that wait; later ones are dropped, which the gap in their count shows.
const PAGES_MAX: usize = 255;

/// Notifications of one controller.
#[derive(Debug, Default)]
pub(super) struct Notices {
    masks: BTreeMap<Nsid, u32>,
    pages: VecDeque<(u64, Nsid, Notice)>,
    count: u64,
}

impl Notices {
    pub(super) fn mask(&self, nsid: Nsid) -> u32 {
        self.masks.get(&nsid).copied().unwrap_or(0)
    }

    pub(super) fn set_mask(&mut self, nsid: Nsid, mask: u32) {
        self.masks.insert(nsid, mask);
    }

    /// Makes a page of a notice that is not masked; whether there is one to be read.
    pub(super) fn add(&mut self, nsid: Nsid, notice: Notice) -> bool {
        if self.mask(nsid) & notice.mask() != 0 {
            return false;
        }
        self.skip(1);
        if self.pages.len() < PAGES_MAX {
            self.pages.push_back((self.count, nsid, notice));
        }
        true
    }

    /// Counts pages that there was no room for.
    pub(super) fn skip(&mut self, lost: u64) {
        for _ in 0..lost {
            // Zero is the empty page.
            self.count = self.count.checked_add(1).unwrap_or(1);
        }
    }

    /// The page that is next to be read; the empty one if there is none.
    pub(super) fn page(&self) -> NotificationPage {
        let next = self.pages.front();
        let left = self.pages.len().saturating_sub(1);
        NotificationPage {
            count: U64::new(next.map_or(0, |(count, ..)| *count)),
            kind: next.map_or(0, |(.., notice)| notice.code()),
            available: u8::try_from(left).unwrap_or(u8::MAX),
            reserved_10: [0; 2],
            nsid: U32::new(next.map_or(0, |(_, nsid, _)| nsid.0)),
            reserved_16: [0; 48],
        }
    }

    /// The page was read; whether there is another.
    pub(super) fn next(&mut self) -> bool {
        self.pages.pop_front();
        !self.pages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_in_order_and_gaps_show_what_was_lost() {
        let mut notices = Notices::default();
        assert_eq!(notices.page().count.get(), 0);
        notices.set_mask(Nsid(2), Notice::ReservationReleased.mask());
        assert!(!notices.add(Nsid(2), Notice::ReservationReleased));
        assert!(notices.add(Nsid(2), Notice::ReservationPreempted));
        notices.skip(2);
        assert!(notices.add(Nsid(1), Notice::ReservationReleased));
        let page = notices.page();
        assert_eq!((page.count.get(), page.kind, page.available, page.nsid.get()), (1, 3, 1, 2));
        assert!(notices.next());
        let page = notices.page();
        assert_eq!((page.count.get(), page.kind, page.available, page.nsid.get()), (4, 2, 0, 1));
        assert!(!notices.next() && !notices.next());
    }

    #[test]
    fn pages_are_bounded() {
        let mut notices = Notices::default();
        for _ in 0..300 {
            notices.add(Nsid(1), Notice::RegistrationPreempted);
        }
        assert_eq!(notices.page().available, 254);
        notices.count = u64::MAX;
        notices.skip(1);
        assert_eq!(notices.count, 1);
    }
}
