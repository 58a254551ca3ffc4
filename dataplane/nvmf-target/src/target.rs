//! All subsystems of a process, and where they can be reached.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basalt_bdev::BlockDevice;
use basalt_nvme_wire::fabrics::DISCOVERY_NQN;
use basalt_nvme_wire::log::AnaState;
use basalt_nvmf_transport::{ControllerIdRange, Nqn};

use crate::access::AllowedHosts;
use crate::changes::Changes;
use crate::discovery::ListenerAddress;
use crate::namespace::{Namespace, NamespaceIdentity, NamespaceParts, Nsid};
use crate::reservation::ReservationStore;
use crate::subsystem::{Subsystem, SubsystemConfig, SubsystemError};

/// Settings of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetOptions {
    /// Subsystems; adding one beyond is refused.
    pub subsystems_max: usize,
    /// I/O queues that a controller may have.
    pub io_queues_max: u16,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self { subsystems_max: 4096, io_queues_max: 128 }
    }
}

/// Why a target did not change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is such a subsystem already.
    #[error("subsystem {0} exists already")]
    SubsystemExists(Nqn),
    /// There is no such subsystem.
    #[error("there is no subsystem {0}")]
    NoSubsystem(Nqn),
    /// Too many subsystems.
    #[error("the target has its {0} subsystems; remove one first")]
    SubsystemLimit(usize),
    /// The subsystem refused.
    #[error("subsystem {nqn}: {source}")]
    Subsystem {
        /// Which.
        nqn: Nqn,
        /// Why.
        source: SubsystemError,
    },
}

/// All subsystems of a process. Shared between reactors and the control thread; every method is safe to call from any.
///
/// Changes show at once to commands that begin after them; controllers are told by asynchronous events.
pub struct Target {
    options: TargetOptions,
    changes: Arc<Changes>,
    state: Mutex<State>,
    discovery: Arc<Subsystem>,
}

#[derive(Default)]
struct State {
    subsystems: BTreeMap<Nqn, Arc<Subsystem>>,
    listeners: Vec<ListenerAddress>,
    /// Generation counter of the discovery log page.
    discovery_generation: u64,
    /// Keeps reservations of namespaces that are added.
    reservations: Option<Arc<dyn ReservationStore>>,
}

impl Target {
    /// A target without subsystems.
    pub fn new(options: TargetOptions) -> Arc<Self> {
        let config = SubsystemConfig {
            nqn: match Nqn::new(DISCOVERY_NQN) {
                Ok(nqn) => nqn,
                Err(error) => unreachable!("the discovery NQN is an NQN: {error}"),
            },
            serial: "discovery".to_owned(),
            model: "Basalt discovery".to_owned(),
            controller_ids: ControllerIdRange::ALL,
        };
        Arc::new(Self {
            options,
            changes: Arc::default(),
            state: Mutex::default(),
            discovery: Arc::new(Subsystem::new(config, AllowedHosts::Any)),
        })
    }

    /// The settings.
    pub fn options(&self) -> TargetOptions {
        self.options
    }

    /// A number that grows with every change: a transport that sees it grow calls [`Queue::refresh`](crate::Queue::refresh).
    pub fn version(&self) -> u64 {
        self.changes.version()
    }

    /// Has reservations of namespaces that are added from now on kept in `store`; without one they end with the process.
    pub fn keep_reservations(&self, store: Arc<dyn ReservationStore>) {
        self.state().reservations = Some(store);
    }

    /// Has `wake` called after every change, to wake a reactor that sleeps.
    pub fn on_change(&self, wake: impl Fn() + Send + Sync + 'static) {
        self.changes.on_change(Box::new(wake));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn changes(&self) -> &Arc<Changes> {
        &self.changes
    }

    fn changed(&self) {
        self.changes.note();
    }

    fn changed_discovery(&self) {
        self.state().discovery_generation += 1;
        self.changed();
    }

    /// Adds a subsystem without namespaces.
    ///
    /// # Errors
    /// [`TargetError::SubsystemExists`], [`TargetError::SubsystemLimit`].
    pub fn add_subsystem(
        &self,
        config: SubsystemConfig,
        allowed: AllowedHosts,
    ) -> Result<Arc<Subsystem>, TargetError> {
        let mut state = self.state();
        if state.subsystems.contains_key(&config.nqn) || config.nqn.as_str() == DISCOVERY_NQN {
            return Err(TargetError::SubsystemExists(config.nqn));
        }
        if state.subsystems.len() >= self.options.subsystems_max {
            return Err(TargetError::SubsystemLimit(self.options.subsystems_max));
        }
        let nqn = config.nqn.clone();
        let subsystem = Arc::new(Subsystem::new(config, allowed));
        state.subsystems.insert(nqn, Arc::clone(&subsystem));
        drop(state);
        self.changed_discovery();
        Ok(subsystem)
    }

    /// Removes a subsystem: its controllers end and their connections close. I/O that runs is drained by the transports;
    /// it has ended when [`Arc::strong_count`] of each returned namespace is 1.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`].
    pub fn remove_subsystem(&self, nqn: &Nqn) -> Result<Vec<Arc<Namespace>>, TargetError> {
        let removed = self.state().subsystems.remove(nqn);
        let Some(subsystem) = removed else { return Err(TargetError::NoSubsystem(nqn.clone())) };
        subsystem.end();
        let namespaces = subsystem.namespaces().to_vec();
        self.changed_discovery();
        Ok(namespaces)
    }

    /// A subsystem.
    pub fn subsystem(&self, nqn: &str) -> Option<Arc<Subsystem>> {
        self.state().subsystems.get(nqn).cloned()
    }

    /// All subsystems, ascending by name.
    pub fn subsystems(&self) -> Vec<Arc<Subsystem>> {
        self.state().subsystems.values().cloned().collect()
    }

    /// Sets who may connect to a subsystem; controllers of hosts that no longer may end.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`].
    pub fn set_allowed_hosts(&self, nqn: &Nqn, allowed: AllowedHosts) -> Result<(), TargetError> {
        self.existing(nqn)?.set_allowed(allowed);
        self.changed_discovery();
        Ok(())
    }

    /// Adds a namespace.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`], [`TargetError::Subsystem`].
    pub fn add_namespace(
        &self,
        nqn: &Nqn,
        nsid: Nsid,
        identity: NamespaceIdentity,
        device: Arc<dyn BlockDevice>,
        ana: AnaState,
    ) -> Result<Arc<Namespace>, TargetError> {
        let parts = NamespaceParts {
            nsid,
            identity,
            device,
            ana,
            changes: Arc::clone(&self.changes),
            store: self.state().reservations.clone(),
        };
        let added = self.existing(nqn)?.add_namespace(parts);
        let added = added.map_err(|source| TargetError::Subsystem { nqn: nqn.clone(), source })?;
        self.changed();
        Ok(added)
    }

    /// Removes a namespace. I/O that runs is drained by the transports; it has ended when [`Arc::strong_count`] of the answer is 1.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`], [`TargetError::Subsystem`].
    pub fn remove_namespace(&self, nqn: &Nqn, nsid: Nsid) -> Result<Arc<Namespace>, TargetError> {
        let removed = self.existing(nqn)?.remove_namespace(nsid);
        let removed = removed.map_err(|source| TargetError::Subsystem { nqn: nqn.clone(), source })?;
        self.changed();
        Ok(removed)
    }

    /// Sets a namespace's access state on this node's paths.
    ///
    /// # Errors
    /// [`TargetError::NoSubsystem`], [`TargetError::Subsystem`].
    pub fn set_ana(&self, nqn: &Nqn, nsid: Nsid, ana: AnaState) -> Result<(), TargetError> {
        let set = self.existing(nqn)?.set_ana(nsid, ana);
        set.map_err(|source| TargetError::Subsystem { nqn: nqn.clone(), source })?;
        self.changed();
        Ok(())
    }

    /// Tells queues to look at their namespaces again: a device was resized.
    pub fn note_resize(&self) {
        self.changed();
    }

    /// Adds a listener to what discovery tells; adding it twice is the same as once.
    pub fn add_listener(&self, address: ListenerAddress) {
        let mut state = self.state();
        if !state.listeners.contains(&address) {
            state.listeners.push(address);
        }
        drop(state);
        self.changed_discovery();
    }

    /// Removes a listener from what discovery tells.
    pub fn remove_listener(&self, address: &ListenerAddress) {
        self.state().listeners.retain(|listener| listener != address);
        self.changed_discovery();
    }

    /// The listeners that discovery tells.
    pub fn listeners(&self) -> Vec<ListenerAddress> {
        self.state().listeners.clone()
    }

    fn existing(&self, nqn: &Nqn) -> Result<Arc<Subsystem>, TargetError> {
        self.subsystem(nqn.as_str()).ok_or_else(|| TargetError::NoSubsystem(nqn.clone()))
    }

    pub(crate) fn discovery(&self) -> &Arc<Subsystem> {
        &self.discovery
    }

    pub(crate) fn discovery_generation(&self) -> u64 {
        self.state().discovery_generation
    }

    /// The discovery log page that `host` sees, which has reached `here`.
    pub(crate) fn discovery_page(&self, host: &Nqn, here: Option<IpAddr>) -> Vec<u8> {
        let state = self.state();
        let visible: Vec<Nqn> =
            state.subsystems.values().filter(|s| s.allows(host)).map(|s| s.config().nqn.clone()).collect();
        crate::discovery::page(state.discovery_generation, &visible, &state.listeners, here)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("subsystems", &self.state().subsystems.len()).finish_non_exhaustive()
    }
}
