//! Measures a device of this crate on one core: `bdevperf null|ram read|write [depth] [bytes] [seconds] [lent|own]
//! [metered]`.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_bdev::load::{Load, LoadOptions};
use basalt_bdev::{BlockCount, BlockDevice, BlockSize, IoStats, MeteredDevice};
use basalt_device_mem::{NullDevice, RamDevice};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{Reactor, ReactorOptions};
use uuid::Uuid;

const WORKING_SET_BYTES: u64 = 256 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text =
        |place: usize, default: &str| arguments.get(place).cloned().unwrap_or_else(|| default.to_owned());
    let device: Arc<dyn BlockDevice> = match text(0, "null").as_str() {
        "null" => {
            let blocks = BlockSize::B512.blocks_in(WORKING_SET_BYTES);
            Arc::new(NullDevice::new("null", Uuid::nil(), BlockSize::B512, blocks)?)
        }
        "ram" => Arc::new(RamDevice::new("ram", Uuid::nil(), BlockSize::B512, WORKING_SET_BYTES)?),
        other => return Err(format!("there is no device `{other}`: null or ram").into()),
    };
    let device = match text(6, "bare").as_str() {
        "metered" => Arc::new(MeteredDevice::new(device, Arc::<IoStats>::default())),
        _ => device,
    };
    let bytes: u64 = text(3, "4096").parse()?;
    let seconds: u64 = text(4, "3").parse()?;
    let options = LoadOptions {
        read_percent: if text(1, "read") == "read" { 100 } else { 0 },
        depth: text(2, "128").parse()?,
        blocks: BlockCount(bytes / 512),
        working_set: device.info().blocks(),
        sequential: false,
        own_memory: text(5, "lent") == "own",
        seed: 1,
    };
    let mut reactor = Reactor::new(Box::new(RealDriver::new()?), &ReactorOptions::default());
    let handle = reactor.handle();
    let load = Rc::new(RefCell::new(Load::new(&handle, &*device, options)?));
    let polled = Rc::clone(&load);
    handle.add_poller(move || polled.borrow_mut().poll());
    turn_for(&mut reactor, Duration::from_millis(500));
    load.borrow_mut().reset_counts();
    let before = processor_time()?;
    let elapsed = turn_for(&mut reactor, Duration::from_secs(seconds));
    let busy = processor_time()? - before;
    let report = load.borrow().report();
    println!(
        "{}: {} IOPS per core, {} MiB/s, wall {} IOPS, failed {}, mean {:?}, p99 {:?}",
        device.info().name(),
        report.per_second(busy),
        (report.per_second(busy) * bytes) >> 20,
        report.per_second(elapsed),
        report.failed,
        report.latency.mean(),
        report.latency.quantile(990),
    );
    Ok(())
}

/// Time that this thread had on a processor: machines that others use, too, still give a figure per core.
fn processor_time() -> Result<Duration, Box<dyn std::error::Error>> {
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = schedule.split_whitespace().next().ok_or("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

fn turn_for(reactor: &mut Reactor, duration: Duration) -> Duration {
    let began = Instant::now();
    while began.elapsed() < duration {
        for _ in 0..16 {
            reactor.turn();
        }
    }
    began.elapsed()
}
