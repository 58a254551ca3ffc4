//! A target and a host on one reactor with the machine's driver, over loopback.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_device_mem::RamDevice;
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvme_wire::{Cqe, Status};
use basalt_nvmf_host::{Command, HostOptions, Outcome};
use basalt_nvmf_target::{
    AllowedHosts, ListenerAddress, NamespaceIdentity, Nsid, SubsystemConfig, Target, TargetOptions,
};
use basalt_nvmf_tcp::host::{Controller, IoQueue, Refused, TcpHostOptions, connect};
use basalt_nvmf_tcp::{TcpTarget, TcpTargetOptions};
use basalt_nvmf_transport::{ControllerIdRange, HostId, Nqn};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{Handle, Reactor, ReactorOptions};
use uuid::Uuid;

pub(crate) const SUBSYSTEM: &str = "nqn.2026-01.io.basalt:volume";
pub(crate) const HOST: &str = "nqn.2026-01.io.basalt:host";
pub(crate) const BYTES: u64 = 4 << 20;

pub(crate) fn nqn(text: &str) -> Nqn {
    Nqn::new(text).unwrap()
}

pub(crate) struct World {
    pub(crate) reactor: Reactor,
    pub(crate) target: Arc<Target>,
    pub(crate) served: TcpTarget,
    pub(crate) options: TcpHostOptions,
}

pub(crate) fn ram(bytes: u64) -> Arc<dyn BlockDevice> {
    Arc::new(RamDevice::new("ram", Uuid::nil(), BlockSize::B512, bytes).unwrap())
}

pub(crate) fn identity(number: u8) -> NamespaceIdentity {
    NamespaceIdentity { uuid: [number; 16], nguid: [number; 16] }
}

impl World {
    pub(crate) fn new(digests: Digests) -> Self {
        let reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &ReactorOptions::default());
        let target = Target::new(TargetOptions::default());
        let config = SubsystemConfig {
            nqn: nqn(SUBSYSTEM),
            serial: "BSLT0001".to_owned(),
            model: "Basalt volume".to_owned(),
            controller_ids: ControllerIdRange::ALL,
        };
        target.add_subsystem(config, AllowedHosts::Any).unwrap();
        target.add_namespace(&nqn(SUBSYSTEM), Nsid(1), identity(1), ram(BYTES), AnaState::Optimized).unwrap();
        let served = TcpTarget::start(&reactor.handle(), Arc::clone(&target), TcpTargetOptions::default());
        let address = served.listen(ListenerAddress::new("127.0.0.1:0".parse().unwrap())).unwrap();
        let host = HostOptions::new(nqn(SUBSYSTEM), nqn(HOST), HostId([5; 16]));
        let options = TcpHostOptions { address, host, digests };
        Self { reactor, target, served, options }
    }

    /// Turns until `future` is done.
    pub(crate) fn run<T: 'static>(&mut self, future: impl Future<Output = T> + 'static) -> T {
        let mut task = self.reactor.handle().spawn(future);
        let limit = Instant::now() + Duration::from_secs(20);
        loop {
            self.reactor.turn();
            if let Some(output) = task.take_output() {
                return output;
            }
            assert!(Instant::now() < limit, "the exchange does not end");
        }
    }

    pub(crate) fn connect(&mut self) -> (Controller, Vec<IoQueue>) {
        let (handle, options) = (self.reactor.handle(), self.options.clone());
        self.run(async move { connect(&handle, &options).await }).unwrap()
    }
}

/// Runs commands on one queue, as many at a time as it takes.
pub(crate) async fn exchange(
    handle: Handle,
    mut queue: IoQueue,
    commands: Vec<Command>,
) -> (IoQueue, Vec<Outcome>) {
    let mut waiting: VecDeque<(u64, Command)> = (0..).zip(commands).collect();
    let mut outcomes = Vec::new();
    while !waiting.is_empty() || queue.outstanding() > 0 {
        while let Some((tag, command)) = waiting.pop_front() {
            match queue.submit(tag, command) {
                Ok(()) => {}
                Err(Refused::Full(command)) => {
                    waiting.push_front((tag, *command));
                    break;
                }
                Err(other) => panic!("{other:?}"),
            }
        }
        queue.poll(&mut outcomes);
        handle.yield_now().await;
    }
    outcomes.sort_by_key(|outcome| outcome.tag);
    (queue, outcomes)
}

pub(crate) fn status(outcome: &Outcome) -> Status {
    outcome.result.as_ref().map(Cqe::status).unwrap()
}
