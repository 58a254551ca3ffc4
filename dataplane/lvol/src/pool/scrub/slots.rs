//! The superblocks: both slots of each disk.

use std::fmt;

use super::{Run, ScrubError};
use crate::disk::{DiskContent, DiskIo};
use crate::error::DiskFault;
use crate::layout::{DiskGeometry, PAGE_BYTES, Role, Superblock, SuperblockError};
use crate::pool::Inner;
use crate::pool::grow::Growing;
use crate::pool::inspect::Remedy;

/// What stands in a slot.
type Slot = Result<Superblock, SuperblockError>;

/// Of a member that was added and has not grown since. Where its slots are written from memory none of them is to be had, so that no other
/// number counts, and what follows counts on from here.
const MEMBER_SEQUENCE: u64 = 2;

impl Run {
    /// Both slots of the lead say what was written last.
    pub(super) async fn lead(&mut self) -> Result<(), ScrubError> {
        let pool = self.pool()?;
        let lead = pool.lead();
        let (written, slots, taken) = {
            // No checkpoint writes them meanwhile; two pages are quickly read.
            let _quiet = pool.committing.take().await;
            pool.may_be_scrubbed()?;
            let written = pool.state.borrow().superblock.clone();
            let slots = [lead.read_slot(0).await?, lead.read_slot(1).await?];
            let taken = taken(&lead, &slots, &written).await?;
            (written, slots, taken)
        };
        drop(pool);
        match taken {
            Some(what) => {
                let words = format!(
                    "{what}: somebody else has written to a disk that the pool runs on. An import would refuse it until the pool's next \
                     change is written, with which its superblocks are; what else was written over is not known"
                );
                self.found(&lead.name, words, Remedy::ByHand);
            }
            None => self.lead_slots(&lead.name, &written, slots),
        }
        self.spent(2 * PAGE_BYTES as u64).await;
        Ok(())
    }

    fn lead_slots(&mut self, name: &str, written: &Superblock, slots: [Slot; 2]) {
        let same = |found: &Superblock| found.sequence == written.sequence && found.root == written.root;
        for (slot, found) in (0..).zip(slots) {
            match found {
                Ok(found) if is_of(&found, written) && same(&found) => continue,
                // Power failed between the two, and nothing was written since.
                Ok(found) if is_of(&found, written) && found.sequence < written.sequence => {}
                Ok(_) => self.found(name, words_of(slot, &"not of this disk"), Remedy::Rewrite),
                Err(error) => self.found(name, words_of(slot, &error), Remedy::Rewrite),
            }
            self.rewrites = true;
        }
    }

    /// Both slots of each member are intact and say the same. One that is not is written anew from the other one, or from memory.
    pub(super) async fn members(&mut self) -> Result<(), ScrubError> {
        let count = self.pool()?.records.borrow().len();
        for index in 1..count {
            let pool = self.pool()?;
            let Some(disk) = pool.disk(index) else { continue };
            // Nobody else writes them meanwhile; where somebody does, the next run looks.
            let Ok(growing) = Growing::begin(&pool) else { continue };
            let known = pool.superblock_of_member(index);
            let slots = [disk.read_slot(0).await?, disk.read_slot(1).await?];
            let findings = match taken(&disk, &slots, &known).await? {
                Some(what) => {
                    let words = format!(
                        "{what}: somebody else has written to a disk that the pool runs on. Its superblocks are not written over that, \
                         and the next import will refuse the disk: move the pool's volumes to another one; or, if that was a mistake and \
                         it is not needed, write zeroes over the first MiB of the disk, for the next scrub to write them anew"
                    );
                    vec![(words, Remedy::ByHand)]
                }
                None => mend(&disk, slots, known).await,
            };
            drop(growing);
            drop(pool);
            for (words, remedy) in findings {
                self.found(&disk.name, words, remedy);
            }
            self.spent(2 * PAGE_BYTES as u64).await;
        }
        Ok(())
    }
}

/// Writes the slots of a member anew that do not say what they ought to; what is to be told of.
async fn mend(disk: &DiskIo, slots: [Slot; 2], known: Superblock) -> Vec<(String, Remedy)> {
    let own = |found: &&Superblock| is_of(found, &known);
    let intact = slots.iter().flatten().filter(own).max_by_key(|found| found.sequence).cloned();
    let good = intact.unwrap_or_else(|| known.clone());
    let mut findings = Vec::new();
    for (slot, found) in (0..).zip(slots) {
        if found.as_ref() == Ok(&good) {
            continue;
        }
        let written = !good.read_only && disk.write_slot(slot, &good).await.is_ok();
        let words = match found {
            // As for the lead.
            Ok(found) if is_of(&found, &known) && written => continue,
            Ok(_) => words_of(slot, &"not of this disk"),
            Err(error) => words_of(slot, &error),
        };
        findings.push((words, if written { Remedy::Rewrite } else { Remedy::ByHand }));
    }
    findings
}

/// What stands there instead, if no slot is the disk's own and something else is plainly on it; damage is nothing.
async fn taken(disk: &DiskIo, slots: &[Slot; 2], known: &Superblock) -> Result<Option<String>, DiskFault> {
    if slots.iter().flatten().any(|found| is_of(found, known)) {
        return Ok(None);
    }
    for slot in slots {
        match slot {
            Ok(found) if found.pool == known.pool => {
                return Ok(Some(format!(
                    "it says that it is another disk of the pool ({}, not {})",
                    found.disk, known.disk
                )));
            }
            Ok(found) => {
                return Ok(Some(format!("it says that it is a disk of another pool ({})", found.pool)));
            }
            Err(error) if error.is_foreign() => return Ok(Some(error.to_string())),
            Err(_) => {}
        }
    }
    Ok(match disk.examine().await? {
        DiskContent::Foreign(content) if content.is_somebodys() => Some(format!("it holds {content}")),
        _ => None,
    })
}

fn is_of(found: &Superblock, disk: &Superblock) -> bool {
    (found.pool, found.disk) == (disk.pool, disk.disk)
}

fn words_of(slot: u32, what: &dyn fmt::Display) -> String {
    format!("superblock slot {slot} is unusable: {what}")
}

impl Inner {
    /// What the slots of a member say, as far as it is in memory.
    fn superblock_of_member(&self, index: usize) -> Superblock {
        let record = self.records.borrow()[index];
        let metadata_bytes = u64::from(record.metadata_pages) * PAGE_BYTES as u64;
        Superblock {
            cluster: self.cluster,
            pool: self.id,
            disk: record.id,
            sequence: MEMBER_SEQUENCE,
            role: Role::Member,
            disk_index: u32::try_from(index).unwrap_or(u32::MAX),
            geometry: DiskGeometry {
                block_bytes: self.block.bytes(),
                device_bytes: record.device_bytes,
                extent_bytes: self.shared.extent_bytes,
                data_offset: record.data_offset,
                extents: record.extents,
                journal_offset: 0,
                journal_bytes: 0,
                metadata_offset: record.data_offset - metadata_bytes,
                metadata_bytes,
            },
            root: None,
            exported: false,
            opening: record.opening,
            read_only: false,
        }
    }
}
