//! One request on its way: who is asked, how often, and when to ask somebody else.

use basalt_core::{ClientRequest, Reply, RequestError};
use basalt_model::MemberId;
use std::time::Duration;

/// How long a caller waits for a reply before it asks another member.
pub const PATIENCE: Duration = Duration::from_millis(2_500);

/// A request that has not been answered for good.
#[derive(Debug, Clone)]
pub struct Pending {
    /// What is asked.
    pub request: ClientRequest,
    /// The member that is asked now.
    pub target: MemberId,
    /// The number of the current attempt; replies to earlier ones are not listened to.
    pub attempt: u64,
    /// How many attempts there were.
    pub tries: u32,
    /// An earlier attempt may still have an effect.
    pub uncertain: bool,
    /// It pauses before the next attempt.
    pub waits: bool,
}

/// What a caller does after a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// That was the answer.
    Answered,
    /// Ask this member (or any, if none is named) after a while.
    Again {
        /// The member.
        target: Option<MemberId>,
        /// How long to wait.
        after: Duration,
        /// Whether this attempt may still have an effect.
        uncertain: bool,
    },
}

/// What follows from a reply.
pub fn next(reply: &Reply) -> Next {
    let again = |target, millis, uncertain| {
        let after = Duration::from_millis(millis);
        Next::Again { target, after, uncertain }
    };
    match reply {
        Reply::Failed(RequestError::NotLeader { leader: Some(leader) }) => again(Some(*leader), 1, false),
        Reply::Failed(RequestError::NotLeader { leader: None }) => again(None, 100, false),
        Reply::Failed(RequestError::Overloaded) => again(None, 50, false),
        Reply::Failed(RequestError::Uncertain | RequestError::TimedOut | RequestError::Stopped) => {
            again(None, 50, true)
        }
        _ => Next::Answered,
    }
}
