//! What the disks hold: pages, groups of the journal.

use std::collections::BTreeSet;
use std::fmt;
use std::rc::{Rc, Weak};

use basalt_bdev::IoError;

use super::{Run, ScrubError};
use crate::error::FaultCause;
use crate::id::VolumeId;
use crate::layout::{
    DamageReason, GroupId, Leaf, PAGE_BYTES, PageHeader, PageKind, PageNumber, PagePointer, TwinPointer,
    copies_of_group, decode_node,
};
use crate::pool::checkpoint::{Written, WrittenVolume};
use crate::pool::inspect::Remedy;
use crate::pool::load::{header_of, read_page};
use crate::pool::{Inner, StoredPage, Volume};
use crate::tree::{Body, Node};

/// Bytes of the journal that are read at a time.
const JOURNAL_READ_BYTES: u64 = 64 << 10;

/// A page of a map, or of what a leaf goes on in.
type Looked = Result<(), DamageReason>;

impl Run {
    /// Both copies of the root and of each part of the directory, which is looked at whatever the root's copies hold.
    pub(super) async fn top(&mut self) -> Result<(), ScrubError> {
        let (written, root, sequence) = {
            let pool = self.pool()?;
            let state = pool.state.borrow();
            (state.on_disk.clone(), state.superblock.root, state.superblock.sequence)
        };
        let directory = written.iter().flat_map(|written| &written.top.directory);
        let directory = directory.map(|twin| (*twin, PageKind::Directory));
        for (twin, kind) in root.map(|twin| (twin, PageKind::Root)).into_iter().chain(directory) {
            self.twin(&twin, kind, sequence).await?;
            self.spent(2 * PAGE_BYTES as u64).await;
        }
        // Until here nothing took the place of these pages.
        drop::<Option<Rc<Written>>>(written);
        Ok(())
    }

    /// Looks at both copies of a page.
    async fn twin(&mut self, twin: &TwinPointer, kind: PageKind, sequence: u64) -> Result<(), ScrubError> {
        let pool = self.pool()?;
        let header = header_of(pool.id, sequence, kind, twin);
        let mut wrong = Vec::new();
        for (copy, number) in twin.numbers.into_iter().enumerate() {
            let page = read(&pool, number).await?.unwrap_or_default();
            if !twin.is_intact(&page, copy, &header) {
                wrong.push(number);
            }
        }
        drop(pool);
        for number in wrong {
            let what = if kind == PageKind::Root { "root" } else { "directory" };
            self.rewrites = true;
            self.found(
                "pool",
                format!("{number}, a copy of the {what}, is damaged; it is written anew"),
                Remedy::Rewrite,
            );
        }
        Ok(())
    }

    /// The page of each volume and its map. What volumes share is looked at once.
    pub(super) async fn volumes(&mut self) -> Result<(), ScrubError> {
        let ids: Vec<VolumeId> = self.pool()?.state.borrow().volumes.keys().copied().collect();
        let mut seen = BTreeSet::new();
        for id in ids {
            let (page, root) = {
                let pool = self.pool()?;
                let state = pool.state.borrow();
                let on_disk = state.on_disk.as_ref().and_then(|on_disk| on_disk.volume(id));
                let Some(WrittenVolume { page, tree, .. }) = on_disk else { continue };
                (page.clone(), tree.root.as_ref().map(Rc::downgrade))
            };
            if let Some(page) = page {
                self.volume_page(id, page).await?;
            }
            let mut rest = Vec::from_iter(root);
            while let Some(node) = rest.pop() {
                rest.extend(self.node(id, node, &mut seen).await?);
            }
        }
        Ok(())
    }

    async fn volume_page(&mut self, id: VolumeId, page: Rc<StoredPage>) -> Result<(), ScrubError> {
        let pool = self.pool()?;
        let looked = looked_at(&pool, page.pointer, PageKind::Volume).await?.map(drop);
        if let Err(reason) = looked {
            if let Some(data) = pool.state.borrow_mut().volumes.get_mut(&id).and_then(Volume::data_mut) {
                data.touch();
            }
            self.rewrites = true;
            self.found(
                format!("volume {id}"),
                words_of_page("its page", page.pointer.number, reason),
                Remedy::Rewrite,
            );
        }
        drop((page, pool));
        self.spent(PAGE_BYTES as u64).await;
        Ok(())
    }

    /// Looks at a node or leaf; which nodes to go on with. Nothing, if another has taken its place since its parent was looked at.
    async fn node(
        &mut self,
        id: VolumeId,
        node: Weak<Node>,
        seen: &mut BTreeSet<PageNumber>,
    ) -> Result<Vec<Weak<Node>>, ScrubError> {
        // Held from here on: its pages are used for nothing else.
        let Some(node) = node.upgrade() else { return Ok(Vec::new()) };
        let Some(pointer) = node.pointer().filter(|pointer| seen.insert(pointer.number)) else {
            return Ok(Vec::new());
        };
        let pool = self.pool()?;
        let (looked, pages) = look_at_node(&pool, &node, pointer).await?;
        if let Err(reason) = looked {
            let what = if node.level() == 0 { "a leaf of its map" } else { "a node of its map" };
            let words = words_of_page(what, pointer.number, reason);
            match pool.rewrite(&node, pointer) {
                true => {
                    self.rewrites = true;
                    self.found(format!("volume {id}"), words, Remedy::Rewrite);
                }
                false => self.found(
                    format!("volume {id}"),
                    format!("{words}, as soon as there is room for metadata"),
                    Remedy::ByHand,
                ),
            }
        }
        let children = match &node.body {
            Body::Leaf(_) => Vec::new(),
            Body::Inner { children, .. } => children.iter().rev().flatten().map(Rc::downgrade).collect(),
        };
        drop((node, pool));
        self.spent(pages * PAGE_BYTES as u64).await;
        Ok(children)
    }

    /// The groups that follow the last checkpoint.
    pub(super) async fn journal(&mut self) -> Result<(), ScrubError> {
        let (start, journal) = {
            let pool = self.pool()?;
            let state = pool.state.borrow();
            let geometry = &state.superblock.geometry;
            let half = state.journal.checkpoint % 2 * geometry.journal_bytes;
            (geometry.journal_offset + half, state.journal)
        };
        let mut bytes = Vec::new();
        let mut unreadable = false;
        for at in (0..journal.used).step_by(usize::try_from(JOURNAL_READ_BYTES).unwrap_or(usize::MAX)) {
            let count = JOURNAL_READ_BYTES.min(journal.used - at);
            let pool = self.pool()?;
            match pool.lead().read(start + at, count).await {
                Ok(part) => bytes.extend(part),
                Err(fault) if matches!(fault.source, FaultCause::Io(IoError::Medium)) => unreadable = true,
                Err(fault) => return Err(fault.into()),
            }
            drop(pool);
            self.spent(count).await;
        }
        let pool = self.pool()?;
        if pool.state.borrow().superblock.sequence > journal.checkpoint {
            // A later checkpoint has all that it said, and others may be written over it.
            return Ok(());
        }
        let block = pool.lead().block().bytes() as usize;
        let id = |sequence| GroupId { pool: pool.id, checkpoint: journal.checkpoint, sequence };
        let (mut at, mut wrong) = (0, unreadable);
        for sequence in journal.first..journal.sequence {
            if wrong {
                break;
            }
            match copies_of_group(&bytes[at.min(bytes.len())..], id(sequence), block) {
                Some((length, 2)) => at += length,
                _ => wrong = true,
            }
        }
        drop(pool);
        if wrong {
            self.rewrites = true;
            let words =
                "a copy of a group is damaged or cannot be read; a checkpoint takes the journal's place";
            self.found("journal", words, Remedy::Rewrite);
        }
        Ok(())
    }
}

impl Inner {
    /// Lets the next checkpoint write a part of maps anew, in all volumes that have it; false if there is no room for that.
    fn rewrite(&self, node: &Rc<Node>, pointer: PagePointer) -> bool {
        let mut state = self.state.borrow_mut();
        if !self.has_room(&state) {
            return false;
        }
        let state = &mut *state;
        for volume in state.volumes.values_mut() {
            if let Volume::Committing(data) | Volume::Ready(data) | Volume::Isolated(data, _) = volume
                && data.tree.rewrite(node.level(), node.first, pointer, &mut state.refs)
            {
                data.touch();
            }
        }
        true
    }
}

fn words_of_page(what: &str, number: PageNumber, reason: DamageReason) -> impl fmt::Display {
    format!("{number}, {what}, is damaged ({reason}); it is written anew from memory")
}

/// A page; `None` if the medium could not give it.
async fn read(pool: &Inner, number: PageNumber) -> Result<Option<Vec<u8>>, ScrubError> {
    match pool.page_place(number) {
        Some((disk, offset)) => Ok(read_page(&disk, offset).await?),
        None => Ok(None),
    }
}

/// Reads a page and checks it against the pointer that names it.
async fn looked_at(
    pool: &Inner,
    pointer: PagePointer,
    kind: PageKind,
) -> Result<Result<(Vec<u8>, PageHeader), DamageReason>, ScrubError> {
    let Some(page) = read(pool, pointer.number).await? else { return Ok(Err(DamageReason::Checksum)) };
    Ok(PageHeader::decode(&page, pointer, pool.id, kind).map(|header| (page, header)))
}

/// Looks at the page of a node, or at those of a leaf; and how many they are.
async fn look_at_node(pool: &Inner, node: &Node, pointer: PagePointer) -> Result<(Looked, u64), ScrubError> {
    let kind = if node.level() == 0 { PageKind::Leaf } else { PageKind::Node };
    let (page, header) = match looked_at(pool, pointer, kind).await? {
        Ok(found) => found,
        Err(reason) => return Ok((Err(reason), 1)),
    };
    if (header.level, header.first) != (node.level(), node.first) {
        return Ok((Err(DamageReason::Field("place of a page")), 1));
    }
    if kind == PageKind::Node {
        return Ok((decode_node(&page).map(drop), 1));
    }
    let mut reader = match Leaf::decode(&page) {
        Ok(reader) => reader,
        Err(reason) => return Ok((Err(reason), 1)),
    };
    let mut pages = 1;
    while let Some(next) = reader.next() {
        pages += 1;
        let looked = looked_at(pool, next, PageKind::Overflow).await?;
        if let Err(reason) = looked.and_then(|(page, _)| reader.overflow(&page)) {
            return Ok((Err(reason), pages));
        }
    }
    Ok((reader.finish().map(drop), pages))
}
