use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use basalt_clock::Instant;

use super::clock;
use crate::driver::Wake;

/// Token of the event descriptor that ends waits.
pub(super) const WAKE: u64 = u64::MAX;
/// Token of the io_uring descriptor.
pub(super) const URING: u64 = u64::MAX - 1;

/// Events that one call takes; what is left comes with the next.
const BATCH: usize = 64;

/// What became possible.
#[derive(Debug, Clone, Copy)]
pub(super) struct Readiness {
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer is done sending, or the socket failed.
    pub(super) ended: bool,
}

/// How long to look for events.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    No,
    Until(Instant),
    Forever,
}

/// An epoll instance.
#[derive(Debug)]
pub(super) struct Epoll {
    fd: OwnedFd,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        Ok(Self { fd: own(fd)? })
    }

    /// Watches a descriptor. With `edges` an event comes when something becomes possible, in both directions; otherwise as
    /// long as there is something to read. Closing the descriptor ends the watch.
    pub(super) fn add(&self, source: &impl AsRawFd, token: u64, edges: bool) -> io::Result<()> {
        let flags = if edges {
            libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET
        } else {
            libc::EPOLLIN
        };
        let mut event = libc::epoll_event { events: flags.cast_unsigned(), u64: token };
        // SAFETY: both descriptors are open and `event` outlives the call.
        let result = unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, source.as_raw_fd(), &raw mut event)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Calls `each` for up to a batch of events.
    pub(super) fn wait(&self, wait: Wait, mut each: impl FnMut(u64, Readiness)) {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        let timeout = match wait {
            Wait::No => Some(timespec(0)),
            Wait::Until(deadline) => Some(timespec(deadline.since(clock::now()).as_nanos())),
            Wait::Forever => None,
        };
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `events` is valid for `BATCH` entries, `timeout` is null or valid, there is no signal mask.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                events.as_mut_ptr(),
                BATCH,
                timeout,
                std::ptr::null::<libc::sigset_t>(),
                0_usize,
            )
        };
        // An interrupted wait is like one that found nothing; the call cannot fail otherwise.
        let count = usize::try_from(count).unwrap_or(0);
        for event in &events[..count] {
            let has = |flag: libc::c_int| event.events & flag.cast_unsigned() != 0;
            let ended = has(libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR);
            let readiness = Readiness {
                readable: has(libc::EPOLLIN) || ended,
                writable: has(libc::EPOLLOUT) || ended,
                ended,
            };
            each(event.u64, readiness);
        }
    }
}

fn timespec(nanos: u128) -> libc::timespec {
    let seconds = i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX);
    let rest = i64::try_from(nanos % 1_000_000_000).unwrap_or(0);
    libc::timespec { tv_sec: seconds, tv_nsec: rest }
}

/// The descriptor that a system call answered.
pub(super) fn own(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call made this descriptor for us and no one else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A counter that becomes readable when another thread writes to it.
#[derive(Debug)]
pub(super) struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self { fd: own(fd)? })
    }

    /// Makes it unreadable again.
    pub(super) fn clear(&self) {
        let mut value = 0_u64;
        // SAFETY: `value` is valid for eight bytes. It fails only if the counter is zero, which is what is wanted.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut value).cast(), 8) };
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> libc::c_int {
        self.fd.as_raw_fd()
    }
}

impl Wake for EventFd {
    fn wake(&self) {
        let value = 1_u64;
        // SAFETY: `value` is valid for eight bytes. It fails only if the counter is full, and then it is readable.
        unsafe { libc::write(self.fd.as_raw_fd(), (&raw const value).cast(), 8) };
    }
}
