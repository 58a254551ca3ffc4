//! Gauges that are computed from the state when Prometheus asks.
//!
//! Every member shows what it is itself; only the leader shows nodes and volumes, so that sums over members are right.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use basalt_core::{Role, Status};
use basalt_model::{Placement, PoolHealth, State, Volume, VolumeState};
use basalt_telemetry::{Collector, Exposition};

use crate::driver::Driver;

/// Says what the metrics mean that are recorded where they happen.
pub(crate) fn describe() {
    metrics::describe_counter!("basalt_control_requests_total", "Requests of clients by kind and result");
    metrics::describe_histogram!("basalt_control_request_seconds", "Time to answer a client's request");
    metrics::describe_histogram!(
        "basalt_control_turn_seconds",
        "Time of one turn of the member, disk sync included"
    );
    metrics::describe_counter!("basalt_control_inputs_refused_total", "Inputs that found the queue full");
    metrics::describe_counter!("basalt_control_calls_denied_total", "Calls that the access table denied");
    metrics::describe_counter!("basalt_control_handshakes_failed_total", "Connections that failed TLS");
    metrics::describe_gauge!("basalt_control_watches", "Open watches");
    metrics::describe_counter!(
        "basalt_control_peer_messages_sent_total",
        "Messages queued for other members"
    );
    metrics::describe_counter!("basalt_control_peer_messages_received_total", "Messages of other members");
    metrics::describe_counter!("basalt_control_peer_messages_dropped_total", "Messages to members not sent");
    metrics::describe_counter!("basalt_control_peer_streams_ended_total", "Streams to members that broke");
}

/// The collector of a member; shows nothing before the driver runs.
pub(crate) fn collector(driver: Arc<OnceLock<Driver>>, data_dir: PathBuf) -> Collector {
    Arc::new(move || {
        let (driver, data_dir) = (Arc::clone(&driver), data_dir.clone());
        Box::pin(async move {
            let Some(driver) = driver.get() else { return Exposition::default() };
            let seen = driver.inspect(|state, status| {
                let mut exposition = Exposition::default();
                member(&mut exposition, status);
                if status.role == Role::Leader {
                    cluster(&mut exposition, state);
                    nodes(&mut exposition, state);
                    volumes(&mut exposition, state);
                    snapshots(&mut exposition, state);
                }
                exposition
            });
            let mut exposition = seen.await.unwrap_or_default();
            exposition
                .family("basalt_control_disk_used_bytes", "Bytes of the log and the snapshots")
                .sample(&[], float(directory_bytes(&data_dir)));
            exposition
        })
    })
}

fn member(exposition: &mut Exposition, status: &Status) {
    let mut gauge = |name, help, value| {
        exposition.family(name, help).sample(&[], value);
    };
    let truth = |value| if value { 1.0 } else { 0.0 };
    gauge("basalt_control_leader", "1 on the member that leads", truth(status.role == Role::Leader));
    gauge("basalt_control_has_leader", "1 if the member knows a leader", truth(status.leader.is_some()));
    gauge("basalt_control_term", "The raft term", float(status.term));
    gauge("basalt_control_commit_index", "The last entry known to be committed", float(status.committed));
    gauge("basalt_control_applied_index", "The last entry that was applied", float(status.applied));
    gauge("basalt_control_last_index", "The last entry in the log", float(status.last));
    gauge("basalt_control_snapshot_index", "The index of the newest snapshot", float(status.snapshot));
    gauge("basalt_control_node_sessions", "Daemons with a session at this member", count(status.sessions));
    gauge("basalt_control_refused", "1 if other members refuse this one", truth(status.refused.is_some()));
}

fn cluster(exposition: &mut Exposition, state: &State) {
    exposition
        .family("basalt_control_members", "Members of the control plane")
        .sample(&[], count(state.members().len()));
    exposition
        .family("basalt_control_incarnation", "Recoveries from a lost majority, plus one")
        .sample(&[], float(state.incarnation().0));
    exposition
        .family("basalt_control_revision", "The revision of the state")
        .sample(&[], float(state.revision().0));
}

fn nodes(exposition: &mut Exposition, state: &State) {
    let mut up = exposition.family("basalt_node_up", "1 if the node's daemon has a session");
    for (name, node) in state.nodes() {
        up.sample(&[("node", name.as_str())], if node.liveness.is_live() { 1.0 } else { 0.0 });
    }
    type Value = fn(&State, &Placement, &basalt_model::PoolObserved) -> f64;
    let families: [(&'static str, &'static str, Value); 5] = [
        ("basalt_node_pool_online", "1 if the pool is in service", |_, _, pool| {
            if pool.health == PoolHealth::Online { 1.0 } else { 0.0 }
        }),
        ("basalt_node_pool_capacity_bytes", "Space of the pool", |_, _, pool| float(pool.capacity.0)),
        ("basalt_node_pool_used_bytes", "Space of the pool that holds data", |_, _, pool| float(pool.used.0)),
        ("basalt_node_pool_committed_bytes", "Space guaranteed to thick volumes", |state, placement, _| {
            float(state.claim(placement).guaranteed.0)
        }),
        (
            "basalt_node_pool_provisioned_bytes",
            "What the volumes of the pool could hold together, thin ones included",
            |state, placement, _| float(state.claim(placement).total().0),
        ),
    ];
    for (name, help, value) in families {
        let mut family = exposition.family(name, help);
        for (node_name, node) in state.nodes() {
            for (pool_name, pool) in &node.observed.pools {
                let placement = Placement { node: node_name.clone(), pool: pool_name.clone() };
                let labels = [("node", node_name.as_str()), ("pool", pool_name.as_str())];
                family.sample(&labels, value(state, &placement, pool));
            }
        }
    }
}

/// The phases of volumes and snapshots.
const PHASES: [&str; 6] = ["Creating", "Online", "Unavailable", "Faulted", "Released", "Deleting"];

fn volumes(exposition: &mut Exposition, state: &State) {
    let mut counts = [0_u32; PHASES.len()];
    for volume in state.volumes().values() {
        counts[phase(&volume.state)] += 1;
    }
    let mut family = exposition.family("basalt_volume_count", "Volumes by phase");
    for (phase, count) in PHASES.iter().zip(counts) {
        family.sample(&[("phase", phase)], count.into());
    }
    let mut online = exposition.family("basalt_volume_online", "1 if the volume is served");
    for volume in state.volumes().values().filter(|volume| is_for_hosts(volume)) {
        let labels = [("volume", volume.name.as_str()), ("node", volume.placement.node.as_str())];
        online.sample(&labels, if volume.state == VolumeState::Online { 1.0 } else { 0.0 });
    }
    let mut size = exposition.family("basalt_volume_size_bytes", "Size of the volume that hosts see");
    for volume in state.volumes().values().filter(|volume| is_for_hosts(volume)) {
        let labels = [("volume", volume.name.as_str()), ("node", volume.placement.node.as_str())];
        size.sample(&labels, float(volume.size.0));
    }
    let mut info =
        exposition.family("basalt_volume_info", "Always 1; tells the id under which daemons count its I/O");
    for volume in state.volumes().values().filter(|volume| is_for_hosts(volume)) {
        let id = volume.id.to_string();
        let node = volume.placement.node.as_str();
        info.sample(&[("volume", volume.name.as_str()), ("node", node), ("volume_id", &id)], 1.0);
    }
}

fn snapshots(exposition: &mut Exposition, state: &State) {
    let mut counts = [0_u32; PHASES.len()];
    for snapshot in state.snapshots().values() {
        counts[phase(&snapshot.state)] += 1;
    }
    let mut family =
        exposition.family("basalt_snapshot_count", "Snapshots by phase; Online: can be restored");
    for (phase, count) in PHASES.iter().zip(counts) {
        family.sample(&[("phase", phase)], count.into());
    }
}

/// What was put aside or is going is rightly not served: an alert must not take it for a fault.
fn is_for_hosts(volume: &Volume) -> bool {
    !matches!(volume.state, VolumeState::Released | VolumeState::Deleting)
}

/// Index of the phase in the list of names.
fn phase(state: &VolumeState) -> usize {
    match state {
        VolumeState::Creating => 0,
        VolumeState::Online => 1,
        VolumeState::Unavailable { .. } => 2,
        VolumeState::Faulted { .. } => 3,
        VolumeState::Released => 4,
        VolumeState::Deleting => 5,
    }
}

/// Bytes of the files of a directory; 0 for what cannot be looked at.
fn directory_bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
}

/// Prometheus knows only floats; above 2^53 the last digits are lost.
#[allow(clippy::cast_precision_loss, reason = "metrics are floats")]
fn float(value: u64) -> f64 {
    value as f64
}

#[allow(clippy::cast_precision_loss, reason = "metrics are floats")]
fn count(value: usize) -> f64 {
    value as f64
}
