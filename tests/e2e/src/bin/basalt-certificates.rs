//! `basalt-certificates`: makes the authority of a development cluster and a certificate for each process.
//!
//! A program of its own so that `cargo xtask`, which everybody builds first, needs no TLS stack.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use basalt_identity::{CertificateAuthority, Identity, Role, SubjectName};
use clap::Parser;

#[derive(Parser)]
#[command(name = "basalt-certificates")]
struct Arguments {
    /// Folder of the authority; made when it does not exist
    #[arg(long)]
    dir: PathBuf,
    /// Name of the cluster
    #[arg(long)]
    cluster: String,
    /// Whom to issue a certificate for, as ROLE:NAME
    #[arg(required = true)]
    identities: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let authority = CertificateAuthority::create_or_load(&arguments.dir, &arguments.cluster)?;
    // Everything of a development cluster is on loopback.
    let names = [SubjectName::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST)), SubjectName::Dns("localhost".to_owned())];
    for identity in &arguments.identities {
        let (role, name) = identity.split_once(':').context("an identity is ROLE:NAME")?;
        let Some(role) = Role::ALL.into_iter().find(|known| known.as_str() == role) else {
            bail!("unknown role {role}");
        };
        authority.issue(&Identity::new(arguments.cluster.as_str(), role, name)?, &names)?;
    }
    Ok(())
}
