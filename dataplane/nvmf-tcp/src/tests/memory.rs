//! What hosts hold of a reactor's buffers, and what is left for others.

use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::{DataTransfer, Digests, FLAG_LAST, Frame, Kind, ReadyToTransfer};
use basalt_nvme_wire::{ReadWrite, Sgl, Sqe};
use rstest::rstest;
use zerocopy::little_endian::U32;

use super::pipe::{End, pipe};
use super::raw::{NONE, Who, capsule, connect_as};
use super::rig::Rig;
use crate::target::connection::{Connection, Phase};
use crate::target::share::PeerShare;
use crate::wire::Wire;

const POOL: usize = 4 << 20;
const LARGE: u32 = 128 << 10;
const DATA_DIGEST: Digests = Digests { header: false, data: true };

/// Connections of several controllers, each with one I/O queue of eight entries.
struct Crowd {
    rig: Rig,
    connections: Vec<Connection<End>>,
    /// The hosts' ends of their I/O queues, and of the admin queues.
    wires: Vec<End>,
    admin_wires: Vec<End>,
}

impl Crowd {
    fn new() -> Self {
        Self {
            rig: Rig::with_pool(POOL),
            connections: Vec::new(),
            wires: Vec::new(),
            admin_wires: Vec::new(),
        }
    }

    /// One more, of the address `peer`; answers its place in `wires`.
    fn join(&mut self, peer: &PeerShare, digests: Digests) -> usize {
        let index = self.wires.len();
        let number = u16::try_from(index + 1).unwrap();
        let who = Who { host_id: u8::try_from(number).unwrap(), controller: number };
        let (admin_wire, end) = pipe(u64::from(number), 400_000);
        let mut admin = self.rig.accept_from(peer, end, self.connections.len());
        connect_as(who, &mut self.rig, None, &mut admin, &admin_wire, 0, NONE);
        let (wire, end) = pipe(u64::from(number) + 1000, 400_000);
        let mut io = self.rig.accept_from(peer, end, self.connections.len() + 1);
        connect_as(who, &mut self.rig, Some(&mut admin), &mut io, &wire, 1, digests);
        self.connections.extend([admin, io]);
        self.wires.push(wire);
        self.admin_wires.push(admin_wire);
        index
    }

    fn turns(&mut self, count: usize) {
        let mut all: Vec<&mut Connection<End>> = self.connections.iter_mut().collect();
        (0..count).for_each(|_| self.rig.turn(&mut all));
    }

    fn io(&mut self, index: usize) -> &mut Connection<End> {
        &mut self.connections[2 * index + 1]
    }

    fn in_use(&self) -> usize {
        let stats = self.rig.pool.stats();
        stats.held_bytes - stats.idle_bytes
    }

    fn send(&self, index: usize, sqe: &Sqe, data: &[u8]) {
        self.wires[index].inject(&capsule(NONE, sqe, data));
    }
}

fn command(operation: Io, id: u16, sgl: Sgl) -> Sqe {
    let mut sqe = Sqe::new(operation.code(), id);
    sqe.nsid = U32::new(1);
    sqe.sgl = sgl.emit();
    ReadWrite::new(0, sgl.length() / 512).emit(&mut sqe);
    sqe
}

fn large_write(id: u16) -> Sqe {
    command(Io::Write, id, Sgl::Transport { length: LARGE })
}

fn small_write(id: u16) -> Sqe {
    command(Io::Write, id, Sgl::InCapsule { offset: 0, length: 4096 })
}

/// Commands whose data is asked for in what a target sent, with their tags.
fn asked(sent: &[u8]) -> Vec<ReadyToTransfer> {
    let pdus = sent.chunks_exact(24);
    assert!(pdus.remainder().is_empty() && pdus.clone().all(|pdu| pdu[0] == Kind::ReadyToTransfer.code()));
    pdus.map(|pdu| ReadyToTransfer::parse(pdu.try_into().unwrap()).unwrap()).collect()
}

fn data(ready: &ReadyToTransfer) -> Vec<u8> {
    let ReadyToTransfer { command_id, transfer_tag, length, .. } = *ready;
    let transfer = DataTransfer { command_id, transfer_tag, offset: 0, length };
    let frame = Frame::new(Kind::HostData, FLAG_LAST, NONE, length, 4);
    [&transfer.emit(&frame)[..], &vec![9; length as usize]].concat()
}

fn is_success(sent: &[u8]) -> bool {
    sent.len() == 24 && sent[0] == Kind::Response.code() && sent[22..24] == [0, 0]
}

/// Hosts of one address with more writes than the pool has memory for, whose data never comes.
fn withholding(crowd: &mut Crowd) -> Vec<usize> {
    let peer = PeerShare::default();
    let withholders: Vec<usize> = (0..8).map(|_| crowd.join(&peer, NONE)).collect();
    for index in &withholders {
        (0..7).for_each(|id| crowd.send(*index, &large_write(id), &[]));
        crowd.turns(50);
    }
    withholders
}

#[test]
fn hosts_that_keep_their_data_back_do_not_stop_others() {
    let mut crowd = Crowd::new();
    let withholders = withholding(&mut crowd);
    let held = crowd.in_use();
    assert!(held <= POOL / 4 * 3, "{held}");
    let peer = PeerShare::default();
    let good = [crowd.join(&peer, NONE), crowd.join(&peer, NONE)];
    for round in 0..50 {
        // In the same turn: the memory of the first one's data is still lent when the second one's comes.
        for index in good {
            crowd.send(index, &small_write(round), &[3; 4096]);
        }
        crowd.turns(20);
        assert!(good.iter().all(|index| is_success(&crowd.wires[*index].drain())), "round {round}");
        for index in good {
            crowd.send(index, &large_write(round), &[]);
        }
        crowd.turns(20);
        for index in good {
            let ready = asked(&crowd.wires[index].drain());
            assert_eq!(ready.len(), 1);
            crowd.wires[index].inject(&data(&ready[0]));
        }
        crowd.turns(50);
        assert!(good.iter().all(|index| is_success(&crowd.wires[*index].drain())), "round {round}");
    }
    // They leave, which is noticed, and all that they held with them.
    for index in &withholders {
        crowd.wires[*index].shutdown();
    }
    crowd.turns(20);
    assert!(withholders.iter().all(|index| crowd.io(*index).phase == Phase::Over));
    let held = crowd.in_use();
    assert!(held <= 512 << 10, "{held}");
}

#[test]
fn writes_beyond_the_share_wait_in_order_until_others_are_done() {
    let mut crowd = Crowd::new();
    let mut others = withholding(&mut crowd);
    let index = crowd.join(&PeerShare::default(), NONE);
    (0..7).for_each(|id| crowd.send(index, &large_write(id), &[]));
    crowd.turns(50);
    let first = asked(&crowd.wires[index].drain());
    assert!((2..7).contains(&first.len()), "{}", first.len());
    let mut order: Vec<u16> = first.iter().map(|ready| ready.command_id).collect();
    let mut waiting = first;
    let mut done = 0;
    while done < 7 {
        let ready = waiting.remove(0);
        crowd.wires[index].inject(&data(&ready));
        crowd.turns(50);
        for pdu in crowd.wires[index].drain().chunks_exact(24) {
            if pdu[0] == Kind::Response.code() {
                assert_eq!(pdu[22..24], [0, 0]);
                done += 1;
            } else {
                let ready = asked(pdu);
                order.push(ready[0].command_id);
                waiting.extend(ready);
            }
        }
    }
    assert_eq!(order, (0..7).collect::<Vec<u16>>());
    // Memory that another connection gives back wakes what waits as well.
    let starved = others.pop().unwrap();
    let before = asked(&crowd.wires[starved].drain()).len();
    assert!(before < 7);
    others.iter().for_each(|index| crowd.wires[*index].shutdown());
    crowd.turns(50);
    assert_eq!(before + asked(&crowd.wires[starved].drain()).len(), 7);
}

#[test]
fn reads_that_nobody_takes_do_not_stop_others() {
    let mut crowd = Crowd::new();
    let peer = PeerShare::default();
    // Their data is read into the pool's memory, as from disks. What is sent stays unread.
    for _ in 0..8 {
        let index = crowd.join(&peer, DATA_DIGEST);
        crowd.wires[index].stop_reading();
        (0..7).for_each(|id| {
            crowd.wires[index].inject(&capsule(
                DATA_DIGEST,
                &command(Io::Read, id, Sgl::Transport { length: LARGE }),
                &[],
            ));
        });
        crowd.turns(50);
    }
    let held = crowd.in_use();
    assert!(held <= POOL / 4 * 3 && held > POOL / 4, "{held}");
    let good = crowd.join(&PeerShare::default(), DATA_DIGEST);
    for id in 0..20 {
        let read = command(Io::Read, id, Sgl::Transport { length: LARGE });
        crowd.wires[good].inject(&capsule(DATA_DIGEST, &read, &[]));
        crowd.turns(20);
        assert_eq!(crowd.wires[good].drain().len(), 24 + LARGE as usize + 4 + 24, "read {id}");
    }
    // They read on: everything comes.
    for index in 0..8 {
        crowd.wires[index].read_on();
    }
    crowd.turns(300);
    for index in 0..8 {
        assert_eq!(crowd.wires[index].drain().len(), 7 * (24 + LARGE as usize + 4 + 24));
    }
    let held = crowd.in_use();
    assert!(held <= 512 << 10, "{held}");
}

#[test]
fn hosts_are_listened_to_though_the_pool_is_dry() {
    let mut crowd = Crowd::new();
    let peer = PeerShare::default();
    let index = crowd.join(&peer, NONE);
    let leaving = crowd.join(&peer, NONE);
    // Devices and others have all of it.
    let mut all = Vec::new();
    for class in (12..=20).rev() {
        all.extend(std::iter::from_fn(|| crowd.rig.pool.take(1 << class)));
    }
    for id in 0..3 {
        crowd.send(index, &small_write(id), &[1; 4096]);
    }
    crowd.send(index, &large_write(5), &[]);
    crowd.wires[leaving].shutdown();
    crowd.turns(50);
    let answer = crowd.wires[index].drain();
    assert!(answer.len() == 72 && answer.chunks_exact(24).all(is_success), "{answer:?}");
    assert_eq!(crowd.io(leaving).phase, Phase::Over);
    drop(all);
    crowd.turns(50);
    assert_eq!(asked(&crowd.wires[index].drain()).len(), 1);
}

/// Answers that are made for their commands, one after the other.
fn log_page(id: u16) -> Sqe {
    let mut sqe = Sqe::new(Admin::GetLogPage.code(), id);
    sqe.nsid = U32::new(u32::MAX);
    sqe.sgl = Sgl::Transport { length: LARGE }.emit();
    // SMART, as many dwords.
    sqe.cdw10 = U32::new(2 | (LARGE / 4 - 1) << 16);
    sqe
}

fn keep_alive(id: u16) -> Sqe {
    Sqe::new(Admin::KeepAlive.code(), id)
}

#[rstest]
#[case::large(log_page, 400, 24 + LARGE as usize + 24)]
#[case::small(keep_alive, 20_000, 24)]
fn answers_that_nobody_reads_are_bounded(
    #[case] make: fn(u16) -> Sqe,
    #[case] count: u16,
    #[case] answer_bytes: usize,
) {
    let mut crowd = Crowd::new();
    crowd.join(&PeerShare::default(), NONE);
    let wire = crowd.admin_wires[0].clone();
    wire.stop_reading();
    (0..count).for_each(|id| wire.inject(&capsule(NONE, &make(id), &[])));
    crowd.turns(500);
    let waiting = crowd.connections[0].outlet.own_bytes();
    assert!((64 << 10..(64 << 10) + answer_bytes).contains(&waiting), "{waiting}");
    // All come, in order, once they are read.
    wire.read_on();
    let mut answers = Vec::new();
    while answers.len() < usize::from(count) {
        crowd.turns(500);
        let sent = wire.drain();
        assert!(!sent.is_empty() && sent.len().is_multiple_of(answer_bytes));
        answers.extend(sent.chunks_exact(answer_bytes).map(|answer| {
            let completion = &answer[answer_bytes - 24..];
            assert!(is_success(completion));
            u16::from_le_bytes([completion[20], completion[21]])
        }));
    }
    assert!(answers.into_iter().eq(0..count));
    assert_eq!(crowd.connections[0].phase, Phase::Running);
    assert!(!crowd.connections[0].has_work());
}
