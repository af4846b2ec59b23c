//! Several runs in one table, and what keeps them from being compared. Top of the page of several runs.

use std::collections::BTreeSet;

use eval::{Estimate, LatencyRow, MetricInfo, Protocol};
use serde::Serialize;

use super::speed_tables::memory;
use super::svg::{Area, Scale, Svg};
use super::tables::Table;
use super::view::{Figure, legend};
use super::{RunReport, format, summary};
use crate::results::{Results, Role, UNetResult};

/// All that stands above the runs.
#[derive(Serialize)]
pub(super) struct Overview {
    /// What to bear in mind.
    pub notes: Vec<String>,
    /// One row per run.
    pub runs: Table,
    pub figures: Vec<Figure>,
    /// One row per run and U-Net: size and speed, then quality.
    pub tables: Vec<Table>,
}

impl Overview {
    pub(super) fn new(runs: &[RunReport]) -> Self {
        let metrics = common_metrics(runs);
        let mut figures: Vec<Figure> = loss_figure(runs).into_iter().collect();
        // A distance to the teacher's own images says nothing about the teacher.
        figures.extend(metrics.iter().filter(|m| teachers_have(runs, m)).take(3).map(|m| quality_figure(runs, m)));
        Self { notes: notes(runs), runs: runs_table(runs), figures, tables: vec![sizes(runs), quality(runs, &metrics)] }
    }
}

/// The metrics of all runs, in the order of the first one that has each.
fn common_metrics(runs: &[RunReport]) -> Vec<MetricInfo> {
    let mut all: Vec<MetricInfo> = Vec::new();
    for metric in runs.iter().flat_map(|r| &r.results.metrics) {
        if !all.iter().any(|m| m.id == metric.id) {
            all.push(metric.clone());
        }
    }
    all
}

fn teachers_have(runs: &[RunReport], metric: &MetricInfo) -> bool {
    runs.iter().all(|r| r.results.teacher().is_some_and(|t| t.metric(&metric.id).is_some()))
}

/// What differs between the runs, so that numbers of one do not compare with numbers of another.
fn notes(runs: &[RunReport]) -> Vec<String> {
    let differ = |of: &dyn Fn(&RunReport) -> Option<String>| runs.iter().filter_map(of).collect::<BTreeSet<_>>().len() > 1;
    let protocol = |of: &dyn Fn(&Protocol) -> String| differ(&|r| r.results.protocol.as_ref().map(of));
    let things = [
        ("models", differ(&|r| Some(r.results.model.unet_sha256.clone()))),
        ("prompts", protocol(&|p| format!("{} {} {}", p.prompts, p.images_per_prompt, p.prompt_source))),
        ("sampling", protocol(&|p| format!("{} {} {} {} {:?}", p.sampler, p.steps, p.guidance, p.seed, p.size))),
    ];
    let differing: Vec<&str> = things.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    let mut notes = Vec::new();
    notes.push(if differing.is_empty() {
        "All runs have the same model, prompts and sampling: their scores compare directly.".to_owned()
    } else {
        format!("The runs differ in {}: compare relative declines, not scores.", differing.join(" and "))
    });
    let machine = |r: &RunReport| r.timings.filter(|t| !t.latency.is_empty()).map(|t| format!("{} {}", t.hardware.cpu, t.hardware.device));
    let image = |r: &RunReport| {
        let p = r.timings?.image.as_ref()?;
        Some(format!("{} {} {} {:?}", p.sampler, p.steps, p.guidance, p.size))
    };
    if differ(&machine) {
        notes.push("They were timed on different machines: compare speed-ups, not times.".into());
    }
    if differ(&image) {
        notes.push("The images that were timed differ in size or sampling.".into());
    }
    notes
}

/// How the student of the summary was retrained, if it was.
fn retrained(results: &Results, student: Option<&UNetResult>) -> String {
    let of_student = |s: &UNetResult| results.distillations.iter().find(|d| Some(d.name.as_str()) == s.distillation.as_deref());
    student.and_then(of_student).map_or_else(|| "no".into(), |d| format!("{} steps", d.trainer.steps))
}

/// One row per run.
fn runs_table(runs: &[RunReport]) -> Table {
    let head = [
        "run",
        "model",
        "parameters",
        "layers",
        "plan of the summary",
        "parameters left",
        "predicted output loss",
        "measured output loss",
        "retrained",
        "prompts",
        "sampling",
    ];
    let mut table = Table::new("The runs, and the plan that the summary of each speaks of", &head);
    for run in runs {
        let r = run.results;
        let (plan, student) = (r.headline(), summary::headline_student(r));
        let none = || "–".to_owned();
        table.push(
            false,
            vec![
                run.name.to_owned(),
                format!("{} ({})", r.model.table.model(), r.model.family),
                format::count(r.params()),
                r.layers().len().to_string(),
                plan.map_or_else(none, super::unet_drawing::plan_name),
                plan.map_or_else(none, |p| format::share(r.params().saturating_sub(p.plan.params_removed), r.params())),
                plan.and_then(|p| p.predicted_output_loss).map_or_else(none, format::number),
                plan.and_then(|p| p.joint).map_or_else(none, |m| format::plus_minus(m.mean, m.standard_error)),
                retrained(r, student),
                r.protocol.as_ref().map_or_else(none, |p| format!("{} × {}", p.prompts, p.images_per_prompt)),
                r.protocol.as_ref().map_or_else(none, |p| format!("{}, {} steps, guidance {}", p.sampler, p.steps, p.guidance)),
            ],
        );
    }
    table
}

/// Size and speed of every U-Net of every run.
fn sizes(runs: &[RunReport]) -> Table {
    let head = [
        "run",
        "U-Net",
        "parameters",
        "MACs",
        "weight file",
        "peak memory, image",
        "one U-Net call",
        "times as fast",
        "one image",
        "times as fast",
    ];
    let mut table = Table::new("Size and speed of all U-Nets; speed-ups are against the teacher of the same run", &head);
    for run in runs {
        for u in &run.results.unets {
            let found = run.timings.and_then(|t| t.footprint_of(&u.names()));
            let (call, image) = (run.timings.and_then(|t| t.call_of(&u.names())), run.timings.and_then(|t| t.image_of(&u.names())));
            let median = |row: Option<&LatencyRow>| row.map_or("–".into(), |l| format::seconds(l.median_s));
            let fast = |row: Option<&LatencyRow>| row.map_or("–".into(), |l| format!("{:.2}", l.speedup));
            table.push(
                u.role == Role::Teacher,
                vec![
                    run.name.to_owned(),
                    u.label.clone(),
                    format::count(u.params),
                    format::macs(u.macs),
                    found.map_or("–".into(), |f| format::bytes(f.unet_file_bytes)),
                    memory(found.and_then(|f| f.image.or(f.call))),
                    median(call),
                    fast(call),
                    median(image),
                    fast(image),
                ],
            );
        }
    }
    table
}

/// Every metric of every U-Net of every run: the value, and the relative decline below it.
fn quality(runs: &[RunReport], metrics: &[MetricInfo]) -> Table {
    let mut table = Table::new(
        "Quality of all U-Nets: value with its interval, below it the relative decline against the run’s own teacher",
        &["run", "U-Net"],
    );
    table.head.extend(metrics.iter().map(|m| format!("{}\u{a0}{}", m.label, if m.higher_is_better { "↑" } else { "↓" })));
    for run in runs {
        for u in &run.results.unets {
            let cell = |m: &MetricInfo| {
                u.metric(&m.id).map_or("–".into(), |v| {
                    let decline = v.decline.as_ref().map_or(String::new(), |d| format!("\nby {}", format::percent_interval(d)));
                    format!("{}{decline}", format::interval(&v.value, m))
                })
            };
            table.push(
                u.role == Role::Teacher,
                [run.name.to_owned(), u.label.clone()].into_iter().chain(metrics.iter().map(cell)).collect(),
            );
        }
    }
    table
}

/// A point of a chart: whose, where, and with which interval upwards.
struct Point {
    series: usize,
    hollow: bool,
    at: f64,
    value: f64,
    ends: [f64; 2],
    told: String,
}

fn scatter(title: &str, x_label: &str, y_label: &str, points: &[Point]) -> String {
    let area = Area { left: 62.0, right: 468.0, top: 26.0, bottom: 266.0 };
    let mut svg = Svg::new(490.0, 304.0, title);
    let x = Scale::linear(points.iter().map(|p| p.at), area.left, area.right);
    let mut y = Scale::auto(points.iter().map(|p| p.value).collect::<Vec<_>>().into_iter(), area.bottom, area.top);
    if !y.is_log() {
        y = Scale::linear(points.iter().flat_map(|p| p.ends), area.bottom, area.top);
    }
    svg.axes(area, Some(&x), &y, x_label, y_label);
    // Runs of one model have points at the same places: side by side none covers another.
    let last = points.iter().map(|p| p.series).max().unwrap_or(0) as f64;
    for p in points {
        let at = x.at(p.at) + 7.0 * (p.series as f64 - last / 2.0);
        svg.error_bar(p.series, at, y.at(p.ends[0]), y.at(p.ends[1]));
        svg.marker(p.series, if p.hollow { "hollow" } else { "" }, [at, y.at(p.value)], &p.told);
    }
    svg.finish()
}

fn names(runs: &[RunReport]) -> Vec<super::view::Legend> {
    legend(runs.iter().enumerate().map(|(i, r)| (i, r.name.to_owned())))
}

/// A metric by the share of parameters that are left, all runs.
fn quality_figure(runs: &[RunReport], metric: &MetricInfo) -> Figure {
    let scale = if metric.percent { 100.0 } else { 1.0 };
    let mut points = Vec::new();
    for (series, run) in runs.iter().enumerate() {
        for u in &run.results.unets {
            let Some(Estimate { value, low, high, .. }) = u.metric(&metric.id).map(|m| m.value) else { continue };
            points.push(Point {
                series,
                hollow: u.role == Role::Teacher,
                at: 100.0 * u.params as f64 / run.results.params().max(1) as f64,
                value: scale * value,
                ends: [scale * low, scale * high],
                told: format!("{}: {}\n{}", run.name, u.label, format::in_unit(value, metric)),
            });
        }
    }
    let title = format!("{} by size", metric.label);
    let unit = if metric.percent { format!("{}, %", metric.label) } else { metric.label.clone() };
    let svg = scatter(&title, "parameters left, %", &unit, &points);
    let caption = format!(
        "{} is better. Hollow marks are the teachers; bars are intervals over prompts.",
        if metric.higher_is_better { "More" } else { "Less" }
    );
    Figure { title, caption, svg, legend: names(runs) }
}

/// Measured joint loss of all plans of all runs; none where nothing was measured.
fn loss_figure(runs: &[RunReport]) -> Option<Figure> {
    let mut points = Vec::new();
    for (series, run) in runs.iter().enumerate() {
        for p in &run.results.plans {
            let Some(m) = p.joint else { continue };
            let share = p.plan.params_removed as f64 / run.results.params().max(1) as f64;
            points.push(Point {
                series,
                hollow: false,
                at: 100.0 * share,
                value: m.mean,
                ends: [m.mean - m.standard_error.unwrap_or(0.0), m.mean + m.standard_error.unwrap_or(0.0)],
                told: format!(
                    "{}: {}, {} removed\n{}",
                    run.name,
                    p.label,
                    format::percent(share),
                    format::plus_minus(m.mean, m.standard_error)
                ),
            });
        }
    }
    if points.is_empty() {
        return None;
    }
    let title = "Measured joint output loss of all plans".to_owned();
    let svg = scatter(&title, "parameters removed, %", "joint output loss", &points);
    Some(Figure { title, caption: "Before retraining; bars are one standard error.".into(), svg, legend: names(runs) })
}
