//! `cargo xtask`: the one entry point to Basalt's development.
//!
//! `up` and `down` run a whole cluster on this machine, `test` runs everything that CI runs, the rest are the parts that one
//! wants alone. Nothing of the product lives here: the tasks build and start the product's programs and judge them from
//! outside. Begin with [`up`] for how a cluster is put together and with [`test`] for the list of steps.
#![allow(
    clippy::print_stdout,
    reason = "results of a task go to standard output, progress to standard error"
)]

mod bench;
mod codegen;
mod fuzz;
mod progress;
mod simulate;
mod test;
mod tidy;
mod up;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, runs and tests Basalt.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Start a whole cluster on this machine, apply the examples, and write and verify data on each volume
    Up(up::UpArguments),
    /// Stop the cluster that `up` started
    Down(up::DownArguments),
    /// Run everything that CI runs; ends with `N passed, N failed`
    Test(test::Arguments),
    /// Write the generated files: the YAML of the custom resources
    Codegen(codegen::Arguments),
    /// Check dependency arrows, file sizes, unsafe code and names
    Tidy,
    /// Measure what docs/performance.md says
    Bench(bench::Arguments),
    /// Run simulator seeds
    Simulate(simulate::Arguments),
    /// Build states that power cuts can leave of pools, import each and compare it with what was promised
    Crash(simulate::CrashArguments),
    /// Fuzz parsers, state machines and NVMe/TCP sessions until something is found
    Fuzz(fuzz::Arguments),
    /// Check that programs, once built, hold no planted bugs
    #[command(hide = true)]
    CheckPlanted,
    /// Build the product's programs as `up` runs them
    #[command(hide = true)]
    Programs,
    /// Build what is built once: etcd, kube-apiserver and kubectl
    Fixture,
    /// The supervisor of a running cluster; `up` starts it
    #[command(hide = true)]
    Supervise(up::SuperviseArguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    if !matches!(task, Task::Supervise(_) | Task::Down(_)) {
        workspace::claim_target_dir()?;
    }
    match task {
        Task::Up(arguments) => up::up(&arguments),
        Task::Down(arguments) => up::down(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Codegen(arguments) => codegen::run(&arguments),
        Task::Tidy => tidy::run(),
        Task::Bench(arguments) => bench::run(&arguments),
        Task::Simulate(arguments) => simulate::run(&arguments),
        Task::Crash(arguments) => simulate::crash(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::CheckPlanted => simulate::check_absence(),
        Task::Programs => workspace::Programs::build().map(|_| ()),
        Task::Fixture => up::fixture(),
        Task::Supervise(arguments) => up::supervise(&arguments),
    }
}
