//! A storage node's own metrics, from the agent's reports. Those of volumes are in [`super::meters`].

use std::sync::Arc;

use ::metrics::{counter, describe_counter, describe_gauge, gauge};
use basalt_agent::{DiskHealth, NodeReport, PoolHealth, VolumeHealth};
use tokio::sync::watch;

use super::meters::VolumeMeters;
use crate::metrics::{self, Sources, count, metric_value};

const NOT_KEPT: &str = "basalt_daemon_state_save_failures_total";

/// Gathers for as long as it is polled: from the sources, and from the newest report.
pub(crate) async fn keep(
    sources: Sources,
    meters: Arc<VolumeMeters>,
    reports: watch::Receiver<Option<NodeReport>>,
) {
    metrics::describe();
    describe();
    let mut ticks = metrics::ticks();
    loop {
        ticks.tick().await;
        sources.gather().await;
        if let Some(report) = &*reports.borrow() {
            report_metrics(report);
            meters.forget_gone(report);
        }
    }
}

/// Says which node this process is: dashboards join it to the metrics that have no such label.
pub(crate) fn name_node(node: &str) {
    describe_gauge!("basalt_daemon_node_info", "Always 1; the label says which node this is");
    gauge!("basalt_daemon_node_info", "node" => node.to_owned()).set(1);
}

fn describe() {
    describe_gauge!("basalt_pool_capacity_bytes", "Bytes of the pool for data, used or free");
    describe_gauge!("basalt_pool_used_bytes", "Bytes of the pool that hold data");
    describe_gauge!("basalt_pool_online", "1 if the pool is in service and can be changed");
    describe_gauge!("basalt_disk_online", "1 if the disk of a pool is in service and nothing fails on it");
    describe_gauge!("basalt_daemon_volumes", "Volumes on this node by health");
    describe_counter!(NOT_KEPT, "Times a desired state could not be written to the data directory");
    counter!(NOT_KEPT).absolute(0);
    describe_gauge!("basalt_daemon_revision", "The desired state that this daemon has accepted");
}

/// Counts a desired state that could not be made durable.
pub(crate) fn state_not_kept() {
    counter!(NOT_KEPT).increment(1);
}

fn report_metrics(report: &NodeReport) {
    gauge!("basalt_daemon_revision").set(metric_value(report.revision.index));
    for pool in &report.pools {
        gauge!("basalt_pool_capacity_bytes", "pool" => pool.name.clone()).set(metric_value(pool.capacity));
        gauge!("basalt_pool_used_bytes", "pool" => pool.name.clone()).set(metric_value(pool.used));
        let online = pool.health == PoolHealth::Online;
        gauge!("basalt_pool_online", "pool" => pool.name.clone()).set(f64::from(u8::from(online)));
        for disk in &pool.disks {
            let online = disk.health == DiskHealth::Online;
            gauge!("basalt_disk_online", "pool" => pool.name.clone(), "disk" => disk.path.clone())
                .set(f64::from(u8::from(online)));
        }
    }
    for health in ["creating", "online", "unavailable", "faulted"] {
        let volumes = report.volumes.iter().filter(|volume| word(&volume.health) == health).count();
        gauge!("basalt_daemon_volumes", "health" => health).set(count(volumes));
    }
}

fn word(health: &VolumeHealth) -> &'static str {
    match health {
        VolumeHealth::Creating => "creating",
        VolumeHealth::Online => "online",
        VolumeHealth::Unavailable(_) => "unavailable",
        VolumeHealth::Faulted(_) => "faulted",
    }
}
