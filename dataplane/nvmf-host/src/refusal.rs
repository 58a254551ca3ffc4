//! Why a controller refused a Connect, in words, and what to do about it.

use std::fmt;

use basalt_nvme_wire::{ConnectField, Cqe, Status};
use basalt_nvmf_transport::{Nqn, QueueId};

use crate::options::HostOptions;

/// A Connect that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRefusal {
    /// The controller's answer.
    pub status: Status,
    /// The field that was invalid, where the controller names one.
    pub field: Option<ConnectField>,
    /// Which queue.
    pub queue: QueueId,
    /// To which subsystem.
    pub subsystem: Nqn,
    /// As which host.
    pub host: Nqn,
}

impl ConnectRefusal {
    /// What `cqe` says of the Connect of `queue` that `options` made.
    pub fn new(options: &HostOptions, queue: QueueId, cqe: &Cqe) -> Self {
        let status = cqe.status();
        let names = status.bare() == Status::CONNECT_INVALID_PARAMETERS;
        Self {
            status,
            field: ConnectField::from_code(cqe.dw0.get()).filter(|_| names),
            queue,
            subsystem: options.subsystem.clone(),
            host: options.host.clone(),
        }
    }

    fn write_invalid(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue, subsystem, host, .. } = self;
        match self.field {
            Some(ConnectField::SubsystemNqn) => write!(
                f,
                "there is no subsystem {subsystem} here: check the name and the address; one that is about to be served here can be \
                 tried again"
            ),
            Some(ConnectField::HostNqn) => {
                write!(f, "{host} is no host name that the controller takes: check the host NQN")
            }
            Some(ConnectField::HostId) if queue.is_admin() => {
                f.write_str("the controller does not take this host identifier: use a UUID that is this host's own")
            }
            Some(ConnectField::HostId) => {
                f.write_str("host name or identifier are not those of the controller's admin queue: use the same for all queues")
            }
            Some(ConnectField::ControllerId) if queue.is_admin() => {
                f.write_str("the controller identifier is not one to ask for: ask for any (FFFFh)")
            }
            Some(ConnectField::ControllerId) => {
                f.write_str("the controller is gone: connect its admin queue again")
            }
            Some(ConnectField::QueueId) => {
                write!(f, "queue {} is beyond those that the controller granted: ask for fewer queues", queue.0)
            }
            Some(ConnectField::QueueSize) => {
                f.write_str("the controller has no queues of so many entries: ask for a lower queue depth")
            }
            None => f.write_str(
                "a parameter is invalid, and the controller does not say which: it may not be ready, or not serve this yet",
            ),
        }
    }
}

impl fmt::Display for ConnectRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { status, queue, subsystem, host, .. } = self;
        match status.bare() {
            Status::CONNECT_INVALID_PARAMETERS => self.write_invalid(f),
            Status::CONNECT_INVALID_HOST => write!(
                f,
                "{subsystem} does not let host {host} in: add it to the hosts that are allowed there (spec.allowedHosts of a Volume, \
                 --allow-host of basaltd serve), or connect as one that is"
            ),
            Status::CONNECT_CONTROLLER_BUSY => write!(
                f,
                "{subsystem} has no controller left for host {host}: end connections that are not needed, or try again later"
            ),
            Status::CONNECT_INCOMPATIBLE_FORMAT => f.write_str(
                "the controller does not know this format of Connect: it is older or newer than this host",
            ),
            Status::CONNECT_RESTART_DISCOVERY => f.write_str(
                "the subsystem has moved: read the discovery log again, and connect to what it tells",
            ),
            Status::AUTHENTICATION_REQUIRED => {
                write!(f, "{subsystem} asks hosts to authenticate, which this host cannot")
            }
            Status::COMMAND_SEQUENCE_ERROR => write!(
                f,
                "queue {} of this controller is connected already, or its connection is used for another queue",
                queue.0
            ),
            _ => write!(f, "{status}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use basalt_nvmf_transport::HostId;
    use zerocopy::little_endian::U32;

    use super::*;

    fn told(status: Status, dw0: u32, queue: u16) -> String {
        let nqn = |name: &str| Nqn::new(&format!("nqn.2026-01.io.basalt:{name}")).unwrap();
        let options = HostOptions::new(nqn("volume"), nqn("host"), HostId([5; 16]));
        let mut cqe = Cqe::new(1, 0, status);
        cqe.dw0 = U32::new(dw0);
        ConnectRefusal::new(&options, QueueId(queue), &cqe).to_string()
    }

    #[test]
    fn users_read_which_field_is_wrong_and_what_to_do() {
        let host = told(Status::CONNECT_INVALID_HOST.dnr(), 0, 0);
        assert!(host.contains("nqn.2026-01.io.basalt:host") && host.contains("allowedHosts"), "{host}");
        let invalid = Status::CONNECT_INVALID_PARAMETERS;
        let unknown = told(invalid, ConnectField::SubsystemNqn.code(), 0);
        assert!(unknown.contains("no subsystem nqn.2026-01.io.basalt:volume"), "{unknown}");
        let queue = told(invalid, ConnectField::QueueId.code(), 7);
        assert!(queue.starts_with("queue 7 is beyond"), "{queue}");
        let mut all: Vec<String> =
            ConnectField::ALL.iter().map(|field| told(invalid, field.code(), 0)).collect();
        all.extend(
            [ConnectField::HostId, ConnectField::ControllerId].map(|field| told(invalid, field.code(), 1)),
        );
        all.extend([told(invalid, 0, 0), told(Status::CONNECT_CONTROLLER_BUSY, 0, 0)]);
        for text in &all {
            assert!(text.len() > 40 && !text.contains("CONNECT") && !text.contains('_'), "{text}");
        }
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 10, "each says something else");
        assert_eq!(told(Status::INTERNAL_ERROR, 0, 0), "Internal Error");
    }
}
