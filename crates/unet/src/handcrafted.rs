//! Removals chosen by hand, as BK-SDM (arXiv 2305.15798) does, on any configuration: the rivals of a searched plan.
//!
//! A *pair* is a ResNet and the Transformer2D behind it. Base removes the second pair of each down level and the middle pair
//! of each up level; with other numbers of layers, every pair but the first of a down level, and every pair but the first and the last of
//! an up level. Small also removes the mid block, Tiny also the innermost level. Unlike BK-SDM, which builds a smaller
//! U-Net, removal here keeps skips and `conv_shortcut`s, so somewhat more parameters stay.

use prune_core::{Cost, LayerId, RemovalSet};

use crate::config::{Part, Stage, StageKind, UNetConfig};
use crate::error::{Error, Result};
use crate::layout::{Layout, layer_table};

/// Branch ids of one pair, in the order of the forward pass.
type Pair = Vec<LayerId>;

/// What BK-SDM-Base removes, branch by branch.
pub fn bk_sdm_base(config: &UNetConfig) -> Vec<LayerId> {
    Order::new(config).base.concat()
}

/// What BK-SDM-Small removes: Base and the mid block.
pub fn bk_sdm_small(config: &UNetConfig) -> Vec<LayerId> {
    let order = Order::new(config);
    [order.base, order.mid].concat().concat()
}

/// What BK-SDM-Tiny removes: Small and the innermost level.
pub fn bk_sdm_tiny(config: &UNetConfig) -> Vec<LayerId> {
    let order = Order::new(config);
    [order.base, order.mid, order.innermost].concat().concat()
}

/// A hand-crafted plan at any budget: BK-SDM's order, continued until at least `target` parameters go.
///
/// The order: the pairs of Base, from the innermost level outwards, in each level down before up; the mid block; what is
/// left of the innermost level; what is left of the next levels outwards. Pairs go whole, except the last one, which goes from its end
/// (last block's `ff` first, ResNet last) only as far as the budget needs.
///
/// # Errors
/// [`Error::Input`] when even all layers hold fewer parameters than `target`.
pub fn bk_sdm_style(config: &UNetConfig, target: u64) -> Result<Vec<LayerId>> {
    let table = layer_table(config, 1, 1)?;
    let gone = |ids: &[LayerId]| -> Result<u64> { Ok(table.removed_cost(&ids.iter().cloned().collect::<RemovalSet>(), Cost::Params)?) };
    let order = Order::new(config);
    let mut chosen: Vec<LayerId> = Vec::new();
    for pair in [order.base, order.mid, order.innermost, order.rest].concat() {
        if gone(&chosen)? >= target {
            break;
        }
        let whole = [chosen.clone(), pair.clone()].concat();
        if gone(&whole)? < target {
            chosen = whole;
            continue;
        }
        for id in pair.into_iter().rev() {
            if gone(&chosen)? < target {
                chosen.push(id);
            }
        }
    }
    let reached = gone(&chosen)?;
    if reached < target {
        return Err(Error::Input {
            name: "target".into(),
            expected: format!("at most {reached} removed parameters"),
            got: target.to_string(),
        });
    }
    Ok(chosen)
}

/// Pairs in the order in which they go.
struct Order {
    base: Vec<Pair>,
    mid: Vec<Pair>,
    innermost: Vec<Pair>,
    rest: Vec<Pair>,
}

impl Order {
    fn new(config: &UNetConfig) -> Self {
        let layout = Layout::new(config);
        let of = |kind: StageKind| config.stages.iter().filter(move |s| s.kind == kind);
        // Innermost level first.
        let levels: Vec<(Vec<Pair>, Vec<Pair>)> =
            of(StageKind::Down).rev().zip(of(StageKind::Up)).map(|(down, up)| (pairs(&layout, down), pairs(&layout, up))).collect();
        let extra = |i: usize, n: usize, up: bool| i > 0 && !(up && i + 1 == n);
        let pick = |pairs: &[Pair], up: bool, wanted: bool| -> Vec<Pair> {
            let n = pairs.len();
            pairs.iter().enumerate().filter(|(i, _)| extra(*i, n, up) == wanted).map(|(_, p)| p.clone()).collect()
        };
        let level = |wanted: bool, (down, up): &(Vec<Pair>, Vec<Pair>)| [pick(down, false, wanted), pick(up, true, wanted)].concat();
        let (inner, outer) = levels.split_at(1.min(levels.len()));
        Self {
            base: levels.iter().flat_map(|l| level(true, l)).collect(),
            mid: of(StageKind::Mid).map(|s| pairs(&layout, s).concat()).collect(),
            innermost: inner.iter().flat_map(|l| level(false, l)).collect(),
            rest: outer.iter().flat_map(|l| level(false, l)).collect(),
        }
    }
}

fn pairs(layout: &Layout, stage: &Stage) -> Vec<Pair> {
    let mut pairs: Vec<Pair> = Vec::new();
    for part in &stage.parts {
        if matches!(part, Part::Resnet(_)) || pairs.is_empty() {
            pairs.push(Pair::new());
        }
        let branches = layout.group(part.id()).unwrap_or(0..0);
        if let Some(pair) = pairs.last_mut() {
            pair.extend(layout.branches()[branches].iter().map(|b| LayerId::from(b.id.as_str())));
        }
    }
    pairs
}
