//! What the operator needs of the control plane.

use std::future::Future;

use basalt_model::{ClusterId, Node, NodeName, Snapshot, SnapshotName, Volume, VolumeId, VolumeName};
use basalt_plan::{Intent, Rejection};

/// The control plane, as the operator uses it. Reads are linearizable where the method does not say otherwise.
pub trait ControlPlane: Send + Sync + 'static {
    /// The identity of the cluster that answers.
    fn cluster(&self) -> impl Future<Output = Result<ClusterId, ControlPlaneError>> + Send;
    /// The node of this name.
    fn node(&self, name: &NodeName) -> impl Future<Output = Result<Option<Node>, ControlPlaneError>> + Send;
    /// The volumes whose data is on a node, by id. May be a little old.
    fn volumes_on(
        &self,
        node: &NodeName,
    ) -> impl Future<Output = Result<Vec<Volume>, ControlPlaneError>> + Send;
    /// The volume of this name.
    fn volume(
        &self,
        name: &VolumeName,
    ) -> impl Future<Output = Result<Option<Volume>, ControlPlaneError>> + Send;
    /// The volume of this id, whatever its name.
    fn volume_by_id(
        &self,
        id: VolumeId,
    ) -> impl Future<Output = Result<Option<Volume>, ControlPlaneError>> + Send;
    /// The snapshot of this name.
    fn snapshot(
        &self,
        name: &SnapshotName,
    ) -> impl Future<Output = Result<Option<Snapshot>, ControlPlaneError>> + Send;
    /// The snapshot of this id, whatever its name.
    fn snapshot_by_id(
        &self,
        id: VolumeId,
    ) -> impl Future<Output = Result<Option<Snapshot>, ControlPlaneError>> + Send;
    /// The snapshots whose data is on a node, by id. May be a little old.
    fn snapshots_on(
        &self,
        node: &NodeName,
    ) -> impl Future<Output = Result<Vec<Snapshot>, ControlPlaneError>> + Send;
    /// Asks for a mutation. After [`ControlPlaneError::Unavailable`] it is not known whether it happened.
    fn carry_out(&self, intent: &Intent) -> impl Future<Output = Result<(), ControlPlaneError>> + Send;
}

/// Why the control plane did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// It answered, and refused.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It did not answer in a way that means anything.
    #[error("{message}")]
    Unavailable {
        /// Why, for a person.
        message: String,
    },
}
