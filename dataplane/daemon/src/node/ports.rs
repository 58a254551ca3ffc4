//! What the agent needs from the daemon: disks of this machine, a memory, and an ear for its reports.

use std::path::Path;
use std::sync::Arc;

use basalt_agent::{DesiredNode, NodeReport};
use basalt_agent::{DiskOpener, LocalFuture, Reporter, StateStore, StoreError};
use basalt_bdev::BlockDevice;
use basalt_device_uring::{UringError, UringOptions};
use basalt_reactor::{DiskError, DiskOptions, Handle};
use tokio::runtime;
use tokio::sync::{oneshot, watch};

use super::disk_looks::DiskLooks;
use super::disk_meters::DiskMeters;
use super::metrics;
use super::store::DesiredFile;
use crate::claims;
use crate::device::named_uuid;

/// Opens files and block devices of this machine on the agent's reactor.
pub(crate) struct MachineDisks {
    handle: Handle,
    meters: Arc<DiskMeters>,
    looks: Arc<DiskLooks>,
    management: runtime::Handle,
}

impl MachineDisks {
    /// Disks that are opened on the reactor of `handle`; `meters` count what they do, and `looks` tells what becomes of them. What takes its time is
    /// done on the threads of `management`.
    pub(crate) fn new(
        handle: Handle,
        meters: Arc<DiskMeters>,
        looks: Arc<DiskLooks>,
        management: runtime::Handle,
    ) -> Self {
        Self { handle, meters, looks, management }
    }
}

impl DiskOpener for MachineDisks {
    fn open(&self, path: &str) -> LocalFuture<Result<Arc<dyn BlockDevice>, DiskError>> {
        let options = UringOptions {
            name: path.to_owned(),
            uuid: named_uuid(path),
            block_size: None,
            disk: DiskOptions::default(),
        };
        let (handle, path) = (self.handle.clone(), path.to_owned());
        let (meters, looks) = (Arc::clone(&self.meters), Arc::clone(&self.looks));
        Box::pin(async move {
            match claims::open_later(&handle, Path::new(&path), &options).await {
                Ok(device) => {
                    let device = Arc::new(device);
                    looks.add(&device);
                    Ok(meters.metered(&path, device))
                }
                Err(UringError::Disk { source, .. }) => Err(source),
                // No block size was asked for, so that none is too small.
                Err(UringError::BlockSize { .. }) => Err(DiskError::Unsupported),
            }
        })
    }

    fn allocate(&self, path: &str, bytes: u64) -> LocalFuture<Result<(), DiskError>> {
        let (done, result) = oneshot::channel();
        if let Some(disk) = self.looks.opened_at(Path::new(path)) {
            self.management.spawn_blocking(move || {
                // The agent ended meanwhile if nobody listens; what has its place keeps it.
                if done.send(disk.allocate(bytes)).is_err() {
                    tracing::debug!("nobody waits for room on a disk any more");
                }
            });
        }
        // Nobody answers for a disk that was closed meanwhile, or when the daemon ends.
        Box::pin(async move { result.await.unwrap_or(Err(DiskError::Gone)) })
    }
}

/// Keeps the desired state in the data directory. The file is written on a management thread: a reactor never waits for it.
pub(crate) struct ManagementStore {
    file: DesiredFile,
    management: runtime::Handle,
}

impl ManagementStore {
    /// A store whose files are read and written on the threads of `management`.
    pub(crate) fn new(file: DesiredFile, management: runtime::Handle) -> Self {
        Self { file, management }
    }

    fn on_management<T: Send + 'static>(
        &self,
        work: impl FnOnce(DesiredFile) -> Result<T, super::store::StoreError> + Send + 'static,
    ) -> LocalFuture<Result<T, StoreError>> {
        let (done, result) = oneshot::channel();
        let file = self.file.clone();
        self.management.spawn_blocking(move || {
            // The agent ended meanwhile if nobody listens; what was written stays written.
            if done.send(work(file)).is_err() {
                tracing::debug!("nobody waits for the store any more");
            }
        });
        Box::pin(async move {
            match result.await {
                Ok(Ok(value)) => Ok(value),
                Ok(Err(error)) => Err(StoreError::Io(std::io::Error::other(error))),
                Err(_) => Err(StoreError::Io(std::io::ErrorKind::BrokenPipe.into())),
            }
        })
    }
}

impl StateStore for ManagementStore {
    fn load(&self) -> LocalFuture<Result<Option<DesiredNode>, StoreError>> {
        self.on_management(|file| file.load())
    }

    fn save(&self, desired: &DesiredNode) -> LocalFuture<Result<(), StoreError>> {
        let desired = desired.clone();
        self.on_management(move |file| {
            let saved = file.save(&desired);
            if saved.is_err() {
                metrics::state_not_kept();
            }
            saved
        })
    }
}

/// Hands reports to the session and to the metrics.
pub(crate) struct ReportSender {
    reports: watch::Sender<Option<NodeReport>>,
}

impl ReportSender {
    /// Reports go to the receivers of `reports`; each sees the newest.
    pub(crate) fn new(reports: watch::Sender<Option<NodeReport>>) -> Self {
        Self { reports }
    }
}

impl Reporter for ReportSender {
    fn report(&self, report: &NodeReport) {
        self.reports.send_replace(Some(report.clone()));
    }
}

#[cfg(test)]
mod tests {
    use basalt_bdev::Backing;
    use basalt_reactor::real::RealDriver;
    use basalt_reactor::{Reactor, ReactorOptions};

    use super::*;

    /// Runs `test` on a reactor, with the disks of the machine and who looks at them.
    fn run<T: 'static>(test: impl AsyncFnOnce(MachineDisks, Handle, Arc<DiskLooks>) -> T + 'static) -> T {
        let mut reactor = Reactor::new(Box::new(RealDriver::new().unwrap()), &ReactorOptions::default());
        let (handle, looks) = (reactor.handle(), Arc::<DiskLooks>::default());
        let management = tokio::runtime::Runtime::new().unwrap();
        let spawner = management.handle().clone();
        let disks = MachineDisks::new(handle.clone(), Arc::default(), Arc::clone(&looks), spawner);
        let mut task = reactor.handle().spawn(async move {
            let output = test(disks, handle.clone(), looks).await;
            handle.stop();
            output
        });
        reactor.run();
        task.take_output().unwrap()
    }

    #[test]
    fn a_file_that_is_cut_under_a_pool_is_noticed_without_any_request() {
        let management = tokio::runtime::Runtime::new().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk");
        std::fs::write(&file, vec![0; 1 << 20]).unwrap();
        let spawner = management.handle().clone();
        run(async move |disks, handle, looks| {
            let device = disks.open(&file.display().to_string()).await.unwrap();
            std::fs::File::options().write(true).open(&file).unwrap().set_len(1 << 19).unwrap();
            spawner.spawn(looks.keep());
            while device.info().backing() == Backing::Sound {
                handle.sleep(std::time::Duration::from_millis(1)).await;
            }
            assert_eq!(device.info().backing(), Backing::Shortened { was: 1 << 20, is: 1 << 19 });
        });
    }

    #[test]
    fn what_a_pool_keeps_for_itself_has_its_place_in_the_file() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("disk");
        std::fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
        run(async move |disks, _, _| {
            let path = file.display().to_string();
            assert_eq!(disks.allocate(&path, 1 << 20).await, Err(DiskError::Gone), "it is not open");
            let device = disks.open(&path).await.unwrap();
            disks.allocate(&path, 5 << 20).await.unwrap();
            let found = std::fs::metadata(&file).unwrap();
            assert_eq!((found.len(), found.blocks() * 512 >= 5 << 20), (64 << 20, true));
            assert!(found.blocks() * 512 < 8 << 20, "no more than that");
            drop(device);
        });
    }

    #[test]
    fn an_empty_file_is_called_too_small() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("empty").display().to_string();
        std::fs::write(&path, []).unwrap();
        let error = run(async move |disks, _, _| disks.open(&path).await.err().unwrap());
        assert_eq!(
            error.to_string(),
            "smaller than one block of 512 bytes: lengthen it, or name another one"
        );
    }
}
