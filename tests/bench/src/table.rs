//! Rows of results.

use serde::Serialize;

use crate::ratio::{Ratio, median};
use crate::subject::Figures;

/// One kind of work: medians of each subject, and ratios of the pairs.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    target: Figures,
    exchange: Figures,
    /// Commands of the target to bare exchanges.
    to_exchange: Option<Ratio>,
    /// What the target's reactor is busy per command beyond the bare exchange.
    busy_beyond_exchange_ns: f64,
    other: Option<Figures>,
    /// Commands of the target to those of the other one.
    to_other: Option<Ratio>,
}

impl Row {
    /// Of the runs of target, exchange and other target.
    pub(crate) fn of(name: String, runs: &[Vec<Figures>; 3]) -> Self {
        let [target, exchange, other] = runs;
        let (ours, bare) = (medians(target), medians(exchange));
        Self {
            name,
            target: ours,
            exchange: bare,
            to_exchange: Ratio::of(&pairs(target, exchange)),
            busy_beyond_exchange_ns: ours.busy_ns - bare.busy_ns,
            other: (!other.is_empty()).then(|| medians(other)),
            to_other: Ratio::of(&pairs(target, other)),
        }
    }
}

fn pairs(ours: &[Figures], theirs: &[Figures]) -> Vec<(f64, f64)> {
    ours.iter().zip(theirs).map(|(ours, theirs)| (ours.per_second, theirs.per_second)).collect()
}

fn medians(runs: &[Figures]) -> Figures {
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

/// Prints a row, under a heading if it is the first.
pub(crate) fn print_row(row: &Row, first: bool) {
    if first {
        println!(
            "{:28} {:>9} {:>7} {:>7} {:>7} {:>7} {:>7} {:>7} {:>9} {:>18} {:>9} {:>18}",
            "",
            "IOPS",
            "MiB/s",
            "mean us",
            "p50",
            "p99",
            "p99.9",
            "busy ns",
            "exchanges",
            "ratio",
            "other",
            "ratio"
        );
    }
    let ours = &row.target;
    println!(
        "{:28} {:>9.0} {:>7.0} {:>7.1} {:>7.1} {:>7.1} {:>7.1} {:>7.0} {:>9.0} {:>18} {:>9} {:>18}",
        row.name,
        ours.per_second,
        ours.mib_per_second,
        ours.mean_us,
        ours.p50_us,
        ours.p99_us,
        ours.p999_us,
        ours.busy_ns,
        row.exchange.per_second,
        shown(row.to_exchange),
        row.other.map_or_else(|| "-".to_owned(), |other| format!("{:.0}", other.per_second)),
        shown(row.to_other)
    );
}

fn shown(ratio: Option<Ratio>) -> String {
    ratio.map_or_else(
        || "-".to_owned(),
        |Ratio { median, low, high }| format!("{median:.2} [{low:.2}, {high:.2}]"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_compares_pairs_and_leaves_out_who_was_not_measured() {
        let run = |per_second, busy_ns| Figures { per_second, busy_ns, ..Figures::default() };
        let runs = [vec![run(60.0, 900.0); 3], vec![run(100.0, 700.0); 3], Vec::new()];
        let row = Row::of("some".to_owned(), &runs);
        assert_eq!(row.to_exchange, Some(Ratio { median: 0.6, low: 0.6, high: 0.6 }));
        assert!((row.busy_beyond_exchange_ns - 200.0).abs() < 1e-9);
        assert!(row.other.is_none() && row.to_other.is_none());
    }
}
