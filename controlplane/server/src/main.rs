//! `basalt-control`: one member of the control plane.
//!
//! This crate is the edge around `basalt-core`: sockets, TLS, gRPC, conversions, metrics. The member itself runs on a
//! thread of its own ([`driver`]) and knows nothing of them. Begin with [`run`].

mod api;
mod config;
mod driver;
mod edge;
mod errors;
mod gauges;
mod guard;
mod listen;
mod membership;
mod node_wire;
mod peer_wire;
mod peers;
mod run;
mod sessions;
mod watch;

use std::{path::PathBuf, process::ExitCode};

use basalt_telemetry::sentence;
use clap::Parser;

use crate::{config::Settings, run::Failure};

/// One member of Basalt's control plane
#[derive(Debug, Parser)]
#[command(name = "basalt-control", version)]
struct Arguments {
    /// A TOML file for what flags and environment leave open
    #[arg(long, global = true, env = "BASALT_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, clap::Subcommand)]
enum Command {
    /// Make the stopped member of this data directory the only member of a new incarnation of the cluster, after the disks of
    /// a majority were lost. The other old members must never run again; add new ones afterwards
    Recover,
}

fn main() -> ExitCode {
    basalt_identity::install_provider();
    let arguments = Arguments::parse();
    match go(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if tracing::dispatcher::has_been_set() {
                tracing::error!(failure = %sentence(&failure), "basalt-control ends");
            } else {
                eprintln!("basalt-control: {}", sentence(&failure));
            }
            ExitCode::FAILURE
        }
    }
}

fn go(arguments: Arguments) -> Result<(), Failure> {
    let settings = match &arguments.config {
        Some(path) => arguments.settings.or_file(path)?,
        None => arguments.settings,
    };
    let config = settings.resolve()?;
    basalt_telemetry::init_logs(config.log_format, &config.log_filter)?;
    match arguments.command {
        None => run::run(&config),
        Some(Command::Recover) => {
            let recovered = run::recover(&config)?;
            let retired = recovered.retired.iter().map(|member| member.id.to_string()).collect::<Vec<_>>();
            let never_again = match retired.as_slice() {
                [] => "there was no other member".to_owned(),
                [one] => format!("never run member {one} again"),
                more => format!("never run members {} again", more.join(", ")),
            };
            eprintln!(
                "basalt-control: member {} is the only member of incarnation {} from revision {} on; {never_again}; start \
                 this one, then add new members with empty directories under new ids",
                config.member, recovered.incarnation, recovered.revision,
            );
            Ok(())
        }
    }
}
