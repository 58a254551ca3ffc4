//! Generated files that are committed.

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Options of `codegen`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write nothing; fail when a committed file is not what would be written
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.check { check_manifests() } else { write_manifests() }
}

/// Writes `crds/yaml` from the types in `crds/`.
fn write_manifests() -> Result<()> {
    let status = workspace::cargo(&["run", "--quiet", "--package", "basalt-crds", "--bin", "generate-crds"])?
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("the generator of the custom resources failed");
    }
    Ok(())
}

/// The drift check lives with the types, as a test.
fn check_manifests() -> Result<()> {
    let status = workspace::cargo(&["test", "--quiet", "--package", "basalt-crds"])?
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("crds/yaml is not what the types say; run `cargo xtask codegen` and commit the result");
    }
    Ok(())
}
