//! A process that keeps the cluster's processes running.
//!
//! It reads what to run from `run/plan.json`, starts what is new there (what changed is started so the next time), restarts what ends (after a pause that doubles with
//! each quick death), and listens on `run/supervisor.sock` for `status` and `stop`. It holds no other state: when it is
//! killed, the next one ends what was left behind, by process id and start time, and begins anew.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::process_id::ProcessId;
use super::state::State;

const TURN: Duration = Duration::from_millis(50);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Whoever ran this long did not die quickly: its next pause is the shortest again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);
/// How long a process may take to end by itself.
const STOP_DEADLINE: Duration = Duration::from_secs(8);
/// A log that is larger than this when its process starts is moved aside, once.
const LOG_BYTES_MAX: u64 = 64 << 20;
const CLIENT_DEADLINE: Duration = Duration::from_secs(2);

/// What to run. Later processes need earlier ones; stopping goes backwards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) processes: Vec<Process>,
}

/// One process of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
}

impl Plan {
    /// The same without a flag that was for the first start only.
    pub(crate) fn without_flag(mut self, flag: &str) -> Self {
        for process in &mut self.processes {
            process.args.retain(|argument| argument != flag);
        }
        self
    }
}

/// What the supervisor says of one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) name: String,
    /// None while it waits to be restarted.
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    /// How it ended last.
    pub(crate) last_end: Option<String>,
}

/// Writes the plan in one step; a running supervisor notices.
pub(crate) fn publish(state: &State, plan: &Plan) -> Result<()> {
    let unfinished = state.plan().with_extension("unfinished");
    fs::write(&unfinished, serde_json::to_vec_pretty(plan)?)
        .and_then(|()| fs::rename(&unfinished, state.plan()))
        .with_context(|| format!("cannot write {}", state.plan().display()))
}

/// Asks the supervisor of a state folder; none when there is none.
pub(crate) fn ask(state: &State, request: &str) -> Result<Option<Vec<Report>>> {
    let Ok(mut stream) = UnixStream::connect(state.socket()) else { return Ok(None) };
    writeln!(stream, "{request}").context("the supervisor hung up")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the supervisor hung up")?;
    if answer.is_empty() {
        bail!("the supervisor did not answer; its log is {}", state.log("supervisor").display());
    }
    serde_json::from_str(&answer).map(Some).context("the supervisor's answer is damaged")
}

/// Ends what an earlier supervisor left running.
pub(crate) fn end_leftovers(state: &State) -> Result<()> {
    let mut left = Vec::new();
    let entries =
        fs::read_dir(state.run()).with_context(|| format!("cannot list {}", state.run().display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pid") {
            left.extend(ProcessId::read(&path)?);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    for process in &left {
        process.terminate();
    }
    let started = Instant::now();
    while left.iter().any(ProcessId::is_running) && started.elapsed() < STOP_DEADLINE {
        sleep(TURN);
    }
    for process in &left {
        process.kill();
    }
    Ok(())
}

/// Runs until `stop`, or until `until_closed` reads to its end.
pub(crate) fn run(state: &State, until_closed: bool) -> Result<()> {
    let listener = listen(&state.socket())?;
    end_leftovers(state)?;
    let owner_gone = Arc::new(AtomicBool::new(false));
    if until_closed {
        watch_owner(Arc::clone(&owner_gone));
    }
    let mut supervisor = Supervisor { state: state.clone(), plan: Plan::default(), running: Vec::new() };
    let asked_by = loop {
        supervisor.read_plan();
        supervisor.turn();
        if let Some(client) = supervisor.answer(&listener) {
            break Some(client);
        }
        if owner_gone.load(Ordering::Acquire) {
            break None;
        }
        sleep(TURN);
    };
    supervisor.stop();
    fs::remove_file(state.socket()).context("cannot remove the socket")?;
    if let Some(mut client) = asked_by {
        client.write_all(b"[]").context("the client that asked to stop is gone")?;
    }
    Ok(())
}

/// The socket is also the lock: a second supervisor finds the first one listening.
fn listen(path: &Path) -> Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        bail!("a supervisor is already running on this state folder");
    }
    if path.exists() {
        fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    listener.set_nonblocking(true).context("cannot make the socket non-blocking")?;
    Ok(listener)
}

fn watch_owner(gone: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut nothing = [0; 64];
        while matches!(std::io::stdin().read(&mut nothing), Ok(count) if count > 0) {}
        gone.store(true, Ordering::Release);
    });
}

struct Supervisor {
    state: State,
    plan: Plan,
    running: Vec<Supervised>,
}

struct Supervised {
    process: Process,
    phase: Phase,
    restarts: u32,
    pause: Duration,
    last_end: Option<String>,
}

enum Phase {
    Running { child: Child, since: Instant },
    Waiting { until: Instant },
}

impl Supervisor {
    fn read_plan(&mut self) {
        // The file is replaced in one step; before the first one there is nothing to run.
        let Ok(bytes) = fs::read(self.state.plan()) else { return };
        let plan: Plan = match serde_json::from_slice(&bytes) {
            Ok(plan) => plan,
            Err(error) => return say(&format!("the plan is damaged, the old one stays: {error}")),
        };
        if plan == self.plan {
            return;
        }
        for process in &plan.processes {
            match self.running.iter_mut().find(|supervised| supervised.process.name == process.name) {
                // It runs on as it is, and is started so the next time.
                Some(supervised) => supervised.process = process.clone(),
                None => self.running.push(Supervised::new(process.clone())),
            }
        }
        self.plan = plan;
    }

    fn turn(&mut self) {
        for supervised in &mut self.running {
            supervised.turn(&self.state);
        }
    }

    /// Answers at most one client; gives back the one that asked to stop.
    fn answer(&self, listener: &UnixListener) -> Option<UnixStream> {
        let (stream, _) = listener.accept().ok()?;
        match self.serve(stream) {
            Ok(stopping) => stopping,
            Err(error) => {
                say(&format!("a client on the socket: {error:#}"));
                None
            }
        }
    }

    fn serve(&self, stream: UnixStream) -> Result<Option<UnixStream>> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(CLIENT_DEADLINE))?;
        stream.set_write_timeout(Some(CLIENT_DEADLINE))?;
        let mut request = String::new();
        BufReader::new(&stream).take(64).read_line(&mut request)?;
        match request.trim() {
            "stop" => Ok(Some(stream)),
            "status" => {
                let reports: Vec<Report> = self.running.iter().map(Supervised::report).collect();
                (&stream).write_all(&serde_json::to_vec(&reports)?)?;
                Ok(None)
            }
            other => bail!("unknown request {other:?}"),
        }
    }

    fn stop(&mut self) {
        say("stopping");
        for supervised in self.running.iter_mut().rev() {
            supervised.stop();
            let pid_file = self.state.pid_file(&supervised.process.name);
            if pid_file.exists()
                && let Err(error) = fs::remove_file(&pid_file)
            {
                say(&format!("cannot remove {}: {error}", pid_file.display()));
            }
        }
        say("stopped");
    }
}

impl Supervised {
    fn new(process: Process) -> Self {
        Self {
            process,
            phase: Phase::Waiting { until: Instant::now() },
            restarts: 0,
            pause: PAUSE_MIN,
            last_end: None,
        }
    }

    fn report(&self) -> Report {
        Report {
            name: self.process.name.clone(),
            pid: match &self.phase {
                Phase::Running { child, .. } => Some(child.id()),
                Phase::Waiting { .. } => None,
            },
            restarts: self.restarts,
            last_end: self.last_end.clone(),
        }
    }

    fn turn(&mut self, state: &State) {
        match &mut self.phase {
            Phase::Running { child, since } => match child.try_wait() {
                Ok(None) => {}
                Ok(Some(status)) => {
                    let ran = since.elapsed();
                    self.ended(status, ran);
                }
                Err(error) => say(&format!("{}: cannot be waited for: {error}", self.process.name)),
            },
            Phase::Waiting { until } if *until <= Instant::now() => self.start(state),
            Phase::Waiting { .. } => {}
        }
    }

    fn start(&mut self, state: &State) {
        match spawn(state, &self.process) {
            Ok(child) => {
                say(&format!("{}: started as {}", self.process.name, child.id()));
                self.phase = Phase::Running { child, since: Instant::now() };
            }
            Err(error) => {
                say(&format!("{}: {error:#}", self.process.name));
                self.last_end = Some(format!("{error:#}"));
                self.wait();
            }
        }
    }

    fn ended(&mut self, status: ExitStatus, ran: Duration) {
        if ran >= HEALTHY_AFTER {
            self.pause = PAUSE_MIN;
        }
        say(&format!(
            "{}: ended ({status}) after {:.1} s, starts again in {:.1} s",
            self.process.name,
            ran.as_secs_f64(),
            self.pause.as_secs_f64()
        ));
        self.last_end = Some(status.to_string());
        self.restarts += 1;
        self.wait();
    }

    fn wait(&mut self) {
        self.phase = Phase::Waiting { until: Instant::now() + self.pause };
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn stop(&mut self) {
        let Phase::Running { child, .. } = &mut self.phase else { return };
        if let Some(id) = ProcessId::of(child.id()) {
            id.terminate();
        }
        let started = Instant::now();
        while matches!(child.try_wait(), Ok(None)) && started.elapsed() < STOP_DEADLINE {
            sleep(Duration::from_millis(10));
        }
        if matches!(child.try_wait(), Ok(None)) {
            say(&format!(
                "{}: did not end in {} s and is killed",
                self.process.name,
                STOP_DEADLINE.as_secs()
            ));
            if let Err(error) = child.kill().and_then(|()| child.wait().map(|_| ())) {
                say(&format!("{}: {error}", self.process.name));
            }
        }
    }
}

fn spawn(state: &State, process: &Process) -> Result<Child> {
    let path = state.log(&process.name);
    if fs::metadata(&path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        fs::rename(&path, path.with_extension("log.old")).context("cannot move the old log aside")?;
    }
    let log = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let errors = log.try_clone().context("cannot share the log")?;
    let child = Command::new(&process.program)
        .args(&process.args)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot start {}", process.program.display()))?;
    if let Some(id) = ProcessId::of(child.id()) {
        id.write(&state.pid_file(&process.name))?;
    }
    Ok(child)
}

/// The supervisor's standard error is its log.
fn say(text: &str) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    eprintln!("{}.{:03} {text}", now.as_secs(), now.subsec_millis());
}
