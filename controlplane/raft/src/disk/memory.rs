//! A disk in memory that can crash: what was not synced is lost, kept or torn, as a seed says.

use super::{Disk, DiskError, DiskFile};
use basalt_clock::{Random, SeededRandom};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

/// What a device writes at once.
const SECTOR: usize = 512;

/// What a crash does to what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashStyle {
    /// All of it is lost.
    LoseAll,
    /// All of it happens to be on the disk.
    KeepAll,
    /// A random part survives: names one by one, and of unsynced writes those up to a random point, or any sectors.
    Tear {
        /// Decides which part.
        seed: u64,
    },
}

/// A fault of a disk, until it is lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// Writing and creating fail for lack of space.
    Full,
    /// Writing, creating and removing fail.
    ReadOnly,
    /// Syncing fails.
    SyncFails,
    /// Everything fails.
    Dead,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    /// What reads see.
    content: Vec<u8>,
    /// What a crash leaves for certain.
    durable: Vec<u8>,
    /// Contents between the two, oldest first: each is a state that a crash may leave.
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { length: usize },
}

impl Step {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Step::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if content.len() < end {
                    content.resize(end, 0);
                }
                content[*offset..end].copy_from_slice(bytes);
            }
            Step::Truncate { length } => content.resize(*length, 0),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    next: u64,
    fault: Option<DiskFault>,
    syncs: u64,
    /// Grows at a crash: files that were open before are dead.
    life: u64,
}

/// A disk in memory. Clones share the content, as two handles to one device would.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    shared: Rc<RefCell<Shared>>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The machine loses power: open files are dead, and unsynced changes are treated as `style` says.
    pub fn crash(&self, style: CrashStyle) {
        let shared = &mut *self.shared.borrow_mut();
        shared.life += 1;
        match style {
            CrashStyle::KeepAll => {}
            CrashStyle::LoseAll => {
                shared.names = shared.durable_names.clone();
                for inode in shared.inodes.values_mut() {
                    inode.content = inode.durable.clone();
                }
            }
            CrashStyle::Tear { seed } => tear(shared, &mut SeededRandom::new(seed)),
        }
        shared.durable_names = shared.names.clone();
        let used: BTreeSet<u64> = shared.names.values().copied().collect();
        shared.inodes.retain(|id, _| used.contains(id));
        for inode in shared.inodes.values_mut() {
            inode.durable = inode.content.clone();
            inode.steps.clear();
        }
    }

    /// Sets or lifts a fault.
    pub fn set_fault(&self, fault: Option<DiskFault>) {
        self.shared.borrow_mut().fault = fault;
    }

    /// How often a file or the directory was synced.
    pub fn syncs(&self) -> u64 {
        self.shared.borrow().syncs
    }

    /// The content of a file, for tests that look at or damage it.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let shared = self.shared.borrow();
        shared.names.get(name).and_then(|id| shared.inodes.get(id)).map(|inode| inode.content.clone())
    }

    /// Replaces the content of a file, durably, for tests that damage it.
    pub fn set_content(&self, name: &str, content: Vec<u8>) {
        let shared = &mut *self.shared.borrow_mut();
        if let Some(inode) = shared.names.get(name).and_then(|id| shared.inodes.get_mut(id)) {
            inode.durable = content.clone();
            inode.content = content;
            inode.steps.clear();
        }
    }

    fn check(&self, operation: &'static str, name: &str, writes: bool) -> Result<(), DiskError> {
        check(&self.shared.borrow(), operation, name, writes)
    }
}

/// Names revert one by one, files keep a prefix of their unsynced steps, of which the last may be cut short.
fn tear(shared: &mut Shared, random: &mut SeededRandom) {
    let all: BTreeSet<String> = shared.names.keys().chain(shared.durable_names.keys()).cloned().collect();
    for name in all {
        if random.below(2) == 0 {
            match shared.durable_names.get(&name) {
                Some(id) => shared.names.insert(name, *id),
                None => shared.names.remove(&name),
            };
        }
    }
    for inode in shared.inodes.values_mut() {
        inode.content =
            if random.chance(1, 2) { torn_prefix(inode, random) } else { torn_sectors(inode, random) };
    }
}

/// The first of the unsynced steps are there, the last of these perhaps cut short.
fn torn_prefix(inode: &Inode, random: &mut SeededRandom) -> Vec<u8> {
    let mut content = inode.durable.clone();
    let kept = random.below(inode.steps.len() as u64 + 1);
    for (number, step) in (0_u64..).zip(&inode.steps) {
        if number < kept {
            step.apply(&mut content);
        } else if number == kept
            && let Step::Write { offset, bytes } = step
        {
            let cut = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap_or(0);
            Step::Write { offset: *offset, bytes: bytes[..cut].to_vec() }.apply(&mut content);
        }
    }
    content
}

/// Any sectors of the unsynced writes are there, in no order; the length is as if all were.
fn torn_sectors(inode: &Inode, random: &mut SeededRandom) -> Vec<u8> {
    let mut content = inode.durable.clone();
    for step in &inode.steps {
        let Step::Write { offset, bytes } = step else {
            step.apply(&mut content);
            continue;
        };
        content.resize(content.len().max(offset + bytes.len()), 0);
        let (mut at, end) = (*offset, offset + bytes.len());
        while at < end {
            let next = end.min((at / SECTOR + 1) * SECTOR);
            if random.chance(1, 2) {
                content[at..next].copy_from_slice(&bytes[at - offset..next - offset]);
            }
            at = next;
        }
    }
    content
}

fn check(shared: &Shared, operation: &'static str, name: &str, writes: bool) -> Result<(), DiskError> {
    let kind = match shared.fault {
        Some(DiskFault::Full) if writes && matches!(operation, "write" | "create") => {
            io::ErrorKind::StorageFull
        }
        Some(DiskFault::ReadOnly) if writes => io::ErrorKind::ReadOnlyFilesystem,
        Some(DiskFault::SyncFails) if operation == "sync" => io::ErrorKind::Other,
        Some(DiskFault::Dead) => io::ErrorKind::Other,
        _ => return Ok(()),
    };
    Err(DiskError::new(operation, name, io::Error::from(kind)))
}

fn missing(operation: &'static str, name: &str) -> DiskError {
    DiskError::new(operation, name, io::Error::from(io::ErrorKind::NotFound))
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn list(&self) -> Result<Vec<String>, DiskError> {
        self.check("list", "", false)?;
        Ok(self.shared.borrow().names.keys().cloned().collect())
    }

    fn create(&mut self, name: &str) -> Result<MemoryFile, DiskError> {
        self.check("create", name, true)?;
        let shared = &mut *self.shared.borrow_mut();
        if shared.names.contains_key(name) {
            return Err(DiskError::new("create", name, io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        let inode = shared.next;
        shared.next += 1;
        shared.inodes.insert(inode, Inode::default());
        shared.names.insert(name.to_owned(), inode);
        Ok(MemoryFile { name: name.to_owned(), inode, life: shared.life, shared: Rc::clone(&self.shared) })
    }

    fn open(&mut self, name: &str) -> Result<MemoryFile, DiskError> {
        self.check("open", name, false)?;
        let shared = self.shared.borrow();
        let inode = *shared.names.get(name).ok_or_else(|| missing("open", name))?;
        Ok(MemoryFile { name: name.to_owned(), inode, life: shared.life, shared: Rc::clone(&self.shared) })
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.check("rename", from, true)?;
        let shared = &mut *self.shared.borrow_mut();
        let inode = shared.names.remove(from).ok_or_else(|| missing("rename", from))?;
        shared.names.insert(to.to_owned(), inode);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<(), DiskError> {
        self.check("remove", name, true)?;
        self.shared.borrow_mut().names.remove(name).map(|_| ()).ok_or_else(|| missing("remove", name))
    }

    fn sync_directory(&mut self) -> Result<(), DiskError> {
        self.check("sync", "", true)?;
        let shared = &mut *self.shared.borrow_mut();
        shared.syncs += 1;
        shared.durable_names = shared.names.clone();
        Ok(())
    }
}

/// A file of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryFile {
    name: String,
    inode: u64,
    life: u64,
    shared: Rc<RefCell<Shared>>,
}

impl MemoryFile {
    fn with<T>(
        &self,
        operation: &'static str,
        writes: bool,
        act: impl FnOnce(&mut Inode) -> Result<T, io::Error>,
    ) -> Result<T, DiskError> {
        let shared = &mut *self.shared.borrow_mut();
        check(shared, operation, &self.name, writes)?;
        if self.life != shared.life {
            return Err(missing(operation, &self.name));
        }
        shared.syncs += u64::from(operation == "sync");
        let inode = shared.inodes.get_mut(&self.inode).ok_or_else(|| missing(operation, &self.name))?;
        act(inode).map_err(|source| DiskError::new(operation, &self.name, source))
    }
}

/// An offset as an index into memory.
fn index(offset: u64) -> Result<usize, io::Error> {
    usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
}

impl DiskFile for MemoryFile {
    fn length(&self) -> Result<u64, DiskError> {
        self.with("stat", false, |inode| Ok(inode.content.len() as u64))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.with("read", false, |inode| {
            let start = index(offset)?;
            let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::FileTooLarge)?;
            let bytes = inode.content.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.with("write", true, |inode| {
            let step = Step::Write { offset: index(offset)?, bytes: bytes.to_vec() };
            step.apply(&mut inode.content);
            inode.steps.push(step);
            Ok(())
        })
    }

    fn truncate(&mut self, length: u64) -> Result<(), DiskError> {
        self.with("truncate", true, |inode| {
            let step = Step::Truncate { length: index(length)? };
            step.apply(&mut inode.content);
            inode.steps.push(step);
            Ok(())
        })
    }

    fn sync(&mut self) -> Result<(), DiskError> {
        self.with("sync", true, |inode| {
            for step in inode.steps.drain(..) {
                step.apply(&mut inode.durable);
            }
            Ok(())
        })
    }
}
