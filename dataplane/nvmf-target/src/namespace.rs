//! A namespace: a block device under a number, with identifiers that stay.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use basalt_bdev::{BlockDevice, Capabilities};
use basalt_nvme_wire::log::AnaState;

use crate::changes::Changes;
use crate::gate::Gate;
use crate::reservation::{ReservationStore, Reservations, StoreError};
use crate::subsystem::Subsystem;

/// A namespace identifier, 1 to [`NAMESPACES_MAX`](crate::NAMESPACES_MAX).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nsid(pub u32);

impl fmt::Display for Nsid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifiers by which a host recognises a namespace on every path and after every restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceIdentity {
    /// UUID, big-endian.
    pub uuid: [u8; 16],
    /// NGUID, big-endian.
    pub nguid: [u8; 16],
}

/// A namespace of a subsystem: a shared block device, its identifiers and its access state on this node's paths.
pub struct Namespace {
    nsid: Nsid,
    identity: NamespaceIdentity,
    device: Arc<dyn BlockDevice>,
    gate: Gate,
    ana_changes: AtomicU64,
    reservations: Reservations,
}

/// What a namespace is made of.
pub(crate) struct NamespaceParts {
    pub(crate) nsid: Nsid,
    pub(crate) identity: NamespaceIdentity,
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) ana: AnaState,
    pub(crate) changes: Arc<Changes>,
    pub(crate) store: Option<Arc<dyn ReservationStore>>,
}

impl Namespace {
    /// A namespace of `subsystem`, with the reservation that its store has.
    pub(crate) fn new(parts: NamespaceParts, subsystem: Weak<Subsystem>) -> Result<Arc<Self>, StoreError> {
        let NamespaceParts { nsid, identity, device, ana, changes, store } = parts;
        let saved = store.as_ref().map(|store| store.load(identity.uuid)).transpose()?;
        let state = saved.flatten().unwrap_or_default();
        let gate = Gate::new(ana);
        gate.set_held(state.restricts());
        Ok(Arc::new_cyclic(|namespace| Self {
            nsid,
            identity,
            device,
            gate,
            ana_changes: AtomicU64::new(1),
            reservations: Reservations::new(namespace.clone(), subsystem, changes, store, state),
        }))
    }

    /// Its number.
    pub fn nsid(&self) -> Nsid {
        self.nsid
    }

    /// Its identifiers.
    pub fn identity(&self) -> NamespaceIdentity {
        self.identity
    }

    /// The device below.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Whether its device compares and writes in one step, so that the pair may be fused.
    pub(crate) fn fuses(&self) -> bool {
        self.device.info().capabilities().contains(Capabilities::COMPARE_AND_WRITE)
    }

    /// What lets I/O through.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Its reservation.
    pub(crate) fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// Its ANA group: each namespace is a group of its own, under its own number.
    pub fn ana_group(&self) -> u32 {
        self.nsid.0
    }

    /// Its access state on this node's paths.
    pub fn ana(&self) -> AnaState {
        self.gate.look().ana()
    }

    /// How often the state was set; a part of the ANA log page.
    pub(crate) fn ana_changes(&self) -> u64 {
        self.ana_changes.load(Ordering::Acquire)
    }

    /// Sets the state; answers whether it changed.
    pub(crate) fn set_ana(&self, state: AnaState) -> bool {
        let changed = self.gate.set_ana(state);
        if changed {
            self.ana_changes.fetch_add(1, Ordering::AcqRel);
        }
        changed
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace")
            .field("nsid", &self.nsid)
            .field("ana", &self.ana())
            .finish_non_exhaustive()
    }
}
