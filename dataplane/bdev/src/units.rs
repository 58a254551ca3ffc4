use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// Address of a block on a device, counted in blocks from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

/// A number of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockCount(pub u64);

impl Lba {
    /// The first block.
    pub const ZERO: Self = Self(0);

    /// The block `count` blocks further on, if there can be one.
    #[must_use]
    pub fn checked_add(self, count: BlockCount) -> Option<Self> {
        self.0.checked_add(count.0).map(Self)
    }
}

impl Add<BlockCount> for Lba {
    type Output = Self;

    /// # Panics
    /// If the sum exceeds 64 bits: addresses from outside are checked with [`Lba::checked_add`] first.
    fn add(self, count: BlockCount) -> Self {
        match self.checked_add(count) {
            Some(sum) => sum,
            None => panic!("block address {self} + {count} overflows"),
        }
    }
}

impl Sub for Lba {
    type Output = BlockCount;

    /// Blocks from `earlier` to this one.
    ///
    /// # Panics
    /// If `earlier` is later.
    fn sub(self, earlier: Self) -> BlockCount {
        assert!(earlier <= self, "{earlier} lies behind {self}");
        BlockCount(self.0 - earlier.0)
    }
}

impl Add for BlockCount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for BlockCount {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

impl fmt::Display for BlockCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks", self.0)
    }
}

/// Bytes per block: a power of two from 512 to 65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSize {
    shift: u8,
}

impl BlockSize {
    /// 512 bytes.
    pub const B512: Self = Self { shift: 9 };
    /// 4096 bytes.
    pub const B4096: Self = Self { shift: 12 };

    /// The block size of so many bytes; `None` if that is not a power of two from 512 to 65536.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if !bytes.is_power_of_two() || bytes < 512 || bytes > 65536 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "the logarithm of a u32 is below 32")]
        let shift = bytes.ilog2() as u8;
        Some(Self { shift })
    }

    /// Bytes per block.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        1 << self.shift
    }

    /// Logarithm of the bytes per block to base two.
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.shift as u32
    }

    /// Bytes in so many blocks, saturating at the top of 64 bits.
    #[must_use]
    pub const fn bytes_of(self, count: BlockCount) -> u64 {
        count.0.saturating_mul(self.bytes() as u64)
    }

    /// Position of a block in bytes, saturating at the top of 64 bits.
    #[must_use]
    pub const fn offset_of(self, lba: Lba) -> u64 {
        lba.0.saturating_mul(self.bytes() as u64)
    }

    /// Whole blocks in so many bytes; a remainder is dropped.
    #[must_use]
    pub const fn blocks_in(self, bytes: u64) -> BlockCount {
        BlockCount(bytes >> self.shift)
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_powers_of_two_in_bounds() {
        for bad in [0, 1, 256, 513, 131_072] {
            assert_eq!(BlockSize::new(bad), None);
        }
        assert_eq!(BlockSize::new(512), Some(BlockSize::B512));
        assert_eq!(BlockSize::new(65536).map(BlockSize::bytes), Some(65536));
        assert_eq!(BlockSize::B4096.bytes_of(BlockCount(3)), 12288);
        assert_eq!(BlockSize::B4096.blocks_in(12289), BlockCount(3));
        assert_eq!(BlockSize::B512.offset_of(Lba(u64::MAX)), u64::MAX);
    }
}
