//! `basaltd serve`: one daemon alone, without a control plane: for a benchmark, a test, or another vendor's host.

use std::io::Write;
use std::net::SocketAddr;
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
use basalt_nvmf_tcp::{TcpTarget, TcpTargetOptions};
use basalt_nvmf_transport::{ControllerIdRange, Nqn};
use basalt_reactor::{DiskOptions, Handle, Polling, ReactorOptions, ReactorThread};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::cores::CoreList;
use crate::device::{DeviceKind, DeviceSpec, named_uuid};
use crate::signals;

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
    /// Core that runs the reactor, as a list such as 0
    #[arg(long, env = "BASALT_CORES", value_name = "LIST", default_value = "0")]
    cores: CoreList,
    /// Where to listen for hosts; port 0 takes a free one and prints it
    #[arg(long, env = "BASALT_LISTEN", value_name = "IP:PORT")]
    listen: SocketAddr,
    /// NQN of the subsystem
    #[arg(long, env = "BASALT_NQN", value_parser = nqn)]
    nqn: Nqn,
    /// A namespace: ram,size=256MiB or null or file,path=PATH[,size=1GiB]; repeat for more
    #[arg(long = "device", value_name = "KIND[,KEY=VALUE...]", required = true)]
    devices: Vec<DeviceSpec>,
    /// How the reactor spends its idle time
    #[arg(long, env = "BASALT_POLLING", value_enum, default_value = "adaptive")]
    polling: PollingChoice,
    /// Do not pin the reactor to its core
    #[arg(long)]
    no_pin: bool,
    /// A host that may connect; repeat for more. On loopback anybody may if none is named
    #[arg(long = "allow-host", value_name = "NQN", value_parser = nqn, conflicts_with = "allow_any_host")]
    allowed: Vec<Nqn>,
    /// Let every host connect
    #[arg(long)]
    allow_any_host: bool,
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
    let allowed = options.allowed_hosts()?;
    let [core] = options.cores.cores() else {
        anyhow::bail!("--cores {}: one core is served by now; name one", options.cores);
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the management thread")?;
    let pinned = (!options.no_pin).then_some(*core);
    let (give_handle, handles) = std::sync::mpsc::sync_channel(1);
    let specs = options.devices.clone();
    let nqn = options.nqn.clone();
    let reactor = basalt_reactor::start("reactor-0", pinned, options.reactor_options(), move |handle| {
        let opened: anyhow::Result<Vec<Arc<dyn BlockDevice>>> = specs
            .iter()
            .zip(1..)
            .map(|(spec, nsid)| open(handle, spec, namespace_uuid(&nqn, nsid)))
            .collect();
        // Who waits for it is the caller below; it is there.
        drop(give_handle.send(opened));
    })?;
    let devices = handles.recv().context("the reactor ended while it opened the devices")??;
    let target = subsystem(options, allowed, &devices)?;
    runtime.block_on(serve(options, reactor, target))
}

async fn serve(options: &Options, reactor: ReactorThread, target: Arc<Target>) -> anyhow::Result<()> {
    let control = TcpTarget::start_on(reactor.remote(), target, TcpTargetOptions::default())?;
    let listen = options.listen;
    let bound = tokio::task::spawn_blocking(move || control.listen(ListenerAddress::new(listen))).await??;
    tracing::info!(address = %bound, nqn = %options.nqn, "serving");
    announce(bound, listen)?;
    let signal = signals::wait().await?;
    tracing::info!(signal, "basaltd stops");
    let (done, joined) = oneshot::channel();
    std::thread::spawn(move || drop(done.send(reactor.join())));
    match tokio::time::timeout(STOP_TIMEOUT, joined).await {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(_)) | Err(_)) => anyhow::bail!("the reactor had panicked; see the log"),
        Err(_) => anyhow::bail!("the reactor did not stop within {} s", STOP_TIMEOUT.as_secs()),
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

fn subsystem(
    options: &Options,
    allowed: AllowedHosts,
    devices: &[Arc<dyn BlockDevice>],
) -> anyhow::Result<Arc<Target>> {
    let target = Target::new(TargetOptions::default());
    let config = SubsystemConfig {
        nqn: options.nqn.clone(),
        serial: serial(&options.nqn),
        model: "Basalt".to_owned(),
        controller_ids: ControllerIdRange::ALL,
    };
    target.add_subsystem(config, allowed)?;
    for (device, nsid) in devices.iter().zip(1..) {
        let uuid = namespace_uuid(&options.nqn, nsid).into_bytes();
        let identity = NamespaceIdentity { uuid, nguid: uuid };
        target.add_namespace(&options.nqn, Nsid(nsid), identity, Arc::clone(device), AnaState::Optimized)?;
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

fn open(handle: &Handle, spec: &DeviceSpec, uuid: Uuid) -> anyhow::Result<Arc<dyn BlockDevice>> {
    match &spec.kind {
        DeviceKind::Ram { bytes } => Ok(Arc::new(RamDevice::new("ram", uuid, spec.block, *bytes)?)),
        DeviceKind::Null { bytes } => {
            Ok(Arc::new(NullDevice::new("null", uuid, spec.block, spec.block.blocks_in(*bytes))?))
        }
        DeviceKind::File { path, bytes } => {
            let options = UringOptions {
                name: path.display().to_string(),
                uuid,
                block_size: Some(spec.block),
                disk: DiskOptions { create_with_length: *bytes, ..DiskOptions::default() },
            };
            Ok(Arc::new(UringDevice::open(handle, path, &options)?))
        }
    }
}
