//! Published hand-made reductions by name, as removals from the model that they were cut from: the rivals of a searched plan.
//!
//! SSD-1B (arXiv 2401.02677) and Segmind-Vega keep every pair and shorten transformers; KOALA (arXiv 2312.04005) takes pairs as
//! BK-SDM-Base does and shortens the rest. Their papers do not say which blocks of a transformer stay; here the first ones do. As removal
//! keeps `conv_shortcut`s, what BK-SDM and KOALA rebuild with fewer pairs has somewhat more parameters here.

use prune_core::LayerId;

use crate::config::{Part, StageKind, Transformer, UNetConfig};
use crate::error::{Error, Result};
use crate::handcrafted::{bk_sdm_base, bk_sdm_small, bk_sdm_tiny};

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
