//! Reservations of two hosts, without any transport: rights, notifications, features, and a store that answers when it likes.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use basalt_bdev::{BlockSize, Operation};
use basalt_clock::Instant;
use basalt_device_mem::RamDevice;
use basalt_nvme_wire::fabrics::{CONTROLLER_ANY, Command, Connect, ConnectData};
use basalt_nvme_wire::feature::FeatureId;
use basalt_nvme_wire::identify::{self, IdentifyController, IdentifyNamespace, ONCS_RESERVATIONS};
use basalt_nvme_wire::log::{AnaState, AsyncEvent, GetLogPage, LogId};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::reservation::{
    Acquire, AcquireAction, Notice, NotificationPage, ParsedReport, PersistenceChange, Register,
    RegisterAction, Release, ReleaseAction, Report, ReservationKey, ReservationType,
};
use basalt_nvme_wire::{Fuse, NSID_ALL, ReadWrite, Sgl, Sqe, Status};
use basalt_nvmf_target::{
    AllowedHosts, ImageError, NamespaceIdentity, Nsid, Queue, Reply, ReservationState, ReservationStore,
    Saved, Step, StoreError, SubsystemConfig, SubsystemError, Target, TargetError, TargetOptions,
};
use basalt_nvmf_transport::{ControllerIdRange, Nqn, TransportLimits};
use uuid::Uuid;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

const SUBSYSTEM: &str = "nqn.2026-01.io.basalt:volume";
const LIMITS: TransportLimits =
    TransportLimits { in_capsule_bytes_max: 8192, transfer_bytes_max: 131_072, queue_entries_max: 128 };
const NOW: Instant = Instant::from_nanos(1_000_000_000);
const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();

/// Saves when it is told to.
#[derive(Debug, Default)]
struct Store {
    saved: Mutex<BTreeMap<[u8; 16], Vec<u8>>>,
    under_way: Mutex<Vec<Save>>,
}

struct Save {
    namespace: [u8; 16],
    image: Option<Vec<u8>>,
    saved: Saved,
}

impl std::fmt::Debug for Save {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Save").finish_non_exhaustive()
    }
}

impl ReservationStore for Store {
    fn load(&self, namespace: [u8; 16]) -> Result<Option<ReservationState>, StoreError> {
        let saved = self.saved.lock().unwrap();
        let image = saved.get(&namespace).map(|bytes| ReservationState::decode(namespace, bytes));
        Ok(image.transpose()?)
    }

    fn save(&self, namespace: [u8; 16], state: Option<&ReservationState>, saved: Saved) {
        let image = state.map(|state| state.encode(namespace));
        self.under_way.lock().unwrap().push(Save { namespace, image, saved });
    }
}

impl Store {
    /// The oldest save ends; whether there was one.
    fn finish(&self, result: Result<(), StoreError>) -> bool {
        let mut under_way = self.under_way.lock().unwrap();
        if under_way.is_empty() {
            return false;
        }
        let save = under_way.remove(0);
        drop(under_way);
        if result.is_ok() {
            let mut saved = self.saved.lock().unwrap();
            match save.image {
                Some(image) => drop(saved.insert(save.namespace, image)),
                None => drop(saved.remove(&save.namespace)),
            }
        }
        (save.saved)(result);
        true
    }

    fn finish_all(&self) {
        while self.finish(Ok(())) {}
    }
}

fn try_target(store: Option<Arc<Store>>) -> Result<Arc<Target>, TargetError> {
    let target = Target::new(TargetOptions::default());
    let nqn = Nqn::new(SUBSYSTEM).unwrap();
    let config = SubsystemConfig {
        nqn: nqn.clone(),
        serial: "BSLT0001".to_owned(),
        model: "Basalt volume".to_owned(),
        controller_ids: ControllerIdRange::ALL,
    };
    target.add_subsystem(config, AllowedHosts::Any)?;
    if let Some(store) = store {
        target.keep_reservations(store);
    }
    for number in [1, 2] {
        let device = RamDevice::new("ram", Uuid::nil(), BlockSize::B512, 1 << 20).unwrap();
        let identity = NamespaceIdentity { uuid: [number; 16], nguid: [number; 16] };
        target.add_namespace(&nqn, Nsid(number.into()), identity, Arc::new(device), AnaState::Optimized)?;
    }
    Ok(target)
}

fn target(store: Option<&Arc<Store>>) -> Arc<Target> {
    try_target(store.cloned()).unwrap()
}

/// A host with its admin queue and one I/O queue.
struct Host {
    admin: Queue,
    io: Queue,
    key: u64,
    next_id: u16,
}

fn connect(queue: &mut Queue, id: u16, controller: u16, host: u8) -> Reply {
    let fields = Connect { format: 0, queue_id: id, queue_size: 32, attributes: 0, keep_alive_ms: 0 };
    let sqe = Command::Connect(fields).emit(1);
    let sqe = Sqe { sgl: Sgl::InCapsule { offset: 0, length: 1024 }.emit(), ..sqe };
    let name = format!("nqn.2026-01.io.basalt:host{host}");
    let data = ConnectData::new([host; 16], controller, SUBSYSTEM, &name).unwrap();
    assert_eq!(queue.command(NOW, &sqe), Step::Take { length: 1024 });
    complete(queue.command_with_data(NOW, &sqe, data.as_bytes()))
}

fn complete(step: Step) -> Reply {
    match step {
        Step::Complete(reply) => reply,
        other => panic!("expected a completion, got {other:?}"),
    }
}

impl Host {
    fn new(target: &Arc<Target>, number: u8) -> Self {
        let mut admin = Queue::new(Arc::clone(target), LIMITS);
        let id = connect(&mut admin, 0, CONTROLLER_ANY, number).dw0;
        let enable = Command::PropertySet { wide: false, offset: 0x14, value: 0x0046_0001 }.emit(2);
        assert_eq!(complete(admin.command(NOW, &enable)), Reply::SUCCESS);
        let mut io = Queue::new(Arc::clone(target), LIMITS);
        assert_eq!(connect(&mut io, 1, u16::try_from(id).unwrap(), number).status, Status::SUCCESS);
        Self { admin, io, key: u64::from(number), next_id: 10 }
    }

    fn with_keys(&mut self, nsid: u32, opcode: Io, make: impl FnOnce(&mut Sqe) -> Vec<u8>) -> Step {
        self.next_id += 1;
        let mut sqe = Sqe::new(opcode.code(), self.next_id);
        sqe.nsid = U32::new(nsid);
        let data = make(&mut sqe);
        let length = u32::try_from(data.len()).unwrap();
        sqe.sgl = Sgl::InCapsule { offset: 0, length }.emit();
        match self.io.command(NOW, &sqe) {
            Step::Take { length: taken } => {
                assert_eq!(taken, length);
                self.io.command_with_data(NOW, &sqe, &data)
            }
            other => other,
        }
    }

    fn register_with(&mut self, action: RegisterAction, persistence: PersistenceChange, new: u64) -> Step {
        let current = ReservationKey(self.key);
        let register = Register { action, ignore_key: false, persistence, current, new: ReservationKey(new) };
        self.with_keys(1, Io::ReservationRegister, |sqe| register.emit(sqe).to_vec())
    }

    fn register(&mut self) -> Status {
        complete(self.register_with(RegisterAction::Register, PersistenceChange::Keep, self.key)).status
    }

    fn acquire_with(&mut self, action: AcquireAction, kind: ReservationType, preempted: u64) -> Step {
        let current = ReservationKey(self.key);
        let acquire =
            Acquire { action, ignore_key: false, kind, current, preempted: ReservationKey(preempted) };
        self.with_keys(1, Io::ReservationAcquire, |sqe| acquire.emit(sqe).to_vec())
    }

    fn acquire(&mut self, kind: ReservationType) -> Status {
        complete(self.acquire_with(AcquireAction::Acquire, kind, 0)).status
    }

    fn release(&mut self, action: ReleaseAction, kind: ReservationType) -> Status {
        let release =
            Release { action, ignore_key: false, kind: kind.code(), current: ReservationKey(self.key) };
        complete(self.with_keys(1, Io::ReservationRelease, |sqe| release.emit(sqe).to_vec())).status
    }

    /// How a command on namespace 1 ends, if it ends at once.
    fn io(&mut self, opcode: Io) -> Result<(), Status> {
        let mut sqe = Sqe::new(opcode.code(), 3);
        sqe.nsid = U32::new(1);
        let length = match opcode {
            Io::Read | Io::Write | Io::Compare => 512,
            Io::DatasetManagement => 16,
            _ => 0,
        };
        sqe.sgl = Sgl::Transport { length }.emit();
        if opcode != Io::DatasetManagement && opcode != Io::Flush {
            ReadWrite::new(0, 1).emit(&mut sqe);
        }
        match self.io.command(NOW, &sqe) {
            Step::Complete(reply) => Err(reply.status),
            _ => Ok(()),
        }
    }

    /// Whether it may read and write namespace 1; every command of a kind must say the same.
    fn rights(&mut self) -> (bool, bool) {
        let mut may = |opcode| match self.io(opcode) {
            Ok(()) => true,
            Err(status) => {
                assert_eq!(status, CONFLICT);
                false
            }
        };
        let reads = [Io::Read, Io::Compare].map(&mut may);
        let writes = [Io::Write, Io::WriteZeroes, Io::DatasetManagement, Io::Flush].map(&mut may);
        assert!(reads[0] == reads[1] && writes.iter().all(|write| *write == writes[0]));
        (reads[0], writes[0])
    }

    fn report(&mut self, bytes: u32) -> Vec<u8> {
        let mut sqe = Sqe::new(Io::ReservationReport.code(), 4);
        sqe.nsid = U32::new(1);
        Report { length: bytes.into(), extended: true }.emit(&mut sqe);
        sqe.sgl = Sgl::Transport { length: bytes }.emit();
        match self.io.command(NOW, &sqe) {
            Step::Give { data, .. } => data,
            other => panic!("{other:?}"),
        }
    }

    fn ask_for_events(&mut self, id: u16) {
        let sqe = Sqe::new(Admin::AsyncEventRequest.code(), id);
        assert_eq!(self.admin.command(NOW, &sqe), Step::Hold);
    }

    fn event(&mut self) -> Option<AsyncEvent> {
        self.admin.refresh();
        self.admin.next_event().and_then(|(_, reply)| AsyncEvent::parse(reply.dw0))
    }

    fn notification(&mut self) -> NotificationPage {
        let mut sqe = Sqe::new(Admin::GetLogPage.code(), 5);
        let page = LogId::ReservationNotification.code();
        GetLogPage { page, specific: 0, retain_event: false, length: 64, offset: 0, index_offset: false }
            .emit(&mut sqe);
        sqe.sgl = Sgl::Transport { length: 64 }.emit();
        let Step::Give { data, .. } = self.admin.command(NOW, &sqe) else { panic!("no page") };
        NotificationPage::read_from_bytes(&data).unwrap()
    }

    fn feature(&mut self, opcode: Admin, feature: FeatureId, nsid: u32, value: u32) -> Step {
        let mut sqe = Sqe::new(opcode.code(), 6);
        sqe.nsid = U32::new(nsid);
        sqe.cdw10 = U32::new(feature.code().into());
        sqe.cdw11 = U32::new(value);
        self.admin.command(NOW, &sqe)
    }

    fn identify<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable>(&mut self, cns: u32) -> T {
        let mut sqe = Sqe::new(Admin::Identify.code(), 7);
        sqe.nsid = U32::new(1);
        sqe.cdw10 = U32::new(cns);
        sqe.sgl = Sgl::Transport { length: 4096 }.emit();
        let Step::Give { data, .. } = self.admin.command(NOW, &sqe) else { panic!("no page") };
        T::read_from_bytes(&data).unwrap()
    }
}

#[test]
fn every_type_lets_through_who_may() {
    use ReservationType as Kind;
    let rows = [
        (Kind::WriteExclusive, (true, false), (true, false)),
        (Kind::ExclusiveAccess, (false, false), (false, false)),
        (Kind::WriteExclusiveRegistrants, (true, true), (true, false)),
        (Kind::ExclusiveAccessRegistrants, (true, true), (false, false)),
        (Kind::WriteExclusiveAll, (true, true), (true, false)),
        (Kind::ExclusiveAccessAll, (true, true), (false, false)),
    ];
    let target = target(None);
    let [mut holder, mut other, mut stranger] = [1, 2, 3].map(|number| Host::new(&target, number));
    assert_eq!((holder.register(), other.register()), (Status::SUCCESS, Status::SUCCESS));
    assert_eq!(holder.io.take_abort_orders().len(), 0);
    for (kind, registrant, nobody) in rows {
        assert_eq!(holder.acquire(kind), Status::SUCCESS);
        assert_eq!(holder.rights(), (true, true), "{kind:?}, holder");
        assert_eq!(other.rights(), registrant, "{kind:?}, registrant");
        assert_eq!(stranger.rights(), nobody, "{kind:?}, nobody");
        let first = stranger.fused(Fuse::First, Io::Compare);
        let second = stranger.fused(Fuse::Second, Io::Write);
        assert_eq!(first, nobody.0.then_some(()).ok_or(CONFLICT), "{kind:?}, first half of a pair");
        assert!(second.is_err(), "{kind:?}, second half of a pair");
        assert_eq!(stranger.acquire(kind), CONFLICT);
        let wrong = Kind::ALL[usize::from(kind.code()) % 6];
        assert_eq!(holder.release(ReleaseAction::Release, wrong), INVALID);
        assert_eq!(holder.release(ReleaseAction::Release, kind), Status::SUCCESS);
        assert_eq!(stranger.rights(), (true, true), "released");
    }
}

impl Host {
    fn fused(&mut self, fuse: Fuse, opcode: Io) -> Result<(), Status> {
        let mut sqe = Sqe::new(opcode.code(), 3);
        sqe.set_fuse(fuse);
        sqe.nsid = U32::new(1);
        sqe.sgl = Sgl::Transport { length: 512 }.emit();
        ReadWrite::new(0, 1).emit(&mut sqe);
        let step = self.io.command(NOW, &sqe);
        self.io.broken_first();
        match step {
            Step::Complete(reply) => Err(reply.status),
            _ => Ok(()),
        }
    }
}

#[test]
fn what_waited_for_its_data_is_checked_again() {
    let target = target(None);
    let [mut holder, other] = [1, 2].map(|number| Host::new(&target, number));
    let namespace = Arc::clone(&other.io.namespaces()[0]);
    let write = Operation::Write { fua: false };
    assert_eq!(other.io.may_run(&namespace, write), Ok(()));
    holder.register();
    holder.acquire(ReservationType::WriteExclusive);
    assert_eq!(other.io.may_run(&namespace, write), Err(CONFLICT));
    assert_eq!(other.io.may_run(&namespace, Operation::Read), Ok(()));
    target.set_ana(&Nqn::new(SUBSYSTEM).unwrap(), Nsid(1), AnaState::Inaccessible).unwrap();
    assert_eq!(holder.io.may_run(&namespace, write), Err(Status::ANA_INACCESSIBLE));
}

#[test]
fn capabilities_are_told_as_they_are() {
    let (volatile, kept) = (target(None), target(Some(&Arc::default())));
    for (target, rescap) in [(volatile, 0xfe), (kept, 0xff)] {
        let mut host = Host::new(&target, 1);
        let namespace: IdentifyNamespace = host.identify(0);
        assert_eq!((namespace.rescap, namespace.nmic & 1), (rescap, 1));
        assert_eq!(host.identify::<identify::IndependentNamespace>(8).rescap, rescap);
        let controller: IdentifyController = host.identify(1);
        assert_ne!(controller.oncs.get() & ONCS_RESERVATIONS, 0);
        let on = host.register_with(RegisterAction::Register, PersistenceChange::On, 1);
        assert_eq!(on == Step::Hold, rescap & 1 == 1, "{on:?}");
    }
}

#[test]
fn reports_name_registrants_by_128_bits() {
    let target = target(None);
    let [mut first, mut second] = [1, 2].map(|number| Host::new(&target, number));
    first.register();
    second.register();
    first.acquire(ReservationType::ExclusiveAccessRegistrants);
    let bytes = second.report(4096);
    let report = ParsedReport::parse(&bytes).unwrap();
    assert_eq!((report.header.generation.get(), report.header.kind, report.header.persistent), (2, 4, 0));
    let shown: Vec<_> =
        report.registrants.iter().map(|r| (r.host_id, r.key.get(), r.status, r.controller.get())).collect();
    assert_eq!(shown, [([1; 16], 1, 1, 0xffff), ([2; 16], 2, 0, 0xffff)]);
    let short = second.report(128);
    let report = ParsedReport::parse(&short).unwrap();
    assert_eq!((report.header.registrants.get(), report.registrants.len()), (2, 1));
    let mut narrow = Sqe::new(Io::ReservationReport.code(), 4);
    narrow.nsid = U32::new(1);
    narrow.cdw10 = U32::new(15);
    narrow.sgl = Sgl::Transport { length: 64 }.emit();
    let refused = complete(second.io.command(NOW, &narrow)).status;
    assert_eq!(refused, Status::HOST_ID_INCONSISTENT.dnr(), "there are no 64-bit identifiers");
    assert_eq!(second.release(ReleaseAction::Clear, ReservationType::WriteExclusive), Status::SUCCESS);
    assert_eq!(ParsedReport::parse(&first.report(64)).unwrap().header.registrants.get(), 0);
}

#[test]
fn notifications_reach_those_whom_they_concern() {
    let target = target(None);
    let [mut first, mut second] = [1, 2].map(|number| Host::new(&target, number));
    first.register();
    second.register();
    second.ask_for_events(50);
    second.ask_for_events(51);
    second.ask_for_events(52);
    assert_eq!(second.notification().count.get(), 0, "the empty page");
    first.acquire(ReservationType::WriteExclusiveRegistrants);
    first.release(ReleaseAction::Release, ReservationType::WriteExclusiveRegistrants);
    assert_eq!(second.event(), Some(AsyncEvent::ReservationLogAvailable));
    complete(first.acquire_with(AcquireAction::Preempt, ReservationType::WriteExclusive, 2));
    assert_eq!(second.event(), None, "one event until the page is read");
    let page = second.notification();
    let released = (1, Notice::ReservationReleased.code(), 1, 1);
    assert_eq!((page.count.get(), page.kind, page.available, page.nsid.get()), released);
    assert_eq!(second.event(), Some(AsyncEvent::ReservationLogAvailable), "another page waits");
    assert_eq!(second.notification().kind, Notice::RegistrationPreempted.code());
    assert_eq!((second.notification().count.get(), first.notification().count.get()), (0, 0));

    second.register();
    let mask = FeatureId::ReservationNotificationMask;
    assert_eq!(complete(second.feature(Admin::SetFeatures, mask, 1, 1)).status, INVALID);
    assert_eq!(complete(second.feature(Admin::SetFeatures, mask, NSID_ALL, 8)), Reply::SUCCESS);
    assert_eq!(complete(second.feature(Admin::GetFeatures, mask, 2, 0)), Reply::result(8));
    assert_eq!(complete(second.feature(Admin::GetFeatures, mask, NSID_ALL, 0)).status, INVALID);
    let missing = complete(second.feature(Admin::GetFeatures, mask, 9, 0)).status;
    assert_eq!(missing, Status::INVALID_NAMESPACE.dnr());
    first.release(ReleaseAction::Clear, ReservationType::WriteExclusive);
    assert_eq!((second.event(), second.notification().count.get()), (None, 0), "masked");
}

#[test]
fn changes_take_effect_once_they_are_saved() {
    let store = Arc::<Store>::default();
    let target = target(Some(&store));
    let [mut first, mut second] = [1, 2].map(|number| Host::new(&target, number));
    assert_eq!(first.register_with(RegisterAction::Register, PersistenceChange::On, 1), Step::Hold);
    let waits = first.acquire_with(AcquireAction::Acquire, ReservationType::ExclusiveAccess, 0);
    assert_eq!(waits, Step::Hold, "commands come one after the other");
    assert_eq!(first.io.next_event(), None);
    assert_eq!(second.rights(), (true, true), "nothing is saved, so nothing holds");
    assert!(store.finish(Ok(())));
    let (ended, reply) = first.io.next_event().unwrap();
    assert_eq!((ended.0, reply), (11, Reply::SUCCESS));
    assert_eq!((first.io.next_event(), second.rights()), (None, (true, true)));
    assert!(store.finish(Ok(())));
    assert_eq!(first.io.next_event().map(|(id, reply)| (id.0, reply)), Some((12, Reply::SUCCESS)));
    assert_eq!(second.rights(), (false, false));
    let unchanged = complete(first.acquire_with(AcquireAction::Acquire, ReservationType::ExclusiveAccess, 0));
    assert_eq!(unchanged, Reply::SUCCESS, "what changes nothing is not saved");

    let again = try_target(Some(Arc::clone(&store))).unwrap();
    let [mut first, mut second] = [1, 2].map(|number| Host::new(&again, number));
    assert_eq!((first.rights(), second.rights()), ((true, true), (false, false)), "after a restart");
    let persistence = FeatureId::ReservationPersistence;
    assert_eq!(complete(first.feature(Admin::GetFeatures, persistence, 1, 0)), Reply::result(1));
    assert_eq!(first.feature(Admin::SetFeatures, persistence, NSID_ALL, 0), Step::Hold);
    assert_eq!(first.admin.next_event(), None);
    store.finish_all();
    assert_eq!(first.admin.next_event().map(|(id, reply)| (id.0, reply)), Some((6, Reply::SUCCESS)));
    assert!(store.saved.lock().unwrap().is_empty(), "forgotten");
    assert_eq!(second.rights(), (false, false), "until the process ends");
    let last = try_target(Some(store)).unwrap();
    assert_eq!(Host::new(&last, 2).rights(), (true, true));
}

#[test]
fn a_failed_save_changes_nothing_and_a_damaged_one_is_not_served() {
    let store = Arc::<Store>::default();
    let target = target(Some(&store));
    let mut host = Host::new(&target, 1);
    assert_eq!(host.register_with(RegisterAction::Register, PersistenceChange::On, 1), Step::Hold);
    for _ in 0..64 {
        assert_eq!(host.acquire_with(AcquireAction::Acquire, ReservationType::WriteExclusive, 0), Step::Hold);
    }
    let beyond = complete(host.acquire_with(AcquireAction::Acquire, ReservationType::WriteExclusive, 0));
    assert_eq!(beyond.status, Status::COMMAND_INTERRUPTED);
    assert!(store.finish(Err(StoreError::Stopped)));
    let (_, failed) = host.io.next_event().unwrap();
    assert_eq!(failed.status, Status::INTERNAL_ERROR);
    for _ in 0..64 {
        assert_eq!(host.io.next_event().unwrap().1.status, CONFLICT, "it is not registered");
    }
    assert_eq!(host.io.next_event(), None);
    assert_eq!(host.register_with(RegisterAction::Register, PersistenceChange::On, 1), Step::Hold);
    store.finish_all();
    store.saved.lock().unwrap().get_mut(&[1; 16]).unwrap()[40] ^= 1;
    let Err(TargetError::Subsystem { source, .. }) = try_target(Some(store)) else { panic!("it is served") };
    let damaged = StoreError::Image(ImageError::Damaged);
    assert_eq!(source, SubsystemError::Reservation { nsid: Nsid(1), source: damaged });
}

#[test]
fn preempt_and_abort_ends_when_every_queue_of_the_preempted_host_has_obeyed() {
    let target = target(None);
    let [mut first, mut second] = [1, 2].map(|number| Host::new(&target, number));
    first.register();
    second.register();
    second.acquire(ReservationType::WriteExclusive);
    let version = target.version();
    let preempt = first.acquire_with(AcquireAction::PreemptAndAbort, ReservationType::ExclusiveAccess, 2);
    assert_eq!(preempt, Step::Hold);
    assert!(target.version() > version, "queues are told to look");
    assert_eq!(second.rights(), (false, false));
    let orders = second.io.take_abort_orders();
    let namespaces = second.io.namespaces();
    let meant: Vec<_> =
        namespaces.iter().map(|namespace| orders[0].concerns(Some(namespace.as_ref()))).collect();
    assert_eq!((orders.len(), meant), (1, vec![true, false]));
    assert_eq!(first.io.next_event(), None);
    let version = target.version();
    drop(orders);
    assert!(target.version() > version);
    assert_eq!(first.io.next_event().map(|(_, reply)| reply), Some(Reply::SUCCESS));

    second.register();
    let again = first.acquire_with(AcquireAction::PreemptAndAbort, ReservationType::ExclusiveAccess, 2);
    assert_eq!((again, first.io.next_event()), (Step::Hold, None));
    drop(second);
    assert_eq!(first.io.next_event().map(|(_, reply)| reply), Some(Reply::SUCCESS), "its queue is gone");
}
