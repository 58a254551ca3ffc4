//! The session with the leader: dial, say hello, take desired states, give reports, keep the heart beating.
//!
//! Runs on tokio, never on a reactor. The agent makes a desired state durable before it acts on it; one that is older than
//! what this daemon has seen ends the session.

use std::future::pending;
use std::time::Duration;

use basalt_agent::{DesiredNode, NodeReport, Problem, Reason};
use basalt_identity::{Connector, Security};
use basalt_lvol::id::Revision;
use basalt_proto::node::control_message::Body as FromControl;
use basalt_proto::node::node_message::Body as FromNode;
use basalt_proto::node::node_session_client::NodeSessionClient;
use basalt_proto::node::{ControlMessage, Heartbeat, NodeHello, NodeMessage, RefusalReason, Welcome};
use basalt_proto::{NODE_PROTOCOL_VERSION_MAX, NODE_PROTOCOL_VERSION_MIN};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use super::convert::{self, ConvertError};
use super::store::{IdentityFile, StoreError};
use crate::cores::{CoresInUse, WantedCores};

/// Messages that wait for the stream: a heartbeat and a report or two; a full queue delays the next report.
const OUTGOING_MAX: usize = 16;
/// Desired states of a node with thousands of volumes fit; a longer message ends the session.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// Bounds on what a leader may ask for.
const HEARTBEAT_MIN: Duration = Duration::from_millis(50);
const SESSION_TIMEOUT_MIN: Duration = Duration::from_millis(500);

/// Who dials whom.
#[derive(Debug, Clone)]
pub(crate) struct SessionConfig {
    /// The node's name, as in the certificate.
    pub(crate) node_name: String,
    /// `host:port` of the control plane's members, any of them.
    pub(crate) endpoints: Vec<String>,
    /// Certificates.
    pub(crate) security: Security,
    /// The machine's run.
    pub(crate) boot_id: String,
    /// What reactors run on.
    pub(crate) cores: CoresInUse,
}

/// How the session stands, for readiness and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SessionState {
    /// No member was reached yet, or the session ended, for this reason.
    Disconnected(String),
    /// A leader has welcomed the daemon.
    Connected {
        /// `host:port` of the leader.
        leader: String,
    },
}

/// The ends that the rest of the daemon holds.
pub(crate) struct SessionEnds {
    /// The newest desired state that came; starts with the one that was saved.
    pub(crate) desired: watch::Sender<Option<DesiredNode>>,
    /// What is, to be reported; `None` before the first look.
    pub(crate) report: watch::Receiver<Option<NodeReport>>,
    /// How the session stands.
    pub(crate) state: watch::Sender<SessionState>,
}

impl SessionEnds {
    /// The revision of the newest desired state that came.
    fn seen(&self) -> Revision {
        self.desired.borrow().as_ref().map_or_else(Revision::default, |desired| desired.revision)
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionEnd {
    #[error("cannot reach {endpoint}: {}", cause(source))]
    Dial { endpoint: String, source: tonic::transport::Error },
    #[error("{endpoint} is not a valid address: {}", cause(source))]
    Address { endpoint: String, source: tonic::transport::Error },
    #[error("{endpoint} broke the session off: {}", status_words(source))]
    Broken { endpoint: String, source: Box<tonic::Status> },
    #[error("{endpoint} closed the session")]
    Closed { endpoint: String },
    #[error("{endpoint} was silent for {after_ms} ms")]
    Silent { endpoint: String, after_ms: u128 },
    #[error("{endpoint} did not keep to the protocol: {what}")]
    Protocol { endpoint: String, what: &'static str },
    #[error("{endpoint} does not lead")]
    NotLeader { endpoint: String, leader: Option<String> },
    #[error("the control plane refused this daemon: {message}{remedy}")]
    Refused { message: String, remedy: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{endpoint} sent a desired state that makes no sense: {source}")]
    Desired { endpoint: String, source: ConvertError },
    #[error(
        "the control plane sent revision {sent} and is behind {seen}, which this daemon has seen; it may have been restored \
         from an old copy"
    )]
    Behind { sent: Revision, seen: Revision },
}

/// What lies at the bottom of a transport's error: its layers say nothing to people.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(deeper) = deepest.source() {
        deepest = deeper;
    }
    deepest.to_string()
}

/// What a status says to people: the member's own words, or why the transport failed.
fn status_words(status: &tonic::Status) -> String {
    match std::error::Error::source(status) {
        Some(source) => cause(source),
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

/// What a person can do about a refusal whose message does not say it.
fn remedy(reason: RefusalReason) -> &'static str {
    match reason {
        RefusalReason::RevisionAhead => {
            "; it may have been restored from an old copy: nothing is changed here until it has caught up or was recovered"
        }
        RefusalReason::OtherCluster => {
            "; check --control, or give this daemon an empty --data-dir of its own"
        }
        _ => "",
    }
}

/// Keeps a session open for as long as the future is polled.
pub(crate) async fn run(config: SessionConfig, mut store: IdentityFile, mut ends: SessionEnds) {
    let mut next = 0;
    let mut hint: Option<String> = None;
    let mut backoff = BACKOFF_MIN;
    let mut told = None;
    loop {
        let hinted = hint.is_some();
        let endpoint = hint.take().unwrap_or_else(|| {
            next = (next + 1) % config.endpoints.len();
            config.endpoints[next].clone()
        });
        let began = Instant::now();
        let end = match session(&config, &endpoint, &mut store, &mut ends).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        if began.elapsed() > BACKOFF_MAX {
            backoff = BACKOFF_MIN;
            told = None;
        }
        if let SessionEnd::NotLeader { leader: Some(leader), .. } = &end
            && !hinted
        {
            tracing::debug!(%endpoint, %leader, "was sent to the leader");
            hint = Some(leader.clone());
            continue;
        }
        // Once for each kind of reason: the daemon tries again for as long as it takes.
        let (kind, reason) = (std::mem::discriminant(&end), end.to_string());
        if told.replace(kind) == Some(kind) {
            tracing::debug!(%reason, "still no session with the control plane");
        } else {
            tracing::warn!(%reason, "no session with the control plane");
        }
        ends.state.send_replace(SessionState::Disconnected(reason));
        sleep(jittered(backoff)).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Between half and all of it, so that daemons do not dial in step.
fn jittered(backoff: Duration) -> Duration {
    let share = u32::from(uuid::Uuid::new_v4().as_bytes()[0]);
    backoff / 2 + backoff / 2 * share / 255
}

enum Never {}

async fn session(
    config: &SessionConfig,
    endpoint: &str,
    store: &mut IdentityFile,
    ends: &mut SessionEnds,
) -> Result<Never, SessionEnd> {
    let named = || endpoint.to_owned();
    let dialled = Endpoint::from_shared(format!("http://{endpoint}"))
        .map_err(|source| SessionEnd::Address { endpoint: named(), source })?
        .connect_timeout(DIAL_TIMEOUT);
    let connector = Connector::new(config.security.clone());
    let channel = timeout(DIAL_TIMEOUT, dialled.connect_with_connector(connector))
        .await
        .map_err(|_| SessionEnd::Silent { endpoint: named(), after_ms: DIAL_TIMEOUT.as_millis() })?
        .map_err(|source| SessionEnd::Dial { endpoint: named(), source })?;
    let (outgoing, to_send) = mpsc::channel(OUTGOING_MAX);
    let mut stream = Stream {
        node_name: config.node_name.clone(),
        endpoint: named(),
        cores: config.cores.clone(),
        not_kept: None,
        outgoing,
        incoming: None,
        sequence: 0,
        term: 0,
    };
    stream.send(ends, FromNode::Hello(hello(config, store))).await?;
    let mut client = NodeSessionClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let mut request = tonic::Request::new(ReceiverStream::new(to_send));
    if let Security::Plaintext(identity) = &config.security {
        let value = identity.to_string().parse().map_err(|_| SessionEnd::Protocol {
            endpoint: named(),
            what: "the identity cannot be a header",
        })?;
        request.metadata_mut().insert(basalt_identity::ASSERTED_IDENTITY_HEADER, value);
    }
    let opened = timeout(WELCOME_TIMEOUT, client.session(request))
        .await
        .map_err(|_| SessionEnd::Silent { endpoint: named(), after_ms: WELCOME_TIMEOUT.as_millis() })?
        .map_err(|source| SessionEnd::Broken { endpoint: named(), source: Box::new(source) })?;
    stream.incoming = Some(opened.into_inner());
    let welcome = stream.welcome(store).await?;
    if store.cluster_id().is_none() {
        store.bind_cluster(&welcome.cluster_id)?;
    }
    tracing::info!(leader = endpoint, cluster = welcome.cluster_id, "joined the control plane");
    ends.state.send_replace(SessionState::Connected { leader: named() });
    stream.converse(&welcome, store, ends).await
}

fn hello(config: &SessionConfig, store: &IdentityFile) -> NodeHello {
    NodeHello {
        node_name: config.node_name.clone(),
        cluster_id: store.cluster_id().unwrap_or_default().to_owned(),
        version_min: NODE_PROTOCOL_VERSION_MIN,
        version_max: NODE_PROTOCOL_VERSION_MAX,
        features: Vec::new(),
        instance_id: store.instance_id().to_string(),
        boot_id: config.boot_id.clone(),
        software_version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

struct Stream {
    node_name: String,
    endpoint: String,
    cores: CoresInUse,
    /// The cores that are wanted, while they could not be remembered, and why.
    not_kept: Option<(WantedCores, String)>,
    outgoing: mpsc::Sender<NodeMessage>,
    incoming: Option<tonic::Streaming<ControlMessage>>,
    sequence: u64,
    /// The highest term of this session.
    term: u64,
}

impl Stream {
    async fn send(&self, ends: &SessionEnds, body: FromNode) -> Result<(), SessionEnd> {
        let message = NodeMessage { term: self.term, revision: ends.seen().index, body: Some(body) };
        self.outgoing.send(message).await.map_err(|_| SessionEnd::Closed { endpoint: self.endpoint.clone() })
    }

    async fn receive(&mut self) -> Result<ControlMessage, SessionEnd> {
        let Some(incoming) = &mut self.incoming else { return pending().await };
        match incoming.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(SessionEnd::Closed { endpoint: self.endpoint.clone() }),
            Err(source) => {
                Err(SessionEnd::Broken { endpoint: self.endpoint.clone(), source: Box::new(source) })
            }
        }
    }

    fn protocol(&self, what: &'static str) -> SessionEnd {
        SessionEnd::Protocol { endpoint: self.endpoint.clone(), what }
    }

    async fn welcome(&mut self, store: &IdentityFile) -> Result<Welcome, SessionEnd> {
        let message = timeout(WELCOME_TIMEOUT, self.receive()).await.map_err(|_| SessionEnd::Silent {
            endpoint: self.endpoint.clone(),
            after_ms: WELCOME_TIMEOUT.as_millis(),
        })??;
        match message.body {
            Some(FromControl::Welcome(welcome)) => {
                if store.cluster_id().is_some_and(|bound| bound != welcome.cluster_id) {
                    return Err(self.protocol("it welcomed a daemon of another cluster"));
                }
                Ok(welcome)
            }
            Some(FromControl::Refusal(refusal)) => match refusal.reason() {
                RefusalReason::NotLeader => {
                    let leader = Some(refusal.leader_address).filter(|address| !address.is_empty());
                    Err(SessionEnd::NotLeader { endpoint: self.endpoint.clone(), leader })
                }
                reason => Err(SessionEnd::Refused { remedy: remedy(reason), message: refusal.message }),
            },
            _ => Err(self.protocol("neither welcome nor refusal came first")),
        }
    }

    /// Until the session ends.
    async fn converse(
        &mut self,
        welcome: &Welcome,
        store: &mut IdentityFile,
        ends: &mut SessionEnds,
    ) -> Result<Never, SessionEnd> {
        let patience = Duration::from_millis(welcome.session_timeout_ms).max(SESSION_TIMEOUT_MIN);
        let mut beats = interval(Duration::from_millis(welcome.heartbeat_interval_ms).max(HEARTBEAT_MIN));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent_at = Instant::now() + patience;
        // The new leader knows nothing of what is here: it gets the whole report first.
        ends.report.mark_changed();
        loop {
            tokio::select! {
                message = self.receive() => {
                    self.take(message?, store, ends)?;
                    silent_at = Instant::now() + patience;
                }
                _ = beats.tick() => {
                    self.sequence += 1;
                    self.send(ends, FromNode::Heartbeat(Heartbeat { sequence: self.sequence })).await?;
                    if let Some((cores, _)) = self.not_kept.clone() {
                        self.keep_cores(cores, store, ends);
                    }
                }
                changed = ends.report.changed() => {
                    if changed.is_err() {
                        pending::<()>().await;
                    }
                    let report = ends.report.borrow_and_update().clone();
                    if let Some(report) = report {
                        self.send(ends, FromNode::Report(convert::report(&self.node_name, &report, &self.problems(store)))).await?;
                    }
                }
                () = tokio::time::sleep_until(silent_at) => {
                    return Err(SessionEnd::Silent {
                        endpoint: self.endpoint.clone(),
                        after_ms: patience.as_millis(),
                    });
                }
            }
        }
    }

    fn want_cores(&mut self, cores: WantedCores, store: &mut IdentityFile, ends: &mut SessionEnds) {
        if store.cores() != Some(&cores) {
            tracing::info!(%cores, "other cores are wanted; they take effect at the next start");
            self.keep_cores(cores, store, ends);
        } else if self.not_kept.take().is_some() {
            ends.report.mark_changed();
        }
    }

    /// Remembers the cores for the next start. Where that fails, everything else goes on; it is told and tried again.
    fn keep_cores(&mut self, cores: WantedCores, store: &mut IdentityFile, ends: &mut SessionEnds) {
        let before = self.problems(store);
        self.not_kept = store.set_cores(cores.clone()).err().map(|error| (cores, error.to_string()));
        if self.problems(store) != before {
            ends.report.mark_changed();
        }
    }

    /// What is wrong that the agent does not know of.
    fn problems(&self, store: &IdentityFile) -> Vec<Problem> {
        let not_kept = self.not_kept.as_ref().map(|(cores, error)| {
            let message = format!(
                "the wish for {cores} cannot be kept for the daemon's next start: {error}; make room in its data directory, or mend \
                 it: it is tried again"
            );
            Problem::new(Reason::StateNotKept, message)
        });
        not_kept.into_iter().chain(self.cores.problem(store.cores())).collect()
    }

    fn take(
        &mut self,
        message: ControlMessage,
        store: &mut IdentityFile,
        ends: &mut SessionEnds,
    ) -> Result<(), SessionEnd> {
        if message.term < self.term {
            return Err(self.protocol("its term went back"));
        }
        self.term = message.term;
        match message.body {
            Some(FromControl::DesiredState(state)) => {
                if store.cluster_id().is_some_and(|bound| bound != state.cluster_id) {
                    return Err(self.protocol("a desired state of another cluster came"));
                }
                tracing::info!(
                    revision = message.revision,
                    volumes = state.volumes.len(),
                    "new desired state"
                );
                let cores = convert::cores(&state)
                    .map_err(|source| SessionEnd::Desired { endpoint: self.endpoint.clone(), source })?;
                if let Some(cores) = cores {
                    self.want_cores(cores, store, ends);
                }
                let desired = convert::desired(&state, message.revision)
                    .map_err(|source| SessionEnd::Desired { endpoint: self.endpoint.clone(), source })?;
                let (sent, seen) = (desired.revision, ends.seen());
                if sent < seen {
                    return Err(SessionEnd::Behind { sent, seen });
                }
                ends.desired.send_replace(Some(desired));
                Ok(())
            }
            Some(FromControl::Heartbeat(_)) => Ok(()),
            Some(FromControl::Refusal(refusal)) => {
                Err(SessionEnd::Refused { remedy: remedy(refusal.reason()), message: refusal.message })
            }
            Some(FromControl::Welcome(_)) => Err(self.protocol("a second welcome")),
            None => Err(self.protocol("an empty message")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_member_that_is_not_there_is_told_by_its_cause() {
        // A port that was free a moment ago.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        drop(listener);
        let identity = basalt_identity::Identity::new("c", basalt_identity::Role::Node, "n").unwrap();
        let dialled = Endpoint::from_shared(format!("http://{endpoint}")).unwrap();
        let connector = Connector::new(Security::Plaintext(identity));
        let source = dialled.connect_with_connector(connector).await.unwrap_err();
        let said = SessionEnd::Dial { endpoint: endpoint.clone(), source }.to_string();
        assert!(said.contains("refused") && !said.contains("transport error"), "{said}");
    }

    #[test]
    fn refusals_are_words() {
        let refused = |reason| SessionEnd::Refused { message: "so it is".into(), remedy: remedy(reason) };
        let said = refused(RefusalReason::RevisionAhead).to_string();
        assert!(said.starts_with("the control plane refused this daemon: so it is;"), "{said}");
        let said = refused(RefusalReason::DuplicateIdentity).to_string();
        assert_eq!(said, "the control plane refused this daemon: so it is");
        let status = tonic::Status::unavailable("the member stops");
        assert_eq!(status_words(&status), "the member stops");
    }
}
