//! How a host connects.

use std::time::Duration;

use basalt_nvme_wire::fabrics::{CONTROLLER_ANY, Command as Fabrics, Connect, ConnectData};
use basalt_nvme_wire::{Sqe, WireError};
use basalt_nvmf_transport::{ControllerId, Epoch, HostId, Nqn, QueueId};
use zerocopy::IntoBytes;

use crate::command::{Command, Data};

/// How a host connects to a subsystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostOptions {
    /// The subsystem.
    pub subsystem: Nqn,
    /// This host's name.
    pub host: Nqn,
    /// This host's identifier.
    pub host_id: HostId,
    /// I/O queues that are asked for; the controller may grant fewer.
    pub io_queues: u16,
    /// Entries of an I/O queue: one more than the commands that can be outstanding.
    pub io_queue_entries: u16,
    /// After this long without a sign of life the controller gives the host up; zero means never.
    pub keep_alive: Duration,
    /// Time that the controller has to answer an admin command.
    pub command_timeout: Duration,
    /// The epoch of a mirror's association.
    pub epoch: Option<Epoch>,
}

/// Entries of the admin queue.
pub(crate) const ADMIN_QUEUE_ENTRIES: u16 = 32;

impl HostOptions {
    /// Settings to connect to `subsystem` as `host`: one I/O queue of depth 128.
    pub fn new(subsystem: Nqn, host: Nqn, host_id: HostId) -> Self {
        Self {
            subsystem,
            host,
            host_id,
            io_queues: 1,
            io_queue_entries: 129,
            keep_alive: Duration::from_secs(15),
            command_timeout: Duration::from_secs(10),
            epoch: None,
        }
    }

    /// The Connect of a queue; the admin queue asks for any controller.
    ///
    /// # Errors
    /// [`WireError`] never comes for checked names.
    pub fn connect(
        &self,
        queue: QueueId,
        controller: Option<ControllerId>,
        entries: u16,
    ) -> Result<Command, WireError> {
        let keep_alive_ms =
            if queue.is_admin() { u32::try_from(self.keep_alive.as_millis()).unwrap_or(u32::MAX) } else { 0 };
        let fields = Connect {
            format: 0,
            queue_id: queue.0,
            queue_size: u32::from(entries),
            attributes: basalt_nvme_wire::fabrics::ATTRIBUTE_NO_SQ_FLOW,
            keep_alive_ms,
        };
        let sqe: Sqe = Fabrics::Connect(fields).emit(0);
        let id = controller.map_or(CONTROLLER_ANY, |id| id.0);
        let mut data = ConnectData::new(self.host_id.0, id, self.subsystem.as_str(), self.host.as_str())?;
        if let Some(epoch) = self.epoch {
            data.reserved_768[..8].copy_from_slice(&epoch.emit());
        }
        Ok(Command { sqe, data: Data::Bytes(data.as_bytes().to_vec()) })
    }
}
