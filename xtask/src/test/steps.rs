//! The list of steps.

use std::ffi::OsString;

use anyhow::{Context, Result};

use crate::{simulate, workspace};

/// Commands that belong together; the first that fails ends the step.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) name: &'static str,
    pub(super) what: &'static str,
    /// `cargo` and `xtask` stand for the ones that are running.
    pub(super) commands: Vec<Vec<String>>,
    pub(super) environment: Vec<(&'static str, OsString)>,
}

/// Seeds of the simulator in one run.
const SEEDS: &str = "--seeds=300";

/// In the order in which they run: the quick ones first, then what others build on.
pub(super) fn all() -> Result<Vec<Step>> {
    let target = workspace::target_dir()?;
    let outside = vec![
        ("BASALT_PROGRAMS", target.join("debug").into_os_string()),
        ("BASALT_XTASK", std::env::current_exe().context("cannot find this program")?.into_os_string()),
    ];
    let simulator = "cargo run --quiet --locked --profile sim --package basalt-simulator";
    let folder = simulate::planted_target()?;
    let planted = format!("{simulator} --target-dir {} -- planted", folder.display());
    let planted_in_pools = format!(
        "cargo test --quiet --locked --profile sim --package basalt-lvol --test crash --test openings --target-dir {} -- \
         --nocapture --exact every_planted_bug_is_found",
        folder.display()
    );
    Ok(vec![
        step("tidy", "dependency arrows, file sizes, unsafe code, names", &["xtask tidy"]),
        step("format", "rustfmt", &["cargo fmt --all --check -- --color=never"]),
        step(
            "clippy",
            "lints of all crates, warnings are errors",
            &["cargo clippy --workspace --all-targets --locked -- --deny warnings"],
        ),
        step("fixture", "etcd, kube-apiserver and kubectl from Go modules, once", &["xtask fixture"]),
        step(
            "unit",
            "tests of all crates, those against a real apiserver and the drift of crds/yaml included",
            &["cargo test --workspace --locked --no-fail-fast"],
        ),
        step("simulate", "300 seeds of the simulator", &[&format!("{simulator} -- run {SEEDS}")]),
        step(
            "crash",
            "500 workloads on pools and 100,000 distinct states that power cuts leave of them",
            &["xtask crash --least=100000"],
        ),
        step(
            "fuzz",
            "corpora and mutated inputs of everything that reads foreign bytes",
            &["cargo run --quiet --locked --profile sim --package basalt-fuzz -- run"],
        ),
        step("planted", "every planted bug is found", &[&planted, &planted_in_pools])
            .with(&[("RUSTFLAGS", "--cfg basalt_planted".into())]),
        step(
            "programs",
            "the product's programs, without planted bugs",
            &["xtask programs", "xtask check-planted"],
        ),
        step(
            "linux-host",
            "Linux's NVMe/TCP host in a guest: mkfs, fio with verify, SIGKILL of the target, reservations beside our host",
            &["cargo test --locked --package basalt-e2e --test serve --test guest_rig --test linux_host -- --ignored --nocapture"],
        )
        .with(&outside),
        step(
            "cluster",
            "a whole cluster: up, wrong input, SIGKILL of every process, full disks, down and up, the other ways up",
            &[
                "cargo test --locked --package basalt-e2e --test cluster",
                "cargo test --locked --package basalt-e2e --test other_ways_up -- --ignored",
            ],
        )
        .with(&outside),
    ])
}

fn step(name: &'static str, what: &'static str, commands: &[&str]) -> Step {
    let commands =
        commands.iter().map(|command| command.split_whitespace().map(str::to_owned).collect()).collect();
    Step { name, what, commands, environment: Vec::new() }
}

impl Step {
    fn with(mut self, environment: &[(&'static str, OsString)]) -> Self {
        self.environment.extend_from_slice(environment);
        self
    }
}
