//! Findings that are open: seeds in which the system does not recover in time, and nobody knows yet why.
//!
//! `open-findings.txt` names each with its scenario. Such a seed may only be stuck: any other violation of it fails the run, and so
//! does a listed seed that recovers, for then it is to be taken off the list. Nothing else may be listed.

use crate::run::{Report, Seed, Violation};

const LIST: &str = include_str!("../open-findings.txt");

/// What a report means in the light of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No violation, and none was expected.
    Passed,
    /// A violation that counts.
    Failed,
    /// Stuck, as the list says.
    Open,
    /// Listed, and recovered: the list is out of date.
    Mended,
}

/// Judges a report.
pub fn verdict(report: &Report) -> Verdict {
    match (listed(report.scenario, report.seed), &report.violation) {
        (false, None) => Verdict::Passed,
        (true, None) => Verdict::Mended,
        (true, Some(Violation::Stuck { .. })) => Verdict::Open,
        (_, Some(_)) => Verdict::Failed,
    }
}

fn listed(scenario: &str, seed: Seed) -> bool {
    let entries = LIST.lines().filter(|line| !line.starts_with('#'));
    entries.filter_map(|line| line.split_once(' ')).any(|(name, rest)| {
        name == scenario && rest.split(' ').next().and_then(|word| word.parse().ok()).map(Seed) == Some(seed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_names_a_scenario_a_seed_and_what_is_seen() {
        for line in LIST.lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.splitn(3, ' ');
            let scenario = words.next().unwrap();
            assert!(crate::scenario::named(scenario).is_some(), "{line}");
            assert!(words.next().unwrap().parse::<u64>().is_ok(), "{line}");
            assert!(words.next().is_some_and(|seen| !seen.is_empty()), "{line}");
        }
        assert!(!listed("control", Seed(u64::MAX)));
    }
}
