//! Blocking calls over a reactor on a thread of its own: for tools and tests.

use std::sync::mpsc;
use std::time::Duration;

use basalt_dma::{Buffer, Payload};
use basalt_nvme_wire::reservation::{Acquire, Register, Release};
use basalt_nvme_wire::{ReadWrite, Status, dsm};
use basalt_nvmf_host::{
    BringupError, Command, ControllerFacts, Data, DiscoveredSubsystem, FusedPair, IoCommand, QueueError, Swap,
};
use basalt_reactor::{Handle, Polling, PostError, ReactorOptions, ReactorThread, Remote, StartError, start};

use super::controller::{Controller, TcpHostOptions, connect, discover as discover_on};
use super::io_queue::AsyncIoQueue;
use super::load::{Counters, Load, LoadReport, Progress, run as run_load};

/// Why a blocking call failed.
#[derive(Debug, thiserror::Error)]
pub enum BlockingError {
    /// There is no reactor.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The reactor does not take work.
    #[error(transparent)]
    Post(#[from] PostError),
    /// The reactor ended.
    #[error("the host's reactor ended")]
    Ended,
    /// The controller cannot be used.
    #[error(transparent)]
    Bringup(#[from] BringupError),
    /// The queue ended.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The controller answered a command with an error.
    #[error("{command} failed: {status}")]
    Status {
        /// Which command.
        command: &'static str,
        /// Its status.
        status: Status,
    },
    /// The load cannot be run against this controller.
    #[error("the load does not fit the namespace: {0}")]
    Load(&'static str),
}

/// Reads the discovery log page of the discovery controller at `options.address`.
///
/// # Errors
/// Why it cannot be read.
pub fn discover(options: &TcpHostOptions) -> Result<Vec<DiscoveredSubsystem>, BlockingError> {
    let (thread, options) = (thread(None, Polling::default())?, options.clone());
    let found = call(thread.remote(), move |handle| async move { discover_on(&handle, &options).await })?;
    Ok(found?)
}

/// Connects as often and with as many queues as the load says, runs it, and reports.
///
/// `core` pins the reactor; `progress` is called several times a second until the load is done.
///
/// # Errors
/// Why it could not be run.
pub fn load(
    options: &TcpHostOptions,
    load: &Load,
    core: Option<usize>,
    polling: Polling,
    mut progress: impl FnMut(Progress),
) -> Result<LoadReport, BlockingError> {
    const LOOK: Duration = Duration::from_millis(200);
    let thread = thread(core, polling)?;
    let mut options = options.clone();
    options.host.io_queues = load.queues;
    options.host.io_queue_entries = load.depth + 1;
    let (load, counters) = (load.clone(), Counters::default());
    let (report, answer) = mpsc::sync_channel(1);
    let shared = counters.clone();
    thread.remote().post(move |handle| {
        let on = handle.clone();
        handle.spawn(async move {
            let outcome = run_load(&on, &options, &load, &shared).await;
            tell(&report, outcome);
        });
    })?;
    loop {
        match answer.recv_timeout(LOOK) {
            Ok(outcome) => {
                progress(counters.progress());
                return outcome;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => progress(counters.progress()),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(BlockingError::Ended),
        }
    }
}

fn thread(core: Option<usize>, polling: Polling) -> Result<ReactorThread, StartError> {
    let options = ReactorOptions { polling, ..ReactorOptions::default() };
    start("nvme-host", core, options, |_| {})
}

/// Answers a caller, who waits for it unless it is gone.
fn tell<T>(caller: &mpsc::SyncSender<T>, answer: T) {
    if caller.send(answer).is_err() {
        tracing::debug!("a caller did not wait for its answer");
    }
}

/// Runs a future on a reactor and waits for its output.
fn call<T: Send + 'static, F: Future<Output = T> + 'static>(
    remote: &Remote,
    work: impl FnOnce(Handle) -> F + Send + 'static,
) -> Result<T, BlockingError> {
    let (report, answer) = mpsc::sync_channel(1);
    remote.post(move |handle| {
        let future = work(handle.clone());
        handle.spawn(async move { tell(&report, future.await) });
    })?;
    answer.recv().map_err(|_| BlockingError::Ended)
}

/// What lives on the reactor for a session.
struct Connected {
    controller: Controller,
    queue: AsyncIoQueue,
}

type Work = Box<dyn FnOnce(&Handle, &Connected) + Send>;

/// A host that is connected to a controller with one I/O queue, used by blocking calls.
pub struct Session {
    thread: ReactorThread,
    work: mpsc::Sender<Work>,
    facts: ControllerFacts,
}

impl Session {
    /// Connects.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn connect(options: &TcpHostOptions) -> Result<Self, BlockingError> {
        let (work, orders) = mpsc::channel::<Work>();
        let mut options = options.clone();
        options.host.io_queues = 1;
        let thread = thread(None, Polling::default())?;
        let facts = call(thread.remote(), move |handle| async move {
            let (controller, queues) = connect(&handle, &options).await?;
            let Some(queue) = queues.into_iter().next() else {
                return Err(BringupError::Nonsense { step: "Set Features (Number of Queues)" });
            };
            let facts = controller.facts().clone();
            let connected = Connected { controller, queue: queue.into_async(&handle) };
            let on = handle.clone();
            handle.add_poller(move || {
                let mut done = basalt_reactor::Progress::Idle;
                while let Ok(work) = orders.try_recv() {
                    work(&on, &connected);
                    done = basalt_reactor::Progress::Busy;
                }
                done
            });
            Ok(facts)
        })??;
        Ok(Self { thread, work, facts })
    }

    /// What was learnt about the controller and its namespaces.
    #[must_use]
    pub fn facts(&self) -> &ControllerFacts {
        &self.facts
    }

    /// Reads blocks.
    ///
    /// # Errors
    /// Why there is no data.
    pub fn read(&self, nsid: u32, lba: u64, blocks: u32) -> Result<Vec<u8>, BlockingError> {
        let shift = self.block_shift(nsid);
        let make = move || {
            let data = Data::ToHost(Buffer::zeroed((blocks as usize) << shift));
            IoCommand::Read(ReadWrite::new(lba, blocks)).with(nsid, data)
        };
        self.run("Read", make)
    }

    /// Writes blocks: `data` is as long as whole blocks.
    ///
    /// # Errors
    /// Why it was not written.
    pub fn write(&self, nsid: u32, lba: u64, data: &[u8]) -> Result<(), BlockingError> {
        let shift = self.block_shift(nsid);
        let (bytes, blocks) = (data.to_vec(), u32::try_from(data.len() >> shift).unwrap_or(u32::MAX));
        let make = move || {
            let data = Data::ToController(Payload::Buffer(Buffer::copy_of(&bytes)));
            IoCommand::Write(ReadWrite::new(lba, blocks)).with(nsid, data)
        };
        self.run("Write", make).map(drop)
    }

    /// Replaces the blocks' content `expected` by `new`, in one step; both are as long as the same whole blocks.
    ///
    /// # Errors
    /// Why it is not known what the blocks held, or why the new data was not written.
    pub fn compare_and_write(
        &self,
        nsid: u32,
        lba: u64,
        expected: &[u8],
        new: &[u8],
    ) -> Result<Swap, BlockingError> {
        let shift = self.block_shift(nsid);
        let (expected, new) = (expected.to_vec(), new.to_vec());
        let (report, answer) = mpsc::sync_channel(1);
        self.order(Box::new(move |handle, connected| {
            let queue = connected.queue.clone();
            handle.spawn(async move {
                let fields = ReadWrite::new(lba, u32::try_from(new.len() >> shift).unwrap_or(u32::MAX));
                let data = |bytes: &[u8]| Data::ToController(Payload::Buffer(Buffer::copy_of(bytes)));
                let pair = FusedPair::new(nsid, fields, data(&expected), data(&new));
                let statuses = match queue.run_fused(pair, Some(IO_TIMEOUT)).await {
                    Ok([compare, write]) => compare.result.and_then(|first| Ok((first, write.result?))),
                    Err(error) => Err(error),
                };
                tell(&report, statuses.map(|(compare, write)| (compare.status(), write.status())));
            });
        }))?;
        let (compare, write) = answer.recv().map_err(|_| BlockingError::Ended)??;
        FusedPair::result(compare, write)
            .map_err(|status| BlockingError::Status { command: "Compare and Write", status })
    }

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// Why they may not be.
    pub fn flush(&self, nsid: u32) -> Result<(), BlockingError> {
        self.run("Flush", move || IoCommand::Flush.with(nsid, Data::None)).map(drop)
    }

    /// Writes zeroes.
    ///
    /// # Errors
    /// Why it did not.
    pub fn write_zeroes(&self, nsid: u32, lba: u64, blocks: u32) -> Result<(), BlockingError> {
        let make = move || IoCommand::WriteZeroes(ReadWrite::new(lba, blocks)).with(nsid, Data::None);
        self.run("Write Zeroes", make).map(drop)
    }

    /// Deallocates blocks.
    ///
    /// # Errors
    /// Why it did not.
    pub fn deallocate(&self, nsid: u32, lba: u64, blocks: u32) -> Result<(), BlockingError> {
        let make = move || Command::deallocate(nsid, &[dsm::Range::new(lba, blocks)]);
        self.run("Dataset Management", make).map(drop)
    }

    /// Registers this host with a namespace, or ends or changes its registration.
    ///
    /// # Errors
    /// Why it did not.
    pub fn register(&self, nsid: u32, register: Register) -> Result<(), BlockingError> {
        self.run("Reservation Register", move || Command::register(nsid, &register)).map(drop)
    }

    /// Takes a namespace's reservation, or preempts.
    ///
    /// # Errors
    /// Why it did not.
    pub fn acquire(&self, nsid: u32, acquire: Acquire) -> Result<(), BlockingError> {
        self.run("Reservation Acquire", move || Command::acquire(nsid, &acquire)).map(drop)
    }

    /// Gives a namespace's reservation up, or clears it.
    ///
    /// # Errors
    /// Why it did not.
    pub fn release(&self, nsid: u32, release: Release) -> Result<(), BlockingError> {
        self.run("Reservation Release", move || Command::release(nsid, &release)).map(drop)
    }

    /// The report of a namespace's reservation, with up to `registrants` registrants: see
    /// [`ParsedReport`](basalt_nvme_wire::reservation::ParsedReport).
    ///
    /// # Errors
    /// Why there is none.
    pub fn report(&self, nsid: u32, registrants: u16) -> Result<Vec<u8>, BlockingError> {
        let bytes = 64 * (1 + u32::from(registrants));
        self.run("Reservation Report", move || Command::report(nsid, bytes))
    }

    /// Tells the controller that the host goes, and disconnects.
    ///
    /// # Errors
    /// Why the controller was not told.
    pub fn disconnect(self) -> Result<(), BlockingError> {
        let (report, answer) = mpsc::sync_channel(1);
        self.order(Box::new(move |handle, connected| {
            let shut_down = connected.controller.begin_shut_down();
            handle.spawn(async move { tell(&report, shut_down.await) });
        }))?;
        answer.recv().map_err(|_| BlockingError::Ended)??;
        Ok(())
    }

    fn block_shift(&self, nsid: u32) -> u8 {
        let namespace = self.facts.namespaces.iter().find(|namespace| namespace.nsid == nsid);
        // The controller refuses a namespace that there is not.
        namespace.map_or(9, |namespace| namespace.block_shift)
    }

    fn order(&self, work: Work) -> Result<(), BlockingError> {
        self.work.send(work).map_err(|_| BlockingError::Ended)?;
        Ok(self.thread.remote().post(|_| {})?)
    }

    fn run(
        &self,
        name: &'static str,
        make: impl FnOnce() -> Command + Send + 'static,
    ) -> Result<Vec<u8>, BlockingError> {
        let (report, answer) = mpsc::sync_channel(1);
        self.order(Box::new(move |handle, connected| {
            let queue = connected.queue.clone();
            handle.spawn(async move {
                let command = make();
                let gives = matches!(command.data, Data::ToHost(_));
                let outcome = queue.run(command, Some(IO_TIMEOUT)).await;
                let result = outcome.and_then(|outcome| {
                    let data = if gives { outcome.payload.to_vec() } else { Vec::new() };
                    outcome.result.map(|cqe| (cqe.status(), data))
                });
                tell(&report, result);
            });
        }))?;
        let (status, data) = answer.recv().map_err(|_| BlockingError::Ended)??;
        if status.is_success() { Ok(data) } else { Err(BlockingError::Status { command: name, status }) }
    }
}

/// Time that a blocking call waits for its command.
const IO_TIMEOUT: Duration = Duration::from_secs(30);

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("facts", &self.facts).finish_non_exhaustive()
    }
}
