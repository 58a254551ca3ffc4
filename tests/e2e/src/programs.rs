//! The product's programs, as processes of a test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Error;

/// Names the folder of the built programs; `cargo xtask test` sets it.
pub const PROGRAMS_ENV: &str = "BASALT_PROGRAMS";

/// The path of a built program.
///
/// # Errors
/// [`Error::NoPrograms`] when [`PROGRAMS_ENV`] is not set.
pub fn program(name: &str) -> Result<PathBuf, Error> {
    let folder = std::env::var_os(PROGRAMS_ENV).ok_or(Error::NoPrograms)?;
    Ok(Path::new(&folder).join(name))
}

/// `basaltd serve`: one data-plane daemon without a control plane. It ends with this value.
#[derive(Debug)]
pub struct Serve {
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Serve {
    /// How long the daemon may take to say that it is ready.
    const READY_DEADLINE: Duration = Duration::from_secs(20);

    /// Starts the daemon and waits until it listens. `log` gets what it prints.
    ///
    /// # Errors
    /// [`Error::Failed`] when it ends or is not ready in time.
    pub fn start(arguments: &[String], log: &Path) -> Result<Self, Error> {
        let mut serve = Self { arguments: arguments.to_vec(), log: log.to_owned(), child: None };
        serve.restart()?;
        Ok(serve)
    }

    /// Starts it again after [`Serve::kill`], on the same arguments.
    ///
    /// # Errors
    /// As [`Serve::start`].
    pub fn restart(&mut self) -> Result<(), Error> {
        self.kill();
        let program = program("basaltd")?;
        let output = File::create(&self.log).map_err(Error::file("creating", &self.log))?;
        let errors = output.try_clone().map_err(Error::file("opening", &self.log))?;
        let child = Command::new(&program)
            .arg("serve")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(Error::run("basaltd"))?;
        let child = self.child.insert(child);
        let started = Instant::now();
        loop {
            let said = std::fs::read_to_string(&self.log).map_err(Error::file("reading", &self.log))?;
            if said.lines().any(|line| line == "ready") {
                return Ok(());
            }
            let ended = child.try_wait().map_err(Error::run("basaltd"))?;
            if ended.is_some() || started.elapsed() > Self::READY_DEADLINE {
                let state = ended.map_or_else(|| "not ready in time".to_owned(), |status| status.to_string());
                return Err(Error::Failed {
                    program: "basaltd serve".to_owned(),
                    message: format!("{state}\n{said}"),
                });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it with SIGKILL. Nothing happens when it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take()
            && let Err(error) = child.kill().and_then(|()| child.wait().map(|_| ()))
        {
            eprintln!("basaltd cannot be ended: {error}");
        }
    }

    /// What it printed since its last start.
    ///
    /// # Errors
    /// [`Error::File`] when the log cannot be read.
    pub fn said(&self) -> Result<String, Error> {
        std::fs::read_to_string(&self.log).map_err(Error::file("reading", &self.log))
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        self.kill();
    }
}
