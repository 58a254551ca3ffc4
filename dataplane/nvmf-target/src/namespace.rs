//! A namespace: a block device under a number, with identifiers that stay.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use basalt_bdev::{BlockDevice, Capabilities};
use basalt_nvme_wire::log::AnaState;

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
    ana_state: AtomicU8,
    ana_changes: AtomicU64,
}

impl Namespace {
    /// A namespace; `ana` is its state until [`Namespace::set_ana`].
    pub(crate) fn new(
        nsid: Nsid,
        identity: NamespaceIdentity,
        device: Arc<dyn BlockDevice>,
        ana: AnaState,
    ) -> Self {
        Self { nsid, identity, device, ana_state: AtomicU8::new(ana as u8), ana_changes: AtomicU64::new(1) }
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

    /// Its ANA group: each namespace is a group of its own, under its own number.
    pub fn ana_group(&self) -> u32 {
        self.nsid.0
    }

    /// Its access state on this node's paths.
    pub fn ana(&self) -> AnaState {
        AnaState::parse(self.ana_state.load(Ordering::Acquire)).unwrap_or(AnaState::Inaccessible)
    }

    /// How often the state was set; a part of the ANA log page.
    pub(crate) fn ana_changes(&self) -> u64 {
        self.ana_changes.load(Ordering::Acquire)
    }

    /// Sets the state; answers whether it changed.
    pub(crate) fn set_ana(&self, state: AnaState) -> bool {
        let changed = self.ana_state.swap(state as u8, Ordering::AcqRel) != state as u8;
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
