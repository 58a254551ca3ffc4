//! A development cluster, as `cargo xtask up` makes it, and what a user does with it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use basalt_kube::Binary;
use serde_json::Value;

use crate::Error;
use crate::programs::program;

/// Names the program of `cargo xtask`; `cargo xtask test` sets it.
pub const XTASK_ENV: &str = "BASALT_XTASK";

const INTERVAL: Duration = Duration::from_millis(100);

/// A running cluster; it is stopped and removed with this value.
#[derive(Debug)]
pub struct Cluster {
    state: PathBuf,
    kubeconfig: PathBuf,
    kubectl: PathBuf,
    /// Whether the apiserver is somebody else's.
    foreign: bool,
    /// What `up` wrote on its standard output.
    announced: Vec<String>,
}

impl Cluster {
    /// Brings a cluster up in `state`, with its data when it was there before.
    ///
    /// # Errors
    /// [`Error::Failed`] with what `up` said.
    pub fn up(state: &Path) -> Result<Self, Error> {
        Self::new(state, state.join("kube/kubeconfig"), false)
    }

    /// The same with an apiserver that runs already.
    ///
    /// # Errors
    /// As [`Cluster::up`].
    pub fn up_on(state: &Path, kubeconfig: &Path) -> Result<Self, Error> {
        Self::new(state, kubeconfig.to_owned(), true)
    }

    fn new(state: &Path, kubeconfig: PathBuf, foreign: bool) -> Result<Self, Error> {
        let kubectl = Binary::ensure(&mut |_| ())?.kubectl();
        let mut cluster =
            Self { state: state.to_owned(), kubeconfig, kubectl, foreign, announced: Vec::new() };
        let output = cluster.start()?;
        cluster.announced = String::from_utf8_lossy(&output).lines().map(str::to_owned).collect();
        Ok(cluster)
    }

    fn start(&self) -> Result<Vec<u8>, Error> {
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig.display());
        let mut args = vec!["up", "--detach"];
        if self.foreign {
            args.push(&kubeconfig);
        }
        self.xtask(&args)
    }

    /// Brings the cluster up again after [`Cluster::down`].
    ///
    /// # Errors
    /// [`Error::Failed`] with what `up` said.
    pub fn up_again(&self) -> Result<(), Error> {
        self.start().map(|_| ())
    }

    /// Stops every process; the data stays.
    ///
    /// # Errors
    /// [`Error::Failed`] with what `down` said.
    pub fn down(&self) -> Result<(), Error> {
        self.xtask(&["down"]).map(|_| ())
    }

    /// What `up` wrote on its standard output: lines for scripts.
    #[must_use]
    pub fn announced(&self) -> &[String] {
        &self.announced
    }

    /// The state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Runs kubectl.
    ///
    /// # Errors
    /// [`Error::Run`] when it cannot be run; what it says is in the output.
    pub fn kubectl(&self, args: &[&str], input: &str) -> Result<Output, Error> {
        let mut command = Command::new(&self.kubectl);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(args);
        run(command, input)
    }

    /// Applies a manifest; gives kubectl's words when it is refused.
    ///
    /// # Errors
    /// [`Error::Failed`] with the refusal.
    pub fn apply(&self, manifest: &str) -> Result<(), Error> {
        let output = self.kubectl(&["apply", "--filename=-"], manifest)?;
        succeeded("kubectl apply", &output).map(|_| ())
    }

    /// An object by kind and name, none when it does not exist or the apiserver does not answer.
    ///
    /// # Errors
    /// [`Error::Run`] when kubectl cannot be run.
    pub fn get(&self, kind: &str, name: &str) -> Result<Option<Value>, Error> {
        let kind = format!("{kind}.basalt.storage");
        let args = ["get", &kind, name, "--ignore-not-found", "--output=json", "--request-timeout=5s"];
        let output = self.kubectl(&args, "")?;
        Ok(serde_json::from_slice(&output.stdout).ok())
    }

    /// Waits until an object satisfies a condition; gives it back. Says what the object was when the deadline passed.
    ///
    /// # Errors
    /// [`Error::Failed`] at the deadline.
    pub fn wait(
        &self,
        kind: &str,
        name: &str,
        deadline: Duration,
        what: &str,
        mut holds: impl FnMut(&Value) -> bool,
    ) -> Result<Value, Error> {
        let started = Instant::now();
        loop {
            let object = self.get(kind, name)?;
            if let Some(object) = &object
                && holds(object)
            {
                return Ok(object.clone());
            }
            if started.elapsed() > deadline {
                let status = object
                    .map_or_else(|| "it does not exist".to_owned(), |object| object["status"].to_string());
                return Err(Error::Failed {
                    program: format!("waiting {} s for {kind} {name} to be {what}", deadline.as_secs()),
                    message: status,
                });
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    /// [`Error::Failed`] at the deadline.
    pub fn wait_gone(&self, kind: &str, name: &str, deadline: Duration) -> Result<(), Error> {
        let kind = format!("{kind}.basalt.storage/{name}");
        let timeout = format!("--timeout={}s", deadline.as_secs());
        let output = self.kubectl(&["wait", "--for=delete", &kind, &timeout], "")?;
        succeeded("kubectl wait --for=delete", &output).map(|_| ())
    }

    /// Runs kubectl-basalt against the cluster.
    ///
    /// # Errors
    /// [`Error::Failed`] with what it said.
    pub fn basalt(&self, args: &[&str]) -> Result<String, Error> {
        let mut command = Command::new(program("kubectl-basalt")?);
        command.arg("--config").arg(self.state.join("kubectl-basalt.toml")).args(args);
        let output = run(command, "")?;
        succeeded(&format!("kubectl-basalt {}", args.join(" ")), &output)
    }

    /// The names of all supervised processes that run.
    ///
    /// # Errors
    /// [`Error::File`] when the state folder cannot be read.
    pub fn processes(&self) -> Result<Vec<String>, Error> {
        let folder = self.state.join("run");
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::file("listing", &folder))? {
            let path = entry.map_err(Error::file("listing", &folder))?.path();
            if path.extension().is_some_and(|extension| extension == "pid") {
                names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
            }
        }
        names.sort();
        Ok(names)
    }

    /// The process id of a supervised process; none when it has none yet.
    ///
    /// # Errors
    /// [`Error::File`] when the process is not supervised.
    pub fn pid(&self, name: &str) -> Result<Option<i32>, Error> {
        let path = self.state.join("run").join(format!("{name}.pid"));
        let text = fs::read_to_string(&path).map_err(Error::file("reading", &path))?;
        Ok(text.split_whitespace().next().and_then(|word| word.parse().ok()))
    }

    /// Program and arguments of a running process.
    ///
    /// # Errors
    /// [`Error::File`] when it does not run.
    pub fn command_line(&self, name: &str) -> Result<Vec<String>, Error> {
        let pid = self.pid(name)?.unwrap_or_default();
        let path = PathBuf::from(format!("/proc/{pid}/cmdline"));
        let bytes = fs::read(&path).map_err(Error::file("reading", &path))?;
        let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        Ok(words.map(|word| String::from_utf8_lossy(word).into_owned()).collect())
    }

    /// The end of a process's log, for the message of a test that failed.
    #[must_use]
    pub fn log_tail(&self, name: &str, lines: usize) -> String {
        let bytes = fs::read(self.state.join("logs").join(format!("{name}.log"))).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Process names and addresses at which metrics are served.
    ///
    /// # Errors
    /// [`Error::File`] when `up` did not write them.
    pub fn metrics_targets(&self) -> Result<PathBuf, Error> {
        let path = self.state.join("metrics-targets.json");
        fs::metadata(&path).map_err(Error::file("reading", &path))?;
        Ok(path)
    }

    fn xtask(&self, args: &[&str]) -> Result<Vec<u8>, Error> {
        let program = std::env::var_os(XTASK_ENV).ok_or(Error::NoPrograms)?;
        let mut command = Command::new(program);
        command.args(args).arg("--state-dir").arg(&self.state);
        if self.foreign {
            // Whoever has a cluster has kubectl.
            let ours = self.kubectl.parent().map(Path::to_owned);
            let path = std::env::var_os("PATH").unwrap_or_default();
            let folders: Vec<PathBuf> = ours.into_iter().chain(std::env::split_paths(&path)).collect();
            // A folder of the build cache has no colon in its name.
            command.env("PATH", std::env::join_paths(folders).unwrap_or(path));
        }
        let output = run(command, "")?;
        // The progress of `up` belongs into the log of the test.
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        succeeded(&format!("xtask {}", args.join(" ")), &output).map(String::into_bytes)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.xtask(&["down", "--wipe"]) {
            eprintln!("the cluster cannot be stopped: {error}");
        }
    }
}

/// Runs a command to its end, with `input` on its standard input.
pub(crate) fn run(mut command: Command, input: &str) -> Result<Output, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::run(&program))?;
    if let Some(mut stdin) = child.stdin.take()
        && let Err(error) = stdin.write_all(input.as_bytes())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(Error::Run { program, source: error });
    }
    child.wait_with_output().map_err(Error::run(&program))
}

/// What a command printed, or what it said when it failed.
pub(crate) fn succeeded(program: &str, output: &Output) -> Result<String, Error> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Failed {
        program: program.to_owned(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
