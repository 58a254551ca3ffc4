//! Claims of what a process held until a moment ago. One that is told to stop ends what is under way first; when one is killed, its disks
//! are free once the kernel has let go of its rings and of what was under way in them, which is some milliseconds later, or as long as a
//! disk takes that hangs.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use basalt_device_uring::{UringDevice, UringError, UringOptions};
use basalt_reactor::{DiskError, Handle};

/// How long a person's command waits for a claim.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the agent waits, which asks again later.
const AGENT_PATIENCE: Duration = Duration::from_millis(500);
/// Between two attempts.
const INTERVAL: Duration = Duration::from_millis(10);

/// Opens a disk and waits for its claim on this thread: for set-up, while nothing is served.
pub(crate) fn open(handle: &Handle, path: &Path, options: &UringOptions) -> Result<UringDevice, UringError> {
    patiently(|| UringDevice::open(handle, path, options), is_claimed)
}

/// Locks the file that keeps a second daemon out of a folder, and waits for it on this thread.
pub(crate) fn lock(file: &File) -> Result<(), TryLockError> {
    patiently(|| file.try_lock(), |locked| matches!(locked, Err(TryLockError::WouldBlock)))
}

fn patiently<T>(mut attempt: impl FnMut() -> T, is_claimed: impl Fn(&T) -> bool) -> T {
    let mut attempts = PATIENCE.as_millis() / INTERVAL.as_millis();
    loop {
        let result = attempt();
        if attempts == 0 || !is_claimed(&result) {
            return result;
        }
        attempts -= 1;
        std::thread::sleep(INTERVAL);
    }
}

/// Opens a disk and waits for its claim while the reactor does other things.
pub(crate) async fn open_later(
    handle: &Handle,
    path: &Path,
    options: &UringOptions,
) -> Result<UringDevice, UringError> {
    let deadline = handle.now() + AGENT_PATIENCE;
    loop {
        let opened = UringDevice::open(handle, path, options);
        if handle.now() >= deadline || !is_claimed(&opened) {
            return opened;
        }
        handle.sleep(INTERVAL).await;
    }
}

fn is_claimed(opened: &Result<UringDevice, UringError>) -> bool {
    matches!(opened, Err(UringError::Disk { source: DiskError::InUse, .. }))
}
