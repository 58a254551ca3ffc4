//! Linux's own NVMe/TCP host, in a guest, against the product's target on this machine.
#![allow(clippy::unwrap_used, reason = "functions of a test file")]

use std::cell::RefCell;
use std::fs::File;
use std::process::Command;
use std::time::Duration;

use basalt_e2e::guest::{Guest, Image};
use basalt_e2e::programs::{Serve, program};
use basalt_nvme_wire::Status;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvme_wire::reservation::{
    Acquire, AcquireAction, PersistenceChange, Register, RegisterAction, Release, ReleaseAction,
    ReservationKey, ReservationType,
};
use basalt_nvmf_host::HostOptions;
use basalt_nvmf_tcp::host::TcpHostOptions;
use basalt_nvmf_tcp::host::blocking::{BlockingError, Session};
use basalt_nvmf_transport::{HostId, Nqn};

const SCRIPT: &str = include_str!("guest/nvme-tcp.sh");
/// mkfs.xfs wants at least 300 MiB.
const SIZE: u64 = 512 << 20;
const NQN: &str = "nqn.2026-01.storage.basalt:linux-host-test";

#[test]
#[ignore = "boots a guest and needs built programs; cargo xtask test runs it"]
fn a_volume_of_a_single_daemon_survives_its_sigkill() {
    let image = Image::ensure(&mut |text| eprintln!("{text}")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.img");
    File::create(&disk).unwrap().set_len(SIZE).unwrap();
    let port = basalt_kube::free_ports(1).unwrap()[0];
    let arguments = [
        "--cores=1".to_owned(),
        format!("--listen=127.0.0.1:{port}"),
        format!("--nqn={NQN}"),
        format!("--device=file,path={}", disk.display()),
        format!("--state={}", dir.path().join("state").display()),
    ];
    let target = RefCell::new(Serve::start(&arguments, &dir.path().join("basaltd.log")).unwrap());
    let outcome = Guest::new(&image)
        .env("ADDRESS", "10.0.2.2")
        .env("PORT", &port.to_string())
        .env("NQN", NQN)
        .env("RESERVATIONS", "1")
        .env("SIZE", &SIZE.to_string())
        .hook("kill", |_| {
            target.borrow_mut().kill();
            0
        })
        .hook("start", |_| i32::from(target.borrow_mut().restart().is_err()))
        .hook("other", |words| other_host(port, words).map_or_else(code_of, |()| 0))
        .deadline(Duration::from_secs(420))
        .run(SCRIPT)
        .unwrap();
    println!("{}", outcome.output);
    assert_eq!(outcome.status, 0, "{}\nbasaltd said:\n{}", outcome.output, target.borrow().said().unwrap());
}

#[test]
#[ignore = "boots a guest and needs built programs; cargo xtask test runs it"]
fn a_daemon_asks_a_kernels_ssd_for_its_completions() {
    let image = Image::ensure(&mut |text| eprintln!("{text}")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // The guest has little memory, and the debug information is most of the program.
    let small = dir.path().join("basaltd");
    let built = program("basaltd").unwrap();
    let stripped = Command::new("strip").arg("-o").arg(&small).arg(built).status().unwrap();
    assert!(stripped.success());
    let outcome = Guest::new(&image)
        .file("basaltd", &small)
        .nvme(64)
        .deadline(Duration::from_secs(300))
        .run(include_str!("guest/polled-ssd.sh"))
        .unwrap();
    println!("{}", outcome.output);
    assert_eq!(outcome.status, 0, "{}", outcome.output);
}

/// Our own host, beside the guest's on the same namespace: does one thing and leaves.
fn other_host(port: u16, words: &[&str]) -> Result<(), BlockingError> {
    const KEY: ReservationKey = ReservationKey(0xb2);
    let options = HostOptions::new(
        Nqn::new(NQN).unwrap(),
        Nqn::new("nqn.2026-01.storage.basalt:other-host").unwrap(),
        HostId([0xb2; 16]),
    );
    let address = ([127, 0, 0, 1], port).into();
    let session = Session::connect(&TcpHostOptions { address, host: options, digests: Digests::default() })?;
    let (ignore_key, kind) = (false, ReservationType::WriteExclusive);
    match words {
        ["read"] => session.read(1, 0, 1).map(drop)?,
        ["write"] => session.write(1, 0, &[0; 512])?,
        ["preempt", key] => {
            let (action, persistence) = (RegisterAction::Register, PersistenceChange::Keep);
            let current = ReservationKey(0);
            session.register(1, Register { action, ignore_key, persistence, current, new: KEY })?;
            let preempted = ReservationKey(u64::from_str_radix(key, 16).unwrap());
            let action = AcquireAction::PreemptAndAbort;
            session.acquire(1, Acquire { action, ignore_key, kind, current: KEY, preempted })?;
        }
        ["clear"] => {
            let action = ReleaseAction::Clear;
            session.release(1, Release { action, ignore_key, kind: kind.code(), current: KEY })?;
        }
        other => panic!("the script asks for {other:?}"),
    }
    session.disconnect()
}

/// What the script sees of an error: the status code of a Reservation Conflict, or that it is none.
fn code_of(error: BlockingError) -> i32 {
    match error {
        BlockingError::Status { status, .. } if status.bare() == Status::RESERVATION_CONFLICT => 0x83,
        other => {
            eprintln!("the other host: {other}");
            1
        }
    }
}
