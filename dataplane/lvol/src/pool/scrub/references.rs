//! Whether the maps in memory, the counts of references and the free space agree, and no extent has two owners.

use super::{Run, ScrubError};
use crate::id::VolumeId;
use crate::layout::{DiskRecord, LEAF_EXTENTS, PAGE_BYTES, Pieces, Place};
use crate::pool::inspect::Remedy;
use crate::pool::{State, Volume};
use crate::space::Run as Extents;

/// Marks that come and go together.
const CHUNK: usize = 1024;

/// Whose an extent was found to be: a mark for each that was come across since the run began, and was not given back since.
#[derive(Debug, Default)]
pub(in crate::pool) struct Marks {
    /// By disk and extent; 0: none.
    marks: Vec<Vec<Option<Box<[u32; CHUNK]>>>>,
}

fn position(extent: u64) -> (usize, usize) {
    let extent = usize::try_from(extent).unwrap_or(usize::MAX);
    (extent / CHUNK, extent % CHUNK)
}

/// The mark of an extent of a family's volumes (FNV-1a); never 0. That two have the same is unlikely and hides something wrong at most.
fn mark_of(family: VolumeId, extent: u64) -> u32 {
    let bytes = family.to_bytes().into_iter().chain(extent.to_le_bytes());
    bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)) | 1
}

impl Marks {
    /// Notes whose an extent is; false if it was somebody else's.
    fn note(&mut self, place: Place, mark: u32) -> bool {
        let (chunk, at) = position(place.extent());
        if self.marks.len() <= place.disk() {
            self.marks.resize_with(place.disk() + 1, Vec::new);
        }
        let chunks = &mut self.marks[place.disk()];
        if chunks.len() <= chunk {
            chunks.resize_with(chunk + 1, || None);
        }
        let marks = chunks[chunk].get_or_insert_with(|| Box::new([0; CHUNK]));
        let known = std::mem::replace(&mut marks[at], mark);
        known == 0 || known == mark
    }

    /// Extents were given back: they may be anybody's from now on.
    pub(in crate::pool) fn forget(&mut self, run: &Extents) {
        for place in run.places() {
            let (chunk, at) = position(place.extent());
            let chunks = self.marks.get_mut(place.disk()).and_then(|chunks| chunks.get_mut(chunk));
            if let Some(marks) = chunks.and_then(Option::as_mut) {
                marks[at] = 0;
            }
        }
    }
}

impl Run {
    /// Looks at the maps of all volumes, one leaf after the other; each as it is at that moment.
    pub(super) async fn references(&mut self) -> Result<(), ScrubError> {
        let ids: Vec<VolumeId> = {
            let pool = self.pool()?;
            let mut state = pool.state.borrow_mut();
            state.marks = Some(Marks::default());
            state.volumes.keys().copied().collect()
        };
        for id in ids {
            let mut extent = 0;
            while let Some(next) = self.leaf_references(id, extent)? {
                extent = next;
                self.pace.spent(PAGE_BYTES as u64).await;
            }
        }
        Ok(())
    }

    /// Looks at the first leaf at or behind an extent of a volume; where to go on.
    fn leaf_references(&mut self, id: VolumeId, extent: u64) -> Result<Option<u64>, ScrubError> {
        let pool = self.pool()?;
        let mut state = pool.state.borrow_mut();
        let Some((first, wrong)) = state.look_at_leaf(id, extent, &pool.records.borrow()) else {
            return Ok(None);
        };
        drop(state);
        for (extent, what) in wrong {
            let explanation = format!(
                "extent {extent} of its map {what}: the pool's memory contradicts itself; copy the volume's data elsewhere, stop the \
                 daemon and check the pool's disks"
            );
            self.found(format!("volume {id}"), explanation, Remedy::ByHand);
        }
        Ok(Some(first + LEAF_EXTENTS as u64))
    }
}

impl State {
    /// What is wrong with the first leaf at or behind an extent of a volume, by extent; `None` if there is no further leaf.
    fn look_at_leaf(
        &mut self,
        id: VolumeId,
        extent: u64,
        records: &[DiskRecord],
    ) -> Option<(u64, Vec<(u64, &'static str)>)> {
        let Self { volumes, marks, refs, space, .. } = self;
        let (Some(Volume::Ready(data) | Volume::Isolated(data, _)), Some(marks)) = (volumes.get(&id), marks)
        else {
            return None;
        };
        let (first, leaf) = data.tree.leaf_from(extent)?;
        let mut wrong = Vec::new();
        let mut look = |extent: u64, pieces: &Pieces| {
            for place in pieces.places() {
                let exists = records.get(place.disk()).is_some_and(|disk| place.extent() < disk.extents);
                let what = match exists {
                    false => "names an extent that does not exist",
                    true if space.is_free(place) => "names an extent that counts as free",
                    true if refs.get(place) == 0 => "names an extent that counts as unused",
                    true if !marks.note(place, mark_of(data.record.family, extent)) => {
                        "names an extent that another volume has as well"
                    }
                    true => continue,
                };
                wrong.push((extent, what));
            }
        };
        leaf.mapped().for_each(|(index, pieces)| look(first + index as u64, &pieces));
        Some((first, wrong))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_noticed_until_an_extent_is_given_back() {
        let mut marks = Marks::default();
        let [one, other] = [1, 2].map(|id| VolumeId(uuid::Uuid::from_u128(id)));
        let place = Place::new(3, 5000).unwrap();
        assert!(marks.note(place, mark_of(one, 7)));
        assert!(marks.note(place, mark_of(one, 7)), "a snapshot has it as well");
        assert!(!marks.note(place, mark_of(one, 8)));
        assert!(!marks.note(place, mark_of(other, 8)));
        marks.forget(&Extents { disk: 3, first: 4990, extents: 11 });
        assert!(marks.note(place, mark_of(other, 7)));
        marks.forget(&Extents { disk: 9, first: 0, extents: 3 });
    }
}
