//! What a caller of the client sees when something did not work.

use std::{error::Error, time::Duration};

use basalt_identity::IdentityError;
use basalt_model::ClusterId;
use basalt_proto::api::{ErrorDetail, Reason};
use prost::Message;
use tonic::{Code, Status};

use crate::wire::WireError;

/// What a caller of the client sees when something did not work.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No endpoint was given.
    #[error("no address of a control-plane member is configured")]
    NoEndpoints,
    /// An endpoint is not `host:port`.
    #[error("{endpoint:?} is not host:port: {source}")]
    Endpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        source: tonic::codegen::http::uri::InvalidUri,
    },
    /// The control plane understood the request and will not do it. Retrying the same does not help.
    #[error("{message}")]
    Refused {
        /// The cause, for programs.
        reason: Reason,
        /// The field of the request that is wrong, if one is.
        field: String,
        /// The cause, for people.
        message: String,
    },
    /// No member could do it before the deadline. Whether a mutation happened is not known; the same request id is safe.
    #[error("no member of the control plane answered within {} s; the last one: {last}", deadline.as_secs())]
    Unavailable {
        /// How long it was tried.
        deadline: Duration,
        /// The last member that was asked, with what it answered or why it was not reached.
        last: String,
    },
    /// The members that answered are of another cluster than the one that this client knows. Nothing was done.
    #[error(
        "the control plane at {endpoint} is not that of cluster {cluster}: {found}; if the cluster was created anew on purpose, \
         start this program again"
    )]
    OtherCluster {
        /// The cluster that this client is of.
        cluster: ClusterId,
        /// The last member that was asked.
        endpoint: String,
        /// What it said.
        found: String,
    },
    /// A member answered something that this version does not understand.
    #[error("the control plane's answer cannot be understood")]
    Answer(#[from] WireError),
    /// A plaintext endpoint off loopback.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl ClientError {
    /// The machine-readable cause of a refusal.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            ClientError::Refused { reason, .. } => Some(*reason),
            _ => None,
        }
    }

    /// Whether the named thing does not exist.
    pub fn is_not_found(&self) -> bool {
        self.reason() == Some(Reason::NotFound)
    }

    pub(crate) fn refused(status: &Status) -> Self {
        let detail = detail(status);
        let reason = match detail.reason() {
            Reason::Unspecified if status.code() == Code::PermissionDenied => Reason::Forbidden,
            Reason::Unspecified if status.code() == Code::Unauthenticated => Reason::Forbidden,
            Reason::Unspecified if status.code() == Code::NotFound => Reason::NotFound,
            reason => reason,
        };
        ClientError::Refused { reason, field: detail.field, message: status.message().to_owned() }
    }
}

/// What stands for an answer of a member of another cluster.
pub(crate) fn stranger(message: &str) -> Status {
    let detail = ErrorDetail { reason: Reason::OtherCluster.into(), ..ErrorDetail::default() };
    Status::with_details(Code::Unavailable, message, detail.encode_to_vec().into())
}

/// Whether an answer is from a member of another cluster.
pub(crate) fn is_stranger(status: &Status) -> bool {
    detail(status).reason() == Reason::OtherCluster
}

/// What lies at the bottom of an error, for people: the layers of a transport say nothing more.
pub fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// What a status says to people: a member's own words, or why it was not reached.
pub fn status_words(status: &Status) -> String {
    status.source().map_or_else(|| status.message().to_owned(), root_cause)
}

/// The details of an error status; empty when it has none that this version understands.
pub(crate) fn detail(status: &Status) -> ErrorDetail {
    ErrorDetail::decode(status.details()).unwrap_or_default()
}
