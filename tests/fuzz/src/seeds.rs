//! The corpora that are made rather than found: valid inputs, from which mutation starts.
//!
//! `basalt-fuzz seeds` writes them; they are committed, so that a change of the code does not change what is tested without a word.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use basalt_nvme_wire::fabrics::{Command as Fabrics, Connect, ConnectData, DiscoveryHeader};
use basalt_nvme_wire::identify::{IDENTIFY_LEN, IdentifyController, IdentifyNamespace, NamespaceId, zeroed};
use basalt_nvme_wire::log::{GetLogPage, LogId};
use basalt_nvme_wire::opcode::{Admin, Io};
use basalt_nvme_wire::pdu::{
    DataTransfer, Digests, FLAG_LAST, Frame, InitializeRequest, InitializeResponse, Kind, ReadyToTransfer,
};
use basalt_nvme_wire::reservation::{
    Acquire, AcquireAction, PersistenceChange, Register, RegisterAction, Release, ReleaseAction, Report,
    ReservationKey, ReservationType,
};
use basalt_nvme_wire::{Cqe, Fuse, ReadWrite, Sgl, Sqe, Status};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use crate::sessions::record;

/// Writes every made input below `folder`; others stay.
///
/// # Errors
/// If a file cannot be written.
pub fn write_all(folder: &Path) -> Result<()> {
    for (target, name, bytes) in all() {
        let folder = folder.join(target);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Every made input: target, name, bytes.
#[must_use]
pub fn all() -> Vec<(&'static str, String, Vec<u8>)> {
    let mut seeds = Vec::new();
    let mut add = |target, name: &str, bytes: Vec<u8>| seeds.push((target, name.to_owned(), bytes));
    for (name, bytes) in pdus() {
        add("pdu", name, bytes);
    }
    for (name, sqe, data) in commands() {
        let entry = [sqe.as_bytes(), &data].concat();
        let queue = u8::from(name.starts_with("io"));
        add("controller", name, [&[queue], &entry[..]].concat());
        add("command", name, entry);
    }
    add("controller", "everything", script());
    for (name, page) in pages() {
        add("page", name, page);
    }
    let golden = include_bytes!("../../../dataplane/nvmf-target/tests/golden/reservation-v1.bin");
    add("reservation", "two-registrants", golden.to_vec());
    add("bringup", "one-namespace", bringup(0));
    add("bringup", "discovery", bringup(1));
    for (name, digests) in [("plain", false), ("digests", true)] {
        let recorded = record(Digests { header: digests, data: digests });
        let [admin, io] = &recorded[..] else { continue };
        let at = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes();
        add("hostile-stream", name, [&at(admin.host.len())[..], &admin.host, &io.host].concat());
        let end = admin.controller.len() + io.controller.len();
        let mut stream = [&at(admin.controller.len())[..], &at(end)].concat();
        stream.extend_from_slice(&admin.controller);
        stream.extend_from_slice(&io.controller);
        // The length says whether the host asks for digests.
        while (stream.len() & 3 == 3) != digests || (!digests && stream.len() & 3 != 0) {
            stream.push(0);
        }
        add("hostile-controller", name, stream);
    }
    for (number, script) in hostile_scripts().into_iter().enumerate() {
        add("hostile-host", &format!("script-{number}"), script);
    }
    add("hostile-wire", "nothing", vec![0]);
    add("hostile-wire", "a-change", vec![1, 2, 0x00, 0x10, 0, 0, 0, 4, 3, 0x00, 0x20, 0, 0, 4, 7]);
    add("hostile-wire", "a-cut", vec![0, 1, 0x00, 0x03, 0, 0, 7]);
    seeds
}

const NONE: Digests = Digests { header: false, data: false };

fn pdus() -> Vec<(&'static str, Vec<u8>)> {
    let frame = |kind, flags, len| Frame::new(kind, flags, NONE, len, 4);
    let with = |first: u8, header: &[u8]| [&[first], header].concat();
    let host_data = frame(Kind::HostData, FLAG_LAST, 512);
    let transfer = DataTransfer { command_id: 1, transfer_tag: 2, offset: 0, length: 512 };
    let controller_data = frame(Kind::ControllerData, FLAG_LAST, 512);
    let ready = ReadyToTransfer { command_id: 1, transfer_tag: 2, offset: 0, length: 4096 };
    let request = InitializeRequest { data_alignment: 4, digests: NONE, r2t_max: 1 };
    let response = InitializeResponse { data_alignment: 4, digests: NONE, host_data_max: 131_072 };
    let capsule = [&frame(Kind::Command, 0, 0).emit()[..], Sqe::new(2, 1).as_bytes()].concat();
    let done = [&frame(Kind::Response, 0, 0).emit()[..], Cqe::new(1, 0, Status::SUCCESS).as_bytes()].concat();
    vec![
        ("initialize-request", with(0, &request.emit())),
        ("initialize-response", with(1, &response.emit())),
        ("command", with(0, &capsule)),
        ("response", with(1, &done)),
        ("host-data", with(0, &transfer.emit(&host_data))),
        ("controller-data", with(1, &transfer.emit(&controller_data))),
        ("ready", with(1, &ready.emit(&frame(Kind::ReadyToTransfer, 0, 0)))),
    ]
}

fn io(opcode: Io, length: u32) -> Sqe {
    let mut sqe = Sqe::new(opcode.code(), 7);
    sqe.nsid = U32::new(1);
    sqe.sgl = Sgl::Transport { length }.emit();
    sqe
}

fn blocks(opcode: Io, count: u32) -> Sqe {
    let mut sqe = io(opcode, count * 512);
    ReadWrite::new(0, count).emit(&mut sqe);
    sqe
}

fn commands() -> Vec<(&'static str, Sqe, Vec<u8>)> {
    let mut commands = vec![
        ("io-read", blocks(Io::Read, 8), Vec::new()),
        ("io-write", blocks(Io::Write, 8), Vec::new()),
        ("io-compare", blocks(Io::Compare, 1), Vec::new()),
        ("io-flush", io(Io::Flush, 0), Vec::new()),
    ];
    let mut zeroes = blocks(Io::WriteZeroes, 8);
    zeroes.sgl = Sgl::Transport { length: 0 }.emit();
    commands.push(("io-zeroes", zeroes, Vec::new()));
    let mut half = blocks(Io::Compare, 1);
    half.set_fuse(Fuse::First);
    commands.push(("io-first-half", half, Vec::new()));
    let mut trim = io(Io::DatasetManagement, 16);
    trim.cdw11 = U32::new(4);
    commands.push(("io-deallocate", trim, vec![0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]));
    commands.extend(reservations());
    let (key, value) = (U32::new(1), U32::new(0x100));
    let admin = |opcode: Admin, length| {
        let mut sqe = Sqe::new(opcode.code(), 9);
        (sqe.nsid, sqe.cdw10, sqe.sgl) = (key, key, Sgl::Transport { length }.emit());
        sqe
    };
    let identify = admin(Admin::Identify, 4096);
    commands.push(("admin-identify", identify, Vec::new()));
    let mut log = admin(Admin::GetLogPage, 512);
    GetLogPage {
        page: LogId::Ana.code(),
        specific: 0,
        retain_event: false,
        length: 512,
        offset: 0,
        index_offset: false,
    }
    .emit(&mut log);
    commands.push(("admin-log", log, Vec::new()));
    let mut feature = admin(Admin::SetFeatures, 0);
    (feature.cdw10, feature.cdw11) = (U32::new(0x0b), value);
    commands.push(("admin-events", feature, Vec::new()));
    feature.cdw10 = U32::new(0x82);
    commands.push(("admin-mask", feature, Vec::new()));
    feature.cdw10 = U32::new(0x16);
    feature.sgl = Sgl::Transport { length: 512 }.emit();
    commands.push(("admin-behaviour", feature, vec![1]));
    commands.push(("admin-event", Sqe::new(Admin::AsyncEventRequest.code(), 3), Vec::new()));
    commands.push(("admin-abort", admin(Admin::Abort, 0), Vec::new()));
    let set = Fabrics::PropertySet { wide: false, offset: 0x14, value: 0x0046_0001 };
    commands.push(("admin-property-set", set.emit(3), Vec::new()));
    commands.push(("admin-property-get", Fabrics::PropertyGet { wide: true, offset: 0 }.emit(3), Vec::new()));
    let connect = Connect { format: 0, queue_id: 1, queue_size: 32, attributes: 4, keep_alive_ms: 5000 };
    let mut connect = Fabrics::Connect(connect).emit(1);
    connect.sgl = Sgl::InCapsule { offset: 0, length: 1024 }.emit();
    let data = ConnectData::new([3; 16], 1, "nqn.2026-01.io.basalt:volume", "nqn.2026-01.io.basalt:host");
    commands.push(("admin-connect", connect, data.map(|data| data.as_bytes().to_vec()).unwrap_or_default()));
    commands
}

fn reservations() -> Vec<(&'static str, Sqe, Vec<u8>)> {
    let (one, mut sqe) = (ReservationKey(1), io(Io::ReservationRegister, 16));
    let (action, persistence) = (RegisterAction::Register, PersistenceChange::Keep);
    let keys = Register { action, ignore_key: false, persistence, current: one, new: one }.emit(&mut sqe);
    let register = ("io-register", sqe, keys.to_vec());
    let mut sqe = io(Io::ReservationAcquire, 16);
    let (action, kind) = (AcquireAction::PreemptAndAbort, ReservationType::WriteExclusive);
    let keys = Acquire { action, ignore_key: false, kind, current: one, preempted: one }.emit(&mut sqe);
    let preempt = ("io-preempt", sqe, keys.to_vec());
    let mut sqe = io(Io::ReservationAcquire, 16);
    let action = AcquireAction::Acquire;
    let keys = Acquire { action, ignore_key: false, kind, current: one, preempted: one }.emit(&mut sqe);
    let acquire = ("io-acquire", sqe, keys.to_vec());
    let mut sqe = io(Io::ReservationRelease, 8);
    let keys =
        Release { action: ReleaseAction::Clear, ignore_key: false, kind: 1, current: one }.emit(&mut sqe);
    let release = ("io-release", sqe, keys.to_vec());
    let mut sqe = io(Io::ReservationReport, 256);
    Report { length: 256, extended: true }.emit(&mut sqe);
    vec![register, acquire, preempt, release, ("io-report", sqe, Vec::new())]
}

/// All commands, one after the other, and changes between them.
fn script() -> Vec<u8> {
    let mut script = Vec::new();
    for (number, (name, sqe, data)) in (0u8..).zip(commands()) {
        script.push(u8::from(name.starts_with("io")));
        script.extend_from_slice(sqe.as_bytes());
        // Data lies where the next entry is read from; an entry of its own keeps them in step.
        if !data.is_empty() {
            script.push(3);
            let mut entry = data;
            entry.resize(64, 0);
            script.extend_from_slice(&entry);
        }
        script.push(2 | (number % 5 + 1) << 2);
        script.extend_from_slice(sqe.as_bytes());
    }
    script
}

fn controller_page() -> IdentifyController {
    let mut page: IdentifyController = zeroed();
    page.cntlid = U16::new(1);
    (page.mdts, page.awupf) = (5, U16::new(0));
    (page.ioccsz, page.iorcsz) = (U32::new(4 + 512), U32::new(1));
    page.subnqn[..4].copy_from_slice(b"nqn.");
    page
}

fn namespace_page() -> IdentifyNamespace {
    let mut page: IdentifyNamespace = zeroed();
    page.nsze = U64::new(2048);
    page.lbaf[0] = U32::new(9 << 16);
    page
}

fn descriptors() -> Vec<u8> {
    let mut page = vec![0; IDENTIFY_LEN];
    let at = NamespaceId::Uuid([7; 16]).emit(&mut page, 0).unwrap_or(0);
    NamespaceId::Nguid([9; 16]).emit(&mut page, at);
    page
}

fn pages() -> Vec<(&'static str, Vec<u8>)> {
    let mut report = vec![0; 128];
    (report[0], report[4], report[5], report[64]) = (1, 3, 1, 0xff);
    vec![
        ("controller", controller_page().as_bytes().to_vec()),
        ("namespace", namespace_page().as_bytes()[..512].to_vec()),
        ("descriptors", descriptors()[..64].to_vec()),
        ("report", report),
        ("event", vec![2, 3, 0x0c, 0]),
    ]
}

/// Answers by which a controller is brought up.
fn bringup(kind: u8) -> Vec<u8> {
    let mut bytes = vec![kind | 1 << 1];
    let done = |dw0: u32| {
        let mut cqe = Cqe::new(0, 0, Status::SUCCESS);
        cqe.dw0 = U32::new(dw0);
        cqe.as_bytes().to_vec()
    };
    let mut page = |answer: Vec<u8>, data: Option<&[u8]>| {
        bytes.extend_from_slice(&answer);
        if let Some(data) = data {
            // Zeroes at the end need not be sent.
            let len = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            bytes.extend_from_slice(&u16::try_from(len).unwrap_or(0).to_le_bytes());
            bytes.extend_from_slice(&data[..len]);
        }
    };
    page(done(1), None);
    page(done(127), None);
    page(done(0), None);
    page(done(1), None);
    page(done(0), Some(controller_page().as_bytes()));
    if kind == 0 {
        page(done(0), None);
        page(done(0), None);
        page(done(0), Some(&[1, 0, 0, 0]));
        page(done(0), Some(namespace_page().as_bytes()));
        page(done(0), Some(&descriptors()));
    } else {
        page(done(0), None);
    }
    let mut header: DiscoveryHeader = zeroed();
    (header.generation, header.records) = (U64::new(3), U64::new(2));
    page(done(0), Some(header.as_bytes()));
    page(done(0), Some(&[3, 1, 2]));
    page(done(0), Some(header.as_bytes()));
    bytes
}

/// Scripts of a hostile host: see `sessions/hostile.rs` for what the numbers mean.
fn hostile_scripts() -> Vec<Vec<u8>> {
    let say = |step: u8, peer: u8, rest: &[u8]| [&[step, peer], rest].concat();
    let read = |peer: u8| say(22, peer, &[]);
    // Open, initialize, connect, read, enable, read; `who` chooses the identity.
    let admin = |peer: u8, who: u8| {
        let steps = [vec![0], say(1, peer, &[0, 0, 0]), say(2, peer, &[30, 1, who, 0])];
        [steps.concat(), read(peer), say(6, peer, &[1, 0]), read(peer)].concat()
    };
    let queue =
        |peer: u8| [vec![0], say(1, peer, &[0, 0, 0]), say(4, peer, &[30, 1, 0]), read(peer)].concat();
    let write = |peer: u8| say(9, peer, &[1, 0, 40, 0, 0, 0, 0, 0]);
    let answer = say(13, 1, &[63, 0, 0]);
    let load = say(9, 1, &[2, 0, 7, 0, 0, 0, 0, 0]);
    // Opcode, action, type and keys.
    let reserve = |peer: u8, opcode: u8, action: u8, kind: u8, keys: [u8; 2]| {
        let mut data = [0; 16];
        (data[0], data[8]) = (keys[0], keys[1]);
        let fields = [opcode, 0, 0, 0, 0, 0, kind, action, 1];
        [say(9, peer, &[&fields[..], &data, &[0]].concat()), read(peer)].concat()
    };
    // Of the I/O queue's last command.
    let abort = |peer: u8| say(7, peer, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    let odd = [[0, 0, 0x40, 0, 0, 0], [0, 3, 0x40, 7, 200, 0], [0, 3, 0x00, 0, 0, 0], [1, 3, 0x43, 0, 0, 0]];
    let odd = odd.map(|fields| say(23, 1, &fields)).concat();
    let session = [admin(0, 0), queue(1)].concat();
    let asked = [session.clone(), write(1), read(1)].concat();
    let again = [write(1), read(1), answer.clone(), answer.clone(), read(1)].concat();
    let late = [asked.clone(), abort(0), say(21, 0, &[2]), read(0), read(1), again].concat();
    let odd = [asked, odd, read(1), answer.clone(), read(1)].concat();
    let both = [session.clone(), admin(2, 3), queue(3)].concat();
    let registered = [both, reserve(1, 8, 0, 0, [1, 1]), reserve(3, 8, 0, 0, [2, 2])].concat();
    let held = [registered, reserve(1, 10, 0, 2, [1, 0]), write(1), read(1)].concat();
    vec![
        session.clone(),
        [session.clone(), write(1), read(1), answer.clone(), read(1)].concat(),
        [session.clone(), write(1), read(1), say(18, 0, &[])].concat(),
        [session.clone(), load.clone(), write(1), read(1), say(15, 1, &[0, 9, 63, 0])].concat(),
        [session.clone(), say(20, 1, &[1, 0, 1, 1, 1, 0, 1]), say(17, 1, &[200, 0])].concat(),
        // A write that waits for its data is aborted, then the data comes.
        [session.clone(), write(1), read(1), abort(0), read(0), answer.clone(), read(1)].concat(),
        // Write and read, then preempted by the other identity, then the data.
        [held.clone(), load.clone(), reserve(3, 10, 2, 1, [2, 1]), answer, read(1), load, read(1)].concat(),
        // Preempted while its connection goes.
        [held, say(18, 1, &[]), reserve(2, 10, 2, 1, [2, 1]), say(21, 0, &[2]), read(2)].concat(),
        [admin(0, 0), say(7, 0, &[1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 16]), say(21, 0, &[6])].concat(),
        vec![0, 0, 0, 17, 0, 9, 0, 17, 1, 0, 0, 16, 2, 1, 2, 3, 21, 0, 7, 21, 0, 7],
        [vec![0], say(1, 0, &[1, 1, 7, 9, 0, 3]), vec![0], say(5, 1, &[3, 1, 0, 0]), queue(1)].concat(),
        // Data of an aborted write comes when that has ended, and another one's before it.
        late,
        // Identifiers that are in use, flags, places in the capsule.
        odd,
    ]
}
