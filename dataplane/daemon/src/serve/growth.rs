//! Files and disks that grow while they are served, or are cut.
//!
//! A file system tells nobody that a file has grown, so lengths are looked at every now and then, on a thread where that may take its time.
//! A reactor opens a disk anew only when it has grown.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use basalt_bdev::{Backing, BlockDevice};
use basalt_device_uring::UringDevice;
use basalt_nvmf_target::Target;
use basalt_reactor::Remote;

/// Time between looks.
const LOOK: Duration = Duration::from_secs(1);

/// A disk whose length is looked at.
struct Watched {
    device: Arc<UringDevice>,
    /// The length at the last look, in bytes.
    length: u64,
    /// What was found of its file.
    backing: Backing,
}

/// The disks that are served, and who is to know when one has grown.
pub(super) struct Growth {
    disks: Vec<Watched>,
    remote: Remote,
    target: Arc<Target>,
}

impl Growth {
    /// Of disks that the reactor behind `remote` can open.
    pub(super) fn new(disks: Vec<Arc<UringDevice>>, remote: Remote, target: Arc<Target>) -> Self {
        let watched = |device: Arc<UringDevice>| Watched {
            length: device.disk().length,
            backing: Backing::Sound,
            device,
        };
        Self { disks: disks.into_iter().map(watched).collect(), remote, target }
    }

    /// Looks for as long as it is polled.
    pub(super) async fn watch(mut self) {
        if self.disks.is_empty() {
            return;
        }
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            // A file system may not answer: that must not hold up this thread.
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(growth) => self = growth,
                Err(error) => {
                    tracing::warn!(%error, "disks that grow are not noticed any more");
                    return;
                }
            }
        }
    }

    /// Looks once, and has those that have grown opened anew.
    fn look(&mut self) {
        for disk in &mut self.disks {
            let (device, path) = (&disk.device, disk.device.path().display());
            device.look();
            let backing = device.info().backing();
            if backing != std::mem::replace(&mut disk.backing, backing) {
                match backing {
                    Backing::Sound => tracing::info!("{path}: {backing}"),
                    _ => tracing::error!("{path}: {backing}"),
                }
            }
            if matches!(backing, Backing::Shortened { .. }) {
                continue;
            }
            let length = match length(device) {
                Ok(length) => length,
                Err(error) => {
                    tracing::debug!(%path, %error, "a disk's length is not to be had");
                    continue;
                }
            };
            if length == std::mem::replace(&mut disk.length, length) {
                continue;
            }
            let served = device.info().bytes();
            device.note_length(length);
            if length < served {
                tracing::warn!(%path, length, served, "a disk has shrunk: what is missing cannot be read or written any more");
                continue;
            }
            let (device, target) = (Arc::clone(device), Arc::clone(&self.target));
            let asked = self.remote.post(move |handle| take_over(&device, &target, handle));
            if let Err(error) = asked {
                tracing::debug!(%path, %error, "a reactor was not asked to look at a disk; it is asked again");
                disk.length = 0;
            }
        }
    }
}

fn take_over(device: &UringDevice, target: &Target, handle: &basalt_reactor::Handle) {
    let (path, before) = (device.path().display(), device.info().bytes());
    if let Err(error) = device.rescan(handle) {
        tracing::warn!(%path, %error, "a disk that has grown cannot be opened anew");
        return;
    }
    let bytes = device.info().bytes();
    if bytes > before {
        tracing::info!(%path, before, bytes, "a disk has grown");
        target.note_resize();
    }
}

/// Of a file or block device, in bytes.
fn length(device: &UringDevice) -> io::Result<u64> {
    File::open(device.found_at())?.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use basalt_bdev::{AsyncChannel, IoError, Lba};
    use basalt_device_uring::UringOptions;
    use basalt_dma::Buffer;
    use basalt_nvmf_target::TargetOptions;
    use basalt_reactor::{DiskOptions, ReactorOptions, ReactorThread, start};
    use uuid::Uuid;

    use super::*;

    const BEGIN: u64 = 1 << 20;

    fn reactor() -> ReactorThread {
        start("reactor", None, ReactorOptions::default(), |_| {}).unwrap()
    }

    fn device(reactor: &ReactorThread, path: &Path) -> Arc<UringDevice> {
        let (tell, told) = mpsc::sync_channel(1);
        let path = path.to_owned();
        let opens = reactor.remote().post(move |handle| {
            let disk = DiskOptions { create_with_length: Some(BEGIN), ..DiskOptions::default() };
            let options = UringOptions { name: "disk".to_owned(), uuid: Uuid::nil(), block_size: None, disk };
            tell.send(UringDevice::open(handle, &path, &options)).unwrap();
        });
        opens.unwrap();
        Arc::new(told.recv().unwrap().unwrap())
    }

    /// Everything that was posted before is done.
    fn settle(reactor: &ReactorThread) {
        let (tell, told) = mpsc::sync_channel(1);
        reactor.remote().post(move |_| tell.send(()).unwrap()).unwrap();
        told.recv().unwrap();
    }

    fn write(reactor: &ReactorThread, device: &Arc<UringDevice>, offset: u64) -> Result<(), IoError> {
        let (tell, told) = mpsc::sync_channel(1);
        let device = Arc::clone(device);
        let posted = reactor.remote().post(move |handle| {
            let channel = AsyncChannel::new(handle, device.open(handle).unwrap());
            let (at, bytes) = (device.info().block_size().blocks_in(offset), Buffer::zeroed(4096));
            let count = device.info().block_size().blocks_in(4096);
            drop(handle.spawn(async move {
                tell.send(channel.write(Lba(at.0), count, bytes, false).await.map(drop)).unwrap();
            }));
        });
        posted.unwrap();
        told.recv().unwrap()
    }

    fn resize(path: &Path, length: u64) {
        File::options().write(true).open(path).unwrap().set_len(length).unwrap();
    }

    #[test]
    fn a_file_that_grows_is_noticed_and_one_that_is_cut_is_not_served_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let reactor = reactor();
        let device = device(&reactor, &path);
        let target = Target::new(TargetOptions::default());
        let version = || target.version();
        let began = version();
        let mut growth =
            Growth::new(vec![Arc::clone(&device)], reactor.remote().clone(), Arc::clone(&target));
        growth.look();
        settle(&reactor);
        assert_eq!((device.info().bytes(), version()), (BEGIN, began));
        resize(&path, 3 * BEGIN);
        growth.look();
        settle(&reactor);
        assert_eq!((device.info().bytes(), version()), (3 * BEGIN, began + 1), "queues are told to look");
        resize(&path, BEGIN);
        growth.look();
        settle(&reactor);
        assert_eq!((device.info().bytes(), version()), (3 * BEGIN, began + 1));
        // What is written behind its end would make it longer, and what was lost before that would read as zeroes.
        assert_eq!(write(&reactor, &device, 2 * BEGIN), Err(IoError::Shortened));
        assert_eq!(write(&reactor, &device, 0), Err(IoError::Shortened));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), BEGIN);
        resize(&path, 4 * BEGIN);
        growth.look();
        settle(&reactor);
        assert_eq!((device.info().bytes(), version()), (3 * BEGIN, began + 1), "it does not come back");
        assert_eq!(write(&reactor, &device, 0), Err(IoError::Shortened));
        // Another file at the same path is not the one that is served.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, vec![0; 4 << 20]).unwrap();
        growth.look();
        settle(&reactor);
        assert_eq!((device.info().bytes(), version()), (3 * BEGIN, began + 1));
    }
}
