//! `up --kubeconfig`: on a Kubernetes that somebody else runs.
#![allow(clippy::unwrap_used, reason = "a test: a failed expectation ends it")]

use basalt_e2e::cluster::Cluster;
use basalt_kube::Fixture;

#[test]
#[ignore = "needs the built programs; `cargo xtask test` runs it"]
fn up_uses_a_kubernetes_that_runs_already() {
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

    // Once more on what is there, and again after everything of ours was stopped.
    cluster.up_again().unwrap();
    cluster.down().unwrap();
    cluster.up_again().unwrap();

    // Theirs is not ours to stop, and their objects are not ours to delete.
    cluster.down().unwrap();
    let volumes = kubernetes.kubectl().args(["get", "bv", "--output=name"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&volumes.stdout).trim(), "volume.basalt.storage/data");
}
