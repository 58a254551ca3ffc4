//! What one I/O queue knows of reservations: its host's rights, and its commands that end later.

use std::cell::Cell;
use std::sync::Arc;

use basalt_bdev::Operation;
use basalt_nvme_wire::opcode::Io;
use basalt_nvme_wire::reservation::{Acquire, ONE_KEY_LEN, Register, Release, TWO_KEYS_LEN};
use basalt_nvme_wire::{Sgl, Sqe, Status};
use basalt_nvmf_transport::{CommandId, HostId};

use super::shared::{Outcome, Ticket};
use super::state::{Command, Rights};
use crate::namespace::Namespace;
use crate::reply::{Reply, Step};

/// What a command does to a namespace's data, for a reservation (Base 8.19, table of command behaviour).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Reads,
    Writes,
    /// It has rules of its own.
    Free,
}

impl Access {
    pub(crate) fn of(opcode: Io) -> Self {
        match opcode {
            Io::Read | Io::Compare | Io::Verify => Access::Reads,
            Io::Flush | Io::Write | Io::WriteUncorrectable | Io::WriteZeroes | Io::DatasetManagement => {
                Access::Writes
            }
            Io::ReservationRegister
            | Io::ReservationReport
            | Io::ReservationAcquire
            | Io::ReservationRelease => Access::Free,
        }
    }

    pub(crate) fn of_operation(operation: Operation) -> Self {
        match operation {
            Operation::Read | Operation::Compare => Access::Reads,
            Operation::Write { .. }
            | Operation::Flush
            | Operation::Unmap
            | Operation::WriteZeroes { .. }
            | Operation::CompareAndWrite { .. } => Access::Writes,
        }
    }

    fn check(self, rights: Rights) -> Result<(), Status> {
        let allowed = match self {
            Access::Reads => rights.reads,
            Access::Writes => rights.writes,
            Access::Free => true,
        };
        if allowed { Ok(()) } else { Err(Status::RESERVATION_CONFLICT.dnr()) }
    }
}

/// A host's rights to each namespace of its queue's table, as of a version of the reservation.
#[derive(Debug)]
pub(crate) struct KnownRights {
    host: HostId,
    known: Box<[Cell<Known>]>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    /// Zero is none.
    version: u64,
    rights: Rights,
}

impl KnownRights {
    /// Nothing is known yet of so many namespaces.
    pub(crate) fn new(host: HostId, namespaces: usize) -> Self {
        let unknown = Known { version: 0, rights: Rights::ALL };
        Self { host, known: (0..namespaces).map(|_| Cell::new(unknown)).collect() }
    }

    /// Whether the reservation of `namespace`, which stands at `index` of the table, lets a command through.
    pub(crate) fn check(&self, index: usize, namespace: &Namespace, access: Access) -> Result<(), Status> {
        let reservations = namespace.reservations();
        let mut known = self.known[index].get();
        if known.version != reservations.version() {
            (known.rights, known.version) = reservations.rights(self.host);
            self.known[index].set(known);
        }
        access.check(known.rights)
    }

    /// The same for a namespace that has left the table.
    pub(crate) fn check_unlisted(&self, namespace: &Namespace, access: Access) -> Result<(), Status> {
        access.check(namespace.reservations().rights(self.host).0)
    }
}

/// How a reservation command begins: the data that it needs is taken first.
#[cold]
pub(crate) fn begin(opcode: Io, sqe: &Sqe) -> Result<Step, Status> {
    /// Hosts may send more than the keys; more than this is no such command.
    const DATA_MAX: u32 = 4096;
    let needed = if opcode == Io::ReservationRelease { ONE_KEY_LEN } else { TWO_KEYS_LEN };
    let sgl = Sgl::parse(&sqe.sgl)?;
    let length = sgl.length();
    if (length as usize) < needed || length > DATA_MAX {
        return Err(Status::SGL_LENGTH_INVALID.dnr());
    }
    Ok(Step::Take { length })
}

/// Reservation commands of one queue that have not ended.
#[derive(Debug, Default)]
pub(crate) struct Pending(Vec<(CommandId, Arc<Ticket>)>);

impl Pending {
    /// Runs a command whose data is there.
    pub(crate) fn command(&mut self, host: HostId, namespace: &Namespace, sqe: &Sqe, data: &[u8]) -> Step {
        let command = match Io::from_code(sqe.opcode) {
            Some(Io::ReservationRegister) => Register::parse(sqe, data).map(Command::Register),
            Some(Io::ReservationAcquire) => Acquire::parse(sqe, data).map(Command::Acquire),
            Some(Io::ReservationRelease) => Release::parse(sqe, data).map(Command::Release),
            _ => return Step::refuse(Status::INVALID_OPCODE),
        };
        let Ok(command) = command else { return Step::refuse(Status::INVALID_FIELD) };
        match namespace.reservations().submit(host, command) {
            Outcome::Now(status) => Step::complete(status),
            Outcome::Later(ticket) => {
                self.0.push((CommandId(sqe.command_id.get()), ticket));
                Step::Hold
            }
        }
    }

    /// The next one that has ended.
    pub(crate) fn next(&mut self) -> Option<(CommandId, Reply)> {
        let ended = |(place, (_, ticket)): (usize, &(CommandId, Arc<Ticket>))| {
            Ticket::outcome(ticket).map(|status| (place, status))
        };
        let (place, status) = self.0.iter().enumerate().find_map(ended)?;
        let (command, _) = self.0.remove(place);
        Some((command, Reply::status(status)))
    }
}
