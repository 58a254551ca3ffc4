//! What a measurement is judged by: the end of the interval that is worse for us has to reach the bar.

use std::fmt;

use serde::Serialize;

use crate::ratio::Ratio;

/// One bar and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Bar {
    name: &'static str,
    measured: Ratio,
    bar: f64,
    pass: bool,
}

impl Bar {
    /// More is better.
    pub(crate) fn at_least(name: &'static str, measured: Ratio, bar: f64) -> Self {
        Self { name, measured, bar, pass: measured.low >= bar }
    }

    /// Less is better.
    pub(crate) fn at_most(name: &'static str, measured: Ratio, bar: f64) -> Self {
        Self { name, measured, bar, pass: measured.high <= bar }
    }

    /// Whether it is reached.
    #[cfg(test)]
    pub(crate) fn pass(&self) -> bool {
        self.pass
    }

    /// What was measured.
    #[cfg(test)]
    pub(crate) fn measured(&self) -> Ratio {
        self.measured
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ratio { median, low, high } = self.measured;
        let digits = if median.abs() < 100.0 { 2 } else { 0 };
        let reached = if self.pass { "reached" } else { "NOT REACHED" };
        let name = self.name;
        write!(f, "{name} {median:.digits$} [{low:.digits$}, {high:.digits$}], bar {}: {reached}", self.bar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Ratio = Ratio { median: 1.0, low: 0.8, high: 1.2 };

    #[test]
    fn the_worse_end_of_the_interval_is_judged() {
        assert!(Bar::at_least("", WIDE, 0.8).pass() && !Bar::at_least("", WIDE, 0.9).pass());
        assert!(Bar::at_most("", WIDE, 1.2).pass() && !Bar::at_most("", WIDE, 1.1).pass());
    }

    #[test]
    fn a_bar_tells_all() {
        let bar = Bar::at_least("reads", WIDE, 0.9);
        assert_eq!(bar.to_string(), "reads 1.00 [0.80, 1.20], bar 0.9: NOT REACHED");
    }
}
