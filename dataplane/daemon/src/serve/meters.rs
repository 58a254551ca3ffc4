//! What the namespaces of a daemon alone do: counted on the reactors that serve them, summed up when Prometheus asks.

use std::sync::{Arc, Mutex, PoisonError};

use basalt_bdev::{BlockDevice, IoStats, MeteredDevice};
use basalt_telemetry::{Collector, Exposition};

use crate::io_families::IoFamilies;
use crate::metrics::ReactorTimes;

const NAMESPACE_FAMILIES: IoFamilies = IoFamilies {
    label: "nsid",
    operations: (
        "basalt_namespace_io_operations_total",
        "Requests of hosts that the device ended, well or not",
    ),
    errors: ("basalt_namespace_io_errors_total", "Requests of hosts that failed by the device's fault"),
    bytes: ("basalt_namespace_io_bytes_total", "Bytes that were read, written, unmapped or zeroed"),
    seconds: (
        "basalt_namespace_io_seconds",
        "Time that the device took for requests that succeeded, the network not included",
    ),
};

/// A namespace's number, and what is counted of it.
type Counted = (String, Arc<IoStats>);

/// What is shown beside the numbers that are gathered once a second.
#[derive(Clone, Debug, Default)]
pub(super) struct Meters {
    pub(super) reactors: Arc<ReactorTimes>,
    /// Locked for a moment at the start and at scrapes, never for a request.
    namespaces: Arc<Mutex<Vec<Counted>>>,
}

impl Meters {
    /// The device of a namespace, with what it does counted.
    pub(super) fn metered(&self, nsid: u32, device: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        let stats = Arc::<IoStats>::default();
        let mut namespaces = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        namespaces.push((nsid.to_string(), Arc::clone(&stats)));
        Arc::new(MeteredDevice::new(device, stats))
    }

    pub(super) fn collector(&self) -> Collector {
        let meters = self.clone();
        Arc::new(move || {
            let mut exposition = Exposition::default();
            meters.reactors.expose(&mut exposition);
            let namespaces = meters.namespaces.lock().unwrap_or_else(PoisonError::into_inner).clone();
            NAMESPACE_FAMILIES.show(&mut exposition, &namespaces);
            Box::pin(async move { exposition })
        })
    }
}
