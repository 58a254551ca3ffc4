//! The error statuses that callers see, with their machine-readable details.

use basalt_client::wire::WireError;
use basalt_core::RequestError;
use basalt_model::{Refusal, RefusalKind};
use basalt_proto::api::{ErrorDetail, Reason};
use prost::Message;
use tonic::{Code, Status};

use crate::driver::Refused;

/// A status with a reason.
pub(crate) fn status(code: Code, reason: Reason, message: impl Into<String>) -> Status {
    detailed(code, message, &ErrorDetail { reason: reason.into(), ..ErrorDetail::default() })
}

fn detailed(code: Code, message: impl Into<String>, detail: &ErrorDetail) -> Status {
    Status::with_details(code, message, detail.encode_to_vec().into())
}

/// A request that is wrong in one field.
pub(crate) fn invalid(error: &WireError) -> Status {
    let detail = ErrorDetail {
        reason: Reason::Invalid.into(),
        field: error.field().to_owned(),
        ..ErrorDetail::default()
    };
    detailed(Code::InvalidArgument, error.to_string(), &detail)
}

/// No leader can be asked; `leader` is its API address where known.
pub(crate) fn no_leader(message: impl Into<String>, leader: Option<String>) -> Status {
    let detail = ErrorDetail {
        reason: Reason::NoLeader.into(),
        leader_address: leader.unwrap_or_default(),
        ..ErrorDetail::default()
    };
    detailed(Code::Unavailable, message, &detail)
}

/// The member's thread does not take the request.
pub(crate) fn refused(refused: Refused) -> Status {
    match refused {
        Refused::Full => status(Code::ResourceExhausted, Reason::Overloaded, refused.to_string()),
        Refused::Stopped => no_leader(refused.to_string(), None),
    }
}

/// A request failed; `leader` is the address of the one that would know better.
pub(crate) fn failed(error: &RequestError, leader: Option<String>) -> Status {
    let message = error.to_string();
    match error {
        RequestError::NotLeader { .. }
        | RequestError::Uncertain
        | RequestError::TimedOut
        | RequestError::Stopped => no_leader(message, leader),
        RequestError::Overloaded => status(Code::ResourceExhausted, Reason::Overloaded, message),
        RequestError::Refused(refusal) => refusal_status(refusal),
        RequestError::TooOld { .. } | RequestError::Ahead { .. } => {
            status(Code::OutOfRange, Reason::Precondition, message)
        }
        RequestError::NoSuchMember { .. } => status(Code::NotFound, Reason::NotFound, message),
        RequestError::NoVote { .. } | RequestError::NoSuccessor => {
            status(Code::FailedPrecondition, Reason::Precondition, message)
        }
    }
}

fn refusal_status(refusal: &Refusal) -> Status {
    let (code, reason) = match (refusal, refusal.kind()) {
        (Refusal::RequestIdReused, _) => (Code::InvalidArgument, Reason::RequestIdReused),
        (Refusal::Unsupported { .. }, _) => (Code::Unimplemented, Reason::Unsupported),
        (_, RefusalKind::NotFound) => (Code::NotFound, Reason::NotFound),
        (_, RefusalKind::Conflict) => (Code::AlreadyExists, Reason::Conflict),
        (_, RefusalKind::Invalid) => (Code::InvalidArgument, Reason::Invalid),
        (_, RefusalKind::Precondition) => (Code::FailedPrecondition, Reason::Precondition),
        (_, RefusalKind::Exhausted) => (Code::ResourceExhausted, Reason::Exhausted),
        (_, RefusalKind::NoPool) => (Code::FailedPrecondition, Reason::NoPool),
    };
    let field = match refusal {
        Refusal::OutOfRange { field, .. } => field.to_string(),
        _ => String::new(),
    };
    let detail = ErrorDetail { reason: reason.into(), field, ..ErrorDetail::default() };
    detailed(code, refusal.to_string(), &detail)
}
