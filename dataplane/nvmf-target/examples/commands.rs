//! What the target's core takes for one read command: from submission entry to block request.
//!
//! `cargo run --release -p basalt-nvmf-target --example commands`. The least of many short runs, so that other work on the machine does not
//! count: without a reservation, and for its holder.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measurement")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant as Wall;

use basalt_bdev::BlockSize;
use basalt_clock::Instant;
use basalt_device_mem::RamDevice;
use basalt_nvme_wire::fabrics::{CONTROLLER_ANY, Command, Connect, ConnectData};
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::opcode::Io;
use basalt_nvme_wire::reservation::{
    Acquire, AcquireAction, PersistenceChange, Register, RegisterAction, ReservationKey, ReservationType,
};
use basalt_nvme_wire::{ReadWrite, Sgl, Sqe, Status};
use basalt_nvmf_target::{
    AllowedHosts, NamespaceIdentity, Nsid, Queue, Step, SubsystemConfig, Target, TargetOptions,
};
use basalt_nvmf_transport::{ControllerIdRange, Nqn, TransportLimits};
use uuid::Uuid;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

const SUBSYSTEM: &str = "nqn.2026-01.storage.basalt:commands";
const LIMITS: TransportLimits =
    TransportLimits { in_capsule_bytes_max: 8192, transfer_bytes_max: 131_072, queue_entries_max: 128 };
const NOW: Instant = Instant::from_nanos(1_000_000_000);
const RUNS: u32 = 400;
const COMMANDS: u32 = 20_000;

fn connect(queue: &mut Queue, id: u16, controller: u16) {
    let fields = Connect { format: 0, queue_id: id, queue_size: 32, attributes: 4, keep_alive_ms: 0 };
    let mut sqe = Command::Connect(fields).emit(1);
    sqe.sgl = Sgl::InCapsule { offset: 0, length: 1024 }.emit();
    let host = "nqn.2026-01.storage.basalt:commands-host";
    let data = ConnectData::new([3; 16], controller, SUBSYSTEM, host).unwrap();
    queue.command(NOW, &sqe);
    let Step::Complete(reply) = queue.command_with_data(NOW, &sqe, data.as_bytes()) else { panic!() };
    assert_eq!(reply.status, Status::SUCCESS);
}

fn keys(queue: &mut Queue, opcode: Io, emit: impl FnOnce(&mut Sqe) -> [u8; 16]) {
    let mut sqe = Sqe::new(opcode.code(), 1);
    sqe.nsid = U32::new(1);
    let data = emit(&mut sqe);
    sqe.sgl = Sgl::InCapsule { offset: 0, length: 16 }.emit();
    queue.command(NOW, &sqe);
    let Step::Complete(reply) = queue.command_with_data(NOW, &sqe, &data) else { panic!() };
    assert_eq!(reply.status, Status::SUCCESS);
}

#[inline(never)]
fn measure(queue: &mut Queue) -> f64 {
    let mut sqe = Sqe::new(Io::Read.code(), 1);
    sqe.nsid = U32::new(1);
    sqe.sgl = Sgl::Transport { length: 4096 }.emit();
    let mut least = f64::MAX;
    for _ in 0..RUNS {
        let began = Wall::now();
        for number in 0..COMMANDS {
            ReadWrite::new(u64::from(number % 2000), 8).emit(&mut sqe);
            let step = black_box(queue.command(NOW, black_box(&sqe)));
            assert!(matches!(step, Step::Block(_)));
        }
        least = least.min(began.elapsed().as_secs_f64() * 1e9 / f64::from(COMMANDS));
    }
    least
}

fn main() {
    let target = Target::new(TargetOptions::default());
    let nqn = Nqn::new(SUBSYSTEM).unwrap();
    let config = SubsystemConfig {
        nqn: nqn.clone(),
        serial: "BSLT0001".to_owned(),
        model: "Basalt".to_owned(),
        controller_ids: ControllerIdRange::ALL,
    };
    target.add_subsystem(config, AllowedHosts::Any).unwrap();
    let device = RamDevice::new("ram", Uuid::nil(), BlockSize::B512, 1 << 20).unwrap();
    let identity = NamespaceIdentity { uuid: [1; 16], nguid: [1; 16] };
    target.add_namespace(&nqn, Nsid(1), identity, Arc::new(device), AnaState::Optimized).unwrap();
    let [mut admin, mut io] = [0, 1].map(|_| Queue::new(Arc::clone(&target), LIMITS));
    connect(&mut admin, 0, CONTROLLER_ANY);
    admin.command(NOW, &Command::PropertySet { wide: false, offset: 0x14, value: 0x0046_0001 }.emit(2));
    connect(&mut io, 1, 1);
    println!("nothing held: {:.1} ns", measure(&mut io));
    let (key, none) = (ReservationKey(1), ReservationKey(0));
    let (action, persistence, ignore_key) = (RegisterAction::Register, PersistenceChange::Keep, false);
    let register = Register { action, ignore_key, persistence, current: none, new: key };
    keys(&mut io, Io::ReservationRegister, |sqe| register.emit(sqe));
    let (action, kind) = (AcquireAction::Acquire, ReservationType::WriteExclusiveRegistrants);
    let acquire = Acquire { action, ignore_key, kind, current: key, preempted: none };
    keys(&mut io, Io::ReservationAcquire, |sqe| acquire.emit(sqe));
    println!("held by it:   {:.1} ns", measure(&mut io));
}
