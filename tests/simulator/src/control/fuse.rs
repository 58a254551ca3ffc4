//! A disk that stops its process in the middle of a sequence of operations.

use basalt_raft::{Disk, DiskError, DiskFile, MemoryDisk};
use std::cell::Cell;
use std::io;
use std::rc::Rc;

/// Counts the changes that a process makes to its disk and kills it at one of them.
///
/// From the fatal operation on everything fails, so that the process cannot go on whatever it does with the error.
#[derive(Debug, Clone, Default)]
pub struct Fuse {
    left: Rc<Cell<Option<u64>>>,
    blown: Rc<Cell<bool>>,
    operations: Rc<Cell<u64>>,
}

impl Fuse {
    /// Lets `operations` more changes happen and kills the process at the next one.
    pub fn set(&self, operations: u64) {
        self.left.set(Some(operations));
    }

    /// Whether the process was killed.
    pub fn is_blown(&self) -> bool {
        self.blown.get()
    }

    /// How many changes were made or tried.
    pub fn operations(&self) -> u64 {
        self.operations.get()
    }

    fn burn(&self, operation: &'static str, name: &str) -> Result<(), DiskError> {
        self.operations.set(self.operations.get() + 1);
        match self.left.get() {
            Some(0) => self.blown.set(true),
            Some(left) => self.left.set(Some(left - 1)),
            None => {}
        }
        if self.blown.get() {
            return Err(DiskError::new(operation, name, io::Error::from(io::ErrorKind::Interrupted)));
        }
        Ok(())
    }
}

/// A memory disk behind a fuse.
#[derive(Debug)]
pub struct FusedDisk {
    inner: MemoryDisk,
    fuse: Fuse,
}

impl FusedDisk {
    /// Puts a fuse before a disk.
    pub fn new(inner: MemoryDisk, fuse: Fuse) -> Self {
        Self { inner, fuse }
    }
}

/// A file of a [`FusedDisk`].
#[derive(Debug)]
pub struct FusedFile<F> {
    inner: F,
    fuse: Fuse,
}

impl Disk for FusedDisk {
    type File = FusedFile<<MemoryDisk as Disk>::File>;

    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.inner.list()
    }

    fn create(&mut self, name: &str) -> Result<Self::File, DiskError> {
        self.fuse.burn("create", name)?;
        Ok(FusedFile { inner: self.inner.create(name)?, fuse: self.fuse.clone() })
    }

    fn open(&mut self, name: &str) -> Result<Self::File, DiskError> {
        Ok(FusedFile { inner: self.inner.open(name)?, fuse: self.fuse.clone() })
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.fuse.burn("rename", from)?;
        self.inner.rename(from, to)
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.fuse.burn("remove", name)?;
        self.inner.remove(name)
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        self.fuse.burn("sync", "")?;
        self.inner.sync_directory()
    }
}

impl<F: DiskFile> DiskFile for FusedFile<F> {
    fn length(&self) -> Result<u64, DiskError> {
        self.inner.length()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.inner.read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.fuse.burn("write", "")?;
        self.inner.write_at(offset, bytes)
    }

    fn truncate(&mut self, length: u64) -> Result<(), DiskError> {
        self.fuse.burn("truncate", "")?;
        self.inner.truncate(length)
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.fuse.burn("sync", "")?;
        self.inner.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_raft::CrashStyle;

    #[test]
    fn the_process_dies_at_the_chosen_operation_and_stays_dead() {
        let (memory, fuse) = (MemoryDisk::new(), Fuse::default());
        let mut disk = FusedDisk::new(memory.clone(), fuse.clone());
        fuse.set(2);
        let mut file = disk.create("log").unwrap();
        file.write_at(0, b"kept").unwrap();
        assert!(file.sync().is_err() && fuse.is_blown());
        assert!(file.write_at(4, b"more").is_err() && disk.create("other").is_err());
        assert_eq!(fuse.operations(), 5);
        memory.crash(CrashStyle::KeepAll);
        assert_eq!(memory.content("log").unwrap(), b"kept");
    }
}
