//! The control plane over its gRPC API.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use basalt_client::{Client, ClientError, CreateSnapshot, CreateVolume, Mutation, Reason};
use basalt_model::{ClusterId, Node, NodeName, Snapshot, SnapshotName, Volume, VolumeId, VolumeName};
use basalt_plan::{Intent, IntentBody, Rejection, RejectionKind};

use crate::control_plane::{ControlPlane, ControlPlaneError};
use crate::mirror::Mirror;

/// After a call that nobody answered, calls fail at once for this long: with many objects, each waiting for its own
/// deadline, their statuses would say only after minutes that the control plane is away.
const FAIL_FAST: Duration = Duration::from_secs(1);

/// The control plane as its members serve it.
#[derive(Debug)]
pub struct Members {
    client: Client,
    mirror: Arc<Mirror>,
    /// When a call failed last, and why.
    failed: Mutex<Option<(Instant, String)>>,
}

impl Members {
    /// Calls `client`, and answers from `mirror` what may be a little old.
    #[must_use]
    pub fn new(client: Client, mirror: Arc<Mirror>) -> Self {
        Self { client, mirror, failed: Mutex::new(None) }
    }

    fn failed(&self) -> MutexGuard<'_, Option<(Instant, String)>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ControlPlaneError> {
        let failed = self.failed().clone();
        if let Some((_, message)) = failed.filter(|(when, _)| when.elapsed() < FAIL_FAST) {
            return Err(ControlPlaneError::Unavailable { message });
        }
        let answer = call.await.map_err(translate);
        *self.failed() = match &answer {
            Err(ControlPlaneError::Unavailable { message, .. }) => Some((Instant::now(), message.clone())),
            _ => None,
        };
        answer
    }
}

impl ControlPlane for Members {
    async fn cluster(&self) -> Result<ClusterId, ControlPlaneError> {
        let status = self.call(self.client.cluster_status()).await?;
        status.cluster.ok_or_else(|| ControlPlaneError::Unavailable {
            message: "the control plane is not bootstrapped yet".to_owned(),
        })
    }

    async fn node(&self, name: &NodeName) -> Result<Option<Node>, ControlPlaneError> {
        self.call(self.client.get_node(name)).await
    }

    async fn volumes_on(&self, node: &NodeName) -> Result<Vec<Volume>, ControlPlaneError> {
        if let Some(volumes) = self.mirror.volumes_on(node) {
            return Ok(volumes);
        }
        let mut volumes = self.call(self.client.volumes().all()).await?.items;
        volumes.retain(|volume| volume.placement.node == *node);
        volumes.sort_by_key(|volume| volume.id);
        Ok(volumes)
    }

    async fn volume(&self, name: &VolumeName) -> Result<Option<Volume>, ControlPlaneError> {
        self.call(self.client.get_volume(name)).await
    }

    async fn volume_by_id(&self, id: VolumeId) -> Result<Option<Volume>, ControlPlaneError> {
        self.call(self.client.get_volume_by_id(id)).await
    }

    async fn snapshot(&self, name: &SnapshotName) -> Result<Option<Snapshot>, ControlPlaneError> {
        self.call(self.client.get_snapshot(name)).await
    }

    async fn snapshot_by_id(&self, id: VolumeId) -> Result<Option<Snapshot>, ControlPlaneError> {
        self.call(self.client.get_snapshot_by_id(id)).await
    }

    async fn snapshots_on(&self, node: &NodeName) -> Result<Vec<Snapshot>, ControlPlaneError> {
        if let Some(snapshots) = self.mirror.snapshots_on(node) {
            return Ok(snapshots);
        }
        let mut snapshots = self.call(self.client.snapshots().all()).await?.items;
        snapshots.retain(|snapshot| snapshot.placement.node == *node);
        snapshots.sort_by_key(|snapshot| snapshot.id);
        Ok(snapshots)
    }

    async fn carry_out(&self, intent: &Intent) -> Result<(), ControlPlaneError> {
        let mutation = Mutation { request: intent.request.clone(), owner: Some(intent.owner.clone()) };
        let client = &self.client;
        let call = async {
            match &intent.body {
                IntentBody::PutNode { name, spec } => client.put_node(&mutation, name, spec).await.map(drop),
                IntentBody::DeleteNode { name } => client.delete_node(&mutation, name).await.map(drop),
                IntentBody::CreateVolume { name, spec, adopt } => {
                    let volume = CreateVolume { name: name.clone(), spec: spec.clone(), adopt: *adopt };
                    client.create_volume(&mutation, &volume).await.map(drop)
                }
                IntentBody::UpdateVolume { name, change } => {
                    client.update_volume(&mutation, name, change).await.map(drop)
                }
                IntentBody::DeleteVolume { name } => client.delete_volume(&mutation, name).await.map(drop),
                IntentBody::ReleaseVolume { name } => client.release_volume(&mutation, name).await.map(drop),
                IntentBody::CreateSnapshot { name, volume, adopt } => {
                    let (name, volume) = (name.clone(), volume.clone());
                    let snapshot = CreateSnapshot { name, volume, adopt: *adopt };
                    client.create_snapshot(&mutation, &snapshot).await.map(drop)
                }
                IntentBody::DeleteSnapshot { name } => {
                    client.delete_snapshot(&mutation, name).await.map(drop)
                }
                IntentBody::ReleaseSnapshot { name } => {
                    client.release_snapshot(&mutation, name).await.map(drop)
                }
            }
        };
        self.call(call).await
    }
}

fn translate(error: ClientError) -> ControlPlaneError {
    let kind = match error.reason() {
        Some(Reason::NotFound) => RejectionKind::NotFound,
        Some(Reason::Conflict) => RejectionKind::Conflict,
        Some(Reason::Invalid | Reason::RequestIdReused) => RejectionKind::Invalid,
        Some(Reason::Precondition) => RejectionKind::Precondition,
        Some(Reason::Exhausted) => RejectionKind::Exhausted,
        Some(Reason::NoPool) => RejectionKind::NoPool,
        Some(Reason::Unsupported) => RejectionKind::Unsupported,
        Some(Reason::Forbidden) => RejectionKind::Forbidden,
        Some(
            Reason::Unspecified
            | Reason::NoLeader
            | Reason::Overloaded
            | Reason::Storage
            | Reason::OtherCluster,
        )
        | None => {
            return ControlPlaneError::Unavailable { message: error.to_string() };
        }
    };
    ControlPlaneError::Rejected(Rejection { kind, message: error.to_string() })
}
