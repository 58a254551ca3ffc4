//! A real apiserver takes the definitions and the examples, and refuses what is wrong with the words that we wrote.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use basalt_kube::Fixture;

const VOLUME: &str =
    "{apiVersion: basalt.storage/v1alpha1, kind: Volume, metadata: {name: data}, spec: {size: 1Gi SPEC}}";
const NODE: &str = "{apiVersion: basalt.storage/v1alpha1, kind: StorageNode, metadata: {name: extra}, spec: \
    {address: 192.0.2.7, listeners: [{name: tcp, bind: '192.0.2.7:4420'}], \
    pools: [{name: fast, disks: [/dev/disk/by-id/nvme-a]}] SPEC}}";

fn apply(fixture: &Fixture, manifest: &str) -> Output {
    let mut child = fixture
        .kubectl()
        .args(["apply", "--server-side", "--force-conflicts", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[track_caller]
fn accepted(fixture: &Fixture, manifest: &str) {
    let output = apply(fixture, manifest);
    assert!(output.status.success(), "{manifest}: {}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn refused(fixture: &Fixture, manifest: &str, words: &[&str]) {
    let output = apply(fixture, manifest);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "accepted {manifest}");
    for words in words {
        assert!(said.contains(words), "wanted {words:?} in {said:?}");
    }
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(path).unwrap().replace("${BASALT_STATE}", "/var/lib/basalt")
}

fn output(fixture: &Fixture, args: &[&str]) -> String {
    let output = fixture.kubectl().args(args).output().unwrap();
    assert!(output.status.success(), "kubectl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn definitions_examples_and_refusals() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::start(dir.path()).unwrap();
    for manifest in basalt_crds::manifests().unwrap() {
        accepted(&fixture, &manifest.content);
    }
    output(&fixture, &["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"]);
    for example in ["node-1", "node-2", "node-3", "volume"] {
        accepted(&fixture, &read(&format!("examples/{example}.yaml")));
    }
    defaults_columns_and_short_names(&fixture);
    wrong_volumes(&fixture);
    wrong_nodes(&fixture);
    changes(&fixture);
}

fn defaults_columns_and_short_names(fixture: &Fixture) {
    let spec = output(fixture, &["get", "bv", "data", "-o", "jsonpath={.spec}"]);
    for default in [
        r#""replicas":1"#,
        r#""thin":false"#,
        r#""readOnly":false"#,
        r#""transport":"tcp""#,
        r#""reclaimPolicy":"Delete""#,
    ] {
        assert!(spec.contains(default), "wanted {default} in {spec}");
    }
    let volumes = output(fixture, &["get", "bv"]);
    assert!(
        volumes.starts_with("NAME   PHASE   SIZE    READY   REASON   SYNCED   NODE   ADDRESS   USED   AGE"),
        "{volumes}"
    );
    let nodes = output(fixture, &["get", "bsn"]);
    assert!(
        nodes.starts_with(
            "NAME     PHASE   READY   REASON   SYNCED   CORDONED   CAPACITY   USED   VOLUMES   VERSION   AGE"
        ),
        "{nodes}"
    );
}

fn wrong_volumes(fixture: &Fixture) {
    for (change, words) in [
        (VOLUME.replace("1Gi SPEC", "1.5Gi"), ["spec.size", "positive whole number"]),
        (VOLUME.replace("1Gi SPEC", "0"), ["spec.size", "positive whole number"]),
        (VOLUME.replace("1Gi SPEC", "1000"), ["spec.size", "multiple of 1Mi"]),
        (VOLUME.replace("SPEC", ", replicas: 2"), ["spec.replicas", "until replication exists"]),
        (VOLUME.replace("SPEC", ", allowedHosts: [host]"), ["spec.allowedHosts", "must be host NQNs"]),
        (VOLUME.replace("SPEC", ", transport: rdma"), ["spec.transport", "supported values: \"tcp\""]),
        (VOLUME.replace("SPEC", ", volumeId: x"), ["spec.volumeId", "lower-case UUID"]),
        (VOLUME.replace("SPEC", ", encryption: {}"), ["spec.encryption", "not declared in schema"]),
        (
            VOLUME.replace("name: data", &format!("name: {}", "v".repeat(64))).replace("SPEC", ""),
            ["metadata.name", "63 characters"],
        ),
    ] {
        refused(fixture, &change.replace("name: data", "name: wrong"), &words);
    }
}

fn wrong_nodes(fixture: &Fixture) {
    for (from, to, words) in [
        ("address: 192.0.2.7", "address: storage-1", ["spec.address", "must be an IP address"]),
        ("192.0.2.7:4420", "192.0.2.7", ["spec.listeners[0].bind", "must be an IP address and a port"]),
        ("192.0.2.7:4420", "192.0.2.7:70000", ["spec.listeners[0].bind", "from 1 to 65535"]),
        ("192.0.2.7:4420", "0.0.0.0:4420", ["spec.listeners[0]", "advertise is required"]),
        ("192.0.2.7:4420", "224.0.0.1:4420", ["spec.listeners[0].bind", "not a multicast"]),
        ("192.0.2.7:4420", "[ff02::1]:4420", ["spec.listeners[0].bind", "not a multicast"]),
        (
            "'192.0.2.7:4420'",
            "'[::]:1', advertise: '239.0.0.1:1'",
            ["spec.listeners[0].advertise", "multicast"],
        ),
        ("address: 192.0.2.7", "address: 255.255.255.255", ["spec.address", "not the broadcast one"]),
        ("192.0.2.7:4420", "[::0]:4420", ["spec.listeners[0]", "advertise is required"]),
        ("address: 192.0.2.7", "address: 0.0.0.0", ["spec.address", "not a wildcard"]),
        (
            "[{name: tcp, bind: '192.0.2.7:4420'}]",
            "[{name: a, bind: '192.0.2.7:1'}, {name: b, bind: '[::]:1', advertise: '192.0.2.7:1'}]",
            ["spec.listeners", "take their port on every address"],
        ),
        ("/dev/disk/by-id/nvme-a", "/a//x", ["spec.pools[0].disks", "without //"]),
        ("/dev/disk/by-id/nvme-a", "/dev/sda", ["spec.pools[0].disks", "survive a reboot"]),
        ("/dev/disk/by-id/nvme-a", "disk.img", ["spec.pools[0].disks", "must be absolute paths"]),
        ("SPEC", ", cores: 0", ["spec.cores", "at least 1"]),
        ("SPEC", ", cores: 9999", ["spec.cores", "up to 1023"]),
        ("SPEC", ", cores: '0-1024'", ["spec.cores", "up to 1023"]),
        ("SPEC", ", cores: all", ["spec.cores", "a list of cores"]),
    ] {
        refused(fixture, &NODE.replace(from, to).replace("SPEC", ""), &words);
    }
    accepted(fixture, &NODE.replace("SPEC", ", cores: '0,2-5'"));
}

fn changes(fixture: &Fixture) {
    let with_size = |size: &str| VOLUME.replace("1Gi SPEC", size);
    accepted(fixture, &with_size("536870912"));
    refused(fixture, &with_size("256Mi"), &["spec.size", "can never shrink"]);
    accepted(fixture, &with_size("1Gi"));
    refused(fixture, &VOLUME.replace("SPEC", ", thin: true"), &["spec.thin is immutable"]);
    refused(
        fixture,
        &VOLUME.replace("1Gi SPEC", "1Gi, topology: {node: node-2}"),
        &["spec.topology is immutable"],
    );
}
