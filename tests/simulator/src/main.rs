//! `basalt-simulator`: runs seeds, replays one, hunts planted bugs.
#![allow(clippy::print_stdout, reason = "a command-line tool prints its results")]

use basalt_simulator::batch::{self, Batch, Summary};
use basalt_simulator::findings::{self, Verdict};
use basalt_simulator::run::{self, Report, Scenario, Seed};
use basalt_simulator::{catalogue, planted, scenario};
use clap::{Args, Parser, Subcommand};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Full runs are judged by the marks they reach; shorter ones only tell.
const FULL_RUN_SEEDS: u64 = 300;

/// Failures that are told in full.
const FAILURES_TOLD: usize = 5;

#[derive(Debug, Parser)]
#[command(name = "basalt-simulator", about = "Deterministic simulation of a Basalt cluster")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run many seeds
    Run(RunArgs),
    /// Run one seed and show its trace
    Replay(ReplayArgs),
    /// Check that every planted bug is found (needs a build with --cfg basalt_planted)
    Planted(PlantedArgs),
    /// List scenarios, marks and planted bugs
    List,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// How many seeds
    #[arg(long, default_value_t = FULL_RUN_SEEDS)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only this scenario
    #[arg(long, value_parser = parse_scenario)]
    scenario: Option<Scenario>,
    /// Threads; the number of cores if not given
    #[arg(long)]
    threads: Option<usize>,
}

#[derive(Debug, Args)]
struct ReplayArgs {
    /// The seed
    #[arg(long)]
    seed: u64,
    /// The scenario; the one that `run` would choose if not given
    #[arg(long, value_parser = parse_scenario)]
    scenario: Option<Scenario>,
    /// The planted bug to run with
    #[arg(long)]
    bug: Option<String>,
    /// Show every line of the trace, not only its end
    #[arg(long)]
    full: bool,
}

#[derive(Debug, Args)]
struct PlantedArgs {
    /// Only bugs whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Threads; the number of cores if not given
    #[arg(long)]
    threads: Option<usize>,
}

fn parse_scenario(name: &str) -> Result<Scenario, String> {
    scenario::named(name).ok_or_else(|| {
        let names: Vec<&str> = scenario::ALL.iter().map(|scenario| scenario.name).collect();
        format!("there is no scenario {name}; there are {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    run::install_panic_hook();
    match cli.command {
        Command::Run(args) => run_seeds(&args),
        Command::Replay(args) => replay(&args),
        Command::Planted(args) => hunt(&args),
        Command::List => list(),
    }
}

fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).max(1)
}

fn run_seeds(args: &RunArgs) -> ExitCode {
    let batch = Batch {
        seeds: args.from..args.from.saturating_add(args.seeds),
        scenario: args.scenario,
        threads: threads(args.threads),
        bug: None,
        stop_at_violation: false,
        deadline: None,
    };
    let started = Instant::now();
    let mut told = Instant::now();
    let mut ended = 0;
    let mut failures = 0;
    let mut open = 0;
    let mut mended = Vec::new();
    let summary = batch::run(&batch, |report| {
        ended += 1;
        let verdict = findings::verdict(report);
        open += u64::from(verdict == Verdict::Open);
        mended.extend((verdict == Verdict::Mended).then_some(report.seed));
        if verdict == Verdict::Failed {
            failures += 1;
            match (failures <= FAILURES_TOLD, &report.violation) {
                (true, _) => tell_failure(report, None),
                (false, Some(violation)) => {
                    let brief: String = violation.to_string().chars().take(160).collect();
                    println!("seed {} of scenario {} failed: {brief}", report.seed, report.scenario);
                }
                (false, None) => {}
            }
        }
        if told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            println!("{ended} of {} seeds, {failures} failed", args.seeds);
        }
    });
    tell_summary(&summary, started.elapsed());
    let missing = tell_missing_marks(&summary);
    let full = args.seeds >= FULL_RUN_SEEDS && args.scenario.is_none();
    for seed in &mended {
        println!("seed {seed} recovers: take it off tests/simulator/open-findings.txt");
    }
    println!("{open} seeds are stuck as tests/simulator/open-findings.txt says");
    let failed = failures as u64 + mended.len() as u64;
    println!("{} passed, {failed} failed", summary.runs - failed - open);
    if failed == 0 && !(full && missing > 0) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell_failure(report: &Report, bug: Option<&str>) {
    let Some(violation) = &report.violation else { return };
    println!("seed {} of scenario {} failed: {violation}", report.seed, report.scenario);
    println!("  the end of its trace ({} lines, {}):", report.lines, report.digest);
    for line in &report.tail {
        println!("  | {line}");
    }
    println!("  replay: {}", replay_command(report, bug));
}

fn replay_command(report: &Report, bug: Option<&str>) -> String {
    let flags = if cfg!(basalt_planted) { "RUSTFLAGS='--cfg basalt_planted' " } else { "" };
    let bug = bug.map(|bug| format!(" --bug {bug}")).unwrap_or_default();
    format!(
        "{flags}cargo run --profile sim -p basalt-simulator -- replay --seed {} --scenario {}{bug}",
        report.seed, report.scenario
    )
}

fn tell_summary(summary: &Summary, wall: Duration) {
    let wall_s = wall.as_secs_f64().max(f64::EPSILON);
    let simulated_h = summary.simulated.as_secs_f64() / 3600.0;
    let faults: u64 = summary.faults.values().sum();
    println!(
        "{} seeds ({} run twice with equal traces) in {wall_s:.1} s: {} operations, {faults} faults, {simulated_h:.2} simulated hours",
        summary.runs, summary.twice, summary.operations
    );
    println!(
        "{:.0} seeds per minute, {:.1} simulated hours per hour",
        (summary.runs + summary.twice) as f64 * 60.0 / wall_s,
        simulated_h * 3600.0 / wall_s
    );
    let table = |entries: Vec<(&&str, &u64)>| {
        entries.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    };
    println!("scenarios: {}", table(summary.by_scenario.iter().collect()));
    println!("faults: {}", table(summary.faults.iter().collect()));
    println!("marks: {}", table(summary.marks.iter().collect()));
}

fn tell_missing_marks(summary: &Summary) -> usize {
    let missing: Vec<(&str, &str)> =
        catalogue::required().filter(|(name, _)| !summary.marks.contains_key(name)).collect();
    for (name, folder) in &missing {
        println!("mark not reached: {name} ({folder})");
    }
    missing.len()
}

fn replay(args: &ReplayArgs) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    if !plant(args.bug.as_deref()) {
        return ExitCode::FAILURE;
    }
    let seed = Seed(args.seed);
    let chosen = args.scenario.unwrap_or_else(|| scenario::of(seed));
    let report = run::run(chosen, seed, args.full);
    println!(
        "seed {} of scenario {}: {} lines, trace {}, {} operations, {} faults, {:.1} s simulated",
        report.seed,
        report.scenario,
        report.lines,
        report.digest,
        report.tally.operations,
        report.tally.faults_total(),
        report.tally.simulated.as_secs_f64()
    );
    for (mark, count) in &report.marks {
        println!("  mark {mark}: {count}");
    }
    for (kind, count) in &report.tally.faults {
        println!("  fault {kind}: {count}");
    }
    tell_failure(&report, args.bug.as_deref());
    if report.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(basalt_planted)]
fn plant(bug: Option<&str>) -> bool {
    basalt_clock::fault::plant(bug);
    true
}

#[cfg(not(basalt_planted))]
fn plant(bug: Option<&str>) -> bool {
    if bug.is_some() {
        eprintln!("this build holds no planted bugs: build with RUSTFLAGS='--cfg basalt_planted'");
    }
    bug.is_none()
}

fn hunt(args: &PlantedArgs) -> ExitCode {
    if !cfg!(basalt_planted) {
        eprintln!("this build holds no planted bugs: build with RUSTFLAGS='--cfg basalt_planted'");
        return ExitCode::FAILURE;
    }
    println!("{:<34} {:<24} {:<9} {:>5} {:>6}  noticed", "planted bug", "crate", "scenario", "seed", "seeds");
    let hunts = planted::hunt(args.only.as_deref(), threads(args.threads), |hunt| match &hunt.found {
        Some(found) => {
            let noticed: String = found.violation.to_string().chars().take(90).collect();
            println!(
                "{:<34} {:<24} {:<9} {:>5} {:>6}  {}",
                hunt.bug,
                hunt.owner,
                found.scenario,
                found.seed.0,
                found.seeds_needed,
                noticed.replace('\n', " ")
            );
        }
        None => println!("{:<34} {:<24} NOT FOUND", hunt.bug, hunt.owner),
    });
    let missed = hunts.iter().filter(|hunt| hunt.found.is_none()).count();
    println!("{} passed, {missed} failed", hunts.len() - missed);
    if missed == 0 && !hunts.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn list() -> ExitCode {
    for scenario in scenario::ALL {
        println!("scenario {}", scenario.name);
    }
    for (name, folder) in catalogue::MARKS {
        println!("mark {name} ({folder})");
    }
    for (name, folder) in catalogue::BUGS {
        println!("planted bug {name} ({folder})");
    }
    ExitCode::SUCCESS
}
