use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::handle::Handle;
use crate::remote::Shared;

/// Names a task of one reactor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskId {
    index: usize,
    generation: u64,
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

enum Slot {
    Free,
    /// The future is here, waiting to be polled.
    Parked {
        generation: u64,
        future: LocalFuture,
        waker: Arc<TaskWaker>,
    },
    /// The future is being polled; if it is aborted meanwhile, it is dropped afterwards.
    Running {
        generation: u64,
        aborted: bool,
    },
}

/// The reactor's tasks. Polls them in the order in which they were woken.
#[derive(Default)]
pub(crate) struct Tasks {
    slots: Vec<Slot>,
    free: Vec<usize>,
    made: u64,
}

struct TaskWaker {
    id: TaskId,
    /// True while the task is in the ready queue.
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.shared.make_ready(self.id);
        }
    }
}

impl Tasks {
    fn insert(&mut self, future: LocalFuture, shared: &Arc<Shared>) -> TaskId {
        self.made += 1;
        let generation = self.made;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        let id = TaskId { index, generation };
        let waker = Arc::new(TaskWaker { id, queued: AtomicBool::new(true), shared: Arc::clone(shared) });
        self.slots[index] = Slot::Parked { generation, future, waker };
        shared.make_ready(id);
        id
    }

    /// Takes a parked task out to be polled.
    fn begin(&mut self, id: TaskId) -> Option<(LocalFuture, Arc<TaskWaker>)> {
        let slot = self.slots.get_mut(id.index)?;
        match slot {
            Slot::Parked { generation, .. } if *generation == id.generation => {}
            _ => return None,
        }
        let running = Slot::Running { generation: id.generation, aborted: false };
        match std::mem::replace(slot, running) {
            Slot::Parked { future, waker, .. } => Some((future, waker)),
            Slot::Free | Slot::Running { .. } => None,
        }
    }

    /// Puts a task back that is not done; hands the future back if it was aborted while it ran.
    fn park(&mut self, id: TaskId, future: LocalFuture, waker: Arc<TaskWaker>) -> Option<LocalFuture> {
        if matches!(self.slots[id.index], Slot::Running { aborted: true, .. }) {
            self.release(id.index);
            return Some(future);
        }
        self.slots[id.index] = Slot::Parked { generation: id.generation, future, waker };
        None
    }

    fn release(&mut self, index: usize) {
        self.slots[index] = Slot::Free;
        self.free.push(index);
    }

    /// Ends a task; hands back what the caller is to drop once no borrow is held.
    fn abort(&mut self, id: TaskId) -> Option<LocalFuture> {
        match self.slots.get_mut(id.index) {
            Some(Slot::Running { generation, aborted }) if *generation == id.generation => {
                *aborted = true;
                None
            }
            Some(Slot::Parked { generation, .. }) if *generation == id.generation => {
                let slot = std::mem::replace(&mut self.slots[id.index], Slot::Free);
                self.free.push(id.index);
                match slot {
                    Slot::Parked { future, .. } => Some(future),
                    Slot::Free | Slot::Running { .. } => None,
                }
            }
            _ => None,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// Polls the tasks that are ready now, each once; those that they wake run in the next turn.
pub(crate) fn run_ready(tasks: &RefCell<Tasks>, shared: &Shared) -> bool {
    let count = shared.ready_len();
    for _ in 0..count {
        let Some(id) = shared.take_ready() else { break };
        let Some((mut future, task_waker)) = tasks.borrow_mut().begin(id) else { continue };
        task_waker.queued.store(false, Ordering::Release);
        let waker = Waker::from(Arc::clone(&task_waker));
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        let ended = match polled {
            Poll::Ready(()) => {
                tasks.borrow_mut().release(id.index);
                Some(future)
            }
            Poll::Pending => tasks.borrow_mut().park(id, future, task_waker),
        };
        // Dropped here, where no borrow is held: a future's drop may spawn or abort.
        drop(ended);
    }
    count > 0
}

/// Drops all tasks: at the end of the reactor, as tasks hold handles to it.
pub(crate) fn drop_all(tasks: &RefCell<Tasks>) {
    loop {
        let slots = std::mem::take(&mut *tasks.borrow_mut()).slots;
        if slots.is_empty() {
            return;
        }
        drop(slots);
    }
}

enum Outcome<T> {
    Running(Option<Waker>),
    Done(Option<T>),
}

/// A spawned task. Awaiting it gives its output; dropping it lets it run on by itself.
pub struct Task<T> {
    id: TaskId,
    handle: Handle,
    outcome: Rc<RefCell<Outcome<T>>>,
}

impl<T: 'static> Task<T> {
    pub(crate) fn spawn(handle: &Handle, future: impl Future<Output = T> + 'static) -> Self {
        let outcome = Rc::new(RefCell::new(Outcome::Running(None)));
        let result = Rc::clone(&outcome);
        let wrapped = async move {
            let output = future.await;
            if let Outcome::Running(Some(waker)) = result.replace(Outcome::Done(Some(output))) {
                waker.wake();
            }
        };
        let id = handle.tasks().borrow_mut().insert(Box::pin(wrapped), handle.shared());
        Self { id, handle: handle.clone(), outcome }
    }

    /// Ends the task where it waits; its values are dropped.
    pub fn abort(self) {
        let future = self.handle.tasks().borrow_mut().abort(self.id);
        drop(future);
    }

    /// True if the task has given its output.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(*self.outcome.borrow(), Outcome::Done(_))
    }

    /// The output, once, if the task is done.
    pub fn take_output(&mut self) -> Option<T> {
        match &mut *self.outcome.borrow_mut() {
            Outcome::Done(output) => output.take(),
            Outcome::Running(_) => None,
        }
    }
}

impl<T: 'static> Future for Task<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        match &mut *self.outcome.borrow_mut() {
            Outcome::Running(waker) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            Outcome::Done(output) => match output.take() {
                Some(output) => Poll::Ready(output),
                None => panic!("a task's output was taken twice"),
            },
        }
    }
}

impl<T> std::fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Task").field("id", &self.id).finish_non_exhaustive()
    }
}
