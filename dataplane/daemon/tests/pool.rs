//! `basaltd pool` as scripts see it: exit codes, and what is on standard output.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use basalt_device_uring::{UringDevice, UringOptions};
use basalt_lvol::id::{ClusterId, Revision};
use basalt_lvol::layout::{DiskLayout, EXTENT_BYTES, SLOT_OFFSETS};
use basalt_lvol::{NewPool, NewPoolDisk, Pool, PoolDisk};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{DiskOptions, Reactor, ReactorOptions};
use serde_json::Value;
use uuid::Uuid;

/// A pool in a file.
fn pool_in(path: &Path) {
    std::fs::write(path, vec![0; 16 << 20]).unwrap();
    let mut reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &ReactorOptions::default());
    let (handle, stopper) = (reactor.handle(), reactor.handle());
    let options = UringOptions {
        name: "disk".into(),
        uuid: Uuid::nil(),
        block_size: None,
        disk: DiskOptions::default(),
    };
    let device = UringDevice::open(&handle, path, &options).unwrap();
    let mut task = reactor.handle().spawn(async move {
        let disk = PoolDisk { name: "disk".into(), device: Arc::new(device) };
        let new = NewPool {
            cluster: ClusterId(Uuid::from_u128(1)),
            name: "tank".into(),
            revision: Revision::default(),
            extent_bytes: EXTENT_BYTES,
            layout: DiskLayout::Striped,
            disks: vec![NewPoolDisk { disk, overwrite_foreign_data: false }],
        };
        let made = Pool::create(&handle, new).await.map(drop);
        stopper.stop();
        made
    });
    reactor.run();
    task.take_output().unwrap().unwrap();
}

fn damage(path: &Path, at: &[u64]) {
    let mut bytes = std::fs::read(path).unwrap();
    at.iter().for_each(|at| bytes[usize::try_from(*at).unwrap()] ^= 1);
    std::fs::write(path, bytes).unwrap();
}

fn basaltd(args: &[&str], disk: &Path) -> (Option<i32>, Output) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_basaltd"));
    let output = command.arg("pool").args(args).arg(disk).output().unwrap();
    (output.status.code(), output)
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn findings_are_told_from_what_could_not_be_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    pool_in(&path);
    for args in [&["check"][..], &["check", "--json"], &["inspect", "--json"], &["check", "--repair"]] {
        assert_eq!(basaltd(args, &path).0, Some(0), "{args:?}");
    }
    damage(&path, &[SLOT_OFFSETS[0] + 100]);
    let (code, output) = basaltd(&["check", "--json"], &path);
    assert_eq!((code, json(&output).as_array().unwrap().len()), (Some(1), 1));
    assert_eq!(basaltd(&["inspect"], &path).0, Some(0), "it shows what there is");
    assert_eq!(basaltd(&["check", "--repair"], &path).0, Some(0));
    damage(&path, &SLOT_OFFSETS.map(|slot| slot + 100));
    let missing = directory.path().join("nothing");
    for (disk, words) in [(&path, "a damaged Basalt pool"), (&missing, "there is no such file or device")] {
        let changes = ["changes", "--from", "a", "--to", "b", "--json"];
        for args in
            [&["check", "--json"][..], &["check", "--repair", "--json"], &["inspect", "--json"], &changes]
        {
            let (code, output) = basaltd(args, disk);
            assert_eq!(code, Some(2), "{args:?}");
            let told = json(&output)["error"].as_str().unwrap().to_owned();
            assert!(told.contains(words), "{args:?}: {told}");
            assert!(String::from_utf8_lossy(&output.stderr).contains(&told), "people are told as well");
        }
        let (code, output) = basaltd(&["check"], disk);
        assert_eq!((code, output.stdout.len()), (Some(2), 0));
    }
    let (_, help) = basaltd(&["check", "--help"], &path);
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("Exit code"), "{help}");
}
