//! Conditions in Kubernetes' standard form.

use std::fmt;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// The three values of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It cannot be observed now.
    Unknown,
}

impl Status {
    /// The word that stands in the object.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<bool> for Status {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// Builds the next list of conditions out of the one that an object has.
///
/// `lastTransitionTime` moves only when the status of a condition changes; so writing the same observation twice
/// gives the same object, and a server-side apply of it is no change.
#[derive(Debug)]
pub struct Conditions<'a> {
    old: &'a [Condition],
    generation: i64,
    now: Timestamp,
    new: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Starts from the conditions `old` of an object whose spec, at `generation`, was looked at.
    #[must_use]
    pub const fn new(old: &'a [Condition], generation: i64, now: Timestamp) -> Self {
        Self { old, generation, now, new: Vec::new() }
    }

    /// Adds or replaces the condition `type_`.
    pub fn set(&mut self, type_: &str, status: Status, reason: &str, message: impl Into<String>) {
        let since = self
            .old
            .iter()
            .find(|old| old.type_ == type_ && old.status == status.as_str())
            .map_or(Time(self.now), |old| old.last_transition_time.clone());
        let next = Condition {
            type_: type_.to_owned(),
            status: status.as_str().to_owned(),
            reason: reason.to_owned(),
            message: message.into(),
            observed_generation: Some(self.generation),
            last_transition_time: since,
        };
        match self.new.iter_mut().find(|new| new.type_ == type_) {
            Some(slot) => *slot = next,
            None => self.new.push(next),
        }
    }

    /// Keeps the condition `type_` as it was, if it was: nothing new can be said of it.
    pub fn keep(&mut self, type_: &str) {
        if self.new.iter().all(|new| new.type_ != type_) {
            self.new.extend(self.old.iter().find(|old| old.type_ == type_).cloned());
        }
    }

    /// The new list, ordered by type.
    #[must_use]
    pub fn finish(mut self) -> Vec<Condition> {
        self.new.sort_by(|a, b| a.type_.cmp(&b.type_));
        self.new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn time_moves_only_with_the_status() {
        let mut first = Conditions::new(&[], 1, at(10));
        first.set("Ready", Status::False, "Creating", "");
        let first = first.finish();

        let mut second = Conditions::new(&first, 2, at(20));
        second.set("Ready", Status::False, "NoPool", "no pool has room");
        let second = second.finish();
        assert_eq!(second[0].last_transition_time, Time(at(10)));
        assert_eq!(second[0].observed_generation, Some(2));

        let mut third = Conditions::new(&second, 2, at(30));
        third.set("Ready", Status::False, "NoPool", "");
        third.set("Ready", Status::True, "Online", "");
        let third = third.finish();
        assert_eq!(third.len(), 1);
        assert_eq!(third[0].last_transition_time, Time(at(30)));
    }
}
