use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::disks::error_of;
use super::loops;
use crate::driver::{DiskError, DiskId, DiskInfo, DiskKind, DiskOptions, Errno, FileClaim};

/// Smallest block of a file in bytes.
const FILE_BLOCK_BYTES: u32 = 512;
/// Unit in which a file is best written in bytes, unless the file system says more.
const OPTIMAL_BYTES_MIN: u32 = 4096;

/// Asks whether a block device is read-only (linux/fs.h: `_IO(0x12, 94)`).
const BLKROGET: libc::Ioctl = 0x125e;

/// Opens a file or block device, making the file if the options say so.
pub(super) fn open(path: &Path, options: &DiskOptions) -> Result<File, DiskError> {
    let file = open_file(path, options, 0)?;
    make_length(&file, options)?;
    Ok(file)
}

/// Opens a disk and claims it: by a lock on the open file, and for block devices by exclusive use, which also keeps file systems
/// away. Both end when nothing refers to this open file any more: no descriptor of any process, and no request that the kernel has.
/// What a loop device shows is claimed with it, until the claim is dropped.
pub(super) fn lock(path: &Path, options: &DiskOptions) -> Result<FileClaim, DiskError> {
    let exclusive = match fs::metadata(path) {
        Ok(metadata) if kind_of(&metadata)? == DiskKind::BlockDevice => libc::O_EXCL,
        Ok(_) => 0,
        // Opening makes it, or says so.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(cause(&error)),
    };
    let file = open_file(path, options, exclusive)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(DiskError::InUse),
        Err(TryLockError::Error(error)) => return Err(cause(&error)),
    }
    let below = loops::claim_below(&file)?;
    make_length(&file, options)?;
    Ok(FileClaim { file, below })
}

/// Finds out what an open disk is; with `poll` it is asked for its completions if it can be.
pub(super) fn describe(file: &File, read_only: bool, id: DiskId, poll: bool) -> Result<DiskInfo, DiskError> {
    let metadata = file.metadata().map_err(|error| cause(&error))?;
    let kind = kind_of(&metadata)?;
    if kind == DiskKind::BlockDevice && !read_only && is_read_only(file)? {
        return Err(DiskError::ReadOnly);
    }
    let direct = is_direct(file)?;
    let block_bytes = match kind {
        DiskKind::BlockDevice => sector_bytes(file)?,
        DiskKind::File if direct => direct_alignment(file).max(FILE_BLOCK_BYTES),
        DiskKind::File => FILE_BLOCK_BYTES,
    };
    let length = length(file, block_bytes)?;
    let queue = (kind == DiskKind::BlockDevice).then(|| Queue::of(metadata.rdev()));
    Ok(DiskInfo {
        id,
        length,
        block_bytes,
        optimal_bytes: u32::try_from(metadata.blksize()).unwrap_or(0).max(OPTIMAL_BYTES_MIN),
        kind,
        direct,
        read_only,
        volatile_cache: queue.as_ref().is_none_or(Queue::has_volatile_cache),
        cache_lifetime: cache_lifetime(queue.as_ref()),
        discard: match &queue {
            Some(queue) => queue.discards(),
            None => !read_only && punches_holes(file, length),
        },
        polled: poll && direct && queue.as_ref().is_some_and(Queue::polls),
    })
}

/// Length of a file or device in bytes, in whole blocks.
pub(super) fn length(mut file: &File, block_bytes: u32) -> Result<u64, DiskError> {
    let length = file.seek(SeekFrom::End(0)).map_err(|error| cause(&error))?;
    Ok(length - length % u64::from(block_bytes))
}

/// See [`crate::DiskLock::allocate`].
pub(crate) fn allocate(file: &File, bytes: u64) -> Result<(), DiskError> {
    let metadata = file.metadata().map_err(|error| cause(&error))?;
    if kind_of(&metadata)? != DiskKind::File {
        return Ok(());
    }
    let Ok(bytes) = i64::try_from(bytes.min(metadata.len())) else { return Ok(()) };
    if bytes == 0 {
        return Ok(());
    }
    loop {
        // SAFETY: takes no pointers.
        let result = unsafe { libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, bytes) };
        if result == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EINTR) => {}
            error => {
                return match cause(&error) {
                    DiskError::Unsupported => Ok(()),
                    error => Err(error),
                };
            }
        }
    }
}

/// Opens with more flags, past the page cache if the file system does that.
fn open_file(path: &Path, options: &DiskOptions, flags: libc::c_int) -> Result<File, DiskError> {
    let mut how = OpenOptions::new();
    how.read(true).write(!options.read_only);
    if options.create_with_length.is_some() && !options.read_only {
        how.create(true).mode(0o600);
    }
    if !options.buffered {
        match how.custom_flags(flags | libc::O_DIRECT).open(path) {
            Ok(file) => return Ok(file),
            // The file system does not do it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(cause(&error)),
        }
    }
    how.custom_flags(flags).open(path).map_err(|error| cause(&error))
}

/// Whether a block device takes no writes, which opening it does not tell of all.
fn is_read_only(device: &File) -> Result<bool, DiskError> {
    // SAFETY: the request writes one int.
    unsafe { ask_int(device, BLKROGET) }.map(|read_only| read_only != 0)
}

/// Lengthens a file that is shorter than the options want it.
fn make_length(file: &File, options: &DiskOptions) -> Result<(), DiskError> {
    let Some(wanted) = options.create_with_length.filter(|_| !options.read_only) else { return Ok(()) };
    let metadata = file.metadata().map_err(|error| cause(&error))?;
    if kind_of(&metadata)? == DiskKind::File && metadata.len() < wanted {
        file.set_len(wanted).map_err(|error| cause(&error))?;
    }
    Ok(())
}

/// Whether a file bypasses the page cache.
fn is_direct(file: &File) -> Result<bool, DiskError> {
    // SAFETY: takes no pointers.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 { Err(cause(&io::Error::last_os_error())) } else { Ok(flags & libc::O_DIRECT != 0) }
}

fn kind_of(metadata: &fs::Metadata) -> Result<DiskKind, DiskError> {
    if metadata.file_type().is_block_device() {
        Ok(DiskKind::BlockDevice)
    } else if metadata.is_file() {
        Ok(DiskKind::File)
    } else {
        Err(DiskError::NotADisk)
    }
}

pub(super) fn cause(error: &io::Error) -> DiskError {
    match error.raw_os_error() {
        Some(libc::EISDIR) => DiskError::NotADisk,
        Some(errno) => error_of(errno),
        None => DiskError::System(Errno(libc::EIO)),
    }
}

/// Logical block size of a block device.
fn sector_bytes(file: &File) -> Result<u32, DiskError> {
    // SAFETY: the request writes one int.
    let size = unsafe { ask_int(file, libc::BLKSSZGET) }?;
    u32::try_from(size).map_err(|_| DiskError::NotADisk)
}

/// Asks a device for a number.
///
/// # Safety
/// The request writes one int and nothing else.
unsafe fn ask_int(device: &File, request: libc::Ioctl) -> Result<libc::c_int, DiskError> {
    let mut answer: libc::c_int = 0;
    // SAFETY: the caller's promise; the int is valid for the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request, &raw mut answer) };
    if result != 0 { Err(cause(&io::Error::last_os_error())) } else { Ok(answer) }
}

/// Alignment that direct I/O on a file needs; 4 KiB if the kernel does not say.
fn direct_alignment(file: &File) -> u32 {
    const CAUTIOUS: u32 = 4096;
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty string, so the descriptor itself is meant, and `status` is valid for writes.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            status.as_mut_ptr(),
        )
    };
    // SAFETY: all zeroes is a valid value, and the call may have filled it in.
    let status = unsafe { status.assume_init() };
    if result != 0 || status.stx_mask & libc::STATX_DIOALIGN == 0 || status.stx_dio_offset_align == 0 {
        return CAUTIOUS;
    }
    status.stx_dio_offset_align
}

/// Whether the file system can punch holes: asked for a range behind the end, which changes nothing.
fn punches_holes(file: &File, length: u64) -> bool {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let Ok(behind) = i64::try_from(length.next_multiple_of(4096)) else { return false };
    // SAFETY: takes no pointers.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, behind, 4096) == 0 }
}

/// The run of the kernel, and for a block device how many disks it had found when it found this one: a disk that was taken away
/// and came back counts anew. A number beside others that are all different (FNV-1a).
fn cache_lifetime(queue: Option<&Queue>) -> Option<u64> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let found = match queue {
        Some(queue) => queue.disk_attribute("diskseq")?,
        None => String::new(),
    };
    let bytes = boot.trim().bytes().chain(found.trim().bytes());
    Some(
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        }),
    )
}

/// A block device's queue in sysfs.
struct Queue {
    directory: PathBuf,
}

impl Queue {
    fn of(device: u64) -> Self {
        let (major, minor) = (libc::major(device), libc::minor(device));
        let node = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let own = node.join("queue");
        // A partition uses the queue of its disk.
        let directory = if own.exists() { own } else { node.join("../queue") };
        Self { directory }
    }

    fn read(&self, attribute: &str) -> Option<String> {
        fs::read_to_string(self.directory.join(attribute)).ok()
    }

    fn disk_attribute(&self, attribute: &str) -> Option<String> {
        fs::read_to_string(self.directory.join("..").join(attribute)).ok()
    }

    fn has_volatile_cache(&self) -> bool {
        self.read("write_cache").is_none_or(|kind| kind.trim() != "write through")
    }

    fn polls(&self) -> bool {
        self.read("io_poll").is_some_and(|polls| polls.trim() == "1")
    }

    fn discards(&self) -> bool {
        let limit = self.read("discard_max_bytes").and_then(|limit| limit.trim().parse::<u64>().ok());
        limit.is_some_and(|limit| limit > 0)
    }
}
