//! The daemon's metrics: gathered once a second on a management thread, from atomics and reports. Those of volumes are in
//! [`super::meters`].

use std::time::Duration;

use basalt_agent::{NodeReport, PoolHealth, VolumeHealth};
use basalt_nvmf_target::Target;
use basalt_nvmf_tcp::{TcpTargetControl, TcpTargetStats};
use basalt_reactor::{Remote, StatsSnapshot};
use metrics::{counter, describe_counter, describe_gauge, gauge};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::meters::VolumeMeters;

const INTERVAL: Duration = Duration::from_secs(1);

/// Gathers for as long as it is polled: from each reactor, and from the target on each.
pub(crate) async fn keep(
    reactors: Vec<Remote>,
    controls: Vec<TcpTargetControl>,
    target: Arc<Target>,
    meters: Arc<VolumeMeters>,
    reports: watch::Receiver<Option<NodeReport>>,
) {
    describe();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (index, reactor) in reactors.iter().enumerate() {
            reactor_metrics(index, &reactor.stats());
        }
        gauge!("basalt_target_subsystems").set(count(target.subsystems().len()));
        let controls = controls.clone();
        // Waits for the reactors' answers, so not on a thread that others need.
        let asked = tokio::task::spawn_blocking(move || {
            controls.iter().map(TcpTargetControl::stats).collect::<Result<Vec<_>, _>>()
        });
        match asked.await {
            Ok(Ok(stats)) => target_metrics(&stats),
            // The reactor ended or the process stops: the last values stay.
            Ok(Err(error)) => tracing::debug!(%error, "no numbers from the target"),
            Err(error) => tracing::debug!(%error, "no numbers from the target"),
        }
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
    describe_counter!("basalt_reactor_busy_seconds_total", "Time in turns that did something");
    describe_counter!(
        "basalt_reactor_idle_seconds_total",
        "Time in turns that found nothing to do, and asleep"
    );
    describe_counter!("basalt_reactor_turns_total", "Turns of the reactor");
    describe_counter!("basalt_reactor_sleeps_total", "Times the reactor went to sleep in the kernel");
    describe_counter!("basalt_reactor_wakeups_total", "Times another thread had to wake the reactor");
    describe_gauge!("basalt_reactor_ring_depth", "Messages from other threads that wait now");
    describe_gauge!("basalt_target_connections", "NVMe/TCP connections now");
    describe_gauge!("basalt_target_requests_running", "Requests that devices work on now");
    describe_counter!(
        "basalt_target_connections_refused_total",
        "Connections closed at once because of a limit"
    );
    describe_gauge!("basalt_target_subsystems", "Subsystems that are served");
    describe_gauge!("basalt_pool_capacity_bytes", "Bytes of the pool for data, used or free");
    describe_gauge!("basalt_pool_used_bytes", "Bytes of the pool that hold data");
    describe_gauge!("basalt_pool_online", "1 if the pool is in service and can be changed");
    describe_gauge!("basalt_daemon_volumes", "Volumes on this node by health");
    describe_gauge!("basalt_daemon_revision", "The desired state that this daemon has accepted");
}

fn reactor_metrics(index: usize, stats: &StatsSnapshot) {
    let reactor = index.to_string();
    let seconds = |ns: u64| Duration::from_nanos(ns).as_secs();
    counter!("basalt_reactor_busy_seconds_total", "reactor" => reactor.clone())
        .absolute(seconds(stats.busy_ns));
    counter!("basalt_reactor_idle_seconds_total", "reactor" => reactor.clone())
        .absolute(seconds(stats.idle_ns));
    counter!("basalt_reactor_turns_total", "reactor" => reactor.clone()).absolute(stats.turns);
    counter!("basalt_reactor_sleeps_total", "reactor" => reactor.clone()).absolute(stats.sleeps);
    counter!("basalt_reactor_wakeups_total", "reactor" => reactor.clone()).absolute(stats.wakeups);
    gauge!("basalt_reactor_ring_depth", "reactor" => reactor.clone()).set(metric_value(stats.ring_depth));
}

fn target_metrics(stats: &[TcpTargetStats]) {
    let sum = |value: fn(&TcpTargetStats) -> usize| count(stats.iter().map(value).sum());
    gauge!("basalt_target_connections").set(sum(|stats| stats.connections));
    gauge!("basalt_target_requests_running").set(sum(|stats| stats.running));
    let refused = stats.iter().map(|stats| stats.refused).sum();
    counter!("basalt_target_connections_refused_total").absolute(refused);
}

fn report_metrics(report: &NodeReport) {
    gauge!("basalt_daemon_revision").set(metric_value(report.revision.index));
    for pool in &report.pools {
        gauge!("basalt_pool_capacity_bytes", "pool" => pool.name.clone()).set(metric_value(pool.capacity));
        gauge!("basalt_pool_used_bytes", "pool" => pool.name.clone()).set(metric_value(pool.used));
        let online = pool.health == PoolHealth::Online;
        gauge!("basalt_pool_online", "pool" => pool.name.clone()).set(f64::from(u8::from(online)));
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

fn count(value: usize) -> f64 {
    metric_value(value as u64)
}

/// Metrics are floating-point numbers: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "a metric shows at most 53 bits")]
pub(super) fn metric_value(value: u64) -> f64 {
    value as f64
}
