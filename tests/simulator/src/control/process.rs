//! One control-plane process: a member, its disk, its clock, and the state between crash and restart.

use crate::control::fuse::{Fuse, FusedDisk};
use crate::control::world::Caller;
use crate::drift::DriftingClock;
use basalt_clock::Instant;
use basalt_core::{Config, Fatal, Member, NodeMessage, Now, ReplyTo, SessionId};
use basalt_model::{MemberId, Timestamp};
use basalt_raft::MemoryDisk;
use std::collections::{BTreeMap, VecDeque};

/// Counts the runs of one process, so that what was meant for an earlier run is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Life(pub u32);

/// A process that runs, ran or will run.
#[derive(Debug)]
pub struct Process {
    /// Its member id.
    pub id: MemberId,
    /// What it is started with.
    pub config: Config,
    /// What survives it.
    pub disk: MemoryDisk,
    /// How it sees time.
    pub clock: DriftingClock,
    /// Its current or last run.
    pub life: Life,
    /// The run, while it lasts.
    pub running: Option<Running>,
    /// Never starts again: its disk was destroyed or its member removed for good.
    pub buried: bool,
    /// Its disk was lost after it had voted: it must not be part of any cluster again.
    pub disk_lost: bool,
}

/// A process that runs.
#[derive(Debug)]
pub struct Running {
    /// The production code.
    pub member: Member<FusedDisk>,
    /// Kills it at a chosen disk operation.
    pub fuse: Fuse,
    /// Whether it stands still; what arrives waits.
    pub paused: bool,
    /// What arrived of sessions meanwhile, in its order; nothing is the end of a session.
    pub waiting: VecDeque<(usize, SessionId, Option<Box<NodeMessage>>)>,
    /// Whether work is already due.
    pub work_due: bool,
    /// Who waits for which reply.
    pub callers: BTreeMap<ReplyTo, (Caller, u64)>,
    /// The daemon at the other end of each session, by its number.
    pub sessions: BTreeMap<SessionId, usize>,
    replies: u64,
}

impl Running {
    /// A new number for a reply to `caller`.
    pub fn expect_reply(&mut self, caller: Caller, attempt: u64) -> ReplyTo {
        self.replies += 1;
        let reply_to = ReplyTo(self.replies);
        self.callers.insert(reply_to, (caller, attempt));
        reply_to
    }
}

impl Process {
    /// A process that has not been started yet.
    pub fn new(config: Config, clock: DriftingClock) -> Self {
        Self {
            id: config.member.id,
            config,
            disk: MemoryDisk::new(),
            clock,
            life: Life(0),
            running: None,
            buried: false,
            disk_lost: false,
        }
    }

    /// What time the process believes it is.
    pub fn now(&self, world: Instant) -> Now {
        let monotonic = self.clock.show(world);
        Now { monotonic, wall: Timestamp(monotonic.as_nanos() / 1_000_000) }
    }

    /// Starts the process on what its disk holds.
    ///
    /// # Errors
    /// What the member says about its disk.
    pub fn start(&mut self, world: Instant, seed: u64) -> Result<(), Fatal> {
        assert!(self.running.is_none() && !self.buried, "a process is started twice or after its end");
        self.life.0 += 1;
        let fuse = Fuse::default();
        let disk = FusedDisk::new(self.disk.clone(), fuse.clone());
        let member = Member::open(self.config.clone(), disk, self.now(world), seed)?;
        self.running = Some(Running {
            member,
            fuse,
            paused: false,
            waiting: VecDeque::new(),
            work_due: false,
            callers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            replies: 0,
        });
        Ok(())
    }
}
