//! Compare-and-writes of a RAM device against what another reactor does to the same blocks at the same time.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{hint, thread};

use basalt_bdev::{
    BlockCount, BlockDevice, BlockSize, Channel, Completion, IoError, Lba, Operation, Request,
};
use basalt_device_mem::RamDevice;
use basalt_dma::{Buffer, Payload};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{Reactor, ReactorOptions};
use uuid::Uuid;

/// Long enough that two requests meet in the middle of it.
const BYTES: usize = 1 << 20;
const BLOCKS: BlockCount = BlockCount((BYTES / 512) as u64);
const ROUNDS: u8 = 100;
const COMPARE_AND_WRITE: Operation = Operation::CompareAndWrite { fua: false };

/// Held by the test that runs: threads of another would take the cores on which two are to meet.
static ALONE: Mutex<()> = Mutex::new(());

/// Where two threads wait for each other, awake so that they leave at the same time.
struct Meeting(AtomicUsize);

impl Meeting {
    fn meet(&self) {
        let both = (self.0.fetch_add(1, Ordering::AcqRel) / 2 + 1) * 2;
        let began = Instant::now();
        while self.0.load(Ordering::Acquire) < both {
            assert!(began.elapsed() < Duration::from_secs(10), "the other thread is gone");
            hint::spin_loop();
        }
    }
}

fn execute(channel: &mut dyn Channel, operation: Operation, payload: Payload) -> Completion {
    channel.submit(Request { tag: 1, operation, lba: Lba(0), blocks: BLOCKS, payload }).unwrap();
    let mut completions = Vec::new();
    channel.poll(&mut completions);
    completions.pop().unwrap()
}

fn filled(byte: u8) -> Buffer {
    let mut buffer = Buffer::zeroed(BYTES);
    buffer.fill(byte);
    buffer
}

/// The byte that fills the range; none if several do.
fn content(channel: &mut dyn Channel) -> Option<u8> {
    let bytes = execute(channel, Operation::Read, Payload::Buffer(filled(0))).payload.to_vec();
    bytes.iter().all(|byte| *byte == bytes[0]).then_some(bytes[0])
}

/// Runs `here` and `there` on reactors of two threads, each with the same meeting.
fn on_two_reactors(
    here: impl FnOnce(&mut dyn Channel, &Meeting) + Send,
    there: impl FnOnce(&mut dyn Channel, &Meeting) + Send,
) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let device = RamDevice::new("ram", Uuid::nil(), BlockSize::B512, BYTES as u64).unwrap();
    let (device, meeting) = (&device, &Meeting(AtomicUsize::new(0)));
    let run = move |work: &mut dyn FnMut(&mut dyn Channel)| {
        let reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &ReactorOptions::default());
        work(&mut *device.open(&reactor.handle()).unwrap());
    };
    let (mut here, mut there) = (Some(here), Some(there));
    thread::scope(|scope| {
        scope.spawn(move || run(&mut |channel| there.take().unwrap()(channel, meeting)));
        run(&mut |channel| here.take().unwrap()(channel, meeting));
    });
}

#[test]
fn of_two_swaps_of_the_same_content_one_wins() {
    let racer = |first: u8| {
        move |channel: &mut dyn Channel, meeting: &Meeting| {
            let mut old = 0;
            for round in 0..ROUNDS {
                let new = first ^ round;
                let payload = Payload::Scattered(vec![filled(old), filled(new)]);
                meeting.meet();
                let won = execute(channel, COMPARE_AND_WRITE, payload).result;
                meeting.meet();
                let now = content(channel).unwrap();
                match won {
                    Ok(()) => assert_eq!(now, new, "the other swap won too"),
                    Err(error) => {
                        assert_eq!(error, IoError::Miscompare);
                        assert_ne!(now, old, "no swap won");
                    }
                }
                old = now;
                meeting.meet();
            }
        }
    };
    // The two bytes of a round differ from each other and from all others.
    on_two_reactors(racer(0x55), racer(0xaa));
}

#[test]
fn a_plain_write_is_never_undone() {
    let swapper = |channel: &mut dyn Channel, meeting: &Meeting| {
        for _ in 0..ROUNDS {
            let old = execute(channel, Operation::Read, Payload::Buffer(filled(0))).payload;
            let payload = Payload::Scattered(vec![old.into_buffer().unwrap(), filled(0xff)]);
            meeting.meet();
            let result = execute(channel, COMPARE_AND_WRITE, payload).result;
            assert!(matches!(result, Ok(()) | Err(IoError::Miscompare)));
            meeting.meet();
        }
    };
    on_two_reactors(swapper, |channel, meeting| {
        for number in 1..=ROUNDS {
            // The first block, while the others are still compared.
            let mut block = Buffer::zeroed(512);
            block.fill(number);
            let request = Request::write(1, Lba(0), BlockCount(1), block);
            meeting.meet();
            channel.submit(request).unwrap();
            meeting.meet();
            let mut completions = Vec::new();
            channel.poll(&mut completions);
            assert_eq!(completions[0].result, Ok(()));
            let range = execute(channel, Operation::Read, Payload::Buffer(filled(0))).payload.to_vec();
            assert!(range[..512] == [number; 512], "what is written last stays");
        }
    });
}
