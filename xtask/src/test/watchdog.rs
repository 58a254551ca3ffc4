//! Ends a command that takes too long, with everything that it started.

use std::fs;
use std::process::Child;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::up::process_id::{ProcessId, parent_of};

/// Watches over one command until it is dismissed.
#[derive(Debug)]
pub(super) struct Watchdog {
    dismissed: mpsc::Sender<()>,
    thread: JoinHandle<bool>,
}

impl Watchdog {
    /// Kills `child` and its descendants when `limit` has passed.
    pub(super) fn over(child: &Child, limit: Duration) -> Self {
        let root = child.id();
        let (dismissed, wait) = mpsc::channel();
        let thread = thread::spawn(move || {
            let late = wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if late {
                kill_tree(root);
            }
            late
        });
        Self { dismissed, thread }
    }

    /// Ends the watch; returns whether it had to act.
    pub(super) fn dismiss(self) -> bool {
        self.dismissed.send(()).ok();
        self.thread.join().unwrap_or(true)
    }
}

/// Kills a process and what descends from it, parents first, so that none is started anew.
fn kill_tree(root: u32) {
    let mut doomed = vec![root];
    let mut at = 0;
    while let Some(&id) = doomed.get(at) {
        at += 1;
        let children = children(id);
        if let Some(process) = ProcessId::of(id) {
            process.kill();
        }
        doomed.extend(children);
    }
}

fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id| parent_of(*id) == Some(parent)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    fn shell(script: &str) -> Child {
        Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap()
    }

    #[test]
    fn a_command_that_ends_in_time_is_left_alone() {
        let mut child = shell("true");
        let watchdog = Watchdog::over(&child, Duration::from_secs(60));
        assert!(child.wait().unwrap().success());
        assert!(!watchdog.dismiss());
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_its_children() {
        let started = Instant::now();
        // The grandchild holds the pipe open.
        let mut child = shell("sleep 300 & sleep 300; true");
        let watchdog = Watchdog::over(&child, Duration::from_millis(300));
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(watchdog.dismiss());
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}
