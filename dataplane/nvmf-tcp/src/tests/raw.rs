//! A host of bytes: PDUs as a test wants them.

use basalt_nvme_wire::digest::crc32c;
use basalt_nvme_wire::fabrics::{CONTROLLER_ANY, Command as Fabrics, Connect, ConnectData};
use basalt_nvme_wire::pdu::{Digests, Frame, InitializeRequest, Kind};
use basalt_nvme_wire::{Sgl, Sqe};
use zerocopy::IntoBytes;

use super::pipe::{End, pipe};
use super::rig::{Rig, SUBSYSTEM};
use crate::target::connection::Connection;

pub(super) const NONE: Digests = Digests { header: false, data: false };

pub(super) fn initialize(digests: Digests) -> Vec<u8> {
    InitializeRequest { data_alignment: 4, digests, r2t_max: 1 }.emit().to_vec()
}

pub(super) fn capsule(digests: Digests, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
    let frame = Frame::new(Kind::Command, 0, digests, u32::try_from(data.len()).unwrap(), 4);
    let mut bytes = frame.emit().to_vec();
    bytes.extend_from_slice(sqe.as_bytes());
    bytes.extend_from_slice(data);
    if frame.data_digest {
        bytes.extend_from_slice(&crc32c(data).to_le_bytes());
    }
    bytes
}

/// Which host connects, and to which controller with its I/O queues.
#[derive(Debug, Clone, Copy)]
pub(super) struct Who {
    pub(super) host_id: u8,
    pub(super) controller: u16,
}

/// Connects queue `id` of the only host: the admin queue first and without `admin`.
pub(super) fn connect(
    rig: &mut Rig,
    admin: Option<&mut Connection<End>>,
    connection: &mut Connection<End>,
    host: &End,
    id: u16,
    digests: Digests,
) {
    connect_as(Who { host_id: 5, controller: 1 }, rig, admin, connection, host, id, digests);
}

/// The same for one of several hosts.
pub(super) fn connect_as(
    who: Who,
    rig: &mut Rig,
    admin: Option<&mut Connection<End>>,
    connection: &mut Connection<End>,
    host: &End,
    id: u16,
    digests: Digests,
) {
    let fields = Connect { format: 0, queue_id: id, queue_size: 8, attributes: 0, keep_alive_ms: 0 };
    let mut sqe = Fabrics::Connect(fields).emit(1);
    sqe.sgl = Sgl::InCapsule { offset: 0, length: 1024 }.emit();
    let controller = if id == 0 { CONTROLLER_ANY } else { who.controller };
    let data =
        ConnectData::new([who.host_id; 16], controller, SUBSYSTEM, "nqn.2026-01.io.basalt:host").unwrap();
    host.inject(&initialize(digests));
    host.inject(&capsule(digests, &sqe, data.as_bytes()));
    match admin {
        None => {
            let enable = Fabrics::PropertySet { wide: false, offset: 0x14, value: 0x0046_0001 }.emit(2);
            host.inject(&capsule(digests, &enable, &[]));
            turns(rig, &mut [connection]);
        }
        Some(admin) => turns(rig, &mut [admin, connection]),
    }
    assert!(connection.queue.is_connected());
    host.drain();
}

pub(super) fn turns(rig: &mut Rig, connections: &mut [&mut Connection<End>]) {
    for _ in 0..2000 {
        rig.turn(connections);
    }
}

/// Connects an admin queue and I/O queue 1.
pub(super) fn connect_both(rig: &mut Rig) -> ([Connection<End>; 2], [End; 2]) {
    let (admin_wire, end) = pipe(0, 100_000);
    let mut admin = rig.accept(end, 0);
    connect(rig, None, &mut admin, &admin_wire, 0, NONE);
    let (io_wire, end) = pipe(1, 100_000);
    let mut io = rig.accept(end, 1);
    connect(rig, Some(&mut admin), &mut io, &io_wire, 1, NONE);
    ([admin, io], [admin_wire, io_wire])
}
