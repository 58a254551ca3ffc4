use std::fmt;
use std::fs::{File, Metadata};
use std::io::IoSliceMut;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use basalt_clock::Instant;
use basalt_dma::{Payload, RegionChange, Segment};

/// Whether something happened, so that it is worth looking again at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Something was done.
    Busy,
    /// There was nothing to do.
    Idle,
}

impl Progress {
    /// Busy if `condition` holds.
    #[must_use]
    pub fn busy_if(condition: bool) -> Self {
        if condition { Self::Busy } else { Self::Idle }
    }

    /// Busy if either is.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self::busy_if(self == Self::Busy || other == Self::Busy)
    }
}

/// A position on a disk in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(pub u64);

macro_rules! slot_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            /// Place in its driver's table.
            pub(crate) index: u32,
            /// Tells one user of a place from the next.
            pub(crate) generation: u32,
        }
    };
}

slot_id!(
    /// An open disk of one driver.
    DiskId
);
slot_id!(
    /// An open socket of one driver.
    SocketId
);
slot_id!(
    /// A listening socket of one driver.
    ListenerId
);

/// An error number of the operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

/// Why a disk could not be opened or an operation on it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// There is nothing at the path.
    #[error("there is no such file or device: check the path")]
    NotFound,
    /// The file to be created is there already.
    #[error("the file exists already")]
    Exists,
    /// Another process, or another pool of this one, holds the disk's exclusive lock.
    #[error(
        "the disk is in use: by another process, by another pool of this one, either of them perhaps under another name (a loop device over it, \
         or the file below it), or by writes of a killed process that the disk has not ended yet; stop it, wait for them, or name another disk"
    )]
    InUse,
    /// The process may not open it.
    #[error("permission denied; check the owner, mode and attributes (lsattr) of the path")]
    PermissionDenied,
    /// The disk takes no writes.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The path is neither a regular file nor a block device.
    #[error("neither a regular file nor a block device: name one of these")]
    NotADisk,
    /// The disk holds less than one block, such as a file without any bytes.
    #[error("smaller than one block of {block_bytes} bytes: lengthen it, or name another one")]
    TooSmall {
        /// Bytes per block.
        block_bytes: u32,
    },
    /// The file system below a file has no room left.
    #[error("no space left on the file system")]
    NoSpace,
    /// The file is shorter than it was when it was opened.
    #[error("the file was cut while it was in use: it ends at byte {end}")]
    Shortened {
        /// Bytes that there are.
        end: u64,
    },
    /// The request lies outside of the disk or is not aligned to its blocks.
    #[error("outside of the disk or not aligned to its blocks")]
    OutOfRange,
    /// The medium reported an error: the data at this place is not to be had, or was not stored.
    #[error("the medium reported an error")]
    Medium,
    /// The disk is not there any more, or was closed.
    #[error("the disk is gone")]
    Gone,
    /// The disk or the kernel does not know the operation.
    #[error("the disk does not support the operation")]
    Unsupported,
    /// Too many disks or descriptors are open.
    #[error("too many open files; raise the limit of open files")]
    TooManyOpen,
    /// What the operating system said beyond that.
    #[error("{0}")]
    System(Errno),
}

/// Why a socket operation failed. After any of these but address errors the socket is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// Someone listens there already.
    #[error("the address is in use")]
    AddressInUse,
    /// No interface of this machine has the address.
    #[error("the address is not one of this machine: name one that an interface of it has")]
    AddressUnavailable,
    /// No one listens there.
    #[error("connection refused")]
    Refused,
    /// The peer ended the connection, or is gone.
    #[error("connection reset")]
    Reset,
    /// There is no way to the peer.
    #[error("host or network unreachable")]
    Unreachable,
    /// The peer did not answer.
    #[error("connection timed out")]
    TimedOut,
    /// Too many sockets or descriptors are open.
    #[error("too many open sockets; raise the limit of open files")]
    TooManyOpen,
    /// Binding needs a privilege.
    #[error("permission denied")]
    PermissionDenied,
    /// The socket was closed on this side.
    #[error("the socket is closed")]
    Closed,
    /// The driver cannot do it: a simulated process has one reactor, which shares its listeners with no other.
    #[error("not supported by this driver")]
    Unsupported,
    /// What the operating system said beyond that.
    #[error("{0}")]
    System(Errno),
}

/// A second hold of a listening socket, on its way to another reactor of the same process.
#[derive(Debug)]
pub struct SharedListener(pub(crate) TcpListener);

/// How to open a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DiskOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Go through the page cache although the disk could do without.
    pub buffered: bool,
    /// For files: create the file with this length in bytes if there is none; an existing file must be at least as long
    /// and is extended if it is shorter.
    pub create_with_length: Option<u64>,
}

/// What a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// A regular file.
    File,
    /// A block device of the kernel.
    BlockDevice,
}

/// An open disk's properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskInfo {
    /// What to name it by.
    pub id: DiskId,
    /// Length in bytes, a multiple of the block size.
    pub length: u64,
    /// Smallest unit of I/O in bytes: offsets and lengths are multiples of it.
    pub block_bytes: u32,
    /// Unit in which the medium is best written in bytes.
    pub optimal_bytes: u32,
    /// File or device.
    pub kind: DiskKind,
    /// True if the page cache is bypassed.
    pub direct: bool,
    /// True if writes are refused.
    pub read_only: bool,
    /// True if a completed write may be lost by a power failure before a sync or if it has no FUA.
    pub volatile_cache: bool,
    /// Names the life of that cache: a completed write can be lost before a sync only when this is another one afterwards.
    /// `None`: that is not known.
    pub cache_lifetime: Option<u64>,
    /// True if discard is known to work.
    pub discard: bool,
    /// True if it is asked for its completions instead of interrupting.
    pub polled: bool,
}

/// An exclusive claim on a disk. It holds as long as the value lives or a reactor has the disk open through it, and after the end of
/// the process until the last write is done that the kernel had of it: whoever claims the disk next is not overtaken by those.
#[derive(Clone)]
pub struct DiskLock {
    path: PathBuf,
    again: PathBuf,
    read_only: bool,
    claim: Claim,
}

/// A disk of the machine that is claimed.
#[derive(Debug)]
pub(crate) struct FileClaim {
    /// The one that is read and written.
    pub(crate) file: File,
    /// Held for what a loop device shows.
    #[allow(dead_code, reason = "held for its drop")]
    pub(crate) below: Vec<File>,
}

/// What holds a claim.
#[derive(Clone)]
pub(crate) enum Claim {
    /// The machine's.
    File(Arc<FileClaim>),
    /// A simulated disk's: whose process it is.
    Simulated(Arc<u64>),
}

impl DiskLock {
    /// Of a disk that is found at `again` whatever becomes of its path.
    pub(crate) fn new(path: &Path, again: &Path, read_only: bool, claim: Claim) -> Self {
        Self { path: path.to_owned(), again: again.to_owned(), read_only, claim }
    }

    pub(crate) fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// What the file system says of the locked file, whatever is at its path by now; `None` for anything but a regular file of the
    /// machine, and where it does not say. It may take its time: not for a reactor that has other things to do.
    #[must_use]
    pub fn file_metadata(&self) -> Option<Metadata> {
        match &self.claim {
            Claim::File(claim) => claim.file.metadata().ok().filter(Metadata::is_file),
            Claim::Simulated(_) => None,
        }
    }

    /// Where to look at the locked disk: this leads to the very same one when another has taken its path, or none.
    #[must_use]
    pub fn again(&self) -> &Path {
        &self.again
    }

    /// Lets the first `bytes` of a regular file have their place in the file system, without changing what it holds or its length, so
    /// that writes there need none. Does nothing for other disks, and where the file system does not do it. It may take its time: not for a
    /// reactor.
    ///
    /// # Errors
    /// [`DiskError::NoSpace`] if there is no room; a part may have its place then. Else what the file system said.
    pub fn allocate(&self, bytes: u64) -> Result<(), DiskError> {
        match &self.claim {
            Claim::File(claim) if !self.read_only => crate::real::allocate(&claim.file, bytes),
            Claim::File(_) | Claim::Simulated(_) => Ok(()),
        }
    }

    /// The disk that is locked.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl fmt::Debug for DiskLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DiskLock").field(&self.path).finish()
    }
}

/// What is done with a range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskOperation {
    /// Fill the payload's buffers.
    Read,
    /// Store the payload.
    Write {
        /// Complete only when the data is durable.
        fua: bool,
    },
    /// Make everything durable that completed before this was submitted. Has no range.
    Sync,
    /// The range's storage may be freed; it reads as zeroes until it is written.
    Discard,
    /// The range reads as zeroes.
    WriteZeroes,
}

/// One operation on a disk.
#[derive(Debug)]
pub struct DiskRequest {
    /// The disk.
    pub disk: DiskId,
    /// Comes back with the completion.
    pub tag: u64,
    /// What to do.
    pub operation: DiskOperation,
    /// First byte.
    pub offset: ByteOffset,
    /// Length in bytes; the payload's length for reads and writes.
    pub length: u64,
    /// Memory to read into or write from.
    pub payload: Payload,
}

/// The end of one operation on a disk.
#[derive(Debug)]
pub struct DiskCompletion {
    /// The disk.
    pub disk: DiskId,
    /// The request's tag.
    pub tag: u64,
    /// How it went. A read or write that succeeded is complete: there are no short ones.
    pub result: Result<(), DiskError>,
    /// The request's memory.
    pub payload: Payload,
}

/// The answer of a receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// That many bytes, at least one.
    Bytes(usize),
    /// Nothing has come yet.
    Nothing,
    /// The peer has sent all that it will ever send.
    End,
}

/// The answer of a send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// That many bytes were taken, at least one unless there were none.
    Bytes(usize),
    /// There is no room, or the connection is still being made.
    Nothing,
}

/// Ends a driver's wait from any thread.
pub trait Wake: Send + Sync {
    /// Makes the current [`Driver::wait`], or else the next one, return at once.
    fn wake(&self);
}

/// Everything outside of the process, as one reactor sees it. Nothing here blocks except [`Driver::wait`] and the calls that
/// open and lock disks, which happen at set-up.
pub trait Driver {
    /// The present.
    fn now(&self) -> Instant;

    /// Sixty-four random bits.
    fn random_u64(&mut self) -> u64;

    /// What ends this driver's waits.
    fn waker(&self) -> Arc<dyn Wake>;

    /// Sleeps until a disk operation completes, a socket becomes ready, someone wakes, or `deadline` is reached.
    fn wait(&mut self, deadline: Option<Instant>);

    /// Starts what was submitted, appends finished disk operations to `completions` and notes which sockets became ready.
    fn poll(&mut self, completions: &mut Vec<DiskCompletion>) -> Progress;

    /// Tells which pieces of the reactor's buffers came and went: what is known to the machine beforehand is used faster.
    fn memory_changed(&mut self, changes: &[RegionChange]) {
        // Nothing to prepare.
        let _: &[RegionChange] = changes;
    }

    /// Appends the sockets to which something happened since the last call, each at least once: data or room came, the peer
    /// ended, a connection was made or failed.
    fn take_ready(&mut self, ready: &mut Vec<SocketId>);

    /// Claims a disk for this process, making the file if the options say so.
    ///
    /// # Errors
    /// [`DiskError::InUse`] if it is claimed already, or something that was killed has writes under way; otherwise as for
    /// [`Driver::open_disk`].
    fn lock_disk(&mut self, path: &Path, options: &DiskOptions) -> Result<DiskLock, DiskError>;

    /// Opens a claimed disk, as it was claimed: its claim holds until it is closed too.
    ///
    /// # Errors
    /// The cause; nothing is open then.
    fn open_locked(&mut self, lock: &DiskLock) -> Result<DiskInfo, DiskError>;

    /// Opens a file or block device.
    ///
    /// # Errors
    /// The cause; nothing is open then.
    fn open_disk(&mut self, path: &Path, options: &DiskOptions) -> Result<DiskInfo, DiskError>;

    /// Closes a disk once its operations are done; their completions are dropped.
    fn close_disk(&mut self, disk: DiskId);

    /// Queues an operation.
    ///
    /// # Errors
    /// Hands the request back if the bounded queue is full: try again after [`Driver::poll`].
    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest>;

    /// Listens on an address; port 0 means any free one.
    ///
    /// # Errors
    /// The cause.
    fn listen(&mut self, address: SocketAddr) -> Result<ListenerId, SocketError>;

    /// The address that a listener is bound to.
    ///
    /// # Errors
    /// The cause.
    fn listener_address(&self, listener: ListenerId) -> Result<SocketAddr, SocketError>;

    /// Whether a connection may wait to be taken; false only if none does.
    fn may_accept(&self, listener: ListenerId) -> bool {
        let _: ListenerId = listener;
        true
    }

    /// Takes one connection that a peer made, if there is one.
    ///
    /// # Errors
    /// The cause; the listener stays usable.
    fn accept(&mut self, listener: ListenerId) -> Result<Option<SocketId>, SocketError>;

    /// A second hold of a listener, for another reactor of the same process.
    ///
    /// # Errors
    /// The cause; [`SocketError::Unsupported`] where a process has one reactor.
    fn share_listener(&self, listener: ListenerId) -> Result<SharedListener, SocketError>;

    /// Accepts from a listener that another reactor shares. A connection goes to whichever asks first: a reactor with little
    /// to do asks more often.
    ///
    /// # Errors
    /// The cause.
    fn adopt_listener(&mut self, shared: SharedListener) -> Result<ListenerId, SocketError>;

    /// Stops listening.
    fn close_listener(&mut self, listener: ListenerId);

    /// Starts to connect. Until the connection is made sends and receives answer `Nothing`; if it fails they say why.
    ///
    /// # Errors
    /// What is known at once.
    fn connect(&mut self, address: SocketAddr) -> Result<SocketId, SocketError>;

    /// Reads what has come into `targets`, in order.
    ///
    /// # Errors
    /// The cause; the connection is over.
    fn receive(&mut self, socket: SocketId, targets: &mut [IoSliceMut<'_>]) -> Result<Received, SocketError>;

    /// Sends a part of `sources`, in order.
    ///
    /// # Errors
    /// The cause; the connection is over.
    fn send(&mut self, socket: SocketId, sources: &[Segment<'_>]) -> Result<Sent, SocketError>;

    /// Tells the peer that nothing more will be sent.
    fn shutdown(&mut self, socket: SocketId);

    /// Closes a socket; what was taken by `send` is still delivered.
    fn close(&mut self, socket: SocketId);

    /// This side's address.
    ///
    /// # Errors
    /// The cause.
    fn local_address(&self, socket: SocketId) -> Result<SocketAddr, SocketError>;

    /// The other side's address.
    ///
    /// # Errors
    /// The cause.
    fn peer_address(&self, socket: SocketId) -> Result<SocketAddr, SocketError>;

    /// Whether the other side has ended or broken the connection, as far as this machine knows, though there may be more to receive; true
    /// of what is no connection any more.
    fn has_peer_ended(&self, socket: SocketId) -> bool;
}
