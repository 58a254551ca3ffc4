//! Openings: by their count a disk is told from a copy of it that was made before, such as one of a backup that is put in its place.
//! A pool of one disk has nothing to compare.
//!
//! The root counts the openings, and says of each member at which it was there last. So does the member itself. The root is written first
//! with the new count, then the members, then the root once more with what they say. docs/disk-format.md, "Openings".

use basalt_clock::{mark, planted};

use super::Inner;
use super::found::FoundDisk;
use crate::error::DiskRefusal;
use crate::layout::{Root, Superblock};

/// Refuses a disk that is older than the others say.
pub(super) fn check_current(present: &[Option<FoundDisk>], root: &Root) -> Result<(), DiskRefusal> {
    // An older program wrote the root and counted nothing.
    if root.openings == 0 || planted!("lvol-old-copy-believed") {
        return Ok(());
    }
    for (disk, record) in present.iter().zip(&root.disks).skip(1) {
        let Some(disk) = disk else { continue };
        let opening = disk.superblock.opening;
        // It has not been there since the openings are counted, or an older program wrote the root in between.
        if record.opening == 0 {
            continue;
        }
        if opening < record.opening {
            mark!("lvol-old-copy-refused");
            return Err(DiskRefusal::Outdated {
                disk: disk.io.name.clone(),
                opening,
                expected: record.opening,
            });
        }
        if opening > root.openings
            && let Some(lead) = &present[0]
        {
            mark!("lvol-old-lead-refused");
            let (disk, expected) = (lead.io.name.clone(), opening);
            return Err(DiskRefusal::Outdated { disk, opening: root.openings, expected });
        }
    }
    Ok(())
}

impl Inner {
    /// Counts one more opening in memory, if there is a member that could be told apart by that.
    pub(super) fn begin_opening(&self) -> bool {
        let known = self.records.borrow().iter().map(|record| record.opening).max();
        let counts = self.disks.borrow().iter().skip(1).any(Option::is_some);
        if counts {
            let mut state = self.state.borrow_mut();
            state.openings = state.openings.max(known.unwrap_or(0)).saturating_add(1);
        }
        counts
    }

    /// Lets the members say that they are there, then the root that they are. A disk that cannot be written stays as it is known.
    pub(super) async fn note_opening(&self) {
        let opening = self.state.borrow().openings;
        let members = self.disks.borrow().clone();
        for (index, disk) in members.iter().enumerate().skip(1) {
            let Some(disk) = disk else { continue };
            let Ok(Ok(found)) = disk.read_superblock().await else { continue };
            let sequence = found.sequence + 1;
            if disk.write_superblock(&Superblock { opening, sequence, ..found }).await.is_ok() {
                self.records.borrow_mut()[index].opening = opening;
            }
        }
        // If this fails the pool is read-only, which its health says; the disks may say more than the root then.
        if self.checkpoint().await.is_err() {
            mark!("lvol-catch-up-failed");
        }
    }
}
