//! Our host against our target on one reactor with the machine's driver, over loopback.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use basalt_bdev::BlockSize;
use basalt_clock::{Random, SeededRandom};
use basalt_device_mem::{DelayDevice, Delays, RamDevice};
use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::log::{AnaState, AsyncEvent};
use basalt_nvme_wire::pdu::Digests;
use basalt_nvme_wire::{ReadWrite, Status, dsm};
use basalt_nvmf_host::{BringupError, Command, Data, FusedPair, IoCommand, QueueError, Swap};
use basalt_nvmf_target::{AllowedHosts, ListenerAddress, Nsid};
use basalt_nvmf_tcp::host::{IoQueue, Refused, connect, discover};
use basalt_nvmf_tcp::{TcpTarget, TcpTargetOptions};
use basalt_reactor::{ReactorOptions, start};
use uuid::Uuid;

use support::*;

fn pattern(random: &mut SeededRandom, len: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(len);
    random.fill(&mut buffer);
    buffer
}

/// Blocks below and above what a capsule carries, up to the transfer limit.
const SIZES: [u32; 6] = [1, 8, 16, 17, 64, 256];

fn write_all(world: &mut World, queue: IoQueue) -> (IoQueue, BTreeMap<u64, Vec<u8>>) {
    let mut random = SeededRandom::new(1);
    let mut expected = BTreeMap::new();
    let mut lba = 0;
    let mut writes = Vec::new();
    while lba + 256 < BYTES / 512 {
        let blocks = SIZES[usize::try_from(random.below(6)).unwrap()];
        let buffer = pattern(&mut random, blocks as usize * 512);
        expected.insert(lba, buffer.to_vec());
        let fields = ReadWrite { fua: random.chance(1, 4), ..ReadWrite::new(lba, blocks) };
        writes.push(IoCommand::Write(fields).with(1, Data::ToController(Payload::Buffer(buffer))));
        lba += u64::from(blocks);
    }
    let (queue, outcomes) = world.run(exchange(world.reactor.handle(), queue, writes));
    for (outcome, written) in outcomes.iter().zip(expected.values()) {
        assert_eq!(status(outcome), Status::SUCCESS);
        assert_eq!(&outcome.payload.to_vec(), written, "the memory comes back as it was");
    }
    (queue, expected)
}

fn fields(lba: u64, bytes: &[u8]) -> ReadWrite {
    ReadWrite::new(lba, u32::try_from(bytes.len() / 512).unwrap())
}

fn writes_and_reads_agree(digests: Digests) {
    let mut world = World::new(digests);
    let (controller, mut queues) = world.connect();
    assert_eq!((controller.facts().namespaces.len(), controller.facts().in_capsule_bytes), (1, 8192));
    assert_eq!(controller.facts().namespaces[0].bytes(), BYTES);
    let handle = world.reactor.handle();
    let (queue, expected) = write_all(&mut world, queues.remove(0));
    let reads = expected.iter().map(|(lba, bytes)| {
        IoCommand::Read(fields(*lba, bytes)).with(1, Data::ToHost(Buffer::zeroed(bytes.len())))
    });
    let (queue, outcomes) = world.run(exchange(handle.clone(), queue, reads.collect()));
    assert_eq!(outcomes.len(), expected.len());
    for (outcome, written) in outcomes.iter().zip(expected.values()) {
        assert_eq!(status(outcome), Status::SUCCESS);
        assert!(outcome.payload.to_vec() == *written, "what was written is read");
    }
    let compares = expected.iter().take(40).map(|(lba, bytes)| {
        let data = Data::ToController(Payload::Buffer(Buffer::copy_of(bytes)));
        IoCommand::Compare(fields(*lba, bytes)).with(1, data)
    });
    let mut commands: Vec<Command> = compares.collect();
    let wrong = Payload::Buffer(Buffer::zeroed(512));
    commands.push(IoCommand::Compare(ReadWrite::new(0, 1)).with(1, Data::ToController(wrong)));
    commands.push(IoCommand::Flush.with(1, Data::None));
    let (queue, outcomes) = world.run(exchange(handle.clone(), queue, commands));
    assert!(outcomes[..40].iter().all(|outcome| status(outcome) == Status::SUCCESS));
    assert_eq!(status(&outcomes[40]), Status::COMPARE_FAILURE.dnr());
    assert_eq!(status(&outcomes[41]), Status::SUCCESS);
    let commands = vec![
        IoCommand::WriteZeroes(ReadWrite::new(0, 8)).with(1, Data::None),
        Command::deallocate(1, &[dsm::Range::new(8, 8), dsm::Range::new(0, 0), dsm::Range::new(24, 8)]),
    ];
    let (queue, outcomes) = world.run(exchange(handle.clone(), queue, commands));
    assert!(outcomes.iter().all(|outcome| status(outcome) == Status::SUCCESS));
    let read = IoCommand::Read(ReadWrite::new(0, 32)).with(1, Data::ToHost(Buffer::zeroed(32 * 512)));
    let (_queue, outcomes) = world.run(exchange(handle, queue, vec![read]));
    let bytes = outcomes[0].payload.to_vec();
    assert!(bytes[..16 * 512].iter().chain(&bytes[24 * 512..]).all(|byte| *byte == 0));
    assert!(bytes[16 * 512..24 * 512].iter().any(|byte| *byte != 0));
    world.run(async move { controller.shut_down().await }).unwrap();
}

#[test]
fn writes_and_reads_agree_without_digests() {
    writes_and_reads_agree(Digests::default());
}

#[test]
fn writes_and_reads_agree_with_digests() {
    writes_and_reads_agree(Digests { header: true, data: true });
}

/// A namespace of large blocks: their data does not fit a capsule.
const LARGE: u32 = 65_536;

fn fused_pairs_swap_blocks(digests: Digests) {
    let mut world = World::new(digests);
    let block = BlockSize::new(LARGE).unwrap();
    let device = Arc::new(RamDevice::new("large", Uuid::nil(), block, BYTES).unwrap());
    world.target.add_namespace(&nqn(SUBSYSTEM), Nsid(2), identity(2), device, AnaState::Optimized).unwrap();
    let (controller, mut queues) = world.connect();
    assert_eq!(controller.facts().compare_and_write_blocks, Some(1));
    let handle = world.reactor.handle();
    let queue = queues.remove(0).into_async(&handle);
    for (nsid, len) in [(1, 512), (2, LARGE as usize)] {
        let filled = |byte: u8| {
            let mut buffer = Buffer::zeroed(len);
            buffer.fill(byte);
            Data::ToController(Payload::Buffer(buffer))
        };
        for (expected, new, outcome) in
            [(0, 1, Swap::Done), (0, 2, Swap::Miscompare), (1, 3, Swap::Done), (1, 4, Swap::Miscompare)]
        {
            let pair = FusedPair::new(nsid, ReadWrite::new(3, 1), filled(expected), filled(new));
            let queue = queue.clone();
            let [compare, write] = world.run(async move { queue.run_fused(pair, None).await }).unwrap();
            assert_eq!(FusedPair::result(status(&compare), status(&write)), Ok(outcome));
        }
        let read = IoCommand::Read(ReadWrite::new(3, 1)).with(nsid, Data::ToHost(Buffer::zeroed(len)));
        let reader = queue.clone();
        let outcome = world.run(async move { reader.run(read, None).await }).unwrap();
        assert!(outcome.payload.to_vec().iter().all(|byte| *byte == 3));
    }
}

#[test]
fn fused_pairs_swap_blocks_without_digests() {
    fused_pairs_swap_blocks(Digests::default());
}

#[test]
fn fused_pairs_swap_blocks_with_digests() {
    fused_pairs_swap_blocks(Digests { header: true, data: true });
}

#[test]
fn a_pair_is_taken_whole_or_not_at_all() {
    let mut world = World::new(Digests::default());
    world.options.host.io_queue_entries = 4;
    let (_controller, mut queues) = world.connect();
    let mut queue = queues.remove(0);
    let block = || Data::ToController(Payload::Buffer(Buffer::zeroed(512)));
    let pair = || FusedPair::new(1, ReadWrite::new(0, 1), block(), block());
    queue.submit_fused([1, 2], pair()).unwrap();
    assert!(matches!(queue.submit_fused([3, 4], pair()), Err(Refused::Full(_))));
    assert_eq!(queue.outstanding(), 2);
    queue.submit(5, IoCommand::Flush.with(1, Data::None)).unwrap();
    let (_queue, outcomes) = world.run(exchange(world.reactor.handle(), queue, Vec::new()));
    assert_eq!(outcomes.iter().map(|outcome| outcome.tag).collect::<Vec<_>>(), [1, 2, 5]);
    assert!(outcomes.iter().all(|outcome| status(outcome) == Status::SUCCESS));
}

#[test]
fn errors_come_back_as_statuses() {
    let mut world = World::new(Digests::default());
    let (_controller, mut queues) = world.connect();
    let read =
        |lba, nsid| IoCommand::Read(ReadWrite::new(lba, 1)).with(nsid, Data::ToHost(Buffer::zeroed(512)));
    let commands = vec![read(BYTES / 512, 1), read(0, 2), read(0, 1)];
    let handle = world.reactor.handle();
    let (_queue, outcomes) = world.run(exchange(handle, queues.remove(0), commands));
    let statuses: Vec<Status> = outcomes.iter().map(status).collect();
    let expected = [Status::LBA_OUT_OF_RANGE.dnr(), Status::INVALID_NAMESPACE.dnr(), Status::SUCCESS];
    assert_eq!(statuses, expected);
}

#[test]
fn hosts_that_are_not_allowed_are_refused() {
    let mut world = World::new(Digests::default());
    world.target.set_allowed_hosts(&nqn(SUBSYSTEM), AllowedHosts::default()).unwrap();
    let (handle, options) = (world.reactor.handle(), world.options.clone());
    let error = world.run(async move { connect(&handle, &options).await }).unwrap_err();
    let BringupError::Connect(refusal) = &error else { panic!("{error}") };
    assert_eq!(refusal.status, Status::CONNECT_INVALID_HOST.dnr());
    let text = error.to_string();
    assert!(text.contains(&format!("does not let host {HOST} in: add it to")), "{text}");
}

#[test]
fn a_subsystem_that_is_not_there_is_named() {
    let mut world = World::new(Digests::default());
    let (handle, mut options) = (world.reactor.handle(), world.options.clone());
    options.host.subsystem = nqn("nqn.2026-01.io.basalt:none");
    let text = world.run(async move { connect(&handle, &options).await }).unwrap_err().to_string();
    assert!(text.contains("there is no subsystem nqn.2026-01.io.basalt:none here: check"), "{text}");
}

#[test]
fn discovery_is_read() {
    let mut world = World::new(Digests::default());
    let (handle, options) = (world.reactor.handle(), world.options.clone());
    let port = options.address.port().to_string();
    let found = world.run(async move { discover(&handle, &options).await }).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].nqn.as_str(), found[0].address.as_str(), &found[0].service),
        (SUBSYSTEM, "127.0.0.1", &port)
    );
}

#[test]
fn namespaces_that_come_are_reported_and_can_be_used() {
    let mut world = World::new(Digests::default());
    let (controller, mut queues) = world.connect();
    let handle = world.reactor.handle();
    world
        .target
        .add_namespace(&nqn(SUBSYSTEM), Nsid(7), identity(7), ram(BYTES), AnaState::Optimized)
        .unwrap();
    let waiter = handle.clone();
    let (controller, events) = world.run(async move {
        loop {
            let events = controller.take_events().events;
            if !events.is_empty() {
                return (controller, events);
            }
            waiter.yield_now().await;
        }
    });
    assert!(
        events.iter().all(|e| matches!(e, AsyncEvent::NamespaceAttributeChanged | AsyncEvent::AnaChange))
    );
    let flush = vec![IoCommand::Flush.with(7, Data::None)];
    let (queue, outcomes) = world.run(exchange(handle.clone(), queues.remove(0), flush));
    assert_eq!(status(&outcomes[0]), Status::SUCCESS);
    let removed = world.target.remove_namespace(&nqn(SUBSYSTEM), Nsid(7)).unwrap();
    let flush = vec![IoCommand::Flush.with(7, Data::None)];
    let (_queue, outcomes) = world.run(exchange(handle, queue, flush));
    assert_eq!(status(&outcomes[0]), Status::INVALID_NAMESPACE.dnr());
    assert_eq!(Arc::strong_count(&removed), 1, "nothing uses the removed namespace any more");
    drop(controller);
}

#[test]
fn a_removed_subsystem_closes_its_connections() {
    let mut world = World::new(Digests::default());
    let (controller, mut queues) = world.connect();
    assert_eq!(world.served.stats().connections, 2);
    world.target.remove_subsystem(&nqn(SUBSYSTEM)).unwrap();
    let mut queue = queues.remove(0);
    let limit = Instant::now() + Duration::from_secs(5);
    let mut outcomes = Vec::new();
    while queue.over().is_none() || world.served.stats().connections > 0 {
        world.reactor.turn();
        queue.poll(&mut outcomes);
        assert!(Instant::now() < limit, "the connections stay open");
    }
    assert_eq!(queue.over(), Some(QueueError::Closed));
    drop(controller);
}

#[test]
fn nothing_that_a_host_left_behind_is_under_way_when_it_has_come_again() {
    let mut world = World::new(Digests::default());
    let delays = Delays { write: Duration::from_secs(5), ..Delays::default() };
    let slow = Arc::new(DelayDevice::new(ram(BYTES), delays));
    world.target.add_namespace(&nqn(SUBSYSTEM), Nsid(2), identity(2), slow, AnaState::Optimized).unwrap();
    let (controller, mut queues) = world.connect();
    let handle = world.reactor.handle();
    let mut queue = queues.remove(0);
    let write = IoCommand::Write(ReadWrite::new(0, 1));
    let data = Data::ToController(Payload::Buffer(Buffer::zeroed(512)));
    queue.submit(1, write.with(2, data)).unwrap();
    let queue = world.run(async move {
        for _ in 0..1000 {
            queue.poll(&mut Vec::new());
            handle.yield_now().await;
        }
        queue
    });
    assert_eq!(world.served.stats().running, 1, "the device has it");
    drop((controller, queue, queues));
    let _again = world.connect();
    assert_eq!(world.served.stats().running, 0);
}

#[test]
fn a_write_that_another_reactor_has_not_read_does_not_come_over_one_of_the_next_association() {
    let mut world = World::new(Digests::default());
    let reactors = ["first", "second"].map(|name| {
        let reactor = start(name, None, ReactorOptions::default(), |_| {}).unwrap();
        let target = Arc::clone(&world.target);
        let control = TcpTarget::start_on(reactor.remote(), target, TcpTargetOptions::default()).unwrap();
        let address = control.listen(ListenerAddress::new("127.0.0.1:0".parse().unwrap())).unwrap();
        (reactor, address)
    });
    let [(busy, first), (_second, second)] = &reactors;
    let write = |value: u8| {
        let data = Data::ToController(Payload::Buffer(Buffer::copy_of(&[value; 512])));
        IoCommand::Write(ReadWrite::new(0, 1)).with(1, data)
    };
    world.options.address = *first;
    let (controller, mut queues) = world.connect();
    // Long enough for the host to send a write, close its connections and come again.
    busy.remote().post(|_| std::thread::sleep(Duration::from_millis(500))).unwrap();
    let (handle, mut queue) = (world.reactor.handle(), queues.remove(0));
    queue.submit(1, write(0xaa)).unwrap();
    world.run(async move {
        for _ in 0..1000 {
            queue.poll(&mut Vec::new());
            handle.yield_now().await;
        }
        drop((controller, queue, queues));
    });
    world.options.address = *second;
    let (_controller, mut queues) = world.connect();
    let handle = world.reactor.handle();
    let (queue, outcomes) = world.run(exchange(handle.clone(), queues.remove(0), vec![write(0xbb)]));
    assert_eq!(status(&outcomes[0]), Status::SUCCESS);
    std::thread::sleep(Duration::from_millis(700));
    let read = IoCommand::Read(ReadWrite::new(0, 1)).with(1, Data::ToHost(Buffer::zeroed(512)));
    let (_queue, outcomes) = world.run(exchange(handle, queue, vec![read]));
    assert_eq!(outcomes[0].payload.to_vec(), [0xbb; 512]);
}
