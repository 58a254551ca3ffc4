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
const ON_THE_WAY: [&str; 5] = ["Pending", "Creating", "Applying", "Deleting", "Released"];
/// Reasons that concern the whole cluster, not this object: a metric and readiness say so once, not every object.
const NOT_OF_THE_OBJECT: [&str; 1] = ["ControlPlaneUnreachable"];
/// The condition of a warning that holds while it is `False`; its other reasons are the normal case and not told.
const ADVISORY: &str = "AccessRestricted";

/// The events for the step from the conditions `old` to `new`. The same step gives the same events; no step, none.
pub(crate) fn of_transition(old: &[Condition], new: &[Condition]) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    for condition in new {
        let before = old.iter().find(|old| old.type_ == condition.type_);
        let same = before.is_some_and(|old| old.status == condition.status && old.reason == condition.reason);
        let holds = condition.status == "True";
        let first_and_fine = before.is_none() && (holds && condition.type_ != "Ready");
        if same
            || first_and_fine
            || (holds && condition.type_ == ADVISORY)
            || NOT_OF_THE_OBJECT.contains(&condition.reason.as_str())
            || events.iter().any(|event| event.reason == condition.reason)
        {
            continue;
        }
        let fine = holds || ON_THE_WAY.contains(&condition.reason.as_str());
        events.push(Event {
            kind: if fine { EventKind::Normal } else { EventKind::Warning },
            reason: condition.reason.clone(),
            note: condition.message.clone(),
        });
    }
    events
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
