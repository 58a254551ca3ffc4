//! Importing a pool: what is on the disks is believed only where checksums and references agree.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use basalt_bdev::IoError;
use basalt_clock::{mark, planted};
use basalt_reactor::Handle;
use futures::lock::Mutex;

use super::{Inner, Pool, State, Volume};
use crate::disk::{DiskContent, DiskIo, PoolDisk};
use crate::error::{DiskFault, DiskRefusal, FaultCause, ImportError, ReadOnlyReason};
use crate::id::{ClusterId, VolumeId};
use crate::layout::{
    DamageReason, DirectoryRecord, DiskRecord, HEADER_BYTES, PAGE_BYTES, Role, Run, Superblock, TableError,
    TableHeader, VolumeRecord,
};
use crate::space::Space;
use crate::volume::{LogicalVolume, MappedDisk};

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
        let mut found = Vec::with_capacity(disks.len());
        for disk in &disks {
            found.push(FoundDisk::read(handle, disk, cluster).await?);
        }
        check_together(&found)?;
        let Some(lead) = found.iter().find(|disk| disk.superblock.role == Role::Lead) else {
            return Err(ImportError::LeadMissing);
        };
        let superblock = lead.superblock.clone();
        let (table, standing) = read_tables(&lead.io, &superblock).await?;
        let present = assign(found, &table.header.disks)?;
        let mut read_only = superblock.read_only.then_some(ReadOnlyReason::UnknownFeature);
        if !table.complete {
            // What could not be read now may be read next time, unless the next table is written without it.
            mark!("lvol-table-incomplete");
            read_only = Some(ReadOnlyReason::IncompleteTable);
        }
        if standing == Standing::Previous {
            mark!("lvol-previous-table");
            read_only = Some(ReadOnlyReason::PreviousTable);
        }
        let pool = assemble(superblock, table, present, read_only);
        pool.inner.complete_members().await?;
        if standing == Standing::RolledForward {
            mark!("lvol-rolled-forward");
            // The superblock catches up, so that the pool does not depend on a table that no superblock names. If this fails
            // the pool is read-only, which its health says.
            let caught_up = pool.inner.commit().await;
            if caught_up.is_err() {
                mark!("lvol-catch-up-failed");
            }
        }
        Ok(pool)
    }
}

/// A disk that was opened and says that it belongs to a pool of this cluster.
struct FoundDisk {
    io: DiskIo,
    superblock: Superblock,
}

impl FoundDisk {
    async fn read(handle: &Handle, disk: &PoolDisk, cluster: ClusterId) -> Result<Self, DiskRefusal> {
        let io = DiskIo::open(handle, disk)?;
        // What is read must not be lost afterwards: after the death of a process it may be in a volatile cache.
        io.flush().await?;
        let disk = io.name.clone();
        let superblock = match io.examine().await? {
            DiskContent::Pool(superblock) => *superblock,
            DiskContent::Blank => return Err(DiskRefusal::Blank { disk }),
            DiskContent::Foreign(content) => return Err(DiskRefusal::Foreign { disk, content }),
            DiskContent::Unusable(source) => return Err(DiskRefusal::Unusable { disk, source }),
        };
        if superblock.cluster != cluster {
            return Err(DiskRefusal::OtherCluster { disk, cluster: superblock.cluster });
        }
        if io.bytes() < superblock.geometry.device_bytes {
            let (bytes, expected) = (io.bytes(), superblock.geometry.device_bytes);
            return Err(DiskRefusal::Shrunk { disk, bytes, expected });
        }
        if io.block().bytes() > superblock.geometry.block_bytes {
            return Err(io.unsuitable());
        }
        Ok(Self { io, superblock })
    }
}

/// All disks belong to one pool, and each is there once.
fn check_together(found: &[FoundDisk]) -> Result<(), ImportError> {
    for (index, disk) in found.iter().enumerate() {
        let pool = found[0].superblock.pool;
        if disk.superblock.pool != pool {
            let refusal = DiskRefusal::OtherPool { disk: disk.io.name.clone(), pool: disk.superblock.pool };
            return Err(refusal.into());
        }
        let twin = found[..index].iter().find(|other| other.superblock.disk == disk.superblock.disk);
        if let Some(twin) = twin {
            let (first, second) = (twin.io.name.clone(), disk.io.name.clone());
            return Err(DiskRefusal::Twice { first, second }.into());
        }
    }
    Ok(())
}

/// Puts each disk to its place in the pool.
fn assign(found: Vec<FoundDisk>, records: &[DiskRecord]) -> Result<Vec<Option<FoundDisk>>, ImportError> {
    let mut present: Vec<Option<FoundDisk>> = records.iter().map(|_| None).collect();
    for disk in found {
        let superblock = &disk.superblock;
        let place = records.iter().position(|record| record.id == superblock.disk);
        let agrees = |index: usize| {
            let (record, geometry) = (&records[index], &superblock.geometry);
            superblock.disk_index as usize == index
                && (record.data_offset, record.extents) == (geometry.data_offset, geometry.extents)
        };
        match place {
            Some(index) if agrees(index) => present[index] = Some(disk),
            Some(_) | None => return Err(ImportError::Stranger(disk.io.name)),
        }
    }
    Ok(present)
}

/// Which table was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The one that the superblock names.
    Current,
    /// The one after it: complete, and its superblock was not written.
    RolledForward,
    /// The one before it: the current one is damaged.
    Previous,
}

/// A table whose header and directory are intact.
struct FoundTable {
    header: TableHeader,
    directory: Vec<DirectoryRecord>,
    bytes: Vec<u8>,
    /// Every page could be read.
    complete: bool,
}

impl FoundTable {
    async fn read(lead: &DiskIo, superblock: &Superblock, area: usize) -> Result<Self, TableFault> {
        let offset = superblock.geometry.area_offsets[area];
        let mut bytes = lead.read(offset, HEADER_BYTES as u64).await?;
        let header = TableHeader::decode(&bytes, superblock.geometry.area_bytes)?;
        if header.pool != superblock.pool {
            return Err(TableError::Absent.into());
        }
        let directory = lead.read(offset + HEADER_BYTES as u64, header.directory_bytes() as u64).await?;
        let records = header.decode_directory(&directory)?;
        bytes.extend_from_slice(&directory);
        let entries = offset + bytes.len() as u64;
        let rest = header.table_bytes() - bytes.len() as u64;
        let (content, complete) = match lead.read(entries, rest).await {
            Ok(content) => (content.to_vec(), true),
            Err(fault) => read_pages(lead, entries, rest, fault).await?,
        };
        bytes.extend_from_slice(&content);
        Ok(Self { header, directory: records, bytes, complete })
    }

    fn entry(&self, record: &DirectoryRecord) -> &[u8] {
        let start = usize::try_from(record.offset).expect("a table is smaller than memory");
        &self.bytes[start..start + record.bytes]
    }

    fn is_intact(&self) -> bool {
        self.directory.iter().all(|record| record.decode_entry(self.entry(record)).is_ok())
    }
}

/// Why a table could not be read.
enum TableFault {
    Table(TableError),
    Disk(DiskFault),
}

impl From<TableError> for TableFault {
    fn from(error: TableError) -> Self {
        Self::Table(error)
    }
}

impl From<DiskFault> for TableFault {
    fn from(fault: DiskFault) -> Self {
        Self::Disk(fault)
    }
}

/// Reads page by page after a medium error; what cannot be read becomes zeroes, which no checksum fits. Also says whether
/// everything could be read this time.
async fn read_pages(
    lead: &DiskIo,
    offset: u64,
    bytes: u64,
    fault: DiskFault,
) -> Result<(Vec<u8>, bool), DiskFault> {
    let is_medium = |fault: &DiskFault| matches!(fault.source, FaultCause::Io(IoError::Medium));
    if !is_medium(&fault) {
        return Err(fault);
    }
    let (mut content, mut complete) = (Vec::new(), true);
    for at in (0..bytes).step_by(PAGE_BYTES) {
        match lead.read(offset + at, PAGE_BYTES as u64).await {
            Ok(page) => content.extend_from_slice(&page),
            Err(fault) if is_medium(&fault) => {
                content.resize(content.len() + PAGE_BYTES, 0);
                complete = false;
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok((content, complete))
}

/// Reads both tables and takes the right one; docs/disk-format.md, "Import", says why it is right.
async fn read_tables(lead: &DiskIo, superblock: &Superblock) -> Result<(FoundTable, Standing), ImportError> {
    let area = superblock.slot() as usize;
    let mut tables = Vec::with_capacity(2);
    for (is_next, area) in [(false, area), (true, 1 - area)] {
        let table = match FoundTable::read(lead, superblock, area).await {
            Ok(table) => Ok(table),
            Err(TableFault::Table(error)) => Err(error),
            Err(TableFault::Disk(fault)) if matches!(fault.source, FaultCause::Io(IoError::Medium)) => {
                // A later table that cannot be read may be in force, unless both slots say that it is not: going on with
                // the older one would write over what was promised since.
                if is_next && !lead.is_latest(superblock).await? {
                    mark!("lvol-latest-unknown");
                    return Err(fault.into());
                }
                Err(TableError::Checksum("header"))
            }
            Err(TableFault::Disk(fault)) => return Err(fault.into()),
        };
        tables.push(table);
    }
    let other = tables.remove(1);
    let current = tables.remove(0).and_then(|table| {
        let named = superblock.table.is_some_and(|pointer| pointer.header_checksum == table.header.checksum);
        let matches = named && table.header.sequence == superblock.sequence;
        if matches { Ok(table) } else { Err(TableError::Field("not the one that the superblock names")) }
    });
    match (current, other) {
        (_, Ok(next)) if next.header.sequence == superblock.sequence + 1 && next.is_intact() => {
            Ok((next, Standing::RolledForward))
        }
        (Ok(table), _) => Ok((table, Standing::Current)),
        (Err(_), Ok(previous)) if previous.header.sequence + 1 == superblock.sequence => {
            Ok((previous, Standing::Previous))
        }
        (Err(error), _) => Err(ImportError::Damaged(error)),
    }
}

fn assemble(
    mut superblock: Superblock,
    table: FoundTable,
    present: Vec<Option<FoundDisk>>,
    read_only: Option<ReadOnlyReason>,
) -> Pool {
    // A commit goes on from the table that was taken.
    superblock.sequence = table.header.sequence;
    let mut space = Space::default();
    let mut mapped = Vec::with_capacity(present.len());
    for (record, disk) in table.header.disks.iter().zip(&present) {
        space.add_disk(record.extents, disk.is_some());
        mapped.push(
            disk.as_ref().map(|disk| MappedDisk {
                device: Arc::clone(&disk.io.device),
                data_offset: record.data_offset,
            }),
        );
    }
    let lead = present[0].as_ref().expect("the lead was found");
    let block = lead.io.block();
    let mut volumes = BTreeMap::new();
    let conflicts = conflicts(&table);
    for directory in &table.directory {
        let bytes = table.entry(directory);
        let volume = match understand(directory, bytes, &conflicts, &mut space) {
            Err(reason) => {
                mark!("lvol-volume-isolated");
                Volume::Damaged { directory: *directory, bytes: bytes.to_vec(), reason }
            }
            Ok(record) => match obstacle(&record, &present) {
                Some(reason) => Volume::Isolated(record, reason),
                None => {
                    let device = LogicalVolume::new(&record, &mapped, block, read_only.is_some());
                    Volume::Ready(record, Arc::new(device))
                }
            },
        };
        volumes.insert(directory.volume, volume);
    }
    let state = State {
        superblock: superblock.clone(),
        revision: table.header.revision,
        space,
        volumes,
        drained_later: Vec::new(),
        changes: 0,
        durable: 0,
        read_only,
        unfinished: None,
    };
    let inner = Inner {
        cluster: superblock.cluster,
        id: superblock.pool,
        name: table.header.name,
        block,
        disks: present.into_iter().map(|disk| disk.map(|disk| disk.io)).collect(),
        mapped,
        records: table.header.disks,
        state: RefCell::new(state),
        committing: Mutex::new(()),
        unmap_failures: Cell::new(0),
    };
    Pool { inner: Rc::new(inner) }
}

/// The record of a volume whose space is its own.
fn understand(
    directory: &DirectoryRecord,
    bytes: &[u8],
    conflicts: &BTreeSet<VolumeId>,
    space: &mut Space,
) -> Result<VolumeRecord, DamageReason> {
    let record = directory.decode_entry(bytes)?;
    if conflicts.contains(&record.id) {
        return Err(DamageReason::Overlap);
    }
    if !planted!("lvol-import-forgets-space") {
        space.claim(&record.runs)?;
    }
    Ok(record)
}

/// Volumes that claim an extent that another one claims, too: neither can be believed.
fn conflicts(table: &FoundTable) -> BTreeSet<VolumeId> {
    let mut claims: Vec<(Run, VolumeId)> = Vec::new();
    for directory in &table.directory {
        if let Ok(record) = directory.decode_entry(table.entry(directory)) {
            claims.extend(record.runs.iter().map(|run| (*run, record.id)));
        }
    }
    claims.sort_unstable_by_key(|(run, id)| (run.disk, run.first, *id));
    let mut conflicts = BTreeSet::new();
    // The claim that reaches furthest so far on this disk.
    let mut furthest: Option<(u32, u64, VolumeId)> = None;
    for (run, id) in claims {
        let end = run.first.saturating_add(u64::from(run.extents));
        if let Some((disk, reach, owner)) = furthest
            && disk == run.disk
            && run.first < reach
        {
            conflicts.extend([owner, id]);
            if end <= reach {
                continue;
            }
        }
        furthest = Some((run.disk, end, id));
    }
    conflicts
}

/// Why a volume that is understood cannot be served now.
fn obstacle(record: &VolumeRecord, present: &[Option<FoundDisk>]) -> Option<DamageReason> {
    let missing = record.runs.iter().find(|run| present[run.disk as usize].is_none());
    if let Some(run) = missing {
        return Some(DamageReason::DiskMissing(run.disk));
    }
    let fits = |run: &Run| {
        let block = present[run.disk as usize].as_ref().map(|disk| disk.io.block().bytes());
        block == Some(record.block_bytes)
    };
    (!record.runs.iter().all(fits)).then_some(DamageReason::Field("its block is not that of its disks"))
}

impl Inner {
    /// Ends a creation that was cut off after the lead was written.
    async fn complete_members(&self) -> Result<(), ImportError> {
        if self.state.borrow().read_only.is_some() {
            return Ok(());
        }
        for disk in self.disks.iter().skip(1).flatten() {
            let Ok(found) = disk.read_superblock().await? else { continue };
            if found.role != Role::MemberInCreation {
                continue;
            }
            // Both slots: neither copy is to say that the disk never held data.
            for sequence in [found.sequence + 1, found.sequence + 2] {
                let superblock = Superblock { role: Role::Member, sequence, ..found.clone() };
                disk.write_superblock(&superblock).await?;
            }
        }
        Ok(())
    }
}
