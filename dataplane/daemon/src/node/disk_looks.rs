//! Looks at the files that pools lie on: whether they are still whole. Nobody tells that a file was cut under its user, so it is looked at
//! every now and then, on threads where that may take as long as the file system does. What is found is in the device's properties.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use basalt_device_uring::UringDevice;
use tokio::time::MissedTickBehavior;

/// Time between looks. What is written meanwhile to a file that was cut makes it longer again.
const LOOK: Duration = Duration::from_secs(1);

/// The disks that are looked at, for as long as they are open.
#[derive(Debug, Default)]
pub(crate) struct DiskLooks {
    /// Locked for a moment when a disk is opened and for each round, never for a request.
    disks: Mutex<Vec<Looked>>,
}

#[derive(Debug, Clone)]
struct Looked {
    device: Weak<UringDevice>,
    /// A look at it is under way: there is one at a time, however long a file system does not answer.
    busy: Arc<AtomicBool>,
}

impl DiskLooks {
    /// Looks at a disk from now on.
    pub(crate) fn add(&self, device: &Arc<UringDevice>) {
        let looked = Looked { device: Arc::downgrade(device), busy: Arc::default() };
        self.disks.lock().unwrap_or_else(PoisonError::into_inner).push(looked);
    }

    /// The disk that was opened at a path last, if it is open.
    pub(crate) fn opened_at(&self, path: &Path) -> Option<Arc<UringDevice>> {
        let disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.iter().rev().filter_map(|disk| disk.device.upgrade()).find(|device| device.path() == path)
    }

    /// Looks for as long as it is polled.
    pub(crate) async fn keep(self: Arc<Self>) {
        let mut rounds = tokio::time::interval(LOOK);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            for disk in self.due() {
                // It ends by itself, and says so itself.
                drop(tokio::task::spawn_blocking(move || disk.look()));
            }
        }
    }

    /// Forgets what was closed, and marks as busy what is looked at now.
    fn due(&self) -> Vec<Looked> {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        disks.retain(|disk| disk.device.strong_count() > 0);
        disks.iter().filter(|disk| !disk.busy.swap(true, Ordering::AcqRel)).cloned().collect()
    }
}

impl Looked {
    fn look(&self) {
        if let Some(device) = self.device.upgrade() {
            device.look();
        }
        self.busy.store(false, Ordering::Release);
    }
}
