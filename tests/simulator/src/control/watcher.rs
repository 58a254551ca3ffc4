//! A watcher: lists, then follows events, over every crash of the member that it watches through. In the end what it knows
//! must be what there is.

use crate::control::process::Life;
use crate::control::requests::Pending;
use crate::control::world::{Caller, Event, World};
use crate::event;
use crate::run::Violation;
use basalt_clock::Random;
use basalt_core::{self as core, ClientRequest, EventKind, Page, Read, ReadResult, Reply, RequestError};
use basalt_model::{MemberId, Node, NodeName, Revision, Snapshot, State, Volume, VolumeId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What the watcher does.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    /// Lists volumes, from this token on.
    Volumes(Option<String>),
    /// Lists nodes, from this token on.
    Nodes(Option<String>),
    /// Lists snapshots, from this token on.
    Snapshots(Option<String>),
    /// Wants to watch.
    Asking,
    /// Watches.
    Watching {
        /// The member.
        member: MemberId,
        /// Its run.
        life: Life,
        /// What was seen when the watch began; the member repeats what it learns late.
        floor: Option<Revision>,
        /// Where the watch began: earlier events were in its backlog.
        start: Revision,
        /// The last event of this watch.
        last: Revision,
    },
}

/// The watcher.
#[derive(Debug)]
pub struct Watcher {
    /// What it waits for.
    pub pending: Option<Pending>,
    stage: Stage,
    /// The revision from which on it has seen every event.
    since: Option<Revision>,
    /// What it knows.
    volumes: BTreeMap<VolumeId, (Revision, Option<Arc<Volume>>)>,
    nodes: BTreeMap<NodeName, (Revision, Option<Arc<Node>>)>,
    snapshots: BTreeMap<VolumeId, (Revision, Option<Arc<Snapshot>>)>,
    /// A watch whose first answer is on its way: the attempt that it answers, and what followed it on the same stream.
    coming: Option<(u64, MemberId, Life, Vec<core::Event>)>,
    /// How often it had to list again.
    pub lists: u64,
    /// Events that it has seen.
    pub events: u64,
}

impl Default for Watcher {
    fn default() -> Self {
        Self {
            pending: None,
            stage: Stage::Volumes(None),
            since: None,
            volumes: BTreeMap::new(),
            nodes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            coming: None,
            lists: 0,
            events: 0,
        }
    }
}

impl Watcher {
    fn list_again(&mut self) {
        self.stage = Stage::Volumes(None);
        self.since = None;
        self.volumes.clear();
        self.nodes.clear();
        self.snapshots.clear();
        self.lists += 1;
    }

    fn volume(&mut self, revision: Revision, id: VolumeId, volume: Option<Arc<Volume>>) {
        let known = self.volumes.entry(id).or_insert((revision, None));
        if known.0 <= revision {
            *known = (revision, volume);
        }
    }

    fn node(&mut self, revision: Revision, name: NodeName, node: Option<Arc<Node>>) {
        let known = self.nodes.entry(name).or_insert((revision, None));
        if known.0 <= revision {
            *known = (revision, node);
        }
    }

    fn snapshot(&mut self, revision: Revision, id: VolumeId, snapshot: Option<Arc<Snapshot>>) {
        let known = self.snapshots.entry(id).or_insert((revision, None));
        if known.0 <= revision {
            *known = (revision, snapshot);
        }
    }

    /// Takes an event; false if the watcher must list again.
    fn take(&mut self, event: &core::Event) -> bool {
        self.events += 1;
        let revision = event.revision;
        match &event.kind {
            EventKind::Volume(volume) => {
                event!("the watcher sees {} {:?} at {revision}", volume.id, volume.state)
            }
            EventKind::VolumeRemoved { id, .. } => event!("the watcher sees {id} removed at {revision}"),
            _ => {}
        }
        match &event.kind {
            EventKind::Volume(volume) => self.volume(revision, volume.id, Some(Arc::clone(volume))),
            EventKind::VolumeRemoved { id, .. } => self.volume(revision, *id, None),
            EventKind::Node(node) => self.node(revision, node.name.clone(), Some(Arc::clone(node))),
            EventKind::NodeRemoved(name) => self.node(revision, name.clone(), None),
            EventKind::Snapshot(seen) => self.snapshot(revision, seen.id, Some(Arc::clone(seen))),
            EventKind::SnapshotRemoved { id, .. } => self.snapshot(revision, *id, None),
            EventKind::Cluster => {}
            EventKind::Resync => return false,
        }
        self.since = self.since.max(Some(revision));
        true
    }

    /// Compares what the watcher knows with a state.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(&self, state: &State) -> Result<(), String> {
        let known: BTreeMap<VolumeId, &Volume> =
            self.volumes.iter().filter_map(|(id, (_, volume))| Some((*id, volume.as_deref()?))).collect();
        let there: BTreeMap<VolumeId, &Volume> =
            state.volumes().iter().map(|(id, volume)| (*id, volume)).collect();
        if let Some(id) = known.keys().chain(there.keys()).find(|id| known.get(id) != there.get(id)) {
            return Err(format!("volume {id}: {:?} is known, {:?} is there", known.get(id), there.get(id)));
        }
        let known: BTreeMap<VolumeId, &Snapshot> =
            self.snapshots.iter().filter_map(|(id, (_, seen))| Some((*id, seen.as_deref()?))).collect();
        let there: BTreeMap<VolumeId, &Snapshot> =
            state.snapshots().iter().map(|(id, seen)| (*id, seen)).collect();
        if let Some(id) = known.keys().chain(there.keys()).find(|id| known.get(id) != there.get(id)) {
            return Err(format!("snapshot {id}: {:?} is known, {:?} is there", known.get(id), there.get(id)));
        }
        // The revision of a node's orders changes with its volumes, and is no news about the node.
        let plain = |node: &Node| Node { desired: Revision(0), ..node.clone() };
        let known: BTreeMap<&NodeName, Node> =
            self.nodes.iter().filter_map(|(name, (_, node))| Some((name, plain(node.as_deref()?)))).collect();
        let there: BTreeMap<&NodeName, Node> =
            state.nodes().iter().map(|(name, node)| (name, plain(node))).collect();
        match known.keys().chain(there.keys()).find(|name| known.get(**name) != there.get(**name)) {
            Some(name) => {
                Err(format!("node {name}: {:?} is known, {:?} is there", known.get(name), there.get(name)))
            }
            None => Ok(()),
        }
    }

    /// Whether it watches.
    pub fn is_watching(&self) -> bool {
        matches!(self.stage, Stage::Watching { .. })
    }
}

impl World {
    /// The watcher asks for the next thing.
    pub(crate) fn watcher_begins(&mut self) {
        let page = |after: &Option<String>| Page { after: after.clone(), limit: 0 };
        let request = match &self.watcher.stage {
            Stage::Volumes(after) => ClientRequest::Read(Read::Volumes(page(after))),
            Stage::Nodes(after) => ClientRequest::Read(Read::Nodes(page(after))),
            Stage::Snapshots(after) => ClientRequest::Read(Read::Snapshots(page(after))),
            Stage::Asking => ClientRequest::Watch { from: self.watcher.since },
            Stage::Watching { .. } => return,
        };
        let pending = self.ask(Caller::Watcher, request);
        self.watcher.pending = Some(pending);
    }

    /// The watcher has its answer.
    pub(crate) fn watcher_answered(&mut self, pending: &Pending, reply: &Reply) -> Result<(), Violation> {
        let watcher = &mut self.watcher;
        match reply {
            Reply::Read { revision, result: ReadResult::Volumes { items, next } } => {
                // Of several pages the oldest revision is the one from which on nothing is missed.
                watcher.since = Some(watcher.since.map_or(*revision, |since| since.min(*revision)));
                event!("the watcher lists {} volumes at {revision}", items.len());
                for volume in items {
                    watcher.volume(*revision, volume.id, Some(Arc::clone(volume)));
                }
                let more = next.is_some();
                watcher.stage = if more { Stage::Volumes(next.clone()) } else { Stage::Nodes(None) };
            }
            Reply::Read { revision, result: ReadResult::Nodes { items, next } } => {
                for node in items {
                    watcher.node(*revision, node.name.clone(), Some(Arc::clone(node)));
                }
                let more = next.is_some();
                watcher.stage = if more { Stage::Nodes(next.clone()) } else { Stage::Snapshots(None) };
            }
            Reply::Read { revision, result: ReadResult::Snapshots { items, next } } => {
                for snapshot in items {
                    watcher.snapshot(*revision, snapshot.id, Some(Arc::clone(snapshot)));
                }
                watcher.stage = if next.is_some() { Stage::Snapshots(next.clone()) } else { Stage::Asking };
            }
            Reply::Watching { revision, backlog } => return self.watch_begins(pending, *revision, backlog),
            Reply::Failed(RequestError::TooOld { oldest }) => {
                event!("the watcher must list again: the history begins at {oldest}");
                watcher.list_again();
            }
            other => event!("the watcher is told {other:?}"),
        }
        self.scheduler.after(Duration::from_millis(1), Event::Wake(Caller::Watcher, 0));
        Ok(())
    }

    /// A member answers that a watch begins; its events follow on the same stream.
    pub(crate) fn watch_is_answered(&mut self, attempt: u64, member: MemberId, life: Life) {
        self.watcher.coming = Some((attempt, member, life, Vec::new()));
    }

    fn watch_begins(
        &mut self,
        pending: &Pending,
        revision: Revision,
        backlog: &[core::Event],
    ) -> Result<(), Violation> {
        let watcher = &mut self.watcher;
        event!("the watcher watches through member {} from {revision}", pending.target);
        let coming = watcher.coming.take().filter(|(attempt, ..)| *attempt == pending.attempt);
        let Some((_, member, life, events)) = coming else {
            // The stream has ended meanwhile.
            self.scheduler.after(Duration::from_millis(1), Event::Wake(Caller::Watcher, 0));
            return Ok(());
        };
        let floor = watcher.since;
        watcher.stage = Stage::Watching { member, life, floor, start: revision, last: revision };
        if !backlog.iter().all(|event| watcher.take(event)) {
            watcher.list_again();
            self.scheduler.after(Duration::from_millis(1), Event::Wake(Caller::Watcher, 0));
            return Ok(());
        }
        watcher.since = watcher.since.max(Some(revision));
        self.watcher_sees(member, life, &events)
    }

    /// A member tells its watchers what happened.
    pub(crate) fn watcher_sees(
        &mut self,
        from: MemberId,
        run: Life,
        events: &[core::Event],
    ) -> Result<(), Violation> {
        if let Some((_, member, life, buffered)) = &mut self.watcher.coming
            && (*member, *life) == (from, run)
        {
            buffered.extend_from_slice(events);
        }
        for event in events {
            let Stage::Watching { member, life, floor, start, last } = &mut self.watcher.stage else {
                return Ok(());
            };
            if (*member, *life) != (from, run) {
                return Ok(());
            }
            if event.revision <= *start {
                continue;
            }
            if event.revision < *last {
                return Err(Violation::Invariant {
                    invariant: "events come in order of revisions",
                    detail: format!("{event:?} after {last} from member {from}"),
                });
            }
            *last = event.revision;
            if floor.is_some_and(|floor| event.revision <= floor) && event.kind != EventKind::Resync {
                continue;
            }
            self.oracle.told = self.oracle.told.max(event.revision);
            if !self.watcher.take(event) {
                event!("the watcher must list again: member {from} has a gap");
                self.watcher.list_again();
                self.scheduler.after(Duration::from_millis(1), Event::Wake(Caller::Watcher, 0));
                return Ok(());
            }
        }
        // Now and then a watch breaks off and is taken up again elsewhere.
        if !events.is_empty() && self.random.chance(1, 40) {
            self.watcher.stage = Stage::Asking;
            self.scheduler.after(Duration::from_millis(20), Event::Wake(Caller::Watcher, 0));
        }
        Ok(())
    }

    /// The member through which the watcher watches has died.
    pub(crate) fn watch_ends(&mut self, member: MemberId) {
        if self.watcher.coming.as_ref().is_some_and(|(_, watched, ..)| *watched == member) {
            self.watcher.coming = None;
        }
        if matches!(self.watcher.stage, Stage::Watching { member: watched, .. } if watched == member) {
            self.watcher.stage = Stage::Asking;
            self.scheduler.after(Duration::from_millis(20), Event::Wake(Caller::Watcher, 0));
        }
    }
}
