//! Every way in which a host can break the rules, and the complaint that it gets (TCP 3.5).

use basalt_nvme_wire::digest::crc32c;
use basalt_nvme_wire::fabrics::{Command as Fabrics, Connect};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::{
    DataTransfer, Digests, FLAG_LAST, FatalStatus, Frame, Kind, ReadyToTransfer, Termination,
};
use basalt_nvme_wire::{ReadWrite, Sgl, Sqe};
use rstest::rstest;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use super::pipe::{End, pipe};
use super::raw::{NONE, capsule, connect, initialize, turns};
use super::rig::Rig;
use crate::target::connection::{Connection, Phase};

fn keep_alive() -> Vec<u8> {
    capsule(NONE, &Sqe::new(Admin::KeepAlive.code(), 3), &[])
}

/// A connected I/O queue whose write of 64 KiB waits for its data, and the transfer that would be right.
struct Waiting {
    rig: Rig,
    admin: Connection<End>,
    io: Connection<End>,
    host: End,
    right: DataTransfer,
}

impl Waiting {
    fn new() -> Self {
        let mut rig = Rig::new();
        let (admin_host, end) = pipe(1, 100_000);
        let mut admin = rig.accept(end, 0);
        connect(&mut rig, None, &mut admin, &admin_host, 0, NONE);
        let (host, end) = pipe(2, 100_000);
        let mut io = rig.accept(end, 1);
        connect(&mut rig, Some(&mut admin), &mut io, &host, 1, NONE);
        let mut write = Sqe::new(Io::Write.code(), 0x77);
        write.nsid = U32::new(1);
        write.sgl = Sgl::Transport { length: 65_536 }.emit();
        ReadWrite::new(0, 128).emit(&mut write);
        host.inject(&capsule(NONE, &write, &[]));
        turns(&mut rig, &mut [&mut admin, &mut io]);
        let answer = host.drain();
        let ready = ReadyToTransfer::parse(answer[..24].try_into().unwrap()).unwrap();
        assert_eq!((answer[0], ready.length), (Kind::ReadyToTransfer.code(), 65_536));
        let right =
            DataTransfer { command_id: 0x77, transfer_tag: ready.transfer_tag, offset: 0, length: 65_536 };
        Self { rig, admin, io, host, right }
    }

    fn send(&mut self, transfer: DataTransfer, flags: u8, data_len: u32) {
        let frame = Frame::new(Kind::HostData, flags, NONE, data_len, 4);
        self.host.inject(&transfer.emit(&frame));
        self.host.inject(&vec![7; data_len as usize]);
        turns(&mut self.rig, &mut [&mut self.admin, &mut self.io]);
    }

    fn complaint(&self) -> (FatalStatus, u32) {
        complaint(&self.host.drain())
    }
}

/// The termination request at the end of what a target sent.
fn complaint(sent: &[u8]) -> (FatalStatus, u32) {
    let start = (0..sent.len().saturating_sub(23))
        .find(|at| sent[*at..].starts_with(&[Kind::ControllerTermination.code(), 0, 24, 0]));
    let start = start.unwrap_or_else(|| panic!("no termination request in {sent:?}"));
    let termination = Termination::parse(sent[start..start + 24].try_into().unwrap());
    (FatalStatus::parse(termination.status).unwrap(), termination.information)
}

fn changed(mut bytes: Vec<u8>, at: usize, value: u8) -> Vec<u8> {
    bytes[at] = value;
    bytes
}

fn oversized_capsule() -> Vec<u8> {
    capsule(NONE, &Sqe::new(Admin::KeepAlive.code(), 1), &[0; 8196])
}

fn connected_to_data() -> Vec<u8> {
    let transfer = DataTransfer { command_id: 1, transfer_tag: 0, offset: 0, length: 512 };
    let frame = Frame::new(Kind::HostData, FLAG_LAST, NONE, 512, 4);
    let mut bytes = transfer.emit(&frame).to_vec();
    bytes.extend_from_slice(&[0; 512]);
    bytes
}

#[rstest]
#[case::command_before_initialization(&[keep_alive()], FatalStatus::Sequence, 0)]
#[case::format_version(&[changed(initialize(NONE), 8, 1)], FatalStatus::UnsupportedParameter, 8)]
#[case::alignment(&[changed(initialize(NONE), 10, 32)], FatalStatus::UnsupportedParameter, 10)]
#[case::initialized_twice(&[initialize(NONE), initialize(NONE)], FatalStatus::Sequence, 0)]
#[case::unknown_type(&[initialize(NONE), changed(keep_alive(), 0, 0x0b)], FatalStatus::InvalidHeaderField, 0)]
#[case::type_for_hosts(&[initialize(NONE), changed(keep_alive(), 0, 5)], FatalStatus::InvalidHeaderField, 0)]
#[case::digest_not_agreed(&[initialize(NONE), changed(keep_alive(), 1, 1)], FatalStatus::InvalidHeaderField, 1)]
#[case::header_length(&[initialize(NONE), changed(keep_alive(), 2, 71)], FatalStatus::InvalidHeaderField, 2)]
#[case::too_short(&[initialize(NONE), changed(keep_alive(), 4, 71)], FatalStatus::InvalidHeaderField, 4)]
#[case::data_offset(&[initialize(NONE), changed(capsule(NONE, &Sqe::default(), &[0; 64]), 3, 74)], FatalStatus::InvalidHeaderField, 3)]
#[case::capsule_too_large(&[initialize(NONE), oversized_capsule()], FatalStatus::LimitExceeded, 0)]
#[case::data_without_command(&[initialize(NONE), connected_to_data()], FatalStatus::InvalidHeaderField, 10)]
#[case::more_commands_than_entries(
    &[initialize(NONE), capsule(NONE, &asks_for_data(1), &[]), capsule(NONE, &asks_for_data(2), &[]), capsule(NONE, &asks_for_data(3), &[])],
    FatalStatus::Sequence, 0
)]
fn a_violation_before_connect_is_named(
    #[case] pdus: &[Vec<u8>],
    #[case] status: FatalStatus,
    #[case] information: u32,
) {
    let mut rig = Rig::new();
    let (host, end) = pipe(3, 100_000);
    let mut connection = rig.accept(end, 0);
    pdus.iter().for_each(|pdu| host.inject(pdu));
    turns(&mut rig, &mut [&mut connection]);
    assert_eq!(complaint(&host.drain()), (status, information));
    assert!(matches!(connection.phase, Phase::Terminating { .. }));
    rig.now += rig.options.termination_timeout;
    connection.tick(&mut rig.context());
    assert!(connection.phase == Phase::Over && connection.is_done());
}

/// A Connect whose data the target asks for, so that the command stays.
fn asks_for_data(id: u16) -> Sqe {
    let fields = Connect { format: 0, queue_id: 0, queue_size: 8, attributes: 0, keep_alive_ms: 0 };
    let mut sqe = Fabrics::Connect(fields).emit(id);
    sqe.sgl = Sgl::Transport { length: 1024 }.emit();
    sqe
}

#[test]
fn a_wrong_header_digest_is_named() {
    let mut rig = Rig::new();
    let (host, end) = pipe(4, 100_000);
    let mut connection = rig.accept(end, 0);
    let digests = Digests { header: true, data: false };
    host.inject(&initialize(digests));
    let frame = Frame::new(Kind::Command, 0, digests, 0, 1);
    let mut pdu = frame.emit().to_vec();
    pdu.extend_from_slice(Sqe::new(Admin::KeepAlive.code(), 1).as_bytes());
    let wrong = crc32c(&pdu) ^ 1;
    pdu.extend_from_slice(&wrong.to_le_bytes());
    host.inject(&pdu);
    turns(&mut rig, &mut [&mut connection]);
    assert_eq!(complaint(&host.drain()), (FatalStatus::HeaderDigest, wrong));
}

#[rstest]
#[case::tag(|right: DataTransfer| DataTransfer { transfer_tag: 99, ..right }, FLAG_LAST, 65_536, FatalStatus::InvalidHeaderField, 10)]
#[case::command(|right: DataTransfer| DataTransfer { command_id: 1, ..right }, FLAG_LAST, 65_536, FatalStatus::InvalidHeaderField, 8)]
#[case::not_at_the_start(|right: DataTransfer| DataTransfer { offset: 512, length: 512, ..right }, 0, 512, FatalStatus::DataOutOfRange, 0)]
#[case::beyond_the_end(|right: DataTransfer| DataTransfer { length: 65_540, ..right }, 0, 65_540, FatalStatus::DataOutOfRange, 0)]
#[case::larger_than_agreed(|right: DataTransfer| DataTransfer { length: 131_076, ..right }, 0, 131_076, FatalStatus::LimitExceeded, 0)]
#[case::last_too_early(|right: DataTransfer| DataTransfer { length: 512, ..right }, FLAG_LAST, 512, FatalStatus::InvalidHeaderField, 1)]
#[case::last_missing(|right: DataTransfer| right, 0, 65_536, FatalStatus::InvalidHeaderField, 1)]
#[case::length_against_frame(|right: DataTransfer| DataTransfer { length: 512, ..right }, FLAG_LAST, 1024, FatalStatus::InvalidHeaderField, 16)]
fn a_wrong_transfer_is_named(
    #[case] spoil: fn(DataTransfer) -> DataTransfer,
    #[case] flags: u8,
    #[case] data_len: u32,
    #[case] status: FatalStatus,
    #[case] information: u32,
) {
    let mut waiting = Waiting::new();
    let transfer = spoil(waiting.right);
    waiting.send(transfer, flags, data_len);
    assert_eq!(waiting.complaint(), (status, information));
    // The other connection goes on.
    assert!(waiting.admin.queue.is_connected() && waiting.admin.phase == Phase::Running);
}

#[test]
fn the_right_transfer_is_taken_in_pieces() {
    let mut waiting = Waiting::new();
    let right = waiting.right;
    waiting.send(DataTransfer { length: 512, ..right }, 0, 512);
    waiting.send(DataTransfer { offset: 512, length: 65_024, ..right }, FLAG_LAST, 65_024);
    let answer = waiting.host.drain();
    assert_eq!((answer[0], answer.len()), (Kind::Response.code(), 24));
    assert_eq!(answer[22..24], [0, 0], "success");
}

#[test]
fn damaged_data_fails_its_command_and_nothing_else() {
    let mut rig = Rig::new();
    let (host, end) = pipe(5, 100_000);
    let mut connection = rig.accept(end, 0);
    let digests = Digests { header: false, data: true };
    host.inject(&initialize(digests));
    let frame = Frame::new(Kind::Command, 0, digests, 64, 4);
    let mut sqe = Sqe::new(0x81, 9);
    sqe.sgl = Sgl::InCapsule { offset: 0, length: 64 }.emit();
    let mut pdu = frame.emit().to_vec();
    pdu.extend_from_slice(sqe.as_bytes());
    pdu.extend_from_slice(&[1; 64]);
    pdu.extend_from_slice(&(crc32c(&[1; 64]) ^ 1).to_le_bytes());
    host.inject(&pdu);
    turns(&mut rig, &mut [&mut connection]);
    let answer = host.drain();
    let field = u16::from_le_bytes([answer[128 + 22], answer[128 + 23]]);
    assert_eq!(field, basalt_nvme_wire::Status::TRANSIENT_TRANSPORT.to_field());
    assert_eq!(connection.phase, Phase::Running);
}
