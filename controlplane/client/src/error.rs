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
         start this program again, with its new id where one is configured"
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
    for_people(cause.to_string())
}

/// How the HTTP/2 libraries begin what they say of bytes that are not their protocol.
const NOT_HTTP2: [&str; 3] = ["http2 error", "h2 protocol error", "connection error detected"];

fn for_people(words: String) -> String {
    if NOT_HTTP2.iter().any(|beginning| words.starts_with(beginning)) {
        return format!(
            "what answered does not speak gRPC as this program does ({words}): if one side uses TLS and the other does not, give \
             both the same"
        );
    }
    words
}

/// What a status says to people: a member's own words, or why it was not reached.
pub fn status_words(status: &Status) -> String {
    status.source().map_or_else(|| for_people(status.message().to_owned()), root_cause)
}

/// The details of an error status; empty when it has none that this version understands.
pub(crate) fn detail(status: &Status) -> ErrorDetail {
    ErrorDetail::decode(status.details()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use basalt_identity::{Identity, Role, Security};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use crate::{Client, ClientConfig};

    /// What a TLS server says to somebody who does not speak TLS: a fatal alert, unexpected message.
    const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 10];

    #[tokio::test]
    async fn a_server_that_speaks_tls_is_told_from_one_that_is_not_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let server = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.read(&mut [0; 64]).await;
                let _ = stream.write_all(&ALERT).await;
            }
        });
        let security = Security::Plaintext(Identity::new("cluster", Role::Cli, "cli").unwrap());
        let mut config = ClientConfig::new(vec![endpoint], security);
        config.deadline = std::time::Duration::from_millis(500);
        let error = Client::new(config).unwrap().cluster_status().await.unwrap_err().to_string();
        assert!(error.contains("if one side uses TLS"), "{error}");
        server.abort();
    }
}
