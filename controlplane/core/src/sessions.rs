//! Sessions with the nodes' daemons. What a daemon says is kept in its session, and every call compares that with the
//! replicated state: what differs is proposed, what the daemon does not have yet is pushed.

use crate::api::{Hello, NODE_PROTOCOL, NodeMessage, Report, SessionId, SessionRefusal, ToNode, Welcome};
use crate::member::Member;
use crate::pending::{Purpose, Topic};
use crate::refused::{RefusedDaemons, set_problem};
use basalt_clock::{Instant, mark, planted};
use basalt_model::{
    Body, Change, FeatureLevel, Lifecycle, Liveness, Node, NodeName, NodeObserved, NodeReport, Revision,
    VolumeHealth, VolumeId, VolumeObserved,
};
use basalt_raft::Disk;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The first protocol version with thin volumes.
const KNOWS_THIN: u32 = 2;
/// The first one with read-only volumes and units of allocation.
const KNOWS_READ_ONLY: u32 = 3;

/// How far a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its node is being bound to it.
    Binding,
    /// Welcomed; its first full report has not come.
    Welcomed,
    /// What it says is known in full.
    Synced,
}

/// One connection of a daemon.
#[derive(Debug)]
struct Session {
    hello: Hello,
    version: u32,
    phase: Phase,
    last_heard: Instant,
    observed: Option<NodeObserved>,
    volumes: BTreeMap<VolumeId, VolumeObserved>,
    deleted: BTreeMap<VolumeId, u64>,
    /// The desired state that it was sent last.
    pushed: Option<Revision>,
    /// Whether something changed since it was looked at.
    dirty: bool,
}

/// All sessions; only the leader has some.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    sessions: BTreeMap<SessionId, Session>,
    by_node: BTreeMap<NodeName, SessionId>,
    /// Nodes that the state calls live and that have no session, since when.
    absent: BTreeMap<NodeName, Instant>,
    pub(crate) refused: RefusedDaemons,
}

impl Sessions {
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether a daemon has a session as this node.
    pub(crate) fn has(&self, node: &NodeName) -> bool {
        self.by_node.contains_key(node)
    }

    fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        if self.by_node.get(&session.hello.node) == Some(&id) {
            self.by_node.remove(&session.hello.node);
        }
        Some(session)
    }

    /// Notes which nodes a command touched.
    pub(crate) fn note(&mut self, node: &NodeName) {
        if let Some(session) = self.by_node.get(node).and_then(|id| self.sessions.get_mut(id)) {
            session.dirty = true;
        }
    }
}

impl<D: Disk> Member<D> {
    /// A daemon says something. The first message of a session is its hello.
    pub fn node_message(&mut self, id: SessionId, message: NodeMessage) {
        match message {
            NodeMessage::Hello(hello) => self.hello(id, hello),
            NodeMessage::Heartbeat => {
                let term = self.group.status().term;
                let now = self.now.monotonic;
                if let Some(session) = self.sessions.sessions.get_mut(&id) {
                    session.last_heard = now;
                    self.outputs.nodes.push((id, ToNode::HeartbeatAck { term }));
                }
            }
            NodeMessage::Report(report) => self.report(id, report),
        }
    }

    /// A daemon's connection ended.
    pub fn node_closed(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.remove(id) {
            mark!("session-closed");
            self.sessions.absent.entry(session.hello.node).or_insert(self.now.monotonic);
        }
    }

    fn hello(&mut self, id: SessionId, hello: Hello) {
        if self.sessions.sessions.contains_key(&id) {
            return self.refuse(id, SessionRefusal::Protocol);
        }
        match self.admit(&hello) {
            Err(refusal) => {
                self.note_refused(&hello, &refusal);
                self.refuse(id, refusal);
            }
            Ok(version) => {
                self.note_admitted(&hello);
                self.sessions.by_node.insert(hello.node.clone(), id);
                let session = Session {
                    hello,
                    version,
                    phase: Phase::Binding,
                    last_heard: self.now.monotonic,
                    observed: None,
                    volumes: BTreeMap::new(),
                    deleted: BTreeMap::new(),
                    pushed: None,
                    dirty: true,
                };
                self.sessions.sessions.insert(id, session);
            }
        }
    }

    /// Whether a session may begin; the protocol version that it speaks.
    fn admit(&self, hello: &Hello) -> Result<u32, SessionRefusal> {
        if !self.ready_to_lead() {
            let leader = self.group.status().leader.filter(|leader| *leader != self.config.member.id);
            return Err(SessionRefusal::NotLeader { leader });
        }
        let cluster = self.state.cluster().ok_or(SessionRefusal::NotBootstrapped)?;
        if hello.cluster.is_some_and(|theirs| theirs != cluster) {
            mark!("daemon-of-another-cluster");
            return Err(SessionRefusal::WrongCluster { cluster });
        }
        let (min, max) = self.protocol();
        let version = hello.version_max.min(max);
        if version < hello.version_min.max(min) {
            return Err(SessionRefusal::Version { min, max });
        }
        if hello.revision > self.state.revision() {
            mark!("daemon-from-the-future");
            return Err(SessionRefusal::Future { seen: hello.revision, present: self.state.revision() });
        }
        let unknown = || SessionRefusal::UnknownNode { node: hello.node.clone() };
        let node = self.state.nodes().get(&hello.node).ok_or_else(unknown)?;
        if let Some(bound) = node.binding.filter(|bound| *bound != hello.instance) {
            mark!("second-daemon-refused");
            return Err(SessionRefusal::OtherInstance { node: hello.node.clone(), bound });
        }
        if self.sessions.by_node.contains_key(&hello.node) {
            mark!("duplicate-daemon-refused");
            return Err(SessionRefusal::Duplicate { node: hello.node.clone() });
        }
        if self.sessions.len() >= self.config.limits.sessions {
            return Err(SessionRefusal::Overloaded);
        }
        Ok(version)
    }

    /// The protocol versions that daemons may speak. One that does not know a thin volume would make a thick one of it, and one that does
    /// not know read-only volumes would let hosts write.
    fn protocol(&self) -> (u32, u32) {
        let (lowest, highest) = NODE_PROTOCOL;
        let needed = match self.state.level() {
            level if level >= FeatureLevel::READ_ONLY => KNOWS_READ_ONLY,
            level if level >= FeatureLevel::THIN => KNOWS_THIN,
            _ => lowest,
        };
        (needed, highest)
    }

    fn report(&mut self, id: SessionId, report: Report) {
        let now = self.now.monotonic;
        let Some(session) = self.sessions.sessions.get_mut(&id) else { return };
        session.last_heard = now;
        session.dirty = true;
        match (session.phase, report.full) {
            (Phase::Binding, _) | (Phase::Welcomed, false) => {
                return self.refuse(id, SessionRefusal::Protocol);
            }
            (Phase::Welcomed | Phase::Synced, true) => {
                session.phase = Phase::Synced;
                session.volumes = BTreeMap::new();
                session.deleted = BTreeMap::new();
            }
            (Phase::Synced, false) => {}
        }
        if report.observed.is_some() {
            session.observed = report.observed;
        }
        // Only volumes of this node are kept, so that what a daemon says is bounded by what it was given.
        let node = &session.hello.node;
        let snapshots = self.state.snapshots_on(node).map(|snapshot| snapshot.id);
        let ours: BTreeSet<VolumeId> =
            self.state.volumes_on(node).map(|volume| volume.id).chain(snapshots).collect();
        session.volumes.extend(report.volumes.into_iter().filter(|(id, _)| ours.contains(id)));
        session.volumes.retain(|id, _| ours.contains(id));
        session.deleted.extend(report.deleted.into_iter().filter(|(id, _)| ours.contains(id)));
        session.deleted.retain(|id, _| ours.contains(id));
    }

    /// Ends a session, or does not begin it.
    fn refuse(&mut self, id: SessionId, refusal: SessionRefusal) {
        self.outputs.nodes.push((id, ToNode::Refused(refusal)));
        self.node_closed(id);
    }

    /// Ends all sessions: this member does not lead any more.
    pub(crate) fn end_sessions(&mut self) {
        let leader = self.group.status().leader.filter(|leader| *leader != self.config.member.id);
        let ids: Vec<SessionId> = self.sessions.sessions.keys().copied().collect();
        for id in ids {
            self.outputs.nodes.push((id, ToNode::Refused(SessionRefusal::NotLeader { leader })));
        }
        self.sessions = Sessions::default();
    }

    /// Ends sessions that are silent, and notes nodes that stay away.
    pub(crate) fn tick_sessions(&mut self) {
        let now = self.now.monotonic;
        let timeout = self.config.timing.node_timeout;
        let silent: Vec<(SessionId, NodeName, Instant)> = self
            .sessions
            .sessions
            .iter()
            .filter(|(_, session)| now.since(session.last_heard) >= timeout)
            .map(|(id, session)| (*id, session.hello.node.clone(), session.last_heard))
            .collect();
        for (id, node, last_heard) in silent {
            mark!("session-silent");
            self.refuse(id, SessionRefusal::Silent);
            self.sessions.absent.insert(node, last_heard);
        }
        if !self.ready_to_lead() {
            return;
        }
        let sessions = &mut self.sessions;
        let mut lost = Vec::new();
        for node in self.state.nodes().values() {
            let synced = sessions.by_node.get(&node.name).and_then(|id| sessions.sessions.get(id));
            if !node.liveness.is_live() || synced.is_some_and(|session| session.phase == Phase::Synced) {
                sessions.absent.remove(&node.name);
                continue;
            }
            let since = *sessions.absent.entry(node.name.clone()).or_insert(now);
            if now.since(since) >= timeout {
                lost.push(node.name.clone());
            }
        }
        self.tick_refused();
        for node in lost {
            mark!("node-lost");
            let body = Body::SetNodeLiveness {
                node: node.clone(),
                liveness: Liveness::Lost { since: self.now.wall },
            };
            self.propose_own(Topic::Liveness(node), body);
        }
    }

    /// Proposes one of the leader's own commands, unless one about the same is under way.
    pub(crate) fn propose_own(&mut self, topic: Topic, body: Body) {
        if self.proposals.has(&topic) {
            return;
        }
        if let Err(error) = self.propose(None, body, Purpose::Own(topic.clone()), None) {
            tracing::debug!(%error, ?topic, "not proposed, will be tried again");
        }
    }

    /// Compares what daemons said with the state, and what they were sent with what they should have.
    pub(crate) fn reconcile_sessions(&mut self) {
        if !self.ready_to_lead() {
            return;
        }
        let dirty: Vec<SessionId> =
            self.sessions.sessions.iter().filter(|(_, session)| session.dirty).map(|(id, _)| *id).collect();
        for id in dirty {
            self.reconcile_session(id);
        }
    }

    fn reconcile_session(&mut self, id: SessionId) {
        let (min, max) = self.protocol();
        let Some(session) = self.sessions.sessions.get_mut(&id) else { return };
        session.dirty = false;
        if session.version < min {
            return self.refuse(id, SessionRefusal::Version { min, max });
        }
        let (name, phase) = (session.hello.node.clone(), session.phase);
        let Some(node) = self.state.nodes().get(&name) else {
            return self.refuse(id, SessionRefusal::UnknownNode { node: name });
        };
        if let Some(bound) = node.binding.filter(|bound| *bound != session.hello.instance) {
            return self.refuse(id, SessionRefusal::OtherInstance { node: name, bound });
        }
        if node.binding.is_none() {
            let body = Body::BindNodeInstance { node: name.clone(), instance: session.hello.instance };
            return self.propose_own(Topic::Bind(name), body);
        }
        if phase == Phase::Binding {
            self.welcome(id);
        }
        self.push_desired(id, &name);
        if phase == Phase::Synced {
            self.propose_news(id, &name);
        }
    }

    fn welcome(&mut self, id: SessionId) {
        let (Some(cluster), Some(session)) = (self.state.cluster(), self.sessions.sessions.get_mut(&id))
        else {
            return;
        };
        session.phase = Phase::Welcomed;
        let welcome = Welcome {
            cluster,
            version: session.version,
            term: self.group.status().term,
            heartbeat: self.config.timing.node_heartbeat,
            timeout: self.config.timing.node_timeout,
        };
        self.outputs.nodes.push((id, ToNode::Welcome(welcome)));
    }

    fn push_desired(&mut self, id: SessionId, name: &NodeName) {
        let (Some(node), Some(session)) = (self.state.nodes().get(name), self.sessions.sessions.get_mut(&id))
        else {
            return;
        };
        if session.pushed == Some(node.desired) {
            return;
        }
        if let Some(desired) = self.state.desired(name) {
            session.pushed = Some(node.desired);
            let term = self.group.status().term;
            self.outputs.nodes.push((id, ToNode::Desired { term, desired: Arc::new(desired) }));
        }
    }

    /// Proposes what a daemon said and the state does not say yet.
    fn propose_news(&mut self, id: SessionId, name: &NodeName) {
        let (Some(node), Some(session)) = (self.state.nodes().get(name), self.sessions.sessions.get(&id))
        else {
            return;
        };
        let confirmed = self.confirmed(session);
        let news = self.state.news(&self.report_of(session, node));
        let live = node.liveness.is_live();
        for (volume, generation) in confirmed {
            let body = Body::ConfirmVolumeDeleted { node: name.clone(), volume, generation };
            self.propose_own(Topic::Confirm(volume), body);
        }
        match news {
            Some(report) => self.propose_own(Topic::Report(name.clone()), Body::ReportNode(report)),
            None if live => {}
            None => {
                let liveness = Liveness::Live { since: self.now.wall };
                let body = Body::SetNodeLiveness { node: name.clone(), liveness };
                self.propose_own(Topic::Liveness(name.clone()), body);
            }
        }
    }

    /// Has every session looked at again, so that a proposal that got lost is made again.
    pub(crate) fn recheck_sessions(&mut self) {
        for session in self.sessions.sessions.values_mut() {
            session.dirty = true;
        }
    }

    /// The tombstones that a daemon says it has carried out.
    fn confirmed(&self, session: &Session) -> Vec<(VolumeId, u64)> {
        let tombstones = self.state.tombstones_on(&session.hello.node);
        tombstones
            .filter(|tombstone| {
                if planted!("absence-confirms-deletion") && !session.volumes.contains_key(&tombstone.volume) {
                    return true;
                }
                session.deleted.get(&tombstone.volume) == Some(&tombstone.generation)
            })
            .map(|tombstone| (tombstone.volume, tombstone.generation))
            .collect()
    }

    /// All that a daemon says, and of volumes that it does not mention any more, that they are not there.
    fn report_of(&self, session: &Session, node: &Node) -> NodeReport {
        let mut volumes = session.volumes.clone();
        let known =
            self.state.volumes_on(&node.name).map(|volume| (volume.id, &volume.lifecycle, &volume.observed));
        let snapshots = self.state.snapshots_on(&node.name);
        let known = known.chain(snapshots.map(|seen| (seen.id, &seen.lifecycle, &seen.observed)));
        for (id, lifecycle, observed) in known {
            let Some(seen) = observed else { continue };
            if *lifecycle != Lifecycle::Active || volumes.contains_key(&id) {
                continue;
            }
            let health = VolumeHealth::Unavailable {
                reason: "NotReported".to_owned(),
                message: format!("node {} does not report it", node.name),
            };
            volumes.insert(id, VolumeObserved { health, paths: Vec::new(), ..seen.clone() });
        }
        let mut observed = session.observed.clone();
        if let Some(observed) = &mut observed {
            set_problem(&mut observed.problems, self.refused_problem(&node.name));
        }
        NodeReport {
            node: node.name.clone(),
            instance: session.hello.instance,
            boot: session.hello.boot,
            observed,
            volumes,
        }
    }

    /// Notes for the sessions what a command changed.
    pub(crate) fn note_changes(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Node(name) | Change::NodeRemoved(name) | Change::Desired(name) => {
                    self.sessions.note(name);
                }
                Change::Volume(id) => {
                    let node = self.state.volumes().get(id).map(|volume| volume.placement.node.clone());
                    if let Some(node) = node {
                        self.sessions.note(&node);
                    }
                }
                // The level may be higher: what daemons must know, and what of their reports is kept.
                Change::Cluster => self.recheck_sessions(),
                Change::Snapshot(id) => {
                    let node = self.state.snapshots().get(id).map(|snapshot| snapshot.placement.node.clone());
                    if let Some(node) = node {
                        self.sessions.note(&node);
                    }
                }
                Change::Member(_)
                | Change::MemberRemoved(_)
                | Change::VolumeRemoved(..)
                | Change::SnapshotRemoved(..) => {}
            }
        }
    }
}
