//! What the kinds of objects have in common.

use std::fmt::Debug;
use std::future::Future;

use basalt_crds::{Snapshot, SnapshotStatus, StorageNode, StorageNodeStatus, Volume, VolumeStatus};
use basalt_model::{NodeName, SnapshotName, VolumeId, VolumeName};
use basalt_plan::{
    NodeSight, Plan, Progress, Seen, SnapshotSight, VolumeSight, plan_snapshot, plan_storage_node,
    plan_volume,
};
use k8s_openapi::jiff::Timestamp;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control_plane::{ControlPlane, ControlPlaneError};

/// A kind of object that the operator looks after.
pub trait Managed:
    Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
    + Clone
    + Debug
    + DeserializeOwned
    + Serialize
    + Send
    + Sync
    + 'static
{
    /// What the control plane can say about one.
    type Sight: Send;
    /// Its status.
    type Status: Serialize + Clone + Debug + PartialEq + Send + Sync;
    /// A bounded word for metrics and logs.
    const WORD: &'static str;

    /// Asks the control plane about this object.
    fn look<C: ControlPlane>(
        &self,
        control: &C,
    ) -> impl Future<Output = Result<Self::Sight, ControlPlaneError>> + Send;
    /// What to do next.
    fn plan(&self, seen: &Seen<Self::Sight>, progress: &Progress, now: Timestamp) -> Plan<Self::Status>;
    /// The status word, for metrics.
    fn phase(&self) -> &'static str;
}

impl Managed for Volume {
    type Sight = VolumeSight;
    type Status = VolumeStatus;
    const WORD: &'static str = "volume";

    async fn look<C: ControlPlane>(&self, control: &C) -> Result<VolumeSight, ControlPlaneError> {
        // A name that the control plane cannot have is not there; the plan says what is wrong with it.
        let by_name = match VolumeName::new(self.name_any()) {
            Ok(name) => control.volume(&name).await?,
            Err(_) => None,
        };
        let recorded = self.status.as_ref().and_then(|status| status.volume_id.as_ref());
        let recorded: Option<VolumeId> = recorded.and_then(|id| id.parse().ok());
        let by_id = match recorded {
            None => None,
            Some(id) if by_name.as_ref().is_some_and(|volume| volume.id == id) => by_name.clone(),
            Some(id) => control.volume_by_id(id).await?,
        };
        let going = [&by_id, &by_name].into_iter().flatten().find(|volume| volume.is_going());
        let node = match going {
            Some(volume) => control.node(&volume.placement.node).await?,
            None => None,
        };
        Ok(VolumeSight { by_name, by_id, node })
    }

    fn plan(&self, seen: &Seen<VolumeSight>, progress: &Progress, now: Timestamp) -> Plan<VolumeStatus> {
        plan_volume(self, seen, progress, now)
    }

    fn phase(&self) -> &'static str {
        self.status.as_ref().and_then(|status| status.phase).map_or("Pending", |phase| phase.as_str())
    }
}

impl Managed for Snapshot {
    type Sight = SnapshotSight;
    type Status = SnapshotStatus;
    const WORD: &'static str = "snapshot";

    async fn look<C: ControlPlane>(&self, control: &C) -> Result<SnapshotSight, ControlPlaneError> {
        let by_name = match SnapshotName::new(self.name_any()) {
            Ok(name) => control.snapshot(&name).await?,
            Err(_) => None,
        };
        let recorded = self.status.as_ref().and_then(|status| status.snapshot_id.as_ref());
        let recorded: Option<VolumeId> = recorded.and_then(|id| id.parse().ok());
        let by_id = match recorded {
            None => None,
            Some(id) if by_name.as_ref().is_some_and(|snapshot| snapshot.id == id) => by_name.clone(),
            Some(id) => control.snapshot_by_id(id).await?,
        };
        let going = [&by_id, &by_name].into_iter().flatten().find(|snapshot| snapshot.is_going());
        let node = match going {
            Some(snapshot) => control.node(&snapshot.placement.node).await?,
            None => None,
        };
        Ok(SnapshotSight { by_name, by_id, node })
    }

    fn plan(&self, seen: &Seen<SnapshotSight>, progress: &Progress, now: Timestamp) -> Plan<SnapshotStatus> {
        plan_snapshot(self, seen, progress, now)
    }

    fn phase(&self) -> &'static str {
        self.status.as_ref().and_then(|status| status.phase).map_or("Pending", |phase| phase.as_str())
    }
}

impl Managed for StorageNode {
    type Sight = NodeSight;
    type Status = StorageNodeStatus;
    const WORD: &'static str = "storage_node";

    async fn look<C: ControlPlane>(&self, control: &C) -> Result<NodeSight, ControlPlaneError> {
        let Ok(name) = NodeName::new(self.name_any()) else { return Ok(NodeSight::default()) };
        let node = control.node(&name).await?;
        if node.is_none() {
            return Ok(NodeSight::default());
        }
        let volumes = control.volumes_on(&name).await?;
        let snapshots = control.snapshots_on(&name).await?;
        Ok(NodeSight { node, volumes, snapshots })
    }

    fn plan(&self, seen: &Seen<NodeSight>, progress: &Progress, now: Timestamp) -> Plan<StorageNodeStatus> {
        plan_storage_node(self, seen, progress, now)
    }

    fn phase(&self) -> &'static str {
        self.status.as_ref().and_then(|status| status.phase).map_or("Pending", |phase| phase.as_str())
    }
}
