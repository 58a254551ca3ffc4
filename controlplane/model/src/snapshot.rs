//! Snapshots: a volume as it was at one moment.
//!
//! On its node a snapshot is a volume that is never served: it is ordered, reported and deleted as one, under an id from the same space.

use crate::ids::{Bytes, Epoch, ObjectUid, Revision, SnapshotName, Timestamp, VolumeId, VolumeName};
use crate::placement::Placement;
use crate::space::Claim;
use crate::volume::{Lifecycle, VolumeIdentity, VolumeObserved, VolumeState};
use serde::{Deserialize, Serialize};

/// A snapshot that a user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its identity.
    pub id: VolumeId,
    /// Its name now.
    pub name: SnapshotName,
    /// The UID of the Kubernetes object, when one stands for it.
    pub uid: Option<ObjectUid>,
    /// The volume that it is of, under the name that it had. That volume may be gone.
    pub volume: VolumeName,
    /// The volume's identity.
    pub source: VolumeId,
    /// The size of the volume when the snapshot was taken; when it was asked for, until then.
    pub size: Bytes,
    /// The space of its pool that is its own: as much as a thick volume may come to overwrite; nothing for a thin one.
    pub footprint: Bytes,
    /// What its pool knows it by; hosts never see it.
    pub identity: VolumeIdentity,
    /// Where its data is: where the volume's is.
    pub placement: Placement,
    /// The epoch at which it was ordered.
    pub epoch: Epoch,
    /// Grows whenever what its node must do for it changes.
    pub generation: u64,
    /// Whether it is in use, put aside or going.
    pub lifecycle: Lifecycle,
    /// What follows from all that is known; `Online` says that volumes can be restored from it.
    pub state: VolumeState,
    /// What its node reported last; `None` until the first report.
    pub observed: Option<VolumeObserved>,
    /// When its node reported it for the first time. From then on nobody may take it again.
    pub taken_at: Option<Timestamp>,
    /// When it was asked for. It holds every write that had ended before.
    pub created_at: Timestamp,
    /// The revision that created it.
    pub created: Revision,
    /// The revision that changed it last.
    pub modified: Revision,
}

impl Snapshot {
    /// What it takes from its pool.
    pub fn claim(&self) -> Claim {
        Claim { guaranteed: self.footprint, ..Claim::default() }
    }

    /// Whether it is being deleted.
    pub fn is_going(&self) -> bool {
        matches!(self.lifecycle, Lifecycle::Deleting(_))
    }

    /// Whether volumes can be restored from it.
    pub fn is_usable(&self) -> bool {
        self.lifecycle == Lifecycle::Active && self.taken_at.is_some()
    }
}
