//! Importing a pool: what is on the disks is believed only where checksums and references agree.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use basalt_clock::{mark, planted};
use basalt_reactor::Handle;

use super::checkpoint::{TopPages, Written, WrittenVolume};
use super::found::{FoundDisk, assign, check_together};
use super::inspect::{InspectedDisk, Inspection};
use super::load::{LoadError, Loader, Replay, Top, read_journals, read_root};
use super::obstacles::{Obstacles, judge};
use super::openings::leave_out_old;
use super::remains::Kept;
use super::{Inner, Journal, Pool, State, Volume, VolumeData, owner};
use crate::disk::PoolDisk;
use crate::error::{DiskRefusal, ImportError, ReadOnlyReason};
use crate::id::{ClusterId, VolumeId};
use crate::layout::{
    DamageReason, DirectoryRecord, DiskLayout, DiskRecord, JournalRecord, MapRoot, Pieces, Place, Role, Root,
    Superblock, TakenMap,
};
use crate::port::port;
use crate::refs::{Limbo, Refs};
use crate::space::{Space, runs_of};
use crate::tree::{Counts, Seen, Uncounted};
use crate::turns::Turns;
use crate::volume::{MappedDisk, PoolShared};

impl Pool {
    /// Takes a pool into service that was made before. `disks` may come in any order; a member may be missing (its volumes
    /// are isolated), the lead may not.
    ///
    /// # Errors
    /// Says which disk is the obstacle. Nothing is written then.
    pub async fn import(
        handle: &Handle,
        cluster: ClusterId,
        disks: Vec<PoolDisk>,
    ) -> Result<Self, ImportError> {
        let found = Image::read(handle, cluster, disks).await?;
        let must_write = found.must_write();
        let pool = found.assemble(handle);
        if pool.inner.state.borrow().read_only.is_some() {
            return Ok(pool);
        }
        pool.inner.complete_members().await?;
        let counted = pool.inner.begin_opening();
        if must_write {
            mark!("lvol-journal-replayed");
        }
        if must_write || counted {
            // If this fails the pool is read-only, which its health says.
            if pool.inner.checkpoint().await.is_err() {
                mark!("lvol-catch-up-failed");
                return Ok(pool);
            }
        }
        if counted {
            pool.inner.note_opening().await;
        }
        Ok(pool)
    }
}

/// All metadata of a pool, read and understood as far as it can be; nothing was written.
pub(crate) struct Image {
    superblock: Superblock,
    loader: Loader,
    present: Vec<Option<FoundDisk>>,
    top: Top,
    replay: Replay,
    volumes: Vec<FoundVolume>,
    /// Old copies of disks.
    left_out: Vec<DiskRefusal>,
}

/// A volume as it was found.
struct FoundVolume {
    directory: DirectoryRecord,
    found: Result<VolumeData, DamageReason>,
    /// What the disk names, before the journal changed it: its pages stay in use.
    kept: Kept,
}

impl Image {
    /// Reads a pool.
    pub(crate) async fn read(
        handle: &Handle,
        cluster: ClusterId,
        disks: Vec<PoolDisk>,
    ) -> Result<Self, ImportError> {
        let mut found = Vec::with_capacity(disks.len());
        for disk in &disks {
            found.push(FoundDisk::read(handle, disk, cluster).await?);
        }
        check_together(&mut found)?;
        let Some(lead) = found.iter().find(|disk| disk.superblock.role == Role::Lead) else {
            return Err(ImportError::LeadMissing);
        };
        let superblock = lead.superblock.clone();
        let (root, healed) = read_root(&lead.io, &superblock).await?;
        // A disk that was being added when power failed is nobody's yet.
        found.retain(|disk| {
            let known = root.disks.iter().any(|record| record.id == disk.superblock.disk);
            known || disk.superblock.role != Role::MemberInCreation
        });
        let mut present = assign(found, &root.disks)?;
        let left_out = leave_out_old(&mut present, &root)?;
        let disks: Vec<_> =
            present.iter().map(|disk| disk.as_ref().map(|disk| Rc::clone(&disk.io))).collect();
        let loader = Loader::new(superblock.pool, disks, root.disks.clone(), superblock.sequence);
        let twin = superblock.root.ok_or(ImportError::LeadMissing)?;
        let top = loader.top(root, &twin, healed).await?;
        let mut volumes = Vec::with_capacity(top.directory.len());
        for directory in &top.directory {
            let (found, kept) = match load_volume(&loader, directory).await {
                Ok((data, kept)) => (Ok(data), kept),
                Err(LoadError::Damage(reason)) => (Err(reason), Kept::default()),
                Err(LoadError::Fault(fault)) => return Err(fault.into()),
            };
            volumes.push(FoundVolume { directory: *directory, found, kept });
        }
        let lead = Rc::clone(&present[0].as_ref().ok_or(ImportError::LeadMissing)?.io);
        let devices: Vec<_> =
            present.iter().map(|disk| disk.as_ref().map(|disk| disk.io.device.info())).collect();
        let replay = read_journals(&lead, &superblock, &top.root, |trust| judge(&devices, trust)).await?;
        keep_remains(&loader, &mut volumes, &replay.records).await?;
        loader.forget_nodes();
        let mut image = Self { superblock, loader, present, top, replay, volumes, left_out };
        if !planted!("lvol-journal-not-replayed") {
            image.replay();
        }
        image.check_references();
        Ok(image)
    }

    /// Brings the maps up to what the journals say.
    fn replay(&mut self) {
        let records = std::mem::take(&mut self.replay.records);
        for record in &records {
            let volume = self.volumes.iter_mut().find(|volume| volume.directory.volume == record.volume);
            // A volume that is not there was deleted after the change.
            let Some(FoundVolume { found: Ok(data), .. }) = volume else { continue };
            if record.extent >= data.record.extents(self.superblock.geometry.extent_bytes) {
                continue;
            }
            data.set(record.extent, &record.pieces, &mut Uncounted);
            data.touch();
        }
        self.replay.records = records;
    }

    /// Isolates volumes whose extents do not exist, or are claimed by a stranger: only volumes of one family share an extent, and only
    /// as the same extent of theirs.
    fn check_references(&mut self) {
        let records = &self.loader.records;
        let exists =
            |place: Place| records.get(place.disk()).is_some_and(|disk| place.extent() < disk.extents);
        let mut claims: Vec<(Place, u64, VolumeId, usize)> = Vec::new();
        let mut reasons: BTreeMap<usize, DamageReason> = BTreeMap::new();
        for (index, volume) in self.volumes.iter().enumerate() {
            let Ok(data) = &volume.found else { continue };
            data.tree.each(|extent, pieces| {
                for place in pieces.places() {
                    match exists(place) {
                        true => claims.push((place, extent, data.record.family, index)),
                        false => drop(reasons.insert(index, DamageReason::OutOfRange)),
                    }
                }
            });
        }
        claims.sort_unstable();
        let mut first = 0;
        for at in 1..claims.len() {
            if claims[at].0 != claims[first].0 {
                first = at;
            } else if (claims[at].1, claims[at].2) != (claims[first].1, claims[first].2) {
                reasons.insert(claims[at].3, DamageReason::Overlap);
                reasons.insert(claims[first].3, DamageReason::Overlap);
            }
        }
        for (index, reason) in reasons {
            if let Ok(data) = std::mem::replace(&mut self.volumes[index].found, Err(reason)) {
                data.tree.release(&mut Uncounted);
            }
        }
    }

    /// Whether the pool depends on more than its checkpoint, or a part of that is damaged that can be written anew.
    fn must_write(&self) -> bool {
        self.replay.used || self.top.healed || self.superblock.exported
    }

    /// Volumes as they were found.
    pub(super) fn found(
        &self,
    ) -> impl Iterator<Item = (&DirectoryRecord, Result<&VolumeData, DamageReason>)> {
        self.volumes.iter().map(|volume| (&volume.directory, volume.found.as_ref().map_err(|reason| *reason)))
    }

    pub(super) fn extent_bytes(&self) -> u64 {
        self.superblock.geometry.extent_bytes
    }

    /// Why a volume cannot be used.
    pub(super) fn isolated(&self, found: Result<&VolumeData, DamageReason>) -> Option<DamageReason> {
        match found {
            Err(reason) => Some(reason),
            Ok(data) => self.obstacles().of(data),
        }
    }

    /// What keeps volumes from being served.
    fn obstacles(&self) -> Obstacles {
        let blocks = |disk: &Option<FoundDisk>| disk.as_ref().map(|disk| disk.io.block());
        let missing = (0..).zip(&self.present).find_map(|(number, disk)| disk.is_none().then_some(number));
        Obstacles {
            blocks: self.present.iter().map(blocks).collect(),
            missing,
            doubted: self.replay.doubted.clone(),
            damaged: self.replay.damaged,
        }
    }

    pub(super) fn healed(&self) -> bool {
        self.top.healed
    }

    /// Whether a map of the checkpoint names an extent that its root says to be free.
    pub(super) fn contradicts_its_root(&self) -> bool {
        let Some(taken) = &self.top.root.taken else { return false };
        let mut contradicts = false;
        for volume in &self.volumes {
            let named = |pieces: &Pieces| pieces.places().all(|place| taken.may_hold(place));
            volume.kept.tree.each(|_, pieces| contradicts |= !named(pieces));
        }
        contradicts
    }

    pub(super) fn journal_damaged(&self) -> bool {
        self.replay.damaged
    }

    /// Groups of the journal of which one copy is damaged.
    pub(super) fn halved_groups(&self) -> usize {
        self.replay.halved
    }

    pub(super) fn unreadable(&self) -> bool {
        self.loader.unreadable.get()
    }

    /// What the pool as a whole says; nothing of its volumes yet.
    pub(super) fn summary(&self) -> Inspection {
        let present = |index: usize| self.present[index].as_ref();
        let disks: Vec<InspectedDisk> = self
            .loader
            .records
            .iter()
            .enumerate()
            .map(|(index, record)| InspectedDisk {
                id: record.id,
                name: present(index).map(|disk| disk.io.name.clone()),
                device_bytes: record.device_bytes,
                data_offset: record.data_offset,
                extents: record.extents,
                metadata_pages: record.metadata_pages,
                opening: record.opening,
            })
            .collect();
        let there = disks.iter().filter(|disk| disk.name.is_some());
        let (pages, free) = (self.loader.pages.total(), self.loader.pages.free().1);
        Inspection {
            version: 0,
            cluster: self.superblock.cluster,
            pool: self.superblock.pool,
            name: self.top.root.name.clone(),
            checkpoint: self.superblock.sequence,
            openings: self.top.root.openings,
            exported: self.superblock.exported,
            revision: self.top.root.revision,
            extent_bytes: self.superblock.geometry.extent_bytes,
            layout: self.top.root.layout,
            extents: there.map(|disk| disk.extents).sum(),
            extents_used: 0,
            metadata_pages: pages as u64,
            metadata_pages_used: (pages - free) as u64,
            journal_records: self.replay.records.len() as u64,
            journal_next: self.replay.next,
            disks,
            volumes: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Old copies of disks, which are missing therefore.
    pub(super) fn left_out(&self) -> &[DiskRefusal] {
        &self.left_out
    }

    /// Names of the disks with ro-compat features that this program does not know.
    pub(super) fn unknown_features(&self) -> impl Iterator<Item = &str> {
        let unknown = self.present.iter().flatten().filter(|disk| disk.superblock.read_only);
        unknown.map(|disk| disk.io.name.as_str())
    }

    fn read_only(&self) -> Option<ReadOnlyReason> {
        // Before anything that somebody could accept or wait for.
        if self.unknown_features().next().is_some() {
            return Some(ReadOnlyReason::UnknownFeature);
        }
        if self.loader.unreadable.get() {
            // What could not be read now may be read next time, unless the next checkpoint is written without it.
            mark!("lvol-metadata-unreadable");
            return Some(ReadOnlyReason::Unreadable);
        }
        if !self.replay.doubted.is_empty() {
            // With the missing disk they may be believed: they are kept as they are until it is there.
            return Some(ReadOnlyReason::Unreadable);
        }
        self.replay.damaged.then_some(ReadOnlyReason::JournalDamaged)
    }

    /// The pool of it. Nothing is written.
    fn assemble(self, handle: &Handle) -> Pool {
        let read_only = self.read_only();
        let obstacles = self.obstacles();
        // One that is wrong about the volumes that are understood is not believed about others.
        let believed = self.found().all(|(_, found)| found.is_ok()) || !self.contradicts_its_root();
        let Self { superblock, loader, present, top, replay, volumes, left_out: _ } = self;
        let mapped: Vec<Option<MappedDisk>> = present
            .iter()
            .zip(&loader.records)
            .map(|(disk, record)| {
                disk.as_ref().map(|disk| MappedDisk {
                    device: Arc::clone(&disk.io.device),
                    data_offset: record.data_offset,
                })
            })
            .collect();
        let block = obstacles.blocks[0].expect("the lead was found");
        let shared = Arc::new(PoolShared::new(block, superblock.geometry.extent_bytes, mapped));
        let (port, messages) = port();
        let space = space_of(top.root.layout, &loader.records, &present);
        let journal = Journal {
            used: 0,
            sequence: replay.next,
            checkpoint: superblock.sequence,
            first: top.root.first_group,
        };
        let mut state = empty(superblock.clone(), &top.root, space, journal, read_only.clone());
        // What only the journal says is not for good before the next checkpoint: groups may count only while the caches live on.
        state.map_changes = u64::from(!replay.records.is_empty());
        state.map_written = state.map_changes;
        state.loose_disks = if replay.records.is_empty() { 0 } else { u64::MAX };
        let inner = Rc::new(Inner {
            handle: handle.clone(),
            cluster: superblock.cluster,
            id: superblock.pool,
            name: top.root.name.clone(),
            block,
            disks: RefCell::new(present.into_iter().map(|disk| disk.map(|disk| disk.io)).collect()),
            records: RefCell::new(loader.records),
            shared,
            port,
            pages: loader.pages,
            state: RefCell::new(state),
            committing: Turns::default(),
            journaling: Turns::default(),
            unmap_failures: Cell::new(0),
            returning: Cell::new(0),
            scrub: RefCell::default(),
            checkpoint_wanted: Cell::new(false),
            relieving: Cell::new(false),
            growing: Cell::new(false),
        });
        inner.adopt(volumes, top.pages, &obstacles, read_only.is_some());
        inner.withhold(top.root.taken.as_ref().filter(|_| believed), &replay.records);
        drop(handle.spawn(owner::serve(Rc::downgrade(&inner), messages)));
        Pool { inner }
    }
}

/// The state of a pool that has no volumes yet.
fn empty(
    superblock: Superblock,
    root: &Root,
    space: Space,
    journal: Journal,
    read_only: Option<ReadOnlyReason>,
) -> State {
    State {
        superblock,
        openings: root.openings,
        revision: root.revision,
        space,
        withheld: Vec::new(),
        refs: Refs::default(),
        limbo: Limbo::default(),
        volumes: BTreeMap::new(),
        changes: 0,
        durable: 0,
        map_changes: 0,
        map_durable: 0,
        map_written: 0,
        loose_disks: 0,
        unwritten: VecDeque::new(),
        pending: Vec::<JournalRecord>::new(),
        journal,
        grants: BTreeMap::new(),
        grants_made: 0,
        starving: VecDeque::new(),
        starved: 0,
        read_only,
        unfinished: None,
        left_over: BTreeMap::new(),
        on_disk: None,
        marks: None,
    }
}

/// The space of all disks, none of it taken.
fn space_of(layout: DiskLayout, records: &[DiskRecord], present: &[Option<FoundDisk>]) -> Space {
    let mut space = Space::new(layout);
    for (record, disk) in records.iter().zip(present) {
        space.add_disk(record.extents, disk.is_some());
    }
    space
}

async fn load_volume(loader: &Loader, directory: &DirectoryRecord) -> Result<(VolumeData, Kept), LoadError> {
    let (record, map, page) = loader.volume(directory).await?;
    let tree = loader.map(map).await?;
    let kept = Kept { page: Some(Rc::clone(&page)), tree: tree.freeze(), ..Kept::default() };
    let mut data = VolumeData::new(record, tree, Some(page));
    let VolumeData { tree, disks, .. } = &mut data;
    tree.each(|_, pieces| *disks |= pieces.disks());
    Ok((data, kept))
}

/// Takes what can be reached of volumes that are damaged: all of it where the volume would be what it was if it became whole again.
async fn keep_remains(
    loader: &Loader,
    volumes: &mut [FoundVolume],
    records: &[JournalRecord],
) -> Result<(), ImportError> {
    if volumes.iter().all(|volume| volume.found.is_ok()) {
        return Ok(());
    }
    // `None`: it may share data with any other one.
    let mut families = Vec::with_capacity(volumes.len());
    let mut outlines = Vec::new();
    for (index, volume) in volumes.iter().enumerate() {
        families.push(match &volume.found {
            Ok(data) => Some(data.record.family),
            Err(_) => {
                let outline = loader.outline(&volume.directory).await?;
                let family = outline.as_ref().map(|(record, _)| record.family);
                outlines.push((index, outline));
                family
            }
        });
    }
    for (index, outline) in outlines {
        let volume = &mut volumes[index];
        let page = volume.directory.page.number;
        let named = records.iter().any(|record| record.volume == volume.directory.volume);
        let related =
            |family| families.iter().filter(|other| other.is_none_or(|other| other == family)).count() > 1;
        let map = outline.filter(|(record, _)| !named && !related(record.family)).map(|(_, map)| map);
        volume.kept.remains = loader.remains(page, map.unwrap_or(MapRoot { page: None, levels: 0 })).await?;
    }
    Ok(())
}

impl Inner {
    /// Takes volumes as they were found.
    fn adopt(&self, volumes: Vec<FoundVolume>, top: TopPages, obstacles: &Obstacles, read_only: bool) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let mut seen = Seen::new();
        let mut written = Written { top, ..Written::default() };
        let mut taken: BTreeSet<Place> = BTreeSet::new();
        for FoundVolume { directory, found, kept } in volumes {
            let mut data = match found {
                Ok(data) => data,
                Err(reason) => {
                    mark!("lvol-volume-isolated");
                    let kept = Rc::new(kept);
                    written.damaged.push(Rc::clone(&kept));
                    state.volumes.insert(directory.volume, Volume::Damaged { directory, kept, reason });
                    continue;
                }
            };
            let mut counted = Counted { refs: &mut state.refs, first: Vec::new() };
            data.tree.count_into(&mut seen, &mut counted);
            taken.extend(counted.first);
            // What the disk names stays in use until the next checkpoint, also where the journal has changed it.
            let Kept { page, tree, .. } = kept;
            written.volumes.push(WrittenVolume { id: directory.volume, page, tree });
            let volume = match obstacles.of(&data) {
                Some(reason) => Volume::Isolated(Box::new(data), reason),
                None => {
                    let device = self.device_of(&data);
                    if read_only {
                        device.core().info.set_read_only(true);
                    }
                    device.core().changed.store(state.map_changes, Ordering::Release);
                    data.device = Some(device);
                    Volume::Ready(Box::new(data))
                }
            };
            state.volumes.insert(directory.volume, volume);
        }
        if !planted!("lvol-import-forgets-space") {
            taken.into_iter().for_each(|place| assert!(state.space.take(place), "counted once"));
        }
        state.on_disk = Some(Rc::new(written));
    }

    /// Withholds what a damaged volume may own: all that was taken when the checkpoint was written and that no other volume is known
    /// to have, and what the journal says that it got since.
    fn withhold(&self, taken: Option<&TakenMap>, records: &[JournalRecord]) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        if state.damaged().is_none() {
            return;
        }
        let mut withheld = state.space.withhold(taken);
        for record in records {
            if !matches!(state.volumes.get(&record.volume), Some(Volume::Damaged { .. })) {
                continue;
            }
            let of_it = record.pieces.places().filter(|place| state.space.take(*place));
            withheld.extend(runs_of(of_it.collect()));
        }
        state.withheld = withheld;
    }
}

/// Counts references and notes extents at their first one.
struct Counted<'a> {
    refs: &'a mut Refs,
    first: Vec<Place>,
}

impl Counts for Counted<'_> {
    fn reference(&mut self, place: Place) {
        if self.refs.get(place) == 0 {
            self.first.push(place);
        }
        self.refs.reference(place);
    }

    fn unreference(&mut self, place: Place) {
        self.refs.unreference(place);
    }
}

impl Inner {
    /// Ends a creation that was cut off after the lead was written.
    async fn complete_members(&self) -> Result<(), ImportError> {
        if self.state.borrow().read_only.is_some() {
            return Ok(());
        }
        let members: Vec<_> = self.disks.borrow().iter().skip(1).flatten().cloned().collect();
        for disk in members {
            let Ok(found) = disk.read_superblock().await? else { continue };
            if found.role != Role::MemberInCreation {
                continue;
            }
            let sequence = found.sequence + 1;
            disk.write_superblock(&Superblock { role: Role::Member, sequence, ..found }).await?;
        }
        Ok(())
    }
}
