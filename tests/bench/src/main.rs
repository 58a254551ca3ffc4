//! `basalt-bench`: measures the data plane over loopback, side by side with what the kernel alone allows and, if asked, with another
//! target. `cargo xtask bench dataplane` runs it.
//!
//! Single runs vary by tens of percent on a shared machine. So nothing is compared over time: each row is made of pairs of short runs,
//! one right after the other and in alternating order, and what is told of them is the median of their ratios with the interval that
//! resampling gives ([`ratio`]).
#![allow(clippy::print_stdout, reason = "prints its results")]

mod bars;
mod exchange;
mod local;
mod outside;
mod paused;
mod peers;
mod ratio;
mod settings;
mod subject;
mod table;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_nvmf_transport::Nqn;
use clap::{Parser, Subcommand};

use exchange::Exchange;
use paused::Paused;
use subject::{Figures, Served, Subject, Work};
use table::Row;

/// Measures Basalt's NVMe/TCP target and host over loopback.
#[derive(Parser)]
#[command(name = "basalt-bench", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// Pairs of runs per row
    #[arg(long, global = true, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pairs: u32,
    /// Seconds of one run
    #[arg(long, global = true, default_value_t = 3.0)]
    seconds: f64,
    /// Another NVMe/TCP target, with a namespace 1 of at least 256 MiB whose data may be overwritten; the same load runs against it
    #[arg(long, global = true, value_name = "IP:PORT", requires = "vs_nqn")]
    vs: Option<SocketAddr>,
    /// The subsystem of the other target
    #[arg(long, global = true, value_name = "NQN", requires = "vs")]
    vs_nqn: Option<String>,
    /// The other target's process, where it runs on this machine: it is paused whenever it is not its turn, as a target that
    /// never sleeps takes the core from the rest
    #[arg(long, global = true, value_name = "PID", requires = "vs")]
    vs_pid: Option<i32>,
    /// Only rows whose name contains this
    #[arg(long, global = true, default_value = "")]
    only: String,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    json: bool,
}

/// What is measured instead of the rows.
#[derive(Subcommand)]
enum Other {
    /// What half-open connections add to the busy time per command: the bar is 10 % for 1,000
    HalfOpen {
        /// Connections
        #[arg(long, default_value_t = 1000)]
        connections: usize,
    },
    /// What digests cost in commands, and sleeping in latency: the bars are 0.8 and 1.3
    Settings,
    /// The same targets under another load generator, and our pair to its pair with the other target; wants --vs
    Outside {
        /// Run as `PROGRAM read|write BYTES DEPTH QUEUES SECONDS`, with PORT and NQN in its environment; prints IOPS= and mean_us=
        #[arg(long, value_name = "PROGRAM")]
        generator: PathBuf,
    },
    /// Devices without a network: null and RAM against another program (bars 0.7 and 1.5), a file against fio (0.95)
    Local {
        /// Run as `PROGRAM null|malloc read|write SECONDS`; prints IOPS=
        #[arg(long, value_name = "PROGRAM")]
        peer: Option<PathBuf>,
        /// A file to be made or overwritten, on a file system that takes `O_DIRECT`
        #[arg(long, value_name = "PATH")]
        file: Option<PathBuf>,
    },
    /// The target's memory with connected, idle queue pairs of depth 128: the bar is 256 MiB for 1,000
    Memory {
        /// Queue pairs
        #[arg(long, default_value_t = 1000)]
        queue_pairs: usize,
    },
    /// A target for `memory`, in a process of its own
    #[command(hide = true)]
    Serve,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores >= 2, "target and load need a core each, and this machine has {cores}");
    let duration = Duration::from_secs_f64(arguments.seconds.clamp(0.1, 600.0));
    match &arguments.other {
        Some(Other::HalfOpen { connections }) => return half_open(arguments, *connections, duration),
        Some(Other::Memory { queue_pairs }) => return memory(arguments, *queue_pairs),
        Some(Other::Settings) => return settings(arguments, duration),
        Some(Other::Outside { generator }) => return outside(arguments, generator, duration),
        Some(Other::Local { peer, file }) => {
            return local(arguments, peer.as_deref(), file.as_deref(), duration);
        }
        Some(Other::Serve) => return peers::serve(),
        None => {}
    }
    ensure!((0.1..=600.0).contains(&arguments.seconds), "--seconds must be from 0.1 to 600, for example 3");
    let other = other(arguments)?.map(|(subject, other)| (subject, other.pause));
    let mut rows = Vec::new();
    for work in Work::ALL.iter().filter(|work| work.name().contains(&arguments.only)) {
        eprintln!("{} x {} s each: {}", arguments.pairs, arguments.seconds, work.name());
        let row = measure(work, other.as_ref(), arguments.pairs, duration)?;
        if !arguments.json {
            table::print_row(&row, rows.is_empty());
        }
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "no row has {:?} in its name", arguments.only);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}

/// The other target, if one is named, with its working set written.
fn other(arguments: &Arguments) -> Result<Option<(Subject, outside::Other)>> {
    let (Some(address), Some(nqn)) = (arguments.vs, &arguments.vs_nqn) else { return Ok(None) };
    let subsystem = Nqn::new(nqn)?;
    let subject = Subject::new(address, subsystem.clone(), None);
    subject.fill()?;
    let pause = arguments.vs_pid.map(Paused::new).transpose()?;
    Ok(Some((subject, outside::Other { address, subsystem, pause })))
}

fn outside(arguments: &Arguments, generator: &Path, duration: Duration) -> Result<()> {
    let (_, other) = other(arguments)?.context("name the other target with --vs and --vs-nqn")?;
    let mut rows = Vec::new();
    let works = Work::ALL.iter().filter(|work| !work.has_digests() && work.name().contains(&arguments.only));
    for work in works {
        eprintln!("{} x {} s each: {}", arguments.pairs, arguments.seconds, work.name());
        let row = outside::measure(generator, &other, work, arguments.pairs, duration)?;
        if !arguments.json {
            outside::print_row(&row, rows.is_empty());
        }
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "no row has {:?} in its name", arguments.only);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}

fn local(arguments: &Arguments, peer: Option<&Path>, file: Option<&Path>, duration: Duration) -> Result<()> {
    ensure!(peer.is_some() || file.is_some(), "name what to compare with: --peer, --file or both");
    let devices = [(local::Device::Null, peer), (local::Device::Ram, peer), (local::Device::File, file)];
    let runs = devices.into_iter().filter_map(|(device, path)| Some((device, path?)));
    let runs = runs
        .flat_map(|(device, path)| [true, false].map(|reads| local::Run { device, reads, path, duration }));
    let mut rows = Vec::new();
    for run in runs.filter(|run| run.name().contains(&arguments.only)) {
        eprintln!("{} x {} s each: {}", arguments.pairs, arguments.seconds, run.name());
        let row = run.measure(arguments.pairs)?;
        if !arguments.json {
            local::print_row(&row, rows.is_empty());
        }
        rows.push(row);
    }
    ensure!(!rows.is_empty(), "no row has {:?} in its name", arguments.only);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}

fn half_open(arguments: &Arguments, connections: usize, duration: Duration) -> Result<()> {
    let mut rows = Vec::new();
    for work in Work::ALL[..2].iter().filter(|work| work.name().contains(&arguments.only)) {
        eprintln!("{} x {} s each: {}", arguments.pairs, arguments.seconds, work.name());
        let row = peers::measure(work, connections, arguments.pairs, duration)?;
        if !arguments.json {
            peers::print_row(&row, rows.is_empty());
        }
        rows.push(row);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    }
    Ok(())
}

fn settings(arguments: &Arguments, duration: Duration) -> Result<()> {
    let rows = settings::measure(&arguments.only, arguments.pairs, duration)?;
    ensure!(!rows.is_empty(), "no setting has {:?} in its name", arguments.only);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        settings::print(&rows);
    }
    Ok(())
}

fn memory(arguments: &Arguments, queue_pairs: usize) -> Result<()> {
    let memory = peers::memory(queue_pairs)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&memory)?);
    } else {
        peers::print_memory(&memory);
    }
    Ok(())
}

/// Runs in turn, one subject at a time: nobody else is on the target's core.
fn measure(
    work: &Work,
    other: Option<&(Subject, Option<Paused>)>,
    pairs: u32,
    duration: Duration,
) -> Result<Row> {
    let exchange = Exchange::like(work);
    let mut runs: [Vec<Figures>; 3] = Default::default();
    for pair in 0..pairs {
        let order = if pair % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] };
        for subject in order {
            match (subject, other) {
                (0, _) => runs[0].push(Served::start()?.subject().run(work, duration)?),
                (1, _) => runs[1].push(exchange.run(duration)?),
                (_, Some((other, pause))) => {
                    let _turn = pause.as_ref().map(Paused::turn).transpose()?;
                    runs[2].push(other.run(work, duration)?);
                }
                (_, None) => {}
            }
        }
    }
    Ok(Row::of(work, &runs))
}
