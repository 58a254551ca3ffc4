//! The ratio of two things that were measured in pairs: the median, and how sure it is.

use serde::Serialize;

/// Resamples for the interval.
const RESAMPLES: usize = 2_000;

/// A median ratio with the interval that holds 95 % of its resamples (percentile bootstrap; Efron and Tibshirani, An Introduction to
/// the Bootstrap, chapter 13).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Ratio {
    /// Of pairs; none if there is no pair.
    pub(crate) fn of(pairs: &[(f64, f64)]) -> Option<Self> {
        Self::of_values(&pairs.iter().map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
    }

    /// Of the differences of pairs, in their unit.
    pub(crate) fn of_differences(pairs: &[(f64, f64)]) -> Option<Self> {
        Self::of_values(&pairs.iter().map(|(ours, theirs)| ours - theirs).collect::<Vec<_>>())
    }

    fn of_values(ratios: &[f64]) -> Option<Self> {
        let mut medians: Vec<f64> = (0..RESAMPLES as u64)
            .filter_map(|resample| {
                let drawn: Vec<f64> =
                    (0..ratios.len()).map(|draw| ratios[pick(resample, draw as u64, ratios.len())]).collect();
                median(&drawn)
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        Some(Self {
            median: median(ratios)?,
            low: *medians.get(RESAMPLES / 40)?,
            high: *medians.get(RESAMPLES - 1 - RESAMPLES / 40)?,
        })
    }
}

/// The middle value; the mean of the two in the middle where there are two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// Evenly spread draws that are the same in every run (SplitMix64).
fn pick(resample: u64, draw: u64, of: usize) -> usize {
    let mut z = (resample << 32 | draw).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((z ^ (z >> 31)) % of as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_median_and_narrows_when_pairs_agree() {
        let wide: Vec<(f64, f64)> = (1..=15).map(|n| (f64::from(n), 10.0)).collect();
        let ratio = Ratio::of(&wide).unwrap();
        assert!((ratio.median - 0.8).abs() < 1e-9);
        assert!(ratio.low < ratio.median && ratio.median < ratio.high, "{ratio:?}");
        assert!(ratio.low >= 0.1 && ratio.high <= 1.5, "{ratio:?}");
        let equal = Ratio::of(&[(3.0, 2.0); 15]).unwrap();
        assert_eq!(equal, Ratio { median: 1.5, low: 1.5, high: 1.5 });
        assert_eq!(Ratio::of(&[]), None);
    }

    #[test]
    fn the_median_of_an_even_number_is_between() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }
}
