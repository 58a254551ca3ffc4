//! The cluster's state and everything that may happen to it.
//!
//! This crate owns the domain types ([`Node`], [`Volume`], [`Snapshot`], [`Member`]), the [`Command`]s that change them, and
//! [`State::apply`], which is the only way to change a [`State`]. It is pure: no clock, no randomness, no I/O. What is
//! decided (ids, times, placements) is decided by the leader before a command is proposed and is inside the command, so
//! that every member that applies the same commands holds the same state.
//!
//! It never deletes because something is missing: a volume goes away by [`Body::DeleteVolume`] (a snapshot by [`Body::DeleteSnapshot`]), which leaves a
//! [`Tombstone`] that the node confirms.
//!
//! Begin with [`command`] and [`State::apply`]; `docs/control-plane-format.md` describes the encodings.

pub mod command;
pub mod desired;
pub mod encoding;
pub mod ids;
pub mod node;
pub mod placement;
pub mod refusal;
pub mod snapshot;
pub mod space;
pub mod state;
pub mod volume;

mod apply;

pub use command::{
    Body, Command, CreateSnapshot, CreateVolume, FeatureLevel, NodeReport, Receipt, RequestKey, VolumeChange,
    VolumeReport,
};
pub use desired::{Content, DesiredNode, DesiredPool, DesiredVolume, Provision};
pub use ids::{
    BootId, Bytes, ClusterId, DiskId, DiskPath, Epoch, HostNqn, Incarnation, InstanceId, InvalidName,
    MemberId, NodeName, ObjectUid, PoolId, PoolName, RequestId, Revision, SnapshotName, Timestamp, VolumeId,
    VolumeName,
};
pub use node::{
    AllocationUnit, Cores, DiskHealth, DiskObserved, Listener, Liveness, Node, NodeObserved, NodeSpec,
    PoolHealth, PoolLayout, PoolObserved, PoolSpec, Problem, Transport,
};
pub use placement::{Demand, NoFit, Placement, Selector};
pub use refusal::{Refusal, RefusalKind};
pub use snapshot::Snapshot;
pub use space::{Claim, OverProvisioning, Room};
pub use state::{Change, Member, Outcome, State};
pub use volume::{
    AllowedHosts, AnaState, Lifecycle, PathObserved, ReclaimPolicy, Tombstone, Volume, VolumeHealth,
    VolumeIdentity, VolumeObserved, VolumeSpec, VolumeState,
};
