//! What a setting of ours costs: the same load in pairs of runs, with it and without it.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::bars::Bar;
use crate::ratio::{Ratio, median};
use crate::subject::{Figures, Served, Work};

/// A setting, and the bar for what it may cost.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Setting {
    /// Header and data digests: at least 0.8 of the commands.
    Digests,
    /// A reactor that sleeps when there is nothing to do: at most 1.3 of the mean latency.
    Adaptive,
}

/// One setting under one kind of load.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    unit: &'static str,
    with: f64,
    without: f64,
    /// With the setting to without it.
    bar: Option<Bar>,
}

impl Setting {
    const ALL: [Self; 2] = [Self::Digests, Self::Adaptive];

    fn name(self) -> &'static str {
        match self {
            Self::Digests => "digests",
            Self::Adaptive => "adaptive",
        }
    }

    /// What is loaded: with the setting, and without.
    fn works(self) -> impl Iterator<Item = (Work, Work)> {
        Work::ALL.iter().copied().filter(move |work| !work.has_digests() && self.concerns(work)).map(
            move |work| match self {
                Self::Digests => (work.digested(), work),
                Self::Adaptive => (work, work),
            },
        )
    }

    fn concerns(self, work: &Work) -> bool {
        match self {
            Self::Digests => work.depth == 128,
            Self::Adaptive => work.depth == 1,
        }
    }

    fn judge(self, name: String, with: &[Figures], without: &[Figures]) -> Row {
        type Field = fn(&Figures) -> f64;
        let (unit, of): (_, Field) = match self {
            Self::Digests => ("commands/s", |run| run.per_second),
            Self::Adaptive => ("mean us", |run| run.mean_us),
        };
        let values = |runs: &[Figures]| runs.iter().map(of).collect::<Vec<_>>();
        let (with, without) = (values(with), values(without));
        let pairs: Vec<_> = with.iter().copied().zip(without.iter().copied()).collect();
        let bar = Ratio::of(&pairs).map(|ratio| match self {
            Self::Digests => Bar::at_least("ratio", ratio, 0.8),
            Self::Adaptive => Bar::at_most("ratio", ratio, 1.3),
        });
        let middle = |values: &[f64]| median(values).unwrap_or_default();
        Row { name, unit, with: middle(&with), without: middle(&without), bar }
    }
}

/// All settings under the loads that their bars name, in as many pairs of runs as wanted.
pub(crate) fn measure(only: &str, pairs: u32, duration: Duration) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for setting in Setting::ALL {
        for (with, without) in setting.works() {
            let name = format!("{}, {}", setting.name(), without.name());
            if !name.contains(only) {
                continue;
            }
            eprintln!("{pairs} x {} s each: {name}", duration.as_secs_f64());
            // One target at a time: one that never sleeps takes the core from the other.
            let run = |set: bool| -> Result<Figures> {
                let target = match setting {
                    Setting::Adaptive if set => Served::adaptive()?,
                    Setting::Adaptive | Setting::Digests => Served::start()?,
                };
                target.subject().run(if set { &with } else { &without }, duration)
            };
            let (mut runs_with, mut runs_without) = (Vec::new(), Vec::new());
            for pair in 0..pairs {
                for set in if pair % 2 == 0 { [true, false] } else { [false, true] } {
                    let runs = if set { &mut runs_with } else { &mut runs_without };
                    runs.push(run(set)?);
                }
            }
            rows.push(setting.judge(name, &runs_with, &runs_without));
        }
    }
    Ok(rows)
}

pub(crate) fn print(rows: &[Row]) {
    println!("{:36} {:>12} {:>12} {:>12}", "setting, work", "", "with", "without");
    for row in rows {
        let Some(bar) = &row.bar else { continue };
        println!("{:36} {:>12} {:>12.1} {:>12.1}   {bar}", row.name, row.unit, row.with, row.without);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_end_of_the_interval_is_judged() {
        let run = |per_second, mean_us| Figures { per_second, mean_us, ..Figures::default() };
        let judge = |setting: Setting, with: &[Figures], without: &[Figures]| {
            setting.judge(String::new(), with, without).bar.unwrap().pass()
        };
        let off = [run(100.0, 10.0); 15];
        assert!(judge(Setting::Digests, &[run(80.0, 10.0); 15], &off));
        assert!(!judge(Setting::Digests, &[run(79.0, 10.0); 15], &off));
        assert!(judge(Setting::Adaptive, &[run(100.0, 13.0); 15], &off));
        assert!(!judge(Setting::Adaptive, &[run(100.0, 13.1); 15], &off));
        let wide: Vec<Figures> = (0..15).map(|n| run(70.0 + 2.0 * f64::from(n), 10.0)).collect();
        assert!(!judge(Setting::Digests, &wide, &off), "the median reaches it, the interval does not");
    }

    #[test]
    fn every_setting_has_loads() {
        for setting in Setting::ALL {
            assert_eq!(setting.works().count(), 2, "{setting:?}");
        }
    }
}
