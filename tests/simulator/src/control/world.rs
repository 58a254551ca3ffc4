//! The control plane's world: processes, clients and daemons on one event queue.

use crate::control::admin::Admin;
use crate::control::client::{Client, Workload};
use crate::control::daemon::Daemon;
use crate::control::invariants::Oracle;
use crate::control::process::{Life, Process};
use crate::control::requests::{self, Next, PATIENCE, Pending};
use crate::control::strangers;
use crate::control::watcher::Watcher;
use crate::event;
use crate::network::{Address, Network};
use crate::run::{Tally, Violation};
use crate::scheduler::Scheduler;
use crate::trace;
use basalt_clock::{Instant, Random, SeededRandom};
use basalt_core::{ClientRequest, NodeMessage, Outputs, Reply, Role, SessionId, ToNode};
use basalt_model::MemberId;
use basalt_raft::PeerMessage;
use std::collections::BTreeMap;
use std::time::Duration;

/// Somebody who sends requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caller {
    /// A client of the workload.
    Client(u32),
    /// Whoever changes nodes and members.
    Admin,
    /// Whoever watches.
    Watcher,
}

/// Something that happens.
#[derive(Debug)]
pub enum Event {
    /// A member's timer.
    Tick(MemberId, Life),
    /// A member does the work that has come in.
    Work(MemberId, Life),
    /// A message between members arrives.
    Peer(Box<PeerMessage>),
    /// A request arrives at a member.
    Request {
        /// The member.
        member: MemberId,
        /// Who asks.
        caller: Caller,
        /// The attempt.
        attempt: u64,
        /// What is asked.
        request: Box<ClientRequest>,
    },
    /// A reply arrives at a caller.
    Reply {
        /// The caller.
        caller: Caller,
        /// The attempt.
        attempt: u64,
        /// The reply.
        reply: Box<Reply>,
    },
    /// A caller's patience ends, its pause ends, or it begins something new.
    Wake(Caller, u64),
    /// A daemon's message arrives.
    ToMember {
        /// The daemon.
        daemon: usize,
        /// Its session.
        session: SessionId,
        /// The message; `None` ends the session.
        message: Option<Box<NodeMessage>>,
    },
    /// A member's message arrives at a daemon.
    ToDaemon {
        /// The daemon.
        daemon: usize,
        /// Its session.
        session: SessionId,
        /// The message; `None` ends the session.
        message: Option<Box<ToNode>>,
    },
    /// A daemon looks after its session.
    Daemon(usize),
    /// The next fault strikes.
    Fault,
    /// A paused process goes on.
    Resume(MemberId, Life),
    /// A dead process is started again.
    Restart(MemberId),
    /// A process ends for good.
    Bury(MemberId),
    /// All cuts are mended.
    Mend,
    /// A disk works again.
    DiskWorks(MemberId),
}

/// The world.
#[derive(Debug)]
pub struct World {
    /// What happens when.
    pub scheduler: Scheduler<Event>,
    /// Who reaches whom.
    pub network: Network,
    /// Chooses faults and delays.
    pub random: SeededRandom,
    /// The control plane.
    pub processes: BTreeMap<MemberId, Process>,
    /// Clients.
    pub clients: Vec<Client>,
    /// What clients ask for, and what they were told.
    pub workload: Workload,
    /// Operations that clients still begin.
    pub budget: u64,
    /// Whoever changes members.
    pub admin: Admin,
    /// Whoever watches.
    pub watcher: Watcher,
    /// The nodes.
    pub daemons: Vec<Daemon>,
    /// What must hold.
    pub oracle: Oracle,
    /// What was done.
    pub tally: Tally,
    /// Whether faults still strike.
    pub faulty: bool,
    /// How often a majority of the disks is still lost.
    pub majorities_to_lose: u32,
    /// The length of a member's tick.
    pub tick: Duration,
    pub(crate) attempts: u64,
    pub(crate) sessions: u64,
}

impl World {
    /// Does the next event.
    ///
    /// # Errors
    /// When something happened that must not.
    pub fn step(&mut self) -> Result<(), Violation> {
        let Some(event) = self.scheduler.take_next() else { return Ok(()) };
        trace::set_now(self.scheduler.now());
        match event {
            Event::Tick(member, life) => self.on_tick(member, life),
            Event::Work(member, life) => return self.on_work(member, life),
            Event::Peer(message) => self.on_peer(message),
            Event::Request { member, caller, attempt, request } => {
                self.on_request(member, caller, attempt, request);
            }
            Event::Reply { caller, attempt, reply } => return self.on_reply(caller, attempt, &reply),
            Event::Wake(caller, attempt) => self.on_wake(caller, attempt),
            Event::ToMember { daemon, session, message } => self.on_to_member(daemon, session, message),
            Event::ToDaemon { daemon, session, message } => {
                return self.on_to_daemon(daemon, session, message);
            }
            Event::Daemon(daemon) => self.on_daemon(daemon),
            Event::Fault => self.strike(),
            Event::Resume(member, life) => self.resume(member, life),
            Event::Restart(member) => self.restart(member),
            Event::Bury(member) => self.bury(member),
            Event::Mend => {
                event!("all cuts are mended");
                self.network.mend();
            }
            Event::DiskWorks(member) => {
                if let Some(process) = self.processes.get(&member) {
                    process.disk.set_fault(None);
                }
            }
        }
        Ok(())
    }

    /// The address of a member.
    pub fn member_address(member: MemberId) -> Address {
        Address(u32::try_from(member.get()).unwrap_or(u32::MAX))
    }

    /// The address of a caller.
    pub fn caller_address(caller: Caller) -> Address {
        match caller {
            Caller::Client(number) => Address(10_000 + number),
            Caller::Admin => Address(20_000),
            Caller::Watcher => Address(20_001),
        }
    }

    /// The address of a daemon.
    pub fn daemon_address(daemon: usize) -> Address {
        Address(30_000 + u32::try_from(daemon).unwrap_or(0))
    }

    /// The running process, if this is still its run.
    fn alive(&mut self, member: MemberId, life: Life) -> Option<&mut Process> {
        self.processes.get_mut(&member).filter(|process| process.life == life && process.running.is_some())
    }

    fn on_tick(&mut self, member: MemberId, life: Life) {
        let (world, tick) = (self.scheduler.now(), self.tick);
        let Some(process) = self.alive(member, life) else { return };
        let now = process.now(world);
        let Some(running) = process.running.as_mut() else { return };
        if !running.paused {
            running.member.tick(now);
            self.scheduler.after(tick, Event::Tick(member, life));
            self.work_soon(member);
        }
    }

    /// Makes the member do its work within a moment, unless it will anyway.
    pub(crate) fn work_soon(&mut self, member: MemberId) {
        let delay = Duration::from_micros(self.random.below(400));
        let Some(process) = self.processes.get_mut(&member) else { return };
        let life = process.life;
        if let Some(running) = process.running.as_mut()
            && !running.work_due
        {
            running.work_due = true;
            self.scheduler.after(delay, Event::Work(member, life));
        }
    }

    fn on_work(&mut self, member: MemberId, life: Life) -> Result<(), Violation> {
        let world = self.scheduler.now();
        let alive = |process: &&mut Process| process.life == life;
        let Some(process) = self.processes.get_mut(&member).filter(alive) else { return Ok(()) };
        let now = process.now(world);
        let Some(running) = process.running.as_mut() else { return Ok(()) };
        if running.paused {
            self.scheduler.after(Duration::from_millis(20), Event::Work(member, life));
            return Ok(());
        }
        running.work_due = false;
        running.member.tick(now);
        let result = running.member.take_outputs();
        if running.fuse.is_blown() {
            event!("member {member} dies at disk operation {}", running.fuse.operations());
            self.tally.fault("death in a disk operation", 1);
            self.crash_soon_restart(member);
            return Ok(());
        }
        match result {
            Ok(outputs) => {
                self.oracle.observe(member, &outputs, running.member.state())?;
                let status = outputs.status.clone();
                if process.disk_lost && status.as_ref().is_some_and(|status| status.role == Role::Leader) {
                    return Err(Violation::Invariant {
                        invariant: "a lost disk makes no second cluster",
                        detail: format!("member {member} leads: {status:?}"),
                    });
                }
                self.route(member, life, outputs)?;
                // As the server's process does.
                if let Some(refusal) = status.and_then(|status| status.refused).filter(|why| why.is_final()) {
                    event!("member {member} ends itself: it is refused, {refusal}");
                    self.crash_soon_restart(member);
                }
                Ok(())
            }
            Err(fatal) => {
                event!("member {member} ends itself: {fatal}");
                self.crash_soon_restart(member);
                Ok(())
            }
        }
    }

    fn route(&mut self, member: MemberId, life: Life, outputs: Outputs) -> Result<(), Violation> {
        let (now, from) = (self.scheduler.now(), Self::member_address(member));
        if let Some(status) = &outputs.status {
            event!(
                "member {member} is {:?} in term {}, follows {:?}",
                status.role,
                status.term,
                status.leader
            );
        }
        for message in outputs.peers {
            let arrivals = self.network.send(now, from, Self::member_address(message.to));
            for at in arrivals {
                self.scheduler.at(at, Event::Peer(Box::new(message.clone())));
            }
        }
        for (reply_to, reply) in outputs.replies {
            let running = self.processes.get_mut(&member).and_then(|process| process.running.as_mut());
            let caller = running.and_then(|running| running.callers.remove(&reply_to));
            let Some((caller, attempt)) = caller else {
                return Err(Violation::Invariant {
                    invariant: "every request is answered once",
                    detail: format!("member {member} answered {reply_to:?} again: {reply:?}"),
                });
            };
            if let Reply::Done { revision, .. } | Reply::Read { revision, .. } = &reply {
                self.oracle.told = self.oracle.told.max(*revision);
            }
            if matches!(reply, Reply::Watching { .. }) {
                self.watch_is_answered(attempt, member, life);
            }
            for at in self.network.send(now, from, Self::caller_address(caller)) {
                self.scheduler.at(at, Event::Reply { caller, attempt, reply: Box::new(reply.clone()) });
            }
        }
        for (session, message) in outputs.nodes {
            self.send_to_daemon(member, session, message);
        }
        self.watcher_sees(member, life, &outputs.events)
    }

    fn on_peer(&mut self, message: Box<PeerMessage>) {
        let mut message = message;
        if self.faulty && self.random.chance(1, 1_000) && strangers::damage(&mut message) {
            event!("a part of a snapshot for member {} is damaged", message.to);
            self.tally.fault("damaged message", 1);
        }
        let (from, to) = (message.from, message.to);
        let passes = self.network.passes(Self::member_address(from), Self::member_address(to));
        let gone = self.processes.get(&from).is_none_or(|process| process.buried);
        let Some(process) = self.processes.get_mut(&to).filter(|_| passes && !gone) else { return };
        let Some(running) = process.running.as_mut() else { return };
        if running.paused {
            let later = Duration::from_millis(20);
            self.scheduler.after(later, Event::Peer(message));
            return;
        }
        running.member.peer_message(*message);
        self.work_soon(to);
    }

    fn on_request(&mut self, member: MemberId, caller: Caller, attempt: u64, request: Box<ClientRequest>) {
        let passes = self.network.passes(Self::caller_address(caller), Self::member_address(member));
        let Some(process) = self.processes.get_mut(&member).filter(|_| passes) else { return };
        let Some(running) = process.running.as_mut() else { return };
        if running.paused {
            let later = Duration::from_millis(20);
            self.scheduler.after(later, Event::Request { member, caller, attempt, request });
            return;
        }
        let reply_to = running.expect_reply(caller, attempt);
        running.member.request(*request, reply_to);
        self.work_soon(member);
    }

    /// Some member that is not buried.
    pub fn any_member(&mut self) -> MemberId {
        let alive: Vec<MemberId> =
            self.processes.values().filter(|process| !process.buried).map(|process| process.id).collect();
        let chosen = self.random.below(alive.len() as u64);
        alive[usize::try_from(chosen).unwrap_or(0)]
    }

    /// Sends a request for the first time.
    pub(crate) fn ask(&mut self, caller: Caller, request: ClientRequest) -> Pending {
        let target = self.any_member();
        let mut pending = Pending { request, target, attempt: 0, tries: 0, uncertain: false, waits: false };
        self.send(caller, &mut pending);
        pending
    }

    fn send(&mut self, caller: Caller, pending: &mut Pending) {
        self.attempts += 1;
        pending.attempt = self.attempts;
        pending.tries += 1;
        let (member, attempt, now) = (pending.target, pending.attempt, self.scheduler.now());
        // A stream repeats nothing.
        for at in self
            .network
            .send(now, Self::caller_address(caller), Self::member_address(member))
            .into_iter()
            .take(1)
        {
            let request = Box::new(pending.request.clone());
            self.scheduler.at(at, Event::Request { member, caller, attempt, request });
        }
        self.scheduler.after(PATIENCE, Event::Wake(caller, attempt));
    }

    fn pending(&mut self, caller: Caller) -> &mut Option<Pending> {
        match caller {
            Caller::Client(number) => &mut self.clients[number as usize].pending,
            Caller::Admin => &mut self.admin.pending,
            Caller::Watcher => &mut self.watcher.pending,
        }
    }

    fn on_wake(&mut self, caller: Caller, attempt: u64) {
        let Some(mut pending) = self.pending(caller).take() else {
            match caller {
                Caller::Client(number) => self.client_begins(number),
                Caller::Admin => self.admin_begins(),
                Caller::Watcher => self.watcher_begins(),
            }
            return;
        };
        if pending.attempt == attempt {
            // Patience has ended, unless this was only a pause.
            pending.uncertain |= !std::mem::take(&mut pending.waits);
            let target = self.processes.get(&pending.target);
            if target.is_none_or(|process| process.running.is_none()) || self.random.chance(1, 2) {
                pending.target = self.any_member();
            }
            self.send(caller, &mut pending);
        }
        *self.pending(caller) = Some(pending);
    }

    fn on_reply(&mut self, caller: Caller, attempt: u64, reply: &Reply) -> Result<(), Violation> {
        let Some(mut pending) = self.pending(caller).take() else { return Ok(()) };
        if pending.attempt != attempt {
            *self.pending(caller) = Some(pending);
            return Ok(());
        }
        match requests::next(reply) {
            Next::Again { target, after, uncertain } => {
                pending.uncertain |= uncertain;
                pending.waits = true;
                let known =
                    target.filter(|target| self.processes.get(target).is_some_and(|process| !process.buried));
                pending.target = known.unwrap_or_else(|| self.any_member());
                self.attempts += 1;
                pending.attempt = self.attempts;
                self.scheduler.after(after, Event::Wake(caller, pending.attempt));
                *self.pending(caller) = Some(pending);
                Ok(())
            }
            Next::Answered => match caller {
                Caller::Client(number) => self.client_answered(number, &pending, reply),
                Caller::Admin => {
                    self.admin_answered(reply);
                    Ok(())
                }
                Caller::Watcher => self.watcher_answered(&pending, reply),
            },
        }
    }

    /// The present.
    pub fn now(&self) -> Instant {
        self.scheduler.now()
    }
}
