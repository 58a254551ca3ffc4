//! The marks and planted bugs of the production code, as the build script found them.

include!(concat!(env!("OUT_DIR"), "/catalogue.rs"));

/// Marks that no run of the simulator can reach, each with the reason.
pub const UNREACHABLE: &[(&str, &str)] = &[
    (
        "agent-old-copy-refused",
        "no disk of the simulation is exchanged for a copy; the tests of dataplane/agent reach it",
    ),
    ("agent-volume-protected", "hosts of the simulation always write; the tests of dataplane/agent reach it"),
    (
        "joint-consensus-ended-by-another-leader",
        "too rare for a full run; the tests of controlplane/core reach it",
    ),
    ("lvol-brought-together", "hosts do not compare and write; the tests of dataplane/lvol reach it"),
    ("lvol-discarded", "hosts discard less than a piece; the tests of dataplane/lvol reach it"),
    ("lvol-disk-added", "few runs name a disk later; the tests of dataplane/lvol reach it"),
    ("lvol-disk-grown", "disks of the simulation keep their size; the tests of dataplane/lvol reach it"),
    ("lvol-epoch-raised", "the agent does not do it yet; the tests of dataplane/lvol reach it"),
    ("lvol-journal-damaged", "disks of the simulation do not rot; the tests of dataplane/lvol reach it"),
    ("lvol-journal-full", "pools come to a checkpoint before; the tests of dataplane/lvol reach it"),
    ("lvol-metadata-full", "pools are too small for it; the tests of dataplane/lvol reach it"),
    ("lvol-old-copy-left-out", COPIES),
    ("lvol-old-lead-refused", COPIES),
    (
        "lvol-reclaim-later",
        "too rare for a full run: a request outlasts all looks; the tests of dataplane/lvol reach it",
    ),
    ("proposal-lost", "a second line of defence: the loss of the leadership answers proposals first"),
    (
        "request-repeated",
        "a second line of defence: the leader knows a repeated request before it proposes it",
    ),
];

const COPIES: &str =
    "no disk of the simulation is exchanged for a copy; the tests of dataplane/lvol reach it";

/// Planted bugs that no run of the simulator can find, each with the reason.
pub const FOUND_ELSEWHERE: &[(&str, &str)] = &[
    ("lvol-discard-not-journalled", FOUND_BY_CRASHES),
    ("lvol-epoch-not-committed", FOUND_BY_CRASHES),
    ("lvol-extent-freed-before-commit", FOUND_BY_CRASHES),
    ("lvol-loose-group-believed", "no seed has met it; the tests of dataplane/lvol find it"),
    (
        "lvol-old-copy-believed",
        "no disk of the simulation is exchanged for a copy; the tests of dataplane/lvol find it",
    ),
    ("lvol-raise-not-committed", FOUND_BY_CRASHES),
    ("lvol-unshared-before-commit", FOUND_BY_CRASHES),
];

const FOUND_BY_CRASHES: &str = "seeds meet it too seldom; the crash states of dataplane/lvol find it";

/// The planted bugs that some seed must find.
pub fn bugs() -> impl Iterator<Item = (&'static str, &'static str)> {
    let elsewhere = |name: &str| FOUND_ELSEWHERE.iter().any(|(exempt, _)| *exempt == name);
    BUGS.iter().copied().filter(move |(name, _)| !elsewhere(name))
}

/// The marks that a full run must reach.
pub fn required() -> impl Iterator<Item = (&'static str, &'static str)> {
    let reachable = |name: &str| UNREACHABLE.iter().all(|(exempt, _)| *exempt != name);
    MARKS.iter().copied().filter(move |(name, _)| reachable(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemptions_name_what_exists() {
        for (name, reason) in UNREACHABLE {
            assert!(MARKS.iter().any(|(mark, _)| mark == name), "{name} is no mark");
            assert!(!reason.is_empty());
        }
        for (name, reason) in FOUND_ELSEWHERE {
            assert!(BUGS.iter().any(|(bug, _)| bug == name), "{name} is no planted bug");
            assert!(!reason.is_empty());
        }
    }
}
