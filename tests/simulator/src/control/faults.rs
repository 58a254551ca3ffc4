//! What goes wrong.

use crate::control::admin::member;
use crate::control::process::Running;
use crate::control::strangers;
use crate::control::world::{Caller, Event, World};
use crate::event;
use crate::network::{Address, Weather};
use basalt_clock::Random;
use basalt_core::{ClientRequest, Role, Start};
use basalt_model::{ClusterId, MemberId, State};
use basalt_raft::{CrashStyle, DiskFault, MemoryDisk};
use std::mem;
use std::time::Duration;

/// The longest time between two faults.
const PEACE_MAX: Duration = Duration::from_millis(2_500);

impl World {
    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.within(from..to))
    }

    /// One of the running processes.
    fn some_running(&mut self) -> Option<MemberId> {
        let running: Vec<MemberId> = self
            .processes
            .values()
            .filter(|process| process.running.is_some())
            .map(|process| process.id)
            .collect();
        let count = running.len() as u64;
        (count > 0).then(|| running[usize::try_from(self.random.below(count)).unwrap_or(0)])
    }

    /// The process that leads, as far as it knows.
    pub fn leader(&self) -> Option<MemberId> {
        let leads = |running: &Running| running.member.status().role == basalt_core::Role::Leader;
        let leaders = self.processes.values().filter(|process| process.running.as_ref().is_some_and(leads));
        let term = |process: &&crate::control::process::Process| {
            process.running.as_ref().map_or(0, |running| running.member.status().term)
        };
        leaders.max_by_key(term).map(|process| process.id)
    }

    /// What a running member knows.
    pub fn state_of(&self, member: MemberId) -> Option<&State> {
        let running = self.processes.get(&member)?.running.as_ref()?;
        Some(running.member.state())
    }

    /// Somebody to hurt: often the leader.
    fn victim(&mut self) -> Option<MemberId> {
        match self.leader() {
            Some(leader) if self.random.chance(1, 2) => Some(leader),
            _ => self.some_running(),
        }
    }

    /// Lets the next fault strike.
    pub(crate) fn strike(&mut self) {
        if !self.faulty {
            return;
        }
        let most = u64::try_from(PEACE_MAX.as_millis()).unwrap_or(u64::MAX);
        let peace = Duration::from_millis(self.random.below(most));
        self.scheduler.after(peace, Event::Fault);
        let Some(victim) = self.victim() else { return };
        match self.random.below(24) {
            0..4 => self.kill(victim, "crash"),
            4..7 => self.light_fuse(victim),
            7..9 => self.pause(victim),
            9..12 => self.partition(victim),
            12..14 => self.cut_one_way(victim),
            14..16 => {
                let weather = Weather::bad(&mut self.random);
                event!("weather {weather:?}");
                self.network.set_weather(weather);
            }
            16..18 => self.transfer(victim),
            18 => self.disk_fault(victim),
            19 => self.all_crash(),
            20 => self.change_members(),
            21 if self.random.chance(1, 2) => self.stranger(victim),
            21 => self.change_members(),
            22 if self.random.chance(1, 3) => self.disk_is_lost(),
            _ if self.majorities_to_lose == 0 || self.random.chance(4, 5) => self.daemon_fault(),
            _ => self.majority_is_lost(),
        }
    }

    /// The disk of a voter is lost. Its supervisor starts the process on an empty one with the flags that it had, `--bootstrap` among
    /// them; the administrator replaces the member.
    fn disk_is_lost(&mut self) {
        if !self.admin.is_idle() || self.admin.voters.len() < 3 {
            return;
        }
        let voters: Vec<MemberId> = self.admin.voters.iter().copied().collect();
        let victim = voters[usize::try_from(self.random.below(voters.len() as u64)).unwrap_or(0)];
        // One that was never heard holds nothing: without the victim, it and one other would be no majority of those that know what was committed.
        let has_joined = |voter: &MemberId| {
            let running = self.processes.get(voter).and_then(|process| process.running.as_ref());
            running.is_some_and(|running| running.member.status().role != Role::Waiting)
        };
        if !voters.iter().all(has_joined) {
            return;
        }
        self.crash(victim);
        let cluster = ClusterId::from_random(u128::from(self.random.next_u64()));
        let off = self.millis(10, 3_000);
        let Some(process) = self.processes.get_mut(&victim) else { return };
        event!("the disk of member {victim} is lost");
        process.disk = MemoryDisk::new();
        process.disk_lost = true;
        process.config.peers = voters.iter().copied().filter(|voter| *voter != victim).collect();
        let others = process.config.peers.iter().copied().map(member).collect();
        process.config.start = Start::Bootstrap { cluster, others };
        self.tally.fault("lost disk", 1);
        self.scheduler.after(off, Event::Restart(victim));
        self.replace_member(victim);
    }

    fn kill(&mut self, victim: MemberId, kind: &'static str) {
        self.tally.fault(kind, 1);
        self.crash_soon_restart(victim);
    }

    fn crash_style(&mut self) -> CrashStyle {
        match self.random.below(4) {
            0 => CrashStyle::LoseAll,
            1 => CrashStyle::KeepAll,
            _ => CrashStyle::Tear { seed: self.random.next_u64() },
        }
    }

    /// The process dies now. Returns whether it ran.
    pub(crate) fn crash(&mut self, victim: MemberId) -> bool {
        let (style, rots) = (self.crash_style(), self.faulty && self.random.chance(1, 20));
        let Some(process) = self.processes.get_mut(&victim) else { return false };
        let Some(running) = process.running.take() else { return false };
        event!("member {victim} crashes, {style:?}");
        process.disk.set_fault(None);
        process.disk.crash(style);
        if rots && strangers::rot(&process.disk) {
            event!("an old snapshot of member {victim} rots");
            self.tally.fault("bit rot", 1);
        }
        self.sessions_end(running.sessions.into_iter());
        self.watch_ends(victim);
        true
    }

    /// The process dies now and is started again after a while.
    pub(crate) fn crash_soon_restart(&mut self, victim: MemberId) {
        if self.crash(victim) {
            let off = match self.random.below(4) {
                0 => self.millis(2_000, 8_000),
                _ => self.millis(10, 1_500),
            };
            self.scheduler.after(off, Event::Restart(victim));
        }
    }

    /// Starts a process that does not run.
    pub(crate) fn restart(&mut self, member: MemberId) {
        let (now, seed) = (self.scheduler.now(), self.random.next_u64());
        let Some(process) = self.processes.get_mut(&member) else { return };
        if process.buried || process.running.is_some() {
            return;
        }
        match process.start(now, seed) {
            Ok(()) => {
                event!("member {member} starts, run {}", process.life.0);
                let life = process.life;
                self.scheduler.after(Duration::from_millis(1), Event::Tick(member, life));
            }
            Err(fatal) => {
                event!("member {member} does not start: {fatal}");
                self.scheduler.after(Duration::from_millis(500), Event::Restart(member));
            }
        }
    }

    /// The process ends for good.
    pub(crate) fn bury(&mut self, member: MemberId) {
        self.crash(member);
        if let Some(process) = self.processes.get_mut(&member) {
            event!("member {member} is buried");
            process.buried = true;
        }
    }

    fn light_fuse(&mut self, victim: MemberId) {
        let operations = self.random.below(40);
        if let Some(running) = self.processes.get_mut(&victim).and_then(|process| process.running.as_mut()) {
            event!("member {victim} will die after {operations} disk operations");
            running.fuse.set(operations);
        }
    }

    fn pause(&mut self, victim: MemberId) {
        let length = self.millis(50, 4_000);
        let Some(process) = self.processes.get_mut(&victim) else { return };
        let life = process.life;
        if let Some(running) = process.running.as_mut().filter(|running| !running.paused) {
            event!("member {victim} stands still for {length:?}");
            running.paused = true;
            self.tally.fault("pause", 1);
            self.scheduler.after(length, Event::Resume(victim, life));
        }
    }

    /// A paused process goes on.
    pub(crate) fn resume(&mut self, member: MemberId, life: crate::control::process::Life) {
        let Some(process) = self.processes.get_mut(&member).filter(|process| process.life == life) else {
            return;
        };
        if let Some(running) = process.running.as_mut() {
            running.paused = false;
            let waiting = mem::take(&mut running.waiting);
            self.scheduler.after(Duration::from_micros(1), Event::Tick(member, life));
            for (daemon, session, message) in waiting {
                self.on_to_member(daemon, session, message);
            }
        }
    }

    fn mend_later(&mut self) {
        let length = self.millis(200, 6_000);
        self.scheduler.after(length, Event::Mend);
    }

    /// Everybody that a cut may separate.
    fn everybody(&self) -> Vec<Address> {
        let members = self.processes.keys().map(|id| Self::member_address(*id));
        let clients = self.clients.iter().map(|client| Self::caller_address(Caller::Client(client.number)));
        let daemons = (0..self.daemons.len()).map(Self::daemon_address);
        members.chain(clients).chain(daemons).collect()
    }

    fn partition(&mut self, victim: MemberId) {
        let everybody = self.everybody();
        // The victim is on one side; everybody else falls on either side, clients and daemons included.
        let alone = self.random.chance(1, 2);
        let mut side = vec![Self::member_address(victim)];
        for address in &everybody {
            let joins = if alone { address.0 >= 10_000 } else { true };
            if joins && self.random.chance(1, 2) {
                side.push(*address);
            }
        }
        event!("cut around {side:?}");
        self.tally.fault("partition", 1);
        self.network.cut_off(&side, &everybody);
        self.mend_later();
    }

    fn cut_one_way(&mut self, victim: MemberId) {
        let (victim, inward) = (Self::member_address(victim), self.random.chance(1, 2));
        event!("cut one way, {} {victim:?}", if inward { "to" } else { "from" });
        for other in self.everybody().into_iter().filter(|other| *other != victim && other.0 < 10_000) {
            match inward {
                true => self.network.cut_one_way(other, victim),
                false => self.network.cut_one_way(victim, other),
            }
        }
        self.tally.fault("one-way partition", 1);
        self.mend_later();
    }

    fn transfer(&mut self, to: MemberId) {
        let Some(leader) = self.leader() else { return };
        let target = self.random.chance(1, 2).then_some(to);
        event!("the leadership of member {leader} is asked to go to {target:?}");
        self.attempts += 1;
        let attempt = self.attempts;
        self.tally.fault("leader transfer", 1);
        let request = Box::new(ClientRequest::TransferLeader { to: target });
        // Nobody waits for the answer: the administrator's attempt number does not match.
        let event = Event::Request { member: leader, caller: Caller::Admin, attempt, request };
        self.scheduler.after(Duration::from_micros(100), event);
    }

    fn disk_fault(&mut self, victim: MemberId) {
        let fault = match self.random.below(4) {
            0 => DiskFault::Full,
            1 => DiskFault::ReadOnly,
            2 => DiskFault::SyncFails,
            _ => DiskFault::Dead,
        };
        if let Some(process) = self.processes.get(&victim) {
            event!("the disk of member {victim} is {fault:?}");
            process.disk.set_fault(Some(fault));
            self.tally.fault("disk fault", 1);
            let length = self.millis(100, 3_000);
            self.scheduler.after(length, Event::DiskWorks(victim));
        }
    }

    fn all_crash(&mut self) {
        let all: Vec<MemberId> = self.processes.keys().copied().collect();
        event!("everything loses power");
        self.tally.fault("crash of all", 1);
        for member in all {
            self.crash_soon_restart(member);
        }
    }

    fn daemon_fault(&mut self) {
        if self.daemons.is_empty() {
            return;
        }
        let number = usize::try_from(self.random.below(self.daemons.len() as u64)).unwrap_or(0);
        let off = self.millis(10, 6_000);
        event!("daemon {number} is off for {off:?}");
        self.tally.fault("daemon crash", 1);
        self.daemon_dies(number, off);
    }
}
