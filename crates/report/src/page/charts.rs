//! The report's charts, from rows of the results to SVG.

use std::collections::BTreeSet;

use eval::MetricInfo;
use prune_core::audit::SetSize;
use prune_core::table::Layer;

use super::format::{number, plus_minus, set_size};
use super::svg::{Area, Scale, Svg, tip};
use crate::results::{AuditPoint, BinTable, CriterionScores, DistillRun, LossPoint, Results};

/// Series number of a layer kind, the same in all charts and in the drawing's legend.
pub fn kind_series(kind: &str) -> usize {
    ["resnet", "self_attention", "cross_attention", "feed_forward", "transformer_block", "transformer2d"]
        .iter()
        .position(|k| *k == kind)
        .unwrap_or(6)
}

/// Scores in the order of execution with one standard error up and down; layers in `removed` are hollow.
pub fn layer_scores(scores: &CriterionScores, layers: &[Layer], removed: &BTreeSet<&str>) -> String {
    let area = Area { left: 62.0, right: 948.0, top: 26.0, bottom: 206.0 };
    let mut svg = Svg::new(960.0, 244.0, &format!("{} of every layer, in the order of execution", scores.label));
    let rows = || scores.values().iter().zip(scores.standard_errors()).map(|(mean, se)| (*mean, *se));
    let means = scores.values().iter().copied();
    let ends = rows().flat_map(|(mean, se)| [mean + se.unwrap_or(0.0), mean - se.unwrap_or(0.0)]);
    // Error bars may reach below zero where the means do not; then only the means set a logarithmic scale.
    let mut y = Scale::auto(means, area.bottom, area.top);
    if !y.is_log() {
        y = Scale::linear(ends, area.bottom, area.top);
    }
    let x = stages(&mut svg, layers, area, true);
    svg.axes(area, None, &y, "stage", &scores.label);
    if y.ends().0 < 0.0 {
        svg.line("zero", [area.left, y.at(0.0)], [area.right, y.at(0.0)]);
    }
    for (i, (layer, (mean, se))) in layers.iter().zip(rows()).enumerate() {
        let series = kind_series(&layer.kind);
        if let Some(se) = se {
            svg.error_bar(series, x(i), y.at(mean + se), y.at(mean - se));
        }
        let gone = removed.contains(layer.id.as_str());
        let told = format!("{}\n{}{}", layer.id, plus_minus(mean, se), if gone { "\nremoved" } else { "" });
        svg.marker(series, if gone { "hollow" } else { "" }, [x(i), y.at(mean)], &told);
    }
    svg.finish()
}

/// Draws a band for every other stage, named below when `named`; gives the middle of each layer's column.
fn stages(svg: &mut Svg, layers: &[Layer], area: Area, named: bool) -> impl Fn(usize) -> f64 + use<> {
    let width = (area.right - area.left) / layers.len().max(1) as f64;
    let mut start = 0;
    for (band, run) in layers.chunk_by(|a, b| a.stage == b.stage).enumerate() {
        let (from, wide) = (area.left + start as f64 * width, run.len() as f64 * width);
        if band % 2 == 1 {
            svg.rect("band", [from, area.top], [wide, area.bottom - area.top]);
        }
        if named {
            let mut name = run[0].stage.replace("_blocks.", " ").replace("_block", "");
            if wide < 44.0 {
                // Too narrow for the word: `d0`, `m`, `u2`.
                name = name.chars().take(1).chain(name.chars().filter(char::is_ascii_digit)).collect();
            }
            svg.text("tick", "middle", [from + wide / 2.0, area.bottom + 14.0], &name);
        }
        start += run.len();
    }
    move |i| area.left + (i as f64 + 0.5) * width
}

/// Scores by layer, one panel per timestep bin from little noise to much, all on one scale; bars are one standard error.
pub fn layer_bins(scores: &CriterionScores, bins: &BinTable, layers: &[Layer], removed: &BTreeSet<&str>) -> String {
    const HIGH: f64 = 92.0;
    let top = |bin: usize| 26.0 + (HIGH + 34.0) * bin as f64;
    let count = bins.bins.len();
    let mut svg = Svg::new(960.0, top(count) + 14.0, &format!("{} of every layer by timestep bin", scores.label));
    let means = bins.means.iter().flatten().flatten().copied();
    for (bin, [first, last]) in bins.bins.iter().enumerate() {
        let area = Area { left: 62.0, right: 948.0, top: top(bin), bottom: top(bin) + HIGH };
        let mut y = Scale::auto(means.clone(), area.bottom, area.top);
        if !y.is_log() {
            let ends = bins.means.iter().enumerate().flat_map(|(i, row)| {
                let ends = move |(b, v): (usize, &Option<f64>)| {
                    Some([v.as_ref()? - bins.standard_errors[i][b].unwrap_or(0.0), v.as_ref()? + bins.standard_errors[i][b].unwrap_or(0.0)])
                };
                row.iter().enumerate().filter_map(ends).flatten()
            });
            y = Scale::linear(ends, area.bottom, area.top);
        }
        let x = stages(&mut svg, layers, area, bin + 1 == count);
        svg.axes(area, None, &y, if bin + 1 == count { "stage" } else { "" }, &format!("{}, t {first}–{last}", scores.label));
        for (i, layer) in layers.iter().enumerate() {
            let Some(mean) = bins.means.get(i).and_then(|row| row[bin]) else { continue };
            let (series, se) = (kind_series(&layer.kind), bins.standard_errors[i][bin]);
            if let Some(se) = se {
                svg.error_bar(series, x(i), y.at(mean + se), y.at(mean - se));
            }
            let gone = removed.contains(layer.id.as_str());
            let told = format!("{}\nt {first}–{last}: {}{}", layer.id, plus_minus(mean, se), if gone { "\nremoved" } else { "" });
            svg.marker(series, if gone { "hollow" } else { "" }, [x(i), y.at(mean)], &told);
        }
    }
    svg.finish()
}

/// Predicted against measured joint values of sets: one series per size of random sets, and one for all near-optimal ones; returns
/// the SVG and the names of the series.
pub fn additivity(points: &[AuditPoint], label: &str) -> (String, Vec<String>) {
    let area = Area { left: 56.0, right: 348.0, top: 26.0, bottom: 266.0 };
    let mut svg = Svg::new(374.0, 304.0, &format!("{label}: predicted against measured joint value of {} sets", points.len()));
    let both = || points.iter().flat_map(|p| [p.predicted, p.measured]);
    let (x, y) = (Scale::auto(both(), area.left, area.right), Scale::auto(both(), area.bottom, area.top));
    svg.axes(area, Some(&x), &y, "predicted: sum of single scores", "measured joint value");
    let (low, high) = x.ends();
    svg.line("ideal", [x.at(low), y.at(low)], [x.at(high), y.at(high)]);
    // The best plans of all ratios are one series: their ratio stands in the tip, and grows with what is predicted.
    let group = |size: SetSize| match size {
        SetSize::NearOptimal(_) => "best plans and their rivals".to_owned(),
        size => set_size(size),
    };
    let mut groups: Vec<String> = Vec::new();
    for p in points {
        let own = group(p.size);
        if !groups.contains(&own) {
            groups.push(own);
        }
    }
    for p in points {
        let own = group(p.size);
        let series = groups.iter().position(|group| *group == own).unwrap_or(0);
        let at = [x.at(p.predicted), y.at(p.measured)];
        if let Some(se) = p.standard_error {
            svg.error_bar(series, at[0], y.at(p.measured + se), y.at(p.measured - se));
        }
        svg.marker(
            series,
            "",
            at,
            &tip(&format!("{} layers, drawn for {}", p.layers, set_size(p.size)), &[("predicted", p.predicted), ("measured", p.measured)]),
        );
    }
    (svg.finish(), groups)
}

/// One loss of several runs over the steps.
pub fn loss_curves(runs: &[&DistillRun], label: &str, of: impl Fn(&LossPoint) -> f64) -> String {
    let area = Area { left: 62.0, right: 468.0, top: 26.0, bottom: 226.0 };
    let mut svg = Svg::new(490.0, 264.0, &format!("{label} over the training steps"));
    let points = || runs.iter().flat_map(|r| &r.curve);
    let values: Vec<f64> = points().map(&of).collect();
    let x = Scale::fixed(0.0, points().map(|p| p.step).max().unwrap_or(1) as f64, area.left, area.right);
    let y = Scale::auto(values.iter().copied(), area.bottom, area.top);
    svg.axes(area, Some(&x), &y, "step", label);
    for (series, run) in runs.iter().enumerate() {
        let line: Vec<[f64; 2]> = run.curve.iter().map(|p| [x.at(p.step as f64), y.at(of(p))]).collect();
        svg.polyline(&format!("curve s{}", series % 8), &line);
        if let (Some(p), Some(at)) = (run.curve.last(), line.last()) {
            svg.marker(series, "", *at, &format!("{}\nstep {}: {}", run.label, p.step, number(of(p))));
        }
    }
    svg.finish()
}

/// Each feature term's share of the feature loss over the steps, stacked to 100 %.
pub fn shares(run: &DistillRun) -> String {
    let area = Area { left: 46.0, right: 468.0, top: 26.0, bottom: 226.0 };
    let mut svg = Svg::new(490.0, 264.0, &format!("{}: share of each feature term", run.label));
    let x = Scale::fixed(0.0, run.curve.last().map_or(1, |p| p.step) as f64, area.left, area.right);
    let y = Scale::fixed(0.0, 100.0, area.bottom, area.top);
    svg.axes(area, Some(&x), &y, "step", "share of the feature loss, %");
    let mut below = vec![0.0; run.curve.len()];
    for (term, name) in run.terms.iter().enumerate() {
        let share: Vec<f64> = run.curve.iter().map(|p| 100.0 * p.shares()[term]).collect();
        let top: Vec<f64> = below.iter().zip(&share).map(|(b, s)| b + s).collect();
        let at = |i: usize, v: f64| [x.at(run.curve[i].step as f64), y.at(v)];
        let up = (0..below.len()).map(|i| at(i, top[i]));
        let down = (0..below.len()).rev().map(|i| at(i, below[i]));
        let outline: Vec<[f64; 2]> = up.chain(down).collect();
        let mean = share.iter().sum::<f64>() / share.len().max(1) as f64;
        svg.polygon(&format!("area s{}", term % 8), &outline, &format!("{name}\n{mean:.0} % on average"));
        below = top;
    }
    svg.finish()
}

/// The relative decline of every pruned U-Net on one metric, with its interval; none when no U-Net has one.
pub fn declines(results: &Results, metric: &MetricInfo) -> Option<String> {
    let rows: Vec<_> = results.unets.iter().filter_map(|u| Some((u, u.metric(&metric.id)?.decline?))).collect();
    if rows.is_empty() {
        return None;
    }
    let bottom = 30.0 + 30.0 * rows.len() as f64;
    let area = Area { left: 14.0, right: 346.0, top: 26.0, bottom };
    let mut svg = Svg::new(372.0, bottom + 38.0, &format!("{}: relative decline against the teacher", metric.label));
    let ends = rows.iter().flat_map(|(_, d)| [100.0 * d.low, 100.0 * d.high]).chain([0.0]);
    let x = Scale::linear(ends, area.left, area.right);
    for tick in x.ticks() {
        svg.line("grid", [x.at(tick), area.top], [x.at(tick), bottom]);
        svg.text("tick", "middle", [x.at(tick), bottom + 14.0], &super::svg::tick_label(tick));
    }
    svg.line("zero", [x.at(0.0), area.top], [x.at(0.0), bottom]);
    svg.text("label", "middle", [180.0, bottom + 30.0], "relative decline, % (right is worse)");
    svg.text("label strong", "start", [2.0, 14.0], &metric.label);
    for (i, (unet, d)) in rows.iter().enumerate() {
        let at = area.top + 30.0 * i as f64 + 22.0;
        svg.text("tick", "start", [area.left + 2.0, at - 8.0], &unet.label);
        svg.line(&format!("bar thick s{}", i % 8), [x.at(100.0 * d.low), at], [x.at(100.0 * d.high), at]);
        svg.marker(i, "", [x.at(100.0 * d.value), at], &format!("{}\n{}", unet.label, super::format::percent_interval(d)));
    }
    Some(svg.finish())
}
