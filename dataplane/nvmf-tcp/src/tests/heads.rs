//! What completions say of the submission queue's head.

use basalt_nvme_wire::digest::crc32c;
use basalt_nvme_wire::fabrics::{
    ATTRIBUTE_NO_SQ_FLOW, CONTROLLER_ANY, Command as Fabrics, Connect, ConnectData,
};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::{Digests, Frame, Kind};
use basalt_nvme_wire::{Cqe, ReadWrite, Sgl, Sqe, Status};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::pipe::pipe;
use super::raw::{NONE, capsule, connect, initialize, turns};
use super::rig::{Rig, SUBSYSTEM};

const DATA_DIGEST: Digests = Digests { header: false, data: true };

/// The completion at the end of what a target sent.
fn last_completion(sent: &[u8]) -> Cqe {
    let at = sent.len() - 24;
    assert_eq!(sent[at], Kind::Response.code(), "{sent:?}");
    Cqe::read_from_bytes(&sent[at + 8..]).unwrap()
}

/// A write of one block whose data came with another digest.
fn damaged_write(id: u16) -> Vec<u8> {
    let frame = Frame::new(Kind::Command, 0, DATA_DIGEST, 512, 4);
    let mut sqe = Sqe::new(Io::Write.code(), id);
    sqe.nsid = U32::new(1);
    sqe.sgl = Sgl::InCapsule { offset: 0, length: 512 }.emit();
    ReadWrite::new(0, 1).emit(&mut sqe);
    let wrong = crc32c(&[1; 512]) ^ 1;
    [&frame.emit()[..], sqe.as_bytes(), &[1; 512], &wrong.to_le_bytes()].concat()
}

#[test]
fn the_head_passes_commands_with_damaged_data() {
    let mut rig = Rig::new();
    let (admin_host, end) = pipe(1, 100_000);
    let mut admin = rig.accept(end, 0);
    connect(&mut rig, None, &mut admin, &admin_host, 0, NONE);
    let (host, end) = pipe(2, 100_000);
    let mut io = rig.accept(end, 1);
    connect(&mut rig, Some(&mut admin), &mut io, &host, 1, DATA_DIGEST);
    // Connect was the first entry of eight.
    for (id, head) in [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 0), (8, 1)] {
        host.inject(&damaged_write(id));
        turns(&mut rig, &mut [&mut admin, &mut io]);
        let answer = last_completion(&host.drain());
        assert_eq!(answer.status_field.get(), Status::TRANSIENT_TRANSPORT.to_field());
        assert_eq!((answer.command_id.get(), answer.sq_head.get()), (id, head));
    }
}

#[test]
fn connect_says_that_flow_control_is_off() {
    let mut rig = Rig::new();
    let (host, end) = pipe(1, 100_000);
    let mut connection = rig.accept(end, 0);
    let fields =
        Connect { format: 0, queue_id: 0, queue_size: 8, attributes: ATTRIBUTE_NO_SQ_FLOW, keep_alive_ms: 0 };
    let mut sqe = Fabrics::Connect(fields).emit(1);
    sqe.sgl = Sgl::InCapsule { offset: 0, length: 1024 }.emit();
    let data = ConnectData::new([5; 16], CONTROLLER_ANY, SUBSYSTEM, "nqn.2026-01.io.basalt:host").unwrap();
    host.inject(&initialize(NONE));
    host.inject(&capsule(NONE, &sqe, data.as_bytes()));
    turns(&mut rig, &mut [&mut connection]);
    let answer = last_completion(&host.drain());
    assert_eq!((answer.status_field.get(), answer.sq_head.get()), (0, 0xffff));
    host.inject(&capsule(NONE, &Sqe::new(Admin::KeepAlive.code(), 2), &[]));
    turns(&mut rig, &mut [&mut connection]);
    let answer = last_completion(&host.drain());
    assert_eq!((answer.command_id.get(), answer.sq_head.get()), (2, 0), "reserved");
}
