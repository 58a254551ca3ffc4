//! `basaltd serve`: one daemon alone, seen by whoever watches over it.
#![allow(clippy::unwrap_used, reason = "functions of a test file")]

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use basalt_e2e::http;
use basalt_e2e::mounts::{ReadOnlyDisk, StallingDisk};
use basalt_e2e::programs::Serve;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvme_wire::reservation::{PersistenceChange, Register, RegisterAction, ReservationKey};
use basalt_nvmf_host::HostOptions;
use basalt_nvmf_tcp::host::TcpHostOptions;
use basalt_nvmf_tcp::host::blocking::Session;
use basalt_nvmf_transport::{HostId, Nqn};

const NQN: &str = "nqn.2026-01.storage.basalt:serve-test";

#[test]
#[ignore = "needs root and built programs; cargo xtask test runs it"]
fn a_disk_that_hangs_in_a_write_of_a_killed_daemon_is_not_handed_to_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let disk = StallingDisk::make(dir.path(), 16).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], basalt_kube::free_ports(1).unwrap()[0]));
    let arguments = [
        "--no-pin".to_owned(),
        format!("--listen={address}"),
        format!("--nqn={NQN}"),
        format!("--device=file,path={}", disk.path().display()),
    ];
    let mut daemon = Serve::start(&arguments, &dir.path().join("basaltd.log")).unwrap();
    connect(address).write(1, 0, &[1; 4096]).unwrap();
    disk.stall().unwrap();
    let writer = std::thread::spawn(move || connect(address).write(1, 0, &[2; 4096]));
    // Until the kernel has the write: nothing outside of it tells when.
    std::thread::sleep(Duration::from_millis(500));
    daemon.kill();
    writer.join().unwrap().unwrap_err();
    // Were it handed on, that write would come over what the next daemon has acknowledged.
    let refused = daemon.restart().unwrap_err().to_string();
    assert!(refused.contains("the disk is in use"), "{refused}");
    disk.go_on().unwrap();
    daemon.restart().unwrap();
    let session = connect(address);
    assert!(session.read(1, 0, 8).unwrap() == [2; 4096]);
    session.write(1, 0, &[3; 4096]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(session.read(1, 0, 8).unwrap() == [3; 4096]);
    session.disconnect().unwrap();
}

#[test]
#[ignore = "needs root and built programs; cargo xtask test runs it"]
fn what_cannot_be_written_or_understood_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let address = SocketAddr::from(([127, 0, 0, 1], basalt_kube::free_ports(1).unwrap()[0]));
    let start = |device: &str| {
        let arguments = [
            "--no-pin".to_owned(),
            format!("--listen={address}"),
            format!("--nqn={NQN}"),
            format!("--state={}", state.display()),
            format!("--device={device}"),
        ];
        Serve::start(&arguments, &dir.path().join("basaltd.log"))
    };
    let disk = ReadOnlyDisk::make(dir.path(), 1).unwrap();
    let refused = start(&format!("file,path={}", disk.path().display())).unwrap_err().to_string();
    assert!(refused.contains("the disk is read-only"), "{refused}");

    let daemon = start("ram,size=1MiB").unwrap();
    let (action, persistence) = (RegisterAction::Register, PersistenceChange::On);
    let (current, new) = (ReservationKey(0), ReservationKey(7));
    let register = Register { action, ignore_key: false, persistence, current, new };
    connect(address).register(1, register).unwrap();
    drop(daemon);
    let kept: Vec<_> = fs::read_dir(state.join("reservations")).unwrap().collect();
    let [Ok(kept)] = &kept[..] else { panic!("one namespace, one file: {kept:?}") };
    let mut bytes = fs::read(kept.path()).unwrap();
    bytes[20] ^= 1;
    fs::write(kept.path(), bytes).unwrap();
    let refused = start("ram,size=1MiB").unwrap_err().to_string();
    assert!(refused.contains(&kept.path().display().to_string()), "{refused}");
    assert!(refused.contains("the saved reservation is damaged"), "{refused}");
}

fn connect(address: SocketAddr) -> Session {
    let host = Nqn::new("nqn.2026-01.storage.basalt:writer").unwrap();
    let host = HostOptions::new(Nqn::new(NQN).unwrap(), host, HostId([0xd1; 16]));
    Session::connect(&TcpHostOptions { address, host, digests: Digests::default() }).unwrap()
}

#[test]
#[ignore = "needs built programs; cargo xtask test runs it"]
fn a_daemon_alone_has_metrics_and_probes() {
    let dir = tempfile::tempdir().unwrap();
    let ports = basalt_kube::free_ports(2).unwrap();
    let [served, metrics] = [0, 1].map(|place| SocketAddr::from(([127, 0, 0, 1], ports[place])));
    let arguments = [
        "--no-pin".to_owned(),
        format!("--listen={served}"),
        format!("--metrics-listen={metrics}"),
        format!("--nqn={NQN}"),
        "--device=ram,size=16MiB".to_owned(),
    ];
    let daemon = Serve::start(&arguments, &dir.path().join("basaltd.log")).unwrap();
    assert_eq!(http::get(metrics, "/healthz").unwrap().0, 200);
    assert_eq!(http::get(metrics, "/readyz").unwrap().0, 200, "{}", daemon.said().unwrap());
    let began = Instant::now();
    connect(served).write(1, 0, &[1; 4096]).unwrap();
    let wanted = [
        "basalt_target_subsystems 1",
        "basalt_reactor_turns_total{reactor=\"0\"} ",
        "process=\"basaltd\"",
        "basalt_namespace_io_operations_total{nsid=\"1\",kind=\"write\"} 1",
        "basalt_namespace_io_seconds_count{nsid=\"1\",kind=\"write\"} 1",
        "basalt_reactor_busy_seconds_total{reactor=\"0\"} 0.",
    ];
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
