//! Waiting with a deadline, and saying why it was missed.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::kubernetes::{Kubectl, Object};
use super::state::State;
use super::supervisor;
use crate::progress::Progress;

const READY_DEADLINE: Duration = Duration::from_secs(90);
const ONLINE_DEADLINE: Duration = Duration::from_secs(90);
/// How long nobody needs to know what is waited for.
const QUIET: Duration = Duration::from_secs(5);
const INTERVAL: Duration = Duration::from_millis(200);
const TAIL_LINES: usize = 8;

/// Waits until the apiserver answers.
pub(super) fn until_ready(state: &State, kubectl: &Kubectl) -> Result<()> {
    let started = Instant::now();
    while !kubectl.is_ready() {
        if started.elapsed() > READY_DEADLINE {
            bail!("the apiserver is not ready after {} s\n{}", READY_DEADLINE.as_secs(), diagnosis(state)?);
        }
        sleep(INTERVAL);
    }
    Ok(())
}

/// Waits until the named StorageNodes or Volumes are online; gives them back in that order.
pub(super) fn until_online(
    state: &State,
    kubectl: &Kubectl,
    kind: &str,
    names: &[String],
    progress: Progress,
) -> Result<Vec<Object>> {
    let started = Instant::now();
    let mut said = String::new();
    loop {
        let objects = kubectl.objects(kind)?;
        let wanted: Vec<Object> = names
            .iter()
            .filter_map(|name| objects.iter().find(|object| &object.metadata.name == name))
            .cloned()
            .collect();
        if wanted.len() == names.len() && wanted.iter().all(Object::is_online) {
            return Ok(wanted);
        }
        if started.elapsed() > ONLINE_DEADLINE {
            bail!(
                "not all of the {kind} are online after {} s\n{}\n{}{}",
                ONLINE_DEADLINE.as_secs(),
                wanted.iter().map(conditions).collect::<String>(),
                kubectl.table(&["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]),
                diagnosis(state)?
            );
        }
        // What takes long is told, and told again when it is something else.
        let missing = wanted.iter().find(|object| !object.is_online()).and_then(why);
        if let Some(text) = missing.filter(|text| started.elapsed() > QUIET && *text != said) {
            progress.say(&text);
            said = text;
        }
        sleep(INTERVAL);
    }
}

/// Why an object is not ready, in one line.
fn why(object: &Object) -> Option<String> {
    let ready = object.status.conditions.iter().find(|condition| condition.kind == "Ready")?;
    Some(format!("{}: {}: {}", object.metadata.name, ready.reason, ready.message))
}

fn conditions(object: &Object) -> String {
    let phase = object.status.phase.as_deref().unwrap_or("without a status");
    let mut text = format!("{} is {phase}\n", object.metadata.name);
    for condition in &object.status.conditions {
        text.push_str(&format!(
            "  {}={} {}: {}\n",
            condition.kind, condition.status, condition.reason, condition.message
        ));
    }
    text
}

/// Which processes died, and the last words of those.
fn diagnosis(state: &State) -> Result<String> {
    let Some(reports) = supervisor::ask(state, "status")? else {
        return Ok(format!("the supervisor is gone:\n{}", tail(state, "supervisor")));
    };
    let mut text = String::new();
    for report in reports.iter().filter(|report| report.restarts > 0 || report.pid.is_none()) {
        text.push_str(&format!(
            "{} was restarted {} times, last end: {}; {}:\n{}",
            report.name,
            report.restarts,
            report.last_end.as_deref().unwrap_or("none"),
            state.log(&report.name).display(),
            tail(state, &report.name)
        ));
    }
    if text.is_empty() {
        text = format!("every process is running; their logs are in {}", state.logs().display());
    }
    Ok(text)
}

fn tail(state: &State, process: &str) -> String {
    let bytes = fs::read(state.log(process)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].iter().map(|line| format!("    {line}\n")).collect()
}
