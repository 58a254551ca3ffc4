//! `Snapshot` (`bsnap`): a volume as it was at one moment.

#![allow(
    unreachable_pub,
    reason = "KubeSchema copies each struct, with its visibility, into a function body"
)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Condition;
use crate::volume::ReclaimPolicy;

/// What a user asks for: what a volume holds now, to be restored into new volumes later.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[kube(
    group = "basalt.storage",
    version = "v1alpha1",
    kind = "Snapshot",
    plural = "snapshots",
    singular = "snapshot",
    shortname = "bsnap",
    category = "basalt",
    status = "SnapshotStatus",
    derive = "PartialEq",
    cel,
    doc = "A volume as it was at one moment. `kubectl get bsnap` says whether volumes can be restored from it.",
    validation = Rule::new("self.metadata.name.size() <= 63").message(
        "metadata.name of a Snapshot has at most 63 characters: choose a shorter name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase",
        description = "Pending, Creating, Ready, Unavailable, Faulted or Deleting"),
    printcolumn(name = "Volume", type_ = "string", json_path = ".spec.volume",
        description = "What it is a snapshot of"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether volumes can be restored from it"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why it is, or is not, ready"),
    printcolumn(name = "Size", type_ = "string", json_path = ".status.size",
        description = "The least size of a volume that is restored from it"),
    printcolumn(name = "Used", type_ = "string", json_path = ".status.used",
        description = "What of it lies on disks, most of it shared with its volume at first"),
    printcolumn(name = "Taken", type_ = "date", json_path = ".status.takenAt",
        description = "When its node reported that it is taken"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node", priority = "1"),
    printcolumn(name = "Message", type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = "1")
)]
#[x_kube(
    validation = Rule::new("has(self.snapshotId) == has(oldSelf.snapshotId) && \
        (!has(self.snapshotId) || self.snapshotId == oldSelf.snapshotId)").message(
        "spec.snapshotId is immutable: to adopt another snapshot, create another Snapshot object")
)]
pub struct SnapshotSpec {
    /// The Volume that it is a snapshot of. It may be deleted later: the snapshot stays.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(
        validation = Rule::new("self.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')").message(
            "spec.volume must be the name of a Volume"),
        validation = Rule::new("self == oldSelf").message(
            "spec.volume is immutable: create another Snapshot for another volume")
    )]
    pub volume: String,

    /// What becomes of the data when this object is deleted.
    #[serde(default)]
    pub reclaim_policy: ReclaimPolicy,

    /// Adopts the existing snapshot of this id instead of taking one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')").message(
        "spec.snapshotId must be a lower-case UUID as `kubectl basalt snapshots` shows it; \
        leave it out to take a new snapshot"))]
    pub snapshot_id: Option<String>,
}

/// What was observed of a snapshot. Written by the operator alone.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// One word for the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<SnapshotPhase>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The id by which the control plane knows the snapshot; `spec.snapshotId` of another object can adopt it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// The id of the volume that it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume_id: Option<String>,
    /// The cluster that holds it. The same object against another cluster is not the same snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The size of the volume when it was taken, as a quantity: a volume that is restored from it has at least this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
    /// What of it lies on the disks of its pool, as a quantity; what it shares with its volume is counted here too. Some seconds
    /// old.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
    /// When its node reported that it is taken. It holds every write that had ended when the object was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<String>,
    /// The `StorageNode` that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The pool that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// `Ready`: volumes can be restored from it. `Synced`: the control plane has accepted the spec.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One word for the conditions of a snapshot.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotPhase {
    /// Not accepted by the control plane yet.
    Pending,
    /// Accepted; its node has not taken it yet.
    Creating,
    /// Volumes can be restored from it.
    Ready,
    /// It cannot be reached now. Nothing is lost by what is known.
    Unavailable,
    /// Its data is lost.
    Faulted,
    /// Being deleted.
    Deleting,
}

impl SnapshotPhase {
    /// The word that stands in the object.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Creating => "Creating",
            Self::Ready => "Ready",
            Self::Unavailable => "Unavailable",
            Self::Faulted => "Faulted",
            Self::Deleting => "Deleting",
        }
    }
}
