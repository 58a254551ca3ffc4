use std::ops::Range;

/// A source of random numbers: a driver's entropy or a simulation's seed.
pub trait Random {
    /// Sixty-four evenly distributed bits.
    fn next_u64(&mut self) -> u64;

    /// An evenly distributed number below `bound`.
    ///
    /// # Panics
    /// If `bound` is zero.
    fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "no number is below zero");
        // Rejection keeps the distribution even: the last, incomplete run of `bound` numbers is not used.
        let usable = u64::MAX - u64::MAX % bound;
        loop {
            let drawn = self.next_u64();
            if drawn < usable {
                return drawn % bound;
            }
        }
    }

    /// An evenly distributed number of `range`.
    ///
    /// # Panics
    /// If `range` is empty.
    fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// True in `numerator` of `denominator` cases.
    ///
    /// # Panics
    /// If `denominator` is zero.
    fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// Fills `bytes` with random bytes.
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let drawn = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
        }
    }
}

/// xoshiro256++ (Blackman and Vigna, 2019), seeded by splitmix64: fast, reproducible, not for secrets.
#[derive(Debug, Clone)]
pub struct SeededRandom {
    state: [u64; 4],
}

impl SeededRandom {
    /// The sequence that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut mixer = seed;
        let mut state = [0; 4];
        for word in &mut state {
            mixer = mixer.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mixer;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *word = z ^ (z >> 31);
        }
        Self { state }
    }

    /// A sequence of its own that is determined by this one: one per part of a simulation, so that one part's draws do
    /// not shift another's.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.next_u64())
    }
}

impl Random for SeededRandom {
    fn next_u64(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_sequence_of_the_generator() {
        // First outputs of xoshiro256++ for the state 1, 2, 3, 4, from the authors' reference implementation.
        let mut random = SeededRandom { state: [1, 2, 3, 4] };
        let drawn: Vec<u64> = (0..4).map(|_| random.next_u64()).collect();
        assert_eq!(drawn, [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386]);
    }

    #[test]
    fn same_seed_same_sequence_and_forks_differ() {
        let (mut a, mut b) = (SeededRandom::new(7), SeededRandom::new(7));
        let (mut fork, mut same) = (a.fork(), b.fork());
        assert_eq!(fork.next_u64(), same.next_u64());
        assert_eq!(a.next_u64(), b.next_u64());
        assert_ne!(a.next_u64(), fork.next_u64());
    }

    #[test]
    fn below_reaches_every_number_and_no_other() {
        let mut random = SeededRandom::new(1);
        let mut seen = [0_u32; 5];
        for _ in 0..5000 {
            seen[usize::try_from(random.below(5)).unwrap()] += 1;
        }
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
        assert!((10..12).contains(&random.within(10..12)));
        assert!(!random.chance(0, 3) && random.chance(3, 3));
    }

    #[test]
    fn fill_covers_odd_lengths() {
        let mut bytes = [0; 13];
        SeededRandom::new(3).fill(&mut bytes);
        assert!(bytes[8..].iter().any(|byte| *byte != 0));
    }
}
