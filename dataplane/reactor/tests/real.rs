//! The machine's driver under a reactor: files, locks, sockets, sleeping, other threads.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use basalt_dma::{Buffer, Payload, Segment};
use basalt_reactor::real::RealDriver;
use basalt_reactor::{
    ByteOffset, Disk, DiskCompletion, DiskError, DiskKind, DiskOperation, DiskOptions, DiskRequest, Handle,
    Polling, PostError, Progress, Reactor, ReactorOptions, ReadyList, Received, Sent, Socket, SocketError,
    start,
};

const LENGTH: u64 = 1 << 20;

fn reactors() -> Vec<Reactor> {
    let options = ReactorOptions::default();
    let native = RealDriver::new().unwrap();
    assert_eq!(native.disk_engine(), "io_uring", "these tests want both engines");
    let fallback = RealDriver::with_threads().unwrap();
    vec![Reactor::new(Box::new(native), &options), Reactor::new(Box::new(fallback), &options)]
}

fn created(length: u64) -> DiskOptions {
    DiskOptions { create_with_length: Some(length), ..DiskOptions::default() }
}

/// Turns until `done`; a bound instead of a hang.
fn turn_until(reactor: &mut Reactor, mut done: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        reactor.turn();
        assert!(began.elapsed() < Duration::from_secs(20), "no progress");
    }
}

fn run(
    reactor: &mut Reactor,
    disk: &Disk,
    operation: DiskOperation,
    offset: u64,
    payload: Payload,
) -> DiskCompletion {
    let length = match operation {
        DiskOperation::Discard | DiskOperation::WriteZeroes => 8192,
        _ => payload.len() as u64,
    };
    run_length(reactor, disk, operation, offset, length, payload)
}

fn run_length(
    reactor: &mut Reactor,
    disk: &Disk,
    operation: DiskOperation,
    offset: u64,
    length: u64,
    payload: Payload,
) -> DiskCompletion {
    let id = disk.info().id;
    let request =
        DiskRequest { disk: id, tag: offset + 1, operation, offset: ByteOffset(offset), length, payload };
    disk.submit(request).unwrap();
    let mut done = Vec::new();
    turn_until(reactor, || disk.poll(&mut done) > 0);
    let completion = done.pop().unwrap();
    assert_eq!((done.len(), completion.tag), (0, offset + 1));
    completion
}

fn filled(byte: u8, len: usize) -> Buffer {
    let mut buffer = Buffer::zeroed(len);
    buffer.fill(byte);
    buffer
}

fn read_back(reactor: &mut Reactor, disk: &Disk, offset: u64, len: usize) -> Vec<u8> {
    let completion = run(reactor, disk, DiskOperation::Read, offset, filled(0xee, len).into());
    assert_eq!(completion.result, Ok(()));
    completion.payload.to_vec()
}

#[test]
fn files_keep_what_is_written_with_either_engine() {
    for mut reactor in reactors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let disk = reactor.handle().open_disk(&path, &created(LENGTH)).unwrap();
        let info = disk.info().clone();
        assert_eq!((info.length, info.kind, info.volatile_cache), (LENGTH, DiskKind::File, true));
        let write = DiskOperation::Write { fua: true };
        let scattered = Payload::Scattered(vec![filled(1, 4096), filled(2, 8192)]);
        assert_eq!(run(&mut reactor, &disk, write, 4096, scattered).result, Ok(()));
        let lent = filled(3, 4096).into_lent();
        let plain = DiskOperation::Write { fua: false };
        assert_eq!(run(&mut reactor, &disk, plain, 16384, lent.into()).result, Ok(()));
        assert_eq!(run_length(&mut reactor, &disk, DiskOperation::Sync, 0, 0, Payload::None).result, Ok(()));
        let bytes = read_back(&mut reactor, &disk, 0, 24576);
        let expected = [[0; 4096], [1; 4096], [2; 4096], [2; 4096], [3; 4096], [0; 4096]].concat();
        assert!(bytes == expected);
        let zeroes = run(&mut reactor, &disk, DiskOperation::WriteZeroes, 4096, Payload::None);
        assert_eq!(zeroes.result, Ok(()));
        if info.discard {
            assert_eq!(run(&mut reactor, &disk, DiskOperation::Discard, 12288, Payload::None).result, Ok(()));
        }
        let bytes = read_back(&mut reactor, &disk, 0, 24576);
        assert!(bytes[4096..12288].iter().all(|byte| *byte == 0));
        drop(disk);
        let again = reactor.handle().open_disk(&path, &DiskOptions::default()).unwrap();
        assert!(read_back(&mut reactor, &again, 0, 4096).iter().all(|byte| *byte == 0));
    }
}

#[test]
fn wrong_requests_and_paths_are_refused_with_a_cause() {
    for mut reactor in reactors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let handle = reactor.handle();
        assert_eq!(handle.open_disk(&path, &DiskOptions::default()).unwrap_err(), DiskError::NotFound);
        assert_eq!(
            handle.open_disk(directory.path(), &DiskOptions::default()).unwrap_err(),
            DiskError::NotADisk
        );
        assert_eq!(
            handle.open_disk(Path::new("/dev/null"), &DiskOptions::default()).unwrap_err(),
            DiskError::NotADisk
        );
        let disk = handle.open_disk(&path, &created(LENGTH)).unwrap();
        let read = DiskOperation::Read;
        let beyond = run(&mut reactor, &disk, read, LENGTH - 4096, filled(0, 8192).into());
        assert_eq!((beyond.result, beyond.payload.len()), (Err(DiskError::OutOfRange), 8192));
        let odd = run(&mut reactor, &disk, read, 100, filled(0, 4096).into());
        assert_eq!(odd.result, Err(DiskError::OutOfRange));
        let short = run_length(&mut reactor, &disk, read, 0, 8192, filled(0, 4096).into());
        assert_eq!(short.result, Err(DiskError::OutOfRange));
        let read_only = DiskOptions { read_only: true, ..DiskOptions::default() };
        let disk = handle.open_disk(&path, &read_only).unwrap();
        let refused =
            run(&mut reactor, &disk, DiskOperation::Write { fua: false }, 0, filled(0, 4096).into());
        assert_eq!(refused.result, Err(DiskError::ReadOnly));
    }
}

#[test]
fn a_disk_is_claimed_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let reactor = reactors().remove(0);
    let handle = reactor.handle();
    let options = DiskOptions::default();
    assert_eq!(handle.lock_disk(&path, &options).unwrap_err(), DiskError::NotFound);
    let lock = handle.lock_disk(&path, &created(LENGTH)).unwrap();
    assert_eq!(lock.path(), path);
    assert_eq!(handle.lock_disk(&path, &options).unwrap_err(), DiskError::InUse);
    handle.open_disk(&path, &options).unwrap();
    let disk = handle.open_locked(&lock).unwrap();
    assert_eq!((disk.info().length, disk.info().direct), (LENGTH, true));
    drop(lock);
    assert_eq!(handle.lock_disk(&path, &options).unwrap_err(), DiskError::InUse, "it is open");
    drop(disk);
    handle.lock_disk(&path, &options).unwrap();
}

#[test]
fn many_requests_at_a_time_all_complete_and_the_queue_is_bounded() {
    for mut reactor in reactors() {
        let directory = tempfile::tempdir().unwrap();
        let disk = reactor.handle().open_disk(&directory.path().join("disk"), &created(LENGTH)).unwrap();
        let mut accepted = 0;
        let mut refused = None;
        for tag in 0..5000 {
            let request = DiskRequest {
                disk: disk.info().id,
                tag,
                operation: DiskOperation::Read,
                offset: ByteOffset(tag % 256 * 4096),
                length: 4096,
                payload: Buffer::zeroed(4096).into(),
            };
            match disk.submit(request) {
                Ok(()) => accepted += 1,
                Err(request) => {
                    refused = Some(request.tag);
                    break;
                }
            }
        }
        assert_eq!(refused, Some(accepted), "the queue has a bound");
        let mut done = Vec::new();
        turn_until(&mut reactor, || {
            disk.poll(&mut done);
            done.len() as u64 == accepted
        });
        let mut tags: Vec<u64> = done.iter().map(|completion| completion.tag).collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(0..accepted) && done.iter().all(|completion| completion.result.is_ok()));
    }
}

#[test]
fn dropping_everything_with_requests_under_way_is_safe() {
    for reactor in reactors() {
        let directory = tempfile::tempdir().unwrap();
        let disk = reactor.handle().open_disk(&directory.path().join("disk"), &created(LENGTH)).unwrap();
        for tag in 0..64 {
            let id = disk.info().id;
            let payload = filled(1, 65536).into();
            let operation = DiskOperation::Write { fua: false };
            let request =
                DiskRequest { disk: id, tag, operation, offset: ByteOffset(0), length: 65536, payload };
            disk.submit(request).unwrap();
        }
        drop(disk);
        drop(reactor);
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Two ends of a connection on one reactor.
fn pair(reactor: &mut Reactor) -> (Socket, Socket) {
    let handle = reactor.handle();
    let listener = handle.listen(loopback()).unwrap();
    let client = handle.connect(listener.local_address().unwrap()).unwrap();
    let mut accepted = None;
    turn_until(reactor, || {
        accepted = listener.accept().unwrap();
        accepted.is_some()
    });
    let server = accepted.unwrap();
    assert_eq!(server.peer_address().unwrap(), client.local_address().unwrap());
    (client, server)
}

#[test]
fn sockets_carry_bytes_in_order_through_full_buffers() {
    const TOTAL: usize = 8 << 20;
    let mut reactor = reactors().remove(0);
    let (client, server) = pair(&mut reactor);
    let data: Vec<u8> = (0..TOTAL).map(|n| u8::try_from(n * 31 % 251).unwrap()).collect();
    let mut sent = 0;
    let mut received = Vec::new();
    let mut full = false;
    let mut target = vec![0; 256 << 10];
    turn_until(&mut reactor, || {
        while sent < TOTAL {
            let middle = (sent + 1000).min(TOTAL);
            match client.send(&[Segment::new(&data[sent..middle]), Segment::new(&data[middle..])]).unwrap() {
                Sent::Bytes(count) => sent += count,
                Sent::Nothing => {
                    full = true;
                    break;
                }
            }
        }
        if let Received::Bytes(count) = server.receive(&mut target).unwrap() {
            received.extend_from_slice(&target[..count]);
        }
        received.len() == TOTAL
    });
    assert!(full && received == data);
    client.shutdown();
    turn_until(&mut reactor, || server.receive(&mut target).unwrap() == Received::End);
}

#[test]
fn a_watched_socket_is_named_when_something_happens_to_it() {
    let mut reactor = reactors().remove(0);
    let (client, server) = pair(&mut reactor);
    let (list, mut tokens) = (ReadyList::new(), Vec::new());
    // What is left of the connection's making is named before.
    (0..20).for_each(|_| assert_eq!(reactor.turn().next_timer, None));
    server.watch(&list, 7);
    list.take(&mut tokens);
    assert_eq!(std::mem::take(&mut tokens), [7], "once at once");
    assert_eq!(client.send(&[Segment::new(b"x")]).unwrap(), Sent::Bytes(1));
    turn_until(&mut reactor, || !list.is_empty());
    assert_eq!(server.receive(&mut [0; 8]).unwrap(), Received::Bytes(1));
    list.take(&mut tokens);
    drop(client);
    turn_until(&mut reactor, || !list.is_empty());
    assert_eq!(server.receive(&mut [0; 8]).unwrap(), Received::End);
}

#[test]
fn a_refused_connection_says_so() {
    let mut reactor = reactors().remove(0);
    let handle = reactor.handle();
    let listener = handle.listen(loopback()).unwrap();
    let address = listener.local_address().unwrap();
    assert_eq!(handle.listen(address).unwrap_err(), SocketError::AddressInUse);
    drop(listener);
    let client = handle.connect(address).unwrap();
    let mut error = None;
    turn_until(&mut reactor, || {
        error = client.receive(&mut [0; 10]).err();
        error.is_some()
    });
    assert_eq!(error, Some(SocketError::Refused));
}

#[test]
fn a_peer_that_vanishes_is_noticed() {
    let mut reactor = reactors().remove(0);
    let (client, server) = pair(&mut reactor);
    turn_until(&mut reactor, || client.send(&[Segment::new(b"unread")]).unwrap() == Sent::Bytes(6));
    drop(server);
    turn_until(&mut reactor, || match client.receive(&mut [0; 8]) {
        Ok(Received::End) | Err(SocketError::Reset) => true,
        other => {
            assert_eq!(other, Ok(Received::Nothing));
            false
        }
    });
}

#[test]
fn threads_post_to_a_reactor_that_sleeps() {
    let options =
        ReactorOptions { polling: Polling::Adaptive { spin: Duration::ZERO }, ..ReactorOptions::default() };
    let reactor = start("test-reactor", Some(0), options, |handle| {
        // A poller that is never busy does not keep the reactor awake.
        handle.add_poller(|| Progress::Idle);
    })
    .unwrap();
    let remote = reactor.remote().clone();
    for round in 0..100_u32 {
        let (report, answer) = mpsc::channel();
        let post = move |handle: &Handle| {
            let sleep = handle.sleep(Duration::from_micros(10));
            handle.spawn(async move {
                sleep.await;
                report.send(round).unwrap();
            });
        };
        remote.post(post).unwrap();
        assert_eq!(answer.recv_timeout(Duration::from_secs(20)), Ok(round));
    }
    let stats = remote.stats();
    assert!(stats.messages == 100 && stats.sleeps > 0 && stats.turns > stats.busy_turns, "{stats:?}");
    assert_eq!(stats.pollers, 1);
    reactor.join().unwrap();
    assert_eq!(remote.post(|_| {}), Err(PostError::Ended));
}

#[test]
fn a_waker_from_another_thread_wakes_a_task() {
    let reactor = start("test-reactor", None, ReactorOptions::default(), |_| {}).unwrap();
    let (report, answer) = mpsc::channel();
    let (waker_out, waker_in) = mpsc::channel();
    let post = move |handle: &Handle| {
        let woken = Rc::new(Cell::new(false));
        handle.spawn(async move {
            std::future::poll_fn(|context| {
                if woken.replace(true) {
                    return std::task::Poll::Ready(());
                }
                waker_out.send(context.waker().clone()).unwrap();
                std::task::Poll::Pending
            })
            .await;
            report.send(()).unwrap();
        });
    };
    reactor.remote().post(post).unwrap();
    let waker = waker_in.recv().unwrap();
    waker.wake();
    answer.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn a_full_ring_refuses_messages() {
    let options = ReactorOptions { ring_capacity: 2, ..ReactorOptions::default() };
    let mut reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &options);
    let remote = reactor.remote();
    let ran = Rc::new(RefCell::new(Vec::new()));
    remote.post(|_| {}).unwrap();
    remote.post(|_| {}).unwrap();
    assert_eq!(remote.post(|_| {}), Err(PostError::Full));
    assert_eq!(remote.stats().ring_depth, 2);
    reactor.turn();
    let seen = Rc::clone(&ran);
    reactor.handle().spawn(async move { seen.borrow_mut().push(1) });
    remote.post(|_| {}).unwrap();
    reactor.turn();
    assert_eq!(*ran.borrow(), [1]);
}
