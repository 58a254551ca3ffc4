//! What an object and the data that it stands for are to each other: the same for volumes and snapshots.

use basalt_model::{ClusterId, Lifecycle, ObjectUid, Revision, Snapshot, Volume, VolumeId};

use crate::intent::{Intent, IntentBody, Rejection};
use crate::object::{Facts, Recorded};
use crate::{DataSight, Finalizer, Plan, Seen, Told, finish};

/// Data in the control plane that an object stands for.
pub(crate) trait Held {
    fn id(&self) -> VolumeId;
    fn uid(&self) -> Option<&ObjectUid>;
    fn lifecycle(&self) -> &Lifecycle;
    fn created(&self) -> Revision;
}

impl Held for Volume {
    fn id(&self) -> VolumeId {
        self.id
    }

    fn uid(&self) -> Option<&ObjectUid> {
        self.uid.as_ref()
    }

    fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    fn created(&self) -> Revision {
        self.created
    }
}

impl Held for Snapshot {
    fn id(&self) -> VolumeId {
        self.id
    }

    fn uid(&self) -> Option<&ObjectUid> {
        self.uid.as_ref()
    }

    fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    fn created(&self) -> Revision {
        self.created
    }
}

/// Why an object and its data do not come together.
#[derive(Debug)]
pub(crate) enum Obstacle<'a, T> {
    /// The data belongs to another cluster than the one that answers.
    Elsewhere { recorded: &'a str, answering: ClusterId },
    /// The status says that the data existed, and the control plane has no record of it.
    Missing { id: &'a str },
    /// The data was put aside by somebody else.
    PutAside(&'a T),
    /// Another object, or none, owns what has this name.
    Taken(&'a T),
    /// What has this name is ours, but is another one than the status recorded.
    Replaced { recorded: &'a str, present: &'a T },
}

/// What an object that is to go and the control plane are to each other.
#[derive(Debug)]
pub(crate) enum Departure<'a, T> {
    /// The control plane cannot be asked.
    Unreachable(&'a str),
    /// Its data is in another cluster: letting go now would lose the only handle on it.
    Elsewhere { recorded: &'a str, answering: ClusterId },
    /// The data is there and has to go or to be put aside.
    Held { present: &'a T, intent: Box<Intent> },
    /// The data is going.
    Going(&'a T),
    /// Nothing of ours is there (any more).
    Gone,
}

/// The data of the object's name, if it is this object's; `None` where there is nothing of that name and there never was.
pub(crate) fn find<'a, T: Held>(
    facts: &Facts<'_>,
    recorded: &Recorded<'a>,
    cluster: ClusterId,
    sight: &'a DataSight<T>,
) -> Result<Option<&'a T>, Obstacle<'a, T>> {
    if let Some(other) = recorded.other_cluster(cluster) {
        return Err(Obstacle::Elsewhere { recorded: other, answering: cluster });
    }
    let Some(present) = &sight.by_name else {
        return match (recorded.id, &sight.by_id) {
            (None, _) => Ok(None),
            (Some(_), Some(aside)) if *aside.lifecycle() == Lifecycle::Released => {
                Err(Obstacle::PutAside(aside))
            }
            (Some(id), _) => Err(Obstacle::Missing { id }),
        };
    };
    if present.uid() != Some(&facts.owner) {
        return Err(Obstacle::Taken(present));
    }
    match recorded.id.filter(|id| *id != present.id().to_string()) {
        Some(recorded) => Err(Obstacle::Replaced { recorded, present }),
        None => Ok(Some(present)),
    }
}

/// What has to be done before an object can go; `farewell` is what is asked for data that is there.
pub(crate) fn depart<'a, T: Held>(
    facts: &Facts<'_>,
    recorded: &Recorded<'a>,
    seen: &'a Seen<DataSight<T>>,
    farewell: impl FnOnce(&T) -> IntentBody,
) -> Departure<'a, T> {
    let (cluster, sight) = match seen {
        Seen::Unreachable { message } => return Departure::Unreachable(message),
        Seen::Answered { cluster, found } => (*cluster, found),
    };
    let present = match find(facts, recorded, cluster, sight) {
        Ok(Some(present)) => present,
        Err(Obstacle::Elsewhere { recorded, answering }) => {
            return Departure::Elsewhere { recorded, answering };
        }
        // Nothing of ours.
        Ok(None) | Err(_) => return Departure::Gone,
    };
    match present.lifecycle() {
        Lifecycle::Released => Departure::Gone,
        Lifecycle::Deleting(_) => Departure::Going(present),
        Lifecycle::Active => {
            let intent = Intent::new(facts, present.created().0, farewell(present));
            Departure::Held { present, intent: Box::new(intent) }
        }
    }
}

impl<T> Departure<'_, T> {
    /// The plan that follows, with this status.
    pub(crate) fn plan<S: Told>(&self, old: Option<&S>, status: S, rejection: Option<&Rejection>) -> Plan<S> {
        let (intent, finalizer) = match self {
            Departure::Held { intent, .. } => (Some(Intent::clone(intent)), Finalizer::Keep),
            Departure::Gone => (None, Finalizer::Remove),
            Departure::Unreachable(_) | Departure::Elsewhere { .. } | Departure::Going(_) => {
                (None, Finalizer::Keep)
            }
        };
        let settled = matches!(self, Departure::Going(_) | Departure::Gone);
        finish(old, status, intent, rejection, settled, finalizer)
    }
}
