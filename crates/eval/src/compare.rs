//! From per-prompt values to the rows of the results: values, declines, win rates, verdicts, and direct comparisons. Evaluation stage.

use crate::error::{Error, Result};
use crate::file::{Comparison, MetricInfo, MetricValue, PerPrompt};
use crate::stats::{Bootstrap, Estimate, Verdict, win_rate};

/// One U-Net's value of one metric, compared with the teacher on the same prompts; `teacher` is none for the teacher itself.
///
/// The verdict is that of the paired difference, so it exists even where the teacher's mean is zero and a decline does not.
///
/// # Errors
/// [`Error::Input`] when `table` lacks the U-Net, the teacher or the metric; else as [`Bootstrap::estimate`].
pub fn metric_value(
    table: &PerPrompt,
    metric: &MetricInfo,
    unet: &str,
    teacher: Option<&str>,
    bootstrap: &Bootstrap,
) -> Result<MetricValue> {
    let own = values(table, unet, &metric.id)?;
    let mut row = MetricValue {
        metric: metric.id.clone(),
        value: bootstrap.mean(own)?,
        n: own.len(),
        decline: None,
        gain: None,
        wins: None,
        verdict: None,
    };
    if let Some(teacher) = teacher {
        let theirs = values(table, teacher, &metric.id)?;
        if metric.ratio_scale {
            row.decline = bootstrap.relative_decline(theirs, own, metric.higher_is_better)?;
        }
        row.wins = Some(win_rate(own, theirs, metric.higher_is_better)?);
        let gain = gain(own, theirs, metric, bootstrap)?;
        row.verdict = Some(Verdict::of_gain(&gain));
        row.gain = Some(gain);
    }
    Ok(row)
}

/// `a` against `b` on one metric, paired by prompt.
///
/// # Errors
/// As [`metric_value`].
pub fn compare(table: &PerPrompt, metric: &MetricInfo, a: &str, b: &str, bootstrap: &Bootstrap) -> Result<Comparison> {
    let (of_a, of_b) = (values(table, a, &metric.id)?, values(table, b, &metric.id)?);
    let gain = gain(of_a, of_b, metric, bootstrap)?;
    let wins = Some(win_rate(of_a, of_b, metric.higher_is_better)?);
    Ok(Comparison { a: a.into(), b: b.into(), metric: metric.id.clone(), gain, wins, verdict: Verdict::of_gain(&gain) })
}

fn gain(a: &[f64], b: &[f64], metric: &MetricInfo, bootstrap: &Bootstrap) -> Result<Estimate> {
    if metric.higher_is_better { bootstrap.difference(a, b) } else { bootstrap.difference(b, a) }
}

fn values<'a>(table: &'a PerPrompt, unet: &str, metric: &str) -> Result<&'a [f64]> {
    let got = table.values.get(unet).and_then(|m| m.get(metric));
    got.map(Vec::as_slice).ok_or_else(|| Error::input(unet, format!("one value of `{metric}` per prompt"), "none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> PerPrompt {
        let mut table = PerPrompt::new((0..40).map(|i| format!("prompt {i}")).collect());
        let teacher: Vec<f64> = (0..40).map(|i| 30.0 + (i % 7) as f64).collect();
        let student: Vec<f64> = teacher.iter().enumerate().map(|(i, v)| v - 1.0 - (i % 3) as f64 / 2.0).collect();
        for (unet, values) in [("teacher", teacher), ("student", student)] {
            table.values.entry(unet.into()).or_default().insert("m".into(), values.clone());
            table.values.entry(unet.into()).or_default().insert("zero".into(), values.iter().map(|_| 0.0).collect());
        }
        table
    }

    fn metric(id: &str, higher_is_better: bool) -> MetricInfo {
        MetricInfo { id: id.into(), label: id.into(), higher_is_better, percent: false, ratio_scale: true, description: String::new() }
    }

    #[test]
    fn a_worse_student_is_told_so_in_both_directions() {
        let boot = Bootstrap::standard(3);
        let row = metric_value(&table(), &metric("m", true), "student", Some("teacher"), &boot).unwrap();
        assert_eq!(row.verdict, Some(Verdict::Worse));
        assert!(row.decline.unwrap().low > 0.0);
        assert_eq!(row.wins.unwrap().rate, 0.0);
        let row = metric_value(&table(), &metric("m", false), "student", Some("teacher"), &boot).unwrap();
        assert_eq!(row.verdict, Some(Verdict::Better));
        assert!(row.decline.unwrap().high < 0.0);
        let row = compare(&table(), &metric("m", true), "teacher", "student", &boot).unwrap();
        assert_eq!((row.verdict, row.wins.unwrap().rate), (Verdict::Better, 1.0));
    }

    #[test]
    fn a_teacher_of_zero_has_no_decline_but_a_verdict() {
        let row = metric_value(&table(), &metric("zero", true), "student", Some("teacher"), &Bootstrap::standard(3)).unwrap();
        assert_eq!((row.decline, row.verdict), (None, Some(Verdict::NotShown)));
    }

    #[test]
    fn no_loss_is_ever_called_a_gain_whatever_the_scores_zero_is() {
        let boot = Bootstrap::standard(3);
        let mut table = PerPrompt::new((0..30).map(|i| format!("prompt {i}")).collect());
        let teacher: Vec<f64> = (0..30).map(|i| f64::from(i % 5) / 10.0).collect();
        for (mean, loss) in [(-3.4, 1.7), (-3.4, -1.7), (-0.19, 0.42), (-0.02, 0.3), (0.02, 0.3), (0.0, -0.3), (20.0, 0.8), (20.0, -0.8)] {
            let of = |shift: f64| teacher.iter().map(|v| v - 0.2 + shift).collect::<Vec<f64>>();
            for (unet, values) in [("teacher", of(mean)), ("student", of(mean - loss))] {
                table.values.entry(unet.into()).or_default().insert("m".into(), values);
            }
            for ratio_scale in [true, false] {
                let metric = MetricInfo { ratio_scale, ..metric("m", true) };
                let row = metric_value(&table, &metric, "student", Some("teacher"), &boot).unwrap();
                let expected = if loss > 0.0 { Verdict::Worse } else { Verdict::Better };
                assert_eq!(row.verdict, Some(expected), "teacher {mean}, loss {loss}");
                let gain = row.gain.unwrap();
                assert!((gain.value + loss).abs() < 1e-9 && Verdict::of_gain(&gain) == expected, "{gain:?}");
                assert_eq!(row.decline.is_some(), ratio_scale && mean == 20.0, "teacher {mean}");
                assert!(row.decline.is_none_or(|d| Verdict::of_gain(&d.negated()) == expected && (d.value - loss / 20.0).abs() < 1e-9));
            }
        }
    }

    #[test]
    fn the_teacher_is_compared_with_nothing_and_missing_values_are_named() {
        let row = metric_value(&table(), &metric("m", true), "teacher", None, &Bootstrap::standard(3)).unwrap();
        assert_eq!((row.decline, row.verdict, row.n), (None, None, 40));
        let err = metric_value(&table(), &metric("other", true), "student", None, &Bootstrap::standard(3)).unwrap_err();
        assert!(err.to_string().contains("`other`"), "{err}");
    }
}
