//! The marks and planted bugs of the production code, as the build script found them.

include!(concat!(env!("OUT_DIR"), "/catalogue.rs"));

/// Marks that no run of the simulator can reach, each with the reason.
pub const UNREACHABLE: &[(&str, &str)] = &[];

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
