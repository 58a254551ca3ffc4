//! What can go wrong on the host's side.

use basalt_nvme_wire::Status;
use basalt_nvme_wire::pdu::{Termination, Violation};

use crate::refusal::ConnectRefusal;

/// Why a queue is over; every command that was outstanding ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The connection could not be made, or broke.
    #[error("the connection to the target failed: {0}")]
    Socket(&'static str),
    /// The target closed the connection.
    #[error("the target closed the connection")]
    Closed,
    /// The target violated the protocol.
    #[error("the target violated the protocol: {0}")]
    Violation(#[from] Violation),
    /// The target said that this host violated the protocol.
    #[error("the target ended the connection: {0:?}")]
    Terminated(Termination),
    /// The target did not answer in time.
    #[error("the target did not answer in time")]
    TimedOut,
    /// Data came damaged: the command may be tried again.
    #[error("data came with another digest than its own")]
    DataDigest,
    /// The queue was closed on this side.
    #[error("the queue was closed on this side")]
    ClosedHere,
}

/// Why a controller was not brought up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BringupError {
    /// The queue ended.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The controller refused a Connect.
    #[error("the controller refused the connection: {0}")]
    Connect(Box<ConnectRefusal>),
    /// The controller refused another command.
    #[error("the controller refused {step}: {status}")]
    Refused {
        /// What was asked.
        step: &'static str,
        /// Its answer.
        status: Status,
    },
    /// The controller did not become ready.
    #[error("the controller did not become ready")]
    NotReady,
    /// The controller says that it failed.
    #[error("the controller reports a fatal status")]
    Fatal,
    /// The controller's answer makes no sense.
    #[error("the controller's answer to {step} makes no sense")]
    Nonsense {
        /// What was asked.
        step: &'static str,
    },
}
