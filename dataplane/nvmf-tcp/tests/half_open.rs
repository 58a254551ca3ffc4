//! A thousand connections that never become one: they are timed out and freed, and a legitimate host does not notice them.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::BlockSize;
use basalt_device_mem::RamDevice;
use basalt_dma::{Buffer, Payload, Segment};
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::opcode::Io;
use basalt_nvme_wire::pdu::{Digests, Frame, InitializeRequest, Kind};
use basalt_nvme_wire::{ReadWrite, Sqe};
use basalt_nvmf_host::{Data, HostOptions, IoCommand};
use basalt_nvmf_target::{
    AllowedHosts, ListenerAddress, NamespaceIdentity, Nsid, SubsystemConfig, Target, TargetOptions,
};
use basalt_nvmf_tcp::host::{TcpHostOptions, connect};
use basalt_nvmf_tcp::{TcpTarget, TcpTargetOptions};
use basalt_nvmf_transport::{ControllerIdRange, HostId, Nqn};
use basalt_reactor::sim::{World, WorldOptions};
use basalt_reactor::{Handle, Progress, Reactor, ReactorOptions, Sent, Socket};
use uuid::Uuid;
use zerocopy::IntoBytes;

const SUBSYSTEM: &str = "nqn.2026-01.io.basalt:volume";
const HALF_OPEN: usize = 1000;
/// Connections that are begun at a time: fewer than a listener has places for.
const BATCH: usize = 100;

struct Machines {
    world: World,
    reactors: [Reactor; 3],
}

impl Machines {
    fn new() -> (Self, SocketAddr) {
        let world = World::new(7, WorldOptions::default());
        let nodes = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|a| world.add_node(a.parse().unwrap()));
        let options = ReactorOptions::default();
        let reactors = nodes.map(|node| Reactor::new(Box::new(world.driver(node)), &options));
        let address = SocketAddr::new(world.address(nodes[0]), 4420);
        (Self { world, reactors }, address)
    }

    fn pass(&mut self, time: Duration) {
        let until = self.world.now() + time;
        loop {
            let turns: Vec<_> = self.reactors.iter_mut().map(Reactor::turn).collect();
            if turns.iter().any(|turn| turn.progress == Progress::Busy) {
                continue;
            }
            let timers = turns.iter().filter_map(|turn| turn.next_timer);
            let next = timers.chain(self.world.next_event()).min();
            self.world.advance_to(next.unwrap_or(until).min(until));
            if self.world.now() >= until {
                return;
            }
        }
    }
}

fn target() -> Arc<Target> {
    let nqn = Nqn::new(SUBSYSTEM).unwrap();
    let target = Target::new(TargetOptions::default());
    let config = SubsystemConfig {
        nqn: nqn.clone(),
        serial: "BSLT0001".to_owned(),
        model: "Basalt volume".to_owned(),
        controller_ids: ControllerIdRange::ALL,
    };
    target.add_subsystem(config, AllowedHosts::Any).unwrap();
    let device = RamDevice::new("ram", Uuid::nil(), BlockSize::B512, 1 << 20).unwrap();
    let identity = NamespaceIdentity { uuid: [1; 16], nguid: [1; 16] };
    target.add_namespace(&nqn, Nsid(1), identity, Arc::new(device), AnaState::Optimized).unwrap();
    target
}

/// Writes and reads until it is told to stop; every command succeeds and its data is right. Counts the rounds.
async fn legitimate(handle: Handle, address: SocketAddr, stop: Rc<Cell<bool>>, rounds: Rc<Cell<u64>>) {
    let host = Nqn::new("nqn.2026-01.io.basalt:host").unwrap();
    let host = HostOptions::new(Nqn::new(SUBSYSTEM).unwrap(), host, HostId([5; 16]));
    let options = TcpHostOptions { address, host, digests: Digests::default() };
    let (controller, mut queues) = connect(&handle, &options).await.unwrap();
    let queue = queues.remove(0).into_async(&handle);
    while !stop.get() {
        let mut bytes = Buffer::zeroed(32 * 512);
        bytes.fill(rounds.get().to_le_bytes()[0]);
        let expected = bytes.to_vec();
        let fields = ReadWrite::new(64, 32);
        let write = IoCommand::Write(fields).with(1, Data::ToController(Payload::Buffer(bytes)));
        let read = IoCommand::Read(fields).with(1, Data::ToHost(Buffer::zeroed(32 * 512)));
        let written = queue.run(write, Some(Duration::from_secs(1))).await.unwrap();
        assert!(written.result.unwrap().status().is_success());
        let read = queue.run(read, Some(Duration::from_secs(1))).await.unwrap();
        assert!(read.payload.to_vec() == expected, "other data than was written");
        rounds.set(rounds.get() + 1);
        handle.sleep(Duration::from_millis(20)).await;
    }
    controller.shut_down().await.unwrap();
}

/// What the half-open connections say: nothing, half an initialization, all of it, half a command.
fn words(kind: usize) -> Vec<u8> {
    let initialize = InitializeRequest { data_alignment: 4, digests: Digests::default(), r2t_max: 1 }.emit();
    let frame = Frame::new(Kind::Command, 0, Digests::default(), 4096, 4);
    let command = [&frame.emit()[..], Sqe::new(Io::Write.code(), 1).as_bytes(), &[0; 700]].concat();
    match kind % 5 {
        0 => Vec::new(),
        1 => initialize[..3].to_vec(),
        2 => initialize[..64].to_vec(),
        3 => initialize.to_vec(),
        _ => [&initialize[..], &command].concat(),
    }
}

fn say(socket: &Socket, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match socket.send(&[Segment::new(bytes)]).unwrap() {
            Sent::Bytes(count) => bytes = &bytes[count..],
            Sent::Nothing => panic!("there is room"),
        }
    }
}

#[test]
fn half_open_connections_are_freed_and_disturb_nobody() {
    let (mut machines, address) = Machines::new();
    let target = target();
    let served =
        TcpTarget::start(&machines.reactors[0].handle(), Arc::clone(&target), TcpTargetOptions::default());
    served.listen(ListenerAddress::new(address)).unwrap();
    let (stop, rounds) = (Rc::<Cell<bool>>::default(), Rc::<Cell<u64>>::default());
    let handle = machines.reactors[1].handle();
    let host = handle.spawn(legitimate(handle.clone(), address, Rc::clone(&stop), Rc::clone(&rounds)));
    machines.pass(Duration::from_millis(200));
    let alone = rounds.get();
    assert!(alone > 0);

    let silent = machines.reactors[2].handle();
    let mut sockets = Vec::new();
    while sockets.len() < HALF_OPEN {
        let begun: Vec<Socket> = (0..BATCH).map(|_| silent.connect(address).unwrap()).collect();
        machines.pass(Duration::from_millis(2));
        sockets.extend(begun);
    }
    for (kind, socket) in sockets.iter().enumerate() {
        say(socket, &words(kind));
    }
    machines.pass(Duration::from_millis(300));
    assert_eq!((served.stats().connections, served.stats().refused), (HALF_OPEN + 2, 0));
    let among = rounds.get();
    machines.pass(Duration::from_secs(5));
    assert_eq!(served.stats().connections, HALF_OPEN + 2, "they have ten seconds to connect");
    machines.pass(Duration::from_secs(6));
    assert_eq!(served.stats().connections, 2, "timed out");
    let with_them = rounds.get() - among;
    assert!(with_them > 400, "{with_them} rounds in 11 s: the legitimate host is slowed down");

    // The places are free again, for the same address too.
    drop(sockets);
    let again: Vec<Socket> = (0..BATCH).map(|_| silent.connect(address).unwrap()).collect();
    machines.pass(Duration::from_millis(50));
    assert_eq!(served.stats().connections, BATCH + 2);
    drop(again);
    stop.set(true);
    machines.pass(Duration::from_secs(1));
    assert!(host.is_done());
    assert_eq!((served.stats().connections, served.stats().refused), (0, 0));
    let pool = machines.reactors[0].handle().buffers().stats();
    assert!(pool.held_bytes - pool.idle_bytes <= 256 << 10, "buffers are left in use: {pool:?}");
    assert_eq!(target.subsystem(SUBSYSTEM).unwrap().controllers(), 0);
}
