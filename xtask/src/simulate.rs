//! Simulator seeds, and the bugs that are planted for it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Options of `simulate`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(..=1 << 60))]
    from: u64,
}

/// Builds the simulator optimised, with assertions, and runs the seeds; it prints how to replay a failure.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let status = workspace::cargo(&["run", "--quiet", "--profile=sim", "--package=basalt-simulator", "--"])?
        .args(["run", "--seeds", &arguments.seeds.to_string(), "--from", &arguments.from.to_string()])
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the simulator found a fault; the command above replays it");
    }
    Ok(())
}

/// Options of `crash`.
#[derive(clap::Args)]
pub(crate) struct CrashArguments {
    /// How many workloads to record
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    workloads: u64,
    /// How many states of each to look at
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    states: u64,
    /// The first workload's seed
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=1 << 31))]
    from: u64,
    /// Fail unless so many distinct states were looked at
    #[arg(long, default_value_t = 0)]
    least: u64,
}

/// Looks at states that power cuts can leave of recorded workloads on pools, on two threads.
pub(crate) fn crash(arguments: &CrashArguments) -> Result<()> {
    let test = ["test", "--quiet", "--locked", "--profile=sim", "--package=basalt-lvol", "--test=crash"];
    let status = workspace::cargo(&test)?
        .args(["--", "--nocapture", "--exact", "every_crash_state_keeps_every_promise"])
        .env("BASALT_CRASH_SEEDS", arguments.workloads.to_string())
        .env("BASALT_CRASH_STATES", arguments.states.to_string())
        .env("BASALT_CRASH_FROM", arguments.from.to_string())
        .env("BASALT_CRASH_LEAST", arguments.least.to_string())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!(
            "a state that a power cut can leave breaks a promise; `--from SEED --workloads 1` looks at its workload again"
        );
    }
    Ok(())
}

/// Every planted bug puts its name behind this into the program.
const PLANTED_MARK: &[u8] = b"planted-bug:";

/// Where the simulator with planted bugs is built: other flags make other artefacts of every crate.
pub(crate) fn planted_target() -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join("planted"))
}

/// Checks that programs hold no planted bug, and that the check would see one. All of them must be built.
pub(crate) fn check_absence() -> Result<()> {
    let target = workspace::target_dir()?;
    if !holds_planted(&planted_target()?.join("sim/basalt-simulator"))? {
        bail!("the simulator with planted bugs shows none: this check is blind");
    }
    for program in ["sim/basalt-simulator", "debug/basalt-control", "debug/basaltd", "debug/basalt-operator"]
    {
        if holds_planted(&target.join(program))? {
            bail!("{program} holds planted bugs");
        }
    }
    Ok(())
}

fn holds_planted(program: &Path) -> Result<bool> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    Ok(bytes.windows(PLANTED_MARK.len()).any(|window| window == PLANTED_MARK))
}
