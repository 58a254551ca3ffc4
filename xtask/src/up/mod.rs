//! A whole cluster on this machine.
//!
//! `up` builds the programs, prepares the state folder ([`state`]), writes what is to run ([`processes`]) and starts the
//! supervisor ([`supervisor`]), which outlives it with `--detach`. Then it acts as a user would: kubectl applies the
//! examples, and a host connects to each volume.

mod examples;
mod kubernetes;
pub(crate) mod process_id;
mod processes;
mod state;
mod supervisor;
mod wait;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use basalt_kube::{Binary, Layout};

use crate::progress::Progress;
use crate::workspace::Programs;
use examples::Examples;
use kubernetes::{Kubectl, Object};
use processes::{CLUSTER, Cluster};
use state::{Ports, State};
use supervisor::{Plan, Process};

/// kubectl-basalt ends so when it would have to overwrite data.
const HOLDS_DATA: i32 = 3;

/// Options of `up`.
#[derive(clap::Args)]
pub(crate) struct UpArguments {
    /// Return once the volumes are verified, and leave the cluster running
    #[arg(long)]
    detach: bool,
    /// Use this existing Kubernetes cluster instead of starting an apiserver
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Where disks, logs and certificates are kept [default: $HOME/.cache/basalt/up]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Options of `down`.
#[derive(clap::Args)]
pub(crate) struct DownArguments {
    /// Remove the state folder with all data as well
    #[arg(long)]
    wipe: bool,
    /// The state folder that `up` was given
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

/// Options of the supervisor.
#[derive(clap::Args)]
pub(crate) struct SuperviseArguments {
    #[arg(long)]
    state_dir: PathBuf,
    /// Stop when standard input is closed
    #[arg(long)]
    until_closed: bool,
}

/// Starts the cluster, or reports on the one that runs.
pub(crate) fn up(arguments: &UpArguments) -> Result<()> {
    let progress = Progress::start();
    let state = State::create(arguments.state_dir.as_deref())?;
    if let Some(file) = &arguments.kubeconfig {
        std::fs::File::open(file)
            .with_context(|| format!("cannot read the kubeconfig {}", file.display()))?;
    }
    let running = supervisor::ask(&state, "status")?.is_some();
    if running && !arguments.detach {
        bail!("a cluster is running on {}; stop it with `cargo xtask down`", state.dir().display());
    }
    progress.say("building the product's programs");
    let programs = Programs::build()?;
    let kubernetes = match arguments.kubeconfig {
        Some(_) => None,
        None => Some(Binary::ensure(&mut |text| progress.say(text))?),
    };
    let mut ports = Ports::load(&state)?;
    let examples = Examples::load(&state, &mut ports)?;
    let cluster = Cluster::new(&state, &programs, &examples.nodes, &mut ports)?;
    ports.save()?;

    let kubeconfig = arguments.kubeconfig.clone().unwrap_or_else(|| state.kube().join("kubeconfig"));
    // Whoever has a cluster has its kubectl.
    let program = kubernetes.as_ref().map_or_else(|| "kubectl".into(), Binary::kubectl);
    let kubectl = Kubectl::new(&program, &kubeconfig);
    let supervisor = if running {
        progress.say("the cluster is running already");
        None
    } else {
        progress.say(&format!("preparing {}", state.dir().display()));
        examples.make_disks()?;
        issue_certificates(&state, &programs, &cluster.identities())?;
        write_files(&state, &cluster)?;
        Some(start(&state, &cluster, kubernetes, &kubectl, arguments.detach, progress)?)
    };
    progress.say("applying crds/examples");
    kubectl.apply(&examples.manifest)?;
    progress.say("waiting for nodes and volumes to be online");
    wait::until_online(&state, &kubectl, "storagenodes.basalt.storage", &examples.nodes)?;
    let volumes = wait::until_online(&state, &kubectl, "volumes.basalt.storage", &examples.volumes)?;
    for volume in &volumes {
        verify(&state, &programs, volume, progress)?;
    }
    progress.say("every volume is online, and hosts reach it");
    explain(&state, &programs, &cluster, &kubectl);
    println!("KUBECONFIG={}", kubeconfig.display());
    for volume in &volumes {
        if let Some((nqn, address)) = volume.served() {
            println!("VOLUME {} NQN={nqn} ADDRESS={address}", volume.metadata.name);
        }
    }
    match supervisor.filter(|_| !arguments.detach) {
        Some(supervisor) => stay(supervisor),
        None => Ok(()),
    }
}

/// Starts the supervisor and all processes. The operator comes last, when its custom resources exist.
fn start(
    state: &State,
    cluster: &Cluster<'_>,
    kubernetes: Option<Binary>,
    kubectl: &Kubectl,
    detach: bool,
    progress: Progress,
) -> Result<Child> {
    let mut plan = Plan::default();
    if let Some(binary) = kubernetes {
        let layout = Layout::prepare(&state.kube(), binary)?;
        plan.processes.extend([layout.etcd(), layout.apiserver()].map(|component| Process {
            name: component.name.to_owned(),
            program: component.program,
            args: component.args,
        }));
    }
    plan.processes.extend(cluster.control_plane());
    plan.processes.extend(cluster.data_plane());
    supervisor::publish(state, &plan)?;
    let supervisor = start_supervisor(state, detach)?;
    progress.say("starting the control plane, the data plane and the apiserver");
    wait::until_ready(state, kubectl)?;
    kubectl.install_resources()?;
    plan.processes.push(cluster.operator(kubectl.kubeconfig()));
    supervisor::publish(state, &plan)?;
    Ok(supervisor)
}

/// Builds the Kubernetes fixture, so that later tasks find it.
pub(crate) fn fixture() -> Result<()> {
    let progress = Progress::start();
    let binary = Binary::ensure(&mut |text| progress.say(text))?;
    progress.say(&format!("{} is built", binary.program().display()));
    Ok(())
}

/// Stops the cluster.
pub(crate) fn down(arguments: &DownArguments) -> Result<()> {
    let progress = Progress::start();
    let Some(state) = State::open(arguments.state_dir.as_deref())? else {
        progress.say("nothing to stop: there is no state folder");
        return Ok(());
    };
    if supervisor::ask(&state, "stop")?.is_some() {
        progress.say("the cluster is stopped");
    } else {
        supervisor::end_leftovers(&state)?;
        progress.say("no supervisor was running; nothing of it is left");
    }
    if arguments.wipe {
        state.wipe()?;
        progress.say(&format!("{} is removed", state.dir().display()));
    }
    Ok(())
}

/// Is the supervisor.
pub(crate) fn supervise(arguments: &SuperviseArguments) -> Result<()> {
    // A session of its own: neither Ctrl-C nor a closed terminal reaches it or its processes. That fails only for the
    // leader of a group, which was told apart from the terminal already.
    if let Err(error) = rustix::process::setsid() {
        eprintln!("stays in its session: {error}");
    }
    let Some(state) = State::open(Some(&arguments.state_dir))? else {
        bail!("{} does not exist", arguments.state_dir.display());
    };
    supervisor::run(&state, arguments.until_closed)
}

fn issue_certificates(state: &State, programs: &Programs, identities: &[String]) -> Result<()> {
    let output = Command::new(programs.path("basalt-certificates"))
        .arg("--dir")
        .arg(state.pki())
        .args(["--cluster", CLUSTER])
        .args(identities)
        .output()
        .context("cannot run basalt-certificates")?;
    if !output.status.success() {
        bail!("making certificates: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The client's configuration, and what Prometheus should scrape.
fn write_files(state: &State, cluster: &Cluster<'_>) -> Result<()> {
    // No labels: each process says itself what it is.
    let targets: Vec<String> = cluster.metrics().into_iter().map(|target| target.address).collect();
    let targets = serde_json::json!([{"targets": targets}]);
    let files = [
        (state.client_config(), cluster.client_config()),
        (state.metrics_targets(), serde_json::to_string_pretty(&targets)?),
    ];
    for (path, text) in files {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn start_supervisor(state: &State, detach: bool) -> Result<Child> {
    let path = state.log("supervisor");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["supervise", "--state-dir"]).arg(state.dir()).stdout(Stdio::null()).stderr(log);
    if detach {
        command.stdin(Stdio::null());
    } else {
        // The pipe closes with this process, however it ends.
        command.arg("--until-closed").stdin(Stdio::piped());
    }
    command.spawn().context("cannot start the supervisor")
}

/// Connects to the volume as an NVMe/TCP host, writes and reads back. Once that has been done the volume is its user's, and is
/// only read.
fn verify(state: &State, programs: &Programs, volume: &Object, progress: Progress) -> Result<()> {
    let name = &volume.metadata.name;
    let (nqn, address) = volume.served().with_context(|| format!("Volume {name} has no path"))?;
    let host = |task: &[&str]| {
        Command::new(programs.path("kubectl-basalt"))
            .arg("--config")
            .arg(state.client_config())
            .args(task)
            .args(["--address", &address, "--nqn", nqn])
            .stdin(Stdio::null())
            .output()
            .context("cannot run kubectl-basalt")
    };
    let words = |output: &Output| String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if state.is_verified(nqn)? {
        progress
            .say(&format!("reading volume {name} at {address}; it was verified before and may hold data"));
        let output = host(&["perf", "--seconds=1"])?;
        if !output.status.success() {
            bail!("volume {name} cannot be read: {}", words(&output));
        }
        return Ok(());
    }
    progress.say(&format!("writing and verifying volume {name} at {address}"));
    let output = host(&["verify"])?;
    if output.status.code() == Some(HOLDS_DATA) {
        progress.say(&format!("volume {name} holds data of yours: nothing is written to it"));
    } else if !output.status.success() {
        bail!("volume {name} does not hold what was written to it: {}", words(&output));
    }
    state.set_verified(nqn)
}

/// How to go on.
fn explain(state: &State, programs: &Programs, cluster: &Cluster<'_>, kubectl: &Kubectl) {
    eprintln!();
    eprint!("{}", kubectl.table(&["get", "storagenodes.basalt.storage"]));
    eprint!("{}", kubectl.table(&["get", "volumes.basalt.storage"]));
    eprintln!("\ngo on with:");
    eprintln!("  export KUBECONFIG={}", kubectl.kubeconfig().display());
    eprintln!("  kubectl get bsn,bv");
    eprintln!(
        "  {} --config {} status",
        programs.path("kubectl-basalt").display(),
        state.client_config().display()
    );
    for target in cluster.metrics() {
        eprintln!("  curl http://{}/metrics   # {}", target.address, target.process);
    }
    eprintln!("  logs are in {}; `cargo xtask down` stops everything\n", state.logs().display());
}

/// Stays in the foreground until Ctrl-C, which ends this process; the supervisor notices and stops the rest.
fn stay(mut supervisor: Child) -> Result<()> {
    eprintln!("running; Ctrl-C stops everything");
    let status = supervisor.wait().context("cannot wait for the supervisor")?;
    bail!("the supervisor ended: {status}");
}
