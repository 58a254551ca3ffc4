//! Runs of one seed: what a scenario gives back, and how a run is guarded against panics.

use crate::trace::{self, Digest};
use basalt_clock::fault;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::time::Duration;

/// The least number of operations in a run that counts.
pub const OPERATIONS_MIN: u64 = 2_000;

/// The least number of faults in a run that counts.
pub const FAULTS_MIN: u64 = 20;

/// Chooses everything that happens in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seed(pub u64);

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Operations that clients or hosts asked for.
    pub operations: u64,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Simulated time.
    pub simulated: Duration,
}

impl Tally {
    /// Counts `count` faults of a kind.
    pub fn fault(&mut self, kind: &'static str, count: u64) {
        if count > 0 {
            *self.faults.entry(kind).or_insert(0) += count;
        }
    }

    /// Faults of all kinds.
    pub fn faults_total(&self) -> u64 {
        self.faults.values().sum()
    }
}

/// Something that must never happen, and did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No order of operations explains what clients saw.
    #[error("the history of {key} is not linearizable: {detail}")]
    NotLinearizable {
        /// The key.
        key: String,
        /// Where the search got stuck.
        detail: String,
    },
    /// A history was too hard to check within the bound.
    #[error("the history of {key} could not be decided in {steps} steps")]
    Undecided {
        /// The key.
        key: String,
        /// The bound.
        steps: u64,
    },
    /// An invariant is broken.
    #[error("{invariant}: {detail}")]
    Invariant {
        /// The rule, as a sentence.
        invariant: &'static str,
        /// What was seen.
        detail: String,
    },
    /// The system did not recover within its time after all faults ended.
    #[error("no progress within {waited:?} after the last fault: {detail}")]
    Stuck {
        /// The time that it had.
        waited: Duration,
        /// What was waited for.
        detail: String,
    },
    /// Code under simulation panicked.
    #[error("panic: {message}")]
    Panic {
        /// The message and where it was raised.
        message: String,
    },
    /// The run was too small to count.
    #[error(
        "only {operations} operations and {faults} faults: a run needs {OPERATIONS_MIN} and {FAULTS_MIN}"
    )]
    TooSmall {
        /// Operations that ran.
        operations: u64,
        /// Faults that ran.
        faults: u64,
    },
    /// Two runs of the seed differ.
    #[error("two runs of this seed differ: traces {first} and {second}")]
    NotDeterministic {
        /// The first run's trace.
        first: Digest,
        /// The second run's trace.
        second: Digest,
    },
}

impl Violation {
    /// Whether the code under simulation is to blame, and not the run itself.
    pub fn tells_of_a_bug(&self) -> bool {
        !matches!(self, Self::TooSmall { .. } | Self::Undecided { .. })
    }
}

/// The result of one run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The scenario's name.
    pub scenario: &'static str,
    /// The seed.
    pub seed: Seed,
    /// What the run did, if it ended by itself.
    pub tally: Tally,
    /// The digest of its trace.
    pub digest: Digest,
    /// The lines of its trace.
    pub lines: u64,
    /// The marks that it reached.
    pub marks: BTreeMap<&'static str, u64>,
    /// What went wrong.
    pub violation: Option<Violation>,
    /// The end of the trace, if something went wrong.
    pub tail: Vec<String>,
}

/// A world and what happens in it, with the checks of what must hold.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// How it is called on the command line.
    pub name: &'static str,
    /// Runs it.
    pub run: fn(Seed) -> Result<Tally, Violation>,
}

thread_local! {
    static GUARDED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes panics under [`run`] be told in the report instead of on standard error. Call once per process.
pub fn install_panic_hook() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let guarded = GUARDED.with(|slot| {
            let mut slot = slot.borrow_mut();
            if let Some(message) = slot.as_mut() {
                *message = info.to_string();
            }
            slot.is_some()
        });
        if !guarded {
            before(info);
        }
    }));
}

/// Runs one seed on this thread, with its trace echoed to standard error if wanted.
pub fn run(scenario: Scenario, seed: Seed, echo: bool) -> Report {
    trace::begin(echo);
    fault::record_marks();
    GUARDED.with(|slot| *slot.borrow_mut() = Some(String::new()));
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (scenario.run)(seed)));
    let message = GUARDED.with(|slot| slot.borrow_mut().take()).unwrap_or_default();
    let marks = fault::take_marks();
    let trace = trace::finish();
    let (tally, violation) = match outcome {
        Ok(Ok(tally)) => {
            let (operations, faults) = (tally.operations, tally.faults_total());
            let small = operations < OPERATIONS_MIN || faults < FAULTS_MIN;
            (tally, small.then_some(Violation::TooSmall { operations, faults }))
        }
        Ok(Err(violation)) => (Tally::default(), Some(violation)),
        Err(_) => (Tally::default(), Some(Violation::Panic { message })),
    };
    let tail = if violation.is_some() { trace.tail } else { Vec::new() };
    Report {
        scenario: scenario.name,
        seed,
        tally,
        digest: trace.digest,
        lines: trace.lines,
        marks,
        violation,
        tail,
    }
}

/// Runs one seed twice and compares the traces.
pub fn run_twice(scenario: Scenario, seed: Seed) -> Report {
    let mut first = run(scenario, seed, false);
    let second = run(scenario, seed, false);
    if first.violation.is_none() && first.digest != second.digest {
        first.violation = Some(Violation::NotDeterministic { first: first.digest, second: second.digest });
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event;

    fn full() -> Tally {
        let mut tally = Tally { operations: OPERATIONS_MIN, ..Tally::default() };
        tally.fault("crash", FAULTS_MIN);
        tally
    }

    fn scenario(run: fn(Seed) -> Result<Tally, Violation>) -> Scenario {
        Scenario { name: "test", run }
    }

    #[test]
    fn a_panic_is_a_violation_with_the_tail_of_the_trace() {
        let report = run(
            scenario(|_| {
                event!("before");
                panic!("on purpose");
            }),
            Seed(1),
            false,
        );
        assert!(matches!(report.violation, Some(Violation::Panic { .. })));
        assert!(report.tail[0].ends_with("before"));
    }

    #[test]
    fn a_small_run_does_not_count() {
        assert!(run(scenario(|_| Ok(full())), Seed(1), false).violation.is_none());
        let report = run(scenario(|_| Ok(Tally::default())), Seed(1), false);
        assert_eq!(report.violation, Some(Violation::TooSmall { operations: 0, faults: 0 }));
    }

    #[test]
    fn what_differs_between_two_runs_is_found() {
        use std::cell::Cell;
        thread_local!(static RUNS: Cell<u32> = const { Cell::new(0) });
        let unsteady = scenario(|_| {
            RUNS.set(RUNS.get() + 1);
            event!("run {}", RUNS.get());
            Ok(full())
        });
        let report = run_twice(unsteady, Seed(1));
        assert!(matches!(report.violation, Some(Violation::NotDeterministic { .. })));
        let steady = scenario(|seed| {
            event!("run {seed}");
            Ok(full())
        });
        assert!(run_twice(steady, Seed(1)).violation.is_none());
    }

    #[test]
    fn marks_are_part_of_the_report() {
        let report = run(
            scenario(|_| {
                basalt_clock::mark!("test-of-the-report");
                Ok(full())
            }),
            Seed(1),
            false,
        );
        assert_eq!(report.marks["test-of-the-report"], 1);
    }
}
