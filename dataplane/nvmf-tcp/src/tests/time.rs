//! Deadlines, on a clock that the tests move.

use std::time::Duration;

use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::{DataTransfer, Digests, FLAG_LAST, Frame, Kind, ReadyToTransfer};
use basalt_nvme_wire::{ReadWrite, Sgl, Sqe};
use basalt_nvmf_host::{Command, Data};
use zerocopy::little_endian::U32;

use super::pipe::pipe;
use super::raw::{NONE, capsule, turns};
use super::rig::Rig;
use crate::host::connection::Connection as HostConnection;
use crate::target::connection::Phase;

#[test]
fn half_open_connections_are_closed() {
    let mut rig = Rig::new();
    let (_silent, end) = pipe(1, 1000);
    let mut silent = rig.accept(end, 0);
    rig.now += rig.options.connect_timeout - Duration::from_nanos(1);
    silent.tick(&mut rig.context());
    assert_eq!(silent.phase, Phase::Initializing);
    rig.now += Duration::from_nanos(1);
    silent.tick(&mut rig.context());
    assert!(silent.phase == Phase::Over && silent.is_done());
}

#[test]
fn a_host_that_falls_silent_loses_all_its_queues() {
    let mut rig = Rig::new();
    let (wire, end) = pipe(1, 100_000);
    let mut admin = rig.accept(end, 0);
    let mut admin_host = HostConnection::new(wire, Digests::default(), 31, 8192);
    let facts = rig.bring_up(&mut admin_host, &mut [&mut admin]);
    let (wire, end) = pipe(2, 100_000);
    let mut io = rig.accept(end, 1);
    let mut host = HostConnection::new(wire, Digests::default(), 32, 8192);
    rig.connect_io(&mut host, &mut [&mut admin, &mut io], &facts);
    // The host asks for a keep alive timeout of 15 s.
    rig.now += Duration::from_secs(15);
    admin.tick(&mut rig.context());
    io.tick(&mut rig.context());
    assert_eq!((admin.phase, io.phase), (Phase::Running, Phase::Running));
    let keep_alive = Command { sqe: Sqe::new(Admin::KeepAlive.code(), 0), data: Data::None };
    rig.run(&mut admin_host, &mut [&mut admin, &mut io], keep_alive);
    rig.now += Duration::from_millis(15_001);
    admin.tick(&mut rig.context());
    assert_eq!(admin.phase, Phase::Over);
    io.tick(&mut rig.context());
    assert_eq!(io.phase, Phase::Running, "its controller ends with the admin connection");
    drop(admin);
    io.tick(&mut rig.context());
    assert_eq!(io.phase, Phase::Over);
}

#[test]
fn data_on_its_way_is_a_sign_of_life() {
    let mut rig = Rig::new();
    let (wire, end) = pipe(1, 100_000);
    let mut admin = rig.accept(end, 0);
    let mut admin_host = HostConnection::new(wire, Digests::default(), 31, 8192);
    let facts = rig.bring_up(&mut admin_host, &mut [&mut admin]);
    let (wire, end) = pipe(2, 100_000);
    let mut io = rig.accept(end, 1);
    let raw = wire.clone();
    let mut host = HostConnection::new(wire, Digests::default(), 32, 8192);
    rig.connect_io(&mut host, &mut [&mut admin, &mut io], &facts);
    let mut write = Sqe::new(Io::Write.code(), 0x77);
    write.nsid = U32::new(1);
    write.sgl = Sgl::Transport { length: 16_384 }.emit();
    ReadWrite::new(0, 32).emit(&mut write);
    raw.inject(&capsule(NONE, &write, &[]));
    turns(&mut rig, &mut [&mut admin, &mut io]);
    let ready = ReadyToTransfer::parse(raw.drain()[..24].try_into().unwrap()).unwrap();
    let transfer =
        DataTransfer { command_id: 0x77, transfer_tag: ready.transfer_tag, offset: 0, length: 16_384 };
    raw.inject(&transfer.emit(&Frame::new(Kind::HostData, FLAG_LAST, NONE, 16_384, 4)));
    // A kilobyte every ten seconds, of one PDU, with a keep alive timeout of 15 s.
    for _ in 0..16 {
        raw.inject(&[7; 1024]);
        turns(&mut rig, &mut [&mut admin, &mut io]);
        admin.tick(&mut rig.context());
        rig.now += Duration::from_secs(10);
        admin.tick(&mut rig.context());
        assert_eq!(admin.phase, Phase::Running);
    }
    assert_eq!(raw.drain().len(), 24, "written");
    rig.now += Duration::from_millis(5_001);
    admin.tick(&mut rig.context());
    assert_eq!(admin.phase, Phase::Over);
}
