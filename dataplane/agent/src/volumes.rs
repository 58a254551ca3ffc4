//! Volumes: there or created, then exported; deleted by tombstone only.

use std::sync::Arc;

use basalt_bdev::BlockDevice;
use basalt_clock::{mark, planted};
use basalt_lvol::id::VolumeId;
use basalt_lvol::layout::{SERIAL_BYTES, VolumeIdentity, VolumeRecord};
use basalt_lvol::{
    LogicalVolume, NewSnapshot, NewVolume, Pool, PoolHealth, ReadOnlyReason, VolumeError, VolumeStatus,
};

use crate::agent::Inner;
use crate::desired::{Content, DesiredNode, DesiredVolume, Provision};
use crate::items::Key;
use crate::pools::isolated;
use crate::ports::{Export, ExportError};
use crate::report::{Problem, Reason};

/// A volume that is in service, or put aside, as it should be.
struct Taken {
    size: u64,
    /// Why it is not all that is desired.
    shortfall: Option<Problem>,
}

/// Why a volume is not as desired, and whether its data is lost.
struct Obstacle {
    problem: Problem,
    lost: bool,
}

impl From<Problem> for Obstacle {
    fn from(problem: Problem) -> Self {
        Self { problem, lost: false }
    }
}

impl Inner {
    /// Makes one volume what it should be.
    pub(crate) async fn work_volume(&self, id: VolumeId, desired: &DesiredNode) {
        let Some(wanted) = desired.volumes.iter().find(|volume| volume.id == id) else {
            return;
        };
        let key = Key::Volume(id);
        match self.ensure(wanted, desired).await {
            Ok(Taken { size, shortfall }) => {
                {
                    let mut items = self.items.borrow_mut();
                    let item = items.volumes.entry(id).or_default();
                    item.exported = wanted.serve;
                    item.size = size;
                    if shortfall.is_none() {
                        item.applied = Some(wanted.clone());
                        items.succeeded(&key);
                    }
                }
                // It is in service as it is, and tried again.
                if let Some(problem) = shortfall {
                    self.failed(key, problem);
                }
            }
            Err(Obstacle { problem, lost: true }) => self.lost(key, problem),
            Err(Obstacle { problem, lost: false }) => self.failed(key, problem),
        }
    }

    async fn ensure(&self, wanted: &DesiredVolume, desired: &DesiredNode) -> Result<Taken, Obstacle> {
        let Some(pool) = self.items.borrow().pool(&wanted.pool).cloned() else {
            return Err(Problem::new(Reason::PoolNotReady, "the pool is not open").into());
        };
        pool.note_revision(desired.revision);
        let found = match pool.volume(wanted.id) {
            Some(VolumeStatus::Ready(record, device)) => self.take_up(&pool, wanted, &record, device).await,
            Some(VolumeStatus::Isolated(_, reason)) => {
                let (problem, lost) = isolated(reason);
                Err(Obstacle { problem, lost })
            }
            // A change that could not be made durable stays open until the pool takes changes again.
            Some(VolumeStatus::Changing) => Err(match pool.health() {
                PoolHealth::ReadOnly(reason) => volume_problem(&VolumeError::ReadOnly(reason)),
                _ => Problem::new(Reason::VolumeConflict, "another change of the volume is under way"),
            }
            .into()),
            None => create(&pool, wanted).await.map(|device| (device, None)),
        };
        let found = match found {
            Ok(found) => protect(&pool, wanted).await.map(|()| found).map_err(Obstacle::from),
            // What is not in order orders nothing either: it may be fenced.
            Err(obstacle) => Err(obstacle),
        };
        let (device, shortfall) = match found {
            Ok(found) => found,
            Err(obstacle) => {
                self.withdraw(wanted.id).await?;
                return Err(obstacle);
            }
        };
        let taken = Taken { size: device.info().bytes(), shortfall };
        if !wanted.serve {
            self.withdraw(wanted.id).await?;
            return Ok(taken);
        }
        self.ports.exporter.export(export_of(wanted, device)).await.map_err(export_problem)?;
        Ok(taken)
    }

    /// Checks that a volume that is there is the one that is wanted, notes that it is wanted, and what it is called, and lets it grow. Why
    /// that is not so, if it is not: that is no reason not to serve it.
    async fn take_up(
        &self,
        pool: &Pool,
        wanted: &DesiredVolume,
        record: &VolumeRecord,
        device: Arc<LogicalVolume>,
    ) -> Result<(Arc<LogicalVolume>, Option<Problem>), Obstacle> {
        let conflict = |message: String| Err(Problem::new(Reason::VolumeConflict, message).into());
        if record.epoch > wanted.epoch {
            mark!("agent-fenced");
            let message = format!("the volume has seen epoch {}, wanted is {}", record.epoch, wanted.epoch);
            return Err(Problem::new(Reason::Fenced, message).into());
        }
        if record.generation > wanted.generation {
            let (seen, given) = (record.generation, wanted.generation);
            return conflict(format!("the volume has seen generation {seen}, wanted is {given}"));
        }
        if record.identity != identity_of(wanted) {
            return conflict(format!("the volume is known to hosts as {}", record.identity.nqn));
        }
        let is_snapshot = matches!(wanted.content, Content::SnapshotOf(_));
        if record.flags.snapshot != is_snapshot {
            return conflict(
                "one of the volume of this id and the one that is wanted is a snapshot".to_owned(),
            );
        }
        if record.size > wanted.size && !is_snapshot {
            let (is, wanted) = (record.size, wanted.size);
            return conflict(format!("the volume has {is} bytes, wanted are {wanted}; it never shrinks"));
        }
        // A pool that takes no change still serves its volumes: what it has seen stays lower, which harms nobody.
        if_changeable(pool.raise(wanted.id, wanted.generation, wanted.epoch).await)?;
        let misnamed = rename(pool, wanted, record).await.err();
        // What hosts see counts: a growth whose commit failed is in the record and not there yet.
        if is_snapshot || device.info().bytes() == wanted.size {
            return Ok((device, misnamed));
        }
        match pool.resize(wanted.id, wanted.size).await {
            Ok(()) => {
                mark!("agent-volume-grown");
                Ok((device, misnamed))
            }
            Err(error) => Ok((device, Some(volume_problem(&error)))),
        }
    }

    async fn withdraw(&self, id: VolumeId) -> Result<(), Problem> {
        self.ports.exporter.withdraw(id).await.map_err(export_problem)?;
        if let Some(item) = self.items.borrow_mut().volumes.get_mut(&id) {
            item.exported = false;
            item.applied = None;
        }
        Ok(())
    }

    /// Carries out a tombstone.
    pub(crate) async fn work_deletion(&self, id: VolumeId, desired: &DesiredNode) {
        let Some(tombstone) = desired.tombstones.iter().find(|tombstone| tombstone.volume == id) else {
            return;
        };
        let key = Key::Deletion(id);
        let Some(pool) = self.items.borrow().pool(&tombstone.pool).cloned() else {
            return;
        };
        if tombstone.cluster != pool.cluster() && !planted!("agent-foreign-tombstone") {
            mark!("agent-tombstone-refused");
            let message = format!("the order to delete {id} comes from the cluster {}", tombstone.cluster);
            return self.failed(key, Problem::new(Reason::TombstoneRefused, message));
        }
        pool.note_revision(desired.revision);
        if let Err(problem) = self.withdraw(id).await {
            return self.failed(key, problem);
        }
        match pool.delete_volume(id, tombstone.generation).await {
            Ok(()) => {}
            // In a pool that may lack its last change, what is not there may come back.
            Err(VolumeError::NotFound(_)) if matches!(pool.health(), PoolHealth::Online) => {}
            Err(VolumeError::NotFound(_)) => {
                let message = "the pool takes no change; whether it holds the volume is unknown";
                return self.failed(key, Problem::new(Reason::PoolReadOnly, message));
            }
            Err(error) => return self.failed(key, volume_problem(&error)),
        }
        mark!("agent-volume-deleted");
        let mut items = self.items.borrow_mut();
        items.volumes.remove(&id);
        items.deleted.insert(id, tombstone.generation);
        items.succeeded(&key);
    }
}

/// Keeps hosts from writing to a volume, or lets them. A pool that takes no change obeys too, and is told again when it is opened anew.
async fn protect(pool: &Pool, wanted: &DesiredVolume) -> Result<(), Problem> {
    let Some(VolumeStatus::Ready(record, _)) = pool.volume(wanted.id) else { return Ok(()) };
    if record.flags.read_only == wanted.read_only {
        return Ok(());
    }
    let set = pool.set_read_only(wanted.id, wanted.read_only).await;
    if set.is_ok() {
        mark!("agent-volume-protected");
    }
    if_changeable(set)
}

/// Lets the records on the disks say what people call a volume. In a pool that takes no change they say what it was called before.
async fn rename(pool: &Pool, wanted: &DesiredVolume, record: &VolumeRecord) -> Result<(), Problem> {
    if record.name == wanted.name {
        return Ok(());
    }
    let renamed = pool.rename(wanted.id, &wanted.name).await;
    if renamed.is_ok() {
        mark!("agent-volume-renamed");
    }
    if_changeable(renamed)
}

/// What came of a change that may wait until the pool takes changes again.
fn if_changeable(result: Result<(), VolumeError>) -> Result<(), Problem> {
    match result {
        Ok(()) | Err(VolumeError::ReadOnly(_)) => Ok(()),
        Err(error) => Err(volume_problem(&error)),
    }
}

/// Creates a volume that never was, or takes a snapshot.
async fn create(pool: &Pool, wanted: &DesiredVolume) -> Result<Arc<LogicalVolume>, Obstacle> {
    if wanted.provision == Provision::Expect && !planted!("agent-recreates-lost-volume") {
        if let PoolHealth::ReadOnly(reason) = pool.health() {
            return Err(Problem::new(Reason::PoolReadOnly, reason).into());
        }
        mark!("agent-volume-missing");
        let message = format!("the volume was on the pool {} and is not there any more", wanted.pool);
        return Err(Obstacle { problem: Problem::new(Reason::VolumeMissing, message), lost: true });
    }
    if let Content::SnapshotOf(origin) = wanted.content {
        let new = NewSnapshot {
            id: wanted.id,
            generation: wanted.generation,
            epoch: wanted.epoch,
            name: wanted.name.clone(),
            identity: identity_of(wanted),
        };
        let taken = pool.snapshot(origin, new).await.map_err(|error| volume_problem(&error))?;
        mark!("agent-snapshot-taken");
        return Ok(taken);
    }
    let new = NewVolume {
        id: wanted.id,
        generation: wanted.generation,
        epoch: wanted.epoch,
        name: wanted.name.clone(),
        identity: identity_of(wanted),
        size: wanted.size,
        thin: wanted.thin,
        hidden: false,
    };
    let created = match wanted.content {
        Content::RestoredFrom(snapshot) => pool.clone_snapshot(snapshot, new).await,
        Content::Blank | Content::SnapshotOf(_) => pool.create_volume(new).await,
    };
    let created = created.map_err(|error| volume_problem(&error))?;
    if wanted.content != Content::Blank {
        mark!("agent-volume-restored");
    }
    Ok(created)
}

fn identity_of(wanted: &DesiredVolume) -> VolumeIdentity {
    VolumeIdentity {
        nqn: wanted.nqn.clone(),
        nsid: wanted.nsid,
        uuid: wanted.uuid,
        nguid: wanted.nguid,
        serial: padded(&wanted.serial),
    }
}

fn export_of(wanted: &DesiredVolume, device: Arc<LogicalVolume>) -> Export {
    Export {
        volume: wanted.id,
        epoch: wanted.epoch,
        nqn: wanted.nqn.clone(),
        serial: padded(&wanted.serial),
        nsid: wanted.nsid,
        uuid: wanted.uuid,
        nguid: wanted.nguid,
        allowed_hosts: wanted.allowed_hosts.clone(),
        device,
    }
}

/// A serial number padded with spaces; its length was checked when the desired state was taken.
fn padded(serial: &str) -> [u8; SERIAL_BYTES] {
    let mut field = [b' '; SERIAL_BYTES];
    field[..serial.len()].copy_from_slice(serial.as_bytes());
    field
}

fn export_problem(error: ExportError) -> Problem {
    let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
    Problem::new(Reason::ExportFailed, format!("{error}{cause}"))
}

fn volume_problem(error: &VolumeError) -> Problem {
    let reason = match error {
        VolumeError::ReadOnly(ReadOnlyReason::MetadataWriteFailed(_)) | VolumeError::Disk(_) => {
            Reason::IoError
        }
        VolumeError::ReadOnly(_) => Reason::PoolReadOnly,
        VolumeError::Full { .. } | VolumeError::DamagedNeighbour { .. } | VolumeError::MetadataFull => {
            Reason::PoolFull
        }
        VolumeError::StaleGeneration { .. } => Reason::TombstoneRefused,
        VolumeError::Isolated(_) => Reason::VolumeDamaged,
        VolumeError::Exists(_)
        | VolumeError::NqnTaken(_)
        | VolumeError::NotFound(_)
        | VolumeError::Busy(_)
        | VolumeError::WrongKind(..)
        | VolumeError::Shrinks { .. }
        | VolumeError::OutOfBounds(_) => Reason::VolumeConflict,
        VolumeError::StaleEpoch { .. } => Reason::Fenced,
    };
    Problem::new(reason, error)
}
