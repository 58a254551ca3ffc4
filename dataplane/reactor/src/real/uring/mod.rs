//! Transfers through io_uring.

mod known;
mod ring;

use std::io;
use std::os::fd::RawFd;

use basalt_dma::RegionChange;

use super::engine::{Finished, Kind, Transfer};
use super::epoll::{Epoll, EventFd, URING};
use ring::{Completions, Ring};

/// A ring whose device interrupts, and one beside it for disks that are asked instead.
#[derive(Debug)]
pub(super) struct UringEngine {
    main: Ring,
    polled: Option<Ring>,
}

impl UringEngine {
    /// A ring whose completions make `epoll` ready, and with `poll` one beside it, where the kernel has that.
    pub(super) fn new(epoll: &Epoll, poll: bool) -> io::Result<Self> {
        let main = Ring::new(Completions::Interrupts)?;
        epoll.add(&main, URING, false)?;
        let polled = if poll { Ring::new(Completions::Polled).ok() } else { None };
        Ok(Self { main, polled })
    }

    /// Whether disks can be asked for their completions.
    pub(super) fn polls(&self) -> bool {
        self.polled.is_some()
    }

    fn rings(&mut self) -> impl Iterator<Item = &mut Ring> {
        std::iter::once(&mut self.main).chain(self.polled.as_mut())
    }

    pub(super) fn know_file(&mut self, disk: u32, fd: RawFd) {
        self.rings().for_each(|ring| ring.know_file(disk, fd));
    }

    pub(super) fn forget_file(&mut self, disk: u32) {
        self.rings().for_each(|ring| ring.forget_file(disk));
    }

    pub(super) fn memory_changed(&mut self, changes: &[RegionChange]) {
        self.rings().for_each(|ring| ring.memory_changed(changes));
    }

    /// # Safety
    /// As for `Engine::start`.
    pub(super) unsafe fn start(&mut self, place: usize, transfer: &Transfer) {
        // What is durable with its completion may need a flush behind it, which no device can be asked for.
        let asks = transfer.polled && matches!(transfer.kind, Kind::Read | Kind::Write { durable: false });
        let ring = match &mut self.polled {
            Some(polled) if asks => polled,
            _ => &mut self.main,
        };
        // SAFETY: the caller's promise is handed on.
        unsafe { ring.start(place, transfer) }
    }

    /// Makes the end of a transfer wake whoever waits for `wake`; true if it is worth to wait.
    pub(super) fn arm(&mut self, wake: &EventFd) -> bool {
        // Nobody tells when a polled transfer ends.
        self.polled.as_ref().is_none_or(|polled| polled.in_flight() == 0) && self.main.arm(wake)
    }

    /// Ends what `arm` began.
    pub(super) fn disarm(&mut self) {
        self.main.disarm();
    }

    /// Submits what is queued.
    pub(super) fn flush(&mut self) {
        self.rings().for_each(Ring::flush);
    }

    pub(super) fn reap(&mut self, finished: &mut Vec<Finished>) {
        self.main.reap(finished);
        if let Some(polled) = self.polled.as_mut().filter(|polled| polled.in_flight() > 0) {
            polled.ask(finished);
        }
    }

    pub(super) fn wait(&mut self, finished: &mut Vec<Finished>) -> bool {
        let ring = match &mut self.polled {
            Some(polled) if polled.in_flight() > 0 => polled,
            _ => &mut self.main,
        };
        ring.wait(finished)
    }
}
