//! `/metrics`, `/healthz` and `/readyz` on a thread of their own.

use std::{fmt::Write, future::Future, io, net::SocketAddr, pin::Pin, sync::Arc, thread, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::{net::TcpListener, sync::oneshot};

use crate::{Exposition, Readiness};

/// Upper bounds of histogram buckets for every metric whose name ends in `_seconds`: 50 us to 10 s.
const SECONDS_BUCKETS: [f64; 17] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
];
/// How often the recorder folds recent histogram samples into buckets; bounds the memory between two scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long a scrape waits for the collector; without an answer the scrape has only what is recorded.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Content type of the Prometheus text format.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What the exporter of a process needs to know.
#[derive(Debug, Clone)]
pub struct ExporterConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The process's name, a label of `basalt_build_info`.
    pub process: &'static str,
    /// The process's version, a label of `basalt_build_info`.
    pub version: &'static str,
}

/// Why the exporter does not run.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The recorder cannot be installed; there can be one in a process.
    #[error("the metrics recorder cannot be installed")]
    Recorder(#[from] BuildError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address} for metrics: {source}; choose a free address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No thread or runtime.
    #[error("cannot start the thread for metrics")]
    Thread(#[source] io::Error),
}

/// Computes metrics when they are scraped: for what comes and goes (nodes, volumes), which recorded gauges would keep for ever.
pub type Collector = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Exposition> + Send>> + Send + Sync>;

/// The running exporter. It stops when this is dropped.
#[derive(Debug)]
pub struct Exporter {
    address: SocketAddr,
    /// Dropping it ends the server.
    _stop: oneshot::Sender<()>,
}

impl Exporter {
    /// Installs the recorder for the `metrics` macros and serves it.
    pub fn start(config: &ExporterConfig, readiness: Readiness) -> Result<Self, ExporterError> {
        Self::start_with(config, readiness, Arc::new(|| Box::pin(async { Exposition::default() })))
    }

    /// As [`Exporter::start`], with metrics that are computed when they are scraped.
    pub fn start_with(
        config: &ExporterConfig,
        readiness: Readiness,
        collector: Collector,
    ) -> Result<Self, ExporterError> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
            .install_recorder()?;
        metrics::describe_gauge!("basalt_build_info", "Always 1; the labels say which build this is");
        metrics::gauge!("basalt_build_info", "process" => config.process, "version" => config.version).set(1);
        serve(config.listen, handle, readiness, collector)
    }

    /// The address that is listened on, with the port that was chosen if the configured one was 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

fn serve(
    address: SocketAddr,
    handle: PrometheusHandle,
    readiness: Readiness,
    collector: Collector,
) -> Result<Exporter, ExporterError> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ExporterError::Thread)?;
    let listener = runtime
        .block_on(TcpListener::bind(address))
        .map_err(|source| ExporterError::Listen { address, source })?;
    let bound = listener.local_addr().map_err(|source| ExporterError::Listen { address, source })?;
    let (stop, stopped) = oneshot::channel::<()>();
    let router = Router::new()
        .route("/metrics", get(serve_metrics))
        .with_state((handle.clone(), collector))
        .route("/readyz", get(serve_readiness).with_state(readiness))
        .route("/healthz", get(|| async { "ok\n" }));
    let run = async move {
        let upkeep = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
            loop {
                ticks.tick().await;
                handle.run_upkeep();
            }
        });
        tokio::select! {
            served = axum::serve(listener, router) => {
                if let Err(error) = served {
                    tracing::error!(%error, "the metrics server ended");
                }
            }
            // Resolves with an error when the sender is dropped, which is the signal.
            Err(_) = stopped => {}
        }
        upkeep.abort();
    };
    thread::Builder::new()
        .name("telemetry".to_owned())
        .spawn(move || runtime.block_on(run))
        .map_err(ExporterError::Thread)?;
    Ok(Exporter { address: bound, _stop: stop })
}

async fn serve_metrics(
    State((handle, collector)): State<(PrometheusHandle, Collector)>,
) -> impl IntoResponse {
    let mut text = handle.render();
    match tokio::time::timeout(COLLECT_TIMEOUT, collector()).await {
        Ok(collected) => text.push_str(collected.as_str()),
        Err(_) => tracing::warn!("metrics of the state were not collected in time"),
    }
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text)
}

async fn serve_readiness(State(readiness): State<Readiness>) -> impl IntoResponse {
    let waits_for = readiness.waits_for();
    if waits_for.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    let mut text = String::new();
    for (gate, reason) in waits_for {
        // Writing to a string does not fail.
        let written = writeln!(text, "{gate}: {reason}");
        debug_assert!(written.is_ok());
    }
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write as _},
        net::TcpStream,
    };

    use super::*;

    fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn metrics_health_and_readiness_are_served() {
        let readiness = Readiness::new();
        let gate = readiness.gate("leader", "none known");
        let config = ExporterConfig { listen: ([127, 0, 0, 1], 0).into(), process: "test", version: "1.2.3" };
        let collector: Collector = Arc::new(|| {
            Box::pin(async {
                let mut exposition = Exposition::default();
                exposition.family("basalt_test_up", "Whether it is up").sample(&[("name", "a\"b")], 1.0);
                exposition
            })
        });
        let exporter = Exporter::start_with(&config, readiness, collector).unwrap();
        metrics::histogram!("basalt_test_wait_seconds").record(0.003);

        let metrics = get(exporter.address(), "/metrics");
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        assert!(metrics.contains(r#"basalt_build_info{process="test",version="1.2.3"} 1"#), "{metrics}");
        assert!(metrics.contains(r#"basalt_test_wait_seconds_bucket{le="0.005"} 1"#), "{metrics}");
        assert!(metrics.contains("basalt_test_up{name=\"a\\\"b\"} 1\n"), "{metrics}");
        assert!(get(exporter.address(), "/healthz").starts_with("HTTP/1.1 200"));

        let waiting = get(exporter.address(), "/readyz");
        assert!(waiting.starts_with("HTTP/1.1 503") && waiting.contains("leader: none known"), "{waiting}");
        gate.open();
        assert!(get(exporter.address(), "/readyz").starts_with("HTTP/1.1 200"));

        let handle = PrometheusBuilder::new().build_recorder().handle();
        let nothing: Collector = Arc::new(|| Box::pin(async { Exposition::default() }));
        let taken = serve(exporter.address(), handle, Readiness::new(), nothing);
        assert!(matches!(taken, Err(ExporterError::Listen { .. })));
    }
}
