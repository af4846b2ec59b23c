//! Statistics of paired comparison: all that turns per-prompt values into statements with an uncertainty. Evaluation stage.
//!
//! Teacher and students draw the same prompts from the same noise, so every comparison is paired: a resample draws prompts and
//! takes all models' values of the drawn prompts together (Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13,
//! the percentile interval). All comparisons with one [`Bootstrap`] use the very same resamples.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// An estimate with its standard error and percentile interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The value computed from the sample itself.
    pub value: f64,
    /// Standard error.
    pub se: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

impl Estimate {
    /// The same with the other sign.
    pub(crate) fn negated(&self) -> Self {
        Self { value: -self.value, se: self.se, low: -self.high, high: -self.low }
    }

    /// True when zero lies outside the interval.
    pub fn excludes_zero(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

/// What an interval of "student minus teacher" (or of a decline) says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The interval excludes zero on the good side.
    Better,
    /// The interval excludes zero on the bad side.
    Worse,
    /// The interval contains zero: these data show no difference.
    NotShown,
}

impl Verdict {
    /// The verdict of an interval whose positive side is good.
    pub fn of_gain(gain: &Estimate) -> Verdict {
        match (gain.low > 0.0, gain.high < 0.0) {
            (true, _) => Verdict::Better,
            (_, true) => Verdict::Worse,
            _ => Verdict::NotShown,
        }
    }

    /// The verdict for people.
    pub fn words(self) -> &'static str {
        match self {
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::NotShown => "no significant difference",
        }
    }
}

/// How often one model beats another on the same prompt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WinRate {
    /// Share of prompts on which the first is better, in 0..=1; a tie counts one half.
    pub rate: f64,
    /// Share of prompts on which both are equal.
    pub ties: f64,
}

/// The settings of the bootstrap; written into the results so that every interval can be computed again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Number of resamples.
    pub resamples: usize,
    /// Level of the two-sided interval, in 0..1.
    pub level: f64,
    /// Seed of the ChaCha8 generator that draws the prompts.
    pub seed: u64,
}

impl Bootstrap {
    /// The default of all reports: 4,000 resamples at 95 %.
    pub fn standard(seed: u64) -> Self {
        Self { resamples: 4000, level: 0.95, seed }
    }

    /// The estimate of `statistic` over `n` prompts.
    ///
    /// `statistic` gets the drawn prompt indices (length `n`, with repetition) and returns one number; it is called once
    /// with `0..n` and then once per resample. The standard error is the standard deviation over the resamples.
    ///
    /// # Errors
    /// [`Error::Input`] for `n` = 0, no resamples or a level outside 0..1; [`Error::NotFinite`] when the statistic is not finite
    /// on the sample, or on one of the resamples.
    pub fn estimate(&self, n: usize, mut statistic: impl FnMut(&[usize]) -> f64) -> Result<Estimate> {
        if n == 0 {
            return Err(Error::input("values", "at least one prompt", "none"));
        }
        if self.resamples < 2 || !(self.level > 0.0 && self.level < 1.0) {
            return Err(Error::input(
                "bootstrap",
                "at least 2 resamples and a level between 0 and 1",
                format!("{} resamples, level {}", self.resamples, self.level),
            ));
        }
        let mut drawn: Vec<usize> = (0..n).collect();
        let value = statistic(&drawn);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut resampled = Vec::with_capacity(self.resamples);
        for _ in 0..self.resamples {
            drawn.fill_with(|| rng.random_range(0..n as u64) as usize);
            resampled.push(statistic(&drawn));
        }
        if !value.is_finite() || resampled.iter().any(|v| !v.is_finite()) {
            return Err(Error::NotFinite {
                what: "a bootstrapped statistic".into(),
                hint: "a ratio whose denominator can become zero has no interval; use more prompts".into(),
            });
        }
        let se = std_dev(&resampled);
        resampled.sort_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        Ok(Estimate { value, se, low: quantile(&resampled, tail), high: quantile(&resampled, 1.0 - tail) })
    }

    /// The mean of one value per prompt.
    ///
    /// # Errors
    /// As [`Bootstrap::estimate`].
    pub fn mean(&self, values: &[f64]) -> Result<Estimate> {
        self.estimate(values.len(), |drawn| mean_at(values, drawn))
    }

    /// The mean of `a - b`, paired by prompt.
    ///
    /// # Errors
    /// [`Error::Input`] when the lengths differ; else as [`Bootstrap::estimate`].
    pub fn difference(&self, a: &[f64], b: &[f64]) -> Result<Estimate> {
        same_length(a, b)?;
        self.estimate(a.len(), |drawn| mean_at(a, drawn) - mean_at(b, drawn))
    }

    /// The relative decline `(teacher - student) / teacher` of the means, paired by prompt; for a metric of which less is better
    /// (`higher_is_better` false) the sign is turned, so that a positive decline is always a loss. None where the teacher's mean is not
    /// clearly above zero in every resample: a share of what may be nothing, or below, says nothing.
    ///
    /// # Errors
    /// [`Error::Input`] when the lengths differ, [`Error::NotFinite`] for a value that is not finite.
    pub fn relative_decline(&self, teacher: &[f64], student: &[f64], higher_is_better: bool) -> Result<Option<Estimate>> {
        same_length(teacher, student)?;
        let mut means = Vec::with_capacity(self.resamples + 1);
        let whole = self.estimate(teacher.len(), |drawn| {
            means.push(mean_at(teacher, drawn));
            means[means.len() - 1]
        })?;
        if !is_clearly_positive(whole.value, &means) {
            return Ok(None);
        }
        let sign = if higher_is_better { 1.0 } else { -1.0 };
        let decline = self.estimate(teacher.len(), |drawn| {
            let t = mean_at(teacher, drawn);
            sign * (t - mean_at(student, drawn)) / t
        })?;
        Ok(Some(decline))
    }

    /// A ratio of sums `sum(hits) / sum(totals)`, where prompt `i` brings `totals[i]` questions: resampled by prompt, because the
    /// questions of one image are not independent.
    ///
    /// # Errors
    /// [`Error::Input`] when the lengths differ, [`Error::NotFinite`] when a resample holds no question.
    pub fn ratio(&self, hits: &[f64], totals: &[f64]) -> Result<Estimate> {
        same_length(hits, totals)?;
        self.estimate(hits.len(), |drawn| mean_at(hits, drawn) / mean_at(totals, drawn))
    }
}

/// Whether a quantity can be divided by: it and all its resamples are above zero by a tenth of it.
pub(crate) fn is_clearly_positive(value: f64, resampled: &[f64]) -> bool {
    value > 0.0 && resampled.iter().all(|v| *v >= 0.1 * value)
}

/// The arithmetic mean; NaN for no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The sample standard deviation (divisor n - 1); zero for fewer than two values.
pub fn std_dev(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let m = mean(values);
    (values.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

/// The standard error of the mean, `std_dev / sqrt(n)`.
pub fn standard_error(values: &[f64]) -> f64 {
    std_dev(values) / (values.len() as f64).sqrt()
}

/// The `q`-quantile of ascending `sorted` values, linear between order statistics (numpy's default, type 7 of Hyndman and Fan).
/// NaN for no values.
pub fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - below as f64)
}

/// How often `a` is better than `b` on the same prompt.
///
/// # Errors
/// [`Error::Input`] when the lengths differ or there is no prompt.
pub fn win_rate(a: &[f64], b: &[f64], higher_is_better: bool) -> Result<WinRate> {
    same_length(a, b)?;
    if a.is_empty() {
        return Err(Error::input("values", "at least one prompt", "none"));
    }
    let ties = a.iter().zip(b).filter(|(x, y)| x == y).count() as f64;
    let wins = a.iter().zip(b).filter(|(x, y)| if higher_is_better { x > y } else { x < y }).count() as f64;
    let n = a.len() as f64;
    Ok(WinRate { rate: (wins + ties / 2.0) / n, ties: ties / n })
}

/// The means of `values` by group, groups in ascending order: several images of one prompt become one value, because they are
/// not independent draws of a prompt.
///
/// # Errors
/// [`Error::Input`] when the lengths differ.
pub fn group_means(values: &[f64], groups: &[usize]) -> Result<Vec<f64>> {
    if values.len() != groups.len() {
        return Err(Error::input("groups", format!("{} entries", values.len()), groups.len().to_string()));
    }
    let mut sums: std::collections::BTreeMap<usize, (f64, usize)> = std::collections::BTreeMap::new();
    for (value, group) in values.iter().zip(groups) {
        let entry = sums.entry(*group).or_insert((0.0, 0));
        entry.0 += value;
        entry.1 += 1;
    }
    Ok(sums.into_values().map(|(sum, n)| sum / n as f64).collect())
}

fn mean_at(values: &[f64], drawn: &[usize]) -> f64 {
    drawn.iter().map(|&i| values[i]).sum::<f64>() / drawn.len() as f64
}

fn same_length(a: &[f64], b: &[f64]) -> Result<()> {
    if a.len() == b.len() { Ok(()) } else { Err(Error::input("values", format!("{} per model", a.len()), b.len().to_string())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: Bootstrap = Bootstrap { resamples: 4000, level: 0.95, seed: 11 };

    fn ramp(n: usize) -> Vec<f64> {
        (0..n).map(|i| ((i * 37) % 101) as f64 / 10.0 + 20.0).collect()
    }

    #[test]
    fn mean_interval_is_close_to_the_normal_one() {
        let values = ramp(200);
        let got = BOOT.mean(&values).unwrap();
        let se = standard_error(&values);
        assert_eq!(got.value, mean(&values));
        // The bootstrap's own noise at 4,000 resamples is about 1 % of the standard error, and the percentile ends about 3 %.
        assert!((got.se - se).abs() < 0.05 * se, "{got:?} against {se}");
        assert!((got.low - (got.value - 1.96 * se)).abs() < 0.15 * se, "{got:?}");
        assert!((got.high - (got.value + 1.96 * se)).abs() < 0.15 * se, "{got:?}");
    }

    #[test]
    fn intervals_cover_the_truth_about_as_often_as_they_say() {
        // Uniform values with mean 0.5; 300 trials of 40 prompts. The percentile interval is known to be a little short.
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let boot = Bootstrap { resamples: 300, level: 0.9, seed: 1 };
        let covered = (0..300).filter(|_| {
            let values: Vec<f64> = (0..40).map(|_| rng.random_range(0.0..1.0)).collect();
            let got = boot.mean(&values).unwrap();
            got.low <= 0.5 && 0.5 <= got.high
        });
        let share = covered.count() as f64 / 300.0;
        assert!((0.83..=0.95).contains(&share), "{share} of the 90 % intervals");
    }

    #[test]
    fn the_same_seed_gives_the_same_bits_and_another_seed_does_not() {
        let values = ramp(50);
        let again = BOOT.mean(&values).unwrap();
        assert_eq!(BOOT.mean(&values).unwrap(), again);
        assert_ne!(Bootstrap { seed: 12, ..BOOT }.mean(&values).unwrap().low, again.low);
    }

    #[test]
    fn pairing_removes_the_noise_that_both_models_share() {
        let teacher = ramp(100);
        let student: Vec<f64> = teacher.iter().map(|v| v - 0.1).collect();
        let paired = BOOT.difference(&student, &teacher).unwrap();
        assert!(paired.se < 1e-12 && (paired.value + 0.1).abs() < 1e-12, "{paired:?}");
        assert!(BOOT.mean(&teacher).unwrap().se > 0.1);
        assert_eq!(Verdict::of_gain(&paired), Verdict::Worse);
    }

    #[test]
    fn relative_decline_has_the_sign_of_a_loss_for_both_directions() {
        let teacher = vec![10.0; 8];
        let lower = vec![9.0; 8];
        let down = BOOT.relative_decline(&teacher, &lower, true).unwrap().unwrap();
        assert!((down.value - 0.1).abs() < 1e-12 && down.excludes_zero());
        let up = BOOT.relative_decline(&teacher, &lower, false).unwrap().unwrap();
        assert!((up.value + 0.1).abs() < 1e-12);
    }

    #[test]
    fn nothing_declines_from_a_teacher_at_or_below_zero() {
        let spread = |mean: f64, by: f64| (0..20).map(|i| mean + by * (f64::from(i) - 9.5)).collect::<Vec<f64>>();
        let of = |teacher: &[f64]| BOOT.relative_decline(teacher, &spread(1.0, 0.1), true).unwrap();
        for teacher in [vec![0.0; 20], spread(-3.4, 0.01), spread(-0.02, 0.1), spread(0.02, 0.1), spread(0.19, 0.2), spread(1e-3, 0.3)] {
            assert_eq!(of(&teacher), None, "{teacher:?}");
        }
        // All values above zero, most of them by little: a resample may miss the large one.
        let mut skewed = vec![1e-6; 20];
        skewed[7] = 5.0;
        assert_eq!(of(&skewed), None);
        assert!(of(&spread(2.0, 0.1)).is_some_and(|d| d.value > 0.0) && of(&spread(0.5, 0.01)).is_some_and(|d| d.value < 0.0));
        assert!(matches!(BOOT.relative_decline(&[f64::NAN, 1.0], &[1.0, 1.0], true), Err(Error::NotFinite { .. })));
    }

    #[test]
    fn ratio_of_sums_weighs_prompts_by_their_questions() {
        let got = BOOT.ratio(&[1.0, 4.0], &[1.0, 8.0]).unwrap();
        assert!((got.value - 5.0 / 9.0).abs() < 1e-12);
        assert!(got.low >= 0.5 - 1e-12 && got.high <= 1.0 + 1e-12);
    }

    #[test]
    fn verdict_needs_an_interval_without_zero() {
        let at = |low, high| Verdict::of_gain(&Estimate { value: 0.0, se: 1.0, low, high });
        assert_eq!((at(0.1, 2.0), at(-2.0, -0.1), at(-1.0, 1.0)), (Verdict::Better, Verdict::Worse, Verdict::NotShown));
    }

    #[test]
    fn win_rate_counts_ties_half() {
        let rate = win_rate(&[1.0, 2.0, 3.0, 4.0], &[1.0, 1.0, 4.0, 0.0], true).unwrap();
        assert_eq!(rate, WinRate { rate: 0.625, ties: 0.25 });
        assert_eq!(win_rate(&[1.0, 2.0], &[2.0, 3.0], false).unwrap().rate, 1.0);
        assert!(win_rate(&[1.0], &[], true).is_err());
    }

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.5), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.25), 1.75);
        assert_eq!(quantile(&[7.0], 0.9), 7.0);
    }

    #[test]
    fn group_means_average_the_seeds_of_a_prompt() {
        assert_eq!(group_means(&[1.0, 3.0, 10.0], &[0, 0, 4]).unwrap(), vec![2.0, 10.0]);
    }

    #[test]
    fn bad_arguments_are_errors() {
        assert!(BOOT.mean(&[]).is_err());
        assert!(BOOT.difference(&[1.0], &[1.0, 2.0]).is_err());
        assert!(BOOT.mean(&[f64::NAN]).is_err());
        assert!(Bootstrap { level: 1.0, ..BOOT }.mean(&[1.0]).is_err());
    }
}
