//! The plan for one `Volume`.

use basalt_crds as crds;
use basalt_crds::VolumeStatus;
use basalt_model::{ClusterId, Lifecycle, ReclaimPolicy, Volume, VolumeChange, VolumeName, VolumeSpec};
use k8s_openapi::jiff::Timestamp;

use crate::intent::{Intent, IntentBody, Rejection};
use crate::object::{Facts, Recorded};
use crate::spec::{adopted_id, named, volume_spec};
use crate::{Finalizer, InvalidSpec, Plan, Progress, Seen, VolumeSight, finish, volume_status};

/// What an object that is to stay and the control plane are to each other.
#[derive(Debug)]
pub(crate) enum Situation<'a> {
    /// The control plane cannot be asked.
    Unreachable(&'a str),
    /// It can, but the object's volume is not there to be worked with. Nothing is done.
    CutOff(Obstacle<'a>),
    /// The volume is being deleted, which this object did not ask for.
    DeletedByOther(&'a Volume),
    /// The specification means nothing.
    Invalid { error: InvalidSpec, present: Option<&'a Volume> },
    /// It does not exist yet.
    Wanted(Intent),
    /// It exists and is not what is asked.
    Drifted { present: &'a Volume, intent: Intent },
    /// It exists and is what is asked.
    Settled(&'a Volume),
}

/// Why an object and its volume do not come together.
#[derive(Debug)]
pub(crate) enum Obstacle<'a> {
    /// The volume belongs to another cluster than the one that answers.
    Elsewhere { recorded: &'a str, answering: ClusterId },
    /// The status says that the volume existed, and the control plane has no record of it.
    Missing { id: &'a str },
    /// The volume was put aside by somebody else.
    PutAside(&'a Volume),
    /// Another object, or none, owns the volume of this name.
    Taken(&'a Volume),
    /// The volume of this name is ours, but is another one than the status recorded.
    Replaced { recorded: &'a str, present: &'a Volume },
}

/// What an object that is to go and the control plane are to each other.
#[derive(Debug)]
pub(crate) enum Departure<'a> {
    /// The control plane cannot be asked.
    Unreachable(&'a str),
    /// Its volume is in another cluster: letting go now would lose the only handle on it.
    Elsewhere { recorded: &'a str, answering: ClusterId },
    /// The volume is there and has to go or to be put aside.
    Held { present: &'a Volume, intent: Box<Intent> },
    /// The volume is going.
    Going(&'a Volume),
    /// Nothing of ours is there (any more).
    Gone,
}

/// What to do next for a `Volume`. `progress` is what became of the plans before.
#[must_use]
pub fn plan_volume(
    object: &crds::Volume,
    seen: &Seen<VolumeSight>,
    progress: &Progress,
    now: Timestamp,
) -> Plan<VolumeStatus> {
    let Some(facts) = Facts::of(&object.metadata, progress.accepted) else { return Plan::idle() };
    let cluster = match seen {
        Seen::Unreachable { .. } => None,
        Seen::Answered { cluster, .. } => Some(*cluster),
    };
    let context = volume_status::Context { object, generation: facts.generation, cluster, now };
    let rejection = progress.rejection.as_ref();
    match (facts.deleting, facts.has_finalizer) {
        (true, false) => Plan::idle(),
        (false, false) => Plan::add_finalizer(),
        (false, true) => stay(context, &assess(object, &facts, seen), rejection),
        (true, true) => go(context, &depart(object, &facts, seen), rejection),
    }
}

fn stay(
    context: volume_status::Context<'_>,
    situation: &Situation<'_>,
    rejection: Option<&Rejection>,
) -> Plan<VolumeStatus> {
    let status = context.staying(situation, rejection);
    let intent = match situation {
        Situation::Wanted(intent) | Situation::Drifted { intent, .. } => Some(intent.clone()),
        _ => None,
    };
    let settled = matches!(situation, Situation::Settled(_));
    finish(context.object.status.as_ref(), status, intent, rejection, settled, Finalizer::Keep)
}

fn go(
    context: volume_status::Context<'_>,
    departure: &Departure<'_>,
    rejection: Option<&Rejection>,
) -> Plan<VolumeStatus> {
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

fn assess<'a>(object: &'a crds::Volume, facts: &Facts<'_>, seen: &'a Seen<VolumeSight>) -> Situation<'a> {
    let (cluster, sight) = match seen {
        Seen::Unreachable { message } => return Situation::Unreachable(message),
        Seen::Answered { cluster, found } => (*cluster, found),
    };
    let recorded = recorded(object);
    if let Some(other) = recorded.other_cluster(cluster) {
        return Situation::CutOff(Obstacle::Elsewhere { recorded: other, answering: cluster });
    }
    let asked = named("metadata.name", VolumeName::new(facts.name))
        .and_then(|name| Ok((name, volume_spec(&object.spec)?, adopted_id(&object.spec)?)));
    let Some(present) = &sight.by_name else {
        return match (recorded.id, asked) {
            (Some(id), _) => match &sight.by_id {
                Some(aside) if aside.lifecycle == Lifecycle::Released => {
                    Situation::CutOff(Obstacle::PutAside(aside))
                }
                _ => Situation::CutOff(Obstacle::Missing { id }),
            },
            (None, Err(error)) => Situation::Invalid { error, present: None },
            (None, Ok((name, spec, adopt))) => {
                let body = IntentBody::CreateVolume { name, spec, adopt };
                Situation::Wanted(Intent::new(facts, 0, body))
            }
        };
    };
    if present.uid.as_ref() != Some(&facts.owner) {
        return Situation::CutOff(Obstacle::Taken(present));
    }
    if let Some(id) = recorded.id.filter(|id| *id != present.id.to_string()) {
        return Situation::CutOff(Obstacle::Replaced { recorded: id, present });
    }
    if matches!(present.lifecycle, Lifecycle::Deleting(_)) {
        return Situation::DeletedByOther(present);
    }
    match asked {
        Err(error) => Situation::Invalid { error, present: Some(present) },
        Ok((name, spec, _)) => match drift(present, &spec) {
            None => Situation::Settled(present),
            Some(change) => {
                let body = IntentBody::UpdateVolume { name, change };
                let intent = Intent::new(facts, present.modified.0, body);
                Situation::Drifted { present, intent }
            }
        },
    }
}

fn depart<'a>(object: &'a crds::Volume, facts: &Facts<'_>, seen: &'a Seen<VolumeSight>) -> Departure<'a> {
    let (cluster, sight) = match seen {
        Seen::Unreachable { message } => return Departure::Unreachable(message),
        Seen::Answered { cluster, found } => (*cluster, found),
    };
    let recorded = recorded(object);
    if let Some(other) = recorded.other_cluster(cluster) {
        return Departure::Elsewhere { recorded: other, answering: cluster };
    }
    let ours = |volume: &&Volume| {
        volume.uid.as_ref() == Some(&facts.owner) && recorded.id.is_none_or(|id| id == volume.id.to_string())
    };
    let Some(present) = sight.by_name.as_ref().filter(ours) else { return Departure::Gone };
    match &present.lifecycle {
        Lifecycle::Released => Departure::Gone,
        Lifecycle::Deleting(_) => Departure::Going(present),
        Lifecycle::Active => {
            let name = present.name.clone();
            let body = match reclaim(object) {
                ReclaimPolicy::Delete => IntentBody::DeleteVolume { name },
                ReclaimPolicy::Retain => IntentBody::ReleaseVolume { name },
            };
            let intent = Box::new(Intent::new(facts, present.created.0, body));
            Departure::Held { present, intent }
        }
    }
}

/// The object's policy is asked at the moment of deletion, whatever the control plane heard last.
const fn reclaim(object: &crds::Volume) -> ReclaimPolicy {
    match object.spec.reclaim_policy {
        crds::volume::ReclaimPolicy::Delete => ReclaimPolicy::Delete,
        crds::volume::ReclaimPolicy::Retain => ReclaimPolicy::Retain,
    }
}

/// What has to change, of what can change.
fn drift(present: &Volume, asked: &VolumeSpec) -> Option<VolumeChange> {
    let has = &present.spec;
    let change = VolumeChange {
        allowed_hosts: (has.allowed_hosts != asked.allowed_hosts).then(|| asked.allowed_hosts.clone()),
        reclaim: (has.reclaim != asked.reclaim).then_some(asked.reclaim),
        size: (has.size != asked.size).then_some(asked.size),
    };
    (change != VolumeChange::default()).then_some(change)
}

fn recorded(object: &crds::Volume) -> Recorded<'_> {
    let status = object.status.as_ref();
    Recorded {
        id: status.and_then(|status| status.volume_id.as_deref()),
        cluster: status.and_then(|status| status.cluster_id.as_deref()),
    }
}
