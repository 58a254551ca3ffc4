//! An NVM subsystem: a name, its namespaces, who may connect, who is connected.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use basalt_nvme_wire::log::AnaState;
use basalt_nvme_wire::reservation::Notice;
use basalt_nvmf_transport::{
    Association, ControllerId, ControllerIdRange, HostId, HostIdentity, Nqn, QueueId,
};

use crate::abort::Fence;
use crate::access::AllowedHosts;
use crate::link::ControllerLink;
use crate::namespace::{Namespace, NamespaceParts, Nsid};
use crate::reservation::StoreError;

/// Namespaces of a subsystem and its highest NSID; adding one beyond is refused. Bounds the ANA log page.
pub const NAMESPACES_MAX: u32 = 256;

/// Controllers that one host may have at one subsystem; beyond, its Connect is answered with Controller Busy.
const CONTROLLERS_PER_HOST_MAX: usize = 32;

/// Controllers at one subsystem; beyond, a Connect is answered with Controller Busy.
const CONTROLLERS_MAX: usize = 1024;

/// What a subsystem is, for its whole life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubsystemConfig {
    /// Its name.
    pub nqn: Nqn,
    /// Serial number, at most 20 ASCII characters.
    pub serial: String,
    /// Model number, at most 40 ASCII characters.
    pub model: String,
    /// Controller identifiers that this node hands out.
    pub controller_ids: ControllerIdRange,
}

/// Why a subsystem did not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SubsystemError {
    /// The NSID is zero or too large.
    #[error("NSID {0} is not within 1 to {NAMESPACES_MAX}")]
    Nsid(Nsid),
    /// There is such a namespace already.
    #[error("namespace {0} exists already")]
    NamespaceExists(Nsid),
    /// There is no such namespace.
    #[error("there is no namespace {0}")]
    NoNamespace(Nsid),
    /// Its reservation cannot be read, so nobody knows whom it keeps out.
    #[error("the reservation of namespace {nsid}: {source}")]
    Reservation {
        /// Which.
        nsid: Nsid,
        /// Why.
        source: StoreError,
    },
}

/// Why a host may not connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdmitError {
    /// The host is not allowed.
    Host,
    /// Too many controllers, of the host or of all.
    Busy,
}

/// An NVM subsystem. Shared between reactors; its lock is taken when something is configured or connects.
pub struct Subsystem {
    config: SubsystemConfig,
    /// Grows with every change that a queue must notice.
    version: AtomicU64,
    state: Mutex<State>,
    /// Connected queues; those that are gone are dropped when one is added.
    fences: Mutex<Vec<Weak<Fence>>>,
}

struct State {
    allowed: AllowedHosts,
    namespaces: Arc<[Arc<Namespace>]>,
    controllers: BTreeMap<ControllerId, Arc<ControllerLink>>,
    last_controller: ControllerId,
}

impl Subsystem {
    pub(crate) fn new(config: SubsystemConfig, allowed: AllowedHosts) -> Self {
        let last_controller = config.controller_ids.last();
        let state =
            State { allowed, namespaces: Arc::from([]), controllers: BTreeMap::new(), last_controller };
        Self { config, version: AtomicU64::new(1), state: Mutex::new(state), fences: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is.
    pub fn config(&self) -> &SubsystemConfig {
        &self.config
    }

    /// Its namespaces, ascending by NSID.
    pub fn namespaces(&self) -> Arc<[Arc<Namespace>]> {
        Arc::clone(&self.state().namespaces)
    }

    /// Number of controllers that hosts have connected.
    pub fn controllers(&self) -> usize {
        self.state().controllers.len()
    }

    /// The hosts that have controllers here, one entry per controller.
    pub fn hosts(&self) -> Vec<HostIdentity> {
        self.state().controllers.values().map(|link| link.association.host.clone()).collect()
    }

    /// A number that grows with every change of namespaces, access states and allowed hosts.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn add_namespace(
        self: &Arc<Self>,
        parts: NamespaceParts,
    ) -> Result<Arc<Namespace>, SubsystemError> {
        let nsid = parts.nsid;
        if nsid.0 == 0 || nsid.0 > NAMESPACES_MAX {
            return Err(SubsystemError::Nsid(nsid));
        }
        let mut state = self.state();
        let Err(place) = state.namespaces.binary_search_by_key(&nsid, |namespace| namespace.nsid()) else {
            return Err(SubsystemError::NamespaceExists(nsid));
        };
        let added = Namespace::new(parts, Arc::downgrade(self));
        let added = added.map_err(|source| SubsystemError::Reservation { nsid, source })?;
        let mut namespaces = state.namespaces.to_vec();
        namespaces.insert(place, Arc::clone(&added));
        state.namespaces = namespaces.into();
        drop(state);
        self.changed();
        Ok(added)
    }

    pub(crate) fn remove_namespace(&self, nsid: Nsid) -> Result<Arc<Namespace>, SubsystemError> {
        let mut state = self.state();
        let place = state.namespaces.binary_search_by_key(&nsid, |namespace| namespace.nsid());
        let Ok(place) = place else { return Err(SubsystemError::NoNamespace(nsid)) };
        let mut namespaces = state.namespaces.to_vec();
        let removed = namespaces.remove(place);
        state.namespaces = namespaces.into();
        drop(state);
        self.changed();
        Ok(removed)
    }

    pub(crate) fn set_ana(&self, nsid: Nsid, ana: AnaState) -> Result<(), SubsystemError> {
        let namespaces = self.namespaces();
        let place = namespaces.binary_search_by_key(&nsid, |namespace| namespace.nsid());
        let Ok(place) = place else { return Err(SubsystemError::NoNamespace(nsid)) };
        if namespaces[place].set_ana(ana) {
            self.changed();
        }
        Ok(())
    }

    /// Sets who may connect and ends the controllers of hosts that no longer may.
    pub(crate) fn set_allowed(&self, allowed: AllowedHosts) {
        let mut state = self.state();
        for link in state.controllers.values() {
            if !allowed.allows(&link.association.host.nqn) {
                link.end();
            }
        }
        state.allowed = allowed;
        drop(state);
        self.changed();
    }

    pub(crate) fn allows(&self, host: &Nqn) -> bool {
        self.state().allowed.allows(host)
    }

    /// Ends all controllers: the subsystem is going.
    pub(crate) fn end(&self) {
        let state = self.state();
        state.controllers.values().for_each(|link| link.end());
        drop(state);
        self.changed();
    }

    /// Makes a controller for a host that may connect.
    pub(crate) fn admit(
        &self,
        association: Association,
        queues_max: u16,
    ) -> Result<Arc<ControllerLink>, AdmitError> {
        let mut state = self.state();
        if !state.allowed.allows(&association.host.nqn) {
            return Err(AdmitError::Host);
        }
        let of_host = |link: &&Arc<ControllerLink>| link.association.host.nqn == association.host.nqn;
        let ids = self.config.controller_ids;
        if state.controllers.len() >= CONTROLLERS_MAX.min(ids.len())
            || state.controllers.values().filter(of_host).count() >= CONTROLLERS_PER_HOST_MAX
        {
            return Err(AdmitError::Busy);
        }
        let mut id = ids.following(state.last_controller);
        // Ends: fewer identifiers are taken than the range has.
        while state.controllers.contains_key(&id) {
            id = ids.following(id);
        }
        let link = Arc::new(ControllerLink::new(id, association, queues_max));
        state.last_controller = id;
        state.controllers.insert(id, Arc::clone(&link));
        Ok(link)
    }

    pub(crate) fn controller(&self, id: ControllerId) -> Option<Arc<ControllerLink>> {
        self.state().controllers.get(&id).cloned()
    }

    /// Tells the controllers of `host` what happened to the reservation of a namespace.
    pub(crate) fn notify(&self, host: HostId, nsid: Nsid, notice: Notice) {
        let state = self.state();
        for link in state.controllers.values().filter(|link| link.association.host.id == host) {
            link.notify(nsid, notice);
        }
    }

    /// Remembers where a queue is given orders.
    pub(crate) fn add_fence(&self, fence: Fence) -> Arc<Fence> {
        let fence = Arc::new(fence);
        let mut fences = self.fences.lock().unwrap_or_else(PoisonError::into_inner);
        fences.retain(|fence| fence.strong_count() > 0);
        fences.push(Arc::downgrade(&fence));
        fence
    }

    /// The I/O queues of `hosts`.
    pub(crate) fn fences(&self, hosts: &[HostId]) -> Vec<Arc<Fence>> {
        if hosts.is_empty() {
            return Vec::new();
        }
        self.fences_that(|fence| !fence.is_admin() && hosts.contains(&fence.host()))
    }

    /// The I/O queues of a controller.
    pub(crate) fn fences_of(&self, link: &Arc<ControllerLink>) -> Vec<Arc<Fence>> {
        self.fences_that(|fence| !fence.is_admin() && fence.is_of_link(link))
    }

    /// The I/O queues that the host of a controller has left behind with others that are over.
    pub(crate) fn fences_left(&self, link: &Arc<ControllerLink>) -> Vec<Arc<Fence>> {
        self.fences_that(|fence| !fence.is_admin() && fence.is_beside(link, true))
    }

    /// The admin queues of the other controllers that the host of this one has.
    pub(crate) fn admin_fences_beside(&self, link: &Arc<ControllerLink>) -> Vec<Arc<Fence>> {
        self.fences_that(|fence| fence.is_admin() && fence.is_beside(link, false))
    }

    fn fences_that(&self, wanted: impl Fn(&Fence) -> bool) -> Vec<Arc<Fence>> {
        let fences = self.fences.lock().unwrap_or_else(PoisonError::into_inner);
        fences.iter().filter_map(Weak::upgrade).filter(|fence| wanted(fence)).collect()
    }

    /// An I/O queue of a controller, unless it is gone.
    pub(crate) fn fence(&self, controller: ControllerId, queue: QueueId) -> Option<Arc<Fence>> {
        let fences = self.fences.lock().unwrap_or_else(PoisonError::into_inner);
        // After a reset a queue of the same number can be there while the old one still drains: the newer one is meant.
        fences.iter().rev().filter_map(Weak::upgrade).find(|fence| fence.is_of(controller, queue))
    }

    pub(crate) fn dismiss(&self, id: ControllerId) {
        self.state().controllers.remove(&id);
    }
}

impl fmt::Debug for Subsystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subsystem").field("nqn", &self.config.nqn).finish_non_exhaustive()
    }
}
