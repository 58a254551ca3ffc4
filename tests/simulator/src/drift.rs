//! Clocks that do not agree: each process reads the world's time through its own.

use basalt_clock::{Instant, Random, SeededRandom};
use std::time::Duration;

/// One process's view of the world's time: an offset that it starts with and a rate that is a little off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriftingClock {
    offset: Duration,
    /// Nanoseconds gained (or lost) per million.
    rate_ppm: i32,
}

impl DriftingClock {
    /// The most that a clock gains or loses, in parts per million.
    pub const RATE_PPM_MAX: u64 = 500;

    /// A clock that shows the world's time.
    pub const TRUE: Self = Self { offset: Duration::ZERO, rate_ppm: 0 };

    /// A clock that is up to a day ahead and up to [`Self::RATE_PPM_MAX`] too fast or too slow.
    pub fn random(random: &mut SeededRandom) -> Self {
        let rate = random.below(2 * Self::RATE_PPM_MAX + 1);
        Self {
            offset: Duration::from_nanos(random.below(86_400_000_000_000)),
            rate_ppm: i32::try_from(rate).unwrap_or(0) - i32::try_from(Self::RATE_PPM_MAX).unwrap_or(0),
        }
    }

    /// What the clock shows at the world's time `at`.
    pub fn show(&self, at: Instant) -> Instant {
        let nanos = at.as_nanos();
        let gained = u128::from(nanos) * u128::from(self.rate_ppm.unsigned_abs()) / 1_000_000;
        let gained = u64::try_from(gained).unwrap_or(u64::MAX);
        let rated = if self.rate_ppm < 0 { nanos - gained } else { nanos.saturating_add(gained) };
        Instant::from_nanos(rated) + self.offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_true_clock_shows_the_worlds_time() {
        assert_eq!(DriftingClock::TRUE.show(Instant::from_nanos(77)), Instant::from_nanos(77));
    }

    #[test]
    fn drift_is_bounded_and_never_goes_back() {
        for seed in 0..100 {
            let clock = DriftingClock::random(&mut SeededRandom::new(seed));
            let hour = Duration::from_secs(3600);
            let (mut world, mut last) = (Instant::ORIGIN, clock.show(Instant::ORIGIN));
            for _ in 0..10 {
                world += hour;
                let shown = clock.show(world);
                let passed = shown - last;
                let error = passed.abs_diff(hour);
                assert!(error <= Duration::from_millis(1801), "seed {seed}: {error:?}");
                assert!(shown > last);
                last = shown;
            }
        }
    }
}
