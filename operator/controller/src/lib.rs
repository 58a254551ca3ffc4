//! The operator's shell: loops, network and time around `basalt-plan`.
//!
//! Owns: watching `StorageNode`, `Volume` and `Snapshot` objects, carrying out plans against the apiserver and the control plane, leader
//! election, events, back-off. Never: decides what is to be done, or holds state that it could not observe again.
//!
//! Begin with [`reconcile::reconcile`], which carries out the plans for one object, and [`operator::run`], which wires
//! everything together.

pub mod backoff;
pub mod control_plane;
pub mod election;
pub mod fence;
pub mod grpc;
pub mod managed;
pub mod meters;
pub mod mirror;
pub mod operator;
pub mod reconcile;
pub mod settings;
pub mod store;
