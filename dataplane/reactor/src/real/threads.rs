use std::fmt;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::disks::IN_FLIGHT_MAX;
use super::engine::{Finished, Kind, Transfer};
use super::epoll::EventFd;
use crate::driver::Wake;

/// Transfers at the same time.
const THREADS: usize = 4;

/// Transfers by blocking calls on threads, where io_uring is not to be had: slower, but it works everywhere.
pub(super) struct ThreadEngine {
    jobs: Option<SyncSender<Job>>,
    finished: Receiver<Finished>,
    report: Sender<Finished>,
    wake: Arc<EventFd>,
    threads: Vec<JoinHandle<()>>,
    queue: Arc<Mutex<Receiver<Job>>>,
}

struct Job {
    place: usize,
    transfer: Transfer,
}

// SAFETY: the memory that a transfer names is promised to stay valid, and unused by others where it is read into, until the
// transfer is reported; so another thread may use it meanwhile.
unsafe impl Send for Job {}

impl ThreadEngine {
    /// Threads are started with the first transfer.
    pub(super) fn new(wake: Arc<EventFd>) -> Self {
        let (jobs, queue) = mpsc::sync_channel(IN_FLIGHT_MAX);
        let (report, finished) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        Self { jobs: Some(jobs), finished, report, wake, threads: Vec::new(), queue }
    }

    fn start_threads(&mut self) {
        while self.threads.len() < THREADS {
            let (queue, report, wake) =
                (Arc::clone(&self.queue), self.report.clone(), Arc::clone(&self.wake));
            let body = move || work(&queue, &report, &wake);
            match thread::Builder::new().name("disk-io".to_owned()).spawn(body) {
                Ok(thread) => self.threads.push(thread),
                Err(_) => return,
            }
        }
    }

    /// # Safety
    /// As for `Engine::start`.
    pub(super) unsafe fn start(&mut self, place: usize, transfer: &Transfer) {
        if self.threads.is_empty() {
            self.start_threads();
        }
        let job = Job { place, transfer: *transfer };
        let sent = self.jobs.as_ref().map(|jobs| jobs.try_send(job));
        // The queue holds as many as `Disks` starts, so it is never full; but without any thread nothing would be done.
        if self.threads.is_empty() || !matches!(sent, Some(Ok(()))) {
            let sent = self.report.send(Finished { place, result: -libc::EIO });
            assert!(sent.is_ok(), "the receiver is a field of this value");
        }
    }

    pub(super) fn reap(&mut self, finished: &mut Vec<Finished>) {
        finished.extend(self.finished.try_iter());
    }

    pub(super) fn wait(&mut self, finished: &mut Vec<Finished>) -> bool {
        match self.finished.recv() {
            Ok(first) => {
                finished.push(first);
                true
            }
            Err(_) => false,
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>, report: &Sender<Finished>, wake: &EventFd) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { place, transfer }) = job else { return };
        let result = perform(&transfer);
        if report.send(Finished { place, result }).is_err() {
            return;
        }
        wake.wake();
    }
}

/// Does a transfer; a count of bytes or a negative error number.
fn perform(transfer: &Transfer) -> i32 {
    let Transfer { fd, offset, length, parts, .. } = *transfer;
    let (Ok(offset), Ok(length), Ok(count)) =
        (i64::try_from(offset), i64::try_from(length), i32::try_from(transfer.parts_len))
    else {
        return -libc::EINVAL;
    };
    // SAFETY: whoever started the transfer keeps the descriptor open and the memory valid until it is reported.
    let result = unsafe {
        match transfer.kind {
            Kind::Read => libc::preadv(fd, parts, count, offset),
            Kind::Write { durable } => {
                libc::pwritev2(fd, parts, count, offset, if durable { libc::RWF_DSYNC } else { 0 })
            }
            Kind::Sync => libc::fdatasync(fd) as isize,
            Kind::Allocate { mode } => libc::fallocate(fd, mode, offset, length) as isize,
        }
    };
    match i32::try_from(result) {
        Ok(count) if count >= 0 => count,
        Ok(_) => -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
        // More than 2 GiB in one call does not happen: the kernel stops below.
        Err(_) => -libc::EIO,
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            // Its panic was reported by the hook.
            drop(thread.join());
        }
    }
}

impl fmt::Debug for ThreadEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadEngine").field("threads", &self.threads.len()).finish_non_exhaustive()
    }
}
