//! Making the state of a pool durable: changed pages to free places, flush, superblock twice, each flushed.

use std::collections::BTreeMap;
use std::rc::Rc;

use basalt_clock::{mark, planted};
use futures::StreamExt;
use futures::stream;

use super::remains::Kept;
use super::{Inner, Journal, StoredPage, Volume, VolumeData};
use crate::disk::DiskIo;
use crate::error::{DiskFault, ReadOnlyReason};
use crate::id::{PoolId, VolumeId};
use crate::layout::{
    DIRECTORY_RECORDS, DirectoryRecord, DiskRecord, PAGE_BYTES, PageHeader, PageKind, PageNumber, Root,
    Superblock, TwinPointer, VolumeRecord, encode_directory, encode_node,
};
use crate::pages::{PageHold, Pages};
use crate::tree::{Body, FrozenTree, Node};

/// Page writes that are under way at a time.
const WRITE_DEPTH: usize = 16;
/// Pages that are prepared before others get a turn.
const PREPARE_BATCH: usize = 64;

/// A state of the pool on its way to the disks.
pub(super) struct Checkpoint {
    superblock: Superblock,
    root: Root,
    /// Volumes in the order of their ids.
    volumes: Vec<FrozenVolume>,
    /// Pages to write, once they were prepared.
    prepared: Option<Prepared>,
    /// Changes that it holds.
    changes: u64,
    map_changes: u64,
}

/// A volume as a checkpoint sees it.
enum FrozenVolume {
    /// It is written anew unless `page` holds it.
    Understood { record: Box<VolumeRecord>, tree: FrozenTree, page: Option<Rc<StoredPage>> },
    /// Named as it was found.
    Damaged(DirectoryRecord, Rc<Kept>),
}

/// Pages with their bytes.
pub(super) type PageBytes = BTreeMap<PageNumber, Vec<u8>>;

/// What a checkpoint writes.
struct Prepared {
    pages: PageBytes,
    written: Written,
    /// New pages of volumes, to be noted.
    volume_pages: Vec<(VolumeId, FrozenTree, Rc<StoredPage>)>,
    root: TwinPointer,
}

/// Everything that the state on disk refers to: while this lives, none of its pages is used for something else.
#[derive(Default)]
pub(super) struct Written {
    /// In the order of their ids.
    pub(super) volumes: Vec<WrittenVolume>,
    pub(super) top: TopPages,
    /// Volumes that are damaged.
    pub(super) damaged: Vec<Rc<Kept>>,
}

/// The pages of the root and of the directory.
#[derive(Default)]
pub(super) struct TopPages {
    pub(super) holds: Vec<PageHold>,
    /// Both copies of each part of the directory.
    pub(super) directory: Vec<TwinPointer>,
}

/// What the state on disk says of a volume.
pub(super) struct WrittenVolume {
    pub(super) id: VolumeId,
    pub(super) page: Option<Rc<StoredPage>>,
    pub(super) tree: FrozenTree,
}

impl Written {
    /// What it says of a volume.
    pub(super) fn volume(&self, id: VolumeId) -> Option<&WrittenVolume> {
        let at = self.volumes.binary_search_by_key(&id, |volume| volume.id).ok()?;
        self.volumes.get(at)
    }
}

impl Inner {
    /// Counts a change and waits until it is durable.
    ///
    /// Changes that come while a checkpoint is written wait for it and then share the next one. After a failure the pool takes no
    /// change: it is unknown which of the two states the disk holds.
    pub(super) async fn commit(&self) -> Result<(), ReadOnlyReason> {
        let change = {
            let mut state = self.state.borrow_mut();
            state.changes += 1;
            state.changes
        };
        loop {
            if self.state.borrow().durable >= change {
                mark!("lvol-group-commit");
                return Ok(());
            }
            let Some(_writing) = self.committing.try_take() else {
                self.committing.end().await;
                continue;
            };
            self.writable()?;
            let checkpoint = self.capture(false).await;
            return self.write(checkpoint).await;
        }
    }

    /// Writes all that is in memory, so that the journal is empty and freed pages are free.
    pub(super) async fn checkpoint(&self) -> Result<(), ReadOnlyReason> {
        let seen = self.state.borrow().superblock.sequence;
        let _writing = self.committing.take().await;
        self.writable()?;
        if self.state.borrow().superblock.sequence > seen + 1 {
            // One that began after this was asked for has ended meanwhile.
            return Ok(());
        }
        let checkpoint = self.capture(false).await;
        self.write(checkpoint).await
    }

    /// The last checkpoint before the pool is given away. No change is taken afterwards.
    pub(super) async fn last_checkpoint(&self) -> Result<(), ReadOnlyReason> {
        let _writing = self.committing.take().await;
        self.writable()?;
        let checkpoint = self.capture(true).await;
        self.write(checkpoint).await?;
        self.state.borrow_mut().read_only = Some(ReadOnlyReason::Exported);
        Ok(())
    }

    fn writable(&self) -> Result<(), ReadOnlyReason> {
        self.state.borrow().read_only.clone().map_or(Ok(()), Err)
    }

    /// Tries to end what a failed write of metadata left open.
    ///
    /// The same bytes are written to the same places once more: whatever a part of them did, doing it again does no harm. Then
    /// the state in memory is written as the next one, and is certain.
    pub(super) async fn resume(self: &Rc<Self>) -> Result<(), ReadOnlyReason> {
        let _writing = self.committing.take().await;
        match self.state.borrow().read_only.clone() {
            Some(ReadOnlyReason::MetadataWriteFailed(_) | ReadOnlyReason::MetadataFull) => {}
            other => return other.map_or(Ok(()), Err),
        }
        let unfinished = self.state.borrow_mut().unfinished.take();
        if let Some(unfinished) = unfinished {
            self.write(unfinished).await?;
        }
        let next = self.capture(false).await;
        self.write(next).await?;
        mark!("lvol-resumed");
        self.state.borrow_mut().read_only = None;
        self.settle().await;
        Ok(())
    }

    /// The state in memory as the next one on disk. Groups of the journal go to the other journal from now on.
    async fn capture(&self, exported: bool) -> Checkpoint {
        let _quiet = self.journaling.take().await;
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let sequence = state.superblock.sequence + 1;
        // One that is captured again because there was no room for it goes on with the groups that followed it.
        if state.journal.checkpoint != sequence {
            let first = state.journal.sequence;
            state.journal = Journal { used: 0, sequence: first, checkpoint: sequence, first };
        }
        let volumes: Vec<FrozenVolume> = state.volumes.iter().filter_map(frozen).collect();
        let disks = self.records.borrow().clone();
        let extents: Vec<u64> = disks.iter().map(|disk| disk.extents).collect();
        let root = Root {
            name: self.name.clone(),
            layout: state.space.layout(),
            openings: state.openings,
            revision: state.revision,
            disks,
            volumes: u32::try_from(volumes.len()).expect("bounded by the metadata areas"),
            directory: None,
            first_group: state.journal.first,
            // In the same step as the maps: no map of this state names what is not taken now.
            taken: Some(state.space.taken_map(&extents)),
        };
        Checkpoint {
            superblock: Superblock { sequence, exported, ..state.superblock.clone() },
            root,
            volumes,
            prepared: None,
            changes: state.changes,
            map_changes: state.map_changes,
        }
    }

    async fn write(&self, mut checkpoint: Checkpoint) -> Result<(), ReadOnlyReason> {
        if checkpoint.prepared.is_none() {
            let mut maker = PageMaker {
                pages: &self.pages,
                pool: self.id,
                sequence: checkpoint.superblock.sequence,
                // What an earlier one prepared and had no room to go on with is still to be written.
                made: std::mem::take(&mut self.state.borrow_mut().left_over),
            };
            let Some(prepared) = self.prepare(&mut checkpoint, &mut maker).await else {
                mark!("lvol-metadata-full");
                let left_over = maker.made;
                let mut state = self.state.borrow_mut();
                state.left_over = left_over;
                state.read_only = Some(ReadOnlyReason::MetadataFull);
                return Err(ReadOnlyReason::MetadataFull);
            };
            checkpoint.superblock.root = Some(prepared.root);
            checkpoint.prepared = Some(prepared);
        }
        let written = match &checkpoint.prepared {
            Some(prepared) => self.write_prepared(&checkpoint.superblock, &prepared.pages).await,
            None => Ok(()),
        };
        if let Err(fault) = written {
            mark!("lvol-commit-failed");
            let reason = ReadOnlyReason::MetadataWriteFailed(Rc::new(fault));
            let mut state = self.state.borrow_mut();
            state.read_only = Some(reason.clone());
            state.unfinished = Some(checkpoint);
            return Err(reason);
        }
        self.written(checkpoint);
        Ok(())
    }

    /// A checkpoint is on the disks.
    fn written(&self, checkpoint: Checkpoint) {
        let Some(prepared) = checkpoint.prepared else { return };
        let before = {
            let mut state = self.state.borrow_mut();
            let state = &mut *state;
            for (id, tree, page) in prepared.volume_pages {
                // A volume that changed meanwhile needs another page.
                if let Some(data) = state.volumes.get_mut(&id).and_then(Volume::data_mut)
                    && is_same(data, &tree, checkpoint.volumes.iter().find_map(|volume| volume.record(id)))
                {
                    data.page = Some(page);
                }
            }
            state.superblock = checkpoint.superblock;
            state.durable = state.durable.max(checkpoint.changes);
            state.map_durable = state.map_durable.max(checkpoint.map_changes);
            state.refs.settle(state.map_durable);
            state.written_upto(checkpoint.map_changes);
            self.shared.durable.fetch_max(state.map_durable, std::sync::atomic::Ordering::AcqRel);
            state.on_disk.replace(Rc::new(prepared.written))
        };
        // Pages that only the state before refers to are free from now on.
        drop(before);
    }

    /// Gives pages to all that has none and prepares their bytes; `None` if there are too few.
    async fn prepare(&self, checkpoint: &mut Checkpoint, maker: &mut PageMaker<'_>) -> Option<Prepared> {
        let mut written = Written::default();
        let mut directory = Vec::with_capacity(checkpoint.volumes.len());
        let mut volume_pages = Vec::new();
        for volume in &checkpoint.volumes {
            let (record, tree, page) = match volume {
                FrozenVolume::Damaged(record, kept) => {
                    directory.push(*record);
                    written.damaged.push(Rc::clone(kept));
                    continue;
                }
                FrozenVolume::Understood { record, tree, page } => (record, tree, page),
            };
            let page = match page {
                Some(page) => Rc::clone(page),
                None => {
                    self.prepare_tree(tree, maker).await?;
                    let page = maker.volume(record, tree)?;
                    volume_pages.push((record.id, tree.clone(), Rc::clone(&page)));
                    page
                }
            };
            directory.push(DirectoryRecord {
                volume: record.id,
                generation: record.generation,
                page: page.pointer,
            });
            let volume = WrittenVolume { id: record.id, page: Some(page), tree: tree.clone() };
            written.volumes.push(volume);
        }
        written.top = maker.directory(&directory)?;
        checkpoint.root.directory = written.top.directory.last().copied();
        let (root, holds) = maker.root(&checkpoint.root)?;
        written.top.holds.extend(holds);
        Some(Prepared { pages: std::mem::take(&mut maker.made), written, volume_pages, root })
    }

    async fn prepare_tree(&self, tree: &FrozenTree, maker: &mut PageMaker<'_>) -> Option<()> {
        let mut dirty = Vec::new();
        if let Some(root) = &tree.root {
            root.dirty(&mut dirty);
        }
        for (index, node) in dirty.iter().enumerate() {
            if index % PREPARE_BATCH == PREPARE_BATCH - 1 {
                self.handle.yield_now().await;
            }
            maker.node(node)?;
        }
        Some(())
    }

    async fn write_prepared(&self, superblock: &Superblock, pages: &PageBytes) -> Result<(), DiskFault> {
        if planted!("lvol-superblock-before-pages") {
            self.lead().write_superblock(superblock).await?;
        }
        write_pages(self, pages).await?;
        // Pages, and the data that they name: nothing of that counts before the superblock does.
        if !planted!("lvol-no-flush-before-superblock") {
            self.flush_disks().await?;
        }
        self.lead().write_superblock(superblock).await
    }

    /// Makes everything durable that was written to any disk.
    pub(super) async fn flush_disks(&self) -> Result<(), DiskFault> {
        for disk in self.present_disks() {
            disk.flush().await?;
        }
        Ok(())
    }

    pub(super) fn page_place(&self, number: PageNumber) -> Option<(Rc<DiskIo>, u64)> {
        let disk = self.disk(number.disk())?;
        let record = *self.records.borrow().get(number.disk())?;
        Some((disk, page_offset(&record, number)))
    }
}

/// Where a page lies on its disk, in bytes.
pub(super) fn page_offset(record: &DiskRecord, number: PageNumber) -> u64 {
    let area = u64::from(record.metadata_pages) * PAGE_BYTES as u64;
    record.data_offset - area + u64::from(number.index()) * PAGE_BYTES as u64
}

pub(super) async fn write_pages(inner: &Inner, pages: &PageBytes) -> Result<(), DiskFault> {
    let writes = pages.iter().map(|(number, bytes)| async move {
        let (disk, offset) = inner.page_place(*number).expect("pages are taken of present disks");
        disk.write(offset, bytes).await
    });
    let mut running = stream::iter(writes).buffer_unordered(WRITE_DEPTH);
    let mut result = Ok(());
    // All are waited for: none may reach the disk after it was given up.
    while let Some(written) = running.next().await {
        result = result.and(written);
    }
    result
}

/// Whether a volume is still what a checkpoint has written.
fn is_same(data: &VolumeData, tree: &FrozenTree, record: Option<&VolumeRecord>) -> bool {
    let now = data.tree.freeze();
    let root = match (&now.root, &tree.root) {
        (Some(now), Some(then)) => Rc::ptr_eq(now, then),
        (None, None) => true,
        _ => false,
    };
    root && now.levels == tree.levels && record == Some(&data.record)
}

/// What the next checkpoint says about a volume.
fn frozen((_, volume): (&VolumeId, &Volume)) -> Option<FrozenVolume> {
    match volume {
        Volume::Preparing(_) | Volume::Deleting(_) => None,
        Volume::Committing(data) | Volume::Ready(data) | Volume::Isolated(data, _) => {
            Some(FrozenVolume::Understood {
                record: Box::new(data.record.clone()),
                tree: data.tree.freeze(),
                page: data.page.clone(),
            })
        }
        Volume::Damaged { directory, kept, .. } => Some(FrozenVolume::Damaged(*directory, Rc::clone(kept))),
    }
}

impl FrozenVolume {
    fn record(&self, id: VolumeId) -> Option<&VolumeRecord> {
        match self {
            Self::Understood { record, .. } if record.id == id => Some(record),
            _ => None,
        }
    }
}

/// Takes pages and prepares their bytes.
pub(super) struct PageMaker<'a> {
    pub(super) pages: &'a Rc<Pages>,
    pub(super) pool: PoolId,
    pub(super) sequence: u64,
    pub(super) made: PageBytes,
}

impl PageMaker<'_> {
    fn header(&self, kind: PageKind, hold: &PageHold) -> PageHeader {
        PageHeader {
            kind,
            level: 0,
            sequence: self.sequence,
            pool: self.pool,
            number: hold.number(),
            first: 0,
        }
    }

    /// A page for a part of a map. Writes were admitted only while there was room; what gives space back may use the rest.
    fn map_page(&self) -> Option<PageHold> {
        self.pages.allocate(false).or_else(|| self.pages.allocate(true))
    }

    fn node(&mut self, node: &Rc<Node>) -> Option<()> {
        let hold = self.map_page()?;
        let header = |kind, hold: &PageHold| PageHeader {
            level: node.level(),
            first: node.first,
            ..self.header(kind, hold)
        };
        match &node.body {
            Body::Inner { .. } => {
                let children = node.children().expect("children are prepared before their parents");
                let (pointer, page) = encode_node(&header(PageKind::Node, &hold), &children);
                self.made.insert(pointer.number, page);
                node.set_stored(pointer, vec![hold]);
            }
            Body::Leaf(leaf) => {
                let mut headers = vec![header(PageKind::Leaf, &hold)];
                let mut holds = vec![hold];
                for _ in 0..leaf.overflow_pages() {
                    let hold = self.map_page()?;
                    headers.push(header(PageKind::Overflow, &hold));
                    holds.push(hold);
                }
                let (pointer, pages) = leaf.encode(&headers);
                let numbers = headers.iter().map(|header| header.number);
                self.made.extend(numbers.zip(pages));
                node.set_stored(pointer, holds);
            }
        }
        Some(())
    }

    fn volume(&mut self, record: &VolumeRecord, tree: &FrozenTree) -> Option<Rc<StoredPage>> {
        let hold = self.pages.allocate(true)?;
        let header = self.header(PageKind::Volume, &hold);
        let (pointer, page) = record.encode(&header, tree.map_root());
        self.made.insert(pointer.number, page);
        Some(Rc::new(StoredPage { pointer, hold }))
    }

    fn twin(&self, kind: PageKind) -> Option<([PageHeader; 2], [PageHold; 2])> {
        let holds = [self.pages.allocate(true)?, self.pages.allocate(true)?];
        Some(([self.header(kind, &holds[0]), self.header(kind, &holds[1])], holds))
    }

    fn push_twin(&mut self, twin: &TwinPointer, pages: [Vec<u8>; 2]) {
        self.made.extend(twin.numbers.into_iter().zip(pages));
    }

    /// The last part is the first one of the chain.
    fn directory(&mut self, records: &[DirectoryRecord]) -> Option<TopPages> {
        let mut top = TopPages::default();
        for part in records.chunks(DIRECTORY_RECORDS).rev() {
            let (headers, holds) = self.twin(PageKind::Directory)?;
            let (twin, pages) = encode_directory(&headers, part, top.directory.last().copied());
            self.push_twin(&twin, pages);
            top.directory.push(twin);
            top.holds.extend(holds);
        }
        Some(top)
    }

    pub(super) fn root(&mut self, root: &Root) -> Option<(TwinPointer, [PageHold; 2])> {
        let (headers, holds) = self.twin(PageKind::Root)?;
        let (twin, pages) = root.encode(&headers);
        self.push_twin(&twin, pages);
        Some((twin, holds))
    }
}
