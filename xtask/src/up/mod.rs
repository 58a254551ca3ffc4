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

use std::path::{Path, PathBuf};
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

const NODES: &str = "storagenodes.basalt.storage";
const VOLUMES: &str = "volumes.basalt.storage";
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
    arguments.kubeconfig.as_deref().map_or(Ok(()), check_readable)?;
    let lock = state.lock()?;
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
    let started = if running {
        progress.say("the cluster is running already");
        // Whoever emptied the apiserver took the definitions along.
        kubectl.install_resources()?;
        check_owner(&state, &programs, &kubectl, &examples)?;
        None
    } else {
        progress.say(&format!("preparing {}", state.dir().display()));
        examples.make_disks()?;
        issue_certificates(&state, &programs, &cluster.identities())?;
        write_files(&state, &cluster)?;
        let (mut plan, supervisor) =
            start(&state, &cluster, kubernetes, &kubectl, arguments.detach, progress)?;
        if let Err(error) = check_owner(&state, &programs, &kubectl, &examples) {
            supervisor::ask(&state, "stop")?;
            return Err(error);
        }
        plan.processes.push(cluster.operator(kubectl.kubeconfig()));
        supervisor::publish(&state, &plan)?;
        Some((plan, supervisor))
    };
    progress.say("applying crds/examples");
    kubectl.apply(&examples.manifest)?;
    progress.say("waiting for nodes and volumes to be online");
    let online = |kind: &str, names: &[String]| wait::until_online(&state, &kubectl, kind, names, progress);
    online(NODES, &examples.nodes)?;
    let supervisor = match started {
        Some((plan, supervisor)) => {
            // The cluster is founded: a member whose disk is lost must not found another one when it is restarted.
            supervisor::publish(&state, &plan.without_flag(processes::FOUNDS))?;
            Some(supervisor)
        }
        None => None,
    };
    pin_client(&state, &programs, &cluster)?;
    let volumes = online(VOLUMES, &examples.volumes)?;
    for volume in &volumes {
        verify(&state, &programs, volume, progress)?;
    }
    progress.say("every volume is online, and hosts reach it");
    explain(&state, &programs, &cluster, &kubectl);
    // All that are served, those that users made among them.
    announce(&kubectl, &kubectl.objects(VOLUMES)?);
    match supervisor.filter(|_| !arguments.detach) {
        Some(supervisor) => {
            drop(lock);
            stay(supervisor)
        }
        None => Ok(()),
    }
}

fn check_readable(kubeconfig: &Path) -> Result<()> {
    let opened = std::fs::File::open(kubeconfig);
    opened.map(drop).with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))
}

/// Refuses a Kubernetes whose objects of these names stand for another cluster: to apply ours would move the disks and paths of theirs.
fn check_owner(state: &State, programs: &Programs, kubectl: &Kubectl, examples: &Examples) -> Result<()> {
    for (kind, names) in [(NODES, &examples.nodes), (VOLUMES, &examples.volumes)] {
        let objects = kubectl.objects(kind)?;
        let theirs: Vec<(&str, &str)> = objects
            .iter()
            .filter(|object| names.contains(&object.metadata.name))
            .filter_map(|object| Some((object.metadata.name.as_str(), object.status.cluster_id.as_deref()?)))
            .collect();
        if theirs.is_empty() {
            continue;
        }
        let ours = cluster_id(state, programs)?;
        if let Some((name, cluster)) = theirs.iter().find(|(_, cluster)| *cluster != ours) {
            let remedy = if kubectl.kubeconfig().starts_with(state.dir()) {
                "the control plane's data in this state folder were lost or replaced: put them back, or remove the folder with its disks \
                 by `cargo xtask down --wipe` and begin anew"
            } else {
                "use another Kubernetes, or the state folder of that cluster; if that cluster is gone for good, remove its finalizers \
                 from its objects and delete them"
            };
            bail!(
                "{name} of {kind} in this Kubernetes stands for a node or volume of Basalt cluster {cluster}, and this one is \
                 {ours}: {remedy}"
            );
        }
    }
    Ok(())
}

/// Lets kubectl-basalt speak to no other cluster from here on.
fn pin_client(state: &State, programs: &Programs, cluster: &Cluster<'_>) -> Result<()> {
    let id = cluster_id(state, programs)?;
    write(&state.client_config(), &cluster.client_config(Some(&id)))
}

/// The identity of the cluster that this state folder holds.
fn cluster_id(state: &State, programs: &Programs) -> Result<String> {
    let output = Command::new(programs.path("kubectl-basalt"))
        .arg("--config")
        .arg(state.client_config())
        .args(["--output=json", "status"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run kubectl-basalt")?;
    if !output.status.success() {
        bail!("the control plane does not answer: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let status: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("kubectl-basalt's answer is damaged")?;
    let id = status["cluster"]["id"].as_str().context("the control plane is not founded yet")?;
    Ok(id.to_owned())
}

/// Starts the supervisor and all processes but the operator, which needs its custom resources and the right cluster.
fn start(
    state: &State,
    cluster: &Cluster<'_>,
    kubernetes: Option<Binary>,
    kubectl: &Kubectl,
    detach: bool,
    progress: Progress,
) -> Result<(Plan, Child)> {
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
    Ok((plan, supervisor))
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
        (state.client_config(), cluster.client_config(None)),
        (state.metrics_targets(), serde_json::to_string_pretty(&targets)?),
    ];
    files.iter().try_for_each(|(path, text)| write(path, text))
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
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

/// What scripts go on with.
fn announce(kubectl: &Kubectl, volumes: &[Object]) {
    println!("KUBECONFIG={}", kubectl.kubeconfig().display());
    for volume in volumes {
        if let Some((nqn, address)) = volume.served() {
            println!("VOLUME {} NQN={nqn} ADDRESS={address}", volume.metadata.name);
        }
    }
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
    let down =
        if state.is_default() { String::new() } else { format!(" --state-dir {}", state.dir().display()) };
    eprintln!("  logs are in {}; `cargo xtask down{down}` stops everything\n", state.logs().display());
}

/// Stays in the foreground until Ctrl-C, which ends this process; the supervisor notices and stops the rest.
fn stay(mut supervisor: Child) -> Result<()> {
    eprintln!("running; Ctrl-C stops everything");
    // To wait for a child closes the pipe to it, and that is what tells the supervisor to stop.
    let _pipe = supervisor.stdin.take();
    let status = supervisor.wait().context("cannot wait for the supervisor")?;
    bail!("the supervisor ended: {status}");
}
