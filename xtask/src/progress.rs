//! Progress lines with the time since the task began.

use std::time::Instant;

/// Prints what a task is doing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    started: Instant,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// One line on standard error.
    pub(crate) fn say(&self, text: &str) {
        eprintln!("[{:6.1} s] {text}", self.started.elapsed().as_secs_f64());
    }
}
