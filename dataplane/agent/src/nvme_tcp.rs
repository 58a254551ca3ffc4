//! The agent's target port over NVMe/TCP: a volume is a subsystem with one namespace.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use basalt_lvol::id::VolumeId;
use basalt_nvme_wire::log::AnaState;
use basalt_nvmf_target::{
    AllowedHosts as TargetHosts, ListenerAddress, Namespace, NamespaceIdentity, Nsid, SubsystemConfig,
    Target, TargetError,
};
use basalt_nvmf_tcp::{ListenError, TcpTarget, TcpTargetControl};
use basalt_nvmf_transport::{ControllerIdRange, Nqn, NqnError};
use basalt_reactor::{Errno, Handle, SocketError};

use crate::desired::AllowedHosts;
use crate::ports::{Export, ExportError, Exporter, LocalFuture};

/// Model number of every volume's subsystem.
const MODEL: &str = "Basalt volume";
/// How often a withdrawn volume is looked at until its last I/O has ended.
const DRAIN_POLL: Duration = Duration::from_millis(1);

/// Serves volumes through a [`TcpTarget`]. Cheap to clone.
#[derive(Clone)]
pub struct NvmeTcpExporter {
    handle: Handle,
    target: Arc<Target>,
    listener: Rc<TcpTarget>,
    /// Targets of the other reactors: they accept from the same listeners.
    siblings: Rc<[TcpTargetControl]>,
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    /// What is served, by volume.
    served: BTreeMap<VolumeId, Nqn>,
    /// Namespaces that were withdrawn and may still have I/O, by volume.
    draining: BTreeMap<VolumeId, Vec<Arc<Namespace>>>,
    /// By the address that was asked for.
    listeners: BTreeMap<SocketAddr, Bound>,
}

struct Bound {
    bound: SocketAddr,
    advertised: ListenerAddress,
    endpoint: SocketAddr,
}

impl NvmeTcpExporter {
    /// Volumes become subsystems of `target`; listeners are opened on `listener`, which serves the same target, and shared with
    /// the other reactors' targets in `siblings`.
    #[must_use]
    pub fn new(
        handle: &Handle,
        target: Arc<Target>,
        listener: Rc<TcpTarget>,
        siblings: Vec<TcpTargetControl>,
    ) -> Self {
        Self { handle: handle.clone(), target, listener, siblings: siblings.into(), state: Rc::default() }
    }

    fn export_now(&self, export: &Export) -> Result<(), ExportError> {
        let nqn = Nqn::new(&export.nqn).map_err(refused)?;
        let allowed = hosts(&export.allowed_hosts).map_err(refused)?;
        if self.state.borrow().served.get(&export.volume) == Some(&nqn) {
            self.target.set_allowed_hosts(&nqn, allowed).map_err(refused)?;
            // It may have grown: hosts are told so.
            self.target.note_resize();
            return Ok(());
        }
        let config = SubsystemConfig {
            nqn: nqn.clone(),
            serial: String::from_utf8_lossy(&export.serial).trim_end().to_owned(),
            model: MODEL.to_owned(),
            controller_ids: ControllerIdRange::ALL,
        };
        match self.target.add_subsystem(config, allowed) {
            Ok(_) => {}
            Err(TargetError::SubsystemExists(nqn)) => return Err(ExportError::NqnTaken(nqn.to_string())),
            Err(TargetError::SubsystemLimit(_)) => return Err(ExportError::TooMany),
            Err(error) => return Err(refused(error)),
        }
        let identity = NamespaceIdentity { uuid: export.uuid, nguid: export.nguid };
        let added = self.target.add_namespace(
            &nqn,
            Nsid(export.nsid),
            identity,
            Arc::clone(&export.device),
            AnaState::Optimized,
        );
        if let Err(error) = added {
            // Nobody can have connected to a namespace that was never there.
            self.target.remove_subsystem(&nqn).map_err(refused)?;
            return Err(refused(error));
        }
        self.state.borrow_mut().served.insert(export.volume, nqn);
        Ok(())
    }

    fn begin_to_withdraw(&self, volume: VolumeId) -> Result<(), ExportError> {
        let Some(nqn) = self.state.borrow_mut().served.remove(&volume) else { return Ok(()) };
        let namespaces = self.target.remove_subsystem(&nqn).map_err(refused)?;
        self.state.borrow_mut().draining.entry(volume).or_default().extend(namespaces);
        Ok(())
    }

    /// True once nothing of a withdrawn volume is in use.
    fn drained(&self, volume: VolumeId) -> bool {
        let mut state = self.state.borrow_mut();
        let Some(namespaces) = state.draining.get_mut(&volume) else { return true };
        namespaces.retain(|namespace| Arc::strong_count(namespace) > 1);
        let drained = namespaces.is_empty();
        if drained {
            state.draining.remove(&volume);
        }
        drained
    }

    fn listen_now(&self, bind: SocketAddr, advertise: SocketAddr) -> Result<SocketAddr, SocketError> {
        let bound = self.state.borrow().listeners.get(&bind).map(|known| known.bound);
        if let Some(bound) = bound {
            return self.advertise(bind, bound, advertise);
        }
        let bound = match self.listener.listen(ListenerAddress::new(bind)) {
            Ok(bound) => bound,
            Err(ListenError::Bind { source, .. }) => return Err(source),
            Err(ListenError::Reactor(_) | ListenError::Ended) => return Err(SocketError::Closed),
        };
        let advertised = ListenerAddress::new(bound);
        self.share(bound, &advertised);
        let state = Bound { bound, advertised, endpoint: bound };
        self.state.borrow_mut().listeners.insert(bind, state);
        self.advertise(bind, bound, advertise)
    }

    /// Lets the other reactors accept too. Where that fails, this reactor accepts what they would have.
    fn share(&self, bound: SocketAddr, address: &ListenerAddress) {
        for sibling in &*self.siblings {
            let shared = match self.listener.share(bound) {
                Ok(shared) => shared,
                Err(error) => {
                    tracing::warn!(%address, %error, "a listener cannot be shared between reactors");
                    return;
                }
            };
            if let Err(error) = sibling.accept_from(shared, address.clone()) {
                tracing::warn!(%address, %error, "a reactor does not accept from a listener");
            }
        }
    }

    /// Makes discovery tell `advertise` for a listener that is open.
    fn advertise(
        &self,
        bind: SocketAddr,
        bound: SocketAddr,
        advertise: SocketAddr,
    ) -> Result<SocketAddr, SocketError> {
        let port = if advertise.port() == 0 { bound.port() } else { advertise.port() };
        let endpoint = SocketAddr::new(advertise.ip(), port);
        // An IP address in text is always a valid address to advertise.
        let advertised = ListenerAddress::advertised(bound, &endpoint.ip().to_string(), port)
            .map_err(|_| SocketError::System(Errno(INVALID_ARGUMENT)))?;
        let mut state = self.state.borrow_mut();
        let Some(known) = state.listeners.get_mut(&bind) else { return Err(SocketError::Closed) };
        if known.advertised != advertised {
            self.target.remove_listener(&known.advertised);
            self.target.add_listener(advertised.clone());
            known.advertised = advertised;
        }
        known.endpoint = endpoint;
        Ok(known.endpoint)
    }
}

/// EINVAL.
const INVALID_ARGUMENT: i32 = 22;

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> ExportError {
    ExportError::Target(Box::new(error))
}

fn hosts(allowed: &AllowedHosts) -> Result<TargetHosts, NqnError> {
    match allowed {
        AllowedHosts::Any => Ok(TargetHosts::Any),
        AllowedHosts::Listed(hosts) => hosts.iter().map(|host| Nqn::new(host)).collect(),
    }
}

impl Exporter for NvmeTcpExporter {
    fn export(&self, export: Export) -> LocalFuture<Result<(), ExportError>> {
        let exporter = self.clone();
        Box::pin(async move { exporter.export_now(&export) })
    }

    fn withdraw(&self, volume: VolumeId) -> LocalFuture<Result<(), ExportError>> {
        let exporter = self.clone();
        Box::pin(async move {
            exporter.begin_to_withdraw(volume)?;
            while !exporter.drained(volume) {
                exporter.handle.sleep(DRAIN_POLL).await;
            }
            Ok(())
        })
    }

    fn listen(
        &self,
        bind: SocketAddr,
        advertise: SocketAddr,
    ) -> LocalFuture<Result<SocketAddr, SocketError>> {
        let exporter = self.clone();
        Box::pin(async move { exporter.listen_now(bind, advertise) })
    }

    fn unlisten(&self, bind: SocketAddr) -> LocalFuture<()> {
        let exporter = self.clone();
        Box::pin(async move {
            if let Some(known) = exporter.state.borrow_mut().listeners.remove(&bind) {
                exporter.listener.stop_listening(known.bound);
                for sibling in &*exporter.siblings {
                    if let Err(error) = sibling.stop_listening(known.bound) {
                        tracing::warn!(%error, "a reactor goes on accepting");
                    }
                }
                exporter.target.remove_listener(&known.advertised);
            }
        })
    }
}
