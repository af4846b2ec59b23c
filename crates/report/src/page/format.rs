//! Numbers and names as people read them. Used by both the page and the markdown.

use eval::{Estimate, MetricInfo, MetricValue, Verdict, WinRate};
use prune_core::audit::SetSize;

use crate::results::Outcome;

/// Three significant digits; a power of ten outside 0.001 to 100,000.
pub fn number(v: f64) -> String {
    let size = v.abs();
    if size == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e5).contains(&size) {
        return format!("{v:.2e}");
    }
    let digits = (2 - size.log10().floor() as i32).max(0) as usize;
    format!("{v:.digits$}")
}

/// `mean ± se`, the standard error to two significant digits and the mean to the same decimal place.
pub fn plus_minus(mean: f64, se: Option<f64>) -> String {
    let Some(se) = se.filter(|se| *se > 0.0) else { return number(mean) };
    if mean.abs().max(se) < 1e-3 || mean.abs() >= 1e5 {
        return format!("{mean:.2e} ± {se:.0e}");
    }
    let digits = (1 - se.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{mean:.digits$} ± {se:.digits$}")
}

/// A count with a unit of thousands: `2.57 B`, `6.12 M`, `45.3 K`, `812`.
pub fn count(n: u64) -> String {
    scaled(n as f64, &[(1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")])
}

/// Multiply-accumulates: `6.76 T`, `803 G`, `45.3 M`.
pub fn macs(n: u64) -> String {
    scaled(n as f64, &[(1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " K")])
}

/// Bytes, in powers of 1024.
pub fn bytes(n: u64) -> String {
    const KIB: f64 = 1024.0;
    scaled(n as f64, &[(KIB * KIB * KIB, " GiB"), (KIB * KIB, " MiB"), (KIB, " KiB")])
}

fn scaled(v: f64, units: &[(f64, &str)]) -> String {
    let unit = units.iter().find(|(size, _)| v >= *size);
    unit.map_or_else(|| format!("{v:.0}"), |(size, name)| format!("{}{name}", number(v / size)))
}

/// `2 h 03 min`, `4 min 07 s`, `12.3 s`, `45.1 ms`.
pub fn seconds(s: f64) -> String {
    let whole = s.round() as u64;
    match whole {
        3600.. => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        60.. => format!("{} min {:02} s", whole / 60, whole % 60),
        _ if s >= 1.0 => format!("{} s", number(s)),
        _ => format!("{} ms", number(s * 1000.0)),
    }
}

/// A share as per cent with one decimal.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// `part` of `whole` as per cent; `0.0 %` of nothing.
pub fn share(part: u64, whole: u64) -> String {
    percent(if whole == 0 { 0.0 } else { part as f64 / whole as f64 })
}

/// A metric's value in its unit.
pub fn in_unit(v: f64, metric: &MetricInfo) -> String {
    if metric.percent { percent(v) } else { number(v) }
}

/// `value [low, high]` in the metric's unit.
pub fn interval(e: &Estimate, metric: &MetricInfo) -> String {
    if metric.percent { percent_interval(e) } else { format!("{} [{}, {}]", number(e.value), number(e.low), number(e.high)) }
}

/// `value [low, high] %` of shares.
pub fn percent_interval(e: &Estimate) -> String {
    // What rounds to zero has no sign.
    let [value, low, high] =
        [e.value, e.low, e.high].map(|v| format!("{:.1}", 100.0 * v)).map(|t| if t == "-0.0" { "0.0".into() } else { t });
    format!("{value} [{low}, {high}] %")
}

/// What became of a metric beside the teacher: its relative decline, or where it has none the gain in its own unit.
pub fn decline(value: &MetricValue, metric: &MetricInfo) -> String {
    match (&value.decline, &value.gain) {
        (Some(decline), _) => percent_interval(decline),
        (None, Some(gain)) => format!("gain {}", interval(gain, metric)),
        (None, None) => "–".into(),
    }
}

/// How often the first was better, and how often both were equal.
pub fn wins(w: &WinRate) -> String {
    format!("{}, ties {}", percent(w.rate - w.ties / 2.0), percent(w.ties))
}

/// A verdict in words.
pub fn verdict(v: Verdict) -> &'static str {
    match v {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::NotShown => "no difference shown",
    }
}

/// An outcome in words.
pub fn outcome(o: Outcome) -> &'static str {
    match o {
        Outcome::Held => "held",
        Outcome::Partly => "held in part",
        Outcome::Failed => "did not hold",
        Outcome::Open => "not decided",
    }
}

/// What sets were drawn for, in words.
pub fn set_size(size: SetSize) -> String {
    match size {
        SetSize::Layers(1) => "1 layer".into(),
        SetSize::Layers(n) => format!("{n} layers"),
        SetSize::ParamsRatio(ratio) => format!("ratio {ratio}"),
        SetSize::NearOptimal(ratio) => format!("the best plans at ratio {ratio}"),
        other => other.stratum(),
    }
}

/// A layer kind in words; the only place where a kind gets another name.
pub fn kind(kind: &str) -> &str {
    match kind {
        "resnet" => "ResNet",
        "self_attention" => "self-attention",
        "cross_attention" => "cross-attention",
        "feed_forward" => "feed-forward",
        "transformer_block" => "transformer block",
        "transformer2d" => "transformer",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rounds_to_zero_has_no_sign() {
        let e = Estimate { value: -0.0001, se: 0.0, low: -0.021, high: 0.0004 };
        assert_eq!(percent_interval(&e), "0.0 [-2.1, 0.0] %");
    }

    #[test]
    fn numbers_are_short() {
        let told = [0.0, 1234.5, 12.345, 0.012345, -0.5, 1.2e-5, 2.0e6].map(number);
        assert_eq!(told, ["0", "1234", "12.3", "0.0123", "-0.500", "1.20e-5", "2.00e6"]);
        assert_eq!([count(2_567_463_684), count(45_300), count(7)], ["2.57 B", "45.3 K", "7"]);
        assert_eq!([macs(803_000_000_000), bytes(3 << 20)], ["803 G", "3.00 MiB"]);
        assert_eq!([7400.0, 247.0, 12.34, 0.0451].map(seconds), ["2 h 03 min", "4 min 07 s", "12.3 s", "45.1 ms"]);
        assert_eq!([plus_minus(0.12345, Some(0.0042)), plus_minus(31.0, None)], ["0.1235 ± 0.0042", "31.0"]);
        assert_eq!(share(1, 3), "33.3 %");
    }
}
