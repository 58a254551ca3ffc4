//! The marks and planted bugs of the production code, as the build script found them.

include!(concat!(env!("OUT_DIR"), "/catalogue.rs"));

/// Marks that no run of the simulator can reach, each with the reason.
pub const UNREACHABLE: &[(&str, &str)] = &[
    (
        "joint-consensus-ended-by-another-leader",
        "too rare for a full run; the tests of controlplane/core reach it",
    ),
    ("lvol-space-released", "the agent deletes only what is drained; the tests of dataplane/lvol reach it"),
    ("proposal-lost", "a second line of defence: the loss of the leadership answers proposals first"),
    (
        "request-repeated",
        "a second line of defence: the leader knows a repeated request before it proposes it",
    ),
];

/// The marks that a full run must reach.
pub fn required() -> impl Iterator<Item = (&'static str, &'static str)> {
    let reachable = |name: &str| UNREACHABLE.iter().all(|(exempt, _)| *exempt != name);
    MARKS.iter().copied().filter(move |(name, _)| reachable(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemptions_name_marks_that_exist() {
        for (name, reason) in UNREACHABLE {
            assert!(MARKS.iter().any(|(mark, _)| mark == name), "{name} is no mark");
            assert!(!reason.is_empty());
        }
    }
}
