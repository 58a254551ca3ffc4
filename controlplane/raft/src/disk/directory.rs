//! The disk on the operating system's files.

use super::{Disk, DiskError, DiskFile};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A directory of the operating system, locked against a second user.
#[derive(Debug)]
pub struct DirectoryDisk {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

/// The file whose lock says that the directory is in use.
const LOCK: &str = "LOCK";

impl DirectoryDisk {
    /// Opens a directory, creating it when it is missing. Fails when another process uses it.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let error = |operation, source| DiskError::new(operation, &path.display().to_string(), source);
        std::fs::create_dir_all(path).map_err(|source| error("create", source))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join(LOCK))
            .map_err(|source| error("open the lock file of", source))?;
        lock.try_lock().map_err(|cause| match cause {
            std::fs::TryLockError::WouldBlock => error(
                "lock",
                io::Error::new(io::ErrorKind::ResourceBusy, "another process uses the directory"),
            ),
            std::fs::TryLockError::Error(source) => error("lock", source),
        })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    fn file(
        &self,
        name: &str,
        options: &mut OpenOptions,
        operation: &'static str,
    ) -> Result<DirectoryFile, DiskError> {
        let path = self.path.join(name);
        let display = path.display().to_string();
        let file = options
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| DiskError::new(operation, &display, source))?;
        Ok(DirectoryFile { name: display, file })
    }

    fn error(&self, operation: &'static str, name: &str) -> impl FnOnce(io::Error) -> DiskError {
        let file = self.path.join(name).display().to_string();
        move |source| DiskError { operation, file, source }
    }
}

impl Disk for DirectoryDisk {
    type File = DirectoryFile;

    fn list(&self) -> Result<Vec<String>, DiskError> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(self.error("list", ""))? {
            let name = entry.map_err(self.error("list", ""))?.file_name();
            match name.into_string() {
                Ok(name) if name != LOCK => names.push(name),
                _ => {}
            }
        }
        names.sort();
        Ok(names)
    }

    fn create(&mut self, name: &str) -> Result<DirectoryFile, DiskError> {
        self.file(name, OpenOptions::new().create_new(true), "create")
    }

    fn open(&mut self, name: &str) -> Result<DirectoryFile, DiskError> {
        self.file(name, &mut OpenOptions::new(), "open")
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        std::fs::rename(self.path.join(from), self.path.join(to)).map_err(self.error("rename", from))
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        std::fs::remove_file(self.path.join(name)).map_err(self.error("remove", name))
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        File::open(&self.path).and_then(|directory| directory.sync_all()).map_err(self.error("sync", ""))
    }
}

/// A file of a [`DirectoryDisk`].
#[derive(Debug)]
pub struct DirectoryFile {
    name: String,
    file: File,
}

impl DirectoryFile {
    fn error(&self, operation: &'static str) -> impl FnOnce(io::Error) -> DiskError {
        let file = self.name.clone();
        move |source| DiskError { operation, file, source }
    }
}

impl DiskFile for DirectoryFile {
    fn length(&self) -> Result<u64, DiskError> {
        Ok(self.file.metadata().map_err(self.error("stat"))?.len())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.file.read_exact_at(buffer, offset).map_err(self.error("read"))
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.file.write_all_at(bytes, offset).map_err(self.error("write"))
    }

    fn truncate(&mut self, length: u64) -> Result<(), DiskError> {
        self.file.set_len(length).map_err(self.error("truncate"))
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(self.error("sync"))
    }
}
