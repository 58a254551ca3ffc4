//! The member: its inputs, and the order in which their consequences come out.

use crate::api::{Config, Event, EventKind, Fatal, Now, Outputs, RequestError, Role, Start, Status};
use crate::founding::{Founder, first_state};
use crate::history::History;
use crate::pending::{Proposals, Questions};
use crate::sessions::Sessions;
use basalt_clock::{Instant, Random, SeededRandom, mark, planted};
use basalt_model::{Command, DiskId, Member as Listed, MemberId, Revision, State};
use basalt_raft::{
    Applied, Disk, Group, GroupConfig, GroupStatus, Log, LogConfig, LogError, Membership, PeerRefusal,
    Progress,
};
use std::collections::BTreeMap;

/// How many rounds of work one call does at most; what is left is done by the next call.
const ROUNDS_MAX: u32 = 64;
/// How many ticks are made up for after a pause.
const TICKS_MAX: u32 = 3;

/// One control-plane member. Call its inputs in any order, then [`Member::take_outputs`]: everything that came in since
/// the last call is made durable with one disk sync before anything goes out.
#[derive(Debug)]
pub struct Member<D: Disk> {
    pub(crate) config: Config,
    pub(crate) group: Group<D>,
    pub(crate) state: State,
    pub(crate) now: Now,
    pub(crate) random: SeededRandom,
    /// Tells this run's read contexts from those of an earlier one.
    pub(crate) life: u64,
    pub(crate) proposals: Proposals,
    pub(crate) questions: Questions,
    pub(crate) sessions: Sessions,
    pub(crate) history: History,
    pub(crate) outputs: Outputs,
    pub(crate) refused: Option<PeerRefusal>,
    /// Set while this member has an empty disk and is to create the cluster.
    pub(crate) founder: Option<Founder>,
    /// Ticks since a message of the group was heard.
    pub(crate) silent_ticks: u64,
    /// Whom peers have named to this member while it has not joined.
    pub(crate) introduced: BTreeMap<MemberId, Listed>,
    pub(crate) failed: Option<Fatal>,
    /// Ticks until the next announcement.
    pub(crate) announce_in: u64,
    /// The term in which this member leads and has applied everything that was committed before.
    ready_term: Option<u64>,
    last_tick: Instant,
    last_status: Option<Status>,
}

impl<D: Disk> Member<D> {
    /// Opens the member on its disk. `seed` makes identifiers and the election timeout; a real member takes it from the
    /// operating system's randomness, a simulation chooses it.
    pub fn open(mut config: Config, disk: D, now: Now, seed: u64) -> Result<Self, Fatal> {
        let mut random = SeededRandom::new(seed);
        let bits = (u128::from(random.next_u64()) << 64) | u128::from(random.next_u64());
        let log_config = LogConfig {
            member: config.member.id,
            new_disk: DiskId::from_random(bits),
            segment_bytes: config.limits.segment_bytes,
        };
        let mut log = Log::open(disk, log_config)?;
        config.member.disk = Some(log.identity().disk);
        let founder = prepare(&config, &mut log)?;
        let state = match log.snapshot() {
            None => State::new(),
            Some(snapshot) => State::decode(&snapshot.data)
                .map_err(|source| Fatal::Snapshot { index: snapshot.index, source })?,
        };
        let group_config = GroupConfig {
            member: config.member.id,
            seed: random.next_u64(),
            election_ticks: config.timing.election_ticks,
            election_spread_ticks: config.timing.election_spread_ticks,
            heartbeat_ticks: config.timing.heartbeat_ticks,
            chunk_bytes: config.limits.chunk_bytes,
            snapshot_entries: config.limits.snapshot_entries,
            snapshot_bytes: config.limits.snapshot_bytes,
        };
        let mut group = Group::new(group_config, log)?;
        if group.membership().voters == [config.member.id.get()] {
            group.campaign();
        }
        Ok(Self {
            history: History::new(state.revision(), config.limits.history),
            life: random.next_u64(),
            config,
            group,
            state,
            now,
            random,
            proposals: Proposals::default(),
            questions: Questions::default(),
            sessions: Sessions::default(),
            outputs: Outputs::default(),
            refused: None,
            founder,
            silent_ticks: 0,
            introduced: BTreeMap::new(),
            failed: None,
            announce_in: 0,
            ready_term: None,
            last_tick: now.monotonic,
            last_status: None,
        })
    }

    /// Tells the time. Call it at least once per [`Timing::tick`](crate::Timing::tick).
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        let tick = self.config.timing.tick;
        let mut ticks = 0;
        while now.monotonic.since(self.last_tick) >= tick {
            self.last_tick = if ticks < TICKS_MAX { self.last_tick + tick } else { now.monotonic };
            ticks += 1;
            if ticks > TICKS_MAX {
                mark!("ticks-skipped");
                break;
            }
            self.silent_ticks = self.silent_ticks.saturating_add(1);
            if !self.is_expelled() {
                self.group.tick();
            }
            self.tick_founding();
        }
        if ticks > 0 {
            self.tick_requests();
            self.tick_sessions();
            self.tick_announcements();
            self.reconcile_membership();
        }
    }

    /// Does the work and hands out what there is to send. After an error the member is dead.
    pub fn take_outputs(&mut self) -> Result<Outputs, Fatal> {
        if let Some(fatal) = self.failed.take() {
            return Err(fatal);
        }
        for _ in 0..ROUNDS_MAX {
            self.ask_read_index();
            let progress = self.group.drive()?;
            let busy = !progress.applied.is_empty() || !progress.reads.is_empty();
            self.take_progress(progress)?;
            self.follow_leadership();
            let answered = self.answer_questions();
            self.reconcile_sessions();
            if !busy && !answered && self.questions.fresh.is_empty() && !self.group.has_work() {
                break;
            }
        }
        if self.group.wants_snapshot() {
            let data = self.state.encode()?;
            self.group.save_snapshot(data)?;
        }
        let status = self.status();
        if self.last_status.as_ref().is_none_or(|last| differs(last, &status)) {
            self.last_status = Some(status.clone());
            self.outputs.status = Some(status);
        }
        Ok(std::mem::take(&mut self.outputs))
    }

    fn take_progress(&mut self, progress: Progress) -> Result<(), Fatal> {
        let Progress { messages, applied, reads } = progress;
        for applied in applied {
            match applied {
                Applied::Command { index, term, data } => self.apply(index, term, &data)?,
                Applied::Membership { index, .. } => {
                    self.state.advance(Revision(index));
                    self.publish(vec![Event { revision: Revision(index), kind: EventKind::Cluster }]);
                }
                Applied::Snapshot(snapshot) => {
                    let index = snapshot.index;
                    self.state =
                        State::decode(&snapshot.data).map_err(|source| Fatal::Snapshot { index, source })?;
                    self.fail_proposals(&RequestError::Uncertain);
                    let revision = self.state.revision();
                    self.history.restart(revision);
                    self.publish(vec![Event { revision, kind: EventKind::Resync }]);
                    if self.group.membership().voters == [self.config.member.id.get()] {
                        // The first voter of a cluster that was created just now waits for nobody.
                        self.group.campaign();
                    }
                }
            }
        }
        for (context, index) in reads {
            self.read_index_known(&context, index);
        }
        // After the state changed, so that receivers are addressed by the disks that are known by now.
        for (to, body) in messages {
            self.send_to(to, None, body);
        }
        Ok(())
    }

    fn apply(&mut self, index: u64, term: u64, data: &[u8]) -> Result<(), Fatal> {
        let revision = Revision(index);
        if self.group.status().is_leader && term == self.group.status().term {
            self.ready_term = Some(term);
        }
        if data.is_empty() {
            self.state.advance(revision);
            return Ok(());
        }
        let command = Command::decode(data).map_err(|source| Fatal::Decode { index, source })?;
        let outcome = self.state.apply(revision, &command);
        if let Err(refusal) = &outcome.result {
            tracing::debug!(index, %refusal, "a command was refused");
        }
        let events = self.history.record(&self.state, revision, &outcome.changes);
        self.publish(events);
        self.note_changes(&outcome.changes);
        self.answer_applied(index, term, &outcome);
        Ok(())
    }

    fn publish(&mut self, events: Vec<Event>) {
        if planted!("watch-event-lost") && self.state.revision().0.is_multiple_of(7) {
            return;
        }
        self.outputs.events.extend(events);
    }

    /// Ends what only a leader may have when the leadership is lost.
    fn follow_leadership(&mut self) {
        let status = self.group.status();
        if !status.is_leader {
            self.ready_term = None;
        }
        if self.ready_term.is_some_and(|term| term != status.term) {
            self.ready_term = None;
        }
        if !status.is_leader || self.is_expelled() {
            if self.proposals.len() > 0 {
                self.fail_proposals(&RequestError::Uncertain);
            }
            if self.sessions.len() > 0 {
                self.end_sessions();
            }
        }
    }

    /// Whether this member leads.
    pub(crate) fn leads(&self) -> bool {
        self.ready_to_lead()
    }

    /// Whether this member leads and its state holds everything that was committed before it did.
    pub(crate) fn ready_to_lead(&self) -> bool {
        let status = self.group.status();
        status.is_leader && self.ready_term == Some(status.term) && !self.is_expelled()
    }

    /// Whether the cluster will have nothing to do with this member any more. It serves nobody from then on, whatever it
    /// believes to be.
    pub(crate) fn is_expelled(&self) -> bool {
        self.refused.is_some_and(PeerRefusal::is_final)
    }

    /// What the member is at the moment.
    pub fn status(&self) -> Status {
        let GroupStatus {
            term,
            leader,
            is_leader,
            is_candidate,
            is_voter,
            is_member,
            committed,
            last,
            snapshot,
            ..
        } = self.group.status();
        let identity = self.group.log().identity();
        let role = match () {
            () if is_leader => Role::Leader,
            () if is_candidate => Role::Candidate,
            () if is_voter => Role::Follower,
            () if is_member => Role::Learner,
            () => Role::Waiting,
        };
        Status {
            id: identity.member,
            disk: identity.disk,
            cluster: identity.cluster,
            role,
            term,
            leader,
            committed,
            applied: self.group.applied(),
            last,
            snapshot,
            sessions: self.sessions.len(),
            refused: self.refused,
            founding: self.founding(),
        }
    }

    /// The state as far as this member has applied it; may be behind the leader's.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Who takes part in the group, as far as this member has applied the log.
    pub fn membership(&self) -> Membership {
        self.group.membership()
    }

    /// The events after a revision, if the history reaches back so far.
    pub fn history(&self, from: Revision) -> Option<Vec<Event>> {
        self.history.since(from).filter(|_| from <= self.state.revision())
    }
}

/// Whether a status is worth telling: everything but the counters.
fn differs(old: &Status, new: &Status) -> bool {
    let told = |status: &Status| (status.role, status.term, status.leader, status.cluster, status.refused);
    told(old) != told(new) || old.founding != new.founding
}

/// Creates the cluster on an empty disk if there is nobody to ask before, and refuses a disk of another cluster. Returns what is
/// left to find out before the cluster is created.
fn prepare<D: Disk>(config: &Config, log: &mut Log<D>) -> Result<Option<Founder>, Fatal> {
    let bound = log.identity().cluster;
    if let Start::Join { cluster: Some(expected) } = config.start
        && let Some(found) = bound
        && found != expected
    {
        return Err(Fatal::Log(LogError::OtherCluster { found, expected }));
    }
    let Some(founder) = Founder::new(config, bound).filter(|_| log.is_blank()) else { return Ok(None) };
    match founder.cluster_to_create_alone() {
        None => Ok(Some(founder)),
        Some(cluster) => {
            log.bind_cluster(cluster)?;
            log.bootstrap(first_state(cluster).encode()?)?;
            mark!("bootstrapped-alone");
            Ok(None)
        }
    }
}
