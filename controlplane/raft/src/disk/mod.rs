//! A directory of files as the log needs it: synchronous, and small enough to be simulated with crashes.

mod directory;
mod memory;

pub use directory::{DirectoryDisk, DirectoryFile};
pub use memory::{CrashStyle, DiskFault, MemoryDisk, MemoryFile};

use std::io;

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {file}: {source}{remedy}", remedy = remedy(source))]
pub struct DiskError {
    /// What was tried, as a verb.
    pub operation: &'static str,
    /// The file.
    pub file: String,
    /// The cause.
    #[source]
    pub source: io::Error,
}

fn remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull => "; free space on the disk, then start the member again",
        io::ErrorKind::ReadOnlyFilesystem => "; make the file system writable, then start the member again",
        io::ErrorKind::PermissionDenied => "; let the member's user own its directory",
        _ => "",
    }
}

impl DiskError {
    /// An error about this file.
    pub fn new(operation: &'static str, file: &str, source: io::Error) -> Self {
        Self { operation, file: file.to_owned(), source }
    }
}

/// A directory of files.
///
/// Durability is as on POSIX: bytes are safe after [`DiskFile::sync`], names (created, renamed, removed) after
/// [`Disk::sync_directory`].
pub trait Disk {
    /// An open file.
    type File: DiskFile;

    /// The names of all files, sorted.
    fn list(&self) -> Result<Vec<String>, DiskError>;
    /// Creates a file; fails when it exists.
    fn create(&mut self, name: &str) -> Result<Self::File, DiskError>;
    /// Opens a file for reading and writing; fails when it does not exist.
    fn open(&mut self, name: &str) -> Result<Self::File, DiskError>;
    /// Gives a file another name, replacing what had it.
    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError>;
    /// Removes a file.
    fn remove(&mut self, name: &str) -> Result<(), DiskError>;
    /// Makes the names durable.
    fn sync_directory(&mut self) -> Result<(), DiskError>;
}

/// An open file.
pub trait DiskFile {
    /// Its length in bytes.
    fn length(&self) -> Result<u64, DiskError>;
    /// Fills `buffer` from `offset` on; fails when the file ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError>;
    /// Writes `bytes` at `offset`, which may be the end.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError>;
    /// Cuts the file off.
    fn truncate(&mut self, length: u64) -> Result<(), DiskError>;
    /// Makes bytes and length durable.
    fn sync(&mut self) -> Result<(), DiskError>;
}

/// Reads a whole file.
pub(crate) fn read_all<D: Disk>(disk: &mut D, name: &str) -> Result<Vec<u8>, DiskError> {
    let file = disk.open(name)?;
    let length = usize::try_from(file.length()?)
        .map_err(|_| DiskError::new("read", name, io::Error::from(io::ErrorKind::FileTooLarge)))?;
    let mut bytes = vec![0; length];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Writes a whole file so that after a crash either the old or the new content is there.
pub(crate) fn replace<D: Disk>(disk: &mut D, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
    let temporary = format!("{name}.tmp");
    if disk.list()?.contains(&temporary) {
        disk.remove(&temporary)?;
    }
    let mut file = disk.create(&temporary)?;
    file.write_at(0, bytes)?;
    file.sync()?;
    disk.rename(&temporary, name)?;
    disk.sync_directory()
}
