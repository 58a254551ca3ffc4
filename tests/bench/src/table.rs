//! Rows of results.

use serde::Serialize;

use crate::bars::Bar;
use crate::ratio::{Ratio, median};
use crate::subject::{Figures, Work};

/// One kind of work: medians of each subject, and ratios of the pairs.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    target: Figures,
    exchange: Figures,
    other: Option<Figures>,
    /// Commands to bare exchanges, busy time beyond theirs, commands and mean latency to those of the other target.
    bars: Vec<Bar>,
}

impl Row {
    /// Of the runs of target, exchange and other target.
    pub(crate) fn of(work: &Work, runs: &[Vec<Figures>; 3]) -> Self {
        let [target, exchange, other] = runs;
        let mut bars = Vec::new();
        if !work.has_digests() {
            let ratio = Ratio::of(&pairs(target, exchange, |run| run.per_second));
            bars.extend(ratio.map(|ratio| Bar::at_least("to the exchange", ratio, 0.6)));
        }
        if work.is_deep() {
            let beyond = Ratio::of_differences(&pairs(target, exchange, |run| run.busy_ns));
            bars.extend(beyond.map(|beyond| Bar::at_most("busy ns beyond it", beyond, 400.0)));
        }
        bars.extend(bars_to_other(work, target, other));
        Self {
            name: work.name(),
            target: medians(target),
            exchange: medians(exchange),
            other: (!other.is_empty()).then(|| medians(other)),
            bars,
        }
    }
}

/// The bars that name another target, as far as it was measured.
pub(crate) fn bars_to_other(work: &Work, ours: &[Figures], theirs: &[Figures]) -> Vec<Bar> {
    let commands = Ratio::of(&pairs(ours, theirs, |run| run.per_second));
    let latency = Ratio::of(&pairs(ours, theirs, |run| run.mean_us));
    let commands =
        commands.zip(work.bar_to_other()).map(|(ratio, bar)| Bar::at_least("commands", ratio, bar));
    let latency =
        latency.zip(work.latency_bar_to_other()).map(|(ratio, bar)| Bar::at_most("mean latency", ratio, bar));
    commands.into_iter().chain(latency).collect()
}

fn pairs(ours: &[Figures], theirs: &[Figures], of: fn(&Figures) -> f64) -> Vec<(f64, f64)> {
    ours.iter().zip(theirs).map(|(ours, theirs)| (of(ours), of(theirs))).collect()
}

pub(crate) fn medians(runs: &[Figures]) -> Figures {
    let of = |field: fn(&Figures) -> f64| {
        let values: Vec<f64> = runs.iter().map(field).collect();
        median(&values).unwrap_or_default()
    };
    Figures {
        per_second: of(|run| run.per_second),
        mib_per_second: of(|run| run.mib_per_second),
        mean_us: of(|run| run.mean_us),
        p50_us: of(|run| run.p50_us),
        p99_us: of(|run| run.p99_us),
        p999_us: of(|run| run.p999_us),
        busy_ns: of(|run| run.busy_ns),
    }
}

/// Prints a row and its bars, under a heading if it is the first.
pub(crate) fn print_row(row: &Row, first: bool) {
    if first {
        println!(
            "{:28} {:>9} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9} {:>9}",
            "", "IOPS", "MiB/s", "mean us", "p50", "p99", "p99.9", "busy ns", "exchanges", "other"
        );
    }
    let ours = &row.target;
    println!(
        "{:28} {:>9.0} {:>7.0} {:>7.1} {:>7.1} {:>7.1} {:>7.1} {:>7.0} {:>9.0} {:>9}",
        row.name,
        ours.per_second,
        ours.mib_per_second,
        ours.mean_us,
        ours.p50_us,
        ours.p99_us,
        ours.p999_us,
        ours.busy_ns,
        row.exchange.per_second,
        row.other.map_or_else(|| "-".to_owned(), |other| format!("{:.0}", other.per_second)),
    );
    row.bars.iter().for_each(|bar| println!("    {bar}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_compares_pairs_and_leaves_out_who_was_not_measured() {
        let run = |per_second, busy_ns| Figures { per_second, busy_ns, ..Figures::default() };
        let runs = [vec![run(60.0, 900.0); 3], vec![run(100.0, 700.0); 3], Vec::new()];
        let row = Row::of(&Work::ALL[0], &runs);
        assert_eq!(row.bars[0].measured(), Ratio { median: 0.6, low: 0.6, high: 0.6 });
        assert!((row.bars[1].measured().median - 200.0).abs() < 1e-9);
        assert!(row.other.is_none() && row.bars.len() == 2 && row.bars.iter().all(Bar::pass));
    }

    #[test]
    fn every_work_without_digests_has_a_bar_to_the_other_target() {
        let run = Figures { per_second: 1.0, mean_us: 1.0, ..Figures::default() };
        for work in Work::ALL {
            let bars = bars_to_other(work, &[run; 3], &[run; 3]);
            assert_eq!(bars.len(), usize::from(!work.has_digests()), "{}", work.name());
        }
    }
}
