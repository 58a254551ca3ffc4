//! What goes into a [`Member`](crate::Member) and what comes out.

mod client;
mod node;

pub use client::{
    ClientRequest, ClusterView, Event, EventKind, MemberRole, MemberView, Mutation, Page, Read, ReadResult,
    Reply, RequestError,
};
pub use node::{Hello, NODE_PROTOCOL, NodeMessage, Report, SessionRefusal, ToNode, Welcome};

use basalt_clock::Instant;
use basalt_model::{ClusterId, DiskId, MemberId, Timestamp};
use basalt_raft::{DiskError, PeerMessage, PeerRefusal};
use std::{collections::BTreeSet, time::Duration};

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
    /// Creates the cluster, once, as soon as every peer has answered that its disk is empty too ([`Founding`]). This member is
    /// its first voter; the others are added as soon as they announce themselves. Of several members that are told to, the one
    /// with the lowest id does it.
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
    /// Set when peers named members to one that has not joined: [`Member::introduced`](crate::Member::introduced).
    pub introduced: bool,
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
    /// Why peers refuse this member, when they do. After a final one it serves nobody any more, and its process should end.
    pub refused: Option<PeerRefusal>,
    /// How far the creation of the cluster is, while this member has an empty disk and is told to create it.
    pub founding: Option<Founding>,
}

/// How far the creation of a cluster is. A member whose disk is empty cannot know whether the cluster exists already and only
/// its disk was lost; its peers do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Founding {
    /// Waits until these peers have answered.
    Asking {
        /// The peers that are silent.
        silent: BTreeSet<MemberId>,
    },
    /// This peer is told to create the cluster too and has the lower id: it creates it and takes this member in.
    Yielding {
        /// The peer.
        to: MemberId,
    },
    /// A cluster exists: this member creates none, and waits to be taken in.
    Exists {
        /// The peer that said so.
        by: MemberId,
        /// Its cluster.
        cluster: ClusterId,
    },
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
    /// The state does not allow the recovery.
    #[error("the recovery was refused; nothing was changed")]
    Recovery(#[source] basalt_model::Refusal),
    /// A command or state could not be encoded.
    #[error(transparent)]
    Encode(#[from] basalt_model::encoding::EncodeError),
}
