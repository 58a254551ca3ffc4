//! Deadlines, on a clock that the tests move.

use std::time::Duration;

use basalt_nvme_wire::Sqe;
use basalt_nvme_wire::opcode::Admin;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvmf_host::{Command, Data};

use super::pipe::pipe;
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
