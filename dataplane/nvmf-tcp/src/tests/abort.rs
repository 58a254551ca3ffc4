//! Abort of I/O commands: what is with a slow device, what waits for its data, what is not there.

use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::BlockSize;
use basalt_device_mem::{DelayDevice, Delays, RamDevice};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::{DataTransfer, FLAG_LAST, Frame, Kind, ReadyToTransfer};
use basalt_nvme_wire::{Cqe, ReadWrite, Sgl, Sqe, Status};
use uuid::Uuid;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use super::pipe::End;
use super::raw::{NONE, capsule, connect_both, turns};
use super::rig::{BLOCKS, Rig};
use crate::target::connection::Connection;

/// More than travels in a capsule.
const WRITE_BLOCKS: u32 = 32;
const WRITE_LEN: u32 = WRITE_BLOCKS * 512;
/// How long an aborted command waits for its data.
const GRACE: Duration = Duration::from_secs(1);
/// Dword 0 of an Abort whose command was not aborted.
const NOT_ABORTED: u32 = 1;

/// A host with an admin queue and I/O queue 1.
struct Host {
    rig: Rig,
    connections: Vec<Connection<End>>,
    admin: End,
    io: End,
}

impl Host {
    fn new(mut rig: Rig) -> Self {
        let ([admin, io], [admin_wire, io_wire]) = connect_both(&mut rig);
        Self { rig, connections: vec![admin, io], admin: admin_wire, io: io_wire }
    }

    /// Reads take for ever, as the rig's time stands still.
    fn with_slow_reads() -> Self {
        Self::new(Rig::over(|_| {
            let ram = RamDevice::new("ram", Uuid::nil(), BlockSize::B512, BLOCKS * 512).unwrap();
            let delays = Delays { read: Duration::from_secs(1), ..Delays::default() };
            Arc::new(DelayDevice::new(Arc::new(ram), delays))
        }))
    }

    fn turns(&mut self) {
        for _ in 0..2 {
            let mut all: Vec<&mut Connection<End>> = self.connections.iter_mut().collect();
            turns(&mut self.rig, &mut all);
            self.connections.iter_mut().for_each(|connection| connection.refresh(&mut self.rig.context()));
        }
        let mut all: Vec<&mut Connection<End>> = self.connections.iter_mut().collect();
        turns(&mut self.rig, &mut all);
    }

    fn io(&mut self, opcode: Io, id: u16, blocks: u32) {
        let mut sqe = Sqe::new(opcode.code(), id);
        sqe.nsid = U32::new(1);
        ReadWrite::new(64, blocks).emit(&mut sqe);
        sqe.sgl = Sgl::Transport { length: blocks * 512 }.emit();
        self.io.inject(&capsule(NONE, &sqe, &[]));
        self.turns();
    }

    /// Time passes, and deadlines are looked at.
    fn pass(&mut self, time: Duration) {
        self.rig.now += time;
        self.connections.iter_mut().for_each(|connection| connection.tick(&mut self.rig.context()));
        self.turns();
    }

    /// Begins a large write; the tag of the transfer that is asked for.
    fn write(&mut self, id: u16) -> u16 {
        self.io(Io::Write, id, WRITE_BLOCKS);
        let ready = self.io.drain();
        let ready = ReadyToTransfer::parse(ready[..].try_into().unwrap()).unwrap();
        assert_eq!((ready.command_id, ready.length), (id, WRITE_LEN), "it is asked for its data");
        ready.transfer_tag
    }

    /// Sends a part of a write's data, the last one if it reaches the end.
    fn data(&mut self, command_id: u16, transfer_tag: u16, offset: u32, length: u32) {
        let flags = if offset + length == WRITE_LEN { FLAG_LAST } else { 0 };
        let frame = Frame::new(Kind::HostData, flags, NONE, length, 1);
        let transfer = DataTransfer { command_id, transfer_tag, offset, length };
        self.io.inject(&transfer.emit(&frame));
        self.io.inject(&vec![0xee; length as usize]);
        self.turns();
    }

    /// Whether the blocks that writes go to hold what they held before.
    fn is_untouched(&mut self, id: u16) -> bool {
        self.io(Io::Read, id, WRITE_BLOCKS);
        let read = self.io.drain();
        assert_eq!(read.len(), 24 + WRITE_LEN as usize + 24, "data and completion: {:?}", &read[..24]);
        read[24..24 + WRITE_LEN as usize].iter().all(|byte| *byte == 0)
    }

    fn abort(&mut self, id: u16, queue: u16, command: u16) {
        let mut sqe = Sqe::new(Admin::Abort.code(), id);
        sqe.cdw10 = U32::new(u32::from(command) << 16 | u32::from(queue));
        self.admin.inject(&capsule(NONE, &sqe, &[]));
        self.turns();
    }
}

/// The completions that came: identifier, status, dword 0.
fn replies(wire: &End) -> Vec<(u16, Status, u32)> {
    let bytes = wire.drain();
    assert!(bytes.len().is_multiple_of(24), "only completions: {bytes:?}");
    let reply = |pdu: &[u8]| {
        let cqe = Cqe::read_from_bytes(&pdu[8..]).unwrap();
        (cqe.command_id.get(), cqe.status(), cqe.dw0.get())
    };
    bytes.chunks(24).map(reply).collect()
}

#[test]
fn a_command_that_a_slow_device_has_is_taken_back() {
    let mut host = Host::with_slow_reads();
    host.io(Io::Read, 9, 1);
    assert_eq!(replies(&host.io), []);
    host.abort(3, 1, 9);
    assert_eq!(replies(&host.io), [(9, Status::ABORT_REQUESTED, 0)]);
    assert_eq!(replies(&host.admin), [(3, Status::SUCCESS, 0)]);
    // The place serves again.
    host.io(Io::Read, 9, 1);
    host.abort(4, 1, 9);
    assert_eq!(replies(&host.io), [(9, Status::ABORT_REQUESTED, 0)]);
}

#[test]
fn a_write_that_waits_for_its_data_ends_when_that_has_come_and_writes_nothing() {
    let mut host = Host::new(Rig::new());
    let tag = host.write(9);
    host.abort(3, 1, 9);
    assert_eq!(replies(&host.io), [], "its data is on the way");
    assert_eq!(replies(&host.admin), [], "the command ends before its Abort");
    host.data(9, tag, 0, WRITE_LEN);
    assert_eq!(replies(&host.io), [(9, Status::ABORT_REQUESTED, 0)]);
    assert_eq!(replies(&host.admin), [(3, Status::SUCCESS, 0)]);
    assert!(host.is_untouched(10));
    host.pass(GRACE);
    assert_eq!(replies(&host.io), [], "it has ended once");
}

#[test]
fn data_that_does_not_come_is_waited_for_a_second_and_dropped_when_it_comes_after_all() {
    let mut host = Host::new(Rig::new());
    let tag = host.write(9);
    host.data(9, tag, 0, 1024);
    host.abort(3, 1, 9);
    host.pass(GRACE - Duration::from_millis(1));
    assert_eq!((replies(&host.io), replies(&host.admin)), (vec![], vec![]));
    host.pass(Duration::from_millis(1));
    assert_eq!(replies(&host.io), [(9, Status::ABORT_REQUESTED, 0)]);
    assert_eq!(replies(&host.admin), [(3, Status::SUCCESS, 0)]);
    // Its identifier is free, the tag of its transfer is not.
    let other = host.write(9);
    assert_ne!(other, tag);
    host.data(9, tag, 1024, 512);
    assert_eq!(replies(&host.io), []);
    host.data(9, other, 0, WRITE_LEN);
    assert_eq!(replies(&host.io), [(9, Status::SUCCESS, 0)]);
    host.data(9, tag, 1536, WRITE_LEN - 1536);
    assert_eq!((replies(&host.io), replies(&host.admin)), (vec![], vec![]), "what comes late is dropped");
    // Nothing is left of it.
    assert_eq!(host.write(11), tag, "its place serves again");
    host.data(11, tag, 0, WRITE_LEN);
    assert_eq!(replies(&host.io), [(11, Status::SUCCESS, 0)]);
    host.abort(4, 1, 9);
    assert_eq!(replies(&host.admin), [(4, Status::SUCCESS, NOT_ABORTED)]);
}

#[test]
fn an_aborted_write_whose_data_comes_late_writes_nothing() {
    let mut host = Host::new(Rig::new());
    let tag = host.write(9);
    host.abort(3, 1, 9);
    host.pass(GRACE);
    assert_eq!(replies(&host.io), [(9, Status::ABORT_REQUESTED, 0)]);
    host.data(9, tag, 0, WRITE_LEN);
    assert!(host.is_untouched(10));
    // Data of a transfer that is over is a violation as ever.
    host.data(9, tag, 0, WRITE_LEN);
    assert_eq!(host.io.drain()[0], Kind::ControllerTermination.code());
}

#[test]
fn a_host_has_all_of_its_entries_though_data_of_aborted_commands_is_awaited_and_no_more() {
    let mut host = Host::new(Rig::new());
    let entries = u16::try_from(host.connections[1].queue.entries()).unwrap();
    for id in 0..entries {
        host.write(id);
        host.abort(100, 1, id);
        host.pass(GRACE);
        assert_eq!(replies(&host.io), [(id, Status::ABORT_REQUESTED, 0)]);
        assert_eq!(replies(&host.admin), [(100, Status::SUCCESS, 0)]);
    }
    for id in 0..entries {
        host.write(id);
    }
    host.abort(100, 1, 0);
    host.pass(GRACE);
    assert_eq!(
        host.io.drain()[0],
        Kind::ControllerTermination.code(),
        "it has given up as many as it may have"
    );
    host.pass(Duration::from_secs(5));
    assert!(host.connections[1].is_done());
    assert_eq!(replies(&host.admin), [(100, Status::SUCCESS, 0)]);
    host.abort(101, 1, 7);
    assert_eq!(replies(&host.admin).len(), 1, "the admin queue goes on");
}

#[test]
fn what_is_done_or_was_never_there_is_not_aborted() {
    let mut host = Host::new(Rig::new());
    host.io(Io::Flush, 9, 1);
    assert_eq!(replies(&host.io), [(9, Status::SUCCESS, 0)]);
    for (id, queue, command) in [(3, 1, 9), (4, 1, 77), (5, 2, 9), (6, 0, 9)] {
        host.abort(id, queue, command);
        assert_eq!(replies(&host.admin), [(id, Status::SUCCESS, NOT_ABORTED)], "queue {queue}");
    }
}

#[test]
fn aborts_beyond_the_limit_that_identify_tells_are_refused() {
    let mut host = Host::new(Rig::new());
    for id in 1..=5 {
        host.io(Io::Write, id, WRITE_BLOCKS);
        host.abort(id + 10, 1, id);
    }
    assert_eq!(replies(&host.admin), [(15, Status::ABORT_LIMIT_EXCEEDED.dnr(), 0)]);
}

#[test]
fn an_abort_ends_when_the_queue_of_its_command_does() {
    let mut host = Host::with_slow_reads();
    host.io(Io::Write, 9, WRITE_BLOCKS);
    host.io.drain();
    host.abort(3, 1, 9);
    assert_eq!(replies(&host.admin), []);
    let lost = host.connections.pop().unwrap();
    drop(lost);
    host.turns();
    // Nothing of it was done, and nothing will be.
    assert_eq!(replies(&host.admin), [(3, Status::SUCCESS, 0)]);
}
