//! What the style and the design ask for and a machine can check.

mod arrows;
mod sources;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};

/// One thing that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The file, relative to the root.
    path: PathBuf,
    /// Line from 1, or none for the file as a whole.
    line: Option<usize>,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(out, "{}:{line}: {}", self.path.display(), self.message),
            None => write!(out, "{}: {}", self.path.display(), self.message),
        }
    }
}

/// Checks everything; prints what was found.
pub(crate) fn run() -> Result<()> {
    let mut findings = arrows::check()?;
    findings.extend(sources::check()?);
    for finding in &findings {
        println!("{finding}");
    }
    if findings.is_empty() {
        return Ok(());
    }
    bail!("tidy found {} things", findings.len());
}
