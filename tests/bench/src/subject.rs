//! Targets, and the work that a host gives them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_bdev::BlockSize;
use basalt_device_mem::RamDevice;
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvmf_host::HostOptions;
use basalt_nvmf_target::{
    AllowedHosts, ListenerAddress, NamespaceIdentity, Nsid, SubsystemConfig, Target, TargetOptions,
};
use basalt_nvmf_tcp::host::blocking::load;
use basalt_nvmf_tcp::host::{Load, TcpHostOptions, Work as LoadWork};
use basalt_nvmf_tcp::{TcpTarget, TcpTargetControl, TcpTargetOptions};
use basalt_nvmf_transport::{ControllerIdRange, HostId, Nqn};
use basalt_reactor::{Polling, ReactorOptions, ReactorThread, Remote, start};
use serde::Serialize;
use uuid::Uuid;

pub(crate) const TARGET_CORE: usize = 0;
pub(crate) const LOAD_CORE: usize = 1;
pub(crate) const SUBSYSTEM: &str = "nqn.2026-01.storage.basalt:bench";
pub(crate) const HOST: &str = "nqn.2026-01.storage.basalt:bench-host";
/// The random working set.
pub(crate) const REGION: u64 = 256 << 20;

/// One kind of load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Bytes of a command.
    pub(crate) bytes: u32,
    /// Commands outstanding per queue.
    pub(crate) depth: u16,
    /// Queues, a connection each.
    pub(crate) queues: u16,
    read_percent: u8,
    digests: bool,
}

impl Work {
    const fn of(bytes: u32, depth: u16, queues: u16, read_percent: u8) -> Self {
        Self { bytes, depth, queues, read_percent, digests: false }
    }

    /// The same with digests.
    pub(crate) const fn digested(self) -> Self {
        Self { digests: true, ..self }
    }

    /// Every row.
    pub(crate) const ALL: &[Self] = &[
        Self::of(4096, 128, 1, 100),
        Self::of(4096, 128, 1, 0),
        Self::of(4096, 32, 4, 100),
        Self::of(4096, 32, 4, 0),
        Self::of(4096, 1, 1, 100),
        Self::of(4096, 1, 1, 0),
        Self::of(131_072, 16, 1, 100),
        Self::of(131_072, 16, 1, 0),
        Self::of(4096, 128, 1, 100).digested(),
        Self::of(4096, 128, 1, 0).digested(),
    ];

    pub(crate) fn has_digests(&self) -> bool {
        self.digests
    }

    pub(crate) fn reads(&self) -> bool {
        self.read_percent == 100
    }

    /// Whether nothing but the depth of one queue of small commands is measured.
    pub(crate) fn is_deep(&self) -> bool {
        self.bytes == 4096 && self.depth == 128 && self.queues == 1 && !self.digests
    }

    /// What the issue asks of the commands per second to those of SPDK's target.
    pub(crate) fn bar_to_other(&self) -> Option<f64> {
        let small = self.bytes == 4096;
        match (small, self.depth, self.queues, self.reads()) {
            _ if self.digests => None,
            (true, 128, 1, true) => Some(1.4),
            (true, 32, 4, true) => Some(1.8),
            (true, 128, 1, false) | (true, 32, 4, false) => Some(1.25),
            (false, 16, 1, true) => Some(1.15),
            (false, 16, 1, false) => Some(1.0),
            _ => None,
        }
    }

    /// What it asks of the mean latency.
    pub(crate) fn latency_bar_to_other(&self) -> Option<f64> {
        (self.depth == 1 && !self.digests).then_some(if self.reads() { 0.8 } else { 1.0 })
    }

    /// For people.
    pub(crate) fn name(&self) -> String {
        format!(
            "{} KiB {} QD{} x{}{}",
            self.bytes / 1024,
            if self.reads() { "read" } else { "write" },
            self.depth,
            self.queues,
            if self.digests { " digests" } else { "" }
        )
    }
}

/// What one run gave.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Figures {
    /// Commands, or exchanges.
    pub(crate) per_second: f64,
    pub(crate) mib_per_second: f64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    /// Busy time of the target's thread per command; 0 where it is not to be had.
    pub(crate) busy_ns: f64,
}

/// A target that is measured.
#[derive(Debug)]
pub(crate) struct Subject {
    address: SocketAddr,
    subsystem: Nqn,
    reactor: Option<Remote>,
}

impl Subject {
    /// A target somewhere; `reactor` tells how busy it is.
    pub(crate) fn new(address: SocketAddr, subsystem: Nqn, reactor: Option<Remote>) -> Self {
        Self { address, subsystem, reactor }
    }

    fn options(&self, digests: bool) -> Result<TcpHostOptions> {
        let host = HostOptions::new(self.subsystem.clone(), Nqn::new(HOST)?, HostId([5; 16]));
        let digests = Digests { header: digests, data: digests };
        Ok(TcpHostOptions { address: self.address, host, digests })
    }

    /// Writes all of the working set: memory that nobody has written to is one page of zeroes, which no read has to fetch.
    pub(crate) fn fill(&self) -> Result<()> {
        let fill = Load { bytes: 131_072, depth: 16, region: Some(REGION), ..Load::new(1, LoadWork::Fill) };
        let report = load(&self.options(false)?, &fill, Some(LOAD_CORE), Polling::Busy, |_| {})?;
        ensure!(report.failed == 0, "{} of the first writes failed", report.failed);
        Ok(())
    }

    /// Loads it for a time.
    pub(crate) fn run(&self, work: &Work, duration: Duration) -> Result<Figures> {
        let options = self.options(work.digests)?;
        let random = LoadWork::Random { read_percent: work.read_percent, duration };
        let (bytes, depth, queues) = (work.bytes, work.depth, work.queues);
        let run = Load { bytes, depth, queues, region: Some(REGION), ..Load::new(1, random) };
        let busy = || self.reactor.as_ref().map_or(0, |reactor| reactor.stats().busy_ns);
        let before = busy();
        let report = load(&options, &run, Some(LOAD_CORE), Polling::Busy, |_| {})
            .with_context(|| format!("{} against {}", work.name(), self.address))?;
        let busy = busy() - before;
        ensure!(report.failed == 0, "{} of the commands failed", report.failed);
        let per_second = report.commands as f64 / report.elapsed.as_secs_f64();
        let us = |per_mille| report.latency.quantile(per_mille).as_secs_f64() * 1e6;
        Ok(Figures {
            per_second,
            mib_per_second: per_second * f64::from(bytes) / f64::from(1 << 20),
            mean_us: report.latency.mean().as_secs_f64() * 1e6,
            p50_us: us(500),
            p99_us: us(990),
            p999_us: us(999),
            busy_ns: busy as f64 / report.commands.max(1) as f64,
        })
    }
}

/// Our target on its core, with memory behind it.
#[derive(Debug)]
pub(crate) struct Served {
    reactor: ReactorThread,
    control: TcpTargetControl,
    address: SocketAddr,
    subsystem: Nqn,
}

impl Served {
    /// Starts it.
    pub(crate) fn start() -> Result<Self> {
        Self::with(TcpTargetOptions::default(), Polling::Busy)
    }

    /// Starts it so that it sleeps when there is nothing to do.
    pub(crate) fn adaptive() -> Result<Self> {
        Self::with(TcpTargetOptions::default(), Polling::default())
    }

    /// Starts it so that it gives connections as long as a measurement may take to become one.
    pub(crate) fn patient() -> Result<Self> {
        let tcp =
            TcpTargetOptions { connect_timeout: Duration::from_secs(3600), ..TcpTargetOptions::default() };
        Self::with(tcp, Polling::Busy)
    }

    fn with(tcp: TcpTargetOptions, polling: Polling) -> Result<Self> {
        let options = ReactorOptions { polling, ..ReactorOptions::default() };
        let reactor = start("target", Some(TARGET_CORE), options, |_| {})?;
        let nqn = Nqn::new(SUBSYSTEM)?;
        let target = Target::new(TargetOptions::default());
        let config = SubsystemConfig {
            nqn: nqn.clone(),
            serial: "BSLT0001".to_owned(),
            model: "Basalt volume".to_owned(),
            controller_ids: ControllerIdRange::ALL,
        };
        target.add_subsystem(config, AllowedHosts::Any)?;
        let device = Arc::new(RamDevice::new("ram", Uuid::nil(), BlockSize::B4096, REGION)?);
        let identity = NamespaceIdentity { uuid: [1; 16], nguid: [1; 16] };
        target.add_namespace(&nqn, Nsid(1), identity, device, AnaState::Optimized)?;
        let control = TcpTarget::start_on(reactor.remote(), target, tcp)?;
        let address = control.listen(ListenerAddress::new(SocketAddr::from(([127, 0, 0, 1], 0))))?;
        let served = Self { reactor, control, address, subsystem: nqn };
        served.subject().fill()?;
        Ok(served)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections that it has.
    pub(crate) fn connections(&self) -> Result<usize> {
        Ok(self.control.stats()?.connections)
    }

    /// It, to be measured.
    pub(crate) fn subject(&self) -> Subject {
        Subject::new(self.address, self.subsystem.clone(), Some(self.reactor.remote().clone()))
    }
}
