//! Everything that CI runs, one step after the other.
//!
//! A step that fails does not stop the later ones, unless they need what it builds. Each step writes to a log of its own; what
//! is shown is a line per step, and the end of the log of a step that failed.

mod steps;
mod tally;
mod watchdog;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace;
use steps::Step;
use tally::Tally;
use watchdog::Watchdog;

const TAIL_LINES: usize = 60;

/// How long a step may take, also on an empty cache: one that hangs must not cost the verdict of the others.
const STEP_MAX: Duration = Duration::from_secs(15 * 60);

/// Options of `test`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only these steps
    #[arg(long, value_name = "STEP", value_delimiter = ',')]
    only: Vec<String>,
    /// Show the steps and run none
    #[arg(long)]
    list: bool,
}

/// Runs the steps; the last line on standard output is `N passed, N failed`.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let all = steps::all()?;
    if let Some(unknown) =
        arguments.only.iter().find(|name| all.iter().all(|step| step.name != name.as_str()))
    {
        bail!("there is no step {unknown}; `cargo xtask test --list` shows them");
    }
    if arguments.list {
        for step in &all {
            println!("{:14} {}", step.name, step.what);
        }
        return Ok(());
    }
    let logs = workspace::target_dir()?.join("xtask-test");
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let started = Instant::now();
    let mut total = Tally::default();
    let mut failed = Vec::new();
    for step in all
        .iter()
        .filter(|step| arguments.only.is_empty() || arguments.only.iter().any(|name| name == step.name))
    {
        let tally = run_step(step, &logs, started)?;
        if tally.failed > 0 {
            failed.push(step.name);
        }
        total.add(tally);
    }
    println!("\n{:.0} s in all; logs are in {}", started.elapsed().as_secs_f64(), logs.display());
    if !failed.is_empty() {
        println!("failed steps: {}", failed.join(", "));
    }
    println!("{} passed, {} failed", total.passed, total.failed);
    if total.failed > 0 {
        std::process::exit(1);
    }
    Ok(())
}

fn run_step(step: &Step, logs: &Path, started: Instant) -> Result<Tally> {
    let log_path = logs.join(format!("{}.log", step.name));
    println!("[{:6.1} s] {:14} {}", started.elapsed().as_secs_f64(), step.name, step.what);
    let step_started = Instant::now();
    let mut log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut tally = Tally::default();
    let mut broken = None;
    for command in &step.commands {
        let limit = STEP_MAX.saturating_sub(step_started.elapsed());
        let (counted, succeeded) = run_command(command, &step.environment, limit, &mut log)?;
        tally.add(counted);
        if !succeeded {
            broken = Some(command.join(" "));
            break;
        }
    }
    tally.close(broken.is_none());
    let verdict = if broken.is_none() { "ok" } else { "FAILED" };
    println!(
        "[{:6.1} s] {:14} {verdict} in {:.1} s ({} passed, {} failed)",
        started.elapsed().as_secs_f64(),
        step.name,
        step_started.elapsed().as_secs_f64(),
        tally.passed,
        tally.failed
    );
    if let Some(command) = broken {
        println!("    {command}\n    the end of {}:\n{}", log_path.display(), tail(&log_path)?);
    }
    Ok(tally)
}

/// Runs one command at the root of the source tree; its output goes to the log and is counted line by line.
fn run_command(
    command: &[String],
    environment: &[(&'static str, OsString)],
    limit: Duration,
    log: &mut File,
) -> Result<(Tally, bool)> {
    let (program, args) = command.split_first().context("a step without a command")?;
    writeln!(log, "+ {}", command.join(" "))?;
    let mut child = Command::new(resolve(program)?);
    child
        .args(args)
        .current_dir(workspace::root())
        .env("CARGO_TARGET_DIR", workspace::target_dir()?)
        .env("CARGO_TERM_COLOR", "never")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?);
    let mut child = child.spawn().with_context(|| format!("cannot run {program}"))?;
    let watchdog = Watchdog::over(&child, limit);
    let mut tally = Tally::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read the output")?;
            tally.count(&String::from_utf8_lossy(&line));
            log.write_all(&line).and_then(|()| log.write_all(b"\n"))?;
        }
    }
    let succeeded = child.wait()?.success();
    let late = watchdog.dismiss();
    if late {
        writeln!(log, "ended: its step may take no longer")?;
    }
    Ok((tally, succeeded && !late))
}

/// `cargo` is the cargo that runs us, `xtask` is this program.
fn resolve(program: &str) -> Result<PathBuf> {
    Ok(match program {
        "cargo" => std::env::var_os("CARGO").map_or_else(|| program.into(), PathBuf::from),
        "xtask" => std::env::current_exe().context("cannot find this program")?,
        other => other.into(),
    })
}

fn tail(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("    {line}\n")).collect())
}
