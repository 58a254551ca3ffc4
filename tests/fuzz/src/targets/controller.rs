//! The target's core without a transport: any submission entries, in any order, on an admin and an I/O queue.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use basalt_bdev::BlockSize;
use basalt_clock::Instant;
use basalt_device_mem::RamDevice;
use basalt_nvme_wire::fabrics::{CONTROLLER_ANY, Command, Connect, ConnectData};
use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::{Sgl, Sqe};
use basalt_nvmf_target::{
    AllowedHosts, NamespaceIdentity, Nsid, Queue, ReservationState, ReservationStore, Saved, Step,
    StoreError, SubsystemConfig, Target, TargetOptions,
};
use basalt_nvmf_transport::{ControllerIdRange, Nqn, TransportLimits};
use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

pub(crate) const SUBSYSTEM: &str = "nqn.2026-01.io.basalt:volume";
pub(crate) const HOST: &str = "nqn.2026-01.io.basalt:host";
const LIMITS: TransportLimits =
    TransportLimits { in_capsule_bytes_max: 8192, transfer_bytes_max: 131_072, queue_entries_max: 128 };

/// Which queue gets the entry that follows, or what else happens: two low bits of the byte before each entry.
const ADMIN: u8 = 0;
const IO: u8 = 1;
const CHANGE: u8 = 2;

/// The most data of a command, either way.
const DATA_MAX: u32 = 131_072;

/// Saves at once, or when something else changes.
#[derive(Default)]
struct Store {
    waiting: Mutex<Vec<Saved>>,
    late: bool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

impl Store {
    fn finish(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for (number, saved) in waiting.into_iter().enumerate() {
            saved(if number % 3 == 2 { Err(StoreError::Stopped) } else { Ok(()) });
        }
    }
}

impl ReservationStore for Store {
    fn load(&self, _: [u8; 16]) -> Result<Option<ReservationState>, StoreError> {
        Ok(None)
    }

    fn save(&self, namespace: [u8; 16], state: Option<&ReservationState>, saved: Saved) {
        if let Some(state) = state {
            let image = state.encode(namespace);
            assert_eq!(ReservationState::decode(namespace, &image).as_ref(), Ok(state));
        }
        if self.late {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(saved);
        } else {
            saved(Ok(()));
        }
    }
}

/// How commands ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Seen {
    succeeded: u32,
    failed: u32,
    given: u32,
    blocks: u32,
    held: u32,
}

struct Session {
    target: Arc<Target>,
    nqn: Nqn,
    queues: [Queue; 2],
    now: Instant,
    store: Arc<Store>,
    seen: Seen,
}

pub(super) fn run(bytes: &[u8]) {
    play(bytes);
}

fn play(bytes: &[u8]) -> Seen {
    let late = bytes.len().is_multiple_of(2);
    let Some(mut session) = Session::new(late) else { return Seen::default() };
    let mut rest = bytes;
    while let Some((kind, tail)) = rest.split_first() {
        let Ok((sqe, tail)) = Sqe::read_from_prefix(tail) else { break };
        rest = tail;
        match kind & 3 {
            ADMIN => session.command(0, &sqe, tail),
            IO => session.command(1, &sqe, tail),
            CHANGE => session.change(kind >> 2, &sqe),
            _ => session.now += Duration::from_millis(u64::from(kind >> 2) * 100),
        }
        for queue in &mut session.queues {
            queue.tick(session.now);
            drop(queue.take_abort_orders());
            while queue.next_event().is_some() {}
        }
    }
    session.seen
}

impl Session {
    fn new(late: bool) -> Option<Self> {
        let target = Target::new(TargetOptions::default());
        let store = Arc::new(Store { late, ..Store::default() });
        target.keep_reservations(Arc::<Store>::clone(&store));
        let nqn = Nqn::new(SUBSYSTEM).ok()?;
        let config = SubsystemConfig {
            nqn: nqn.clone(),
            serial: "BSLT0001".to_owned(),
            model: "Basalt volume".to_owned(),
            controller_ids: ControllerIdRange::ALL,
        };
        target.add_subsystem(config, AllowedHosts::Any).ok()?;
        let mut session = Self {
            queues: [0, 1].map(|_| Queue::new(Arc::clone(&target), LIMITS)),
            target,
            nqn,
            store,
            now: Instant::from_nanos(1_000_000_000),
            seen: Seen::default(),
        };
        session.change(0, &Sqe::default());
        session.connect(0, CONTROLLER_ANY);
        let enable = Command::PropertySet { wide: false, offset: 0x14, value: 0x0046_0001 }.emit(2);
        session.command(0, &enable, &[]);
        session.connect(1, 1);
        assert!(session.queues.iter().all(Queue::is_connected), "the session begins connected");
        Some(session)
    }

    fn connect(&mut self, queue: u16, controller: u16) {
        let fields =
            Connect { format: 0, queue_id: queue, queue_size: 32, attributes: 0, keep_alive_ms: 5000 };
        let mut sqe = Command::Connect(fields).emit(1);
        sqe.sgl = Sgl::InCapsule { offset: 0, length: 1024 }.emit();
        if let Ok(data) = ConnectData::new([3; 16], controller, SUBSYSTEM, HOST) {
            self.command(queue.into(), &sqe, data.as_bytes());
        }
    }

    /// Runs a command; the data that it takes is what follows in the input, and zeroes behind it.
    fn command(&mut self, queue: usize, sqe: &Sqe, data: &[u8]) {
        let queue = &mut self.queues[queue];
        let step = queue.command(self.now, sqe);
        queue.broken_first();
        let step = match step {
            Step::Take { length } => {
                assert!(length <= DATA_MAX, "{length} bytes are taken");
                let mut taken = data[..data.len().min(length as usize)].to_vec();
                taken.resize(length as usize, 0);
                queue.command_with_data(self.now, sqe, &taken)
            }
            other => other,
        };
        match step {
            Step::Take { .. } => panic!("data is taken once"),
            Step::Give { data, .. } => {
                let room = Sgl::parse(&sqe.sgl).map_or(0, Sgl::length).min(DATA_MAX);
                assert!(data.len() <= room as usize, "more data than there is room for");
                self.seen.given += 1;
            }
            Step::Block(block) | Step::FuseFirst(block) | Step::FuseSecond(block) => {
                let info = queue.namespaces()[block.slot.0].device().info();
                let end = block.lba.checked_add(block.blocks);
                assert!(end.is_some_and(|end| end.0 <= info.blocks().0), "beyond the device: {block:?}");
                assert!(block.bytes <= LIMITS.transfer_bytes_max);
                self.seen.blocks += 1;
            }
            Step::Unmap(ranges) => assert!(ranges.count <= 256 && ranges.slot.0 < queue.namespaces().len()),
            Step::Complete(reply) if reply.status.is_success() => self.seen.succeeded += 1,
            Step::Complete(_) => self.seen.failed += 1,
            Step::Hold | Step::AbortHeld { .. } => self.seen.held += 1,
        }
    }

    /// Something else changes: namespaces, their states, who may connect. Errors are answers like others.
    fn change(&mut self, what: u8, sqe: &Sqe) {
        self.store.finish();
        let nsid = Nsid(1 + sqe.nsid.get() % 3);
        let changed = match what % 6 {
            0 | 1 => {
                let device = RamDevice::new("ram", Uuid::nil(), BlockSize::B512, 1 << 20);
                let identity = NamespaceIdentity { uuid: [nsid.0.to_le_bytes()[0]; 16], nguid: [1; 16] };
                let Ok(device) = device else { return };
                let device = Arc::new(device);
                self.target.add_namespace(&self.nqn, nsid, identity, device, AnaState::Optimized).is_ok()
            }
            2 => self.target.remove_namespace(&self.nqn, nsid).is_ok(),
            3 => self.target.set_ana(&self.nqn, nsid, AnaState::Inaccessible).is_ok(),
            4 => self.target.set_ana(&self.nqn, nsid, AnaState::Optimized).is_ok(),
            _ => self.target.set_allowed_hosts(&self.nqn, AllowedHosts::default()).is_ok(),
        };
        if changed {
            for queue in &mut self.queues {
                queue.refresh();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::Corpus;

    #[test]
    fn the_corpus_reaches_every_kind_of_answer() {
        let all = Corpus::load("controller").unwrap().inputs().iter().map(|input| play(input)).fold(
            Seen::default(),
            |all, seen| Seen {
                succeeded: all.succeeded + seen.succeeded,
                failed: all.failed + seen.failed,
                given: all.given + seen.given,
                blocks: all.blocks + seen.blocks,
                held: all.held + seen.held,
            },
        );
        let least = [all.succeeded, all.failed, all.given, all.blocks, all.held].into_iter().min();
        assert!(least > Some(0), "{all:?}");
        assert!(all.succeeded > 60 && all.blocks > 5, "{all:?}");
    }
}
