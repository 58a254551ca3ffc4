//! The plan for one `Snapshot`.

use basalt_crds as crds;
use basalt_crds::SnapshotStatus;
use basalt_model::{Lifecycle, Snapshot, SnapshotName, VolumeName};
use k8s_openapi::jiff::Timestamp;

use crate::held::{self, Obstacle};
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
    CutOff(Obstacle<'a, Snapshot>),
    /// The snapshot is being deleted, which this object did not ask for.
    DeletedByOther(&'a Snapshot),
    /// The specification means nothing.
    Invalid(InvalidSpec),
    /// It was not asked for yet.
    Wanted(Intent),
    /// It is there, or on its way.
    Settled(&'a Snapshot),
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
    let (cluster, node) = match seen {
        Seen::Unreachable { .. } => (None, None),
        Seen::Answered { cluster, found } => (Some(*cluster), found.node.as_ref()),
    };
    let context = snapshot_status::Context { object, generation: facts.generation, cluster, node, now };
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

fn assess<'a>(object: &'a crds::Snapshot, facts: &Facts<'_>, seen: &'a Seen<SnapshotSight>) -> Situation<'a> {
    let (cluster, sight) = match seen {
        Seen::Unreachable { message } => return Situation::Unreachable(message),
        Seen::Answered { cluster, found } => (*cluster, found),
    };
    let present = match held::find(facts, &recorded(object), cluster, sight) {
        Err(obstacle) => return Situation::CutOff(obstacle),
        Ok(None) => return wanted(object, facts).map_or_else(Situation::Invalid, Situation::Wanted),
        Ok(Some(present)) => present,
    };
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

/// What is asked for what an object that goes leaves. Its policy is asked at the moment of deletion, whatever the control plane heard last.
fn farewell(object: &crds::Snapshot, present: &Snapshot) -> IntentBody {
    let name = present.name.clone();
    match object.spec.reclaim_policy {
        crds::volume::ReclaimPolicy::Delete => IntentBody::DeleteSnapshot { name },
        crds::volume::ReclaimPolicy::Retain => IntentBody::ReleaseSnapshot { name },
    }
}

fn recorded(object: &crds::Snapshot) -> Recorded<'_> {
    let status = object.status.as_ref();
    Recorded {
        id: status.and_then(|status| status.snapshot_id.as_deref()),
        cluster: status.and_then(|status| status.cluster_id.as_deref()),
    }
}
