//! Which stretches of a pool's extents may be in use: so coarse that it fits the root, and exact for small pools.
//!
//! What is free follows from the maps of all volumes. Where one of them cannot be read, this tells what is free all the same.

use super::Place;

/// Bits of the map: each stands for a stretch of neighbouring extents of one disk.
const BITS: usize = 4096;
/// Bytes of it.
pub(super) const TAKEN_BYTES: usize = BITS / 8;

/// How the extents of a pool's disks are cut into stretches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stretches {
    /// A stretch has 2 to the power of this many extents.
    shift: u32,
    /// First stretch of each disk, and one beyond the last disk's.
    bases: Vec<usize>,
}

/// See the module's page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenMap {
    stretches: Stretches,
    bits: Box<[u8; TAKEN_BYTES]>,
}

impl Stretches {
    /// The finest ones that have a bit each; `extents` are those of each disk.
    pub fn of(extents: &[u64]) -> Self {
        let mut shift = 0;
        loop {
            match Self::cut(extents, shift) {
                Some(stretches) => return stretches,
                None => shift += 1,
            }
        }
    }

    /// Stretches of that length; `None` if there are more than there are bits.
    fn cut(extents: &[u64], shift: u32) -> Option<Self> {
        let mut bases = vec![0];
        let mut base: usize = 0;
        for extents in extents {
            let stretches = extents.div_ceil(1_u64.checked_shl(shift)?);
            base = base.checked_add(usize::try_from(stretches).ok()?)?;
            bases.push(base);
        }
        (base <= BITS).then_some(Self { shift, bases })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.bases.last().copied().unwrap_or(0)
    }

    /// The parts of a range of extents of a disk: each stretch, with the first of the extents that lie in it and how many do.
    pub fn parts(&self, disk: usize, first: u64, extents: u64) -> impl Iterator<Item = (usize, u64, u64)> {
        let (shift, base) = (self.shift, self.bases.get(disk).copied().unwrap_or(0));
        let end = first + extents;
        let stretches = if extents == 0 { 0..0 } else { first >> shift..((end - 1) >> shift) + 1 };
        stretches.map(move |stretch| {
            let start = first.max(stretch << shift);
            let rest = end.min((stretch + 1) << shift) - start;
            (base + usize::try_from(stretch).unwrap_or(usize::MAX), start, rest)
        })
    }
}

impl TakenMap {
    /// The map in which those stretches are taken.
    pub fn new(stretches: Stretches, taken: impl Iterator<Item = usize>) -> Self {
        let mut bits = Box::new([0; TAKEN_BYTES]);
        taken.for_each(|stretch| bits[stretch / 8] |= 1 << (stretch % 8));
        Self { stretches, bits }
    }

    /// Its stretches.
    pub fn stretches(&self) -> &Stretches {
        &self.stretches
    }

    /// Whether some map may name an extent of a stretch.
    pub fn is_taken(&self, stretch: usize) -> bool {
        self.bits.get(stretch / 8).is_none_or(|byte| byte & 1 << (stretch % 8) != 0)
    }

    /// Whether some map may name this extent.
    pub fn may_hold(&self, place: Place) -> bool {
        self.stretches.parts(place.disk(), place.extent(), 1).all(|(stretch, ..)| self.is_taken(stretch))
    }

    /// How it is written: one more than the shift, and the bits.
    pub(super) fn to_raw(&self) -> (u8, [u8; TAKEN_BYTES]) {
        let shift = u8::try_from(self.stretches.shift + 1).expect("extents are counted by 34 bits");
        (shift, *self.bits)
    }

    /// Reads what was written for disks of these extents; `Ok(None)` for 0, which older programs write: nothing is known.
    pub(super) fn from_raw(extents: &[u64], shift: u8, bits: [u8; TAKEN_BYTES]) -> Result<Option<Self>, ()> {
        let Some(shift) = shift.checked_sub(1) else { return Ok(None) };
        let stretches = Stretches::cut(extents, u32::from(shift)).ok_or(())?;
        Ok(Some(Self { stretches, bits: Box::new(bits) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_are_as_fine_as_there_are_bits() {
        let small = Stretches::of(&[1018, 7]);
        assert_eq!((small.shift, small.count()), (0, 1025));
        let parts: Vec<_> = small.parts(1, 2, 3).collect();
        assert_eq!(parts, [(1020, 2, 1), (1021, 3, 1), (1022, 4, 1)]);
        // 4097 extents: two to a bit, and a disk begins with a bit of its own.
        let large = Stretches::of(&[4095, 2]);
        assert_eq!((large.shift, large.count(), large.bases.as_slice()), (1, 2049, &[0, 2048, 2049][..]));
        assert_eq!(large.parts(0, 5, 4).collect::<Vec<_>>(), [(2, 5, 1), (3, 6, 2), (4, 8, 1)]);
        assert_eq!(large.parts(0, 5, 0).count(), 0);
        // The most that there can be.
        let most = Stretches::of(&[1 << 33; 64]);
        assert!(most.count() <= BITS && most.count() > BITS / 2, "{most:?}");
    }

    #[test]
    fn maps_round_trip_and_what_is_not_written_is_not_known() {
        let extents = [3000, 3000];
        let stretches = Stretches::of(&extents);
        let taken: Vec<usize> = stretches.parts(1, 17, 1).map(|(stretch, ..)| stretch).collect();
        let map = TakenMap::new(stretches, taken.into_iter());
        let place = |disk, extent| Place::new(disk, extent).unwrap();
        assert!(map.may_hold(place(1, 16)) && map.may_hold(place(1, 17)), "two to a bit");
        assert!(!map.may_hold(place(1, 18)) && !map.may_hold(place(0, 17)));
        let (shift, bits) = map.to_raw();
        assert_eq!((shift, TakenMap::from_raw(&extents, shift, bits)), (2, Ok(Some(map))));
        assert_eq!(TakenMap::from_raw(&extents, 0, bits), Ok(None));
        assert_eq!(TakenMap::from_raw(&extents, 1, bits), Err(()), "too many for the bits");
        assert_eq!(TakenMap::from_raw(&extents, 255, bits), Err(()));
    }
}
