//! What goes into a [`Member`](crate::Member) and what comes out.

use basalt_clock::Instant;
use basalt_model::{
    BootId, ClusterId, DesiredNode, DiskId, FeatureLevel, Incarnation, InstanceId, MemberId, Node, NodeName,
    NodeObserved, NodeSpec, ObjectUid, Receipt, Refusal, RequestId, Revision, Timestamp, Volume,
    VolumeChange, VolumeId, VolumeName, VolumeObserved, VolumeSpec,
};
use basalt_raft::{DiskError, PeerMessage, PeerRefusal};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// What a member is told once.
#[derive(Debug, Clone)]
pub struct Config {
    /// The member as others see it. Its `disk` is filled in by [`Member::open`](crate::Member::open).
    pub member: basalt_model::Member,
    /// How its disk becomes part of a cluster, if it is not part of one yet.
    pub start: Start,
    /// The other members that it knows of beforehand, to announce itself to.
    pub peers: Vec<MemberId>,
    /// Periods and deadlines.
    pub timing: Timing,
    /// Bounds.
    pub limits: Limits,
}

/// How an empty disk becomes part of a cluster. Without meaning for a disk that is part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The disk must be part of a cluster already, or the member announces itself to its peers and waits to be added.
    Join {
        /// The only cluster to join; `None` joins the first that has this member in its list.
        cluster: Option<ClusterId>,
    },
    /// Creates the cluster, once. This member is its first voter; the others are added as soon as they announce
    /// themselves.
    Bootstrap {
        /// The new cluster's identity.
        cluster: ClusterId,
        /// The other members that may take part from the start.
        others: Vec<basalt_model::Member>,
    },
}

/// Periods and deadlines.
#[derive(Debug, Clone)]
pub struct Timing {
    /// The length of a raft tick.
    pub tick: Duration,
    /// Ticks between the leader's signs of life.
    pub heartbeat_ticks: u32,
    /// The least ticks without a leader before a member campaigns.
    pub election_ticks: u32,
    /// How many more ticks a member may wait, by its seed.
    pub election_spread_ticks: u32,
    /// How often a daemon must say something.
    pub node_heartbeat: Duration,
    /// After which silence a daemon counts as gone.
    pub node_timeout: Duration,
    /// After which time a request is answered with [`RequestError::TimedOut`].
    pub request_timeout: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(50),
            heartbeat_ticks: 2,
            election_ticks: 10,
            election_spread_ticks: 10,
            node_heartbeat: Duration::from_secs(1),
            node_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
        }
    }
}

/// Bounds of a member's memory and disk.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests in progress; more are answered with [`RequestError::Overloaded`].
    pub requests: usize,
    /// Events kept for watchers that come back; older ones make them resync.
    pub history: usize,
    /// Sessions with daemons.
    pub sessions: usize,
    /// Log entries after which a snapshot is taken.
    pub snapshot_entries: u64,
    /// Log bytes after which a snapshot is taken.
    pub snapshot_bytes: u64,
    /// The size at which a new log file is begun.
    pub segment_bytes: u64,
    /// The size of one part of a snapshot that is sent.
    pub chunk_bytes: usize,
    /// The most entries of one page of a list.
    pub page: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests: 4_096,
            history: 8_192,
            sessions: 2_048,
            snapshot_entries: 8_192,
            snapshot_bytes: 32 << 20,
            segment_bytes: 16 << 20,
            chunk_bytes: 256 << 10,
            page: 500,
        }
    }
}

/// What time it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub monotonic: Instant,
    /// For display.
    pub wall: Timestamp,
}

/// The caller's name for a request, given back with the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplyTo(pub u64);

/// One connection of a daemon, numbered by the caller and never reused while this member runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// What clients ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientRequest {
    /// A change; only the leader takes it.
    Mutate {
        /// The client's key: the same request sent twice is done once.
        id: RequestId,
        /// The change.
        mutation: Mutation,
    },
    /// A linearizable read; every member answers.
    Read(Read),
    /// Begins a watch: the reply has what happened since `from`, and [`Outputs::events`] goes on from there.
    Watch {
        /// The last revision that the watcher has seen; `None` begins now.
        from: Option<Revision>,
    },
    /// Makes another voter the leader; only the leader takes it.
    TransferLeader {
        /// The voter; `None` chooses the one that is furthest.
        to: Option<MemberId>,
    },
}

/// The changes that clients ask for. Identifiers, times and placements are added by the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mutation {
    /// Creates a node or changes what is asked of it.
    PutNode {
        /// Its name.
        name: NodeName,
        /// The object that stands for it.
        uid: Option<ObjectUid>,
        /// What is asked.
        spec: NodeSpec,
    },
    /// Removes a node that holds no volume.
    DeleteNode {
        /// Its name.
        name: NodeName,
        /// The object that stood for it; must match.
        uid: Option<ObjectUid>,
    },
    /// Lets the next daemon that connects under this name be the node.
    UnbindNode {
        /// The node.
        name: NodeName,
    },
    /// Creates a volume, or adopts a released one.
    CreateVolume {
        /// Its name.
        name: VolumeName,
        /// The object that stands for it.
        uid: Option<ObjectUid>,
        /// The released volume to adopt.
        adopt: Option<VolumeId>,
        /// What is asked.
        spec: VolumeSpec,
    },
    /// Changes a volume.
    UpdateVolume {
        /// Its name.
        name: VolumeName,
        /// The object that stands for it; must match.
        uid: Option<ObjectUid>,
        /// The change.
        change: VolumeChange,
    },
    /// Deletes a volume and its data.
    DeleteVolume {
        /// Its name.
        name: VolumeName,
        /// The object that stood for it; must match.
        uid: Option<ObjectUid>,
    },
    /// Puts a volume aside.
    ReleaseVolume {
        /// Its name.
        name: VolumeName,
        /// The object that stood for it; must match.
        uid: Option<ObjectUid>,
    },
    /// Lets a member take part as soon as it announces itself: first as a learner, then as a voter.
    AddMember {
        /// Its id; never used before.
        id: MemberId,
        /// Where the other members reach it.
        peer_address: String,
        /// Where clients and daemons reach it.
        api_address: String,
    },
    /// Takes a member out for good.
    RemoveMember {
        /// Its id.
        id: MemberId,
    },
    /// Takes one member out and another in, in one step of joint consensus once the new one has caught up.
    ReplaceMember {
        /// The member that goes.
        old: MemberId,
        /// The member that comes; its id was never used before.
        new: MemberId,
        /// Where the other members reach it.
        peer_address: String,
        /// Where clients and daemons reach it.
        api_address: String,
    },
    /// Raises the feature level.
    SetFeatureLevel {
        /// The new level.
        level: FeatureLevel,
    },
}

/// What clients read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// One node.
    Node(NodeName),
    /// Nodes by name.
    Nodes(Page),
    /// One volume by name.
    Volume(VolumeName),
    /// One volume by id.
    VolumeById(VolumeId),
    /// Volumes by name, then id.
    Volumes(Page),
    /// The cluster and its members.
    Cluster,
}

/// Which part of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The token that ended the page before; `None` begins.
    pub after: Option<String>,
    /// The most entries; 0 leaves it to the member. Bounded by [`Limits::page`].
    pub limit: usize,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadResult {
    /// One node, or that there is none.
    Node(Option<Arc<Node>>),
    /// A page of nodes.
    Nodes {
        /// The nodes.
        items: Vec<Arc<Node>>,
        /// Where to go on; `None` at the end.
        next: Option<String>,
    },
    /// One volume, or that there is none.
    Volume(Option<Arc<Volume>>),
    /// A page of volumes.
    Volumes {
        /// The volumes.
        items: Vec<Arc<Volume>>,
        /// Where to go on; `None` at the end.
        next: Option<String>,
    },
    /// The cluster.
    Cluster(ClusterView),
}

/// The cluster and its members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    /// Its identity; `None` before the bootstrap.
    pub cluster: Option<ClusterId>,
    /// How often it was recovered, plus one.
    pub incarnation: Incarnation,
    /// The committed feature level.
    pub level: FeatureLevel,
    /// The raft term.
    pub term: u64,
    /// The leader, when this member knows one.
    pub leader: Option<MemberId>,
    /// The members.
    pub members: Vec<MemberView>,
    /// Nodes.
    pub nodes: usize,
    /// Volumes.
    pub volumes: usize,
}

/// A member as the answering member sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// Who it is and where it is reached.
    pub member: basalt_model::Member,
    /// What it is in the group.
    pub role: MemberRole,
    /// The last log entry that it is known to hold; only the leader knows.
    pub matched: Option<u64>,
    /// How many entries it is behind; only the leader knows.
    pub lag: Option<u64>,
    /// Whether the leader heard of it lately; only the leader knows.
    pub active: Option<bool>,
}

/// What a member is in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    /// Leads.
    Leader,
    /// Votes.
    Voter,
    /// Receives the log and does not vote.
    Learner,
    /// Known and not in the group: it has not announced itself yet.
    Waiting,
}

/// An answer to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A change was committed.
    Done {
        /// When it took effect.
        revision: Revision,
        /// What it did.
        receipt: Receipt,
    },
    /// What was read, at this revision.
    Read {
        /// The revision of the state.
        revision: Revision,
        /// The result.
        result: ReadResult,
    },
    /// A watch began. Later events have revisions above `revision`.
    Watching {
        /// The last revision that `backlog` covers.
        revision: Revision,
        /// What happened since the revision that was asked for.
        backlog: Vec<Event>,
    },
    /// The leadership is being transferred.
    Transferring {
        /// To this member.
        to: MemberId,
    },
    /// It did not work.
    Failed(RequestError),
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Another member leads. Nothing was done; send it there.
    #[error("this member does not lead")]
    NotLeader {
        /// The leader, when one is known.
        leader: Option<MemberId>,
    },
    /// Too much is going on. Nothing was done; try again later.
    #[error("the member has too many requests in progress")]
    Overloaded,
    /// The leadership changed in the middle: it may or may not be done. Send it again with the same request id.
    #[error("the leadership changed; whether the request was done is not known")]
    Uncertain,
    /// No majority answered in time. It may or may not be done. Send it again with the same request id.
    #[error("no majority answered in time")]
    TimedOut,
    /// The state does not allow it. Nothing was done.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The history does not reach back so far: list again, then watch from the list's revision.
    #[error("the history begins at revision {oldest}; list again")]
    TooOld {
        /// The first revision from which a watch can go on.
        oldest: Revision,
    },
    /// The member to transfer to is no voter.
    #[error("the member is not a voter that can lead")]
    NoSuchVoter,
    /// The member has stopped.
    #[error("the member has stopped")]
    Stopped,
}

/// Something that happened, in order of revisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub revision: Revision,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A node was created or changed.
    Node(Arc<Node>),
    /// A node was removed.
    NodeRemoved(NodeName),
    /// A volume was created or changed.
    Volume(Arc<Volume>),
    /// A volume is gone.
    VolumeRemoved {
        /// Its identity.
        id: VolumeId,
        /// Its name.
        name: VolumeName,
    },
    /// The cluster's identity, feature level or members changed.
    Cluster,
    /// The history has a gap (a snapshot was installed): every watcher must list again.
    Resync,
}

/// What a daemon says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeMessage {
    /// The first message of a connection.
    Hello(Hello),
    /// A sign of life.
    Heartbeat,
    /// What is so on the node.
    Report(Report),
}

/// The first message of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The cluster that it belongs to; `None` before its first welcome.
    pub cluster: Option<ClusterId>,
    /// Its node's name.
    pub node: NodeName,
    /// Its identity.
    pub instance: InstanceId,
    /// The machine's run.
    pub boot: BootId,
    /// The lowest protocol version that it speaks.
    pub version_min: u32,
    /// The highest protocol version that it speaks.
    pub version_max: u32,
    /// The features that it has.
    pub features: BTreeSet<String>,
    /// The highest revision that it has seen.
    pub revision: Revision,
}

/// What is so on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Whether this is everything. The first report of a session must be.
    pub full: bool,
    /// The node and its pools; `None` when unchanged.
    pub observed: Option<NodeObserved>,
    /// The volumes; in a report that is not full, those that changed.
    pub volumes: BTreeMap<VolumeId, VolumeObserved>,
    /// The tombstones that were carried out, by volume and generation. Repeated until they are gone from the desired state.
    pub deleted: BTreeMap<VolumeId, u64>,
}

/// What a member says to a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToNode {
    /// The session begins.
    Welcome(Welcome),
    /// The session ends, or does not begin. Nothing follows.
    Refused(SessionRefusal),
    /// What the node should hold.
    Desired {
        /// The leader's term.
        term: u64,
        /// The state; see [`DesiredNode::revision`].
        desired: Arc<DesiredNode>,
    },
    /// A sign of life was heard.
    HeartbeatAck {
        /// The leader's term.
        term: u64,
    },
}

/// The answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The cluster; the daemon keeps it and refuses others from now on.
    pub cluster: ClusterId,
    /// The protocol version of this session.
    pub version: u32,
    /// The leader's term.
    pub term: u64,
    /// How often to say something.
    pub heartbeat: Duration,
    /// After which silence the session ends.
    pub timeout: Duration,
}

/// The lowest and highest protocol version that this program speaks with daemons.
pub const NODE_PROTOCOL: (u32, u32) = (1, 1);

/// Why a session does not begin or ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionRefusal {
    /// Another member leads.
    #[error("this member does not lead")]
    NotLeader {
        /// The leader, when one is known.
        leader: Option<MemberId>,
    },
    /// The daemon belongs to another cluster.
    #[error("the daemon belongs to another cluster; this is {cluster}")]
    WrongCluster {
        /// This cluster.
        cluster: ClusterId,
    },
    /// The cluster was not bootstrapped.
    #[error("the cluster is not bootstrapped yet")]
    NotBootstrapped,
    /// No such node.
    #[error("there is no StorageNode {node}; create it first")]
    UnknownNode {
        /// Its name.
        node: NodeName,
    },
    /// Another daemon is this node.
    #[error("node {node} belongs to another daemon (identity {bound}); stop this one, or unbind the node")]
    OtherInstance {
        /// The node.
        node: NodeName,
        /// The daemon that it belongs to.
        bound: InstanceId,
    },
    /// A daemon with this identity is connected.
    #[error("a daemon with the identity of node {node} is connected already; two run with one identity")]
    Duplicate {
        /// The node.
        node: NodeName,
    },
    /// No common protocol version.
    #[error("no common protocol version: this member speaks {min} to {max}")]
    Version {
        /// The lowest.
        min: u32,
        /// The highest.
        max: u32,
    },
    /// The daemon has seen a later revision than the cluster has.
    #[error("the daemon has seen revision {seen}, the cluster is at {present}: it lost its latest state")]
    Future {
        /// What the daemon has seen.
        seen: Revision,
        /// What the cluster has.
        present: Revision,
    },
    /// The daemon broke the protocol.
    #[error("the daemon broke the protocol: a hello comes first and once, then a full report")]
    Protocol,
    /// The daemon was silent for too long.
    #[error("nothing was heard for too long")]
    Silent,
    /// Too many sessions.
    #[error("the member has too many sessions")]
    Overloaded,
}

/// What a member wants done, in this order of fields.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Messages to other members.
    pub peers: Vec<PeerMessage>,
    /// Answers to clients.
    pub replies: Vec<(ReplyTo, Reply)>,
    /// Messages to daemons.
    pub nodes: Vec<(SessionId, ToNode)>,
    /// What happened, for watchers.
    pub events: Vec<Event>,
    /// Set when role, term or leader changed.
    pub status: Option<Status>,
}

/// What a member is at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its id.
    pub id: MemberId,
    /// Its disk.
    pub disk: DiskId,
    /// Its cluster, once it has joined one.
    pub cluster: Option<ClusterId>,
    /// What it is.
    pub role: Role,
    /// The raft term.
    pub term: u64,
    /// The leader, when one is known.
    pub leader: Option<MemberId>,
    /// The last entry that is known to be committed.
    pub committed: u64,
    /// The last entry that was applied.
    pub applied: u64,
    /// The last entry in the log.
    pub last: u64,
    /// The index of the newest snapshot; 0 without one.
    pub snapshot: u64,
    /// Sessions with daemons.
    pub sessions: usize,
    /// Why peers refuse this member, when they do.
    pub refused: Option<PeerRefusal>,
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Not part of a cluster yet.
    Waiting,
    /// Receives the log and does not vote.
    Learner,
    /// Votes and follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// Why a member cannot start or go on. The process should end with this; nothing that was acknowledged is lost.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The disk's content cannot be used.
    #[error(transparent)]
    Log(#[from] basalt_raft::LogError),
    /// The log holds something that this program cannot read.
    #[error("log entry {index} cannot be applied")]
    Decode {
        /// The entry.
        index: u64,
        /// The cause.
        #[source]
        source: basalt_model::encoding::DecodeError,
    },
    /// The snapshot cannot be read.
    #[error("the snapshot at {index} cannot be read")]
    Snapshot {
        /// Its index.
        index: u64,
        /// The cause.
        #[source]
        source: basalt_model::encoding::DecodeError,
    },
    /// A command or state could not be encoded.
    #[error(transparent)]
    Encode(#[from] basalt_model::encoding::EncodeError),
}
