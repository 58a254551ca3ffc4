//! What members say to each other, as plain values. The protobuf types of the raft library never leave this crate, and
//! bytes from the network are never parsed by it.

use basalt_model::{ClusterId, DiskId, Member, MemberId};
use serde::{Deserialize, Serialize};

/// A message from one member to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerMessage {
    /// The sender's cluster; `None` while the sender has not joined one.
    pub cluster: Option<ClusterId>,
    /// The sender.
    pub from: MemberId,
    /// The disk that the sender is bound to.
    pub from_disk: DiskId,
    /// The receiver.
    pub to: MemberId,
    /// The disk that the receiver must be bound to; `None` when the sender does not know.
    pub to_disk: Option<DiskId>,
    /// What is said.
    pub body: PeerBody,
}

/// What is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerBody {
    /// A step of the raft protocol.
    Raft(RaftMessage),
    /// A part of a snapshot.
    SnapshotChunk(SnapshotChunk),
    /// How much of a snapshot has arrived.
    SnapshotAck(SnapshotAck),
    /// The sender exists, wants to take part, and is reached so. Sent to everybody until the leader knows it.
    Announce {
        /// The sender.
        member: Member,
        /// It has an empty disk and would create the cluster. Whoever has an empty disk too answers with an announcement of
        /// its own that names the sender's disk.
        founds: bool,
    },
    /// The members of the sender's group, for a receiver that wants to take part: one of them leads.
    Introduce(Vec<Member>),
    /// A message of the receiver was refused.
    Refused(PeerRefusal),
}

/// Why a member's messages are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum PeerRefusal {
    /// It belongs to another cluster.
    #[error("they are of cluster {cluster}")]
    WrongCluster {
        /// The cluster of the member that refuses.
        cluster: ClusterId,
    },
    /// Its id is bound to another disk.
    #[error("the member id is bound to another disk; an empty disk joins under a new id")]
    WrongDisk,
    /// It was removed from the group.
    #[error("the member was removed from the cluster")]
    Removed,
    /// It was never added to the group.
    #[error("the cluster does not know this member; add it first")]
    Unknown,
}

impl PeerRefusal {
    /// Whether nothing that this process could wait for ends it: it should end.
    pub fn is_final(self) -> bool {
        match self {
            PeerRefusal::WrongCluster { .. } | PeerRefusal::WrongDisk | PeerRefusal::Removed => true,
            PeerRefusal::Unknown => false,
        }
    }
}

/// The kinds of raft messages that go between members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// Log entries.
    Append,
    /// Answer to it.
    AppendResponse,
    /// Request for a vote.
    RequestVote,
    /// Answer to it.
    RequestVoteResponse,
    /// A sign of life from the leader.
    Heartbeat,
    /// Answer to it.
    HeartbeatResponse,
    /// Wish to make another member the leader.
    TransferLeader,
    /// Order to campaign at once.
    TimeoutNow,
    /// Request for a read index.
    ReadIndex,
    /// Answer to it.
    ReadIndexResponse,
    /// Question whether a vote would be given.
    RequestPreVote,
    /// Answer to it.
    RequestPreVoteResponse,
}

/// One step of the raft protocol. The fields are those of the raft library's message, which are those of etcd's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftMessage {
    /// What it is.
    pub kind: MessageKind,
    /// The sender's term.
    pub term: u64,
    /// The term of the entry at `index`.
    pub log_term: u64,
    /// A log index; its meaning depends on the kind.
    pub index: u64,
    /// Log entries (kind `Append`) or read contexts.
    pub entries: Vec<LogEntry>,
    /// The sender's commit index.
    pub commit: u64,
    /// The term of the entry at `commit`.
    pub commit_term: u64,
    /// The index from which on a snapshot is asked for; 0 for none.
    pub request_snapshot: u64,
    /// Whether this is a "no".
    pub reject: bool,
    /// A hint where the logs may agree.
    pub reject_hint: u64,
    /// A context that is answered with.
    pub context: Vec<u8>,
    /// The sender's election priority.
    pub priority: i64,
}

/// The kinds of log entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A command, or nothing (a new leader's first entry).
    Command,
    /// A change of membership.
    Membership,
}

/// A log entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// What it is.
    pub kind: EntryKind,
    /// The term of the leader that wrote it.
    pub term: u64,
    /// Its place.
    pub index: u64,
    /// The command.
    pub data: Vec<u8>,
    /// The membership change, in our own encoding.
    pub context: Vec<u8>,
}

/// Who takes part in the group. Two sets of voters while a change is under way (joint consensus).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The voters.
    pub voters: Vec<u64>,
    /// Members that receive the log and do not vote.
    pub learners: Vec<u64>,
    /// The voters before the change that is under way.
    pub voters_outgoing: Vec<u64>,
    /// Voters that become learners when the change ends.
    pub learners_next: Vec<u64>,
    /// Whether the change ends by itself.
    pub auto_leave: bool,
}

/// A part of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChunk {
    /// The sender's term.
    pub term: u64,
    /// The log index up to which the snapshot goes.
    pub index: u64,
    /// The term of that entry.
    pub log_term: u64,
    /// The membership at that index.
    pub membership: Membership,
    /// The length of the whole snapshot in bytes.
    pub total: u64,
    /// CRC-32C of the whole snapshot.
    pub total_crc: u32,
    /// Where this part belongs.
    pub offset: u64,
    /// CRC-32C of this part.
    pub crc: u32,
    /// The bytes.
    pub data: Vec<u8>,
}

/// How much of a snapshot has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotAck {
    /// The receiver's term.
    pub term: u64,
    /// Which snapshot.
    pub index: u64,
    /// All bytes before this offset have arrived.
    pub received: u64,
    /// Set when the snapshot must be sent from the beginning, because its checksum was wrong.
    pub restart: bool,
}
