//! What happened lately, for watchers that come back.

use crate::api::{Event, EventKind};
use basalt_model::{Change, Revision, State};
use std::collections::VecDeque;
use std::sync::Arc;

/// The events after a revision, bounded.
#[derive(Debug)]
pub(crate) struct History {
    events: VecDeque<Event>,
    limit: usize,
    /// Everything after this revision is held.
    complete_after: Revision,
}

impl History {
    /// An empty history that begins after `revision`.
    pub(crate) fn new(revision: Revision, limit: usize) -> Self {
        Self { events: VecDeque::new(), limit, complete_after: revision }
    }

    /// Forgets everything: the state jumped to `revision`.
    pub(crate) fn restart(&mut self, revision: Revision) {
        self.events.clear();
        self.complete_after = revision;
    }

    /// The first revision from which a watch can go on.
    pub(crate) fn oldest(&self) -> Revision {
        self.complete_after
    }

    /// The events after `from`; `None` when some of them were forgotten.
    pub(crate) fn since(&self, from: Revision) -> Option<Vec<Event>> {
        if from < self.complete_after {
            return None;
        }
        let start = self.events.partition_point(|event| event.revision <= from);
        Some(self.events.range(start..).cloned().collect())
    }

    /// Adds what a command changed; returns the events.
    pub(crate) fn record(&mut self, state: &State, revision: Revision, changes: &[Change]) -> Vec<Event> {
        let mut events: Vec<Event> = Vec::new();
        for change in changes {
            let Some(kind) = kind_of(state, change) else { continue };
            let event = Event { revision, kind };
            if events.last() != Some(&event) {
                events.push(event);
            }
        }
        self.events.extend(events.iter().cloned());
        while self.events.len() > self.limit {
            // Whole revisions only: a watch resumes between revisions.
            let Some(gone) = self.events.pop_front() else { break };
            self.complete_after = gone.revision;
            while self.events.front().is_some_and(|event| event.revision == gone.revision) {
                self.events.pop_front();
            }
        }
        events
    }
}

fn kind_of(state: &State, change: &Change) -> Option<EventKind> {
    Some(match change {
        Change::Cluster | Change::Member(_) | Change::MemberRemoved(_) => EventKind::Cluster,
        Change::Node(name) => EventKind::Node(Arc::new(state.nodes().get(name)?.clone())),
        Change::NodeRemoved(name) => EventKind::NodeRemoved(name.clone()),
        Change::Desired(_) => return None,
        Change::Volume(id) => EventKind::Volume(Arc::new(state.volumes().get(id)?.clone())),
        Change::Snapshot(id) => EventKind::Snapshot(Arc::new(state.snapshots().get(id)?.clone())),
        Change::SnapshotRemoved(id, name) => EventKind::SnapshotRemoved { id: *id, name: name.clone() },
        Change::VolumeRemoved(id, name) => EventKind::VolumeRemoved { id: *id, name: name.clone() },
    })
}
