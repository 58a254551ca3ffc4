//! Sessions of hosts with the target core, without any transport.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{BlockCount, BlockDevice, BlockSize, IoError, Lba, Operation};
use basalt_clock::Instant;
use basalt_device_mem::{PlainDevice, RamDevice};
use basalt_nvme_wire::fabrics::{self, CONTROLLER_ANY, Command, Connect, ConnectData, DISCOVERY_NQN};
use basalt_nvme_wire::feature::{FeatureId, event};
use basalt_nvme_wire::identify::{
    IdentifyController, IdentifyNamespace, NamespaceId, ONCS_COMPARE, ONCS_WRITE_ZEROES,
};
use basalt_nvme_wire::log::{AnaState, AsyncEvent, GetLogPage, LogId};
use basalt_nvme_wire::opcode::{Admin, Fabrics, Io};
use basalt_nvme_wire::{Fuse, ReadWrite, Sgl, Sqe, Status, dsm, identify};
use basalt_nvmf_target::{
    Activity, AllowedHosts, ListenerAddress, NamespaceIdentity, NamespaceSlot, Nsid, Queue, Reply, Step,
    SubsystemConfig, Target, TargetOptions, status_of,
};
use basalt_nvmf_transport::{CommandId, ControllerIdRange, Nqn, TransportLimits};
use uuid::Uuid;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

const SUBSYSTEM: &str = "nqn.2026-01.io.basalt:volume";
const HOST: &str = "nqn.2026-01.io.basalt:host";
const LIMITS: TransportLimits =
    TransportLimits { in_capsule_bytes_max: 8192, transfer_bytes_max: 131_072, queue_entries_max: 128 };
const NOW: Instant = Instant::from_nanos(1_000_000_000);
const IDENTITY: NamespaceIdentity = NamespaceIdentity { uuid: [7; 16], nguid: [9; 16] };

fn nqn(text: &str) -> Nqn {
    Nqn::new(text).unwrap()
}

fn ram(bytes: u64) -> Arc<dyn BlockDevice> {
    Arc::new(RamDevice::new("ram", Uuid::nil(), BlockSize::B512, bytes).unwrap())
}

fn target() -> Arc<Target> {
    let target = Target::new(TargetOptions::default());
    let config = SubsystemConfig {
        nqn: nqn(SUBSYSTEM),
        serial: "BSLT0001".to_owned(),
        model: "Basalt volume".to_owned(),
        controller_ids: ControllerIdRange::new(10, 20).unwrap(),
    };
    target.add_subsystem(config, [nqn(HOST)].into_iter().collect()).unwrap();
    target.add_namespace(&nqn(SUBSYSTEM), Nsid(1), IDENTITY, ram(1 << 20), AnaState::Optimized).unwrap();
    target
}

fn connect(
    queue: &mut Queue,
    id: u16,
    controller: u16,
    subsystem: &str,
    host: &str,
    keep_alive_ms: u32,
) -> Reply {
    let fields = Connect { format: 0, queue_id: id, queue_size: 32, attributes: 0, keep_alive_ms };
    let mut sqe = Command::Connect(fields).emit(1);
    sqe.sgl = Sgl::InCapsule { offset: 0, length: 1024 }.emit();
    let mut data = ConnectData::new([3; 16], controller, subsystem, HOST).unwrap();
    data.host_nqn.fill(0);
    data.host_nqn[..host.len()].copy_from_slice(host.as_bytes());
    assert_eq!(queue.command(NOW, &sqe), Step::Take { length: 1024 });
    complete(queue.command_with_data(NOW, &sqe, data.as_bytes()))
}

fn complete(step: Step) -> Reply {
    match step {
        Step::Complete(reply) => reply,
        other => panic!("expected a completion, got {other:?}"),
    }
}

fn give(step: Step) -> Vec<u8> {
    match step {
        Step::Give { data, reply } => {
            assert_eq!(reply.status, Status::SUCCESS);
            data
        }
        other => panic!("expected data, got {other:?}"),
    }
}

fn configure(queue: &mut Queue, value: u64) {
    let set = Command::PropertySet { wide: false, offset: 0x14, value }.emit(2);
    assert_eq!(complete(queue.command(NOW, &set)), Reply::SUCCESS);
}

fn status_register(queue: &mut Queue) -> u32 {
    complete(queue.command(NOW, &Command::PropertyGet { wide: false, offset: 0x1c }.emit(3))).dw0
}

/// An enabled admin queue.
fn admin(target: &Arc<Target>) -> Queue {
    let mut queue = Queue::new(Arc::clone(target), LIMITS);
    let reply = connect(&mut queue, 0, CONTROLLER_ANY, SUBSYSTEM, HOST, 5000);
    assert_eq!(reply, Reply::result(10));
    configure(&mut queue, 0x0046_0001);
    assert_eq!(status_register(&mut queue), 1);
    queue
}

fn io(target: &Arc<Target>) -> Queue {
    let mut queue = Queue::new(Arc::clone(target), LIMITS);
    assert_eq!(connect(&mut queue, 1, 10, SUBSYSTEM, HOST, 0), Reply::result(10));
    queue
}

fn command(opcode: u8, nsid: u32, length: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode, 5);
    sqe.nsid = U32::new(nsid);
    sqe.sgl = Sgl::Transport { length }.emit();
    sqe
}

fn identify_page(queue: &mut Queue, cns: u32, nsid: u32) -> Step {
    let mut sqe = command(Admin::Identify.code(), nsid, 4096);
    sqe.cdw10 = U32::new(cns);
    queue.command(NOW, &sqe)
}

fn log(queue: &mut Queue, page: LogId, offset: u64, length: u64) -> Step {
    let mut sqe = command(Admin::GetLogPage.code(), 0, u32::try_from(length).unwrap());
    GetLogPage { page: page.code(), specific: 0, retain_event: false, length, offset, index_offset: false }
        .emit(&mut sqe);
    queue.command(NOW, &sqe)
}

fn set_feature(queue: &mut Queue, feature: FeatureId, value: u32) -> Step {
    let mut sqe = command(Admin::SetFeatures.code(), 0, 0);
    sqe.cdw10 = U32::new(u32::from(feature.code()));
    sqe.cdw11 = U32::new(value);
    queue.command(NOW, &sqe)
}

#[test]
fn a_controller_is_enabled_identified_and_shut_down() {
    let target = target();
    let mut queue = admin(&target);
    let caps = complete(queue.command(NOW, &Command::PropertyGet { wide: true, offset: 0 }.emit(1)));
    assert_eq!((caps.dw0 & 0xffff, caps.dw1 >> 5 & 1), (127, 1));
    let page = give(identify_page(&mut queue, 1, 0));
    let page: &IdentifyController = identify::parse(&page).unwrap();
    assert_eq!(fabrics::parse_nqn(&page.subnqn), Some(SUBSYSTEM));
    assert_eq!((page.cntlid.get(), page.cntrltype, page.mdts, page.cmic), (10, 1, 5, 0b1010));
    assert!(page.ioccsz.get() == 4 + 512 && page.iorcsz.get() == 1 && page.icdoff.get() == 0);
    assert!(page.sgls.get() & 3 != 0 && page.kas.get() > 0 && page.mnan.get() <= page.nn.get());
    configure(&mut queue, 0x0046_4001);
    assert_eq!(status_register(&mut queue) >> 2 & 3, 2);
    configure(&mut queue, 0);
    assert_eq!(status_register(&mut queue), 0);
}

#[test]
fn namespaces_are_identified_by_every_page_that_linux_asks_for() {
    let target = target();
    let mut queue = admin(&target);
    let page = give(identify_page(&mut queue, 0, 1));
    let page: &IdentifyNamespace = identify::parse(&page).unwrap();
    assert_eq!((page.nsze.get(), page.block_shift(), page.nmic, page.anagrpid.get()), (2048, 9, 1, 1));
    assert_eq!(page.nguid, [9; 16]);
    let ids = give(identify_page(&mut queue, 3, 1));
    let expected = [NamespaceId::Uuid([7; 16]), NamespaceId::Nguid([9; 16]), NamespaceId::CommandSet(0)];
    assert_eq!(NamespaceId::list(&ids).collect::<Vec<_>>(), expected);
    assert_eq!(give(identify_page(&mut queue, 2, 0))[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(give(identify_page(&mut queue, 2, 1))[..4], [0; 4]);
    assert_eq!(give(identify_page(&mut queue, 8, 1))[14], 1);
    assert_eq!(give(identify_page(&mut queue, 6, 0)), vec![0; 4096]);
    assert_eq!(give(identify_page(&mut queue, 0, 5)), vec![0; 4096], "inactive namespaces are all zero");
    assert_eq!(complete(identify_page(&mut queue, 0, 0)).status, Status::INVALID_NAMESPACE.dnr());
    assert_eq!(complete(identify_page(&mut queue, 0x30, 0)).status, Status::INVALID_FIELD.dnr());
    let mut short = command(Admin::Identify.code(), 0, 4092);
    short.cdw10 = U32::new(1);
    assert_eq!(complete(queue.command(NOW, &short)).status, Status::SGL_LENGTH_INVALID.dnr());
}

#[test]
fn a_host_without_a_name_goes_by_its_identifier() {
    let target = target();
    let mut queue = Queue::new(Arc::clone(&target), LIMITS);
    let refused = connect(&mut queue, 0, CONTROLLER_ANY, SUBSYSTEM, "", 0);
    assert_eq!(refused.status, Status::CONNECT_INVALID_HOST.dnr());
    let name = "nqn.2014-08.org.nvmexpress:uuid:03030303-0303-0303-0303-030303030303";
    target.set_allowed_hosts(&nqn(SUBSYSTEM), [nqn(name)].into_iter().collect()).unwrap();
    assert_eq!(connect(&mut queue, 0, CONTROLLER_ANY, SUBSYSTEM, "", 0), Reply::result(10));
}

#[test]
fn a_host_is_checked_before_any_command() {
    let target = target();
    let mut queue = Queue::new(Arc::clone(&target), LIMITS);
    let early = queue.command(NOW, &command(Admin::Identify.code(), 0, 4096));
    assert_eq!(complete(early).status, Status::COMMAND_SEQUENCE_ERROR.dnr());
    let refused = connect(&mut queue, 0, CONTROLLER_ANY, SUBSYSTEM, "nqn.2026-01.io.basalt:stranger", 0);
    assert_eq!(refused.status, Status::CONNECT_INVALID_HOST.dnr());
    let unknown = connect(&mut queue, 0, CONTROLLER_ANY, "nqn.2026-01.io.basalt:none", HOST, 0);
    assert_eq!((unknown.status, unknown.dw0), (Status::CONNECT_INVALID_PARAMETERS, 1 << 16 | 256));
    assert_eq!(connect(&mut queue, 0, 10, SUBSYSTEM, HOST, 0).dw0, 1 << 16 | 16, "no static controllers");
    assert!(!queue.is_connected());
    target.set_allowed_hosts(&nqn(SUBSYSTEM), AllowedHosts::default()).unwrap();
    let refused = connect(&mut queue, 0, CONTROLLER_ANY, SUBSYSTEM, HOST, 0);
    assert_eq!(refused.status, Status::CONNECT_INVALID_HOST.dnr(), "an empty list is nobody");
}

#[test]
fn io_queues_join_only_their_own_ready_controller() {
    let target = target();
    let mut early = Queue::new(Arc::clone(&target), LIMITS);
    assert_eq!(connect(&mut early, 1, 10, SUBSYSTEM, HOST, 0).dw0, 1 << 16 | 16, "there is no controller");
    let mut admin = admin(&target);
    let granted = complete(set_feature(&mut admin, FeatureId::NumberOfQueues, 0x0003_0001));
    assert_eq!(granted, Reply::result(0x0001_0001));
    assert_eq!(connect(&mut early, 3, 10, SUBSYSTEM, HOST, 0).dw0, 42, "queue identifier above the grant");
    let first = io(&target);
    let twice = connect(&mut early, 1, 10, SUBSYSTEM, HOST, 0);
    assert_eq!(twice.status, Status::COMMAND_SEQUENCE_ERROR.dnr());
    drop(first);
    let mut again = io(&target);
    let late = complete(set_feature(&mut admin, FeatureId::NumberOfQueues, 0x0003_0001));
    assert_eq!(late.status, Status::COMMAND_SEQUENCE_ERROR.dnr());
    configure(&mut admin, 0);
    assert_eq!(again.refresh(), Activity::Over, "a reset ends I/O queues");
    assert_eq!(connect(&mut early, 1, 10, SUBSYSTEM, HOST, 0).status, Status::CONNECT_INVALID_PARAMETERS);
    drop(again);
    configure(&mut admin, 0x0046_0001);
    assert_eq!(status_register(&mut admin), 1);
    let reply = connect(&mut early, 3, 10, SUBSYSTEM, HOST, 0);
    assert_eq!(reply, Reply::result(10), "the grant ended with the reset");
    drop((early, admin));
    assert_eq!(target.subsystem(SUBSYSTEM).unwrap().controllers(), 0);
}

#[test]
fn a_reset_or_shutdown_is_told_when_every_io_queue_has_obeyed() {
    let read = command(Io::Read.code(), 1, 512);
    for (value, ending, ended) in [(0x0046_0000, 1, 0), (0x0046_4001, 1 << 2, 2 << 2)] {
        let target = target();
        let mut admin = admin(&target);
        let mut io = io(&target);
        let version = target.version();
        configure(&mut admin, value);
        assert!(target.version() > version, "queues are told to look");
        assert_eq!(complete(io.command(NOW, &read)).status, Status::ABORTED_SQ_DELETION.dnr());
        let namespace = Arc::clone(&target.subsystem(SUBSYSTEM).unwrap().namespaces()[0]);
        let write = Operation::Write { fua: false };
        assert_eq!(io.may_run(&namespace, write), Err(Status::ABORTED_SQ_DELETION.dnr()));
        assert_eq!(status_register(&mut admin), ending);
        let orders = io.take_abort_orders();
        assert!(orders.len() == 1 && orders[0].concerns(None) && orders[0].concerns(Some(&namespace)));
        assert_eq!(status_register(&mut admin), ending, "a device may still have what came before");
        drop(orders);
        assert_eq!(status_register(&mut admin), ended);
    }
}

/// Another admin queue of the host, which is being enabled.
fn another_admin(target: &Arc<Target>, id: u16) -> Queue {
    let mut queue = Queue::new(Arc::clone(target), LIMITS);
    let reply = connect(&mut queue, 0, CONTROLLER_ANY, SUBSYSTEM, HOST, 0);
    assert_eq!(reply, Reply::result(id.into()));
    configure(&mut queue, 0x0046_0001);
    queue
}

/// The transport says whether the host of an admin queue has left, if it is asked.
fn answer(queue: &mut Queue, has_left: bool) {
    let orders = queue.take_abort_orders();
    assert!(orders.len() == 1 && orders[0].asks_for_host() && !orders[0].concerns(None));
    if has_left {
        queue.host_has_left(&orders[0]);
    }
}

#[test]
fn a_host_that_comes_again_is_ready_once_what_it_left_behind_has_ended() {
    for is_noticed in [true, false] {
        let target = target();
        let mut left = admin(&target);
        let mut io = io(&target);
        // Another path of a host that is still there: nobody waits for anybody.
        let mut second = another_admin(&target, 11);
        assert_eq!(status_register(&mut second), 0, "the first may have left");
        answer(&mut left, false);
        assert_eq!(status_register(&mut second), 1);
        assert!(io.take_abort_orders().is_empty());
        // The first one's connections end, which its reactor has read or not; a device still has what came over them.
        let mut unnoticed = None;
        if is_noticed {
            drop(left);
        } else {
            unnoticed = Some(left);
        }
        let mut again = another_admin(&target, 12);
        assert_eq!(status_register(&mut again), 0);
        let mut early = Queue::new(Arc::clone(&target), LIMITS);
        let refused = connect(&mut early, 1, 12, SUBSYSTEM, HOST, 0);
        assert_eq!(refused.status, Status::CONNECT_INVALID_PARAMETERS, "the host may try again");
        answer(&mut second, false);
        if let Some(left) = &mut unnoticed {
            answer(left, true);
            let read = command(Io::Read.code(), 1, 512);
            assert_eq!(complete(io.command(NOW, &read)).status, Status::ABORTED_SQ_DELETION.dnr());
        }
        assert_eq!(status_register(&mut again), 0);
        let orders = io.take_abort_orders();
        assert!(!orders.is_empty() && orders.iter().all(|order| order.concerns(None)));
        assert_eq!(status_register(&mut again), 0, "a device may still have what came before");
        drop(orders);
        // What has left by itself is ordered to end only when all have been asked.
        assert_eq!(status_register(&mut again), u32::from(is_noticed));
        drop(io.take_abort_orders());
        assert_eq!(status_register(&mut again), 1);
        assert_eq!(connect(&mut early, 1, 12, SUBSYSTEM, HOST, 0), Reply::result(12));
        assert!(early.take_abort_orders().is_empty());
        assert_eq!(status_register(&mut second), 1);
        // A reset of a controller is its own affair.
        configure(&mut second, 0x0046_0000);
        assert_eq!(status_register(&mut second), 0);
    }
}

#[test]
fn a_disconnect_is_answered_when_nothing_is_under_way_and_its_identifier_is_taken_until_then() {
    let target = target();
    let _admin = admin(&target);
    let mut leaving = io(&target);
    assert_eq!(leaving.command(NOW, &Command::Disconnect { format: 0 }.emit(5)), Step::Hold);
    let orders = leaving.take_abort_orders();
    let mut again = Queue::new(Arc::clone(&target), LIMITS);
    let taken = connect(&mut again, 1, 10, SUBSYSTEM, HOST, 0);
    assert_eq!((taken.status, leaving.next_event()), (Status::COMMAND_SEQUENCE_ERROR.dnr(), None));
    drop(orders);
    assert_eq!(leaving.next_event(), Some((CommandId(5), Reply::SUCCESS)));
    assert_eq!(leaving.refresh(), Activity::Over);
    assert_eq!(connect(&mut again, 1, 10, SUBSYSTEM, HOST, 0).status, Status::SUCCESS);
}

#[test]
fn a_reset_ends_event_requests() {
    let target = target();
    let mut admin = admin(&target);
    for id in 1..=4 {
        let request = Sqe::new(Admin::AsyncEventRequest.code(), id);
        assert_eq!(admin.command(NOW, &request), Step::Hold);
    }
    configure(&mut admin, 0);
    let ended: Vec<_> = std::iter::from_fn(|| admin.next_event()).collect();
    assert_eq!(ended.len(), 4);
    assert!(ended.iter().all(|(_, reply)| reply.status == Status::ABORT_REQUESTED));
}

#[test]
fn io_commands_become_block_commands_or_name_what_is_wrong() {
    let target = target();
    let _admin = admin(&target);
    let mut queue = io(&target);
    let mut run = |opcode: Io, nsid: u32, fields: ReadWrite, length: u32| {
        let mut sqe = command(opcode.code(), nsid, length);
        fields.emit(&mut sqe);
        queue.command(NOW, &sqe)
    };
    let Step::Block(read) = run(Io::Read, 1, ReadWrite::new(8, 8), 4096) else { panic!() };
    assert_eq!(
        (read.slot, read.operation, read.lba, read.bytes),
        (NamespaceSlot(0), Operation::Read, Lba(8), 4096)
    );
    let durable = ReadWrite { fua: true, ..ReadWrite::new(0, 1) };
    let Step::Block(write) = run(Io::Write, 1, durable, 512) else { panic!() };
    assert_eq!(write.operation, Operation::Write { fua: true });
    let Step::Block(zeroes) = run(Io::WriteZeroes, 1, ReadWrite::new(0, 2048), 0) else { panic!() };
    assert_eq!((zeroes.bytes, zeroes.blocks.0), (0, 2048));
    let mut status = |opcode, nsid, fields, length| complete(run(opcode, nsid, fields, length)).status;
    assert_eq!(status(Io::Read, 2, ReadWrite::new(0, 1), 512), Status::INVALID_NAMESPACE.dnr());
    assert_eq!(status(Io::Read, 1, ReadWrite::new(2048, 1), 512), Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(status(Io::Read, 1, ReadWrite::new(u64::MAX, 2), 1024), Status::LBA_OUT_OF_RANGE.dnr());
    assert_eq!(status(Io::Read, 1, ReadWrite::new(0, 1), 511), Status::SGL_LENGTH_INVALID.dnr());
    assert_eq!(status(Io::Read, 1, ReadWrite::new(0, 257), 257 * 512), Status::INVALID_FIELD.dnr());
    assert_eq!(status(Io::Verify, 1, ReadWrite::new(0, 1), 0), Status::INVALID_OPCODE.dnr());
    let protected = ReadWrite { protection: 8, ..ReadWrite::new(0, 1) };
    assert_eq!(status(Io::Read, 1, protected, 512), Status::INVALID_FIELD.dnr());
    let fused = Sqe { flags: 0x41, ..command(Io::Flush.code(), 1, 0) };
    assert_eq!(complete(queue.command(NOW, &fused)).status, Status::INVALID_FIELD.dnr());
}

#[test]
fn what_is_optional_is_told_only_while_every_namespace_can() {
    let target = target();
    let mut queue = admin(&target);
    let fuses = |queue: &mut Queue| {
        let page = give(identify_page(queue, 1, 0));
        let page: &IdentifyController = identify::parse(&page).unwrap();
        (page.fuses.get(), page.acwu.get(), page.awupf.get())
    };
    let optional = |queue: &mut Queue| {
        let page = give(identify_page(queue, 1, 0));
        let oncs = identify::parse::<IdentifyController>(&page).unwrap().oncs.get();
        let effects = give(log(queue, LogId::CommandEffects, 0, 4096));
        let supported = |opcode: Io| effects[1024 + usize::from(opcode.code()) * 4] & 1 == 1;
        assert_eq!(supported(Io::Compare), oncs & ONCS_COMPARE != 0, "the log says the same");
        assert_eq!(supported(Io::WriteZeroes), oncs & ONCS_WRITE_ZEROES != 0, "the log says the same");
        (oncs & ONCS_COMPARE != 0, oncs & ONCS_WRITE_ZEROES != 0)
    };
    assert_eq!(fuses(&mut queue), (1, 0, 0));
    assert_eq!(optional(&mut queue), (true, true));
    let plain = Arc::new(PlainDevice::new(ram(1 << 20)));
    target.add_namespace(&nqn(SUBSYSTEM), Nsid(2), IDENTITY, plain, AnaState::Optimized).unwrap();
    assert_eq!((fuses(&mut queue), optional(&mut queue)), ((0, 0, 0), (false, false)));
    target.remove_namespace(&nqn(SUBSYSTEM), Nsid(2)).unwrap();
    target.remove_namespace(&nqn(SUBSYSTEM), Nsid(1)).unwrap();
    assert_eq!(fuses(&mut queue), (0, 0, 0));
}

#[test]
fn a_first_half_that_waits_ends_with_its_queue_and_fabrics_and_admin_commands_are_never_fused() {
    let target = target();
    let mut admin = admin(&target);
    let fused = Sqe { flags: 0x41, ..command(Admin::KeepAlive.code(), 0, 0) };
    assert_eq!(complete(admin.command(NOW, &fused)).status, Status::INVALID_FIELD.dnr());
    let mut queue = io(&target);
    let mut first = command(Io::Compare.code(), 1, 512);
    first.set_fuse(Fuse::First);
    assert!(matches!(queue.command(NOW, &first), Step::FuseFirst(_)));
    assert_eq!(queue.broken_first(), None);
    let mut disconnect = Command::Disconnect { format: 0 }.emit(9);
    disconnect.set_fuse(Fuse::Second);
    assert_eq!(complete(queue.command(NOW, &disconnect)).status, Status::INVALID_FIELD.dnr());
    assert_eq!(queue.broken_first(), Some(Reply::status(Status::ABORTED_MISSING_FUSED.dnr())));
    assert!(matches!(queue.command(NOW, &first), Step::FuseFirst(_)));
    assert_eq!(queue.command(NOW, &Command::Disconnect { format: 0 }.emit(9)), Step::Hold);
    assert_eq!(queue.broken_first(), Some(Reply::status(Status::ABORTED_MISSING_FUSED.dnr())));
}

#[test]
fn dataset_management_takes_its_ranges_first() {
    let target = target();
    let _admin = admin(&target);
    let mut queue = io(&target);
    let mut sqe = command(Io::DatasetManagement.code(), 1, 4096);
    sqe.cdw10 = U32::new(1);
    sqe.cdw11 = U32::new(dsm::ATTRIBUTE_DEALLOCATE);
    assert_eq!(queue.command(NOW, &sqe), Step::Take { length: 4096 }, "as Linux sends it");
    let mut ranges = [dsm::Range::new(0, 8), dsm::Range::new(16, 0)];
    let Step::Unmap(unmap) = queue.command_with_data(NOW, &sqe, ranges.as_bytes()) else { panic!() };
    assert_eq!(unmap.request(ranges.as_bytes(), 0).map(|(lba, blocks)| (lba.0, blocks.0)), Some((0, 8)));
    assert_eq!(unmap.request(ranges.as_bytes(), 1), None);
    ranges[1] = dsm::Range::new(2047, 2);
    let refused = complete(queue.command_with_data(NOW, &sqe, ranges.as_bytes()));
    assert_eq!(refused.status, Status::LBA_OUT_OF_RANGE.dnr());
}

#[test]
fn every_unknown_command_is_answered() {
    let target = target();
    let mut admin = admin(&target);
    let mut queue = io(&target);
    for opcode in 0..=u8::MAX {
        if Admin::from_code(opcode).is_none() {
            let reply = complete(admin.command(NOW, &command(opcode, 0, 0)));
            assert_eq!(reply.status, Status::INVALID_OPCODE.dnr());
        }
        if Io::from_code(opcode).is_none() && opcode != Admin::Fabrics.code() {
            let reply = complete(queue.command(NOW, &command(opcode, 1, 0)));
            assert_eq!(reply.status, Status::INVALID_OPCODE.dnr());
        }
    }
    for page in 0..=u8::MAX {
        let mut sqe = command(Admin::GetLogPage.code(), 0, 64);
        let fields =
            GetLogPage { page, specific: 0, retain_event: true, length: 64, offset: 0, index_offset: false };
        fields.emit(&mut sqe);
        if let Step::Complete(reply) = admin.command(NOW, &sqe) {
            assert_eq!(reply.status, Status::INVALID_LOG_PAGE.dnr());
        }
    }
    for feature in 0..=u8::MAX {
        let mut sqe = command(Admin::GetFeatures.code(), 0, 0);
        sqe.cdw10 = U32::new(u32::from(feature));
        assert!(matches!(admin.command(NOW, &sqe), Step::Complete(_)));
        sqe.opcode = Admin::SetFeatures.code();
        sqe.sgl = Sgl::Transport { length: 512 }.emit();
        match admin.command(NOW, &sqe) {
            Step::Take { length } => assert_eq!((feature, length), (FeatureId::HostBehavior.code(), 512)),
            step => {
                let status = complete(step).status;
                assert!(status.do_not_retry() || status.is_success(), "feature {feature:#x}: {status}");
            }
        }
    }
    for cns in 0..=0xff {
        match identify_page(&mut admin, cns, 1) {
            Step::Give { data, .. } => assert_eq!(data.len(), 4096),
            step => assert_eq!(complete(step).status, Status::INVALID_FIELD.dnr(), "CNS {cns:#x}"),
        }
    }
    for kind in 0..=u8::MAX {
        for queue in [&mut admin, &mut queue] {
            // A disconnection would end the queue.
            if kind != Fabrics::Disconnect.code() {
                assert!(matches!(queue.command(NOW, &Command::Other(kind).emit(9)), Step::Complete(_)));
            }
        }
    }
    for offset in (0..0x1000).step_by(4) {
        for wide in [false, true] {
            let reply = complete(admin.command(NOW, &Command::PropertyGet { wide, offset }.emit(9)));
            assert!(reply.status.is_success() || reply.status == Status::INVALID_FIELD.dnr());
        }
    }
}

#[test]
fn silence_beyond_the_keep_alive_timeout_ends_the_controller() {
    let target = target();
    let mut admin = admin(&target);
    let mut queue = io(&target);
    let after = |ms| NOW + Duration::from_millis(ms);
    assert_eq!(admin.tick(after(5000)), Activity::Unchanged);
    assert_eq!(complete(admin.command(after(5000), &command(Admin::KeepAlive.code(), 0, 0))), Reply::SUCCESS);
    queue.command(after(9000), &command(Io::Flush.code(), 1, 0));
    assert_eq!(admin.tick(after(10_500)), Activity::Unchanged, "I/O is a sign of life");
    assert_eq!(admin.tick(after(15_501)), Activity::Over);
    drop(admin);
    assert_eq!(queue.tick(after(15_501)), Activity::Over);
}

#[test]
fn changes_are_reported_once_until_their_log_is_read() {
    let target = target();
    let mut queue = admin(&target);
    set_feature(&mut queue, FeatureId::AsyncEventConfig, event::NAMESPACE_ATTRIBUTE | event::ANA_CHANGE);
    for _ in 0..4 {
        assert_eq!(queue.command(NOW, &command(Admin::AsyncEventRequest.code(), 0, 0)), Step::Hold);
    }
    let fifth = complete(queue.command(NOW, &command(Admin::AsyncEventRequest.code(), 0, 0)));
    assert_eq!(fifth.status, Status::AER_LIMIT_EXCEEDED.dnr());
    let version = target.version();
    target.add_namespace(&nqn(SUBSYSTEM), Nsid(4), IDENTITY, ram(8192), AnaState::NonOptimized).unwrap();
    assert!(target.version() > version);
    queue.refresh();
    let events: Vec<u32> = std::iter::from_fn(|| queue.next_event()).map(|(_, reply)| reply.dw0).collect();
    assert_eq!(events, [AsyncEvent::NamespaceAttributeChanged.emit()], "its ANA group comes with it");
    assert_eq!(give(log(&mut queue, LogId::ChangedNamespaces, 0, 4096))[..8], [4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(give(log(&mut queue, LogId::ChangedNamespaces, 0, 4096))[..4], [0; 4], "reading clears it");
    target.set_ana(&nqn(SUBSYSTEM), Nsid(4), AnaState::Change).unwrap();
    queue.refresh();
    assert_eq!(queue.next_event().map(|(_, reply)| reply.dw0), Some(AsyncEvent::AnaChange.emit()));
    target.set_ana(&nqn(SUBSYSTEM), Nsid(4), AnaState::Inaccessible).unwrap();
    queue.refresh();
    assert_eq!(queue.next_event(), None, "the ANA log was not read yet");
    let ana = give(log(&mut queue, LogId::Ana, 0, 16 + 2 * 36));
    assert_eq!((ana[0], ana[8]), (4, 2), "one change for each of the three, from one on");
    assert_eq!((ana[16], ana[16 + 16], ana[52], ana[52 + 16], ana[52 + 32]), (1, 1, 4, 3, 4));
    target.set_ana(&nqn(SUBSYSTEM), Nsid(4), AnaState::Optimized).unwrap();
    queue.refresh();
    assert_eq!(queue.next_event().map(|(_, reply)| reply.dw0), Some(AsyncEvent::AnaChange.emit()));
}

#[test]
fn a_namespace_that_grows_or_goes_is_reported() {
    let target = target();
    let plain = Arc::new(PlainDevice::new(ram(8192)));
    let grows = Arc::clone(&plain);
    target.add_namespace(&nqn(SUBSYSTEM), Nsid(9), IDENTITY, grows, AnaState::Optimized).unwrap();
    let mut queue = admin(&target);
    set_feature(&mut queue, FeatureId::AsyncEventConfig, event::NAMESPACE_ATTRIBUTE);
    queue.command(NOW, &command(Admin::AsyncEventRequest.code(), 0, 0));
    queue.command(NOW, &command(Admin::AsyncEventRequest.code(), 0, 0));
    plain.info().set_blocks(BlockCount(32));
    target.note_resize();
    queue.refresh();
    let event = AsyncEvent::NamespaceAttributeChanged.emit();
    assert_eq!(queue.next_event().map(|(_, reply)| reply.dw0), Some(event));
    let page = give(identify_page(&mut queue, 0, 9));
    assert_eq!(identify::parse::<IdentifyNamespace>(&page).unwrap().nsze.get(), 32);
    target.remove_namespace(&nqn(SUBSYSTEM), Nsid(1)).unwrap();
    queue.refresh();
    assert_eq!(queue.next_event(), None, "one event until the list is read");
    let changed = give(log(&mut queue, LogId::ChangedNamespaces, 0, 4096));
    assert_eq!(changed[..12], [1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(give(identify_page(&mut queue, 2, 0))[..8], [9, 0, 0, 0, 0, 0, 0, 0]);
    target.add_namespace(&nqn(SUBSYSTEM), Nsid(1), IDENTITY, ram(8192), AnaState::Optimized).unwrap();
    queue.refresh();
    assert_eq!(queue.next_event().map(|(_, reply)| reply.dw0), Some(event));
}

#[test]
fn ana_states_answer_io() {
    let target = target();
    let _admin = admin(&target);
    let mut queue = io(&target);
    for (state, status) in [
        (AnaState::Inaccessible, Status::ANA_INACCESSIBLE),
        (AnaState::PersistentLoss, Status::ANA_PERSISTENT_LOSS),
        (AnaState::Change, Status::ANA_TRANSITION),
    ] {
        target.set_ana(&nqn(SUBSYSTEM), Nsid(1), state).unwrap();
        assert_eq!(complete(queue.command(NOW, &command(Io::Flush.code(), 1, 0))).status, status);
    }
    target.set_ana(&nqn(SUBSYSTEM), Nsid(1), AnaState::NonOptimized).unwrap();
    assert!(matches!(queue.command(NOW, &command(Io::Flush.code(), 1, 0)), Step::Block(_)));
}

#[test]
fn removing_a_namespace_is_noticed_and_drains() {
    let target = target();
    let _admin = admin(&target);
    let mut queue = io(&target);
    let removed = target.remove_namespace(&nqn(SUBSYSTEM), Nsid(1)).unwrap();
    assert!(Arc::strong_count(&removed) > 1, "the queue still holds it");
    assert_eq!(queue.refresh(), Activity::Namespaces);
    assert_eq!(Arc::strong_count(&removed), 1);
    let gone = complete(queue.command(NOW, &command(Io::Flush.code(), 1, 0)));
    assert_eq!(gone.status, Status::INVALID_NAMESPACE.dnr());
}

#[test]
fn discovery_tells_a_host_what_it_may_connect_to() {
    let target = target();
    target.add_listener(ListenerAddress::new("127.0.0.1:4420".parse().unwrap()));
    let mut queue = Queue::new(Arc::clone(&target), LIMITS);
    connect(&mut queue, 0, CONTROLLER_ANY, DISCOVERY_NQN, HOST, 0);
    configure(&mut queue, 0x0046_0001);
    let page = give(identify_page(&mut queue, 1, 0));
    assert_eq!(identify::parse::<IdentifyController>(&page).unwrap().cntrltype, 2);
    let header = give(log(&mut queue, LogId::Discovery, 0, 1024));
    assert_eq!(header[8], 1);
    let entry = give(log(&mut queue, LogId::Discovery, 1024, 1024));
    assert_eq!(&entry[512..521], b"127.0.0.1");
    assert_eq!(complete(log(&mut queue, LogId::Discovery, 4096, 4)).status, Status::INVALID_FIELD.dnr());
    assert_eq!(complete(log(&mut queue, LogId::Ana, 0, 4)).status, Status::INVALID_LOG_PAGE.dnr());
    set_feature(&mut queue, FeatureId::AsyncEventConfig, event::DISCOVERY_CHANGE);
    queue.command(NOW, &command(Admin::AsyncEventRequest.code(), 0, 0));
    target.set_allowed_hosts(&nqn(SUBSYSTEM), AllowedHosts::default()).unwrap();
    queue.refresh();
    assert_eq!(queue.next_event().map(|(_, reply)| reply.dw0), Some(AsyncEvent::DiscoveryLogChange.emit()));
    assert_eq!(give(log(&mut queue, LogId::Discovery, 0, 1024))[8], 0, "not allowed, not told");
}

#[test]
fn revoking_a_host_and_removing_a_subsystem_end_its_controllers() {
    let target = target();
    let mut admin_queue = admin(&target);
    let mut queue = io(&target);
    target.set_allowed_hosts(&nqn(SUBSYSTEM), AllowedHosts::default()).unwrap();
    assert_eq!((admin_queue.refresh(), queue.refresh()), (Activity::Over, Activity::Over));
    target.set_allowed_hosts(&nqn(SUBSYSTEM), AllowedHosts::Any).unwrap();
    drop((admin_queue, queue));
    let mut other = Queue::new(Arc::clone(&target), LIMITS);
    assert_eq!(connect(&mut other, 0, CONTROLLER_ANY, SUBSYSTEM, HOST, 0), Reply::result(11));
    target.remove_subsystem(&nqn(SUBSYSTEM)).unwrap();
    assert_eq!(other.refresh(), Activity::Over);
}

#[test]
fn controllers_are_limited_per_host() {
    let target = target();
    let queues: Vec<Queue> = (0..11)
        .map(|_| {
            let mut queue = Queue::new(Arc::clone(&target), LIMITS);
            assert_eq!(connect(&mut queue, 0, CONTROLLER_ANY, SUBSYSTEM, HOST, 0).status, Status::SUCCESS);
            queue
        })
        .collect();
    let mut ids: Vec<u16> = queues.iter().map(|queue| queue.controller_id().unwrap().0).collect();
    ids.sort_unstable();
    assert_eq!(ids, (10..=20).collect::<Vec<u16>>());
    let mut more = Queue::new(Arc::clone(&target), LIMITS);
    let busy = connect(&mut more, 0, CONTROLLER_ANY, SUBSYSTEM, HOST, 0);
    assert_eq!(busy.status, Status::CONNECT_CONTROLLER_BUSY, "the range is used up");
}

#[test]
fn device_errors_have_statuses() {
    let write = Operation::Write { fua: false };
    assert_eq!(status_of(write, Ok(())), Status::SUCCESS);
    assert_eq!(status_of(write, Err(IoError::Medium)), Status::WRITE_FAULT);
    assert_eq!(status_of(Operation::Read, Err(IoError::Medium)), Status::UNRECOVERED_READ);
    assert_eq!(status_of(write, Err(IoError::CapacityExceeded)), Status::CAPACITY_EXCEEDED.dnr());
    assert_eq!(status_of(Operation::Read, Err(IoError::Fenced)).code_type(), 3, "try another path");
}

#[test]
fn a_host_is_asked_for_as_much_as_it_has() {
    let target = target();
    let mut queue = admin(&target);
    let mut sqe = command(Admin::SetFeatures.code(), 0, 0);
    sqe.cdw10 = U32::new(u32::from(FeatureId::HostBehavior.code()));
    for length in [0, 511, 513] {
        sqe.sgl = Sgl::Transport { length }.emit();
        assert_eq!(complete(queue.command(NOW, &sqe)).status, Status::SGL_LENGTH_INVALID.dnr());
    }
    sqe.sgl = Sgl::Transport { length: 512 }.emit();
    assert_eq!(queue.command(NOW, &sqe), Step::Take { length: 512 });
    assert_eq!(complete(queue.command_with_data(NOW, &sqe, &[0; 512])), Reply::SUCCESS);
}

#[test]
fn abort_takes_back_an_event_request() {
    let target = target();
    let mut queue = admin(&target);
    queue.command(NOW, &command(Admin::AsyncEventRequest.code(), 0, 0));
    let mut abort = command(Admin::Abort.code(), 0, 0);
    abort.cdw10 = U32::new(5 << 16);
    assert!(matches!(queue.command(NOW, &abort), Step::AbortHeld { command } if command.0 == 5));
    assert_eq!(complete(queue.command(NOW, &abort)), Reply::result(1));
}
