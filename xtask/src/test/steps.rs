//! The list of steps.

use anyhow::Result;

/// Commands that belong together; the first that fails ends the step.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    /// `cargo` and `xtask` stand for the ones that are running.
    pub(super) commands: Vec<Vec<String>>,
}

/// In the order in which they run: the quick ones first, then what others build on.
pub(super) fn all() -> Result<Vec<Step>> {
    Ok(vec![
        step("tidy", "dependency arrows, file sizes, unsafe code, names", &["xtask tidy"]),
        step("format", "rustfmt", &["cargo fmt --all --check"]),
        step(
            "clippy",
            "lints of all crates, warnings are errors",
            &["cargo clippy --workspace --all-targets --locked -- --deny warnings"],
        ),
        step(
            "unit",
            "tests of all crates, those against a real apiserver and the drift of crds/yaml included",
            &["cargo test --workspace --locked --no-fail-fast"],
        ),
    ])
}

fn step(name: &'static str, what: &'static str, commands: &[&str]) -> Step {
    let commands =
        commands.iter().map(|command| command.split_whitespace().map(str::to_owned).collect()).collect();
    Step { name, what, commands }
}
