//! The content of blocks: every byte follows from the block's number and a stamp, which tells the volume and the write, so that a
//! block that is torn, or comes from another place, is recognised.

use crate::blocks::Stamp;

/// Why bytes are no block that was written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// Zeroes and other bytes, or bytes of several stamps.
    #[error("the block is torn at byte {at}: it begins with stamp {stamp:?}")]
    Torn {
        /// The stamp at the beginning.
        stamp: Stamp,
        /// The first byte that does not fit.
        at: usize,
    },
}

const WORD: usize = 8;

fn word(number: u64, stamp: Stamp, index: usize) -> u64 {
    if index == 0 {
        return stamp.0;
    }
    let mut mixed = stamp
        .0
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(number.rotate_left(17))
        .wrapping_add(index as u64);
    mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 29)
}

/// Fills the block with this number.
pub fn fill(block: &mut [u8], number: u64, stamp: Stamp) {
    if stamp == Stamp::ZEROES {
        block.fill(0);
        return;
    }
    for (index, chunk) in block.chunks_mut(WORD).enumerate() {
        chunk.copy_from_slice(&word(number, stamp, index).to_le_bytes()[..chunk.len()]);
    }
}

/// The stamp with which the block with this number was filled.
///
/// # Errors
/// When the bytes are not those of any stamp there.
pub fn stamp_of(block: &[u8], number: u64) -> Result<Stamp, Foreign> {
    let mut first = [0; WORD];
    first.copy_from_slice(&block[..WORD]);
    let stamp = Stamp(u64::from_le_bytes(first));
    for (index, chunk) in block.chunks(WORD).enumerate() {
        let expected = if stamp == Stamp::ZEROES { 0 } else { word(number, stamp, index) };
        if chunk != &expected.to_le_bytes()[..chunk.len()] {
            return Err(Foreign::Torn { stamp, at: index * WORD });
        }
    }
    Ok(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: u64 = 9;

    fn block(number: u64, stamp: Stamp) -> Vec<u8> {
        let mut block = vec![0xee; 512];
        fill(&mut block, number, stamp);
        block
    }

    #[test]
    fn a_block_tells_its_stamp() {
        for stamp in [Stamp::ZEROES, Stamp(1), Stamp(u64::MAX)] {
            assert_eq!(stamp_of(&block(HERE, stamp), HERE), Ok(stamp));
        }
    }

    #[test]
    fn a_torn_block_is_recognised() {
        let mut torn = block(HERE, Stamp(5));
        torn[256..].copy_from_slice(&block(HERE, Stamp(6))[256..]);
        assert_eq!(stamp_of(&torn, HERE), Err(Foreign::Torn { stamp: Stamp(5), at: 256 }));
        let mut half = block(HERE, Stamp(5));
        half[..256].fill(0);
        assert_eq!(stamp_of(&half, HERE), Err(Foreign::Torn { stamp: Stamp::ZEROES, at: 256 }));
    }

    #[test]
    fn a_block_from_another_place_is_recognised() {
        assert!(stamp_of(&block(HERE + 1, Stamp(5)), HERE).is_err());
    }

    #[test]
    fn a_block_tells_its_volume() {
        for volume in [3, 4] {
            let stamp = stamp_of(&block(HERE, Stamp::of(volume, 5)), HERE).unwrap();
            assert_eq!((stamp, stamp.volume()), (Stamp::of(volume, 5), volume));
        }
        assert_ne!(block(HERE, Stamp::of(3, 5))[8..], block(HERE, Stamp::of(4, 5))[8..]);
    }
}
