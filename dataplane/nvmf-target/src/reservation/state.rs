//! The state machine of one namespace's reservation: pure.

use std::collections::BTreeMap;

use basalt_nvme_wire::Status;
use basalt_nvme_wire::reservation::{
    Acquire, AcquireAction, Notice, PersistenceChange, Register, RegisterAction, Release, ReleaseAction,
    ReservationKey, ReservationType,
};
use basalt_nvmf_transport::HostId;

/// Registrants of a namespace; one more is refused with Internal Error.
pub(super) const REGISTRANTS_MAX: usize = 1024;

const CONFLICT: Status = Status::RESERVATION_CONFLICT.dnr();
const INVALID: Status = Status::INVALID_FIELD.dnr();

/// Who holds a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// One host.
    By { kind: ReservationType, holder: HostId },
    /// All registrants.
    ByAll { kind: ReservationType },
}

impl Held {
    pub(super) fn new(kind: ReservationType, host: HostId) -> Self {
        match kind {
            ReservationType::WriteExclusive
            | ReservationType::ExclusiveAccess
            | ReservationType::WriteExclusiveRegistrants
            | ReservationType::ExclusiveAccessRegistrants => Held::By { kind, holder: host },
            ReservationType::WriteExclusiveAll | ReservationType::ExclusiveAccessAll => Held::ByAll { kind },
        }
    }

    pub(super) fn kind(&self) -> ReservationType {
        match self {
            Held::By { kind, .. } | Held::ByAll { kind } => *kind,
        }
    }
}

/// What a host may do with a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    pub(crate) reads: bool,
    pub(crate) writes: bool,
}

impl Rights {
    pub(crate) const ALL: Self = Self { reads: true, writes: true };
}

/// What changes a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    Register(Register),
    Acquire(Acquire),
    Release(Release),
    /// Feature 83h: whether the state is kept through a loss of power.
    Persist(bool),
}

/// What a command leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) state: ReservationState,
    /// Who is told what.
    pub(super) notices: Vec<(HostId, Notice)>,
    /// Hosts whose commands are aborted.
    pub(super) aborted: Vec<HostId>,
}

/// The reservation of one namespace and its registrants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReservationState {
    pub(super) generation: u32,
    pub(super) persistent: bool,
    pub(super) registrants: BTreeMap<HostId, ReservationKey>,
    pub(super) held: Option<Held>,
}

impl ReservationState {
    /// Whether it is kept through a loss of power.
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Whether some host may not do everything.
    pub(crate) fn restricts(&self) -> bool {
        self.held.is_some()
    }

    /// Whether `host` holds the reservation, alone or with all registrants.
    pub(super) fn holds(&self, host: HostId) -> bool {
        match self.held {
            Some(Held::By { holder, .. }) => holder == host,
            Some(Held::ByAll { .. }) => self.registrants.contains_key(&host),
            None => false,
        }
    }

    /// What `host` may do.
    pub(super) fn rights(&self, host: HostId) -> Rights {
        use ReservationType as Kind;
        let Some(held) = self.held else { return Rights::ALL };
        if self.holds(host) {
            return Rights::ALL;
        }
        let registered = self.registrants.contains_key(&host);
        match held.kind() {
            Kind::WriteExclusive => Rights { reads: true, writes: false },
            Kind::ExclusiveAccess => Rights { reads: false, writes: false },
            Kind::WriteExclusiveRegistrants | Kind::WriteExclusiveAll => {
                Rights { reads: true, writes: registered }
            }
            Kind::ExclusiveAccessRegistrants | Kind::ExclusiveAccessAll => {
                Rights { reads: registered, writes: registered }
            }
        }
    }

    /// What `command` of `host` changes; `can_persist` where there is a store.
    pub(super) fn apply(&self, host: HostId, command: &Command, can_persist: bool) -> Result<Change, Status> {
        let mut change = Change { state: self.clone(), notices: Vec::new(), aborted: Vec::new() };
        match command {
            Command::Persist(true) if !can_persist => return Err(INVALID),
            Command::Persist(persistent) => change.state.persistent = *persistent,
            _ if host.0 == [0; 16] => return Err(Status::HOST_ID_INCONSISTENT.dnr()),
            Command::Register(register) => change.register(host, register, can_persist)?,
            Command::Acquire(acquire) => change.acquire(host, acquire)?,
            Command::Release(release) => change.release(host, release)?,
        }
        Ok(change)
    }
}

impl Change {
    fn count(&mut self) {
        self.state.generation = self.state.generation.wrapping_add(1);
    }

    fn register(&mut self, host: HostId, register: &Register, can_persist: bool) -> Result<(), Status> {
        if register.persistence == PersistenceChange::On && !can_persist {
            return Err(INVALID);
        }
        let current = self.state.registrants.get(&host).copied();
        let matches = |key: ReservationKey| register.ignore_key || key == register.current;
        match (register.action, current) {
            (RegisterAction::Register | RegisterAction::Replace, _) if register.new.0 == 0 => {
                return Err(INVALID);
            }
            (RegisterAction::Register, Some(key)) if key != register.new => return Err(CONFLICT),
            (RegisterAction::Register, _) => self.admit(host, register.new)?,
            (RegisterAction::Unregister, Some(key)) if matches(key) => {
                let before = self.state.held;
                self.remove(host);
                if self.state.held.is_none() && before.is_some_and(|held| is_shared(held.kind())) {
                    self.tell_others(host, Notice::ReservationReleased);
                }
            }
            (RegisterAction::Replace, Some(key)) if matches(key) => self.admit(host, register.new)?,
            (RegisterAction::Replace, None) if register.ignore_key => self.admit(host, register.new)?,
            (RegisterAction::Unregister | RegisterAction::Replace, _) => return Err(CONFLICT),
        }
        match register.persistence {
            PersistenceChange::Keep => {}
            PersistenceChange::Off => self.state.persistent = false,
            PersistenceChange::On => self.state.persistent = true,
        }
        self.count();
        Ok(())
    }

    fn admit(&mut self, host: HostId, key: ReservationKey) -> Result<(), Status> {
        let registrants = &mut self.state.registrants;
        if !registrants.contains_key(&host) && registrants.len() >= REGISTRANTS_MAX {
            return Err(Status::INTERNAL_ERROR.dnr());
        }
        registrants.insert(host, key);
        Ok(())
    }

    fn check_key(&self, host: HostId, key: ReservationKey, ignore_key: bool) -> Result<(), Status> {
        if ignore_key {
            return Err(INVALID);
        }
        if self.state.registrants.get(&host) == Some(&key) { Ok(()) } else { Err(CONFLICT) }
    }

    fn acquire(&mut self, host: HostId, acquire: &Acquire) -> Result<(), Status> {
        self.check_key(host, acquire.current, acquire.ignore_key)?;
        if acquire.action != AcquireAction::Acquire {
            return self.preempt(host, acquire);
        }
        match self.state.held {
            None => self.state.held = Some(Held::new(acquire.kind, host)),
            Some(held) if self.state.holds(host) && held.kind() == acquire.kind => {}
            Some(_) => return Err(CONFLICT),
        }
        Ok(())
    }

    fn preempt(&mut self, host: HostId, acquire: &Acquire) -> Result<(), Status> {
        let named = acquire.preempted;
        let takes_over = match self.state.held {
            Some(Held::By { .. }) if named.0 == 0 => return Err(INVALID),
            Some(Held::By { holder, .. }) => self.state.registrants.get(&holder) == Some(&named),
            Some(Held::ByAll { .. }) => named.0 == 0,
            None => false,
        };
        let goes = |key: &ReservationKey| *key == named || named.0 == 0;
        let registrants = self.state.registrants.iter().filter(|(_, key)| goes(key));
        let mut removed: Vec<HostId> = registrants.map(|(host, _)| *host).collect();
        if takes_over {
            let before = self.state.held.replace(Held::new(acquire.kind, host));
            removed.retain(|other| *other != host);
            self.state.registrants.retain(|other, _| !removed.contains(other));
            if before.is_some_and(|held| held.kind() != acquire.kind) {
                self.tell_others(host, Notice::ReservationReleased);
            }
        } else {
            if removed.is_empty() || named.0 == 0 {
                return Err(CONFLICT);
            }
            removed.iter().for_each(|other| self.remove(*other));
            removed.retain(|other| *other != host);
        }
        self.notices.extend(removed.iter().map(|other| (*other, Notice::RegistrationPreempted)));
        if acquire.action == AcquireAction::PreemptAndAbort {
            self.aborted = removed;
        }
        self.count();
        Ok(())
    }

    fn release(&mut self, host: HostId, release: &Release) -> Result<(), Status> {
        self.check_key(host, release.current, release.ignore_key)?;
        match (release.action, self.state.held) {
            (ReleaseAction::Clear, _) => {
                self.tell_others(host, Notice::ReservationPreempted);
                self.state.registrants.clear();
                self.state.held = None;
                self.count();
            }
            (ReleaseAction::Release, Some(held)) if self.state.holds(host) => {
                if held.kind().code() != release.kind {
                    return Err(INVALID);
                }
                self.state.held = None;
                if is_shared(held.kind()) {
                    self.tell_others(host, Notice::ReservationReleased);
                }
            }
            (ReleaseAction::Release, _) => {}
        }
        Ok(())
    }

    /// Removes a registration, and the reservation with it where nobody is left to hold it.
    fn remove(&mut self, host: HostId) {
        self.state.registrants.remove(&host);
        let gone = match self.state.held {
            Some(Held::By { holder, .. }) => holder == host,
            Some(Held::ByAll { .. }) => self.state.registrants.is_empty(),
            None => false,
        };
        if gone {
            self.state.held = None;
        }
    }

    fn tell_others(&mut self, host: HostId, notice: Notice) {
        let others = self.state.registrants.keys().filter(|other| **other != host);
        self.notices.extend(others.map(|other| (*other, notice)));
    }
}

/// Whether other registrants share in what a reservation of this type allows, so that its end concerns them.
fn is_shared(kind: ReservationType) -> bool {
    !matches!(kind, ReservationType::WriteExclusive | ReservationType::ExclusiveAccess)
}
