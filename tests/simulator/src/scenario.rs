//! The scenarios and which seed runs which.

use crate::run::{Scenario, Seed};
use crate::{cluster, control, data};

/// The control plane: members, clients, daemons that are stand-ins.
const CONTROL: Scenario = Scenario { name: "control", run: control::run };

/// The data plane: agents, pools, targets and hosts; a script stands for the control plane.
const DATA: Scenario = Scenario { name: "data", run: data::run };

/// Everything together.
const CLUSTER: Scenario = Scenario { name: "cluster", run: cluster::run };

/// All scenarios.
pub const ALL: &[Scenario] = &[CONTROL, DATA, CLUSTER];

/// Which seed runs which when none is asked for: by the remainder.
const TURNS: &[Scenario] = &[CONTROL, DATA, CONTROL, DATA, CLUSTER];

/// The scenario of a seed when none is asked for.
pub fn of(seed: Seed) -> Scenario {
    let count = TURNS.len() as u64;
    TURNS[usize::try_from(seed.0 % count).unwrap_or(0)]
}

/// The scenario with this name.
pub fn named(name: &str) -> Option<Scenario> {
    ALL.iter().copied().find(|scenario| scenario.name == name)
}

/// The scenarios that run the code of a crate's folder, the most fitting first.
pub fn exercising(folder: &str) -> Vec<Scenario> {
    if folder.starts_with("controlplane") { vec![CONTROL] } else { vec![DATA, CLUSTER] }
}
