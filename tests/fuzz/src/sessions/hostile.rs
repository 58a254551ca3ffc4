//! A hostile host that knows the protocol: valid PDUs in any order, damaged ones, half ones, none.

use std::time::Duration;

use basalt_nvme_wire::digest::crc32c;
use basalt_nvme_wire::fabrics::{CONTROLLER_ANY, Command as Fabrics, Connect, ConnectData};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::{
    DataTransfer, Digests, FLAG_LAST, Frame, InitializeRequest, Kind, ReadyToTransfer, SHORT_LEN,
};
use basalt_nvme_wire::{Cqe, Fuse, Sgl, Sqe, Status};
use basalt_reactor::Socket;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::legitimate::Legitimate;
use super::rig::{BLOCKS, HOSTILE_HOST, HOSTILE_SUBSYSTEM, LEGITIMATE_SUBSYSTEM, Rig};
use super::script::Choices;
use super::stream::{aftermath, receive, send};

/// Connections at a time.
const CONNECTIONS_MAX: usize = 12;
/// Steps of one script.
const STEPS_MAX: usize = 300;

/// One connection of the hostile host.
struct Peer {
    socket: Socket,
    digests: Digests,
    unread: Vec<u8>,
    /// R2Ts that were not answered.
    asked: Vec<ReadyToTransfer>,
}

struct Hostile<'a> {
    choices: Choices<'a>,
    peers: Vec<Peer>,
    /// The last controller that a Connect gave.
    controller: u16,
    /// Which of its two identities connects: reservations tell them apart.
    identity: u8,
    next_id: u16,
    reached: Reached,
}

/// How far a script got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Reached {
    succeeded: u32,
    /// R2Ts that came.
    asked: u32,
    /// Commands that ended because their host was preempted.
    preempted: u32,
    /// Commands that Abort ended.
    aborted: u32,
    /// Commands whose identifier another one had.
    conflicts: u32,
}

/// The input is the script.
pub fn hostile_host(input: &[u8]) {
    let (first, _) = play(input);
    // Now and then: the same script, the same world.
    if input.len().is_multiple_of(16) {
        assert_eq!(first, play(input).0, "a script does not always lead to the same");
    }
}

/// What the world has been through, and how far the script got.
fn play(input: &[u8]) -> (u64, Reached) {
    let seed = u64::from(input.first().copied().unwrap_or(0));
    let mut rig = Rig::new(seed);
    let legitimate = Legitimate::start(&mut rig, seed);
    let mut hostile = Hostile {
        choices: Choices::new(input),
        peers: Vec::new(),
        controller: 1,
        identity: 9,
        next_id: 0,
        reached: Reached::default(),
    };
    for _ in 0..STEPS_MAX {
        if hostile.choices.is_over() {
            break;
        }
        hostile.step(&mut rig);
    }
    let (digest, reached) = (rig.digest(), hostile.reached);
    let sockets = hostile.peers.into_iter().map(|peer| peer.socket).collect();
    aftermath(rig, legitimate, sockets);
    (digest, reached)
}

impl Hostile<'_> {
    fn step(&mut self, rig: &mut Rig) {
        let step = self.choices.byte() % 24;
        if step == 0 || self.peers.is_empty() {
            self.open(rig);
            return;
        }
        let at = self.choices.below(self.peers.len());
        match step {
            1 => self.initialize(at),
            2 | 3 => self.connect(at, 0, HOSTILE_SUBSYSTEM),
            4 => self.connect(at, 1, HOSTILE_SUBSYSTEM),
            5 => self.connect(at, 0, LEGITIMATE_SUBSYSTEM),
            6 => self.enable(at),
            7 | 8 => self.admin(at),
            9..=12 => self.io(at),
            13 | 14 => self.answer(at, false),
            15 => self.answer(at, true),
            16 => {
                let bytes = self.choices.bytes(24);
                send(&self.peers[at].socket, bytes);
            }
            17 => self.half(at),
            18 => drop(self.peers.remove(at)),
            19 => self.peers[at].socket.shutdown(),
            20 => self.pair(at),
            21 => {
                let seconds = u64::from(self.choices.byte() % 8);
                rig.pass(Duration::from_secs(seconds));
            }
            23 => self.odd(at),
            _ => {
                rig.pass(Duration::from_millis(3));
                self.read(at);
            }
        }
    }

    fn open(&mut self, rig: &mut Rig) {
        if self.peers.len() >= CONNECTIONS_MAX {
            return;
        }
        let Ok(socket) = rig.hostile().connect(rig.address) else { panic!("no socket") };
        rig.pass(Duration::from_millis(2));
        self.peers.push(Peer { socket, digests: Digests::default(), unread: Vec::new(), asked: Vec::new() });
    }

    /// Sends bytes, one in eight times with one of them changed.
    fn say(&mut self, at: usize, mut bytes: Vec<u8>) {
        if self.choices.byte() & 7 == 7 {
            let place = usize::from(self.choices.u16()) % bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= self.choices.byte() | 1;
            }
        }
        send(&self.peers[at].socket, &bytes);
    }

    fn initialize(&mut self, at: usize) {
        let digests = Digests { header: self.choices.flag(), data: self.choices.flag() };
        self.peers[at].digests = digests;
        let request = InitializeRequest { data_alignment: 4, digests, r2t_max: 1 };
        self.say(at, request.emit().to_vec());
    }

    fn capsule(&mut self, at: usize, mut sqe: Sqe, data: &[u8]) {
        self.next_id = self.next_id.wrapping_add(1);
        sqe.command_id.set(self.next_id % 40);
        let bytes = capsule(self.peers[at].digests, &sqe, data);
        self.say(at, bytes);
    }

    fn connect(&mut self, at: usize, queue: u16, subsystem: &str) {
        let entries = 2 + u32::from(self.choices.byte() % 32);
        let attributes = if self.choices.flag() { 4 } else { 0 };
        let fields =
            Connect { format: 0, queue_id: queue, queue_size: entries, attributes, keep_alive_ms: 5000 };
        let mut sqe = Fabrics::Connect(fields).emit(0);
        if queue == 0 {
            self.identity = if self.choices.byte() & 3 == 3 { 10 } else { 9 };
        }
        let controller = if queue == 0 { CONTROLLER_ANY } else { self.controller };
        let Ok(data) = ConnectData::new([self.identity; 16], controller, subsystem, HOSTILE_HOST) else {
            return;
        };
        sqe.sgl = Sgl::InCapsule { offset: 0, length: 1024 }.emit();
        self.capsule(at, sqe, data.as_bytes());
    }

    fn enable(&mut self, at: usize) {
        let value = if self.choices.byte() & 7 == 0 { 0 } else { 0x0046_0001 };
        self.capsule(at, Fabrics::PropertySet { wide: false, offset: 0x14, value }.emit(0), &[]);
    }

    fn admin(&mut self, at: usize) {
        let known = Admin::ALL[self.choices.below(Admin::ALL.len())].code();
        let mut sqe = Sqe::new(known, 0);
        sqe.nsid = U32::new(self.choices.u32() % 3);
        sqe.cdw10 = U32::new(self.choices.u32());
        if known == Admin::Abort.code() {
            // One of the last commands, of the admin or the I/O queue.
            let id = u32::from(self.next_id.wrapping_sub(u16::from(self.choices.byte() % 6)) % 40);
            sqe.cdw10 = U32::new(u32::from(self.choices.flag()) | id << 16);
        }
        sqe.cdw11 = U32::new(u32::from(self.choices.u16()));
        sqe.sgl = Sgl::Transport { length: u32::from(self.choices.u16()) % 8192 }.emit();
        self.capsule(at, sqe, &[]);
    }

    fn io(&mut self, at: usize) {
        let opcode = Io::ALL[self.choices.below(Io::ALL.len())];
        let mut sqe = Sqe::new(opcode.code(), 0);
        sqe.nsid = U32::new(if self.choices.byte() & 15 == 15 { self.choices.u32() } else { 1 });
        let blocks = u32::from(self.choices.byte() % 80);
        sqe.set_first_block(u64::from(self.choices.u16()) % (BLOCKS + 4));
        sqe.cdw12 = U32::new(blocks | u32::from(self.choices.byte()) << 24);
        let mut length = (blocks + 1) * 512;
        match opcode {
            Io::DatasetManagement => {
                length = 16 * (1 + u32::from(self.choices.byte() % 4));
                sqe.cdw10 = U32::new(length / 16 - 1);
                sqe.cdw11 = U32::new(4);
            }
            Io::ReservationRegister | Io::ReservationAcquire | Io::ReservationRelease => {
                length = 16;
                let kind = u32::from(self.choices.byte() % 8);
                sqe.cdw10 = U32::new(u32::from(self.choices.byte() % 4) | kind << 8);
            }
            Io::ReservationReport => {
                sqe.cdw10 = U32::new(length / 4 - 1);
                sqe.cdw11 = U32::new(1);
            }
            Io::Flush | Io::WriteZeroes => length = 0,
            _ => {}
        }
        let in_capsule = length <= 8192 && self.choices.flag() && opcode.code() & 3 == 1;
        if in_capsule {
            sqe.sgl = Sgl::InCapsule { offset: 0, length }.emit();
            let mut data = self.choices.bytes(16).to_vec();
            data.resize(length as usize, 0x55);
            self.capsule(at, sqe, &data);
        } else {
            sqe.sgl = Sgl::Transport { length }.emit();
            self.capsule(at, sqe, &[]);
        }
    }

    /// Both halves of a pair, or one of them.
    fn pair(&mut self, at: usize) {
        for (fuse, opcode) in [(Fuse::First, Io::Compare), (Fuse::Second, Io::Write)] {
            if self.choices.byte() & 7 == 0 {
                continue;
            }
            let mut sqe = Sqe::new(opcode.code(), 0);
            sqe.set_fuse(fuse);
            sqe.nsid = U32::new(1);
            sqe.set_first_block(u64::from(self.choices.byte() & 1));
            if self.choices.flag() {
                sqe.sgl = Sgl::InCapsule { offset: 0, length: 512 }.emit();
                self.capsule(at, sqe, &[0; 512]);
            } else {
                sqe.sgl = Sgl::Transport { length: 512 }.emit();
                self.capsule(at, sqe, &[]);
            }
        }
    }

    /// An entry that says what it should not: an identifier that is in use, any flags, data somewhere in its capsule.
    fn odd(&mut self, at: usize) {
        let opcode = if self.choices.flag() { Io::Read } else { Io::Write };
        let mut sqe = Sqe::new(opcode.code(), 0);
        sqe.command_id.set(self.next_id.wrapping_sub(u16::from(self.choices.byte() % 4)) % 40);
        sqe.nsid = U32::new(1);
        sqe.flags = self.choices.byte();
        sqe.sgl = Sgl::InCapsule { offset: self.choices.byte().into(), length: 512 }.emit();
        let data = vec![0x66; 512 + usize::from(self.choices.byte())];
        let bytes = capsule(self.peers[at].digests, &sqe, &data);
        self.say(at, bytes);
    }

    /// Answers an R2T, in pieces; wrongly if `wrong`.
    fn answer(&mut self, at: usize, wrong: bool) {
        let peer = &mut self.peers[at];
        let (digests, asked) = (peer.digests, peer.asked.pop());
        let Some(mut ready) = asked else { return };
        if wrong {
            match self.choices.byte() % 4 {
                0 => ready.offset = ready.offset.wrapping_add(4 * u32::from(self.choices.byte())),
                1 => ready.transfer_tag = self.choices.u16(),
                2 => ready.command_id = self.choices.u16(),
                _ => ready.length = ready.length.wrapping_add(4),
            }
        }
        let piece = 512 * (1 + u32::from(self.choices.byte() % 64));
        let stop_after = if self.choices.byte() & 3 == 3 { 1 } else { u32::MAX };
        let (mut offset, mut sent, end) = (0, 0, ready.length.min(1 << 20));
        while offset < end && sent < stop_after {
            let length = piece.min(end - offset);
            let flags = if offset + length == end { FLAG_LAST } else { 0 };
            let frame = Frame::new(Kind::HostData, flags, digests, length, 4);
            let transfer = DataTransfer {
                command_id: ready.command_id,
                transfer_tag: ready.transfer_tag,
                offset: ready.offset.wrapping_add(offset),
                length,
            };
            let data = vec![0x77; length as usize];
            let bytes = pdu(&frame, &transfer.emit(&frame), &data);
            self.say(at, bytes);
            offset += length;
            sent += 1;
        }
    }

    /// The beginning of a PDU, and nothing more.
    fn half(&mut self, at: usize) {
        let sqe = Sqe::new(Io::Write.code(), 1);
        let bytes = capsule(self.peers[at].digests, &sqe, &[0; 4096]);
        let keep = usize::from(self.choices.u16()) % bytes.len();
        send(&self.peers[at].socket, &bytes[..keep]);
    }

    /// Reads what has come, and remembers what is asked for and which controller was given.
    fn read(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        receive(&peer.socket, &mut peer.unread);
        loop {
            let Some(header) = peer.unread.first_chunk::<SHORT_LEN>() else { return };
            let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
            let Some(whole) = peer.unread.get(..length.max(8)) else { return };
            match Kind::from_code(header[0]) {
                Some(Kind::ReadyToTransfer) => {
                    self.reached.asked += 1;
                    peer.asked.extend(ReadyToTransfer::parse(header));
                }
                Some(Kind::Response) => {
                    let cqe = whole.get(8..24).and_then(|bytes| Cqe::read_from_bytes(bytes).ok());
                    match cqe.as_ref().map(|cqe| cqe.status().bare()) {
                        Some(Status::ABORTED_PREEMPT) => self.reached.preempted += 1,
                        Some(Status::ABORT_REQUESTED) => self.reached.aborted += 1,
                        Some(Status::COMMAND_ID_CONFLICT) => self.reached.conflicts += 1,
                        _ => {}
                    }
                    if let Some(cqe) = cqe
                        && cqe.status().is_success()
                    {
                        self.reached.succeeded += 1;
                        if (1..100).contains(&cqe.dw0.get()) {
                            self.controller = cqe.dw0.get().to_le_bytes()[0].into();
                        }
                    }
                }
                _ => {}
            }
            peer.unread.drain(..length.max(8));
        }
    }
}

pub(super) fn capsule(digests: Digests, sqe: &Sqe, data: &[u8]) -> Vec<u8> {
    let frame = Frame::new(Kind::Command, 0, digests, u32::try_from(data.len()).unwrap_or(0), 4);
    let mut header = frame.emit().to_vec();
    header.extend_from_slice(sqe.as_bytes());
    pdu(&frame, &header, data)
}

fn pdu(frame: &Frame, header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = header.to_vec();
    if frame.header_digest {
        bytes.extend_from_slice(&crc32c(header).to_le_bytes());
    }
    bytes.resize(frame.prefix_len(), 0);
    bytes.extend_from_slice(data);
    if frame.data_digest && !data.is_empty() {
        bytes.extend_from_slice(&crc32c(data).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Corpus;

    #[test]
    fn scripts_get_as_far_as_commands_and_their_data() {
        let inputs = Corpus::load("hostile-host").unwrap();
        let reached: Vec<_> = inputs.inputs().iter().map(|input| play(input).1).collect();
        assert!(reached.iter().filter(|script| script.succeeded >= 3).count() >= 6, "{reached:?}");
        assert!(reached.iter().any(|script| script.asked > 0), "no data was asked for: {reached:?}");
        assert!(reached.iter().any(|script| script.preempted > 0), "nothing was preempted: {reached:?}");
        assert!(reached.iter().any(|script| script.aborted > 0), "nothing was aborted: {reached:?}");
        assert!(reached.iter().any(|script| script.conflicts > 0), "no identifier was in use: {reached:?}");
    }
}
