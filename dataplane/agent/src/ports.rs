//! What the agent needs from its process: disks, a target, and a place to remember.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use basalt_bdev::BlockDevice;
use basalt_lvol::id::{Epoch, VolumeId};
use basalt_reactor::{DiskError, SocketError};
use thiserror::Error;

use crate::desired::{AllowedHosts, DesiredNode};
use crate::report::NodeReport;

/// A future of this reactor.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Opens disks: files and devices in the daemon, simulated disks in the simulator.
pub trait DiskOpener {
    /// Opens the disk at `path`, exclusively among processes, for as long as the device lives.
    ///
    /// Fails with the cause. [`DiskError::InUse`] if another process, or another pool of this one, holds it.
    fn open(&self, path: &str) -> LocalFuture<Result<Arc<dyn BlockDevice>, DiskError>>;

    /// Lets the first `bytes` of the disk that was opened at `path` have their place in the file system that it lies on, if it lies on one,
    /// so that writes there never fail for want of room. Changes nothing of what the disk holds. By default there is nothing to do.
    ///
    /// Fails with [`DiskError::NoSpace`] if there is no room.
    fn allocate(&self, path: &str, bytes: u64) -> LocalFuture<Result<(), DiskError>> {
        let _: (&str, u64) = (path, bytes);
        Box::pin(async { Ok(()) })
    }
}

/// A volume to be served.
#[derive(Clone)]
pub struct Export {
    /// Which volume.
    pub volume: VolumeId,
    /// The epoch at which it is served.
    pub epoch: Epoch,
    /// NQN of the subsystem.
    pub nqn: String,
    /// Serial number of the subsystem, padded with spaces.
    pub serial: [u8; 20],
    /// Namespace id.
    pub nsid: u32,
    /// Namespace UUID.
    pub uuid: [u8; 16],
    /// Namespace globally unique id.
    pub nguid: [u8; 16],
    /// Who may connect.
    pub allowed_hosts: AllowedHosts,
    /// The volume itself; opened by each reactor that serves it.
    pub device: Arc<dyn BlockDevice>,
}

/// Why a volume could not be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// Another subsystem has the NQN.
    #[error("another subsystem of this node has the NQN {0}")]
    NqnTaken(String),
    /// The target has as many subsystems as it may.
    #[error("the target has reached its limit of subsystems")]
    TooMany,
    /// The target's own reason.
    #[error("the target refused")]
    Target(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A target: NVMe/TCP in the daemon and in the simulator, a list in tests.
pub trait Exporter {
    /// Serves a volume; or changes who may connect to one that is served, and tells its hosts if it has grown. Doing it twice is
    /// the same as once.
    fn export(&self, export: Export) -> LocalFuture<Result<(), ExportError>>;

    /// Stops serving the subsystem of a volume. Ends only when no connection reaches it any more and what was in flight has
    /// ended. Does nothing for one that is not served.
    fn withdraw(&self, volume: VolumeId) -> LocalFuture<Result<(), ExportError>>;

    /// Listens on `bind` and tells hosts `advertise` (port 0: the bound port). Answers the address that hosts are told.
    /// Doing it twice is the same as once.
    fn listen(&self, bind: SocketAddr, advertise: SocketAddr)
    -> LocalFuture<Result<SocketAddr, SocketError>>;

    /// Stops listening; connections that exist stay.
    fn unlisten(&self, bind: SocketAddr) -> LocalFuture<()>;
}

/// Why the desired state could not be kept or read.
#[derive(Debug, Error)]
pub enum StoreError {
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// What was kept cannot be understood.
    #[error("the kept desired state cannot be read: {0}")]
    Damaged(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Remembers the last desired state, so that volumes come back while the control plane is away and older revisions are refused.
pub trait StateStore {
    /// What was kept last; `None` if nothing was yet.
    fn load(&self) -> LocalFuture<Result<Option<DesiredNode>, StoreError>>;

    /// Keeps a desired state durably and atomically: after a crash the old or the new one is there.
    fn save(&self, desired: &DesiredNode) -> LocalFuture<Result<(), StoreError>>;
}

/// Takes reports: called on the reactor whenever something changed, with the whole report.
pub trait Reporter {
    /// Must not block.
    fn report(&self, report: &NodeReport);
}
