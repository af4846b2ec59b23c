//! Scores and audits as rows of `results.json`. Scores and audit -> **results** -> report.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use eval::{AuditPoint, AuditStats, BinTable, CriterionScores, FrontCurve, PartSlope, ScoreRow, SetGroup};
use prune_core::{AuditFile, Constraints, Cost, Front, Scores};
use serde_json::Value;

use unet::scoring::{CLIP_SCORE, Criterion, NUMBER_NOISE, OUTPUT_LOSS, below_noise};

/// A criterion in words.
pub fn label(criterion: &str) -> String {
    Criterion::named(criterion).map_or(criterion, |known| known.label).to_string()
}

fn description(criterion: &str) -> &'static str {
    Criterion::named(criterion).map_or("A criterion of another program.", |known| known.meaning)
}

/// One criterion's scores.
///
/// # Errors
/// When a layer has no score.
pub fn criterion(scores: &Scores, train_timesteps: Option<i64>) -> anyhow::Result<CriterionScores> {
    let ids: Vec<&str> = scores.table().layers().iter().map(|l| l.id.as_str()).collect();
    let means = scores.values()?;
    let mut description = description(scores.criterion()).to_string();
    let setting = |key| scores.settings().get(key);
    if let (Some(compute), Some(rounding)) = (setting("compute").and_then(Value::as_str), setting(NUMBER_NOISE).and_then(Value::as_f64))
        && scores.criterion() == OUTPUT_LOSS
    {
        let (small, all) = (below_noise(rounding, &means), means.len());
        description += &format!(
            " Computed in {compute}, whose rounding alone changes the output by {rounding:.1e}: {small} of {all} layers do not exceed it."
        );
    }
    let rows = ids.iter().zip(means).map(|(id, mean)| ScoreRow {
        layer: id.to_string(),
        mean,
        se: scores.layer(id).and_then(|s| s.standard_error()),
    });
    Ok(CriterionScores {
        criterion: scores.criterion().into(),
        label: label(scores.criterion()),
        description,
        samples: scores.samples().len(),
        scores: rows.collect(),
        bins: bins(scores, &ids, train_timesteps),
    })
}

/// Means by timestep bin; nothing where the samples are no points in time.
fn bins(scores: &Scores, ids: &[&str], train_timesteps: Option<i64>) -> Option<BinTable> {
    let count = scores.settings().get("timestep_bins").and_then(Value::as_u64).filter(|_| scores.criterion() != CLIP_SCORE)?;
    let last = u64::try_from(train_timesteps?).ok()?;
    if scores.bins().is_empty() || count == 0 {
        return None;
    }
    // Bin b holds the timesteps t with floor(t * count / last) = b.
    let bounds = (0..count).map(|b| [(b * last).div_ceil(count) as u32, ((b + 1) * last).div_ceil(count).saturating_sub(1) as u32]);
    let row = |values: BTreeMap<u32, f64>| (0..count as u32).map(|b| values.get(&b).copied()).collect();
    Some(BinTable {
        bins: bounds.collect(),
        means: ids.iter().map(|id| row(scores.bin_means(id))).collect(),
        ses: ids.iter().map(|id| row(scores.bin_standard_errors(id))).collect(),
    })
}

/// A drawing needs no more points than this.
const FRONT_POINTS: usize = 400;

/// What the best plan of every budget is predicted to lose; nothing where the front has more states than fit.
pub fn front(scores: &Scores) -> Option<FrontCurve> {
    let front = match Front::build(scores, Cost::Params, &Constraints::none()) {
        Ok(front) => front,
        Err(error) => {
            tracing::warn!("the report has no Pareto front: {error}");
            return None;
        }
    };
    let all = front.points();
    let every = all.len().div_ceil(FRONT_POINTS).max(1);
    let last = all.len().saturating_sub(1);
    let kept = all.iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last);
    Some(FrontCurve { criterion: scores.criterion().into(), points: kept.map(|(_, p)| (p.removed, p.score)).collect() })
}

/// The group that a stratum's name stands for.
fn group_of(stratum: &str) -> Option<SetGroup> {
    let (kind, number) = stratum.split_once('=')?;
    match kind {
        "layers" => Some(SetGroup::Layers(number.parse().ok()?)),
        "params_ratio" => Some(SetGroup::Ratio(number.parse().ok()?)),
        _ => None,
    }
}

/// One criterion's audit.
pub fn audit(audit: &prune_core::Audit, file: &AuditFile) -> eval::Audit {
    let stats = |group: Option<SetGroup>, s: &prune_core::AuditStats| AuditStats {
        group,
        n: s.sets,
        pearson: s.pearson,
        spearman: s.spearman,
        slope: s.slope,
    };
    let mut all = vec![stats(None, &audit.overall)];
    let mut by_group: Vec<AuditStats> = audit.strata.iter().map(|(name, s)| stats(group_of(name), s)).collect();
    by_group.sort_by(|a, b| a.group.partial_cmp(&b.group).unwrap_or(Ordering::Equal));
    all.extend(by_group);
    let mut points = Vec::new();
    for ((set, predicted), measured) in file.sets.iter().zip(&audit.predicted).zip(&audit.measured) {
        points.push(AuditPoint {
            group: group_of(&set.stratum).unwrap_or(SetGroup::Layers(set.removed.len())),
            layers: set.removed.len(),
            predicted: *predicted,
            measured: *measured,
            measured_se: set.losses.get(&audit.against).and_then(|g| g.standard_error),
        });
    }
    let samples = file.samples.len();
    let description = if audit.against == audit.criterion {
        format!("Joint value of the same criterion for random sets of layers, on {samples} held-out points.")
    } else {
        format!(
            "Joint {} of random sets of layers on {samples} held-out points; the two have different units, so only ranks count.",
            label(&audit.against)
        )
    };
    let depths = audit.depths.iter().map(|(name, s)| (format!("quarter {name} of the forward pass"), s));
    let parts = audit.kinds.iter().map(|(name, s)| (name.replace('_', " "), s)).chain(depths);
    let parts = parts.map(|(part, s)| PartSlope { part, share: s.share, slope: s.slope, se: s.standard_error }).collect();
    eval::Audit { criterion: audit.criterion.clone(), description, stats: all, parts, points }
}
