//! Commands that wait for their data when their host is preempted, or their controller reset or shut down.

use basalt_nvme_wire::fabrics::Command;
use basalt_nvme_wire::opcode::Io;
use basalt_nvme_wire::pdu::{DataTransfer, FLAG_LAST, Frame, Kind};
use basalt_nvme_wire::reservation::{
    Acquire, AcquireAction, PersistenceChange, Register, RegisterAction, ReservationKey, ReservationType,
};
use basalt_nvme_wire::{Cqe, ReadWrite, Sgl, Sqe, Status};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::pipe::{End, pipe};
use super::raw::{NONE, Who, capsule, connect_as, turns};
use super::rig::Rig;
use crate::target::connection::Connection;

/// Two hosts with a connected I/O queue each: the wires of their I/O queues, and all connections.
struct Two {
    rig: Rig,
    wires: [End; 2],
    connections: Vec<Connection<End>>,
    admin_wires: Vec<End>,
}

const BLOCKS: u32 = 32;
const LEN: u32 = BLOCKS * 512;

impl Two {
    fn new() -> Self {
        let mut rig = Rig::new();
        let (mut connections, mut wires, mut admin_wires) = (Vec::new(), Vec::new(), Vec::new());
        for (number, who) in [(0, Who { host_id: 1, controller: 1 }), (1, Who { host_id: 2, controller: 2 })]
        {
            let (wire, end) = pipe(number, 100_000);
            let mut admin = rig.accept(end, connections.len());
            connect_as(who, &mut rig, None, &mut admin, &wire, 0, NONE);
            let (io_wire, end) = pipe(number + 10, 100_000);
            let mut io = rig.accept(end, connections.len() + 1);
            connect_as(who, &mut rig, Some(&mut admin), &mut io, &io_wire, 1, NONE);
            connections.extend([admin, io]);
            wires.push(io_wire);
            admin_wires.push(wire);
        }
        let wires = wires.try_into().unwrap();
        let mut two = Self { rig, wires, connections, admin_wires };
        two.keys(0, Io::ReservationRegister);
        two.keys(1, Io::ReservationRegister);
        two.keys(0, Io::ReservationAcquire);
        two
    }

    fn turns(&mut self) {
        let mut all: Vec<&mut Connection<End>> = self.connections.iter_mut().collect();
        turns(&mut self.rig, &mut all);
        self.connections.iter_mut().for_each(|connection| connection.refresh(&mut self.rig.context()));
        let mut all: Vec<&mut Connection<End>> = self.connections.iter_mut().collect();
        turns(&mut self.rig, &mut all);
    }

    /// Registers, or acquires write exclusive, and succeeds.
    fn keys(&mut self, host: usize, opcode: Io) {
        let own = ReservationKey(host as u64 + 1);
        let mut sqe = sqe(opcode, 1);
        let data = match opcode {
            Io::ReservationRegister => {
                let (action, persistence) = (RegisterAction::Register, PersistenceChange::Keep);
                Register { action, ignore_key: false, persistence, current: own, new: own }.emit(&mut sqe)
            }
            _ => acquire(AcquireAction::Acquire, own, 0).emit(&mut sqe),
        };
        self.send(host, &mut sqe, &data);
        assert_eq!(self.reply(host), (1, Status::SUCCESS));
    }

    fn send(&mut self, host: usize, sqe: &mut Sqe, data: &[u8]) {
        sqe.sgl = Sgl::InCapsule { offset: 0, length: u32::try_from(data.len()).unwrap() }.emit();
        self.wires[host].inject(&capsule(NONE, sqe, data));
        self.turns();
    }

    /// The only completion that has come: command identifier and status.
    fn reply(&self, host: usize) -> (u16, Status) {
        let bytes = self.wires[host].drain();
        assert_eq!(bytes.len(), 24, "one completion: {bytes:?}");
        let cqe = Cqe::read_from_bytes(&bytes[8..]).unwrap();
        (cqe.command_id.get(), cqe.status())
    }

    /// The victim's write waits for data; answers the transfer tag.
    fn begin_write(&mut self) -> u16 {
        let mut write = sqe(Io::Write, 9);
        ReadWrite::new(64, BLOCKS).emit(&mut write);
        write.sgl = Sgl::Transport { length: LEN }.emit();
        self.wires[0].inject(&capsule(NONE, &write, &[]));
        self.turns();
        let ready = self.wires[0].drain();
        assert_eq!((ready.len(), ready[0]), (24, 9), "it is asked for its data");
        u16::from_le_bytes([ready[10], ready[11]])
    }

    fn send_data(&mut self, tag: u16) {
        let frame = Frame::new(Kind::HostData, FLAG_LAST, NONE, LEN, 1);
        let transfer = DataTransfer { command_id: 9, transfer_tag: tag, offset: 0, length: LEN };
        let mut bytes = transfer.emit(&frame).to_vec();
        bytes.extend(vec![0xee; LEN as usize]);
        self.wires[0].inject(&bytes);
        self.turns();
    }

    fn preempt(&mut self, action: AcquireAction) {
        let mut command = sqe(Io::ReservationAcquire, 2);
        let data = acquire(action, ReservationKey(2), 1).emit(&mut command);
        self.send(1, &mut command, &data);
        assert_eq!(self.reply(1), (2, Status::SUCCESS), "it does not wait for the other host's data");
    }

    /// A fabrics command on the victim's admin queue; answers dword 0 of its completion.
    fn administer(&mut self, command: Command) -> u32 {
        self.admin_wires[0].inject(&capsule(NONE, &command.emit(7), &[]));
        self.turns();
        let bytes = self.admin_wires[0].drain();
        let cqe = Cqe::read_from_bytes(&bytes[8..24]).unwrap();
        assert_eq!(cqe.status(), Status::SUCCESS);
        u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]])
    }

    fn assert_nothing_written(&mut self) {
        let mut read = sqe(Io::Read, 3);
        ReadWrite::new(64, 1).emit(&mut read);
        read.sgl = Sgl::Transport { length: 512 }.emit();
        self.wires[1].inject(&capsule(NONE, &read, &[]));
        self.turns();
        assert!(self.wires[1].drain()[24..24 + 512].iter().all(|byte| *byte == 0));
    }
}

fn sqe(opcode: Io, id: u16) -> Sqe {
    let mut sqe = Sqe::new(opcode.code(), id);
    sqe.nsid = U32::new(1);
    sqe
}

fn acquire(action: AcquireAction, current: ReservationKey, preempted: u64) -> Acquire {
    let (kind, preempted) = (ReservationType::WriteExclusive, ReservationKey(preempted));
    Acquire { action, ignore_key: false, kind, current, preempted }
}

#[test]
fn preempt_and_abort_does_not_wait_for_data_and_lets_none_through() {
    let mut two = Two::new();
    let tag = two.begin_write();
    two.preempt(AcquireAction::PreemptAndAbort);
    assert!(two.wires[0].drain().is_empty(), "not answered while its data is on the way");
    two.send_data(tag);
    assert_eq!(two.reply(0), (9, Status::ABORTED_PREEMPT));
    two.assert_nothing_written();
}

#[test]
fn data_that_comes_after_a_preemption_is_not_written() {
    let mut two = Two::new();
    let tag = two.begin_write();
    two.preempt(AcquireAction::Preempt);
    two.send_data(tag);
    assert_eq!(two.reply(0), (9, Status::RESERVATION_CONFLICT.dnr()));
    two.assert_nothing_written();
}

#[test]
fn data_that_comes_after_a_reset_or_shutdown_was_told_is_not_written() {
    for (configuration, told) in [(0x0046_0000, 0), (0x0046_4001, 2 << 2)] {
        let mut two = Two::new();
        let tag = two.begin_write();
        two.administer(Command::PropertySet { wide: false, offset: 0x14, value: configuration });
        assert_eq!(two.administer(Command::PropertyGet { wide: false, offset: 0x1c }), told);
        two.send_data(tag);
        two.assert_nothing_written();
    }
}

#[test]
fn data_that_comes_after_a_disconnect_is_not_written() {
    let mut two = Two::new();
    let tag = two.begin_write();
    two.wires[0].inject(&capsule(NONE, &Command::Disconnect { format: 0 }.emit(8), &[]));
    two.turns();
    assert_eq!(two.reply(0), (8, Status::SUCCESS), "it does not wait for the data");
    two.send_data(tag);
    two.assert_nothing_written();
}
