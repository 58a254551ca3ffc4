//! The two processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::{Binary, Component, Error, Layout};

/// How long the apiserver may take to become ready.
pub const READY_DEADLINE: Duration = Duration::from_secs(90);
/// How long a process may take to end by itself before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// How much of a log goes into an error.
const TAIL_LINES: usize = 15;

/// A running etcd and kube-apiserver. They end when this is dropped, and also when the process that owns it dies.
#[derive(Debug)]
pub struct Fixture {
    layout: Layout,
    etcd: Option<Child>,
    apiserver: Option<Child>,
}

impl Fixture {
    /// Builds what is missing, starts etcd and the apiserver on the state in `dir`, and waits until the apiserver is ready.
    ///
    /// # Errors
    /// Any [`Error`]; with [`Error::Ended`] and [`Error::NotReady`] comes the end of the log.
    pub fn start(dir: &Path) -> Result<Self, Error> {
        let binary = Binary::ensure(&mut |_| ())?;
        Self::start_on(Layout::prepare(dir, binary)?)
    }

    /// The same on a layout that is prepared already.
    ///
    /// # Errors
    /// As [`Fixture::start`].
    pub fn start_on(layout: Layout) -> Result<Self, Error> {
        let mut fixture = Self { layout, etcd: None, apiserver: None };
        fixture.etcd = Some(fixture.spawn(&fixture.layout.etcd())?);
        fixture.start_apiserver()?;
        Ok(fixture)
    }

    /// The folder's contents: endpoint, logs, command lines.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// A kubectl command that talks to this apiserver.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.layout.kubectl());
        command.arg("--kubeconfig").arg(self.kubeconfig());
        command
    }

    /// Ends the apiserver without warning; etcd and its data stay. Nothing happens when it does not run.
    pub fn kill_apiserver(&mut self) {
        if let Some(mut child) = self.apiserver.take() {
            end(&mut child);
        }
    }

    /// Starts the apiserver, at the same address as before, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Fixture::start`].
    pub fn start_apiserver(&mut self) -> Result<(), Error> {
        if self.apiserver.is_none() {
            self.apiserver = Some(self.spawn(&self.layout.apiserver())?);
        }
        self.wait_ready()
    }

    /// Empties the apiserver: everything that was ever stored is gone; address and certificates stay.
    ///
    /// # Errors
    /// As [`Fixture::start`], or [`Error::File`] when the data cannot be removed.
    pub fn wipe(&mut self) -> Result<(), Error> {
        self.kill();
        let data = self.layout.data();
        fs::remove_dir_all(&data).map_err(Error::file("removing", &data))?;
        self.start_again()
    }

    /// Copies everything that is stored to `copy`, which must not exist.
    ///
    /// # Errors
    /// As [`Fixture::start`], or [`Error::File`] when the data cannot be copied.
    pub fn back_up(&mut self, copy: &Path) -> Result<(), Error> {
        self.kill();
        copy_all(&self.layout.data(), copy)?;
        self.start_again()
    }

    /// Puts back what [`Fixture::back_up`] has copied: whatever was written since then never was.
    ///
    /// # Errors
    /// As [`Fixture::back_up`].
    pub fn restore(&mut self, copy: &Path) -> Result<(), Error> {
        self.kill();
        let data = self.layout.data();
        fs::remove_dir_all(&data).map_err(Error::file("removing", &data))?;
        copy_all(copy, &data)?;
        self.start_again()
    }

    fn start_again(&mut self) -> Result<(), Error> {
        self.etcd = Some(self.spawn(&self.layout.etcd())?);
        self.start_apiserver()
    }

    fn kill(&mut self) {
        self.kill_apiserver();
        if let Some(mut child) = self.etcd.take() {
            end(&mut child);
        }
    }

    fn spawn(&self, component: &Component) -> Result<Child, Error> {
        let path = self.layout.log(component.name);
        let log =
            File::options().create(true).append(true).open(&path).map_err(Error::file("opening", &path))?;
        let errors = log.try_clone().map_err(Error::file("opening", &path))?;
        Command::new(&component.program)
            .args(&component.args)
            // The pipe closes with this process, and the component ends with it.
            .env("KUBE_FIXTURE_PARENT", "stdin")
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|source| Error::Start { program: component.program.display().to_string(), source })
    }

    fn wait_ready(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        loop {
            let layout = &self.layout;
            for (name, child) in [("etcd", &mut self.etcd), ("kube-apiserver", &mut self.apiserver)] {
                let log = layout.log(name);
                if let Some(running) = child
                    && let Some(status) = running.try_wait().map_err(Error::file("waiting for", &log))?
                {
                    *child = None;
                    let tail = tail(&log);
                    return Err(Error::Ended { name, status, log, tail });
                }
            }
            if self.is_ready() {
                return Ok(());
            }
            if started.elapsed() > READY_DEADLINE {
                let log = self.layout.log("kube-apiserver");
                return Err(Error::NotReady { seconds: READY_DEADLINE.as_secs(), tail: tail(&log), log });
            }
            sleep(POLL_INTERVAL);
        }
    }

    fn is_ready(&self) -> bool {
        self.kubectl()
            .args(["get", "--raw", "/readyz", "--request-timeout=2s"])
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|output| output.status.success())
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy_all(from: &Path, to: &Path) -> Result<(), Error> {
    fs::create_dir(to).map_err(Error::file("creating", to))?;
    for entry in fs::read_dir(from).map_err(Error::file("reading", from))? {
        let path = entry.map_err(Error::file("reading", from))?.path();
        let Some(name) = path.file_name() else { continue };
        let target = to.join(name);
        if path.is_dir() {
            copy_all(&path, &target)?;
        } else {
            fs::copy(&path, &target).map_err(Error::file("copying", &path))?;
        }
    }
    Ok(())
}

/// The last lines of a log, for an error message; empty when it cannot be read.
fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

fn end(child: &mut Child) {
    // SIGKILL by intent: etcd replays its log, and the apiserver holds no state. Both calls fail only for a child that is
    // gone already, which is what is wanted.
    if child.kill().is_ok() {
        let started = Instant::now();
        while matches!(child.try_wait(), Ok(None)) && started.elapsed() < STOP_DEADLINE {
            sleep(Duration::from_millis(5));
        }
    }
}
