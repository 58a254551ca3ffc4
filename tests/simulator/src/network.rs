//! A network that loses, delays, repeats and reorders messages, and that can be cut in one or both directions.

use basalt_clock::{Instant, Random, SeededRandom};
use std::collections::BTreeSet;
use std::time::Duration;

/// A process as the network knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub u32);

/// How the network treats messages. Parts are of a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weather {
    /// The least time a message takes.
    pub delay_min: Duration,
    /// The most time a message takes, unless it is delayed on top.
    pub delay_max: Duration,
    /// Messages that never arrive.
    pub lost: u32,
    /// Messages that arrive twice.
    pub repeated: u32,
    /// Messages that take up to [`Weather::LATE_MAX`] longer.
    pub late: u32,
}

impl Weather {
    /// The most that a late message is late.
    pub const LATE_MAX: Duration = Duration::from_secs(2);

    /// Nothing is lost, little is slow.
    pub const CALM: Self = Self {
        delay_min: Duration::from_micros(50),
        delay_max: Duration::from_micros(500),
        lost: 0,
        repeated: 0,
        late: 0,
    };

    /// One of many kinds of bad weather.
    pub fn bad(random: &mut SeededRandom) -> Self {
        let part = |random: &mut SeededRandom, most: u64| match random.below(3) {
            0 => 0,
            _ => u32::try_from(random.below(most)).unwrap_or(0),
        };
        let delay_max = Duration::from_micros(random.within(200..30_000));
        Self {
            delay_min: Duration::from_micros(50),
            delay_max,
            lost: part(random, 50_000),
            repeated: part(random, 50_000),
            late: part(random, 20_000),
        }
    }
}

/// What became of messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lost by the weather.
    pub lost: u64,
    /// Delivered twice.
    pub repeated: u64,
    /// Delivered late.
    pub late: u64,
    /// Stopped by a cut.
    pub cut: u64,
}

impl Tally {
    /// All faults together, where the messages stopped by a cut are not counted: the cut is one fault.
    pub fn faults(&self) -> u64 {
        self.lost + self.repeated + self.late
    }
}

/// The network between all processes of one world.
#[derive(Debug)]
pub struct Network {
    random: SeededRandom,
    weather: Weather,
    /// Pairs (from, to) between which nothing passes.
    cut: BTreeSet<(Address, Address)>,
    tally: Tally,
}

impl Network {
    /// A calm network.
    pub fn new(random: SeededRandom) -> Self {
        Self { random, weather: Weather::CALM, cut: BTreeSet::new(), tally: Tally::default() }
    }

    /// Changes how messages that are sent from now on are treated.
    pub fn set_weather(&mut self, weather: Weather) {
        self.weather = weather;
    }

    /// What became of messages until now.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Lets nothing pass from `from` to `to` any more, messages under way included.
    pub fn cut_one_way(&mut self, from: Address, to: Address) {
        self.cut.insert((from, to));
    }

    /// Separates `side` from everyone else of `all`.
    pub fn cut_off(&mut self, side: &[Address], all: &[Address]) {
        for inside in side {
            for outside in all.iter().filter(|address| !side.contains(address)) {
                self.cut.insert((*inside, *outside));
                self.cut.insert((*outside, *inside));
            }
        }
    }

    /// Mends every cut.
    pub fn mend(&mut self) {
        self.cut.clear();
    }

    /// Whether messages pass from `from` to `to`. Ask again when a message arrives.
    pub fn passes(&self, from: Address, to: Address) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// The moments at which a message that is sent now arrives: none, one or two.
    pub fn send(&mut self, now: Instant, from: Address, to: Address) -> Vec<Instant> {
        if !self.passes(from, to) {
            self.tally.cut += 1;
            return Vec::new();
        }
        if self.happens(self.weather.lost) {
            self.tally.lost += 1;
            return Vec::new();
        }
        let mut arrivals = vec![now + self.delay()];
        if self.happens(self.weather.repeated) {
            self.tally.repeated += 1;
            arrivals.push(now + self.delay());
        }
        arrivals
    }

    fn happens(&mut self, parts: u32) -> bool {
        parts > 0 && self.random.chance(u64::from(parts), 1_000_000)
    }

    fn delay(&mut self) -> Duration {
        let Weather { delay_min, delay_max, late, .. } = self.weather;
        let spread = u64::try_from((delay_max - delay_min).as_nanos()).unwrap_or(u64::MAX);
        let mut delay = delay_min + Duration::from_nanos(self.random.below(spread + 1));
        if self.happens(late) {
            self.tally.late += 1;
            let most = u64::try_from(Weather::LATE_MAX.as_nanos()).unwrap_or(u64::MAX);
            delay += Duration::from_nanos(self.random.below(most));
        }
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Address = Address(1);
    const B: Address = Address(2);
    const C: Address = Address(3);

    fn network() -> Network {
        Network::new(SeededRandom::new(9))
    }

    #[test]
    fn calm_weather_delivers_each_message_once_within_its_bounds() {
        let mut network = network();
        for _ in 0..1000 {
            let arrivals = network.send(Instant::ORIGIN, A, B);
            let [at] = arrivals[..] else { panic!("{arrivals:?}") };
            let delay = at - Instant::ORIGIN;
            assert!((Weather::CALM.delay_min..=Weather::CALM.delay_max).contains(&delay));
        }
        assert_eq!(network.tally(), Tally::default());
    }

    #[test]
    fn bad_weather_loses_repeats_and_reorders() {
        let mut network = network();
        network.set_weather(Weather { lost: 100_000, repeated: 100_000, late: 100_000, ..Weather::CALM });
        let arrivals: Vec<Vec<Instant>> = (0..1000).map(|_| network.send(Instant::ORIGIN, A, B)).collect();
        let tally = network.tally();
        assert!((50..200).contains(&tally.lost) && (50..200).contains(&tally.repeated), "{tally:?}");
        assert!((50..250).contains(&tally.late), "{tally:?}");
        assert_eq!(arrivals.iter().filter(|times| times.is_empty()).count() as u64, tally.lost);
        assert_eq!(arrivals.iter().filter(|times| times.len() == 2).count() as u64, tally.repeated);
        let firsts: Vec<Instant> = arrivals.iter().filter_map(|times| times.first().copied()).collect();
        assert!(firsts.windows(2).any(|pair| pair[1] < pair[0]), "nothing was reordered");
    }

    #[test]
    fn a_cut_of_one_way_leaves_the_other() {
        let mut network = network();
        network.cut_one_way(A, B);
        assert!(network.send(Instant::ORIGIN, A, B).is_empty());
        assert_eq!(network.send(Instant::ORIGIN, B, A).len(), 1);
        assert_eq!(network.tally().cut, 1);
        network.mend();
        assert!(network.passes(A, B));
    }

    #[test]
    fn a_side_that_is_cut_off_still_talks_within() {
        let mut network = network();
        network.cut_off(&[A, B], &[A, B, C]);
        assert!(network.passes(A, B) && !network.passes(A, C) && !network.passes(C, B));
    }

    #[test]
    fn the_seed_decides() {
        let run = |seed| {
            let mut network = Network::new(SeededRandom::new(seed));
            let mut random = SeededRandom::new(seed);
            network.set_weather(Weather::bad(&mut random));
            (0..100).map(|_| network.send(Instant::ORIGIN, A, B)).collect::<Vec<_>>()
        };
        assert_eq!(run(4), run(4));
        assert_ne!(run(4), run(5));
    }
}
