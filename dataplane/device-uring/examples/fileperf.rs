//! Measures a file or block device on one core: `fileperf PATH read|write [depth] [bytes] [seconds]`. Creates the file with
//! 256 MiB and fills it if it is shorter. Overwrites it.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use basalt_bdev::load::{Load, LoadOptions, LoadReport};
use basalt_bdev::{BlockCount, BlockDevice};
use basalt_device_uring::{UringDevice, UringOptions};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{DiskOptions, Reactor, ReactorOptions};
use uuid::Uuid;

const WORKING_SET_BYTES: u64 = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text =
        |place: usize, default: &str| arguments.get(place).cloned().unwrap_or_else(|| default.to_owned());
    let path = text(0, "");
    let mut reactor = Reactor::new(Box::new(RealDriver::new()?), &ReactorOptions::default());
    let handle = reactor.handle();
    let disk = DiskOptions { create_with_length: Some(WORKING_SET_BYTES), ..DiskOptions::default() };
    let options = UringOptions { name: path.clone(), uuid: Uuid::nil(), block_size: None, disk };
    let device = UringDevice::open(&handle, Path::new(&path), &options)?;
    let block = u64::from(device.info().block_size().bytes());
    let bytes: u64 = text(3, "4096").parse()?;
    let options = LoadOptions {
        read_percent: if text(1, "read") == "read" { 100 } else { 0 },
        depth: text(2, "32").parse()?,
        blocks: BlockCount(bytes / block),
        working_set: BlockCount(WORKING_SET_BYTES / block),
        sequential: false,
        own_memory: true,
        seed: 1,
    };
    // Every block is written once, so that reads are not answered from holes.
    let fill =
        LoadOptions { read_percent: 0, sequential: true, blocks: BlockCount((1 << 20) / block), ..options };
    run(&mut reactor, Load::new(&handle, &device, fill)?, |report| report.bytes >= WORKING_SET_BYTES);
    let load = Load::new(&handle, &device, options)?;
    let began = Instant::now();
    let seconds = Duration::from_secs(text(4, "3").parse()?);
    let before = processor_time()?;
    let report = run(&mut reactor, load, move |_| began.elapsed() >= seconds);
    let (elapsed, busy) = (began.elapsed(), processor_time()? - before);
    println!(
        "{} IOPS, {} MiB/s, failed {}, mean {:?}, p99 {:?}, {:?} of processor per I/O",
        report.per_second(elapsed),
        (report.per_second(elapsed) * bytes) >> 20,
        report.failed,
        report.latency.mean(),
        report.latency.quantile(990),
        busy.checked_div(u32::try_from(report.completed)?).unwrap_or_default(),
    );
    Ok(())
}

/// Runs a load until there was enough of it, sleeping as a daemon does when it waits for the disk.
fn run(reactor: &mut Reactor, load: Load, enough: impl Fn(&LoadReport) -> bool + 'static) -> LoadReport {
    let load = Rc::new(RefCell::new(load));
    let (polled, handle) = (Rc::clone(&load), reactor.handle());
    let mut polls = 0_u32;
    let poller = reactor.handle().add_poller(move || {
        let mut load = polled.borrow_mut();
        let progress = load.poll();
        polls += 1;
        if polls.is_multiple_of(64) && enough(&load.report()) {
            load.stop();
        }
        if load.is_quiet() {
            handle.stop();
        }
        progress
    });
    reactor.run();
    reactor.handle().remove_poller(poller);
    load.borrow().report()
}

/// Time that this thread had on a processor.
fn processor_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = schedule.split_whitespace().next().ok_or("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}
