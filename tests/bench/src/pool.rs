//! `basalt-bench pool`: what logical volumes cost on top of their disks, beside the same disks alone.

mod file;
mod large;
mod ram;
mod rig;
mod sparse;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::ratio::Ratio;
use rig::Rig;

/// Where and how long pools are measured.
#[derive(Args, Debug, Clone)]
pub(crate) struct PoolArguments {
    /// Folder for the backing files, on a disk that takes O_DIRECT; they need 12 GiB and are removed at the end
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    #[command(subcommand)]
    child: Option<Child>,
}

/// Parts that run in a process of their own, so that its memory tells something.
#[derive(clap::Subcommand, Debug, Clone)]
pub(crate) enum Child {
    /// Imports the pool in a file and prints what that took
    #[command(hide = true)]
    Import {
        /// The file
        path: PathBuf,
        /// Look at all parts of the first volume's map afterwards
        #[arg(long)]
        look: bool,
    },
}

/// How each line is measured.
#[derive(Debug, Clone)]
struct Effort {
    pairs: u32,
    seconds: Duration,
    folder: PathBuf,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Line {
    name: &'static str,
    value: f64,
    bar: f64,
    unit: &'static str,
    pass: bool,
    /// For people: the interval of a ratio, or what was counted.
    #[serde(skip)]
    detail: String,
}

impl Line {
    /// A ratio of pairs: ours to that of the other side. The end of its interval that is worse for us has to reach the bar.
    fn of_pairs(name: &'static str, bar: f64, pairs: &[(f64, f64)]) -> Result<Self> {
        let ratio = Ratio::of(pairs).ok_or_else(|| anyhow::anyhow!("no pair was measured"))?;
        let middle = |side: fn(&(f64, f64)) -> f64| {
            let values: Vec<f64> = pairs.iter().map(side).collect();
            crate::ratio::median(&values).unwrap_or_default()
        };
        let Ratio { median, low, high } = ratio;
        let detail =
            format!("[{low:.2}, {high:.2}]; {:.0} to {:.0}", middle(|pair| pair.0), middle(|pair| pair.1));
        Ok(Self { name, value: median, bar, unit: "ratio", pass: low >= bar, detail })
    }

    /// A value that has to stay below the bar.
    fn below(name: &'static str, bar: f64, value: f64, unit: &'static str, detail: String) -> Self {
        Self { name, value, bar, unit, pass: value < bar, detail }
    }
}

/// Lines that are measured together.
struct Part {
    /// What it is about, as each of its lines begins.
    name: &'static str,
    measure: fn(&Effort) -> Result<Vec<Line>>,
}

const PARTS: &[Part] = &[
    Part { name: "allocated", measure: ram::allocated },
    Part { name: "snapshots", measure: ram::through_snapshots },
    Part { name: "overwrites", measure: ram::after_snapshot },
    Part { name: "fill", measure: file::sequential_fill },
    Part { name: "first-writes", measure: file::first_writes },
    Part { name: "pause", measure: large::snapshot_pause },
    Part { name: "import", measure: large::import },
    Part { name: "memory", measure: large::memory },
];

/// Measures the parts whose name contains `only`.
pub(crate) fn run(
    arguments: &PoolArguments,
    pairs: u32,
    seconds: Duration,
    only: &str,
    json: bool,
) -> Result<()> {
    if let Some(Child::Import { path, look }) = &arguments.child {
        return large::import_child(path, *look);
    }
    let effort = Effort { pairs, seconds, folder: arguments.folder.clone() };
    let mut lines = Vec::new();
    for part in PARTS.iter().filter(|part| part.name.contains(only)) {
        eprintln!("{}", part.name);
        for line in (part.measure)(&effort)? {
            if !json {
                print(&line);
            }
            lines.push(line);
        }
    }
    ensure!(!lines.is_empty(), "no part has {only:?} in its name; there are {}", names());
    if json {
        println!("{}", serde_json::to_string_pretty(&lines)?);
    }
    Ok(())
}

fn names() -> String {
    PARTS.iter().map(|part| part.name).collect::<Vec<_>>().join(", ")
}

fn print(line: &Line) {
    let verdict = if line.pass { "reached" } else { "not reached" };
    println!(
        "{:66} {:8.3} {:6} bar {:<6} {verdict:12} {}",
        line.name, line.value, line.unit, line.bar, line.detail
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_told_as_asked() {
        let line = Line::of_pairs("some", 0.85, &[(90.0, 100.0); 3]).unwrap();
        let json = serde_json::to_string(&line).unwrap();
        assert_eq!(json, r#"{"name":"some","value":0.9,"bar":0.85,"unit":"ratio","pass":true}"#);
        assert!(!Line::of_pairs("some", 0.95, &[(90.0, 100.0); 3]).unwrap().pass);
        assert!(Line::below("some", 2.0, 1.9, "s", String::new()).pass);
        assert!(!Line::below("some", 2.0, 2.0, "s", String::new()).pass);
    }
}
