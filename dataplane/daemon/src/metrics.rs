//! What every way of running this daemon shows of itself: its reactors and the target on each.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use basalt_nvmf_target::Target;
use basalt_nvmf_tcp::{TcpTargetControl, TcpTargetStats};
use basalt_reactor::{Remote, StatsSnapshot};
use basalt_telemetry::Exposition;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::time::{Interval, MissedTickBehavior, interval};

const INTERVAL: Duration = Duration::from_secs(1);

/// When numbers are gathered: once a second, on a management thread.
pub(crate) fn ticks() -> Interval {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Where the numbers come from.
pub(crate) struct Sources {
    /// The reactors, the first one first.
    pub(crate) reactors: Vec<Remote>,
    /// The target on each of them.
    pub(crate) controls: Vec<TcpTargetControl>,
    /// What they serve.
    pub(crate) target: Arc<Target>,
}

impl Sources {
    /// Reads the numbers once.
    pub(crate) async fn gather(&self) {
        for (index, reactor) in self.reactors.iter().enumerate() {
            reactor_metrics(index, &reactor.stats());
        }
        gauge!("basalt_target_subsystems").set(count(self.target.subsystems().len()));
        let controls = self.controls.clone();
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
    }
}

/// How reactors spend their time, read when Prometheus asks: in fractions of seconds, which the recorder's counters have not.
#[derive(Debug, Default)]
pub(crate) struct ReactorTimes(OnceLock<Vec<Remote>>);

impl ReactorTimes {
    /// The reactors have started.
    pub(crate) fn set(&self, reactors: Vec<Remote>) {
        // Once in a process.
        let _: Result<(), Vec<Remote>> = self.0.set(reactors);
    }

    pub(crate) fn expose(&self, exposition: &mut Exposition) {
        let stats: Vec<(String, StatsSnapshot)> = (0..)
            .zip(self.0.get().into_iter().flatten())
            .map(|(index, reactor): (usize, &Remote)| (index.to_string(), reactor.stats()))
            .collect();
        let mut family = |name, help, nanoseconds: fn(&StatsSnapshot) -> u64| {
            let mut family = exposition.counter(name, help);
            for (index, stats) in &stats {
                let seconds = Duration::from_nanos(nanoseconds(stats)).as_secs_f64();
                family.sample(&[("reactor", index)], seconds);
            }
        };
        family("basalt_reactor_busy_seconds_total", "Time in turns that did something", |stats| {
            stats.busy_ns
        });
        family(
            "basalt_reactor_idle_seconds_total",
            "Time in turns that found nothing to do, and asleep",
            |stats| stats.idle_ns,
        );
    }
}

/// Tells Prometheus what the numbers are.
pub(crate) fn describe() {
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
    describe_counter!(
        "basalt_target_violations_total",
        "Connections that ended because their hosts violated the protocol"
    );
    describe_gauge!("basalt_target_subsystems", "Subsystems that are served");
}

fn reactor_metrics(index: usize, stats: &StatsSnapshot) {
    let reactor = index.to_string();
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
    let violations = stats.iter().map(|stats| stats.violations).sum();
    counter!("basalt_target_violations_total").absolute(violations);
}

pub(crate) fn count(value: usize) -> f64 {
    metric_value(value as u64)
}

/// Metrics are floating-point numbers: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "a metric shows at most 53 bits")]
pub(crate) fn metric_value(value: u64) -> f64 {
    value as f64
}
