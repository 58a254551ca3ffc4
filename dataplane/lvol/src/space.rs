//! Which extents of a pool are free. Pure bookkeeping in memory: the truth is in the maps of volumes.

use std::collections::BTreeMap;

#[cfg(test)]
use crate::layout::DamageReason;
use crate::layout::{DiskLayout, Place, Stretches, TakenMap};

/// Neighbouring extents of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Run {
    /// Index of the disk in its pool.
    pub(crate) disk: u32,
    /// First extent on that disk.
    pub(crate) first: u64,
    /// Number of extents; never 0.
    pub(crate) extents: u32,
}

impl Run {
    /// Whether an extent follows it.
    fn is_before(self, disk: u32, extent: u64) -> bool {
        self.disk == disk && self.first + u64::from(self.extents) == extent
    }

    /// Its extents.
    pub(crate) fn places(self) -> impl Iterator<Item = Place> {
        let end = self.first + u64::from(self.extents);
        (self.first..end).filter_map(move |extent| Place::new(self.disk as usize, extent))
    }
}

/// Extents as runs, neighbours joined.
pub(crate) fn runs_of(mut places: Vec<Place>) -> Vec<Run> {
    places.sort_unstable();
    let mut runs = Vec::new();
    places.into_iter().for_each(|place| push_place(&mut runs, place));
    runs
}

/// The same extents in the order in which they lie, neighbours joined.
pub(crate) fn in_order(runs: &[Run]) -> Vec<Run> {
    let mut sorted = runs.to_vec();
    sorted.sort_unstable();
    let mut joined: Vec<Run> = Vec::new();
    for run in sorted {
        match joined.last_mut().filter(|last| last.is_before(run.disk, run.first)) {
            Some(last) if last.extents.checked_add(run.extents).is_some() => last.extents += run.extents,
            _ => joined.push(run),
        }
    }
    joined
}

/// Appends an extent.
fn push_place(runs: &mut Vec<Run>, place: Place) {
    let disk = u32::try_from(place.disk()).expect("a pool has at most 64 disks");
    match runs.last_mut() {
        Some(run) if run.extents < u32::MAX && run.is_before(disk, place.extent()) => run.extents += 1,
        _ => runs.push(Run { disk, first: place.extent(), extents: 1 }),
    }
}

/// Free extents of all disks of a pool.
#[derive(Clone, Debug, Default)]
pub(crate) struct Space {
    layout: DiskLayout,
    disks: Vec<FreeExtents>,
    /// How many extents of each stretch are taken.
    taken: Vec<u32>,
    stretches: Stretches,
}

/// Free extents of one disk as runs: first extent to count. Neighbouring runs are always joined.
#[derive(Clone, Debug)]
struct FreeExtents {
    total: u64,
    /// False while the disk is missing: nothing is taken from it.
    present: bool,
    runs: BTreeMap<u64, u64>,
    free: u64,
}

impl Space {
    /// The space of a pool without disks.
    pub(crate) fn new(layout: DiskLayout) -> Self {
        Self { layout, ..Self::default() }
    }

    /// Where the next extents come from.
    pub(crate) fn layout(&self) -> DiskLayout {
        self.layout
    }

    /// Adds a disk of that many extents, all free.
    pub(crate) fn add_disk(&mut self, extents: u64, present: bool) {
        let mut runs = BTreeMap::new();
        if extents > 0 {
            runs.insert(0, extents);
        }
        self.disks.push(FreeExtents { total: extents, present, runs, free: extents });
        self.count_anew();
    }

    /// Counts what is taken of each stretch; needed when there are other stretches than before.
    fn count_anew(&mut self) {
        self.stretches = Stretches::of(&self.extents());
        let mut taken = vec![0; self.stretches.count()];
        for (index, disk) in self.disks.iter().enumerate() {
            for (first, extents) in disk.taken_runs() {
                let parts = self.stretches.parts(index, first, extents);
                parts.for_each(|(stretch, _, count)| {
                    taken[stretch] += u32::try_from(count).unwrap_or(u32::MAX)
                });
            }
        }
        self.taken = taken;
    }

    /// Extents of each disk, present or not.
    fn extents(&self) -> Vec<u64> {
        self.disks.iter().map(|disk| disk.total).collect()
    }

    /// Which extents are taken, for a root that lists disks of these extents.
    pub(crate) fn taken_map(&self, extents: &[u64]) -> TakenMap {
        let stretches = Stretches::of(extents);
        if stretches == self.stretches {
            let taken = (0..self.taken.len()).filter(|stretch| self.taken[*stretch] > 0);
            return TakenMap::new(stretches, taken);
        }
        // A disk is just being added, or has just grown.
        let each = self.disks.iter().enumerate();
        let runs =
            each.flat_map(|(index, disk)| disk.taken_runs().map(move |(first, count)| (index, first, count)));
        let taken: Vec<usize> = runs
            .flat_map(|(index, first, count)| {
                stretches.parts(index, first, count).map(|(stretch, ..)| stretch)
            })
            .collect();
        TakenMap::new(stretches, taken.into_iter())
    }

    /// Takes all that is free and may be taken after all: what the map says to be so, or everything if there is none.
    pub(crate) fn withhold(&mut self, map: Option<&TakenMap>) -> Vec<Run> {
        let mut withheld = Vec::new();
        for (index, disk) in self.disks.iter().enumerate() {
            for (&first, &extents) in &disk.runs {
                match map {
                    None => push_runs(&mut withheld, index, first, extents),
                    Some(map) => map
                        .stretches()
                        .parts(index, first, extents)
                        .filter(|(stretch, ..)| map.is_taken(*stretch))
                        .for_each(|(_, first, extents)| push_runs(&mut withheld, index, first, extents)),
                }
            }
        }
        for run in &withheld {
            assert!(
                self.take_range(run.disk as usize, run.first, u64::from(run.extents)),
                "what is free can be taken"
            );
        }
        withheld
    }

    /// Takes a range if all of it is free.
    fn take_range(&mut self, index: usize, first: u64, extents: u64) -> bool {
        let taken = self.disks[index].take(first, extents);
        if taken {
            for (stretch, _, count) in self.stretches.parts(index, first, extents) {
                self.taken[stretch] += u32::try_from(count).unwrap_or(u32::MAX);
            }
        }
        taken
    }

    fn give_range_back(&mut self, index: usize, first: u64, extents: u64) {
        self.disks[index].give_back(first, extents);
        for (stretch, _, count) in self.stretches.parts(index, first, extents) {
            self.taken[stretch] -= u32::try_from(count).unwrap_or(u32::MAX);
        }
    }

    /// Extents of all disks that are present.
    pub(crate) fn total(&self) -> u64 {
        self.disks.iter().filter(|disk| disk.present).map(|disk| disk.total).sum()
    }

    /// Free extents of all disks that are present.
    pub(crate) fn free(&self) -> u64 {
        self.disks.iter().filter(|disk| disk.present).map(|disk| disk.free).sum()
    }

    /// Whether all extents of a run exist.
    #[cfg(test)]
    pub(crate) fn contains(&self, run: &Run) -> bool {
        let end = run.first.checked_add(u64::from(run.extents));
        let disk = self.disks.get(run.disk as usize);
        disk.zip(end).is_some_and(|(disk, end)| end <= disk.total)
    }

    /// Lets the last disk, or one that has grown, have that many extents; further ones are free.
    pub(crate) fn grow_disk(&mut self, index: usize, extents: u64) {
        let disk = &mut self.disks[index];
        let more = extents - disk.total;
        if more > 0 {
            let first = disk.total;
            disk.total = extents;
            disk.give_back(first, more);
            self.count_anew();
        }
    }

    /// Takes this very extent; false if it is taken already, or does not exist.
    pub(crate) fn take(&mut self, place: Place) -> bool {
        let exists = self.disks.get(place.disk()).is_some_and(|disk| place.extent() < disk.total);
        exists && self.take_range(place.disk(), place.extent(), 1)
    }

    /// Takes any extent; with stripes from the disk whose turn it is.
    pub(crate) fn allocate_one(&mut self, turn: u64) -> Option<Place> {
        let index = self.disk_of(turn)?;
        let first = *self.disks[index].runs.first_key_value()?.0;
        assert!(self.take_range(index, first, 1), "what is free can be taken");
        Place::new(index, first)
    }

    /// Which disk the next extent comes from; `None` if no disk has any.
    fn disk_of(&self, turn: u64) -> Option<usize> {
        let mut having = self.disks.iter().enumerate().filter(|(_, disk)| disk.present && disk.free > 0);
        let at = match self.layout {
            DiskLayout::Concatenated => 0,
            DiskLayout::Striped => turn.checked_rem(having.clone().count() as u64)?,
        };
        having.nth(usize::try_from(at).ok()?).map(|(index, _)| index)
    }

    /// Whether it may be given to anybody.
    pub(crate) fn is_free(&self, place: Place) -> bool {
        let run =
            self.disks.get(place.disk()).and_then(|disk| disk.runs.range(..=place.extent()).next_back());
        run.is_some_and(|(first, count)| place.extent() < first + count)
    }

    /// Gives an extent back.
    pub(crate) fn give_back(&mut self, place: Place) {
        self.give_range_back(place.disk(), place.extent(), 1);
    }

    /// Free runs of all disks that are present: how scattered the free space is.
    pub(crate) fn free_runs(&self) -> usize {
        self.disks.iter().filter(|disk| disk.present).map(|disk| disk.runs.len()).sum()
    }

    /// Takes exactly these runs, all or none.
    ///
    /// # Errors
    /// [`DamageReason::OutOfRange`] or [`DamageReason::Overlap`] with what is taken already.
    #[cfg(test)]
    pub(crate) fn claim(&mut self, runs: &[Run]) -> Result<(), DamageReason> {
        if !runs.iter().all(|run| self.contains(run)) {
            return Err(DamageReason::OutOfRange);
        }
        for (index, run) in runs.iter().enumerate() {
            if !self.take_range(run.disk as usize, run.first, u64::from(run.extents)) {
                self.release(&runs[..index]);
                return Err(DamageReason::Overlap);
            }
        }
        Ok(())
    }

    /// Takes `extents` extents: one run if there is one that is long enough, otherwise as few as first fit gives; with stripes one
    /// from each disk in turn, beginning with that one. `None`, and nothing taken, if there are not that many.
    pub(crate) fn allocate(&mut self, extents: u64, turn: u64) -> Option<Vec<Run>> {
        if extents > self.free() {
            return None;
        }
        let mut runs: Vec<Run> = Vec::new();
        if self.layout == DiskLayout::Striped {
            for turn in (0..extents).map(|extent| turn.wrapping_add(extent)) {
                let place = self.allocate_one(turn).expect("as many are free as were counted");
                push_place(&mut runs, place);
            }
            return Some(runs);
        }
        let present: Vec<usize> = (0..self.disks.len()).filter(|index| self.disks[*index].present).collect();
        let fits = |index: &usize| Some((*index, self.disks[*index].first_fit(extents)?));
        if let Some((index, first)) = present.iter().find_map(fits) {
            push_runs(&mut runs, index, first, extents);
            assert!(self.take_range(index, first, extents), "what is free can be taken");
            return Some(runs);
        }
        let mut missing = extents;
        for index in present {
            while missing > 0
                && let Some((&first, &count)) = self.disks[index].runs.first_key_value()
            {
                let taken = count.min(missing);
                push_runs(&mut runs, index, first, taken);
                assert!(self.take_range(index, first, taken), "what is free can be taken");
                missing -= taken;
            }
        }
        assert_eq!(missing, 0, "as many were free as counted");
        Some(runs)
    }

    /// Gives runs back.
    pub(crate) fn release(&mut self, runs: &[Run]) {
        for run in runs {
            self.give_range_back(run.disk as usize, run.first, u64::from(run.extents));
        }
    }
}

/// Appends a range as runs, whose length is 32 bits.
fn push_runs(runs: &mut Vec<Run>, disk: usize, mut first: u64, mut extents: u64) {
    let disk = u32::try_from(disk).expect("a pool has at most 64 disks");
    while extents > 0 {
        let count = u32::try_from(extents).unwrap_or(u32::MAX);
        runs.push(Run { disk, first, extents: count });
        first += u64::from(count);
        extents -= u64::from(count);
    }
}

impl FreeExtents {
    /// What lies between the free runs: first extents and counts.
    fn taken_runs(&self) -> impl Iterator<Item = (u64, u64)> {
        let starts = std::iter::once(0).chain(self.runs.iter().map(|(first, count)| first + count));
        let ends = self.runs.keys().copied().chain(std::iter::once(self.total));
        starts.zip(ends).filter(|(start, end)| start < end).map(|(start, end)| (start, end - start))
    }

    fn first_fit(&self, extents: u64) -> Option<u64> {
        self.runs.iter().find(|(_, count)| **count >= extents).map(|(first, _)| *first)
    }

    /// Takes a range out of the free run that holds all of it; false if there is none.
    fn take(&mut self, first: u64, extents: u64) -> bool {
        let Some((&run, &count)) = self.runs.range(..=first).next_back() else {
            return false;
        };
        let (end, run_end) = (first + extents, run + count);
        if end > run_end {
            return false;
        }
        self.runs.remove(&run);
        if run < first {
            self.runs.insert(run, first - run);
        }
        if end < run_end {
            self.runs.insert(end, run_end - end);
        }
        self.free -= extents;
        true
    }

    fn give_back(&mut self, first: u64, extents: u64) {
        let (mut start, mut end) = (first, first + extents);
        assert!(end <= self.total, "only extents that exist are given back");
        if let Some((&run, &count)) = self.runs.range(..=first).next_back() {
            assert!(run + count <= first, "an extent is given back once");
            if run + count == first {
                start = run;
            }
        }
        if let Some((&run, &count)) = self.runs.range(first..).next() {
            assert!(end <= run, "an extent is given back once");
            if run == end {
                self.runs.remove(&run);
                end = run + count;
            }
        }
        self.runs.insert(start, end - start);
        self.free += extents;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ops::Range;

    use proptest::prelude::*;

    use super::*;

    fn run(disk: u32, first: u64, extents: u32) -> Run {
        Run { disk, first, extents }
    }

    fn two_disks() -> Space {
        let mut space = Space::default();
        space.add_disk(10, true);
        space.add_disk(6, true);
        space
    }

    #[test]
    fn one_run_is_preferred_to_several() {
        let mut space = two_disks();
        assert_eq!(space.allocate(7, 0), Some(vec![run(0, 0, 7)]));
        assert_eq!(space.allocate(5, 0), Some(vec![run(1, 0, 5)]));
        assert_eq!(space.allocate(4, 0), Some(vec![run(0, 7, 3), run(1, 5, 1)]));
        assert_eq!(space.free(), 0);
        assert_eq!(space.allocate(1, 0), None);
    }

    #[test]
    fn stripes_take_from_the_disks_in_turn() {
        let mut space = Space::new(DiskLayout::Striped);
        for extents in [2, 5, 3] {
            space.add_disk(extents, true);
        }
        let runs = [run(1, 0, 1), run(2, 0, 1), run(0, 0, 1), run(1, 1, 1)];
        assert_eq!(space.allocate(4, 1), Some(runs.to_vec()));
        assert_eq!(in_order(&runs), [run(0, 0, 1), run(1, 0, 2), run(2, 0, 1)]);
        let place = |disk, extent| Place::new(disk, extent);
        assert_eq!(space.allocate_one(3), place(0, 1));
        // The first disk is full: the others go on in turn, and the last one alone to its end.
        assert_eq!(space.allocate_one(3), place(2, 1));
        assert_eq!(space.allocate(4, 3), Some(vec![run(2, 2, 1), run(1, 2, 3)]));
        assert_eq!((space.allocate_one(9), space.allocate(1, 0)), (None, None));
        // One disk is one run.
        let mut alone = Space::new(DiskLayout::Striped);
        alone.add_disk(8, true);
        assert_eq!(alone.allocate(8, 5), Some(vec![run(0, 0, 8)]));
    }

    #[test]
    fn claims_are_checked_and_atomic() {
        let mut space = two_disks();
        assert_eq!(space.claim(&[run(0, 0, 4), run(1, 2, 2)]), Ok(()));
        assert_eq!(space.claim(&[run(0, 4, 2), run(0, 3, 1)]), Err(DamageReason::Overlap));
        assert_eq!(space.claim(&[run(0, 9, 2)]), Err(DamageReason::OutOfRange));
        assert_eq!(space.claim(&[run(2, 0, 1)]), Err(DamageReason::OutOfRange));
        assert_eq!(space.claim(&[run(1, u64::MAX, 1)]), Err(DamageReason::OutOfRange));
        assert_eq!(space.free(), 16 - 6);
    }

    #[test]
    fn a_missing_disk_gives_nothing() {
        let mut space = Space::default();
        space.add_disk(4, true);
        space.add_disk(100, false);
        assert_eq!((space.total(), space.free()), (4, 4));
        assert_eq!(space.allocate(5, 0), None);
        assert_eq!(space.claim(&[run(1, 50, 10)]), Ok(()));
        assert_eq!(space.free(), 4);
    }

    #[test]
    fn what_may_be_taken_is_withheld_and_comes_back() {
        let mut before = two_disks();
        before.claim(&[run(0, 2, 3), run(1, 5, 1)]).unwrap();
        let map = before.taken_map(&[10, 6]);
        // One of those extents is known to be a volume's.
        let mut space = two_disks();
        assert!(space.take(Place::new(0, 3).unwrap()));
        let withheld = space.withhold(Some(&map));
        assert_eq!(withheld, [run(0, 2, 1), run(0, 4, 1), run(1, 5, 1)]);
        assert_eq!((space.free(), space.taken_map(&[10, 6])), (12, map));
        let free = |extents: Range<u64>| extents.map(|extent| space.is_free(Place::new(0, extent).unwrap()));
        assert_eq!(free(1..6).collect::<Vec<_>>(), [true, false, false, false, true]);
        space.release(&withheld);
        assert_eq!(space.free(), 15);
        assert_eq!(space.withhold(None), [run(0, 0, 3), run(0, 4, 6), run(1, 0, 6)]);
        assert_eq!(space.free(), 0);
        space.grow_disk(1, 8);
        assert_eq!(space.allocate(2, 0), Some(vec![run(1, 6, 2)]));
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_extents(
            steps in prop::collection::vec((any::<bool>(), 1u64..9), 1..60),
            layout in prop_oneof![Just(DiskLayout::Concatenated), Just(DiskLayout::Striped)],
        ) {
            let mut space = Space { layout, ..two_disks() };
            let mut free: BTreeSet<(u32, u64)> = (0..10).map(|e| (0, e)).chain((0..6).map(|e| (1, e))).collect();
            let mut held: Vec<Vec<Run>> = Vec::new();
            let each = |runs: &[Run]| -> Vec<(u32, u64)> {
                runs.iter().flat_map(|r| (r.first..r.first + u64::from(r.extents)).map(|e| (r.disk, e))).collect()
            };
            for (take, amount) in steps {
                if take {
                    match space.allocate(amount, amount) {
                        Some(runs) => {
                            let extents = each(&runs);
                            prop_assert_eq!(extents.len() as u64, amount);
                            prop_assert!(extents.iter().all(|extent| free.remove(extent)));
                            held.push(runs);
                        }
                        None => prop_assert!((free.len() as u64) < amount),
                    }
                } else if !held.is_empty() {
                    let runs = held.swap_remove(usize::try_from(amount).unwrap() % held.len());
                    prop_assert!(each(&runs).into_iter().all(|extent| free.insert(extent)));
                    space.release(&runs);
                }
                prop_assert_eq!(space.free(), free.len() as u64);
                for sizes in [[10, 6], [20_000, 6]] {
                    let map = space.taken_map(&sizes);
                    for (disk, extent) in (0..10).map(|e| (0, e)).chain((0..6).map(|e| (1, e))) {
                        let taken = !free.contains(&(disk, extent));
                        let place = Place::new(disk as usize, extent).unwrap();
                        prop_assert!(!taken || map.may_hold(place));
                        prop_assert!(taken || sizes[0] > 10 || !map.may_hold(place), "small pools are exact");
                    }
                }
            }
        }
    }
}
