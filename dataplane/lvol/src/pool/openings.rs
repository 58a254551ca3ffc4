//! Openings: by their count a disk is told from a copy of it that was made before, such as one of a backup that is put in its place.
//! A pool of one disk has nothing to compare: what its node remembers tells it.
//!
//! The root counts the openings, and says of each member at which it was there last. So does the member itself. The root is written first
//! with the new count, then the members, then the root once more with what they say. docs/disk-format.md, "Openings".

use basalt_clock::{mark, planted};

use super::found::FoundDisk;
use super::{Inner, Pool};
use crate::error::DiskRefusal;
use crate::layout::{DiskRecord, Root, Superblock};

/// Leaves out members that are older than the root says, as if they were missing; a root that is older than a member is refused.
/// Answers what is to be said of those that are left out.
pub(super) fn leave_out_old(
    present: &mut [Option<FoundDisk>],
    root: &Root,
) -> Result<Vec<DiskRefusal>, DiskRefusal> {
    let mut left_out = Vec::new();
    if root.openings == 0 || planted!("lvol-old-copy-believed") {
        return Ok(left_out);
    }
    let lead = present[0].as_ref().map(|lead| lead.io.name.clone());
    for (disk, record) in present.iter_mut().zip(&root.disks).skip(1) {
        let Some((name, opening)) = disk.as_ref().map(|disk| (disk.io.name.clone(), disk.superblock.opening))
        else {
            continue;
        };
        if is_old(opening, record) {
            mark!("lvol-old-copy-left-out");
            left_out.push(DiskRefusal::Outdated { disk: name, opening, expected: record.opening });
            *disk = None;
        } else if record.opening != 0
            && opening > root.openings
            && let Some(disk) = &lead
        {
            mark!("lvol-old-lead-refused");
            let (disk, expected) = (disk.clone(), opening);
            return Err(DiskRefusal::Outdated { disk, opening: root.openings, expected });
        }
    }
    Ok(left_out)
}

/// Whether a member that knows this opening is an old copy of the one that the root knows. Nothing is known of one that was not there since
/// openings are counted, or of which an older program wrote the root in between.
fn is_old(opening: u32, record: &DiskRecord) -> bool {
    record.opening != 0 && opening < record.opening
}

impl Pool {
    /// Why a disk that says that it is of this pool is not the one that the pool knows, if it is an old copy of it.
    #[must_use]
    pub fn outdated(&self, name: &str, found: &Superblock) -> Option<DiskRefusal> {
        let records = self.inner.records.borrow();
        let record = records.iter().find(|record| record.id == found.disk)?;
        let (disk, opening, expected) = (name.to_owned(), found.opening, record.opening);
        is_old(opening, record).then_some(DiskRefusal::Outdated { disk, opening, expected })
    }
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
