//! A target's connection with a RAM namespace, driven by hand.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_clock::Instant;
use basalt_device_mem::RamDevice;
use basalt_dma::BufferPool;
use basalt_nvme_wire::log::AnaState;
use basalt_nvmf_host::{Bringup, Command, ControllerFacts, HostOptions, Next, Outcome};
use basalt_nvmf_target::{
    AllowedHosts, NamespaceIdentity, Nsid, Queue, SubsystemConfig, Target, TargetOptions,
};
use basalt_nvmf_transport::{ControllerIdRange, HostId, Nqn, QueueId};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{Handle, Reactor, ReactorOptions};
use uuid::Uuid;

use super::pipe::End;
use crate::TcpTargetOptions;
use crate::host::connection::Connection as HostConnection;
use crate::target::complaints::Complaints;
use crate::target::connection::{Connection, Context, Phase};
use crate::target::devices::Devices;
use crate::target::share::{Budget, PeerShare, Share};
use crate::target::staging::Staging;

pub(super) const SUBSYSTEM: &str = "nqn.2026-01.io.basalt:volume";
pub(super) const BLOCKS: u64 = 2048;

/// What a reactor has, and the time, which stands still unless a test moves it.
pub(super) struct Rig {
    _reactor: Reactor,
    pub(super) target: Arc<Target>,
    pub(super) options: TcpTargetOptions,
    pub(super) pool: BufferPool,
    pub(super) budget: Rc<Budget>,
    devices: Devices,
    staging: Staging,
    pub(super) complaints: Complaints,
    pub(super) now: Instant,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::over(|_| Arc::new(ram()))
    }

    /// With another device than plain memory.
    pub(super) fn over(device: impl FnOnce(&Handle) -> Arc<dyn BlockDevice>) -> Self {
        Self::with(&ReactorOptions::default(), device)
    }

    /// With a pool of so many bytes.
    pub(super) fn with_pool(buffer_bytes: usize) -> Self {
        let options = ReactorOptions { buffer_bytes, ..ReactorOptions::default() };
        Self::with(&options, |_| Arc::new(ram()))
    }

    fn with(reactor: &ReactorOptions, device: impl FnOnce(&Handle) -> Arc<dyn BlockDevice>) -> Self {
        let reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), reactor);
        let target = Target::new(TargetOptions::default());
        let nqn = Nqn::new(SUBSYSTEM).unwrap();
        let config = SubsystemConfig {
            nqn: nqn.clone(),
            serial: "BSLT0001".to_owned(),
            model: "Basalt volume".to_owned(),
            controller_ids: ControllerIdRange::ALL,
        };
        target.add_subsystem(config, AllowedHosts::Any).unwrap();
        let identity = NamespaceIdentity { uuid: [1; 16], nguid: [1; 16] };
        let handle = reactor.handle();
        target.add_namespace(&nqn, Nsid(1), identity, device(&handle), AnaState::Optimized).unwrap();
        let options = TcpTargetOptions::default();
        let pool_bytes = handle.buffers().stats().limit_bytes;
        Self {
            target,
            budget: Budget::new(pool_bytes, options.limits.transfer_bytes_max),
            options,
            pool: handle.buffers().clone(),
            devices: Devices::new(handle.clone()),
            staging: Staging::new(handle.buffers().clone()),
            complaints: Complaints::default(),
            now: Instant::ORIGIN + Duration::from_secs(1),
            _reactor: reactor,
        }
    }

    pub(super) fn accept(&self, wire: End, index: usize) -> Connection<End> {
        self.accept_from(&PeerShare::default(), wire, index)
    }

    /// One of several connections of an address.
    pub(super) fn accept_from(&self, peer: &PeerShare, wire: End, index: usize) -> Connection<End> {
        let queue = Queue::new(Arc::clone(&self.target), self.options.limits);
        let share = Share::new(&self.budget, peer);
        Connection::new(wire, index, queue, share, self.now, &self.options)
    }

    pub(super) fn context(&mut self) -> Context<'_> {
        Context {
            now: self.now,
            pool: &self.pool,
            devices: &mut self.devices,
            staging: &mut self.staging,
            options: &self.options,
            complaints: &mut self.complaints,
        }
    }

    /// One turn of these connections, as a reactor's poller does it.
    pub(super) fn turn(&mut self, connections: &mut [&mut Connection<End>]) {
        for connection in connections.iter_mut() {
            connection.retry(&mut self.context());
            if connection.takes_input() {
                connection.receive(&mut self.context());
            }
        }
        let mut completions = Vec::new();
        self.devices.poll(&mut completions);
        for completion in completions {
            let index = Connection::<End>::index_of(completion.tag);
            connections[index].completed(completion, &mut self.context());
        }
        for connection in connections.iter_mut() {
            connection.flush();
            if connection.phase == Phase::Over {
                connection.close(&mut self.devices);
            }
        }
    }

    /// Turns both ends until the host has an outcome.
    pub(super) fn run(
        &mut self,
        host: &mut HostConnection<End>,
        connections: &mut [&mut Connection<End>],
        command: Command,
    ) -> Outcome {
        host.submit(1, command).unwrap();
        let mut outcomes = Vec::new();
        let mut staging = basalt_dma::Buffer::zeroed(65_536);
        for _ in 0..200_000 {
            host.poll(&mut staging, &mut outcomes);
            self.turn(connections);
            if let Some(outcome) = outcomes.pop() {
                return outcome;
            }
        }
        panic!("no outcome");
    }

    /// Brings a controller up over an admin connection that was accepted as `connections[0]`.
    pub(super) fn bring_up(
        &mut self,
        host: &mut HostConnection<End>,
        connections: &mut [&mut Connection<End>],
    ) -> ControllerFacts {
        let mut bringup = Bringup::new(host_options());
        while let Next::Send(command) = bringup.ask().unwrap() {
            let outcome = self.run(host, connections, command);
            bringup.answer(&outcome.result.unwrap(), &outcome.payload.to_vec()).unwrap();
        }
        bringup.facts().clone()
    }

    /// Connects I/O queue 1, accepted as the last of `connections`.
    pub(super) fn connect_io(
        &mut self,
        host: &mut HostConnection<End>,
        connections: &mut [&mut Connection<End>],
        facts: &ControllerFacts,
    ) {
        let command = host_options().connect(QueueId(1), Some(facts.id), 33).unwrap();
        let outcome = self.run(host, connections, command);
        assert!(outcome.result.unwrap().status().is_success());
        host.set_in_capsule_max(facts.in_capsule_bytes);
    }
}

fn ram() -> RamDevice {
    RamDevice::new("ram", Uuid::nil(), BlockSize::B512, BLOCKS * 512).unwrap()
}

pub(super) fn host_options() -> HostOptions {
    let host = Nqn::new("nqn.2026-01.io.basalt:host").unwrap();
    HostOptions::new(Nqn::new(SUBSYSTEM).unwrap(), host, HostId([5; 16]))
}
