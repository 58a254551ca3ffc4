//! Logs, metrics and probes, the same in every process.
//!
//! This crate owns the set-up of `tracing`, the Prometheus recorder, and the small HTTP server behind `/metrics`, `/healthz` and
//! `/readyz`. The server has a thread and a runtime of its own, so that a process without tokio (or with busy reactors) can
//! start it and forget it. It defines no metric of a subsystem and depends on no other crate of ours.
//!
//! Begin with [`Exporter::start`] and [`Readiness`].

mod exporter;
mod exposition;
mod logs;
mod readiness;
mod sentence;

pub use exporter::{Collector, Exporter, ExporterConfig, ExporterError};
pub use exposition::{Exposition, Family, HistogramFamily};
pub use logs::{LogFormat, LogsError, init_logs};
pub use readiness::{Gate, Readiness};
pub use sentence::sentence;
