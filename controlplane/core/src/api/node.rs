//! What daemons and members say to each other.

use basalt_model::{
    BootId, ClusterId, DesiredNode, InstanceId, MemberId, NodeName, NodeObserved, Revision, VolumeId,
    VolumeObserved,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

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

/// The lowest and highest protocol version that this program speaks with daemons. From version 2 on a daemon knows thin volumes,
/// growth and snapshots, from version 3 on read-only volumes and units of allocation.
pub const NODE_PROTOCOL: (u32, u32) = (1, 3);

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
    #[error(
        "the daemon has seen revision {seen}, the cluster is at {present}: it was restored from a copy or lost its latest state; \
         stop its members and run basalt-control recover on the one with the highest log"
    )]
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
