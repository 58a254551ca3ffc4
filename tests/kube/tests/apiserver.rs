//! The fixture against itself: what is stored stays over restarts and kills, and is gone after a wipe.

#![allow(clippy::unwrap_used, reason = "functions of a test file")]

use std::path::Path;
use std::process::Output;

use basalt_kube::Fixture;

fn kubectl(fixture: &Fixture, args: &[&str]) -> Output {
    fixture.kubectl().args(args).arg("--request-timeout=5s").output().unwrap()
}

fn accepted(fixture: &Fixture, args: &[&str]) -> String {
    let output = kubectl(fixture, args);
    assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn store(fixture: &Fixture, name: &str) {
    accepted(fixture, &["create", "configmap", name, "--from-literal=key=value", "--namespace=kube-system"]);
}

fn is_stored(fixture: &Fixture, name: &str) -> bool {
    kubectl(fixture, &["get", "configmap", name, "--namespace=kube-system"]).status.success()
}

#[test]
fn objects_survive_a_kill_and_a_restart_and_not_a_wipe() {
    let dir = tempfile::tempdir().unwrap();
    let mut fixture = Fixture::start(dir.path()).unwrap();
    assert!(accepted(&fixture, &["version"]).contains("Server Version: v1.34.4"));
    store(&fixture, "first");

    fixture.kill_apiserver();
    assert!(!is_stored(&fixture, "first"), "a killed apiserver must not answer");
    fixture.start_apiserver().unwrap();
    assert!(is_stored(&fixture, "first"));

    let kubeconfig = std::fs::read_to_string(fixture.kubeconfig()).unwrap();
    drop(fixture);
    let mut fixture = Fixture::start(dir.path()).unwrap();
    assert!(is_stored(&fixture, "first"));
    assert_eq!(
        std::fs::read_to_string(fixture.kubeconfig()).unwrap(),
        kubeconfig,
        "clients keep their way in"
    );

    fixture.wipe().unwrap();
    assert!(!is_stored(&fixture, "first"));
    store(&fixture, "second");
    assert_nothing_left(dir.path(), fixture);
}

/// Dropping the fixture ends both processes: no command line on this machine names the folder any more.
fn assert_nothing_left(dir: &Path, fixture: Fixture) {
    let folder = dir.canonicalize().unwrap();
    assert!(runs_with(&folder) > 0);
    drop(fixture);
    assert_eq!(runs_with(&folder), 0);
}

fn runs_with(folder: &Path) -> usize {
    let needle = folder.to_str().unwrap().as_bytes().to_vec();
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| line.windows(needle.len()).any(|window| window == needle))
        .count()
}
