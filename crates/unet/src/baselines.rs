//! Removals chosen by hand, as rivals of a searched plan: BK-SDM's order of blocks at any budget, and published reductions by name.
//!
//! BK-SDM (arXiv 2305.15798): a *pair* is a ResNet and the Transformer2D behind it. Base removes the second pair of each down level and the
//! middle pair of each up level; with other numbers of layers, every pair but the first of a down level, and every pair but the first and
//! the last of an up level. Small also removes the mid block, Tiny also the innermost level.
//!
//! SSD-1B (arXiv 2401.02677) and Segmind-Vega keep every pair and shorten transformers; KOALA (arXiv 2312.04005) takes pairs as
//! BK-SDM-Base does and shortens the rest. Their papers do not say which blocks of a transformer stay; here the first ones do.
//!
//! Unlike BK-SDM and KOALA, which build a smaller U-Net, removal keeps skips and `conv_shortcut`s, so somewhat more parameters stay here.

use prune_core::table::{Cost, LayerTable};
use prune_core::{Budget, LayerId, Plan, RemovalSet, Scores};

use crate::config::{Part, Stage, StageKind, Transformer, UNetConfig};
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

/// [`bk_sdm_style`] as a plan for a budget in parameters, with what the scores say of it.
///
/// # Errors
/// [`prune_core::Error::Infeasible`] where the budget is out of reach even with every layer gone.
pub fn bk_sdm_plan(config: &UNetConfig, scores: &Scores, budget: &Budget) -> Result<Plan> {
    let table = scores.table();
    let needed = budget.required(table)?;
    let removed = bk_sdm_style(config, needed).map_err(|e| match e {
        // The same failure as that of the other methods.
        Error::Input { .. } => infeasible(table, needed),
        other => other,
    })?;
    let mut plan = Plan::from_removed(table, "bk-sdm", removed)?;
    plan.set_budget(budget, table)?;
    plan.set_scores(scores)?;
    Ok(plan)
}

fn infeasible(table: &LayerTable, needed: u64) -> Error {
    let all = table.layers().iter().map(|l| l.id.clone()).collect();
    let available = table.removed_cost(&all, Cost::Params).unwrap_or(0);
    let largest_ratio = available as f64 / table.total_params().max(1) as f64;
    prune_core::Error::Infeasible { cost: Cost::Params, needed, available, largest_ratio }.into()
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

/// A published reduction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// BK-SDM-Base (arXiv 2305.15798), of SD-v1.x.
    BkSdmBase,
    /// BK-SDM-Small.
    BkSdmSmall,
    /// BK-SDM-Tiny.
    BkSdmTiny,
    /// SSD-1B (arXiv 2401.02677), of SDXL.
    Ssd1b,
    /// Segmind-Vega, of SDXL.
    SegmindVega,
    /// KOALA-1B (arXiv 2312.04005), of SDXL.
    Koala1b,
    /// KOALA-700M.
    Koala700m,
}

/// What stays of SDXL's middle.
#[derive(Clone, Copy, PartialEq)]
enum Mid {
    /// Both ResNets around this many transformer blocks.
    Depth(usize),
    /// The first ResNet.
    OneResnet,
    /// Nothing.
    Nothing,
}

impl Published {
    /// All of them.
    pub const ALL: [Published; 7] =
        [Self::BkSdmBase, Self::BkSdmSmall, Self::BkSdmTiny, Self::Ssd1b, Self::SegmindVega, Self::Koala1b, Self::Koala700m];

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|published| published.name() == name)
    }

    /// The name under which it is known, such as `ssd-1b`.
    pub fn name(self) -> &'static str {
        match self {
            Self::BkSdmBase => "bk-sdm-base",
            Self::BkSdmSmall => "bk-sdm-small",
            Self::BkSdmTiny => "bk-sdm-tiny",
            Self::Ssd1b => "ssd-1b",
            Self::SegmindVega => "segmind-vega",
            Self::Koala1b => "koala-1b",
            Self::Koala700m => "koala-700m",
        }
    }

    /// What it is, in one sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::BkSdmBase => "What BK-SDM-Base removes; this and the following have a budget of their own",
            Self::BkSdmSmall => "What BK-SDM-Small removes",
            Self::BkSdmTiny => "What BK-SDM-Tiny removes",
            Self::Ssd1b => "What SSD-1B (arXiv 2401.02677) removes from SDXL",
            Self::SegmindVega => "What Segmind-Vega removes from SDXL",
            Self::Koala1b => "What KOALA-1B (arXiv 2312.04005) removes from SDXL",
            Self::Koala700m => "What KOALA-700M removes from SDXL",
        }
    }

    /// The reduction of a model as a plan, at the budget that it has; `table` is the model's, branch by branch.
    ///
    /// # Errors
    /// As [`Published::removed`]; for scores or a table of another model.
    pub fn plan(self, config: &UNetConfig, table: &LayerTable, scores: Option<&Scores>) -> Result<Plan> {
        let mut plan = Plan::from_removed(table, self.name(), self.removed(config)?)?;
        plan.set_budget(&Budget::params(plan.removed_cost(Cost::Params)), table)?;
        if let Some(scores) = scores {
            plan.set_scores(scores)?;
        }
        Ok(plan)
    }

    /// The branches that go from `config`, whatever its widths. BK-SDM's rules fit every configuration; the others are made for
    /// SDXL's topology (transformer depths 2 and 10).
    ///
    /// # Errors
    /// [`Error::Input`] that names the transformer whose depth is not SDXL's.
    pub fn removed(self, config: &UNetConfig) -> Result<Vec<LayerId>> {
        let shorten = |down: [&[usize]; 2], mid, up: [&[usize]; 2]| shorten(self.name(), config, down, mid, up);
        match self {
            Self::BkSdmBase => Ok(bk_sdm_base(config)),
            Self::BkSdmSmall => Ok(bk_sdm_small(config)),
            Self::BkSdmTiny => Ok(bk_sdm_tiny(config)),
            Self::Ssd1b => shorten([&[2, 2], &[4, 4]], Mid::OneResnet, [&[4, 4, 10], &[2, 1, 1]]),
            Self::SegmindVega => shorten([&[1, 1], &[2, 2]], Mid::OneResnet, [&[2, 2, 2], &[1, 1, 1]]),
            Self::Koala1b => koala(shorten([&[2, 2], &[6, 6]], Mid::Depth(6), [&[6, 6, 6], &[2, 2, 2]])?, config),
            Self::Koala700m => koala(shorten([&[2, 2], &[5, 5]], Mid::Nothing, [&[5, 5, 5], &[2, 2, 2]])?, config),
        }
    }
}

/// The shortened transformers without one pair of each level.
fn koala(mut shortened: Vec<LayerId>, config: &UNetConfig) -> Result<Vec<LayerId>> {
    for id in bk_sdm_base(config) {
        if !shortened.contains(&id) {
            shortened.push(id);
        }
    }
    Ok(shortened)
}

/// Removes all blocks beyond the given depths, in the order of the forward pass.
fn shorten(name: &str, config: &UNetConfig, down: [&[usize]; 2], mid: Mid, up: [&[usize]; 2]) -> Result<Vec<LayerId>> {
    let wrong = |what: String, expected: String, got: String| Error::Input { name: format!("{name}: {what}"), expected, got };
    let (mut downs, mut ups) = (down.iter(), up.iter());
    let mut gone = Vec::new();
    for stage in &config.stages {
        let transformers: Vec<&Transformer> =
            stage.parts.iter().filter_map(|part| if let Part::Transformer(t) = part { Some(t) } else { None }).collect();
        if stage.kind == StageKind::Mid {
            let (resnets, blocks) = match mid {
                Mid::Depth(depth) => (2, depth),
                Mid::OneResnet => (1, 0),
                Mid::Nothing => (0, 0),
            };
            let ids = stage.parts.iter().filter_map(|part| if let Part::Resnet(r) = part { Some(&r.id) } else { None });
            gone.extend(ids.skip(resnets).map(|id| LayerId::from(id.as_str())));
            transformers.iter().for_each(|t| gone.extend(blocks_from(t, blocks)));
            continue;
        }
        if transformers.is_empty() {
            continue;
        }
        let depths = if stage.kind == StageKind::Down { downs.next() } else { ups.next() };
        let depths = depths.filter(|depths| depths.len() == transformers.len()).ok_or_else(|| {
            wrong(stage.name.clone(), "SDXL's levels of transformers".into(), format!("{} transformers", transformers.len()))
        })?;
        for (t, &depth) in transformers.iter().zip(depths.iter()) {
            if t.depth < depth {
                return Err(wrong(t.id.clone(), format!("at least {depth} transformer blocks"), t.depth.to_string()));
            }
            gone.extend(blocks_from(t, depth));
        }
    }
    if downs.next().is_some() || ups.next().is_some() {
        return Err(wrong("levels".into(), "two levels of transformers, as SDXL has".into(), "fewer".into()));
    }
    Ok(gone)
}

/// The branches of all blocks but the first `depth`.
fn blocks_from(t: &Transformer, depth: usize) -> impl Iterator<Item = LayerId> {
    let blocks = (depth..t.depth).map(|i| format!("{}.transformer_blocks.{i}", t.id));
    blocks.flat_map(|block| ["attn1", "attn2", "ff"].map(|part| LayerId::from(format!("{block}.{part}").as_str())))
}

/// How the layers of a plan are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlanMethod {
    /// The least sum of scores among all sets that meet the budget.
    Exact,
    /// By score per parameter.
    Greedy,
    /// A random minimal set.
    Random,
    /// The order in which BK-SDM (arXiv 2305.15798) takes blocks away, as far as the budget asks.
    BkSdm,
    /// A published reduction.
    Published(Published),
}

impl PlanMethod {
    /// All methods.
    pub fn all() -> impl Iterator<Item = Self> {
        [Self::Exact, Self::Greedy, Self::Random, Self::BkSdm].into_iter().chain(Published::ALL.map(Self::Published))
    }

    /// Its name in plans and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Greedy => "greedy",
            Self::Random => "random",
            Self::BkSdm => "bk-sdm",
            Self::Published(published) => published.name(),
        }
    }

    /// What it does, in one sentence.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Exact => "The least sum of scores among all sets that meet the budget",
            Self::Greedy => "By score per parameter",
            Self::Random => "A random minimal set",
            Self::BkSdm => "The order in which BK-SDM (arXiv 2305.15798) takes blocks away, as far as the budget asks",
            Self::Published(published) => published.meaning(),
        }
    }
}
