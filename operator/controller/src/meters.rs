//! The operator's metrics.

use std::time::Duration;

use basalt_plan::IntentBody;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::control_plane::ControlPlaneError;

/// Registers every metric with its description, and counters with 0, so that they exist from the first scrape.
pub fn describe() {
    describe_counter!("basalt_operator_reconciles_total", "Reconciliations by kind and result");
    describe_histogram!("basalt_operator_reconcile_duration_seconds", "Time that one reconciliation took");
    describe_counter!(
        "basalt_operator_intents_total",
        "Mutations asked of the control plane by verb and result"
    );
    describe_counter!("basalt_operator_events_lost_total", "Events that the apiserver did not take");
    describe_gauge!("basalt_operator_leader", "1 while this process holds the lease");
    describe_gauge!("basalt_operator_objects", "Objects by kind and phase");
    describe_gauge!(
        "basalt_operator_waiting_objects",
        "Objects whose reconciliation waits to be tried again"
    );
    describe_gauge!("basalt_operator_control_plane_connected", "1 while the control plane answers");
    describe_gauge!("basalt_operator_apiserver_connected", "1 while the apiserver answers");
    for kind in ["volume", "storage_node", "snapshot"] {
        for result in ["ok", "error"] {
            counter!("basalt_operator_reconciles_total", "kind" => kind, "result" => result).increment(0);
        }
    }
    for verb in IntentBody::VERBS {
        for result in ["ok", "rejected", "unavailable"] {
            counter!("basalt_operator_intents_total", "verb" => verb, "result" => result).increment(0);
        }
    }
    counter!("basalt_operator_events_lost_total").increment(0);
    leader(false);
    waiting(0);
}

pub(crate) fn reconciled(kind: &'static str, ok: bool, took: Duration) {
    let result = if ok { "ok" } else { "error" };
    counter!("basalt_operator_reconciles_total", "kind" => kind, "result" => result).increment(1);
    histogram!("basalt_operator_reconcile_duration_seconds", "kind" => kind).record(took.as_secs_f64());
}

pub(crate) fn asked(verb: &'static str, error: Option<&ControlPlaneError>) {
    let result = match error {
        None => "ok",
        Some(ControlPlaneError::Rejected(_)) => "rejected",
        Some(ControlPlaneError::Unavailable { .. }) => "unavailable",
    };
    counter!("basalt_operator_intents_total", "verb" => verb, "result" => result).increment(1);
}

pub(crate) fn event_lost() {
    counter!("basalt_operator_events_lost_total").increment(1);
}

pub(crate) fn leader(holds: bool) {
    gauge!("basalt_operator_leader").set(f64::from(u8::from(holds)));
}

pub(crate) fn control_plane_connected(connected: bool) {
    gauge!("basalt_operator_control_plane_connected").set(f64::from(u8::from(connected)));
}

pub(crate) fn apiserver_connected(connected: bool) {
    gauge!("basalt_operator_apiserver_connected").set(f64::from(u8::from(connected)));
}

pub(crate) fn objects(kind: &'static str, phase: &'static str, count: u32) {
    gauge!("basalt_operator_objects", "kind" => kind, "phase" => phase).set(count);
}

pub(crate) fn waiting(count: u32) {
    gauge!("basalt_operator_waiting_objects").set(count);
}
