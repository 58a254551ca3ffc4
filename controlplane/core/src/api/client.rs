//! What clients ask of a member, and what they are answered.

use basalt_model::{
    ClusterId, FeatureLevel, Incarnation, MemberId, Node, NodeName, NodeSpec, ObjectUid, PoolName, Receipt,
    Refusal, RequestId, Revision, Snapshot, SnapshotName, Volume, VolumeChange, VolumeId, VolumeName,
    VolumeSpec,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
    /// Begins a watch: the reply has what happened since `from`, and [`Outputs::events`](super::Outputs::events) goes on from there.
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
    /// Says that a node's disks are gone for good: deletions do not wait for it any more.
    AbandonNode {
        /// The node.
        name: NodeName,
    },
    /// Says that the disks of one pool are gone for good: deletions do not wait for it any more.
    AbandonPool {
        /// The node.
        node: NodeName,
        /// The pool on it.
        pool: PoolName,
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
    /// Takes a snapshot of a volume, or adopts a released one.
    CreateSnapshot {
        /// Its name.
        name: SnapshotName,
        /// The object that stands for it.
        uid: Option<ObjectUid>,
        /// The volume that it is of.
        volume: VolumeName,
        /// The released snapshot to adopt.
        adopt: Option<VolumeId>,
    },
    /// Deletes a snapshot.
    DeleteSnapshot {
        /// Its name.
        name: SnapshotName,
        /// The object that stood for it; must match.
        uid: Option<ObjectUid>,
    },
    /// Puts a snapshot aside.
    ReleaseSnapshot {
        /// Its name.
        name: SnapshotName,
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
    /// One snapshot by name.
    Snapshot(SnapshotName),
    /// One snapshot by id.
    SnapshotById(VolumeId),
    /// Snapshots by name, then id.
    Snapshots(Page),
    /// The cluster and its members.
    Cluster,
}

/// Which part of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// The token that ended the page before; `None` begins.
    pub after: Option<String>,
    /// The most entries; 0 leaves it to the member. Bounded by [`Limits::page`](super::Limits::page).
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
    /// One snapshot, or that there is none.
    Snapshot(Option<Arc<Snapshot>>),
    /// A page of snapshots.
    Snapshots {
        /// The snapshots.
        items: Vec<Arc<Snapshot>>,
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
    /// Snapshots.
    pub snapshots: usize,
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
    /// The leadership is being transferred, or is where it should be.
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
    /// The cluster has not got to the revision that a watcher saw, so it is not from here (or the cluster was restored from a copy):
    /// list again, then watch from the list's revision.
    #[error("the cluster is at revision {present} only; list again")]
    Ahead {
        /// The newest revision.
        present: Revision,
    },
    /// There is no such member to transfer to.
    #[error("there is no member {member}; list the members to see who there is")]
    NoSuchMember {
        /// The member that was asked for.
        member: MemberId,
    },
    /// The member to transfer to does not vote (yet).
    #[error("member {member} does not vote, so it cannot lead; a new member votes once it has caught up")]
    NoVote {
        /// The member that was asked for.
        member: MemberId,
    },
    /// Nobody can be transferred to.
    #[error("no other member that votes is in reach")]
    NoSuccessor,
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
    /// A snapshot was created or changed.
    Snapshot(Arc<Snapshot>),
    /// A snapshot is gone.
    SnapshotRemoved {
        /// Its identity.
        id: VolumeId,
        /// Its name.
        name: SnapshotName,
    },
    /// The cluster's identity, feature level or members changed.
    Cluster,
    /// The history has a gap (a snapshot was installed): every watcher must list again.
    Resync,
}
