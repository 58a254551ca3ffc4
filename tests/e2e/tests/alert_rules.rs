//! The alert rules fire when they should and are silent when they should be, by promtool's word.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use basalt_e2e::packages;

fn promtool(arguments: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboards");
    let output = Command::new("promtool").args(arguments).current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {arguments:?}:\n{}", String::from_utf8_lossy(&said));
}

#[test]
fn rules_are_valid_and_fire_when_they_should() {
    packages::ensure(packages::PROMETHEUS, &mut |text| eprintln!("{text}")).unwrap();
    promtool(&["check", "rules", "rules/basalt.yaml"]);
    promtool(&["test", "rules", "tests/alerts.yaml"]);
}

/// A rule without a test of its own is a rule that nobody has seen fire.
#[test]
fn every_rule_has_a_test() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dashboards");
    let rules = std::fs::read_to_string(folder.join("rules/basalt.yaml")).unwrap();
    let tests = std::fs::read_to_string(folder.join("tests/alerts.yaml")).unwrap();
    let names: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 10);
    for name in names {
        assert!(tests.contains(name), "no test for {name}");
    }
}
