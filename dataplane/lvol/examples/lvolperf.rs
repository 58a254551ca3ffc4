//! What a logical volume costs on top of its disk, on one core: `lvolperf read|write [depth] [rounds]`. Rounds of 300 ms on a RAM device
//! and on a volume of a RAM device alternate; the figure is the median of their ratios.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_bdev::load::{Load, LoadOptions};
use basalt_bdev::{BlockCount, BlockDevice, BlockSize};
use basalt_device_mem::RamDevice;
use basalt_lvol::id::{ClusterId, Epoch, Generation, Revision, VolumeId};
use basalt_lvol::layout::VolumeIdentity;
use basalt_lvol::{NewPool, NewPoolDisk, NewVolume, Pool, PoolDisk};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{Handle, Reactor, ReactorOptions};
use uuid::Uuid;

type Failure = Box<dyn std::error::Error>;

const WORKING_SET_BYTES: u64 = 256 << 20;
const ROUND: Duration = Duration::from_millis(300);

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let text = |place: usize, default: &str| arguments.get(place).cloned().unwrap_or_else(|| default.into());
    let options = |blocks| LoadOptions {
        read_percent: if text(0, "read") == "read" { 100 } else { 0 },
        depth: text(1, "128").parse().unwrap_or(128),
        blocks: BlockCount(8),
        working_set: blocks,
        sequential: false,
        own_memory: true,
        seed: 1,
    };
    let rounds: usize = text(2, "15").parse()?;
    let mut reactor = Reactor::new(Box::new(RealDriver::new()?), &ReactorOptions::default());
    let handle = reactor.handle();
    let ram: Arc<dyn BlockDevice> = Arc::new(disk(WORKING_SET_BYTES)?);
    let volume = volume(&mut reactor, &handle)?;
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let bare = round(&mut reactor, &handle, &*ram, options(ram.info().blocks()))?;
        let mapped = round(&mut reactor, &handle, &*volume, options(volume.info().blocks()))?;
        ratios.push(mapped * 1000 / bare.max(1));
        println!("bare {bare} IOPS, volume {mapped} IOPS");
    }
    ratios.sort_unstable();
    println!("median ratio {} / 1000", ratios[ratios.len() / 2]);
    Ok(())
}

fn disk(bytes: u64) -> Result<RamDevice, Failure> {
    Ok(RamDevice::new("ram", Uuid::nil(), BlockSize::B512, bytes)?)
}

/// A volume of the size of the working set in a pool of its own.
fn volume(reactor: &mut Reactor, handle: &Handle) -> Result<Arc<dyn BlockDevice>, Failure> {
    let device = Arc::new(disk(WORKING_SET_BYTES + (64 << 20))?);
    let disk = PoolDisk { name: "ram".into(), device };
    let new = NewPool {
        cluster: ClusterId(Uuid::from_u128(1)),
        name: "pool".into(),
        revision: Revision::default(),
        extent_bytes: basalt_lvol::layout::EXTENT_BYTES,
        layout: basalt_lvol::layout::DiskLayout::default(),
        disks: vec![NewPoolDisk { disk, overwrite_foreign_data: false }],
    };
    let nguid = [1; 16];
    let identity = VolumeIdentity { nqn: "nqn".into(), nsid: 1, uuid: nguid, nguid, serial: [b' '; 20] };
    let id = VolumeId(Uuid::from_u128(2));
    let (generation, epoch, name) = (Generation(1), Epoch::default(), "volume".into());
    let (thin, hidden) = (false, false);
    let volume = NewVolume { id, generation, epoch, name, identity, size: WORKING_SET_BYTES, thin, hidden };
    let own = handle.clone();
    let mut task = handle.spawn(async move {
        let pool = Pool::create(&own, new).await?;
        Ok::<_, Failure>(pool.create_volume(volume).await?)
    });
    loop {
        reactor.turn();
        if let Some(created) = task.take_output() {
            return Ok(created?);
        }
    }
}

fn round(
    reactor: &mut Reactor,
    handle: &Handle,
    device: &dyn BlockDevice,
    options: LoadOptions,
) -> Result<u64, Failure> {
    let mut load = Load::new(handle, device, options)?;
    let before = processor_time()?;
    let began = Instant::now();
    while began.elapsed() < ROUND {
        for _ in 0..64 {
            load.poll();
        }
        reactor.turn();
    }
    let report = load.report();
    Ok(report.per_second(processor_time()? - before))
}

/// Time that this thread had on a processor: machines that others use, too, still give a figure per core.
fn processor_time() -> Result<Duration, Failure> {
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = schedule.split_whitespace().next().ok_or("an empty schedstat")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}
