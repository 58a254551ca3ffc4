//! Reading the metadata of a pool: root, directory, volumes, maps, journal. Believed only where checksums and references agree.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use basalt_bdev::IoError;
use basalt_clock::{mark, planted};
use futures::future::LocalBoxFuture;
use futures::stream::{self, StreamExt, TryStreamExt};

use super::StoredPage;
use super::checkpoint::TopPages;
use super::checkpoint::page_offset;
use crate::disk::DiskIo;
use crate::error::{DiskFault, FaultCause, ImportError};
use crate::id::{PoolId, VolumeId};
use crate::layout::{
    DIRECTORY_RECORDS, DamageReason, DirectoryRecord, DiskGeometry, DiskRecord, Group, GroupId,
    JournalRecord, LEAF_EXTENTS, Leaf, MapRoot, NODE_CHILDREN, PAGE_BYTES, PageHeader, PageKind, PageNumber,
    PagePointer, Root, RootError, Superblock, Trust, TwinPointer, VolumeRecord, decode_directory,
    decode_group, decode_node, group_bytes_max, intact_copies, later_groups,
};
use crate::pages::{PageHold, Pages};
use crate::tree::{Body, Node, Tree, covered};

/// Pages of maps that are read at a time.
const READ_DEPTH: usize = 32;
/// Most pages of a directory: beyond it a chain of pages is taken for damage.
const DIRECTORY_PAGES_MAX: usize = 1 << 16;

/// What went wrong with a volume.
#[derive(Debug)]
pub(super) enum LoadError {
    /// Its metadata cannot be believed.
    Damage(DamageReason),
    /// A disk failed.
    Fault(DiskFault),
}

impl From<DamageReason> for LoadError {
    fn from(reason: DamageReason) -> Self {
        Self::Damage(reason)
    }
}

impl From<DiskFault> for LoadError {
    fn from(fault: DiskFault) -> Self {
        Self::Fault(fault)
    }
}

/// Reads metadata from the disks of one pool.
pub(super) struct Loader {
    pub(super) pool: PoolId,
    pub(super) disks: Vec<Option<Rc<DiskIo>>>,
    pub(super) records: Vec<DiskRecord>,
    pub(super) pages: Rc<Pages>,
    /// The sequence number of the checkpoint.
    pub(super) sequence: u64,
    /// Parts of maps that were read, by their page: volumes share them.
    pub(super) nodes: RefCell<BTreeMap<PageNumber, Rc<Node>>>,
    /// Other pages that were taken for volumes that are damaged: these may share them.
    pub(super) remains: RefCell<BTreeMap<PageNumber, Rc<PageHold>>>,
    /// A page could not be read, which says nothing about what is on it.
    pub(super) unreadable: Cell<bool>,
}

/// What the top of the metadata says.
pub(super) struct Top {
    pub(super) root: Root,
    pub(super) directory: Vec<DirectoryRecord>,
    pub(super) pages: TopPages,
    /// A copy of something was damaged, and the other one was not.
    pub(super) healed: bool,
}

/// Reads the root that a superblock names from the lead, before anything else is known.
pub(super) async fn read_root(lead: &DiskIo, superblock: &Superblock) -> Result<(Root, bool), ImportError> {
    let twin = superblock.root.ok_or(ImportError::Damaged(RootError::Field("no root")))?;
    let geometry = &superblock.geometry;
    let header = header_of(superblock.pool, superblock.sequence, PageKind::Root, &twin);
    let (mut healed, mut found) = (false, None);
    // Both are read, so that damage is noticed while there is a copy.
    for (copy, number) in twin.numbers.into_iter().enumerate() {
        let page = match number.disk() == 0 && number.index() < geometry.metadata_pages() {
            true => read_page(lead, lead_offset(geometry, number)).await?,
            false => None,
        };
        match page.filter(|page| twin.is_intact(page, copy, &header)) {
            Some(page) => found = Some(page),
            None => healed = true,
        }
    }
    let page = found.ok_or(ImportError::Damaged(RootError::BothCopies("root")))?;
    Ok((Root::decode(&page).map_err(ImportError::Damaged)?, healed))
}

pub(super) fn header_of(pool: PoolId, sequence: u64, kind: PageKind, twin: &TwinPointer) -> PageHeader {
    PageHeader { kind, level: 0, sequence, pool, number: twin.numbers[0], first: 0 }
}

fn lead_offset(geometry: &DiskGeometry, number: PageNumber) -> u64 {
    geometry.metadata_offset + u64::from(number.index()) * PAGE_BYTES as u64
}

/// A page; `None` if the medium could not give it.
pub(super) async fn read_page(disk: &DiskIo, offset: u64) -> Result<Option<Vec<u8>>, DiskFault> {
    match disk.read(offset, PAGE_BYTES as u64).await {
        Ok(page) => Ok(Some(page)),
        Err(fault) if matches!(fault.source, FaultCause::Io(IoError::Medium)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

impl Loader {
    pub(super) fn new(
        pool: PoolId,
        disks: Vec<Option<Rc<DiskIo>>>,
        records: Vec<DiskRecord>,
        sequence: u64,
    ) -> Self {
        let pages = Rc::new(Pages::default());
        for (disk, record) in disks.iter().zip(&records) {
            pages.add_area(if disk.is_some() { record.metadata_pages } else { 0 });
        }
        Self {
            pool,
            disks,
            records,
            pages,
            sequence,
            nodes: RefCell::default(),
            remains: RefCell::default(),
            unreadable: Cell::new(false),
        }
    }

    /// Reads a page; `None` if it cannot be read, which is noted.
    async fn page(&self, number: PageNumber) -> Result<Option<Vec<u8>>, LoadError> {
        let record = self.records.get(number.disk());
        let record = record.filter(|record| number.index() < record.metadata_pages);
        let record = record.ok_or(DamageReason::Field("page beyond the metadata area"))?;
        let Some(disk) = &self.disks[number.disk()] else {
            // What it says is not lost: it must not be written out as damaged, nor the pages be used that only it names.
            self.unreadable.set(true);
            return Err(DamageReason::DiskMissing(u32::try_from(number.disk()).unwrap_or(u32::MAX)).into());
        };
        let page = read_page(disk, page_offset(record, number)).await?;
        if page.is_none() {
            self.unreadable.set(true);
        }
        Ok(page)
    }

    /// Reads a page and checks it against the pointer that names it.
    pub(super) async fn checked(
        &self,
        pointer: PagePointer,
        kind: PageKind,
    ) -> Result<(Vec<u8>, PageHeader), LoadError> {
        let page = self.page(pointer.number).await?.ok_or(DamageReason::Checksum)?;
        let header = PageHeader::decode(&page, pointer, self.pool, kind)?;
        Ok((page, header))
    }

    /// Reads the directory.
    pub(super) async fn top(
        &self,
        root: Root,
        twin: &TwinPointer,
        mut healed: bool,
    ) -> Result<Top, ImportError> {
        let damaged = |reason| ImportError::Damaged(RootError::Field(reason));
        let mut pages = TopPages { holds: self.claim_twin(twin)?, directory: Vec::new() };
        let mut directory: Vec<DirectoryRecord> = Vec::new();
        let mut next = root.directory;
        for _ in 0..DIRECTORY_PAGES_MAX {
            let Some(twin) = next else { break };
            pages.holds.extend(self.claim_twin(&twin)?);
            pages.directory.push(twin);
            let header = header_of(self.pool, self.sequence, PageKind::Directory, &twin);
            let mut found = None;
            for (copy, number) in twin.numbers.into_iter().enumerate() {
                let page = match self.page(number).await {
                    Ok(page) => page,
                    Err(LoadError::Damage(_)) => None,
                    Err(LoadError::Fault(fault)) => return Err(fault.into()),
                };
                match page.filter(|page| twin.is_intact(page, copy, &header)) {
                    Some(page) => found = Some(page),
                    None => healed = true,
                }
            }
            let page = found.ok_or(ImportError::Damaged(RootError::BothCopies("directory")))?;
            let (records, following) = decode_directory(&page).map_err(ImportError::Damaged)?;
            assert!(records.len() <= DIRECTORY_RECORDS, "decoded within bounds");
            directory.extend(records);
            next = following;
        }
        // A copy that could not be read was made good by the other one.
        self.unreadable.set(false);
        if directory.len() != root.volumes as usize || !directory.is_sorted_by(|a, b| a.volume < b.volume) {
            return Err(damaged("order or number of volumes"));
        }
        Ok(Top { root, directory, pages, healed })
    }

    fn claim_twin(&self, twin: &TwinPointer) -> Result<Vec<PageHold>, ImportError> {
        let claim = |number| {
            self.pages.claim(number).map_err(|_| ImportError::Damaged(RootError::Field("page with two uses")))
        };
        twin.numbers.into_iter().map(claim).collect()
    }

    /// Reads a volume's page.
    pub(super) async fn volume(
        &self,
        directory: &DirectoryRecord,
    ) -> Result<(VolumeRecord, MapRoot, Rc<StoredPage>), LoadError> {
        let (page, _) = self.checked(directory.page, PageKind::Volume).await?;
        let (record, map) = VolumeRecord::decode(&page)?;
        if record.id != directory.volume || record.generation != directory.generation {
            return Err(DamageReason::Field("contradicts the directory").into());
        }
        let hold = self.pages.claim(directory.page.number)?;
        Ok((record, map, Rc::new(StoredPage { pointer: directory.page, hold })))
    }

    /// Reads a volume's map.
    pub(super) async fn map(&self, map: MapRoot) -> Result<Tree, LoadError> {
        let root = match map.page {
            None => None,
            Some(pointer) => Some(self.node(pointer, map.levels, 0).await?),
        };
        Ok(Tree::loaded(&self.pages, root, map.levels))
    }

    fn node(
        &self,
        pointer: PagePointer,
        level: u16,
        first: u64,
    ) -> LocalBoxFuture<'_, Result<Rc<Node>, LoadError>> {
        Box::pin(async move {
            let known = self.nodes.borrow().get(&pointer.number).cloned();
            if let Some(node) = known {
                let same = node.pointer() == Some(pointer) && node.level() == level && node.first == first;
                return if same { Ok(node) } else { Err(DamageReason::Field("page with two uses").into()) };
            }
            let (body, holds) = match level {
                0 => self.leaf(pointer, first).await?,
                _ => self.inner(pointer, level, first).await?,
            };
            let node = Node::loaded(first, body, pointer, holds);
            self.nodes.borrow_mut().insert(pointer.number, Rc::clone(&node));
            Ok(node)
        })
    }

    async fn inner(
        &self,
        pointer: PagePointer,
        level: u16,
        first: u64,
    ) -> Result<(Body, Vec<PageHold>), LoadError> {
        let (page, header) = self.checked(pointer, PageKind::Node).await?;
        if header.level != level || header.first != first {
            return Err(DamageReason::Field("place of a node").into());
        }
        let hold = self.pages.claim(pointer.number)?;
        let pointers = decode_node(&page)?;
        let below = covered(level - 1);
        let reads = (0_u64..).zip(pointers).filter_map(|(index, child)| {
            child.map(|child| async move {
                let node = self.node(child, level - 1, first + index * below).await?;
                Ok::<_, LoadError>((usize::try_from(index).unwrap_or(NODE_CHILDREN), node))
            })
        });
        let mut children = Box::new([const { None }; NODE_CHILDREN]);
        let mut running = stream::iter(reads).buffer_unordered(READ_DEPTH);
        while let Some((index, node)) = running.try_next().await? {
            children[index] = Some(node);
        }
        Ok((Body::Inner { level, children }, vec![hold]))
    }

    async fn leaf(&self, pointer: PagePointer, first: u64) -> Result<(Body, Vec<PageHold>), LoadError> {
        let (page, header) = self.checked(pointer, PageKind::Leaf).await?;
        if header.first != first || !first.is_multiple_of(LEAF_EXTENTS as u64) {
            return Err(DamageReason::Field("place of a leaf").into());
        }
        let mut holds = vec![self.pages.claim(pointer.number)?];
        let mut reader = Leaf::decode(&page)?;
        while let Some(next) = reader.next() {
            let (page, _) = self.checked(next, PageKind::Overflow).await?;
            holds.push(self.pages.claim(next.number)?);
            reader.overflow(&page)?;
        }
        Ok((Body::Leaf(reader.finish()?), holds))
    }

    /// Forgets which parts of maps were read, and pages taken, so that those that no volume has go.
    pub(super) fn forget_nodes(&self) {
        self.nodes.borrow_mut().clear();
        self.remains.borrow_mut().clear();
    }
}

/// What the journals hold.
pub(super) struct Replay {
    pub(super) records: Vec<JournalRecord>,
    /// Sequence number of the next group: beyond that of each group that was found.
    pub(super) next: u64,
    /// A group is missing and later ones are not.
    pub(super) damaged: bool,
    /// Groups that are believed and of which one copy is not intact.
    pub(super) halved: usize,
    /// There were groups, believed or not: the next one must not be written over them before a checkpoint was.
    pub(super) used: bool,
    /// Volumes of the groups of which it is not known whether they are to be believed.
    pub(super) doubted: BTreeSet<VolumeId>,
}

/// Reads the groups that follow a checkpoint: those of its own journal, then those that were written while the next checkpoint was.
/// `judge` says whether a group may be believed now; `None`: that is not known before a disk is there.
pub(super) async fn read_journals(
    lead: &DiskIo,
    superblock: &Superblock,
    root: &Root,
    judge: impl Fn(Trust) -> Option<bool>,
) -> Result<Replay, DiskFault> {
    let (mut groups, mut next): (Vec<Group>, u64) = (Vec::new(), root.first_group);
    let (mut seen, mut damaged) = (next.checked_sub(1), false);
    let mut copies = Vec::new();
    for checkpoint in [superblock.sequence, superblock.sequence + 1] {
        let geometry = &superblock.geometry;
        let offset = geometry.journal_offset + checkpoint % 2 * geometry.journal_bytes;
        let (bytes, unreadable) = read_journal(lead, offset, geometry.journal_bytes).await?;
        let block = lead.block().bytes() as usize;
        let id = |sequence| GroupId { pool: superblock.pool, checkpoint, sequence };
        let mut at = 0;
        while let Ok(group) = decode_group(&bytes[at..], id(next), block) {
            copies.push(intact_copies(&bytes[at..], id(next), block, group.bytes));
            at += group.bytes;
            seen = Some(next);
            next += 1;
            groups.push(group);
        }
        // Whether a group follows is not known if a block of each of its copies may be among these: going on without it would serve what
        // was there before it.
        let mut hidden =
            unreadable.into_iter().filter(|(place, _)| (at..at + group_bytes_max(block)).contains(place));
        if let (Some(_), Some((_, fault))) = (hidden.next(), hidden.next()) {
            mark!("lvol-journal-unreadable");
            return Err(fault);
        }
        for (sequence, trust) in later_groups(&bytes, id(next), block) {
            seen = seen.max(Some(sequence));
            damaged |= judge(trust) != Some(false);
        }
        if damaged {
            mark!("lvol-journal-damaged");
            break;
        }
    }
    let used = seen >= Some(root.first_group);
    // All before a firm group was durable when that was written; what follows the last one was not, unless the caches live on.
    let firm = groups.iter().rposition(|group| group.trust == Trust::Firm).map_or(0, |last| last + 1);
    let mut kept = firm + groups[firm..].iter().take_while(|group| judge(group.trust) == Some(true)).count();
    let mut doubted = BTreeSet::new();
    if groups.get(kept).is_some_and(|group| judge(group.trust).is_none()) {
        doubted.extend(groups[kept..].iter().flat_map(|group| &group.records).map(|record| record.volume));
    }
    if kept < groups.len() {
        mark!("lvol-group-not-believed");
        kept = if planted!("lvol-loose-group-believed") { groups.len() } else { kept };
    }
    let halved = copies.iter().take(kept).filter(|intact| **intact < 2).count();
    let mut records: Vec<_> = groups.into_iter().take(kept).flat_map(|group| group.records).collect();
    if planted!("lvol-journal-replayed-halfway") {
        records.truncate(records.len().min(2));
    }
    Ok(Replay { records, next: seen.map_or(0, |seen| seen + 1), damaged, halved, used, doubted })
}

/// A journal's bytes. What the medium cannot give reads as zeroes: such blocks are told, with what was wrong.
async fn read_journal(
    lead: &DiskIo,
    offset: u64,
    bytes: u64,
) -> Result<(Vec<u8>, Vec<(usize, DiskFault)>), DiskFault> {
    match lead.read(offset, bytes).await {
        Ok(content) => return Ok((content, Vec::new())),
        Err(fault) if matches!(fault.source, FaultCause::Io(IoError::Medium)) => {}
        Err(fault) => return Err(fault),
    }
    let mut unreadable = Vec::new();
    let block = u64::from(lead.block().bytes());
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    for at in (0..bytes).step_by(lead.block().bytes() as usize) {
        match lead.read(offset + at, block).await {
            Ok(part) => content.extend(part),
            Err(fault) if matches!(fault.source, FaultCause::Io(IoError::Medium)) => {
                unreadable.push((content.len(), fault));
                content.resize(content.len() + lead.block().bytes() as usize, 0);
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok((content, unreadable))
}
