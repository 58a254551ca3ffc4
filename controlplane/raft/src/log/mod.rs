//! The durable log of a member: entries, hard state and snapshots on a [`Disk`].

mod identity;
mod record;
mod recovery;
mod snapshot;
mod storage;
#[cfg(test)]
mod tests;

pub use identity::Identity;
pub(crate) use record::crc;
pub use snapshot::Snapshot;

use crate::convert::{entry_from_raft, membership_from_raft, membership_to_raft};
use crate::disk::{Disk, DiskFile};
use crate::error::LogError;
use crate::message::{LogEntry, Membership};
use basalt_clock::{mark, planted};
use basalt_model::{ClusterId, DiskId, MemberId};
use raft::eraftpb::{ConfState, Entry};
use record::{HardState, Record, SEGMENT_HEADER};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

/// A segment of the log on the disk.
#[derive(Debug)]
struct Segment {
    sequence: u64,
    /// The highest index of its entries; 0 without entries.
    last_index: u64,
}

/// The segment that is written to.
#[derive(Debug)]
struct Writer<F> {
    file: F,
    sequence: u64,
    /// Where the next bytes go.
    length: u64,
    /// Up to where everything is durable.
    synced: u64,
}

/// The durable log of one member.
///
/// Changes are gathered in memory and become durable with [`Log::sync`]. After an error the log is unusable, because it
/// is not known what is on the disk.
#[derive(Debug)]
pub struct Log<D: Disk> {
    disk: D,
    identity: Identity,
    segment_bytes: u64,
    /// All segments, oldest first; the last one is the writer's.
    segments: Vec<Segment>,
    writer: Writer<D::File>,
    pending: Vec<Record>,
    hard: HardState,
    /// The membership after the last entry that was applied.
    membership: ConfState,
    /// Index and term of the entry before the first one.
    before: (u64, u64),
    entries: VecDeque<Entry>,
    snapshot: Option<Snapshot>,
    /// Bytes of entries since the last snapshot.
    bytes_since_snapshot: u64,
    /// Set when a peer needs a snapshot that is newer than the newest.
    wanted: Cell<bool>,
}

impl<D: Disk> Log<D> {
    /// Who the disk belongs to.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether the disk has no cluster's log yet.
    pub fn is_blank(&self) -> bool {
        self.snapshot.is_none()
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    /// Binds the disk to a cluster, for good.
    pub fn bind_cluster(&mut self, cluster: ClusterId) -> Result<(), LogError> {
        match self.identity.cluster {
            Some(bound) if bound == cluster => return Ok(()),
            Some(found) => return Err(LogError::OtherCluster { found, expected: cluster }),
            None => {}
        }
        self.identity.cluster = Some(cluster);
        identity::store(&mut self.disk, &self.identity)
    }

    /// Makes this disk the first voter of a new group whose state is `data`. Index and term 1 stand for the bootstrap.
    pub fn bootstrap(&mut self, data: Vec<u8>) -> Result<(), LogError> {
        assert!(self.is_blank(), "bootstrap of a log that is in use");
        let membership = Membership { voters: vec![self.identity.member.get()], ..Membership::default() };
        self.install(Snapshot { index: 1, term: 1, membership, data: Arc::new(data) })?;
        self.set_hard_state(HardState { term: 1, vote: 0, commit: 1 });
        self.sync()
    }

    /// The entries after an index, in order, committed or not; for a recovery.
    pub fn entries_after(&self, index: u64) -> Vec<LogEntry> {
        self.entries.iter().filter(|entry| entry.index > index).map(entry_from_raft).collect()
    }

    /// Begins again from a state at a later index, under a later term, with other members; for a recovery.
    pub fn restart_from(
        &mut self,
        index: u64,
        membership: Membership,
        data: Vec<u8>,
    ) -> Result<(), LogError> {
        assert!(index > self.last().0, "a recovery goes on after everything that the log holds");
        let term = self.hard.term.max(self.last().1) + 1;
        self.install(Snapshot { index, term, membership, data: Arc::new(data) })?;
        self.set_hard_state(HardState { term, vote: 0, commit: index });
        self.sync()
    }

    /// Replaces everything with a snapshot, for an installation or a recovery. Durable after [`Log::sync`]; a crash before
    /// leaves either the old log or the snapshot.
    fn install(&mut self, snapshot: Snapshot) -> Result<(), LogError> {
        snapshot::store(&mut self.disk, &snapshot)?;
        let (index, term) = (snapshot.index, snapshot.term);
        self.pending.clear();
        self.pending.push(Record::Reset { index, term });
        self.entries.clear();
        self.before = (index, term);
        self.membership = membership_to_raft(&snapshot.membership);
        self.snapshot = Some(snapshot);
        self.bytes_since_snapshot = 0;
        self.hard.commit = self.hard.commit.max(index);
        self.hard.term = self.hard.term.max(term);
        self.pending.push(Record::HardState(self.hard));
        mark!("raft-log-reset");
        Ok(())
    }

    /// Appends entries; those that were at or above the first one's index are replaced.
    fn append(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            let keep = entry.index.checked_sub(self.before.0 + 1);
            let keep = keep.and_then(|keep| usize::try_from(keep).ok()).unwrap_or(0);
            assert!(
                entry.index > self.before.0 && keep <= self.entries.len(),
                "a hole in the log at {}",
                entry.index
            );
            if keep < self.entries.len() {
                mark!("log-suffix-replaced");
            }
            self.entries.truncate(keep);
            self.bytes_since_snapshot += entry.data.len() as u64 + 64;
            self.pending.push(Record::Entry(entry_from_raft(&entry)));
            self.entries.push_back(entry);
        }
    }

    fn set_hard_state(&mut self, hard: HardState) {
        if hard != self.hard {
            self.hard = hard;
            if planted!("vote-not-persisted") {
                self.pending.push(Record::HardState(HardState { vote: 0, ..hard }));
                return;
            }
            self.pending.push(Record::HardState(hard));
        }
    }

    /// Takes over what the raft library wants kept; durable at once if `must_sync`.
    pub(crate) fn persist(
        &mut self,
        entries: Vec<Entry>,
        hard: Option<&raft::eraftpb::HardState>,
        must_sync: bool,
    ) -> Result<(), LogError> {
        self.append(entries);
        if let Some(hard) = hard {
            self.set_hard_state(HardState { term: hard.term, vote: hard.vote, commit: hard.commit });
        }
        if must_sync { self.sync() } else { self.write() }
    }

    /// Notes a commit index, to be written with whatever comes next.
    pub(crate) fn note_commit(&mut self, commit: u64) {
        self.set_hard_state(HardState { commit, ..self.hard });
    }

    /// Installs a snapshot that another member sent, durably.
    pub(crate) fn install_snapshot(&mut self, snapshot: Snapshot) -> Result<(), LogError> {
        self.install(snapshot)?;
        self.sync()
    }

    /// Notes the membership after the last entry that was applied.
    pub(crate) fn set_membership(&mut self, membership: ConfState) {
        self.membership = membership;
    }

    /// Whether a peer needs a newer snapshot than there is.
    pub(crate) fn snapshot_wanted(&self) -> bool {
        self.wanted.get()
    }

    /// Bytes of entries since the newest snapshot.
    pub(crate) fn bytes_since_snapshot(&self) -> u64 {
        self.bytes_since_snapshot
    }

    /// Writes what was gathered and makes it durable, with one sync.
    fn sync(&mut self) -> Result<(), LogError> {
        self.write()?;
        if planted!("log-not-synced") {
            return Ok(());
        }
        if self.writer.synced < self.writer.length {
            self.writer.file.sync()?;
            self.writer.synced = self.writer.length;
        }
        if self.writer.length >= self.segment_bytes {
            self.roll()?;
        }
        Ok(())
    }

    /// Writes what was gathered, durable at some later time.
    fn write(&mut self) -> Result<(), LogError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let Writer { sequence, length, synced, .. } = self.writer;
        for record in &self.pending {
            record.emit(&mut bytes, sequence, length, synced);
            if let (Record::Entry(entry), Some(segment)) = (record, self.segments.last_mut()) {
                segment.last_index = segment.last_index.max(entry.index);
            }
        }
        self.pending.clear();
        self.writer.file.write_at(length, &bytes)?;
        self.writer.length += bytes.len() as u64;
        Ok(())
    }

    /// Begins a new segment.
    fn roll(&mut self) -> Result<(), LogError> {
        let sequence = self.writer.sequence + 1;
        self.writer = create_segment(&mut self.disk, sequence, self.hard)?;
        self.segments.push(Segment { sequence, last_index: 0 });
        mark!("segment-rolled");
        Ok(())
    }

    /// Keeps a snapshot of the state after `index`, which must be applied, and drops what the older snapshot covers.
    pub(crate) fn keep_snapshot(&mut self, index: u64, term: u64, data: Vec<u8>) -> Result<(), LogError> {
        let membership = membership_from_raft(&self.membership);
        let snapshot = Snapshot { index, term, membership, data: Arc::new(data) };
        snapshot::store(&mut self.disk, &snapshot)?;
        let covered = self.snapshot.as_ref().map_or(0, |older| older.index);
        self.snapshot = Some(snapshot);
        self.bytes_since_snapshot = 0;
        self.wanted.set(false);
        self.compact(covered)
    }

    /// Drops entries up to `index`, in memory and, by whole segments, on the disk.
    fn compact(&mut self, index: u64) -> Result<(), LogError> {
        while self.before.0 < index
            && let Some(entry) = self.entries.pop_front()
        {
            self.before = (entry.index, entry.term);
        }
        let last = self.segments.len() - 1;
        let removable =
            self.segments[..last].iter().take_while(|segment| segment.last_index <= index).count();
        for segment in self.segments.drain(..removable) {
            self.disk.remove(&segment_name(segment.sequence))?;
            mark!("segment-removed");
        }
        Ok(())
    }

    fn last(&self) -> (u64, u64) {
        self.entries.back().map_or(self.before, |entry| (entry.index, entry.term))
    }
}

fn segment_name(sequence: u64) -> String {
    format!("log-{sequence:016x}")
}

/// Creates a segment that begins with the hard state, durably.
fn create_segment<D: Disk>(
    disk: &mut D,
    sequence: u64,
    hard: HardState,
) -> Result<Writer<D::File>, LogError> {
    let mut file = disk.create(&segment_name(sequence))?;
    let mut bytes = record::segment_header(sequence).to_vec();
    Record::HardState(hard).emit(&mut bytes, sequence, 0, SEGMENT_HEADER as u64);
    file.write_at(0, &bytes)?;
    file.sync()?;
    disk.sync_directory()?;
    let length = bytes.len() as u64;
    Ok(Writer { file, sequence, length, synced: length })
}

/// What a log is opened with.
#[derive(Debug, Clone, Copy)]
pub struct LogConfig {
    /// The member that the disk must belong to.
    pub member: MemberId,
    /// The identity that an empty disk gets.
    pub new_disk: DiskId,
    /// The size at which a new segment is begun.
    pub segment_bytes: u64,
}
