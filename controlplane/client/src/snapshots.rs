//! Snapshots: taking, looking at, deleting.

use basalt_model::{Revision, Snapshot, SnapshotName, VolumeId, VolumeName};
use basalt_proto::api::{self, get_snapshot_request};

use crate::{
    Client, ClientError, Committed, Mutation, Pages,
    client::{PAGE_SIZE, committed, control, found},
    pages::Page,
    wire,
};

/// A snapshot to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateSnapshot {
    /// Its name.
    pub name: SnapshotName,
    /// The volume that it is of.
    pub volume: VolumeName,
    /// The released snapshot to adopt instead of taking one.
    pub adopt: Option<VolumeId>,
}

impl Client {
    /// Takes a snapshot of a volume, or adopts a released one.
    pub async fn create_snapshot(
        &self,
        mutation: &Mutation,
        snapshot: &CreateSnapshot,
    ) -> Result<Committed<Snapshot>, ClientError> {
        let request = api::CreateSnapshotRequest {
            context: mutation.encode(),
            name: snapshot.name.to_string(),
            volume: snapshot.volume.to_string(),
            adopt_snapshot_id: snapshot.adopt.map(|id| id.to_string()).unwrap_or_default(),
        };
        let answer = self
            .call(request, |channel, request| async move { control(channel).create_snapshot(request).await })
            .await?;
        committed(answer.snapshot, answer.revision, wire::snapshot::decode)
    }

    /// A snapshot by name; `None` if there is none.
    pub async fn get_snapshot(&self, name: &SnapshotName) -> Result<Option<Snapshot>, ClientError> {
        self.get_snapshot_by(get_snapshot_request::Key::Name(name.to_string())).await
    }

    /// A snapshot by id; `None` if there is none.
    pub async fn get_snapshot_by_id(&self, id: VolumeId) -> Result<Option<Snapshot>, ClientError> {
        self.get_snapshot_by(get_snapshot_request::Key::SnapshotId(id.to_string())).await
    }

    async fn get_snapshot_by(&self, key: get_snapshot_request::Key) -> Result<Option<Snapshot>, ClientError> {
        let request = api::GetSnapshotRequest { key: Some(key) };
        let answer = self
            .call(request, |channel, request| async move { control(channel).get_snapshot(request).await })
            .await;
        let snapshot = found(answer)?.and_then(|answer| answer.snapshot);
        snapshot.map(wire::snapshot::decode).transpose().map_err(Into::into)
    }

    /// All snapshots, page by page; released and going ones included.
    pub fn snapshots(&self) -> Pages<Snapshot> {
        let client = self.clone();
        Pages::new(move |page_token| {
            let client = client.clone();
            async move {
                let request = api::ListSnapshotsRequest { page_size: PAGE_SIZE, page_token };
                let answer = client
                    .call(request, |channel, request| async move {
                        control(channel).list_snapshots(request).await
                    })
                    .await?;
                let items = answer.snapshots.into_iter().map(wire::snapshot::decode);
                let items = items.collect::<Result<_, _>>()?;
                let revision = Revision(answer.revision);
                Ok(Page { items, next_token: answer.next_page_token, revision })
            }
        })
    }

    /// Starts the deletion of a snapshot.
    pub async fn delete_snapshot(
        &self,
        mutation: &Mutation,
        name: &SnapshotName,
    ) -> Result<Revision, ClientError> {
        let request = api::DeleteSnapshotRequest { context: mutation.encode(), name: name.to_string() };
        let answer = self
            .call(request, |channel, request| async move { control(channel).delete_snapshot(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// Puts a snapshot aside: its name is free, the data stays.
    pub async fn release_snapshot(
        &self,
        mutation: &Mutation,
        name: &SnapshotName,
    ) -> Result<Revision, ClientError> {
        let request = api::ReleaseSnapshotRequest { context: mutation.encode(), name: name.to_string() };
        let answer = self
            .call(request, |channel, request| async move { control(channel).release_snapshot(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }
}
