//! A host that does nothing wrong, and checks every byte.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use basalt_clock::{Random, SeededRandom};
use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::ReadWrite;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvmf_host::{Data, IoCommand};
use basalt_nvmf_tcp::host::{AsyncIoQueue, TcpHostOptions, connect};
use basalt_reactor::{Handle, Task};

use super::rig::{LEGITIMATE_HOST, LEGITIMATE_SUBSYSTEM, Rig};

/// Blocks that it uses.
const BLOCKS: u64 = 128;
/// Time that a command may take: far more than the world's network and devices do.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A legitimate host at work.
pub(super) struct Legitimate {
    stop: Rc<Cell<bool>>,
    commands: Rc<Cell<u64>>,
    failure: Rc<RefCell<Option<String>>>,
    task: Task<()>,
}

impl Legitimate {
    /// Starts it, and waits until its first commands are done.
    pub(super) fn start(rig: &mut Rig, seed: u64) -> Self {
        let handle = rig.legitimate();
        let digests = Digests { header: seed & 1 == 1, data: seed & 2 == 2 };
        let options = Rig::options(rig.address, LEGITIMATE_SUBSYSTEM, LEGITIMATE_HOST, digests);
        let (stop, commands) = (Rc::<Cell<bool>>::default(), Rc::<Cell<u64>>::default());
        let failure = Rc::<RefCell<Option<String>>>::default();
        let (stopped, counted, failed) = (Rc::clone(&stop), Rc::clone(&commands), Rc::clone(&failure));
        let on = handle.clone();
        let task = handle.spawn(async move {
            if let Err(message) = work(&on, &options, seed, &stopped, &counted).await {
                *failed.borrow_mut() = Some(message);
            }
        });
        let legitimate = Self { stop, commands, failure, task };
        rig.pass(Duration::from_millis(150));
        legitimate.check(0);
        legitimate
    }

    /// Checks that nothing has failed, and that it did more than `before` commands.
    pub(super) fn check(&self, before: u64) {
        if let Some(message) = &*self.failure.borrow() {
            panic!("the legitimate host is disturbed: {message}");
        }
        assert!(self.commands.get() > before, "the legitimate host does not get on");
    }

    pub(super) fn commands(&self) -> u64 {
        self.commands.get()
    }

    /// Has it read everything back and leave.
    pub(super) fn finish(self, rig: &mut Rig) {
        self.stop.set(true);
        rig.pass(Duration::from_secs(10));
        self.check(0);
        assert!(self.task.is_done(), "the legitimate host does not come to its end");
    }
}

async fn work(
    handle: &Handle,
    options: &TcpHostOptions,
    seed: u64,
    stop: &Cell<bool>,
    commands: &Cell<u64>,
) -> Result<(), String> {
    let (controller, queues) = connect(handle, options).await.map_err(|error| format!("connect: {error}"))?;
    let Some(queue) = queues.into_iter().next() else { return Err("no queue".to_owned()) };
    let queue = queue.into_async(handle);
    let mut random = SeededRandom::new(seed);
    let mut model = vec![0u8; usize::try_from(BLOCKS * 512).unwrap_or(0)];
    while !stop.get() {
        let first = random.below(BLOCKS);
        // Below and above what a capsule carries.
        let count = (1 + random.below(40)).min(BLOCKS - first);
        let range = at(first)..at(first + count);
        if random.chance(1, 2) {
            random.fill(&mut model[range.clone()]);
            write(&queue, first, count, &model[range]).await?;
        } else {
            read(&queue, first, count, &model[range]).await?;
        }
        commands.set(commands.get() + 1);
        handle.sleep(Duration::from_micros(random.below(120_000))).await;
    }
    for first in (0..BLOCKS).step_by(32) {
        read(&queue, first, 32, &model[at(first)..at(first + 32)]).await?;
    }
    controller.shut_down().await.map_err(|error| format!("shutdown: {error}"))
}

fn at(block: u64) -> usize {
    usize::try_from(block * 512).unwrap_or(usize::MAX)
}

fn fields(first: u64, count: u64) -> ReadWrite {
    ReadWrite::new(first, u32::try_from(count).unwrap_or(1))
}

async fn write(queue: &AsyncIoQueue, first: u64, count: u64, bytes: &[u8]) -> Result<(), String> {
    let data = Data::ToController(Payload::Buffer(Buffer::copy_of(bytes)));
    let command = IoCommand::Write(fields(first, count)).with(1, data);
    let outcome = queue.run(command, Some(TIMEOUT)).await.and_then(|outcome| outcome.result);
    match outcome {
        Ok(cqe) if cqe.status().is_success() => Ok(()),
        other => Err(format!("write of {count} at {first}: {other:?}")),
    }
}

async fn read(queue: &AsyncIoQueue, first: u64, count: u64, expected: &[u8]) -> Result<(), String> {
    let command = IoCommand::Read(fields(first, count)).with(1, Data::ToHost(Buffer::zeroed(expected.len())));
    let outcome = queue.run(command, Some(TIMEOUT)).await;
    match outcome.map(|outcome| (outcome.result, outcome.payload.to_vec())) {
        Ok((Ok(cqe), data)) if cqe.status().is_success() && data == expected => Ok(()),
        Ok((Ok(cqe), _)) if cqe.status().is_success() => {
            Err(format!("read of {count} at {first}: other data than was written"))
        }
        other => Err(format!("read of {count} at {first}: {:?}", other.map(|(result, _)| result))),
    }
}
