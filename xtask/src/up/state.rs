//! The state folder of one development cluster.

use std::collections::BTreeMap;
use std::fs::{self, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// Its presence says that the folder is ours and may be removed.
const MARKER: &str = "basalt-development-cluster";

/// Paths inside the state folder.
#[derive(Clone, Debug)]
pub(crate) struct State {
    dir: PathBuf,
}

impl State {
    /// Opens the folder, or makes it. A folder that holds something else is refused.
    pub(crate) fn create(wanted: Option<&Path>) -> Result<Self> {
        let dir = Self::place(wanted)?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let state =
            Self { dir: dir.canonicalize().with_context(|| format!("cannot resolve {}", dir.display()))? };
        if !state.is_marked() {
            let mut entries =
                fs::read_dir(&state.dir).with_context(|| format!("cannot list {}", state.dir.display()))?;
            if entries.next().is_some() {
                bail!(
                    "{} is not empty and not a cluster of ours; choose another --state-dir",
                    state.dir.display()
                );
            }
            fs::write(
                state.dir.join(MARKER),
                "Made by `cargo xtask up`; `cargo xtask down --wipe` removes it.\n",
            )
            .with_context(|| format!("cannot write to {}", state.dir.display()))?;
        }
        for folder in [state.run(), state.logs(), state.disks()] {
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(state)
    }

    /// The folder when it exists and is ours.
    pub(crate) fn open(wanted: Option<&Path>) -> Result<Option<Self>> {
        let dir = Self::place(wanted)?;
        if !dir.exists() {
            return Ok(None);
        }
        let state =
            Self { dir: dir.canonicalize().with_context(|| format!("cannot resolve {}", dir.display()))? };
        if !state.is_marked() {
            bail!("{} is not a cluster of ours", state.dir.display());
        }
        Ok(Some(state))
    }

    fn place(wanted: Option<&Path>) -> Result<PathBuf> {
        match wanted {
            Some(dir) => Ok(dir.to_owned()),
            None => Ok(workspace::cache()?.join("up")),
        }
    }

    /// Whether it is the folder that commands take which are given none.
    pub(crate) fn is_default(&self) -> bool {
        Self::place(None).and_then(|dir| Ok(dir.canonicalize()?)).is_ok_and(|dir| dir == self.dir)
    }

    fn is_marked(&self) -> bool {
        self.dir.join(MARKER).is_file()
    }

    /// Keeps other calls of `up` off the folder for as long as the file is held.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        let path = self.dir.join("lock");
        let mut options = fs::File::options();
        let file = options.create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                bail!("another `cargo xtask up` is at work on {}; wait for its end", self.dir.display())
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    /// Removes the folder with all data.
    pub(crate) fn wipe(&self) -> Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Process ids, the plan, the supervisor's socket.
    pub(crate) fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Whether a volume was written to and verified before: since then what it holds is its user's.
    pub(crate) fn is_verified(&self, nqn: &str) -> Result<bool> {
        let path = self.verified();
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.lines().any(|line| line == nqn)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Notes that a volume was.
    pub(crate) fn set_verified(&self, nqn: &str) -> Result<()> {
        let path = self.verified();
        let mut options = fs::File::options();
        options
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{nqn}"))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn verified(&self) -> PathBuf {
        self.dir.join("verified-volumes")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub(crate) fn log(&self, process: &str) -> PathBuf {
        self.logs().join(format!("{process}.log"))
    }

    /// Files that stand for disks.
    pub(crate) fn disks(&self) -> PathBuf {
        self.dir.join("disks")
    }

    /// etcd, apiserver, kubeconfig.
    pub(crate) fn kube(&self) -> PathBuf {
        self.dir.join("kube")
    }

    /// The certificate authority and one identity per process.
    pub(crate) fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    /// What a process keeps.
    pub(crate) fn data(&self, process: &str) -> PathBuf {
        self.dir.join("data").join(process)
    }

    /// Where kubectl-basalt finds the control plane and its certificate.
    pub(crate) fn client_config(&self) -> PathBuf {
        self.dir.join("kubectl-basalt.toml")
    }

    /// What Prometheus should scrape, in the form of its file discovery.
    pub(crate) fn metrics_targets(&self) -> PathBuf {
        self.dir.join("metrics-targets.json")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run().join("supervisor.sock")
    }

    /// What the supervisor runs, as JSON.
    pub(crate) fn plan(&self) -> PathBuf {
        self.run().join("plan.json")
    }

    pub(crate) fn pid_file(&self, process: &str) -> PathBuf {
        self.run().join(format!("{process}.pid"))
    }
}

/// Ports by purpose, kept over re-runs: members know each other, and hosts know volumes, by address.
#[derive(Debug)]
pub(crate) struct Ports {
    path: PathBuf,
    known: BTreeMap<String, u16>,
}

impl Ports {
    pub(crate) fn load(state: &State) -> Result<Self> {
        let path = state.dir().join("ports.json");
        let known = match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        Ok(Self { path, known })
    }

    /// The port for `purpose`: the one of an earlier run, else `preferred` while it is free, else any free one.
    pub(crate) fn get(&mut self, purpose: &str, preferred: Option<u16>) -> Result<u16> {
        if let Some(port) = self.known.get(purpose) {
            return Ok(*port);
        }
        let taken: Vec<u16> = self.known.values().copied().collect();
        let port = match preferred.filter(|port| !taken.contains(port) && basalt_kube::is_free_port(*port)) {
            Some(port) => port,
            None => basalt_kube::free_ports(taken.len() + 1)?
                .into_iter()
                .find(|port| !taken.contains(port))
                .context("every free port is taken")?,
        };
        self.known.insert(purpose.to_owned(), port);
        Ok(port)
    }

    pub(crate) fn save(&self) -> Result<()> {
        fs::write(&self.path, serde_json::to_vec_pretty(&self.known)?)
            .with_context(|| format!("cannot write {}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_something_else_in_it_is_refused_and_never_wiped() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "").unwrap();
        assert!(State::create(Some(dir.path())).is_err());
        assert!(State::open(Some(dir.path())).is_err());
        assert!(dir.path().join("precious").exists());
    }

    #[test]
    fn one_at_a_time_works_on_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::create(Some(dir.path())).unwrap();
        let lock = state.lock().unwrap();
        assert!(state.lock().unwrap_err().to_string().contains("wait for its end"));
        drop(lock);
        state.lock().unwrap();
    }

    #[test]
    fn our_folder_is_found_again_and_wiped() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("cluster");
        assert!(State::open(Some(&place)).unwrap().is_none());
        State::create(Some(&place)).unwrap();
        State::create(Some(&place)).unwrap();
        State::open(Some(&place)).unwrap().unwrap().wipe().unwrap();
        assert!(!place.exists());
    }

    #[test]
    fn ports_stay_and_differ() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::create(Some(dir.path())).unwrap();
        let mut ports = Ports::load(&state).unwrap();
        let first = ports.get("a", None).unwrap();
        let second = ports.get("b", Some(first)).unwrap();
        assert_ne!(first, second);
        ports.save().unwrap();
        let mut again = Ports::load(&state).unwrap();
        assert_eq!(again.get("a", Some(second)).unwrap(), first);
        assert_eq!(again.get("b", None).unwrap(), second);
    }
}
