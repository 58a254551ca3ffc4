//! The map of a volume: where each piece of each extent of it lies.
//!
//! An extent of a volume has 16 pieces. Each lies nowhere (and reads as zeroes) or at its own place within some extent of a disk:
//! piece 5 of a volume's extent is always piece 5 of a disk's. Mostly all pieces of an extent lie in one disk extent; after
//! snapshots they may lie in several.

use std::collections::BTreeMap;
use std::fmt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::page::{RawPointer, at, count_at, put};
use super::{DISKS_MAX, DamageReason, PAGE_BYTES, PAGE_HEADER_BYTES, PageHeader, PagePointer, checksum};

/// Pieces of an extent: the unit that is copied when shared data is overwritten.
pub const PIECES: usize = 16;
/// Extents that a leaf covers.
pub const LEAF_EXTENTS: usize = 256;
/// Children of a node.
pub const NODE_CHILDREN: usize = 64;
/// Most levels of nodes above the leaves.
pub const LEVELS_MAX: u16 = 4;

const EXTENT_BITS: u32 = 34;
const PLACE_BITS: u32 = 40;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;
const VALID: u64 = 1 << PLACE_BITS;
const SLOT_MIXED: u64 = 1 << 56;
const SLOT_KNOWN: u64 = (1 << 57) - 1;

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

/// Where the pieces of one extent of a volume lie.
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

    /// Moves a piece.
    pub fn set(&mut self, piece: usize, place: Option<Place>) {
        self.0[piece] = place.map_or(0, |place| place.0 | VALID);
    }

    /// The extents that they lie in, each once, in the order of the pieces.
    pub fn places(&self) -> impl Iterator<Item = Place> + '_ {
        let first = move |at: usize| self.0[at] != 0 && !self.0[..at].contains(&self.0[at]);
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

    /// What a slot says; `None` if they lie in several extents.
    fn to_slot(self) -> Option<u64> {
        let mut places = self.places();
        match (places.next(), places.next()) {
            (None, _) => Some(0),
            (Some(place), None) => Some(place.0 | u64::from(self.within(place)) << PLACE_BITS),
            _ => None,
        }
    }

    fn from_slot(slot: u64) -> Self {
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

    /// Sources and, for each piece, four bits that name one of them.
    fn encode_mixed(&self, out: &mut Vec<u8>) {
        let mut sources: Vec<u64> = Vec::new();
        let mut choice = 0;
        for (piece, place) in self.0.iter().enumerate() {
            let source = sources.iter().position(|source| source == place).unwrap_or_else(|| {
                sources.push(*place);
                sources.len() - 1
            });
            choice |= (source as u64) << (4 * piece);
        }
        out.extend_from_slice(&choice.to_le_bytes());
        out.extend_from_slice(&(sources.len() as u64).to_le_bytes());
        for source in sources {
            out.extend_from_slice(&source.to_le_bytes());
        }
    }

    fn mixed_bytes(&self) -> usize {
        let unmapped = usize::from(self.0.contains(&0));
        16 + 8 * (self.places().count() + unmapped)
    }

    fn decode_mixed(bytes: &[u8]) -> Result<(Self, usize), DamageReason> {
        let field = |index: usize| at::<U64>(bytes, 8 * index).map(U64::get);
        let short = DamageReason::Field("short list of sources");
        let (choice, count) = (field(0).ok_or(short)?, field(1).ok_or(short)?);
        let count = usize::try_from(count).ok().filter(|count| (2..=PIECES).contains(count));
        let count = count.ok_or(DamageReason::Field("number of sources"))?;
        let mut pieces = Self::UNMAPPED;
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
        }
        Ok((pieces, 16 + 8 * count))
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries((0..PIECES).map(|piece| self.get(piece))).finish()
    }
}

fn check_slot(slot: u64) -> Result<(), DamageReason> {
    let mixed = slot & SLOT_MIXED != 0;
    let sound = slot & !SLOT_KNOWN == 0 && (!mixed || slot == SLOT_MIXED);
    let holds = mixed || slot == 0 || slot >> PLACE_BITS != 0;
    if sound && holds { Ok(()) } else { Err(DamageReason::Field("slot")) }
}

/// The pieces of neighbouring extents of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    slots: Box<[u64; LEAF_EXTENTS]>,
    mixed: BTreeMap<u8, Box<Pieces>>,
}

impl Default for Leaf {
    fn default() -> Self {
        Self { slots: Box::new([0; LEAF_EXTENTS]), mixed: BTreeMap::new() }
    }
}

/// Where the fields of a leaf lie in its page, and of what follows it in an overflow page.
const NEXT_OFFSET: usize = PAGE_HEADER_BYTES;
const COUNT_OFFSET: usize = NEXT_OFFSET + 16;
const BODY_OFFSET: usize = COUNT_OFFSET + 16;
const LEAF_MIXED_OFFSET: usize = BODY_OFFSET + 8 * LEAF_EXTENTS;

impl Leaf {
    /// Where the pieces of an extent lie; `index` counts from the leaf's first.
    pub fn get(&self, index: usize) -> Pieces {
        let slot = self.slots[index];
        if slot != SLOT_MIXED {
            return Pieces::from_slot(slot);
        }
        let key = u8::try_from(index).unwrap_or(u8::MAX);
        self.mixed.get(&key).map_or(Pieces::UNMAPPED, |pieces| **pieces)
    }

    /// Moves the pieces of an extent.
    pub fn set(&mut self, index: usize, pieces: &Pieces) {
        let key = u8::try_from(index).expect("a leaf covers 256 extents");
        match pieces.to_slot() {
            Some(slot) => {
                self.slots[index] = slot;
                self.mixed.remove(&key);
            }
            None => {
                self.slots[index] = SLOT_MIXED;
                self.mixed.insert(key, Box::new(*pieces));
            }
        }
    }

    /// Extents of which a piece lies somewhere, with their index.
    pub fn mapped(&self) -> impl Iterator<Item = (usize, Pieces)> + '_ {
        (0..LEAF_EXTENTS).filter(|index| self.slots[*index] != 0).map(|index| (index, self.get(index)))
    }

    /// True if nothing lies anywhere.
    pub fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| *slot == 0)
    }

    /// How many pages of overflow the leaf needs.
    pub fn overflow_pages(&self) -> usize {
        let mut pages = 0;
        let mut room = PAGE_BYTES - LEAF_MIXED_OFFSET;
        for pieces in self.mixed.values() {
            let bytes = pieces.mixed_bytes();
            if bytes > room {
                pages += 1;
                room = PAGE_BYTES - BODY_OFFSET;
            }
            room -= bytes;
        }
        pages
    }

    /// The leaf's page and its pages of overflow. `headers` are theirs in this order; the pointer names the first.
    ///
    /// # Panics
    /// If there are not as many headers as the leaf needs.
    pub fn encode(&self, headers: &[PageHeader]) -> (PagePointer, Vec<Vec<u8>>) {
        assert_eq!(headers.len(), 1 + self.overflow_pages(), "a header for each page");
        let mut pages: Vec<Vec<u8>> = headers.iter().map(PageHeader::begin).collect();
        for (index, slot) in self.slots.iter().enumerate() {
            put(&mut pages[0], BODY_OFFSET + 8 * index, &U64::new(*slot));
        }
        let mut counts = vec![0_u32; pages.len()];
        let (mut current, mut offset) = (0, LEAF_MIXED_OFFSET);
        let mut bytes = Vec::new();
        for pieces in self.mixed.values() {
            bytes.clear();
            pieces.encode_mixed(&mut bytes);
            if offset + bytes.len() > PAGE_BYTES {
                (current, offset) = (current + 1, BODY_OFFSET);
            }
            pages[current][offset..offset + bytes.len()].copy_from_slice(&bytes);
            offset += bytes.len();
            counts[current] += 1;
        }
        let mut next = None;
        for ((page, header), count) in pages.iter_mut().zip(headers).zip(counts).rev() {
            put(page, NEXT_OFFSET, &RawPointer::of(next));
            put(page, COUNT_OFFSET, &U32::new(count));
            next = Some(PagePointer { number: header.number, checksum: checksum(page) });
        }
        (next.expect("a leaf has a page"), pages)
    }

    /// Begins to read a leaf from its page, whose header was checked. What is in pages of overflow is missing yet.
    ///
    /// # Errors
    /// [`DamageReason::Field`]; never panics on the bytes.
    pub fn decode(page: &[u8]) -> Result<LeafReader, DamageReason> {
        let mut leaf = Self::default();
        let mut expected = Vec::new();
        for index in 0..LEAF_EXTENTS {
            let slot = at::<U64>(page, BODY_OFFSET + 8 * index).ok_or(DamageReason::Checksum)?.get();
            check_slot(slot)?;
            leaf.slots[index] = slot;
            if slot == SLOT_MIXED {
                expected.push(u8::try_from(index).unwrap_or(u8::MAX));
            }
        }
        let mut reader = LeafReader { leaf, expected, found: 0, next: None };
        reader.take(page, LEAF_MIXED_OFFSET)?;
        Ok(reader)
    }
}

/// A leaf that is being read.
#[derive(Debug)]
pub struct LeafReader {
    leaf: Leaf,
    /// Extents whose sources are listed, in order, and how many of them were found.
    expected: Vec<u8>,
    found: usize,
    next: Option<PagePointer>,
}

impl LeafReader {
    /// The page of overflow that is to be read next.
    pub fn next(&self) -> Option<PagePointer> {
        self.next
    }

    /// Reads a page of overflow, whose header was checked.
    ///
    /// # Errors
    /// [`DamageReason::Field`]; never panics on the bytes.
    pub fn overflow(&mut self, page: &[u8]) -> Result<(), DamageReason> {
        self.take(page, BODY_OFFSET)
    }

    fn take(&mut self, page: &[u8], mut offset: usize) -> Result<(), DamageReason> {
        let count = count_at(page, COUNT_OFFSET);
        if count > self.expected.len() - self.found {
            return Err(DamageReason::Field("number of lists of sources"));
        }
        for _ in 0..count {
            let (pieces, length) = Pieces::decode_mixed(page.get(offset..).unwrap_or(&[]))?;
            if pieces.to_slot().is_some() {
                return Err(DamageReason::Field("list of one source"));
            }
            self.leaf.mixed.insert(self.expected[self.found], Box::new(pieces));
            self.found += 1;
            offset += length;
        }
        self.next = at::<RawPointer>(page, NEXT_OFFSET).ok_or(DamageReason::Checksum)?.pointer()?;
        if self.next.is_some() && self.found == self.expected.len() {
            return Err(DamageReason::Field("overflow without need"));
        }
        // Each page of overflow must bring something, so that a reader comes to an end.
        if self.next.is_none() != (self.found == self.expected.len()) || (count == 0 && offset == BODY_OFFSET)
        {
            return Err(DamageReason::Field("end of the overflow"));
        }
        Ok(())
    }

    /// The leaf, once there is no page left to read.
    ///
    /// # Errors
    /// [`DamageReason::Field`] while there is.
    pub fn finish(self) -> Result<Leaf, DamageReason> {
        if self.next.is_some() {
            return Err(DamageReason::Field("unread overflow"));
        }
        Ok(self.leaf)
    }
}

/// Byte map in docs/disk-format.md, "Node".
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawChild {
    page: RawPointer,
    reserved: [u8; 16],
}

const _: () = assert!(size_of::<RawChild>() == 32);
const _: () = assert!(PAGE_HEADER_BYTES + NODE_CHILDREN * size_of::<RawChild>() <= PAGE_BYTES);
const _: () = assert!(LEAF_MIXED_OFFSET == 2144);

/// Children of a node, by place; `None`: nothing is mapped there.
pub type Children = [Option<PagePointer>; NODE_CHILDREN];

/// The page of a node.
pub fn encode_node(header: &PageHeader, children: &Children) -> (PagePointer, Vec<u8>) {
    let mut page = header.begin();
    for (index, child) in children.iter().enumerate() {
        let raw = RawChild { page: RawPointer::of(*child), reserved: [0; 16] };
        put(&mut page, PAGE_HEADER_BYTES + index * size_of::<RawChild>(), &raw);
    }
    (PagePointer { number: header.number, checksum: checksum(&page) }, page)
}

/// Reads the page of a node whose header was checked.
///
/// # Errors
/// [`DamageReason::Field`]; never panics on the bytes.
pub fn decode_node(page: &[u8]) -> Result<Children, DamageReason> {
    let mut children = [None; NODE_CHILDREN];
    for (index, child) in children.iter_mut().enumerate() {
        let raw: RawChild = at(page, PAGE_HEADER_BYTES + index * size_of::<RawChild>())
            .ok_or(DamageReason::Field("length of a node"))?;
        *child = raw.page.pointer()?;
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::PoolId;
    use crate::layout::{PageKind, PageNumber};

    fn place(disk: usize, extent: u64) -> Place {
        Place::new(disk, extent).unwrap()
    }

    fn header(kind: PageKind, index: u32) -> PageHeader {
        let number = PageNumber::new(0, index).unwrap();
        PageHeader { kind, level: 0, sequence: 3, pool: PoolId::from_bytes([1; 16]), number, first: 0 }
    }

    fn round_trip(leaf: &Leaf) -> Leaf {
        let mut headers = vec![header(PageKind::Leaf, 1)];
        for index in 0..leaf.overflow_pages() {
            headers.push(header(PageKind::Overflow, 2 + u32::try_from(index).unwrap()));
        }
        let (pointer, pages) = leaf.encode(&headers);
        assert_eq!(pointer.number, headers[0].number);
        let mut reader = Leaf::decode(&pages[0]).unwrap();
        while let Some(next) = reader.next() {
            let page = &pages[next.number.index() as usize - 1];
            assert_eq!(checksum(page), next.checksum);
            reader.overflow(page).unwrap();
        }
        reader.finish().unwrap()
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
    fn a_full_leaf_of_the_longest_lists_fits_its_overflow() {
        let mut leaf = Leaf::default();
        for index in 0..LEAF_EXTENTS {
            let mut pieces = Pieces::UNMAPPED;
            for piece in 0..PIECES {
                pieces.set(piece, Some(place(piece, (index * 16 + piece) as u64)));
            }
            leaf.set(index, &pieces);
        }
        assert_eq!(leaf.overflow_pages(), 9);
        assert_eq!(round_trip(&leaf), leaf);
    }

    #[test]
    fn nodes_round_trip() {
        let mut children = [None; NODE_CHILDREN];
        children[0] = Some(PagePointer { number: PageNumber::new(1, 0).unwrap(), checksum: 9 });
        children[63] = Some(PagePointer { number: PageNumber::new(0, 77).unwrap(), checksum: u64::MAX });
        let (_, page) = encode_node(&header(PageKind::Node, 4), &children);
        assert_eq!(decode_node(&page), Ok(children));
        assert!(decode_node(&page[..500]).is_err());
    }

    fn any_pieces() -> impl Strategy<Value = Pieces> {
        prop::collection::vec(prop::option::of((0usize..64, 0u64..1 << 34)), PIECES).prop_map(|list| {
            let mut pieces = Pieces::UNMAPPED;
            for (piece, at) in list.into_iter().enumerate() {
                pieces.set(piece, at.map(|(disk, extent)| place(disk, extent)));
            }
            pieces
        })
    }

    proptest! {
        #[test]
        fn leaves_round_trip(entries in prop::collection::vec((0usize..LEAF_EXTENTS, any_pieces()), 0..80)) {
            let mut leaf = Leaf::default();
            let mut model = vec![Pieces::UNMAPPED; LEAF_EXTENTS];
            for (index, pieces) in entries {
                leaf.set(index, &pieces);
                model[index] = pieces;
            }
            prop_assert!((0..LEAF_EXTENTS).all(|index| leaf.get(index) == model[index]));
            prop_assert_eq!(leaf.is_empty(), leaf.mapped().next().is_none());
            prop_assert_eq!(&round_trip(&leaf), &leaf);
        }

        #[test]
        fn foreign_bytes_never_panic(edits in prop::collection::vec((64usize..PAGE_BYTES, any::<u8>()), 1..40)) {
            let mut leaf = Leaf::default();
            let mut pieces = Pieces::whole(place(1, 5));
            pieces.set(9, Some(place(2, 6)));
            leaf.set(7, &pieces);
            leaf.set(200, &pieces);
            let (_, mut pages) = leaf.encode(&[header(PageKind::Leaf, 1)]);
            for (offset, value) in edits {
                pages[0][offset] = value;
            }
            if let Ok(mut reader) = Leaf::decode(&pages[0]) {
                let _ = reader.overflow(&pages[0]);
            }
            let _ = decode_node(&pages[0]);
            let _ = Pieces::decode(&pages[0][64..]);
        }
    }
}
