//! The drawing of the U-Net: stages as a U, one cell per removable layer. It is HTML, not SVG, so that it reflows on a phone and every
//! cell can take the keyboard's focus; a few lines of script switch between plans and criteria.

use serde::Serialize;
use serde_json::json;

use prune_core::LayerId;
use prune_core::table::Layer;

use super::charts::kind_series;
use super::format;
use crate::results::{CriterionScores, PlanRow, Results};

/// Heat runs over this many steps.
const HEAT_STEPS: usize = 10;

/// All that the template needs for the drawing.
#[derive(Serialize)]
pub struct Drawing {
    levels: Vec<Level>,
    bottom: Vec<Stage>,
    dense: bool,
    kinds: Vec<KindLegend>,
    plans: Vec<PlanChoice>,
    criteria: Vec<String>,
    /// For the script: layers, criteria and plans.
    data: String,
}

#[derive(Serialize)]
struct Level {
    down: Option<Stage>,
    up: Option<Stage>,
}

#[derive(Serialize)]
struct Stage {
    name: String,
    groups: Vec<Group>,
}

/// Cells that belong together: one ResNet, or one transformer block.
#[derive(Serialize)]
struct Group {
    name: String,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    index: usize,
    letter: &'static str,
    heat: usize,
    gone: bool,
    text: String,
}

#[derive(Serialize)]
struct KindLegend {
    letter: &'static str,
    label: String,
}

#[derive(Serialize)]
struct PlanChoice {
    label: String,
    chosen: bool,
}

impl Drawing {
    /// The drawing with the headline plan and the first criterion chosen.
    pub fn new(results: &Results) -> Self {
        let headline = results.headline().map(|p| p.name.as_str());
        let gone = results.headline().map(PlanRow::removed).unwrap_or_default();
        let heats: Vec<Vec<usize>> = results.criteria.iter().map(heat).collect();
        let mut stages: Vec<Stage> = Vec::new();
        for (index, layer) in results.layers().iter().enumerate() {
            let id = layer.id.as_str();
            let rest = id.strip_prefix(layer.stage.as_str()).unwrap_or(id).trim_start_matches('.');
            if stages.last().is_none_or(|s| s.name != layer.stage) {
                stages.push(Stage { name: layer.stage.clone(), groups: Vec::new() });
            }
            let group =
                if rest.contains("transformer_blocks") { rest.split('.').take(4).collect::<Vec<_>>().join(".") } else { rest.into() };
            let Some(own) = stages.last_mut() else { continue };
            if own.groups.last().is_none_or(|g| g.name != group) {
                own.groups.push(Group { name: group, cells: Vec::new() });
            }
            let is_gone = gone.contains(layer.id.as_str());
            let score = results.criteria.first().map(|c| (c.label.as_str(), score_text(c, index)));
            let cell = Cell {
                index,
                letter: letter(&layer.kind),
                heat: heats.first().map_or(0, |h| h[index]),
                gone: is_gone,
                text: cell_text(layer, score, is_gone),
            };
            if let Some(group) = own.groups.last_mut() {
                group.cells.push(cell);
            }
        }
        let mut kinds: Vec<KindLegend> = Vec::new();
        for layer in results.layers() {
            if !kinds.iter().any(|k| k.letter == letter(&layer.kind)) {
                kinds.push(KindLegend { letter: letter(&layer.kind), label: format::kind(&layer.kind).into() });
            }
        }
        let plans = results.plans.iter().map(|p| PlanChoice { label: plan_name(p), chosen: Some(p.name.as_str()) == headline });
        let (levels, bottom) = as_u(stages);
        Self {
            levels,
            bottom,
            dense: results.layers().len() > 120,
            kinds,
            plans: plans.collect(),
            criteria: results.criteria.iter().map(|c| c.label.clone()).collect(),
            data: script_data(results, &heats),
        }
    }
}

/// A plan's label with its ratio and seed, as it stands in lists.
pub fn plan_name(plan: &PlanRow) -> String {
    let seed = plan.plan.seed.map_or(String::new(), |s| format!(", seed {s}"));
    format!("{} – {}{seed}", format::percent(plan.ratio).replace(".0 %", " %"), plan.label)
}

/// Down stages on the left, up stages on the right of the same level, all else at the bottom.
fn as_u(stages: Vec<Stage>) -> (Vec<Level>, Vec<Stage>) {
    let number = |s: &Stage, side: &str| s.name.strip_prefix(side).and_then(|n| n.parse::<usize>().ok());
    let depth = stages.iter().filter_map(|s| number(s, "down_blocks.").or(number(s, "up_blocks."))).max().map_or(0, |n| n + 1);
    let mut levels: Vec<Level> = (0..depth).map(|_| Level { down: None, up: None }).collect();
    let mut bottom = Vec::new();
    for stage in stages {
        match (number(&stage, "down_blocks."), number(&stage, "up_blocks.")) {
            (Some(n), _) => levels[n].down = Some(stage),
            (_, Some(n)) => levels[depth - 1 - n].up = Some(stage),
            _ => bottom.push(stage),
        }
    }
    (levels, bottom)
}

fn letter(kind: &str) -> &'static str {
    ["R", "S", "C", "F", "B", "T", "?"][kind_series(kind)]
}

fn cell_text(layer: &Layer, score: Option<(&str, String)>, gone: bool) -> String {
    let score = score.map_or(String::new(), |(label, text)| format!(", {label} {text}"));
    let (params, macs) = (format::count(layer.params), format::macs(layer.macs));
    format!("{}: {}, {params} parameters, {macs} MACs{score}{}", layer.id, format::kind(&layer.kind), if gone { ", removed" } else { "" })
}

fn score_text(c: &CriterionScores, index: usize) -> String {
    format::plus_minus(c.values()[index], c.standard_errors()[index])
}

/// Rank of each layer's score in `HEAT_STEPS` steps: scores span decades, and for some criteria are negative, so the shade shows the rank.
fn heat(c: &CriterionScores) -> Vec<usize> {
    let mut order: Vec<usize> = (0..c.values().len()).collect();
    order.sort_by(|a, b| c.values()[*a].total_cmp(&c.values()[*b]));
    let mut heat = vec![0; order.len()];
    for (rank, index) in order.iter().enumerate() {
        heat[*index] = rank * HEAT_STEPS / order.len();
    }
    heat
}

fn script_data(results: &Results, heats: &[Vec<usize>]) -> String {
    let index = |id: &LayerId| results.model.table.position(id.as_str());
    let layers: Vec<String> = results.layers().iter().map(|l| cell_text(l, None, false)).collect();
    let scores = |c: &CriterionScores| (0..c.values().len()).map(|i| score_text(c, i)).collect::<Vec<_>>();
    let criteria: Vec<_> =
        results.criteria.iter().zip(heats).map(|(c, heat)| json!({"label": c.label, "heat": heat, "scores": scores(c)})).collect();
    let plans: Vec<_> = results
        .plans
        .iter()
        .map(|p| {
            let kept = results.params().saturating_sub(p.plan.params_removed);
            let measured =
                p.joint.map_or(String::new(), |m| format!("; joint output loss {}", format::plus_minus(m.mean, m.standard_error)));
            let text = format!(
                "{} of {} layers removed, {} parameters left ({}){measured}.",
                p.plan.removed.len(),
                results.layers().len(),
                format::count(kept),
                format::share(kept, results.params())
            );
            json!({"removed": p.plan.removed.iter().filter_map(index).collect::<Vec<_>>(), "text": text})
        })
        .collect();
    // Inside a script element only `<` could end it early.
    json!({"layers": layers, "criteria": criteria, "plans": plans}).to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_stages_stand_beside_the_down_stage_of_their_level() {
        let stage = |name: &str| Stage { name: name.into(), groups: Vec::new() };
        let (levels, bottom) = as_u(["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"].map(stage).into());
        let name = |s: &Option<Stage>| s.as_ref().map(|s| s.name.clone()).unwrap();
        assert_eq!(
            levels.iter().map(|l| (name(&l.down), name(&l.up))).collect::<Vec<_>>(),
            [("down_blocks.0".to_string(), "up_blocks.1".to_string()), ("down_blocks.1".to_string(), "up_blocks.0".to_string())]
        );
        assert_eq!(bottom[0].name, "mid_block");
    }
}
