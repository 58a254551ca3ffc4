//! What lies below a loop device. It shows the bytes of a file or of another device under a name and an inode of its own, so that a claim of
//! it alone keeps nobody away from the same bytes: who claims it claims the range that it shows of what is below, too.
//!
//! Below are: for a file, a shared lock on it and an exclusive one on the range, which the exclusive lock excludes that a claim of the file
//! itself takes, and which ranges exclude that overlap; partitions of one device and devices with an offset do not get into each other's way. For a
//! block device, exclusive use, and what is below that.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::open::{cause, length};
use crate::driver::DiskError;

/// Loop devices on one another that are followed. What is below a higher tower is not claimed.
const TOWER_MAX: usize = 16;
/// Bytes of a sector in sysfs, whatever the device's own are.
const SYSFS_SECTOR: u64 = 512;

/// Asks a loop device what it shows (linux/loop.h: `LOOP_GET_STATUS64`).
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;

/// The answer (linux/loop.h: `struct loop_info64`).
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    /// Device and inode of what is below.
    device: u64,
    inode: u64,
    _rdevice: u64,
    /// Bytes at the start of what is below that are not shown.
    offset: u64,
    /// Bytes that are shown at most; 0: all.
    size_limit: u64,
    _number: u32,
    _encryption: [u32; 2],
    _flags: u32,
    _names: [[u8; 64]; 2],
    _key: [u8; 32],
    _init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);

/// Claims what is below an open disk, if that is a loop device or a partition of one. Nothing is claimed of what cannot be found: when the
/// file is deleted, or has another path or none in this mount namespace.
pub(super) fn claim_below(device: &File) -> Result<Vec<File>, DiskError> {
    let mut claims = Vec::new();
    for _ in 0..TOWER_MAX {
        let Some(below) = Below::of(claims.last().unwrap_or(device))? else { break };
        let Some((file, goes_on)) = below.claim()? else { break };
        claims.push(file);
        if !goes_on {
            break;
        }
    }
    Ok(claims)
}

/// What a loop device shows.
struct Below {
    path: PathBuf,
    info: LoopInfo,
    /// In bytes of what is below; a length of 0 goes to its end, wherever that will be.
    start: u64,
    length: u64,
}

impl Below {
    /// `None` if this is no loop device, or it does not say what it shows.
    fn of(device: &File) -> Result<Option<Self>, DiskError> {
        let metadata = device.metadata().map_err(|error| cause(&error))?;
        if !metadata.file_type().is_block_device() {
            return Ok(None);
        }
        let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
        let node = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        let read = |attribute: &str| fs::read(node.join(attribute)).ok();
        let partition = read("partition").is_some();
        let attribute = if partition { "../loop/backing_file" } else { "loop/backing_file" };
        let Some(mut path) = read(attribute) else { return Ok(None) };
        // A name may end with a newline itself.
        if path.last() == Some(&b'\n') {
            path.pop();
        }
        let Some(info) = info_of(device) else { return Ok(None) };
        let sectors = read("start").and_then(|text| String::from_utf8(text).ok()?.trim().parse::<u64>().ok());
        let (start, length) = match (partition, sectors) {
            (true, Some(sectors)) => (sectors.saturating_mul(SYSFS_SECTOR), length(device, 512)?),
            // All of the loop device, if the partition does not say where it is.
            _ => (0, info.size_limit),
        };
        let start = start.saturating_add(info.offset);
        Ok(Some(Self { path: PathBuf::from(OsString::from_vec(path)), info, start, length }))
    }

    /// The claim, and whether that is of a device, which may have something below itself.
    fn claim(&self) -> Result<Option<(File, bool)>, DiskError> {
        let is_it =
            |metadata: &fs::Metadata| (metadata.dev(), metadata.ino()) == (self.info.device, self.info.inode);
        // Looked at first: nothing else is opened, least of all something that waits or begins to do something when it is.
        let Ok(metadata) = fs::metadata(&self.path) else { return Ok(None) };
        if !is_it(&metadata) {
            return Ok(None);
        }
        if metadata.file_type().is_block_device() {
            let exclusive = OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(&self.path);
            return exclusive.map(|device| Some((device, true))).map_err(|error| cause(&error));
        }
        let (file, writable) = match opened(&self.path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(cause(&error)),
        };
        if !file.metadata().is_ok_and(|metadata| is_it(&metadata)) {
            return Ok(None);
        }
        // A range is locked exclusively only in a file that is open for writing.
        let locked = if writable { file.try_lock_shared() } else { file.try_lock() };
        locked.map_err(|error| match error {
            TryLockError::WouldBlock => DiskError::InUse,
            TryLockError::Error(error) => cause(&error),
        })?;
        if writable {
            lock_range(&file, self.start, self.length)?;
        }
        Ok(Some((file, false)))
    }
}

/// Opens for writing if that may be; whether it is.
fn opened(path: &Path) -> io::Result<(File, bool)> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok((file, true)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        Err(_) => File::open(path).map(|file| (file, false)),
    }
}

/// Locks a range for this open file, not for the process: it ends with the file's last descriptor, and other claims of this process meet it.
fn lock_range(file: &File, start: u64, length: u64) -> Result<(), DiskError> {
    // What does not fit lies behind the end of every file.
    let offset = |bytes: u64| libc::off_t::try_from(bytes).unwrap_or(libc::off_t::MAX);
    #[allow(
        clippy::cast_possible_truncation,
        reason = "libc has these small numbers as another type than the field's"
    )]
    let range = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset(start),
        l_len: offset(length).min(libc::off_t::MAX - offset(start)),
        // As these locks want it.
        l_pid: 0,
    };
    // SAFETY: the range is valid for the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const range) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(DiskError::InUse),
        _ => Err(cause(&error)),
    }
}

fn info_of(device: &File) -> Option<LoopInfo> {
    let mut info = MaybeUninit::<LoopInfo>::zeroed();
    // SAFETY: of a loop device, as its sysfs says it is, this writes one `loop_info64`, which is valid for writes.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
    // SAFETY: all zeroes is a valid value, and the call may have filled it in.
    (result == 0).then(|| unsafe { info.assume_init() })
}
