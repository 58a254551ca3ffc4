//! The map of a volume in memory: a tree whose parts are shared between a volume and its snapshots, and with the state on disk.
//!
//! A node never changes once something else refers to it: it is copied on the way to a change. Two kinds of references are told apart.
//! *Live* links come from trees of volumes and decide whether data is shared; they are counted in the node. The others come from
//! states that are on disk or on the way to it; they keep the node, and so its page, and nothing else.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::layout::{
    Children, LEAF_EXTENTS, LEVELS_MAX, Leaf, MapRoot, NODE_CHILDREN, PagePointer, Pieces, Place,
};
use crate::pages::{DirtyHold, PageHold, Pages};

/// Counts how many leaves of live trees name an extent of a disk.
pub(crate) trait Counts {
    /// One more names it.
    fn reference(&mut self, place: Place);
    /// One less.
    fn unreference(&mut self, place: Place);
}

/// Counts nothing: while a pool is being imported.
pub(crate) struct Uncounted;

impl Counts for Uncounted {
    fn reference(&mut self, _: Place) {}
    fn unreference(&mut self, _: Place) {}
}

/// The map of one volume. Not `Clone`: a second live reference is made with [`Tree::share`] and ended with [`Tree::release`].
#[derive(Debug)]
pub(crate) struct Tree {
    pages: Rc<Pages>,
    root: Option<Rc<Node>>,
    levels: u16,
    /// Pieces that lie somewhere.
    mapped: u64,
}

/// A map as it was at some time.
#[derive(Clone, Debug, Default)]
pub(crate) struct FrozenTree {
    pub(crate) root: Option<Rc<Node>>,
    pub(crate) levels: u16,
}

/// A node or leaf.
#[derive(Debug)]
pub(crate) struct Node {
    /// Live links to it.
    live: Cell<u32>,
    stored: RefCell<Stored>,
    /// First extent that it covers.
    pub(crate) first: u64,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) enum Stored {
    /// No page holds it.
    Dirty(#[allow(dead_code, reason = "held for its drop")] DirtyHold),
    /// These pages hold it, or are about to.
    Pages {
        pointer: PagePointer,
        #[allow(dead_code, reason = "held for its drop")]
        holds: Vec<PageHold>,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Body {
    Inner { level: u16, children: Box<[Option<Rc<Node>>; NODE_CHILDREN]> },
    Leaf(Leaf),
}

/// Extents that a node of this level covers; level 0 is a leaf.
pub(crate) fn covered(level: u16) -> u64 {
    LEAF_EXTENTS as u64 * (NODE_CHILDREN as u64).pow(u32::from(level))
}

fn child_index(level: u16, extent: u64) -> usize {
    usize::try_from(extent % covered(level) / covered(level - 1)).unwrap_or(0)
}

fn leaf_index(extent: u64) -> usize {
    usize::try_from(extent % LEAF_EXTENTS as u64).unwrap_or(0)
}

impl Node {
    /// A node as it was read from its pages.
    pub(crate) fn loaded(first: u64, body: Body, pointer: PagePointer, holds: Vec<PageHold>) -> Rc<Self> {
        Rc::new(Self {
            live: Cell::new(0),
            stored: RefCell::new(Stored::Pages { pointer, holds }),
            first,
            body,
        })
    }

    fn new(pages: &Rc<Pages>, first: u64, body: Body) -> Rc<Self> {
        Rc::new(Self { live: Cell::new(1), stored: RefCell::new(Stored::Dirty(pages.dirty())), first, body })
    }

    pub(crate) fn pointer(&self) -> Option<PagePointer> {
        match &*self.stored.borrow() {
            Stored::Dirty(_) => None,
            Stored::Pages { pointer, .. } => Some(*pointer),
        }
    }

    pub(crate) fn level(&self) -> u16 {
        match &self.body {
            Body::Inner { level, .. } => *level,
            Body::Leaf(_) => 0,
        }
    }

    /// Notes the pages that a checkpoint writes it to.
    pub(crate) fn set_stored(&self, pointer: PagePointer, holds: Vec<PageHold>) {
        *self.stored.borrow_mut() = Stored::Pages { pointer, holds };
    }

    /// Where the children's pages lie, once all of them have one.
    pub(crate) fn children(&self) -> Option<Children> {
        let Body::Inner { children, .. } = &self.body else { return None };
        let mut pointers = [None; NODE_CHILDREN];
        for (pointer, child) in pointers.iter_mut().zip(children.iter()) {
            if let Some(child) = child {
                *pointer = Some(child.pointer()?);
            }
        }
        Some(pointers)
    }

    /// Nodes from here on that no page holds, children before their parents. A node that has a page has children that have.
    pub(crate) fn dirty(self: &Rc<Self>, found: &mut Vec<Rc<Self>>) {
        if self.pointer().is_some() {
            return;
        }
        if let Body::Inner { children, .. } = &self.body {
            for child in children.iter().flatten() {
                child.dirty(found);
            }
        }
        found.push(Rc::clone(self));
    }

    /// Adds a live link, and to all below if it is the first one.
    fn enliven(self: &Rc<Self>) {
        self.live.set(self.live.get() + 1);
        if self.live.get() == 1
            && let Body::Inner { children, .. } = &self.body
        {
            children.iter().flatten().for_each(Node::enliven);
        }
    }

    /// Ends a live link; with the last one all below lose theirs.
    fn release(&self, counts: &mut impl Counts) {
        let left = self.live.get().checked_sub(1).expect("a live link is ended once");
        self.live.set(left);
        if left > 0 {
            return;
        }
        match &self.body {
            Body::Inner { children, .. } => {
                children.iter().flatten().for_each(|child| child.release(counts));
            }
            Body::Leaf(leaf) => each_place(leaf, |place| counts.unreference(place)),
        }
    }

    /// The node for a change: itself if nothing else refers to it, else a copy.
    fn writable<'a>(this: &'a mut Rc<Self>, pages: &Rc<Pages>, counts: &mut impl Counts) -> &'a mut Self {
        let shared = this.live.get() > 1;
        if shared || Rc::get_mut(this).is_none() {
            let body = this.body.clone();
            if shared {
                this.live.set(this.live.get() - 1);
                match &body {
                    Body::Inner { children, .. } => {
                        children.iter().flatten().for_each(|child| child.live.set(child.live.get() + 1))
                    }
                    Body::Leaf(leaf) => each_place(leaf, |place| counts.reference(place)),
                }
            }
            *this = Self::new(pages, this.first, body);
        }
        let node = Rc::get_mut(this).expect("the copy is nobody else's");
        if matches!(node.stored.get_mut(), Stored::Pages { .. }) {
            *node.stored.get_mut() = Stored::Dirty(pages.dirty());
        }
        node
    }

    /// Moves the pieces of an extent; how they lay before.
    fn set(&mut self, extent: u64, pieces: &Pieces, pages: &Rc<Pages>, counts: &mut impl Counts) -> Pieces {
        match &mut self.body {
            Body::Leaf(leaf) => {
                let index = leaf_index(extent);
                let old = leaf.get(index);
                let new_to = |of: &Pieces, place: &Place| of.within(*place) == 0;
                pieces.places().filter(|place| new_to(&old, place)).for_each(|place| counts.reference(place));
                old.places()
                    .filter(|place| new_to(pieces, place))
                    .for_each(|place| counts.unreference(place));
                leaf.set(index, pieces);
                old
            }
            Body::Inner { level, children } => {
                let index = child_index(*level, extent);
                let below = covered(*level - 1);
                let first = extent / below * below;
                let child = children[index].get_or_insert_with(|| Self::new(pages, first, empty(*level - 1)));
                Self::writable(child, pages, counts).set(extent, pieces, pages, counts)
            }
        }
    }

    /// Lets all on the way to a node below be written anew, and that node.
    fn rewrite(&mut self, level: u16, first: u64, pages: &Rc<Pages>, counts: &mut impl Counts) {
        let Body::Inner { level: own, children } = &mut self.body else { return };
        if *own > level
            && let Some(child) = &mut children[child_index(*own, first)]
        {
            Self::writable(child, pages, counts).rewrite(level, first, pages, counts);
        }
    }

    /// The first leaf from here on that covers an extent or lies behind it.
    fn leaf_from(&self, extent: u64) -> Option<(u64, &Leaf)> {
        match &self.body {
            Body::Leaf(leaf) => (extent < self.first + covered(0)).then_some((self.first, leaf)),
            Body::Inner { level, .. } if extent >= self.first + covered(*level) => None,
            Body::Inner { level, children } => {
                let from = if extent > self.first { child_index(*level, extent) } else { 0 };
                children[from..].iter().flatten().find_map(|child| child.leaf_from(extent))
            }
        }
    }

    /// Calls with each extent that is mapped from here on.
    fn each(&self, call: &mut impl FnMut(u64, &Pieces)) {
        match &self.body {
            Body::Leaf(leaf) => {
                leaf.mapped().for_each(|(index, pieces)| call(self.first + index as u64, &pieces));
            }
            Body::Inner { children, .. } => children.iter().flatten().for_each(|child| child.each(call)),
        }
    }
}

fn empty(level: u16) -> Body {
    match level {
        0 => Body::Leaf(Leaf::default()),
        _ => Body::Inner { level, children: Box::new([const { None }; NODE_CHILDREN]) },
    }
}

fn each_place(leaf: &Leaf, mut call: impl FnMut(Place)) {
    for (_, pieces) in leaf.mapped() {
        pieces.places().for_each(&mut call);
    }
}

impl Tree {
    /// A map of nothing.
    pub(crate) fn new(pages: &Rc<Pages>) -> Self {
        Self { pages: Rc::clone(pages), root: None, levels: 0, mapped: 0 }
    }

    /// The map with this root, which was read; live from now on.
    pub(crate) fn loaded(pages: &Rc<Pages>, root: Option<Rc<Node>>, levels: u16) -> Self {
        if let Some(root) = &root {
            root.enliven();
        }
        let mut tree = Self { pages: Rc::clone(pages), root, levels, mapped: 0 };
        let mut mapped = 0;
        tree.each(|_, pieces| mapped += pieces.mapped());
        tree.mapped = mapped;
        tree
    }

    /// How many pieces lie somewhere, shared or not.
    pub(crate) fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Where the pieces of an extent lie, and whether no other live tree shares the leaf that says so.
    pub(crate) fn get(&self, extent: u64) -> (Pieces, bool) {
        let nothing = (Pieces::UNMAPPED, true);
        let Some(mut node) = self.root.as_ref().filter(|_| extent < covered(self.levels)) else {
            return nothing;
        };
        let mut own = true;
        loop {
            own &= node.live.get() == 1;
            match &node.body {
                Body::Leaf(leaf) => return (leaf.get(leaf_index(extent)), own),
                Body::Inner { level, children } => match &children[child_index(*level, extent)] {
                    Some(child) => node = child,
                    None => return nothing,
                },
            }
        }
    }

    /// Moves the pieces of an extent.
    pub(crate) fn set(&mut self, extent: u64, pieces: &Pieces, counts: &mut impl Counts) {
        assert!(extent < covered(LEVELS_MAX), "the size of a volume is bounded");
        while extent >= covered(self.levels) {
            self.levels += 1;
            if let Some(below) = self.root.take() {
                let mut body = empty(self.levels);
                if let Body::Inner { children, .. } = &mut body {
                    children[0] = Some(below);
                }
                self.root = Some(Node::new(&self.pages, 0, body));
            }
        }
        let root = self.root.get_or_insert_with(|| Node::new(&self.pages, 0, empty(self.levels)));
        let old = Node::writable(root, &self.pages, counts).set(extent, pieces, &self.pages, counts);
        self.mapped = self.mapped + pieces.mapped() - old.mapped();
    }

    /// Lets the next checkpoint write a node or leaf anew, and all above it, if it is this map's: the one of that level, from that extent on,
    /// that this page holds.
    pub(crate) fn rewrite(
        &mut self,
        level: u16,
        first: u64,
        pointer: PagePointer,
        counts: &mut impl Counts,
    ) -> bool {
        let Some(root) = self.root.as_mut().filter(|_| first < covered(self.levels)) else { return false };
        let mut node = &*root;
        while node.level() > level {
            let Body::Inner { level: own, children } = &node.body else { return false };
            let Some(child) = &children[child_index(*own, first)] else { return false };
            node = child;
        }
        if node.level() != level || node.first != first || node.pointer() != Some(pointer) {
            return false;
        }
        Node::writable(root, &self.pages, counts).rewrite(level, first, &self.pages, counts);
        true
    }

    /// The first leaf that covers an extent or lies behind it, and the first extent that it covers.
    pub(crate) fn leaf_from(&self, extent: u64) -> Option<(u64, &Leaf)> {
        self.root.as_ref()?.leaf_from(extent)
    }

    /// A second live map that shares everything.
    pub(crate) fn share(&self) -> Self {
        if let Some(root) = &self.root {
            root.live.set(root.live.get() + 1);
        }
        let (root, levels, mapped) = (self.root.clone(), self.levels, self.mapped);
        Self { pages: Rc::clone(&self.pages), root, levels, mapped }
    }

    /// Ends a live map: what no other one shares is unreferenced.
    pub(crate) fn release(self, counts: &mut impl Counts) {
        if let Some(root) = &self.root {
            root.release(counts);
        }
    }

    /// The map as it is now.
    pub(crate) fn freeze(&self) -> FrozenTree {
        FrozenTree { root: self.root.clone(), levels: self.levels }
    }

    /// Calls with each extent that is mapped, in order.
    pub(crate) fn each(&self, mut call: impl FnMut(u64, &Pieces)) {
        if let Some(root) = &self.root {
            root.each(&mut call);
        }
    }

    /// Calls with each extent whose pieces differ between two maps, in order. What both share is not looked at.
    pub(crate) fn each_difference(&self, other: &Self, mut call: impl FnMut(u64)) {
        let levels = self.levels.max(other.levels);
        differ(self.part(levels), other.part(levels), &mut call);
    }

    fn part(&self, levels: u16) -> Part<'_> {
        Part { node: self.root.as_ref(), first: 0, level: levels }
    }

    /// Counts each extent once for each leaf that names it, for all leaves that were not `seen` in other maps.
    pub(crate) fn count_into(&self, seen: &mut Seen, counts: &mut impl Counts) {
        if let Some(root) = &self.root {
            count(root, seen, counts);
        }
    }
}

/// Nodes that were looked at already; only those that several trees share are noted.
pub(crate) type Seen = std::collections::BTreeSet<*const Node>;

fn count(node: &Rc<Node>, seen: &mut Seen, counts: &mut impl Counts) {
    if node.live.get() > 1 && !seen.insert(Rc::as_ptr(node)) {
        return;
    }
    match &node.body {
        Body::Leaf(leaf) => each_place(leaf, |place| counts.reference(place)),
        Body::Inner { children, .. } => {
            children.iter().flatten().for_each(|child| count(child, seen, counts))
        }
    }
}

/// A range of a map that may be higher than its tree.
#[derive(Clone, Copy)]
struct Part<'a> {
    node: Option<&'a Rc<Node>>,
    first: u64,
    level: u16,
}

impl<'a> Part<'a> {
    fn child(self, index: usize) -> Self {
        let level = self.level - 1;
        let first = self.first + index as u64 * covered(level);
        let node = match self.node {
            Some(node) if node.level() < self.level => (index == 0).then_some(node),
            Some(node) => match &node.body {
                Body::Inner { children, .. } => children[index].as_ref(),
                Body::Leaf(_) => None,
            },
            None => None,
        };
        Self { node, first, level }
    }

    fn leaf(self) -> Option<&'a Leaf> {
        match &self.node?.body {
            Body::Leaf(leaf) => Some(leaf),
            Body::Inner { .. } => None,
        }
    }
}

fn differ(a: Part<'_>, b: Part<'_>, call: &mut impl FnMut(u64)) {
    match (a.node, b.node) {
        (None, None) => return,
        (Some(left), Some(right)) if Rc::ptr_eq(left, right) => return,
        _ => {}
    }
    if a.level > 0 {
        (0..NODE_CHILDREN).for_each(|index| differ(a.child(index), b.child(index), call));
        return;
    }
    let pieces = |leaf: Option<&Leaf>, index| leaf.map_or(Pieces::UNMAPPED, |leaf| leaf.get(index));
    for index in 0..LEAF_EXTENTS {
        if pieces(a.leaf(), index) != pieces(b.leaf(), index) {
            call(a.first + index as u64);
        }
    }
}

impl FrozenTree {
    /// Calls with each extent that is mapped, in order.
    pub(crate) fn each(&self, mut call: impl FnMut(u64, &Pieces)) {
        if let Some(root) = &self.root {
            root.each(&mut call);
        }
    }

    /// How the volume's page names it, once its root has a page.
    pub(crate) fn map_root(&self) -> MapRoot {
        MapRoot { levels: self.levels, page: self.root.as_ref().and_then(|root| root.pointer()) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default, Debug, PartialEq, Clone)]
    struct Counted(BTreeMap<Place, u32>);

    impl Counts for Counted {
        fn reference(&mut self, place: Place) {
            *self.0.entry(place).or_default() += 1;
        }

        fn unreference(&mut self, place: Place) {
            let count = self.0.get_mut(&place).expect("counted before");
            *count -= 1;
            if *count == 0 {
                self.0.remove(&place);
            }
        }
    }

    fn pages() -> Rc<Pages> {
        let pages = Rc::new(Pages::default());
        pages.add_area(10_000);
        pages
    }

    fn pieces(extent: u64) -> Pieces {
        Pieces::whole(Place::new(0, extent).unwrap())
    }

    #[test]
    fn a_snapshot_keeps_what_its_origin_changes() {
        let (pages, mut counts) = (pages(), Counted::default());
        let mut origin = Tree::new(&pages);
        for extent in [0, 5, 300, 20_000, 2_000_000] {
            origin.set(extent, &pieces(extent), &mut counts);
        }
        assert!(origin.get(5).1);
        let snapshot = origin.share();
        assert_eq!(origin.get(5), (pieces(5), false));
        origin.set(5, &pieces(77), &mut counts);
        assert_eq!(origin.get(5), (pieces(77), true));
        assert_eq!(snapshot.get(5).0, pieces(5));
        // The leaf was copied: what it names beside extent 5 is named twice now.
        assert_eq!(counts.0[&Place::new(0, 0).unwrap()], 2);
        let mut changed = Vec::new();
        origin.each_difference(&snapshot, |extent| changed.push(extent));
        assert_eq!(changed, [5]);
        assert_eq!((origin.mapped(), snapshot.mapped()), (5 * 16, 5 * 16));
        origin.set(300, &Pieces::UNMAPPED, &mut counts);
        assert_eq!((origin.mapped(), snapshot.mapped()), (4 * 16, 5 * 16));
        origin.release(&mut counts);
        let mut seen = Vec::new();
        snapshot.each(|extent, _| seen.push(extent));
        assert_eq!(seen, [0, 5, 300, 20_000, 2_000_000]);
        snapshot.release(&mut counts);
        assert_eq!(counts, Counted::default());
        assert_eq!(pages.dirty_count(), 0);
    }

    #[test]
    fn a_frozen_map_does_not_change_and_shares_no_data() {
        let (pages, mut counts) = (pages(), Counted::default());
        let mut tree = Tree::new(&pages);
        tree.set(1, &pieces(1), &mut counts);
        let frozen = tree.freeze();
        tree.set(1, &pieces(2), &mut counts);
        assert!(tree.get(1).1, "a state on disk is no other volume");
        assert_eq!(counts.0.keys().copied().collect::<Vec<_>>(), [Place::new(0, 2).unwrap()]);
        let Body::Leaf(leaf) = &frozen.root.as_ref().unwrap().body else { panic!("a leaf") };
        assert_eq!(leaf.get(1), pieces(1));
        tree.release(&mut counts);
    }

    #[test]
    fn leaves_are_found_one_after_the_other() {
        let (pages, mut counts) = (pages(), Counted::default());
        let mut tree = Tree::new(&pages);
        assert!(tree.leaf_from(0).is_none());
        for extent in [300, 20_000, 2_000_000] {
            tree.set(extent, &pieces(extent), &mut counts);
        }
        let firsts = |from| tree.leaf_from(from).map(|(first, _)| first);
        assert_eq!([0, 511, 512, 19_968, 20_223].map(firsts), [256, 256, 19_968, 19_968, 19_968].map(Some));
        assert_eq!(
            [20_224, 1_999_872 + 255, 2_000_128, u64::MAX >> 1].map(firsts),
            [Some(1_999_872), Some(1_999_872), None, None]
        );
        tree.release(&mut counts);
    }

    #[test]
    fn a_part_that_is_written_anew_takes_another_page_and_names_the_same() {
        let (pages, mut counts) = (pages(), Counted::default());
        let mut origin = Tree::new(&pages);
        for extent in [5, 300, 20_000] {
            origin.set(extent, &pieces(extent), &mut counts);
        }
        // As if a checkpoint had written it.
        let mut dirty = Vec::new();
        let frozen = origin.freeze();
        frozen.root.as_ref().unwrap().dirty(&mut dirty);
        let pointer =
            |checksum| PagePointer { number: crate::layout::PageNumber::new(0, 1).unwrap(), checksum };
        for (checksum, node) in (0..).zip(&dirty) {
            node.set_stored(pointer(checksum), Vec::new());
        }
        assert_eq!(pages.dirty_count(), 0);
        let mut snapshot = origin.share();
        let leaf = dirty.iter().position(|node| node.level() == 0 && node.first == 256).unwrap();
        let named = pointer(u64::try_from(leaf).unwrap());
        let before = counts.clone();
        assert!(!origin.rewrite(0, 0, named, &mut counts), "another leaf's page");
        assert!(!origin.rewrite(1, 256, named, &mut counts));
        assert!(!origin.rewrite(0, 256, pointer(77), &mut counts));
        assert_eq!((pages.dirty_count(), &before), (0, &counts));
        assert!(origin.rewrite(0, 256, named, &mut counts));
        assert!(snapshot.rewrite(0, 256, named, &mut counts));
        let ways = usize::from(origin.freeze().levels) + 1;
        assert_eq!(pages.dirty_count(), 2 * ways, "a leaf and what is above it, twice");
        assert!(!origin.rewrite(0, 256, named, &mut counts), "it is done");
        let mut changed = Vec::new();
        origin.each_difference(&snapshot, |extent| changed.push(extent));
        assert_eq!(changed, []);
        origin.release(&mut counts);
        snapshot.release(&mut counts);
        assert_eq!(counts, Counted::default());
        drop((frozen, dirty));
        assert_eq!(pages.dirty_count(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(usize, u64, u64),
        Clear(usize, u64),
        Share(usize),
        Release(usize),
        Freeze(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let extent = prop_oneof![0_u64..20, 250_u64..262, 16_380_u64..16_390, Just(1_100_000)];
        let step = prop_oneof![
            6 => (0_usize..6, extent.clone(), 0_u64..40).prop_map(|(t, e, p)| Step::Set(t, e, p)),
            2 => (0_usize..6, extent).prop_map(|(t, e)| Step::Clear(t, e)),
            1 => (0_usize..6).prop_map(Step::Share),
            1 => (0_usize..6).prop_map(Step::Release),
            1 => (0_usize..6).prop_map(Step::Freeze),
        ];
        prop::collection::vec(step, 1..80)
    }

    proptest! {
        #[test]
        fn agrees_with_plain_maps(steps in steps()) {
            let (pages, mut counts) = (pages(), Counted::default());
            let mut trees = vec![(Tree::new(&pages), BTreeMap::new())];
            let mut frozen = Vec::new();
            for step in steps {
                match step {
                    Step::Set(at, extent, place) => {
                        let at = at % trees.len();
                        trees[at].0.set(extent, &pieces(place), &mut counts);
                        trees[at].1.insert(extent, pieces(place));
                    }
                    Step::Clear(at, extent) => {
                        let at = at % trees.len();
                        trees[at].0.set(extent, &Pieces::UNMAPPED, &mut counts);
                        trees[at].1.remove(&extent);
                    }
                    Step::Share(at) => {
                        let (tree, model) = &trees[at % trees.len()];
                        let copy = (tree.share(), model.clone());
                        trees.push(copy);
                    }
                    Step::Release(at) if trees.len() > 1 => {
                        let at = at % trees.len();
                        trees.swap_remove(at).0.release(&mut counts);
                    }
                    Step::Release(_) => {}
                    Step::Freeze(at) => frozen.push(trees[at % trees.len()].0.freeze()),
                }
            }
            let mut expected = Counted::default();
            let mut seen = Seen::new();
            for (tree, model) in &trees {
                let mut found = BTreeMap::new();
                tree.each(|extent, pieces| { found.insert(extent, *pieces); });
                prop_assert_eq!(&found, model);
                tree.count_into(&mut seen, &mut expected);
                for (other, other_model) in &trees {
                    let mut changed = Vec::new();
                    tree.each_difference(other, |extent| changed.push(extent));
                    let all: std::collections::BTreeSet<u64> =
                        model.keys().chain(other_model.keys()).copied().collect();
                    let differing: Vec<u64> =
                        all.into_iter().filter(|e| model.get(e) != other_model.get(e)).collect();
                    prop_assert_eq!(changed, differing);
                }
            }
            prop_assert_eq!(&expected, &counts);
            for (tree, _) in trees {
                tree.release(&mut counts);
            }
            prop_assert_eq!(counts, Counted::default());
            drop(frozen);
            prop_assert_eq!(pages.dirty_count(), 0);
        }
    }
}
