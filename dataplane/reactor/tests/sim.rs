//! Reactors in a simulated world: time, disks that crash, connections that break, and the same run for the same seed.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use basalt_clock::Instant;
use basalt_dma::{Buffer, Payload, Segment};
use basalt_reactor::sim::{Chance, DiskFaults, NodeId, World, WorldOptions};
use basalt_reactor::{
    ByteOffset, Disk, DiskError, DiskOperation, DiskOptions, DiskRequest, Handle, Progress, Reactor,
    ReactorOptions, ReadyList, Received, Sent, Socket, SocketError,
};

const DISK: &str = "/disks/one";

/// A world of two machines with a reactor each.
struct Bench {
    world: World,
    nodes: [NodeId; 2],
    reactors: Vec<Option<Reactor>>,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let world = World::new(seed, WorldOptions::default());
        let nodes = ["10.0.0.1", "10.0.0.2"].map(|address| world.add_node(address.parse().unwrap()));
        world.create_disk(nodes[0], DISK, 1 << 20);
        let mut bench = Self { world, nodes, reactors: vec![None, None] };
        bench.boot(0);
        bench.boot(1);
        bench
    }

    fn boot(&mut self, node: usize) {
        let driver = Box::new(self.world.driver(self.nodes[node]));
        self.reactors[node] = Some(Reactor::new(driver, &ReactorOptions::default()));
    }

    fn handle(&self, node: usize) -> Handle {
        self.reactors[node].as_ref().unwrap().handle()
    }

    /// Turns everything until it is idle, then lets time pass to the next event before `limit`; false if there is none.
    fn step(&mut self, limit: Instant) -> bool {
        let mut next = self.world.next_event();
        let mut busy = true;
        let mut rounds = 0;
        while busy {
            busy = false;
            next = None;
            for reactor in self.reactors.iter_mut().flatten() {
                let turn = reactor.turn();
                busy |= turn.progress == Progress::Busy;
                next = [next, turn.next_timer].into_iter().flatten().min();
            }
            rounds += 1;
            assert!(rounds < 10_000, "a reactor never rests");
        }
        let next = [next, self.world.next_event()].into_iter().flatten().min();
        match next {
            Some(next) if next <= limit => {
                self.world.advance_to(next.max(self.world.now()));
                true
            }
            _ => false,
        }
    }

    fn run_for(&mut self, duration: Duration) {
        let end = self.world.now() + duration;
        while self.step(end) {}
        self.world.advance_to(end);
        self.step(end);
    }

    fn run_until(&mut self, done: impl Fn() -> bool) {
        let limit = self.world.now() + Duration::from_secs(600);
        while !done() {
            assert!(self.step(limit) || done(), "nothing happens any more");
        }
    }

    /// Runs a task to its end.
    fn block_on<T: 'static>(&mut self, node: usize, future: impl Future<Output = T> + 'static) -> T {
        let mut task = self.handle(node).spawn(future);
        let limit = self.world.now() + Duration::from_secs(600);
        loop {
            if let Some(output) = task.take_output() {
                return output;
            }
            assert!(self.step(limit) || task.is_done(), "nothing happens any more");
        }
    }
}

async fn disk_operation(
    handle: &Handle,
    disk: &Disk,
    operation: DiskOperation,
    offset: u64,
    payload: Payload,
) -> (Result<(), DiskError>, Payload) {
    let length = payload.len() as u64;
    let request =
        DiskRequest { disk: disk.info().id, tag: 7, operation, offset: ByteOffset(offset), length, payload };
    disk.submit(request).unwrap();
    let mut done = Vec::new();
    while disk.poll(&mut done) == 0 {
        handle.sleep(Duration::from_micros(10)).await;
    }
    let completion = done.pop().unwrap();
    assert_eq!(completion.tag, 7);
    (completion.result, completion.payload)
}

fn filled(byte: u8, len: usize) -> Payload {
    let mut buffer = Buffer::zeroed(len);
    buffer.fill(byte);
    buffer.into()
}

const WRITE: DiskOperation = DiskOperation::Write { fua: false };
const FORCED: DiskOperation = DiskOperation::Write { fua: true };

fn open(bench: &Bench) -> (Handle, Rc<Disk>) {
    let handle = bench.handle(0);
    let disk = handle.open_disk(Path::new(DISK), &DiskOptions::default()).unwrap();
    (handle, Rc::new(disk))
}

#[test]
fn timers_fire_in_order_at_their_time() {
    let mut bench = Bench::new(1);
    let handle = bench.handle(0);
    let began = handle.now();
    let log = Rc::new(RefCell::new(Vec::new()));
    for ms in [30_u64, 10, 20, 10] {
        let (sleep, log, handle) = (handle.sleep(Duration::from_millis(ms)), Rc::clone(&log), handle.clone());
        handle.clone().spawn(async move {
            sleep.await;
            log.borrow_mut().push((ms, handle.now() - began));
        });
    }
    let cancelled = handle.spawn(handle.sleep(Duration::from_millis(15)));
    bench.run_for(Duration::from_millis(12));
    cancelled.abort();
    assert_eq!(
        bench.reactors[0].as_mut().unwrap().turn().next_timer,
        Some(began + Duration::from_millis(20))
    );
    bench.run_until(|| log.borrow().len() == 4);
    let expected = [10, 10, 20, 30].map(|ms| (ms, Duration::from_millis(ms)));
    assert_eq!(*log.borrow(), expected);
}

#[test]
fn tasks_run_in_the_order_in_which_they_were_woken_and_can_be_aborted() {
    let mut bench = Bench::new(1);
    let handle = bench.handle(0);
    let log = Rc::new(RefCell::new(Vec::new()));
    let mut tasks = Vec::new();
    for n in 0..3 {
        let (log, handle) = (Rc::clone(&log), handle.clone());
        tasks.push(handle.clone().spawn(async move {
            for round in 0..3 {
                log.borrow_mut().push((round, n));
                handle.yield_now().await;
            }
            n
        }));
    }
    let guard = Rc::new(());
    let held = Rc::clone(&guard);
    let endless = handle.spawn(async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    bench.run_for(Duration::from_millis(1));
    let expected: Vec<_> = (0..3).flat_map(|round| (0..3).map(move |n| (round, n))).collect();
    assert_eq!(*log.borrow(), expected);
    assert_eq!(
        tasks.iter_mut().map(|task| task.take_output()).collect::<Vec<_>>(),
        [Some(0), Some(1), Some(2)]
    );
    assert_eq!(Rc::strong_count(&guard), 2);
    endless.abort();
    assert_eq!(Rc::strong_count(&guard), 1);
}

#[test]
fn pollers_may_add_and_remove_pollers_and_a_wanted_turn_comes() {
    let mut bench = Bench::new(1);
    let handle = bench.handle(0);
    let count = Rc::new(Cell::new(0));
    let own = Rc::new(Cell::new(None));
    let (seen, id, inner) = (Rc::clone(&count), Rc::clone(&own), handle.clone());
    let due = handle.now() + Duration::from_secs(5);
    let poller = handle.add_poller(move || {
        inner.wake_at(due);
        if inner.now() < due {
            return Progress::Idle;
        }
        seen.set(seen.get() + 1);
        inner.remove_poller(id.get().unwrap());
        let seen = Rc::clone(&seen);
        inner.add_poller(move || {
            seen.set(seen.get() + 100);
            Progress::Idle
        });
        Progress::Busy
    });
    own.set(Some(poller));
    bench.run_for(Duration::from_secs(4));
    assert_eq!(count.get(), 0);
    bench.run_until(|| count.get() > 100);
    assert_eq!(count.get() % 100, 1, "a removed poller does not run again");
}

#[test]
fn every_wanted_turn_comes_and_not_only_the_earliest() {
    let mut bench = Bench::new(1);
    let handle = bench.handle(0);
    let start = handle.now();
    let wanted = [1, 3, 2].map(|seconds| start + Duration::from_secs(seconds));
    for at in wanted {
        handle.wake_at(at);
    }
    let turns = Rc::new(RefCell::new(Vec::new()));
    let (seen, clock) = (Rc::clone(&turns), handle.clone());
    handle.add_poller(move || {
        seen.borrow_mut().push(clock.now());
        Progress::Idle
    });
    bench.run_for(Duration::from_secs(4));
    for at in wanted {
        assert!(turns.borrow().contains(&at), "no turn at {at:?}: {:?}", turns.borrow());
    }
}

#[test]
fn dropping_a_reactor_drops_what_it_ran() {
    let mut bench = Bench::new(1);
    let handle = bench.handle(0);
    let token = Rc::new(());
    let (in_task, in_poller, task_handle) = (Rc::clone(&token), Rc::clone(&token), handle.clone());
    handle.spawn(async move {
        let _held = in_task;
        task_handle.sleep(Duration::from_secs(1)).await;
    });
    let poller_handle = handle.clone();
    handle.add_poller(move || {
        let _held = (&in_poller, &poller_handle);
        Progress::Idle
    });
    bench.run_for(Duration::from_millis(1));
    drop(handle);
    bench.reactors[0] = None;
    assert_eq!(Rc::strong_count(&token), 1);
}

#[test]
fn a_power_failure_keeps_what_was_synced_and_forced_and_may_tear_the_rest() {
    let mut outcomes = [0; 3];
    for seed in 0..40 {
        let mut bench = Bench::new(seed);
        let (handle, disk) = open(&bench);
        bench.block_on(0, async move {
            disk_operation(&handle, &disk, WRITE, 0, filled(1, 4096)).await.0.unwrap();
            disk_operation(&handle, &disk, DiskOperation::Sync, 0, Payload::None).await.0.unwrap();
            disk_operation(&handle, &disk, FORCED, 4096, filled(2, 4096)).await.0.unwrap();
            disk_operation(&handle, &disk, WRITE, 8192, filled(3, 4096)).await.0.unwrap();
            let (result, payload) =
                disk_operation(&handle, &disk, DiskOperation::Read, 0, filled(0, 12288)).await;
            result.unwrap();
            assert!(payload.to_vec() == [[1; 4096], [2; 4096], [3; 4096]].concat());
        });
        bench.world.power_fail(bench.nodes[0]);
        bench.reactors[0] = None;
        bench.world.power_on(bench.nodes[0]);
        let bytes = bench.world.read_disk(bench.nodes[0], Path::new(DISK), 0, 12288);
        assert!(bytes[..8192] == [[1; 4096], [2; 4096]].concat());
        let left = bytes[8192..].iter().filter(|byte| **byte == 3).count();
        assert_eq!(left % 512, 0);
        outcomes[usize::from(left > 0) + usize::from(left == 4096)] += 1;
    }
    assert!(outcomes.iter().all(|count| *count > 3), "{outcomes:?}");
}

#[test]
fn a_killed_process_keeps_completed_writes_and_loses_its_claim() {
    let mut bench = Bench::new(3);
    let (handle, disk) = open(&bench);
    let lock = handle.lock_disk(Path::new(DISK), &DiskOptions::default()).unwrap();
    assert_eq!(handle.lock_disk(Path::new(DISK), &DiskOptions::default()).unwrap_err(), DiskError::InUse);
    let writer = Rc::clone(&disk);
    bench.block_on(0, async move {
        disk_operation(&handle, &writer, WRITE, 0, filled(1, 4096)).await.0.unwrap();
    });
    bench.world.kill(bench.nodes[0]);
    let old = bench.handle(0);
    assert_eq!(old.open_disk(Path::new(DISK), &DiskOptions::default()).unwrap_err(), DiskError::Gone);
    bench.boot(0);
    let new = bench.handle(0);
    new.lock_disk(Path::new(DISK), &DiskOptions::default()).unwrap();
    drop((lock, old, disk));
    assert_eq!(bench.world.read_disk(bench.nodes[0], Path::new(DISK), 0, 4096), [1; 4096]);
}

#[test]
fn faults_hit_their_operations_and_a_failed_sync_stays_failed() {
    let mut bench = Bench::new(4);
    let (handle, disk) = open(&bench);
    let (world, node) = (bench.world.clone(), bench.nodes[0]);
    bench.block_on(0, async move {
        let bad = std::iter::once(5000..5001).collect();
        let faults = DiskFaults { bad, ..DiskFaults::default() };
        world.set_disk_faults(node, Path::new(DISK), faults);
        assert_eq!(disk_operation(&handle, &disk, DiskOperation::Read, 0, filled(0, 4096)).await.0, Ok(()));
        let bad = disk_operation(&handle, &disk, DiskOperation::Read, 4096, filled(0, 4096)).await.0;
        assert_eq!(bad, Err(DiskError::Medium));
        world.set_disk_faults(node, Path::new(DISK), DiskFaults { full: true, ..DiskFaults::default() });
        assert_eq!(disk_operation(&handle, &disk, WRITE, 0, filled(1, 512)).await.0, Err(DiskError::NoSpace));
        world.set_disk_faults(
            node,
            Path::new(DISK),
            DiskFaults { sync: Chance::ALWAYS, ..DiskFaults::default() },
        );
        assert_eq!(disk_operation(&handle, &disk, FORCED, 0, filled(1, 512)).await.0, Err(DiskError::Medium));
        for _ in 0..2 {
            let sync = disk_operation(&handle, &disk, DiskOperation::Sync, 0, Payload::None).await.0;
            assert_eq!(sync, Err(DiskError::Medium));
            world.set_disk_faults(node, Path::new(DISK), DiskFaults::default());
        }
        world.remove_disk(node, Path::new(DISK));
        let gone = disk_operation(&handle, &disk, DiskOperation::Read, 0, filled(0, 512)).await.0;
        assert_eq!(gone, Err(DiskError::Gone));
        assert_eq!(
            handle.open_disk(Path::new(DISK), &DiskOptions::default()).unwrap_err(),
            DiskError::NotFound
        );
    });
}

async fn receive_all(handle: &Handle, socket: &Socket) -> Result<Vec<u8>, SocketError> {
    let mut all = Vec::new();
    let mut target = vec![0; 10_000];
    loop {
        match socket.receive(&mut target)? {
            Received::Bytes(count) => all.extend_from_slice(&target[..count]),
            Received::Nothing => handle.sleep(Duration::from_micros(50)).await,
            Received::End => return Ok(all),
        }
    }
}

async fn send_all(handle: &Handle, socket: &Socket, bytes: &[u8]) -> Result<(), SocketError> {
    let mut rest = Segment::new(bytes);
    while !rest.is_empty() {
        match socket.send(&[rest])? {
            Sent::Bytes(count) => rest = rest.skip(count),
            Sent::Nothing => handle.sleep(Duration::from_micros(50)).await,
        }
    }
    Ok(())
}

async fn accept(handle: &Handle, address: SocketAddr) -> Socket {
    let listener = handle.listen(address).unwrap();
    loop {
        if let Some(socket) = listener.accept().unwrap() {
            return socket;
        }
        handle.sleep(Duration::from_micros(50)).await;
    }
}

fn server_address() -> SocketAddr {
    "10.0.0.2:4420".parse().unwrap()
}

/// Sends from node 0 to node 1 and answers what arrived and the world's digest.
fn transfer(seed: u64) -> (Vec<u8>, u64) {
    let mut bench = Bench::new(seed);
    let (client, server) = (bench.handle(0), bench.handle(1));
    let data: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let task = server.clone().spawn(async move {
        let socket = accept(&server, server_address()).await;
        receive_all(&server, &socket).await.unwrap()
    });
    let sent = data.clone();
    bench.block_on(0, async move {
        client.sleep(Duration::from_millis(1)).await;
        let socket = client.connect(server_address()).unwrap();
        send_all(&client, &socket, &sent).await.unwrap();
        socket.shutdown();
        assert_eq!(socket.peer_address().unwrap(), server_address());
        assert_eq!(receive_all(&client, &socket).await.unwrap(), []);
    });
    let mut task = task;
    bench.run_for(Duration::from_millis(10));
    (task.take_output().unwrap(), bench.world.digest())
}

#[test]
fn connections_carry_bytes_in_order_and_a_seed_determines_the_run() {
    let (received, first) = transfer(5);
    assert!(
        received.len() == 1_000_000
            && received.iter().zip(0_u32..).all(|(byte, n)| u32::from(*byte) == n % 251)
    );
    assert_eq!(transfer(5).1, first);
    assert_ne!(transfer(6).1, first);
}

#[test]
fn refused_unreachable_and_unanswered_connections_differ() {
    let mut bench = Bench::new(7);
    let handle = bench.handle(0);
    let stranger: SocketAddr = "10.9.9.9:1".parse().unwrap();
    assert_eq!(handle.connect(stranger).unwrap_err(), SocketError::Unreachable);
    let (task_handle, world, nodes) = (handle.clone(), bench.world.clone(), bench.nodes);
    bench.block_on(0, async move {
        let refused = task_handle.connect(server_address()).unwrap();
        assert_eq!(receive_all(&task_handle, &refused).await, Err(SocketError::Refused));
        world.block(nodes[0], nodes[1]);
        let unanswered = task_handle.connect(server_address()).unwrap();
        let began = task_handle.now();
        assert_eq!(receive_all(&task_handle, &unanswered).await, Err(SocketError::TimedOut));
        assert!(task_handle.now() - began >= Duration::from_secs(30));
    });
}

/// A connected pair of sockets, of node 0 and of node 1.
fn pair(bench: &mut Bench) -> (Rc<Socket>, Rc<Socket>) {
    let (client, server) = (bench.handle(0), bench.handle(1));
    let accepted = server.clone().spawn(async move { accept(&server, server_address()).await });
    bench.run_for(Duration::from_millis(1));
    let socket = client.connect(server_address()).unwrap();
    let accepted = bench.block_on(1, accepted);
    (Rc::new(socket), Rc::new(accepted))
}

#[test]
fn a_partition_delays_and_healing_delivers() {
    let mut bench = Bench::new(8);
    let (client, server) = pair(&mut bench);
    bench.world.partition(bench.nodes[0], bench.nodes[1]);
    bench.run_for(Duration::from_millis(5));
    assert!(matches!(client.send(&[Segment::new(b"hello")]), Ok(Sent::Bytes(1..=5))));
    bench.run_for(Duration::from_secs(60));
    let mut target = [0; 8];
    assert_eq!(server.receive(&mut target), Ok(Received::Nothing));
    bench.world.heal_all();
    bench.run_for(Duration::from_millis(5));
    assert!(matches!(server.receive(&mut target), Ok(Received::Bytes(_))));
}

#[test]
fn a_killed_peer_is_noticed_and_one_without_power_is_not_until_it_is_back() {
    let mut bench = Bench::new(9);
    let (client, server) = pair(&mut bench);
    bench.run_for(Duration::from_millis(5));
    bench.world.kill(bench.nodes[1]);
    bench.run_for(Duration::from_millis(5));
    let heard = client.receive(&mut [0; 8]);
    assert!(matches!(heard, Ok(Received::End) | Err(SocketError::Reset)), "{heard:?}");
    assert_eq!(server.receive(&mut [0; 8]), Err(SocketError::Closed));
    drop(server);
    bench.boot(1);
    let (client, _server) = pair(&mut bench);
    bench.run_for(Duration::from_millis(5));
    bench.world.power_fail(bench.nodes[1]);
    bench.run_for(Duration::from_secs(5));
    assert_eq!(client.receive(&mut [0; 8]), Ok(Received::Nothing));
    bench.world.power_on(bench.nodes[1]);
    client.send(&[Segment::new(b"anyone?")]).unwrap();
    bench.run_for(Duration::from_millis(5));
    assert_eq!(client.receive(&mut [0; 8]), Err(SocketError::Reset));
}

#[test]
fn a_slow_reader_stops_its_sender_at_the_bound() {
    let mut bench = Bench::new(10);
    let (client, server) = pair(&mut bench);
    bench.run_for(Duration::from_millis(5));
    let bytes = vec![1; 1 << 20];
    let mut sent = 0;
    while let Sent::Bytes(count) = client.send(&[Segment::new(&bytes)]).unwrap() {
        sent += count;
    }
    assert_eq!(sent, WorldOptions::default().network.buffer_bytes);
    bench.run_for(Duration::from_millis(5));
    assert!(matches!(server.receive(&mut [0; 4096]), Ok(Received::Bytes(_))));
    assert!(matches!(client.send(&[Segment::new(&bytes)]), Ok(Sent::Bytes(1..=4096))));
}

#[test]
fn a_watched_socket_is_named_when_something_happens_to_it() {
    let mut bench = Bench::new(11);
    let (client, server) = pair(&mut bench);
    let list = ReadyList::new();
    server.watch(&list, 42);
    let mut tokens = Vec::new();
    list.take(&mut tokens);
    assert_eq!(std::mem::take(&mut tokens), [42], "once at once");
    bench.run_for(Duration::from_millis(5));
    assert!(list.is_empty());
    for _ in 0..3 {
        client.send(&[Segment::new(b"x")]).unwrap();
        bench.run_for(Duration::from_millis(5));
    }
    list.take(&mut tokens);
    assert_eq!(tokens, [42], "once however much happens");
    drop(client);
    bench.run_for(Duration::from_millis(5));
    assert!(!list.is_empty());
}
