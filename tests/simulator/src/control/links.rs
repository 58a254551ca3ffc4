//! Sessions between daemons and members: streams that keep their order, stall when a message is lost, and end.

use crate::control::daemon::{Daemon, Session};
use crate::control::world::{Event, World};
use crate::event;
use crate::run::Violation;
use basalt_clock::{Instant, Random};
use basalt_core::{NodeMessage, SessionId, SessionRefusal, ToNode};
use basalt_model::{Lifecycle, MemberId};
use std::time::Duration;

/// How long a daemon waits for a sign of life.
const SILENCE_MAX: Duration = Duration::from_secs(3);

/// The least time between two messages of a session: what is due at once comes in any order, and a stream keeps its own.
const NEXT: Duration = Duration::from_nanos(1);

impl World {
    /// Sends a message to a daemon over its session.
    pub(crate) fn send_to_daemon(&mut self, member: MemberId, id: SessionId, message: ToNode) {
        let running = self.processes.get_mut(&member).and_then(|process| process.running.as_mut());
        let Some(daemon) = running.and_then(|running| running.sessions.get(&id).copied()) else { return };
        let now = self.scheduler.now();
        let (from, to) = (Self::member_address(member), Self::daemon_address(daemon));
        let Some(session) = self.daemons[daemon].session.as_mut().filter(|session| session.id == id) else {
            return;
        };
        match self.network.send(now, from, to).first().filter(|_| !session.stalled) {
            None => session.stalled = true,
            Some(at) => {
                session.clear_to_node = (session.clear_to_node + NEXT).max(*at);
                let message = Some(Box::new(message));
                self.scheduler.at(session.clear_to_node, Event::ToDaemon { daemon, session: id, message });
            }
        }
    }

    fn send_to_member(&mut self, daemon: usize, message: NodeMessage) {
        let now = self.scheduler.now();
        let Some(session) = self.daemons[daemon].session.as_mut() else { return };
        let (from, to) = (Self::daemon_address(daemon), Self::member_address(session.member));
        match self.network.send(now, from, to).first().filter(|_| !session.stalled) {
            None => session.stalled = true,
            Some(at) => {
                session.clear_to_member = (session.clear_to_member + NEXT).max(*at);
                let event = Event::ToMember { daemon, session: session.id, message: Some(Box::new(message)) };
                self.scheduler.at(session.clear_to_member, event);
            }
        }
    }

    /// A message of a daemon, or the end of its session, arrives at the member.
    pub(crate) fn on_to_member(&mut self, daemon: usize, id: SessionId, message: Option<Box<NodeMessage>>) {
        let member = match self.daemons[daemon].session.filter(|session| session.id == id) {
            Some(session) => session.member,
            // The daemon has left; the member may still believe in the session.
            None => match self.holder(id) {
                Some(member) => member,
                None => return,
            },
        };
        let Some(process) = self.processes.get_mut(&member) else { return };
        let life = process.life;
        let Some(running) = process.running.as_mut() else { return };
        if running.paused {
            running.waiting.push_back((daemon, id, message));
            return;
        }
        match message.map(|message| *message) {
            Some(message @ NodeMessage::Hello(_)) => {
                let current = self.daemons[daemon].session.filter(|session| session.id == id);
                if current.is_none_or(|session| session.life != life) {
                    return;
                }
                running.sessions.insert(id, daemon);
                running.member.node_message(id, message);
            }
            Some(message) if running.sessions.contains_key(&id) => running.member.node_message(id, message),
            None if running.sessions.remove(&id).is_some() => running.member.node_closed(id),
            _ => return,
        }
        self.work_soon(member);
    }

    /// The member that believes in a session.
    fn holder(&self, id: SessionId) -> Option<MemberId> {
        let holds = |process: &&crate::control::process::Process| {
            process.running.as_ref().is_some_and(|running| running.sessions.contains_key(&id))
        };
        self.processes.values().find(holds).map(|process| process.id)
    }

    /// A message of a member, or the end of the session, arrives at the daemon.
    pub(crate) fn on_to_daemon(
        &mut self,
        number: usize,
        id: SessionId,
        message: Option<Box<ToNode>>,
    ) -> Result<(), Violation> {
        let now = self.scheduler.now();
        let daemon = &mut self.daemons[number];
        if daemon.off_until.is_some() {
            return Ok(());
        }
        let Some(session) = daemon.session.as_mut().filter(|session| session.id == id) else { return Ok(()) };
        session.heard = now;
        match message.map(|message| *message) {
            None => daemon.session = None,
            Some(ToNode::Welcome(welcome)) => {
                session.welcomed = true;
                daemon.body.welcomed(welcome.cluster);
                if let Some(report) = daemon.body.report(now, true) {
                    self.send_to_member(number, NodeMessage::Report(report));
                }
            }
            Some(ToNode::Refused(refusal)) => {
                event!("daemon {number} is refused by member {}: {refusal}", session.member);
                daemon.session = None;
                daemon.hint = match refusal {
                    SessionRefusal::NotLeader { leader } => leader,
                    _ => None,
                };
                self.close_at_member(number, id);
            }
            Some(ToNode::HeartbeatAck { .. }) => {}
            Some(ToNode::Desired { desired, .. }) => {
                event!("daemon {number} is told revision {}", desired.revision);
                self.oracle.told = self.oracle.told.max(desired.revision);
                daemon.body.desired(now, &desired)?;
                for tombstone in &desired.tombstones {
                    self.tombstone_is_founded(tombstone.volume)?;
                }
            }
        }
        Ok(())
    }

    /// A tombstone stands for a deletion that was committed.
    fn tombstone_is_founded(&mut self, id: basalt_model::VolumeId) -> Result<(), Violation> {
        let states = self.processes.values().filter_map(|process| process.running.as_ref());
        let volume = states
            .filter_map(|running| running.member.state().volumes().get(&id))
            .find(|volume| matches!(volume.lifecycle, Lifecycle::Deleting(_)));
        match volume {
            Some(volume) => self.oracle.deletion_begun(id, &volume.name.clone()),
            // The members have moved on, and have told about it.
            None => Ok(()),
        }
    }

    fn close_at_member(&mut self, daemon: usize, id: SessionId) {
        let delay = Duration::from_micros(100 + self.random.below(2_000));
        self.scheduler.after(delay, Event::ToMember { daemon, session: id, message: None });
    }

    /// Ends all sessions of a member that has died.
    pub(crate) fn sessions_end(&mut self, sessions: impl Iterator<Item = (SessionId, usize)>) {
        for (session, daemon) in sessions {
            let delay = Duration::from_micros(100 + self.random.below(20_000));
            self.scheduler.after(delay, Event::ToDaemon { daemon, session, message: None });
        }
    }

    /// A daemon looks after its session.
    pub(crate) fn on_daemon(&mut self, number: usize) {
        let now = self.scheduler.now();
        self.scheduler.after(Daemon::PERIOD, Event::Daemon(number));
        let daemon = &mut self.daemons[number];
        if let Some(until) = daemon.off_until {
            if until > now {
                return;
            }
            daemon.off_until = None;
            daemon.body.restart();
            event!("daemon {number} starts");
        }
        match daemon.session {
            None => self.connect(number, now),
            Some(session) if now - session.heard > SILENCE_MAX => {
                event!("daemon {number} hears nothing of member {}", session.member);
                self.daemons[number].session = None;
                self.close_at_member(number, session.id);
            }
            Some(session) => {
                if session.welcomed
                    && let Some(report) = self.daemons[number].body.report(now, false)
                {
                    self.send_to_member(number, NodeMessage::Report(report));
                }
                self.send_to_member(number, NodeMessage::Heartbeat);
            }
        }
    }

    fn connect(&mut self, number: usize, now: Instant) {
        let hint = self.daemons[number].hint.take();
        let running = |world: &Self, member: MemberId| {
            world.processes.get(&member).is_some_and(|process| process.running.is_some())
        };
        let member = match hint.filter(|member| running(self, *member)) {
            Some(member) => member,
            None => self.any_member(),
        };
        let Some(process) = self.processes.get(&member).filter(|process| process.running.is_some()) else {
            return;
        };
        self.sessions += 1;
        let session = Session {
            id: SessionId(self.sessions),
            member,
            life: process.life,
            welcomed: false,
            heard: now,
            stalled: false,
            clear_to_member: now,
            clear_to_node: now,
        };
        let hello = self.daemons[number].body.hello();
        self.daemons[number].session = Some(session);
        self.send_to_member(number, NodeMessage::Hello(hello));
    }

    /// A daemon's machine loses power for a while.
    pub(crate) fn daemon_dies(&mut self, number: usize, off: Duration) {
        let until = self.scheduler.now() + off;
        let daemon = &mut self.daemons[number];
        daemon.off_until = Some(until);
        if let Some(session) = daemon.session.take()
            && self.random.chance(1, 2)
        {
            self.close_at_member(number, session.id);
        }
    }
}
