use std::cell::{Cell, RefCell, RefMut};
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use basalt_clock::{Clock, Instant, Random};
use basalt_dma::BufferPool;

use crate::disk::{Disk, DiskQueues};
use crate::driver::{DiskError, DiskLock, DiskOptions, Driver, Progress, SharedListener, SocketError};
use crate::executor::{Task, Tasks};
use crate::remote::{Remote, Shared};
use crate::socket::{Listener, Socket};
use crate::timer::{Sleep, Timers};
use crate::watch::Watches;

/// Names a registered poller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollerId {
    index: usize,
    generation: u64,
}

pub(crate) type PollerFn = Box<dyn FnMut() -> Progress>;

#[derive(Default)]
pub(crate) struct Pollers {
    slots: Vec<PollerSlot>,
    made: u64,
    live: usize,
}

#[derive(Default)]
struct PollerSlot {
    /// Zero: free.
    generation: u64,
    /// Out of its slot while it runs.
    poller: Option<PollerFn>,
}

/// What lives on a reactor's thread.
pub(crate) struct Local {
    pub(crate) driver: RefCell<Box<dyn Driver>>,
    pub(crate) now: Cell<Instant>,
    pub(crate) pollers: RefCell<Pollers>,
    pub(crate) tasks: RefCell<Tasks>,
    pub(crate) timers: RefCell<Timers>,
    pub(crate) disks: RefCell<DiskQueues>,
    pub(crate) watches: RefCell<Watches>,
    pub(crate) buffers: BufferPool,
    pub(crate) shared: Arc<Shared>,
}

/// A reactor as the code that runs on it sees it. Cheap to clone, stays on its thread.
#[derive(Clone)]
pub struct Handle {
    local: Rc<Local>,
}

impl Handle {
    pub(crate) fn new(local: Rc<Local>) -> Self {
        Self { local }
    }

    /// The time at which the current turn began: free to ask, and the same for all that runs in one turn.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.local.now.get()
    }

    /// The time now, asked from the driver: for measurements.
    #[must_use]
    pub fn precise_now(&self) -> Instant {
        self.local.driver.borrow().now()
    }

    /// Sixty-four random bits from the driver.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        self.local.driver.borrow_mut().random_u64()
    }

    /// The reactor's buffers.
    #[must_use]
    pub fn buffers(&self) -> &BufferPool {
        &self.local.buffers
    }

    /// The same reactor for other threads.
    #[must_use]
    pub fn remote(&self) -> Remote {
        Remote::new(Arc::clone(&self.local.shared))
    }

    /// Makes [`crate::Reactor::run`] return after the current turn.
    pub fn stop(&self) {
        self.local.shared.stop.store(true, Ordering::SeqCst);
    }

    /// Runs a future on this reactor, beginning in its next turn (or later in this one).
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        Task::spawn(self, future)
    }

    /// Ends after `duration`, measured from the beginning of this turn.
    pub fn sleep(&self, duration: Duration) -> Sleep {
        self.sleep_until(self.now() + duration)
    }

    /// Ends at `deadline`.
    pub fn sleep_until(&self, deadline: Instant) -> Sleep {
        Sleep::new(self.clone(), deadline)
    }

    /// Lets everything else have a turn. Not for waiting: while a task yields, the reactor is busy and simulated time stands still.
    pub fn yield_now(&self) -> impl Future<Output = ()> + use<> {
        YieldNow { yielded: false }
    }

    /// Makes sure that a turn happens at `at`, even if the reactor would sleep beyond it: for pollers with delays of their own.
    pub fn wake_at(&self, at: Instant) {
        self.timers().want_turn(at);
    }

    /// Registers a function that every turn calls once. It answers whether it did anything, submitting I/O included: the
    /// reactor goes to sleep only after a while of turns in which nothing was busy, and sleeps until a disk operation
    /// completes, a socket becomes ready, a timer is due or another thread posts.
    pub fn add_poller(&self, poller: impl FnMut() -> Progress + 'static) -> PollerId {
        let mut pollers = self.local.pollers.borrow_mut();
        pollers.made += 1;
        pollers.live += 1;
        let generation = pollers.made;
        let slot = PollerSlot { generation, poller: Some(Box::new(poller)) };
        let index = pollers.slots.iter().position(|slot| slot.generation == 0);
        let index = index.unwrap_or_else(|| {
            pollers.slots.push(PollerSlot::default());
            pollers.slots.len() - 1
        });
        pollers.slots[index] = slot;
        PollerId { index, generation }
    }

    /// Drops a poller; it may be the one that runs. Does nothing if it was removed already.
    pub fn remove_poller(&self, id: PollerId) {
        let removed = {
            let mut pollers = self.local.pollers.borrow_mut();
            match pollers.slots.get_mut(id.index) {
                Some(slot) if slot.generation == id.generation => {
                    let removed = std::mem::take(slot);
                    pollers.live -= 1;
                    removed.poller
                }
                _ => None,
            }
        };
        // Dropped where no borrow is held: what it owns may remove other pollers.
        drop(removed);
    }

    /// Claims a disk for this process, whose reactors open it by [`Handle::open_locked`], and makes the file if the options say so.
    /// May take as long as the file system does: for set-up only.
    ///
    /// # Errors
    /// [`DiskError::InUse`] if another process, or another claim of this one, holds it, or if writes of a process that was killed are
    /// still under way; otherwise the cause.
    pub fn lock_disk(&self, path: &Path, options: &DiskOptions) -> Result<DiskLock, DiskError> {
        self.local.driver.borrow_mut().lock_disk(path, options)
    }

    /// Opens a claimed disk on this reactor, as it was claimed. The claim holds until the disk is closed, also when the lock is dropped
    /// before.
    ///
    /// # Errors
    /// The cause; nothing is open then.
    pub fn open_locked(&self, lock: &DiskLock) -> Result<Disk, DiskError> {
        let info = self.local.driver.borrow_mut().open_locked(lock)?;
        Ok(Disk::new(self.clone(), info))
    }

    /// Opens a file or block device on this reactor. May take as long as the file system does: for set-up only.
    ///
    /// # Errors
    /// The cause; nothing is open then.
    pub fn open_disk(&self, path: &Path, options: &DiskOptions) -> Result<Disk, DiskError> {
        let info = self.local.driver.borrow_mut().open_disk(path, options)?;
        Ok(Disk::new(self.clone(), info))
    }

    /// Listens on an address; port 0 means any free one.
    ///
    /// # Errors
    /// The cause.
    pub fn listen(&self, address: SocketAddr) -> Result<Listener, SocketError> {
        let id = self.local.driver.borrow_mut().listen(address)?;
        Ok(Listener::new(self.clone(), id))
    }

    /// Accepts from a listener of another reactor too; see [`Driver::adopt_listener`].
    ///
    /// # Errors
    /// The cause.
    pub fn adopt_listener(&self, shared: SharedListener) -> Result<Listener, SocketError> {
        let id = self.local.driver.borrow_mut().adopt_listener(shared)?;
        Ok(Listener::new(self.clone(), id))
    }

    /// Starts to connect; see [`Driver::connect`].
    ///
    /// # Errors
    /// What is known at once; the rest comes with the first send or receive.
    pub fn connect(&self, address: SocketAddr) -> Result<Socket, SocketError> {
        let id = self.local.driver.borrow_mut().connect(address)?;
        Ok(Socket::new(self.clone(), id))
    }

    pub(crate) fn local(&self) -> &Local {
        &self.local
    }

    pub(crate) fn tasks(&self) -> &RefCell<Tasks> {
        &self.local.tasks
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.local.shared
    }

    pub(crate) fn timers(&self) -> RefMut<'_, Timers> {
        self.local.timers.borrow_mut()
    }

    pub(crate) fn driver(&self) -> RefMut<'_, Box<dyn Driver>> {
        self.local.driver.borrow_mut()
    }
}

impl Clock for Handle {
    fn now(&self) -> Instant {
        self.local.now.get()
    }
}

impl Random for Handle {
    fn next_u64(&mut self) -> u64 {
        self.random_u64()
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("now", &self.local.now.get()).finish_non_exhaustive()
    }
}

impl Pollers {
    pub(crate) fn live(&self) -> usize {
        self.live
    }
}

/// Calls every poller once, in the order of their slots.
pub(crate) fn run_pollers(pollers: &RefCell<Pollers>) -> Progress {
    let mut progress = Progress::Idle;
    let mut index = 0;
    loop {
        let (generation, mut poller) = {
            let mut pollers = pollers.borrow_mut();
            let Some(slot) = pollers.slots.get_mut(index) else { return progress };
            match slot.poller.take() {
                Some(poller) => (slot.generation, poller),
                None => {
                    index += 1;
                    continue;
                }
            }
        };
        progress = progress.or(poller());
        let removed = {
            let mut pollers = pollers.borrow_mut();
            let slot = &mut pollers.slots[index];
            if slot.generation == generation {
                slot.poller = Some(poller);
                None
            } else {
                Some(poller)
            }
        };
        drop(removed);
        index += 1;
    }
}

/// Drops all pollers: at the end of the reactor, as pollers hold handles to it.
pub(crate) fn drop_pollers(pollers: &RefCell<Pollers>) {
    loop {
        let slots = std::mem::take(&mut pollers.borrow_mut().slots);
        if slots.is_empty() {
            return;
        }
        drop(slots);
    }
}

struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
