//! The service `basalt.node.v1.NodeSession`: carries messages between daemons and the member; decides nothing.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use basalt_client::{status_words, wire::WireError};
use basalt_core::{NodeMessage, SessionId, SessionRefusal, ToNode};
use basalt_model::{BootId, MemberId};
use basalt_proto::node::{self as proto, control_message, node_message, node_session_server::NodeSession};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    driver::{Driver, Input},
    edge, errors,
    guard::Caller,
    node_wire,
};

/// Messages that wait for a slow daemon; at the limit its session ends, and it comes back for everything.
const QUEUE_MAX: usize = 64;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct NodeSessionService {
    driver: Driver,
}

impl NodeSessionService {
    pub(crate) fn new(driver: Driver) -> Self {
        Self { driver }
    }
}

#[tonic::async_trait]
impl NodeSession for NodeSessionService {
    type SessionStream = ReceiverStream<Result<proto::ControlMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::NodeMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (caller, stream) = edge::open(request)?;
        let node = caller.identity.name().to_owned();
        let session = self.driver.new_session();
        let (to_node, from_member) = mpsc::channel(QUEUE_MAX);
        self.driver.send(Input::SessionOpened { session, to_node }).map_err(errors::refused)?;
        let (out, outgoing) = mpsc::channel(QUEUE_MAX);
        let shared = Arc::new(Shared::default());
        let reader = Reader {
            driver: self.driver.clone(),
            session,
            caller,
            out: out.clone(),
            shared: Arc::clone(&shared),
            hello: None,
        };
        let writer = Writer { driver: self.driver.clone(), node, from_member, out, shared };
        tokio::spawn(async move {
            tokio::select! {
                () = reader.run(stream) => {}
                () = writer.run() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }
}

/// What both directions of a session know.
#[derive(Debug, Default)]
struct Shared {
    /// Of the last heartbeat that came.
    sequence: AtomicU64,
    /// The highest revision that the daemon said it has seen.
    revision: AtomicU64,
    /// The highest term that the daemon said it has seen.
    term: AtomicU64,
}

/// From the daemon to the member.
struct Reader {
    driver: Driver,
    session: SessionId,
    caller: Caller,
    out: mpsc::Sender<Result<proto::ControlMessage, Status>>,
    shared: Arc<Shared>,
    /// Version and boot id of the hello.
    hello: Option<(String, BootId)>,
}

/// The member learns that the session is over, however it ends.
impl Drop for Reader {
    fn drop(&mut self) {
        if self.driver.send(Input::SessionClosed(self.session)).is_err() {
            tracing::warn!(session = self.session.0, "the member does not learn that a session has ended");
        }
    }
}

impl Reader {
    async fn run(mut self, mut stream: Streaming<proto::NodeMessage>) {
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(status) => {
                    let why = status_words(&status);
                    tracing::debug!(node = self.caller.identity.name(), why, "a node's stream broke");
                    return;
                }
            };
            if let Err(status) = self.take(message) {
                let why = status.message();
                tracing::warn!(node = self.caller.identity.name(), why, "a node's session is ended");
                // The last word; the daemon may be gone.
                drop(self.out.send(Err(*status)).await);
                return;
            }
        }
    }

    fn take(&mut self, message: proto::NodeMessage) -> Result<(), Box<Status>> {
        self.shared.revision.fetch_max(message.revision, Ordering::Relaxed);
        self.shared.term.fetch_max(message.term, Ordering::Relaxed);
        let invalid = |error: WireError| Box::new(errors::invalid(&error));
        let body = message.body.ok_or_else(|| invalid(WireError::Missing { field: "body" }))?;
        let message = match body {
            node_message::Body::Hello(hello) => {
                if hello.node_name != self.caller.identity.name() {
                    return Err(self.other_identity(&hello.node_name));
                }
                let decoded = node_wire::decode_hello(&hello, message.revision).map_err(invalid)?;
                self.hello = Some((hello.software_version, decoded.boot));
                NodeMessage::Hello(decoded)
            }
            node_message::Body::Report(report) => {
                let (version, boot) =
                    self.hello.as_ref().ok_or_else(|| invalid(WireError::Missing { field: "hello" }))?;
                NodeMessage::Report(node_wire::decode_report(report, version, *boot).map_err(invalid)?)
            }
            node_message::Body::Heartbeat(heartbeat) => {
                self.shared.sequence.store(heartbeat.sequence, Ordering::Relaxed);
                NodeMessage::Heartbeat
            }
        };
        let input = Input::Node { session: self.session, message: Box::new(message) };
        self.driver.send(input).map_err(|refused| Box::new(errors::refused(refused)))
    }

    /// The certificate is for another node.
    fn other_identity(&self, claimed: &str) -> Box<Status> {
        let message = format!("{} says that it is node {claimed}", self.caller.identity);
        Box::new(errors::status(tonic::Code::PermissionDenied, basalt_proto::api::Reason::Forbidden, message))
    }
}

/// From the member to the daemon.
struct Writer {
    driver: Driver,
    /// The node's name, as its certificate says.
    node: String,
    from_member: mpsc::Receiver<ToNode>,
    out: mpsc::Sender<Result<proto::ControlMessage, Status>>,
    shared: Arc<Shared>,
}

impl Writer {
    /// Until the member says the last word, or drops the session, or the daemon stops listening.
    async fn run(mut self) {
        while let Some(message) = self.from_member.recv().await {
            let last = matches!(message, ToNode::Refused(_));
            let sent = self.out.send(Ok(self.encode(message))).await;
            if last || sent.is_err() {
                return;
            }
        }
    }

    fn encode(&self, message: ToNode) -> proto::ControlMessage {
        let current = self.driver.status().borrow().term;
        let (term, body) = match message {
            ToNode::Welcome(welcome) => {
                let millis =
                    |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
                let body = control_message::Body::Welcome(proto::Welcome {
                    cluster_id: welcome.cluster.to_string(),
                    version: welcome.version,
                    features: Vec::new(),
                    heartbeat_interval_ms: millis(welcome.heartbeat),
                    session_timeout_ms: millis(welcome.timeout),
                });
                (welcome.term, body)
            }
            ToNode::Refused(refusal) => {
                match &refusal {
                    // Daemons look for the leader this way.
                    SessionRefusal::NotLeader { .. } => {
                        tracing::debug!(node = self.node, "refused a daemon: {refusal}")
                    }
                    _ => tracing::warn!(node = self.node, "refused a daemon: {refusal}"),
                }
                let leader = match &refusal {
                    SessionRefusal::NotLeader { leader } => leader.and_then(|id| self.leader_address(id)),
                    _ => None,
                };
                // A refusal is believed whatever term it comes from: it ends the session and changes nothing else.
                let term = current.max(self.shared.term.load(Ordering::Relaxed));
                (term, control_message::Body::Refusal(node_wire::encode_refusal(&refusal, leader)))
            }
            ToNode::Desired { term, desired } => {
                self.shared.revision.fetch_max(desired.revision.0, Ordering::Relaxed);
                let body = control_message::Body::DesiredState(node_wire::encode_desired(&desired));
                // The revision of exactly this state, so that the daemon can refuse an old one.
                return proto::ControlMessage { term, revision: desired.revision.0, body: Some(body) };
            }
            ToNode::HeartbeatAck { term } => {
                let sequence = self.shared.sequence.load(Ordering::Relaxed);
                (term, control_message::Body::Heartbeat(proto::Heartbeat { sequence }))
            }
        };
        let revision = self.shared.revision.load(Ordering::Relaxed);
        proto::ControlMessage { term, revision, body: Some(body) }
    }

    fn leader_address(&self, leader: MemberId) -> Option<String> {
        self.driver.api_address(leader)
    }
}
