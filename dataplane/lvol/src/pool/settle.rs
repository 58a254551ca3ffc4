//! What follows when a creation or deletion is durable, also when that comes late.

use std::rc::Rc;
use std::time::Duration;

use basalt_clock::mark;
use futures::future::{join_all, select};

use super::{Inner, Volume};
use crate::id::VolumeId;

/// How long it is waited for what is under way on volumes that are gone.
const SETTLE_MAX: Duration = Duration::from_millis(500);

impl Inner {
    /// A volume whose deletion is durable is forgotten. Nothing happens if that was done already.
    pub(super) fn forget(&self, id: VolumeId) {
        {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            if !matches!(state.volumes.get(&id), Some(Volume::Deleting(_))) {
                return;
            }
            if let Some(Volume::Deleting(Some(data))) = state.volumes.remove(&id) {
                mark!("lvol-space-released");
                data.tree.release(&mut state.refs);
            }
            if state.damaged().is_none() {
                // No map that the disk holds is unknown any more.
                let withheld = std::mem::take(&mut state.withheld);
                state.space.release(&withheld);
            }
        }
        self.note_freed();
    }

    /// All that is in memory is durable: what was cut off by a failure has happened.
    ///
    /// What was deleted is forgotten when nothing is under way there any more. A request may hang on its disk, so that is not waited for
    /// long.
    pub(super) async fn settle(self: &Rc<Self>) {
        let (mut created, mut deleted) = (Vec::new(), Vec::new());
        for (id, volume) in &self.state.borrow().volumes {
            match volume {
                Volume::Committing(_) => created.push(*id),
                Volume::Deleting(_) => deleted.push(*id),
                _ => {}
            }
        }
        for id in created {
            // It is there, and so there is nothing that could fail.
            drop(self.take_into_service(id));
        }
        let forgotten = deleted.into_iter().map(|id| {
            let inner = Rc::clone(self);
            self.handle.spawn(async move {
                inner.quiesce(id).await;
                inner.forget(id);
                inner.reclaim().await;
            })
        });
        // Those that are not waited for go on.
        select(join_all(forgotten), self.handle.sleep(SETTLE_MAX)).await;
        self.reclaim().await;
    }
}
