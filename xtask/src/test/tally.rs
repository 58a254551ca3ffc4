//! Counting tests in the output of a step.

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) passed: u64,
    pub(super) failed: u64,
}

impl Tally {
    /// Counts a summary line of Rust's test harness, or `N passed, N failed`; any other line counts nothing.
    pub(super) fn count(&mut self, line: &str) {
        let summary = match line.trim_start().strip_prefix("test result: ") {
            Some(summary) => summary,
            None if line.ends_with(" failed") && line.contains(" passed, ") => line,
            None => return,
        };
        for part in summary.split(['.', ';', ',']) {
            let mut words = part.split_whitespace();
            match (words.next().and_then(|number| number.parse::<u64>().ok()), words.next()) {
                (Some(number), Some("passed")) => self.passed += number,
                (Some(number), Some("failed")) => self.failed += number,
                _ => {}
            }
        }
    }

    /// Adds what another step or command counted.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// A step without tests of its own is one; a step that broke has at least one failure.
    pub(super) fn close(&mut self, succeeded: bool) {
        if !succeeded {
            self.failed = self.failed.max(1);
        } else if *self == Self::default() {
            self.passed = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str], succeeded: bool) -> (u64, u64) {
        let mut tally = Tally::default();
        for line in lines {
            tally.count(line);
        }
        tally.close(succeeded);
        (tally.passed, tally.failed)
    }

    #[test]
    fn summaries_are_added_up() {
        let ok =
            "test result: ok. 6 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.12s";
        let bad = "test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.01s";
        assert_eq!(tally(&["running 6 tests", ok, "", bad], false), (9, 2));
    }

    #[test]
    fn the_simulators_seeds_are_counted() {
        let lines =
            ["300 seeds (6 run twice with equal traces)", "3 of 300 seeds, 2 failed", "298 passed, 2 failed"];
        assert_eq!(tally(&lines, false), (298, 2));
    }

    #[test]
    fn a_step_without_tests_is_one() {
        assert_eq!(tally(&["whatever"], true), (1, 0));
        assert_eq!(tally(&["whatever"], false), (0, 1));
    }

    #[test]
    fn a_step_that_breaks_after_its_tests_still_fails() {
        let ok =
            "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.12s";
        assert_eq!(tally(&[ok], false), (6, 1));
    }
}
