//! Two hosts and one namespace, over loopback: who is kept out, and how commands of a preempted host end.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use basalt_bdev::provider::{BlockDevice, Channel, DeviceInfo, OpenError};
use basalt_bdev::{Completion, IoError, Rejected, Request};
use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::log::{AnaState, AsyncEvent};
use basalt_nvme_wire::pdu::Digests;
use basalt_nvme_wire::reservation::{
    Acquire, AcquireAction, ParsedReport, PersistenceChange, Register, RegisterAction, Release,
    ReleaseAction, ReservationKey, ReservationType,
};
use basalt_nvme_wire::{ReadWrite, Status};
use basalt_nvmf_host::{Command, Data, FusedPair, IoCommand, Outcome};
use basalt_nvmf_target::Nsid;
use basalt_nvmf_tcp::host::{Controller, IoQueue, connect};
use basalt_nvmf_transport::HostId;
use basalt_reactor::Handle;

use support::*;

/// Holds what changes it until it is opened.
#[derive(Debug)]
struct HeldDevice {
    inner: Arc<dyn BlockDevice>,
    open: AtomicBool,
    /// Gives back what is to be aborted; otherwise that is held like the rest.
    aborts: bool,
    held: AtomicUsize,
}

impl HeldDevice {
    fn new(aborts: bool) -> Arc<Self> {
        let (open, held) = (AtomicBool::new(false), AtomicUsize::new(0));
        Arc::new(Self { inner: ram(BYTES), open, aborts, held })
    }
}

/// The device as a namespace has it.
#[derive(Debug)]
struct Shared(Arc<HeldDevice>);

impl BlockDevice for Shared {
    fn info(&self) -> &DeviceInfo {
        self.0.inner.info()
    }

    fn open(&self, handle: &Handle) -> Result<Box<dyn Channel>, OpenError> {
        let inner = self.0.inner.open(handle)?;
        let (device, waiting) = (Arc::clone(&self.0), VecDeque::new());
        Ok(Box::new(HeldChannel { inner, device, waiting, done: Vec::new() }))
    }
}

struct HeldChannel {
    inner: Box<dyn Channel>,
    device: Arc<HeldDevice>,
    waiting: VecDeque<Request>,
    done: Vec<Completion>,
}

impl Channel for HeldChannel {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        if !request.operation.modifies() || self.device.open.load(Ordering::Relaxed) {
            return self.inner.submit(request);
        }
        self.waiting.push_back(request);
        self.device.held.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn poll(&mut self, completions: &mut Vec<Completion>) -> usize {
        if self.device.open.load(Ordering::Relaxed) {
            for request in self.waiting.drain(..) {
                self.device.held.fetch_sub(1, Ordering::Relaxed);
                self.inner.submit(request).unwrap();
            }
        }
        let given = self.done.len();
        completions.append(&mut self.done);
        given + self.inner.poll(completions)
    }

    fn abort(&mut self, tag: u64) {
        let place = self.waiting.iter().position(|request| request.tag == tag);
        if let Some(request) = place.filter(|_| self.device.aborts).and_then(|at| self.waiting.remove(at)) {
            self.device.held.fetch_sub(1, Ordering::Relaxed);
            self.done.push(request.complete(Err(IoError::Aborted)));
        }
    }
}

/// A host with a key.
struct Host {
    controller: Controller,
    queue: IoQueue,
    key: ReservationKey,
    outcomes: Vec<Outcome>,
}

fn host(world: &mut World, number: u8) -> Host {
    let (handle, mut options) = (world.reactor.handle(), world.options.clone());
    options.host.host = nqn(&format!("nqn.2026-01.io.basalt:host{number}"));
    options.host.host_id = HostId([number; 16]);
    let (controller, mut queues) = world.run(async move { connect(&handle, &options).await }).unwrap();
    Host { controller, queue: queues.remove(0), key: ReservationKey(number.into()), outcomes: Vec::new() }
}

impl Host {
    fn register(&self) -> Command {
        let (action, persistence) = (RegisterAction::Register, PersistenceChange::Keep);
        let (current, new) = (ReservationKey(0), self.key);
        Command::register(1, &Register { action, ignore_key: false, persistence, current, new })
    }

    fn acquire(&self, action: AcquireAction, kind: ReservationType, preempted: u64) -> Command {
        let (current, preempted) = (self.key, ReservationKey(preempted));
        Command::acquire(1, &Acquire { action, ignore_key: false, kind, current, preempted })
    }

    fn release(&self, kind: ReservationType) -> Command {
        let (action, current) = (ReleaseAction::Release, self.key);
        Command::release(1, &Release { action, ignore_key: false, kind: kind.code(), current })
    }

    fn submit(&mut self, tag: u64, command: Command) {
        self.queue.submit(tag, command).unwrap();
    }

    /// The status of the command with this tag, once it has ended.
    fn status(&self, tag: u64) -> Option<Status> {
        self.outcomes.iter().find(|outcome| outcome.tag == tag).map(status)
    }
}

/// Turns everything until `done`.
fn until(world: &mut World, hosts: &mut [Host; 2], done: impl Fn(&World, &[Host; 2]) -> bool) {
    let limit = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !done(world, hosts) {
        world.reactor.turn();
        for host in hosts.iter_mut() {
            host.queue.poll(&mut host.outcomes);
        }
        assert!(std::time::Instant::now() < limit, "it does not come to this");
    }
}

fn run(world: &mut World, hosts: &mut [Host; 2], number: usize, command: Command) -> Status {
    const TAG: u64 = 1 << 40;
    hosts[number].submit(TAG, command);
    until(world, hosts, |_, hosts| hosts[number].status(TAG).is_some());
    let status = hosts[number].status(TAG).unwrap();
    hosts[number].outcomes.retain(|outcome| outcome.tag != TAG);
    status
}

fn block(byte: u8, len: usize) -> Data {
    let mut buffer = Buffer::zeroed(len);
    buffer.fill(byte);
    Data::ToController(Payload::Buffer(buffer))
}

fn write(lba: u64, blocks: u32, byte: u8) -> Command {
    IoCommand::Write(ReadWrite::new(lba, blocks)).with(1, block(byte, blocks as usize * 512))
}

fn read(lba: u64) -> Command {
    IoCommand::Read(ReadWrite::new(lba, 1)).with(1, Data::ToHost(Buffer::zeroed(512)))
}

#[test]
fn hosts_keep_each_other_out_and_are_told() {
    let mut world = World::new(Digests { header: true, data: true });
    let mut hosts = [host(&mut world, 1), host(&mut world, 2)];
    for number in [0, 1] {
        let command = hosts[number].register();
        assert_eq!(run(&mut world, &mut hosts, number, command), Status::SUCCESS);
    }
    let kind = ReservationType::ExclusiveAccess;
    let acquire = hosts[0].acquire(AcquireAction::Acquire, kind, 0);
    assert_eq!(run(&mut world, &mut hosts, 0, acquire), Status::SUCCESS);
    assert_eq!(run(&mut world, &mut hosts, 0, write(0, 64, 1)), Status::SUCCESS);
    let conflict = Status::RESERVATION_CONFLICT.dnr();
    assert_eq!(run(&mut world, &mut hosts, 1, write(0, 64, 2)), conflict);
    assert_eq!(run(&mut world, &mut hosts, 1, read(0)), conflict);

    hosts[1].submit(7, Command::report(1, 64 * 4));
    until(&mut world, &mut hosts, |_, hosts| hosts[1].status(7).is_some());
    let bytes = hosts[1].outcomes.remove(0).payload.to_vec();
    let report = ParsedReport::parse(&bytes).unwrap();
    assert_eq!((report.header.kind, report.registrants.len()), (2, 2));
    assert_eq!((report.registrants[0].host_id, report.registrants[0].status), ([1; 16], 1));

    let preempt = hosts[1].acquire(AcquireAction::Preempt, ReservationType::WriteExclusive, 1);
    assert_eq!(run(&mut world, &mut hosts, 1, preempt), Status::SUCCESS);
    assert_eq!(run(&mut world, &mut hosts, 0, read(0)), Status::SUCCESS);
    assert_eq!(run(&mut world, &mut hosts, 0, write(0, 1, 3)), conflict);
    until(&mut world, &mut hosts, |_, hosts| {
        hosts[0].controller.take_events().events.contains(&AsyncEvent::ReservationLogAvailable)
    });
    let release = hosts[1].release(ReservationType::WriteExclusive);
    assert_eq!(run(&mut world, &mut hosts, 1, release), Status::SUCCESS);
    assert_eq!(run(&mut world, &mut hosts, 0, write(0, 1, 3)), Status::SUCCESS);
}

/// A device with the namespace's number 1, and hosts of which the first holds the reservation.
fn preempted_world(aborts: bool) -> (World, Arc<HeldDevice>, [Host; 2]) {
    let mut world = World::new(Digests::default());
    let device = HeldDevice::new(aborts);
    world.target.remove_namespace(&nqn(SUBSYSTEM), Nsid(1)).unwrap();
    let shared = Arc::new(Shared(Arc::clone(&device)));
    world.target.add_namespace(&nqn(SUBSYSTEM), Nsid(1), identity(1), shared, AnaState::Optimized).unwrap();
    let mut hosts = [host(&mut world, 1), host(&mut world, 2)];
    for number in [0, 1] {
        let command = hosts[number].register();
        assert_eq!(run(&mut world, &mut hosts, number, command), Status::SUCCESS);
    }
    let acquire = hosts[0].acquire(AcquireAction::Acquire, ReservationType::WriteExclusive, 0);
    assert_eq!(run(&mut world, &mut hosts, 0, acquire), Status::SUCCESS);
    (world, device, hosts)
}

/// Writes in capsules and by R2T, a pair, zeroes and an unmap, all with the device.
fn begin_writes(world: &mut World, hosts: &mut [Host; 2], device: &HeldDevice) -> Vec<u64> {
    hosts[0].submit(0, write(0, 1, 0xaa));
    hosts[0].submit(1, write(8, 8, 0xaa));
    hosts[0].submit(2, write(128, 128, 0xaa));
    let pair = FusedPair::new(1, ReadWrite::new(16, 1), block(0, 512), block(0xaa, 512));
    hosts[0].queue.submit_fused([3, 4], pair).unwrap();
    hosts[0].submit(5, IoCommand::WriteZeroes(ReadWrite::new(300, 1)).with(1, Data::None));
    hosts[0].submit(6, Command::deallocate(1, &[basalt_nvme_wire::dsm::Range::new(400, 1)]));
    until(world, hosts, |_, _| device.held.load(Ordering::Relaxed) == 6);
    (0..7).collect()
}

fn aborted(tag: u64) -> Status {
    // The first half of a pair ends as its pair did not run.
    if tag == 3 { Status::ABORTED_FAILED_FUSED } else { Status::ABORTED_PREEMPT }
}

#[test]
fn preempt_and_abort_waits_for_what_the_device_cannot_abort() {
    let (mut world, device, mut hosts) = preempted_world(false);
    let tags = begin_writes(&mut world, &mut hosts, &device);
    let preempt = hosts[1].acquire(AcquireAction::PreemptAndAbort, ReservationType::ExclusiveAccess, 1);
    hosts[1].submit(50, preempt);
    hosts[0].submit(20, read(0));
    // The preempted host is out at once.
    until(&mut world, &mut hosts, |_, hosts| hosts[0].status(20).is_some());
    let mut reads = 21;
    while hosts[0].status(reads - 1) != Some(Status::RESERVATION_CONFLICT.dnr()) {
        hosts[0].submit(reads, read(0));
        until(&mut world, &mut hosts, |_, hosts| hosts[0].status(reads).is_some());
        reads += 1;
    }
    assert_eq!(run(&mut world, &mut hosts, 1, read(0)), Status::SUCCESS);
    assert_eq!(hosts[1].status(50), None, "commands of the preempted host are with the device");
    assert_eq!(world.served.stats().running, 6);
    device.open.store(true, Ordering::Relaxed);
    until(&mut world, &mut hosts, |_, hosts| hosts[1].status(50).is_some());
    assert_eq!((hosts[1].status(50), world.served.stats().running), (Some(Status::SUCCESS), 0));
    until(&mut world, &mut hosts, |_, hosts| hosts[0].queue.outstanding() == 0);
    for tag in tags {
        assert_eq!(hosts[0].status(tag), Some(aborted(tag)), "command {tag}");
    }
}

#[test]
fn preempt_and_abort_aborts_what_the_device_gives_back() {
    let (mut world, device, mut hosts) = preempted_world(true);
    let tags = begin_writes(&mut world, &mut hosts, &device);
    let preempt = hosts[1].acquire(AcquireAction::PreemptAndAbort, ReservationType::ExclusiveAccess, 1);
    assert_eq!(run(&mut world, &mut hosts, 1, preempt), Status::SUCCESS);
    assert_eq!((device.held.load(Ordering::Relaxed), world.served.stats().running), (0, 0));
    until(&mut world, &mut hosts, |_, hosts| hosts[0].queue.outstanding() == 0);
    for tag in tags {
        assert_eq!(hosts[0].status(tag), Some(aborted(tag)), "command {tag}");
    }
    device.open.store(true, Ordering::Relaxed);
    hosts[1].submit(60, read(0));
    until(&mut world, &mut hosts, |_, hosts| hosts[1].status(60).is_some());
    let data = hosts[1].outcomes.pop().unwrap().payload.to_vec();
    assert!(data.iter().all(|byte| *byte == 0), "an aborted write has not happened");
}

#[test]
fn preempt_and_abort_waits_for_a_host_that_has_left() {
    let (mut world, device, mut hosts) = preempted_world(false);
    begin_writes(&mut world, &mut hosts, &device);
    let [victim, second] = hosts;
    drop(victim);
    let third = host(&mut world, 3);
    let mut hosts = [third, second];
    let preempt = hosts[1].acquire(AcquireAction::PreemptAndAbort, ReservationType::ExclusiveAccess, 1);
    hosts[1].submit(50, preempt);
    assert_eq!(run(&mut world, &mut hosts, 1, read(0)), Status::SUCCESS);
    assert_eq!((hosts[1].status(50), world.served.stats().running), (None, 6));
    device.open.store(true, Ordering::Relaxed);
    until(&mut world, &mut hosts, |_, hosts| hosts[1].status(50) == Some(Status::SUCCESS));
    assert_eq!(world.served.stats().running, 0);
}
