//! `kubectl-basalt`: looks at a cluster, changes its members, and tries a volume out as an NVMe/TCP host.
//!
//! It asks the control plane and talks to volumes; it takes no decision for them. Begin with [`Command`].

mod cluster;
mod document;
mod host;
mod members;
mod output;
mod settings;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    host::{PerfArguments, VerifyArguments},
    members::MembersCommand,
    output::Format,
    settings::Settings,
};

/// Look at a Basalt cluster and try its volumes
#[derive(Debug, Parser)]
#[command(name = "kubectl-basalt", bin_name = "kubectl basalt", version)]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
    /// How to show what is found
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Is it all right? The cluster in figures, and what is not in order
    Status,
    /// Nodes and their pools
    #[command(visible_alias = "node")]
    Nodes {
        /// Only this one
        name: Option<String>,
    },
    /// Volumes, where they are and how they are reached
    #[command(visible_alias = "volume")]
    Volumes {
        /// Only this one
        name: Option<String>,
    },
    /// Snapshots, what they are of and where they are
    #[command(visible_alias = "snapshot")]
    Snapshots {
        /// Only this one
        name: Option<String>,
    },
    /// Members of the control plane
    #[command(visible_alias = "member")]
    Members {
        #[command(subcommand)]
        command: Option<MembersCommand>,
    },
    /// Let the next daemon that connects be this node, after its machine was replaced
    UnbindNode {
        /// The node
        name: String,
    },
    /// Say that a node's disks are gone for good, so that its volumes and itself can be deleted without it
    AbandonNode {
        /// The node
        name: String,
        /// Its daemon will never come back with these disks
        #[arg(long)]
        disks_are_lost: bool,
    },
    /// Say that the disks of one pool are gone for good, so that its volumes can be deleted without it
    AbandonPool {
        /// The node
        node: String,
        /// The pool on it
        pool: String,
        /// These disks will never come back
        #[arg(long)]
        disks_are_lost: bool,
    },
    /// Measure a volume: IOPS, bandwidth, latencies. Reads only, unless told to write
    Perf(PerfArguments),
    /// Write a pattern to a volume and read it back
    Verify(VerifyArguments),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

fn main() -> ExitCode {
    basalt_identity::install_provider();
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kubectl-basalt: {}", basalt_telemetry::sentence(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let format = arguments.output;
    if let Command::Completions { shell } = arguments.command {
        clap_complete::generate(shell, &mut Arguments::command(), "kubectl-basalt", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let settings = arguments.settings;
    match arguments.command {
        Command::Perf(perf) => {
            let target = runtime.block_on(host::target(&perf.target, &settings))?;
            host::perf(&perf, &target, format)
        }
        Command::Verify(verify) => {
            let target = runtime.block_on(host::target(&verify.target, &settings))?;
            host::verify(&verify, &target, format)
        }
        command => runtime.block_on(async {
            let client = settings.client()?;
            match command {
                Command::Status => cluster::status(&client, format).await,
                Command::Nodes { name } => cluster::nodes(&client, name, format).await,
                Command::Volumes { name } => cluster::volumes(&client, name, format).await,
                Command::Snapshots { name } => cluster::snapshots(&client, name, format).await,
                Command::Members { command } => {
                    members::run(&client, command.unwrap_or(MembersCommand::List), format).await
                }
                Command::UnbindNode { name } => cluster::unbind_node(&client, &name, format).await,
                Command::AbandonNode { name, disks_are_lost } => {
                    cluster::abandon_node(&client, &name, disks_are_lost, format).await
                }
                Command::AbandonPool { node, pool, disks_are_lost } => {
                    cluster::abandon_pool(&client, &node, &pool, disks_are_lost, format).await
                }
                Command::Perf(_) | Command::Verify(_) | Command::Completions { .. } => Ok(()),
            }?;
            Ok(ExitCode::SUCCESS)
        }),
    }
}
