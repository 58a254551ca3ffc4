//! The figures of docs/performance.md.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::workspace::{self, Programs};

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
    /// NVMe/TCP over loopback, target and load on a core each, beside a bare exchange of the same messages or another target;
    /// `dataplane half-open` and `dataplane memory` measure what peers cost that do nothing, `dataplane settings` what digests and
    /// sleeping cost
    #[command(disable_help_flag = true)]
    Dataplane {
        /// As `basalt-bench --help` says: --pairs, --seconds, --vs IP:PORT --vs-nqn NQN, --only, --json
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Logical volumes beside their disks alone: maps, snapshots, first writes, import and memory
    #[command(disable_help_flag = true)]
    Pool {
        /// As `basalt-bench pool --help` says: --pairs, --seconds, --folder, --only, --json
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.subject {
        Subject::Cluster => cluster(),
        Subject::Dataplane { arguments } => measure(arguments),
        Subject::Pool { arguments } => {
            let folder = workspace::target_dir()?.join("bench-pool").display().to_string();
            let ours = ["pool".to_owned(), "--folder".to_owned(), folder];
            measure(&ours.into_iter().chain(arguments.iter().cloned()).collect::<Vec<_>>())
        }
    }
}

fn measure(arguments: &[String]) -> Result<()> {
    let status = workspace::cargo(&["run", "--quiet", "--release", "--package=basalt-bench", "--"])?
        .args(arguments)
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the measurement failed");
    }
    Ok(())
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
