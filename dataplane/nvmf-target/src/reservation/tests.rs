//! The state machine against a naive model, and saved states.

use basalt_nvme_wire::Status;
use basalt_nvme_wire::reservation::{
    Acquire, AcquireAction, Notice, PersistenceChange, Register, RegisterAction, Release, ReleaseAction,
    ReservationKey, ReservationType as Kind,
};
use basalt_nvmf_transport::HostId;
use proptest::prelude::*;

use super::image::ImageError;
use super::state::{Command, Rights};
use super::{ReservationState, StoreError};

const HOSTS: usize = 4;
const KEYS: u64 = 4;
const NAMESPACE: [u8; 16] = [7; 16];
const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();

fn host(number: usize) -> HostId {
    HostId([u8::try_from(number).unwrap() + 1; 16])
}

/// Each host's key, zero for none; the type and the holders of the reservation as a set. What the tables of
/// docs/reservations.md say, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    keys: [u64; HOSTS],
    kind: Option<Kind>,
    /// The one holder of types 1 to 4.
    holder: usize,
    generation: u32,
    persistent: bool,
}

type Told = Vec<(usize, Notice)>;

#[derive(Debug, PartialEq, Eq)]
struct Effect {
    model: Model,
    told: Told,
    aborted: Vec<usize>,
}

fn all(kind: Kind) -> bool {
    matches!(kind, Kind::WriteExclusiveAll | Kind::ExclusiveAccessAll)
}

impl Model {
    fn new() -> Self {
        Self { keys: [0; HOSTS], kind: None, holder: 0, generation: 0, persistent: false }
    }

    fn registered(&self, host: usize) -> bool {
        self.keys[host] != 0
    }

    fn holds(&self, host: usize) -> bool {
        self.kind.is_some_and(|kind| if all(kind) { self.registered(host) } else { self.holder == host })
    }

    fn others(&self, host: usize, notice: Notice) -> Told {
        (0..HOSTS).filter(|other| *other != host && self.registered(*other)).map(|o| (o, notice)).collect()
    }

    /// Drops a reservation that nobody holds any more.
    fn settle(&mut self) {
        let left = (0..HOSTS).any(|host| self.registered(host) && self.holds(host));
        if !left {
            self.kind = None;
        }
    }

    fn rights(&self, host: usize) -> (bool, bool) {
        match self.kind {
            None => (true, true),
            Some(_) if self.holds(host) => (true, true),
            Some(Kind::WriteExclusive) => (true, false),
            Some(Kind::ExclusiveAccess) => (false, false),
            Some(Kind::WriteExclusiveRegistrants | Kind::WriteExclusiveAll) => (true, self.registered(host)),
            Some(Kind::ExclusiveAccessRegistrants | Kind::ExclusiveAccessAll) => {
                (self.registered(host), self.registered(host))
            }
        }
    }

    fn run(&self, host: usize, command: &Command, can_persist: bool) -> Result<Effect, Status> {
        match command {
            Command::Persist(true) if !can_persist => Err(INVALID),
            Command::Persist(on) => Ok(Model { persistent: *on, ..self.clone() }.telling(Vec::new())),
            Command::Register(register) if register.persistence == PersistenceChange::On && !can_persist => {
                Err(INVALID)
            }
            Command::Register(register) => self.register(host, register),
            Command::Acquire(Acquire { ignore_key: true, .. })
            | Command::Release(Release { ignore_key: true, .. }) => Err(INVALID),
            Command::Acquire(Acquire { current, .. }) | Command::Release(Release { current, .. })
                if !self.registered(host) || self.keys[host] != current.0 =>
            {
                Err(CONFLICT)
            }
            Command::Acquire(acquire) if acquire.action == AcquireAction::Acquire => {
                if self.kind.is_some() && !(self.holds(host) && self.kind == Some(acquire.kind)) {
                    return Err(CONFLICT);
                }
                Ok(Model { kind: Some(acquire.kind), holder: host, ..self.clone() }.telling(Vec::new()))
            }
            Command::Acquire(acquire) => self.preempt(host, acquire),
            Command::Release(release) => self.release(host, release),
        }
    }

    fn telling(self, told: Told) -> Effect {
        Effect { model: self, told, aborted: Vec::new() }
    }

    fn register(&self, host: usize, register: &Register) -> Result<Effect, Status> {
        let key_fits = register.ignore_key || register.current.0 == self.keys[host];
        let mut new = self.clone();
        let mut told = Vec::new();
        match register.action {
            RegisterAction::Register | RegisterAction::Replace if register.new.0 == 0 => return Err(INVALID),
            RegisterAction::Register if self.registered(host) && self.keys[host] != register.new.0 => {
                return Err(CONFLICT);
            }
            RegisterAction::Replace if !(self.registered(host) && key_fits || register.ignore_key) => {
                return Err(CONFLICT);
            }
            RegisterAction::Register | RegisterAction::Replace => new.keys[host] = register.new.0,
            RegisterAction::Unregister if !self.registered(host) || !key_fits => return Err(CONFLICT),
            RegisterAction::Unregister => {
                new.keys[host] = 0;
                new.settle();
                let shared = !matches!(self.kind, Some(Kind::WriteExclusive | Kind::ExclusiveAccess));
                if self.kind.is_some() && new.kind.is_none() && shared {
                    told = new.others(host, Notice::ReservationReleased);
                }
            }
        }
        match register.persistence {
            PersistenceChange::Keep => {}
            PersistenceChange::Off => new.persistent = false,
            PersistenceChange::On => new.persistent = true,
        }
        new.generation += 1;
        Ok(new.telling(told))
    }

    fn preempt(&self, host: usize, acquire: &Acquire) -> Result<Effect, Status> {
        let named = acquire.preempted.0;
        let by_one = self.kind.is_some_and(|kind| !all(kind));
        let takes_over = match self.kind {
            Some(_) if by_one && named == 0 => return Err(INVALID),
            Some(_) if by_one => self.keys[self.holder] == named,
            Some(_) => named == 0,
            None => false,
        };
        let goes = |other: &usize| {
            self.registered(*other)
                && (self.keys[*other] == named || named == 0)
                && !(takes_over && *other == host)
        };
        let gone: Vec<usize> = (0..HOSTS).filter(goes).collect();
        if !takes_over && (gone.is_empty() || named == 0) {
            return Err(CONFLICT);
        }
        let mut new = self.clone();
        let mut told = Vec::new();
        gone.iter().for_each(|other| new.keys[*other] = 0);
        if takes_over {
            (new.kind, new.holder) = (Some(acquire.kind), host);
            if self.kind != new.kind {
                told.extend(new.others(host, Notice::ReservationReleased));
            }
        } else {
            new.settle();
        }
        let gone: Vec<usize> = gone.into_iter().filter(|other| *other != host).collect();
        told.extend(gone.iter().map(|other| (*other, Notice::RegistrationPreempted)));
        new.generation += 1;
        let aborted = if acquire.action == AcquireAction::PreemptAndAbort { gone } else { Vec::new() };
        Ok(Effect { model: new, told, aborted })
    }

    fn release(&self, host: usize, release: &Release) -> Result<Effect, Status> {
        let mut new = self.clone();
        if release.action == ReleaseAction::Clear {
            (new.keys, new.kind) = ([0; HOSTS], None);
            new.generation += 1;
            return Ok(new.telling(self.others(host, Notice::ReservationPreempted)));
        }
        let Some(kind) = self.kind.filter(|_| self.holds(host)) else { return Ok(new.telling(Vec::new())) };
        if kind.code() != release.kind {
            return Err(INVALID);
        }
        new.kind = None;
        let shared = !matches!(kind, Kind::WriteExclusive | Kind::ExclusiveAccess);
        let told = if shared { self.others(host, Notice::ReservationReleased) } else { Vec::new() };
        Ok(new.telling(told))
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL)
}

fn key() -> impl Strategy<Value = ReservationKey> {
    (0..KEYS).prop_map(ReservationKey)
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.1)
}

fn command() -> impl Strategy<Value = Command> {
    use PersistenceChange::{Keep, Off, On};
    let register = (
        prop::sample::select(vec![
            RegisterAction::Register,
            RegisterAction::Register,
            RegisterAction::Replace,
            RegisterAction::Unregister,
        ]),
        rarely(),
        prop::sample::select(vec![Keep, Keep, Keep, Off, On]),
        key(),
        key(),
    )
        .prop_map(|(action, ignore_key, persistence, current, new)| {
            Command::Register(Register { action, ignore_key, persistence, current, new })
        });
    let acquire = (
        prop::sample::select(vec![
            AcquireAction::Acquire,
            AcquireAction::Preempt,
            AcquireAction::PreemptAndAbort,
        ]),
        rarely(),
        kind(),
        key(),
        key(),
    )
        .prop_map(|(action, ignore_key, kind, current, preempted)| {
            Command::Acquire(Acquire { action, ignore_key, kind, current, preempted })
        });
    let release = (prop::bool::weighted(0.15), rarely(), 0u8..8, key()).prop_map(
        |(clear, ignore_key, kind, current)| {
            let action = if clear { ReleaseAction::Clear } else { ReleaseAction::Release };
            Command::Release(Release { action, ignore_key, kind, current })
        },
    );
    prop_oneof![4 => register, 4 => acquire, 1 => release, 1 => any::<bool>().prop_map(Command::Persist)]
}

/// What the hosts know: keys are right most of the time, or hardly anything would be allowed.
fn informed(command: Command, own: u64, right: bool) -> Command {
    let own = ReservationKey(own);
    match command {
        Command::Register(fields) if right => Command::Register(Register { current: own, ..fields }),
        Command::Acquire(fields) if right => Command::Acquire(Acquire { current: own, ..fields }),
        Command::Release(fields) if right => Command::Release(Release { current: own, ..fields }),
        other => other,
    }
}

fn check_same(state: &ReservationState, model: &Model) {
    assert_eq!((state.generation, state.persistent), (model.generation, model.persistent));
    assert_eq!(state.held.map(|held| held.kind()), model.kind);
    assert_eq!(state.restricts(), model.kind.is_some());
    for number in 0..HOSTS {
        let key = state.registrants.get(&host(number)).map_or(0, |key| key.0);
        assert_eq!(key, model.keys[number], "key of host {number}");
        assert_eq!(state.holds(host(number)), model.holds(number), "host {number} holds");
        let Rights { reads, writes } = state.rights(host(number));
        assert_eq!((reads, writes), model.rights(number), "rights of host {number}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn behaves_as_the_model(
        steps in prop::collection::vec((0..HOSTS, command(), prop::bool::weighted(0.9)), 1..60),
        can_persist: bool,
    ) {
        let (mut state, mut model) = (ReservationState::default(), Model::new());
        for (number, command, right) in steps {
            let command = informed(command, model.keys[number], right);
            let expected = model.run(number, &command, can_persist);
            match (state.apply(host(number), &command, can_persist), expected) {
                (Ok(change), Ok(effect)) => {
                    let mut told: Vec<_> = effect.told.iter().map(|(to, notice)| (host(*to), *notice)).collect();
                    let mut notices = change.notices;
                    told.sort_by_key(|(host, notice)| (*host, notice.code()));
                    notices.sort_by_key(|(host, notice)| (*host, notice.code()));
                    prop_assert_eq!(notices, told);
                    let aborted: Vec<_> = effect.aborted.iter().map(|other| host(*other)).collect();
                    prop_assert_eq!(change.aborted, aborted);
                    (state, model) = (change.state, effect.model);
                }
                (Err(status), Err(expected)) => prop_assert_eq!(status, expected),
                (got, expected) => prop_assert!(false, "{:?}: {:?}, and not {:?}", command, got, expected),
            }
            check_same(&state, &model);
            let saved = ReservationState::decode(NAMESPACE, &state.encode(NAMESPACE));
            prop_assert_eq!(saved, Ok(ReservationState { persistent: true, ..state.clone() }));
        }
    }

    #[test]
    fn damaged_images_are_refused(at in 0usize..128, bit in 0u8..8) {
        let mut bytes = sample().encode(NAMESPACE);
        bytes[at] ^= 1 << bit;
        prop_assert!(ReservationState::decode(NAMESPACE, &bytes).is_err());
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Some(start) = bytes.get_mut(..8) {
            start.copy_from_slice(b"BSLTRESV");
        }
        prop_assert!(ReservationState::decode(NAMESPACE, &bytes).is_err());
    }
}

/// Two registrants, of which the first holds.
fn sample() -> ReservationState {
    let register = |new: u64| {
        Command::Register(Register {
            action: RegisterAction::Register,
            ignore_key: false,
            persistence: PersistenceChange::On,
            current: ReservationKey(0),
            new: ReservationKey(new),
        })
    };
    let acquire = Command::Acquire(Acquire {
        action: AcquireAction::Acquire,
        ignore_key: false,
        kind: Kind::WriteExclusiveRegistrants,
        current: ReservationKey(0x1111),
        preempted: ReservationKey(0),
    });
    let mut state = ReservationState::default();
    for (number, command) in [(0, register(0x1111)), (1, register(0x2222)), (0, acquire)] {
        state = state.apply(host(number), &command, true).unwrap().state;
    }
    state
}

#[test]
fn version_one_is_read_and_written_as_it_always_was() {
    let golden = include_bytes!("../../tests/golden/reservation-v1.bin");
    assert_eq!(sample().encode(NAMESPACE), golden, "bytes of version 1 have changed");
    assert_eq!(ReservationState::decode(NAMESPACE, golden), Ok(sample()));
    assert_eq!(ReservationState::decode([8; 16], golden), Err(ImageError::Namespace));
    let mut later = golden.to_vec();
    later[8] = 2;
    assert_eq!(ReservationState::decode(NAMESPACE, &later), Err(ImageError::Version(2)));
    assert_eq!(ReservationState::decode(NAMESPACE, &golden[..127]), Err(ImageError::Damaged));
    assert_eq!(ReservationState::decode(NAMESPACE, b"BSLT"), Err(ImageError::Foreign));
    assert_eq!(StoreError::from(ImageError::Damaged).to_string(), "the saved reservation is damaged");
}

#[test]
fn a_holder_of_what_nobody_holds_alone_is_damage() {
    // The type at byte 36: none, and two that all registrants hold; the first one is still named as their holder.
    for kind in [0, 7, 8] {
        let mut image = sample().encode(NAMESPACE);
        image[36] = kind;
        let checksum = basalt_nvme_wire::digest::crc32c(&image[16..]);
        image[12..16].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(ReservationState::decode(NAMESPACE, &image), Err(ImageError::Damaged), "{kind}");
    }
}

#[test]
fn registrants_are_bounded_and_a_host_without_identifier_is_none() {
    let register = |new| {
        Command::Register(Register {
            action: RegisterAction::Register,
            ignore_key: false,
            persistence: PersistenceChange::Keep,
            current: ReservationKey(0),
            new: ReservationKey(new),
        })
    };
    let mut state = ReservationState::default();
    for number in 1..=super::state::REGISTRANTS_MAX {
        let host = HostId((number as u128).to_be_bytes());
        state = state.apply(host, &register(1), false).unwrap().state;
    }
    let one_more = state.apply(HostId([0xff; 16]), &register(1), false);
    assert_eq!(one_more, Err(Status::INTERNAL_ERROR.dnr()));
    let nobody = state.apply(HostId([0; 16]), &register(1), false);
    assert_eq!(nobody, Err(Status::HOST_ID_INCONSISTENT.dnr()));
    assert!(ReservationState::decode(NAMESPACE, &state.encode(NAMESPACE)).is_ok());
}
