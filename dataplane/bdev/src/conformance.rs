//! What every writable block device must do, as a function that a device's tests call.
//!
//! [`run`] is a task for a reactor under any driver: on a machine, or simulated. It overwrites the device and panics with
//! an explanation where the device breaks a promise of this crate.

use std::time::Duration;

use basalt_clock::{Random, SeededRandom};
use basalt_dma::{Buffer, Payload};
use basalt_reactor::Handle;

use crate::async_channel::AsyncChannel;
use crate::device::{BlockDevice, Capabilities};
use crate::error::IoError;
use crate::request::{Operation, Rejected, Request};
use crate::units::{BlockCount, Lba};

/// Random operations against the model.
const STEPS: usize = 400;
/// Blocks that the model covers, from the device's start.
const MODEL_BLOCKS: u64 = 64;

/// Tests a device of at least 64 blocks whose content is zero or was written by the same test.
///
/// # Panics
/// If the device breaks a promise.
pub async fn run(handle: Handle, device: &dyn BlockDevice, seed: u64) {
    let info = device.info();
    assert!(info.blocks().0 >= MODEL_BLOCKS, "the test needs {MODEL_BLOCKS} blocks");
    let channel = match device.open(&handle) {
        Ok(channel) => AsyncChannel::new(&handle, channel),
        Err(error) => panic!("the device gives no channel: {error}"),
    };
    refuses_what_is_wrong(device, &channel).await;
    ends_are_usable(device, &channel).await;
    agrees_with_a_model(device, &channel, seed).await;
    two_channels_see_the_same(&handle, device).await;
    every_request_completes_once(&handle, device).await;
}

fn bytes_of(device: &dyn BlockDevice, blocks: u64) -> usize {
    let bytes = device.info().block_size().bytes_of(BlockCount(blocks));
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn filled(byte: u8, len: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(len);
    buffer.fill(byte);
    buffer
}

async fn refuses_what_is_wrong(device: &dyn BlockDevice, channel: &AsyncChannel) {
    let info = device.info();
    let (one, end) = (bytes_of(device, 1), Lba(info.blocks().0));
    let cases = [
        (Request::read(0, end, BlockCount(1), Buffer::zeroed(one)), IoError::OutOfRange),
        (Request::read(0, Lba(end.0 - 1), BlockCount(2), Buffer::zeroed(2 * one)), IoError::OutOfRange),
        (Request::write(0, Lba(u64::MAX), BlockCount(1), Buffer::zeroed(one)), IoError::OutOfRange),
        (Request::read(0, Lba(0), BlockCount(0), Payload::None), IoError::Malformed),
        (Request::write(0, Lba(0), BlockCount(2), Buffer::zeroed(one)), IoError::Malformed),
        (Request::write(0, Lba(0), BlockCount(1), Payload::None), IoError::Malformed),
    ];
    for (request, expected) in cases {
        let (shown, given) = (format!("{request:?}"), request.payload.len());
        let completion = channel.run(request).await;
        assert_eq!(completion.result, Err(expected), "{shown}");
        assert_eq!(completion.payload.len(), given, "the memory comes back: {shown}");
    }
    let unsupported = [
        (Capabilities::UNMAP, Request::unmap(0, Lba(0), BlockCount(1))),
        (Capabilities::WRITE_ZEROES, Request::write_zeroes(0, Lba(0), BlockCount(1))),
    ];
    for (capability, request) in unsupported {
        if !info.capabilities().contains(capability) {
            assert_eq!(channel.run(request).await.result, Err(IoError::Unsupported));
        }
    }
}

async fn ends_are_usable(device: &dyn BlockDevice, channel: &AsyncChannel) {
    let last = Lba(device.info().blocks().0 - 1);
    for lba in [Lba(0), last] {
        let written = channel.write(lba, BlockCount(1), filled(0x5a, bytes_of(device, 1)), true).await;
        assert!(written.is_ok(), "write to {lba}: {written:?}");
        let read = channel.read(lba, BlockCount(1), Buffer::zeroed(bytes_of(device, 1))).await;
        assert!(read.is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0x5a)), "read of {lba}");
    }
    let largest = device.info().max_transfer().min(device.info().blocks());
    let len = bytes_of(device, largest.0);
    let read = channel.read(Lba(0), largest, Buffer::zeroed(len)).await;
    assert!(read.is_ok_and(|bytes| bytes.len() == len), "a read of {largest}");
}

/// Random operations, one after the other, on the device and on plain memory.
async fn agrees_with_a_model(device: &dyn BlockDevice, channel: &AsyncChannel, seed: u64) {
    let mut random = SeededRandom::new(seed);
    let mut model = Vec::new();
    for lba in 0..MODEL_BLOCKS {
        let read = channel.read(Lba(lba), BlockCount(1), Buffer::zeroed(bytes_of(device, 1))).await;
        let Ok(bytes) = read else { panic!("read of block {lba}: {read:?}") };
        model.push(bytes.to_vec());
    }
    for step in 0..STEPS {
        let lba = random.below(MODEL_BLOCKS);
        let blocks = (1 + random.below(8)).min(MODEL_BLOCKS - lba).min(device.info().max_transfer().0);
        let (Ok(from), Ok(count)) = (usize::try_from(lba), usize::try_from(blocks)) else { continue };
        step_on(device, channel, &mut random, &mut model[from..from + count], Lba(lba), step).await;
    }
}

async fn step_on(
    device: &dyn BlockDevice,
    channel: &AsyncChannel,
    random: &mut SeededRandom,
    model: &mut [Vec<u8>],
    lba: Lba,
    step: usize,
) {
    let one = bytes_of(device, 1);
    let blocks = BlockCount(model.len() as u64);
    let can = |capability| device.info().capabilities().contains(capability);
    let choice = random.below(9);
    let operation = match choice {
        0 | 1 => Operation::Write { fua: choice == 1 },
        2 if can(Capabilities::UNMAP) => Operation::Unmap,
        3 if can(Capabilities::WRITE_ZEROES) => Operation::WriteZeroes { unmap: true, fua: true },
        4 => Operation::Flush,
        5 if can(Capabilities::COMPARE) => Operation::Compare,
        6 if can(Capabilities::COMPARE_AND_WRITE) => Operation::CompareAndWrite { fua: false },
        _ => Operation::Read,
    };
    let old = model.concat();
    let mut new = vec![0; old.len()];
    random.fill(&mut new);
    let wrong = random.chance(1, 2);
    let mut expected = old.clone();
    if wrong {
        let at = random.below(expected.len() as u64);
        expected[usize::try_from(at).unwrap_or(0)] ^= 1;
    }
    let payload = match operation {
        Operation::Read if random.chance(1, 2) => Payload::None,
        Operation::Read => parts(vec![0xee; old.len()], random),
        Operation::Write { .. } => parts(new.clone(), random),
        Operation::Compare => parts(expected, random),
        Operation::CompareAndWrite { .. } => parts([expected, new.clone()].concat(), random),
        Operation::Flush | Operation::Unmap | Operation::WriteZeroes { .. } => Payload::None,
    };
    let completion = channel.run(Request { tag: 0, operation, lba, blocks, payload }).await;
    let compares = matches!(operation, Operation::Compare | Operation::CompareAndWrite { .. });
    let result = if compares && wrong { Err(IoError::Miscompare) } else { Ok(()) };
    assert_eq!(completion.result, result, "step {step}: {operation:?} of {blocks} at {lba}");
    match operation {
        Operation::Read => {
            assert!(
                completion.payload.to_vec() == old,
                "step {step}: read of {blocks} at {lba} gave other data"
            );
            return;
        }
        Operation::Unmap | Operation::WriteZeroes { .. } => new.fill(0),
        Operation::Flush | Operation::Compare => return,
        Operation::CompareAndWrite { .. } if wrong => return,
        Operation::Write { .. } | Operation::CompareAndWrite { .. } => {}
    }
    for (block, bytes) in model.iter_mut().zip(new.chunks(one)) {
        block.copy_from_slice(bytes);
    }
}

/// The bytes as one buffer, in two parts, or as a lent view for what is only read.
fn parts(bytes: Vec<u8>, random: &mut SeededRandom) -> Payload {
    let mut whole = Buffer::copy_of(&bytes);
    if random.chance(1, 2) || bytes.len() <= basalt_dma::ALIGNMENT {
        return whole.into();
    }
    let tail = whole.split_off(basalt_dma::ALIGNMENT);
    Payload::Scattered(vec![whole, tail])
}

async fn two_channels_see_the_same(handle: &Handle, device: &dyn BlockDevice) {
    let (Ok(first), Ok(second)) = (device.open(handle), device.open(handle)) else {
        panic!("the device gives no second channel")
    };
    let (first, second) = (AsyncChannel::new(handle, first), AsyncChannel::new(handle, second));
    let len = bytes_of(device, 1);
    let written = first.write(Lba(3), BlockCount(1), filled(0x77, len), false).await;
    assert!(written.is_ok(), "{written:?}");
    let read = second.read(Lba(3), BlockCount(1), Buffer::zeroed(len)).await;
    assert!(
        read.is_ok_and(|bytes| bytes.iter().all(|byte| *byte == 0x77)),
        "another channel sees a completed write"
    );
}

/// Fills the queue until it refuses, then counts completions.
async fn every_request_completes_once(handle: &Handle, device: &dyn BlockDevice) {
    const ATTEMPTS: u64 = 10_000;
    let Ok(mut channel) = device.open(handle) else { panic!("the device gives no channel") };
    let mut accepted = 0;
    while accepted < ATTEMPTS {
        let request = Request::read(accepted, Lba(accepted % MODEL_BLOCKS), BlockCount(1), Payload::None);
        if let Err(Rejected(request)) = channel.submit(request) {
            assert!(
                request.tag == accepted && matches!(request.payload, Payload::None),
                "handed back unchanged"
            );
            break;
        }
        accepted += 1;
    }
    assert!(accepted < ATTEMPTS, "a queue has a bound");
    let mut completions = Vec::new();
    while (completions.len() as u64) < accepted {
        let (before, count) = (completions.len(), channel.poll(&mut completions));
        assert_eq!(before + count, completions.len(), "poll answers how many it appended");
        // Not a yield: a simulation's time passes only when nothing is busy.
        handle.sleep(Duration::from_micros(10)).await;
    }
    let mut tags: Vec<u64> = completions.iter().map(|completion| completion.tag).collect();
    tags.sort_unstable();
    assert!(tags.into_iter().eq(0..accepted), "each tag comes back once");
    assert!(completions.iter().all(|completion| completion.result.is_ok()), "reads of valid blocks succeed");
}
