//! Linux's own NVMe/TCP host, in a guest, against the product's target on this machine.
#![allow(clippy::unwrap_used, reason = "functions of a test file")]

use std::cell::RefCell;
use std::fs::File;
use std::process::Command;
use std::time::Duration;

use basalt_e2e::guest::{Guest, Image};
use basalt_e2e::programs::{Serve, program};

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
        .env("SIZE", &SIZE.to_string())
        .hook("kill", |_| {
            target.borrow_mut().kill();
            0
        })
        .hook("start", |_| i32::from(target.borrow_mut().restart().is_err()))
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
