//! `basalt-fuzz`: gives foreign bytes to everything that reads them. `cargo xtask fuzz` runs it without end.
#![allow(clippy::print_stdout, reason = "the program prints its results")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use basalt_fuzz::targets::{self, Target};
use basalt_fuzz::{corpus_folder, run, seeds};
use clap::{Parser, Subcommand};

/// Fuzzes Basalt's parsers, state machines and NVMe/TCP sessions.
#[derive(Parser)]
#[command(name = "basalt-fuzz", max_term_width = 110)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The corpora and some seconds of mutated inputs
    Run {
        /// The first input's seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Times the usual number of inputs
        #[arg(long, default_value_t = 1)]
        times: u64,
        /// Only this target
        #[arg(long)]
        target: Option<String>,
    },
    /// The same with other seeds, again and again, until something is found
    Endless {
        /// The first round's seed
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only this target
        #[arg(long)]
        target: Option<String>,
    },
    /// One input, for a debugger or to see whether it is mended
    Replay {
        /// The target
        target: String,
        /// The input
        file: PathBuf,
    },
    /// What is fuzzed
    List,
    /// Write the made inputs of the corpora anew
    Seeds,
}

fn main() -> ExitCode {
    match carry_out(&Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(task: &Task) -> Result<()> {
    match task {
        Task::Run { seed, times, target } => {
            let chosen = chosen(target.as_deref())?;
            let mut failed = 0;
            for target in &chosen {
                if let Err(error) = round(target, *seed, *times) {
                    println!("{error:#}");
                    failed += 1;
                }
            }
            println!("{} passed, {failed} failed", chosen.len() - failed);
            ensure!(failed == 0, "{failed} targets do not stand their inputs");
            Ok(())
        }
        Task::Endless { seed, target } => {
            let chosen = chosen(target.as_deref())?;
            for seed in *seed.. {
                for target in &chosen {
                    round(target, seed, 1)?;
                }
            }
            Ok(())
        }
        Task::Replay { target, file } => {
            let target = named(target)?;
            let input = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            match run::one(target, &input) {
                None => println!("{} stands it", target.name),
                Some(finding) => bail!("{}", finding.message),
            }
            Ok(())
        }
        Task::List => {
            for target in targets::ALL {
                println!("{:20} {}", target.name, target.what);
            }
            Ok(())
        }
        Task::Seeds => seeds::write_all(&corpus_folder()),
    }
}

fn named(name: &str) -> Result<&'static Target> {
    targets::named(name).with_context(|| format!("there is no target {name}; `basalt-fuzz list` shows them"))
}

fn chosen(name: Option<&str>) -> Result<Vec<&'static Target>> {
    let chosen = match name {
        Some(name) => vec![named(name)?],
        None => targets::ALL.iter().collect(),
    };
    ensure!(!chosen.is_empty(), "there is nothing to fuzz");
    Ok(chosen)
}

fn round(target: &Target, seed: u64, times: u64) -> Result<()> {
    let began = std::time::Instant::now();
    match run::many(target, seed, target.cases * times)? {
        Ok(tally) => {
            let seconds = began.elapsed().as_secs_f64();
            println!(
                "{:20} seed {seed}: {} inputs, {} of them kept, in {seconds:.1} s",
                target.name, tally.cases, tally.kept
            );
            Ok(())
        }
        Err(finding) => {
            let path = run::keep(target, &finding)?;
            bail!(
                "{} does not stand an input of seed {seed}:\n{}\nto see it again: basalt-fuzz replay {} {}",
                target.name,
                finding.message,
                target.name,
                path.display()
            )
        }
    }
}
