//! A wire that damages what it carries, or only remembers it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::ReadWrite;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvmf_host::{Data, IoCommand};
use basalt_nvmf_tcp::host::{TcpHostOptions, connect};
use basalt_reactor::{Handle, Socket};

use super::legitimate::Legitimate;
use super::rig::{HOSTILE_HOST, HOSTILE_SUBSYSTEM, Rig};
use super::script::Choices;
use super::stream::{aftermath, receive, send};

/// What one connection carried.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorded {
    /// From the host.
    pub host: Vec<u8>,
    /// From the controller.
    pub controller: Vec<u8>,
}

/// One change of what passes.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Change(u8),
    Lose(usize),
    Insert(u8),
    Repeat(usize),
    /// Nothing more passes this way.
    Cut,
}

/// One direction of a connection: what comes, how much of it, and what happens where.
#[derive(Debug, Default)]
struct Lane {
    passed: usize,
    damage: BTreeMap<usize, Damage>,
    cut: bool,
}

impl Lane {
    fn carry(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut lose = 0;
        for byte in bytes {
            let damage = self.damage.get(&self.passed).copied();
            self.passed += 1;
            if self.cut {
                continue;
            }
            let mut byte = *byte;
            match damage {
                Some(Damage::Change(bits)) => byte ^= bits | 1,
                Some(Damage::Lose(count)) => lose = count,
                Some(Damage::Insert(other)) => out.push(other),
                Some(Damage::Repeat(count)) => out.extend_from_within(out.len().saturating_sub(count)..),
                Some(Damage::Cut) => self.cut = true,
                None => {}
            }
            if lose > 0 {
                lose -= 1;
            } else if !self.cut {
                out.push(byte);
            }
        }
        out
    }
}

struct Wire {
    host: Socket,
    controller: Socket,
    lanes: [Lane; 2],
    recorded: Recorded,
}

/// Connections that are damaged: the admin queue's and the I/O queue's.
const CONNECTIONS: usize = 2;

/// Bytes of a connection within which damage begins.
const DAMAGE_WITHIN: u32 = 40_000;

/// The input is a list of damages.
pub fn hostile_wire(input: &[u8]) {
    let mut choices = Choices::new(input);
    let seed = u64::from(choices.byte());
    let digests = seed & 1 == 1;
    let mut lanes: [[Lane; 2]; CONNECTIONS] = Default::default();
    for _ in 0..64 {
        if choices.is_over() {
            break;
        }
        let which = choices.byte();
        let lane = &mut lanes[usize::from(which & 1)][usize::from(which >> 1 & 1)];
        let at = choices.u32() % DAMAGE_WITHIN;
        let damage = match choices.byte() % 8 {
            0..=3 => Damage::Change(choices.byte()),
            4 => Damage::Lose(1 + choices.below(64)),
            5 => Damage::Insert(choices.byte()),
            6 => Damage::Repeat(1 + choices.below(128)),
            _ => Damage::Cut,
        };
        lane.damage.insert(at as usize, damage);
    }
    let mut rig = Rig::new(seed);
    let legitimate = Legitimate::start(&mut rig, seed);
    let digests = Digests { header: digests, data: digests };
    let wires = relay(&mut rig, digests, lanes.into(), true);
    let sockets = wires.into_iter().flat_map(|wire| [wire.host, wire.controller]).collect();
    aftermath(rig, legitimate, sockets);
}

/// What a session of our host with our target says on its admin and on its I/O connection, up to where the host would shut the
/// controller down.
#[must_use]
pub fn record(digests: Digests) -> Vec<Recorded> {
    let mut rig = Rig::new(5);
    let wires = relay(&mut rig, digests, Vec::new(), false);
    wires.into_iter().map(|wire| wire.recorded).collect()
}

/// Runs a session over a relay on the hostile machine until it has ended.
fn relay(rig: &mut Rig, digests: Digests, lanes: Vec<[Lane; 2]>, shuts_down: bool) -> Vec<Wire> {
    let Ok(listener) = rig.hostile().listen(rig.hostile_address) else { panic!("no listener") };
    let mut options = Rig::options(rig.hostile_address, HOSTILE_SUBSYSTEM, HOSTILE_HOST, digests);
    options.host.command_timeout = Duration::from_secs(2);
    let ended = Rc::<RefCell<Option<Work>>>::default();
    let (handle, tell) = (rig.legitimate(), Rc::clone(&ended));
    let on = handle.clone();
    let _task = handle.spawn(async move { *tell.borrow_mut() = Some(work(&on, &options, shuts_down).await) });
    let mut waiting = lanes.into_iter();
    let mut wires: Vec<Wire> = Vec::new();
    const STEPS: u32 = 200_000;
    for _ in 0..STEPS {
        rig.pass(Duration::from_micros(200));
        while let Ok(Some(host)) = listener.accept() {
            let Ok(controller) = rig.hostile().connect(rig.address) else { panic!("no socket") };
            let lanes = waiting.next().unwrap_or_default();
            rig.pass(Duration::from_millis(2));
            wires.push(Wire { host, controller, lanes, recorded: Recorded::default() });
        }
        wires.iter_mut().for_each(Wire::carry);
        if let Some(work) = ended.borrow_mut().take() {
            // What succeeds is right where digests look at every byte.
            assert!(!digests.data || work.wrong.is_none(), "other data than was written: {work:?}");
            return wires;
        }
    }
    panic!("the session neither succeeds nor ends");
}

impl Wire {
    fn carry(&mut self) {
        let ends = [(&self.host, &self.controller), (&self.controller, &self.host)];
        for (number, (from, to)) in ends.into_iter().enumerate() {
            let mut bytes = Vec::new();
            let ended = receive(from, &mut bytes);
            let recorded = if number == 0 { &mut self.recorded.host } else { &mut self.recorded.controller };
            recorded.extend_from_slice(&bytes);
            send(to, &self.lanes[number].carry(&bytes));
            if ended {
                to.shutdown();
            }
        }
    }
}

/// How a host fared over a bad wire, or with a bad controller.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Commands that succeeded.
    pub(super) succeeded: u32,
    /// A block whose data was not what was written.
    wrong: Option<u64>,
}

/// Connects, writes and reads; errors are what is expected.
pub(super) async fn work(handle: &Handle, options: &TcpHostOptions, shuts_down: bool) -> Work {
    const TIMEOUT: Option<Duration> = Some(Duration::from_secs(2));
    let mut work = Work::default();
    let Ok((controller, queues)) = connect(handle, options).await else { return work };
    let Some(queue) = queues.into_iter().next() else { return work };
    let queue = queue.into_async(handle);
    for (number, blocks) in [(1u8, 1u32), (2, 16), (3, 24), (4, 3), (5, 17)] {
        let mut buffer = Buffer::zeroed(blocks as usize * 512);
        buffer.fill(number);
        let fields = ReadWrite::new(u64::from(number) * 32, blocks);
        let write = IoCommand::Write(fields).with(1, Data::ToController(Payload::Buffer(buffer)));
        let read = IoCommand::Read(fields).with(1, Data::ToHost(Buffer::zeroed(blocks as usize * 512)));
        let Ok(written) = queue.run(write, TIMEOUT).await else { return work };
        let Ok(read) = queue.run(read, TIMEOUT).await else { return work };
        let ends = [written.result, read.result].map(|end| end.is_ok_and(|cqe| cqe.status().is_success()));
        work.succeeded += u32::from(ends[0]) + u32::from(ends[1]);
        if ends == [true; 2] && read.payload.to_vec().iter().any(|byte| *byte != number) {
            work.wrong = Some(fields.first_block);
        }
    }
    if shuts_down {
        // Told or not, it is over.
        controller.shut_down().await.ok();
    }
    work
}
