//! `basaltd node`: the daemon of a storage node in a cluster.

pub(crate) mod config;
mod convert;
mod disk_looks;
mod disk_meters;
mod follow;
mod meters;
mod metrics;
mod pool_metrics;
mod ports;
mod session;
mod store;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use anyhow::Context;
use basalt_agent::nvme_tcp::NvmeTcpExporter;
use basalt_agent::{Agent, AgentConfig, DesiredNode, NodeReport, PoolCounts, Ports};
use basalt_identity::{Credentials, Identity, Role, Security};
use basalt_lvol::ScrubSettings;
use basalt_nvmf_target::{Target, TargetOptions};
use basalt_nvmf_tcp::{TcpTarget, TcpTargetControl, TcpTargetOptions};
use basalt_reactor::{Handle, ReactorOptions};
use basalt_telemetry::{Collector, Exporter, ExporterConfig, Exposition, Readiness};
use tokio::sync::{oneshot, watch};

use self::config::{Config, SecurityConfig};
use self::disk_looks::DiskLooks;
use self::disk_meters::DiskMeters;
use self::meters::{MeteredExporter, VolumeMeters};
use self::ports::{MachineDisks, ManagementStore, ReportSender};
use self::session::{SessionConfig, SessionEnds, SessionState};
use self::store::{DesiredFile, IdentityFile};
use crate::cores::CoresInUse;
use crate::metrics::{ReactorTimes, Sources};
use crate::reactors::{Reactors, Start};
use crate::signals::StopSignals;

/// How often certificates are looked at for changes.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(30);
/// Threads for the session, the store and metrics; reactors have their own.
const MANAGEMENT_THREADS: usize = 2;
/// How long pools may take to be prepared for the end.
const PREPARE_MAX: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(config: Config) -> anyhow::Result<()> {
    basalt_identity::install_provider();
    let security = security(&config)?;
    let identity = IdentityFile::open(&config.data_dir)?;
    let cores = cores(&config, &identity)?;
    let start = Start { cores: cores.cores(), pin: config.pin, options: ReactorOptions::default() };
    start.keep_management_off();
    let readiness = Readiness::new();
    let exporter_config = ExporterConfig {
        listen: config.metrics_listen,
        process: "basaltd",
        version: env!("CARGO_PKG_VERSION"),
    };
    let meters = Meters::default();
    let exporter = Exporter::start_with(&exporter_config, readiness.clone(), meters.collector())?;
    metrics::name_node(&config.node);
    tracing::info!(node = config.node, metrics = %exporter.address(), "basaltd starts");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(MANAGEMENT_THREADS)
        .thread_name("management")
        .enable_all()
        .build()
        .context("cannot start the management threads")?;
    let outcome = runtime.block_on(serve(&config, &cores, start, security, identity, &readiness, meters));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// The cores of the command line, which are right or an error; else what the control plane wanted last, as far as it is possible.
fn cores(config: &Config, identity: &IdentityFile) -> anyhow::Result<CoresInUse> {
    if let Some(cores) = &config.cores {
        return Ok(CoresInUse::named(cores.clone()));
    }
    let cores =
        CoresInUse::wanted(identity.cores(), config.pin).context("cannot tell which cores there are")?;
    if let Some(problem) = cores.problem(identity.cores()) {
        tracing::warn!(reason = %problem.reason, "{}", problem.message);
    }
    Ok(cores)
}

fn security(config: &Config) -> anyhow::Result<Security> {
    match &config.security {
        SecurityConfig::Tls(files) => {
            let credentials = Credentials::load(files)?;
            let identity = credentials.identity();
            anyhow::ensure!(
                identity.role() == Role::Node && identity.name() == config.node,
                "the certificate {} belongs to {identity}; node {} needs one for basalt://{}/node/{}",
                files.certificate.display(),
                config.node,
                identity.cluster(),
                config.node
            );
            Ok(Security::Tls(credentials))
        }
        SecurityConfig::Plaintext { cluster } => {
            Ok(Security::Plaintext(Identity::new(cluster.clone(), Role::Node, config.node.clone())?))
        }
    }
}

async fn serve(
    config: &Config,
    cores: &CoresInUse,
    start: Start<'_>,
    security: Security,
    identity: IdentityFile,
    readiness: &Readiness,
    meters: Meters,
) -> anyhow::Result<()> {
    let mut stop = StopSignals::install()?;
    if let Security::Tls(credentials) = &security {
        tokio::spawn(Arc::clone(credentials).follow_files(CERTIFICATE_INTERVAL));
    }
    let file = DesiredFile::new(&config.data_dir);
    let kept = file.load()?;
    let (desired, desired_changes) = watch::channel(kept);
    let (reports, report_changes) = watch::channel(None);
    let target = Target::new(TargetOptions::default());
    let scrub = config.scrub;
    let (end, to_end) = oneshot::channel();
    let looks = Arc::<DiskLooks>::default();
    tokio::spawn(Arc::clone(&looks).keep());
    let ends =
        AgentEnds { looks, file, desired: desired_changes, reports, meters: meters.clone(), scrub, to_end };
    let (reactors, started) = start_reactors(start, &target, ends)?;
    let controls =
        started.await.context("the reactor ended while it started")?.context("the agent did not start")?;
    let (state, states) = watch::channel(SessionState::Disconnected("not tried yet".to_owned()));
    let session = SessionConfig {
        node_name: config.node.clone(),
        endpoints: config.control.clone(),
        security,
        boot_id: boot_id()?,
        cores: cores.clone(),
    };
    let ends = SessionEnds { desired, report: report_changes.clone(), state };
    tokio::spawn(session::run(session, identity, ends));
    meters.reactors.set(reactors.remotes());
    let sources = Sources { reactors: reactors.remotes(), controls, target };
    tokio::spawn(metrics::keep(sources, meters.volumes, report_changes.clone()));
    tokio::spawn(follow::readiness(readiness.clone(), states, report_changes));
    let signal = stop.wait().await;
    tracing::info!(signal, "basaltd stops");
    let (prepared, is_prepared) = oneshot::channel();
    if end.send(prepared).is_ok() && tokio::time::timeout(PREPARE_MAX, is_prepared).await.is_err() {
        tracing::warn!("the disks are too slow: what was not flushed may be lost if the machine stops");
    }
    // Joining waits for each reactor's last turn; its disks are closed then.
    let sound = tokio::task::spawn_blocking(move || reactors.join()).await?;
    anyhow::ensure!(sound, "a reactor had panicked; see the log");
    Ok(())
}

type Started = oneshot::Receiver<Result<Vec<TcpTargetControl>, basalt_agent::StoreError>>;

/// What the agent shares with the rest of the daemon.
struct AgentEnds {
    looks: Arc<DiskLooks>,
    file: DesiredFile,
    desired: watch::Receiver<Option<DesiredNode>>,
    reports: watch::Sender<Option<NodeReport>>,
    meters: Meters,
    scrub: ScrubSettings,
    /// Says that the daemon is to end, and where to say that the agent is prepared for it.
    to_end: oneshot::Receiver<oneshot::Sender<()>>,
}

/// Starts one reactor per core, with the agent on the first; then come the targets' controls, the first reactor's first.
fn start_reactors(
    start: Start<'_>,
    target: &Arc<Target>,
    ends: AgentEnds,
) -> anyhow::Result<(Reactors, Started)> {
    let management = tokio::runtime::Handle::current();
    let (tell, started) = oneshot::channel();
    let served = Arc::clone(target);
    let set_up = move |handle: &Handle, siblings: Vec<TcpTargetControl>| {
        let handle = handle.clone();
        let task = handle.clone().spawn(async move {
            let listener =
                Rc::new(TcpTarget::start(&handle, Arc::clone(&served), TcpTargetOptions::default()));
            let mut controls = vec![listener.control()];
            controls.extend(siblings.iter().cloned());
            let exporter = Rc::new(NvmeTcpExporter::new(&handle, served, listener, siblings));
            let disks = MachineDisks::new(handle.clone(), ends.meters.disks, ends.looks, management.clone());
            let ports = Ports {
                disks: Rc::new(disks),
                exporter: Rc::new(MeteredExporter::new(exporter, ends.meters.volumes)),
                store: Rc::new(ManagementStore::new(ends.file, management)),
                reporter: Rc::new(ReportSender::new(ends.reports)),
            };
            let settings = AgentConfig { scrub: ends.scrub, ..AgentConfig::default() };
            let agent = match Agent::start(&handle, settings, ports).await {
                Ok(agent) => agent,
                Err(error) => return drop(tell.send(Err(error))),
            };
            if tell.send(Ok(controls)).is_err() {
                return;
            }
            drop(handle.spawn(follow::pools(handle.clone(), agent.clone(), ends.meters.pools)));
            drop(handle.spawn(follow::end(agent.clone(), ends.to_end)));
            follow::desired(&handle, &agent, ends.desired).await;
        });
        drop(task);
    };
    Ok((Reactors::start(start, target, set_up)?, started))
}

/// What is counted apart from the agent's reports, and shown when Prometheus asks.
#[derive(Clone, Debug, Default)]
struct Meters {
    volumes: Arc<VolumeMeters>,
    disks: Arc<DiskMeters>,
    reactors: Arc<ReactorTimes>,
    /// What is counted of the pools.
    pools: watch::Sender<Vec<PoolCounts>>,
}

impl Meters {
    fn collector(&self) -> Collector {
        let meters = self.clone();
        Arc::new(move || {
            let mut exposition = Exposition::default();
            meters.reactors.expose(&mut exposition);
            meters.volumes.expose(&mut exposition);
            meters.disks.expose(&mut exposition);
            pool_metrics::expose(&meters.pools.borrow(), &mut exposition);
            Box::pin(async move { exposition })
        })
    }
}

/// The machine's run (random each boot): a new one means that the disks' volatile caches are gone.
fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
