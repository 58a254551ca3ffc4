//! `basaltd`: the data plane of one node.
//!
//! The only crate that names concrete devices and targets. Management (tokio, tonic, metrics) lives on threads of its own and reaches the
//! reactor through bounded queues. Begin reading at [`serve`] (alone) and [`node`] (in a cluster).

mod claims;
mod cores;
mod device;
mod io_families;
mod metrics;
mod node;
mod pool;
mod reactors;
mod reservation_files;
mod serve;
mod signals;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use basalt_telemetry::LogFormat;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, getrlimit, setrlimit};

/// The data plane of one node: disks and network queues from user space, volumes over NVMe/TCP.
#[derive(Debug, Parser)]
#[command(name = "basaltd", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve devices over NVMe/TCP without a control plane; prints `ready` when hosts can connect
    Serve(serve::Options),
    /// Be a storage node of a cluster: take pools and volumes from the control plane
    Node {
        #[command(flatten)]
        settings: Box<node::config::Settings>,
        /// A TOML file with the same names as the flags, for what is set neither by flag nor by environment
        #[arg(long, env = "BASALT_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Look at the disks of a pool that is not in service
    #[command(subcommand, after_help = pool::EXIT_CODES)]
    Pool(pool::Command),
}

fn main() -> ExitCode {
    raise_file_limit();
    let ended = match Cli::parse().command {
        Command::Serve(options) => serve(&options),
        Command::Node { settings, config } => node(*settings, config.as_deref()),
        Command::Pool(command) => return pool::run(&command),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("basaltd: {}", basalt_telemetry::sentence(&*error));
            ExitCode::FAILURE
        }
    }
}

/// Takes as many open files as this process may have: each connection is one, and the usual limit of 1,024 is for programs that use
/// `select`.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        eprintln!("basaltd: the limit of open files stays as it is: {error}");
    }
}

fn serve(options: &serve::Options) -> anyhow::Result<()> {
    basalt_telemetry::init_logs(LogFormat::Text, "info")?;
    serve::run(options)
}

fn node(settings: node::config::Settings, file: Option<&Path>) -> anyhow::Result<()> {
    let settings = match file {
        Some(path) => settings.or_file(path)?,
        None => settings,
    };
    let config = settings.into_config()?;
    basalt_telemetry::init_logs(config.log_format, &config.log_filter)?;
    node::run(config)
}
