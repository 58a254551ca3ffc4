//! The thread that owns the member: inputs from bounded queues in, outputs to bounded queues out.
//!
//! The member is synchronous and waits for its disk, so it has a thread of its own. What comes in while it syncs is taken
//! together in the next turn: one sync serves many requests.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use basalt_clock::Instant;
use basalt_core::{
    ClientRequest, Event, EventKind, Fatal, Member, NodeMessage, Now, Outputs, Reply, ReplyTo, SessionId,
    Status, ToNode,
};
use basalt_model::{MemberId, Node, NodeName, Receipt, Snapshot, State, Timestamp, Volume};
use basalt_raft::{DirectoryDisk, PeerMessage};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::{config::Addresses, peers::Peers};

/// Inputs that wait for the thread. At the limit clients are told that the member is overloaded, and peer messages are
/// dropped, which raft expects of a network.
const INPUTS_MAX: usize = 8_192;
/// Inputs taken in one turn, so that the clock is looked at and outputs go out.
const TURN_INPUTS_MAX: usize = 2_048;
/// Turns with events that wait for a slow watcher; one that falls behind further goes on from the member's history.
const EVENT_TURNS_MAX: usize = 4_096;

/// What happened in one turn. A revision is never spread over two of them.
pub(crate) type Happened = Arc<[Event]>;

/// Where the members are reached, by what is known now.
pub(crate) type AddressBook = BTreeMap<MemberId, Addresses>;

/// Looks at the member from its own thread.
type Inspection = Box<dyn FnOnce(&State, &Status) + Send>;

/// What the thread takes in.
pub(crate) enum Input {
    Peer(Box<PeerMessage>),
    Request { request: Box<ClientRequest>, about: About, reply: oneshot::Sender<Answer> },
    SessionOpened { session: SessionId, to_node: mpsc::Sender<ToNode> },
    Node { session: SessionId, message: Box<NodeMessage> },
    SessionClosed(SessionId),
    Inspect(Inspection),
    Stop,
}

/// The object that an answer shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum About {
    Nothing,
    Node(NodeName),
    /// The one that the receipt names.
    Volume,
    /// The one that the receipt names.
    Snapshot,
}

/// A reply, with the object that the request was about as it is after the request.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    pub(crate) node: Option<Node>,
    pub(crate) volume: Option<Volume>,
    pub(crate) snapshot: Option<Snapshot>,
}

/// The thread does not take the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("the member has too much to do; try again later")]
    Full,
    #[error("the member has stopped")]
    Stopped,
}

/// The other side of the thread's queues. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    inputs: SyncSender<Input>,
    status: watch::Receiver<Status>,
    events: broadcast::Sender<Happened>,
    addresses: Arc<ArcSwap<AddressBook>>,
    sessions: Arc<AtomicU64>,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Input::Peer(_) => "Peer",
            Input::Request { .. } => "Request",
            Input::SessionOpened { .. } => "SessionOpened",
            Input::Node { .. } => "Node",
            Input::SessionClosed(_) => "SessionClosed",
            Input::Inspect(_) => "Inspect",
            Input::Stop => "Stop",
        })
    }
}

impl Driver {
    /// Queues an input.
    pub(crate) fn send(&self, input: Input) -> Result<(), Refused> {
        self.inputs.try_send(input).map_err(|error| match error {
            TrySendError::Full(_) => {
                metrics::counter!("basalt_control_inputs_refused_total").increment(1);
                Refused::Full
            }
            TrySendError::Disconnected(_) => Refused::Stopped,
        })
    }

    /// Asks the member and waits for its answer; it answers every request, if only that it timed out.
    pub(crate) async fn ask(&self, request: ClientRequest, about: About) -> Result<Answer, Refused> {
        let (reply, answered) = oneshot::channel();
        self.send(Input::Request { request: Box::new(request), about, reply })?;
        answered.await.map_err(|_| Refused::Stopped)
    }

    /// Looks at the state from the member's thread.
    pub(crate) async fn inspect<T: Send + 'static>(
        &self,
        look: impl FnOnce(&State, &Status) -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let (found, seen) = oneshot::channel();
        self.send(Input::Inspect(Box::new(move |state, status| {
            // Nobody waits any more when the asker was cancelled.
            drop(found.send(look(state, status)));
        })))?;
        seen.await.map_err(|_| Refused::Stopped)
    }

    /// What the member is, as of its last change of role, term or leader.
    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Everything that happens from now on.
    pub(crate) fn events(&self) -> broadcast::Receiver<Happened> {
        self.events.subscribe()
    }

    /// Where a member is reached by clients, if that is known.
    pub(crate) fn api_address(&self, member: MemberId) -> Option<String> {
        let addresses = self.addresses.load();
        addresses.get(&member).map(|known| known.api.clone()).filter(|api| !api.is_empty())
    }

    /// A number for a new session.
    pub(crate) fn new_session(&self) -> SessionId {
        SessionId(self.sessions.fetch_add(1, Ordering::Relaxed))
    }
}

/// The thread's own things.
struct Turning {
    member: Member<DirectoryDisk>,
    inputs: Receiver<Input>,
    clock: Clock,
    tick: Duration,
    peers: Peers,
    status: watch::Sender<Status>,
    events: broadcast::Sender<Happened>,
    addresses: Arc<ArcSwap<AddressBook>>,
    configured: AddressBook,
    next_reply: u64,
    waiting: BTreeMap<ReplyTo, (About, oneshot::Sender<Answer>)>,
    sessions: BTreeMap<SessionId, mpsc::Sender<ToNode>>,
}

/// Starts the thread. The receiver resolves when it ends: with an error when the member cannot go on.
pub(crate) fn start(
    member: Member<DirectoryDisk>,
    clock: Clock,
    tick: Duration,
    configured: AddressBook,
    peers: impl FnOnce(Arc<ArcSwap<AddressBook>>, SyncSender<Input>) -> Peers,
) -> std::io::Result<(Driver, oneshot::Receiver<Result<(), Fatal>>)> {
    let (inputs_in, inputs) = sync_channel(INPUTS_MAX);
    let (status, status_out) = watch::channel(member.status());
    let (events, _) = broadcast::channel(EVENT_TURNS_MAX);
    let addresses = Arc::new(ArcSwap::from_pointee(configured.clone()));
    let driver = Driver {
        inputs: inputs_in,
        status: status_out,
        events: events.clone(),
        addresses: Arc::clone(&addresses),
        sessions: Arc::new(AtomicU64::new(1)),
    };
    let peers = peers(Arc::clone(&addresses), driver.inputs.clone());
    let turning = Turning {
        member,
        inputs,
        clock,
        tick,
        peers,
        status,
        events,
        addresses,
        configured,
        next_reply: 0,
        waiting: BTreeMap::new(),
        sessions: BTreeMap::new(),
    };
    let (ended, end) = oneshot::channel();
    thread::Builder::new().name("member".to_owned()).spawn(move || {
        let result = turning.run();
        // Nobody listens any more when the process is ending anyway.
        drop(ended.send(result));
    })?;
    Ok((driver, end))
}

impl Turning {
    fn run(mut self) -> Result<(), Fatal> {
        self.note_addresses();
        loop {
            let first = match self.inputs.recv_timeout(self.tick) {
                Ok(input) => Some(input),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            let began = std::time::Instant::now();
            self.member.tick(self.clock.now());
            let mut next = first;
            let mut taken = 0;
            while let Some(input) = next {
                if matches!(input, Input::Stop) {
                    return Ok(());
                }
                self.take(input);
                taken += 1;
                next = if taken < TURN_INPUTS_MAX { self.inputs.try_recv().ok() } else { None };
            }
            let outputs = self.member.take_outputs()?;
            self.hand_out(outputs);
            if taken > 0 {
                metrics::histogram!("basalt_control_turn_seconds").record(began.elapsed());
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Peer(message) => self.member.peer_message(*message),
            Input::Request { request, about, reply } => {
                let reply_to = ReplyTo(self.next_reply);
                self.next_reply += 1;
                self.waiting.insert(reply_to, (about, reply));
                self.member.request(*request, reply_to);
            }
            Input::SessionOpened { session, to_node } => {
                self.sessions.insert(session, to_node);
            }
            Input::Node { session, message } => {
                if self.sessions.contains_key(&session) {
                    self.member.node_message(session, *message);
                }
            }
            Input::SessionClosed(session) => {
                if self.sessions.remove(&session).is_some() {
                    self.member.node_closed(session);
                }
            }
            Input::Inspect(look) => look(self.member.state(), &self.member.status()),
            Input::Stop => unreachable!("the turn ends at once"),
        }
    }

    fn hand_out(&mut self, outputs: Outputs) {
        for message in outputs.peers {
            self.peers.send(message);
        }
        for (reply_to, reply) in outputs.replies {
            let waiting = self.waiting.remove(&reply_to);
            debug_assert!(waiting.is_some(), "a request is answered once");
            if let Some((about, answer)) = waiting {
                // The client may be gone.
                drop(answer.send(self.answer(about, reply)));
            }
        }
        for (session, message) in outputs.nodes {
            self.tell_node(session, message);
        }
        let moved = |event: &Event| matches!(event.kind, EventKind::Cluster | EventKind::Resync);
        if outputs.introduced || outputs.events.iter().any(moved) {
            self.note_addresses();
        }
        if !outputs.events.is_empty() {
            // Without watchers nobody receives.
            drop(self.events.send(outputs.events.into()));
        }
        if let Some(status) = outputs.status {
            self.status.send_replace(status);
        }
    }

    fn answer(&self, about: About, reply: Reply) -> Answer {
        let state = self.member.state();
        let (mut node, mut volume, mut snapshot) = (None, None, None);
        match (about, &reply) {
            (About::Node(name), Reply::Done { .. }) => node = state.nodes().get(&name).cloned(),
            (About::Volume, Reply::Done { receipt: Receipt::Volume { id }, .. }) => {
                volume = state.volumes().get(id).cloned();
            }
            (About::Snapshot, Reply::Done { receipt: Receipt::Snapshot { id }, .. }) => {
                snapshot = state.snapshots().get(id).cloned();
            }
            _ => {}
        }
        Answer { reply, node, volume, snapshot }
    }

    /// A session whose queue is full or closed ends; the daemon comes back and gets everything.
    fn tell_node(&mut self, session: SessionId, message: ToNode) {
        let last = matches!(message, ToNode::Refused(_));
        let Some(to_node) = self.sessions.get(&session) else { return };
        let failed = to_node.try_send(message).is_err();
        if last || failed {
            self.sessions.remove(&session);
        }
        if failed && !last {
            self.member.node_closed(session);
        }
    }

    fn note_addresses(&mut self) {
        let mut book = self.configured.clone();
        for (id, member) in self.member.introduced().iter().chain(self.member.state().members()) {
            let addresses = Addresses { peer: member.peer_address.clone(), api: member.api_address.clone() };
            book.insert(*id, addresses);
        }
        if **self.addresses.load() != book {
            self.addresses.store(Arc::new(book));
        }
    }
}

/// The clocks of this machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    /// A clock whose monotonic time begins now.
    pub(crate) fn new() -> Self {
        Self { origin: std::time::Instant::now() }
    }

    /// What time it is.
    pub(crate) fn now(self) -> Now {
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // A machine whose clock stands before 1970 shows 1970.
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now {
            monotonic: Instant::from_nanos(nanos(self.origin.elapsed())),
            wall: Timestamp(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}
