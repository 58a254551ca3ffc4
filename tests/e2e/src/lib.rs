//! Basalt from outside: what the end-to-end tests stand on.
//!
//! [`packages`] installs the Debian packages that a test needs, [`guest`] boots a Linux guest and runs a script in it,
//! [`cluster`] is a whole development cluster, [`prometheus`] scrapes it, and [`dashboards`] reads what Grafana would ask. The
//! tests themselves are in `tests/`; they drive the product's programs as a user would and link none of its crates. They
//! are left out of `cargo test`, because they need programs that are built and, some, root; `cargo xtask test` runs them.

pub mod cluster;
pub mod dashboards;
pub mod guest;
pub mod http;
pub mod mounts;
pub mod packages;
pub mod programs;
pub mod prometheus;

use std::path::{Path, PathBuf};

/// Why something around a test did not work; what a test finds out about the product is never one of these.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no place for what is built once.
    #[error("no place for the guest image")]
    Cache(#[from] basalt_kube::Error),
    /// The test does not know where the product's programs are.
    #[error("{} does not name the folder of the built programs", programs::PROGRAMS_ENV)]
    NoPrograms,
    /// A program could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A program ran and failed.
    #[error("{program} failed: {message}")]
    Failed {
        /// The program.
        program: String,
        /// What it said, or where that is to be found.
        message: String,
    },
    /// Programs are missing and cannot be installed.
    #[error("{missing} missing, and this is not a Debian with root: install the packages {packages}")]
    Missing {
        /// The programs.
        missing: String,
        /// Debian's packages that hold them.
        packages: String,
    },
    /// A file could not be read, written or locked.
    #[error("{path}: {action} failed")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The guest took too long.
    #[error("the guest was not done after {seconds} s; its console is in {job}")]
    Deadline {
        /// How long it was given.
        seconds: u64,
        /// The folder with all that it left.
        job: PathBuf,
    },
    /// The guest ended before its script did.
    #[error("the guest gave no status ({ended}); its console is in {job}")]
    NoStatus {
        /// What became of QEMU.
        ended: String,
        /// The folder with all that it left.
        job: PathBuf,
    },
}

impl Error {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    fn run(program: &str) -> impl FnOnce(std::io::Error) -> Self {
        let program = program.to_owned();
        move |source| Self::Run { program, source }
    }
}
