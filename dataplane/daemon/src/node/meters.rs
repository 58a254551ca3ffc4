//! What each volume does for its hosts: counted on the reactors that serve it, summed up when Prometheus asks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use basalt_agent::{Export, ExportError, Exporter, LocalFuture, NodeReport};
use basalt_bdev::{IoStats, MeteredDevice};
use basalt_lvol::id::VolumeId;
use basalt_reactor::SocketError;
use basalt_telemetry::Exposition;

use crate::io_families::IoFamilies;

const VOLUME_FAMILIES: IoFamilies = IoFamilies {
    label: "volume_id",
    operations: ("basalt_volume_io_operations_total", "Requests of hosts that the volume ended, well or not"),
    errors: ("basalt_volume_io_errors_total", "Requests of hosts that failed by the volume's fault"),
    bytes: ("basalt_volume_io_bytes_total", "Bytes that were read, written, unmapped or zeroed"),
    seconds: (
        "basalt_volume_io_seconds",
        "Time that the volume took for requests that succeeded, the network not included",
    ),
};

/// Counters of the volumes of this node. They outlive an export, so that a volume that is served again goes on counting, and end
/// with the volume.
#[derive(Debug, Default)]
pub(crate) struct VolumeMeters {
    /// Locked for a moment at exports and scrapes, never for a request.
    entries: Mutex<BTreeMap<VolumeId, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    served: bool,
    stats: Arc<IoStats>,
}

impl VolumeMeters {
    /// Drops the counters of volumes that are neither served nor on this node any more, as the report says.
    pub(crate) fn forget_gone(&self, report: &NodeReport) {
        let here: BTreeSet<VolumeId> = report.volumes.iter().map(|volume| volume.id).collect();
        self.lock().retain(|id, entry| entry.served || here.contains(id));
    }

    fn stats(&self, id: VolumeId) -> Arc<IoStats> {
        Arc::clone(&self.lock().entry(id).or_default().stats)
    }

    fn set_served(&self, id: VolumeId, served: bool) {
        if let Some(entry) = self.lock().get_mut(&id) {
            entry.served = served;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what was counted of the volumes that are served.
    pub(super) fn expose(&self, exposition: &mut Exposition) {
        let served: Vec<(String, Arc<IoStats>)> = self
            .lock()
            .iter()
            .filter(|(_, entry)| entry.served)
            .map(|(id, entry)| (id.to_string(), Arc::clone(&entry.stats)))
            .collect();
        VOLUME_FAMILIES.show(exposition, &served);
    }
}

/// Puts a meter between a target and the volumes that it serves.
pub(crate) struct MeteredExporter {
    inner: Rc<dyn Exporter>,
    meters: Arc<VolumeMeters>,
}

impl MeteredExporter {
    /// Serves through `inner` and counts in `meters`.
    pub(crate) fn new(inner: Rc<dyn Exporter>, meters: Arc<VolumeMeters>) -> Self {
        Self { inner, meters }
    }
}

impl Exporter for MeteredExporter {
    fn export(&self, export: Export) -> LocalFuture<Result<(), ExportError>> {
        let (id, meters) = (export.volume, Arc::clone(&self.meters));
        let device = MeteredDevice::new(export.device, meters.stats(id));
        let exported = self.inner.export(Export { device: Arc::new(device), ..export });
        Box::pin(async move {
            exported.await?;
            meters.set_served(id, true);
            Ok(())
        })
    }

    fn withdraw(&self, volume: VolumeId) -> LocalFuture<Result<(), ExportError>> {
        let (withdrawn, meters) = (self.inner.withdraw(volume), Arc::clone(&self.meters));
        Box::pin(async move {
            withdrawn.await?;
            meters.set_served(volume, false);
            Ok(())
        })
    }

    fn listen(
        &self,
        bind: SocketAddr,
        advertise: SocketAddr,
    ) -> LocalFuture<Result<SocketAddr, SocketError>> {
        self.inner.listen(bind, advertise)
    }

    fn unlisten(&self, bind: SocketAddr) -> LocalFuture<()> {
        self.inner.unlisten(bind)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::{Duration, Instant};

    use basalt_agent::{AllowedHosts, VolumeHealth, VolumeReport};
    use basalt_bdev::{AsyncChannel, BlockCount, BlockDevice, BlockSize, IoError, Lba, MeteredKind};
    use basalt_device_mem::{Fault, FaultyDevice, OperationKind, RamDevice};
    use basalt_dma::Buffer;
    use basalt_lvol::id::{Epoch, Generation};
    use basalt_reactor::real::RealDriver;
    use basalt_reactor::{Handle, Reactor, ReactorOptions};
    use uuid::Uuid;

    use super::*;

    /// Keeps what was exported last.
    #[derive(Default)]
    struct Shelf(RefCell<Option<Arc<dyn BlockDevice>>>);

    impl Exporter for Shelf {
        fn export(&self, export: Export) -> LocalFuture<Result<(), ExportError>> {
            if export.nqn == "taken" {
                return Box::pin(async { Err(ExportError::NqnTaken(export.nqn)) });
            }
            *self.0.borrow_mut() = Some(export.device);
            Box::pin(async { Ok(()) })
        }

        fn withdraw(&self, _: VolumeId) -> LocalFuture<Result<(), ExportError>> {
            *self.0.borrow_mut() = None;
            Box::pin(async { Ok(()) })
        }

        fn listen(&self, bind: SocketAddr, _: SocketAddr) -> LocalFuture<Result<SocketAddr, SocketError>> {
            Box::pin(async move { Ok(bind) })
        }

        fn unlisten(&self, _: SocketAddr) -> LocalFuture<()> {
            Box::pin(async {})
        }
    }

    struct Rig {
        handle: Handle,
        shelf: Rc<Shelf>,
        exporter: MeteredExporter,
        meters: Arc<VolumeMeters>,
    }

    fn run(test: impl AsyncFnOnce(Rig) + 'static) {
        let driver = Box::new(RealDriver::new().unwrap());
        let mut reactor = Reactor::new(driver, &ReactorOptions::default());
        let (handle, shelf, meters) =
            (reactor.handle(), Rc::<Shelf>::default(), Arc::<VolumeMeters>::default());
        let exporter = MeteredExporter::new(Rc::clone(&shelf) as Rc<dyn Exporter>, Arc::clone(&meters));
        let rig = Rig { handle: handle.clone(), shelf, exporter, meters };
        let task = handle.spawn(async move { test(rig).await });
        let began = Instant::now();
        while !task.is_done() {
            reactor.turn();
            assert!(began.elapsed() < Duration::from_secs(60), "no progress");
        }
    }

    fn ram() -> RamDevice {
        RamDevice::new("ram", Uuid::nil(), BlockSize::B4096, 1 << 20).unwrap()
    }

    fn volume(id: u128) -> VolumeId {
        VolumeId(Uuid::from_u128(id))
    }

    impl Rig {
        async fn export(
            &self,
            id: u128,
            nqn: &str,
            device: impl BlockDevice + 'static,
        ) -> Result<(), ExportError> {
            let export = Export {
                volume: volume(id),
                epoch: Epoch::default(),
                nqn: nqn.to_owned(),
                serial: [b' '; 20],
                nsid: 1,
                uuid: [0; 16],
                nguid: [0; 16],
                allowed_hosts: AllowedHosts::Any,
                device: Arc::new(device),
            };
            self.exporter.export(export).await
        }

        fn channel(&self) -> AsyncChannel {
            let device = self.shelf.0.borrow().clone().unwrap();
            AsyncChannel::new(&self.handle, device.open(&self.handle).unwrap())
        }

        async fn write_one_block(&self) -> Result<(), IoError> {
            self.channel().write(Lba(0), BlockCount(1), Buffer::zeroed(4096), false).await.map(drop)
        }

        /// The value of one series; none if it is not there.
        fn value(&self, name: &str, id: u128, kind: &str) -> Option<u64> {
            let series = format!("{name}{{volume_id=\"{}\",kind=\"{kind}\"}} ", volume(id));
            let mut exposition = Exposition::default();
            self.meters.expose(&mut exposition);
            exposition.as_str().lines().find_map(|line| line.strip_prefix(&series)?.parse().ok())
        }

        fn report(&self, ids: &[u128]) {
            let report = |id: &u128| VolumeReport {
                id: volume(*id),
                generation: Generation::default(),
                health: VolumeHealth::Online,
                size: 0,
                allocated: 0,
                shortfall: None,
                paths: Vec::new(),
            };
            let volumes = ids.iter().map(report).collect();
            self.meters.forget_gone(&NodeReport { volumes, ..NodeReport::default() });
        }
    }

    const OPERATIONS: &str = "basalt_volume_io_operations_total";

    #[test]
    fn a_volume_shows_every_kind_from_the_beginning_and_counts_apart() {
        run(async |rig| {
            rig.export(2, "b", ram()).await.unwrap();
            rig.export(1, "a", ram()).await.unwrap();
            for kind in MeteredKind::ALL {
                assert_eq!(rig.value(OPERATIONS, 1, kind.name()), Some(0));
                assert_eq!(rig.value("basalt_volume_io_errors_total", 1, kind.name()), Some(0));
            }
            rig.write_one_block().await.unwrap();
            assert_eq!(rig.value(OPERATIONS, 1, "write"), Some(1));
            assert_eq!(rig.value("basalt_volume_io_bytes_total", 1, "write"), Some(4096));
            assert_eq!(rig.value("basalt_volume_io_bytes_total", 1, "flush"), None);
            assert_eq!(rig.value("basalt_volume_io_seconds_count", 1, "write"), Some(1));
            assert_eq!(rig.value(OPERATIONS, 1, "read"), Some(0));
            assert_eq!(rig.value(OPERATIONS, 2, "write"), Some(0));
        });
    }

    #[test]
    fn errors_are_counted_and_have_no_latency() {
        run(async |rig| {
            let device = FaultyDevice::new(Arc::new(ram()));
            device.faults().inject(Fault::always(OperationKind::Write, IoError::Medium));
            rig.export(1, "a", device).await.unwrap();
            rig.write_one_block().await.unwrap_err();
            assert_eq!(rig.value(OPERATIONS, 1, "write"), Some(1));
            assert_eq!(rig.value("basalt_volume_io_errors_total", 1, "write"), Some(1));
            assert_eq!(rig.value("basalt_volume_io_bytes_total", 1, "write"), Some(0));
            assert_eq!(rig.value("basalt_volume_io_seconds_count", 1, "write"), Some(0));
        });
    }

    #[test]
    fn counters_survive_another_export() {
        run(async |rig| {
            rig.export(1, "a", ram()).await.unwrap();
            rig.write_one_block().await.unwrap();
            rig.exporter.withdraw(volume(1)).await.unwrap();
            rig.report(&[1]);
            assert_eq!(rig.value(OPERATIONS, 1, "write"), None, "what is not served is not shown");
            rig.export(1, "a", ram()).await.unwrap();
            rig.write_one_block().await.unwrap();
            assert_eq!(rig.value(OPERATIONS, 1, "write"), Some(2));
        });
    }

    #[test]
    fn a_deleted_volume_is_forgotten_and_a_served_one_never() {
        run(async |rig| {
            rig.export(1, "a", ram()).await.unwrap();
            rig.export(2, "b", ram()).await.unwrap();
            rig.exporter.withdraw(volume(1)).await.unwrap();
            rig.report(&[]);
            assert_eq!(rig.value(OPERATIONS, 1, "write"), None);
            assert_eq!(rig.value(OPERATIONS, 2, "write"), Some(0), "absence ends no service");
            assert_eq!(rig.meters.lock().len(), 1);
        });
    }

    #[test]
    fn what_could_not_be_exported_is_not_shown() {
        run(async |rig| {
            rig.export(1, "taken", ram()).await.unwrap_err();
            assert_eq!(rig.value(OPERATIONS, 1, "write"), None);
            rig.report(&[]);
            assert!(rig.meters.lock().is_empty());
        });
    }
}
