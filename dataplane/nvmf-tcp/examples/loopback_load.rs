//! Our target on core 0, our load on core 1, over loopback: IOPS, latencies and the target's busy time per I/O.
//!
//! `cargo run --release -p basalt-nvmf-tcp --example loopback_load -- [SECONDS] [ADDRESS NQN]`: with an address the load runs
//! against that target instead.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for measurements")]

use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::BlockSize;
use basalt_device_mem::RamDevice;
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvmf_host::HostOptions;
use basalt_nvmf_target::{
    AllowedHosts, ListenerAddress, NamespaceIdentity, Nsid, SubsystemConfig, Target, TargetOptions,
};
use basalt_nvmf_tcp::host::blocking::load;
use basalt_nvmf_tcp::host::{Load, TcpHostOptions, Work};
use basalt_nvmf_tcp::{TcpTarget, TcpTargetOptions};
use basalt_nvmf_transport::{ControllerIdRange, HostId, Nqn};
use basalt_reactor::{Polling, ReactorOptions, ReactorThread, start};
use uuid::Uuid;

const SUBSYSTEM: &str = "nqn.2026-01.storage.basalt:loopback-load";
const BYTES: u64 = 256 << 20;

fn serve() -> (ReactorThread, std::net::SocketAddr) {
    let options = ReactorOptions { polling: Polling::Busy, ..ReactorOptions::default() };
    let reactor = start("target", Some(0), options, |_| {}).unwrap();
    let nqn = Nqn::new(SUBSYSTEM).unwrap();
    let target = Target::new(TargetOptions::default());
    let config = SubsystemConfig {
        nqn: nqn.clone(),
        serial: "BSLT0001".to_owned(),
        model: "Basalt volume".to_owned(),
        controller_ids: ControllerIdRange::ALL,
    };
    target.add_subsystem(config, AllowedHosts::Any).unwrap();
    let device = Arc::new(RamDevice::new("ram", Uuid::nil(), BlockSize::B4096, BYTES).unwrap());
    let identity = NamespaceIdentity { uuid: [1; 16], nguid: [1; 16] };
    target.add_namespace(&nqn, Nsid(1), identity, device, AnaState::Optimized).unwrap();
    let control = TcpTarget::start_on(reactor.remote(), target, TcpTargetOptions::default()).unwrap();
    let address = control.listen(ListenerAddress::new("127.0.0.1:0".parse().unwrap())).unwrap();
    (reactor, address)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds: f64 = arguments.next().map_or(3.0, |text| text.parse().unwrap());
    let other = arguments.next().map(|address| (address, arguments.next().unwrap()));
    let (reactor, address, nqn) = match other {
        Some((address, nqn)) => (None, address.parse().unwrap(), nqn),
        None => {
            let (reactor, address) = serve();
            (Some(reactor), address, SUBSYSTEM.to_owned())
        }
    };
    let host = HostOptions::new(
        Nqn::new(&nqn).unwrap(),
        Nqn::new("nqn.2026-01.io.basalt:host").unwrap(),
        HostId([5; 16]),
    );
    let plain = TcpHostOptions { address, host, digests: Digests::default() };
    let digested = TcpHostOptions { digests: Digests { header: true, data: true }, ..plain.clone() };
    println!(
        "{:34} {:>9} {:>8} {:>7} {:>7} {:>7} {:>9}",
        "", "IOPS", "MiB/s", "p50us", "p99us", "p999us", "busy ns"
    );
    for (bytes, depth, queues, digests) in [
        (4096, 128, 1, false),
        (4096, 32, 4, false),
        (4096, 1, 1, false),
        (131_072, 16, 1, false),
        (4096, 128, 1, true),
    ] {
        for read_percent in [100, 0] {
            let work = Work::Random { read_percent, duration: Duration::from_secs_f64(seconds) };
            let run = Load { bytes, depth, queues, ..Load::new(1, work) };
            let options = if digests { &digested } else { &plain };
            let before = reactor.as_ref().map(|reactor| reactor.remote().stats());
            let report = load(options, &run, Some(1), Polling::Busy, |_| {}).unwrap();
            let after = reactor.as_ref().map(|reactor| reactor.remote().stats());
            let busy = match (before, after) {
                (Some(before), Some(after)) => {
                    (after.busy_ns - before.busy_ns) as f64 / report.commands as f64
                }
                _ => 0.0,
            };
            let per_second = report.commands as f64 / report.elapsed.as_secs_f64();
            let name = format!(
                "{} KiB {} QD{depth} x{queues}{}",
                bytes / 1024,
                if read_percent == 100 { "read" } else { "write" },
                if digests { " digests" } else { "" }
            );
            let us = |per_mille| report.latency.quantile(per_mille).as_secs_f64() * 1e6;
            println!(
                "{name:34} {per_second:>9.0} {:>8.0} {:>7.1} {:>7.1} {:>7.1} {busy:>9.0}",
                per_second * f64::from(bytes) / f64::from(1 << 20),
                us(500),
                us(990),
                us(999)
            );
            assert_eq!(report.failed, 0);
        }
    }
}
