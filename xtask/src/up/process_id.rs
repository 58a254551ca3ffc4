//! Process ids that cannot be mistaken for a later process of the same number.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// A process by its number and the time at which the kernel started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessId {
    pid: u32,
    /// Field 22 of proc(5)'s `stat`: clock ticks since boot.
    started: u64,
}

impl ProcessId {
    /// The running process `pid`; none when there is none, or when it is a zombie.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = stat_after_name(pid)?;
        let mut fields = stat.split_whitespace();
        if fields.next()? == "Z" {
            return None;
        }
        Some(Self { pid, started: fields.nth(18)?.parse().ok()? })
    }

    /// What [`ProcessId::write`] wrote; none when it does not read as such.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|word| word.parse().ok());
        let started = words.next().and_then(|word| word.parse().ok());
        Ok(pid.zip(started).map(|(pid, started)| Self { pid, started }))
    }

    /// One line: number, start time.
    pub(crate) fn write(self, path: &Path) -> Result<()> {
        fs::write(path, format!("{} {}\n", self.pid, self.started))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub(crate) fn is_running(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }

    /// Asks it to end; nothing happens when it is gone.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends it; nothing happens when it is gone.
    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid
            && self.is_running()
            && let Err(error) = kill_process(pid, signal)
        {
            eprintln!("cannot signal process {}: {error}", self.pid);
        }
    }
}

/// The process that started `pid`, or that took it over.
pub(crate) fn parent_of(pid: u32) -> Option<u32> {
    stat_after_name(pid)?.split_whitespace().nth(1)?.parse().ok()
}

/// The fields of proc(5)'s `stat` from the third on; the second is a name in parentheses that may hold anything.
fn stat_after_name(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let own = ProcessId::of(std::process::id()).unwrap();
        assert!(own.is_running());
        let impostor = ProcessId { started: own.started + 1, ..own };
        assert!(!impostor.is_running());
        // Would end this test if it were taken for us.
        impostor.kill();
    }

    #[test]
    fn a_process_that_ended_is_not_running() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        id.write(&path).unwrap();
        assert_eq!(ProcessId::read(&path).unwrap(), Some(id));
        id.kill();
        child.wait().unwrap();
        assert!(!id.is_running());
    }
}
