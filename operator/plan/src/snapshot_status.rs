//! The status of one `Snapshot`: what was observed, never what is hoped for.

use basalt_crds as crds;
use basalt_crds::snapshot::SnapshotPhase;
use basalt_crds::{Conditions, SnapshotStatus, Status, format_bytes};
use basalt_model::{ClusterId, Node, Snapshot, VolumeState};
use k8s_openapi::jiff::Timestamp;

use crate::held::{Departure, Obstacle};
use crate::intent::Rejection;
use crate::snapshot::Situation;
use crate::word::{Word, elsewhere, hindrance, one_word, refused};

const READY: &str = "Ready";
const SYNCED: &str = "Synced";

/// What every status of one object is written from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) object: &'a crds::Snapshot,
    pub(crate) generation: i64,
    /// The cluster that answered; `None` when none did.
    pub(crate) cluster: Option<ClusterId>,
    /// The node that is to delete it, if it is being deleted.
    pub(crate) node: Option<&'a Node>,
    pub(crate) now: Timestamp,
}

impl<'a> Context<'a> {
    /// The status of an object that is to stay.
    pub(crate) fn staying(self, situation: &Situation<'_>, rejection: Option<&Rejection>) -> SnapshotStatus {
        let mut draft = self.draft();
        match situation {
            Situation::Unreachable(message) => draft.unreachable(message),
            Situation::Wanted(_) => {
                let asking = || Word::new("Pending", "asking the control plane");
                draft.fail(SnapshotPhase::Pending, &rejection.map_or_else(asking, refused));
            }
            Situation::Invalid(error) => {
                draft.fail(SnapshotPhase::Pending, &Word::new("Invalid", error.to_string()));
            }
            Situation::Settled(present) => {
                draft.observe(present);
                draft.set(SYNCED, Status::True, &Word::new("Synced", "the control plane has accepted it"));
            }
            Situation::DeletedByOther(present) => {
                draft.observe(present);
                let message = format!(
                    "snapshot {} is being deleted, which this object did not ask for: delete this object",
                    present.id
                );
                draft.set(SYNCED, Status::False, &Word::new("DeletedByOther", message));
            }
            Situation::CutOff(obstacle) => {
                let existed = draft.status.snapshot_id.is_some();
                let phase = if existed { SnapshotPhase::Unavailable } else { SnapshotPhase::Pending };
                draft.fail(phase, &of_obstacle(obstacle));
            }
        }
        draft.finish()
    }

    /// The status of an object that is to go.
    pub(crate) fn leaving(
        self,
        departure: &Departure<'_, Snapshot>,
        rejection: Option<&Rejection>,
    ) -> SnapshotStatus {
        let node_to_delete = self.node;
        let mut draft = self.draft();
        match departure {
            Departure::Unreachable(message) => draft.unreachable(message),
            Departure::Elsewhere { recorded, answering } => {
                draft.fail(SnapshotPhase::Deleting, &elsewhere(recorded, *answering));
            }
            Departure::Held { present, .. } => {
                let going = || Word::new("Deleting", format!("snapshot {} is to go", present.id));
                draft.fail(SnapshotPhase::Deleting, &rejection.map_or_else(going, refused));
            }
            Departure::Going(present) => {
                let ordered = Word::new("Synced", "the control plane has ordered the deletion");
                draft.set(SYNCED, Status::True, &ordered);
                let node = &present.placement.node;
                let why = hindrance(node_to_delete, &present.placement.pool);
                let message = format!("waiting for node {node} to delete snapshot {}{why}", present.id);
                draft.set(READY, Status::False, &Word::new("Deleting", message));
            }
            Departure::Gone => {
                let nothing = Word::new("Synced", "the control plane holds nothing of this object");
                draft.set(SYNCED, Status::True, &nothing);
                draft.set(READY, Status::False, &Word::new("Deleting", "nothing is left"));
            }
        }
        draft.status.phase = Some(SnapshotPhase::Deleting);
        draft.finish()
    }

    fn draft(self) -> Draft<'a> {
        let old = self.object.status.as_ref();
        let conditions =
            Conditions::new(old.map_or(&[], |old| old.conditions.as_slice()), self.generation, self.now);
        let mut status = old.cloned().unwrap_or_default();
        status.observed_generation = Some(self.generation);
        status.conditions = Vec::new();
        Draft { status, cluster: self.cluster, conditions }
    }
}

struct Draft<'a> {
    status: SnapshotStatus,
    cluster: Option<ClusterId>,
    conditions: Conditions<'a>,
}

impl Draft<'_> {
    /// Nothing can be said now; what was seen last stays.
    fn unreachable(&mut self, message: &str) {
        let message = format!("the control plane cannot be reached: {message}");
        let word = Word::new("ControlPlaneUnreachable", message);
        self.status.phase.get_or_insert(SnapshotPhase::Pending);
        self.set(SYNCED, Status::Unknown, &word);
        self.set(READY, Status::Unknown, &word);
    }

    fn fail(&mut self, phase: SnapshotPhase, word: &Word) {
        self.status.phase = Some(phase);
        self.set(SYNCED, Status::False, word);
        self.set(READY, Status::False, word);
    }

    fn set(&mut self, type_: &str, status: Status, word: &Word) {
        self.conditions.set(type_, status, &word.reason, word.message.clone());
    }

    /// Writes down what the control plane says of our snapshot.
    fn observe(&mut self, present: &Snapshot) {
        let status = &mut self.status;
        status.snapshot_id = Some(present.id.to_string());
        status.volume_id = Some(present.source.to_string());
        status.cluster_id = self.cluster.map(|cluster| cluster.to_string());
        status.size = present.taken_at.map(|_| format_bytes(present.size.0));
        let allocated = present.observed.as_ref().and_then(|observed| observed.allocated);
        status.used = allocated.map(|allocated| format_bytes(allocated.0));
        let taken_at = present.taken_at.and_then(|at| i64::try_from(at.0).ok());
        let taken_at = taken_at.and_then(|at| Timestamp::from_second(at / 1000).ok());
        status.taken_at = taken_at.map(|at| at.to_string());
        status.node = Some(present.placement.node.to_string());
        status.pool = Some(present.placement.pool.to_string());
        let node = &present.placement.node;
        let (phase, reason, message) = match &present.state {
            VolumeState::Creating => {
                let message = format!("node {node} has not reported yet that it is taken");
                (SnapshotPhase::Creating, "Creating", message)
            }
            VolumeState::Online => {
                (SnapshotPhase::Ready, "Ready", "volumes can be restored from it".to_owned())
            }
            VolumeState::Unavailable { reason, message } => {
                (SnapshotPhase::Unavailable, reason.as_str(), message.clone())
            }
            VolumeState::Faulted { reason, message } => {
                (SnapshotPhase::Faulted, reason.as_str(), message.clone())
            }
            VolumeState::Released => {
                (SnapshotPhase::Unavailable, "Released", "it was put aside with its data".to_owned())
            }
            VolumeState::Deleting => (SnapshotPhase::Deleting, "Deleting", "it is being deleted".to_owned()),
        };
        status.phase = Some(phase);
        let reason = one_word(reason).unwrap_or(phase.as_str());
        self.conditions.set(READY, (phase == SnapshotPhase::Ready).into(), reason, message);
    }

    fn finish(mut self) -> SnapshotStatus {
        self.status.conditions = self.conditions.finish();
        self.status
    }
}

/// The control plane answers, but what it holds is not this object's snapshot.
fn of_obstacle(obstacle: &Obstacle<'_, Snapshot>) -> Word {
    match obstacle {
        Obstacle::Elsewhere { recorded, answering } => elsewhere(recorded, *answering),
        Obstacle::Missing { id } => Word::new(
            "NoRecord",
            format!(
                "the control plane has no record of snapshot {id}, which existed: restore the control plane; or, if the data is \
                 given up, delete this object and create it again"
            ),
        ),
        Obstacle::PutAside(snapshot) => Word::new(
            "Released",
            format!(
                "snapshot {0} was put aside with its data: to use it again, delete this object and create one with \
                 spec.snapshotId: {0}",
                snapshot.id
            ),
        ),
        Obstacle::Replaced { recorded, present } => Word::new(
            "Replaced",
            format!(
                "the control plane holds snapshot {} under this name, but this object stood for snapshot {recorded}: nothing is \
                 done until one of them is deleted",
                present.id
            ),
        ),
        Obstacle::Taken(present) => {
            let message = match &present.uid {
                Some(uid) => format!(
                    "snapshot {} of this name belongs to an object with UID {uid}: use another name; or, if that object is lost for \
                     good, take over its snapshot by annotating this one with {}={uid}",
                    present.id,
                    crds::OWNER_UID_ANNOTATION
                ),
                None => format!(
                    "snapshot {} of this name was taken without an object: use another name",
                    present.id
                ),
            };
            Word::new("NameTaken", message)
        }
    }
}
