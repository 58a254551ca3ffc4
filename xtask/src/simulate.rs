//! Simulator seeds.

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Options of `simulate`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many seeds to run
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
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
