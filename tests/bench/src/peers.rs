//! What peers cost that do nothing: half-open connections beside a load, and connected idle queue pairs.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use basalt_nvme_wire::pdu::{Digests, InitializeRequest};
use basalt_nvmf_host::HostOptions;
use basalt_nvmf_tcp::host::{TcpHostOptions, connect};
use basalt_nvmf_transport::{HostId, Nqn};
use basalt_reactor::{ReactorOptions, start};
use serde::Serialize;

use crate::ratio::{Ratio, median};
use crate::subject::{HOST, SUBSYSTEM, Served, Subject, Work};

/// The bar: the busy time per command may grow by less than this.
const GROWTH_MAX: f64 = 1.10;

/// One kind of load without and with half-open connections.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    half_open: usize,
    busy_ns_without: f64,
    busy_ns_with: f64,
    /// Busy time per command with them to that without.
    growth: Option<Ratio>,
}

/// Connections that say nothing, half an initialization, or one without anything after it.
pub(crate) fn half_open(address: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let initialize = InitializeRequest { data_alignment: 4, digests: Digests::default(), r2t_max: 1 }.emit();
    (0..count)
        .map(|number| {
            let mut stream = TcpStream::connect(address).context("cannot open a half-open connection")?;
            match number % 3 {
                0 => {}
                1 => stream.write_all(&initialize[..64])?,
                _ => stream.write_all(&initialize)?,
            }
            Ok(stream)
        })
        .collect()
}

/// Loads the target in pairs of runs, without and with so many half-open connections.
pub(crate) fn measure(work: &Work, count: usize, pairs: u32, duration: Duration) -> Result<Row> {
    // They are to last for the whole run.
    let served = Served::patient()?;
    let subject = served.subject();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        for busy in if pair % 2 == 0 { [false, true] } else { [true, false] } {
            if busy {
                let streams = half_open(served.address(), count)?;
                settle(&served, |now| now >= count)
                    .context("the target does not take the half-open connections")?;
                with.push(subject.run(work, duration)?.busy_ns);
                ensure!(served.connections()? >= count, "the target closed half-open connections early");
                drop(streams);
                settle(&served, |now| now == 0).context("the target keeps connections that are closed")?;
            } else {
                without.push(subject.run(work, duration)?.busy_ns);
            }
        }
    }
    let pairs: Vec<(f64, f64)> = with.iter().copied().zip(without.iter().copied()).collect();
    Ok(Row {
        name: work.name(),
        half_open: count,
        busy_ns_without: median(&without).unwrap_or_default(),
        busy_ns_with: median(&with).unwrap_or_default(),
        growth: Ratio::of(&pairs),
    })
}

/// Waits until the target has as many connections as are wanted.
fn settle(served: &Served, wanted: impl Fn(usize) -> bool) -> Result<()> {
    const LOOKS: u32 = 500;
    for _ in 0..LOOKS {
        if wanted(served.connections()?) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("it has {} connections", served.connections()?);
}

pub(crate) fn print_row(row: &Row, first: bool) {
    if first {
        println!(
            "{:24} {:>10} {:>14} {:>14}   growth [95 %]",
            "work", "half-open", "busy ns alone", "beside them"
        );
    }
    let Some(growth) = row.growth else { return };
    println!(
        "{:24} {:>10} {:>14.0} {:>14.0}   {:.3} [{:.3}, {:.3}]{}",
        row.name,
        row.half_open,
        row.busy_ns_without,
        row.busy_ns_with,
        growth.median,
        growth.low,
        growth.high,
        if growth.median < GROWTH_MAX { "" } else { "  above the bar of 1.10" }
    );
}

/// I/O queues of one controller, and controllers: one host may have 32 of these.
const QUEUES_PER_CONTROLLER: u16 = 125;
const DEPTH: u16 = 128;

/// Memory of a target process with connected, idle queue pairs.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    queue_pairs: usize,
    depth: u16,
    idle_kib: u64,
    connected_kib: u64,
    /// After every queue had been as full as it can be.
    used_kib: u64,
}

/// The program as a target of its own: prints its address, and ends with its standard input.
pub(crate) fn serve() -> Result<()> {
    let served = Served::patient()?;
    println!("{}", served.address());
    std::io::stdout().flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    drop(served);
    Ok(())
}

/// A target process; ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait().map(drop)) {
            eprintln!("the target process cannot be ended: {error}");
        }
    }
}

impl Process {
    fn resident_kib(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.0.id());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number.and_then(|number| number.trim().parse().ok()).context("no VmRSS")
    }
}

/// Measures a target process with so many queue pairs.
pub(crate) fn memory(queue_pairs: usize) -> Result<Memory> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let child = Command::new(program).arg("serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut process = Process(child.context("cannot start the target")?);
    let mut line = String::new();
    let output = process.0.stdout.take().context("no output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line)?;
    let address: SocketAddr = line.trim().parse().context("the target printed no address")?;
    // One command first, so that what every target has once is there.
    Subject::new(address, Nqn::new(SUBSYSTEM)?, None).run(&Work::ALL[0], Duration::from_millis(100))?;
    std::thread::sleep(Duration::from_millis(200));
    let idle_kib = process.resident_kib()?;
    let controllers = queue_pairs.div_ceil(usize::from(QUEUES_PER_CONTROLLER));
    let host = hold(address, controllers, queue_pairs)?;
    std::thread::sleep(Duration::from_millis(500));
    let connected_kib = process.resident_kib()?;
    host.fill()?;
    std::thread::sleep(Duration::from_millis(500));
    let used_kib = process.resident_kib()?;
    Ok(Memory { queue_pairs: host.queue_pairs, depth: DEPTH, idle_kib, connected_kib, used_kib })
}

/// A host's reactor that holds controllers and their queues.
struct Host {
    queue_pairs: usize,
    orders: mpsc::Sender<mpsc::SyncSender<Result<()>>>,
    thread: basalt_reactor::ReactorThread,
}

impl Host {
    /// Fills every queue once.
    fn fill(&self) -> Result<()> {
        let (tell, told) = mpsc::sync_channel(1);
        self.orders.send(tell).context("the host is gone")?;
        self.thread.remote().post(|_| {}).context("the host is gone")?;
        told.recv().context("the host is gone")?
    }
}

fn hold(address: SocketAddr, controllers: usize, queue_pairs: usize) -> Result<Host> {
    let thread = start("host", None, ReactorOptions::default(), |_| {}).context("cannot start a reactor")?;
    let (orders, taken) = mpsc::channel::<mpsc::SyncSender<Result<()>>>();
    let (tell, told) = mpsc::sync_channel(1);
    thread.remote().post(move |handle| {
        let on = handle.clone();
        handle.spawn(async move {
            let mut held = Vec::new();
            let mut left = queue_pairs;
            for _ in 0..controllers {
                let queues = u16::try_from(left).unwrap_or(u16::MAX).min(QUEUES_PER_CONTROLLER);
                match options(address, queues) {
                    Ok(options) => match connect(&on, &options).await {
                        Ok(connected) => {
                            left -= connected.1.len().min(left);
                            held.push(connected);
                        }
                        Err(error) => return drop(tell.send(Err(anyhow::Error::from(error)))),
                    },
                    Err(error) => return drop(tell.send(Err(error))),
                }
            }
            drop(tell.send(Ok(queue_pairs - left)));
            loop {
                match taken.try_recv() {
                    Ok(answer) => drop(answer.send(fill::all(&on, &mut held).await)),
                    Err(mpsc::TryRecvError::Empty) => on.sleep(Duration::from_millis(20)).await,
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
        });
    })?;
    let queue_pairs = told.recv().context("the host's reactor ended")??;
    Ok(Host { queue_pairs, orders, thread })
}

fn options(address: SocketAddr, queues: u16) -> Result<TcpHostOptions> {
    let mut host = HostOptions::new(Nqn::new(SUBSYSTEM)?, Nqn::new(HOST)?, HostId([5; 16]));
    (host.io_queues, host.io_queue_entries) = (queues, DEPTH + 1);
    host.keep_alive = Duration::from_secs(120);
    Ok(TcpHostOptions { address, host, digests: Digests::default() })
}

mod fill {
    //! As many commands as a queue takes, on one queue after the other.

    use anyhow::{Result, ensure};
    use basalt_dma::{Buffer, Payload};
    use basalt_nvme_wire::ReadWrite;
    use basalt_nvmf_host::{Data, IoCommand};
    use basalt_nvmf_tcp::host::{Controller, IoQueue};
    use basalt_reactor::Handle;

    use super::DEPTH;

    pub(super) async fn all(handle: &Handle, held: &mut [(Controller, Vec<IoQueue>)]) -> Result<()> {
        for (_, queues) in held {
            for queue in queues {
                for tag in 0..u64::from(DEPTH) {
                    let fields = ReadWrite::new(tag, 1);
                    let command = if tag % 2 == 0 {
                        IoCommand::Read(fields).with(1, Data::ToHost(Buffer::zeroed(4096)))
                    } else {
                        let data = Payload::Buffer(Buffer::zeroed(4096));
                        IoCommand::Write(fields).with(1, Data::ToController(data))
                    };
                    ensure!(queue.submit(tag, command).is_ok(), "a queue takes fewer than {DEPTH} commands");
                }
                let mut outcomes = Vec::new();
                while queue.outstanding() > 0 {
                    queue.poll(&mut outcomes);
                    handle.yield_now().await;
                }
                ensure!(
                    outcomes.iter().all(|outcome| outcome.result.is_ok_and(|cqe| cqe.status().is_success())),
                    "a command failed"
                );
            }
        }
        Ok(())
    }
}

pub(crate) fn print_memory(memory: &Memory) {
    /// Above idle, for 1,000 queue pairs.
    const BAR_MIB: u64 = 256;
    let above = |kib: u64| kib.saturating_sub(memory.idle_kib) / 1024;
    println!(
        "{} idle queue pairs of depth {}: the target's resident memory",
        memory.queue_pairs, memory.depth
    );
    println!("  idle              {:>8} MiB", memory.idle_kib / 1024);
    println!("  connected         {:>8} MiB above that", above(memory.connected_kib));
    println!("  after full queues {:>8} MiB above that (bar: {BAR_MIB} for 1,000)", above(memory.used_kib));
}
