//! The blocking host against a target on another reactor's thread.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use basalt_bdev::{BlockDevice, BlockSize};
use basalt_device_mem::RamDevice;
use basalt_nvme_wire::Status;
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::pdu::Digests;
use basalt_nvme_wire::reservation::{
    Acquire, AcquireAction, ParsedReport, PersistenceChange, Register, RegisterAction, Release,
    ReleaseAction, ReservationKey, ReservationType,
};
use basalt_nvmf_host::{HostOptions, Swap};
use basalt_nvmf_target::{
    AllowedHosts, ListenerAddress, NamespaceIdentity, Nsid, SubsystemConfig, Target, TargetOptions,
};
use basalt_nvmf_tcp::host::blocking::{BlockingError, Session, discover, load};
use basalt_nvmf_tcp::host::{Load, LoadFailure, TcpHostOptions, Work};
use basalt_nvmf_tcp::{TcpTarget, TcpTargetOptions};
use basalt_nvmf_transport::{ControllerIdRange, HostId, Nqn};
use basalt_reactor::{Polling, ReactorOptions, ReactorThread, start};
use uuid::Uuid;

fn serve() -> (ReactorThread, TcpHostOptions) {
    serve_more(&target())
}

/// One more reactor with a listener of its own for the same target.
fn serve_more(target: &Arc<Target>) -> (ReactorThread, TcpHostOptions) {
    let reactor = start("target", None, ReactorOptions::default(), |_| {}).unwrap();
    let nqn = Nqn::new("nqn.2026-01.io.basalt:volume").unwrap();
    let control =
        TcpTarget::start_on(reactor.remote(), Arc::clone(target), TcpTargetOptions::default()).unwrap();
    let address = control.listen(ListenerAddress::new("127.0.0.1:0".parse().unwrap())).unwrap();
    let host = HostOptions::new(nqn, Nqn::new("nqn.2026-01.io.basalt:host").unwrap(), HostId([5; 16]));
    (reactor, TcpHostOptions { address, host, digests: Digests::default() })
}

fn target() -> Arc<Target> {
    let nqn = Nqn::new("nqn.2026-01.io.basalt:volume").unwrap();
    let target = Target::new(TargetOptions::default());
    let config = SubsystemConfig {
        nqn: nqn.clone(),
        serial: "BSLT0001".to_owned(),
        model: "Basalt volume".to_owned(),
        controller_ids: ControllerIdRange::ALL,
    };
    target.add_subsystem(config, AllowedHosts::Any).unwrap();
    let device: Arc<dyn BlockDevice> =
        Arc::new(RamDevice::new("ram", Uuid::nil(), BlockSize::B4096, 8 << 20).unwrap());
    let identity = NamespaceIdentity { uuid: [1; 16], nguid: [1; 16] };
    target.add_namespace(&nqn, Nsid(1), identity, device, AnaState::Optimized).unwrap();
    target
}

#[test]
fn a_load_says_how_its_commands_failed() {
    let target = target();
    let (_reactor, options) = serve_more(&target);
    target.set_ana(&options.host.subsystem, Nsid(1), AnaState::Inaccessible).unwrap();
    let work = Load::new(1, Work::Check);
    let report = load(&options, &work, None, Polling::default(), |_| {}).unwrap();
    assert_eq!((report.commands, report.failed), (0, 2048));
    assert_eq!(report.failures, [(LoadFailure::Status(Status::ANA_INACCESSIBLE), 2048)]);
}

#[test]
fn discovery_of_a_listener_on_all_addresses_tells_the_one_that_was_reached() {
    let reactor = start("target", None, ReactorOptions::default(), |_| {}).unwrap();
    let control = TcpTarget::start_on(reactor.remote(), target(), TcpTargetOptions::default()).unwrap();
    let bound = control.listen(ListenerAddress::new("0.0.0.0:0".parse().unwrap())).unwrap();
    for reached in ["127.0.0.1", "127.0.0.7"] {
        let nqn = |name| Nqn::new(name).unwrap();
        let host = HostOptions::new(
            nqn("nqn.2026-01.io.basalt:volume"),
            nqn("nqn.2026-01.io.basalt:host"),
            HostId([5; 16]),
        );
        let address = (reached.parse::<std::net::IpAddr>().unwrap(), bound.port()).into();
        let options = TcpHostOptions { address, host, digests: Digests::default() };
        let found = discover(&options).unwrap();
        assert_eq!((found[0].address.as_str(), &found[0].service), (reached, &bound.port().to_string()));
    }
}

#[test]
fn a_session_reads_and_writes() {
    let (_target, options) = serve();
    assert_eq!(discover(&options).unwrap().len(), 1);
    let session = Session::connect(&options).unwrap();
    assert_eq!(session.facts().namespaces[0].block_shift, 12);
    let data: Vec<u8> = (0..32_768u32).map(|number| (number % 251).to_le_bytes()[0]).collect();
    session.write(1, 3, &data).unwrap();
    session.flush(1).unwrap();
    assert_eq!(session.read(1, 3, 8).unwrap(), data);
    session.write_zeroes(1, 3, 1).unwrap();
    session.deallocate(1, 4, 1).unwrap();
    let read = session.read(1, 3, 8).unwrap();
    assert!(read[..8192].iter().all(|byte| *byte == 0) && read[8192..] == data[8192..]);
    let refused = session.read(1, 2048, 1).unwrap_err();
    let BlockingError::Status { status, .. } = refused else { panic!("{refused}") };
    assert_eq!(status, Status::LBA_OUT_OF_RANGE.dnr());
    session.disconnect().unwrap();
}

#[test]
fn loads_fill_check_and_measure() {
    let (_target, mut options) = serve();
    options.digests = Digests { header: true, data: true };
    let mut last = None;
    let fill = Load { depth: 8, ..Load::new(1, Work::Fill) };
    let report = load(&options, &fill, None, Polling::default(), |now| last = Some(now)).unwrap();
    assert_eq!((report.commands, report.failed, report.bytes), (2048, 0, 8 << 20));
    assert_eq!(last.map(|progress| (progress.done, progress.total)), Some((2048, 2048)));
    let check = Load { bytes: 65_536, queues: 2, ..Load::new(1, Work::Check) };
    let report = load(&options, &check, None, Polling::default(), |_| {}).unwrap();
    assert_eq!((report.commands, report.corrupt, report.first_corrupt), (128, 0, None));
    let session = Session::connect(&options).unwrap();
    session.write(1, 100, &[0x55; 4096]).unwrap();
    let report = load(&options, &check, None, Polling::default(), |_| {}).unwrap();
    assert_eq!((report.corrupt, report.first_corrupt), (1, Some(100 * 4096)));
    let work = Work::Random { read_percent: 70, duration: Duration::from_millis(100) };
    let report = load(&options, &Load::new(1, work), None, Polling::default(), |_| {}).unwrap();
    assert!(report.commands > 0 && report.failed == 0);
    assert_eq!(report.latency.count(), report.commands);
}

#[test]
fn nobody_there_is_an_error() {
    let (target, options) = serve();
    drop(target);
    assert!(matches!(Session::connect(&options), Err(BlockingError::Bringup(_))));
}

#[test]
fn of_hosts_that_race_for_a_block_exactly_one_wins() {
    const ROUNDS: u64 = 200;
    let target = target();
    let wins: Vec<u64> = thread::scope(|scope| {
        let racers: Vec<_> = (0..2)
            .map(|racer| {
                let (reactor, mut options) = serve_more(&target);
                options.host.host_id = HostId([racer; 16]);
                scope.spawn(move || {
                    let wins = race(&Session::connect(&options).unwrap(), racer, ROUNDS);
                    drop(reactor);
                    wins
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(wins.iter().sum::<u64>(), ROUNDS, "{wins:?}");
}

/// Advances a number in block 0, from whatever it is, until it is `rounds`; answers how often it was this host.
fn race(session: &Session, racer: u8, rounds: u64) -> u64 {
    let mut wins = 0;
    loop {
        let old = session.read(1, 0, 1).unwrap();
        let number = u64::from_le_bytes(*old.first_chunk().unwrap());
        if number == rounds {
            return wins;
        }
        let mut new = vec![racer; old.len()];
        new[..8].copy_from_slice(&(number + 1).to_le_bytes());
        if session.compare_and_write(1, 0, &old, &new).unwrap() == Swap::Done {
            wins += 1;
        }
    }
}

#[test]
fn nothing_of_a_preempted_host_is_written_after_preempt_and_abort() {
    let (register, acquire) = (RegisterAction::Register, AcquireAction::Acquire);
    let target = target();
    let hosts = [1u8, 2].map(|number| {
        let (reactor, mut options) = serve_more(&target);
        options.host.host_id = HostId([number; 16]);
        let session = Session::connect(&options).unwrap();
        let (current, new) = (ReservationKey(0), ReservationKey(number.into()));
        let persistence = PersistenceChange::Keep;
        let fields = Register { action: register, ignore_key: false, persistence, current, new };
        session.register(1, fields).unwrap();
        (reactor, session)
    });
    let [(_first, victim), (_second, other)] = &hosts;
    let take = |session: &Session, action, own, preempted| {
        let (current, preempted) = (ReservationKey(own), ReservationKey(preempted));
        let kind = ReservationType::WriteExclusive;
        session.acquire(1, Acquire { action, ignore_key: false, kind, current, preempted })
    };
    take(victim, acquire, 1, 0).unwrap();
    let report = other.report(1, 4).unwrap();
    assert_eq!(ParsedReport::parse(&report).unwrap().registrants.len(), 2);
    thread::scope(|scope| {
        // More than a capsule carries, so that data is asked for.
        let writes = scope.spawn(|| {
            let mut number = 0u32;
            loop {
                number += 1;
                let data = number.to_le_bytes().repeat(4096);
                if let Err(error) = victim.write(1, 0, &data) {
                    return (number, error);
                }
            }
        });
        while other.read(1, 0, 1).unwrap()[0] < 3 {
            thread::yield_now();
        }
        take(other, AcquireAction::PreemptAndAbort, 2, 1).unwrap();
        let after = other.read(1, 0, 4).unwrap();
        let (number, error) = writes.join().unwrap();
        let BlockingError::Status { status, .. } = error else { panic!("{error}") };
        assert!(matches!(status.bare(), Status::ABORTED_PREEMPT | Status::RESERVATION_CONFLICT), "{status}");
        assert_eq!(other.read(1, 0, 4).unwrap(), after, "written after the preemption was answered");
        let last = u32::from_le_bytes(*after.first_chunk().unwrap());
        assert!(last == number - 1 || (last == number && status.bare() == Status::ABORTED_PREEMPT));
    });
    let release = Release {
        action: ReleaseAction::Release,
        ignore_key: false,
        kind: ReservationType::WriteExclusive.code(),
        current: ReservationKey(2),
    };
    other.release(1, release).unwrap();
    victim.write(1, 0, &[9; 4096]).unwrap();
}

#[test]
fn a_compare_and_write_that_is_refused_says_why() {
    let (_target, options) = serve();
    let session = Session::connect(&options).unwrap();
    let refused = session.compare_and_write(1, 0, &[0; 8192], &[1; 8192]).unwrap_err();
    let BlockingError::Status { status, .. } = refused else { panic!("{refused}") };
    assert_eq!(status, Status::ATOMIC_WRITE_UNIT_EXCEEDED.dnr());
}

#[test]
fn connections_go_to_the_reactor_that_has_least() {
    let target = target();
    let address = ListenerAddress::new("127.0.0.1:0".parse().unwrap());
    let (tell, told) = mpsc::channel();
    let (listened, served) = (address.clone(), Arc::clone(&target));
    let first = start("first", None, ReactorOptions::default(), move |handle| {
        let listener = TcpTarget::start(handle, served, TcpTargetOptions::default());
        let bound = listener.listen(listened).unwrap();
        tell.send((bound, listener.share(bound).unwrap(), listener.control())).unwrap();
        // As long as the reactor.
        handle.spawn(async move { (std::future::pending::<()>().await, listener).0 });
    })
    .unwrap();
    let (bound, door, control) = told.recv().unwrap();
    let second = start("second", None, ReactorOptions::default(), |_| {}).unwrap();
    let sibling = TcpTarget::start_on(second.remote(), target, TcpTargetOptions::default()).unwrap();
    sibling.accept_from(door, address.with_bound(bound)).unwrap();
    let nqn = Nqn::new("nqn.2026-01.io.basalt:volume").unwrap();
    let host = HostOptions::new(nqn, Nqn::new("nqn.2026-01.io.basalt:host").unwrap(), HostId([5; 16]));
    let options = TcpHostOptions { address: bound, host, digests: Digests::default() };
    let sessions: Vec<Session> = (0..8).map(|_| Session::connect(&options).unwrap()).collect();
    let counts = [&control, &sibling].map(|control| control.stats().unwrap().connections);
    assert_eq!(counts.iter().sum::<usize>(), 16, "an admin and an I/O queue each");
    // One that is held up for longer than it is waited for loses a few.
    assert!(counts.iter().all(|count| *count >= 5), "{counts:?}");
    for session in sessions {
        session.disconnect().unwrap();
    }
    drop((first, second));
}
