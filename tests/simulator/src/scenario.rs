//! The scenarios and which seed runs which.

use crate::control;
use crate::run::{Scenario, Seed};

/// All scenarios.
pub const ALL: &[Scenario] = &[Scenario { name: "control", run: control::run }];

/// The scenario of a seed when none is asked for.
pub fn of(seed: Seed) -> Scenario {
    let count = ALL.len() as u64;
    ALL[usize::try_from(seed.0 % count).unwrap_or(0)]
}

/// The scenario with this name.
pub fn named(name: &str) -> Option<Scenario> {
    ALL.iter().copied().find(|scenario| scenario.name == name)
}

/// The scenarios that run the code of a crate's folder, the most fitting first.
pub fn exercising(_folder: &str) -> Vec<Scenario> {
    ALL.to_vec()
}
