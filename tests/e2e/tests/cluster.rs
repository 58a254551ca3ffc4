//! A whole development cluster from outside: apply, store, break, delete.
//!
//! One cluster serves all tests, one after the other; each leaves it as whole as it found it. Without the variables that
//! `cargo xtask test` sets nothing is run.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test: a failed expectation ends it")]

#[path = "cluster/disks.rs"]
mod disks;
#[path = "cluster/snapshots.rs"]
mod snapshots;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use basalt_e2e::cluster::{Cluster, XTASK_ENV};
use basalt_e2e::guest::{Guest, Image};
use basalt_e2e::prometheus::Prometheus;
use basalt_e2e::{dashboards, packages};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

type Test = (&'static str, fn(&Cluster));

const TESTS: &[Test] = &[
    ("up_announces_what_scripts_need", up_announces_what_scripts_need),
    (
        "wrong_input_is_refused_with_the_field_and_the_remedy",
        wrong_input_is_refused_with_the_field_and_the_remedy,
    ),
    ("what_cannot_be_placed_says_so_and_can_be_deleted", what_cannot_be_placed_says_so_and_can_be_deleted),
    ("a_volume_is_created_used_and_deleted", a_volume_is_created_used_and_deleted),
    ("every_query_of_dashboards_and_rules_is_answered", every_query_of_dashboards_and_rules_is_answered),
    ("linux_keeps_its_volume_when_the_daemon_is_killed", linux_keeps_its_volume_when_the_daemon_is_killed),
    ("trim_gives_space_back_and_a_snapshot_under_load_mounts_clean", snapshots::trim_and_snapshots),
    ("every_process_survives_sigkill", every_process_survives_sigkill),
    ("a_daemon_that_hangs_shows_within_ten_seconds", a_daemon_that_hangs_shows_within_ten_seconds),
    ("an_apiserver_that_hangs_does_no_harm", an_apiserver_that_hangs_does_no_harm),
    ("a_second_daemon_of_one_identity_does_no_harm", a_second_daemon_of_one_identity_does_no_harm),
    ("a_member_on_another_clusters_disk_refuses", a_member_on_another_clusters_disk_refuses),
    ("a_pool_on_a_read_only_disk_says_so", disks::a_pool_on_a_read_only_disk_says_so),
    ("a_pool_whose_disk_has_no_room_says_so", disks::a_pool_whose_disk_has_no_room_says_so),
    ("a_member_on_a_full_disk_says_so_and_comes_back", disks::a_member_on_a_full_disk_says_so_and_comes_back),
    ("data_survives_down_and_up", data_survives_down_and_up),
];

/// From `kubectl apply` to `Online`, on a machine that is busy with other tests.
const ONLINE_DEADLINE: Duration = Duration::from_secs(60);
/// What the issue promises for a daemon that is gone, and some for a slow machine.
const NOTICED_DEADLINE: Duration = Duration::from_secs(12);

fn main() -> ExitCode {
    if std::env::var_os(XTASK_ENV).is_none() {
        println!("not run: `cargo xtask test` builds what this needs and runs it");
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("cluster");
    let (mut passed, mut failed) = (0, 0);
    let mut judge = |name: &str, ok: bool, started: Instant| {
        println!(
            "test {name} ... {} ({:.1} s)",
            if ok { "ok" } else { "FAILED" },
            started.elapsed().as_secs_f64()
        );
        if ok { passed += 1 } else { failed += 1 }
    };
    let started = Instant::now();
    let cluster = match Cluster::up(&state) {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            eprintln!("{error}");
            None
        }
    };
    judge("up", cluster.is_some(), started);
    if let Some(cluster) = cluster {
        // As of Rust's own harness: a word chooses the tests that have it in their names.
        let word = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
        for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(&word)) {
            let started = Instant::now();
            let ok = catch_unwind(AssertUnwindSafe(|| test(&cluster))).is_ok();
            if !ok {
                show_logs(&cluster);
            }
            judge(name, ok, started);
        }
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show_logs(cluster: &Cluster) {
    for process in cluster.processes().unwrap_or_default() {
        eprintln!("--- the end of {process}'s log\n{}", cluster.log_tail(&process, 15));
    }
}

fn volume(name: &str, size: &str) -> String {
    format!(
        "apiVersion: basalt.storage/v1alpha1\nkind: Volume\nmetadata:\n  name: {name}\n\
         spec:\n  size: {size}\n  allowedHosts: [\"*\"]\n  reclaimPolicy: Delete\n"
    )
}

fn phase(object: &Value) -> &str {
    object["status"]["phase"].as_str().unwrap_or_default()
}

fn is_online(object: &Value) -> bool {
    phase(object) == "Online"
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

fn online(cluster: &Cluster, name: &str) -> Value {
    cluster.wait("volumes", name, ONLINE_DEADLINE, "online", is_online).unwrap()
}

fn delete(cluster: &Cluster, name: &str) {
    cluster.kubectl(&["delete", "volumes.basalt.storage", name, "--wait=false"], "").unwrap();
    cluster.wait_gone("volumes", name, ONLINE_DEADLINE).unwrap();
}

/// Writes to the start of the volume as an NVMe/TCP host and reads back.
fn verify(cluster: &Cluster, object: &Value) -> Result<String, basalt_e2e::Error> {
    host(cluster, object, &["--seed=1"])
}

/// The same, also while a daemon is coming back: statuses tell what was seen last.
fn verify_soon(cluster: &Cluster, object: &Value) {
    let started = Instant::now();
    // An attempt that was cut short leaves a part of the pattern.
    while let Err(error) = host(cluster, object, &["--seed=1", "--overwrite"]) {
        assert!(started.elapsed() < ONLINE_DEADLINE, "{error}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn host(cluster: &Cluster, object: &Value, args: &[&str]) -> Result<String, basalt_e2e::Error> {
    let nqn = object["status"]["nqn"].as_str().unwrap();
    let path = &object["status"]["paths"][0];
    let address = format!("{}:{}", path["address"].as_str().unwrap(), path["port"]);
    let mut all = vec!["verify", "--address", &address, "--nqn", nqn];
    if !args.iter().any(|argument| argument.starts_with("--size=")) {
        all.push("--size=16MiB");
    }
    all.extend_from_slice(args);
    cluster.basalt(&all)
}

fn up_announces_what_scripts_need(cluster: &Cluster) {
    let lines = cluster.announced();
    let kubeconfig = lines.iter().find_map(|line| line.strip_prefix("KUBECONFIG=")).unwrap();
    assert!(Path::new(kubeconfig).is_file());
    let volumes: Vec<&String> = lines.iter().filter(|line| line.starts_with("VOLUME ")).collect();
    let object = online(cluster, "data");
    let path = &object["status"]["paths"][0];
    let expected = format!(
        "VOLUME data NQN={} ADDRESS={}:{}",
        object["status"]["nqn"].as_str().unwrap(),
        path["address"].as_str().unwrap(),
        path["port"]
    );
    assert_eq!(volumes, [&expected]);
    assert_eq!(lines.last(), Some(&expected));
    let table = cluster.kubectl(&["get", "bsn,bv"], "").unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    let lines = table.lines().filter(|line| line.contains(" Online ")).count();
    assert_eq!(lines, 4, "three nodes and a volume:\n{table}");
}

fn wrong_input_is_refused_with_the_field_and_the_remedy(cluster: &Cluster) {
    for (manifest, words) in [
        (format!("{}  replicas: 2\n", volume("wrong", "64Mi")), "spec.replicas"),
        (volume("wrong", "banana"), "spec.size"),
        (volume("data", "256Mi"), "can never shrink"),
        (volume("wrong", "64Mi").replace("\"*\"", "\"somebody\""), "spec.allowedHosts"),
        (volume("wrong", "64Mi").replace("size", "sise"), "sise"),
    ] {
        let refusal = cluster.apply(&manifest).unwrap_err().to_string();
        assert!(refusal.contains(words), "{manifest}\n{refusal}");
    }
    assert!(cluster.get("volumes", "wrong").unwrap().is_none());
}

fn what_cannot_be_placed_says_so_and_can_be_deleted(cluster: &Cluster) {
    cluster.apply(&volume("too-large", "10Ti")).unwrap();
    let object = cluster
        .wait("volumes", "too-large", ONLINE_DEADLINE, "refused", |object| {
            condition(object, "Ready").is_some_and(|ready| ready["reason"] == "NoRoom")
        })
        .unwrap();
    assert!(!is_online(&object));
    let events = cluster.kubectl(&["get", "events", "--all-namespaces", "--output=json"], "").unwrap();
    let events: Value = serde_json::from_slice(&events.stdout).unwrap();
    let told = events["items"].as_array().unwrap().iter().any(|event| {
        let about = if event["regarding"].is_null() { &event["involvedObject"] } else { &event["regarding"] };
        about["name"] == "too-large" && event["type"] == "Warning"
    });
    assert!(told, "no warning among the events: {events}");
    delete(cluster, "too-large");
}

fn a_volume_is_created_used_and_deleted(cluster: &Cluster) {
    cluster.apply(&volume("short-lived", "64Mi")).unwrap();
    let object = online(cluster, "short-lived");
    verify(cluster, &object).unwrap();
    protected(cluster, &object);
    delete(cluster, "short-lived");
    assert!(verify(cluster, &object).is_err(), "a deleted volume must not be served");
}

/// Hosts are kept from writing while the object says so.
fn protected(cluster: &Cluster, object: &Value) {
    let name = object["metadata"]["name"].as_str().unwrap();
    let set = |read_only: bool| {
        let patch = format!("{{\"spec\": {{\"readOnly\": {read_only}}}}}");
        let args = ["patch", "volumes.basalt.storage", name, "--type=merge", "--patch", &patch];
        assert!(cluster.kubectl(&args, "").unwrap().status.success());
    };
    set(true);
    let started = Instant::now();
    let refused = loop {
        if let Err(error) = host(cluster, object, &["--seed=1", "--overwrite"]) {
            break error.to_string();
        }
        assert!(started.elapsed() < ONLINE_DEADLINE, "hosts still write");
    };
    assert!(refused.to_lowercase().contains("write protected"), "{refused}");
    cluster
        .wait("volumes", name, ONLINE_DEADLINE, "protected", |object| {
            let message = condition(object, "Ready").and_then(|ready| ready["message"].as_str());
            message.is_some_and(|message| message.contains("spec.readOnly"))
        })
        .unwrap();
    set(false);
    verify_soon(cluster, object);
}

fn every_query_of_dashboards_and_rules_is_answered(cluster: &Cluster) {
    packages::ensure(packages::PROMETHEUS, &mut |text| eprintln!("{text}")).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboards");
    let queries = dashboards::queries(&folder).unwrap();
    assert!(!queries.is_empty());
    let rules: Vec<PathBuf> = std::fs::read_dir(folder.join("rules"))
        .unwrap()
        .map(|entry| entry.unwrap().path().canonicalize().unwrap())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let prometheus = Prometheus::start(dir.path(), &cluster.metrics_targets().unwrap(), &rules).unwrap();
    prometheus.wait_scraped(4).unwrap();
    let counted = use_while_watched(cluster, &prometheus);

    let names = prometheus.metric_names().unwrap();
    let mut wrong = Vec::new();
    let mut check = |place: &str, expression: &str, may_be_empty: bool| {
        for name in dashboards::metric_names(expression) {
            if !names.contains(&name) {
                wrong.push(format!("{place}: there is no metric {name}"));
            }
        }
        match prometheus.query(expression) {
            Ok(result) if result.iter().all(|series| series["value"][1] == "NaN") && !may_be_empty => {
                wrong.push(format!("{place}: nothing for {expression}"))
            }
            Ok(_) => {}
            Err(error) => wrong.push(format!("{place}: {error}")),
        }
    };
    for query in &queries {
        let place = format!("{} panel {}", query.file.display(), query.panel);
        check(&place, &query.expression, query.may_be_empty);
    }
    for (name, query) in prometheus.rules().unwrap() {
        // An alert that does not fire gives nothing.
        check(&format!("rule {name}"), &query, true);
    }
    assert!(wrong.is_empty(), "{}\nmetrics: {names:#?}", wrong.join("\n"));
    delete(cluster, "watched");
    prometheus.wait_gone(&counted).unwrap();
}

/// Rates and quantiles are of what happens while Prometheus looks: a volume that is created, written and read. Answers the query
/// for its counters.
fn use_while_watched(cluster: &Cluster, prometheus: &Prometheus) -> String {
    cluster.apply(&volume("watched", "64Mi")).unwrap();
    let object = online(cluster, "watched");
    let id = object["status"]["volumeId"].as_str().unwrap();
    let counted = format!("basalt_volume_io_operations_total{{volume_id=\"{id}\"}}");
    prometheus.wait_for(&counted).unwrap();
    verify(cluster, &object).unwrap();
    for kind in ["read", "write"] {
        let bytes = format!(
            "basalt_volume_io_bytes_total{{kind=\"{kind}\"}} * on (volume_id) group_left (volume) \
             basalt_volume_info{{volume=\"watched\"}} >= {}",
            16 << 20
        );
        prometheus.wait_for(&bytes).unwrap();
    }
    counted
}

fn linux_keeps_its_volume_when_the_daemon_is_killed(cluster: &Cluster) {
    let image = Image::ensure(&mut |text| eprintln!("{text}")).unwrap();
    cluster.apply(&volume("linux", "320Mi")).unwrap();
    let object = online(cluster, "linux");
    let path = &object["status"]["paths"][0];
    let process = format!("basaltd-{}", path["node"].as_str().unwrap());
    let killed = Cell::new(None);
    let grown: u64 = 448 << 20;
    let outcome = Guest::new(&image)
        .env("ADDRESS", "10.0.2.2")
        .env("PORT", &path["port"].to_string())
        .env("NQN", object["status"]["nqn"].as_str().unwrap())
        .env("SIZE", &(320u64 << 20).to_string())
        .env("GROWN", &grown.to_string())
        .hook("grow", |_| i32::from(cluster.apply(&volume("linux", "448Mi")).is_err()))
        .hook("kill", |_| {
            killed.set(cluster.pid(&process).unwrap());
            signal(cluster, &process, Signal::KILL);
            0
        })
        .hook("start", |_| {
            restarted(cluster, &process, killed.get());
            0
        })
        .deadline(Duration::from_secs(420))
        .run(include_str!("guest/nvme-tcp.sh"))
        .unwrap();
    assert_eq!(outcome.status, 0, "{}", outcome.output);
    assert_eq!(online(cluster, "linux")["status"]["size"], "448Mi");
    delete(cluster, "linux");
}

fn every_process_survives_sigkill(cluster: &Cluster) {
    cluster.apply(&volume("survivor", "64Mi")).unwrap();
    let before = online(cluster, "survivor");
    for process in cluster.processes().unwrap() {
        let killed = cluster.pid(&process).unwrap();
        signal(cluster, &process, Signal::KILL);
        restarted(cluster, &process, killed);
        // The whole path works again: an object that is new reaches a daemon and comes back.
        let name = format!("after-{process}");
        applied(cluster, &volume(&name, "16Mi"));
        let object = online(cluster, &name);
        verify_soon(cluster, &object);
        let old = online(cluster, "survivor");
        for field in ["nqn", "uuid", "volumeId", "paths"] {
            assert_eq!(old["status"][field], before["status"][field], "{field} after {process} was killed");
        }
        delete(cluster, &name);
    }
    verify_soon(cluster, &before);
    delete(cluster, "survivor");
}

fn a_daemon_that_hangs_shows_within_ten_seconds(cluster: &Cluster) {
    let object = online(cluster, "data");
    let node = object["status"]["paths"][0]["node"].as_str().unwrap().to_owned();
    let process = format!("basaltd-{node}");
    signal(cluster, &process, Signal::STOP);
    let noticed = cluster
        .wait("storagenodes", &node, NOTICED_DEADLINE, "offline", |object| phase(object) == "Offline")
        .and_then(|_| {
            cluster.wait("volumes", "data", NOTICED_DEADLINE, "unavailable", |object| !is_online(object))
        });
    signal(cluster, &process, Signal::CONT);
    noticed.unwrap();
    cluster.wait("storagenodes", &node, ONLINE_DEADLINE, "online", is_online).unwrap();
    let object = online(cluster, "data");
    verify_soon(cluster, &object);
}

fn an_apiserver_that_hangs_does_no_harm(cluster: &Cluster) {
    let object = online(cluster, "data");
    signal(cluster, "kube-apiserver", Signal::STOP);
    // Longer than the operator's lease, so that it has to give up and come back.
    let served = (0..4).try_for_each(|_| {
        std::thread::sleep(Duration::from_secs(5));
        verify(cluster, &object).map(|_| ())
    });
    signal(cluster, "kube-apiserver", Signal::CONT);
    served.unwrap();
    applied(cluster, &volume("after-the-hang", "16Mi"));
    verify(cluster, &online(cluster, "after-the-hang")).unwrap();
    delete(cluster, "after-the-hang");
    assert_eq!(online(cluster, "data")["status"]["nqn"], object["status"]["nqn"]);
}

fn a_second_daemon_of_one_identity_does_no_harm(cluster: &Cluster) {
    let object = online(cluster, "data");
    let node = object["status"]["paths"][0]["node"].as_str().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut impostor = again(cluster, &format!("basaltd-{node}"), dir.path()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(5));
    let served = verify(cluster, &object);
    impostor.kill().unwrap();
    impostor.wait().unwrap();
    let said = std::fs::read_to_string(dir.path().join("log")).unwrap();
    served.unwrap_or_else(|error| panic!("{error}\nthe second daemon said:\n{said}"));
    assert!(!said.is_empty(), "the second daemon must say why it does not work");
    cluster.wait("storagenodes", node, ONLINE_DEADLINE, "online", is_online).unwrap();
    verify(cluster, &online(cluster, "data")).unwrap();
}

fn a_member_on_another_clusters_disk_refuses(cluster: &Cluster) {
    // The disk of member 2 under the name of member 3.
    let dir = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("--recursive")
        .arg(cluster.state().join("data/control-2"))
        .arg(dir.path().join("data"))
        .status()
        .unwrap();
    assert!(copied.success());
    let mut stranger = again(cluster, "control-3", dir.path()).spawn().unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = stranger.try_wait().unwrap() {
            break status;
        }
        assert!(started.elapsed() < Duration::from_secs(10), "it runs on a disk that is not its own");
        std::thread::sleep(Duration::from_millis(50));
    };
    let said = std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(!status.success() && said.contains("member"), "{status}: {said}");
    verify(cluster, &online(cluster, "data")).unwrap();
}

/// The command of a supervised process once more, with a folder and ports of its own; what it says goes to `DIR/log`.
fn again(cluster: &Cluster, process: &str, dir: &Path) -> Command {
    let line = cluster.command_line(process).unwrap();
    let mut ports = basalt_kube::free_ports(line.len()).unwrap().into_iter();
    let mut command = Command::new(&line[0]);
    for word in &line[1..] {
        let flag = word.split('=').next().unwrap();
        command.arg(match flag {
            "--data-dir" => format!("{flag}={}", dir.join("data").display()),
            flag if flag.ends_with("-listen") => format!("{flag}=127.0.0.1:{}", ports.next().unwrap()),
            _ => word.clone(),
        });
    }
    let log = std::fs::File::create(dir.join("log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command
}

fn data_survives_down_and_up(cluster: &Cluster) {
    let before = online(cluster, "data");
    host(cluster, &before, &["--seed=7", "--overwrite"]).unwrap();
    // Behind it stands what `up` wrote: that is not this pattern.
    let refusal = host(cluster, &before, &["--size=32MiB", "--seed=7"]).unwrap_err().to_string();
    assert!(refusal.contains("holds data") && refusal.contains("--overwrite"), "{refusal}");
    cluster.down().unwrap();
    assert!(cluster.processes().unwrap().is_empty());
    cluster.up_again().unwrap();
    let after = online(cluster, "data");
    for field in ["nqn", "uuid", "volumeId"] {
        assert_eq!(after["status"][field], before["status"][field], "{field} after a restart");
    }
    host(cluster, &after, &["--seed=7", "--check-only"]).unwrap();
}

fn signal(cluster: &Cluster, process: &str, signal: Signal) {
    let pid = cluster.pid(process).unwrap().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Waits until the supervisor has started the process again, under another id.
fn restarted(cluster: &Cluster, process: &str, killed: Option<i32>) {
    let started = Instant::now();
    while cluster.pid(process).unwrap() == killed {
        assert!(started.elapsed() < ONLINE_DEADLINE, "{process} was not started again");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Applies, also while the apiserver is coming back.
fn applied(cluster: &Cluster, manifest: &str) {
    let started = Instant::now();
    while let Err(error) = cluster.apply(manifest) {
        assert!(started.elapsed() < ONLINE_DEADLINE, "{error}");
        std::thread::sleep(Duration::from_millis(200));
    }
}
