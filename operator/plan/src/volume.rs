//! The plan for one `Volume`.

use basalt_crds as crds;
use basalt_crds::VolumeStatus;
use basalt_model::{Lifecycle, Volume, VolumeChange, VolumeName, VolumeSpec};
use k8s_openapi::jiff::Timestamp;

use crate::held::{self, Obstacle};
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
    CutOff(Obstacle<'a, Volume>),
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

/// What to do next for a `Volume`. `progress` is what became of the plans before.
#[must_use]
pub fn plan_volume(
    object: &crds::Volume,
    seen: &Seen<VolumeSight>,
    progress: &Progress,
    now: Timestamp,
) -> Plan<VolumeStatus> {
    let Some(facts) = Facts::of(&object.metadata, progress.accepted) else { return Plan::idle() };
    let (cluster, node) = match seen {
        Seen::Unreachable { .. } => (None, None),
        Seen::Answered { cluster, found } => (Some(*cluster), found.node.as_ref()),
    };
    let context = volume_status::Context { object, generation: facts.generation, cluster, node, now };
    let rejection = progress.rejection.as_ref();
    match (facts.deleting, facts.has_finalizer) {
        (true, false) => Plan::idle(),
        (false, false) => Plan::add_finalizer(),
        (false, true) => stay(context, &assess(object, &facts, seen), rejection),
        (true, true) => {
            let departure =
                held::depart(&facts, &recorded(object), seen, |present| farewell(object, present));
            let status = context.leaving(&departure, rejection);
            departure.plan(object.status.as_ref(), status, rejection)
        }
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

fn assess<'a>(object: &'a crds::Volume, facts: &Facts<'_>, seen: &'a Seen<VolumeSight>) -> Situation<'a> {
    let (cluster, sight) = match seen {
        Seen::Unreachable { message } => return Situation::Unreachable(message),
        Seen::Answered { cluster, found } => (*cluster, found),
    };
    let found = match held::find(facts, &recorded(object), cluster, sight) {
        Err(obstacle) => return Situation::CutOff(obstacle),
        Ok(found) => found,
    };
    let asked = named("metadata.name", VolumeName::new(facts.name))
        .and_then(|name| Ok((name, volume_spec(&object.spec)?, adopted_id(&object.spec)?)));
    let Some(present) = found else {
        return match asked {
            Err(error) => Situation::Invalid { error, present: None },
            Ok((name, spec, adopt)) => {
                let body = IntentBody::CreateVolume { name, spec, adopt };
                Situation::Wanted(Intent::new(facts, 0, body))
            }
        };
    };
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

/// What is asked for what an object that goes leaves. Its policy is asked at the moment of deletion, whatever the control plane heard last.
fn farewell(object: &crds::Volume, present: &Volume) -> IntentBody {
    let name = present.name.clone();
    match object.spec.reclaim_policy {
        crds::volume::ReclaimPolicy::Delete => IntentBody::DeleteVolume { name },
        crds::volume::ReclaimPolicy::Retain => IntentBody::ReleaseVolume { name },
    }
}

/// What has to change, of what can change.
fn drift(present: &Volume, asked: &VolumeSpec) -> Option<VolumeChange> {
    let has = &present.spec;
    let change = VolumeChange {
        allowed_hosts: (has.allowed_hosts != asked.allowed_hosts).then(|| asked.allowed_hosts.clone()),
        reclaim: (has.reclaim != asked.reclaim).then_some(asked.reclaim),
        size: (has.size != asked.size).then_some(asked.size),
        read_only: (has.read_only != asked.read_only).then_some(asked.read_only),
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
