//! What the apiserver refuses, with which words, evaluated from the generated definitions without a cluster.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use basalt_crds::{Snapshot, StorageNode, Volume};
use kube::CustomResourceExt;
use kube::core::cel::{Validator, apply_defaults};
use serde_json::{Value, json};

fn schema<K: CustomResourceExt>() -> Value {
    let version = K::crd().spec.versions.remove(0);
    serde_json::to_value(version.schema.unwrap().open_api_v3_schema.unwrap()).unwrap()
}

/// All messages that the rules of `K` have about `object`, as a change of `old` if there is one.
fn refusals<K: CustomResourceExt>(object: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema::<K>();
    let object = apply_defaults(&schema, object);
    let old = old.map(|old| apply_defaults(&schema, old));
    match Validator::new().validate(&schema, &object, old.as_ref()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_vec().into_iter().map(|error| error.message).collect(),
    }
}

fn volume(spec: Value) -> Value {
    json!({
        "apiVersion": "basalt.storage/v1alpha1", "kind": "Volume",
        "metadata": { "name": "data" }, "spec": spec,
    })
}

fn node(change: impl FnOnce(&mut Value)) -> Value {
    let mut node = json!({
        "apiVersion": "basalt.storage/v1alpha1", "kind": "StorageNode",
        "metadata": { "name": "node-1" },
        "spec": {
            "address": "192.0.2.7",
            "listeners": [{ "name": "tcp", "bind": "192.0.2.7:4420" }],
            "pools": [{ "name": "fast", "disks": ["/dev/disk/by-id/nvme-a"] }],
        },
    });
    change(&mut node["spec"]);
    node
}

#[track_caller]
fn refused<K: CustomResourceExt>(object: &Value, old: Option<&Value>, words: &str) {
    let messages = refusals::<K>(object, old);
    assert!(messages.iter().any(|message| message.contains(words)), "wanted {words:?} in {messages:?}");
}

#[track_caller]
fn accepted<K: CustomResourceExt>(object: &Value, old: Option<&Value>) {
    assert_eq!(refusals::<K>(object, old), Vec::<String>::new());
}

#[test]
fn sizes() {
    for size in
        [json!("512Mi"), json!("10Gi"), json!("100Ti"), json!("1Pi"), json!("1048576"), json!(1_048_576)]
    {
        accepted::<Volume>(&volume(json!({ "size": size })), None);
    }
    for size in [
        json!("0"),
        json!("-1Gi"),
        json!("1.5Gi"),
        json!("10G"),
        json!("ten"),
        json!(""),
        json!(0),
        json!(-1),
    ] {
        refused::<Volume>(
            &volume(json!({ "size": size })),
            None,
            "spec.size must be a positive whole number",
        );
    }
    for size in [json!("1000"), json!(1_048_577)] {
        refused::<Volume>(&volume(json!({ "size": size })), None, "spec.size must be a multiple of 1Mi");
    }
    refused::<Volume>(&volume(json!({ "size": "2Pi" })), None, "at most 1Pi");
}

#[test]
fn a_size_never_shrinks_and_may_be_written_differently() {
    let old = volume(json!({ "size": "2Gi" }));
    refused::<Volume>(&volume(json!({ "size": "1Gi" })), Some(&old), "can never shrink");
    accepted::<Volume>(&volume(json!({ "size": "3Gi" })), Some(&old));
    accepted::<Volume>(&volume(json!({ "size": "2048Mi" })), Some(&old));
    accepted::<Volume>(&volume(json!({ "size": 2_147_483_648_u64 })), Some(&old));
}

#[test]
fn what_does_not_exist_yet_is_refused() {
    refused::<Volume>(&volume(json!({ "size": "1Gi", "replicas": 2 })), None, "until replication exists");
    refused::<Volume>(&volume(json!({ "size": "1Gi", "replicas": 0 })), None, "spec.replicas must be 1");
}

#[test]
fn thin_is_for_good() {
    let (thin, thick) = (volume(json!({ "size": "1Gi", "thin": true })), volume(json!({ "size": "1Gi" })));
    accepted::<Volume>(&thin, None);
    accepted::<Volume>(&thin, Some(&thin));
    refused::<Volume>(&thin, Some(&thick), "spec.thin is immutable");
    refused::<Volume>(&thick, Some(&thin), "spec.thin is immutable");
}

#[test]
fn a_volume_is_restored_thin_and_once() {
    let from =
        |snapshot: &str| volume(json!({ "size": "1Gi", "thin": true, "source": { "snapshot": snapshot } }));
    let blank = volume(json!({ "size": "1Gi", "thin": true }));
    accepted::<Volume>(&from("monday"), None);
    accepted::<Volume>(&from("monday"), Some(&from("monday")));
    refused::<Volume>(&from("tuesday"), Some(&from("monday")), "spec.source is immutable");
    refused::<Volume>(&from("monday"), Some(&blank), "spec.source is immutable");
    refused::<Volume>(&from("Monday!"), None, "spec.source.snapshot must be");
    let thick = volume(json!({ "size": "1Gi", "source": { "snapshot": "monday" } }));
    refused::<Volume>(&thick, None, "spec.thin must be true with spec.source");
    let mut both = from("monday");
    both["spec"]["volumeId"] = json!("0f0f0f0f-0000-4000-8000-000000000001");
    refused::<Volume>(&both, None, "exclude each other");
}

#[test]
fn snapshots() {
    let snapshot = |spec: Value| {
        json!({
            "apiVersion": "basalt.storage/v1alpha1", "kind": "Snapshot",
            "metadata": { "name": "monday" }, "spec": spec,
        })
    };
    let monday = snapshot(json!({ "volume": "data" }));
    accepted::<Snapshot>(&monday, None);
    accepted::<Snapshot>(&snapshot(json!({ "volume": "data", "reclaimPolicy": "Retain" })), Some(&monday));
    refused::<Snapshot>(&snapshot(json!({ "volume": "other" })), Some(&monday), "spec.volume is immutable");
    refused::<Snapshot>(&snapshot(json!({ "volume": "Data!" })), None, "must be the name of a Volume");
    let adopted = snapshot(json!({ "volume": "data", "snapshotId": "0f0f0f0f-0000-4000-8000-000000000001" }));
    accepted::<Snapshot>(&adopted, None);
    refused::<Snapshot>(&adopted, Some(&monday), "spec.snapshotId is immutable");
    refused::<Snapshot>(&snapshot(json!({ "volume": "data", "snapshotId": "x" })), None, "lower-case UUID");
}

#[test]
fn hosts() {
    for hosts in [
        json!([]),
        json!(["*"]),
        json!([
            "nqn.2014-08.org.nvmexpress:uuid:0f0f0f0f-0000-4000-8000-000000000001",
            "nqn.2024-01.com.example:h"
        ]),
    ] {
        accepted::<Volume>(&volume(json!({ "size": "1Gi", "allowedHosts": hosts })), None);
    }
    for hosts in [
        json!(["host-1"]),
        json!(["nqn.2014-8.org:x"]),
        json!(["iqn.1994-05.com.redhat:x"]),
        json!(["nqn.2014-99.x\ty"]),
        json!(["nqn.2014-08.ü"]),
    ] {
        refused::<Volume>(
            &volume(json!({ "size": "1Gi", "allowedHosts": hosts })),
            None,
            "must be host NQNs",
        );
    }
    let both = volume(json!({ "size": "1Gi", "allowedHosts": ["*", "nqn.2024-01.com.example:h"] }));
    refused::<Volume>(&both, None, "remove the other entries");
}

#[test]
fn labels_that_no_pool_has_are_refused() {
    let labelled = |key: &str, value: &str| {
        volume(json!({ "size": "1Gi", "topology": { "poolLabels": { key: value } } }))
    };
    accepted::<Volume>(&labelled("example.com/tier", "fast"), None);
    for key in ["", "b c", "-x", "a/b/c", "UP.com/zone", &"k".repeat(64), "/x", "x/"] {
        refused::<Volume>(&labelled(key, "fast"), None, "topology.poolLabels");
    }
    for value in ["", "a", "nvme-gen4_x.2"] {
        accepted::<Volume>(&labelled("tier", value), None);
    }
    for value in [" ", "b c", "-x", "x/y", "x\n"] {
        refused::<Volume>(
            &labelled("tier", value),
            None,
            "spec.topology.poolLabels must have values of letters",
        );
    }
}

#[test]
fn identity_is_immutable() {
    const ID: &str = "0f0f0f0f-0000-4000-8000-000000000001";
    let without = volume(json!({ "size": "1Gi" }));
    let with = volume(json!({ "size": "1Gi", "volumeId": ID }));
    accepted::<Volume>(&with, None);
    accepted::<Volume>(&with, Some(&with));
    refused::<Volume>(&with, Some(&without), "spec.volumeId is immutable");
    refused::<Volume>(&without, Some(&with), "spec.volumeId is immutable");
    refused::<Volume>(&volume(json!({ "size": "1Gi", "volumeId": "data" })), None, "lower-case UUID");
}

#[test]
fn names_are_bounded() {
    let mut long = volume(json!({ "size": "1Gi" }));
    long["metadata"]["name"] = json!("v".repeat(64));
    refused::<Volume>(&long, None, "metadata.name");
    let mut long = node(|_| ());
    long["metadata"]["name"] = json!("n".repeat(64));
    refused::<StorageNode>(&long, None, "metadata.name");
}

#[test]
fn addresses() {
    for address in ["192.0.2.7", "2001:db8::7"] {
        accepted::<StorageNode>(&node(|spec| spec["address"] = json!(address)), None);
    }
    for address in ["192.0.2.7:4420", "storage-1.example.com", "", "256.0.0.1"] {
        refused::<StorageNode>(&node(|spec| spec["address"] = json!(address)), None, "spec.address");
    }
    for address in ["0.0.0.0", "::", "0:0:0:0:0:0:0:0", "::0"] {
        refused::<StorageNode>(&node(|spec| spec["address"] = json!(address)), None, "not a wildcard");
    }
    for address in ["224.0.0.1", "239.255.255.255", "ff02::1"] {
        refused::<StorageNode>(&node(|spec| spec["address"] = json!(address)), None, "not a multicast one");
    }
}

#[test]
fn listeners() {
    let with = |listener: Value| node(|spec| spec["listeners"] = json!([listener]));
    for bind in ["127.0.0.1:4420", "[2001:db8::7]:4420", "192.0.2.7:65535"] {
        accepted::<StorageNode>(&with(json!({ "name": "tcp", "bind": bind })), None);
    }
    for bind in
        ["127.0.0.1", ":4420", "127.0.0.1:0", "2001:db8::7:4420", "localhost:4420", "[127.0.0.1]:4420"]
    {
        refused::<StorageNode>(
            &with(json!({ "name": "tcp", "bind": bind })),
            None,
            "must be an IP address and a port",
        );
    }
    for bind in ["127.0.0.1:65536", "300.0.0.1:4420", "[2001::db8::7]:4420"] {
        refused::<StorageNode>(&with(json!({ "name": "tcp", "bind": bind })), None, "from 1 to 65535");
    }
    for wildcard in ["0.0.0.0:4420", "[::]:4420", "[0:0:0:0:0:0:0:0]:4420", "[::0]:4420", "[::0.0.0.0]:4420"]
    {
        refused::<StorageNode>(
            &with(json!({ "name": "tcp", "bind": wildcard })),
            None,
            "advertise is required where bind is a wildcard",
        );
        refused::<StorageNode>(
            &with(json!({ "name": "tcp", "bind": "0.0.0.0:4420", "advertise": wildcard })),
            None,
            "not a wildcard",
        );
    }
    accepted::<StorageNode>(
        &with(json!({ "name": "tcp", "bind": "[::]:4420", "advertise": "192.0.2.7:4420" })),
        None,
    );
    refused::<StorageNode>(
        &with(json!({ "name": "TCP", "bind": "127.0.0.1:4420" })),
        None,
        "listeners[].name",
    );
    let twice = node(|spec| {
        spec["listeners"] =
            json!([{ "name": "a", "bind": "127.0.0.1:4420" }, { "name": "b", "bind": "127.0.0.1:4420" }]);
    });
    refused::<StorageNode>(&twice, None, "same address twice");
    let beside = |port: u16| {
        node(|spec| {
            spec["listeners"] = json!([
                { "name": "all", "bind": "0.0.0.0:4420", "advertise": "192.0.2.7:4420" },
                { "name": "one", "bind": format!("127.0.0.1:{port}") },
            ]);
        })
    };
    refused::<StorageNode>(&beside(4420), None, "take their port on every address");
    accepted::<StorageNode>(&beside(4421), None);
}

#[test]
fn pools_and_disks() {
    let with = |disks: Value| node(|spec| spec["pools"] = json!([{ "name": "fast", "disks": disks }]));
    for disk in ["/dev/disk/by-id/wwn-0x5", "/var/lib/basalt/disk..img", "/dev/mapper/vg-lv", "/dev/loop0"] {
        accepted::<StorageNode>(&with(json!([disk])), None);
    }
    for disk in ["disk.img", "./disk.img", "/var/../etc/passwd", "/a/.", "${BASALT_STATE}/disk-0.img"] {
        refused::<StorageNode>(&with(json!([disk])), None, "must be absolute paths");
    }
    for disk in ["/a//x", "//x", "/a/x/"] {
        refused::<StorageNode>(&with(json!([disk])), None, "without // and without / at the end");
    }
    for disk in ["/dev/sda", "/dev/vdb1", "/dev/nvme0n1", "/dev/dm-0"] {
        refused::<StorageNode>(&with(json!([disk])), None, "survive a reboot");
    }
    let shared = node(|spec| {
        spec["pools"] = json!([{ "name": "a", "disks": ["/x", "/y"] }, { "name": "b", "disks": ["/y"] }]);
    });
    refused::<StorageNode>(&shared, None, "must not share a disk");
    refused::<StorageNode>(
        &node(|spec| spec["pools"] = json!([{ "name": "Fast", "disks": ["/x"] }])),
        None,
        "pools[].name",
    );
    accepted::<StorageNode>(&node(|spec| spec["pools"] = json!([])), None);
    let labelled = |key: &str| {
        node(|spec| spec["pools"] = json!([{ "name": "a", "disks": ["/x"], "labels": { key: "fast" } }]))
    };
    accepted::<StorageNode>(&labelled("example.com/tier"), None);
    refused::<StorageNode>(&labelled("bad key!"), None, "pools[].labels");
}

#[test]
fn over_provisioning_has_bounds() {
    let with = |percent: i64| {
        node(|spec| {
            spec["pools"] = json!([{ "name": "a", "disks": ["/x"], "overProvisioningPercent": percent }]);
        })
    };
    for percent in [100, 400, 10_000] {
        accepted::<StorageNode>(&with(percent), None);
    }
    for percent in [-1, 0, 99, 10_001] {
        refused::<StorageNode>(&with(percent), None, "overProvisioningPercent");
    }
}

#[test]
fn a_pool_keeps_its_allocation_unit() {
    let with = |unit: Option<&str>| {
        node(|spec| {
            spec["pools"] = json!([{ "name": "a", "disks": ["/x"] }, { "name": "b", "disks": ["/z"], "allocationUnit": "64Ki" }]);
            if let Some(unit) = unit {
                spec["pools"][0]["allocationUnit"] = json!(unit);
            }
        })
    };
    for unit in [None, Some("64Ki"), Some("128Ki"), Some("256Ki"), Some("512Ki"), Some("1Mi")] {
        accepted::<StorageNode>(&with(unit), None);
        accepted::<StorageNode>(&with(unit), Some(&with(unit)));
    }
    for wrong in ["32Ki", "96Ki", "2Mi", "1024Ki", "65536", "", "64k"] {
        serde_json::from_value::<StorageNode>(with(Some(wrong))).unwrap_err();
    }
    let immutable = "spec.pools[].allocationUnit is immutable";
    refused::<StorageNode>(&with(Some("64Ki")), Some(&with(None)), immutable);
    refused::<StorageNode>(&with(None), Some(&with(Some("64Ki"))), immutable);
    refused::<StorageNode>(&with(Some("64Ki")), Some(&with(Some("128Ki"))), immutable);
    // What is not said is what it is without.
    accepted::<StorageNode>(&with(None), Some(&with(Some("1Mi"))));
}

#[test]
fn a_pool_keeps_its_layout() {
    let with = |layout: Option<&str>| {
        node(|spec| {
            spec["pools"] = json!([
                { "name": "a", "disks": ["/x", "/y"] },
                { "name": "b", "disks": ["/z"], "layout": "Striped" },
            ]);
            if let Some(layout) = layout {
                spec["pools"][0]["layout"] = json!(layout);
            }
        })
    };
    for layout in [None, Some("Concatenated"), Some("Striped")] {
        accepted::<StorageNode>(&with(layout), None);
        accepted::<StorageNode>(&with(layout), Some(&with(layout)));
    }
    let immutable = "spec.pools[].layout is immutable";
    refused::<StorageNode>(&with(Some("Striped")), Some(&with(Some("Concatenated"))), immutable);
    refused::<StorageNode>(&with(Some("Striped")), Some(&with(None)), immutable);
    refused::<StorageNode>(&with(None), Some(&with(Some("Striped"))), immutable);
    // What is not said is what it is without.
    accepted::<StorageNode>(&with(None), Some(&with(Some("Concatenated"))));
    // Pools that come and go are others.
    let mut more = with(None);
    more["spec"]["pools"][1] = json!({ "name": "c", "disks": ["/w"], "layout": "Concatenated" });
    accepted::<StorageNode>(&more, Some(&with(None)));
}

#[test]
fn cores() {
    for cores in [json!(1), json!(1023), json!("0"), json!("0,2-5"), json!("1-3,7"), json!("1023")] {
        accepted::<StorageNode>(&node(|spec| spec["cores"] = cores), None);
    }
    for cores in [json!(0), json!(-1), json!(""), json!("0-"), json!("all"), json!("1, 2")] {
        refused::<StorageNode>(&node(|spec| spec["cores"] = cores), None, "spec.cores");
    }
    for cores in [json!("1024"), json!("0-9999"), json!("1,1030"), json!(1024), json!(9999)] {
        refused::<StorageNode>(&node(|spec| spec["cores"] = cores), None, "up to 1023");
    }
}

#[test]
fn a_placement_is_immutable() {
    let without = volume(json!({ "size": "1Gi" }));
    let with =
        volume(json!({ "size": "1Gi", "topology": { "node": "node-1", "poolLabels": { "tier": "fast" } } }));
    accepted::<Volume>(&with, None);
    accepted::<Volume>(&with, Some(&with));
    refused::<Volume>(&with, Some(&without), "spec.topology is immutable");
    refused::<Volume>(
        &volume(json!({ "size": "1Gi", "topology": { "node": "Node 1" } })),
        None,
        "spec.topology.node",
    );
    refused::<Volume>(
        &volume(json!({ "size": "1Gi", "topology": { "pool": "a/b" } })),
        None,
        "spec.topology.pool",
    );
}
