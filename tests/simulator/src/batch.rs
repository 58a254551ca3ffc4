//! Many seeds on all cores.

use crate::run::{self, Report, Scenario, Seed, Violation};
use crate::scenario;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Every so many seeds one is run twice, to compare the traces.
pub const TWICE_EVERY: u64 = 25;

/// What to run.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The seeds.
    pub seeds: Range<u64>,
    /// Only this scenario; all of them in turn otherwise.
    pub scenario: Option<Scenario>,
    /// Threads that run seeds.
    pub threads: usize,
    /// The bug that is planted in every run.
    pub bug: Option<&'static str>,
    /// Stop at the first violation.
    pub stop_at_violation: bool,
    /// Begin no seed after this.
    pub deadline: Option<Instant>,
}

/// The sum of many runs.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Runs that ended.
    pub runs: u64,
    /// Runs by scenario.
    pub by_scenario: BTreeMap<&'static str, u64>,
    /// Seeds that were run a second time.
    pub twice: u64,
    /// Operations of all runs.
    pub operations: u64,
    /// Faults of all runs by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Simulated time of all runs.
    pub simulated: Duration,
    /// Marks reached, and how often.
    pub marks: BTreeMap<&'static str, u64>,
    /// Reports of the runs that failed, by seed.
    pub failed: BTreeMap<Seed, Report>,
}

impl Summary {
    fn add(&mut self, report: &Report, twice: bool) {
        self.runs += 1;
        *self.by_scenario.entry(report.scenario).or_insert(0) += 1;
        self.twice += u64::from(twice);
        self.operations += report.tally.operations;
        self.simulated += report.tally.simulated;
        for (kind, count) in &report.tally.faults {
            *self.faults.entry(kind).or_insert(0) += count;
        }
        for (mark, count) in &report.marks {
            *self.marks.entry(mark).or_insert(0) += count;
        }
        if report.violation.is_some() {
            self.failed.insert(report.seed, report.clone());
        }
    }
}

#[cfg(basalt_planted)]
fn plant(bug: Option<&str>) {
    basalt_clock::fault::plant(bug);
}

#[cfg(not(basalt_planted))]
fn plant(bug: Option<&str>) {
    assert!(bug.is_none(), "planted bugs exist only in a build with --cfg basalt_planted");
}

/// Runs all seeds of the batch; `each` sees every report in the order in which runs end.
pub fn run(batch: &Batch, mut each: impl FnMut(&Report)) -> Summary {
    let next = AtomicU64::new(batch.seeds.start);
    let mut summary = Summary::default();
    thread::scope(|scope| {
        let (reports, received) = mpsc::sync_channel(batch.threads);
        for _ in 0..batch.threads {
            let (reports, next) = (reports.clone(), &next);
            scope.spawn(move || {
                plant(batch.bug);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = batch.deadline.is_some_and(|deadline| Instant::now() >= deadline);
                    if seed >= batch.seeds.end || late {
                        break;
                    }
                    let scenario = batch.scenario.unwrap_or_else(|| scenario::of(Seed(seed)));
                    let twice = batch.bug.is_none() && (seed - batch.seeds.start).is_multiple_of(TWICE_EVERY);
                    let report = match twice {
                        true => run::run_twice(scenario, Seed(seed)),
                        false => run::run(scenario, Seed(seed), false),
                    };
                    if batch.stop_at_violation
                        && report.violation.as_ref().is_some_and(Violation::tells_of_a_bug)
                    {
                        next.store(batch.seeds.end, Ordering::Relaxed);
                    }
                    if reports.send((report, twice)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(reports);
        for (report, twice) in received {
            each(&report);
            summary.add(&report, twice);
        }
    });
    summary
}
