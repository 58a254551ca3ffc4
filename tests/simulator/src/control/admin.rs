//! Whoever sets nodes up and changes who the members are, one change after the other.

use crate::control::client::uid;
use crate::control::process::Process;
use crate::control::requests::Pending;
use crate::control::world::{Caller, Event, World};
use crate::drift::DriftingClock;
use crate::event;
use basalt_clock::{Random, SeededRandom};
use basalt_core::{
    ClientRequest, ClusterView, Config, Limits, MemberRole, Mutation, Read, ReadResult, Reply, RequestError,
    Start, Timing,
};
use basalt_model::{FeatureLevel, Member, MemberId, NodeName, NodeSpec, Refusal, RequestId};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// The most voters that the administrator makes.
pub const VOTERS_MAX: usize = 5;

/// A change of members that was accepted and is being carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Goal {
    /// The member that comes.
    comes: Option<MemberId>,
    /// The member that goes.
    goes: Option<MemberId>,
}

impl Goal {
    /// Whether it is reached, by what the cluster says.
    fn is_reached(self, view: &ClusterView) -> bool {
        let votes = |id| {
            let mut members = view.members.iter();
            members.any(|seen| {
                seen.member.id == id && matches!(seen.role, MemberRole::Leader | MemberRole::Voter)
            })
        };
        let there = |id| view.members.iter().any(|seen| seen.member.id == id);
        self.comes.is_none_or(votes) && !self.goes.is_some_and(there)
    }
}

/// The administrator.
#[derive(Debug)]
pub struct Admin {
    /// What it waits for.
    pub pending: Option<Pending>,
    /// What it does next.
    pub queue: VecDeque<Mutation>,
    /// What it waits to see before it does the next thing.
    pub goal: Option<Goal>,
    /// The members that it believes to vote.
    pub voters: BTreeSet<MemberId>,
    /// How many member ids were used.
    pub ids: u64,
    /// Requests made.
    pub made: u64,
    /// Changes that were done.
    pub done: u64,
    /// Bounds for new members.
    pub limits: Limits,
    /// Periods for new members.
    pub timing: Timing,
}

/// The name of a node with a daemon.
///
/// # Panics
/// Never: the name is valid.
pub fn node_name(number: usize) -> NodeName {
    NodeName::new(format!("node-{number}")).expect("a valid name")
}

/// The id with this number.
///
/// # Panics
/// If it is zero.
pub fn member_id(number: u64) -> MemberId {
    MemberId::new(number).expect("ids begin at 1")
}

/// A member as others see it.
pub fn member(id: MemberId) -> Member {
    Member {
        id,
        disk: None,
        replaces: None,
        peer_address: format!("member-{id}:7000"),
        api_address: format!("member-{id}:7001"),
        supports: FeatureLevel::SUPPORTED,
        version: "simulated".to_owned(),
    }
}

impl Admin {
    /// An administrator of a cluster that begins with so many members.
    pub fn new(members: u64, limits: Limits, timing: Timing) -> Self {
        Self {
            pending: None,
            queue: VecDeque::new(),
            goal: None,
            voters: (1..=members).map(member_id).collect(),
            ids: members,
            made: 0,
            done: 0,
            limits,
            timing,
        }
    }

    /// Whether it has nothing to do.
    pub fn is_idle(&self) -> bool {
        self.pending.is_none() && self.queue.is_empty() && self.goal.is_none()
    }

    /// The configuration of a process.
    pub fn config(&self, id: MemberId, start: Start, peers: Vec<MemberId>) -> Config {
        Config { member: member(id), start, peers, timing: self.timing.clone(), limits: self.limits.clone() }
    }
}

impl World {
    /// Queues the creation of the nodes.
    pub fn put_nodes(&mut self, specs: Vec<NodeSpec>) {
        for (number, spec) in specs.into_iter().enumerate() {
            self.admin.queue.push_back(Mutation::PutNode {
                name: node_name(number),
                uid: Some(uid(1)),
                spec,
            });
        }
        self.scheduler.after(Duration::from_millis(1), Event::Wake(Caller::Admin, 0));
    }

    /// The administrator does the next thing.
    pub(crate) fn admin_begins(&mut self) {
        if self.admin.goal.is_some() {
            let pending = self.ask(Caller::Admin, ClientRequest::Read(Read::Cluster));
            self.admin.pending = Some(pending);
            return;
        }
        let Some(mutation) = self.admin.queue.front().cloned() else { return };
        self.admin.made += 1;
        let id = RequestId::new(format!("admin-{}", self.admin.made)).expect("a valid id");
        event!("the administrator asks {mutation:?}");
        self.tally.operations += 1;
        let pending = self.ask(Caller::Admin, ClientRequest::Mutate { id, mutation });
        self.admin.pending = Some(pending);
    }

    /// The administrator has its answer.
    pub(crate) fn admin_answered(&mut self, reply: &Reply) {
        let pause = Duration::from_millis(100 + self.random.below(400));
        self.scheduler.after(pause, Event::Wake(Caller::Admin, 0));
        if let (Some(goal), Reply::Read { result: ReadResult::Cluster(view), .. }) = (self.admin.goal, reply)
        {
            if goal.is_reached(view) {
                self.reached(goal);
            } else {
                let roles = view.members.iter().map(|seen| (seen.member.id.get(), seen.role, seen.lag));
                tracing::debug!(?goal, members = ?roles.collect::<Vec<_>>(), "not reached yet");
            }
            return;
        }
        event!("the administrator is told {reply:?}");
        let done = matches!(reply, Reply::Done { .. });
        let Some(mutation) = self.admin.queue.pop_front() else { return };
        let (comes, goes) = match mutation {
            Mutation::AddMember { id, .. } => (Some(id), None),
            Mutation::RemoveMember { id } => (None, Some(id)),
            Mutation::ReplaceMember { old, new, .. } => (Some(new), Some(old)),
            // Nodes come into service after a while: a volume that finds no room yet is asked for again.
            again if !done => {
                if worth_another_try(&again, reply) {
                    self.admin.queue.push_front(again);
                }
                return;
            }
            _ => return,
        };
        match (done, comes) {
            (true, _) => self.admin.goal = Some(Goal { comes, goes }),
            (false, Some(refused)) => self.bury(refused),
            (false, None) => {}
        }
    }

    fn reached(&mut self, goal: Goal) {
        event!("the administrator sees {goal:?}");
        self.admin.goal = None;
        self.admin.done += 1;
        self.admin.voters.extend(goal.comes);
        if let Some(gone) = goal.goes {
            self.admin.voters.remove(&gone);
            let lingers = Duration::from_millis(self.random.below(4_000));
            self.scheduler.after(lingers, Event::Bury(gone));
        }
    }

    /// Starts a process with an empty disk that announces itself.
    fn new_process(&mut self) -> MemberId {
        self.admin.ids += 1;
        let id = member_id(self.admin.ids);
        let peers = self.admin.voters.iter().copied().collect();
        let config = self.admin.config(id, Start::Join { cluster: None }, peers);
        let clock = DriftingClock::random(&mut self.random);
        self.processes.insert(id, Process::new(config, clock));
        self.restart(id);
        id
    }

    /// Queues a change of the members, unless one is under way.
    pub(crate) fn change_members(&mut self) {
        if !self.admin.is_idle() {
            return;
        }
        let voters: Vec<MemberId> = self.admin.voters.iter().copied().collect();
        let some = voters[usize::try_from(self.random.below(voters.len() as u64)).unwrap_or(0)];
        let change = match voters.len() {
            1 => 0,
            VOTERS_MAX.. => 1 + self.random.below(2),
            3 => [0, 2][usize::try_from(self.random.below(2)).unwrap_or(0)],
            _ => self.random.below(3),
        };
        let mutation = match change {
            0 => self.add_member(),
            1 => Mutation::RemoveMember { id: some },
            _ => return self.replace_member(some),
        };
        self.begin_change(mutation);
    }

    /// Queues the replacement of a member by a new one.
    pub(crate) fn replace_member(&mut self, old: MemberId) {
        let new = self.new_process();
        let Member { peer_address, api_address, .. } = member(new);
        self.begin_change(Mutation::ReplaceMember { old, new, peer_address, api_address });
    }

    fn begin_change(&mut self, mutation: Mutation) {
        self.tally.fault("change of members", 1);
        self.admin.queue.push_back(mutation);
        self.scheduler.after(Duration::from_millis(1), Event::Wake(Caller::Admin, 0));
    }

    /// A new process and the order to let it take part.
    pub(crate) fn add_member(&mut self) -> Mutation {
        let id = self.new_process();
        let Member { peer_address, api_address, .. } = member(id);
        Mutation::AddMember { id, peer_address, api_address }
    }
}

/// Whether what was not done may be done later: nodes come into service, and what depends on each other comes and goes.
fn worth_another_try(mutation: &Mutation, reply: &Reply) -> bool {
    let Reply::Failed(RequestError::Refused(refusal)) = reply else { return true };
    match refusal {
        Refusal::VolumeNotReady { .. }
        | Refusal::SnapshotNotReady { .. }
        | Refusal::BeingSnapshotted { .. }
        | Refusal::BeingRestored { .. } => true,
        // What its snapshot's pool has no room for now may never have room there.
        _ => matches!(mutation, Mutation::CreateVolume { spec, .. } if spec.source.is_none()),
    }
}

/// Bounds that make rare things common.
pub fn small_limits(random: &mut SeededRandom) -> Limits {
    let size = |random: &mut SeededRandom, from: u64, to: u64| {
        usize::try_from(random.within(from..to)).unwrap_or(usize::MAX)
    };
    Limits {
        requests: 64,
        history: size(random, 4, 400),
        sessions: 16,
        snapshot_entries: random.within(16..256),
        snapshot_bytes: 1 << 20,
        segment_bytes: random.within(4_096..65_536),
        chunk_bytes: size(random, 2_048, 16_384),
        page: size(random, 1, 8),
    }
}

/// Periods that make a failover short.
pub fn short_timing(random: &mut SeededRandom) -> Timing {
    Timing {
        tick: Duration::from_millis(random.within(20..50)),
        heartbeat_ticks: 2,
        election_ticks: 10,
        election_spread_ticks: 10,
        node_heartbeat: Duration::from_millis(400),
        node_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(2),
    }
}
