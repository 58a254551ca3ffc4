//! The figures of docs/performance.md.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::workspace::Programs;

/// Options of `bench`.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// A development cluster of its own: `up`, volumes by kubectl, commands of the control plane, loss of the leader
    Cluster,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match arguments.subject {
        Subject::Cluster => cluster(),
    }
}

fn cluster() -> Result<()> {
    let programs = Programs::build()?;
    let status = Command::new(programs.path("basalt-figures"))
        .env("BASALT_PROGRAMS", programs.folder())
        .env("BASALT_XTASK", std::env::current_exe().context("cannot find this program")?)
        .status()
        .context("cannot run basalt-figures")?;
    if !status.success() {
        bail!("the measurement failed");
    }
    Ok(())
}
