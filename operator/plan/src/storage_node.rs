//! The plan for one `StorageNode`.

use basalt_crds as crds;
use basalt_crds::StorageNodeStatus;
use basalt_model::{ClusterId, Node, NodeName, NodeSpec};
use k8s_openapi::jiff::Timestamp;

use crate::intent::{Intent, IntentBody, Rejection};
use crate::object::Facts;
use crate::spec::{named, node_spec};
use crate::{Finalizer, InvalidSpec, NodeSight, Plan, Progress, Seen, finish, storage_node_status};

/// What an object that is to stay and the control plane are to each other.
#[derive(Debug)]
pub(crate) enum Situation<'a> {
    /// The control plane cannot be asked.
    Unreachable(&'a str),
    /// The node was registered with another cluster than the one that answers.
    Elsewhere { recorded: &'a str, answering: ClusterId },
    /// The status says that the node was registered, and the control plane has no record of it.
    Missing,
    /// Another object owns the node of this name.
    Taken(&'a Node),
    /// The specification means nothing.
    Invalid { error: InvalidSpec, present: Option<&'a NodeSight> },
    /// It is not registered yet.
    Wanted(Intent),
    /// It is registered and is not what is asked.
    Drifted { present: &'a NodeSight, intent: Intent },
    /// It is registered and is what is asked.
    Settled(&'a NodeSight),
}

/// What an object that is to go and the control plane are to each other.
#[derive(Debug)]
pub(crate) enum Departure<'a> {
    /// The control plane cannot be asked.
    Unreachable(&'a str),
    /// It is registered with another cluster.
    Elsewhere { recorded: &'a str, answering: ClusterId },
    /// New volumes are kept away first.
    Closing(Intent),
    /// Volumes are on it: it stays until they are gone.
    Occupied(&'a NodeSight),
    /// Nothing is on it.
    Empty(Intent),
    /// Nothing of ours is there (any more).
    Gone,
}

/// What to do next for a `StorageNode`. `progress` is what became of the plans before.
#[must_use]
pub fn plan_storage_node(
    object: &crds::StorageNode,
    seen: &Seen<NodeSight>,
    progress: &Progress,
    now: Timestamp,
) -> Plan<StorageNodeStatus> {
    let Some(facts) = Facts::of(&object.metadata, progress.accepted) else { return Plan::idle() };
    let cluster = match seen {
        Seen::Unreachable { .. } => None,
        Seen::Answered { cluster, .. } => Some(*cluster),
    };
    let context = storage_node_status::Context { object, generation: facts.generation, cluster, now };
    let rejection = progress.rejection.as_ref();
    match (facts.deleting, facts.has_finalizer) {
        (true, false) => Plan::idle(),
        (false, false) => Plan::add_finalizer(),
        (false, true) => stay(context, &assess(object, &facts, seen), rejection),
        (true, true) => go(context, &depart(object, &facts, seen), rejection),
    }
}

fn stay(
    context: storage_node_status::Context<'_>,
    situation: &Situation<'_>,
    rejection: Option<&Rejection>,
) -> Plan<StorageNodeStatus> {
    let status = context.staying(situation, rejection);
    let intent = match situation {
        Situation::Wanted(intent) | Situation::Drifted { intent, .. } => Some(intent.clone()),
        _ => None,
    };
    let settled = matches!(situation, Situation::Settled(_));
    finish(context.object.status.as_ref(), status, intent, rejection, settled, Finalizer::Keep)
}

fn go(
    context: storage_node_status::Context<'_>,
    departure: &Departure<'_>,
    rejection: Option<&Rejection>,
) -> Plan<StorageNodeStatus> {
    let status = context.leaving(departure, rejection);
    let intent = match departure {
        Departure::Closing(intent) | Departure::Empty(intent) => Some(intent.clone()),
        _ => None,
    };
    let gone = matches!(departure, Departure::Gone);
    let finalizer = if gone { Finalizer::Remove } else { Finalizer::Keep };
    finish(context.object.status.as_ref(), status, intent, rejection, gone, finalizer)
}

fn assess<'a>(object: &'a crds::StorageNode, facts: &Facts<'_>, seen: &'a Seen<NodeSight>) -> Situation<'a> {
    let (cluster, sight) = match seen {
        Seen::Unreachable { message } => return Situation::Unreachable(message),
        Seen::Answered { cluster, found } => (*cluster, found),
    };
    let recorded = object.status.as_ref().and_then(|status| status.cluster_id.as_deref());
    if let Some(other) = recorded.filter(|recorded| *recorded != cluster.to_string()) {
        return Situation::Elsewhere { recorded: other, answering: cluster };
    }
    let asked = named("metadata.name", NodeName::new(facts.name))
        .and_then(|name| Ok((name, node_spec(&object.spec)?)));
    let Some(node) = &sight.node else {
        return match (recorded, asked) {
            (Some(_), _) => Situation::Missing,
            (None, Err(error)) => Situation::Invalid { error, present: None },
            (None, Ok((name, spec))) => Situation::Wanted(put(facts, 0, name, spec)),
        };
    };
    // A node that was registered without an object can be taken over: its daemon and its disks stay what they are.
    if node.uid.as_ref().is_some_and(|uid| *uid != facts.owner) {
        return Situation::Taken(node);
    }
    match asked {
        Err(error) => Situation::Invalid { error, present: Some(sight) },
        Ok((_, spec)) if node.uid.is_some() && node.spec == spec => Situation::Settled(sight),
        Ok((name, spec)) => {
            Situation::Drifted { present: sight, intent: put(facts, node.modified.0, name, spec) }
        }
    }
}

fn depart<'a>(object: &'a crds::StorageNode, facts: &Facts<'_>, seen: &'a Seen<NodeSight>) -> Departure<'a> {
    let (cluster, sight) = match seen {
        Seen::Unreachable { message } => return Departure::Unreachable(message),
        Seen::Answered { cluster, found } => (*cluster, found),
    };
    let recorded = object.status.as_ref().and_then(|status| status.cluster_id.as_deref());
    if let Some(other) = recorded.filter(|recorded| *recorded != cluster.to_string()) {
        return Departure::Elsewhere { recorded: other, answering: cluster };
    }
    let ours = |node: &&Node| node.uid.as_ref() == Some(&facts.owner);
    let Some(node) = sight.node.as_ref().filter(ours) else { return Departure::Gone };
    let name = node.name.clone();
    if !node.spec.unschedulable {
        let spec = NodeSpec { unschedulable: true, ..node.spec.clone() };
        return Departure::Closing(put(facts, node.modified.0, name, spec));
    }
    if !sight.volumes.is_empty() || !sight.snapshots.is_empty() {
        return Departure::Occupied(sight);
    }
    let body = IntentBody::DeleteNode { name };
    Departure::Empty(Intent::new(facts, node.created.0, body))
}

fn put(facts: &Facts<'_>, seen: u64, name: NodeName, spec: NodeSpec) -> Intent {
    Intent::new(facts, seen, IntentBody::PutNode { name, spec })
}
