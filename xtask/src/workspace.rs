//! Where things are, and cargo.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Root of the source tree.
pub(crate) fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Everything that is built once and kept between clones of the source tree.
pub(crate) fn cache() -> Result<PathBuf> {
    Ok(basalt_kube::cache_root()?)
}

/// Where cargo builds: `$CARGO_TARGET_DIR`, else in the cache, so that a fresh clone is warm.
pub(crate) fn target_dir() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
        // Cargo resolves a relative one against its working directory, which is the root here.
        Some(set) => Ok(root().join(set)),
        None => Ok(cache()?.join("target")),
    }
}

/// A cargo command at the root of the source tree.
pub(crate) fn cargo(arguments: &[&str]) -> Result<Command> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root()).env("CARGO_TARGET_DIR", target_dir()?).stdin(Stdio::null());
    Ok(command)
}

/// The programs of the product, as built for running a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    dir: PathBuf,
}

impl Programs {
    const NAMES: [(&'static str, &'static str); 5] = [
        ("basalt-server", "basalt-control"),
        ("basalt-daemon", "basaltd"),
        ("basalt-controller", "basalt-operator"),
        ("basalt-cli", "kubectl-basalt"),
        ("basalt-e2e", "basalt-certificates"),
    ];

    /// Builds what changed. Cargo's own progress goes to standard error.
    pub(crate) fn build() -> Result<Self> {
        let mut command = cargo(&["build"])?;
        for (package, _) in Self::NAMES {
            command.args(["--package", package]);
        }
        if !command.status().context("cannot run cargo")?.success() {
            bail!("building the product's programs failed");
        }
        let programs = Self { dir: target_dir()?.join("debug") };
        for (package, name) in Self::NAMES {
            if !programs.path(name).is_file() {
                bail!("package {package} built no program {name}");
            }
        }
        Ok(programs)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
