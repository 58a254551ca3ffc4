//! When to try again, and how long to wait before.

use std::error::Error as _;
use std::time::Duration;

use basalt_proto::api::Reason;
use tonic::{Code, Status};

use crate::error::detail;

/// Longest wait before the first retry.
const FIRST_WAIT: Duration = Duration::from_millis(20);
/// Longest wait before any retry.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// What to do about an error status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Ask this member (`host:port`).
    Ask(String),
    /// Ask another member, or the same later.
    Retry,
    /// The answer is final.
    GiveUp,
}

/// What to do about an error status.
pub(crate) fn advice(status: &Status) -> Advice {
    let detail = detail(status);
    match (status.code(), detail.reason()) {
        (_, Reason::NoLeader) if !detail.leader_address.is_empty() => Advice::Ask(detail.leader_address),
        (_, Reason::NoLeader | Reason::Overloaded | Reason::Storage | Reason::OtherCluster) => Advice::Retry,
        // Without our detail these come from the transport: not reached, reset, timed out, shut down.
        (
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted,
            Reason::Unspecified,
        ) => Advice::Retry,
        // Only what this side's transport says has a cause.
        (Code::Internal, Reason::Unspecified) if status.source().is_some() => Advice::Retry,
        _ => Advice::GiveUp,
    }
}

/// Exponential back-off with full jitter.
#[derive(Debug)]
pub(crate) struct Backoff {
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { longest: FIRST_WAIT }
    }

    /// How long to wait before the next try.
    pub(crate) fn next_wait(&mut self) -> Duration {
        let longest = self.longest;
        self.longest = (longest * 2).min(LONGEST_WAIT);
        longest.mul_f64(f64::from(random()) / f64::from(u32::MAX))
    }

    /// Starts over, after a success.
    pub(crate) fn reset(&mut self) {
        self.longest = FIRST_WAIT;
    }
}

/// 32 random bits, good enough to spread retries.
fn random() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}

#[cfg(test)]
mod tests {
    use basalt_proto::api::ErrorDetail;
    use prost::Message;

    use super::*;

    fn status(code: Code, reason: Reason, leader: &str) -> Status {
        let detail =
            ErrorDetail { reason: reason.into(), leader_address: leader.into(), ..ErrorDetail::default() };
        Status::with_details(code, "m", detail.encode_to_vec().into())
    }

    #[test]
    fn hints_are_followed_and_refusals_are_final() {
        let hinted = status(Code::Unavailable, Reason::NoLeader, "127.0.0.1:1");
        assert_eq!(advice(&hinted), Advice::Ask("127.0.0.1:1".into()));
        assert_eq!(advice(&status(Code::Unavailable, Reason::NoLeader, "")), Advice::Retry);
        assert_eq!(advice(&status(Code::ResourceExhausted, Reason::Overloaded, "")), Advice::Retry);
        assert_eq!(advice(&status(Code::Unavailable, Reason::OtherCluster, "")), Advice::Retry);
        assert_eq!(advice(&Status::unavailable("connection refused")), Advice::Retry);
        for reason in [Reason::NotFound, Reason::Conflict, Reason::Exhausted, Reason::Precondition] {
            assert_eq!(advice(&status(Code::FailedPrecondition, reason, "")), Advice::GiveUp);
        }
        assert_eq!(advice(&Status::permission_denied("no")), Advice::GiveUp);
        assert_eq!(advice(&Status::unimplemented("no")), Advice::GiveUp);
    }

    #[test]
    fn waits_grow_to_a_bound() {
        let mut backoff = Backoff::new();
        for _ in 0..64 {
            assert!(backoff.next_wait() <= LONGEST_WAIT);
        }
        assert_eq!(backoff.longest, LONGEST_WAIT);
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST_WAIT);
    }
}
