//! The map of a volume: where each piece of each extent of it lies.
//!
//! An extent of a volume has 16 pieces. Each lies nowhere (and reads as zeroes) or at its own place within some extent of a disk:
//! piece 5 of a volume's extent is always piece 5 of a disk's. Mostly all pieces of an extent lie in one disk extent; after
//! snapshots they may lie in several.

use std::collections::BTreeMap;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::page::{RawPointer, at, count_at, put};
use super::pieces::{SLOT_MIXED, check_slot};
use super::{DamageReason, PAGE_BYTES, PAGE_HEADER_BYTES, PageHeader, PagePointer, Pieces, checksum};

/// Extents that a leaf covers.
pub const LEAF_EXTENTS: usize = 256;
/// Children of a node.
pub const NODE_CHILDREN: usize = 64;
/// Most levels of nodes above the leaves.
pub const LEVELS_MAX: u16 = 4;

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
    use crate::layout::{PIECES, PageKind, PageNumber, Place};

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
    fn a_full_leaf_of_the_longest_lists_fits_its_overflow() {
        let mut leaf = Leaf::default();
        for index in 0..LEAF_EXTENTS {
            let mut pieces = Pieces::UNMAPPED;
            for piece in 0..PIECES {
                pieces.set_partly(piece, place(piece, (index * 16 + piece) as u64), 0xf0f0);
            }
            leaf.set(index, &pieces);
        }
        assert_eq!(leaf.overflow_pages(), 12);
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
        let holes = prop_oneof![Just(0), 1_u16..u16::MAX];
        let of_one = prop::option::of((0usize..64, 0u64..1 << 34, holes));
        prop::collection::vec(of_one, PIECES).prop_map(|list| {
            let mut pieces = Pieces::UNMAPPED;
            for (piece, at) in list.into_iter().enumerate() {
                if let Some((disk, extent, holes)) = at {
                    pieces.set_partly(piece, place(disk, extent), holes);
                }
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
