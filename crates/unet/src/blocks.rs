//! ResNets, transformers and the stages made of them. Part of the U-Net's forward.
//!
//! Every removable branch sits in a [`Slot`], kept or removed, so that the full and the pruned network are one type; at
//! run time a slot can also be switched off. Shapes: `B` batch, `C` channels, `H` `W` height and width, `T = H * W`
//! positions, `S` text tokens, `D` text width, `e` time width.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::Tensor;

use crate::config::{self, Part, StageKind, UNetConfig};
use crate::layout::Layout;
use crate::nn::{Conv2d, GroupNorm, Linear};
use crate::unet::TapSet;
use crate::weights::{Cursor, Tensors};

mod transformer;

pub(crate) use transformer::Inner;
use transformer::Transformer2d;

/// What building a network needs to know: the architecture, and which branches are absent.
pub(crate) struct BuildContext<'a> {
    pub config: &'a UNetConfig,
    pub layout: &'a Layout,
    /// One flag per branch of the layout.
    pub removed: &'a [bool],
}

impl BuildContext<'_> {
    fn slot<T>(&self, id: &str, build: impl FnOnce() -> T) -> Slot<T> {
        let index = self.layout.group(id).expect("the layout walks the same configuration").start;
        Slot { index, net: (!self.removed[index]).then(build) }
    }
}

/// A residual branch that may be absent.
#[derive(Debug)]
struct Slot<T> {
    /// Position in the layout.
    index: usize,
    net: Option<T>,
}

impl<T> Slot<T> {
    /// The branch, unless it is absent or switched off. `ablated` is empty or has one flag per branch of the layout.
    fn on(&self, ablated: &[bool]) -> Option<&T> {
        self.net.as_ref().filter(|_| !ablated.get(self.index).copied().unwrap_or(false))
    }
}

/// What one forward pass carries along; `'n` is the network's life, whose names the skips bear.
pub(crate) struct ForwardContext<'a, 'n> {
    /// Branches that are switched off.
    pub ablated: &'a [bool],
    /// Conditioning vector after its SiLU, `[B, e]`.
    pub time: &'a Tensor,
    /// Text features, `[B, S, D]`.
    pub text: &'a Tensor,
    /// Skips left and not yet taken, by the part that left them.
    pub skips: BTreeMap<&'n str, Tensor>,
    /// Which outputs are wanted, and those seen so far.
    pub wanted: &'a TapSet,
    pub taps: Tensors,
}

impl ForwardContext<'_, '_> {
    fn tap(&mut self, name: &str, x: &Tensor) {
        if self.wanted.contains(name) {
            self.taps.insert(name.to_string(), x.shallow_clone());
        }
    }
}

/// `shortcut(x) + main(x)`.
#[derive(Debug)]
struct ResnetBlock {
    main: Slot<ResnetMain>,
    conv_shortcut: Option<Conv2d>,
}

#[derive(Debug)]
struct ResnetMain {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
}

impl ResnetBlock {
    fn new(build: &BuildContext, at: &Cursor, r: &config::Resnet) -> Self {
        let (groups, eps, width) = (build.config.norm_num_groups, build.config.norm_eps, build.config.time.width);
        let main = build.slot(&r.id, || ResnetMain {
            norm1: GroupNorm::new(&at.pp("norm1"), groups, r.c_in, eps),
            conv1: Conv2d::same3(&at.pp("conv1"), r.c_in, r.c_out),
            time_emb_proj: Linear::new(&at.pp("time_emb_proj"), width, r.c_out, true),
            norm2: GroupNorm::new(&at.pp("norm2"), groups, r.c_out, eps),
            conv2: Conv2d::same3(&at.pp("conv2"), r.c_out, r.c_out),
        });
        let conv_shortcut = (r.c_in != r.c_out).then(|| Conv2d::point(&at.pp("conv_shortcut"), r.c_in, r.c_out));
        Self { main, conv_shortcut }
    }

    /// `[B, c_in, H, W] -> [B, c_out, H, W]`
    fn forward(&self, x: Tensor, context: &ForwardContext) -> Tensor {
        let residual = self.conv_shortcut.as_ref().map(|conv| conv.forward(&x));
        let Some(main) = self.main.on(context.ablated) else { return residual.unwrap_or(x) };
        residual.unwrap_or_else(|| x.shallow_clone()) + main.forward(&x, context.time)
    }
}

impl ResnetMain {
    fn forward(&self, x: &Tensor, time: &Tensor) -> Tensor {
        let h = self.conv1.forward(&self.norm1.forward(x).silu());
        // [B, c_out] -> [B, c_out, 1, 1]
        let h = h + self.time_emb_proj.forward(time).unsqueeze(-1).unsqueeze(-1);
        self.conv2.forward(&self.norm2.forward(&h).silu())
    }
}

#[derive(Debug)]
enum Body {
    Resnet { block: ResnetBlock, takes: Option<String> },
    Transformer(Transformer2d),
}

#[derive(Debug)]
struct Step {
    id: String,
    leaves: bool,
    body: Body,
}

#[derive(Debug)]
enum Resize {
    Halve { id: String, conv: Conv2d },
    Double { like: String, conv: Conv2d },
}

/// One down, mid or up block.
#[derive(Debug)]
pub(crate) struct Stage {
    name: String,
    steps: Vec<Step>,
    resize: Option<Resize>,
}

impl Stage {
    pub fn new(build: &BuildContext, root: &Cursor, stage: &config::Stage) -> Self {
        let step = |part: &Part| {
            let at = root.pp(part.id());
            let body = match part {
                Part::Resnet(r) => Body::Resnet { block: ResnetBlock::new(build, &at, r), takes: r.takes.clone() },
                Part::Transformer(t) => Body::Transformer(Transformer2d::new(build, &at, t)),
            };
            Step { id: part.id().to_string(), leaves: part.leaves(), body }
        };
        let steps = stage.parts.iter().map(step).collect();
        let resize = stage.sampler.as_ref().map(|s| {
            let at = root.pp(&s.id).pp("conv");
            match (&s.like, stage.kind) {
                (Some(like), StageKind::Up) => Resize::Double { like: like.clone(), conv: Conv2d::same3(&at, s.channels, s.channels) },
                _ => Resize::Halve { id: s.id.clone(), conv: Conv2d::new(&at, s.channels, s.channels, 3, 2, 1) },
            }
        });
        Self { name: stage.name.clone(), steps, resize }
    }

    /// Whether a part is a Transformer2D of which nothing is left.
    pub fn is_absent(&self, part: usize) -> bool {
        matches!(&self.steps[part].body, Body::Transformer(transformer) if transformer.is_absent())
    }

    /// Number of ResNets and Transformer2Ds.
    pub fn parts(&self) -> usize {
        self.steps.len()
    }

    /// `[B, C, H, W] -> [B, C', H', W']`
    pub fn forward<'n>(&'n self, x: Tensor, context: &mut ForwardContext<'_, 'n>) -> Tensor {
        (0..self.steps.len()).fold(x, |x, part| self.advance(part, 0..self.depth(part), x, None, context).0)
    }

    /// Blocks of a part: none for a ResNet.
    fn depth(&self, part: usize) -> usize {
        match &self.steps[part].body {
            Body::Resnet { .. } => 0,
            Body::Transformer(transformer) => transformer.depth(),
        }
    }

    /// One ResNet, or some blocks of a Transformer2D; with the last part goes the change of size.
    pub fn advance<'n>(
        &'n self,
        part: usize,
        blocks: Range<usize>,
        x: Tensor,
        inner: Option<Inner>,
        context: &mut ForwardContext<'_, 'n>,
    ) -> (Tensor, Option<Inner>) {
        let step = &self.steps[part];
        let (x, inner) = match &step.body {
            Body::Resnet { block, takes } => (block.forward(with_skip(x, takes, context), context), None),
            Body::Transformer(transformer) => transformer.advance(blocks, x, inner, context),
        };
        if inner.is_some() {
            return (x, inner);
        }
        step.leave(&x, context);
        if part + 1 < self.steps.len() { (x, None) } else { (self.resize(x, context), None) }
    }

    fn resize<'n>(&'n self, mut x: Tensor, context: &mut ForwardContext<'_, 'n>) -> Tensor {
        match &self.resize {
            None => {}
            Some(Resize::Halve { id, conv }) => {
                x = conv.forward(&x);
                context.skips.insert(id, x.shallow_clone());
            }
            Some(Resize::Double { like, conv }) => {
                // Twice the size, less one where the way down rounded up.
                let size = context.skips[like.as_str()].size();
                x = conv.forward(&x.upsample_nearest2d(&size[2..], None, None));
            }
        }
        context.tap(&self.name, &x);
        x
    }
}

impl Step {
    fn leave<'n>(&'n self, x: &Tensor, context: &mut ForwardContext<'_, 'n>) {
        context.tap(&self.id, x);
        if self.leaves {
            context.skips.insert(&self.id, x.shallow_clone());
        }
    }
}

/// A ResNet's input: on the way up with the channels of the skip that it takes.
fn with_skip(x: Tensor, takes: &Option<String>, context: &mut ForwardContext) -> Tensor {
    let Some(name) = takes else { return x };
    let skip = context.skips.remove(name.as_str()).expect("the configuration gives every skip one taker");
    Tensor::cat(&[x, skip], 1)
}

#[cfg(test)]
mod tests {
    //! A ResNet and a Transformer2D alone, against diffusers (fixtures of `tests/fixtures/gen_unet.py`).

    use std::path::Path;

    use tch::{Device, Kind};

    use super::*;
    use crate::weights::{TensorFile, Weights};

    #[test]
    fn a_resnet_and_a_transformer_alone_agree_with_diffusers() {
        for name in ["sd15", "sd21", "sdxl", "rare", "nomid"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/unet").join(name);
            let config = UNetConfig::open(&dir).unwrap();
            let layout = Layout::new(&config);
            let build = BuildContext { config: &config, layout: &layout, removed: &vec![false; layout.branches().len()] };
            let weights = Weights::open(&[dir.join("diffusion_pytorch_model.safetensors")], Device::Cpu, Kind::Float).unwrap();
            let cases = TensorFile::open(dir.join("cases.safetensors")).unwrap();
            let alone: BTreeMap<String, String> = serde_json::from_str(&cases.metadata()["alone"]).unwrap();
            let case = |name: &str| cases.tensor(&format!("alone.{name}")).unwrap().unwrap();
            let part = |id: &str| config.stages.iter().flat_map(|s| &s.parts).find(|p| p.id() == id).unwrap();
            let nothing = Tensor::zeros([1], (Kind::Float, Device::Cpu));
            let taps = TapSet::none();
            for (what, id) in &alone {
                let at = weights.root().pp(id);
                let (time, text) = match what.as_str() {
                    "resnet" => (case("resnet.time"), nothing.shallow_clone()),
                    _ => (nothing.shallow_clone(), case("transformer.text")),
                };
                let mut context =
                    ForwardContext { ablated: &[], time: &time, text: &text, skips: BTreeMap::new(), wanted: &taps, taps: Tensors::new() };
                let x = case(&format!("{what}.x"));
                let out = match part(id) {
                    Part::Resnet(r) => ResnetBlock::new(&build, &at, r).forward(x, &context),
                    Part::Transformer(t) => Transformer2d::new(&build, &at, t).advance(0..t.depth, x, None, &mut context).0,
                };
                let error = (out - case(&format!("{what}.out"))).abs().max().double_value(&[]);
                assert!(error <= 1e-4, "{name}: {id} differs by {error}");
            }
            assert_eq!(alone.len(), 2, "{name}");
        }
    }
}
