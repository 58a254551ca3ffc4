//! What submission entries say that cannot be: how data is addressed, and where it lies.

use basalt_nvme_wire::fabrics::{Command as Fabrics, Connect};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::Kind;
use basalt_nvme_wire::{Cqe, Fuse, ReadWrite, Sgl, Sqe, Status};
use rstest::rstest;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::pipe::{End, pipe};
use super::raw::{NONE, capsule, connect, initialize, turns};
use super::rig::Rig;
use crate::target::connection::Connection;

const INVALID: Status = Status::INVALID_FIELD.dnr();
const BLOCK: u32 = 512;
/// More than travels in a capsule.
const LARGE: u32 = 32 * BLOCK;

/// A host with an admin queue and I/O queue 1.
struct Host {
    rig: Rig,
    admin: Connection<End>,
    io: Connection<End>,
    admin_wire: End,
    io_wire: End,
}

impl Host {
    fn new() -> Self {
        let mut rig = Rig::new();
        let (admin_wire, end) = pipe(0, 100_000);
        let mut admin = rig.accept(end, 0);
        connect(&mut rig, None, &mut admin, &admin_wire, 0, NONE);
        let (io_wire, end) = pipe(1, 100_000);
        let mut io = rig.accept(end, 1);
        connect(&mut rig, Some(&mut admin), &mut io, &io_wire, 1, NONE);
        Self { rig, admin, io, admin_wire, io_wire }
    }

    fn turns(&mut self) {
        turns(&mut self.rig, &mut [&mut self.admin, &mut self.io]);
    }

    fn send(&mut self, sqe: &Sqe, data: &[u8]) {
        self.io_wire.inject(&capsule(NONE, sqe, data));
        self.turns();
    }

    fn io(&mut self, sqe: &Sqe, data: &[u8]) -> (u16, Status) {
        self.send(sqe, data);
        one(&self.io_wire.drain())
    }

    fn admin(&mut self, sqe: &Sqe) -> (u16, Status) {
        self.admin_wire.inject(&capsule(NONE, sqe, &[]));
        self.turns();
        one(&self.admin_wire.drain())
    }

    /// What the first block holds.
    fn block(&mut self) -> Vec<u8> {
        self.send(&command(Io::Read, 99, Sgl::Transport { length: BLOCK }), &[]);
        self.io_wire.drain()[24..24 + BLOCK as usize].to_vec()
    }
}

fn completion(pdu: &[u8]) -> (u16, Status) {
    assert_eq!((pdu.len(), pdu[0]), (24, Kind::Response.code()), "a completion: {pdu:?}");
    let cqe = Cqe::read_from_bytes(&pdu[8..]).unwrap();
    (cqe.command_id.get(), cqe.status())
}

/// The only thing that a target sent, a completion.
fn one(sent: &[u8]) -> (u16, Status) {
    completion(sent)
}

fn command(opcode: Io, id: u16, sgl: Sgl) -> Sqe {
    let mut sqe = Sqe::new(opcode.code(), id);
    sqe.nsid = U32::new(1);
    sqe.sgl = sgl.emit();
    ReadWrite::new(0, (sgl.length() / BLOCK).max(1)).emit(&mut sqe);
    sqe
}

fn write_of(length: u32, id: u16) -> Sqe {
    command(Io::Write, id, Sgl::Transport { length })
}

fn in_capsule(opcode: Io, id: u16, offset: u64) -> Sqe {
    command(opcode, id, Sgl::InCapsule { offset, length: BLOCK })
}

fn with_psdt(mut sqe: Sqe, psdt: u8) -> Sqe {
    sqe.flags = sqe.flags & 0b11 | psdt << 6;
    sqe
}

#[rstest]
fn data_is_addressed_by_sgl_alone(#[values(0b00, 0b10, 0b11)] psdt: u8) {
    let mut host = Host::new();
    let data = [0xaa; BLOCK as usize];
    assert_eq!(host.io(&with_psdt(write_of(LARGE, 7), psdt), &[]), (7, INVALID));
    assert_eq!(host.io(&with_psdt(in_capsule(Io::Write, 8, 0), psdt), &data), (8, INVALID));
    assert_eq!(
        host.io(&with_psdt(command(Io::Flush, 9, Sgl::Transport { length: 0 }), psdt), &[]),
        (9, INVALID)
    );
    // What the data pointer holds is no descriptor then.
    let mut pages = with_psdt(in_capsule(Io::Write, 10, 0), psdt);
    pages.sgl.identifier = 0x77;
    assert_eq!(host.io(&pages, &data), (10, INVALID));
    assert_eq!(host.io(&with_psdt(Fabrics::Disconnect { format: 0 }.emit(11), psdt), &[]), (11, INVALID));
    for sqe in
        [Sqe::new(Admin::KeepAlive.code(), 12), Fabrics::PropertyGet { wide: true, offset: 0 }.emit(12)]
    {
        assert_eq!(host.admin(&with_psdt(sqe, psdt)), (12, INVALID));
    }
    assert_eq!(host.block(), vec![0; BLOCK as usize]);
    assert!(host.io.queue.is_io());
}

#[rstest]
#[case::psdt(0b00, Fuse::Normal)]
#[case::fuse(0b01, Fuse::Reserved)]
#[case::half(0b01, Fuse::First)]
fn a_connect_with_flags_that_cannot_be_is_refused(#[case] psdt: u8, #[case] fuse: Fuse) {
    let mut rig = Rig::new();
    let (wire, end) = pipe(3, 100_000);
    let mut connection = rig.accept(end, 0);
    let fields = Connect { format: 0, queue_id: 0, queue_size: 8, attributes: 0, keep_alive_ms: 0 };
    let mut sqe = with_psdt(Fabrics::Connect(fields).emit(1), psdt);
    sqe.set_fuse(fuse);
    sqe.sgl = Sgl::Transport { length: 1024 }.emit();
    wire.inject(&initialize(NONE));
    wire.inject(&capsule(NONE, &sqe, &[]));
    turns(&mut rig, &mut [&mut connection]);
    assert_eq!(one(&wire.drain()[128..]), (1, INVALID));
}

#[test]
fn the_reserved_fuse_value_is_invalid_everywhere() {
    let mut host = Host::new();
    let reserved = |mut sqe: Sqe| {
        sqe.set_fuse(Fuse::Reserved);
        sqe
    };
    assert_eq!(host.io(&reserved(write_of(LARGE, 7)), &[]), (7, INVALID));
    assert_eq!(host.io(&reserved(Fabrics::Disconnect { format: 0 }.emit(8)), &[]), (8, INVALID));
    assert_eq!(host.admin(&reserved(Sqe::new(Admin::KeepAlive.code(), 9))), (9, INVALID));
}

#[test]
fn a_capsule_has_no_room_for_what_is_read() {
    let mut host = Host::new();
    let refused = Status::SGL_TYPE_INVALID.dnr();
    assert_eq!(host.io(&in_capsule(Io::Read, 7, 0), &[]), (7, refused));
    assert_eq!(host.io(&in_capsule(Io::Read, 8, 0), &[0; BLOCK as usize]), (8, refused));
    let mut report = in_capsule(Io::ReservationReport, 9, 0);
    (report.cdw10, report.cdw11) = (U32::new(BLOCK / 4 - 1), U32::new(1));
    assert_eq!(host.io(&report, &[]), (9, refused));
    let mut identify = Sqe::new(Admin::Identify.code(), 10);
    identify.cdw10 = U32::new(1);
    identify.sgl = Sgl::InCapsule { offset: 0, length: 4096 }.emit();
    assert_eq!(host.admin(&identify), (10, refused));
}

#[test]
fn data_lies_anywhere_in_its_capsule() {
    let mut host = Host::new();
    for (round, offset) in (1..).zip([0u8, 4, 7, 200]) {
        let mut data = vec![0xff; usize::from(offset)];
        data.extend([round; BLOCK as usize]);
        data.push(0xff);
        let write = in_capsule(Io::Write, 7, offset.into());
        assert_eq!(host.io(&write, &data), (7, Status::SUCCESS), "{offset}");
        assert_eq!(host.block(), vec![round; BLOCK as usize], "{offset}");
    }
    let data = [9; BLOCK as usize];
    let ends = |host: &mut Host, offset| host.io(&in_capsule(Io::Write, 8, offset), &data).1;
    assert_eq!(ends(&mut host, 1), Status::SGL_LENGTH_INVALID.dnr());
    assert_eq!(ends(&mut host, u64::from(BLOCK) + 1), Status::SGL_OFFSET_INVALID.dnr());
    assert_eq!(ends(&mut host, u64::MAX), Status::SGL_OFFSET_INVALID.dnr());
    assert_eq!(host.block(), vec![4; BLOCK as usize]);
}
