//! Full and read-only disks, under a pool and under a member of the control plane.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use basalt_e2e::cluster::Cluster;
use basalt_e2e::mounts::Mount;
use serde_json::{Value, json};

use super::{ONLINE_DEADLINE, applied, condition, delete, is_online, online, verify, volume};

const NODE: &str = "node-1";
const MEMBER: &str = "control-3";

/// Gives the node a second pool, which then says something; the first pool must stay as it is.
struct SecondPool<'a> {
    cluster: &'a Cluster,
    before: Value,
}

impl<'a> SecondPool<'a> {
    fn add(cluster: &'a Cluster, disk: &Path) -> Self {
        let node = cluster.get("storagenodes", NODE).unwrap().unwrap();
        let before = node["spec"]["pools"].clone();
        let mut pools = before.clone();
        let second = json!({"name": "second", "disks": [disk], "labels": {"disk": "second"}, "allocationUnit": "256Ki"});
        pools.as_array_mut().unwrap().push(second);
        patch(cluster, &pools);
        Self { cluster, before }
    }

    fn wait(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let holds = |object: &Value| condition(object, "PoolsReady").is_some_and(&holds);
        let object = self.cluster.wait("storagenodes", NODE, ONLINE_DEADLINE, what, holds).unwrap();
        verify(self.cluster, &online(self.cluster, "data")).unwrap();
        object
    }

    fn remove(self) {
        patch(self.cluster, &self.before);
        self.wait("as it was", |pools| pools["status"] == "True");
        self.cluster.wait("storagenodes", NODE, ONLINE_DEADLINE, "online", is_online).unwrap();
    }
}

fn patch(cluster: &Cluster, pools: &Value) {
    let patch = json!({"spec": {"pools": pools}}).to_string();
    let args = ["patch", "storagenodes.basalt.storage", NODE, "--type=merge", "--patch", &patch];
    let output = cluster.kubectl(&args, "").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn sparse(path: &Path) {
    File::create(path).unwrap().set_len(256 << 20).unwrap();
}

pub(super) fn a_pool_on_a_read_only_disk_says_so(cluster: &Cluster) {
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount::in_memory(&dir.path().join("disk"), 64).unwrap();
    let disk = mount.path().join("disk.img");
    sparse(&disk);
    mount.make_read_only().unwrap();
    let second = SecondPool::add(cluster, &disk);
    let node = second.wait("told of the read-only disk", |pools| pools["status"] == "False");
    let message = condition(&node, "PoolsReady").unwrap()["message"].as_str().unwrap().to_owned();
    assert!(message.contains("second") && message.to_lowercase().contains("read-only"), "{message}");
    second.remove();
}

pub(super) fn a_pool_whose_disk_has_no_room_says_so(cluster: &Cluster) {
    let dir = tempfile::tempdir().unwrap();
    // It promises more than the file system under it has, which cannot even keep the 5 MiB that the pool needs for itself.
    let mount = Mount::in_memory(&dir.path().join("disk"), 4).unwrap();
    let disk = mount.path().join("disk.img");
    sparse(&disk);
    let second = SecondPool::add(cluster, &disk);
    let node = second.wait("a second pool, and what it lacks", |pools| {
        pools["status"] == "False"
            && pools["message"].as_str().is_some_and(|said| said.contains("has no room"))
    });
    // It has the unit of allocation that is asked for.
    let units: Vec<_> =
        node["status"]["pools"].as_array().unwrap().iter().map(|pool| &pool["allocationUnit"]).collect();
    assert_eq!(units, ["1Mi", "256Ki"]);
    mount.fill().unwrap();
    let there = volume("crowded", "64Mi") + "  topology:\n    poolLabels:\n      disk: second\n";
    cluster.apply(&there).unwrap();
    let deadline = Instant::now() + ONLINE_DEADLINE;
    let told = |object: &Value, kind| {
        let message = condition(object, kind).and_then(|condition| condition["message"].as_str());
        message.is_some_and(|message| message.contains("no capacity left"))
    };
    loop {
        let object = cluster.get("volumes", "crowded").unwrap().unwrap_or_default();
        let node = cluster.get("storagenodes", NODE).unwrap().unwrap_or_default();
        assert!(!is_online(&object), "a volume without space is said to be online: {object}");
        if told(&object, "Ready") && told(&node, "PoolsReady") {
            break;
        }
        assert!(Instant::now() < deadline, "who does not speak of the space?\n{object}\n{node}");
        std::thread::sleep(Duration::from_millis(200));
    }
    verify(cluster, &online(cluster, "data")).unwrap();
    // With room again it comes by itself.
    mount.free().unwrap();
    online(cluster, "crowded");
    delete(cluster, "crowded");
    second.remove();
}

pub(super) fn a_member_on_a_full_disk_says_so_and_comes_back(cluster: &Cluster) {
    cluster.down().unwrap();
    let data = cluster.state().join("data").join(MEMBER);
    let kept = cluster.state().join("data").join("kept");
    fs::rename(&data, &kept).unwrap();
    let mount = Mount::in_memory(&data, 64).unwrap();
    copy(&kept, &data);
    cluster.up_again().unwrap();

    mount.fill().unwrap();
    let deadline = Instant::now() + ONLINE_DEADLINE;
    let mut count = 0;
    let said = |cluster: &Cluster| {
        let log = cluster.log_tail(MEMBER, 60);
        log.contains("No space left on device") && log.contains("free space on the disk")
    };
    while !said(cluster) {
        assert!(Instant::now() < deadline, "{}", cluster.log_tail(MEMBER, 20));
        // Two of three go on.
        let name = format!("meanwhile-{count}");
        applied(cluster, &volume(&name, "16Mi"));
        verify(cluster, &online(cluster, &name)).unwrap();
        delete(cluster, &name);
        count += 1;
    }
    mount.free().unwrap();
    while !is_in_step(cluster) {
        assert!(Instant::now() < deadline + ONLINE_DEADLINE, "{}", members(cluster));
        std::thread::sleep(Duration::from_millis(200));
    }

    cluster.down().unwrap();
    fs::remove_dir_all(&kept).unwrap();
    copy(&data, &kept);
    drop(mount);
    fs::remove_dir(&data).unwrap();
    fs::rename(&kept, &data).unwrap();
    cluster.up_again().unwrap();
}

fn members(cluster: &Cluster) -> String {
    cluster.basalt(&["--output=json", "members", "list"]).unwrap_or_default()
}

/// All three take part, and none lags behind.
fn is_in_step(cluster: &Cluster) -> bool {
    let members: Value = serde_json::from_str(&members(cluster)).unwrap_or_default();
    members["members"]
        .as_array()
        .is_some_and(|list| list.len() == 3 && list.iter().all(|member| member["lag"] == 0))
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").args(["--archive", "--no-target-directory"]).arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}
