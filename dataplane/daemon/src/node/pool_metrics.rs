//! How full the pools of this node are, what they do about it, and how their metadata was looked over.

use basalt_agent::PoolCounts;
use basalt_telemetry::Exposition;

use crate::metrics::{count, metric_value};

/// Name, help and value of a family; no value, no sample.
type Words = (&'static str, &'static str, fn(&PoolCounts) -> Option<f64>);

const GAUGES: [Words; 14] = [
    (
        "basalt_pool_provisioned_bytes",
        "What the volumes of the pool could hold, snapshots left out",
        |pool| Some(metric_value(pool.usage.provisioned)),
    ),
    ("basalt_pool_volumes", "Volumes in the pool, snapshots left out", |pool| {
        Some(count(pool.usage.volumes))
    }),
    ("basalt_pool_snapshots", "Snapshots in the pool", |pool| Some(count(pool.usage.snapshots))),
    (
        "basalt_pool_free_stretches",
        "Separate stretches of free space: the more, the more fragmented",
        |pool| Some(count(pool.usage.free_runs)),
    ),
    (
        "basalt_pool_withheld_bytes",
        "Space that is given to nobody because it may be a damaged volume's; counted as used",
        |pool| Some(metric_value(pool.usage.withheld)),
    ),
    ("basalt_pool_metadata_capacity_bytes", "Bytes for metadata, used or free", |pool| {
        Some(metric_value(pool.usage.metadata_capacity))
    }),
    ("basalt_pool_metadata_used_bytes", "Bytes of metadata", |pool| {
        Some(metric_value(pool.usage.metadata_used))
    }),
    ("basalt_pool_journal_capacity_bytes", "Bytes of one journal", |pool| {
        Some(metric_value(pool.usage.journal_capacity))
    }),
    (
        "basalt_pool_journal_used_bytes",
        "Bytes of the journal that were written since the last checkpoint",
        |pool| Some(metric_value(pool.usage.journal_used)),
    ),
    ("basalt_pool_full", "1 if first writes get no space any more", |pool| {
        Some(f64::from(u8::from(pool.usage.is_full())))
    }),
    ("basalt_pool_scrub_running", "1 while the pool's metadata is looked over", |pool| {
        Some(f64::from(u8::from(pool.scrub.progress.is_some())))
    }),
    (
        "basalt_pool_scrub_progress_ratio",
        "How much of the metadata the scrub that is under way has read; none while there is none",
        |pool| pool.scrub.progress.map(|(done, total)| metric_value(done) / metric_value(total.max(1))),
    ),
    (
        "basalt_pool_scrub_age_seconds",
        "How long ago the last scrub of the pool ended that came to its end; none before the first one",
        |pool| pool.scrubbed.map(|age| age.as_secs_f64()),
    ),
    (
        "basalt_pool_scrub_open_findings",
        "What the last scrub found to be wrong and could not make good; the daemon's log has the words",
        |pool| Some(count(pool.scrub.open.len())),
    ),
];

const COUNTERS: [Words; 6] = [
    (
        "basalt_pool_journal_groups_total",
        "Groups of changes that were committed over the pool's life",
        |pool| Some(metric_value(pool.usage.journal_groups)),
    ),
    ("basalt_pool_checkpoints_total", "Checkpoints that were written over the pool's life", |pool| {
        Some(metric_value(pool.usage.checkpoints))
    }),
    (
        "basalt_pool_scrub_runs_total",
        "Scrubs of the pool's metadata that came to their end since the daemon started",
        |pool| Some(metric_value(pool.scrub.runs)),
    ),
    ("basalt_pool_scrub_read_bytes_total", "Bytes of metadata that scrubs have read", |pool| {
        Some(metric_value(pool.scrub.bytes))
    }),
    ("basalt_pool_scrub_findings_total", "What scrubs have found to be wrong", |pool| {
        Some(metric_value(pool.scrub.findings))
    }),
    (
        "basalt_pool_scrub_repairs_total",
        "What scrubs have found to be wrong and made good from memory or from the other copy",
        |pool| Some(metric_value(pool.scrub.repaired)),
    ),
];

/// Shows the pools by name.
pub(super) fn expose(pools: &[PoolCounts], exposition: &mut Exposition) {
    for (name, help, value) in GAUGES {
        let mut family = exposition.family(name, help);
        for pool in pools {
            if let Some(value) = value(pool) {
                family.sample(&[("pool", &pool.name)], value);
            }
        }
    }
    for (name, help, value) in COUNTERS {
        let mut family = exposition.counter(name, help);
        for pool in pools {
            if let Some(value) = value(pool) {
                family.sample(&[("pool", &pool.name)], value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use basalt_lvol::{PoolUsage, ScrubStatus};

    use super::*;

    #[test]
    fn scrubs_are_shown() {
        let counts = PoolCounts {
            name: "fast".into(),
            usage: PoolUsage { withheld: 7, ..PoolUsage::default() },
            scrub: ScrubStatus {
                runs: 3,
                findings: 5,
                repaired: 4,
                progress: Some((1, 4)),
                ..ScrubStatus::default()
            },
            scrubbed: Some(Duration::from_secs(90)),
        };
        let text = |pools: &[PoolCounts]| {
            let mut exposition = Exposition::default();
            expose(pools, &mut exposition);
            exposition.as_str().to_owned()
        };
        let shown = text(std::slice::from_ref(&counts));
        for line in [
            "basalt_pool_withheld_bytes{pool=\"fast\"} 7",
            "basalt_pool_scrub_runs_total{pool=\"fast\"} 3",
            "basalt_pool_scrub_findings_total{pool=\"fast\"} 5",
            "basalt_pool_scrub_repairs_total{pool=\"fast\"} 4",
            "basalt_pool_scrub_progress_ratio{pool=\"fast\"} 0.25",
            "basalt_pool_scrub_age_seconds{pool=\"fast\"} 90",
        ] {
            assert!(shown.lines().any(|of| of == line), "{line} is not in {shown}");
        }
        let fresh = PoolCounts { scrub: ScrubStatus::default(), scrubbed: None, ..counts };
        let shown = text(&[fresh]);
        assert!(!shown.contains("scrub_age_seconds{") && !shown.contains("progress_ratio{"), "{shown}");
        assert!(shown.contains("basalt_pool_scrub_running{pool=\"fast\"} 0"), "{shown}");
    }
}
