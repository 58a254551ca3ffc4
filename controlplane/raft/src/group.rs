//! A member of the group: the raft library's node, driven in the order that it demands.

use crate::convert::{entry_from_raft, membership_from_raft, message_from_raft, message_to_raft};
use crate::disk::Disk;
use crate::error::LogError;
use crate::log::{Log, Snapshot};
use crate::message::{Membership, PeerBody, RaftMessage, SnapshotAck, SnapshotChunk};
use crate::transfer::{self, Arrival, Assembly, Outcome, Sender};
use basalt_clock::{Random, SeededRandom, mark, planted};
use basalt_model::MemberId;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, Entry, EntryType, Message,
    MessageType,
};
use raft::{Config, RawNode, ReadOnlyOption, SnapshotStatus, StateRole};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a member takes part.
#[derive(Debug, Clone)]
pub struct GroupConfig {
    /// Its id.
    pub member: MemberId,
    /// Makes its election timeouts.
    pub seed: u64,
    /// The least ticks without a leader before it campaigns.
    pub election_ticks: u32,
    /// How many more ticks it may wait.
    pub election_spread_ticks: u32,
    /// Ticks between the leader's signs of life.
    pub heartbeat_ticks: u32,
    /// The size of one part of a snapshot that is sent.
    pub chunk_bytes: usize,
    /// Entries after which a snapshot is wanted.
    pub snapshot_entries: u64,
    /// Bytes of entries after which a snapshot is wanted.
    pub snapshot_bytes: u64,
}

/// Bytes of entries in one message.
const MESSAGE_BYTES: u64 = 1 << 20;
/// Messages with entries under way to one member.
const MESSAGES_IN_FLIGHT: usize = 64;
/// Bytes of entries that are proposed and not committed.
const UNCOMMITTED_BYTES: u64 = 64 << 20;
/// Bytes of entries that are handed out to be applied at once.
const COMMITTED_BYTES: u64 = 16 << 20;

/// A change of who takes part. More than one step goes through joint consensus, as one change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipChange {
    /// The steps.
    pub steps: Vec<(MemberId, RoleChange)>,
}

/// What becomes of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleChange {
    /// It votes.
    Voter,
    /// It receives the log and does not vote.
    Learner,
    /// It is out.
    Remove,
}

impl MembershipChange {
    fn to_raft(&self) -> ConfChangeV2 {
        let mut change = ConfChangeV2::default();
        if self.steps.len() > 1 {
            change.set_transition(ConfChangeTransition::Implicit);
        }
        let steps: Vec<ConfChangeSingle> = self
            .steps
            .iter()
            .map(|(member, role)| {
                let mut single = ConfChangeSingle { node_id: member.get(), ..ConfChangeSingle::default() };
                single.set_change_type(match role {
                    RoleChange::Voter => ConfChangeType::AddNode,
                    RoleChange::Learner => ConfChangeType::AddLearnerNode,
                    RoleChange::Remove => ConfChangeType::RemoveNode,
                });
                single
            })
            .collect();
        change.set_changes(steps.into());
        change
    }
}

/// Why a proposal was not taken. Nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead.
    #[error("this member does not lead")]
    NotLeader,
    /// The leader is busy: too much is uncommitted, or the leadership is being transferred.
    #[error("the leader is busy")]
    Busy,
}

/// Something committed, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// An entry with a command; empty for a new leader's first entry.
    Command {
        /// Its index.
        index: u64,
        /// Its term.
        term: u64,
        /// The command.
        data: Vec<u8>,
    },
    /// The membership changed (or a change of it was refused when it was proposed).
    Membership {
        /// Its index.
        index: u64,
        /// The membership from now on.
        membership: Membership,
    },
    /// The state is replaced by a snapshot.
    Snapshot(Snapshot),
}

/// What a round of work gave.
#[derive(Debug, Default)]
pub struct Progress {
    /// Messages to send, by receiver.
    pub messages: Vec<(MemberId, PeerBody)>,
    /// What was committed.
    pub applied: Vec<Applied>,
    /// Reads that may be answered once `index` is applied: context, index.
    pub reads: Vec<(Vec<u8>, u64)>,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// The term.
    pub term: u64,
    /// The leader, when one is known.
    pub leader: Option<MemberId>,
    /// Whether this member leads.
    pub is_leader: bool,
    /// Whether this member campaigns.
    pub is_candidate: bool,
    /// Whether this member votes.
    pub is_voter: bool,
    /// Whether it takes part at all.
    pub is_member: bool,
    /// The last committed index.
    pub committed: u64,
    /// The last index in the log.
    pub last: u64,
    /// The first index in the log.
    pub first: u64,
    /// The index of the newest snapshot; 0 without one.
    pub snapshot: u64,
}

/// How far another member is, as the leader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberProgress {
    /// The member.
    pub member: MemberId,
    /// The last entry that it is known to hold.
    pub matched: u64,
    /// Whether it was heard within the last election timeout.
    pub active: bool,
}

/// One member of the group.
pub struct Group<D: Disk> {
    config: GroupConfig,
    node: RawNode<Log<D>>,
    random: SeededRandom,
    /// The election timeout of a term, drawn from the seed: (term, ticks).
    timeout: (u64, usize),
    /// The last index that was handed out to be applied, and its term.
    applied: (u64, u64),
    last_snapshot: u64,
    senders: BTreeMap<u64, Sender>,
    assembly: Option<Assembly>,
    /// Whole snapshots that the library may choose to install, until the next round.
    arrived: BTreeMap<(u64, u64), Snapshot>,
    outbox: Vec<(MemberId, PeerBody)>,
}

impl<D: Disk> Group<D> {
    /// Starts a member on its log. Its state is that of [`Log::snapshot`]; what follows comes out of [`Group::drive`].
    pub fn new(config: GroupConfig, log: Log<D>) -> Result<Self, LogError> {
        let applied = log.snapshot().map_or((0, 0), |snapshot| (snapshot.index, snapshot.term));
        let election = config.election_ticks as usize;
        let raft_config = Config {
            id: config.member.get(),
            election_tick: election,
            min_election_tick: election,
            max_election_tick: election + config.election_spread_ticks as usize + 1,
            heartbeat_tick: config.heartbeat_ticks as usize,
            applied: applied.0,
            max_size_per_msg: MESSAGE_BYTES,
            max_inflight_msgs: MESSAGES_IN_FLIGHT,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            max_uncommitted_size: UNCOMMITTED_BYTES,
            max_committed_size_per_ready: COMMITTED_BYTES,
            ..Config::default()
        };
        let node = RawNode::new(&raft_config, log, &crate::trace::logger())?;
        let random = SeededRandom::new(config.seed);
        let mut group = Self {
            config,
            node,
            random,
            timeout: (u64::MAX, election),
            applied,
            last_snapshot: applied.0,
            senders: BTreeMap::new(),
            assembly: None,
            arrived: BTreeMap::new(),
            outbox: Vec::new(),
        };
        group.pin_timeout();
        Ok(group)
    }

    /// The log.
    pub fn log(&self) -> &Log<D> {
        self.node.store()
    }

    /// The log, to bind it to a cluster.
    pub fn log_mut(&mut self) -> &mut Log<D> {
        self.node.mut_store()
    }

    /// The library draws election timeouts from the thread's generator; ours come from the seed, one per term, so that two
    /// members that happen to agree once do not agree for ever.
    fn pin_timeout(&mut self) {
        let term = self.node.raft.term;
        if self.timeout.0 != term {
            let extra = self.random.below(u64::from(self.config.election_spread_ticks) + 1);
            let ticks = u64::from(self.config.election_ticks) + extra;
            self.timeout = (term, usize::try_from(ticks).unwrap_or(usize::MAX));
        }
        self.node.raft.set_randomized_election_timeout(self.timeout.1);
    }

    /// One tick passed.
    pub fn tick(&mut self) {
        self.pin_timeout();
        self.node.tick();
        let mut ended = Vec::new();
        for (&to, sender) in &mut self.senders {
            match sender.tick() {
                Some(outcome) => ended.push((to, outcome)),
                None => queue_chunks(&mut self.outbox, to, sender),
            }
        }
        for (to, outcome) in ended {
            self.end_transfer(to, outcome);
        }
    }

    /// Takes a raft message of another member.
    pub fn step(&mut self, from: MemberId, message: RaftMessage) {
        let message = message_to_raft(from, self.config.member, message);
        self.step_library(message);
    }

    fn step_library(&mut self, message: Message) {
        if let Err(error) = self.node.step(message) {
            tracing::debug!(%error, "the raft library ignored a message");
        }
    }

    /// Takes a part of a snapshot.
    pub fn snapshot_chunk(&mut self, from: MemberId, chunk: SnapshotChunk) {
        let raft = &self.node.raft;
        if chunk.term < raft.term || !transfer::names(&chunk.membership, self.config.member.get()) {
            return;
        }
        let term = chunk.term;
        match transfer::receive(&mut self.assembly, from.get(), raft.term, chunk) {
            Arrival::Ignore => {}
            Arrival::Acknowledge(ack) => self.outbox.push((from, PeerBody::SnapshotAck(ack))),
            Arrival::Complete(ack, snapshot) => {
                self.outbox.push((from, PeerBody::SnapshotAck(ack)));
                self.offer_snapshot(from, term, snapshot);
            }
        }
    }

    /// Gives a whole snapshot to the raft library, which decides whether it is of use.
    fn offer_snapshot(&mut self, from: MemberId, term: u64, snapshot: Snapshot) {
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgSnapshot);
        message.from = from.get();
        message.to = self.config.member.get();
        message.term = term;
        let metadata = message.mut_snapshot().mut_metadata();
        metadata.index = snapshot.index;
        metadata.term = snapshot.term;
        metadata.set_conf_state(crate::convert::membership_to_raft(&snapshot.membership));
        self.arrived.insert((snapshot.index, snapshot.term), snapshot);
        self.step_library(message);
    }

    /// Takes an acknowledgement of a part.
    pub fn snapshot_ack(&mut self, from: MemberId, ack: SnapshotAck) {
        let Some(sender) = self.senders.get_mut(&from.get()) else { return };
        match sender.acknowledge(ack) {
            Some(outcome) => self.end_transfer(from.get(), outcome),
            None => queue_chunks(&mut self.outbox, from.get(), sender),
        }
    }

    fn end_transfer(&mut self, to: u64, outcome: Outcome) {
        self.senders.remove(&to);
        let status = match outcome {
            Outcome::Finished => SnapshotStatus::Finish,
            Outcome::Failed => SnapshotStatus::Failure,
        };
        self.node.report_snapshot(to, status);
    }

    /// Proposes a command; returns the index that it has if it is committed in the present term.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<u64, ProposeError> {
        self.check_leader()?;
        self.node.propose(Vec::new(), data).map_err(|_| ProposeError::Busy)?;
        Ok(self.node.raft.raft_log.last_index())
    }

    /// Proposes a change of membership; ignored while another one is under way.
    pub fn propose_membership(&mut self, change: &MembershipChange) -> Result<(), ProposeError> {
        self.check_leader()?;
        if self.node.raft.has_pending_conf() {
            return Err(ProposeError::Busy);
        }
        let context = serde_json::to_vec(change).map_err(|_| ProposeError::Busy)?;
        self.node.propose_conf_change(context, change.to_raft()).map_err(|_| ProposeError::Busy)
    }

    fn check_leader(&self) -> Result<(), ProposeError> {
        if self.node.raft.state == StateRole::Leader { Ok(()) } else { Err(ProposeError::NotLeader) }
    }

    /// Asks for a read index. `context` must never be used twice; the answer may never come.
    pub fn read_index(&mut self, context: Vec<u8>) {
        self.node.read_index(context);
    }

    /// Asks this leader to hand over to another voter.
    pub fn transfer_leader(&mut self, to: MemberId) {
        self.node.transfer_leader(to.get());
    }

    /// Campaigns at once; for the only voter, which needs to wait for nobody.
    pub fn campaign(&mut self) {
        if let Err(error) = self.node.campaign() {
            tracing::debug!(%error, "cannot campaign");
        }
    }

    /// Makes this member, which has an empty log, the first voter of a new group whose state is `data`. Takes effect with the
    /// next [`Group::drive`], as a snapshot that arrived would: index and term 1 stand for the bootstrap.
    pub fn found(&mut self, data: Vec<u8>) {
        assert!(self.log().is_blank(), "a group is founded on an empty log");
        let membership = Membership { voters: vec![self.config.member.get()], ..Membership::default() };
        let snapshot = Snapshot { index: 1, term: 1, membership, data: data.into() };
        let mut metadata = raft::eraftpb::Snapshot::default();
        metadata.mut_metadata().index = snapshot.index;
        metadata.mut_metadata().term = snapshot.term;
        metadata.mut_metadata().set_conf_state(crate::convert::membership_to_raft(&snapshot.membership));
        self.arrived.insert((snapshot.index, snapshot.term), snapshot);
        let term = self.node.raft.term.max(1);
        self.node.raft.become_follower(term, raft::INVALID_ID);
        let restored = self.node.raft.restore(metadata);
        assert!(restored, "an empty log takes the first snapshot");
    }

    /// Does all work that is due: makes durable what must be, hands out what was committed and what is to be sent.
    /// Everything that came in since the last call shares one disk sync. The caller applies all of it before it calls again.
    pub fn drive(&mut self) -> Result<Progress, LogError> {
        let mut progress = Progress::default();
        while self.node.has_ready() {
            self.drive_ready(&mut progress)?;
        }
        self.arrived.clear();
        progress.messages.append(&mut self.outbox);
        Ok(progress)
    }

    /// Whether [`Group::drive`] has something to do.
    pub fn has_work(&self) -> bool {
        self.node.has_ready() || !self.outbox.is_empty()
    }

    fn drive_ready(&mut self, progress: &mut Progress) -> Result<(), LogError> {
        let mut ready = self.node.ready();
        for message in ready.take_messages() {
            self.send(message);
        }
        for state in ready.take_read_states() {
            progress.reads.push((state.request_ctx, state.index));
        }
        if !ready.snapshot().is_empty() {
            let metadata = ready.snapshot().get_metadata();
            let at = (metadata.index, metadata.term);
            self.install(progress, at)?;
        }
        let committed = ready.take_committed_entries();
        self.apply(progress, committed)?;
        let entries = ready.take_entries();
        let must_sync = ready.must_sync();
        let hard = ready.hs().cloned();
        self.node.mut_store().persist(entries, hard.as_ref(), must_sync)?;
        for message in ready.take_persisted_messages() {
            self.send(message);
        }
        let mut light = self.node.advance_append(ready);
        if let Some(commit) = light.commit_index() {
            self.node.mut_store().note_commit(commit);
        }
        for message in light.take_messages() {
            self.send(message);
        }
        let committed = light.take_committed_entries();
        self.apply(progress, committed)?;
        self.node.advance_apply_to(self.applied.0);
        Ok(())
    }

    fn install(&mut self, progress: &mut Progress, at: (u64, u64)) -> Result<(), LogError> {
        let snapshot = self.arrived.remove(&at).ok_or_else(|| LogError::Damaged {
            file: "the snapshot that arrived".to_owned(),
            offset: 0,
            problem: "it is not the one that is to be installed",
        })?;
        mark!("snapshot-installed");
        self.node.mut_store().install_snapshot(snapshot.clone())?;
        self.applied = (snapshot.index, snapshot.term);
        self.last_snapshot = snapshot.index;
        progress.applied.push(Applied::Snapshot(snapshot));
        Ok(())
    }

    fn apply(&mut self, progress: &mut Progress, entries: Vec<Entry>) -> Result<(), LogError> {
        for entry in entries {
            let (index, term) = (entry.index, entry.term);
            assert_eq!(index, self.applied.0 + 1, "committed entries come without holes");
            match entry.get_entry_type() {
                EntryType::EntryNormal => {
                    progress.applied.push(Applied::Command { index, term, data: entry.data.to_vec() });
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    let membership = self.change_membership(&entry)?;
                    progress.applied.push(Applied::Membership { index, membership });
                }
            }
            self.applied = (index, term);
        }
        Ok(())
    }

    fn change_membership(&mut self, entry: &Entry) -> Result<Membership, LogError> {
        let entry = entry_from_raft(entry);
        let change = if entry.context.is_empty() {
            mark!("joint-consensus-left");
            MembershipChange::default()
        } else {
            serde_json::from_slice(&entry.context)
                .map_err(|source| LogError::Document { file: format!("log entry {}", entry.index), source })?
        };
        let state = self.node.apply_conf_change(&change.to_raft())?;
        let membership = membership_from_raft(&state);
        let gone: Vec<u64> =
            self.senders.keys().copied().filter(|id| !transfer::names(&membership, *id)).collect();
        for id in gone {
            self.senders.remove(&id);
        }
        self.node.mut_store().set_membership(state);
        self.step_down_if_removed(&membership);
        Ok(membership)
    }

    /// The library lets a leader that a change has removed go on leading: the others would follow one that takes no proposal.
    /// One comes to that when it is elected in the middle of the change that removes it.
    fn step_down_if_removed(&mut self, membership: &Membership) {
        let id = self.config.member.get();
        let votes = membership.voters.contains(&id) || membership.voters_outgoing.contains(&id);
        if self.node.raft.state == StateRole::Leader && !votes {
            tracing::info!("was removed from the group and leads no more");
            let term = self.node.raft.term;
            self.node.raft.become_follower(term, raft::INVALID_ID);
        }
    }

    fn send(&mut self, message: Message) {
        let Some(to) = MemberId::new(message.to) else { return };
        if message.get_msg_type() == MessageType::MsgSnapshot {
            let Some(snapshot) = self.node.store().snapshot().cloned() else { return };
            mark!("snapshot-sent");
            let mut sender = Sender::new(snapshot, message.term, self.config.chunk_bytes);
            queue_chunks(&mut self.outbox, message.to, &mut sender);
            self.senders.insert(message.to, sender);
            return;
        }
        if let Some(message) = message_from_raft(&message) {
            self.outbox.push((to, PeerBody::Raft(message)));
        }
    }

    /// Whether the state should be saved with [`Group::save_snapshot`].
    pub fn wants_snapshot(&self) -> bool {
        let log = self.node.store();
        if self.applied.0 <= self.last_snapshot {
            return false;
        }
        log.snapshot_wanted()
            || self.applied.0 - self.last_snapshot >= self.config.snapshot_entries
            || log.bytes_since_snapshot() >= self.config.snapshot_bytes
    }

    /// Saves the state after everything that was handed out, and drops what the log need not keep.
    pub fn save_snapshot(&mut self, data: Vec<u8>) -> Result<(), LogError> {
        mark!("snapshot-taken");
        let (mut index, term) = self.applied;
        if planted!("snapshot-index-too-high") {
            index += 1;
        }
        self.node.mut_store().keep_snapshot(index, term, data)?;
        self.last_snapshot = index;
        Ok(())
    }

    /// What the member is.
    pub fn status(&self) -> GroupStatus {
        let raft = &self.node.raft;
        let member = self.config.member.get();
        GroupStatus {
            term: raft.term,
            leader: MemberId::new(raft.leader_id),
            is_leader: raft.state == StateRole::Leader,
            is_candidate: matches!(raft.state, StateRole::Candidate | StateRole::PreCandidate),
            is_voter: raft.promotable(),
            is_member: raft.prs().get(member).is_some(),
            committed: raft.raft_log.committed,
            last: raft.raft_log.last_index(),
            first: raft.raft_log.first_index(),
            snapshot: self.node.store().snapshot().map_or(0, |snapshot| snapshot.index),
        }
    }

    /// Who takes part, as far as this member has applied the log.
    pub fn membership(&self) -> Membership {
        membership_from_raft(&self.node.raft.prs().conf().to_conf_state())
    }

    /// Whether a change of membership is proposed and not applied.
    pub fn membership_changing(&self) -> bool {
        self.node.raft.has_pending_conf()
    }

    /// How far the members are, by id; meaningful on the leader.
    pub fn members(&self) -> Vec<MemberProgress> {
        let mut members: Vec<MemberProgress> = self
            .node
            .raft
            .prs()
            .iter()
            .filter_map(|(&id, progress)| {
                let active = progress.recent_active || id == self.config.member.get();
                Some(MemberProgress { member: MemberId::new(id)?, matched: progress.matched, active })
            })
            .collect();
        members.sort_by_key(|progress| progress.member);
        members
    }

    /// The last entry that was handed out.
    pub fn applied(&self) -> u64 {
        self.applied.0
    }
}

impl<D: Disk> std::fmt::Debug for Group<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("status", &self.status()).finish_non_exhaustive()
    }
}

fn queue_chunks(outbox: &mut Vec<(MemberId, PeerBody)>, to: u64, sender: &mut Sender) {
    let Some(to) = MemberId::new(to) else { return };
    outbox.extend(sender.next_chunks().into_iter().map(|chunk| (to, PeerBody::SnapshotChunk(chunk))));
}
