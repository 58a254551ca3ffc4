//! Where things are, and cargo.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context, Result, bail};

/// Whether a folder of the tree holds no sources: what is built carries the mark of a cache (Cache Directory Tagging
/// Specification), and a folder of sources may be called `target`.
pub(crate) fn is_untracked(folder: &Path) -> bool {
    let named = folder.file_name().is_some_and(|name| name == ".git" || name == "node_modules");
    named || folder.join("CACHEDIR.TAG").exists()
}

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

/// Makes the target folder this tree's own.
///
/// Cargo takes what it finds there for built when the sources are older, and does not ask from which tree it was built:
/// an old clone would run the programs of a newer one. When another tree has used the folder last, the sources are marked
/// as changed now; what comes from registries stays built.
///
/// # Errors
/// When a file cannot be touched or the folder not be written.
pub(crate) fn claim_target_dir() -> Result<()> {
    claim(root(), &target_dir()?)
}

fn claim(tree: &Path, target: &Path) -> Result<()> {
    let record = target.join("basalt-workspace");
    let owner = tree.display().to_string();
    match fs::read_to_string(&record) {
        Ok(last) if last == owner => return Ok(()),
        Ok(_) => touch(tree)?,
        // Nobody's yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", record.display())),
    }
    fs::create_dir_all(target)
        .and_then(|()| fs::write(&record, owner))
        .with_context(|| format!("cannot write {}", record.display()))
}

fn touch(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() && !is_untracked(&path) {
            touch(&path)?;
        } else if kind.is_file() {
            File::options()
                .append(true)
                .open(&path)
                .and_then(|file| file.set_modified(SystemTime::now()))
                .with_context(|| format!("cannot touch {}", path.display()))?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_tree_that_comes_back_to_a_shared_target_folder_is_built_again() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new, target) = (dir.path().join("old"), dir.path().join("new"), dir.path().join("target"));
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for tree in [&old, &new] {
            for folder in ["src", "src/target", "target"] {
                fs::create_dir_all(tree.join(folder)).unwrap();
                let file = File::create(tree.join(folder).join("lib.rs")).unwrap();
                file.set_modified(long_ago).unwrap();
            }
            File::create(tree.join("target/CACHEDIR.TAG")).unwrap();
        }
        let changed = |tree: &Path, folder: &str| {
            fs::metadata(tree.join(folder).join("lib.rs")).unwrap().modified().unwrap()
        };
        claim(&old, &target).unwrap();
        claim(&new, &target).unwrap();
        let claimed = changed(&old, "src");
        assert_eq!(claimed, long_ago, "the first is not touched");
        assert!(changed(&new, "src") > long_ago);
        assert!(changed(&new, "src/target") > long_ago, "sources that are called so");
        assert_eq!(changed(&new, "target"), long_ago);
        // Claimed already: nothing is touched.
        let claimed = changed(&new, "src");
        claim(&new, &target).unwrap();
        assert_eq!(changed(&new, "src"), claimed);
        claim(&old, &target).unwrap();
        assert!(changed(&old, "src") > long_ago);
    }
}
