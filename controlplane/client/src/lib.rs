//! The typed client of the control plane, for the operator, CSI and the command line.
//!
//! This crate owns how a caller reaches the cluster: it tries the members in turn, follows hints to the leader, retries with
//! jittered back-off until a deadline, and can do so because every mutation carries a request id under which it happens
//! once. It also owns the conversions between the domain types of `basalt-model` and the wire ([`wire`]), which the server
//! uses in the other direction. It holds no state of the cluster and takes no decision about it.
//!
//! Begin with [`Client`]; [`Watch`] is the stream of changes.

mod client;
mod error;
mod members;
mod pages;
mod retry;
mod snapshots;
mod watch;
pub mod wire;

pub use basalt_proto::api::Reason;
pub use client::{Client, ClientConfig, ClusterStatus, Committed, CreateVolume, Mutation};
pub use error::{ClientError, root_cause, status_words};
pub use members::{MemberInfo, MemberRole, MembersInfo, NewMember};
pub use pages::{Listing, Pages};
pub use snapshots::CreateSnapshot;
pub use watch::{Event, Watch};
