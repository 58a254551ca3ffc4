//! The other ways of `up`: on a Kubernetes that somebody else runs, and in the foreground.
#![allow(clippy::unwrap_used, reason = "a test: a failed expectation ends it")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use basalt_e2e::cluster::{Cluster, XTASK_ENV};
use basalt_kube::Fixture;
use rustix::process::{Pid, Signal, kill_process};

/// The examples' nodes listen on fixed ports: one cluster at a time.
static PORTS: Mutex<()> = Mutex::new(());

#[test]
#[ignore = "needs the built programs; `cargo xtask test` runs it"]
fn up_uses_a_kubernetes_that_runs_already() {
    let _ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let kubernetes = Fixture::start(&dir.path().join("kubernetes")).unwrap();
    let cluster = Cluster::up_on(&dir.path().join("cluster"), &kubernetes.kubeconfig()).unwrap();
    let expected = format!("KUBECONFIG={}", kubernetes.kubeconfig().display());
    assert!(cluster.announced().contains(&expected), "{:?}", cluster.announced());
    assert!(cluster.announced().iter().any(|line| line.starts_with("VOLUME data NQN=")));
    let processes = cluster.processes().unwrap();
    assert!(
        processes.iter().all(|name| !["etcd", "kube-apiserver"].contains(&name.as_str())),
        "{processes:?}"
    );

    // Another cluster's objects are not taken over.
    let disks = || {
        let query = "--output=jsonpath={.items[*].spec.pools[*].disks}";
        kubernetes.kubectl().args(["get", "bsn", query]).output().unwrap().stdout
    };
    let before = disks();
    let refused = Cluster::up_on(&dir.path().join("another"), &kubernetes.kubeconfig()).unwrap_err();
    assert!(refused.to_string().contains("stands for a node or volume of Basalt cluster"), "{refused}");
    assert_eq!(disks(), before);

    // Once more on what is there, and again after everything of ours was stopped.
    cluster.up_again().unwrap();
    cluster.down().unwrap();
    cluster.up_again().unwrap();

    // Theirs is not ours to stop, and their objects are not ours to delete.
    cluster.down().unwrap();
    let volumes = kubernetes.kubectl().args(["get", "bv", "--output=name"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&volumes.stdout).trim(), "volume.basalt.storage/data");
}

/// Ends the cluster however the test ends.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        xtask(&["down", "--wipe"], self.0).status().unwrap();
    }
}

fn xtask(args: &[&str], state: &Path) -> Command {
    let mut command = Command::new(std::env::var_os(XTASK_ENV).unwrap());
    command.args(args).arg("--state-dir").arg(state).stdin(Stdio::null());
    command
}

#[test]
#[ignore = "needs the built programs; `cargo xtask test` runs it"]
fn up_in_the_foreground_stays_until_it_is_interrupted() {
    let _ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("cluster");
    let _down = Down(&state);
    let mut up = xtask(&["up"], &state).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(up.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(
        lines.any(|line| line.starts_with("VOLUME data NQN=")),
        "it ended before the volume was announced"
    );
    std::thread::sleep(Duration::from_secs(3));
    assert!(up.try_wait().unwrap().is_none(), "it does not stay");
    let socket = state.join("run/supervisor.sock");
    assert!(socket.exists(), "its supervisor has stopped");
    // Whoever restarts a member that has lost its disk must not found another cluster.
    let plan = std::fs::read_to_string(state.join("run/plan.json")).unwrap();
    assert!(plan.contains("control-1") && !plan.contains("--bootstrap"), "{plan}");

    kill_process(Pid::from_child(&up), Signal::INT).unwrap();
    up.wait().unwrap();
    let interrupted = Instant::now();
    while socket.exists() {
        assert!(interrupted.elapsed() < Duration::from_secs(60), "the cluster runs on");
        std::thread::sleep(Duration::from_millis(100));
    }
}
