//! Claims of what a loop device shows: whoever has the bytes under another name is in use.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Command;

use basalt_reactor::real::RealDriver;
use basalt_reactor::{DiskError, DiskLock, DiskOptions, Handle, Reactor, ReactorOptions};

const MIB: usize = 1 << 20;

/// A loop device; it is detached with this value.
struct Loop(PathBuf);

impl Loop {
    fn attach(below: &Path, options: &[&str]) -> Self {
        let mut command = Command::new("losetup");
        let output = command.args(["--find", "--show"]).args(options).arg(below).output().unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Self(PathBuf::from(String::from_utf8(output.stdout).unwrap().trim()))
    }

    /// With the partitions of its table, which not every kernel looks for by itself.
    fn partitioned(below: &Path) -> Self {
        let made = Self::attach(below, &["--partscan"]);
        let found = Command::new("partx").arg("--update").arg(&made.0).status();
        assert!(found.unwrap().success(), "partx");
        made
    }

    fn partition(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.0.display()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(detached.unwrap().success() || std::thread::panicking());
    }
}

fn image(folder: &Path) -> PathBuf {
    let path = folder.join("disk.img");
    let mut bytes = vec![0; 8 * MIB];
    // An MBR with two partitions of a MiB each, from the first MiB on.
    for (entry, sector) in [(446, 2048_u32), (462, 4096)] {
        bytes[entry + 4] = 0x83;
        bytes[entry + 8..entry + 12].copy_from_slice(&sector.to_le_bytes());
        bytes[entry + 12..entry + 16].copy_from_slice(&2048_u32.to_le_bytes());
    }
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn claim(handle: &Handle, path: &Path) -> Result<DiskLock, DiskError> {
    handle.lock_disk(path, &DiskOptions::default())
}

/// Each of them can be claimed, and then none of the others, whichever comes first.
fn exclude_one_another(handle: &Handle, paths: &[&Path]) {
    for first in paths {
        let held = claim(handle, first).unwrap();
        for second in paths {
            assert_eq!(claim(handle, second).unwrap_err(), DiskError::InUse, "{first:?}, then {second:?}");
        }
        // The disk that was opened through it holds it as well.
        let open = handle.open_locked(&held).unwrap();
        drop(held);
        for second in paths {
            assert_eq!(claim(handle, second).unwrap_err(), DiskError::InUse, "{first:?}, then {second:?}");
        }
        drop(open);
    }
}

#[test]
fn a_file_and_the_loop_devices_over_it_are_claimed_once() {
    if !rooted() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = image(folder.path());
    let reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &ReactorOptions::default());
    let handle = reactor.handle();
    let one = Loop::partitioned(&file);
    let other = Loop::partitioned(&file);
    let tower = Loop::attach(&one.0, &[]);
    let top = Loop::attach(&tower.0, &[]);
    exclude_one_another(&handle, &[&file, &one.0, &other.0]);
    exclude_one_another(&handle, &[&file, &tower.0, &other.0]);
    exclude_one_another(&handle, &[&file, &top.0, &tower.0, &one.0, &other.0]);
    let read_only = Loop::attach(&file, &["--read-only"]);
    let look = DiskOptions { read_only: true, ..DiskOptions::default() };
    let held = handle.lock_disk(&read_only.0, &look).unwrap();
    assert_eq!(claim(&handle, &file).unwrap_err(), DiskError::InUse);
    drop(held);
    // Partitions are disks of their own, beside one another.
    let (first, second) = (one.partition(1), one.partition(2));
    exclude_one_another(&handle, &[&file, &first, &one.0, &other.0]);
    exclude_one_another(&handle, &[&first, &other.partition(1)]);
    let _first = claim(&handle, &first).unwrap();
    drop(claim(&handle, &second).unwrap());
    let _other = claim(&handle, &other.partition(2)).unwrap();
    assert_eq!(claim(&handle, &second).unwrap_err(), DiskError::InUse);
}

#[test]
fn parts_of_a_file_are_claimed_apart() {
    if !rooted() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = image(folder.path());
    let reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &ReactorOptions::default());
    let handle = reactor.handle();
    let head = Loop::attach(&file, &["--sizelimit", "4194304"]);
    let tail = Loop::attach(&file, &["--offset", "4194304"]);
    let _head = claim(&handle, &head.0).unwrap();
    let _tail = claim(&handle, &tail.0).unwrap();
    let middle = Loop::attach(&file, &["--offset", "3145728", "--sizelimit", "1048576"]);
    assert_eq!(claim(&handle, &middle.0).unwrap_err(), DiskError::InUse);
}

#[test]
fn of_a_loop_device_whose_file_is_not_found_only_the_device_is_claimed() {
    if !rooted() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = image(folder.path());
    let reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &ReactorOptions::default());
    let handle = reactor.handle();
    let device = Loop::attach(&file, &[]);
    std::fs::remove_file(&file).unwrap();
    let gone = claim(&handle, &device.0).unwrap();
    assert_eq!(claim(&handle, &device.0).unwrap_err(), DiskError::InUse);
    drop(gone);
    // Another file that has its name is nothing to it.
    let mut named = file.clone().into_os_string();
    named.push(" (deleted)");
    std::fs::write(&named, [0; MIB]).unwrap();
    let _claimed = claim(&handle, &device.0).unwrap();
    drop(claim(&handle, Path::new(&named)).unwrap());
}

/// Loop devices are root's, and not there in every container.
fn rooted() -> bool {
    let rooted = OpenOptions::new().read(true).write(true).open("/dev/loop-control").is_ok();
    if !rooted {
        eprintln!("skipped: needs root and loop devices");
    }
    rooted
}
