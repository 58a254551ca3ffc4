//! What submission entries say that cannot be: how data is addressed, where it lies, identifiers that are in use.

use basalt_nvme_wire::fabrics::{Command as Fabrics, Connect};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::{DataTransfer, FLAG_LAST, Frame, Kind, ReadyToTransfer};
use basalt_nvme_wire::{Cqe, Fuse, ReadWrite, Sgl, Sqe, Status};
use rstest::rstest;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::pipe::{End, pipe};
use super::raw::{NONE, capsule, connect_both, initialize, turns};
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
        let ([admin, io], [admin_wire, io_wire]) = connect_both(&mut rig);
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

#[test]
fn an_identifier_that_is_in_use_is_a_conflict_and_the_command_that_has_it_goes_on() {
    let mut host = Host::new();
    // Linux has a counter in the upper bits.
    for id in [7, 0x1007, 0xffff] {
        host.send(&write_of(LARGE, id), &[]);
        let asked = host.io_wire.drain();
        let ready = ReadyToTransfer::parse(asked[..].try_into().unwrap()).unwrap();
        assert_eq!(host.io(&write_of(LARGE, id), &[]), (id, Status::COMMAND_ID_CONFLICT));
        assert_eq!(host.io(&in_capsule(Io::Write, id, 0), &[1; 512]), (id, Status::COMMAND_ID_CONFLICT));
        assert_eq!(
            host.io(&command(Io::Flush, id ^ 1, Sgl::Transport { length: 0 }), &[]).1,
            Status::SUCCESS
        );
        let frame = Frame::new(Kind::HostData, FLAG_LAST, NONE, LARGE, 4);
        let transfer =
            DataTransfer { command_id: id, transfer_tag: ready.transfer_tag, offset: 0, length: LARGE };
        host.io_wire.inject(&transfer.emit(&frame));
        host.io_wire.inject(&vec![id.to_le_bytes()[1]; LARGE as usize]);
        host.turns();
        assert_eq!(one(&host.io_wire.drain()), (id, Status::SUCCESS));
        assert_eq!(host.block(), vec![id.to_le_bytes()[1]; BLOCK as usize]);
        // Free again.
        assert_eq!(host.io(&in_capsule(Io::Write, id, 0), &[1; 512]), (id, Status::SUCCESS));
    }
}

#[test]
fn an_identifier_is_free_with_its_completion_in_the_same_bytes() {
    let mut host = Host::new();
    let write = capsule(NONE, &in_capsule(Io::Write, 7, 0), &[1; 512]);
    for _ in 0..20 {
        host.io_wire.inject(&write);
        host.turns();
        assert_eq!(one(&host.io_wire.drain()), (7, Status::SUCCESS));
    }
    // Two at once are one too many.
    host.io_wire.inject(&[&write[..], &write[..]].concat());
    host.turns();
    let sent = host.io_wire.drain();
    let mut ends: Vec<Status> = sent.chunks(24).map(|pdu| completion(pdu).1).collect();
    ends.sort_unstable_by_key(|status| status.code());
    assert_eq!(ends, [Status::SUCCESS, Status::COMMAND_ID_CONFLICT]);
}

#[test]
fn an_event_request_has_its_identifier_until_it_is_answered() {
    let mut host = Host::new();
    let request = Sqe::new(Admin::AsyncEventRequest.code(), 5);
    host.admin_wire.inject(&capsule(NONE, &request, &[]));
    host.turns();
    assert_eq!(host.admin_wire.drain(), Vec::<u8>::new());
    assert_eq!(host.admin(&request), (5, Status::COMMAND_ID_CONFLICT));
    let mut abort = Sqe::new(Admin::Abort.code(), 6);
    abort.cdw10 = U32::new(5 << 16);
    host.admin_wire.inject(&capsule(NONE, &abort, &[]));
    host.turns();
    let sent = host.admin_wire.drain();
    let ends: Vec<(u16, Status)> = sent.chunks(24).map(completion).collect();
    assert_eq!(ends, [(5, Status::ABORT_REQUESTED), (6, Status::SUCCESS)]);
    host.admin_wire.inject(&capsule(NONE, &request, &[]));
    host.turns();
    assert_eq!(host.admin_wire.drain(), Vec::<u8>::new(), "taken again");
}

#[test]
fn a_second_half_whose_identifier_is_in_use_breaks_its_pair() {
    let mut host = Host::new();
    let half = |fuse, opcode, id| {
        let mut sqe = in_capsule(opcode, id, 0);
        sqe.set_fuse(fuse);
        sqe
    };
    host.io_wire.inject(&capsule(NONE, &half(Fuse::First, Io::Compare, 7), &[0; 512]));
    host.turns();
    host.io_wire.inject(&capsule(NONE, &half(Fuse::Second, Io::Write, 7), &[1; 512]));
    host.turns();
    let sent = host.io_wire.drain();
    let ends: Vec<(u16, Status)> = sent.chunks(24).map(completion).collect();
    assert_eq!(ends, [(7, Status::ABORTED_FAILED_FUSED), (7, Status::COMMAND_ID_CONFLICT)]);
    assert_eq!(host.block(), vec![0; BLOCK as usize]);
}
