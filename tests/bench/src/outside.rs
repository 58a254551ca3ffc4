//! Another load generator against our target and against another one, in pairs of runs, and its pair against ours.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use basalt_nvmf_transport::Nqn;
use serde::Serialize;

use crate::bars::Bar;
use crate::paused::Paused;
use crate::ratio::Ratio;
use crate::subject::{Figures, SUBSYSTEM, Served, Work};
use crate::table::{bars_to_other, medians};

/// The bar of our host with our target to the generator with the other target.
const PAIR_BAR: f64 = 2.0;

/// A program that is run as `PROGRAM read|write BYTES DEPTH QUEUES SECONDS`, DEPTH being that of all queues together, with the target in
/// the environment (PORT on 127.0.0.1 and NQN), and prints `IOPS=` and `mean_us=`.
#[derive(Debug)]
pub(crate) struct Generator(pub(crate) PathBuf);

/// The target that ours is compared with.
#[derive(Debug)]
pub(crate) struct Other {
    pub(crate) address: SocketAddr,
    pub(crate) subsystem: Nqn,
    pub(crate) pause: Option<Paused>,
}

/// One kind of work.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: String,
    /// Under the generator.
    target: Figures,
    other: Figures,
    /// Ours under our host, where a bar names it.
    pair: Option<Figures>,
    bars: Vec<Bar>,
}

impl Generator {
    fn run(&self, address: SocketAddr, subsystem: &str, work: &Work, duration: Duration) -> Result<Figures> {
        let kind = if work.reads() { "read" } else { "write" };
        let seconds = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
        let depth = u64::from(work.depth) * u64::from(work.queues);
        let numbers = [u64::from(work.bytes), depth, u64::from(work.queues), seconds];
        let output = Command::new(&self.0)
            .arg(kind)
            .args(numbers.map(|number| number.to_string()))
            .env("PORT", address.port().to_string())
            .env("NQN", subsystem)
            .output()
            .with_context(|| format!("cannot run {}", self.0.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "the generator failed: {}", complaint.trim());
        let per_second = field(&said, "IOPS")?;
        let mib_per_second = per_second * f64::from(work.bytes) / f64::from(1 << 20);
        Ok(Figures { per_second, mib_per_second, mean_us: field(&said, "mean_us")?, ..Figures::default() })
    }
}

/// The number behind `name=`.
pub(crate) fn field(text: &str, name: &str) -> Result<f64> {
    let mut words = text.split_whitespace();
    let value = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let number = value.and_then(|value| value.parse().ok());
    number.with_context(|| format!("no {name}= in what the program printed: {:?}", text.trim()))
}

/// One target has the core at a time.
pub(crate) fn measure(
    generator: &Path,
    other: &Other,
    work: &Work,
    pairs: u32,
    duration: Duration,
) -> Result<Row> {
    let generator = Generator(generator.to_owned());
    let (mut ours, mut theirs, mut pair) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..pairs {
        for own in if round % 2 == 0 { [true, false] } else { [false, true] } {
            if own {
                let served = Served::start()?;
                ours.push(generator.run(served.address(), SUBSYSTEM, work, duration)?);
                if work.is_deep() {
                    pair.push(served.subject().run(work, duration)?);
                }
            } else {
                let _turn = other.pause.as_ref().map(Paused::turn).transpose()?;
                theirs.push(generator.run(other.address, other.subsystem.as_str(), work, duration)?);
            }
        }
    }
    let mut bars = bars_to_other(work, &ours, &theirs);
    let both: Vec<_> = pair.iter().zip(&theirs).map(|(a, b)| (a.per_second, b.per_second)).collect();
    bars.extend(Ratio::of(&both).map(|ratio| Bar::at_least("pair to pair", ratio, PAIR_BAR)));
    let pair = (!pair.is_empty()).then(|| medians(&pair));
    Ok(Row { name: work.name(), target: medians(&ours), other: medians(&theirs), pair, bars })
}

pub(crate) fn print_row(row: &Row, first: bool) {
    if first {
        println!(
            "{:24} {:>9} {:>8} {:>9} {:>8} {:>9}",
            "", "IOPS", "mean us", "other", "mean us", "our pair"
        );
    }
    println!(
        "{:24} {:>9.0} {:>8.1} {:>9.0} {:>8.1} {:>9}",
        row.name,
        row.target.per_second,
        row.target.mean_us,
        row.other.per_second,
        row.other.mean_us,
        row.pair.map_or_else(|| "-".to_owned(), |pair| format!("{:.0}", pair.per_second)),
    );
    row.bars.iter().for_each(|bar| println!("    {bar}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generators_words_are_understood() {
        let said = "read bytes=4096 depth=128 IOPS=303000.5 MiB/s=1183 mean_us=421.2\n";
        assert_eq!(field(said, "IOPS").unwrap().to_bits(), 303_000.5_f64.to_bits());
        assert_eq!(field(said, "mean_us").unwrap().to_bits(), 421.2_f64.to_bits());
        assert!(field(said, "p99").is_err());
    }
}
