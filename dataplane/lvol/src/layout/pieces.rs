//! Where the pieces of one extent of a volume lie.
//!
//! Piece p of a volume's extent lies at piece p of an extent of a disk, or nowhere. A piece may have *holes*: blocks of 4 KiB that were
//! never written, and read as zeroes whatever is there. Pieces of 4 KiB have none.

use std::fmt;

use zerocopy::little_endian::{U16, U64};

use super::page::at;
use super::{DISKS_MAX, DamageReason};

/// Pieces of an extent: the unit that is copied when shared data is overwritten.
pub const PIECES: usize = 16;

const EXTENT_BITS: u32 = 34;
const PLACE_BITS: u32 = 40;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
const VALID: u64 = 1 << PLACE_BITS;
/// A source as it is written: place and mark.
const SOURCE_MASK: u64 = PLACE_MASK | VALID;
const HOLES_SHIFT: u32 = PLACE_BITS + 1;
pub(super) const SLOT_MIXED: u64 = 1 << 56;
const SLOT_KNOWN: u64 = (1 << 57) - 1;
/// Which pieces have holes, in the word of a list that counts its sources.
const HOLED_SHIFT: u32 = 16;
/// Bytes of the longest list.
pub(super) const LIST_BYTES_MAX: usize = 16 + PIECES * 8 + PIECES * 2;

/// An extent of a disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64);

impl Place {
    /// Extent `extent` of disk `disk`; `None` if there cannot be one.
    pub fn new(disk: usize, extent: u64) -> Option<Self> {
        (disk < DISKS_MAX && extent < 1 << EXTENT_BITS).then_some(Self((disk as u64) << EXTENT_BITS | extent))
    }

    /// Index of the disk in its pool.
    pub fn disk(self) -> usize {
        usize::try_from(self.0 >> EXTENT_BITS).unwrap_or(usize::MAX)
    }

    /// Index of the extent on its disk.
    pub fn extent(self) -> u64 {
        self.0 & ((1 << EXTENT_BITS) - 1)
    }

    /// 40 bits.
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits & PLACE_MASK)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.disk(), self.extent())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "extent {} of disk {}", self.extent(), self.disk())
    }
}

/// See the module's page. By piece: its place, a mark that it lies somewhere, and its holes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pieces([u64; PIECES]);

impl Pieces {
    /// None of them lies anywhere.
    pub const UNMAPPED: Self = Self([0; PIECES]);

    /// All of them lie in one extent.
    pub fn whole(place: Place) -> Self {
        Self([place.0 | VALID; PIECES])
    }

    /// Where a piece lies.
    pub fn get(&self, piece: usize) -> Option<Place> {
        (self.0[piece] != 0).then(|| Place::from_bits(self.0[piece]))
    }

    /// Bits of the blocks of a piece that are holes.
    pub fn holes(&self, piece: usize) -> u16 {
        u16::try_from(self.0[piece] >> HOLES_SHIFT & u64::from(u16::MAX)).unwrap_or(0)
    }

    /// Moves a piece to a place where not all of its blocks are written. One that is nothing but holes lies nowhere.
    pub fn set_partly(&mut self, piece: usize, place: Place, holes: u16) {
        self.0[piece] = match holes {
            u16::MAX => 0,
            _ => place.0 | VALID | u64::from(holes) << HOLES_SHIFT,
        };
    }

    /// Moves a piece, all of it written.
    pub fn set(&mut self, piece: usize, place: Option<Place>) {
        self.0[piece] = place.map_or(0, |place| place.0 | VALID);
    }

    /// The extents that they lie in, each once, in the order of the pieces.
    pub fn places(&self) -> impl Iterator<Item = Place> + '_ {
        let source = move |at: usize| self.0[at] & SOURCE_MASK;
        let first = move |at: usize| source(at) != 0 && (0..at).all(|before| source(before) != source(at));
        (0..PIECES).filter(move |at| first(*at)).map(|at| Place::from_bits(self.0[at]))
    }

    /// How many of them lie somewhere.
    pub fn mapped(&self) -> u64 {
        self.0.iter().filter(|slot| **slot != 0).count() as u64
    }

    /// Bits of the disks that they lie on.
    pub fn disks(&self) -> u64 {
        self.places().fold(0, |bits, place| bits | 1 << place.disk())
    }

    /// True if none of them lies anywhere.
    pub fn is_unmapped(&self) -> bool {
        *self == Self::UNMAPPED
    }

    /// Bits of the pieces that lie in an extent.
    pub fn within(&self, place: Place) -> u16 {
        (0..PIECES).filter(|piece| self.get(*piece) == Some(place)).fold(0, |bits, piece| bits | 1 << piece)
    }

    /// Bits of the pieces that have holes.
    pub fn holed(&self) -> u16 {
        (0..PIECES).filter(|piece| self.holes(*piece) != 0).fold(0, |bits, piece| bits | 1 << piece)
    }

    /// What a slot says; `None` if they lie in several extents or have holes.
    pub(super) fn to_slot(self) -> Option<u64> {
        if self.holed() != 0 {
            return None;
        }
        let mut places = self.places();
        match (places.next(), places.next()) {
            (None, _) => Some(0),
            (Some(place), None) => Some(place.0 | u64::from(self.within(place)) << PLACE_BITS),
            _ => None,
        }
    }

    pub(super) fn from_slot(slot: u64) -> Self {
        let valid = slot >> PLACE_BITS;
        let mut pieces = Self::UNMAPPED;
        for piece in 0..PIECES {
            if valid & 1 << piece != 0 {
                pieces.set(piece, Some(Place::from_bits(slot)));
            }
        }
        pieces
    }

    /// Appends them as they are written in journals and, where a slot does not suffice, in leaves.
    pub(super) fn encode_into(&self, out: &mut Vec<u8>) {
        match self.to_slot() {
            Some(slot) => out.extend_from_slice(&slot.to_le_bytes()),
            None => {
                out.extend_from_slice(&SLOT_MIXED.to_le_bytes());
                self.encode_mixed(out);
            }
        }
    }

    /// Reads what [`Self::encode_into`] wrote and answers how long it was.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, usize), DamageReason> {
        let slot = at::<U64>(bytes, 0).ok_or(DamageReason::Field("short slot"))?.get();
        check_slot(slot)?;
        if slot & SLOT_MIXED == 0 {
            return Ok((Self::from_slot(slot), 8));
        }
        let (pieces, length) = Self::decode_mixed(&bytes[8..])?;
        Ok((pieces, 8 + length))
    }

    /// Sources and, for each piece, four bits that name one of them; then the holes of pieces that have some.
    pub(super) fn encode_mixed(&self, out: &mut Vec<u8>) {
        let mut sources: Vec<u64> = Vec::new();
        let mut choice = 0;
        for (piece, place) in self.0.iter().map(|bits| bits & SOURCE_MASK).enumerate() {
            let source = sources.iter().position(|source| *source == place).unwrap_or_else(|| {
                sources.push(place);
                sources.len() - 1
            });
            choice |= (source as u64) << (4 * piece);
        }
        let holed = self.holed();
        out.extend_from_slice(&choice.to_le_bytes());
        out.extend_from_slice(&(sources.len() as u64 | u64::from(holed) << HOLED_SHIFT).to_le_bytes());
        for source in sources {
            out.extend_from_slice(&source.to_le_bytes());
        }
        let before = out.len();
        for piece in (0..PIECES).filter(|piece| holed & 1 << piece != 0) {
            out.extend_from_slice(&self.holes(piece).to_le_bytes());
        }
        out.resize(before + holes_bytes(holed), 0);
    }

    pub(super) fn mixed_bytes(&self) -> usize {
        let unmapped = usize::from(self.0.contains(&0));
        16 + 8 * (self.places().count() + unmapped) + holes_bytes(self.holed())
    }

    pub(super) fn decode_mixed(bytes: &[u8]) -> Result<(Self, usize), DamageReason> {
        let field = |index: usize| at::<U64>(bytes, 8 * index).map(U64::get);
        let short = DamageReason::Field("short list of sources");
        let (choice, counts) = (field(0).ok_or(short)?, field(1).ok_or(short)?);
        let holed =
            u16::try_from(counts >> HOLED_SHIFT).map_err(|_| DamageReason::Field("number of sources"))?;
        let count = usize::try_from(counts & 0xffff).ok().filter(|count| (1..=PIECES).contains(count));
        let count = count.ok_or(DamageReason::Field("number of sources"))?;
        let mut pieces = Self::UNMAPPED;
        let mut holes_at = 16 + 8 * count;
        for piece in 0..PIECES {
            let source = usize::try_from(choice >> (4 * piece) & 15).unwrap_or(PIECES);
            if source >= count {
                return Err(DamageReason::Field("source of a piece"));
            }
            let bits = field(2 + source).ok_or(short)?;
            if bits != 0 && bits & !PLACE_MASK != VALID {
                return Err(DamageReason::Field("source"));
            }
            pieces.0[piece] = bits;
            if holed & 1 << piece != 0 {
                let holes = at::<U16>(bytes, holes_at).ok_or(short)?.get();
                if bits == 0 || holes == 0 || holes == u16::MAX {
                    return Err(DamageReason::Field("holes"));
                }
                pieces.set_partly(piece, Place::from_bits(bits), holes);
                holes_at += 2;
            }
        }
        let length = 16 + 8 * count + holes_bytes(holed);
        if bytes.len() < length {
            return Err(short);
        }
        Ok((pieces, length))
    }
}

fn holes_bytes(holed: u16) -> usize {
    (2 * holed.count_ones() as usize).next_multiple_of(8)
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pieces = (0..PIECES).map(|piece| (self.get(piece), self.holes(piece)));
        f.debug_list().entries(pieces).finish()
    }
}

pub(super) fn check_slot(slot: u64) -> Result<(), DamageReason> {
    let mixed = slot & SLOT_MIXED != 0;
    let sound = slot & !SLOT_KNOWN == 0 && (!mixed || slot == SLOT_MIXED);
    let holds = mixed || slot == 0 || slot >> PLACE_BITS != 0;
    if sound && holds { Ok(()) } else { Err(DamageReason::Field("slot")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(disk: usize, extent: u64) -> Place {
        Place::new(disk, extent).unwrap()
    }

    #[test]
    fn pieces_know_their_places() {
        let mut pieces = Pieces::whole(place(63, (1 << 34) - 1));
        assert_eq!(pieces.places().collect::<Vec<_>>(), [place(63, (1 << 34) - 1)]);
        pieces.set(3, Some(place(0, 0)));
        pieces.set(4, None);
        assert_eq!(pieces.places().count(), 2);
        assert_eq!(pieces.within(place(0, 0)), 1 << 3);
        assert_eq!((pieces.get(3), pieces.get(4)), (Some(place(0, 0)), None));
        assert_eq!(Place::new(64, 0), None);
        assert_eq!(Place::new(0, 1 << 34), None);
    }

    #[test]
    fn pieces_with_holes_are_written_as_lists() {
        let mut pieces = Pieces::whole(place(1, 7));
        pieces.set_partly(2, place(1, 7), 0x00ff);
        pieces.set_partly(3, place(1, 7), u16::MAX);
        assert_eq!((pieces.holes(2), pieces.holed(), pieces.get(3)), (0x00ff, 1 << 2, None));
        assert_eq!((pieces.places().count(), pieces.within(place(1, 7))), (1, !(1 << 3)));
        assert_eq!(pieces.to_slot(), None);
        let mut bytes = Vec::new();
        pieces.encode_into(&mut bytes);
        assert_eq!(bytes.len(), 8 + pieces.mixed_bytes());
        assert_eq!(Pieces::decode(&bytes), Ok((pieces, bytes.len())));
        for short in 0..bytes.len() {
            assert!(Pieces::decode(&bytes[..short]).is_err(), "{short} bytes");
        }
        assert_eq!(bytes.len() - 8, 16 + 2 * 8 + 8);
        bytes[8 + 32..8 + 34].fill(0);
        assert_eq!(Pieces::decode(&bytes), Err(DamageReason::Field("holes")));
    }
}
