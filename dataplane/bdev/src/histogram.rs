use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Sub-buckets per power of two: a bucket is at most an eighth wide.
const SUB_BITS: u32 = 3;
const BUCKETS: usize = 64 << SUB_BITS;

/// Counts of durations in buckets that are an eighth wide, from 1 ns on. One thread records, any thread reads.
#[derive(Debug)]
pub struct LatencyHistogram {
    buckets: Box<[AtomicU64]>,
    sum_ns: AtomicU64,
}

/// What a histogram held at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistogramSnapshot {
    buckets: Vec<u64>,
    sum_ns: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        let buckets = (0..BUCKETS).map(|_| AtomicU64::new(0)).collect();
        Self { buckets, sum_ns: AtomicU64::new(0) }
    }
}

fn bucket_of(ns: u64) -> usize {
    if ns < 1 << SUB_BITS {
        return usize::try_from(ns).unwrap_or(0);
    }
    let exponent = ns.ilog2();
    let sub = (ns >> (exponent - SUB_BITS)) & ((1 << SUB_BITS) - 1);
    ((exponent - SUB_BITS + 1) as usize) << SUB_BITS | usize::try_from(sub).unwrap_or(0)
}

/// Smallest duration above a bucket, in nanoseconds.
fn upper_ns(bucket: usize) -> u64 {
    let (group, sub) = (bucket >> SUB_BITS, (bucket & ((1 << SUB_BITS) - 1)) as u64);
    if group == 0 {
        return sub + 1;
    }
    let width = 1_u64.checked_shl(u32::try_from(group - 1).unwrap_or(u32::MAX)).unwrap_or(u64::MAX);
    width.saturating_mul((1 << SUB_BITS) + sub + 1)
}

/// Adds without a locked instruction: there is one writer.
fn add(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl LatencyHistogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        add(&self.buckets[bucket_of(ns)], 1);
        add(&self.sum_ns, ns);
    }

    /// What it holds now.
    #[must_use]
    pub fn snapshot(&self) -> HistogramSnapshot {
        HistogramSnapshot {
            buckets: self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect(),
            sum_ns: self.sum_ns.load(Ordering::Relaxed),
        }
    }
}

impl HistogramSnapshot {
    /// Durations counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum_ns)
    }

    /// Their mean; zero if there are none.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum_ns / self.count().max(1))
    }

    /// Durations that are shorter than `bound`: all of them if it is a power of two of nanoseconds, else those in buckets that
    /// end below it.
    #[must_use]
    pub fn count_below(&self, bound: Duration) -> u64 {
        let bound = u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX);
        let below = self.buckets.iter().enumerate().take_while(|(bucket, _)| upper_ns(*bucket) <= bound);
        below.map(|(_, count)| count).sum()
    }

    /// An upper bound, at most an eighth too high, of the duration that `per_mille` of a thousand do not exceed; zero if there
    /// are none.
    #[must_use]
    pub fn quantile(&self, per_mille: u64) -> Duration {
        let rank = (self.count() * per_mille.min(1000)).div_ceil(1000).max(1);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_ns(bucket));
            }
        }
        Duration::ZERO
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Self) {
        self.sum_ns = self.sum_ns.wrapping_add(other.sum_ns);
        for (own, others) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += others;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_every_duration_in_order() {
        let mut last = 0;
        for ns in (0..10_000).chain((14..64).map(|exponent| (1 << exponent) - 1)).chain([u64::MAX]) {
            let bucket = bucket_of(ns);
            assert!(bucket >= last && bucket < BUCKETS, "{ns}");
            assert!(upper_ns(bucket) > ns || upper_ns(bucket) == u64::MAX, "{ns} in {bucket}");
            assert!(upper_ns(bucket) <= ns.saturating_add(1 + ns / 8), "{ns} in {bucket}");
            last = bucket;
        }
    }

    #[test]
    fn quantiles_bound_what_was_recorded() {
        let histogram = LatencyHistogram::default();
        for us in 1..=1000 {
            histogram.record(Duration::from_micros(us));
        }
        let mut snapshot = histogram.snapshot();
        assert_eq!(snapshot.count(), 1000);
        assert_eq!(snapshot.mean(), Duration::from_nanos(500_500));
        let median = snapshot.quantile(500);
        assert!(median >= Duration::from_micros(500) && median <= Duration::from_micros(563), "{median:?}");
        assert!(snapshot.quantile(1000) >= Duration::from_millis(1));
        snapshot.merge(&histogram.snapshot());
        assert_eq!(snapshot.count(), 2000);
    }

    #[test]
    fn counts_below_a_power_of_two_are_exact() {
        let histogram = LatencyHistogram::default();
        let all: Vec<u64> = (0..5000).chain((0..64).flat_map(|e| [(1 << e) - 1, 1 << e])).collect();
        for ns in &all {
            histogram.record(Duration::from_nanos(*ns));
        }
        let snapshot = histogram.snapshot();
        for exponent in 0..64 {
            let below = all.iter().filter(|ns| **ns < 1 << exponent).count();
            let counted = snapshot.count_below(Duration::from_nanos(1 << exponent));
            assert_eq!(counted, below as u64, "2^{exponent} ns");
        }
        assert_eq!(snapshot.count_below(Duration::ZERO), 0);
    }
}
