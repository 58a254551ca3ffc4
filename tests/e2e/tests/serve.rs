//! `basaltd serve`: one daemon alone, seen by whoever watches over it.
#![allow(clippy::unwrap_used, reason = "functions of a test file")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use basalt_e2e::http;
use basalt_e2e::programs::Serve;

const NQN: &str = "nqn.2026-01.storage.basalt:serve-test";

#[test]
#[ignore = "needs built programs; cargo xtask test runs it"]
fn a_daemon_alone_has_metrics_and_probes() {
    let dir = tempfile::tempdir().unwrap();
    let port = basalt_kube::free_ports(1).unwrap()[0];
    let metrics = SocketAddr::from(([127, 0, 0, 1], port));
    let arguments = [
        "--no-pin".to_owned(),
        "--listen=127.0.0.1:0".to_owned(),
        format!("--metrics-listen={metrics}"),
        format!("--nqn={NQN}"),
        "--device=ram,size=16MiB".to_owned(),
    ];
    let daemon = Serve::start(&arguments, &dir.path().join("basaltd.log")).unwrap();
    assert_eq!(http::get(metrics, "/healthz").unwrap().0, 200);
    assert_eq!(http::get(metrics, "/readyz").unwrap().0, 200, "{}", daemon.said().unwrap());
    let began = Instant::now();
    let wanted =
        ["basalt_target_subsystems 1", "basalt_reactor_turns_total{reactor=\"0\"} ", "process=\"basaltd\""];
    loop {
        let (status, body) = http::get(metrics, "/metrics").unwrap();
        assert_eq!(status, 200);
        if wanted.iter().all(|series| body.contains(series)) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "not all of {wanted:?} in:\n{body}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
