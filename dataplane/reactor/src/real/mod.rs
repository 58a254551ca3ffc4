//! The driver for a machine: io_uring for disks, non-blocking sockets, epoll for readiness and sleeping.

mod clock;
mod disks;
mod engine;
mod epoll;
mod loops;
mod open;
mod sockets;
mod threads;
mod uring;

use std::io::{self, IoSliceMut};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use basalt_clock::{Instant, Random, SeededRandom};
use basalt_dma::{RegionChange, Segment};

use crate::driver::{
    DiskCompletion, DiskError, DiskId, DiskInfo, DiskLock, DiskOptions, DiskRequest, Driver, ListenerId,
    Progress, Received, Sent, SharedListener, SocketError, SocketId, Wake,
};
use disks::Disks;
use engine::Engine;
use epoll::{Epoll, EventFd, Readiness};
pub(crate) use open::allocate;
use sockets::Sockets;

/// The machine as one reactor sees it.
#[derive(Debug)]
pub struct RealDriver {
    epoll: Epoll,
    wake: Arc<EventFd>,
    sockets: Sockets,
    disks: Disks,
    random: SeededRandom,
    /// The ring is used by the thread that made it.
    here: PhantomData<*const ()>,
}

impl RealDriver {
    /// A driver for the current thread.
    ///
    /// # Errors
    /// If the system gives no epoll or event descriptor.
    pub fn new() -> io::Result<Self> {
        Self::build(|epoll, wake| Engine::new(epoll, wake, false))
    }

    /// A driver that asks disks for their completions instead of having them interrupt, where kernel and disk can: for reactors that
    /// do not sleep.
    ///
    /// # Errors
    /// If the system gives no epoll or event descriptor.
    pub fn polling_disks() -> io::Result<Self> {
        Self::build(|epoll, wake| Engine::new(epoll, wake, true))
    }

    /// A driver that does not try io_uring: for tests and comparisons.
    ///
    /// # Errors
    /// If the system gives no epoll or event descriptor.
    pub fn with_threads() -> io::Result<Self> {
        Self::build(|_, wake| Engine::threads(wake))
    }

    fn build(engine: impl FnOnce(&Epoll, &Arc<EventFd>) -> Engine) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let wake = Arc::new(EventFd::new()?);
        epoll.add(&*wake, epoll::WAKE, false)?;
        let disks = Disks::new(engine(&epoll, &wake));
        let random = SeededRandom::new(entropy()?);
        Ok(Self { epoll, wake, sockets: Sockets::default(), disks, random, here: PhantomData })
    }

    /// How disk operations are done: `io_uring`, or `threads` where the kernel or the container refuses it.
    #[must_use]
    pub fn disk_engine(&self) -> &'static str {
        self.disks.engine_name()
    }

    /// Takes readiness events, waiting for the first one until `deadline` if there is one to wait for.
    fn take_events(&mut self, wait: epoll::Wait) -> Progress {
        let mut progress = Progress::Idle;
        let (sockets, wake) = (&mut self.sockets, &self.wake);
        self.epoll.wait(wait, |token, readiness: Readiness| {
            progress = Progress::Busy;
            match token {
                epoll::WAKE => wake.clear(),
                // The next poll collects what is there.
                epoll::URING => {}
                _ => sockets.ready(token, readiness),
            }
        });
        progress
    }
}

fn entropy() -> io::Result<u64> {
    let mut bytes = [0_u8; 8];
    // SAFETY: the buffer is valid for its length.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if count == 8 { Ok(u64::from_ne_bytes(bytes)) } else { Err(io::Error::last_os_error()) }
}

impl Driver for RealDriver {
    fn now(&self) -> Instant {
        clock::now()
    }

    fn random_u64(&mut self) -> u64 {
        self.random.next_u64()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake) as Arc<dyn Wake>
    }

    fn wait(&mut self, deadline: Option<Instant>) {
        let wait = match self.disks.begin_wait(&self.wake) {
            true => deadline.map_or(epoll::Wait::Forever, epoll::Wait::Until),
            false => epoll::Wait::No,
        };
        self.take_events(wait);
        self.disks.end_wait();
    }

    fn poll(&mut self, completions: &mut Vec<DiskCompletion>) -> Progress {
        let events =
            if self.sockets.begin_turn() { self.take_events(epoll::Wait::No) } else { Progress::Idle };
        events.or(self.disks.poll(completions))
    }

    fn memory_changed(&mut self, changes: &[RegionChange]) {
        self.disks.memory_changed(changes);
    }

    fn take_ready(&mut self, ready: &mut Vec<SocketId>) {
        self.sockets.take_ready(ready);
    }

    fn lock_disk(&mut self, path: &Path, options: &DiskOptions) -> Result<DiskLock, DiskError> {
        Disks::lock(path, options)
    }

    fn open_locked(&mut self, lock: &DiskLock) -> Result<DiskInfo, DiskError> {
        self.disks.open_locked(lock)
    }

    fn open_disk(&mut self, path: &Path, options: &DiskOptions) -> Result<DiskInfo, DiskError> {
        self.disks.open(path, options)
    }

    fn close_disk(&mut self, disk: DiskId) {
        self.disks.close(disk);
    }

    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        self.disks.submit(request)
    }

    fn listen(&mut self, address: SocketAddr) -> Result<ListenerId, SocketError> {
        self.sockets.listen(address, &self.epoll)
    }

    fn listener_address(&self, listener: ListenerId) -> Result<SocketAddr, SocketError> {
        self.sockets.listener_address(listener)
    }

    fn may_accept(&self, listener: ListenerId) -> bool {
        self.sockets.may_accept(listener)
    }

    fn accept(&mut self, listener: ListenerId) -> Result<Option<SocketId>, SocketError> {
        self.sockets.accept(listener, &self.epoll)
    }

    fn share_listener(&self, listener: ListenerId) -> Result<SharedListener, SocketError> {
        self.sockets.share_listener(listener)
    }

    fn adopt_listener(&mut self, shared: SharedListener) -> Result<ListenerId, SocketError> {
        self.sockets.adopt_listener(shared, &self.epoll)
    }

    fn close_listener(&mut self, listener: ListenerId) {
        self.sockets.close_listener(listener);
    }

    fn connect(&mut self, address: SocketAddr) -> Result<SocketId, SocketError> {
        self.sockets.connect(address, &self.epoll)
    }

    fn receive(&mut self, socket: SocketId, targets: &mut [IoSliceMut<'_>]) -> Result<Received, SocketError> {
        self.sockets.receive(socket, targets)
    }

    fn send(&mut self, socket: SocketId, sources: &[Segment<'_>]) -> Result<Sent, SocketError> {
        self.sockets.send(socket, sources)
    }

    fn shutdown(&mut self, socket: SocketId) {
        self.sockets.shutdown(socket);
    }

    fn close(&mut self, socket: SocketId) {
        self.sockets.close(socket);
    }

    fn local_address(&self, socket: SocketId) -> Result<SocketAddr, SocketError> {
        self.sockets.local_address(socket)
    }

    fn peer_address(&self, socket: SocketId) -> Result<SocketAddr, SocketError> {
        self.sockets.peer_address(socket)
    }

    fn has_peer_ended(&self, socket: SocketId) -> bool {
        self.sockets.has_peer_ended(socket)
    }
}
