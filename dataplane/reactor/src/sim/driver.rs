use std::fmt;
use std::io::IoSliceMut;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use basalt_clock::{Instant, Random, SeededRandom};
use basalt_dma::Segment;

use super::world::{NodeId, World};
use crate::driver::{
    DiskCompletion, DiskError, DiskId, DiskInfo, DiskLock, DiskOptions, DiskRequest, Driver, ListenerId,
    Progress, Received, Sent, SharedListener, SocketError, SocketId, Wake,
};

/// One reactor's driver in a simulated world. After its process was ended, calls fail or have no effect.
pub struct SimDriver {
    world: World,
    place: usize,
    node: NodeId,
    random: SeededRandom,
    wake: Arc<Flag>,
}

#[derive(Debug, Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl SimDriver {
    pub(super) fn new(world: World, place: usize, node: NodeId, random: SeededRandom) -> Self {
        Self { world, place, node, random, wake: Arc::default() }
    }

    fn alive(&self) -> bool {
        self.world.state.borrow().alive(self.place)
    }
}

impl Driver for SimDriver {
    fn now(&self) -> Instant {
        self.world.state.borrow().now
    }

    fn random_u64(&mut self) -> u64 {
        self.random.next_u64()
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake) as Arc<dyn Wake>
    }

    /// Returns at once: in a simulation time passes between turns, not in them.
    fn wait(&mut self, _deadline: Option<Instant>) {}

    fn poll(&mut self, completions: &mut Vec<DiskCompletion>) -> Progress {
        let woken = self.wake.0.swap(false, Ordering::SeqCst);
        let mut state = self.world.state.borrow_mut();
        if !state.alive(self.place) {
            return Progress::Idle;
        }
        let activity = std::mem::take(&mut state.drivers[self.place].activity);
        let collected = state.disks.collect(self.place, completions);
        Progress::busy_if(woken || activity || collected)
    }

    fn take_ready(&mut self, ready: &mut Vec<SocketId>) {
        ready.append(&mut self.world.state.borrow_mut().drivers[self.place].ready);
    }

    fn lock_disk(&mut self, path: &Path, options: &DiskOptions) -> Result<DiskLock, DiskError> {
        let mut state = self.world.state.borrow_mut();
        let incarnation = state.drivers[self.place].incarnation;
        if !state.alive(self.place) {
            return Err(DiskError::Gone);
        }
        state.disks.lock(self.node, incarnation, path, options)
    }

    fn open_locked(&mut self, lock: &DiskLock) -> Result<DiskInfo, DiskError> {
        let mut state = self.world.state.borrow_mut();
        if !state.alive(self.place) {
            return Err(DiskError::Gone);
        }
        state.disks.open_locked(self.node, self.place, lock)
    }

    fn open_disk(&mut self, path: &Path, options: &DiskOptions) -> Result<DiskInfo, DiskError> {
        let mut state = self.world.state.borrow_mut();
        if !state.alive(self.place) {
            return Err(DiskError::Gone);
        }
        state.disks.open(self.node, self.place, path, options)
    }

    fn close_disk(&mut self, disk: DiskId) {
        self.world.state.borrow_mut().disks.close(self.place, disk);
    }

    fn submit(&mut self, request: DiskRequest) -> Result<(), DiskRequest> {
        let mut state = self.world.state.borrow_mut();
        if state.alive(self.place) { state.submit_operation(self.place, request) } else { Err(request) }
    }

    fn listen(&mut self, address: SocketAddr) -> Result<ListenerId, SocketError> {
        if !self.alive() {
            return Err(SocketError::Closed);
        }
        self.world.state.borrow_mut().listen_on(self.node, address)
    }

    fn listener_address(&self, listener: ListenerId) -> Result<SocketAddr, SocketError> {
        self.world.state.borrow_mut().listener_address(self.node, listener)
    }

    fn accept(&mut self, listener: ListenerId) -> Result<Option<SocketId>, SocketError> {
        if !self.alive() {
            return Err(SocketError::Closed);
        }
        self.world.state.borrow_mut().accept_on(self.node, self.place, listener)
    }

    fn share_listener(&self, _: ListenerId) -> Result<SharedListener, SocketError> {
        Err(SocketError::Unsupported)
    }

    fn adopt_listener(&mut self, _: SharedListener) -> Result<ListenerId, SocketError> {
        Err(SocketError::Unsupported)
    }

    fn close_listener(&mut self, listener: ListenerId) {
        if self.alive() {
            self.world.state.borrow_mut().close_listener(self.node, listener);
        }
    }

    fn connect(&mut self, address: SocketAddr) -> Result<SocketId, SocketError> {
        if !self.alive() {
            return Err(SocketError::Closed);
        }
        self.world.state.borrow_mut().connect_to(self.node, self.place, address)
    }

    fn receive(&mut self, socket: SocketId, targets: &mut [IoSliceMut<'_>]) -> Result<Received, SocketError> {
        if !self.alive() {
            return Err(SocketError::Closed);
        }
        self.world.state.borrow_mut().receive_on(self.node, socket, targets)
    }

    fn send(&mut self, socket: SocketId, sources: &[Segment<'_>]) -> Result<Sent, SocketError> {
        if !self.alive() {
            return Err(SocketError::Closed);
        }
        self.world.state.borrow_mut().send_from(self.node, socket, sources)
    }

    fn shutdown(&mut self, socket: SocketId) {
        if self.alive() {
            self.world.state.borrow_mut().shut_down_socket(self.node, socket);
        }
    }

    fn close(&mut self, socket: SocketId) {
        if self.alive() {
            self.world.state.borrow_mut().close_socket(self.node, socket);
        }
    }

    fn local_address(&self, socket: SocketId) -> Result<SocketAddr, SocketError> {
        self.world.state.borrow().addresses(self.node, socket).map(|(own, _)| own)
    }

    fn peer_address(&self, socket: SocketId) -> Result<SocketAddr, SocketError> {
        self.world.state.borrow().addresses(self.node, socket).map(|(_, peer)| peer)
    }

    fn has_peer_ended(&self, socket: SocketId) -> bool {
        self.world.state.borrow_mut().has_peer_ended(self.node, socket)
    }
}

impl fmt::Debug for SimDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDriver")
            .field("node", &self.node)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}
