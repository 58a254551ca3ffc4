//! Log lines about hosts that do not behave: the first of a second, and how many more there were.
//!
//! Whoever can connect can cause them, so they must cost little.

use std::net::IpAddr;
use std::time::Duration;

use basalt_clock::Instant;
use basalt_nvme_wire::pdu::{Termination, Violation};
use basalt_nvmf_target::ListenerAddress;
use basalt_reactor::SocketError;

/// Time between two lines of a kind.
const QUIET: Duration = Duration::from_secs(1);

/// What there is to complain about.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Complaint<'a> {
    /// A host violated the protocol.
    Violation(Violation),
    /// A host says that we did.
    Terminated(&'a Termination),
    /// A connection did not connect in time.
    Late,
    /// There are too many connections, all or of this address.
    Refused(Option<IpAddr>),
    /// A listener did not accept.
    NotAccepted(&'a ListenerAddress, SocketError),
}

impl Complaint<'_> {
    fn kind(&self) -> usize {
        match self {
            Self::Violation(_) => 0,
            Self::Terminated(_) => 1,
            Self::Late => 2,
            Self::Refused(_) => 3,
            Self::NotAccepted(..) => 4,
        }
    }

    fn log(&self, left_out: Option<u64>) {
        match self {
            Self::Violation(violation) => {
                tracing::info!(%violation, left_out, "a host violated the protocol");
            }
            Self::Terminated(termination) => {
                tracing::info!(?termination, left_out, "a host ended its connection with a complaint");
            }
            Self::Late => tracing::info!(left_out, "a connection that did not connect in time is closed"),
            Self::Refused(peer) => {
                tracing::warn!(?peer, left_out, "a connection beyond the limit is closed");
            }
            Self::NotAccepted(address, error) => {
                tracing::warn!(%address, %error, left_out, "accepting a connection failed");
            }
        }
    }
}

/// What a line says that stands for all that were left out.
const KINDS: [&str; 5] = [
    "hosts violated the protocol",
    "hosts ended their connections with complaints",
    "connections that did not connect in time were closed",
    "connections beyond the limit were closed",
    "connections were not accepted",
];

/// One kind of complaint.
#[derive(Debug, Clone, Copy, Default)]
struct Kind {
    /// When there may be a line again.
    next: Option<Instant>,
    /// Those since the last line.
    left_out: u64,
}

impl Kind {
    /// Whether there may be a line now, and how many were left out before it.
    fn speak(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            return None;
        }
        self.next = Some(now + QUIET);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// One reactor's complaints.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    kinds: [Kind; KINDS.len()],
    violations: u64,
}

impl Complaints {
    /// Says it, or counts it.
    pub(crate) fn note(&mut self, now: Instant, complaint: &Complaint<'_>) {
        if matches!(complaint, Complaint::Violation(_)) {
            self.violations += 1;
        }
        let kind = &mut self.kinds[complaint.kind()];
        match kind.speak(now) {
            Some(left_out) => complaint.log((left_out > 0).then_some(left_out)),
            None => kind.left_out += 1,
        }
    }

    /// Says how many were left out, where nothing has been said for a while.
    pub(crate) fn look(&mut self, now: Instant) {
        for (kind, what) in self.kinds.iter_mut().zip(KINDS) {
            if kind.left_out > 0
                && let Some(left_out) = kind.speak(now)
            {
                tracing::info!(left_out, "more {what}");
            }
        }
    }

    /// Whether there is something to say later.
    pub(crate) fn is_pending(&self) -> bool {
        self.kinds.iter().any(|kind| kind.left_out > 0)
    }

    /// Violations of the protocol so far.
    pub(crate) fn violations(&self) -> u64 {
        self.violations
    }
}
