//! Looking at a pool that is not in service, telling what is wrong with it, and putting right what can be.

use std::collections::BTreeMap;

use basalt_reactor::Handle;
use serde::Serialize;
use uuid::Uuid;

use super::import::Image;
use super::{Pool, PoolHealth, SnapshotDifference};
use crate::disk::{DiskContent, DiskIo, PoolDisk, examine};
use crate::error::{DifferenceError, DiskRefusal, ImportError, ReadOnlyReason};
use crate::id::{ClusterId, DiskId, Epoch, Generation, PoolId, Revision, VolumeId};
use crate::layout::{DamageReason, DiskLayout, SLOT_OFFSETS, VERSION};

/// All that the disks of a pool say, but for data.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The format's version.
    pub version: u32,
    /// The cluster that the pool belongs to.
    pub cluster: ClusterId,
    /// Which pool.
    pub pool: PoolId,
    /// Its name.
    pub name: String,
    /// Sequence number of its last checkpoint.
    pub checkpoint: u64,
    /// How often it was opened with more disks than its lead, as far as that was counted.
    pub openings: u32,
    /// It was exported.
    pub exported: bool,
    /// Highest desired state that the node had seen.
    pub revision: Revision,
    /// Unit of allocation in bytes.
    pub extent_bytes: u64,
    /// From which of its disks extents are taken.
    pub layout: DiskLayout,
    /// Extents of the disks that are there, and how many of them volumes name.
    pub extents: u64,
    /// See above.
    pub extents_used: u64,
    /// Pages of the metadata areas, and how many are in use.
    pub metadata_pages: u64,
    /// See above.
    pub metadata_pages_used: u64,
    /// Changes in the journals that follow the checkpoint.
    pub journal_records: u64,
    /// Sequence number of the next group of the journal.
    pub journal_next: u64,
    /// Its disks, the lead first.
    pub disks: Vec<InspectedDisk>,
    /// Its volumes by id, snapshots included.
    pub volumes: Vec<InspectedVolume>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// A disk of an inspected pool.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedDisk {
    /// Which disk.
    pub id: DiskId,
    /// What the caller calls it; `None`: it is missing.
    pub name: Option<String>,
    /// Bytes of the device that the pool uses.
    pub device_bytes: u64,
    /// Byte offset of its extent 0.
    pub data_offset: u64,
    /// Number of its extents.
    pub extents: u64,
    /// Pages of its metadata area.
    pub metadata_pages: u32,
    /// The last opening of the pool that it is known to have taken part in; 0: not known, and of the lead.
    pub opening: u32,
}

/// A volume of an inspected pool.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedVolume {
    /// Which volume.
    pub id: VolumeId,
    /// Highest generation that the node has seen.
    pub generation: Generation,
    /// What is known beyond that; `None` if it is damaged.
    pub detail: Option<VolumeDetail>,
    /// Why it cannot be used.
    pub isolated: Option<String>,
}

/// What an intact volume says.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeDetail {
    /// A name for people.
    pub name: String,
    /// `thick`, `thin` or `snapshot`.
    pub kind: &'static str,
    /// Writes are refused.
    pub read_only: bool,
    /// It is not complete.
    pub hidden: bool,
    /// Size in bytes.
    pub size: u64,
    /// Logical block in bytes.
    pub block_bytes: u32,
    /// Extents of it of which a piece lies somewhere.
    pub extents_mapped: u64,
    /// NQN, namespace id and UUID, serial number.
    pub nqn: String,
    /// See above.
    pub nsid: u32,
    /// See above.
    pub uuid: Uuid,
    /// See above.
    pub serial: String,
    /// The volume whose data it began with.
    pub origin: Option<VolumeId>,
    /// The first of all volumes that may share data with it.
    pub family: VolumeId,
    /// The checkpoint that wrote it first.
    pub created: u64,
    /// Highest epoch that it has seen.
    pub epoch: Epoch,
    /// Version of the in-sync set.
    pub set_version: u64,
    /// It was in sync when this was written.
    pub in_sync: bool,
    /// The run of the daemon that wrote it last.
    pub boot: Uuid,
    /// Epochs and set versions, the latest last.
    pub history: Vec<(Epoch, u64)>,
    /// It has a log of dirty regions.
    pub dirty_regions: bool,
}

/// Something that is wrong with a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about: a disk, the pool, a volume.
    pub subject: String,
    /// What was found and what it means.
    pub explanation: String,
    /// What can be done about it.
    pub remedy: Remedy,
}

/// What can be done about a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// A repair writes it anew from its other copy: nothing is lost.
    Rewrite,
    /// A repair goes on without what is missing: that is lost.
    AcceptLoss,
    /// The volume has to be deleted through the control plane, or its disk be brought back.
    ByHand,
}

/// Reads all metadata of a pool and writes nothing. Some of its disks may be missing, the lead may not.
///
/// # Errors
/// Says which disk is the obstacle, or that the top of the metadata is damaged beyond reading.
pub async fn inspect(handle: &Handle, disks: Vec<PoolDisk>) -> Result<Inspection, ImportError> {
    let cluster = cluster_of(handle, &disks).await?;
    let mut findings = Vec::new();
    for disk in &disks {
        inspect_slots(handle, disk, &mut findings).await?;
    }
    let image = Image::read(handle, cluster, disks).await?;
    let mut inspection = image.describe();
    findings.append(&mut inspection.findings);
    inspection.findings = findings;
    if image.unknown_features().next().is_some() {
        // No repair by this program writes anything.
        inspection.findings.iter_mut().for_each(|finding| finding.remedy = Remedy::ByHand);
    }
    Ok(inspection)
}

/// Where two volumes of a pool that is not in service lie apart, as [`Pool::difference`] has it. Writes nothing.
///
/// # Errors
/// As for [`inspect`], or there are no two such volumes that ever shared data.
pub async fn difference(
    handle: &Handle,
    disks: Vec<PoolDisk>,
    from: VolumeId,
    to: VolumeId,
) -> Result<SnapshotDifference, DifferenceError> {
    let cluster = cluster_of(handle, &disks).await?;
    let image = Image::read(handle, cluster, disks).await?;
    let data = |id| {
        let volume = image.found().find(|(directory, _)| directory.volume == id);
        let (_, found) = volume.ok_or(DifferenceError::NotFound(id))?;
        match image.isolated(found) {
            Some(reason) => Err(DifferenceError::Isolated(id, reason)),
            None => found.map_err(|reason| DifferenceError::Isolated(id, reason)),
        }
    };
    let listed = SnapshotDifference::between(data(from)?, data(to)?, image.extent_bytes());
    listed.ok_or(DifferenceError::Unrelated(from, to))
}

/// Puts right what can be: damaged copies are written anew from the others, and a pool whose journal is damaged goes on without what
/// is missing. A pool without such findings is left alone, and so is one with features that this program does not know. Answers what is
/// still wrong afterwards.
///
/// # Errors
/// As for [`inspect`], or a write failed.
pub async fn repair(handle: &Handle, disks: Vec<PoolDisk>) -> Result<Inspection, ImportError> {
    // Nothing is written before all disks are understood, and nothing at all where nothing comes of it.
    let before = inspect(handle, disks.clone()).await?;
    if before.findings.iter().all(|finding| finding.remedy == Remedy::ByHand) {
        return Ok(before);
    }
    let cluster = cluster_of(handle, &disks).await?;
    for disk in &disks {
        let io = DiskIo::open(handle, disk).map_err(DiskRefusal::Fault)?;
        // Both slots anew from the one that counts. For the lead a checkpoint does the same, if there is one.
        if let Ok(superblock) = io.read_superblock().await?
            && !superblock.read_only
        {
            io.write_superblock(&superblock).await?;
        }
    }
    let pool = Pool::import(handle, cluster, disks.clone()).await?;
    if let PoolHealth::ReadOnly(ReadOnlyReason::JournalDamaged) = pool.health() {
        pool.inner.accept_loss();
    }
    if let PoolHealth::Online = pool.health() {
        // If this fails, what is found afterwards says so.
        match before.exported {
            true => drop(pool.export().await),
            false => drop(pool.inner.checkpoint().await),
        }
    }
    drop(pool);
    inspect(handle, disks).await
}

impl super::Inner {
    /// Goes on without what is missing in the journal.
    fn accept_loss(&self) {
        self.state.borrow_mut().read_only = None;
    }
}

async fn cluster_of(handle: &Handle, disks: &[PoolDisk]) -> Result<ClusterId, ImportError> {
    for disk in disks {
        if let DiskContent::Pool(superblock) = examine(handle, disk).await? {
            return Ok(superblock.cluster);
        }
    }
    // The import says what each disk is instead.
    Ok(ClusterId(Uuid::nil()))
}

async fn inspect_slots(
    handle: &Handle,
    disk: &PoolDisk,
    findings: &mut Vec<Finding>,
) -> Result<(), ImportError> {
    let io = DiskIo::open(handle, disk).map_err(DiskRefusal::Fault)?;
    let mut slots = Vec::new();
    for slot in 0..2 {
        slots.push(io.read_slot(slot).await?);
    }
    let sequences: Vec<Option<u64>> =
        slots.iter().map(|slot| slot.as_ref().ok().map(|superblock| superblock.sequence)).collect();
    for (slot, found) in slots.iter().enumerate() {
        let what = match (found, sequences[1 - slot]) {
            (_, None) => continue,
            (Err(error), _) if error.is_foreign() => continue,
            (Err(error), Some(_)) => format!("superblock slot {slot} is unusable: {error}"),
            (Ok(superblock), Some(other)) if superblock.sequence < other => {
                format!("superblock slot {slot} is older than the other one: power failed between the two")
            }
            _ => continue,
        };
        let explanation =
            format!("{what} (byte {}). The other slot is intact and says all.", SLOT_OFFSETS[slot]);
        findings.push(Finding { subject: disk.name.clone(), explanation, remedy: Remedy::Rewrite });
    }
    Ok(())
}

impl Image {
    /// What it says, and what is wrong with it.
    fn describe(&self) -> Inspection {
        let mut places = BTreeMap::new();
        let mut volumes = Vec::new();
        for (directory, found) in self.found() {
            let mut detail = None;
            if let Ok(data) = found {
                let mut mapped = 0;
                data.tree.each(|_, pieces| {
                    mapped += 1;
                    pieces.places().for_each(|place| *places.entry(place).or_insert(0_u64) += 1);
                });
                detail = Some(detail_of(&data.record, mapped));
            }
            let isolated = self.isolated(found).map(|reason| reason.to_string());
            volumes.push(InspectedVolume {
                id: directory.volume,
                generation: directory.generation,
                detail,
                isolated,
            });
        }
        let mut inspection = self.summary();
        inspection.extents_used = places.len() as u64;
        inspection.findings = self.findings(&volumes, &inspection.disks);
        inspection.volumes = volumes;
        inspection.version = VERSION;
        inspection
    }

    fn findings(&self, volumes: &[InspectedVolume], disks: &[InspectedDisk]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut find = |subject: String, explanation: String, remedy| {
            findings.push(Finding { subject, explanation, remedy });
        };
        for (index, disk) in disks.iter().enumerate().filter(|(_, disk)| disk.name.is_none()) {
            let explanation = "is missing; volumes with data on it are isolated until it is back".to_owned();
            find(format!("disk {index} ({})", disk.id), explanation, Remedy::ByHand);
        }
        for old in self.left_out() {
            find("pool".into(), old.to_string(), Remedy::ByHand);
        }
        for disk in self.unknown_features() {
            let explanation = "has features that this program does not know (ro-compat): the pool can be read and not be changed, and \
                               `--repair` writes nothing, whatever else is found. Use a newer program";
            find(disk.to_owned(), explanation.into(), Remedy::ByHand);
        }
        if self.healed() {
            let explanation = "one copy of the root or directory is damaged; the other one is intact";
            find("pool".into(), explanation.into(), Remedy::Rewrite);
        }
        if self.journal_damaged() {
            let explanation = "a group of the journal is damaged in both copies and later ones are not: what was \
                               written to new places since then is lost, and it is not known of which volume: none is served. To accept the loss \
                               makes all of them as they were before that group; where one gave space back since, it may hold what another one \
                               wrote there";
            find("journal".into(), explanation.into(), Remedy::AcceptLoss);
        }
        let halved = match self.halved_groups() {
            0 => None,
            1 => Some("one group".to_owned()),
            count => Some(format!("{count} groups")),
        };
        if let Some(halved) = halved {
            let explanation = format!(
                "one copy of {halved} is damaged, or was cut off when power failed; the other one is intact. A checkpoint takes the \
                 journal's place"
            );
            find("journal".into(), explanation, Remedy::Rewrite);
        }
        if self.contradicts_its_root() {
            let explanation = "the root says that an extent is free which a map names; no volume is concerned by that, but none must be \
                               damaged before a checkpoint has written it anew";
            find("free space".into(), explanation.into(), Remedy::Rewrite);
        }
        if self.unreadable() {
            let explanation = "a page of metadata cannot be read from its disk; it may be readable later";
            find("pool".into(), explanation.into(), Remedy::ByHand);
        }
        let journal = DamageReason::Journal.to_string();
        for volume in volumes {
            // What the journal has lost is a finding of its own, and mended with it.
            if let Some(reason) = volume.isolated.as_ref().filter(|reason| **reason != journal) {
                let explanation = format!(
                    "{reason}; the volume is isolated, and space that may be its own is not given out until it is deleted or whole \
                     again"
                );
                find(format!("volume {}", volume.id), explanation, Remedy::ByHand);
            }
        }
        findings
    }
}

fn detail_of(record: &crate::layout::VolumeRecord, extents_mapped: u64) -> VolumeDetail {
    let kind = match (record.flags.snapshot, record.flags.thick) {
        (true, _) => "snapshot",
        (false, true) => "thick",
        (false, false) => "thin",
    };
    let replica = &record.replica;
    VolumeDetail {
        name: record.name.clone(),
        kind,
        read_only: record.flags.read_only,
        hidden: record.flags.hidden,
        size: record.size,
        block_bytes: record.block_bytes,
        extents_mapped,
        nqn: record.identity.nqn.clone(),
        nsid: record.identity.nsid,
        uuid: Uuid::from_bytes(record.identity.uuid),
        serial: String::from_utf8_lossy(&record.identity.serial).trim_end().to_owned(),
        origin: record.origin,
        family: record.family,
        created: record.created,
        epoch: record.epoch,
        set_version: record.set_version,
        in_sync: replica.in_sync,
        boot: Uuid::from_bytes(replica.boot),
        history: replica.history.iter().map(|entry| (entry.epoch, entry.set_version)).collect(),
        dirty_regions: replica.dirty_regions.iter().any(Option::is_some),
    }
}
