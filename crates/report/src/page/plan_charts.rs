//! The report's charts about plans: what a budget costs, predicted and measured.

use prune_core::audit::JointLoss;

use super::format::{number, percent, plus_minus};
use super::svg::{Area, Scale, Svg};
use crate::results::Results;

/// Measured joint loss of all plans by ratio, one line per label (random seeds stay single points); returns the SVG and the labels.
pub fn plans(results: &Results) -> (String, Vec<String>) {
    let area = Area { left: 62.0, right: 628.0, top: 26.0, bottom: 286.0 };
    let mut svg = Svg::new(640.0, 324.0, "Measured joint output loss of every plan by ratio");
    let measured = || results.plans.iter().filter_map(|p| Some((p, p.joint?)));
    let error = |m: JointLoss| m.standard_error.unwrap_or(0.0);
    let y = Scale::auto(measured().map(|(_, m)| m.mean).collect::<Vec<_>>().into_iter(), area.bottom, area.top);
    let mut ratios: Vec<f64> = measured().map(|(p, _)| p.ratio).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.dedup();
    let mut labels: Vec<String> = Vec::new();
    for (p, _) in measured() {
        if !labels.contains(&p.label) {
            labels.push(p.label.clone());
        }
    }
    svg.axes(area, None, &y, "share of parameters to remove", "joint output loss");
    // One column per ratio; the series stand side by side in it so that error bars do not cover each other.
    let column = (area.right - area.left) / ratios.len().max(1) as f64;
    let x = |ratio: f64, series: usize| {
        let middle = ratios.iter().position(|r| *r == ratio).unwrap_or(0) as f64 + 0.5;
        let offset = (series as f64 + 0.5) / labels.len() as f64 - 0.5;
        area.left + column * (middle + 0.7 * offset)
    };
    for (i, ratio) in ratios.iter().enumerate() {
        let from = area.left + i as f64 * column;
        if i % 2 == 1 {
            svg.rect("band", [from, area.top], [column, area.bottom - area.top]);
        }
        svg.text("tick", "middle", [from + column / 2.0, area.bottom + 14.0], &percent(*ratio));
    }
    for (series, label) in labels.iter().enumerate() {
        for (p, m) in measured().filter(|(p, _)| p.label == *label) {
            let at = [x(p.ratio, series), y.at(m.mean)];
            svg.error_bar(series, at[0], y.at(m.mean + error(m)), y.at(m.mean - error(m)));
            let seed = p.plan.seed.map_or(String::new(), |s| format!(", seed {s}"));
            svg.marker(series, "", at, &format!("{label}{seed}, ratio {}\n{}", p.ratio, plus_minus(m.mean, m.standard_error)));
        }
    }
    (svg.finish(), labels)
}

/// Which plans the front's chart tells apart.
fn group(method: &str, criterion: Option<&str>, paper: &str) -> &'static str {
    match (method, criterion) {
        (_, Some(c)) if c == paper => "plans by the paper’s criterion",
        ("random", _) => "random plans",
        ("hand-crafted", _) => "hand-crafted plans",
        _ => "plans by other criteria",
    }
}

/// Predicted and measured joint output loss of all plans by the share of parameters that they remove, under the exact front;
/// returns the SVG and the groups of plans. None where no plan is predicted.
pub fn front(results: &Results) -> Option<(String, Vec<String>)> {
    let paper = results.front.as_ref().map_or_else(|| results.criteria.first().map(|c| c.id()), |f| Some(f.criterion.as_str()))?;
    let total = results.params().max(1) as f64;
    // A zero has no place on a logarithmic scale.
    let predicted = || results.plans.iter().filter_map(|p| Some((p, p.predicted_output_loss.filter(|v| *v > 0.0)?)));
    predicted().next()?;
    let area = Area { left: 62.0, right: 628.0, top: 26.0, bottom: 306.0 };
    let mut svg = Svg::new(640.0, 344.0, "Predicted and measured joint output loss by the share of parameters removed");
    let line = results.front.iter().flat_map(|f| &f.points).filter(|(_, v)| *v > 0.0);
    // The front begins far below any plan; what is shown begins a little before the smallest one.
    let least = results.plans.iter().map(|p| p.plan.params_removed).min().unwrap_or(0) as f64 / total;
    let line: Vec<(f64, f64)> = line.map(|(removed, v)| (*removed as f64 / total, *v)).filter(|(share, _)| *share >= 0.6 * least).collect();
    let measured = results.plans.iter().filter_map(|p| Some(p.joint?.mean));
    let values: Vec<f64> = predicted().map(|(_, v)| v).chain(measured).chain(line.iter().map(|(_, v)| *v)).collect();
    let shares =
        results.plans.iter().map(|p| 100.0 * p.plan.params_removed as f64 / total).chain(line.iter().map(|(share, _)| 100.0 * share));
    let (x, y) = (Scale::linear(shares, area.left, area.right), Scale::auto(values.into_iter(), area.bottom, area.top));
    svg.axes(area, Some(&x), &y, "share of parameters removed, %", "joint output loss");
    svg.polyline("front", &line.iter().map(|(share, v)| [x.at(100.0 * share), y.at(*v)]).collect::<Vec<_>>());
    let mut groups: Vec<&str> = vec![group("exact", Some(paper), paper)];
    for p in &results.plans {
        let own = group(p.method(), p.criterion(), paper);
        if !groups.contains(&own) {
            groups.push(own);
        }
    }
    // The paper's plans last, so that nothing covers them.
    for (series, name) in groups.iter().enumerate().rev() {
        for (p, sum) in predicted().filter(|(p, _)| group(p.method(), p.criterion(), paper) == *name) {
            let at = x.at(100.0 * p.plan.params_removed as f64 / total);
            let told = format!("{}, {} removed", p.label, percent(p.plan.params_removed as f64 / total));
            if let Some(m) = p.joint {
                let error = m.standard_error.unwrap_or(0.0);
                svg.line(&format!("link s{}", series % 8), [at, y.at(sum)], [at, y.at(m.mean)]);
                svg.error_bar(series, at, y.at(m.mean + error), y.at(m.mean - error));
                svg.marker(series, "", [at, y.at(m.mean)], &format!("{told}\nmeasured {}", plus_minus(m.mean, m.standard_error)));
            }
            svg.marker(series, "hollow", [at, y.at(sum)], &format!("{told}\npredicted {}", number(sum)));
        }
    }
    Some((svg.finish(), groups.into_iter().map(String::from).collect()))
}
