//! Devices without a network: ours in pairs of runs with another program, on one core.

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use basalt_bdev::load::{Load, LoadOptions};
use basalt_bdev::{BlockCount, BlockDevice, BlockSize};
use basalt_device_mem::{NullDevice, RamDevice};
use basalt_device_uring::{UringDevice, UringOptions};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{DiskOptions, Polling, Reactor, ReactorOptions};
use serde::Serialize;
use uuid::Uuid;

use crate::bars::Bar;
use crate::exchange::pin;
use crate::outside::field;
use crate::ratio::{Ratio, median};
use crate::subject::{LOAD_CORE, REGION};

/// A device, and the bar of its IOPS to the other program's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    /// Against `PROGRAM null read|write SECONDS`, which prints `IOPS=`.
    Null,
    /// Against `PROGRAM malloc read|write SECONDS`.
    Ram,
    /// A file, against fio with io_uring on the same one.
    File,
}

/// One device under one kind of load.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    per_second: f64,
    other_per_second: Option<f64>,
    bar: Option<Bar>,
}

/// What runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run<'a> {
    pub(crate) device: Device,
    pub(crate) reads: bool,
    /// The other program; for a file the file.
    pub(crate) path: &'a Path,
    pub(crate) duration: Duration,
}

impl Run<'_> {
    pub(crate) fn name(&self) -> String {
        let (device, depth) = match self.device {
            Device::Null => ("null", 128),
            Device::Ram => ("RAM", 128),
            Device::File => ("file", 32),
        };
        format!("{device} 4 KiB {} QD{depth}", if self.reads { "read" } else { "write" })
    }

    /// In pairs of runs.
    pub(crate) fn measure(&self, pairs: u32) -> Result<Row> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            for own in if pair % 2 == 0 { [true, false] } else { [false, true] } {
                match own {
                    true => ours.push(self.ours()?),
                    false if self.device == Device::File => theirs.push(self.fio()?),
                    false => theirs.push(self.other()?),
                }
            }
        }
        let both: Vec<_> = ours.iter().copied().zip(theirs.iter().copied()).collect();
        let bar = match self.device {
            Device::Null => 0.7,
            Device::Ram => 1.5,
            Device::File => 0.95,
        };
        Ok(Row {
            name: self.name(),
            per_second: median(&ours).unwrap_or_default(),
            other_per_second: median(&theirs),
            bar: Ratio::of(&both).map(|ratio| Bar::at_least("IOPS", ratio, bar)),
        })
    }

    /// A thread of its own would lose what this one is pinned to.
    fn ours(&self) -> Result<f64> {
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                pin(LOAD_CORE)?;
                self.load()
            });
            run.join().map_err(|_| anyhow::anyhow!("the loading thread panicked"))?
        })
    }

    fn load(&self) -> Result<f64> {
        let driver = match self.device {
            Device::File => RealDriver::polling_disks()?,
            Device::Null | Device::Ram => RealDriver::new()?,
        };
        let options = ReactorOptions { polling: Polling::Busy, ..ReactorOptions::default() };
        let mut reactor = Reactor::new(Box::new(driver), &options);
        let handle = reactor.handle();
        let blocks = BlockSize::B512.blocks_in(REGION);
        let device: Arc<dyn BlockDevice> = match self.device {
            Device::Null => Arc::new(NullDevice::new("null", Uuid::nil(), BlockSize::B512, blocks)?),
            Device::Ram => Arc::new(RamDevice::new("ram", Uuid::nil(), BlockSize::B512, REGION)?),
            Device::File => {
                let disk = DiskOptions { create_with_length: Some(REGION), ..DiskOptions::default() };
                let options =
                    UringOptions { name: "file".to_owned(), uuid: Uuid::nil(), block_size: None, disk };
                Arc::new(UringDevice::open(&handle, self.path, &options)?)
            }
        };
        let block = u64::from(device.info().block_size().bytes());
        let options = LoadOptions {
            read_percent: if self.reads { 100 } else { 0 },
            depth: if self.device == Device::File { 32 } else { 128 },
            blocks: BlockCount(4096 / block),
            working_set: BlockCount(REGION / block),
            sequential: false,
            // Like the other program: data is copied out of the device, not lent.
            own_memory: self.device != Device::Null,
            seed: 1,
        };
        // Memory and files are written once first: what nobody wrote is answered without being fetched.
        if self.device != Device::Null {
            let fill = LoadOptions {
                read_percent: 0,
                sequential: true,
                blocks: BlockCount((1 << 20) / block),
                depth: 8,
                ..options
            };
            run(&mut reactor, Load::new(&handle, &*device, fill)?, |_, bytes| bytes >= REGION);
        }
        let duration = self.duration;
        let load = Load::new(&handle, &*device, options)?;
        let (completed, elapsed) = run(&mut reactor, load, move |elapsed, _| elapsed >= duration);
        Ok(completed as f64 / elapsed.as_secs_f64())
    }

    fn other(&self) -> Result<f64> {
        let device = if self.device == Device::Null { "null" } else { "malloc" };
        let kind = if self.reads { "read" } else { "write" };
        let seconds = self.duration.as_secs_f64().ceil().to_string();
        field(&output(Command::new(self.path).args([device, kind, &seconds]))?, "IOPS")
    }

    fn fio(&self) -> Result<f64> {
        let mut command = Command::new("fio");
        command
            .args(["--name=bench", "--bs=4k", "--iodepth=32", "--ioengine=io_uring", "--direct=1"])
            .args(["--time_based", "--norandommap", "--output-format=json"])
            .arg(if self.reads { "--rw=randread" } else { "--rw=randwrite" })
            .arg(format!("--size={REGION}"))
            .arg(format!("--runtime={}", self.duration.as_secs_f64().ceil()))
            .arg(format!("--cpus_allowed={LOAD_CORE}"))
            .arg(format!("--filename={}", self.path.display()));
        let report: serde_json::Value =
            serde_json::from_str(&output(&mut command)?).context("fio printed no JSON")?;
        let job = &report["jobs"][0][if self.reads { "read" } else { "write" }]["iops"];
        job.as_f64().context("fio printed no IOPS")
    }
}

fn output(command: &mut Command) -> Result<String> {
    let output =
        command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {}", command.get_program().display(), complaint.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a load until there was enough of it: how many commands, in what time.
fn run(
    reactor: &mut Reactor,
    load: Load,
    enough: impl Fn(Duration, u64) -> bool + 'static,
) -> (u64, Duration) {
    let load = Rc::new(RefCell::new(load));
    let (polled, handle) = (Rc::clone(&load), reactor.handle());
    let (began, mut polls) = (Instant::now(), 0_u32);
    let poller = reactor.handle().add_poller(move || {
        let mut load = polled.borrow_mut();
        let progress = load.poll();
        polls = polls.wrapping_add(1);
        if polls.is_multiple_of(256) && enough(began.elapsed(), load.report().bytes) {
            load.stop();
        }
        if load.is_quiet() {
            handle.stop();
        }
        progress
    });
    reactor.run();
    reactor.handle().remove_poller(poller);
    (load.borrow().report().completed, began.elapsed())
}

pub(crate) fn print_row(row: &Row, first: bool) {
    if first {
        println!("{:24} {:>11} {:>11}", "", "IOPS", "other");
    }
    let other = row.other_per_second.map_or_else(|| "-".to_owned(), |other| format!("{other:.0}"));
    println!("{:24} {:>11.0} {other:>11}", row.name, row.per_second);
    row.bar.iter().for_each(|bar| println!("    {bar}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_devices_give_figures() {
        for device in [Device::Null, Device::Ram] {
            for reads in [true, false] {
                let run = Run { device, reads, path: Path::new(""), duration: Duration::from_millis(20) };
                assert!(run.load().unwrap() > 0.0, "{}", run.name());
            }
        }
    }
}
