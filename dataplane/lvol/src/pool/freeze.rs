//! Waiting until nothing is under way any more: before a snapshot, a deletion, a new epoch, and before space is used again.

use std::rc::Rc;
use std::time::Duration;

use basalt_clock::{mark, planted};

use super::Inner;
use super::starving::UnderWay;
use crate::id::VolumeId;
use crate::layout::Place;
use crate::space::{Run, runs_of};

/// Time until the first look whether what is waited for has ended; doubles up to the second.
const LOOK_MIN: Duration = Duration::from_micros(5);
const LOOK_MAX: Duration = Duration::from_millis(1);
/// How often a reclamation looks before it leaves the rest for later.
const RECLAIM_LOOKS: u32 = 12;

impl Inner {
    /// Waits until no request is under way that looked at a map before this call, in any volume.
    pub(super) async fn grace(&self) {
        let epoch = self.shared.gates.advance();
        let mut interval = LOOK_MIN;
        while !self.shared.gates.passed(epoch) {
            self.handle.sleep(interval).await;
            interval = (2 * interval).min(LOOK_MAX);
        }
    }

    /// Waits until the volume has no grant out and no request that looked at its map before. New grants are not held off.
    pub(super) async fn quiesce(&self, id: VolumeId) {
        self.grace().await;
        let granted = |id| {
            let state = self.state.borrow();
            state.volumes.get(&id).and_then(|volume| volume.data()).is_some_and(|data| data.granted > 0)
        };
        let mut interval = LOOK_MIN;
        while granted(id) {
            self.handle.sleep(interval).await;
            interval = (2 * interval).min(LOOK_MAX);
        }
    }

    /// Looks after extents that the last change of a map has taken references from: those that nothing names any more wait for
    /// their next use, the others until they count as one volume's own.
    pub(super) fn note_freed(&self) {
        let mut state = self.state.borrow_mut();
        let change = state.map_changes;
        state.refs.note_unshared(change);
        let freed = state.refs.take_freed();
        if freed.is_empty() {
            return;
        }
        if planted!("lvol-extent-freed-before-commit") {
            freed.into_iter().for_each(|place| state.space.give_back(place));
            return;
        }
        // Also where a deletion, which is durable, released them: another volume's last reference may have gone meanwhile, and
        // that change may not be durable.
        let epoch = self.shared.gates.advance();
        state.limbo.push(freed, epoch, change);
    }

    /// Gives back what may be used again; waits a little for requests that are in the way. What they still hold up is looked for
    /// again when somebody waits for space, with the next checkpoint, and when the pool is tidied.
    pub(super) async fn reclaim(&self) {
        let mut interval = LOOK_MIN;
        for _ in 0..RECLAIM_LOOKS {
            if self.reclaim_ready().await == 0 {
                return;
            }
            self.handle.sleep(interval).await;
            interval = (2 * interval).min(LOOK_MAX);
        }
        mark!("lvol-reclaim-later");
    }

    /// Gives back what may be used again now; how many extents may not yet.
    pub(super) async fn reclaim_ready(&self) -> usize {
        let (ready, left) = {
            let mut state = self.state.borrow_mut();
            let durable = state.map_durable;
            let ready = state.limbo.take(&self.shared.gates, durable);
            (ready, state.limbo.len())
        };
        self.give_back(ready).await;
        left
    }

    /// Gives extents back to their disks, then to the pool. A disk that cannot take them is not at fault.
    async fn give_back(&self, places: Vec<Place>) {
        let _returning = UnderWay::begin(&self.returning);
        for run in runs_of(places) {
            if let Some((disk, offset, bytes)) = self.locate(&run)
                && disk.unmap(offset, bytes).await.is_err()
            {
                self.unmap_failures.set(self.unmap_failures.get() + 1);
            }
            let mut state = self.state.borrow_mut();
            state.space.release(&[run]);
            if let Some(marks) = &mut state.marks {
                marks.forget(&run);
            }
        }
    }

    /// Where a run lies; `None` if its disk is missing.
    pub(super) fn locate(&self, run: &Run) -> Option<(Rc<crate::disk::DiskIo>, u64, u64)> {
        let index = run.disk as usize;
        let disk = self.disk(index)?;
        let extent_bytes = self.shared.extent_bytes;
        let offset = self.records.borrow()[index].data_offset + run.first * extent_bytes;
        Some((disk, offset, u64::from(run.extents) * extent_bytes))
    }
}
