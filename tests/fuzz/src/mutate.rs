//! How inputs are changed.

use basalt_clock::{Random, SeededRandom};

use crate::corpus::INPUT_BYTES_MAX;

/// Changes inputs, as its seed says.
#[derive(Debug)]
pub struct Mutator {
    random: SeededRandom,
}

/// Numbers at which parsers decide.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x1000,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

impl Mutator {
    /// One with this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { random: SeededRandom::new(seed) }
    }

    fn at(&mut self, len: usize) -> usize {
        usize::try_from(self.random.below(len.max(1) as u64)).unwrap_or(0)
    }

    /// A new input made of one of `inputs`, now and then of two of them.
    pub fn input(&mut self, inputs: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = inputs[self.at(inputs.len())].clone();
        if self.random.chance(1, 8) {
            let other = &inputs[self.at(inputs.len())];
            let (keep, from) = (self.at(bytes.len() + 1), self.at(other.len() + 1));
            bytes.truncate(keep);
            bytes.extend_from_slice(&other[from..]);
        }
        // Few changes leave the rest valid, which is what reaches far.
        let most = self.random.below(4);
        let changes = 1 + self.random.below(1 << most);
        for _ in 0..changes {
            self.change(&mut bytes);
        }
        bytes.truncate(INPUT_BYTES_MAX);
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        let at = self.at(bytes.len());
        match self.random.below(8) {
            0 | 1 if !bytes.is_empty() => bytes[at] ^= 1 << self.random.below(8),
            2 if !bytes.is_empty() => bytes[at] = self.random.next_u64().to_le_bytes()[0],
            3 => self.put_number(bytes, at),
            4 => {
                let mut some = vec![0; 1 + self.at(16)];
                self.random.fill(&mut some);
                bytes.splice(at..at, some);
            }
            5 => {
                let end = (at + 1 + self.at(32)).min(bytes.len());
                bytes.drain(at.min(end)..end);
            }
            6 => {
                let end = (at + 1 + self.at(128)).min(bytes.len());
                let piece = bytes[at.min(end)..end].to_vec();
                let place = self.at(bytes.len() + 1);
                bytes.splice(place..place, piece);
            }
            _ if self.random.chance(1, 8) => bytes.truncate(at),
            _ => bytes.push(self.random.next_u64().to_le_bytes()[0]),
        }
    }

    /// Writes a number that parsers decide at, in a width of theirs.
    fn put_number(&mut self, bytes: &mut [u8], at: usize) {
        let number = NUMBERS[self.at(NUMBERS.len())];
        let number = if self.random.chance(1, 4) { number.wrapping_sub(1) } else { number };
        let width = 1 << self.random.below(4);
        let at = at.min(bytes.len());
        for (place, byte) in bytes[at..].iter_mut().take(width).zip(number.to_le_bytes()) {
            *place = byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let inputs = vec![vec![1, 2, 3], Vec::new(), vec![9; 100]];
        let made = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..500).map(|_| mutator.input(&inputs)).collect::<Vec<_>>()
        };
        assert_eq!(made(7), made(7));
        assert_ne!(made(7), made(8));
        let different: std::collections::BTreeSet<_> = made(7).into_iter().collect();
        assert!(different.len() > 300, "{} different inputs", different.len());
    }
}
