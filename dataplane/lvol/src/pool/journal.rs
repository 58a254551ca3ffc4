//! Making changes of maps durable without a checkpoint: data, then one group of the journal.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use basalt_clock::{mark, planted};

use super::Inner;
use crate::error::{DiskFault, ReadOnlyReason};
use crate::layout::{GroupId, JournalRecord, Trust, encode_group};

/// Pages that a checkpoint has to write before one is begun without being asked for: bounds its memory.
const DIRTY_MAX: usize = 8192;

/// What came of an attempt to write a group.
enum Attempt {
    Done,
    /// The journal has no room for it.
    Full,
}

/// What a caller waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// The changes are on the disk or in its cache: they survive the end of this process.
    Written,
    /// They survive a power failure.
    Durable,
}

impl Inner {
    /// Waits until all changes of maps so far are durable, or written. True if the disks were flushed after this was asked.
    ///
    /// Changes that come while a group is written wait for it and then share the next one.
    pub(super) async fn settle_maps(self: &Rc<Self>, until: Until) -> Result<bool, ReadOnlyReason> {
        let wanted = self.state.borrow().map_changes;
        loop {
            let (written, durable) = {
                let state = self.state.borrow();
                (state.map_written.max(state.map_durable), state.map_durable)
            };
            if durable >= wanted || (until == Until::Written && written >= wanted) {
                mark!("lvol-journal-shared");
                return Ok(false);
            }
            if let Some(reason) = &self.state.borrow().read_only {
                return Err(reason.clone());
            }
            {
                let Some(_turn) = self.journaling.try_take() else {
                    self.journaling.end().await;
                    continue;
                };
                if written >= wanted && self.flush_suffices() {
                    self.flush_written().await.map_err(|fault| self.journal_failed(fault))?;
                    return Ok(true);
                }
                match self.write_group(until).await? {
                    Attempt::Done => {
                        self.after_group();
                        return Ok(true);
                    }
                    Attempt::Full => {}
                }
            }
            mark!("lvol-journal-full");
            self.checkpoint().await?;
        }
    }

    /// Makes all durable that was written to the pool before, maps and data.
    pub(super) async fn sync(self: &Rc<Self>) -> Result<(), ReadOnlyReason> {
        if self.settle_maps(Until::Durable).await? {
            return Ok(());
        }
        // Somebody else's flush may have been too early for data that was written in place.
        self.flush_disks().await.map_err(|fault| ReadOnlyReason::MetadataWriteFailed(Rc::new(fault)))
    }

    /// Flushes the disks: data, and all groups that were written. Those that are not firm count once one is that follows them.
    async fn flush_written(&self) -> Result<(), DiskFault> {
        let written = self.state.borrow().map_written;
        self.flush_disks().await?;
        if self.flush_suffices() {
            self.durable_upto(written);
        }
        Ok(())
    }

    /// Whether a flush makes all changes durable that were written: all groups count without one that follows them.
    fn flush_suffices(&self) -> bool {
        self.shared.lifetime().is_none() && self.state.borrow().loose_disks == 0
    }

    /// On which disks a group with these changes depends, and what is said of the caches of those.
    fn trust_in(&self, records: &[JournalRecord]) -> Trust {
        let Some(all) = self.shared.lifetime() else { return Trust::Firm };
        let named = records.iter().fold(0, |disks, record| disks | record.pieces.disks());
        // With the lead, which it lies on, and with those of the groups before it, without which it says nothing.
        let disks = self.state.borrow().loose_disks | named | 1;
        match self.shared.lifetime_of(disks) {
            Some(lifetime) => Trust::While { lifetime, disks },
            None => Trust::While { lifetime: all, disks: u64::MAX },
        }
    }

    fn durable_upto(&self, change: u64) {
        let mut state = self.state.borrow_mut();
        state.map_durable = state.map_durable.max(change);
        let durable = state.map_durable;
        state.refs.settle(durable);
        self.shared.durable.fetch_max(durable, Ordering::AcqRel);
    }

    fn journal_failed(&self, fault: DiskFault) -> ReadOnlyReason {
        mark!("lvol-journal-failed");
        let reason = ReadOnlyReason::MetadataWriteFailed(Rc::new(fault));
        self.state.borrow_mut().read_only = Some(reason.clone());
        reason
    }

    /// Writes all pending changes, in as many groups as they need; one at least.
    async fn write_group(&self, until: Until) -> Result<Attempt, ReadOnlyReason> {
        let (pending, upto) = {
            let mut state = self.state.borrow_mut();
            (std::mem::take(&mut state.pending), state.map_changes)
        };
        let forced = until == Until::Durable || !self.shared.volatile;
        match self.write_records(&pending, forced).await {
            Ok(Attempt::Done) => {
                self.state.borrow_mut().written_upto(upto);
                if forced {
                    self.durable_upto(upto);
                }
                Ok(Attempt::Done)
            }
            Ok(Attempt::Full) => {
                self.put_back(pending);
                Ok(Attempt::Full)
            }
            Err(fault) => {
                self.put_back(pending);
                Err(self.journal_failed(fault))
            }
        }
    }

    fn put_back(&self, mut pending: Vec<JournalRecord>) {
        let mut state = self.state.borrow_mut();
        pending.append(&mut state.pending);
        state.pending = pending;
    }

    async fn write_records(&self, records: &[JournalRecord], forced: bool) -> Result<Attempt, DiskFault> {
        let trust = if forced { Trust::Firm } else { self.trust_in(records) };
        // Data first: a change that is durable names nothing that is not. And the group before: none is durable without it.
        if trust == Trust::Firm && !planted!("lvol-journal-before-data") {
            self.flush_written().await?;
        }
        let lead = self.lead();
        let block = lead.block().bytes() as usize;
        let mut rest = records;
        loop {
            let (id, offset, room) = {
                let state = self.state.borrow();
                let geometry = &state.superblock.geometry;
                let half = state.journal.checkpoint % 2 * geometry.journal_bytes;
                let id = GroupId {
                    pool: self.id,
                    checkpoint: state.journal.checkpoint,
                    sequence: state.journal.sequence,
                };
                let offset = geometry.journal_offset + half + state.journal.used;
                (id, offset, geometry.journal_bytes - state.journal.used)
            };
            let (bytes, taken) = encode_group(id, trust, rest, block);
            if bytes.len() as u64 > room {
                return Ok(Attempt::Full);
            }
            rest = &rest[taken..];
            // One that others of the same commit follow is durable before they are.
            let durably = forced || (trust == Trust::Firm && !rest.is_empty());
            match durably && !planted!("lvol-journal-not-flushed") {
                true => lead.write_durably(offset, &bytes).await?,
                false => lead.write(offset, &bytes).await?,
            }
            let mut state = self.state.borrow_mut();
            state.loose_disks = match trust {
                Trust::Firm => 0,
                Trust::While { disks, .. } => disks,
            };
            state.journal.used += bytes.len() as u64;
            state.journal.sequence += 1;
            if rest.is_empty() {
                return Ok(Attempt::Done);
            }
        }
    }

    /// Begins a checkpoint in time: the journal must not run full, nor a checkpoint grow without bound.
    fn after_group(self: &Rc<Self>) {
        let half_full = {
            let state = self.state.borrow();
            state.journal.used * 2 > state.superblock.geometry.journal_bytes
        };
        if half_full || self.pages.dirty_count() > DIRTY_MAX {
            self.want_checkpoint();
        }
    }

    /// Begins a checkpoint in the background, unless one is wanted already.
    pub(super) fn want_checkpoint(self: &Rc<Self>) {
        if self.checkpoint_wanted.replace(true) {
            return;
        }
        let inner = Rc::clone(self);
        drop(self.handle.spawn(async move {
            inner.checkpoint_wanted.set(false);
            // What fails is told by the pool's health.
            if inner.checkpoint().await.is_ok() {
                inner.reclaim().await;
            }
        }));
    }
}
