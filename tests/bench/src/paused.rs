//! A process of somebody else that runs only when it is its turn.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

/// A paused process; it goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Paused(Pid);

/// Its turn: it is paused again when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Paused);

impl Paused {
    /// Pauses the process.
    pub(crate) fn new(pid: i32) -> Result<Self> {
        let pid = Pid::from_raw(pid).context("--vs-pid is the number of a process")?;
        let paused = Self(pid);
        paused.signal(Signal::STOP)?;
        Ok(paused)
    }

    /// Lets it run.
    pub(crate) fn turn(&self) -> Result<Turn<'_>> {
        self.signal(Signal::CONT)?;
        Ok(Turn(self))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.0, signal).context("the other target's process cannot be paused")
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.signal(Signal::STOP) {
            eprintln!("{error:#}");
        }
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if let Err(error) = self.signal(Signal::CONT) {
            eprintln!("{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn state(pid: u32) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    }

    fn becomes(pid: u32, wanted: bool) {
        let looks = (0..500).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            (state(pid) == 'T') == wanted
        });
        assert!(looks, "paused: {wanted}, and it is {}", state(pid));
    }

    #[test]
    fn a_process_runs_in_its_turn_and_afterwards() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let paused = Paused::new(child.id().try_into().unwrap()).unwrap();
        becomes(child.id(), true);
        let turn = paused.turn().unwrap();
        becomes(child.id(), false);
        drop(turn);
        becomes(child.id(), true);
        drop(paused);
        becomes(child.id(), false);
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
