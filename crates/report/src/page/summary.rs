//! The headline in plain words: what was removed, what it cost, which claims held. Used by the page and the markdown.

use eval::Timings;

use super::format;
use crate::results::{NORMALIZED, PlanRow, Results, Role, UNetResult};

/// One figure at the top of the page.
#[derive(serde::Serialize)]
pub struct Tile {
    /// The figure.
    pub value: String,
    /// What it is.
    pub label: String,
}

/// The student that the summary speaks of: of the headline plan, retrained with normalized features when there is one, else the
/// last U-Net that was pruned by the plan.
pub fn headline_student(results: &Results) -> Option<&UNetResult> {
    let plan = results.headline_plan.as_deref()?;
    let mut of_plan = results.unets.iter().filter(|u| u.plan.as_deref() == Some(plan) && u.role != Role::Teacher);
    let normalized = |u: &&UNetResult| {
        let run = results.distillations.iter().find(|d| Some(d.name.as_str()) == u.distillation.as_deref());
        run.is_some_and(|d| d.losses.feature_loss == NORMALIZED)
    };
    of_plan.clone().find(normalized).or_else(|| of_plan.next_back())
}

/// Sentences that say what happened; each stands alone.
pub fn sentences(results: &Results, timings: Option<&Timings>) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(row) = results.headline() {
        let plan = &row.plan;
        let all = plan.removed.len();
        out.push(format!(
            "{all} of the {} removable layers went, and with them {} of the U-Net’s {} parameters ({}) and {} of its multiply-accumulates. The plan is “{}” for a ratio of {}.",
            results.layers().len(),
            format::count(plan.params_removed),
            format::count(results.params()),
            format::share(plan.params_removed, results.params()),
            format::share(plan.macs_removed, results.macs()),
            row.label,
            format::percent(row.ratio),
        ));
        if let (Some(measured), Some(predicted)) = (row.joint, row.predicted_output_loss) {
            out.push(format!(
                "Removing them together changes the U-Net’s output by {} (mean squared error, before retraining); the sum of their single effects predicted {}, so the measured loss is {:.2} times the predicted one.",
                format::plus_minus(measured.mean, measured.standard_error),
                format::number(predicted),
                measured.mean / predicted,
            ));
        }
    }
    if let (Some(teacher), Some(student)) = (results.teacher(), headline_student(results)) {
        let mut parts = Vec::new();
        for metric in &results.metrics {
            let (Some(t), Some(s)) = (teacher.metric(&metric.id), student.metric(&metric.id)) else { continue };
            let decline = s.decline.map_or(String::new(), |d| format!(" (relative decline {})", format::percent_interval(&d)));
            parts.push(format!(
                "{} {} instead of {}{decline}",
                metric.label,
                format::in_unit(s.value.value, metric),
                format::in_unit(t.value.value, metric)
            ));
        }
        if !parts.is_empty() {
            let state = if student.role == Role::Student { "After retraining" } else { "Without retraining" };
            out.push(format!("{state}, the student “{}” reaches: {}.", student.label, parts.join("; ")));
        }
        let row = |unet: &UNetResult| timings?.call_of(&unet.names());
        if let (Some(t), Some(s)) = (row(teacher), row(student)) {
            out.push(format!(
                "One call of its U-Net takes {} instead of {} ({:.2} times as fast, batch {}).",
                format::seconds(s.median_s),
                format::seconds(t.median_s),
                s.speedup,
                s.batch
            ));
        }
        let row = |unet: &UNetResult| timings?.image_of(&unet.names());
        if let (Some(t), Some(s)) = (row(teacher), row(student)) {
            out.push(format!(
                "One whole image takes {} instead of {} ({:.2} times as fast).",
                format::seconds(s.median_s),
                format::seconds(t.median_s),
                s.speedup
            ));
        }
    }
    out
}

/// The few figures that one looks for first.
pub fn tiles(results: &Results, timings: Option<&Timings>) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let mut push = |value: String, label: &str| tiles.push(Tile { value, label: label.into() });
    if let Some(PlanRow { plan, .. }) = results.headline() {
        push(format!("−{}", format::share(plan.params_removed, results.params())), "U-Net parameters");
        push(format!("−{}", format::share(plan.macs_removed, results.macs())), "multiply-accumulates");
    }
    if let Some(student) = headline_student(results) {
        if let Some(row) = timings.and_then(|t| t.call_of(&student.names())) {
            // One figure for both, or the last one stands alone in its line.
            match timings.and_then(|t| t.image_of(&student.names())) {
                Some(whole) => push(format!("{:.2}×, {:.2}×", row.speedup, whole.speedup), "speed of one U-Net call, of one image"),
                None => push(format!("{:.2}×", row.speedup), "speed of one U-Net call"),
            }
        }
        // Shares first, since they need no explanation; then the CLIP score. A distance's decline is no headline.
        for metric in results.metrics.iter().filter(|m| m.higher_is_better && (m.percent || m.id == "clip_score")) {
            let (Some(teacher), Some(own)) = (results.teacher().and_then(|t| t.metric(&metric.id)), student.metric(&metric.id)) else {
                continue;
            };
            let value = format!("{} → {}", format::in_unit(teacher.value.value, metric), format::in_unit(own.value.value, metric));
            push(value, &format!("{}, teacher → student", metric.label));
        }
    }
    tiles
}
