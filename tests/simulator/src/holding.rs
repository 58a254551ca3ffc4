//! What a snapshot may hold: of each block of its origin what that could have held between the order and the report.
//!
//! The origin's oracle tells what that is while the snapshot is under way, and [`Holding`] keeps it. A snapshot is never served:
//! the volumes that are restored from it are its witnesses, and share what they learn. From what is known of it:
//!
//! * writes that were acknowledged before the order are in it, unless later ones replaced them;
//! * writes that were issued after the report are not;
//! * it never changes: what one volume has read of it every other one finds there, also after a power failure;
//! * it is of one moment: it holds no write that was issued after one was acknowledged that it does not hold. Only where the target
//!   ended while it was under way this is not asked: then the origin went back, perhaps.

use crate::blocks::{Moment, Stamp, WriteId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A holding that volumes share.
pub type Shared = Rc<RefCell<Holding>>;

/// One content that a block may have.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    write: WriteId,
    stamp: Stamp,
    /// A snapshot with it was taken after this.
    after: Moment,
    /// And before this.
    before: Moment,
}

/// What one snapshot holds, as far as it is known.
#[derive(Debug)]
pub struct Holding {
    /// Blocks that the origin's hosts have written; the others are as what is beneath says.
    blocks: BTreeMap<u64, Vec<Candidate>>,
    /// What the snapshot holds that the origin was restored from; zeroes if it was not.
    beneath: Option<Shared>,
    after: Moment,
    before: Moment,
    of_one_moment: bool,
    replacements: u64,
}

/// Why a snapshot can not hold what was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contradiction {
    /// It holds one of these.
    Other(Vec<Stamp>),
    /// It was replaced before something was written that the snapshot holds, or the other way round.
    OtherMoment,
}

impl Holding {
    /// The snapshot of a volume was ordered at this of the volume's moments. What is `beneath` is what the volume began with.
    pub fn ordered(at: Moment, beneath: Option<Shared>) -> Self {
        Self {
            blocks: BTreeMap::new(),
            beneath,
            after: at,
            before: Moment::NEVER,
            of_one_moment: true,
            replacements: 0,
        }
    }

    /// The snapshot may hold what this write left, which was issued then.
    pub(crate) fn may_hold(&mut self, block: u64, write: WriteId, stamp: Stamp, issued: Moment) {
        let after = issued.max(self.after);
        let candidates = self.blocks.entry(block).or_default();
        if candidates.iter().all(|candidate| candidate.write != write) {
            candidates.push(Candidate { write, stamp, after, before: Moment::NEVER });
        }
    }

    /// Something took the place of what these writes had left in a block.
    pub(crate) fn replaced(&mut self, block: u64, now: Moment, writes: impl Fn(WriteId) -> bool) {
        self.replacements += 1;
        for candidate in self.blocks.entry(block).or_default() {
            if writes(candidate.write) {
                candidate.before = candidate.before.min(now);
            }
        }
    }

    /// The target ended while the snapshot was under way.
    pub(crate) fn interrupted(&mut self) {
        self.of_one_moment = false;
    }

    /// The snapshot was reported to be there.
    pub(crate) fn reported(&mut self, now: Moment) {
        self.before = now;
    }

    /// Whether writes took the place of others while the snapshot was under way.
    pub fn is_of_a_volume_in_use(&self) -> bool {
        self.replacements > 0
    }

    /// What a block may hold.
    pub fn stamps(&self, block: u64) -> Vec<Stamp> {
        match (self.blocks.get(&block), &self.beneath) {
            (Some(candidates), _) => {
                let mut stamps: Vec<Stamp> = candidates.iter().map(|candidate| candidate.stamp).collect();
                stamps.sort_unstable();
                stamps.dedup();
                stamps
            }
            (None, Some(beneath)) => beneath.borrow().stamps(block),
            (None, None) => vec![Stamp::ZEROES],
        }
    }

    /// A block was read through a volume that has not written it: that is what the snapshot holds, for good.
    ///
    /// # Errors
    /// When it can not.
    pub fn saw(&mut self, block: u64, read: Stamp) -> Result<(), Contradiction> {
        let Some(candidates) = self.blocks.get_mut(&block) else {
            return match &self.beneath {
                Some(beneath) => beneath.borrow_mut().saw(block, read),
                None if read == Stamp::ZEROES => Ok(()),
                None => Err(Contradiction::Other(vec![Stamp::ZEROES])),
            };
        };
        let seen = |candidate: &Candidate| candidate.stamp == read;
        // Several writes may have left the same.
        let after = candidates.iter().filter(|one| seen(one)).map(|one| one.after).min();
        let before = candidates.iter().filter(|one| seen(one)).map(|one| one.before).max();
        let (Some(after), Some(before)) = (after, before) else {
            return Err(Contradiction::Other(self.stamps(block)));
        };
        candidates.retain(seen);
        self.after = self.after.max(after);
        self.before = self.before.min(before);
        match self.of_one_moment && self.after >= self.before {
            true => Err(Contradiction::OtherMoment),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{Blocks, Effect};

    const A: Stamp = Stamp(11);
    const B: Stamp = Stamp(22);
    const C: Stamp = Stamp(33);

    fn write(blocks: &mut Blocks, block: u64, stamp: Stamp) {
        let id = blocks.write_issued(block, 1, Effect::Content(stamp));
        blocks.write_acknowledged(id, false);
    }

    fn restored(holding: &Shared) -> Blocks {
        Blocks::new(true, Some(Rc::clone(holding)))
    }

    fn reads(blocks: &mut Blocks, block: u64, stamp: Stamp) -> bool {
        let issued = blocks.now();
        blocks.read(issued, block, stamp).is_ok()
    }

    #[test]
    fn a_snapshot_holds_what_was_acknowledged_before_it_was_ordered() {
        let mut origin = Blocks::new(true, None);
        write(&mut origin, 5, A);
        write(&mut origin, 5, B);
        let holding = origin.snapshot_ordered();
        origin.snapshot_reported(&holding);
        // The origin may lose what nobody flushed; the snapshot holds it all the same.
        origin.crashed();
        assert!(reads(&mut origin, 5, A));
        for wrong in [A, C, Stamp::ZEROES] {
            assert!(!reads(&mut restored(&holding), 5, wrong), "{wrong:?}");
        }
        assert!(reads(&mut restored(&holding), 5, B) && reads(&mut restored(&holding), 6, Stamp::ZEROES));
        assert!(!reads(&mut restored(&holding), 6, B), "never written there");
    }

    #[test]
    fn a_write_that_meets_the_snapshot_may_be_in_it_and_one_that_follows_the_report_is_not() {
        for seen in [A, B] {
            let mut origin = Blocks::new(true, None);
            write(&mut origin, 5, A);
            let holding = origin.snapshot_ordered();
            write(&mut origin, 5, B);
            origin.snapshot_reported(&holding);
            write(&mut origin, 5, C);
            assert!(!reads(&mut restored(&holding), 5, C));
            assert!(reads(&mut restored(&holding), 5, seen), "{seen:?}");
            assert!(holding.borrow().is_of_a_volume_in_use());
        }
    }

    #[test]
    fn what_one_volume_has_read_of_a_snapshot_all_find_there() {
        let mut origin = Blocks::new(true, None);
        write(&mut origin, 5, A);
        let holding = origin.snapshot_ordered();
        write(&mut origin, 5, B);
        origin.snapshot_reported(&holding);
        let (mut one, mut other) = (restored(&holding), restored(&holding));
        write(&mut other, 5, C);
        assert!(reads(&mut other, 5, C));
        assert!(reads(&mut one, 5, B));
        one.crashed();
        assert!(!reads(&mut one, 5, A) && reads(&mut one, 5, B));
        other.crashed();
        assert!(
            !reads(&mut other, 5, A),
            "it is not the snapshot's, though nobody has flushed what replaced it"
        );
        assert!(reads(&mut other, 5, B), "what was not flushed was lost");
    }

    #[test]
    fn a_restored_volume_goes_its_own_way() {
        let mut origin = Blocks::new(true, None);
        write(&mut origin, 5, A);
        let holding = origin.snapshot_ordered();
        origin.snapshot_reported(&holding);
        let mut volume = restored(&holding);
        write(&mut volume, 5, B);
        assert!(!reads(&mut volume, 5, A) && reads(&mut volume, 5, B));
        let issued = volume.now();
        volume.flush_acknowledged(issued);
        volume.crashed();
        assert!(!reads(&mut volume, 5, A) && reads(&mut volume, 5, B));
        assert!(reads(&mut restored(&holding), 5, A) && reads(&mut origin, 5, A));
    }

    #[test]
    fn a_snapshot_is_of_one_moment() {
        for (first, second, possible) in [
            (A, Stamp::ZEROES, true),
            (A, B, true),
            (Stamp::ZEROES, Stamp::ZEROES, true),
            (Stamp::ZEROES, B, false),
        ] {
            let mut origin = Blocks::new(true, None);
            let holding = origin.snapshot_ordered();
            write(&mut origin, 1, A);
            write(&mut origin, 2, B);
            origin.snapshot_reported(&holding);
            let mut volume = restored(&holding);
            assert!(reads(&mut volume, 1, first));
            assert_eq!(reads(&mut volume, 2, second), possible, "{first:?} {second:?}");
        }
        let mut origin = Blocks::new(true, None);
        let holding = origin.snapshot_ordered();
        write(&mut origin, 1, A);
        write(&mut origin, 2, B);
        // What is not durable may be gone, in any order; then the snapshot is taken.
        origin.crashed();
        origin.snapshot_reported(&holding);
        let mut volume = restored(&holding);
        assert!(reads(&mut volume, 1, Stamp::ZEROES) && reads(&mut volume, 2, B));
    }

    #[test]
    fn a_power_failure_while_a_snapshot_is_under_way_brings_back_what_was_replaced() {
        for seen in [A, B] {
            let mut origin = Blocks::new(true, None);
            let id = origin.write_issued(5, 1, Effect::Content(A));
            origin.write_acknowledged(id, true);
            write(&mut origin, 5, B);
            let holding = origin.snapshot_ordered();
            origin.crashed();
            origin.snapshot_reported(&holding);
            assert!(reads(&mut restored(&holding), 5, seen), "{seen:?}");
        }
    }

    #[test]
    fn a_restored_volume_has_snapshots_too() {
        let mut origin = Blocks::new(true, None);
        write(&mut origin, 5, A);
        write(&mut origin, 6, A);
        let first = origin.snapshot_ordered();
        write(&mut origin, 5, B);
        origin.snapshot_reported(&first);
        let mut volume = restored(&first);
        write(&mut volume, 6, C);
        let second = volume.snapshot_ordered();
        volume.snapshot_reported(&second);
        let mut copy = restored(&second);
        assert!(reads(&mut copy, 6, C) && !reads(&mut copy, 6, A));
        assert!(reads(&mut copy, 5, B), "what the first one holds");
        assert!(!reads(&mut volume, 5, A), "they have it from one snapshot");
    }
}
