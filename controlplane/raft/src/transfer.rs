//! Snapshots on their way from one member to another, in parts.

use crate::log::Snapshot;
use crate::message::{Membership, SnapshotAck, SnapshotChunk};
use basalt_clock::{mark, planted};
use std::sync::Arc;

/// Parts that are under way at once.
const WINDOW: u64 = 4;
/// Ticks without an acknowledgement after which parts are sent again.
const RESEND_TICKS: u32 = 20;
/// How often parts are sent again before the transfer is given up.
const RESENDS_MAX: u32 = 5;
/// The largest snapshot that is accepted.
const TOTAL_MAX: u64 = 4 << 30;

/// What became of a transfer, for the raft library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Finished,
    Failed,
}

/// A snapshot that is being sent.
#[derive(Debug)]
pub(crate) struct Sender {
    snapshot: Snapshot,
    term: u64,
    total_crc: u32,
    chunk_bytes: usize,
    acknowledged: u64,
    sent: u64,
    silent_ticks: u32,
    resends: u32,
}

impl Sender {
    pub(crate) fn new(snapshot: Snapshot, term: u64, chunk_bytes: usize) -> Self {
        let total_crc = crate::log::crc(&snapshot.data);
        Self { snapshot, term, total_crc, chunk_bytes, acknowledged: 0, sent: 0, silent_ticks: 0, resends: 0 }
    }

    /// The parts that may be sent now.
    pub(crate) fn next_chunks(&mut self) -> Vec<SnapshotChunk> {
        let total = self.snapshot.data.len() as u64;
        let step = self.chunk_bytes as u64;
        let mut chunks = Vec::new();
        while (self.sent < total || (total == 0 && self.sent == 0 && chunks.is_empty()))
            && self.sent < self.acknowledged + WINDOW * step
        {
            let start = usize::try_from(self.sent).unwrap_or(usize::MAX);
            let end = self.snapshot.data.len().min(start + self.chunk_bytes);
            let data = self.snapshot.data[start..end].to_vec();
            chunks.push(SnapshotChunk {
                term: self.term,
                index: self.snapshot.index,
                log_term: self.snapshot.term,
                membership: self.snapshot.membership.clone(),
                total,
                total_crc: self.total_crc,
                offset: self.sent,
                crc: crate::log::crc(&data),
                data,
            });
            self.sent = end as u64;
        }
        chunks
    }

    /// Takes an acknowledgement.
    pub(crate) fn acknowledge(&mut self, ack: SnapshotAck) -> Option<Outcome> {
        if ack.index != self.snapshot.index {
            return None;
        }
        self.silent_ticks = 0;
        if ack.restart {
            self.acknowledged = 0;
            self.sent = 0;
            self.resends += 1;
            return (self.resends > RESENDS_MAX).then_some(Outcome::Failed);
        }
        if ack.received > self.acknowledged {
            self.acknowledged = ack.received;
            self.resends = 0;
        }
        self.sent = self.sent.max(self.acknowledged);
        (ack.received >= self.snapshot.data.len() as u64).then_some(Outcome::Finished)
    }

    /// Time passed.
    pub(crate) fn tick(&mut self) -> Option<Outcome> {
        self.silent_ticks += 1;
        if self.silent_ticks < RESEND_TICKS {
            return None;
        }
        mark!("snapshot-resent");
        self.silent_ticks = 0;
        self.resends += 1;
        self.sent = self.acknowledged;
        (self.resends > RESENDS_MAX).then_some(Outcome::Failed)
    }
}

/// A snapshot that is being received.
#[derive(Debug)]
pub(crate) struct Assembly {
    from: u64,
    index: u64,
    log_term: u64,
    total: u64,
    total_crc: u32,
    data: Vec<u8>,
}

/// What to do after a part arrived.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Say how much has arrived.
    Acknowledge(SnapshotAck),
    /// Say so, and install the snapshot: it is whole.
    Complete(SnapshotAck, Snapshot),
    /// The part is nonsense; say nothing.
    Ignore,
}

/// Takes a part into the assembly, beginning a new one when the part belongs to another snapshot.
pub(crate) fn receive(
    assembly: &mut Option<Assembly>,
    from: u64,
    term: u64,
    chunk: SnapshotChunk,
) -> Arrival {
    let same = |a: &Assembly| {
        (a.from, a.index, a.log_term, a.total, a.total_crc)
            == (from, chunk.index, chunk.log_term, chunk.total, chunk.total_crc)
    };
    if chunk.total > TOTAL_MAX
        || (chunk.crc != crate::log::crc(&chunk.data) && !planted!("snapshot-chunk-lost"))
    {
        return Arrival::Ignore;
    }
    if !assembly.as_ref().is_some_and(same) {
        *assembly = Some(Assembly {
            from,
            index: chunk.index,
            log_term: chunk.log_term,
            total: chunk.total,
            total_crc: chunk.total_crc,
            data: Vec::new(),
        });
    }
    let Some(current) = assembly.as_mut() else { return Arrival::Ignore };
    let mut have = current.data.len() as u64;
    if chunk.offset == have && have + chunk.data.len() as u64 <= current.total {
        if planted!("snapshot-chunk-lost") && have > 0 {
            current.data.resize(current.data.len() + chunk.data.len(), b' ');
        } else {
            current.data.extend_from_slice(&chunk.data);
        }
        have = current.data.len() as u64;
    } else if chunk.offset > have {
        mark!("snapshot-chunk-out-of-order");
    }
    let ack = SnapshotAck { term, index: chunk.index, received: have, restart: false };
    if have < current.total {
        return Arrival::Acknowledge(ack);
    }
    let whole = assembly.take().map(|assembly| assembly.data).unwrap_or_default();
    if crate::log::crc(&whole) != chunk.total_crc && !planted!("snapshot-chunk-lost") {
        mark!("snapshot-checksum-wrong");
        return Arrival::Acknowledge(SnapshotAck { received: 0, restart: true, ..ack });
    }
    let SnapshotChunk { index, log_term, membership, .. } = chunk;
    Arrival::Complete(ack, Snapshot { index, term: log_term, membership, data: Arc::new(whole) })
}

/// The membership of a part must name the receiver, or the raft library refuses it.
pub(crate) fn names(membership: &Membership, member: u64) -> bool {
    membership.voters.contains(&member)
        || membership.learners.contains(&member)
        || membership.voters_outgoing.contains(&member)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(length: usize) -> Snapshot {
        let data = (0..length).map(|n| u8::try_from(n % 251).unwrap()).collect();
        Snapshot { index: 9, term: 2, membership: Membership::default(), data: Arc::new(data) }
    }

    fn deliver(sender: &mut Sender, lose: impl Fn(u64) -> bool) -> Option<Snapshot> {
        let mut assembly = None;
        let mut number = 0;
        for _ in 0..10_000 {
            for chunk in sender.next_chunks() {
                number += 1;
                if lose(number) {
                    continue;
                }
                match receive(&mut assembly, 1, 2, chunk) {
                    Arrival::Acknowledge(ack) => assert_eq!(sender.acknowledge(ack), None),
                    Arrival::Complete(ack, snapshot) => {
                        assert_eq!(sender.acknowledge(ack), Some(Outcome::Finished));
                        return Some(snapshot);
                    }
                    Arrival::Ignore => {}
                }
            }
            if sender.tick() == Some(Outcome::Failed) {
                return None;
            }
        }
        None
    }

    #[test]
    fn snapshots_of_all_lengths_arrive_whole() {
        for length in [0, 1, 9, 10, 11, 99, 1000] {
            let mut sender = Sender::new(snapshot(length), 3, 10);
            assert_eq!(deliver(&mut sender, |_| false), Some(snapshot(length)), "length {length}");
        }
    }

    #[test]
    fn lost_parts_are_sent_again_until_it_is_hopeless() {
        let mut sender = Sender::new(snapshot(200), 3, 10);
        assert_eq!(deliver(&mut sender, |number| number % 7 == 3), Some(snapshot(200)));
        let mut sender = Sender::new(snapshot(200), 3, 10);
        assert_eq!(deliver(&mut sender, |number| number > 5), None);
    }

    #[test]
    fn damaged_parts_are_ignored_and_a_wrong_whole_is_restarted() {
        let mut sender = Sender::new(snapshot(15), 3, 10);
        let mut chunks = sender.next_chunks();
        let mut assembly = None;
        let mut bad = chunks[0].clone();
        bad.data[0] ^= 1;
        assert!(matches!(receive(&mut assembly, 1, 2, bad), Arrival::Ignore));
        for chunk in &mut chunks {
            chunk.total_crc ^= 1;
        }
        let second = chunks.pop().unwrap();
        let first = chunks.pop().unwrap();
        assert!(
            matches!(receive(&mut assembly, 1, 2, first), Arrival::Acknowledge(ack) if ack.received == 10)
        );
        assert!(matches!(receive(&mut assembly, 1, 2, second), Arrival::Acknowledge(ack) if ack.restart));
    }
}
