//! Reservations in files, one per namespace: what a daemon without a control plane keeps through a loss of power.
//!
//! A thread of its own writes: beside the file, synced, renamed over it, folder synced. docs/reservations.md has the format.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use basalt_nvmf_target::{ImageError, ReservationState, ReservationStore, Saved, StoreError};
use uuid::Uuid;

use crate::claims;

const FOLDER: &str = "reservations";
/// Saves under way: a namespace has one at a time, and a subsystem at most so many namespaces.
const SAVES_MAX: usize = 256;
/// A longer file is not one of ours.
const IMAGE_BYTES_MAX: u64 = 1 << 20;

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The folder cannot be made or used.
    #[error("cannot use {} for the daemon's state: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon uses it.
    #[error("{} is in use by another basaltd; give this one a --state of its own", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
}

struct Save {
    namespace: [u8; 16],
    image: Option<Vec<u8>>,
    saved: Saved,
}

/// A folder of reservations.
#[derive(Debug)]
pub(crate) struct ReservationFiles {
    folder: PathBuf,
    saves: SyncSender<Save>,
    /// Keeps a second daemon out.
    _lock: File,
}

impl ReservationFiles {
    /// Opens or makes the folder `reservations` in `state`.
    pub(crate) fn open(state: &Path) -> Result<Self, OpenError> {
        let folder = state.join(FOLDER);
        let failed = |source| OpenError::Io { path: state.to_owned(), source };
        fs::create_dir_all(&folder).map_err(failed)?;
        let lock = File::create(state.join("lock")).map_err(failed)?;
        match claims::lock(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: state.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let (saves, orders) = sync_channel(SAVES_MAX);
        let written = folder.clone();
        let thread = thread::Builder::new().name("reservations".to_owned());
        thread.spawn(move || write_all(&written, &orders)).map_err(failed)?;
        Ok(Self { folder, saves, _lock: lock })
    }
}

/// Where the reservation of a namespace with this UUID is kept in a daemon's folder for its state.
pub(crate) fn path(state: &Path, namespace: [u8; 16]) -> PathBuf {
    file_of(&state.join(FOLDER), namespace)
}

fn file_of(folder: &Path, namespace: [u8; 16]) -> PathBuf {
    folder.join(Uuid::from_bytes(namespace).to_string())
}

impl ReservationStore for ReservationFiles {
    fn load(&self, namespace: [u8; 16]) -> Result<Option<ReservationState>, StoreError> {
        let path = file_of(&self.folder, namespace);
        match fs::metadata(&path) {
            Ok(found) if found.len() > IMAGE_BYTES_MAX => return Err(ImageError::Foreign.into()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::Io(error.kind())),
        }
        let bytes = fs::read(&path).map_err(|error| StoreError::Io(error.kind()))?;
        Ok(Some(ReservationState::decode(namespace, &bytes)?))
    }

    fn save(&self, namespace: [u8; 16], state: Option<&ReservationState>, saved: Saved) {
        let image = state.map(|state| state.encode(namespace));
        if let Err(refused) = self.saves.try_send(Save { namespace, image, saved }) {
            let (std::sync::mpsc::TrySendError::Full(save)
            | std::sync::mpsc::TrySendError::Disconnected(save)) = refused;
            (save.saved)(Err(StoreError::Stopped));
        }
    }
}

fn write_all(folder: &Path, saves: &Receiver<Save>) {
    for Save { namespace, image, saved } in saves {
        let result = write(folder, namespace, image.as_deref());
        if let Err(error) = &result {
            let namespace = Uuid::from_bytes(namespace);
            tracing::error!(%namespace, folder = %folder.display(), %error, "a reservation cannot be saved");
        }
        saved(result.map_err(|error| StoreError::Io(error.kind())));
    }
}

fn write(folder: &Path, namespace: [u8; 16], image: Option<&[u8]>) -> io::Result<()> {
    let path = file_of(folder, namespace);
    match image {
        Some(image) => {
            let beside = path.with_extension("new");
            let mut file = File::create(&beside)?;
            file.write_all(image)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
        }
        None => match fs::remove_file(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            other => other?,
        },
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../../nvmf-target/tests/golden/reservation-v1.bin");
    const NAMESPACE: [u8; 16] = [7; 16];

    fn save(store: &ReservationFiles, state: Option<&ReservationState>) -> Result<(), StoreError> {
        let (tell, told) = sync_channel(1);
        store.save(NAMESPACE, state, Box::new(move |result| tell.send(result).unwrap()));
        told.recv().unwrap()
    }

    #[test]
    fn what_is_saved_is_loaded_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store = ReservationFiles::open(folder.path()).unwrap();
        assert_eq!(store.load(NAMESPACE), Ok(None));
        let state = ReservationState::decode(NAMESPACE, GOLDEN).unwrap();
        save(&store, Some(&state)).unwrap();
        save(&store, Some(&state)).unwrap();
        assert!(matches!(ReservationFiles::open(folder.path()), Err(OpenError::InUse { .. })));
        drop(store);
        let store = ReservationFiles::open(folder.path()).unwrap();
        assert_eq!(store.load(NAMESPACE), Ok(Some(state)));
        let file = folder.path().join("reservations").join(Uuid::from_bytes(NAMESPACE).to_string());
        assert_eq!(fs::read(&file).unwrap(), GOLDEN);
        fs::write(&file, &GOLDEN[..100]).unwrap();
        assert_eq!(store.load(NAMESPACE), Err(StoreError::Image(ImageError::Damaged)));
        save(&store, None).unwrap();
        save(&store, None).unwrap();
        assert_eq!(store.load(NAMESPACE), Ok(None));
        assert_eq!(fs::read_dir(folder.path().join("reservations")).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn a_folder_that_is_gone_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let store = ReservationFiles::open(folder.path()).unwrap();
        fs::remove_dir_all(folder.path().join("reservations")).unwrap();
        let state = ReservationState::decode(NAMESPACE, GOLDEN).unwrap();
        assert_eq!(save(&store, Some(&state)), Err(StoreError::Io(ErrorKind::NotFound)));
        let missing = ReservationFiles::open(Path::new("/proc/none")).unwrap_err();
        assert!(missing.to_string().contains("cannot use /proc/none"), "{missing}");
    }
}
