//! Why a log cannot be used.

use crate::disk::DiskError;
use basalt_model::{ClusterId, MemberId};

/// Why the content of a member's disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A checksum is wrong where no crash can explain it.
    #[error(
        "{file} is damaged at offset {offset}: {problem}; restore nothing by hand: remove this member from the group and \
         add a new one with an empty disk"
    )]
    Damaged {
        /// The file.
        file: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// Written by a later program.
    #[error("{file} has format version {found}, this program knows {known}; run a newer version")]
    Version {
        /// The file.
        file: String,
        /// The version found.
        found: u32,
        /// The newest known one.
        known: u32,
    },
    /// The disk belongs to another member.
    #[error(
        "the disk belongs to member {found}, this is member {expected}; start it with the right directory"
    )]
    OtherMember {
        /// The member that the disk is bound to.
        found: MemberId,
        /// The member that was started.
        expected: MemberId,
    },
    /// The disk belongs to another cluster.
    #[error("the disk belongs to cluster {found}, not {expected}; start the member with the right directory")]
    OtherCluster {
        /// The cluster that the disk is bound to.
        found: ClusterId,
        /// The cluster that was expected.
        expected: ClusterId,
    },
    /// The log and the snapshot do not meet.
    #[error(
        "entries {from} to {to} of the log are missing; remove this member from the group and add a new one"
    )]
    Gap {
        /// The first missing entry.
        from: u64,
        /// The last missing entry.
        to: u64,
    },
    /// There is nothing to recover from.
    #[error("the disk holds no member of a cluster; there is nothing to recover from")]
    Empty,
    /// A document could not be written or read.
    #[error("{file} cannot be encoded or decoded")]
    Document {
        /// The file.
        file: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The raft library refused.
    #[error("the raft library refused: {0}")]
    Raft(#[from] raft::Error),
}
