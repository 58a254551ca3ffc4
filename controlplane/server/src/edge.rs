//! What every service needs: the member's thread, and the way to the leader.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use basalt_client::wire::{self, WireError};
use basalt_core::{ClientRequest, Mutation, Read, ReadResult, Reply, RequestError};
use basalt_identity::{ASSERTED_IDENTITY_HEADER, Connector, FORWARDED_IDENTITY_HEADER, Identity, Security};
use basalt_model::{MemberId, Node, ObjectUid, RequestId, Revision, Snapshot, Volume};
use basalt_proto::{CLUSTER_ID_HEADER, api::MutationContext};
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::{
    driver::{About, Answer, Driver},
    errors,
    guard::Caller,
};

/// How long the leader has for a forwarded request.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(12);
/// Channels to other members that are kept; the oldest addresses go first.
const CHANNELS_MAX: usize = 32;

/// The member as the services see it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    pub(crate) driver: Driver,
    pub(crate) cluster_name: Arc<str>,
    security: Security,
    channels: Arc<Mutex<BTreeMap<String, Channel>>>,
}

/// What became of a change.
pub(crate) enum Changed {
    /// This member leads and did it.
    Here(Box<Done>),
    /// Send it to this channel, marked by [`Edge::forwarded`].
    AtLeader(Channel),
}

/// A change that is committed.
pub(crate) struct Done {
    pub(crate) revision: Revision,
    pub(crate) node: Option<Node>,
    pub(crate) volume: Option<Volume>,
    pub(crate) snapshot: Option<Snapshot>,
}

impl Edge {
    /// The edge of a running member.
    pub(crate) fn new(driver: Driver, cluster_name: &str, security: Security) -> Self {
        Self { driver, cluster_name: cluster_name.into(), security, channels: Arc::default() }
    }

    /// Carries out a change here, or says where.
    pub(crate) async fn change(
        &self,
        caller: &Caller,
        id: RequestId,
        mutation: Mutation,
        about: About,
    ) -> Result<Changed, Status> {
        let began = Instant::now();
        let answer = self.driver.ask(ClientRequest::Mutate { id, mutation }, about).await;
        let answer = answer.map_err(errors::refused)?;
        match answer.reply {
            Reply::Done { revision, .. } => {
                observe("change", "done", began);
                let Answer { node, volume, snapshot, .. } = answer;
                Ok(Changed::Here(Box::new(Done { revision, node, volume, snapshot })))
            }
            Reply::Failed(RequestError::NotLeader { leader }) => {
                observe("change", "forwarded", began);
                Ok(Changed::AtLeader(self.leader_channel(caller, leader)?))
            }
            Reply::Failed(error) => {
                observe("change", "failed", began);
                Err(errors::failed(&error, None))
            }
            Reply::Read { .. } | Reply::Watching { .. } | Reply::Transferring { .. } => Err(mismatch()),
        }
    }

    /// A linearizable read, by whichever member this is.
    pub(crate) async fn read(&self, read: Read) -> Result<(Revision, ReadResult), Status> {
        let began = Instant::now();
        let answer = self.driver.ask(ClientRequest::Read(read), About::Nothing).await;
        match answer.map_err(errors::refused)?.reply {
            Reply::Read { revision, result } => {
                observe("read", "done", began);
                Ok((revision, result))
            }
            Reply::Failed(error) => {
                observe("read", "failed", began);
                Err(errors::failed(&error, self.leader_hint(&error)))
            }
            Reply::Done { .. } | Reply::Watching { .. } | Reply::Transferring { .. } => Err(mismatch()),
        }
    }

    /// The channel to the leader. A request that was forwarded once is not forwarded again: its sender looks anew.
    pub(crate) fn leader_channel(
        &self,
        caller: &Caller,
        leader: Option<MemberId>,
    ) -> Result<Channel, Status> {
        let address = leader.and_then(|leader| self.driver.api_address(leader));
        match address {
            Some(address) if !caller.forwarded => self.channel(&address),
            address => Err(errors::no_leader("this member does not lead", address)),
        }
    }

    /// The request as this member sends it for the caller.
    pub(crate) fn forwarded<Q>(&self, caller: &Caller, message: Q) -> Result<Request<Q>, Status> {
        let header = |identity: &Identity| {
            MetadataValue::try_from(identity.to_string())
                .map_err(|_| Status::internal("an identity is not a header value"))
        };
        let mut request = Request::new(message);
        request.set_timeout(FORWARD_TIMEOUT);
        request.metadata_mut().insert(FORWARDED_IDENTITY_HEADER, header(&caller.identity)?);
        if let Some(cluster) = self.driver.status().borrow().cluster
            && let Ok(value) = MetadataValue::try_from(cluster.to_string())
        {
            request.metadata_mut().insert(CLUSTER_ID_HEADER, value);
        }
        if let Security::Plaintext(own) = &self.security {
            request.metadata_mut().insert(ASSERTED_IDENTITY_HEADER, header(own)?);
        }
        Ok(request)
    }

    fn leader_hint(&self, error: &RequestError) -> Option<String> {
        match error {
            RequestError::NotLeader { leader } => leader.and_then(|leader| self.driver.api_address(leader)),
            _ => None,
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, Status> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| errors::no_leader(format!("the leader's address {address}: {error}"), None))?
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true);
        let channel = endpoint.connect_with_connector_lazy(Connector::new(self.security.clone()));
        while channels.len() >= CHANNELS_MAX {
            channels.pop_first();
        }
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// The caller that the guard let in, and what they ask.
pub(crate) fn open<Q>(request: Request<Q>) -> Result<(Caller, Q), Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    let caller = caller.ok_or_else(|| Status::internal("the request came past the guard"))?;
    Ok((caller, request.into_inner()))
}

/// Request id and owner of a change.
pub(crate) fn context(context: Option<&MutationContext>) -> Result<(RequestId, Option<ObjectUid>), Status> {
    let context = context.ok_or_else(|| errors::invalid(&WireError::Missing { field: "context" }))?;
    let id = request_id("context.request_id", &context.request_id)?;
    let owner = wire::optional_name("context.owner_uid", &context.owner_uid);
    Ok((id, owner.map_err(|error| errors::invalid(&error))?))
}

/// A request id.
pub(crate) fn request_id(field: &'static str, id: &str) -> Result<RequestId, Status> {
    wire::name(field, id).map_err(|error| errors::invalid(&error))
}

/// The member answered another question than the one that was asked.
pub(crate) fn mismatch() -> Status {
    debug_assert!(false, "an answer fits its request");
    Status::internal("the member gave an answer of another kind")
}

fn observe(kind: &'static str, result: &'static str, began: Instant) {
    metrics::counter!("basalt_control_requests_total", "kind" => kind, "result" => result).increment(1);
    metrics::histogram!("basalt_control_request_seconds", "kind" => kind).record(began.elapsed());
}
