//! Daemons that were refused: remembered by the leader, and told as a problem of the node that they say they are.
//!
//! The memory is the leader's alone; a refused daemon comes back within seconds, so a new leader learns of it at once. The problem is part of
//! what is replicated about the node, so that it reaches everybody who looks at nodes.

use crate::api::{Hello, SessionRefusal};
use crate::member::Member;
use crate::pending::Topic;
use basalt_clock::{Instant, mark};
use basalt_model::{Body, InstanceId, NodeName, NodeReport, Problem};
use basalt_raft::Disk;
use std::collections::BTreeMap;
use std::time::Duration;

/// The reason of the problem.
const REASON: &str = "DaemonRefused";
/// So long after its last refusal a daemon is taken for gone: it tries every few seconds.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The last daemon that was refused for a node.
#[derive(Debug)]
struct Refused {
    instance: InstanceId,
    refusal: SessionRefusal,
    /// The first time in a row.
    first: Instant,
    last: Instant,
    count: u64,
}

/// Who was refused, by node; only nodes that exist are here.
#[derive(Debug, Default)]
pub(crate) struct RefusedDaemons {
    by_node: BTreeMap<NodeName, Refused>,
    /// Since when this member leads.
    leads_since: Option<Instant>,
}

impl<D: Disk> Member<D> {
    /// Notes that a daemon was refused for a reason that a person has to do something about.
    pub(crate) fn note_refused(&mut self, hello: &Hello, refusal: &SessionRefusal) {
        let matters = match refusal {
            SessionRefusal::OtherInstance { .. }
            | SessionRefusal::Duplicate { .. }
            | SessionRefusal::WrongCluster { .. }
            | SessionRefusal::Future { .. }
            | SessionRefusal::Version { .. } => true,
            SessionRefusal::NotLeader { .. }
            | SessionRefusal::NotBootstrapped
            | SessionRefusal::UnknownNode { .. }
            | SessionRefusal::Protocol
            | SessionRefusal::Silent
            | SessionRefusal::Overloaded => false,
        };
        if !matters || !self.state.nodes().contains_key(&hello.node) {
            return;
        }
        let now = self.now.monotonic;
        let again = self.sessions.refused.by_node.get_mut(&hello.node).filter(|seen| {
            seen.instance == hello.instance
                && std::mem::discriminant(&seen.refusal) == std::mem::discriminant(refusal)
        });
        match again {
            Some(seen) => {
                (seen.last, seen.count, seen.refusal) = (now, seen.count + 1, refusal.clone());
            }
            None => {
                mark!("daemon-refusal-noted");
                tracing::warn!(node = %hello.node, instance = %hello.instance, %refusal, "a daemon was refused");
                let seen = Refused {
                    instance: hello.instance,
                    refusal: refusal.clone(),
                    first: now,
                    last: now,
                    count: 1,
                };
                self.sessions.refused.by_node.insert(hello.node.clone(), seen);
            }
        }
        self.sessions.note(&hello.node);
    }

    /// A daemon was let in: it is refused no more.
    pub(crate) fn note_admitted(&mut self, hello: &Hello) {
        let refused = &mut self.sessions.refused.by_node;
        if refused.get(&hello.node).is_some_and(|seen| seen.instance == hello.instance) {
            refused.remove(&hello.node);
        }
    }

    /// What is to be told of a node because of a daemon that was refused. The words stay the same from one refusal to the next.
    pub(crate) fn refused_problem(&self, node: &NodeName) -> Option<Problem> {
        let seen = self.sessions.refused.by_node.get(node)?;
        // A daemon that comes back before its old session has run out is no second one.
        let grace = self.config.timing.node_timeout * 2;
        if matches!(seen.refusal, SessionRefusal::Duplicate { .. }) && seen.last.since(seen.first) < grace {
            return None;
        }
        let instance = seen.instance;
        let message = match &seen.refusal {
            SessionRefusal::OtherInstance { bound, .. } => format!(
                "a daemon with identity {instance} says that it is this node and was refused, because the node belongs to the one \
                 with identity {bound}: if its machine or data directory was replaced, run: kubectl basalt unbind-node {node}; else \
                 stop the second daemon"
            ),
            SessionRefusal::Duplicate { .. } => format!(
                "a second daemon with identity {instance} runs as this node and is refused, as if its data directory had been \
                 copied: stop it, and give it an empty data directory and a node of its own"
            ),
            SessionRefusal::WrongCluster { .. } => {
                "its daemon was refused, because the data directory belongs to another cluster: \
                 point the daemon at the control plane of that cluster, or give it an empty data directory"
                    .to_owned()
            }
            SessionRefusal::Future { .. } => {
                "its daemon was refused, because it has seen a later state than the cluster is in: the \
                 control plane was restored from an old copy; recover it, which begins a new incarnation"
                    .to_owned()
            }
            other => format!("its daemon was refused: {other}; update the older of the two"),
        };
        Some(Problem { reason: REASON.to_owned(), message })
    }

    /// Forgets daemons that have stayed away, and tells of nodes that have no session whether one is refused.
    pub(crate) fn tick_refused(&mut self) {
        let now = self.now.monotonic;
        let since = *self.sessions.refused.leads_since.get_or_insert(now);
        let refused = &self.sessions.refused.by_node;
        let gone: Vec<NodeName> = refused
            .iter()
            .filter(|(node, seen)| {
                now.since(seen.last) >= REMEMBERED || !self.state.nodes().contains_key(*node)
            })
            .map(|(node, _)| node.clone())
            .collect();
        for node in gone {
            if let Some(seen) = self.sessions.refused.by_node.remove(&node) {
                tracing::info!(%node, refusals = seen.count, "the refused daemon has stayed away");
            }
            self.sessions.note(&node);
        }
        let mut news = Vec::new();
        for node in self.state.nodes().values() {
            let (Some(instance), Some(boot)) = (node.binding, node.observed.boot) else { continue };
            if self.sessions.has(&node.name) {
                continue;
            }
            let problem = self.refused_problem(&node.name);
            // A new leader has heard of nobody yet: what is told stays until it would have.
            if problem.is_none() && now.since(since) < REMEMBERED {
                continue;
            }
            let mut observed = node.observed.clone();
            set_problem(&mut observed.problems, problem);
            if observed != node.observed {
                let (node, volumes) = (node.name.clone(), BTreeMap::new());
                news.push(NodeReport { node, instance, boot, observed: Some(observed), volumes });
            }
        }
        for report in news {
            self.propose_own(Topic::Report(report.node.clone()), Body::ReportNode(report));
        }
    }
}

/// Makes this the one problem of its kind, the first of all: it is why nothing else is as it should be.
pub(crate) fn set_problem(problems: &mut Vec<Problem>, problem: Option<Problem>) {
    problems.retain(|problem| problem.reason != REASON);
    problems.splice(0..0, problem);
}
