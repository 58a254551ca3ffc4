//! The plan for one `Snapshot`.

use basalt_crds as crds;
use basalt_crds::SnapshotStatus;
use basalt_model::{ClusterId, Lifecycle, Snapshot, SnapshotName, VolumeName};
use k8s_openapi::jiff::Timestamp;

use crate::intent::{Intent, IntentBody, Rejection};
use crate::object::{Facts, Recorded};
use crate::spec::{adopted_snapshot, named};
use crate::{Finalizer, InvalidSpec, Plan, Progress, Seen, SnapshotSight, finish, snapshot_status};

/// What an object that is to stay and the control plane are to each other.
#[derive(Debug)]
pub(crate) enum Situation<'a> {
    /// The control plane cannot be asked.
    Unreachable(&'a str),
    /// It can, but the object's snapshot is not there to be worked with. Nothing is done.
    CutOff(Obstacle<'a>),
    /// The snapshot is being deleted, which this object did not ask for.
    DeletedByOther(&'a Snapshot),
    /// The specification means nothing.
    Invalid(InvalidSpec),
    /// It was not asked for yet.
    Wanted(Intent),
    /// It is there, or on its way.
    Settled(&'a Snapshot),
}

/// Why an object and its snapshot do not come together.
#[derive(Debug)]
pub(crate) enum Obstacle<'a> {
    /// The snapshot belongs to another cluster than the one that answers.
    Elsewhere { recorded: &'a str, answering: ClusterId },
    /// The status says that the snapshot existed, and the control plane has no record of it.
    Missing { id: &'a str },
    /// The snapshot was put aside by somebody else.
    PutAside(&'a Snapshot),
    /// Another object, or none, owns the snapshot of this name.
    Taken(&'a Snapshot),
    /// The snapshot of this name is ours, but is another one than the status recorded.
    Replaced { recorded: &'a str, present: &'a Snapshot },
}

/// What an object that is to go and the control plane are to each other.
#[derive(Debug)]
pub(crate) enum Departure<'a> {
    /// The control plane cannot be asked.
    Unreachable(&'a str),
    /// Its snapshot is in another cluster: letting go now would lose the only handle on it.
    Elsewhere { recorded: &'a str, answering: ClusterId },
    /// The snapshot is there and has to go or to be put aside.
    Held { present: &'a Snapshot, intent: Box<Intent> },
    /// The snapshot is going.
    Going(&'a Snapshot),
    /// Nothing of ours is there (any more).
    Gone,
}

/// What to do next for a `Snapshot`. `progress` is what became of the plans before.
#[must_use]
pub fn plan_snapshot(
    object: &crds::Snapshot,
    seen: &Seen<SnapshotSight>,
    progress: &Progress,
    now: Timestamp,
) -> Plan<SnapshotStatus> {
    let Some(facts) = Facts::of(&object.metadata, progress.accepted) else { return Plan::idle() };
    let cluster = match seen {
        Seen::Unreachable { .. } => None,
        Seen::Answered { cluster, .. } => Some(*cluster),
    };
    let context = snapshot_status::Context { object, generation: facts.generation, cluster, now };
    let rejection = progress.rejection.as_ref();
    match (facts.deleting, facts.has_finalizer) {
        (true, false) => Plan::idle(),
        (false, false) => Plan::add_finalizer(),
        (false, true) => stay(context, &assess(object, &facts, seen), rejection),
        (true, true) => go(context, &depart(object, &facts, seen), rejection),
    }
}

fn stay(
    context: snapshot_status::Context<'_>,
    situation: &Situation<'_>,
    rejection: Option<&Rejection>,
) -> Plan<SnapshotStatus> {
    let status = context.staying(situation, rejection);
    let intent = match situation {
        Situation::Wanted(intent) => Some(intent.clone()),
        _ => None,
    };
    let settled = matches!(situation, Situation::Settled(_));
    finish(context.object.status.as_ref(), status, intent, rejection, settled, Finalizer::Keep)
}

fn go(
    context: snapshot_status::Context<'_>,
    departure: &Departure<'_>,
    rejection: Option<&Rejection>,
) -> Plan<SnapshotStatus> {
    let status = context.leaving(departure, rejection);
    let (intent, finalizer) = match departure {
        Departure::Held { intent, .. } => (Some(Intent::clone(intent)), Finalizer::Keep),
        Departure::Gone => (None, Finalizer::Remove),
        Departure::Unreachable(_) | Departure::Elsewhere { .. } | Departure::Going(_) => {
            (None, Finalizer::Keep)
        }
    };
    let settled = matches!(departure, Departure::Going(_) | Departure::Gone);
    finish(context.object.status.as_ref(), status, intent, rejection, settled, finalizer)
}

fn assess<'a>(object: &'a crds::Snapshot, facts: &Facts<'_>, seen: &'a Seen<SnapshotSight>) -> Situation<'a> {
    let (cluster, sight) = match seen {
        Seen::Unreachable { message } => return Situation::Unreachable(message),
        Seen::Answered { cluster, found } => (*cluster, found),
    };
    let recorded = recorded(object);
    if let Some(other) = recorded.other_cluster(cluster) {
        return Situation::CutOff(Obstacle::Elsewhere { recorded: other, answering: cluster });
    }
    let Some(present) = &sight.by_name else {
        return match recorded.id {
            None => wanted(object, facts).map_or_else(Situation::Invalid, Situation::Wanted),
            Some(id) => match &sight.by_id {
                Some(aside) if aside.lifecycle == Lifecycle::Released => {
                    Situation::CutOff(Obstacle::PutAside(aside))
                }
                _ => Situation::CutOff(Obstacle::Missing { id }),
            },
        };
    };
    if present.uid.as_ref() != Some(&facts.owner) {
        return Situation::CutOff(Obstacle::Taken(present));
    }
    if let Some(id) = recorded.id.filter(|id| *id != present.id.to_string()) {
        return Situation::CutOff(Obstacle::Replaced { recorded: id, present });
    }
    match &present.lifecycle {
        Lifecycle::Deleting(_) => Situation::DeletedByOther(present),
        // Nothing of what was asked can change.
        Lifecycle::Active | Lifecycle::Released => Situation::Settled(present),
    }
}

fn wanted(object: &crds::Snapshot, facts: &Facts<'_>) -> Result<Intent, InvalidSpec> {
    let body = IntentBody::CreateSnapshot {
        name: named("metadata.name", SnapshotName::new(facts.name))?,
        volume: named("spec.volume", VolumeName::new(object.spec.volume.as_str()))?,
        adopt: adopted_snapshot(&object.spec)?,
    };
    Ok(Intent::new(facts, 0, body))
}

fn depart<'a>(object: &'a crds::Snapshot, facts: &Facts<'_>, seen: &'a Seen<SnapshotSight>) -> Departure<'a> {
    let (cluster, sight) = match seen {
        Seen::Unreachable { message } => return Departure::Unreachable(message),
        Seen::Answered { cluster, found } => (*cluster, found),
    };
    let recorded = recorded(object);
    if let Some(other) = recorded.other_cluster(cluster) {
        return Departure::Elsewhere { recorded: other, answering: cluster };
    }
    let ours = |present: &&Snapshot| {
        let same = recorded.id.is_none_or(|id| id == present.id.to_string());
        present.uid.as_ref() == Some(&facts.owner) && same
    };
    let Some(present) = sight.by_name.as_ref().filter(ours) else { return Departure::Gone };
    match &present.lifecycle {
        Lifecycle::Released => Departure::Gone,
        Lifecycle::Deleting(_) => Departure::Going(present),
        Lifecycle::Active => {
            let name = present.name.clone();
            // The object's policy is asked at the moment of deletion.
            let body = match object.spec.reclaim_policy {
                crds::volume::ReclaimPolicy::Delete => IntentBody::DeleteSnapshot { name },
                crds::volume::ReclaimPolicy::Retain => IntentBody::ReleaseSnapshot { name },
            };
            Departure::Held { present, intent: Box::new(Intent::new(facts, present.created.0, body)) }
        }
    }
}

fn recorded(object: &crds::Snapshot) -> Recorded<'_> {
    let status = object.status.as_ref();
    Recorded {
        id: status.and_then(|status| status.snapshot_id.as_deref()),
        cluster: status.and_then(|status| status.cluster_id.as_deref()),
    }
}
