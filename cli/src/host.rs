//! A volume as an NVMe/TCP host sees it: measured, or written and read back.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use basalt_nvme_wire::Status;
use basalt_nvmf_host::{BringupError, HostOptions, NamespaceFacts};
use basalt_nvmf_tcp::host::{
    Load, LoadFailure, LoadReport, Progress, TcpHostOptions, Work,
    blocking::{self, BlockingError, Session},
    pattern,
};
use basalt_nvmf_transport::{HostId, Nqn};
use basalt_reactor::Polling;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::{
    cluster,
    output::{Format, bytes, parse_bytes, print_json, print_line, print_table, table},
    settings::Settings,
};

/// The one namespace of a volume.
const NSID: u32 = 1;
/// What is looked at in one go before a volume is written to.
const LOOK_BYTES: u32 = 128 << 10;
/// What is written and read where nothing else is said.
const VERIFY_BYTES: u64 = 64 << 20;
/// Exit code for a volume that holds data which would have been overwritten.
const HOLDS_DATA: u8 = 3;

/// Which volume, and who the host is.
#[derive(Debug, clap::Args)]
pub(crate) struct TargetArguments {
    /// The volume, as the control plane knows it
    #[arg(required_unless_present = "address", conflicts_with_all = ["address", "nqn"])]
    volume: Option<String>,
    /// Where the volume is served, without asking the control plane
    #[arg(long, requires = "nqn", value_name = "IP:PORT")]
    address: Option<SocketAddr>,
    /// The volume's NQN, with --address
    #[arg(long, requires = "address")]
    nqn: Option<String>,
    /// The NQN of this host; the volume must allow it
    #[arg(long, default_value = "nqn.2026-01.storage.basalt:host:kubectl-basalt")]
    host_nqn: String,
    /// Check headers and data with CRC-32C
    #[arg(long)]
    digests: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PerfArguments {
    #[command(flatten)]
    pub(crate) target: TargetArguments,
    /// Reads of a hundred commands; anything below 100 writes
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(0..=100))]
    read_percent: u8,
    /// Bytes of a command
    #[arg(long, default_value = "4KiB", value_parser = parse_bytes)]
    block_size: u64,
    /// Commands outstanding per queue
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1023))]
    depth: u16,
    /// Queues, each a connection
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    queues: u16,
    /// How long, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Allow writes, which go to random places of the whole volume: its data is lost
    #[arg(long)]
    overwrite: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArguments {
    #[command(flatten)]
    pub(crate) target: TargetArguments,
    /// How much, from the start of the volume [default: 64MiB, or all of a smaller volume]
    #[arg(long, value_parser = parse_bytes)]
    size: Option<u64>,
    /// Bytes of a command
    #[arg(long, default_value = "64KiB", value_parser = parse_bytes)]
    block_size: u64,
    /// Where the pattern comes from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only read: the pattern was written before
    #[arg(long, conflicts_with = "overwrite")]
    check_only: bool,
    /// Write although the volume holds data, which is lost
    #[arg(long)]
    overwrite: bool,
}

/// A volume that can be connected to.
pub(crate) struct Target {
    name: String,
    options: TcpHostOptions,
}

/// Finds the volume, asking the control plane when it was named.
pub(crate) async fn target(arguments: &TargetArguments, settings: &Settings) -> anyhow::Result<Target> {
    let (name, address, nqn) = match (&arguments.volume, arguments.address, &arguments.nqn) {
        (Some(name), ..) => {
            let volume = cluster::volume(&settings.client()?, name).await?;
            let address = cluster::address(&volume);
            let address = address.with_context(|| {
                format!("volume {name} is {} and has no path yet", cluster::phase(&volume.state))
            })?;
            (name.clone(), address.parse()?, volume.identity.nqn)
        }
        (None, Some(address), Some(nqn)) => (nqn.clone(), address, nqn.clone()),
        (None, ..) => bail!("name a volume, or give --address and --nqn"),
    };
    let host = HostOptions::new(
        Nqn::new(&nqn)?,
        Nqn::new(&arguments.host_nqn)?,
        HostId(*uuid::Uuid::new_v4().as_bytes()),
    );
    let digests = basalt_nvme_wire::pdu::Digests { header: arguments.digests, data: arguments.digests };
    Ok(Target { name, options: TcpHostOptions { address, host, digests } })
}

/// Measures a volume.
pub(crate) fn perf(arguments: &PerfArguments, target: &Target, format: Format) -> anyhow::Result<ExitCode> {
    // Nobody looks at all of a large volume before a measurement.
    if arguments.read_percent < 100 && !arguments.overwrite {
        return Ok(refuse_to_overwrite(target, "may hold data"));
    }
    let duration = Duration::from_secs(arguments.seconds);
    let work = Work::Random { read_percent: arguments.read_percent, duration };
    let mut load = Load::new(NSID, work);
    load.bytes = command_bytes(arguments.block_size)?;
    (load.depth, load.queues) = (arguments.depth, arguments.queues);
    let bar = bar(format, "measuring", "{msg:>10} [{bar:40}] {elapsed}");
    bar.set_length(arguments.seconds * 1000);
    let began = std::time::Instant::now();
    let report = run(target, &load, |_| {
        bar.set_position(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
    })?;
    bar.finish_and_clear();
    show(target, &[("random", report.clone())], format)?;
    if report.failed > 0 { bail!("{}", failures(&report.failures)) } else { Ok(ExitCode::SUCCESS) }
}

/// Writes a pattern and reads it back, over a connection of its own each.
pub(crate) fn verify(
    arguments: &VerifyArguments,
    target: &Target,
    format: Format,
) -> anyhow::Result<ExitCode> {
    let writes = !arguments.check_only;
    let session = Session::connect(&target.options).map_err(|error| explained(error, target))?;
    let size = region(&session, target, arguments.size)?;
    let full = writes && !arguments.overwrite && holds_data(&session, size, arguments.seed)?;
    session.disconnect()?;
    if full {
        return Ok(refuse_to_overwrite(target, "holds data"));
    }
    let passes: &[(Work, &'static str)] = if writes {
        &[(Work::Fill, "writing"), (Work::Check, "reading")]
    } else {
        &[(Work::Check, "reading")]
    };
    let mut reports = Vec::new();
    for (work, doing) in passes {
        let mut load = Load::new(NSID, *work);
        load.bytes = command_bytes(arguments.block_size)?;
        load.region = Some(size);
        load.seed = arguments.seed;
        let bar = bar(format, doing, "{msg:>10} [{bar:40}] {binary_bytes_per_sec} {percent}%");
        let report = run(target, &load, |progress| {
            bar.set_length(progress.total * u64::from(load.bytes));
            bar.set_position(progress.done * u64::from(load.bytes));
        })?;
        bar.finish_and_clear();
        reports.push((*doing, report));
    }
    show(target, &reports, format)?;
    for (doing, report) in &reports {
        if report.failed > 0 {
            bail!("{} while {doing}", failures(&report.failures));
        }
        if let Some(at) = report.first_corrupt {
            bail!("{} commands read other data than was written, first at byte {at}", report.corrupt);
        }
    }
    if format == Format::Table
        && let Some((_, report)) = reports.last()
    {
        print_line(&format!("{}: {} hold what was written", target.name, bytes(report.bytes)));
    }
    Ok(ExitCode::SUCCESS)
}

fn run(target: &Target, load: &Load, progress: impl FnMut(Progress)) -> anyhow::Result<LoadReport> {
    blocking::load(&target.options, load, None, Polling::default(), progress)
        .map_err(|error| explained(error, target))
}

/// An error with the volume that it is about.
fn explained(error: BlockingError, target: &Target) -> anyhow::Error {
    let whom = format!("volume {} at {}", target.name, target.options.address);
    match &error {
        BlockingError::Bringup(BringupError::Connect(refusal))
            if refusal.status.bare() == Status::CONNECT_INVALID_HOST =>
        {
            anyhow::anyhow!(
                "{whom} does not let host {} in: add it to spec.allowedHosts of the Volume, or name a host that is listed \
                 with --host-nqn",
                target.options.host.host
            )
        }
        _ => anyhow::Error::from(error).context(whom),
    }
}

/// How many commands failed, and how: most of them first.
fn failures(failures: &[(LoadFailure, u64)]) -> String {
    let all: u64 = failures.iter().map(|(_, count)| count).sum();
    if let [(failure, count)] = failures {
        return format!("{count} commands failed with {failure}");
    }
    let mut ways = failures.to_vec();
    ways.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let ways = ways.iter().map(|(failure, count)| format!("{count} with {failure}"));
    format!("{all} commands failed, {}", ways.collect::<Vec<_>>().join(", "))
}

/// How much of the volume is meant.
fn region(session: &Session, target: &Target, asked: Option<u64>) -> anyhow::Result<u64> {
    let whole = namespace(session)?.bytes();
    let size = asked.unwrap_or_else(|| whole.min(VERIFY_BYTES));
    if size > whole {
        bail!("volume {} has {}, less than --size: give at most {whole} bytes", target.name, bytes(whole));
    }
    Ok(size)
}

fn namespace(session: &Session) -> anyhow::Result<&NamespaceFacts> {
    let namespace = session.facts().namespaces.iter().find(|namespace| namespace.nsid == NSID);
    namespace.context("the volume has no namespace 1")
}

/// Whether what would be written over is something else than zeroes throughout, or the pattern of this seed throughout.
fn holds_data(session: &Session, size: u64, seed: u64) -> anyhow::Result<bool> {
    let namespace = namespace(session)?;
    let shift = namespace.block_shift;
    // Whatever touches the region counts, also a block that is written in part.
    let blocks = size.div_ceil(1 << shift);
    let step = u64::from((LOOK_BYTES.min(session.facts().transfer_bytes_max) >> shift).max(1));
    let mut content = Content { seed, zeroes: true, pattern: true };
    let mut at = 0;
    while at < blocks && content.is_free() {
        let count = step.min(blocks - at);
        content.look(at << shift, &session.read(NSID, at, u32::try_from(count)?)?);
        at += count;
    }
    Ok(!content.is_free())
}

/// What all that was looked at can still be. A part that is zeroes and a part that is the pattern are somebody's data: they
/// came from whoever wrote one of them over the other.
struct Content {
    seed: u64,
    zeroes: bool,
    pattern: bool,
}

impl Content {
    fn look(&mut self, offset: u64, found: &[u8]) {
        self.zeroes &= found.iter().all(|byte| *byte == 0);
        if self.pattern {
            let mut expected = vec![0; found.len()];
            pattern(self.seed, offset, &mut expected);
            self.pattern = found == expected;
        }
    }

    fn is_free(&self) -> bool {
        self.zeroes || self.pattern
    }
}

fn refuse_to_overwrite(target: &Target, why: &str) -> ExitCode {
    eprintln!(
        "kubectl-basalt: volume {} {why}, and this would overwrite it; use --overwrite if it may be lost",
        target.name
    );
    ExitCode::from(HOLDS_DATA)
}

fn command_bytes(bytes: u64) -> anyhow::Result<u32> {
    u32::try_from(bytes).context("a command has less than 4 GiB")
}

/// A bar on standard error; none where a program reads.
fn bar(format: Format, doing: &'static str, template: &str) -> ProgressBar {
    if format == Format::Json {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template);
    let bar = ProgressBar::new(1).with_message(doing);
    // Templates are constants of this file.
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

fn show(target: &Target, reports: &[(&'static str, LoadReport)], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        let passes = reports.iter().map(|(pass, report)| document(pass, report)).collect::<Vec<_>>();
        return print_json(
            &json!({ "volume": target.name, "address": target.options.address, "passes": passes }),
        );
    }
    let mut shown = table(["pass", "commands", "iops", "bandwidth", "mean", "p50", "p90", "p99", "p99.9"]);
    for (pass, report) in reports {
        let (iops, rate) = rates(report);
        let quantile = |per_mille| format!("{} us", micros(report.latency.quantile(per_mille)));
        shown.add_row([
            (*pass).to_owned(),
            report.commands.to_string(),
            iops.to_string(),
            format!("{}/s", bytes(rate)),
            format!("{} us", micros(report.latency.mean())),
            quantile(500),
            quantile(900),
            quantile(990),
            quantile(999),
        ]);
    }
    print_table(&shown, "");
    Ok(())
}

fn document(pass: &str, report: &LoadReport) -> Value {
    let (iops, rate) = rates(report);
    let quantile = |per_mille| micros(report.latency.quantile(per_mille));
    json!({
        "pass": pass, "commands": report.commands, "failed": report.failed, "corrupt": report.corrupt,
        "failures": report.failures.iter().map(failure_document).collect::<Vec<_>>(),
        "bytes": report.bytes, "seconds": report.elapsed.as_secs_f64(), "iops": iops, "bytesPerSecond": rate,
        "latencyMicroseconds": { "mean": micros(report.latency.mean()), "p50": quantile(500),
            "p90": quantile(900), "p99": quantile(990), "p999": quantile(999) },
    })
}

fn failure_document((failure, count): &(LoadFailure, u64)) -> Value {
    json!({ "status": failure.to_string(), "commands": count })
}

/// Commands and bytes per second.
fn rates(report: &LoadReport) -> (u64, u64) {
    let nanos = report.elapsed.as_nanos().max(1);
    let per_second =
        |count: u64| u64::try_from(u128::from(count) * 1_000_000_000 / nanos).unwrap_or(u64::MAX);
    (per_second(report.commands), per_second(report.bytes))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use basalt_nvmf_host::QueueError;

    use super::*;

    fn is_free(chunks: &[&[u8]]) -> bool {
        let mut content = Content { seed: 1, zeroes: true, pattern: true };
        let mut offset = 0;
        for chunk in chunks {
            content.look(offset, chunk);
            offset += chunk.len() as u64;
        }
        content.is_free()
    }

    #[test]
    fn failures_are_told_in_words_with_their_counts() {
        let ways = [
            (LoadFailure::Status(Status::LBA_OUT_OF_RANGE.dnr()), 2),
            (LoadFailure::Status(Status::WRITE_FAULT), 127),
            (LoadFailure::Queue(QueueError::DataDigest), 1),
        ];
        assert_eq!(
            failures(&ways),
            "130 commands failed, 127 with Write Fault, 2 with LBA Out of Range (do not retry), \
             1 with data came with another digest than its own"
        );
        assert_eq!(failures(&ways[1..2]), "127 commands failed with Write Fault");
        assert_eq!(failure_document(&ways[1]), json!({ "status": "Write Fault", "commands": 127 }));
    }

    #[test]
    fn only_zeroes_or_only_the_pattern_may_be_overwritten() {
        let zeroes = [0; 4096];
        let (mut first, mut second) = ([0; 4096], [0; 4096]);
        pattern(1, 0, &mut first);
        pattern(1, 4096, &mut second);
        let mut other = zeroes;
        other[4095] = 1;
        assert!(is_free(&[&zeroes, &zeroes]));
        assert!(is_free(&[&first, &second]));
        assert!(!is_free(&[&zeroes, &other]), "data after zeroes");
        assert!(!is_free(&[&first, &other]), "data after the pattern");
        assert!(!is_free(&[&first, &zeroes]), "zeroes that somebody wrote over the pattern");
        assert!(!is_free(&[&zeroes, &second]), "the pattern after zeroes");
        assert!(!is_free(&[&second, &first]), "the pattern of another place");
    }
}
