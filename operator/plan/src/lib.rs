//! What the operator does next: from an object as the apiserver has it and what the control plane holds, to a [`Plan`].
//!
//! Owns: every decision of the operator. Pure: no clock, no network, no state of its own; calling it twice with the same
//! input gives the same plan, and once a plan is carried out the next one is empty. Never: deletes because something is
//! absent, takes over what another object's UID owns, or creates again what a status says existed.
//!
//! A plan has at most one [`Intent`] for the control plane. Whoever carries it out observes again and plans again until no
//! intent is left, so that a crash between any two steps leaves nothing that the next plan does not see.
//!
//! Begin with [`plan_volume`], [`plan_snapshot`] and [`plan_storage_node`].

mod events;
mod held;
mod intent;
mod object;
mod snapshot;
mod snapshot_status;
mod spec;
mod storage_node;
mod storage_node_status;
mod volume;
mod volume_status;
mod word;

pub use events::{Event, EventKind};
pub use intent::{Intent, IntentBody, Rejection, RejectionKind};
pub use snapshot::plan_snapshot;
pub use spec::{InvalidSpec, node_spec, volume_spec};
pub use storage_node::plan_storage_node;
pub use volume::plan_volume;

use basalt_crds::Condition;
use basalt_model::{ClusterId, Node, Snapshot, Volume};

/// What the control plane answered when it was asked about one object.
#[derive(Debug, Clone)]
pub enum Seen<T> {
    /// It could not be asked; a sentence says why.
    Unreachable {
        /// Why, for a person.
        message: String,
    },
    /// It answered.
    Answered {
        /// The cluster that answered.
        cluster: ClusterId,
        /// What it holds.
        found: T,
    },
}

/// What the control plane holds that concerns one `Volume` or `Snapshot` object. Linearizable reads.
#[derive(Debug, Clone)]
pub struct DataSight<T> {
    /// What has the object's name.
    pub by_name: Option<T>,
    /// What has the id in the object's status, whatever its name; may be the same one.
    pub by_id: Option<T>,
    /// The node that is to delete it, if it is being deleted.
    pub node: Option<Node>,
}

/// What concerns one `Volume` object.
pub type VolumeSight = DataSight<Volume>;

/// What concerns one `Snapshot` object.
pub type SnapshotSight = DataSight<Snapshot>;

/// What the control plane holds that concerns one `StorageNode` object.
#[derive(Debug, Clone, Default)]
pub struct NodeSight {
    /// The node of the object's name. A linearizable read.
    pub node: Option<Node>,
    /// The volumes whose data is on it, in a fixed order. May be a little old; the control plane itself refuses to remove a
    /// node that holds volumes.
    pub volumes: Vec<Volume>,
    /// The snapshots whose data is on it, likewise.
    pub snapshots: Vec<Snapshot>,
}

/// What became of the intents of the plans before, within one reconciliation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many were accepted.
    pub accepted: u32,
    /// The answer to the last one, if it was refused.
    pub rejection: Option<Rejection>,
}

/// What is to be done for one object, in the order of the fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan<S> {
    /// What happens to our finalizer. Adding comes before anything else, removing after everything else.
    pub finalizer: Finalizer,
    /// What to ask of the control plane. Afterwards: observe and plan again, with the answer in [`Progress`].
    pub intent: Option<Intent>,
    /// What to tell users, once each.
    pub events: Vec<Event>,
    /// The status that the object should have; `None` leaves it.
    pub status: Option<S>,
    /// When to look again.
    pub requeue: Requeue,
}

impl<S> Plan<S> {
    /// Nothing to do until something changes.
    fn idle() -> Self {
        Self {
            finalizer: Finalizer::Keep,
            intent: None,
            events: Vec::new(),
            status: None,
            requeue: Requeue::OnChange,
        }
    }

    /// Before anything is asked of the control plane, the object must wait for us when it is deleted.
    fn add_finalizer() -> Self {
        Self { finalizer: Finalizer::Add, ..Self::idle() }
    }
}

/// A status whose conditions tell events.
trait Told: PartialEq {
    fn conditions(&self) -> &[Condition];
}

impl Told for basalt_crds::VolumeStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Told for basalt_crds::SnapshotStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Told for basalt_crds::StorageNodeStatus {
    fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

/// The plan for an object that has the status `old` and should have `status`.
fn finish<S: Told>(
    old: Option<&S>,
    status: S,
    intent: Option<Intent>,
    rejection: Option<&Rejection>,
    settled: bool,
    finalizer: Finalizer,
) -> Plan<S> {
    let events = events::of_transition(old.map_or(&[], |old| old.conditions()), status.conditions());
    // A rejected intent is not tried again at once: the delay is for that.
    let intent = intent.filter(|_| rejection.is_none());
    let requeue = if settled || intent.is_some() { Requeue::OnChange } else { Requeue::Backoff };
    // While an intent is under way its outcome is not known: the plan after it writes the status.
    let (events, status) = if intent.is_some() { (Vec::new(), None) } else { (events, Some(status)) };
    // The object is about to be gone: nobody would read it.
    let status = status.filter(|_| finalizer != Finalizer::Remove);
    Plan { finalizer, intent, events, status: status.filter(|status| Some(status) != old), requeue }
}

/// What happens to our finalizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finalizer {
    /// It stays as it is.
    Keep,
    /// It is added.
    Add,
    /// It is removed: the control plane has let go.
    Remove,
}

/// When to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requeue {
    /// When the object or what the control plane holds changes.
    OnChange,
    /// Also after a delay that grows from try to try.
    Backoff,
}
