//! The way to the other members and from them: one stream per direction, bounded queues, reconnection with back-off.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{SyncSender, TrySendError},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use basalt_client::{root_cause, status_words};
use basalt_identity::{ASSERTED_IDENTITY_HEADER, Connector, Security};
use basalt_model::MemberId;
use basalt_proto::{
    api::Reason,
    peer::{self as proto, peer_client::PeerClient, peer_server::Peer},
};
use basalt_raft::{PeerBody, PeerMessage};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::{
    driver::{AddressBook, Driver, Input},
    edge, errors, peer_wire,
};

/// Messages that wait for one member; more are dropped, which raft repairs by itself.
const QUEUE_MAX: usize = 1_024;
/// Members that get a queue; the model's limit on members keeps it far lower.
const PEERS_MAX: usize = 64;
/// Largest message that is taken: raft bounds its appends well below, snapshots come in parts.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long a connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bounds of the pause between tries.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// The streams that other members have opened to this one: the way to refuse a member whose address is not known (any more).
/// One entry per member that ever connected, of which there are few.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inbound {
    streams: Arc<Mutex<BTreeMap<MemberId, watch::Sender<Option<proto::PeerMessage>>>>>,
}

impl Inbound {
    /// Ends the streams of a member with this refusal.
    fn refuse(&self, message: &PeerMessage) {
        if let Some(stream) = self.lock().get(&message.to) {
            stream.send_replace(Some(peer_wire::encode(message.clone())));
        }
    }

    /// What will be said to the streams of a member from now on.
    fn follow(&self, member: MemberId) -> watch::Receiver<Option<proto::PeerMessage>> {
        let mut refusals = self.lock().entry(member).or_insert_with(|| watch::channel(None).0).subscribe();
        refusals.mark_unchanged();
        refusals
    }

    /// Held only to look something up.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<MemberId, watch::Sender<Option<proto::PeerMessage>>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends messages to other members. Lives on the member's thread.
pub(crate) struct Peers {
    runtime: Handle,
    addresses: Arc<ArcSwap<AddressBook>>,
    security: Security,
    inbound: Inbound,
    /// Where what other members answer goes.
    inputs: SyncSender<Input>,
    queues: BTreeMap<MemberId, mpsc::Sender<proto::PeerMessage>>,
}

impl Peers {
    pub(crate) fn new(
        runtime: Handle,
        addresses: Arc<ArcSwap<AddressBook>>,
        security: Security,
        inbound: Inbound,
        inputs: SyncSender<Input>,
    ) -> Self {
        Self { runtime, addresses, security, inbound, inputs, queues: BTreeMap::new() }
    }

    /// Queues a message; drops it when the queue is full.
    pub(crate) fn send(&mut self, message: PeerMessage) {
        let to = message.to;
        // Whoever is refused for good may be reached no other way: where it was is forgotten with it.
        let known = self.addresses.load().contains_key(&to);
        if let PeerBody::Refused(refusal) = message.body
            && (refusal.is_final() || !known)
        {
            self.inbound.refuse(&message);
        }
        if !self.queues.contains_key(&to) {
            if self.queues.len() >= PEERS_MAX {
                metrics::counter!("basalt_control_peer_messages_dropped_total").increment(1);
                return;
            }
            let (queue, messages) = mpsc::channel(QUEUE_MAX);
            let link = Link {
                to,
                messages,
                addresses: Arc::clone(&self.addresses),
                security: self.security.clone(),
                inputs: self.inputs.clone(),
                away: false,
            };
            self.runtime.spawn(link.run());
            self.queues.insert(to, queue);
        }
        let sent =
            self.queues.get(&to).is_some_and(|queue| queue.try_send(peer_wire::encode(message)).is_ok());
        let counter = if sent {
            metrics::counter!("basalt_control_peer_messages_sent_total")
        } else {
            metrics::counter!("basalt_control_peer_messages_dropped_total")
        };
        counter.increment(1);
    }
}

/// The stream to one member.
struct Link {
    to: MemberId,
    messages: mpsc::Receiver<proto::PeerMessage>,
    addresses: Arc<ArcSwap<AddressBook>>,
    security: Security,
    inputs: SyncSender<Input>,
    /// Whether it was said that the member cannot be reached.
    away: bool,
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    #[error("its address is not known")]
    NoAddress,
    #[error("its address has changed")]
    Moved,
    #[error("it cannot be reached: {}", root_cause(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("it did not answer in time")]
    Timeout,
    #[error("it broke the stream off: {}", status_words(.0.as_ref()))]
    Broken(#[from] Box<Status>),
    #[error("it refuses this member")]
    Refused(Box<proto::PeerMessage>),
    #[error("this member stops")]
    Stopping,
}

impl Link {
    async fn run(mut self) {
        let mut backoff = BACKOFF.0;
        loop {
            // Nothing is connected before there is something to say.
            let Some(first) = self.messages.recv().await else { return };
            let began = tokio::time::Instant::now();
            let end = match self.stream(first).await {
                Ok(never) => match never {},
                Err(LinkEnd::Stopping) => return,
                Err(end) => end,
            };
            self.report(&end);
            if let LinkEnd::Refused(refusal) = end
                && !self.take_refusal(*refusal)
            {
                return;
            }
            metrics::counter!("basalt_control_peer_streams_ended_total").increment(1);
            if began.elapsed() > BACKOFF.1 {
                backoff = BACKOFF.0;
            }
            tokio::time::sleep(jittered(backoff)).await;
            backoff = (backoff * 2).min(BACKOFF.1);
            // What was said to a member that was not there is of no use to it any more.
            while self.messages.try_recv().is_ok() {
                metrics::counter!("basalt_control_peer_messages_dropped_total").increment(1);
            }
        }
    }

    /// Hands a refusal to the member, as if it had come on the other's own stream. False when the member has stopped.
    fn take_refusal(&self, refusal: proto::PeerMessage) -> bool {
        match peer_wire::decode(refusal) {
            Ok(message) if message.from == self.to => {
                let given = self.inputs.try_send(Input::Peer(Box::new(message)));
                !matches!(given, Err(TrySendError::Disconnected(_)))
            }
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(member = %self.to, %error, "a refusal that is not understood");
                true
            }
        }
    }

    /// Says once that a member went away, and not at every try.
    fn report(&mut self, end: &LinkEnd) {
        let lost = matches!(end, LinkEnd::Connect(_) | LinkEnd::Timeout | LinkEnd::Broken(_));
        if lost && !std::mem::replace(&mut self.away, true) {
            let address = self.address().unwrap_or_default();
            tracing::warn!(member = %self.to, address, %end, "a member cannot be reached; will try again");
        } else {
            tracing::debug!(member = %self.to, %end, "a stream to a member ended");
        }
    }

    async fn stream(&mut self, first: proto::PeerMessage) -> Result<std::convert::Infallible, LinkEnd> {
        let address = self.address().ok_or(LinkEnd::NoAddress)?;
        let channel = self.connect(&address).await?;
        if std::mem::replace(&mut self.away, false) {
            tracing::info!(member = %self.to, %address, "a member can be reached again");
        }
        let (out, outgoing) = mpsc::channel(1);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        if let Security::Plaintext(identity) = &self.security
            && let Ok(value) = MetadataValue::try_from(identity.to_string())
        {
            request.metadata_mut().insert(ASSERTED_IDENTITY_HEADER, value);
        }
        let mut client = PeerClient::new(channel);
        let mut ended = std::pin::pin!(client.send(request));
        let mut next = Some(first);
        loop {
            let Some(message) = next.take() else {
                tokio::select! {
                    answer = &mut ended => return Err(over(answer)),
                    message = self.messages.recv() => next = Some(message.ok_or(LinkEnd::Stopping)?),
                }
                continue;
            };
            tokio::select! {
                answer = &mut ended => return Err(over(answer)),
                sent = out.send(message) => if sent.is_err() {
                    return Err(over((&mut ended).await));
                },
            }
            if self.address().as_ref() != Some(&address) {
                return Err(LinkEnd::Moved);
            }
        }
    }

    async fn connect(&self, address: &str) -> Result<Channel, LinkEnd> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(2));
        let connecting = endpoint.connect_with_connector(Connector::new(self.security.clone()));
        Ok(timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| LinkEnd::Timeout)??)
    }

    fn address(&self) -> Option<String> {
        self.addresses.load().get(&self.to).map(|addresses| addresses.peer.clone())
    }
}

/// Why the stream is over, from the receiver's only answer.
fn over(answer: Result<Response<proto::SendResponse>, Status>) -> LinkEnd {
    match answer.map(Response::into_inner) {
        Ok(proto::SendResponse { refusal: Some(refusal), .. }) => LinkEnd::Refused(Box::new(refusal)),
        Ok(_) => LinkEnd::Broken(Box::new(Status::unavailable("the stream was closed"))),
        Err(status) => LinkEnd::Broken(Box::new(status)),
    }
}

/// Between half and all of it, so that members do not dial in step.
fn jittered(backoff: Duration) -> Duration {
    let share = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    backoff / 2 + backoff / 2 * share / 255
}

/// The service `basalt.peer.v1.Peer`.
#[derive(Debug, Clone)]
pub(crate) struct PeerService {
    driver: Driver,
    inbound: Inbound,
}

impl PeerService {
    pub(crate) fn new(driver: Driver, inbound: Inbound) -> Self {
        Self { driver, inbound }
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn send(
        &self,
        request: Request<Streaming<proto::PeerMessage>>,
    ) -> Result<Response<proto::SendResponse>, Status> {
        let (caller, mut stream) = edge::open(request)?;
        let mut received = 0;
        // A caller whose name is no member id sends nothing that is taken.
        let member = caller.identity.name().parse().ok().and_then(MemberId::new);
        let mut refusals = member.map(|member| self.inbound.follow(member));
        loop {
            let message = tokio::select! {
                message = stream.message() => message?,
                refusal = next_refusal(&mut refusals) => {
                    return Ok(Response::new(proto::SendResponse { received, refusal: Some(refusal) }));
                }
            };
            let Some(message) = message else { break };
            let message = peer_wire::decode(message).map_err(|error| errors::invalid(&error))?;
            if message.from.to_string() != caller.identity.name() {
                let text = format!("{} sends in the name of member {}", caller.identity, message.from);
                return Err(errors::status(Code::PermissionDenied, Reason::Forbidden, text));
            }
            received += 1;
            metrics::counter!("basalt_control_peer_messages_received_total").increment(1);
            match self.driver.send(Input::Peer(Box::new(message))) {
                Ok(()) | Err(crate::driver::Refused::Full) => {}
                Err(stopped) => return Err(errors::refused(stopped)),
            }
        }
        Ok(Response::new(proto::SendResponse { received, refusal: None }))
    }
}

/// The next refusal of the sender of a stream, if there ever is one.
async fn next_refusal(
    refusals: &mut Option<watch::Receiver<Option<proto::PeerMessage>>>,
) -> proto::PeerMessage {
    if let Some(refusals) = refusals {
        while refusals.changed().await.is_ok() {
            let refusal = refusals.borrow_and_update().clone();
            if let Some(refusal) = refusal {
                return refusal;
            }
        }
    }
    std::future::pending().await
}
