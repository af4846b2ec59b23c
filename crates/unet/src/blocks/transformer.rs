//! Transformer2D: self-attention, attention to the text, and a feed-forward layer, as often as the depth says. Part of the
//! U-Net's forward.
//!
//! Shapes: `B` batch, `C` channels, `H` `W` height and width, `T = H * W` positions, `S` text tokens, `D` text width.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{BuildContext, ForwardContext, Slot};
use crate::config;
use crate::nn::{Conv2d, GroupNorm, LayerNorm, Linear, attention};
use crate::weights::Cursor;

/// Normalization and multi-head attention to the tokens themselves or to the text.
#[derive(Debug)]
struct Attention {
    norm: LayerNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: i64,
    upcast: bool,
}

impl Attention {
    fn new(norm: &Cursor, at: &Cursor, t: &config::Transformer, d_context: i64, upcast: bool) -> Self {
        let c = t.channels;
        Self {
            norm: LayerNorm::new(norm, c, LAYER_NORM_EPS),
            to_q: Linear::new(&at.pp("to_q"), c, c, false),
            to_k: Linear::new(&at.pp("to_k"), d_context, c, false),
            to_v: Linear::new(&at.pp("to_v"), d_context, c, false),
            to_out: Linear::new(&at.pp("to_out").pp(0), c, c, true),
            heads: t.heads,
            upcast,
        }
    }

    /// `x [B, T, C]`, `context [B, S, D]` -> `[B, T, C]`; without a context the tokens attend to themselves.
    fn forward(&self, x: &Tensor, context: Option<&Tensor>) -> Tensor {
        let x = self.norm.forward(x);
        let context = context.unwrap_or(&x);
        let (q, k, v) = (self.to_q.forward(&x), self.to_k.forward(context), self.to_v.forward(context));
        let h = match q.kind() {
            // f16 overflows in the scores of models that ask for this.
            kind @ Kind::Half if self.upcast => {
                let f = |t: &Tensor| t.to_kind(Kind::Float);
                attention(&f(&q), &f(&k), &f(&v), self.heads, false).to_kind(kind)
            }
            _ => attention(&q, &k, &v, self.heads, false),
        };
        self.to_out.forward(&h)
    }
}

/// Normalization and the gated feed-forward layer (GEGLU, arXiv 2002.05202).
#[derive(Debug)]
struct FeedForward {
    norm: LayerNorm,
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// `[B, T, C] -> [B, T, C]`
    fn forward(&self, x: &Tensor) -> Tensor {
        // [B, T, 8C] -> values and gates, [B, T, 4C] each
        let h = self.proj.forward(&self.norm.forward(x));
        let halves = h.chunk(2, -1);
        self.out.forward(&(&halves[0] * halves[1].gelu("none")))
    }
}

#[derive(Debug)]
struct BasicTransformerBlock {
    /// Checkpoint prefix of the self-attention, under which its output is a tap.
    attn1_id: String,
    attn1: Slot<Attention>,
    attn2: Slot<Attention>,
    ff: Slot<FeedForward>,
}

impl BasicTransformerBlock {
    fn new(build: &BuildContext, at: &Cursor, t: &config::Transformer) -> Self {
        let (c, upcast) = (t.channels, build.config.upcast_attention);
        let id = |name: &str| format!("{}.{name}", at.prefix());
        Self {
            attn1_id: id("attn1"),
            attn1: build.slot(&id("attn1"), || Attention::new(&at.pp("norm1"), &at.pp("attn1"), t, c, upcast)),
            attn2: build.slot(&id("attn2"), || Attention::new(&at.pp("norm2"), &at.pp("attn2"), t, t.context, upcast)),
            ff: build.slot(&id("ff"), || FeedForward {
                norm: LayerNorm::new(&at.pp("norm3"), c, LAYER_NORM_EPS),
                proj: Linear::new(&at.pp("ff").pp("net").pp(0).pp("proj"), c, 8 * c, true),
                out: Linear::new(&at.pp("ff").pp("net").pp(2), 4 * c, c, true),
            }),
        }
    }

    fn is_identity(&self, ablated: &[bool]) -> bool {
        self.attn1.on(ablated).is_none() && self.attn2.on(ablated).is_none() && self.ff.on(ablated).is_none()
    }

    /// `[B, T, C] -> [B, T, C]`
    fn forward(&self, mut x: Tensor, context: &mut ForwardContext) -> Tensor {
        if let Some(attn1) = self.attn1.on(context.ablated) {
            let h = attn1.forward(&x, None);
            context.tap(&self.attn1_id, &h);
            x = h + x;
        }
        if let Some(attn2) = self.attn2.on(context.ablated) {
            x = attn2.forward(&x, Some(context.text)) + x;
        }
        if let Some(ff) = self.ff.on(context.ablated) {
            x = ff.forward(&x) + x;
        }
        x
    }
}

/// `proj_in` or `proj_out`.
#[derive(Debug)]
enum Projection {
    Linear(Linear),
    Conv(Conv2d),
}

impl Projection {
    fn new(at: &Cursor, c: i64, linear: bool) -> Self {
        if linear { Self::Linear(Linear::new(at, c, c, true)) } else { Self::Conv(Conv2d::point(at, c, c)) }
    }
}

/// `x + proj_out(blocks(proj_in(norm(x))))`, and the identity once no branch is left.
#[derive(Debug)]
pub(super) struct Transformer2d {
    shell: Option<Shell>,
    blocks: Vec<BasicTransformerBlock>,
}

#[derive(Debug)]
struct Shell {
    norm: GroupNorm,
    proj_in: Projection,
    proj_out: Projection,
}

impl Transformer2d {
    pub fn new(build: &BuildContext, at: &Cursor, t: &config::Transformer) -> Self {
        let all = at.pp("transformer_blocks");
        let blocks: Vec<_> = (0..t.depth).map(|i| BasicTransformerBlock::new(build, &all.pp(i), t)).collect();
        let (c, linear) = (t.channels, build.config.use_linear_projection);
        let shell = (!is_identity(&blocks, &[])).then(|| Shell {
            norm: GroupNorm::new(&at.pp("norm"), build.config.norm_num_groups, c, TRANSFORMER_NORM_EPS),
            proj_in: Projection::new(&at.pp("proj_in"), c, linear),
            proj_out: Projection::new(&at.pp("proj_out"), c, linear),
        });
        Self { shell, blocks }
    }

    /// Whether nothing of it is left.
    pub fn is_absent(&self) -> bool {
        self.shell.is_none()
    }

    /// Number of blocks.
    pub fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Runs some of the blocks, with the entrance before the first and the exit behind the last one: `[B, C, H, W] -> [B, C, H, W]` for all
    /// of them. Between pieces the input waits in `x`.
    pub fn advance(&self, blocks: Range<usize>, x: Tensor, inner: Option<Inner>, context: &mut ForwardContext) -> (Tensor, Option<Inner>) {
        let whole = blocks == (0..self.blocks.len());
        let Some(shell) = self.shell.as_ref().filter(|_| !(whole && is_identity(&self.blocks, context.ablated))) else { return (x, None) };
        // Without any block the projections count as having something to do.
        let mut inner = inner.unwrap_or_else(|| Inner { tokens: shell.enter(&x), ran: self.blocks.is_empty() });
        for block in &self.blocks[blocks.clone()] {
            inner.ran |= !block.is_identity(context.ablated);
            inner.tokens = block.forward(inner.tokens, context);
        }
        match (blocks.end == self.blocks.len(), inner.ran) {
            (false, _) => (x, Some(inner)),
            (true, true) => (shell.leave(x, inner.tokens), None),
            (true, false) => (x, None),
        }
    }
}

impl Shell {
    /// `[B, C, H, W] -> [B, T, C]`
    fn enter(&self, x: &Tensor) -> Tensor {
        // [B, C, H, W] -> [B, T, C]
        let tokens = |x: Tensor| x.flatten(2, 3).transpose(1, 2).contiguous();
        let h = self.norm.forward(x);
        match &self.proj_in {
            Projection::Linear(proj) => proj.forward(&tokens(h)),
            Projection::Conv(proj) => tokens(proj.forward(&h)),
        }
    }

    /// `[B, C, H, W]`, `[B, T, C]` -> `[B, C, H, W]`
    fn leave(&self, x: Tensor, h: Tensor) -> Tensor {
        let size = x.size();
        let image = |h: Tensor| h.transpose(1, 2).reshape(&size);
        let h = match &self.proj_out {
            Projection::Linear(proj) => image(proj.forward(&h)),
            Projection::Conv(proj) => proj.forward(&image(h)),
        };
        x + h
    }
}

/// A pass inside a Transformer2D.
#[derive(Debug)]
pub(crate) struct Inner {
    /// `[B, T, C]`
    pub tokens: Tensor,
    /// Whether any branch has run: if none does, the whole Transformer2D is the identity.
    ran: bool,
}

impl Inner {
    pub fn shallow_clone(&self) -> Self {
        self.with_tokens(&self.tokens)
    }

    /// The same place in the pass with other tokens.
    pub fn with_tokens(&self, tokens: &Tensor) -> Self {
        Self { tokens: tokens.shallow_clone(), ran: self.ran }
    }
}

// Without any block, the projections stay: diffusers applies them, and nothing was removed.
fn is_identity(blocks: &[BasicTransformerBlock], ablated: &[bool]) -> bool {
    !blocks.is_empty() && blocks.iter().all(|b| b.is_identity(ablated))
}

/// PyTorch's default, which diffusers uses in its BasicTransformerBlock.
const LAYER_NORM_EPS: f64 = 1e-5;
/// diffusers' constant for the group normalization of Transformer2D, whatever `norm_eps` says.
const TRANSFORMER_NORM_EPS: f64 = 1e-6;
