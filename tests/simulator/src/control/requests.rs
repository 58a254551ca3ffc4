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
    },
}

/// What follows from a reply.
pub fn next(reply: &Reply) -> Next {
    let again = |target, millis| Next::Again { target, after: Duration::from_millis(millis) };
    match reply {
        Reply::Failed(RequestError::NotLeader { leader: Some(leader) }) => again(Some(*leader), 1),
        Reply::Failed(RequestError::NotLeader { leader: None }) => again(None, 100),
        Reply::Failed(
            RequestError::Overloaded
            | RequestError::Uncertain
            | RequestError::TimedOut
            | RequestError::Stopped,
        ) => again(None, 50),
        _ => Next::Answered,
    }
}
