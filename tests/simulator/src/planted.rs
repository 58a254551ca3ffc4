//! Would the checkers notice? Every planted bug must be found by some seed.

use crate::batch::{self, Batch};
use crate::catalogue;
use crate::run::{Seed, Violation};
use crate::scenario;

/// The most seeds of each scenario that a bug may need.
pub const SEEDS_MAX: u64 = 200;

/// How one planted bug was found.
#[derive(Debug, Clone)]
pub struct Hunt {
    /// The bug.
    pub bug: &'static str,
    /// The crate's folder.
    pub owner: &'static str,
    /// Where it was found, if it was.
    pub found: Option<Found>,
}

/// The seed that found a bug.
#[derive(Debug, Clone)]
pub struct Found {
    /// The scenario.
    pub scenario: &'static str,
    /// The seed.
    pub seed: Seed,
    /// How many seeds were run until then.
    pub seeds_needed: u64,
    /// What was noticed.
    pub violation: Violation,
}

/// Hunts all planted bugs, or those whose name contains `only`.
pub fn hunt(only: Option<&str>, threads: usize, mut each: impl FnMut(&Hunt)) -> Vec<Hunt> {
    let mut hunts = Vec::new();
    for (bug, owner) in catalogue::BUGS {
        if only.is_some_and(|part| !bug.contains(part)) {
            continue;
        }
        let hunt = Hunt { bug, owner, found: hunt_one(bug, owner, threads) };
        each(&hunt);
        hunts.push(hunt);
    }
    hunts
}

fn hunt_one(bug: &'static str, owner: &str, threads: usize) -> Option<Found> {
    let mut runs = 0;
    for scenario in scenario::exercising(owner) {
        let batch = Batch {
            seeds: 0..SEEDS_MAX,
            scenario: Some(scenario),
            threads,
            bug: Some(bug),
            stop_at_violation: true,
        };
        let summary = batch::run(&batch, |_| ());
        // A run that is too small says nothing about the bug.
        let telling = summary
            .failed
            .iter()
            .find(|(_, report)| report.violation.as_ref().is_some_and(Violation::tells_of_a_bug));
        if let Some((seed, report)) = telling
            && let Some(violation) = report.violation.clone()
        {
            let seeds_needed = runs + seed.0 + 1;
            return Some(Found { scenario: scenario.name, seed: *seed, seeds_needed, violation });
        }
        runs += summary.runs;
    }
    None
}
