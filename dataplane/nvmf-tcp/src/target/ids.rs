//! Which command identifiers of a queue are in use.

/// Identifiers of one part.
const PART_BITS: u32 = 12;
const PARTS: usize = 1 << (u16::BITS - PART_BITS);
const WORDS: usize = (1 << PART_BITS) / 64;

/// The identifiers that outstanding commands have: a bit each, in parts of 512 bytes that are there once one of theirs was used.
///
/// Hosts choose identifiers as they like. SPDK's and ours number from zero, which is one part; Linux's counts in the upper four bits, which
/// is all sixteen, a cache line of each.
#[derive(Debug, Default)]
pub(crate) struct CommandIds {
    parts: [Option<Box<[u64; WORDS]>>; PARTS],
}

impl CommandIds {
    /// Takes an identifier; false if a command has it.
    #[must_use]
    #[inline]
    pub(crate) fn insert(&mut self, id: u16) -> bool {
        let part = self.parts[usize::from(id >> PART_BITS)].get_or_insert_with(|| Box::new([0; WORDS]));
        let (word, bit) = place(id);
        let free = part[word] & bit == 0;
        part[word] |= bit;
        free
    }

    /// Its command has ended.
    #[inline]
    pub(crate) fn remove(&mut self, id: u16) {
        if let Some(part) = &mut self.parts[usize::from(id >> PART_BITS)] {
            let (word, bit) = place(id);
            part[word] &= !bit;
        }
    }
}

fn place(id: u16) -> (usize, u64) {
    (usize::from(id >> 6) % WORDS, 1 << (id & 63))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_identifier_is_one_of_its_own() {
        let mut ids = CommandIds::default();
        assert!((0..=u16::MAX).all(|id| ids.insert(id)));
        assert!((0..=u16::MAX).all(|id| !ids.insert(id)));
        (0..=u16::MAX).step_by(3).for_each(|id| ids.remove(id));
        assert!((0..=u16::MAX).all(|id| ids.insert(id) == id.is_multiple_of(3)));
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0u16..200, 0u16..16), 0..200)) {
            let (mut ids, mut expected) = (CommandIds::default(), BTreeSet::new());
            for (inserts, low, high) in steps {
                let id = high << 12 | low;
                if inserts {
                    prop_assert_eq!(ids.insert(id), expected.insert(id));
                } else {
                    ids.remove(id);
                    expected.remove(&id);
                }
            }
        }
    }
}
