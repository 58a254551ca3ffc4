//! The member.

use crate::api::{
    ClientRequest, Config, Event, Fatal, NodeMessage, Now, Outputs, ReplyTo, SessionId, Status,
};
use basalt_model::{Incarnation, Revision, State};
use basalt_raft::{Disk, PeerMessage};

/// One control-plane member. Call its inputs in any order, then [`Member::take_outputs`]: everything that came in since
/// the last call is made durable with one disk sync before anything goes out.
#[derive(Debug)]
pub struct Member<D: Disk> {
    config: Config,
    disk: D,
    now: Now,
    state: State,
}

impl<D: Disk> Member<D> {
    /// Opens the member on its disk. `seed` makes identifiers and the election timeout; a real member takes it from the
    /// operating system's randomness, a simulation chooses it.
    pub fn open(config: Config, disk: D, now: Now, seed: u64) -> Result<Self, Fatal> {
        let _ = seed;
        Ok(Self { config, disk, now, state: State::new() })
    }

    /// Tells the time. Call it at least once per [`Timing::tick`](crate::Timing::tick).
    pub fn tick(&mut self, now: Now) {
        self.now = now;
    }

    /// A message of another member arrived.
    pub fn peer_message(&mut self, message: PeerMessage) {
        let _ = (message, &self.config, &self.disk);
    }

    /// A client asks. The reply comes out under `reply_to`, always exactly once while the member lives.
    pub fn request(&mut self, request: ClientRequest, reply_to: ReplyTo) {
        let _ = (request, reply_to);
    }

    /// A daemon says something. The first message of a session is its hello.
    pub fn node_message(&mut self, session: SessionId, message: NodeMessage) {
        let _ = (session, message);
    }

    /// A daemon's connection ended.
    pub fn node_closed(&mut self, session: SessionId) {
        let _ = session;
    }

    /// Does the work and hands out what there is to send. After an error the member is dead.
    pub fn take_outputs(&mut self) -> Result<Outputs, Fatal> {
        Ok(Outputs::default())
    }

    /// What the member is at the moment.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// The state as far as this member has applied it; may be behind the leader's.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The events after a revision, if the history reaches back so far.
    pub fn history(&self, from: Revision) -> Option<Vec<Event>> {
        let _ = from;
        None
    }
}

/// Makes this stopped member's disk the only voter of a new incarnation of the cluster, after a majority of the members'
/// disks was lost. The other old members must never run again.
pub fn recover<D: Disk>(config: &Config, disk: D) -> Result<Recovered, Fatal> {
    let _ = (config, disk);
    todo!()
}

/// What a recovery did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The new incarnation.
    pub incarnation: Incarnation,
    /// The revision at which it begins.
    pub revision: Revision,
}
