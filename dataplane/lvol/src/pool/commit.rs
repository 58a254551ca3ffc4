//! Making the state of a pool durable: table, flush, superblock, flush.

use std::rc::Rc;

use basalt_clock::{mark, planted};

use super::{Commit, Inner, Volume};
use crate::disk::DiskIo;
use crate::error::{DiskFault, ReadOnlyReason};
use crate::layout::{EncodedTable, EntrySource, Superblock, TableContent, TablePointer, encode_table};

impl Inner {
    /// Counts a change of the tables' content and waits until it is durable.
    ///
    /// Changes that come while a table is being written wait for it and then share the next one. After a failure the pool
    /// takes no change: it is unknown which of the two states the disk holds.
    pub(super) async fn commit(&self) -> Result<(), ReadOnlyReason> {
        let change = {
            let mut state = self.state.borrow_mut();
            state.changes += 1;
            state.changes
        };
        let _writing = self.committing.lock().await;
        if self.state.borrow().durable >= change {
            mark!("lvol-group-commit");
            return Ok(());
        }
        if let Some(reason) = &self.state.borrow().read_only {
            return Err(reason.clone());
        }
        let commit = self.next_commit();
        self.write(commit).await
    }

    /// Tries to end what a failed write of metadata left open.
    ///
    /// The same bytes are written to the same places once more: whatever a part of them did, doing it again does no harm. Then
    /// the state in memory is written as the next one, and is certain.
    pub(super) async fn resume(&self) -> Result<(), ReadOnlyReason> {
        let _writing = self.committing.lock().await;
        let Some(unfinished) = self.state.borrow_mut().unfinished.take() else {
            return self.state.borrow().read_only.clone().map_or(Ok(()), Err);
        };
        self.write(unfinished).await?;
        let next = self.next_commit();
        self.write(next).await?;
        mark!("lvol-resumed");
        self.state.borrow_mut().read_only = None;
        self.settle();
        Ok(())
    }

    async fn write(&self, commit: Commit) -> Result<(), ReadOnlyReason> {
        let written = write_state(self.lead(), &commit.superblock, &commit.table).await;
        let mut state = self.state.borrow_mut();
        match written {
            Ok(()) => {
                state.superblock = commit.superblock;
                state.durable = commit.changes;
                Ok(())
            }
            Err(fault) => {
                mark!("lvol-commit-failed");
                let reason = ReadOnlyReason::MetadataWriteFailed(Rc::new(fault));
                state.read_only = Some(reason.clone());
                state.unfinished = Some(commit);
                Err(reason)
            }
        }
    }

    fn lead(&self) -> &DiskIo {
        self.disks[0].as_ref().expect("a pool without its lead is not imported")
    }

    /// The state in memory as the next one on disk.
    fn next_commit(&self) -> Commit {
        let state = self.state.borrow();
        let sequence = state.superblock.sequence + 1;
        let volumes: Vec<EntrySource<'_>> = state.volumes.values().filter_map(source).collect();
        let content = TableContent {
            sequence,
            pool: self.id,
            name: &self.name,
            revision: state.revision,
            disks: &self.records,
            volumes: &volumes,
        };
        let table = encode_table(&content, state.superblock.geometry.area_bytes)
            .expect("room for the entry was checked when the volume was accepted");
        let pointer =
            TablePointer { bytes: table.bytes.len() as u64, header_checksum: table.header_checksum };
        let superblock = Superblock { sequence, table: Some(pointer), ..state.superblock.clone() };
        Commit { superblock, table, changes: state.changes }
    }
}

/// What the next table says about a volume.
fn source(volume: &Volume) -> Option<EntrySource<'_>> {
    match volume {
        Volume::Preparing(_) | Volume::Deleting { .. } => None,
        Volume::Committing(record) | Volume::Ready(record, _) | Volume::Isolated(record, _) => {
            Some(EntrySource::Intact(record))
        }
        Volume::Damaged { directory, bytes, .. } => Some(EntrySource::Kept(directory, bytes)),
    }
}

/// Writes a table to the area of its sequence number and makes it current.
pub(super) async fn write_state(
    lead: &DiskIo,
    superblock: &Superblock,
    table: &EncodedTable,
) -> Result<(), DiskFault> {
    let offset = superblock.geometry.area_offsets[superblock.slot() as usize];
    if planted!("lvol-superblock-before-table") {
        lead.write_superblock(superblock).await?;
    }
    lead.write(offset, &table.bytes).await?;
    if !planted!("lvol-no-flush-before-superblock") {
        lead.flush().await?;
    }
    lead.write_superblock(superblock).await
}
