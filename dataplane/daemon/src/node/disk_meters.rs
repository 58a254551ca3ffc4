//! What the disks of this node's pools do: counted on the reactors that use them, summed up when Prometheus asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use basalt_bdev::{BlockDevice, IoStats, MeteredDevice};
use basalt_telemetry::Exposition;

use crate::io_families::IoFamilies;

const DISK_FAMILIES: IoFamilies = IoFamilies {
    label: "disk",
    operations: ("basalt_disk_io_operations_total", "Requests of a pool that the disk ended, well or not"),
    errors: ("basalt_disk_io_errors_total", "Requests of a pool that failed by the disk's fault"),
    bytes: ("basalt_disk_io_bytes_total", "Bytes that were read, written, unmapped or zeroed"),
    seconds: ("basalt_disk_io_seconds", "Time that the disk took for requests that succeeded"),
};

/// Counters of the disks that this daemon has opened, by their paths. They outlive a disk that is closed and opened again.
#[derive(Debug, Default)]
pub(crate) struct DiskMeters {
    /// Locked for a moment when a disk is opened and at scrapes, never for a request.
    entries: Mutex<BTreeMap<String, Arc<IoStats>>>,
}

impl DiskMeters {
    /// The disk, with what it does counted.
    pub(crate) fn metered(&self, path: &str, disk: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = Arc::clone(entries.entry(path.to_owned()).or_default());
        Arc::new(MeteredDevice::new(disk, stats))
    }

    /// Shows what was counted.
    pub(super) fn expose(&self, exposition: &mut Exposition) {
        let disks: Vec<(String, Arc<IoStats>)> = {
            let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries.iter().map(|(path, stats)| (path.clone(), Arc::clone(stats))).collect()
        };
        DISK_FAMILIES.show(exposition, &disks);
    }
}
