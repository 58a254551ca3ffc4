use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use basalt_dma::{Buffer, Payload};
use basalt_reactor::{Handle, PollerId, Progress};

use crate::device::Channel;
use crate::error::IoError;
use crate::request::{Completion, Operation, Rejected, Request};
use crate::units::{BlockCount, Lba};

/// A channel for tasks: requests are awaited. For metadata and other work where a task per request is affordable.
///
/// Cheap to clone; all clones share the channel. When the channel's queue is full, further requests wait for their turn in
/// the order in which they came. Dropping a waiting future abandons its request, which still runs to its end.
#[derive(Clone)]
pub struct AsyncChannel {
    shared: Rc<Shared>,
}

struct Shared {
    state: RefCell<State>,
    handle: Handle,
    poller: RefCell<Option<PollerId>>,
}

struct State {
    channel: Box<dyn Channel>,
    waiters: Vec<Waiter>,
    free: Vec<usize>,
    /// Requests that the channel had no room for: place in `waiters` and request.
    queued: VecDeque<Request>,
    completions: Vec<Completion>,
}

enum Waiter {
    Free,
    Waiting(Option<Waker>),
    /// Its future was dropped.
    Abandoned,
    Done(Completion),
}

impl AsyncChannel {
    /// Wraps a channel of `handle`'s reactor and keeps it polled while requests are under way.
    #[must_use]
    pub fn new(handle: &Handle, channel: Box<dyn Channel>) -> Self {
        let state = State {
            channel,
            waiters: Vec::new(),
            free: Vec::new(),
            queued: VecDeque::new(),
            completions: Vec::new(),
        };
        let shared = Rc::new(Shared {
            state: RefCell::new(state),
            handle: handle.clone(),
            poller: RefCell::new(None),
        });
        let weak: Weak<Shared> = Rc::downgrade(&shared);
        let poller = handle.add_poller(move || match weak.upgrade() {
            Some(shared) => Progress::busy_if(shared.state.borrow_mut().poll()),
            None => Progress::Idle,
        });
        *shared.poller.borrow_mut() = Some(poller);
        Self { shared }
    }

    /// Runs one request to its end; its tag is replaced.
    pub async fn run(&self, mut request: Request) -> Completion {
        let place = {
            let mut state = self.shared.state.borrow_mut();
            let place = state.allocate();
            request.tag = place as u64;
            state.queued.push_back(request);
            state.start_queued();
            place
        };
        let waiting = Waiting { shared: Rc::clone(&self.shared), place };
        poll_fn(|context| waiting.shared.state.borrow_mut().poll_waiter(waiting.place, context)).await
    }

    /// Reads into a buffer and gives it back filled.
    ///
    /// # Errors
    /// What the device said.
    pub async fn read(&self, lba: Lba, blocks: BlockCount, buffer: Buffer) -> Result<Buffer, IoError> {
        let completion = self.run(Request::read(0, lba, blocks, buffer)).await;
        completion.result?;
        completion.payload.into_buffer().ok_or(IoError::Malformed)
    }

    /// Writes a payload and gives it back.
    ///
    /// # Errors
    /// What the device said.
    pub async fn write(
        &self,
        lba: Lba,
        blocks: BlockCount,
        payload: impl Into<Payload>,
        fua: bool,
    ) -> Result<Payload, IoError> {
        let operation = Operation::Write { fua };
        let completion = self.run(Request { tag: 0, operation, lba, blocks, payload: payload.into() }).await;
        completion.result.map(|()| completion.payload)
    }

    /// Flushes.
    ///
    /// # Errors
    /// What the device said.
    pub async fn flush(&self) -> Result<(), IoError> {
        self.run(Request::flush(0)).await.result
    }

    /// Unmaps a range.
    ///
    /// # Errors
    /// What the device said.
    pub async fn unmap(&self, lba: Lba, blocks: BlockCount) -> Result<(), IoError> {
        self.run(Request::unmap(0, lba, blocks)).await.result
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// What the device said.
    pub async fn write_zeroes(&self, lba: Lba, blocks: BlockCount) -> Result<(), IoError> {
        self.run(Request::write_zeroes(0, lba, blocks)).await.result
    }
}

impl State {
    fn allocate(&mut self) -> usize {
        let place = self.free.pop().unwrap_or_else(|| {
            self.waiters.push(Waiter::Free);
            self.waiters.len() - 1
        });
        self.waiters[place] = Waiter::Waiting(None);
        place
    }

    fn release(&mut self, place: usize) {
        self.waiters[place] = Waiter::Free;
        self.free.push(place);
    }

    fn start_queued(&mut self) -> bool {
        let mut started = false;
        while let Some(request) = self.queued.pop_front() {
            if let Err(Rejected(request)) = self.channel.submit(request) {
                self.queued.push_front(request);
                break;
            }
            started = true;
        }
        started
    }

    /// Collects completions, wakes their tasks and starts what waited for room.
    fn poll(&mut self) -> bool {
        if self.free.len() == self.waiters.len() {
            return false;
        }
        let mut completions = std::mem::take(&mut self.completions);
        self.channel.poll(&mut completions);
        let mut busy = !completions.is_empty();
        for completion in completions.drain(..) {
            self.finish(completion);
        }
        self.completions = completions;
        busy |= self.start_queued();
        busy
    }

    fn finish(&mut self, completion: Completion) {
        let place = usize::try_from(completion.tag).ok();
        let waiter = place.and_then(|place| self.waiters.get_mut(place).map(|waiter| (place, waiter)));
        let Some((place, waiter)) = waiter else {
            panic!("a device completed a tag that was never submitted")
        };
        match std::mem::replace(waiter, Waiter::Free) {
            Waiter::Waiting(waker) => {
                *waiter = Waiter::Done(completion);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Waiter::Abandoned => self.release(place),
            Waiter::Free | Waiter::Done(_) => panic!("a device completed a request twice"),
        }
    }

    fn poll_waiter(&mut self, place: usize, context: &mut Context<'_>) -> Poll<Completion> {
        match &mut self.waiters[place] {
            Waiter::Waiting(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            waiter @ Waiter::Done(_) => match std::mem::replace(waiter, Waiter::Abandoned) {
                Waiter::Done(completion) => Poll::Ready(completion),
                _ => Poll::Pending,
            },
            Waiter::Free | Waiter::Abandoned => panic!("a completion was taken twice"),
        }
    }
}

/// A future's hold on its place.
struct Waiting {
    shared: Rc<Shared>,
    place: usize,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.shared.state.borrow_mut();
        let place = self.place;
        match state.waiters[place] {
            // Still under way: its completion frees the place.
            Waiter::Waiting(_) => state.waiters[place] = Waiter::Abandoned,
            // Taken, or done without being looked at.
            Waiter::Abandoned | Waiter::Done(_) => state.release(place),
            Waiter::Free => {}
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(poller) = self.poller.borrow_mut().take() {
            self.handle.remove_poller(poller);
        }
    }
}

impl fmt::Debug for AsyncChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queued = self.shared.state.try_borrow().map_or(0, |state| state.queued.len());
        f.debug_struct("AsyncChannel").field("queued", &queued).finish_non_exhaustive()
    }
}
