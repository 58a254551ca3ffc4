//! `basaltd serve`: one daemon alone, without a control plane: for a benchmark, a test, or another vendor's host.

mod growth;
mod meters;

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use basalt_bdev::BlockDevice;
use basalt_device_mem::{NullDevice, RamDevice};
use basalt_device_uring::{UringDevice, UringOptions};
use basalt_nvme_wire::log::AnaState;
use basalt_nvmf_target::{
    AllowedHosts, ListenerAddress, NamespaceIdentity, Nsid, SubsystemConfig, Target, TargetOptions,
};
use basalt_nvmf_tcp::{TcpTarget, TcpTargetControl, TcpTargetOptions};
use basalt_nvmf_transport::{ControllerIdRange, Nqn};
use basalt_reactor::{DiskOptions, Handle, Polling, ReactorOptions};
use basalt_telemetry::{Exporter, ExporterConfig, Readiness};
use uuid::Uuid;

use self::growth::Growth;
use self::meters::Meters;
use crate::claims;
use crate::cores::CoreList;
use crate::device::{DeviceKind, DeviceSpec, named_uuid};
use crate::metrics::{self, Sources};
use crate::reactors::{Reactors, Start};
use crate::reservation_files::{self, ReservationFiles};
use crate::signals::StopSignals;

/// How a reactor spends its idle time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PollingChoice {
    /// Look for a while, then sleep in the kernel
    Adaptive,
    /// Look all the time
    Busy,
}

/// Flags of `basaltd serve`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Cores that run reactors, as a list such as 0 or 0,2-3
    #[arg(long, env = "BASALT_CORES", value_name = "LIST", default_value = "0")]
    cores: CoreList,
    /// Where to listen for hosts; port 0 takes a free one and prints it
    #[arg(long, env = "BASALT_LISTEN", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// What hosts are told to connect to by discovery, when that is not where this listens; without it, hosts of a daemon that
    /// listens on all addresses are told the one that they have reached
    #[arg(long, env = "BASALT_ADVERTISE", value_name = "IP:PORT")]
    advertise: Option<SocketAddr>,
    /// NQN of the subsystem
    #[arg(long, env = "BASALT_NQN", value_parser = nqn)]
    nqn: Nqn,
    /// A namespace: ram,size=256MiB or null or file,path=PATH[,size=1GiB]; repeat for more
    #[arg(long = "device", value_name = "KIND[,KEY=VALUE...]", required = true)]
    devices: Vec<DeviceSpec>,
    /// How reactors spend their idle time
    #[arg(long, env = "BASALT_POLLING", value_enum, default_value = "adaptive")]
    polling: PollingChoice,
    /// Do not pin reactors to their cores
    #[arg(long)]
    no_pin: bool,
    /// A host that may connect; repeat for more. On loopback anybody may if none is named
    #[arg(long = "allow-host", value_name = "NQN", value_parser = nqn, conflicts_with = "allow_any_host")]
    allowed: Vec<Nqn>,
    /// Where to serve /metrics, /healthz and /readyz; port 0 takes a free one and logs it
    #[arg(long, env = "BASALT_METRICS_LISTEN", value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    metrics_listen: SocketAddr,
    /// Let every host connect
    #[arg(long)]
    allow_any_host: bool,
    /// Folder for what is kept through a loss of power: reservations of hosts that ask for it. Without it they end with the daemon
    #[arg(long, env = "BASALT_STATE", value_name = "DIR")]
    state: Option<PathBuf>,
}

fn nqn(text: &str) -> Result<Nqn, basalt_nvmf_transport::NqnError> {
    Nqn::new(text)
}

impl Options {
    /// Who may connect: nobody is let in from elsewhere without a word.
    fn allowed_hosts(&self) -> anyhow::Result<AllowedHosts> {
        if !self.allowed.is_empty() {
            return Ok(self.allowed.iter().cloned().collect());
        }
        anyhow::ensure!(
            self.allow_any_host || self.listen.ip().is_loopback(),
            "{} is not a loopback address: name the hosts that may connect with --allow-host NQN, or say \
             --allow-any-host",
            self.listen
        );
        Ok(AllowedHosts::Any)
    }

    /// Where to listen, and what hosts are told.
    fn listener(&self) -> anyhow::Result<ListenerAddress> {
        let Some(advertise) = self.advertise else { return Ok(ListenerAddress::new(self.listen)) };
        anyhow::ensure!(
            !advertise.ip().is_unspecified(),
            "--advertise {advertise} is no address that hosts can reach: name one of this machine's"
        );
        Ok(ListenerAddress::advertised(self.listen, &advertise.ip().to_string(), advertise.port())?)
    }

    fn reactor_options(&self) -> ReactorOptions {
        let polling = match self.polling {
            PollingChoice::Adaptive => Polling::default(),
            PollingChoice::Busy => Polling::Busy,
        };
        ReactorOptions { polling, ..ReactorOptions::default() }
    }
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let listener = options.listener()?;
    let target = subsystem(options, options.allowed_hosts()?)?;
    let start = Start { cores: &options.cores, pin: !options.no_pin, options: options.reactor_options() };
    start.keep_management_off();
    let readiness = Readiness::new();
    let gate = readiness.gate("serving", "devices and listeners are being opened");
    let exporter = ExporterConfig {
        listen: options.metrics_listen,
        process: "basaltd",
        version: env!("CARGO_PKG_VERSION"),
    };
    let meters = Meters::default();
    let exporter = Exporter::start_with(&exporter, readiness, meters.collector())?;
    tracing::info!(metrics = %exporter.address(), "basaltd starts");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the management thread")?;
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let first = First {
        specs: options.devices.clone(),
        nqn: options.nqn.clone(),
        listener,
        target,
        meters: meters.clone(),
        state: options.state.clone(),
    };
    let served = Arc::clone(&first.target);
    let reactors = Reactors::start(start, &served, move |handle, siblings| {
        let outcome = match first.start(handle, &siblings) {
            Ok(Opened { listener, bound, disks }) => {
                let mut controls = vec![listener.control()];
                controls.extend(siblings);
                // The listener lives as long as the reactor.
                drop(handle.spawn(async move {
                    let _listener = listener;
                    std::future::pending::<()>().await;
                }));
                Ok((bound, controls, disks))
            }
            Err(error) => Err(error),
        };
        // Who waits for it is the caller below; it is there.
        drop(tell.send(outcome));
    })?;
    let (bound, controls, disks) = told.recv().context("the reactor ended while it started")??;
    gate.open();
    let remotes = reactors.remotes();
    meters.reactors.set(remotes.clone());
    let growth = remotes.first().map(|first| Growth::new(disks, first.clone(), Arc::clone(&served)));
    let sources = Sources { reactors: remotes, controls, target: served };
    let outcome = runtime.block_on(serve(options, reactors, bound, sources, growth));
    // A reactor that is stuck must not keep the process.
    runtime.shutdown_background();
    outcome
}

/// What the first reactor has opened.
struct Opened {
    listener: TcpTarget,
    bound: SocketAddr,
    /// Devices that are files or disks.
    disks: Vec<Arc<UringDevice>>,
}

/// What the first reactor needs.
struct First {
    specs: Vec<DeviceSpec>,
    nqn: Nqn,
    listener: ListenerAddress,
    target: Arc<Target>,
    meters: Meters,
    state: Option<PathBuf>,
}

impl First {
    /// Opens the devices, adds the namespaces and listens, the other reactors with it.
    fn start(&self, handle: &Handle, siblings: &[TcpTargetControl]) -> anyhow::Result<Opened> {
        let mut disks = Vec::new();
        for (spec, nsid) in self.specs.iter().zip(1..) {
            let uuid = namespace_uuid(&self.nqn, nsid);
            let device = self.meters.metered(nsid, open(handle, spec, uuid, &mut disks)?);
            let identity = NamespaceIdentity { uuid: uuid.into_bytes(), nguid: uuid.into_bytes() };
            let added =
                self.target.add_namespace(&self.nqn, Nsid(nsid), identity, device, AnaState::Optimized);
            added.with_context(|| match &self.state {
                Some(state) => format!(
                    "cannot serve namespace {nsid}, whose reservation is kept in {}: if that is damaged, put a copy back, or delete it \
                     to go on without reservation",
                    reservation_files::path(state, identity.uuid).display()
                ),
                None => format!("cannot serve namespace {nsid}"),
            })?;
        }
        let listener = TcpTarget::start(handle, Arc::clone(&self.target), TcpTargetOptions::default());
        let bound = listener.listen(self.listener.clone())?;
        for sibling in siblings {
            let address = self.listener.clone().with_bound(bound);
            sibling.accept_from(listener.share(bound)?, address)?;
        }
        Ok(Opened { listener, bound, disks })
    }
}

async fn serve(
    options: &Options,
    reactors: Reactors,
    bound: SocketAddr,
    sources: Sources,
    growth: Option<Growth>,
) -> anyhow::Result<()> {
    let mut stop = StopSignals::install()?;
    metrics::describe();
    tokio::spawn(async move {
        let mut ticks = metrics::ticks();
        loop {
            ticks.tick().await;
            sources.gather().await;
        }
    });
    if let Some(growth) = growth {
        tokio::spawn(growth.watch());
    }
    tracing::info!(address = %bound, nqn = %options.nqn, "serving");
    announce(bound, options.listen)?;
    let signal = stop.wait().await;
    tracing::info!(signal, "basaltd stops");
    let joined = tokio::task::spawn_blocking(move || reactors.join());
    match tokio::time::timeout(STOP_TIMEOUT, joined).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false) | Err(_)) => anyhow::bail!("a reactor had panicked; see the log"),
        Err(_) => anyhow::bail!("a reactor did not stop within {} s", STOP_TIMEOUT.as_secs()),
    }
}

/// A reactor that takes longer to stop is stuck in a system call.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The one line that tells a script to go on; the port is named where it was left open.
fn announce(bound: SocketAddr, asked: SocketAddr) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if asked.port() == 0 {
        writeln!(out, "listening {bound}")?;
    }
    writeln!(out, "ready")?;
    out.flush().context("cannot write to standard output")
}

fn subsystem(options: &Options, allowed: AllowedHosts) -> anyhow::Result<Arc<Target>> {
    let target = Target::new(TargetOptions::default());
    let config = SubsystemConfig {
        nqn: options.nqn.clone(),
        serial: serial(&options.nqn),
        model: "Basalt".to_owned(),
        controller_ids: ControllerIdRange::ALL,
    };
    target.add_subsystem(config, allowed)?;
    if let Some(state) = &options.state {
        target.keep_reservations(Arc::new(ReservationFiles::open(state)?));
    }
    Ok(target)
}

/// The same command line gives the same identity after a restart (docs/volume-identity.md).
fn namespace_uuid(nqn: &Nqn, nsid: u32) -> Uuid {
    named_uuid(&format!("{nqn}#{nsid}"))
}

fn serial(nqn: &Nqn) -> String {
    let name = named_uuid(nqn.as_str()).simple().to_string();
    format!("BSLT{}", &name[..16]).to_ascii_uppercase()
}

/// Opens a device; one that is a file or disk is added to `disks`.
fn open(
    handle: &Handle,
    spec: &DeviceSpec,
    uuid: Uuid,
    disks: &mut Vec<Arc<UringDevice>>,
) -> anyhow::Result<Arc<dyn BlockDevice>> {
    match &spec.kind {
        DeviceKind::Ram { bytes } => Ok(Arc::new(RamDevice::new("ram", uuid, spec.block, *bytes)?)),
        DeviceKind::Null { bytes } => {
            Ok(Arc::new(NullDevice::new("null", uuid, spec.block, spec.block.blocks_in(*bytes))?))
        }
        DeviceKind::File { path, bytes } => {
            refuse_to_grow(path, *bytes)?;
            let options = UringOptions {
                name: path.display().to_string(),
                uuid,
                block_size: Some(spec.block),
                disk: DiskOptions { create_with_length: *bytes, ..DiskOptions::default() },
            };
            let device = Arc::new(claims::open(handle, path, &options)?);
            let disk = device.disk();
            tracing::info!(
                path = %path.display(),
                bytes = disk.length,
                direct = disk.direct,
                polled = disk.polled,
                "disk opened"
            );
            disks.push(Arc::clone(&device));
            Ok(device)
        }
    }
}

/// A file that exists keeps its size: growing it is for a person to do, who knows what is in it.
fn refuse_to_grow(path: &Path, wanted: Option<u64>) -> anyhow::Result<()> {
    let Some(wanted) = wanted else { return Ok(()) };
    let found = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        // Another kind of thing, or nothing, or not to be seen: opening says what is wrong with it.
        Ok(_) | Err(_) => return Ok(()),
    };
    let path = path.display();
    anyhow::ensure!(
        found >= wanted,
        "{path} exists with {found} bytes, and size= asks for {wanted}: leave size= away to serve it as it is; or grow it first, \
         with truncate --size {wanted} {path}; or name another path for a new file"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_exists_is_not_grown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        refuse_to_grow(&path, Some(1 << 30)).unwrap();
        std::fs::write(&path, [0; 4096]).unwrap();
        refuse_to_grow(&path, None).unwrap();
        refuse_to_grow(&path, Some(4096)).unwrap();
        refuse_to_grow(&path, Some(512)).unwrap();
        let error = refuse_to_grow(&path, Some(8192)).unwrap_err().to_string();
        assert!(
            error.contains("exists with 4096 bytes") && error.contains("truncate --size 8192"),
            "{error}"
        );
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    }
}
