//! How full the pools of this node are, and what they do about it.

use basalt_lvol::PoolUsage;
use basalt_telemetry::Exposition;

use crate::metrics::{count, metric_value};

/// Name, help and value of a family.
type Words = (&'static str, &'static str, fn(&PoolUsage) -> f64);

const GAUGES: [Words; 10] = [
    (
        "basalt_pool_provisioned_bytes",
        "What the volumes of the pool could hold, snapshots left out",
        |usage| metric_value(usage.provisioned),
    ),
    ("basalt_pool_volumes", "Volumes in the pool, snapshots left out", |usage| count(usage.volumes)),
    ("basalt_pool_snapshots", "Snapshots in the pool", |usage| count(usage.snapshots)),
    (
        "basalt_pool_free_stretches",
        "Separate stretches of free space: the more, the more fragmented",
        |usage| count(usage.free_runs),
    ),
    (
        "basalt_pool_withheld_bytes",
        "Space that is given to nobody because it may be a damaged volume's; counted as used",
        |usage| metric_value(usage.withheld),
    ),
    ("basalt_pool_metadata_capacity_bytes", "Bytes for metadata, used or free", |usage| {
        metric_value(usage.metadata_capacity)
    }),
    ("basalt_pool_metadata_used_bytes", "Bytes of metadata", |usage| metric_value(usage.metadata_used)),
    ("basalt_pool_journal_capacity_bytes", "Bytes of one journal", |usage| {
        metric_value(usage.journal_capacity)
    }),
    (
        "basalt_pool_journal_used_bytes",
        "Bytes of the journal that were written since the last checkpoint",
        |usage| metric_value(usage.journal_used),
    ),
    ("basalt_pool_full", "1 if first writes get no space any more", |usage| {
        f64::from(u8::from(usage.is_full()))
    }),
];

const COUNTERS: [Words; 2] = [
    (
        "basalt_pool_journal_groups_total",
        "Groups of changes that were committed over the pool's life",
        |usage| metric_value(usage.journal_groups),
    ),
    ("basalt_pool_checkpoints_total", "Checkpoints that were written over the pool's life", |usage| {
        metric_value(usage.checkpoints)
    }),
];

/// Shows the pools by name.
pub(super) fn expose(pools: &[(String, PoolUsage)], exposition: &mut Exposition) {
    for (name, help, value) in GAUGES {
        let mut family = exposition.family(name, help);
        for (pool, usage) in pools {
            family.sample(&[("pool", pool)], value(usage));
        }
    }
    for (name, help, value) in COUNTERS {
        let mut family = exposition.counter(name, help);
        for (pool, usage) in pools {
            family.sample(&[("pool", pool)], value(usage));
        }
    }
}
