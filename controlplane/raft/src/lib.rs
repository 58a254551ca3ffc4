//! One member of a raft group: the consensus library driven over a log of our own.
//!
//! Owns the on-disk log, hard state and snapshots (`docs/control-plane-format.md`), and the translation between the raft
//! library's messages and [`PeerMessage`]. Knows no command and no socket: entries are bytes, messages are values.
//! Everything outside goes through [`Disk`]. Begin with [`disk::Disk`] and [`message::PeerMessage`].

pub mod disk;
pub mod error;
pub mod group;
pub mod log;
pub mod message;

mod convert;
mod trace;
mod transfer;

pub use disk::{CrashStyle, DirectoryDisk, Disk, DiskError, DiskFault, DiskFile, MemoryDisk};
pub use error::LogError;
pub use group::{
    Applied, Group, GroupConfig, GroupStatus, MemberProgress, MembershipChange, Progress, ProposeError,
    RoleChange,
};
pub use log::{Identity, Log, LogConfig, Snapshot};
pub use message::{
    EntryKind, LogEntry, Membership, MessageKind, PeerBody, PeerMessage, PeerRefusal, RaftMessage,
    SnapshotAck, SnapshotChunk,
};
