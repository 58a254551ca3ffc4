//! A real kube-apiserver and etcd for tests and for `xtask up`.
//!
//! The programs come from Go modules (`go/`): [`Binary::ensure`] builds them once and caches the result by the hash of their
//! sources. [`Layout::prepare`] makes certificates, picks ports and writes a kubeconfig into a folder; [`Fixture`] runs the
//! two processes on top of a layout and stops them when it is dropped. A supervisor of its own takes the command lines
//! from [`Layout::etcd`] and [`Layout::apiserver`] instead.
//!
//! Everything listens on loopback. Nothing here schedules pods: there are no nodes, no kubelet and no controllers, so
//! owner references are not collected. etcd does not sync to disk. Begin reading at [`Fixture::start`].

mod binary;
mod fixture;
mod layout;
mod pki;
mod ports;

pub use binary::{Binary, CACHE_ENV, cache_root};
pub use fixture::{Fixture, READY_DEADLINE};
pub use layout::{Component, Layout};
pub use ports::{free_ports, is_free_port};

use std::path::{Path, PathBuf};

/// Why the fixture could not be built, prepared or started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither `BASALT_CACHE` nor `HOME` is set.
    #[error("no place for the cache: set HOME or {CACHE_ENV}")]
    NoCache,
    /// Go could not be run at all.
    #[error("cannot run `go` to build the Kubernetes fixture; install Go 1.24 or newer and put it on PATH")]
    NoGo(#[source] std::io::Error),
    /// Go ran and refused.
    #[error("building the Kubernetes fixture failed; the compiler's words are in {log}")]
    Build {
        /// Where the compiler's output is.
        log: PathBuf,
    },
    /// A file or folder could not be read, written or locked.
    #[error("{path}: {action} failed")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A certificate could not be made.
    #[error("making certificates for the apiserver failed")]
    Certificate(#[from] rcgen::Error),
    /// Not enough free ports on loopback.
    #[error("no {wanted} free ports on 127.0.0.1 between {first} and {last}")]
    NoPorts {
        /// How many were asked for.
        wanted: usize,
        /// The first port that was tried.
        first: u16,
        /// The last port that was tried.
        last: u16,
    },
    /// A process did not start.
    #[error("starting {program} failed")]
    Start {
        /// The program.
        program: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A process ended while it was waited for.
    #[error("{name} ended with {status} while it was starting; the last lines of {log}:\n{tail}")]
    Ended {
        /// The component.
        name: &'static str,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// Where its log is.
        log: PathBuf,
        /// The end of the log.
        tail: String,
    },
    /// The apiserver did not become ready in time.
    #[error("the apiserver was not ready after {seconds} s; the last lines of {log}:\n{tail}")]
    NotReady {
        /// How long it was waited for.
        seconds: u64,
        /// Where the apiserver's log is.
        log: PathBuf,
        /// The end of the log.
        tail: String,
    },
}

impl Error {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
