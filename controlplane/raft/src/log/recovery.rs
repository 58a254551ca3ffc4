//! Reading a log back after a stop or a crash.

use super::identity::{self, Identity};
use super::record::{self, HardState, Header, Record, SEGMENT_HEADER};
use super::snapshot::{self, Snapshot};
use super::{Log, LogConfig, Segment, Writer, create_segment, segment_name};
use crate::convert::{entry_to_raft, membership_to_raft};
use crate::disk::{Disk, DiskFile, read_all};
use crate::error::LogError;
use crate::message::LogEntry;
use basalt_clock::{mark, planted};
use raft::eraftpb::ConfState;
use std::cell::Cell;

/// What the segments say.
#[derive(Debug, Default)]
struct Replay {
    hard: HardState,
    /// Index and term of the entry before the first one, when a reset said so.
    reset: Option<(u64, u64)>,
    entries: Vec<LogEntry>,
    segments: Vec<Segment>,
    /// Segments whose removal a crash undid.
    leftovers: Vec<u64>,
    /// Whether the entries were dropped in favour of the snapshot.
    dropped: bool,
    /// Length of the last segment after its torn tail was cut off.
    length: u64,
}

impl<D: Disk> Log<D> {
    /// Opens the log of a disk; an empty disk becomes the member's.
    pub fn open(mut disk: D, config: LogConfig) -> Result<Self, LogError> {
        remove_interrupted(&mut disk)?;
        let identity = open_identity(&mut disk, config)?;
        let mut damage = None;
        let snapshots = snapshot::load(&mut disk, |error| {
            mark!("snapshot-damaged");
            tracing::error!(%error, "a snapshot cannot be used");
            damage.get_or_insert(error);
        })?;
        if snapshots.is_empty()
            && let Some(error) = damage
        {
            return Err(error);
        }
        let mut replay = read_segments(&mut disk)?;
        let snapshot = snapshots.first().cloned();
        let before = join(&mut replay, snapshot.as_ref())?;
        let dropped = snapshot.as_ref().filter(|_| replay.dropped);
        let pending = dropped.map(|s| Record::Reset { index: s.index, term: s.term }).into_iter().collect();
        if let Some(snapshot) = &snapshot {
            replay.hard.commit = replay.hard.commit.max(snapshot.index);
            replay.hard.term = replay.hard.term.max(snapshot.term);
        }
        let last = replay.entries.last().map_or(before.0, |entry| entry.index);
        if replay.hard.commit > last {
            return Err(LogError::Gap { from: last + 1, to: replay.hard.commit });
        }
        for sequence in &replay.leftovers {
            mark!("segment-removal-undone");
            disk.remove(&segment_name(*sequence))?;
        }
        let writer = match replay.segments.last() {
            None => create_segment(&mut disk, 1, replay.hard)?,
            Some(segment) => {
                let file = disk.open(&segment_name(segment.sequence))?;
                Writer { file, sequence: segment.sequence, length: replay.length, synced: replay.length }
            }
        };
        let mut segments = replay.segments;
        if segments.is_empty() {
            segments.push(Segment { sequence: writer.sequence, last_index: 0 });
        }
        Ok(Self {
            disk,
            identity,
            segment_bytes: config.segment_bytes,
            segments,
            writer,
            pending,
            hard: replay.hard,
            membership: snapshot
                .as_ref()
                .map_or_else(ConfState::default, |s| membership_to_raft(&s.membership)),
            before,
            entries: replay.entries.into_iter().map(entry_to_raft).collect(),
            snapshot,
            bytes_since_snapshot: 0,
            wanted: Cell::new(false),
        })
    }
}

/// Removes what interrupted replacements left.
fn remove_interrupted<D: Disk>(disk: &mut D) -> Result<(), LogError> {
    for name in disk.list()?.iter().filter(|name| name.ends_with(".tmp")) {
        disk.remove(name)?;
    }
    Ok(())
}

fn open_identity<D: Disk>(disk: &mut D, config: LogConfig) -> Result<Identity, LogError> {
    if let Some(identity) = identity::load(disk)? {
        if identity.member != config.member {
            return Err(LogError::OtherMember { found: identity.member, expected: config.member });
        }
        return Ok(identity);
    }
    let identity = Identity { member: config.member, disk: config.new_disk, cluster: None };
    identity::store(disk, &identity)?;
    Ok(identity)
}

/// Reads all segments in order.
fn read_segments<D: Disk>(disk: &mut D) -> Result<Replay, LogError> {
    let mut sequences = Vec::new();
    for name in disk.list()? {
        let Some(digits) = name.strip_prefix("log-") else { continue };
        let sequence = u64::from_str_radix(digits, 16).map_err(|_| LogError::Damaged {
            file: name.clone(),
            offset: 0,
            problem: "the name is not that of a segment",
        })?;
        sequences.push(sequence);
    }
    sequences.sort_unstable();
    let (leftovers, sequences) = split_leftovers(&sequences);
    let mut replay = Replay { leftovers: leftovers.to_vec(), ..Replay::default() };
    for (position, &sequence) in sequences.iter().enumerate() {
        let is_last = position + 1 == sequences.len();
        let bytes = read_all(disk, &segment_name(sequence))?;
        read_segment(disk, &mut replay, sequence, &bytes, is_last)?;
    }
    Ok(replay)
}

/// The segments before a gap and those after it. A crash may undo the removal of one segment and not that of the next: what is
/// before the gap was to be removed. If a segment was lost that was needed, the entries that are left do not meet the
/// snapshot, and [`join`] says so.
fn split_leftovers(sequences: &[u64]) -> (&[u64], &[u64]) {
    let gap = sequences.windows(2).rposition(|pair| pair[0] + 1 != pair[1]);
    sequences.split_at(gap.map_or(0, |position| position + 1))
}

fn read_segment<D: Disk>(
    disk: &mut D,
    replay: &mut Replay,
    sequence: u64,
    bytes: &[u8],
    is_last: bool,
) -> Result<(), LogError> {
    let file = segment_name(sequence);
    match record::check_segment_header(bytes, sequence) {
        Header::Valid => {}
        Header::Version(found) => return Err(LogError::Version { file, found, known: record::VERSION }),
        Header::Damaged if is_last && !record::was_synced(bytes, sequence, 0) => {
            // Its creation was interrupted before anything was promised.
            mark!("segment-creation-interrupted");
            disk.remove(&file)?;
            disk.sync_directory()?;
            return Ok(());
        }
        Header::Damaged => {
            return Err(LogError::Damaged { file, offset: 0, problem: "the segment's header is wrong" });
        }
    }
    let mut at = SEGMENT_HEADER;
    let mut last_index = 0;
    while let Some(parsed) = record::parse_record(bytes, sequence, at) {
        at = parsed.end;
        if let Record::Entry(entry) = &parsed.record {
            last_index = last_index.max(entry.index);
        }
        replay.take(parsed.record, &file, at)?;
    }
    if at < bytes.len() {
        let offset = at as u64;
        if !is_last {
            return Err(LogError::Damaged {
                file,
                offset,
                problem: "a record of a finished segment does not verify",
            });
        }
        if record::was_synced(bytes, sequence, at) {
            return Err(LogError::Damaged {
                file,
                offset,
                problem: "a record that was durable does not verify",
            });
        }
        cut_torn_tail(disk, replay, &file, sequence, bytes, at)?;
    }
    replay.segments.push(Segment { sequence, last_index });
    replay.length = at as u64;
    Ok(())
}

/// Removes what a crash left of a write that was never acknowledged.
fn cut_torn_tail<D: Disk>(
    disk: &mut D,
    replay: &mut Replay,
    file: &str,
    sequence: u64,
    bytes: &[u8],
    at: usize,
) -> Result<(), LogError> {
    mark!("torn-tail");
    if planted!("torn-tail-accepted") {
        // Skips the hole and takes what follows it for granted.
        for next in at + 1..bytes.len() {
            if let Some(parsed) = record::parse_record(bytes, sequence, next) {
                replay.take(parsed.record, file, next)?;
            }
        }
        return Ok(());
    }
    tracing::warn!(file, offset = at, "cutting off the torn tail of the log");
    let mut open = disk.open(file)?;
    open.truncate(at as u64)?;
    open.sync()?;
    Ok(())
}

impl Replay {
    fn take(&mut self, record: Record, file: &str, offset: usize) -> Result<(), LogError> {
        match record {
            Record::HardState(hard) => self.hard = hard,
            Record::Reset { index, term } => {
                self.reset = Some((index, term));
                self.entries.clear();
            }
            Record::Entry(entry) => {
                let first = self.entries.first().map(|first| first.index);
                let keep = match (first, self.reset) {
                    (Some(first), _) => entry.index.checked_sub(first),
                    (None, Some((reset, _))) => (entry.index == reset + 1).then_some(0),
                    (None, None) => Some(0),
                };
                let keep = keep.and_then(|keep| usize::try_from(keep).ok());
                match keep {
                    Some(keep) if keep <= self.entries.len() => self.entries.truncate(keep),
                    // Replaces everything that is left, back to entries whose segment was removed since.
                    None if first.is_some() && self.reset.is_none() => self.entries.clear(),
                    _ => {
                        let problem = "an entry does not follow the one before it";
                        return Err(LogError::Damaged {
                            file: file.to_owned(),
                            offset: offset as u64,
                            problem,
                        });
                    }
                }
                self.entries.push(entry);
            }
        }
        Ok(())
    }
}

/// Joins the snapshot with the log's entries; returns index and term of the entry before the first one that is kept.
fn join(replay: &mut Replay, snapshot: Option<&Snapshot>) -> Result<(u64, u64), LogError> {
    let Some(snapshot) = snapshot else {
        if let Some(entry) = replay.entries.first() {
            return Err(LogError::Gap { from: 0, to: entry.index });
        }
        return Ok((0, 0));
    };
    let at = (snapshot.index, snapshot.term);
    let Some(first) = replay.entries.first() else { return Ok(at) };
    if first.index > snapshot.index + 1 {
        return Err(LogError::Gap { from: snapshot.index + 1, to: first.index - 1 });
    }
    let holds = replay.reset == Some(at)
        || replay.entries.iter().any(|entry| (entry.index, entry.term) == at)
        || (first.index == snapshot.index + 1 && replay.reset.is_none());
    if !holds {
        // The snapshot was installed over a log that had gone another way, and the crash came before the reset.
        mark!("log-dropped-for-snapshot");
        replay.entries.clear();
        replay.dropped = true;
        return Ok(at);
    }
    if let Some(reset) = replay.reset.filter(|reset| reset.0 + 1 == first.index) {
        return Ok(reset);
    }
    if first.index == snapshot.index + 1 {
        return Ok(at);
    }
    // The term of the entry before the first one is not known: the first one takes its place.
    let first = replay.entries.remove(0);
    Ok((first.index, first.term))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::MemoryDisk;
    use basalt_model::{DiskId, MemberId};

    #[test]
    fn a_removal_that_a_crash_undid_is_done_again() {
        let mut disk = MemoryDisk::new();
        let member = MemberId::new(1).unwrap();
        let config = LogConfig { member, new_disk: DiskId::from_random(1), segment_bytes: 4096 };
        let mut log = Log::open(disk.clone(), config).unwrap();
        log.bootstrap(vec![7]).unwrap();
        log.install_snapshot(Snapshot { index: 9, ..log.snapshot().unwrap().clone() }).unwrap();
        for _ in 0..3 {
            log.roll().unwrap();
        }
        log.set_hard_state(HardState { term: 5, vote: 1, commit: 9 });
        log.sync().unwrap();
        drop(log);
        disk.remove(&segment_name(2)).unwrap();
        let log = Log::open(disk.clone(), config).unwrap();
        assert_eq!((log.last(), log.hard.term), ((9, 1), 5));
        assert!(!disk.list().unwrap().contains(&segment_name(1)));
    }
}
