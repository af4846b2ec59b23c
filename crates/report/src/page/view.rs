//! What the templates place for one run: texts, tables and charts, made from the results. No number is computed here that the
//! results lack.

use std::collections::BTreeSet;
use std::path::Path;

use artifact::Document;
use eval::Timings;
use prune_core::table::Layer;
use serde::Serialize;

use super::speed_tables::{hardware, size_table, speed_table, stage_table};
use super::svg::{patch, swatch};
use super::tables::{
    Table, audit_table, category_table, comparison_table, distill_table, kind_table, layer_table, metric_table, part_table, plan_table,
    published_table,
};
use super::unet_drawing::{Drawing, plan_name};
use super::{RunReport, charts, format, images, plan_charts, summary};
use crate::error::Result;
use crate::results::{BinTable, CriterionScores, DistillRun, Outcome, PlanRow, Results, ResultsSummary, largest_share};

/// One run.
#[derive(Serialize)]
pub struct RunView<'a> {
    name: &'a str,
    /// What stands before every id, so that several runs fit on one page.
    prefix: String,
    /// Level of the sections' headings.
    level: u32,
    results: &'a Results,
    format: &'static str,
    version: u32,
    timings: Option<&'a Timings>,
    sentences: Vec<String>,
    tiles: Vec<summary::Tile>,
    claims: Vec<ClaimView>,
    drawing: Drawing,
    scores: Vec<Figure>,
    kinds: Vec<Legend>,
    layer_table: Table,
    bins: Vec<HeatTable>,
    audits: Vec<Figure>,
    audit_table: Table,
    part_table: Table,
    front_chart: Option<Figure>,
    plan_chart: Figure,
    plan_table: Table,
    plan_layers: Vec<PlanLayers>,
    loss_charts: Vec<Figure>,
    share_charts: Vec<Figure>,
    distill_table: Table,
    metric_table: Table,
    declines: Vec<String>,
    kind_table: Option<Table>,
    published_table: Option<Table>,
    comparison_table: Option<Table>,
    category_table: Option<Table>,
    size_table: Option<Table>,
    speed_table: Option<Table>,
    gallery: Option<GalleryView>,
    config: Vec<(&'a str, &'a str)>,
    hardware: Vec<[String; 2]>,
    stages: Table,
}

#[derive(Serialize)]
struct ClaimView {
    outcome: &'static str,
    class: Outcome,
    statement: String,
    rule: String,
    evidence: String,
}

/// A chart with its caption and legend.
#[derive(Serialize)]
pub(super) struct Figure {
    pub title: String,
    pub caption: String,
    pub svg: String,
    pub legend: Vec<Legend>,
}

#[derive(Serialize)]
pub(super) struct Legend {
    swatch: String,
    label: String,
}

#[derive(Serialize)]
struct HeatTable {
    label: String,
    /// The same numbers with their error bars.
    chart: Figure,
    head: Vec<String>,
    rows: Vec<HeatRow>,
}

#[derive(Serialize)]
struct HeatRow {
    layer: String,
    cells: Vec<HeatCell>,
}

#[derive(Serialize)]
struct HeatCell {
    text: String,
    heat: usize,
}

#[derive(Serialize)]
struct PlanLayers {
    name: String,
    layers: Vec<String>,
}

#[derive(Serialize)]
struct GalleryView {
    heads: Vec<String>,
    rows: Vec<GalleryRowView>,
}

#[derive(Serialize)]
struct GalleryRowView {
    prompt: String,
    seed: u64,
    cells: Vec<GalleryCellView>,
}

#[derive(Serialize)]
struct GalleryCellView {
    uri: String,
    small: bool,
    alt: String,
    head: String,
    /// `yes`, `no`, or nothing when the prompt cannot be checked.
    ok: Option<bool>,
    verdict: String,
    wrong: Vec<String>,
    clip: Option<String>,
}

/// Markers in the order of their series.
pub(super) fn legend(labels: impl IntoIterator<Item = (usize, String)>) -> Vec<Legend> {
    labels.into_iter().map(|(series, label)| Legend { swatch: swatch(series), label }).collect()
}

impl<'a> RunView<'a> {
    pub(super) fn new(run: &RunReport<'a>, prefix: String, level: u32) -> Result<Self> {
        let RunReport { name, results, timings, dir: run_dir } = *run;
        let removed = results.headline().map(PlanRow::removed).unwrap_or_default();
        let scores = results.criteria.iter().map(|c| Figure {
            title: c.label.clone(),
            caption: describe(c),
            svg: charts::layer_scores(c, results.layers(), &removed),
            legend: Vec::new(),
        });
        let mut kinds: Vec<&str> = Vec::new();
        for layer in results.layers() {
            if !kinds.contains(&layer.kind.as_str()) {
                kinds.push(&layer.kind);
            }
        }
        let audits = results.audit.iter().flat_map(|result| result.file.audits.iter().map(move |audit| (result, audit)));
        let audits = audits.map(|(result, audit)| {
            let title = results.label(&audit.criterion).to_owned();
            let (svg, groups) = charts::additivity(&result.points(audit), &title);
            let legend = legend(groups.into_iter().enumerate());
            Figure { title, caption: result.description(audit), svg, legend }
        });
        let (svg, labels) = plan_charts::plans(results);
        let plan_chart = Figure {
            title: "Joint output loss of all plans".into(),
            caption: String::new(),
            svg,
            legend: legend(labels.into_iter().enumerate()),
        };
        let claims = results.claims.iter().map(|c| ClaimView {
            outcome: format::outcome(c.outcome),
            class: c.outcome,
            statement: c.statement.clone(),
            rule: c.rule.clone(),
            evidence: c.evidence.clone(),
        });
        let with_bins = results.criteria.iter().filter_map(|c| Some((c, c.bins()?)));
        Ok(Self {
            name,
            prefix,
            level,
            results,
            format: ResultsSummary::FORMAT,
            version: ResultsSummary::VERSION,
            timings,
            sentences: summary::sentences(results, timings),
            tiles: summary::tiles(results, timings),
            claims: claims.collect(),
            drawing: Drawing::new(results),
            scores: scores.collect(),
            kinds: legend(kinds.iter().map(|k| (charts::kind_series(k), format::kind(k).to_owned()))),
            layer_table: layer_table(results),
            bins: with_bins.map(|(c, b)| heat_table(c, b, results.layers(), &removed)).collect(),
            audits: audits.collect(),
            audit_table: audit_table(results),
            part_table: part_table(results),
            front_chart: plan_charts::front(results).map(|(svg, labels)| front_figure(svg, labels)),
            plan_chart,
            plan_table: plan_table(results),
            plan_layers: results
                .plans
                .iter()
                .map(|p| PlanLayers { name: plan_name(p), layers: p.plan.removed.iter().map(ToString::to_string).collect() })
                .collect(),
            loss_charts: loss_charts(results),
            share_charts: share_charts(results),
            distill_table: distill_table(results),
            metric_table: metric_table(results),
            declines: results.metrics.iter().filter_map(|m| charts::declines(results, m)).collect(),
            kind_table: kind_table(results),
            published_table: published_table(results),
            comparison_table: comparison_table(results),
            category_table: category_table(results),
            size_table: size_table(results, timings),
            speed_table: speed_table(results, timings),
            gallery: gallery(results, run_dir)?,
            config: results.provenance.config.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect(),
            hardware: timings.map_or_else(Vec::new, hardware),
            stages: stage_table(timings),
        })
    }
}

impl RunView<'_> {
    /// The model in one sentence.
    pub(super) fn lead(&self) -> String {
        let m = &self.results.model;
        let ([ph, pw], [lh, lw]) = (m.image.unwrap_or([0, 0]), m.latent);
        let predicts = m.prediction_type.as_deref().unwrap_or("unknown");
        format!("{} ({}, {predicts}), images of {ph}×{pw} pixels, latents of {lh}×{lw}.", m.table.model(), m.family)
    }
}

fn front_figure(svg: String, labels: Vec<String>) -> Figure {
    Figure {
        title: "Budget against predicted and measured loss".into(),
        caption: "The line is the exact Pareto front: the least sum of single output losses that any set of layers of that size \
                  has. Hollow marks are the plans’ predicted sums, filled ones the joint losses that were measured, with one standard error."
            .into(),
        svg,
        legend: legend(labels.into_iter().enumerate()),
    }
}

fn describe(c: &CriterionScores) -> String {
    if c.scores().samples().is_empty() {
        c.description.clone()
    } else {
        format!("{} Mean over {} samples; bars are one standard error.", c.description, c.scores().samples().len())
    }
}

fn heat_table(c: &CriterionScores, bins: &BinTable, layers: &[Layer], removed: &BTreeSet<&str>) -> HeatTable {
    let mut sorted: Vec<f64> = bins.means.iter().flatten().flatten().copied().collect();
    sorted.sort_by(f64::total_cmp);
    let cell = |v: Option<f64>, se: Option<f64>| {
        let rank = v.map_or(0, |v| sorted.partition_point(|s| *s < v));
        let text = v.map_or("–".into(), |v| format::plus_minus(v, se));
        HeatCell { text, heat: (rank * 10 / sorted.len().max(1)).min(9) }
    };
    let row = |(i, (layer, means)): (usize, (&Layer, &Vec<Option<f64>>))| HeatRow {
        layer: layer.id.to_string(),
        cells: means.iter().zip(&bins.standard_errors[i]).map(|(v, se)| cell(*v, *se)).collect(),
    };
    let title = format!("{} by layer and timestep", c.label);
    let caption = "One row of marks per timestep bin, all on one scale; bars are one standard error, hollow marks are removed layers.";
    let chart = Figure { title, caption: caption.into(), svg: charts::layer_bins(c, bins, layers, removed), legend: Vec::new() };
    HeatTable {
        label: c.label.clone(),
        chart,
        head: bins.bins.iter().map(|[a, b]| format!("t {a}–{b}")).collect(),
        rows: layers.iter().zip(&bins.means).enumerate().map(row).collect(),
    }
}

fn loss_charts(results: &Results) -> Vec<Figure> {
    let runs: Vec<_> = results.distillations.iter().filter(|d| !d.curve.is_empty()).collect();
    if runs.is_empty() {
        return Vec::new();
    }
    let names = || legend(runs.iter().enumerate().map(|(i, r)| (i, r.label.clone())));
    let figure = |title: &str, caption: &str, svg| Figure { title: title.into(), caption: caption.into(), svg, legend: names() };
    vec![
        figure(
            "Output distillation loss",
            "Distance of the student’s output from the teacher’s; the same measure for all runs.",
            charts::loss_curves(&runs, "output distillation loss", |p| p.out_kd),
        ),
        figure(
            "Task loss",
            "Distance from the training target; the same measure for all runs.",
            charts::loss_curves(&runs, "task loss", |p| p.task),
        ),
    ]
}

fn share_charts(results: &Results) -> Vec<Figure> {
    let runs = results.distillations.iter().filter(|d| !d.curve.is_empty() && !d.terms.is_empty());
    let figure = |d: &DistillRun| {
        let largest = largest_share(d);
        Figure {
            title: d.label.clone(),
            caption: largest.map_or(String::new(), |(term, s)| {
                format!("Largest term: {term}, {} of the feature loss in the second half of training.", format::percent(s))
            }),
            svg: charts::shares(d),
            legend: d.terms.iter().enumerate().map(|(i, t)| Legend { swatch: patch(i), label: t.clone() }).collect(),
        }
    };
    runs.map(figure).collect()
}

fn gallery(results: &Results, run_dir: &Path) -> Result<Option<GalleryView>> {
    let Some(gallery) = &results.gallery else { return Ok(None) };
    let heads: Vec<String> = gallery.unets.iter().map(|n| results.unet(n).map_or_else(|| n.clone(), |u| u.label.clone())).collect();
    let mut rows = Vec::with_capacity(gallery.rows.len());
    for row in &gallery.rows {
        let mut cells = Vec::with_capacity(row.cells.len());
        for (cell, head) in row.cells.iter().zip(&heads) {
            let image = images::embed(run_dir, &cell.image)?;
            let wrong: Vec<String> =
                cell.checks.iter().filter(|c| !c.ok).map(|c| format!("{} {}, not {}", c.name, c.seen, c.stated)).collect();
            let n = cell.checks.len();
            let verdict = match wrong.len() {
                _ if n == 0 => String::new(),
                0 => format!("all {n} right"),
                k => format!("{} of {n} right", n - k),
            };
            cells.push(GalleryCellView {
                uri: image.uri,
                small: image.small,
                alt: format!("{head}: “{}”. {verdict}. {}", row.prompt, wrong.join("; ")),
                head: head.clone(),
                ok: (!cell.checks.is_empty()).then_some(wrong.is_empty()),
                verdict,
                wrong,
                clip: cell.clip_score.map(|s| format!("CLIP {s:.1}")),
            });
        }
        rows.push(GalleryRowView { prompt: row.prompt.clone(), seed: row.seed, cells });
    }
    Ok(Some(GalleryView { heads, rows }))
}
