//! How many leaves of live maps name each extent, and extents that none names any more but that may not be used again yet.

use std::collections::{BTreeMap, VecDeque};

use basalt_clock::planted;

use crate::gates::Gates;
use crate::layout::Place;
use crate::tree::Counts;

/// Counters that come and go together.
const CHUNK: usize = 1024;

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Refs {
    /// By disk and extent.
    counts: Vec<Vec<Option<Box<Chunk>>>>,
    /// Extents whose last reference went since this was last taken.
    freed: Vec<Place>,
    /// Extents that lost a reference, and not the last one, since that was last noted.
    unshared: Vec<Place>,
    /// Extents that lost a reference by a change that was not durable: after a power failure somebody may share them again.
    unsettled: BTreeMap<Place, u64>,
}

#[derive(Debug)]
struct Chunk {
    counts: [u32; CHUNK],
    used: usize,
}

impl Refs {
    /// How many leaves name an extent.
    pub(crate) fn get(&self, place: Place) -> u32 {
        let (chunk, at) = position(place);
        let chunks = self.counts.get(place.disk());
        chunks.and_then(|chunks| chunks.get(chunk)?.as_deref()).map_or(0, |chunk| chunk.counts[at])
    }

    /// Whether one leaf alone names an extent, and will after a power failure: only then may it be overwritten in place.
    pub(crate) fn is_sole(&self, place: Place) -> bool {
        self.get(place) == 1
            && (!self.unsettled.contains_key(&place) || planted!("lvol-unshared-before-commit"))
    }

    /// Notes that the references that went since the last call went with this change, or with one before it.
    pub(crate) fn note_unshared(&mut self, change: u64) {
        for place in self.unshared.drain(..) {
            self.unsettled.insert(place, change);
        }
    }

    /// All changes up to this one are durable.
    pub(crate) fn settle(&mut self, durable: u64) {
        self.unsettled.retain(|_, change| *change > durable);
    }

    /// Whether an extent may count as one leaf's alone once changes are durable.
    pub(crate) fn any_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Takes the extents that nothing names any more.
    pub(crate) fn take_freed(&mut self) -> Vec<Place> {
        // What was freed and named again in one step is not free.
        let freed = std::mem::take(&mut self.freed);
        freed.into_iter().filter(|place| self.get(*place) == 0).collect()
    }
}

fn position(place: Place) -> (usize, usize) {
    let extent = usize::try_from(place.extent()).unwrap_or(usize::MAX);
    (extent / CHUNK, extent % CHUNK)
}

impl Counts for Refs {
    fn reference(&mut self, place: Place) {
        let (chunk, at) = position(place);
        if self.counts.len() <= place.disk() {
            self.counts.resize_with(place.disk() + 1, Vec::new);
        }
        let chunks = &mut self.counts[place.disk()];
        if chunks.len() <= chunk {
            chunks.resize_with(chunk + 1, || None);
        }
        let chunk = chunks[chunk].get_or_insert_with(|| Box::new(Chunk { counts: [0; CHUNK], used: 0 }));
        chunk.used += usize::from(chunk.counts[at] == 0);
        chunk.counts[at] += 1;
    }

    fn unreference(&mut self, place: Place) {
        let (index, at) = position(place);
        let slot = self.counts.get_mut(place.disk()).and_then(|chunks| chunks.get_mut(index));
        let slot = slot.expect("what is unreferenced was referenced");
        let chunk = slot.as_mut().expect("what is unreferenced was referenced");
        chunk.counts[at] = chunk.counts[at].checked_sub(1).expect("what is unreferenced was referenced");
        if chunk.counts[at] == 0 {
            chunk.used -= 1;
            if chunk.used == 0 {
                *slot = None;
            }
            self.freed.push(place);
        } else {
            self.unshared.push(place);
        }
    }
}

/// Extents that nothing names any more, in the order in which that happened.
#[derive(Debug, Default)]
pub(crate) struct Limbo {
    waiting: VecDeque<Freed>,
}

#[derive(Clone, Copy, Debug)]
struct Freed {
    place: Place,
    /// Requests that began before it may still go there.
    epoch: u64,
    /// Until this change is durable, a power failure brings the old reference back.
    change: u64,
}

impl Limbo {
    /// Notes extents that the map change with this number has freed.
    pub(crate) fn push(&mut self, places: Vec<Place>, epoch: u64, change: u64) {
        self.waiting.extend(places.into_iter().map(|place| Freed { place, epoch, change }));
    }

    /// Takes those that may be used again.
    pub(crate) fn take(&mut self, gates: &Gates, durable: u64) -> Vec<Place> {
        let mut ready = Vec::new();
        while let Some(freed) = self.waiting.front() {
            if freed.change > durable || !gates.passed(freed.epoch) {
                break;
            }
            ready.push(freed.place);
            self.waiting.pop_front();
        }
        ready
    }

    /// The change that freed the last one; 0 if there is none.
    pub(crate) fn newest(&self) -> u64 {
        self.waiting.back().map_or(0, |freed| freed.change)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_last_reference_frees() {
        let mut refs = Refs::default();
        let place = |extent| Place::new(1, extent).unwrap();
        refs.reference(place(5000));
        refs.reference(place(5000));
        refs.reference(place(1));
        refs.unreference(place(5000));
        assert_eq!((refs.get(place(5000)), refs.take_freed()), (1, vec![]));
        refs.unreference(place(5000));
        refs.unreference(place(1));
        refs.reference(place(1));
        assert_eq!(refs.take_freed(), [place(5000)]);
        assert_eq!((refs.get(place(1)), refs.get(place(9))), (1, 0));
    }

    #[test]
    fn what_was_shared_is_sole_when_that_is_durable() {
        let mut refs = Refs::default();
        let place = Place::new(0, 7).unwrap();
        refs.reference(place);
        assert!(refs.is_sole(place));
        refs.reference(place);
        assert!(!refs.is_sole(place));
        refs.unreference(place);
        refs.note_unshared(5);
        assert!(!refs.is_sole(place));
        refs.settle(4);
        assert!(!refs.is_sole(place));
        refs.settle(5);
        assert!(refs.is_sole(place));
    }

    #[test]
    fn an_extent_waits_for_requests_and_for_the_disk() {
        let gates = Arc::new(Gates::default());
        let mut gate = gates.open();
        let mut limbo = Limbo::default();
        let entered = gate.enter();
        let place = Place::new(0, 3).unwrap();
        limbo.push(vec![place], gates.advance(), 7);
        assert_eq!(limbo.take(&gates, 7), []);
        gate.leave(entered);
        assert_eq!(limbo.take(&gates, 6), []);
        assert_eq!(limbo.take(&gates, 7), [place]);
        assert_eq!(limbo.len(), 0);
    }
}
