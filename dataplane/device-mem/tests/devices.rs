//! The devices and layers of this crate under a real reactor.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_bdev::{
    AsyncChannel, BlockCount, BlockDevice, BlockSize, IoError, IoStats, Lba, MeteredDevice, MeteredKind,
    OpenError, Operation, Request, conformance,
};
use basalt_clock::SeededRandom;
use basalt_device_mem::{
    DelayDevice, Delays, Fault, FaultyDevice, NullDevice, OperationKind, RamDevice, RamError, RecordingDevice,
};
use basalt_dma::{Buffer, Payload};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{Handle, Reactor, ReactorOptions};
use uuid::Uuid;

fn run(test: impl AsyncFnOnce(Handle) + 'static) {
    let driver = Box::new(RealDriver::new().unwrap());
    let mut reactor = Reactor::new(driver, &ReactorOptions::default());
    let handle = reactor.handle();
    let task = handle.clone().spawn(async move { test(handle).await });
    let began = Instant::now();
    while !task.is_done() {
        reactor.turn();
        assert!(began.elapsed() < Duration::from_secs(60), "no progress");
    }
}

fn ram(block_size: BlockSize) -> RamDevice {
    RamDevice::new("ram", Uuid::nil(), block_size, 4 << 20).unwrap()
}

fn filled(byte: u8, len: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(len);
    buffer.fill(byte);
    buffer
}

#[test]
fn ram_conforms_with_every_block_size() {
    for bytes in [512, 4096, 65536] {
        let block_size = BlockSize::new(bytes).unwrap();
        run(async move |handle| conformance::run(handle, &ram(block_size), 5).await);
    }
}

#[test]
fn layers_that_do_nothing_conform() {
    run(async |handle| {
        let faulty = FaultyDevice::new(Arc::new(ram(BlockSize::B512)));
        let delays = Delays { read: Duration::from_micros(5), ..Delays::default() };
        let delayed = DelayDevice::new(Arc::new(faulty), delays);
        let recorded = RecordingDevice::new(Arc::new(delayed));
        let stats = Arc::<IoStats>::default();
        let metered = MeteredDevice::new(Arc::new(recorded), Arc::clone(&stats));
        conformance::run(handle, &metered, 6).await;
        for kind in MeteredKind::ALL {
            assert!(stats.snapshot(kind).operations() > 20, "{}", kind.name());
        }
    });
}

#[test]
fn ram_reads_without_memory_are_lent_views() {
    run(async |handle| {
        let device = ram(BlockSize::B4096);
        let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        channel.write(Lba(1), BlockCount(1), filled(9, 4096), false).await.unwrap();
        let completion = channel.run(Request::read(0, Lba(1), BlockCount(1), Payload::None)).await;
        assert!(matches!(completion.payload, Payload::Lent(_)));
        drop((channel, device));
        assert!(completion.payload.to_vec().iter().all(|byte| *byte == 9), "a view outlives its device");
    });
}

#[test]
fn ram_of_odd_or_no_size_is_refused() {
    for bytes in [0, 4095, u64::MAX] {
        let refused = RamDevice::new("ram", Uuid::nil(), BlockSize::B4096, bytes);
        assert!(matches!(refused, Err(RamError::Size { .. })), "{bytes}");
    }
}

#[test]
fn a_removed_device_fails_everything() {
    run(async |handle| {
        let device = ram(BlockSize::B512);
        let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        device.remove();
        assert_eq!(channel.flush().await, Err(IoError::DeviceGone));
        assert_eq!(device.open(&handle).err(), Some(OpenError::DeviceGone));
        assert_eq!(device.info().generation(), 1);
    });
}

#[test]
fn null_reads_zeroes_and_forgets() {
    run(async |handle| {
        let device = NullDevice::new("null", Uuid::nil(), BlockSize::B4096, BlockCount(1 << 40)).unwrap();
        let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        channel.write(Lba(1 << 39), BlockCount(1), filled(9, 4096), true).await.unwrap();
        let read = channel.read(Lba(1 << 39), BlockCount(1), filled(9, 4096)).await.unwrap();
        assert!(read.iter().all(|byte| *byte == 0));
        let lent = channel.run(Request::read(0, Lba(0), BlockCount(256), Payload::None)).await;
        assert!(lent.payload.to_vec().iter().all(|byte| *byte == 0) && lent.payload.len() == 1 << 20);
    });
}

#[test]
fn faults_hit_their_kind_range_and_count() {
    run(async |handle| {
        let device = FaultyDevice::new(Arc::new(ram(BlockSize::B512)));
        let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        let rule = Fault {
            kind: OperationKind::Write,
            range: Lba(4)..Lba(6),
            skip: 1,
            count: 1,
            error: IoError::CapacityExceeded,
        };
        device.faults().inject(rule);
        let write =
            async |lba| channel.write(Lba(lba), BlockCount(1), filled(1, 512), false).await.map(|_| ());
        assert_eq!(write(6).await, Ok(()));
        assert_eq!(write(5).await, Ok(()));
        assert_eq!(write(4).await, Err(IoError::CapacityExceeded));
        assert_eq!(write(4).await, Ok(()));
        device.faults().inject(Fault::always(OperationKind::Flush, IoError::Medium));
        assert_eq!(channel.flush().await, Err(IoError::Medium));
        device.faults().clear();
        assert_eq!(channel.flush().await, Ok(()));
    });
}

#[test]
fn delays_are_at_least_as_long_as_asked() {
    run(async |handle| {
        let delays = Delays { write: Duration::from_millis(3), ..Delays::default() };
        let device = DelayDevice::new(Arc::new(ram(BlockSize::B512)), delays);
        let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        let began = handle.now();
        channel.write(Lba(0), BlockCount(1), filled(1, 512), false).await.unwrap();
        assert!(handle.now() - began >= Duration::from_millis(3));
    });
}

#[test]
fn stats_tell_kinds_and_faults_apart_and_outlive_channels_and_devices() {
    run(async |handle| {
        let faulty = FaultyDevice::new(Arc::new(ram(BlockSize::B512)));
        let faults = Arc::clone(faulty.faults());
        let delays = Delays { read: Duration::from_millis(2), ..Delays::default() };
        let inner: Arc<dyn BlockDevice> = Arc::new(DelayDevice::new(Arc::new(faulty), delays));
        let stats = Arc::<IoStats>::default();
        for _ in 0..2 {
            let device = MeteredDevice::new(Arc::clone(&inner), Arc::clone(&stats));
            let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
            channel.read(Lba(0), BlockCount(1), filled(0, 512)).await.unwrap();
            channel.write(Lba(0), BlockCount(2), filled(0, 1024), true).await.unwrap();
            faults.inject(Fault::always(OperationKind::Flush, IoError::Medium));
            channel.flush().await.unwrap_err();
        }
        let seen = MeteredKind::ALL.map(|kind| stats.snapshot(kind));
        let counts = seen.each_ref().map(|seen| (seen.operations(), seen.bytes, seen.errors));
        assert_eq!(counts, [(2, 1024, 0), (2, 2048, 0), (2, 0, 2), (0, 0, 0)]);
        assert!(seen[MeteredKind::Read as usize].latency.mean() >= Duration::from_millis(2));
    });
}

#[test]
fn what_a_device_rightly_refuses_is_not_its_fault() {
    run(async |handle| {
        let stats = Arc::<IoStats>::default();
        let device = MeteredDevice::new(Arc::new(ram(BlockSize::B512)), Arc::clone(&stats));
        let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        channel.read(Lba(1 << 40), BlockCount(1), filled(0, 512)).await.unwrap_err();
        let compare = Request {
            operation: Operation::Compare,
            ..Request::write(0, Lba(0), BlockCount(1), filled(1, 512))
        };
        assert_eq!(channel.run(compare).await.result, Err(IoError::Miscompare));
        let reads = stats.snapshot(MeteredKind::Read);
        assert_eq!((reads.operations(), reads.latency.count(), reads.errors), (1, 1, 0));
    });
}

#[test]
fn crash_images_keep_what_is_durable_and_vary_in_the_rest() {
    run(async |handle| {
        let device = RecordingDevice::new(Arc::new(ram(BlockSize::B4096)));
        let channel = AsyncChannel::new(&handle, device.open(&handle).unwrap());
        channel.write(Lba(0), BlockCount(1), filled(1, 4096), false).await.unwrap();
        channel.flush().await.unwrap();
        let flushed = device.recording().len();
        channel.write(Lba(1), BlockCount(1), filled(2, 4096), true).await.unwrap();
        let forced = device.recording().len();
        channel.write(Lba(2), BlockCount(1), filled(3, 4096), false).await.unwrap();
        let (mut old, mut new, mut torn) = (0, 0, 0);
        for seed in 0..60 {
            let mut random = SeededRandom::new(seed);
            let mut image = vec![0; 3 * 4096];
            device.recording().crash(&mut image, BlockSize::B4096, flushed, &mut random);
            assert!(
                image[..4096].iter().all(|byte| *byte == 1) && image[4096..].iter().all(|byte| *byte == 0)
            );
            device.recording().crash(&mut image, BlockSize::B4096, forced, &mut random);
            assert!(image[4096..8192].iter().all(|byte| *byte == 2));
            device.recording().crash(&mut image, BlockSize::B4096, device.recording().len(), &mut random);
            match image[8192..].iter().filter(|byte| **byte == 3).count() {
                0 => old += 1,
                4096 => new += 1,
                some => {
                    assert_eq!(some % 512, 0);
                    torn += 1;
                }
            }
        }
        assert!(old > 5 && new > 5 && torn > 5, "{old} {new} {torn}");
    });
}
