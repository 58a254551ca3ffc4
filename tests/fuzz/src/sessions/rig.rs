//! The world: three machines, a target, time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_device_mem::{DelayDevice, Delays, RamDevice};
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvmf_host::HostOptions;
use basalt_nvmf_target::{ListenerAddress, NamespaceIdentity, Nsid, SubsystemConfig, Target, TargetOptions};
use basalt_nvmf_tcp::host::TcpHostOptions;
use basalt_nvmf_tcp::{TcpTarget, TcpTargetOptions};
use basalt_nvmf_transport::{ControllerIdRange, HostId, Nqn};
use basalt_reactor::sim::{World, WorldOptions};
use basalt_reactor::{Handle, Progress, Reactor, ReactorOptions};
use uuid::Uuid;

pub(super) const LEGITIMATE_SUBSYSTEM: &str = "nqn.2026-01.io.basalt:volume";
pub(super) const LEGITIMATE_HOST: &str = "nqn.2026-01.io.basalt:legitimate";
pub(super) const HOSTILE_SUBSYSTEM: &str = "nqn.2026-01.io.basalt:other";
pub(super) const HOSTILE_HOST: &str = "nqn.2026-01.io.basalt:hostile";
pub(super) const BYTES: u64 = 1 << 20;
/// Blocks of 512 bytes of a namespace.
pub(super) const BLOCKS: u64 = BYTES / 512;

/// Turns without any time passing after which the world hangs.
const TURNS_MAX: u32 = 200_000;
/// Memory that the target's receiving keeps.
const STAGING_BYTES: usize = 256 << 10;

/// A world with a target.
pub(super) struct Rig {
    world: World,
    /// Of the target, of the legitimate host, of the hostile machine.
    reactors: [Reactor; 3],
    pub(super) target: Arc<Target>,
    served: TcpTarget,
    /// Where the target listens.
    pub(super) address: SocketAddr,
    /// An address of the hostile machine.
    pub(super) hostile_address: SocketAddr,
}

fn nqn(text: &str) -> Nqn {
    match Nqn::new(text) {
        Ok(nqn) => nqn,
        Err(error) => panic!("{text}: {error}"),
    }
}

fn device(delay_us: u64) -> Arc<dyn BlockDevice> {
    let ram = match RamDevice::new("ram", Uuid::nil(), BlockSize::B512, BYTES) {
        Ok(ram) => ram,
        Err(error) => panic!("{error}"),
    };
    let delay = Duration::from_micros(delay_us);
    Arc::new(DelayDevice::new(Arc::new(ram), Delays { read: delay, write: delay, flush: delay }))
}

fn serve(target: &Target, subsystem: &str, host: &str, number: u8) {
    let config = SubsystemConfig {
        nqn: nqn(subsystem),
        serial: format!("BSLT000{number}"),
        model: "Basalt volume".to_owned(),
        controller_ids: ControllerIdRange::ALL,
    };
    let added = target.add_subsystem(config, [nqn(host)].into_iter().collect());
    assert!(added.is_ok(), "{added:?}");
    let identity = NamespaceIdentity { uuid: [number; 16], nguid: [number; 16] };
    let device = device(u64::from(number) * 400);
    let added = target.add_namespace(&nqn(subsystem), Nsid(1), identity, device, AnaState::Optimized);
    assert!(added.is_ok(), "{added:?}");
}

impl Rig {
    pub(super) fn new(seed: u64) -> Self {
        let world = World::new(seed, WorldOptions::default());
        let nodes = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|address| match address.parse() {
            Ok(address) => world.add_node(address),
            Err(error) => panic!("{error}"),
        });
        let options = ReactorOptions { buffer_bytes: 64 << 20, ..ReactorOptions::default() };
        let reactors = nodes.map(|node| Reactor::new(Box::new(world.driver(node)), &options));
        let target = Target::new(TargetOptions::default());
        serve(&target, LEGITIMATE_SUBSYSTEM, LEGITIMATE_HOST, 1);
        serve(&target, HOSTILE_SUBSYSTEM, HOSTILE_HOST, 2);
        let served =
            TcpTarget::start(&reactors[0].handle(), Arc::clone(&target), TcpTargetOptions::default());
        let bind = SocketAddr::new(world.address(nodes[0]), 4420);
        let address = match served.listen(ListenerAddress::new(bind)) {
            Ok(address) => address,
            Err(error) => panic!("{error}"),
        };
        let hostile_address = SocketAddr::new(world.address(nodes[2]), 4420);
        Self { world, reactors, target, served, address, hostile_address }
    }

    pub(super) fn legitimate(&self) -> Handle {
        self.reactors[1].handle()
    }

    pub(super) fn hostile(&self) -> Handle {
        self.reactors[2].handle()
    }

    /// What the world has been through, as one number.
    pub(super) fn digest(&self) -> u64 {
        self.world.digest()
    }

    /// How the host with this name connects to this subsystem at `address`.
    pub(super) fn options(
        address: SocketAddr,
        subsystem: &str,
        host: &str,
        digests: Digests,
    ) -> TcpHostOptions {
        let mut host = HostOptions::new(nqn(subsystem), nqn(host), HostId([host.len().to_le_bytes()[0]; 16]));
        host.io_queue_entries = 17;
        host.keep_alive = Duration::from_secs(5);
        TcpHostOptions { address, host, digests }
    }

    /// Lets so much time pass.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.world.now() + time;
        let mut turns = 0;
        loop {
            let mut busy = false;
            let mut next = self.world.next_event();
            for reactor in &mut self.reactors {
                let turn = reactor.turn();
                busy |= turn.progress == Progress::Busy;
                next = [next, turn.next_timer].into_iter().flatten().min();
            }
            next = [next, self.world.next_event()].into_iter().flatten().min();
            turns += 1;
            assert!(turns < TURNS_MAX, "the world is busy and no time passes");
            if busy {
                continue;
            }
            match next {
                Some(next) if next < until => {
                    if next > self.world.now() {
                        turns = 0;
                    }
                    self.world.advance_to(next);
                }
                _ => {
                    self.world.advance_to(until);
                    return;
                }
            }
        }
    }

    /// Connections that the target has.
    pub(super) fn connections(&self) -> usize {
        self.served.stats().connections
    }

    /// Checks that the target has nothing left of anybody.
    pub(super) fn assert_freed(&self) {
        let stats = self.served.stats();
        assert_eq!((stats.connections, stats.running), (0, 0), "connections and requests are left");
        for subsystem in self.target.subsystems() {
            assert_eq!(subsystem.controllers(), 0, "controllers of {:?} are left", subsystem.config().nqn);
            for namespace in subsystem.namespaces().iter() {
                // One of the subsystem's table, one of the copy at hand's.
                let held = Arc::strong_count(namespace);
                assert!(held <= 2, "namespace {} is held {held} times", namespace.nsid());
            }
        }
        let pool = self.reactors[0].handle().buffers().stats();
        let in_use = pool.held_bytes - pool.idle_bytes;
        assert!(in_use <= STAGING_BYTES, "{in_use} bytes of buffers are left in use");
    }
}
