//! Events: said once, when a condition changes.

use basalt_crds::Condition;

/// Something to tell users about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Whether somebody should look.
    pub kind: EventKind,
    /// One CamelCase word.
    pub reason: String,
    /// A sentence for a person.
    pub note: String,
}

/// Whether somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// As it should be.
    Normal,
    /// Not as it should be.
    Warning,
}

/// Reasons with which a condition that is not `True` is nothing to worry about.
const ON_THE_WAY: [&str; 8] = [
    "Pending",
    "Creating",
    "Applying",
    "Deleting",
    "Released",
    "NeverConnected",
    "PoolPending",
    "WaitingForPool",
];
/// Reasons that nobody is told: the first concerns the whole cluster, not this object, and a metric and readiness say it once;
/// the second is over in a moment.
const QUIET: [&str; 2] = ["ControlPlaneUnreachable", "Applying"];
/// The condition that people wait for.
const MAIN: &str = "Ready";
/// The condition that stands in nobody's way but says when something was refused, and when that is over.
const ACCEPTANCE: &str = "Synced";
/// The condition of a warning that holds while it is `False`; when it does not, that is the normal case.
const ADVISORY: &str = "AccessRestricted";

/// The events for the step from the conditions `old` to `new`. The same step gives the same events; no step, none.
pub(crate) fn of_transition(old: &[Condition], new: &[Condition]) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for condition in new {
        let before = old.iter().find(|old| old.type_ == condition.type_);
        let told = events.iter().any(|event| event.reason == condition.reason);
        if told || !is_news(before, condition) {
            continue;
        }
        let fine = holds(condition) || ON_THE_WAY.contains(&condition.reason.as_str());
        events.push(Event {
            kind: if fine { EventKind::Normal } else { EventKind::Warning },
            reason: condition.reason.clone(),
            note: condition.message.clone(),
        });
    }
    events
}

fn is_news(before: Option<&Condition>, now: &Condition) -> bool {
    if before.is_some_and(|old| old.status == now.status && old.reason == now.reason) {
        return false;
    }
    if QUIET.contains(&now.reason.as_str()) || (holds(now) && now.type_ == ADVISORY) {
        return false;
    }
    let was_wrong = before.is_some_and(|old| !holds(old) && !ON_THE_WAY.contains(&old.reason.as_str()));
    !holds(now) || now.type_ == MAIN || (now.type_ == ACCEPTANCE && was_wrong)
}

fn holds(condition: &Condition) -> bool {
    condition.status == "True"
}

#[cfg(test)]
mod tests {
    use basalt_crds::{Conditions, Status};
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn conditions(all: &[(&str, Status, &str)]) -> Vec<Condition> {
        let mut conditions = Conditions::new(&[], 1, Timestamp::UNIX_EPOCH);
        for (type_, status, reason) in all {
            conditions.set(type_, *status, reason, "words");
        }
        conditions.finish()
    }

    fn kinds(old: &[Condition], new: &[Condition]) -> Vec<(EventKind, String)> {
        of_transition(old, new).into_iter().map(|event| (event.kind, event.reason)).collect()
    }

    #[test]
    fn told_once_and_in_the_right_tone() {
        let creating =
            conditions(&[("Synced", Status::True, "Synced"), ("Ready", Status::False, "Creating")]);
        let online = conditions(&[("Synced", Status::True, "Synced"), ("Ready", Status::True, "Online")]);
        let lost =
            conditions(&[("Synced", Status::True, "Synced"), ("Ready", Status::False, "NodeNotConnected")]);
        assert_eq!(kinds(&[], &creating), [(EventKind::Normal, "Creating".to_owned())]);
        assert_eq!(kinds(&creating, &creating), []);
        assert_eq!(kinds(&creating, &online), [(EventKind::Normal, "Online".to_owned())]);
        assert_eq!(kinds(&online, &lost), [(EventKind::Warning, "NodeNotConnected".to_owned())]);
    }

    #[test]
    fn one_cause_in_two_conditions_is_one_event() {
        let refused = conditions(&[("Synced", Status::False, "NoRoom"), ("Ready", Status::False, "NoRoom")]);
        assert_eq!(kinds(&[], &refused), [(EventKind::Warning, "NoRoom".to_owned())]);
    }

    #[test]
    fn what_concerns_the_whole_cluster_is_not_told_by_every_object() {
        let away = conditions(&[("Ready", Status::Unknown, "ControlPlaneUnreachable")]);
        assert_eq!(kinds(&[], &away), []);
    }
}
