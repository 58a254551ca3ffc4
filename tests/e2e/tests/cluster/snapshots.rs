//! Thin volumes and snapshots, used by a Linux guest and driven with kubectl.

use std::cell::RefCell;
use std::time::Duration;

use basalt_e2e::cluster::Cluster;
use basalt_e2e::guest::{Guest, Image};
use serde_json::Value;

use super::{ONLINE_DEADLINE, delete, is_online, online, phase};

/// Pools and volumes report what is used every 15 s, and space comes back in the look after the discard.
const REPORTED_DEADLINE: Duration = Duration::from_secs(90);

fn thin(name: &str, more: &str) -> String {
    format!(
        "apiVersion: basalt.storage/v1alpha1\nkind: Volume\nmetadata:\n  name: {name}\nspec:\n  size: 320Mi\n  thin: true\n  \
         allowedHosts: [\"*\"]\n{more}"
    )
}

fn snapshot(name: &str, of: &str) -> String {
    format!(
        "apiVersion: basalt.storage/v1alpha1\nkind: Snapshot\nmetadata:\n  name: {name}\nspec:\n  volume: {of}\n"
    )
}

/// A quantity of a status in bytes.
fn bytes(quantity: &Value) -> u64 {
    let text = quantity.as_str().unwrap_or("0");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match &text[digits..] {
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        _ => 0,
    };
    text[..digits].parse::<u64>().unwrap_or(0) << shift
}

/// Waits until the volume, and the pool that holds it, have come down to this many bytes.
fn comes_down_to(cluster: &Cluster, name: &str, most: u64) -> Result<(), basalt_e2e::Error> {
    let fits = |object: &Value| bytes(&object["status"]["used"]) <= most;
    let object = cluster.wait("volumes", name, REPORTED_DEADLINE, "trimmed", fits)?;
    let node = object["status"]["replicas"][0]["node"].as_str().unwrap_or_default().to_owned();
    let provisioned = |object: &Value| bytes(&object["status"]["pools"][0]["committed"]);
    // What thick volumes have stays taken.
    let fits = |object: &Value| bytes(&object["status"]["used"]) <= provisioned(object) + most + (8 << 20);
    cluster.wait("storagenodes", &node, REPORTED_DEADLINE, "given space back", fits)?;
    Ok(())
}

/// Waits until the volume has taken at least this many bytes.
fn has_taken(cluster: &Cluster, name: &str, least: u64) -> Result<(), basalt_e2e::Error> {
    let fits = |object: &Value| bytes(&object["status"]["used"]) >= least;
    cluster.wait("volumes", name, REPORTED_DEADLINE, "written", fits).map(|_| ())
}

/// Takes a snapshot of the first volume and restores it into another one.
fn snapshot_and_restore(cluster: &Cluster, environment: &RefCell<String>) -> Result<(), basalt_e2e::Error> {
    cluster.apply(&snapshot("moment", "thin"))?;
    cluster.wait("snapshots", "moment", ONLINE_DEADLINE, "ready", |object| phase(object) == "Ready")?;
    cluster.apply(&thin("restored", "  source: {snapshot: moment}\n"))?;
    let restored = cluster.wait("volumes", "restored", ONLINE_DEADLINE, "online", is_online)?;
    *environment.borrow_mut() = restored["status"]["nqn"].as_str().unwrap_or_default().to_owned();
    Ok(())
}

/// In a guest: `fstrim` on ext4 and XFS gives space back to the pool, as kubectl shows it; a snapshot that is taken with kubectl while
/// fio runs mounts clean after it was restored, and what was restored outlives its snapshot.
pub(super) fn trim_and_snapshots(cluster: &Cluster) {
    let image = Image::ensure(&mut |text| eprintln!("{text}")).unwrap();
    cluster.apply(&thin("thin", "")).unwrap();
    let object = online(cluster, "thin");
    let path = &object["status"]["paths"][0];
    let restored = RefCell::new(String::new());
    let hook = |outcome: Result<(), basalt_e2e::Error>| match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    };
    let mib = |words: &[&str]| words.first().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) << 20;
    let outcome = Guest::new(&image)
        .env("ADDRESS", "10.0.2.2")
        .env("PORT", &path["port"].to_string())
        .env("NQN", object["status"]["nqn"].as_str().unwrap())
        .hook("written", |words| hook(has_taken(cluster, "thin", mib(words))))
        .hook("trimmed", |words| hook(comes_down_to(cluster, "thin", mib(words))))
        .hook("snapshot", |_| hook(snapshot_and_restore(cluster, &restored)))
        .hook("forget", |_| {
            let args = ["delete", "snapshots.basalt.storage", "moment", "--wait=false"];
            let asked = cluster.kubectl(&args, "").map(|_| ());
            hook(asked.and_then(|()| cluster.wait_gone("snapshots", "moment", ONLINE_DEADLINE)))
        })
        .deadline(Duration::from_secs(540))
        .run(include_str!("../guest/thin.sh"))
        .unwrap();
    assert_eq!(outcome.status, 0, "{}", outcome.output);
    delete(cluster, "restored");
    delete(cluster, "thin");
}
