//! The map of a volume as requests see it: read by all reactors without a lock, changed by the pool's owner alone.
//!
//! It is filled from the volume's tree in chunks of 256 extents when somebody needs them. An entry tells where an extent lies and
//! whether it may be overwritten there. After a snapshot nothing may: that is told by one number, the *token*, which every chunk
//! has to name to be believed about overwriting.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::layout::{LEAF_EXTENTS, PIECES, Pieces, Place, VOLUME_EXTENTS_MAX};

const FAN: usize = 1024;
const _: () = assert!((FAN * FAN * LEAF_EXTENTS) as u64 == VOLUME_EXTENTS_MAX);

const VALID_SHIFT: u32 = 40;
const VALID_MASK: u64 = 0xffff;
/// In the entry of a piece, whose mark of validity is one bit.
const HOLES_SHIFT: u32 = VALID_SHIFT + 1;
const MIXED: u64 = 1 << 56;
const OWN: u64 = 1 << 57;

type Lazy<T> = OnceLock<Box<T>>;

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct HotMap {
    top: Lazy<[Lazy<[Lazy<Chunk>]>]>,
}

/// 256 extents.
#[derive(Debug)]
struct Chunk {
    /// The volume's token when the chunk's marks of ownership were made.
    token: AtomicU64,
    entries: Box<[AtomicU64]>,
    /// Places of each piece of extents whose pieces lie in several.
    mixed: Lazy<[Lazy<[AtomicU64]>]>,
}

/// What the map says about one extent.
#[derive(Clone, Copy)]
pub(crate) struct Look<'a> {
    chunk: &'a Chunk,
    index: usize,
    entry: u64,
    /// The marks of ownership are valid.
    current: bool,
}

/// What the map says about a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spot {
    /// It lies nowhere.
    Nowhere,
    /// It lies in this extent, whether it may be overwritten there, and which of its blocks are holes.
    At(Place, bool, u16),
}

fn lazies<T: ?Sized>(count: usize) -> Box<[Lazy<T>]> {
    (0..count).map(|_| OnceLock::new()).collect()
}

fn zeroes(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

fn split(extent: u64) -> (usize, usize, usize) {
    let at = usize::try_from(extent).unwrap_or(usize::MAX);
    let chunk = at / LEAF_EXTENTS;
    (chunk / FAN, chunk % FAN, at % LEAF_EXTENTS)
}

impl HotMap {
    fn chunk(&self, extent: u64) -> Option<(&Chunk, usize)> {
        let (top, middle, index) = split(extent);
        let chunk = self.top.get()?.get(top)?.get()?.get(middle)?.get()?;
        Some((chunk, index))
    }

    /// Looks at an extent; `None` if its chunk was not filled yet. `token` is the volume's.
    pub(crate) fn look(&self, extent: u64, token: &AtomicU64) -> Option<Look<'_>> {
        let (chunk, index) = self.chunk(extent)?;
        // The token first: marks that are read after it are not older than it.
        let marked = chunk.token.load(Ordering::Acquire);
        let entry = chunk.entries[index].load(Ordering::Acquire);
        Some(Look { chunk, index, entry, current: marked == token.load(Ordering::Acquire) })
    }

    /// Whether the chunk of an extent was filled.
    pub(crate) fn is_loaded(&self, extent: u64) -> bool {
        self.chunk(extent).is_some()
    }

    /// Fills the chunk of an extent. `of` gives, by index, where pieces lie and which extents are the volume's own.
    pub(crate) fn load(&self, extent: u64, token: u64, of: impl Fn(usize) -> (Pieces, u16)) {
        let (top, middle, _) = split(extent);
        let top = &self.top.get_or_init(|| lazies(FAN))[top];
        let middle = &top.get_or_init(|| lazies(FAN))[middle];
        middle.get_or_init(|| {
            let chunk =
                Chunk { token: AtomicU64::new(token), entries: zeroes(LEAF_EXTENTS), mixed: OnceLock::new() };
            for index in 0..LEAF_EXTENTS {
                let (pieces, own) = of(index);
                chunk.set(index, &pieces, own);
            }
            Box::new(chunk)
        });
    }

    /// Tells where the pieces of an extent lie from now on; `own` has the bits of those that may be overwritten there.
    pub(crate) fn set(&self, extent: u64, token: u64, pieces: &Pieces, own: u16) {
        let Some((chunk, index)) = self.chunk(extent) else { return };
        if chunk.token.load(Ordering::Relaxed) != token {
            chunk.disown();
            chunk.token.store(token, Ordering::Release);
        }
        chunk.set(index, pieces, own);
    }
}

impl Chunk {
    fn set(&self, index: usize, pieces: &Pieces, own: u16) {
        let mut places = pieces.places();
        let (first, second) = (places.next(), places.next());
        let entry = match (first, second) {
            (None, _) => 0,
            (Some(place), None) if pieces.holed() == 0 => {
                let valid = pieces.within(place);
                let owned = if own & valid == valid { OWN } else { 0 };
                place.to_bits() | u64::from(valid) << VALID_SHIFT | owned
            }
            _ => {
                let cells = &self.mixed.get_or_init(|| lazies(LEAF_EXTENTS))[index];
                let cells = cells.get_or_init(|| zeroes(PIECES));
                for (piece, cell) in cells.iter().enumerate() {
                    let owned = if own & 1 << piece != 0 { OWN } else { 0 };
                    let holes = u64::from(pieces.holes(piece)) << HOLES_SHIFT;
                    let bits = pieces
                        .get(piece)
                        .map_or(0, |place| place.to_bits() | 1 << VALID_SHIFT | holes | owned);
                    cell.store(bits, Ordering::Release);
                }
                MIXED
            }
        };
        self.entries[index].store(entry, Ordering::Release);
    }

    /// Takes all marks of ownership away.
    fn disown(&self) {
        for entry in &self.entries {
            entry.fetch_and(!OWN, Ordering::AcqRel);
        }
        let cells = self.mixed.get().into_iter().flat_map(|cells| cells.iter().filter_map(OnceLock::get));
        for cell in cells.flat_map(|cells| cells.iter()) {
            cell.fetch_and(!OWN, Ordering::AcqRel);
        }
    }
}

impl Look<'_> {
    /// The extent, if all of it lies there, and whether it may be overwritten.
    pub(crate) fn whole(&self) -> Option<(Place, bool)> {
        let whole = self.entry & MIXED == 0 && self.entry >> VALID_SHIFT & VALID_MASK == VALID_MASK;
        whole.then(|| (Place::from_bits(self.entry), self.current && self.entry & OWN != 0))
    }

    /// Where a piece lies.
    pub(crate) fn piece(&self, piece: usize) -> Spot {
        let (bits, valid, holes) = match self.entry & MIXED {
            0 => (self.entry, self.entry >> VALID_SHIFT & 1 << piece != 0, 0),
            _ => {
                let cells = self.chunk.mixed.get().and_then(|cells| cells[self.index].get());
                let bits = cells.map_or(0, |cells| cells[piece].load(Ordering::Acquire));
                (bits, bits != 0, u16::try_from(bits >> HOLES_SHIFT & VALID_MASK).unwrap_or(0))
            }
        };
        match valid {
            true => Spot::At(Place::from_bits(bits), self.current && bits & OWN != 0, holes),
            false => Spot::Nowhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(extent: u64) -> Place {
        Place::new(2, extent).unwrap()
    }

    #[test]
    fn ownership_ends_with_the_token() {
        let (map, token) = (HotMap::default(), AtomicU64::new(1));
        assert!(map.look(700, &token).is_none());
        map.load(700, 1, |index| (Pieces::whole(place(index as u64)), u16::MAX));
        let index = 700 % 256;
        assert_eq!(map.look(700, &token).unwrap().whole(), Some((place(index), true)));
        token.store(2, Ordering::Release);
        assert_eq!(map.look(700, &token).unwrap().whole(), Some((place(index), false)));
        // Another extent of the chunk becomes the volume's own again; this one does not.
        map.set(701, 2, &Pieces::whole(place(9)), u16::MAX);
        assert_eq!(map.look(701, &token).unwrap().whole(), Some((place(9), true)));
        assert_eq!(map.look(700, &token).unwrap().whole(), Some((place(index), false)));
    }

    #[test]
    fn pieces_may_lie_apart() {
        let (map, token) = (HotMap::default(), AtomicU64::new(1));
        map.load(0, 1, |_| (Pieces::UNMAPPED, 0));
        assert_eq!(map.look(3, &token).unwrap().piece(0), Spot::Nowhere);
        let mut pieces = Pieces::UNMAPPED;
        pieces.set(4, Some(place(1)));
        map.set(3, 1, &pieces, 1 << 4);
        let look = map.look(3, &token).unwrap();
        assert_eq!(look.whole(), None);
        assert_eq!((look.piece(4), look.piece(5)), (Spot::At(place(1), true, 0), Spot::Nowhere));
        pieces.set(5, Some(place(2)));
        map.set(3, 1, &pieces, 1 << 5);
        let look = map.look(3, &token).unwrap();
        assert_eq!(look.piece(4), Spot::At(place(1), false, 0));
        assert_eq!(look.piece(5), Spot::At(place(2), true, 0));
        assert_eq!(look.piece(6), Spot::Nowhere);
        let mut holed = Pieces::UNMAPPED;
        holed.set_partly(6, place(3), 0x8001);
        map.set(4, 1, &holed, 1 << 6);
        let look = map.look(4, &token).unwrap();
        assert_eq!((look.piece(6), look.piece(5)), (Spot::At(place(3), true, 0x8001), Spot::Nowhere));
        assert!(map.look(1 << 40, &token).is_none());
    }
}
