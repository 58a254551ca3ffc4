//! What was counted of the requests to a device, as families of Prometheus.

use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{IoSnapshot, IoStats, MeteredKind};
use basalt_telemetry::Exposition;

use crate::metrics::metric_value;

/// Bounds of the latency buckets are these powers of two of nanoseconds: from 8 us to 9 s. At powers of two the counts are exact.
const BUCKET_EXPONENTS: std::ops::RangeInclusive<u32> = 13..=33;

/// Name and help of a family.
type Words = (&'static str, &'static str);

/// The families of one sort of device.
pub(crate) struct IoFamilies {
    /// The label that tells the devices apart.
    pub(crate) label: &'static str,
    pub(crate) operations: Words,
    pub(crate) errors: Words,
    pub(crate) bytes: Words,
    pub(crate) seconds: Words,
}

impl IoFamilies {
    /// Shows what was counted of these devices.
    pub(crate) fn show(&self, exposition: &mut Exposition, devices: &[(String, Arc<IoStats>)]) {
        let samples: Vec<Sample<'_>> = devices
            .iter()
            .flat_map(|(name, stats)| {
                MeteredKind::ALL.map(|kind| Sample::new((self.label, name), kind, &stats.snapshot(kind)))
            })
            .collect();
        let mut counter = |(name, help), value: fn(&Sample<'_>) -> Option<u64>| {
            let mut family = exposition.counter(name, help);
            for sample in &samples {
                if let Some(value) = value(sample) {
                    family.sample(&sample.labels, metric_value(value));
                }
            }
        };
        counter(self.operations, |sample| Some(sample.operations));
        counter(self.errors, |sample| Some(sample.errors));
        counter(self.bytes, |sample| sample.bytes);
        let mut latencies = exposition.histogram(self.seconds.0, self.seconds.1);
        for sample in samples {
            let buckets = sample.buckets.iter().copied();
            latencies.sample(&sample.labels, buckets, metric_value(sample.succeeded), sample.seconds);
        }
    }
}

/// One kind of request of one device, as it is shown.
struct Sample<'a> {
    labels: [(&'static str, &'a str); 2],
    operations: u64,
    /// A flush has no range.
    bytes: Option<u64>,
    errors: u64,
    succeeded: u64,
    seconds: f64,
    buckets: Vec<(f64, f64)>,
}

impl<'a> Sample<'a> {
    fn new(device: (&'static str, &'a str), kind: MeteredKind, seen: &IoSnapshot) -> Self {
        let bounds = BUCKET_EXPONENTS.map(|exponent| Duration::from_nanos(1 << exponent));
        let below = |bound: Duration| (bound.as_secs_f64(), metric_value(seen.latency.count_below(bound)));
        Self {
            labels: [device, ("kind", kind.name())],
            operations: seen.operations(),
            bytes: (kind != MeteredKind::Flush).then_some(seen.bytes),
            errors: seen.errors,
            succeeded: seen.latency.count(),
            seconds: seen.latency.sum().as_secs_f64(),
            buckets: bounds.map(below).collect(),
        }
    }
}
