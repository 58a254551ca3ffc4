//! Would the checkers notice? Every planted bug must be found by some seed.

use crate::batch::{self, Batch};
use crate::catalogue;
use crate::run::{self, Scenario, Seed, Violation};
use crate::scenario;
use std::time::{Duration, Instant};

/// The most seeds of each scenario that a bug may need.
pub const SEEDS_MAX: u64 = 600;

/// How long the hunt for one bug may take. It is a guard against runs that a bug makes long, not a measure.
const HUNT_MAX: Duration = Duration::from_secs(240);

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
    for (bug, owner) in catalogue::bugs() {
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
    let deadline = Instant::now() + HUNT_MAX;
    let mut runs = 0;
    for scenario in scenario::exercising(owner) {
        let mut from = 0;
        while from < SEEDS_MAX && Instant::now() < deadline {
            let batch = Batch {
                seeds: from..SEEDS_MAX,
                scenario: Some(scenario),
                threads,
                bug: Some(bug),
                stop_at_violation: true,
                deadline: Some(deadline),
            };
            let summary = batch::run(&batch, |_| ());
            // A run that is too small says nothing about the bug.
            let telling = summary.failed.iter().find_map(|(seed, report)| {
                report.violation.clone().filter(Violation::tells_of_a_bug).map(|violation| (*seed, violation))
            });
            let Some((seed, violation)) = telling else { break };
            if fails_without_bug(scenario, seed) {
                from = seed.0 + 1;
                continue;
            }
            return Some(Found { scenario: scenario.name, seed, seeds_needed: runs + seed.0 + 1, violation });
        }
        runs += SEEDS_MAX;
    }
    None
}

/// What a seed shows without the bug, too, is not the bug.
fn fails_without_bug(scenario: Scenario, seed: Seed) -> bool {
    // Bugs are planted on the batch's own threads, never on this one.
    run::run(scenario, seed, false).violation.is_some()
}
