//! Whether the disks of open pools do what they should: judged by the requests that fail on them, and by what their providers have found.
//! Pure but for the device's properties.

use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{AsyncChannel, Backing, BlockDevice, DeviceFaults, FaultCounts, IoError, Lba};
use basalt_clock::{Instant, mark};
use basalt_dma::Buffer;
use basalt_reactor::Handle;

use crate::report::{DiskHealth, Problem, Reason};

/// How often disks are looked at.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a disk on which nothing succeeds is probed.
pub(crate) const PROBE_INTERVAL: Duration = Duration::from_secs(3);
/// So many looks in which requests failed, and none succeeded since the first of them, make a disk faulted.
const FAILING_LOOKS: u32 = 3;
/// A disk on which requests succeed again, and none fail for this long, is only suspected.
const WORKS_AGAIN: Duration = Duration::from_secs(5);
/// And after this long it is as good as any.
const SOUND_AGAIN: Duration = Duration::from_secs(30);

/// What is thought of one direction of a disk's requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Verdict {
    #[default]
    Sound,
    Suspected,
    Faulted,
}

/// What was seen of one direction so far.
#[derive(Debug, Default)]
struct Trend {
    seen: FaultCounts,
    verdict: Verdict,
    /// Looks that saw failures since a request succeeded.
    failing_looks: u32,
    /// The last look that saw a failure.
    failed_at: Option<Instant>,
    /// A request has succeeded since.
    works: bool,
}

impl Trend {
    fn look(&mut self, now: Instant, counts: FaultCounts) {
        let failed = counts.failed > self.seen.failed;
        let succeeded = counts.succeeded > self.seen.succeeded;
        self.seen = counts;
        if succeeded {
            self.failing_looks = 0;
            self.works = true;
        }
        if failed {
            self.failing_looks += 1;
            self.failed_at = Some(now);
            self.works = false;
            let certain = matches!(counts.last, Some(IoError::ReadOnly | IoError::DeviceGone));
            let persistent = certain || self.failing_looks >= FAILING_LOOKS;
            self.verdict = self.verdict.max(if persistent { Verdict::Faulted } else { Verdict::Suspected });
            return;
        }
        let Some(failed_at) = self.failed_at else { return };
        let quiet = now - failed_at;
        if self.works && quiet >= SOUND_AGAIN {
            self.verdict = Verdict::Sound;
        } else if self.works && quiet >= WORKS_AGAIN {
            self.verdict = self.verdict.min(Verdict::Suspected);
        }
    }
}

/// Watches one disk of an open pool.
#[derive(Debug)]
pub(crate) struct DiskWatch {
    path: String,
    device: Arc<dyn BlockDevice>,
    reads: Trend,
    writes: Trend,
    /// What had become of its file at the last look.
    backing: Backing,
}

impl DiskWatch {
    /// Takes the disk for sound, whatever failed on it before.
    pub(crate) fn new(path: String, device: Arc<dyn BlockDevice>) -> Self {
        let DeviceFaults { reads, writes } = device.info().faults();
        let trend = |seen| Trend { seen, ..Trend::default() };
        let backing = device.info().backing();
        Self { path, device, reads: trend(reads), writes: trend(writes), backing }
    }

    /// The disk's path.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Bytes of the disk.
    pub(crate) fn capacity(&self) -> u64 {
        self.device.info().bytes()
    }

    /// The disk, if nothing succeeds on it any more: then no host asks it for anything either, and only a probe can find that it works.
    pub(crate) fn to_probe(&self) -> Option<Arc<dyn BlockDevice>> {
        let for_good = matches!(self.backing, Backing::Shortened { .. });
        let faulted = self.reads.verdict.max(self.writes.verdict) == Verdict::Faulted && !for_good;
        faulted.then(|| Arc::clone(&self.device))
    }

    /// Looks at what happened since the last time; true if that changes what is said of the disk.
    pub(crate) fn look(&mut self, now: Instant) -> bool {
        let before = self.judgement();
        let DeviceFaults { reads, writes } = self.device.info().faults();
        self.reads.look(now, reads);
        self.writes.look(now, writes);
        self.backing = self.device.info().backing();
        let after = self.judgement();
        if before == after {
            return false;
        }
        match &after.1 {
            Some(problem) => {
                mark!("agent-disk-failing");
                tracing::warn!(disk = self.path, health = ?after.0, "{}", problem.message);
            }
            None => {
                self.device.info().trust();
                tracing::info!(disk = self.path, "the disk is sound again");
            }
        }
        true
    }

    /// Whether the disk is not at its path any more. It serves all the same, as long as the process runs.
    pub(crate) fn is_displaced(&self) -> bool {
        matches!(self.backing, Backing::Deleted | Backing::Elsewhere)
    }

    /// What is said of the disk.
    pub(crate) fn judgement(&self) -> (DiskHealth, Option<Problem>) {
        if let Backing::Shortened { .. } = self.backing {
            let message = format!("{}: {}", self.path, self.backing);
            return (DiskHealth::Faulted, Some(Problem::new(Reason::DiskTooSmall, message)));
        }
        let (what, trend) = if self.reads.verdict > self.writes.verdict {
            ("reads", &self.reads)
        } else {
            ("writes", &self.writes)
        };
        let cause = trend.seen.last.map(|error| error.to_string()).unwrap_or_default();
        let path = &self.path;
        let problem = |message| Some(Problem::new(Reason::DiskErrors, message));
        if self.is_displaced() && trend.verdict != Verdict::Faulted {
            let message = format!("{path}: {}", self.backing);
            return (DiskHealth::Suspected, Some(Problem::new(Reason::DiskMissing, message)));
        }
        match trend.verdict {
            Verdict::Sound => (DiskHealth::Online, None),
            Verdict::Suspected => {
                let message = format!(
                    "{what} of {path} have failed ({cause}): look at the disk and at the kernel's log of its machine, and replace \
                     it if that goes on"
                );
                (DiskHealth::Suspected, problem(message))
            }
            Verdict::Faulted => {
                let message = format!(
                    "{what} of {path} fail ({cause}), and hosts are told so: look at the disk and at the kernel's log of its \
                     machine; it is in order again once its {what} succeed"
                );
                (DiskHealth::Faulted, problem(message))
            }
        }
    }
}

/// Where a probe writes: the disk format keeps zeroes there (docs/disk-format.md, "A disk").
const PROBE_OFFSET: u64 = 256 << 10;
/// Bytes of a probe.
const PROBE_BYTES: usize = 4096;

/// Reads and writes a little on a disk of a pool where nothing is kept. What comes of it is in the device's counters.
pub(crate) async fn probe(handle: &Handle, device: Arc<dyn BlockDevice>) {
    let Ok(channel) = device.open(handle) else { return };
    let channel = AsyncChannel::new(handle, channel);
    let block = device.info().block_size();
    let (at, count) = (Lba(block.blocks_in(PROBE_OFFSET).0), block.blocks_in(PROBE_BYTES as u64));
    // Failures are counted where successes are.
    drop(channel.read(at, count, Buffer::zeroed(PROBE_BYTES)).await);
    drop(channel.write(at, count, Buffer::zeroed(PROBE_BYTES), false).await);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks once a second at what comes: failures and successes of each second.
    fn verdicts(error: IoError, seconds: &[(u64, u64)]) -> Vec<Verdict> {
        let mut trend = Trend::default();
        let (mut counts, mut now) =
            (FaultCounts { last: Some(error), ..FaultCounts::default() }, Instant::ORIGIN);
        let mut look = |&(failed, succeeded): &(u64, u64)| {
            now += LOOK_INTERVAL;
            counts.failed += failed;
            counts.succeeded += succeeded;
            trend.look(now, counts);
            trend.verdict
        };
        seconds.iter().map(&mut look).collect()
    }

    #[test]
    fn a_disk_is_suspected_at_once_and_faulted_when_nothing_succeeds_any_more() {
        use Verdict::{Faulted, Sound, Suspected};
        assert_eq!(
            verdicts(IoError::Medium, &[(0, 0), (5, 0), (0, 0), (1, 0), (1, 0)]),
            [Sound, Suspected, Suspected, Suspected, Faulted]
        );
        assert_eq!(verdicts(IoError::Medium, &[(1, 9); 20]), [Suspected; 20], "some requests succeed");
        assert_eq!(verdicts(IoError::ReadOnly, &[(1, 0)]), [Faulted], "there is no doubt");
    }

    #[test]
    fn a_disk_is_sound_again_after_a_while_of_success() {
        use Verdict::{Faulted, Sound, Suspected};
        let mut seconds = vec![(1, 0); 3];
        seconds.extend([(0, 0); 100]);
        assert_eq!(verdicts(IoError::Medium, &seconds)[102], Faulted, "silence proves nothing");
        seconds.push((0, 1));
        let after = verdicts(IoError::Medium, &seconds);
        assert_eq!(after[103], Sound);
        let mut seconds = vec![(1, 0); 3];
        seconds.extend([(0, 1); 30]);
        let after = verdicts(IoError::Medium, &seconds);
        assert_eq!((after[3], after[7], after[31], after[32]), (Faulted, Suspected, Suspected, Sound));
    }
}
