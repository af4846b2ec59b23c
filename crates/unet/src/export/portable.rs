//! Portability as constraints of the search: which removals cost no padding, for a program that knows blocks only.
//!
//! BasicTransformerBlocks go as a whole and ResNets stay. All blocks of one Transformer2D cost the same, so the best of its removals
//! take its blocks in the order of their scores; what a program asks of depths therefore turns into fixed and linked blocks, and the
//! search stays exact.

use prune_core::{Constraints, LayerId, Plan, Scores};

use super::{COMFYUI_DEPTHS, Kept, Program, transformers};
use crate::config::{Part, UNetConfig};
use crate::error::{Error, Result};
use crate::layout::Layout;

/// Alternatives: every removal under any of these constraints loads in the program without padding, and the best removal without
/// padding is among them.
///
/// # Errors
/// [`Error::Portable`] where the program cannot load the architecture at all; [`Error::Core`] for scores of another architecture;
/// [`Error::Layer`] for scores whose layers are whole Transformer2Ds.
pub fn portable_constraints(config: &UNetConfig, scores: &Scores, program: Program) -> Result<Vec<Constraints>> {
    let blocks = Blocks::new(config, scores)?;
    let mut base = Constraints::none();
    let resnets = config.stages.iter().flat_map(|s| &s.parts).filter(|p| matches!(p, Part::Resnet(_))).map(|p| p.id());
    base.keep.extend(resnets.filter(|id| scores.table().layer(id).is_some()).map(LayerId::from));
    base.together.extend(blocks.0.iter().flat_map(|t| &t.blocks).map(|b| b.ids.iter().cloned().collect()));
    let layout = Layout::new(config);
    let kept = Kept::new(config, &layout, &vec![false; layout.branches().len()]);
    match program {
        // Every removal fits into the original's own shape, at the price of the saving.
        Program::Neutral => Ok(vec![Constraints::none()]),
        Program::Diffusers => {
            // A Transformer2D without blocks keeps its norm and projections, so one block stays, the one that matters most.
            for t in &blocks.0 {
                base.keep.extend(t.blocks.last().iter().flat_map(|b| b.ids.iter().cloned()));
            }
            if let (Some(mid), Some(partner)) = (&kept.mid_attention, kept.mid_partner()) {
                link(&mut base, blocks.of(mid), blocks.of(&partner));
            }
            Ok(vec![base])
        }
        Program::ComfyUi => {
            let mid = kept.mid_attention.as_ref().and_then(|id| blocks.of(id).last());
            base.keep.extend(mid.iter().flat_map(|b| b.ids.iter().cloned()));
            if !kept.pooled {
                return Ok(vec![base]);
            }
            let alternatives: Vec<Constraints> = COMFYUI_DEPTHS.iter().filter_map(|list| fixed(&base, &kept, &blocks, list)).collect();
            match alternatives.is_empty() {
                false => Ok(alternatives),
                true => {
                    Err(Error::Portable { program: "ComfyUI", reason: "its depths on the way down reach no network that it knows".into() })
                }
            }
        }
    }
}

/// The plan that loses least among those that `choose` finds under [`portable_constraints`] and the caller's own; `None` where the program
/// loads nothing of this architecture.
///
/// # Errors
/// As [`portable_constraints`]; where no alternative has a plan, what `choose` said of the last one.
pub fn best_portable<E: From<Error>>(
    config: &UNetConfig,
    scores: &Scores,
    program: Program,
    own: &Constraints,
    mut choose: impl FnMut(&Constraints) -> std::result::Result<Plan, E>,
) -> std::result::Result<Option<Plan>, E> {
    let mut best: Option<Plan> = None;
    let mut failure = None;
    for mut constraints in portable_constraints(config, scores, program)? {
        constraints.keep.extend(own.keep.iter().cloned());
        constraints.remove.extend(own.remove.iter().cloned());
        match choose(&constraints) {
            Ok(plan) if best.as_ref().is_none_or(|best| plan.predicted < best.predicted) => best = Some(plan),
            Ok(_) => {}
            // Another alternative may do; what is wrong with the input is wrong with all.
            Err(error) => failure = Some(error),
        }
    }
    match (best, failure) {
        (None, Some(error)) => Err(error),
        (best, _) => Ok(best),
    }
}

/// A block with the items of the table that it is made of.
struct Block {
    ids: Vec<LayerId>,
    score: f64,
}

struct Scored {
    id: String,
    /// Ascending in score.
    blocks: Vec<Block>,
}

struct Blocks(Vec<Scored>);

impl Blocks {
    fn new(config: &UNetConfig, scores: &Scores) -> Result<Self> {
        let table = scores.table();
        let mut all = Vec::new();
        for t in transformers(config) {
            if table.layer(&t.id).is_some() {
                return Err(Error::Layer {
                    id: t.id.clone(),
                    reason: "portable plans choose among blocks; score blocks or branches".into(),
                });
            }
            let mut blocks = Vec::new();
            for i in 0..t.depth {
                let id = format!("{}.transformer_blocks.{i}", t.id);
                let parts = ["attn1", "attn2", "ff"].map(|part| format!("{id}.{part}"));
                let ids: Vec<LayerId> =
                    parts.iter().chain([&id]).filter(|id| table.layer(id).is_some()).map(|id| id.as_str().into()).collect();
                let score = scores.predicted(&ids.iter().cloned().collect())?;
                blocks.push(Block { ids, score });
            }
            blocks.sort_by(|a, b| a.score.total_cmp(&b.score));
            all.push(Scored { id: t.id.clone(), blocks });
        }
        Ok(Self(all))
    }

    fn of(&self, id: &str) -> &[Block] {
        self.0.iter().find(|t| t.id == id).map_or(&[], |t| &t.blocks)
    }
}

/// Two Transformer2Ds lose the same number of blocks, or each keeps what the other cannot match.
fn link(constraints: &mut Constraints, a: &[Block], b: &[Block]) {
    for (a, b) in a.iter().zip(b) {
        constraints.together.push(a.ids.iter().chain(&b.ids).cloned().collect());
    }
    let rest = if a.len() > b.len() { &a[b.len()..] } else { &b[a.len()..] };
    constraints.keep.extend(rest.iter().flat_map(|block| block.ids.iter().cloned()));
}

/// The way down cut to these depths; `None` where it cannot be.
fn fixed(base: &Constraints, kept: &Kept, blocks: &Blocks, list: &[usize]) -> Option<Constraints> {
    let mut constraints = base.clone();
    if list.len() != kept.down.len() {
        return None;
    }
    for (id, depth) in kept.down.iter().zip(list) {
        let blocks = id.as_ref().map_or(&[][..], |id| blocks.of(id));
        let goes = blocks.len().checked_sub(*depth)?;
        if id.is_some() != (*depth > 0) {
            return None;
        }
        constraints.remove.extend(blocks[..goes].iter().flat_map(|b| b.ids.iter().cloned()));
        constraints.keep.extend(blocks[goes..].iter().flat_map(|b| b.ids.iter().cloned()));
    }
    Some(constraints)
}
