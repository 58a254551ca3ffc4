//! Builds the Go program that holds etcd, kube-apiserver and kubectl, and caches it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::Error;

/// Names the folder of everything that is built once and kept; without it, `$HOME/.cache/basalt`.
pub const CACHE_ENV: &str = "BASALT_CACHE";

/// The Kubernetes version that `go.mod` pins; the programs say it of themselves.
const KUBERNETES_VERSION: &str = "v1.34.4";
/// What is built, in the order in which it is hashed.
const SOURCES: [&str; 4] = ["etcd.go", "go.mod", "go.sum", "main.go"];
const PROGRAM: &str = "kube-fixture";
/// Names under which the program behaves as one component; `kubectl` is for people and scripts.
const LINKS: [&str; 1] = ["kubectl"];

/// The built program.
#[derive(Clone, Debug)]
pub struct Binary {
    dir: PathBuf,
}

impl Binary {
    /// The cached program, built first when its sources changed or it was never built. `say` gets a line per slow step.
    ///
    /// Two processes that ask at once build once. A cold build takes minutes and fetches Go modules.
    ///
    /// # Errors
    /// [`Error::NoGo`] and [`Error::Build`] when it cannot be built, [`Error::NoCache`] and [`Error::File`] when there is no
    /// place for it.
    pub fn ensure(say: &mut dyn FnMut(&str)) -> Result<Self, Error> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
        let dir = cache_root()?.join("kube").join(fingerprint(&source)?);
        let binary = Self { dir };
        if binary.program().is_file() {
            return Ok(binary);
        }
        fs::create_dir_all(&binary.dir).map_err(Error::file("creating", &binary.dir))?;
        let lock_path = binary.dir.join("lock");
        let lock = File::create(&lock_path).map_err(Error::file("creating", &lock_path))?;
        lock.lock().map_err(Error::file("locking", &lock_path))?;
        if !binary.program().is_file() {
            say("building etcd, kube-apiserver and kubectl from Go modules (once; minutes)");
            binary.build(&source)?;
        }
        Ok(binary)
    }

    /// The program; its first argument names the component.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.dir.join(PROGRAM)
    }

    /// kubectl, of the apiserver's version.
    #[must_use]
    pub fn kubectl(&self) -> PathBuf {
        self.dir.join("kubectl")
    }

    fn build(&self, source: &Path) -> Result<(), Error> {
        let log_path = self.dir.join("build.log");
        let log = File::create(&log_path).map_err(Error::file("creating", &log_path))?;
        let errors = log.try_clone().map_err(Error::file("opening", &log_path))?;
        let unfinished = self.dir.join("unfinished");
        let status = Command::new("go")
            .args(["build", "-trimpath", "-buildvcs=false", "-ldflags"])
            .arg(linker_flags())
            .arg("-o")
            .arg(&unfinished)
            .arg(".")
            .current_dir(source)
            .stdout(log)
            .stderr(errors)
            .status()
            .map_err(Error::NoGo)?;
        if !status.success() {
            return Err(Error::Build { log: log_path });
        }
        for link in LINKS {
            let path = self.dir.join(link);
            if path.is_symlink() {
                fs::remove_file(&path).map_err(Error::file("removing", &path))?;
            }
            std::os::unix::fs::symlink(PROGRAM, &path).map_err(Error::file("linking", &path))?;
        }
        // The program's name is the mark that all is done.
        let program = self.program();
        fs::rename(&unfinished, &program).map_err(Error::file("renaming", &program))
    }
}

/// The folder of everything that is built once: `$BASALT_CACHE`, else `$HOME/.cache/basalt`.
///
/// # Errors
/// [`Error::NoCache`] when neither variable is set.
pub fn cache_root() -> Result<PathBuf, Error> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set(CACHE_ENV)
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache/basalt")))
        .ok_or(Error::NoCache)
}

fn fingerprint(source: &Path) -> Result<String, Error> {
    let mut hash = Sha256::new();
    hash.update(linker_flags());
    for name in SOURCES {
        let path = source.join(name);
        let text = fs::read(&path).map_err(Error::file("reading", &path))?;
        hash.update(name);
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    Ok(hex::encode(&hash.finalize()[..8]))
}

/// Stamps the version as Kubernetes' own build does: clients and feature gates read it.
fn linker_flags() -> String {
    let mut flags = String::from("-s -w");
    let numbers: Vec<&str> = KUBERNETES_VERSION.trim_start_matches('v').split('.').collect();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [
            ("gitVersion", KUBERNETES_VERSION),
            ("gitMajor", numbers[0]),
            ("gitMinor", numbers[1]),
            ("gitTreeState", "clean"),
        ] {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_go_source_is_hashed() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
        let mut names: Vec<String> = fs::read_dir(source)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, SOURCES);
    }

    #[test]
    fn the_version_is_the_one_in_go_mod() {
        let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("go/go.mod")).unwrap();
        assert!(manifest.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}\n")));
        assert!(linker_flags().contains("-X k8s.io/component-base/version.gitMinor=34"));
    }
}
