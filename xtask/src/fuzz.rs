//! Fuzzing without end.

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Options of `fuzz`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The first round's seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this target; `basalt-fuzz list` shows them
    #[arg(long)]
    target: Option<String>,
}

/// Builds the fuzzer optimised, with assertions, and runs it until it finds something; it prints how to see that again.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut command =
        workspace::cargo(&["run", "--quiet", "--profile=sim", "--package=basalt-fuzz", "--", "endless"])?;
    command.args(["--seed", &arguments.seed.to_string()]);
    if let Some(target) = &arguments.target {
        command.args(["--target", target]);
    }
    if !command.status().context("cannot run cargo")?.success() {
        bail!("the fuzzer found a fault; the command above shows it again");
    }
    Ok(())
}
