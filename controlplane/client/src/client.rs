//! The client: one call, some members, a deadline.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use basalt_identity::{ASSERTED_IDENTITY_HEADER, Connector, Security};
use basalt_model::{
    ClusterId, FeatureLevel, Incarnation, MemberId, Node, NodeName, NodeSpec, ObjectUid, PoolName, RequestId,
    Revision, Volume, VolumeChange, VolumeId, VolumeName, VolumeSpec,
};
use basalt_proto::{
    CLUSTER_ID_HEADER,
    api::{self, control_plane_client::ControlPlaneClient, get_volume_request},
    membership::membership_client::MembershipClient,
};
use tonic::{
    Request, Response, Status,
    metadata::{MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};

use crate::{
    ClientError, Pages, Watch,
    error::{self, is_stranger, stranger},
    pages::Page,
    retry::{Advice, Backoff, advice},
    wire::{self, WireError},
};

/// Largest answer that is accepted: a page of 500 volumes with long lists of hosts fits.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// How many channels are kept; hints to more members than this are ignored.
const CHANNELS_MAX: usize = 32;
/// Entries per page that are asked for.
pub(crate) const PAGE_SIZE: u32 = 500;

/// How to reach a cluster.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Members as `host:port`, tried in turn.
    pub endpoints: Vec<String>,
    /// TLS, or plaintext on loopback.
    pub security: Security,
    /// How long one call is tried in all, retries included.
    pub deadline: Duration,
    /// How long one member has for one answer.
    pub attempt_timeout: Duration,
    /// The only cluster to speak to; `None` takes the one whose member answers first, and stays with it.
    pub cluster: Option<ClusterId>,
}

impl ClientConfig {
    /// The usual deadlines: 30 s in all, 5 s for one answer.
    pub fn new(endpoints: Vec<String>, security: Security) -> Self {
        Self {
            endpoints,
            security,
            deadline: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5),
            cluster: None,
        }
    }
}

/// What every change carries: the key under which it happens once, and the Kubernetes object that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    /// The key. Sending the same change again under it is harmless.
    pub request: RequestId,
    /// UID of the object; `None` outside of Kubernetes.
    pub owner: Option<ObjectUid>,
}

impl Mutation {
    /// A change under a new random key, for callers that do not repeat it themselves.
    pub fn once(owner: Option<ObjectUid>) -> Self {
        let request = RequestId::new(uuid::Uuid::new_v4().to_string());
        Self {
            request: request.unwrap_or_else(|error| unreachable!("a UUID is a request id: {error}")),
            owner,
        }
    }

    pub(crate) fn encode(&self) -> Option<api::MutationContext> {
        let owner_uid = self.owner.as_ref().map(ToString::to_string).unwrap_or_default();
        Some(api::MutationContext { request_id: self.request.to_string(), owner_uid })
    }
}

/// A volume to create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateVolume {
    /// Its name.
    pub name: VolumeName,
    /// What is asked.
    pub spec: VolumeSpec,
    /// The released volume to adopt instead of creating one.
    pub adopt: Option<VolumeId>,
}

/// What a change left behind, and when it took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed<T> {
    /// The object as it was right after the change, or later.
    pub value: T,
    /// The revision at which the change took effect.
    pub revision: Revision,
}

/// The cluster in figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Its identity; `None` before it is bootstrapped.
    pub cluster: Option<ClusterId>,
    /// Its name.
    pub name: String,
    /// How often it was recovered from a lost majority, plus one.
    pub incarnation: Incarnation,
    /// The committed feature level.
    pub level: FeatureLevel,
    /// The member that answered.
    pub answered_by: Option<MemberId>,
    /// The leader, when one is known.
    pub leader: Option<MemberId>,
    /// The raft term.
    pub term: u64,
    /// The revision of the state that the answer is from.
    pub revision: Revision,
    /// How many members there are.
    pub members: u32,
    /// How many nodes there are.
    pub nodes: u32,
    /// How many volumes there are.
    pub volumes: u32,
    /// How many snapshots there are.
    pub snapshots: u32,
    /// Version of the program that answered.
    pub version: String,
}

/// A client of one cluster. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: ClientConfig,
    state: Mutex<Connections>,
}

/// Held only to look something up, never over an await.
#[derive(Debug)]
struct Connections {
    channels: BTreeMap<String, Channel>,
    /// The member that answered last.
    preferred: String,
    /// The cluster that this client is of: a member of another one is no member.
    cluster: Option<ClusterId>,
}

impl Client {
    /// A client; connects when it is used. Must be called within a tokio runtime.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let preferred = config.endpoints.first().cloned().ok_or(ClientError::NoEndpoints)?;
        let mut channels = BTreeMap::new();
        for endpoint in &config.endpoints {
            channels.insert(endpoint.clone(), channel(endpoint, &config.security)?);
        }
        let state = Mutex::new(Connections { channels, preferred, cluster: config.cluster });
        Ok(Self { shared: Arc::new(Shared { config, state }) })
    }

    /// Registers a node or changes what is asked of it.
    pub async fn put_node(
        &self,
        mutation: &Mutation,
        name: &NodeName,
        spec: &NodeSpec,
    ) -> Result<Committed<Node>, ClientError> {
        let request = api::PutNodeRequest {
            context: mutation.encode(),
            name: name.to_string(),
            spec: Some(wire::node::encode_spec(spec)),
        };
        let answer = self
            .call(request, |channel, request| async move { control(channel).put_node(request).await })
            .await?;
        committed(answer.node, answer.revision, wire::node::decode)
    }

    /// A node; `None` if there is none of this name.
    pub async fn get_node(&self, name: &NodeName) -> Result<Option<Node>, ClientError> {
        let request = api::GetNodeRequest { name: name.to_string() };
        let answer = self
            .call(request, |channel, request| async move { control(channel).get_node(request).await })
            .await;
        found(answer)?.and_then(|answer| answer.node).map(wire::node::decode).transpose().map_err(Into::into)
    }

    /// All nodes, page by page.
    pub fn nodes(&self) -> Pages<Node> {
        let client = self.clone();
        Pages::new(move |page_token| {
            let client = client.clone();
            async move {
                let request = api::ListNodesRequest { page_size: PAGE_SIZE, page_token };
                let answer = client
                    .call(
                        request,
                        |channel, request| async move { control(channel).list_nodes(request).await },
                    )
                    .await?;
                let items = answer.nodes.into_iter().map(wire::node::decode).collect::<Result<_, _>>()?;
                let revision = Revision(answer.revision);
                Ok(Page { items, next_token: answer.next_page_token, revision })
            }
        })
    }

    /// Forgets a node that holds no volume.
    pub async fn delete_node(&self, mutation: &Mutation, name: &NodeName) -> Result<Revision, ClientError> {
        let request = api::DeleteNodeRequest { context: mutation.encode(), name: name.to_string() };
        let answer = self
            .call(request, |channel, request| async move { control(channel).delete_node(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// Lets the next daemon that connects under this name be the node.
    pub async fn unbind_node(&self, mutation: &Mutation, name: &NodeName) -> Result<Revision, ClientError> {
        let request = api::UnbindNodeRequest { context: mutation.encode(), name: name.to_string() };
        let answer = self
            .call(request, |channel, request| async move { control(channel).unbind_node(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// Says that a node's disks are gone for good: deletions do not wait for it any more.
    pub async fn abandon_node(&self, mutation: &Mutation, name: &NodeName) -> Result<Revision, ClientError> {
        let request = api::AbandonNodeRequest { context: mutation.encode(), name: name.to_string() };
        let answer = self
            .call(request, |channel, request| async move { control(channel).abandon_node(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// Says that the disks of one pool are gone for good: deletions do not wait for it any more.
    pub async fn abandon_pool(
        &self,
        mutation: &Mutation,
        node: &NodeName,
        pool: &PoolName,
    ) -> Result<Revision, ClientError> {
        let (node, pool) = (node.to_string(), pool.to_string());
        let request = api::AbandonPoolRequest { context: mutation.encode(), node, pool };
        let answer = self
            .call(request, |channel, request| async move { control(channel).abandon_pool(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// Creates a volume, or adopts a released one.
    pub async fn create_volume(
        &self,
        mutation: &Mutation,
        volume: &CreateVolume,
    ) -> Result<Committed<Volume>, ClientError> {
        let request = api::CreateVolumeRequest {
            context: mutation.encode(),
            name: volume.name.to_string(),
            spec: Some(wire::volume::encode_spec(&volume.spec)),
            adopt_volume_id: volume.adopt.map(|id| id.to_string()).unwrap_or_default(),
        };
        let answer = self
            .call(request, |channel, request| async move { control(channel).create_volume(request).await })
            .await?;
        committed(answer.volume, answer.revision, wire::volume::decode)
    }

    /// Changes a volume.
    pub async fn update_volume(
        &self,
        mutation: &Mutation,
        name: &VolumeName,
        change: &VolumeChange,
    ) -> Result<Committed<Volume>, ClientError> {
        let hosts = change.allowed_hosts.as_ref();
        let request = api::UpdateVolumeRequest {
            context: mutation.encode(),
            name: name.to_string(),
            allowed_hosts: hosts.map(|hosts| api::AllowedHosts { nqns: wire::volume::encode_hosts(hosts) }),
            reclaim_policy: change.reclaim.map(|reclaim| wire::volume::encode_reclaim(reclaim).into()),
            size_bytes: change.size.map(|size| size.0),
            read_only: change.read_only,
        };
        let answer = self
            .call(request, |channel, request| async move { control(channel).update_volume(request).await })
            .await?;
        committed(answer.volume, answer.revision, wire::volume::decode)
    }

    /// A volume by name; `None` if there is none.
    pub async fn get_volume(&self, name: &VolumeName) -> Result<Option<Volume>, ClientError> {
        self.get_volume_by(get_volume_request::Key::Name(name.to_string())).await
    }

    /// A volume by id; `None` if there is none.
    pub async fn get_volume_by_id(&self, id: VolumeId) -> Result<Option<Volume>, ClientError> {
        self.get_volume_by(get_volume_request::Key::VolumeId(id.to_string())).await
    }

    async fn get_volume_by(&self, key: get_volume_request::Key) -> Result<Option<Volume>, ClientError> {
        let request = api::GetVolumeRequest { key: Some(key) };
        let answer = self
            .call(request, |channel, request| async move { control(channel).get_volume(request).await })
            .await;
        found(answer)?
            .and_then(|answer| answer.volume)
            .map(wire::volume::decode)
            .transpose()
            .map_err(Into::into)
    }

    /// All volumes, page by page; released and going ones included.
    pub fn volumes(&self) -> Pages<Volume> {
        let client = self.clone();
        Pages::new(move |page_token| {
            let client = client.clone();
            async move {
                let request = api::ListVolumesRequest { page_size: PAGE_SIZE, page_token };
                let answer = client
                    .call(
                        request,
                        |channel, request| async move { control(channel).list_volumes(request).await },
                    )
                    .await?;
                let items = answer.volumes.into_iter().map(wire::volume::decode).collect::<Result<_, _>>()?;
                let revision = Revision(answer.revision);
                Ok(Page { items, next_token: answer.next_page_token, revision })
            }
        })
    }

    /// Starts the deletion of a volume and its data.
    pub async fn delete_volume(
        &self,
        mutation: &Mutation,
        name: &VolumeName,
    ) -> Result<Revision, ClientError> {
        let request = api::DeleteVolumeRequest { context: mutation.encode(), name: name.to_string() };
        let answer = self
            .call(request, |channel, request| async move { control(channel).delete_volume(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// Puts a volume aside: nobody is served, the data stays.
    pub async fn release_volume(
        &self,
        mutation: &Mutation,
        name: &VolumeName,
    ) -> Result<Revision, ClientError> {
        let request = api::ReleaseVolumeRequest { context: mutation.encode(), name: name.to_string() };
        let answer = self
            .call(request, |channel, request| async move { control(channel).release_volume(request).await })
            .await?;
        Ok(Revision(answer.revision))
    }

    /// The cluster in figures.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, ClientError> {
        let request = api::GetClusterStatusRequest {};
        let answer =
            self.call(request, |channel, request| async move {
                control(channel).get_cluster_status(request).await
            })
            .await?;
        Ok(ClusterStatus {
            cluster: wire::optional_uuid("cluster_id", &answer.cluster_id)?,
            name: answer.cluster_name,
            incarnation: Incarnation(answer.incarnation),
            level: FeatureLevel(answer.feature_level),
            answered_by: MemberId::new(answer.answered_by),
            leader: MemberId::new(answer.leader_id),
            term: answer.term,
            revision: Revision(answer.revision),
            members: answer.members_total,
            nodes: answer.nodes_total,
            volumes: answer.volumes_total,
            snapshots: answer.snapshots_total,
            version: answer.version,
        })
    }

    /// A stream of changes after `from`; from revision 0 everything that exists comes first.
    pub fn watch(&self, from: Revision) -> Watch {
        Watch::new(self.clone(), from)
    }

    /// Calls one method until a member answers for good or the deadline is over.
    pub(crate) async fn call<Q, A, F, R>(&self, request: Q, method: F) -> Result<A, ClientError>
    where
        Q: Clone,
        F: Fn(Channel, Request<Q>) -> R,
        R: Future<Output = Result<Response<A>, Status>>,
    {
        let config = &self.shared.config;
        let end = Instant::now() + config.deadline;
        let mut backoff = Backoff::new();
        let mut failed_in_a_row = 0;
        let mut strangers_in_a_row = 0;
        loop {
            let (endpoint, channel) = self.preferred();
            let attempt = method(channel, self.request(request.clone(), config.attempt_timeout));
            let status = match tokio::time::timeout(config.attempt_timeout, attempt).await {
                Ok(Ok(answer)) => match self.recognise(&endpoint, answer.metadata()) {
                    Ok(()) => return Ok(answer.into_inner()),
                    Err(stranger) => stranger,
                },
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!(
                    "no answer within {} s",
                    config.attempt_timeout.as_secs()
                )),
            };
            tracing::debug!(%endpoint, why = error::status_words(&status), "call failed");
            let mut hinted = false;
            match advice(&status) {
                Advice::GiveUp => return Err(ClientError::refused(&status)),
                Advice::Ask(leader) => hinted = self.prefer(&endpoint, &leader)?,
                Advice::Retry => self.rotate(&endpoint),
            }
            strangers_in_a_row = if is_stranger(&status) { strangers_in_a_row + 1 } else { 0 };
            if let Some(cluster) = self.cluster()
                && strangers_in_a_row >= config.endpoints.len()
            {
                return Err(ClientError::OtherCluster {
                    cluster,
                    endpoint,
                    found: status.message().to_owned(),
                });
            }
            // Every member is asked once without waiting; so is a hint that leads somewhere new.
            failed_in_a_row += 1;
            let wait = if hinted || failed_in_a_row % config.endpoints.len() != 0 {
                Duration::ZERO
            } else {
                backoff.next_wait()
            };
            if Instant::now() + wait >= end {
                let last = format!("{endpoint}: {}", error::status_words(&status));
                return Err(ClientError::Unavailable { deadline: config.deadline, last });
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// A request as this process sends it.
    pub(crate) fn request<Q>(&self, message: Q, timeout: Duration) -> Request<Q> {
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        self.identify(&mut request);
        request
    }

    /// The cluster that this client is of, once it is known.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.lock().cluster
    }

    /// Checks that an answer comes from a member of this client's cluster; the first one to answer decides which that is.
    pub(crate) fn recognise(&self, endpoint: &str, answer: &MetadataMap) -> Result<(), Status> {
        let stated = answer.get(CLUSTER_ID_HEADER).and_then(|value| value.to_str().ok());
        // Without it: a member that is of no cluster yet, or older than the header.
        let found = stated.and_then(|value| wire::uuid::<ClusterId>(CLUSTER_ID_HEADER, value).ok());
        let Some(found) = found else { return Ok(()) };
        let expected = *self.lock().cluster.get_or_insert(found);
        if expected == found {
            return Ok(());
        }
        tracing::warn!(%endpoint, %found, %expected, "a member of another cluster answered; asking the others");
        Err(stranger(&format!("it is of cluster {found}")))
    }

    /// States who this process is, where TLS does not, and which cluster it means.
    pub(crate) fn identify<Q>(&self, request: &mut Request<Q>) {
        if let Some(cluster) = self.cluster()
            && let Ok(value) = MetadataValue::try_from(cluster.to_string())
        {
            request.metadata_mut().insert(CLUSTER_ID_HEADER, value);
        }
        if let Security::Plaintext(identity) = &self.shared.config.security
            && let Ok(value) = MetadataValue::try_from(identity.to_string())
        {
            request.metadata_mut().insert(ASSERTED_IDENTITY_HEADER, value);
        }
    }

    /// The member to ask next.
    pub(crate) fn preferred(&self) -> (String, Channel) {
        let state = self.lock();
        let channel = state.channels.get(&state.preferred).cloned();
        (
            state.preferred.clone(),
            channel.unwrap_or_else(|| unreachable!("the preferred member has a channel")),
        )
    }

    /// Prefers the configured member after this one, unless another call moved on already.
    pub(crate) fn rotate(&self, failed: &str) {
        let mut state = self.lock();
        if state.preferred != failed {
            return;
        }
        let endpoints = &self.shared.config.endpoints;
        let next = endpoints.iter().position(|endpoint| endpoint == failed).map_or(0, |at| at + 1);
        state.preferred = endpoints[next % endpoints.len()].clone();
    }

    /// Prefers the member that was hinted at; false if that is the one that just failed or cannot be used.
    fn prefer(&self, failed: &str, hinted: &str) -> Result<bool, ClientError> {
        if failed == hinted {
            self.rotate(failed);
            return Ok(false);
        }
        let mut state = self.lock();
        if !state.channels.contains_key(hinted) {
            if state.channels.len() >= CHANNELS_MAX {
                drop(state);
                self.rotate(failed);
                return Ok(false);
            }
            state.channels.insert(hinted.to_owned(), channel(hinted, &self.shared.config.security)?);
        }
        state.preferred = hinted.to_owned();
        Ok(true)
    }

    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn channel(endpoint: &str, security: &Security) -> Result<Channel, ClientError> {
    // A name is looked up, and then checked, when it is dialled.
    if let Ok(address) = endpoint.parse() {
        security.check_address(address)?;
    }
    let uri = format!("http://{endpoint}").parse::<tonic::codegen::http::Uri>();
    let uri = uri.map_err(|source| ClientError::Endpoint { endpoint: endpoint.to_owned(), source })?;
    let endpoint = Endpoint::from(uri)
        .connect_timeout(Duration::from_secs(2))
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .tcp_nodelay(true);
    Ok(endpoint.connect_with_connector_lazy(Connector::new(security.clone())))
}

pub(crate) fn control(channel: Channel) -> ControlPlaneClient<Channel> {
    ControlPlaneClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

pub(crate) fn membership(channel: Channel) -> MembershipClient<Channel> {
    MembershipClient::new(channel)
}

pub(crate) fn committed<W, T>(
    value: Option<W>,
    revision: u64,
    decode: impl Fn(W) -> Result<T, WireError>,
) -> Result<Committed<T>, ClientError> {
    let value = value.ok_or(WireError::Missing { field: "the object" })?;
    Ok(Committed { value: decode(value)?, revision: Revision(revision) })
}

/// Turns "not found" into `None`.
pub(crate) fn found<A>(answer: Result<A, ClientError>) -> Result<Option<A>, ClientError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
