//! What the raft library reads of the log.

use super::Log;
use crate::convert::membership_to_raft;
use crate::disk::Disk;
use crate::log::record;
use raft::eraftpb::{Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

impl<D: Disk> Log<D> {
    fn position(&self, index: u64) -> Option<usize> {
        index.checked_sub(self.before.0 + 1).and_then(|position| usize::try_from(position).ok())
    }
}

impl From<record::HardState> for HardState {
    fn from(state: record::HardState) -> Self {
        HardState { term: state.term, vote: state.vote, commit: state.commit, ..HardState::default() }
    }
}

impl<D: Disk> Storage for Log<D> {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard.into(), self.membership.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        let from = self.position(low).ok_or(raft::Error::Store(StorageError::Compacted))?;
        let to = self.position(high).ok_or(raft::Error::Store(StorageError::Compacted))?;
        if to > self.entries.len() {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0;
        let mut entries = Vec::new();
        for entry in self.entries.range(from..to) {
            size += (entry.data.len() + entry.context.len()) as u64 + 24;
            if size > limit && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.before.0 {
            return Ok(self.before.1);
        }
        let position = self.position(index).ok_or(raft::Error::Store(StorageError::Compacted))?;
        let entry = self.entries.get(position).ok_or(raft::Error::Store(StorageError::Unavailable))?;
        Ok(entry.term)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.before.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last().0)
    }

    /// The newest snapshot without its data, which is sent in parts. When it is too old for `to`, a new one is asked for.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |snapshot: &&super::Snapshot| {
            let members = &snapshot.membership;
            let mut all = members.voters.iter().chain(&members.learners).chain(&members.voters_outgoing);
            snapshot.index >= request_index && all.any(|id| *id == to)
        };
        let Some(newest) = self.snapshot.as_ref().filter(fits) else {
            self.wanted.set(true);
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = newest.index;
        metadata.term = newest.term;
        metadata.set_conf_state(membership_to_raft(&newest.membership));
        Ok(snapshot)
    }
}
