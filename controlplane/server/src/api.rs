//! The service `basalt.api.v1.ControlPlane`.

use basalt_client::wire::{self, WireError};
use basalt_core::{Mutation, Page, Read, ReadResult};
use basalt_model::{Node, NodeName, Snapshot, SnapshotName, Volume, VolumeChange, VolumeName};
use basalt_proto::api::{
    self, control_plane_client::ControlPlaneClient, control_plane_server::ControlPlane, get_snapshot_request,
    get_volume_request,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::{
    driver::About,
    edge::{self, Changed, Edge},
    errors, watch,
};

/// Largest page that is answered; more is cut to it.
const PAGE_MAX: u32 = 1_000;
/// Page size when none is asked for.
const PAGE_DEFAULT: u32 = 100;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct ControlPlaneService {
    edge: Edge,
    watches: watch::Watches,
}

impl ControlPlaneService {
    pub(crate) fn new(edge: Edge) -> Self {
        Self { edge, watches: watch::Watches::new() }
    }
}

/// Carries a change out here or forwards the very message to the leader, which answers in our place.
macro_rules! change_or_forward {
    ($service:ident, $caller:ident, $id:ident, $mutation:expr, $about:expr, $message:ident, $method:ident) => {
        match $service.edge.change(&$caller, $id, $mutation, $about).await? {
            Changed::Here(done) => done,
            Changed::AtLeader(channel) => {
                let request = $service.edge.forwarded(&$caller, $message)?;
                return ControlPlaneClient::new(channel).$method(request).await;
            }
        }
    };
}

#[tonic::async_trait]
impl ControlPlane for ControlPlaneService {
    async fn put_node(
        &self,
        request: Request<api::PutNodeRequest>,
    ) -> Result<Response<api::PutNodeResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, uid) = edge::context(message.context.as_ref())?;
        let name = node_name(&message.name)?;
        let spec = field("spec", message.spec.clone())?;
        let spec = wire::node::decode_spec(spec).map_err(|error| errors::invalid(&error))?;
        let mutation = Mutation::PutNode { name: name.clone(), uid, spec };
        let done = change_or_forward!(self, caller, id, mutation, About::Node(name), message, put_node);
        let node = shown(done.node.as_ref().map(wire::node::encode), "the node")?;
        Ok(Response::new(api::PutNodeResponse { node: Some(node), revision: done.revision.0 }))
    }

    async fn get_node(
        &self,
        request: Request<api::GetNodeRequest>,
    ) -> Result<Response<api::GetNodeResponse>, Status> {
        let (_, message) = edge::open(request)?;
        match self.edge.read(Read::Node(node_name(&message.name)?)).await? {
            (revision, ReadResult::Node(Some(node))) => Ok(Response::new(api::GetNodeResponse {
                node: Some(wire::node::encode(&node)),
                revision: revision.0,
            })),
            (_, ReadResult::Node(None)) => Err(not_found(format!("there is no node {}", message.name))),
            _ => Err(edge::mismatch()),
        }
    }

    async fn list_nodes(
        &self,
        request: Request<api::ListNodesRequest>,
    ) -> Result<Response<api::ListNodesResponse>, Status> {
        let (_, message) = edge::open(request)?;
        match self.edge.read(Read::Nodes(page(message.page_size, message.page_token))).await? {
            (revision, ReadResult::Nodes { items, next }) => Ok(Response::new(api::ListNodesResponse {
                nodes: items.iter().map(|node| wire::node::encode(node)).collect(),
                next_page_token: next.unwrap_or_default(),
                revision: revision.0,
            })),
            _ => Err(edge::mismatch()),
        }
    }

    async fn delete_node(
        &self,
        request: Request<api::DeleteNodeRequest>,
    ) -> Result<Response<api::DeleteNodeResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, uid) = edge::context(message.context.as_ref())?;
        let mutation = Mutation::DeleteNode { name: node_name(&message.name)?, uid };
        let done = change_or_forward!(self, caller, id, mutation, About::Nothing, message, delete_node);
        Ok(Response::new(api::DeleteNodeResponse { revision: done.revision.0 }))
    }

    async fn unbind_node(
        &self,
        request: Request<api::UnbindNodeRequest>,
    ) -> Result<Response<api::UnbindNodeResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, _) = edge::context(message.context.as_ref())?;
        let mutation = Mutation::UnbindNode { name: node_name(&message.name)? };
        let done = change_or_forward!(self, caller, id, mutation, About::Nothing, message, unbind_node);
        Ok(Response::new(api::UnbindNodeResponse { revision: done.revision.0 }))
    }

    async fn abandon_node(
        &self,
        request: Request<api::AbandonNodeRequest>,
    ) -> Result<Response<api::AbandonNodeResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, _) = edge::context(message.context.as_ref())?;
        let mutation = Mutation::AbandonNode { name: node_name(&message.name)? };
        let done = change_or_forward!(self, caller, id, mutation, About::Nothing, message, abandon_node);
        Ok(Response::new(api::AbandonNodeResponse { revision: done.revision.0 }))
    }

    async fn abandon_pool(
        &self,
        request: Request<api::AbandonPoolRequest>,
    ) -> Result<Response<api::AbandonPoolResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, _) = edge::context(message.context.as_ref())?;
        let pool = wire::name("pool", &message.pool).map_err(|error| errors::invalid(&error))?;
        let mutation = Mutation::AbandonPool { node: node_name(&message.node)?, pool };
        let done = change_or_forward!(self, caller, id, mutation, About::Nothing, message, abandon_pool);
        Ok(Response::new(api::AbandonPoolResponse { revision: done.revision.0 }))
    }

    async fn create_volume(
        &self,
        request: Request<api::CreateVolumeRequest>,
    ) -> Result<Response<api::CreateVolumeResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, uid) = edge::context(message.context.as_ref())?;
        let spec = field("spec", message.spec.clone())?;
        let mutation = Mutation::CreateVolume {
            name: volume_name(&message.name)?,
            uid,
            adopt: wire::optional_uuid("adopt_volume_id", &message.adopt_volume_id)
                .map_err(|error| errors::invalid(&error))?,
            spec: wire::volume::decode_spec(spec).map_err(|error| errors::invalid(&error))?,
        };
        let done = change_or_forward!(self, caller, id, mutation, About::Volume, message, create_volume);
        let volume = shown(done.volume.as_ref().map(wire::volume::encode), "the volume")?;
        Ok(Response::new(api::CreateVolumeResponse { volume: Some(volume), revision: done.revision.0 }))
    }

    async fn update_volume(
        &self,
        request: Request<api::UpdateVolumeRequest>,
    ) -> Result<Response<api::UpdateVolumeResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, uid) = edge::context(message.context.as_ref())?;
        let change = volume_change(&message).map_err(|error| errors::invalid(&error))?;
        let mutation = Mutation::UpdateVolume { name: volume_name(&message.name)?, uid, change };
        let done = change_or_forward!(self, caller, id, mutation, About::Volume, message, update_volume);
        let volume = shown(done.volume.as_ref().map(wire::volume::encode), "the volume")?;
        Ok(Response::new(api::UpdateVolumeResponse { volume: Some(volume), revision: done.revision.0 }))
    }

    async fn get_volume(
        &self,
        request: Request<api::GetVolumeRequest>,
    ) -> Result<Response<api::GetVolumeResponse>, Status> {
        let (_, message) = edge::open(request)?;
        let (read, missing) = match field("key", message.key)? {
            get_volume_request::Key::Name(name) => {
                (Read::Volume(volume_name(&name)?), format!("there is no volume {name}"))
            }
            get_volume_request::Key::VolumeId(id) => {
                let parsed = wire::uuid("volume_id", &id).map_err(|error| errors::invalid(&error))?;
                (Read::VolumeById(parsed), format!("there is no volume with id {id}"))
            }
        };
        match self.edge.read(read).await? {
            (revision, ReadResult::Volume(Some(volume))) => Ok(Response::new(api::GetVolumeResponse {
                volume: Some(wire::volume::encode(&volume)),
                revision: revision.0,
            })),
            (_, ReadResult::Volume(None)) => Err(not_found(missing)),
            _ => Err(edge::mismatch()),
        }
    }

    async fn list_volumes(
        &self,
        request: Request<api::ListVolumesRequest>,
    ) -> Result<Response<api::ListVolumesResponse>, Status> {
        let (_, message) = edge::open(request)?;
        match self.edge.read(Read::Volumes(page(message.page_size, message.page_token))).await? {
            (revision, ReadResult::Volumes { items, next }) => Ok(Response::new(api::ListVolumesResponse {
                volumes: items.iter().map(|volume| wire::volume::encode(volume)).collect(),
                next_page_token: next.unwrap_or_default(),
                revision: revision.0,
            })),
            _ => Err(edge::mismatch()),
        }
    }

    async fn delete_volume(
        &self,
        request: Request<api::DeleteVolumeRequest>,
    ) -> Result<Response<api::DeleteVolumeResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, uid) = edge::context(message.context.as_ref())?;
        let mutation = Mutation::DeleteVolume { name: volume_name(&message.name)?, uid };
        let done = change_or_forward!(self, caller, id, mutation, About::Nothing, message, delete_volume);
        Ok(Response::new(api::DeleteVolumeResponse { revision: done.revision.0 }))
    }

    async fn release_volume(
        &self,
        request: Request<api::ReleaseVolumeRequest>,
    ) -> Result<Response<api::ReleaseVolumeResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, uid) = edge::context(message.context.as_ref())?;
        let mutation = Mutation::ReleaseVolume { name: volume_name(&message.name)?, uid };
        let done = change_or_forward!(self, caller, id, mutation, About::Nothing, message, release_volume);
        Ok(Response::new(api::ReleaseVolumeResponse { revision: done.revision.0 }))
    }

    async fn create_snapshot(
        &self,
        request: Request<api::CreateSnapshotRequest>,
    ) -> Result<Response<api::CreateSnapshotResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, uid) = edge::context(message.context.as_ref())?;
        let mutation = Mutation::CreateSnapshot {
            name: snapshot_name(&message.name)?,
            uid,
            volume: wire::name("volume", &message.volume).map_err(|error| errors::invalid(&error))?,
            adopt: wire::optional_uuid("adopt_snapshot_id", &message.adopt_snapshot_id)
                .map_err(|error| errors::invalid(&error))?,
        };
        let done = change_or_forward!(self, caller, id, mutation, About::Snapshot, message, create_snapshot);
        let snapshot = shown(done.snapshot.as_ref().map(wire::snapshot::encode), "the snapshot")?;
        Ok(Response::new(api::CreateSnapshotResponse { snapshot: Some(snapshot), revision: done.revision.0 }))
    }

    async fn get_snapshot(
        &self,
        request: Request<api::GetSnapshotRequest>,
    ) -> Result<Response<api::GetSnapshotResponse>, Status> {
        let (_, message) = edge::open(request)?;
        let (read, missing) = match field("key", message.key)? {
            get_snapshot_request::Key::Name(name) => {
                (Read::Snapshot(snapshot_name(&name)?), format!("there is no snapshot {name}"))
            }
            get_snapshot_request::Key::SnapshotId(id) => {
                let parsed = wire::uuid("snapshot_id", &id).map_err(|error| errors::invalid(&error))?;
                (Read::SnapshotById(parsed), format!("there is no snapshot with id {id}"))
            }
        };
        match self.edge.read(read).await? {
            (revision, ReadResult::Snapshot(Some(snapshot))) => Ok(Response::new(api::GetSnapshotResponse {
                snapshot: Some(wire::snapshot::encode(&snapshot)),
                revision: revision.0,
            })),
            (_, ReadResult::Snapshot(None)) => Err(not_found(missing)),
            _ => Err(edge::mismatch()),
        }
    }

    async fn list_snapshots(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<api::ListSnapshotsResponse>, Status> {
        let (_, message) = edge::open(request)?;
        match self.edge.read(Read::Snapshots(page(message.page_size, message.page_token))).await? {
            (revision, ReadResult::Snapshots { items, next }) => {
                Ok(Response::new(api::ListSnapshotsResponse {
                    snapshots: items.iter().map(|snapshot| wire::snapshot::encode(snapshot)).collect(),
                    next_page_token: next.unwrap_or_default(),
                    revision: revision.0,
                }))
            }
            _ => Err(edge::mismatch()),
        }
    }

    async fn delete_snapshot(
        &self,
        request: Request<api::DeleteSnapshotRequest>,
    ) -> Result<Response<api::DeleteSnapshotResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, uid) = edge::context(message.context.as_ref())?;
        let mutation = Mutation::DeleteSnapshot { name: snapshot_name(&message.name)?, uid };
        let done = change_or_forward!(self, caller, id, mutation, About::Nothing, message, delete_snapshot);
        Ok(Response::new(api::DeleteSnapshotResponse { revision: done.revision.0 }))
    }

    async fn release_snapshot(
        &self,
        request: Request<api::ReleaseSnapshotRequest>,
    ) -> Result<Response<api::ReleaseSnapshotResponse>, Status> {
        let (caller, message) = edge::open(request)?;
        let (id, uid) = edge::context(message.context.as_ref())?;
        let mutation = Mutation::ReleaseSnapshot { name: snapshot_name(&message.name)?, uid };
        let done = change_or_forward!(self, caller, id, mutation, About::Nothing, message, release_snapshot);
        Ok(Response::new(api::ReleaseSnapshotResponse { revision: done.revision.0 }))
    }

    async fn get_cluster_status(
        &self,
        request: Request<api::GetClusterStatusRequest>,
    ) -> Result<Response<api::GetClusterStatusResponse>, Status> {
        edge::open(request)?;
        let (revision, ReadResult::Cluster(view)) = self.edge.read(Read::Cluster).await? else {
            return Err(edge::mismatch());
        };
        let total = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(Response::new(api::GetClusterStatusResponse {
            cluster_id: view.cluster.map(|cluster| cluster.to_string()).unwrap_or_default(),
            cluster_name: self.edge.cluster_name.to_string(),
            incarnation: view.incarnation.0,
            feature_level: view.level.0,
            answered_by: self.edge.driver.status().borrow().id.get(),
            leader_id: view.leader.map_or(0, basalt_model::MemberId::get),
            term: view.term,
            revision: revision.0,
            members_total: total(view.members.len()),
            nodes_total: total(view.nodes),
            volumes_total: total(view.volumes),
            snapshots_total: total(view.snapshots),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    type WatchStream = ReceiverStream<Result<api::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<api::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (_, message) = edge::open(request)?;
        self.watches.start(self.edge.clone(), message).map(Response::new)
    }
}

fn volume_change(message: &api::UpdateVolumeRequest) -> Result<VolumeChange, WireError> {
    let hosts = message.allowed_hosts.as_ref();
    Ok(VolumeChange {
        allowed_hosts: hosts
            .map(|hosts| wire::volume::decode_hosts("allowed_hosts", &hosts.nqns))
            .transpose()?,
        reclaim: message
            .reclaim_policy
            .map(|policy| wire::volume::decode_reclaim("reclaim_policy", policy))
            .transpose()?,
        size: message.size_bytes.map(basalt_model::Bytes),
        read_only: message.read_only,
    })
}

fn page(size: u32, token: String) -> Page {
    let limit = if size == 0 { PAGE_DEFAULT } else { size.min(PAGE_MAX) };
    // Widens on every platform that this runs on.
    Page { after: Some(token).filter(|token| !token.is_empty()), limit: limit as usize }
}

fn node_name(name: &str) -> Result<NodeName, Status> {
    wire::name("name", name).map_err(|error| errors::invalid(&error))
}

fn volume_name(name: &str) -> Result<VolumeName, Status> {
    wire::name("name", name).map_err(|error| errors::invalid(&error))
}

fn snapshot_name(name: &str) -> Result<SnapshotName, Status> {
    wire::name("name", name).map_err(|error| errors::invalid(&error))
}

fn field<T>(name: &'static str, value: Option<T>) -> Result<T, Status> {
    value.ok_or_else(|| errors::invalid(&WireError::Missing { field: name }))
}

fn not_found(message: String) -> Status {
    errors::status(Code::NotFound, api::Reason::NotFound, message)
}

/// What a change left behind. It is missing when the change is a repetition and the object is gone by now.
fn shown<T>(object: Option<T>, what: &str) -> Result<T, Status> {
    object.ok_or_else(|| not_found(format!("{what} of this request was there once and is gone")))
}

/// Objects as the watch sends them.
pub(crate) fn node_put(node: &Node) -> api::watch_response::Event {
    api::watch_response::Event::NodePut(wire::node::encode(node))
}

/// Objects as the watch sends them.
pub(crate) fn snapshot_put(snapshot: &Snapshot) -> api::watch_response::Event {
    api::watch_response::Event::SnapshotPut(wire::snapshot::encode(snapshot))
}

/// Objects as the watch sends them.
pub(crate) fn volume_put(volume: &Volume) -> api::watch_response::Event {
    api::watch_response::Event::VolumePut(wire::volume::encode(volume))
}
