//! Whether a process can do its work, and what it waits for if not.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The conditions of one process. Ready when every gate is open. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    gates: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

impl Readiness {
    /// A registry without gates: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a gate, which is closed with this reason at first. A second gate of the same name is the same gate.
    pub fn gate(&self, name: &'static str, waits_for: impl Into<String>) -> Gate {
        let gate = Gate { readiness: self.clone(), name };
        gate.close(waits_for);
        gate
    }

    /// What the process waits for: name of the gate and reason, by name. Empty when it is ready.
    pub fn waits_for(&self) -> Vec<(&'static str, String)> {
        let closed = |(name, reason): (&&'static str, &Option<String>)| Some((*name, reason.clone()?));
        self.lock().iter().filter_map(closed).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One condition for being ready.
#[derive(Debug, Clone)]
pub struct Gate {
    readiness: Readiness,
    name: &'static str,
}

impl Gate {
    /// The condition is met.
    pub fn open(&self) {
        self.readiness.lock().insert(self.name, None);
    }

    /// The condition is not met, for this reason.
    pub fn close(&self, waits_for: impl Into<String>) {
        self.readiness.lock().insert(self.name, Some(waits_for.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_all_gates_are_open() {
        let readiness = Readiness::new();
        assert!(readiness.waits_for().is_empty());
        let (disk, leader) = (readiness.gate("disk", "opening"), readiness.gate("leader", "none known"));
        disk.open();
        assert_eq!(readiness.waits_for(), [("leader", "none known".to_owned())]);
        leader.open();
        assert!(readiness.waits_for().is_empty());
        disk.close("full");
        assert_eq!(readiness.waits_for(), [("disk", "full".to_owned())]);
    }
}
