//! The report's tables as texts, the same for the page and the markdown.

use std::collections::BTreeSet;

use serde::Serialize;

use super::format;
use super::unet_drawing::plan_name;
use crate::results::{LossPoint, PlanRow, Results, Role, UNetResult};

/// A table of texts; the first column names the row.
#[derive(Serialize)]
pub(super) struct Table {
    pub caption: String,
    pub head: Vec<String>,
    pub rows: Vec<Row>,
}

#[derive(Serialize)]
pub(super) struct Row {
    pub cells: Vec<String>,
    /// Set in bold: the best of its group, or the headline.
    pub strong: bool,
}

impl Table {
    pub(super) fn new(caption: &str, head: &[&str]) -> Self {
        Self { caption: caption.into(), head: head.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new() }
    }

    pub(super) fn push(&mut self, strong: bool, cells: Vec<String>) {
        self.rows.push(Row { cells, strong });
    }
}

/// Every layer with its costs and all its scores; the headline plan's in bold.
pub(super) fn layer_table(results: &Results) -> Table {
    let mut table = Table::new("Every removable layer, in the order of execution", &["layer", "kind", "parameters", "share", "MACs"]);
    table.head.extend(results.criteria.iter().map(|c| c.label.clone()));
    let removed = results.headline().map(PlanRow::removed).unwrap_or_default();
    for (i, layer) in results.layers().iter().enumerate() {
        let mut cells = vec![
            layer.id.to_string(),
            format::kind(&layer.kind).to_owned(),
            format::count(layer.params),
            format::share(layer.params, results.params()),
            format::macs(layer.macs),
        ];
        cells.extend(results.criteria.iter().map(|c| format::plus_minus(c.values()[i], c.standard_errors()[i])));
        table.push(removed.contains(layer.id.as_str()), cells);
    }
    table
}

/// Agreement of prediction and joint value, per criterion and ratio.
pub(super) fn audit_table(results: &Results) -> Table {
    let head = ["criterion", "sets", "n", "Pearson", "Spearman", "slope"];
    let mut table = Table::new("Agreement of predicted and measured joint values; a slope of 1 is exact additivity", &head);
    let optional = |v: Option<f64>| v.map_or("–".into(), |v| format!("{v:.3}"));
    for (result, audit) in results.audit.iter().flat_map(|result| result.file.audits.iter().map(move |audit| (result, audit))) {
        let label = results.label(&audit.criterion).to_owned();
        let by_size = result.by_size(audit).into_iter().map(|(size, stats)| (Some(size), stats));
        for (size, s) in std::iter::once((None, &audit.overall)).chain(by_size) {
            let sets = size.map_or("all".into(), format::set_size);
            let cells = vec![label.clone(), sets, s.sets.to_string(), optional(s.pearson), optional(s.spearman), optional(s.slope)];
            table.push(size.is_none(), cells);
        }
    }
    table
}

/// Which layers the sum of single scores is wrong about, for the criteria that are held against their own joint value.
pub(super) fn part_table(results: &Results) -> Table {
    let head = ["criterion", "layers", "share of the sums", "slope"];
    let mut table =
        Table::new("How much of the measured joint values goes with each part of the layers, as a multiple of its predicted sum", &head);
    for audit in results.audit.iter().flat_map(|result| &result.file.audits) {
        let label = results.label(&audit.criterion).to_owned();
        let kinds = audit.kinds.iter().map(|(kind, slope)| (format::kind(kind).to_owned(), slope));
        let depths = audit.depths.iter().map(|(quarter, slope)| (format!("quarter {quarter} of the forward pass"), slope));
        for (part, s) in kinds.chain(depths) {
            // Layers that hardly contribute leave their coefficient open.
            let determined = s.standard_error <= 1.0;
            let slope = if determined { format!("{:.2} ± {:.2}", s.slope, s.standard_error) } else { "not determined".into() };
            table.push(false, vec![label.clone(), part, format!("{:.1} %", 100.0 * s.share), slope]);
        }
    }
    table
}

/// All plans; the lowest measured loss of each ratio is set in bold.
pub(super) fn plan_table(results: &Results) -> Table {
    let head = [
        "plan",
        "found by",
        "layers removed",
        "parameters left",
        "share left",
        "MACs left",
        "own prediction",
        "predicted output loss",
        "measured output loss",
    ];
    let mut table = Table::new("All plans; in bold the lowest measured joint output loss of each ratio", &head);
    for p in &results.plans {
        let best = results.plans.iter().filter(|q| q.ratio == p.ratio).filter_map(|q| q.joint).map(|m| m.mean).min_by(f64::total_cmp);
        let strong = p.joint.is_some_and(|m| Some(m.mean) == best);
        let optional = |v: Option<f64>| v.map_or("–".into(), format::number);
        let kept = results.params().saturating_sub(p.plan.params_removed);
        table.push(
            strong,
            vec![
                plan_name(p),
                p.method().to_owned(),
                p.plan.removed.len().to_string(),
                format::count(kept),
                format::share(kept, results.params()),
                format::share(results.macs().saturating_sub(p.plan.macs_removed), results.macs()),
                optional(p.predicted()),
                optional(p.predicted_output_loss),
                p.joint.map_or("–".into(), |m| format::plus_minus(m.mean, m.standard_error)),
            ],
        );
    }
    table
}

/// Settings and last losses of the retraining runs.
pub(super) fn distill_table(results: &Results) -> Table {
    let head = [
        "run",
        "plan",
        "steps",
        "batch",
        "learning rate",
        "weights task/out/feat",
        "seed",
        "last task loss",
        "last output loss",
        "last feature loss",
    ];
    let mut table = Table::new("Retraining runs", &head);
    for d in &results.distillations {
        let last = |of: fn(&LossPoint) -> f64| d.curve.last().map_or("–".into(), |p| format::number(of(p)));
        let plan = results.plan(&d.plan).map_or_else(|| d.plan.clone(), plan_name);
        let weights = format!("{}/{}/{}", d.losses.task_weight, d.losses.output_weight, d.losses.feature_weight);
        let cells = vec![
            d.label.clone(),
            plan,
            d.trainer.steps.to_string(),
            d.trainer.batch.to_string(),
            d.trainer.lr.to_string(),
            weights,
            d.trainer.seed.to_string(),
            last(|p| p.task),
            last(|p| p.out_kd),
            last(|p| p.feat_kd),
        ];
        table.push(false, cells);
    }
    table
}

/// Teacher and students: one row per metric and U-Net.
pub(super) fn metric_table(results: &Results) -> Table {
    let level = results.protocol.as_ref().map_or(0.95, |p| p.bootstrap.level);
    let caption = format!(
        "Quality with {} intervals over prompts; a positive relative decline is a loss, a negative gain too",
        format::percent(level).replace(".0 %", " %")
    );
    let mut table =
        Table::new(&caption, &["metric", "U-Net", "value", "relative decline", "prompts better than the teacher’s", "against the teacher"]);
    for info in &results.metrics {
        let name = format!("{}\u{a0}{}", info.label, if info.higher_is_better { "↑" } else { "↓" });
        for (u, m) in results.unets.iter().filter_map(|u| Some((u, u.metric(&info.id)?))) {
            table.push(
                u.role == Role::Teacher,
                vec![
                    name.clone(),
                    u.label.clone(),
                    format::interval(&m.value, info),
                    format::decline(m, info),
                    m.wins.map_or("–".into(), |w| format::wins(&w)),
                    m.verdict.map_or("–", format::verdict).into(),
                ],
            );
        }
    }
    table
}

/// Checker accuracy by kind of attribute; none without a checker.
pub(super) fn kind_table(results: &Results) -> Option<Table> {
    let kinds: BTreeSet<&str> = results.unets.iter().flat_map(|u| &u.by_kind).map(|k| k.kind.as_str()).collect();
    if kinds.is_empty() {
        return None;
    }
    let mut table = Table::new("Share of attributes that the checker finds right, by kind", &["kind"]);
    table.head.extend(results.unets.iter().map(|u| u.label.clone()));
    for kind in kinds {
        let of = |u: &UNetResult| u.by_kind.iter().find(|k| k.kind == kind).map_or("–".into(), |k| format::percent_interval(&k.accuracy));
        table.push(false, std::iter::once(kind.to_owned()).chain(results.unets.iter().map(of)).collect());
    }
    Some(table)
}

/// Direct comparisons; none when there is none.
pub(super) fn comparison_table(results: &Results) -> Option<Table> {
    let head = ["first", "second", "metric", "gain of the first", "prompts on which the first is better", "the first is"];
    let mut table = Table::new("Students compared directly, paired by prompt", &head);
    for c in &results.comparisons {
        let label = |name: &str| results.unet(name).map_or_else(|| name.to_owned(), |u| u.label.clone());
        let info = results.metric(&c.metric)?;
        let wins = c.wins.map_or("–".into(), |w| format::wins(&w));
        table.push(
            false,
            vec![label(&c.a), label(&c.b), info.label.clone(), format::interval(&c.gain, info), wins, format::verdict(c.verdict).into()],
        );
    }
    (!table.rows.is_empty()).then_some(table)
}

/// What others published for a metric, and under it what this run measured; none where nothing published was given.
pub(super) fn published_table(results: &Results) -> Option<Table> {
    if results.published.is_empty() {
        return None;
    }
    let head = ["metric", "U-Net", "parameters that went", "relative decline, %", "from"];
    let mut table = Table::new(
        "Published declines beside ours; comparable only with the same model, prompts, sampler, weights of the metric and training",
        &head,
    );
    let metrics: BTreeSet<&str> = results.published.iter().map(|p| p.metric.as_str()).collect();
    for id in metrics {
        let label = results.metric(id).map_or_else(|| id.to_owned(), |info| info.label.clone());
        for p in results.published.iter().filter(|p| p.metric == id) {
            let share = format!("{:.1} %", 100.0 * p.ratio);
            table.push(false, vec![label.clone(), p.name.clone(), share, format!("{:.1}", p.decline_percent), p.source.clone()]);
        }
        for unet in results.unets.iter().filter(|u| u.role != Role::Teacher) {
            let Some(decline) = unet.metric(id).and_then(|m| m.decline) else { continue };
            let gone = results.params().saturating_sub(unet.params);
            let [value, low, high] = [decline.value, decline.low, decline.high].map(|x| 100.0 * x);
            table.push(
                true,
                vec![
                    label.clone(),
                    unet.label.clone(),
                    format::share(gone, results.params()),
                    format!("{value:.1} [{low:.1}, {high:.1}]"),
                    "this run".into(),
                ],
            );
        }
    }
    Some(table)
}

/// What each metric says by category of prompts; none without categories.
pub(super) fn category_table(results: &Results) -> Option<Table> {
    if results.by_category.is_empty() {
        return None;
    }
    let head = ["category", "metric", "U-Net", "prompts", "value", "relative decline", "against the teacher"];
    let mut table =
        Table::new("Quality by category of prompts, with the same intervals; they are wider, since each has fewer prompts", &head);
    let categories: BTreeSet<&str> = results.by_category.iter().map(|r| r.category.as_str()).collect();
    for category in categories {
        for info in &results.metrics {
            for row in results.by_category.iter().filter(|r| r.category == category) {
                let Some(m) = row.metrics.iter().find(|m| m.metric == info.id) else { continue };
                let unet = results.unet(&row.unet);
                let label = unet.map_or_else(|| row.unet.clone(), |u| u.label.clone());
                table.push(
                    unet.is_some_and(|u| u.role == Role::Teacher),
                    vec![
                        category.to_owned(),
                        info.label.clone(),
                        label,
                        m.n.to_string(),
                        format::interval(&m.value, info),
                        format::decline(m, info),
                        m.verdict.map_or("–", format::verdict).into(),
                    ],
                );
            }
        }
    }
    Some(table)
}
