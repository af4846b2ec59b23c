//! Low-rank adapters as the only trainable parameters (LoRA, arXiv 2106.09685): `W + alpha / rank * B A` in place of `W`. The
//! pruned network itself stays frozen; at the end the adapters are merged into it, and kept in a file of their own.
//!
//! Shapes: `r` rank, `in` `out` widths of a linear layer.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unet::weights::{Init, Tensors, Weights, save_tensors};

use crate::error::{Error, Result};

/// Layers that get adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// Queries, keys, values and outputs of self- and cross-attention.
    Attention,
    /// Both layers of the feed-forward branches.
    FeedForward,
}

/// Settings of the adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank of every adapter.
    pub rank: i64,
    /// Their strength: the product counts `alpha / rank` times.
    pub alpha: f64,
    /// Which layers get one.
    pub targets: Vec<LoraTarget>,
}

impl LoraConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first setting out of range.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, expected: &str, got: String| Err(Error::Config { key: key.into(), expected: expected.into(), got });
        match self {
            Self { rank, .. } if *rank < 1 => refuse("lora.rank", "at least 1", rank.to_string()),
            Self { alpha, .. } if !(*alpha > 0.0 && alpha.is_finite()) => refuse("lora.alpha", "a positive number", alpha.to_string()),
            Self { targets, .. } if targets.is_empty() => refuse("lora.targets", "`attention`, `feed_forward` or both", "none".into()),
            _ => Ok(()),
        }
    }
}

const ATTENTION: [&str; 4] = ["to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"];
const FEED_FORWARD: [&str; 2] = ["ff.net.0.proj.weight", "ff.net.2.weight"];
// Names of the factors in peft's files, behind the layer's own.
const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";

/// A frozen network and the layers of it that have adapters.
#[derive(Debug)]
pub struct Lora {
    base: Tensors,
    /// Layers with an adapter, without `.weight`.
    layers: Vec<String>,
    config: LoraConfig,
}

impl Lora {
    /// Adapters for the network with the parameters `base` (f32).
    ///
    /// # Errors
    /// [`Error::Config`] when a setting is out of range, or no layer of the network is a target.
    pub fn new(base: &Tensors, config: &LoraConfig) -> Result<Self> {
        config.check()?;
        let ends = |key: &str, ends: &[&str]| ends.iter().any(|end| key.strip_suffix(end).is_some_and(|rest| rest.ends_with('.')));
        let wanted = |key: &str| {
            key.contains(".transformer_blocks.")
                && config.targets.iter().any(|target| match target {
                    LoraTarget::Attention => ends(key, &ATTENTION),
                    LoraTarget::FeedForward => ends(key, &FEED_FORWARD),
                })
        };
        let layers: Vec<String> =
            base.keys().filter(|key| wanted(key)).filter_map(|key| key.strip_suffix(".weight")).map(str::to_string).collect();
        if layers.is_empty() {
            let (key, got) = ("lora.targets".into(), "a network without any".into());
            return Err(Error::Config { key, expected: "layers that the student has".into(), got });
        }
        Ok(Self { base: base.iter().map(|(k, t)| (k.clone(), t.detach())).collect(), layers, config: config.clone() })
    }

    /// Names of the layers with an adapter.
    pub fn layers(&self) -> &[String] {
        &self.layers
    }

    /// The factors that training starts from: `A [r, in]` uniform in plus or minus `1 / sqrt(in)`, `B [out, r]` zero, so that
    /// nothing changes at first. The names are those of peft.
    ///
    /// # Errors
    /// [`Error::Unet`] when memory runs out.
    pub fn initial(&self, seed: u64, device: Device) -> Result<Tensors> {
        let weights = Weights::random(seed, device, Kind::Float);
        let root = weights.root();
        for layer in &self.layers {
            let (out, width) = self.widths(layer);
            let at = root.pp(layer);
            let _a = at.tensor(A, &[self.config.rank, width], Init::Uniform(1.0 / (width as f64).sqrt()));
            let _a = at.tensor(B, &[out, self.config.rank], Init::Zeros);
        }
        Ok(weights.finish()?.0)
    }

    fn widths(&self, layer: &str) -> (i64, i64) {
        let size = self.base[&format!("{layer}.weight")].size();
        (size[0], size[1])
    }

    /// All parameters of the network with the adapters merged in; gradients flow to the factors.
    ///
    /// # Errors
    /// [`Error::Config`] when a factor is missing.
    pub fn merge(&self, factors: &Tensors) -> Result<Tensors> {
        let mut out: Tensors = self.base.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect();
        let scale = self.config.alpha / self.config.rank as f64;
        for layer in &self.layers {
            let (a, b) = (self.factor(factors, layer, A)?, self.factor(factors, layer, B)?);
            let key = format!("{layer}.weight");
            // [out, r] x [r, in]
            let merged = &self.base[&key] + b.f_matmul(&a)? * scale;
            out.insert(key, merged);
        }
        Ok(out)
    }

    // In the type of the base.
    fn factor(&self, factors: &Tensors, layer: &str, which: &str) -> Result<Tensor> {
        let key = format!("{layer}.{which}");
        let kind = self.base[&format!("{layer}.weight")].kind();
        factors.get(&key).map(|t| t.to_kind(kind)).ok_or_else(|| Error::Config {
            key,
            expected: "a factor of the adapters".into(),
            got: "nothing".into(),
        })
    }

    /// Writes the adapters as diffusers and peft read them: `unet.<layer>.lora_A.weight` and `lora_B.weight`. `alpha / rank` is
    /// contained in `B`, so that the file needs no settings to be applied.
    ///
    /// # Errors
    /// As [`Lora::merge`], and when the file cannot be written.
    pub fn save(&self, path: &Path, factors: &Tensors) -> Result<()> {
        let scale = self.config.alpha / self.config.rank as f64;
        let mut tensors = Tensors::new();
        for layer in &self.layers {
            tensors.insert(format!("unet.{layer}.{A}"), self.factor(factors, layer, A)?.detach());
            tensors.insert(format!("unet.{layer}.{B}"), self.factor(factors, layer, B)?.detach() * scale);
        }
        let settings = serde_json::to_string(&self.config).expect("a plain struct is JSON");
        let metadata = BTreeMap::from([("format".to_string(), "pt".to_string()), ("laptop_diff.lora".to_string(), settings)]);
        Ok(save_tensors(path, &tensors, &metadata, None)?)
    }
}

/// Merged weights cut off from their factors, so that a backward pass in pieces can reach them several times.
pub(crate) struct Joint {
    /// What the network is built from.
    pub leaves: Tensors,
    merged: Vec<(String, Tensor)>,
}

impl Joint {
    pub fn new(tensors: &Tensors) -> Self {
        let leaf = |t: &Tensor| if t.requires_grad() { t.detach().set_requires_grad(true) } else { t.shallow_clone() };
        let leaves = tensors.iter().map(|(key, t)| (key.clone(), leaf(t))).collect();
        let merged = tensors.iter().filter(|(_, t)| t.requires_grad()).map(|(key, t)| (key.clone(), t.shallow_clone())).collect();
        Self { leaves, merged }
    }

    /// Hands the leaves' gradients on.
    pub fn backward(&self) -> Result<()> {
        let parts = self.merged.iter().map(|(key, t)| (t, self.leaves[key].grad())).filter(|(_, grad)| grad.defined());
        match parts.map(|(t, grad)| (t * grad).sum(Kind::Float)).reduce(|a, b| a + b) {
            Some(total) => Ok(total.f_backward()?),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64, shapes: &[(&str, &[i64])]) -> Tensors {
        let weights = Weights::random(seed, Device::Cpu, Kind::Float);
        for (name, shape) in shapes {
            let _t = weights.root().tensor(name, shape, Init::Normal(0.5));
        }
        weights.finish().unwrap().0
    }

    const BLOCK: &str = "down_blocks.0.attentions.0.transformer_blocks.0";

    fn network() -> Tensors {
        let names = ["attn1.to_q.weight", "attn1.to_out.0.weight", "attn2.to_k.weight", "ff.net.0.proj.weight", "ff.net.2.weight"];
        let shapes: [&[i64]; 5] = [&[6, 6], &[6, 6], &[6, 10], &[48, 6], &[6, 24]];
        let names: Vec<String> =
            names.iter().map(|n| format!("{BLOCK}.{n}")).chain(["down_blocks.0.attentions.0.proj_in.weight".into()]).collect();
        let shapes = shapes.into_iter().chain([[6i64, 6].as_slice()]);
        random(1, &names.iter().map(String::as_str).zip(shapes).collect::<Vec<_>>())
    }

    fn config(targets: &[LoraTarget]) -> LoraConfig {
        LoraConfig { rank: 2, alpha: 3.0, targets: targets.to_vec() }
    }

    #[test]
    fn targets_are_the_layers_that_were_asked_for() {
        let base = network();
        let layers = |targets: &[LoraTarget]| Lora::new(&base, &config(targets)).unwrap().layers().len();
        assert_eq!((layers(&[LoraTarget::Attention]), layers(&[LoraTarget::FeedForward])), (3, 2));
        assert_eq!(layers(&[LoraTarget::FeedForward, LoraTarget::Attention]), 5);
        let bad = |rank, alpha, targets: &[LoraTarget]| match (LoraConfig { rank, alpha, targets: targets.to_vec() }).check() {
            Err(Error::Config { key, .. }) => key,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            (bad(0, 1.0, &[LoraTarget::Attention]), bad(1, -1.0, &[LoraTarget::Attention])),
            ("lora.rank".into(), "lora.alpha".into())
        );
        assert_eq!(bad(1, 1.0, &[]), "lora.targets");
        let other = random(1, &[("conv_in.weight", &[4, 4])]);
        assert!(matches!(Lora::new(&other, &config(&[LoraTarget::Attention])), Err(Error::Config { key, .. }) if key == "lora.targets"));
    }

    #[test]
    fn merged_layers_compute_what_layer_and_adapter_do_side_by_side() {
        let base = network();
        let lora = Lora::new(&base, &config(&[LoraTarget::Attention, LoraTarget::FeedForward])).unwrap();
        let start = lora.initial(3, Device::Cpu).unwrap();
        let merged = lora.merge(&start).unwrap();
        assert!(merged.iter().all(|(key, t)| t.equal(&base[key])), "B starts at zero");
        let drawn: Vec<(String, Vec<i64>)> = start.iter().map(|(k, t)| (k.clone(), t.size())).collect();
        let factors = random(9, &drawn.iter().map(|(k, s)| (k.as_str(), s.as_slice())).collect::<Vec<_>>());
        let merged = lora.merge(&factors).unwrap();
        for layer in lora.layers() {
            let w = &base[&format!("{layer}.weight")];
            let x = random(4, &[("x", &[7, w.size()[1]])]).remove("x").unwrap();
            let (a, b) = (&factors[&format!("{layer}.{A}")], &factors[&format!("{layer}.{B}")]);
            let beside = x.matmul(&w.tr()) + x.matmul(&a.tr()).matmul(&b.tr()) * (3.0 / 2.0);
            let error = (x.matmul(&merged[&format!("{layer}.weight")].tr()) - &beside).abs().max().double_value(&[]);
            assert!(error < 1e-5 * beside.abs().max().double_value(&[]), "{layer}: {error}");
        }
        let key = "down_blocks.0.attentions.0.proj_in.weight";
        assert!(merged[key].equal(&base[key]));
    }

    #[test]
    fn the_file_has_the_names_of_peft_and_needs_no_settings() {
        let base = network();
        let lora = Lora::new(&base, &config(&[LoraTarget::Attention])).unwrap();
        let mut factors = lora.initial(3, Device::Cpu).unwrap();
        for (_, t) in factors.iter_mut().filter(|(key, _)| key.ends_with(B)) {
            *t = t.ones_like();
        }
        let path = tempfile::tempdir().unwrap().keep().join("lora.safetensors");
        lora.save(&path, &factors).unwrap();
        let file = unet::weights::TensorFile::open(&path).unwrap().tensors().unwrap();
        assert_eq!(file.len(), 6);
        let layer = format!("unet.{BLOCK}.attn2.to_k");
        let product = file[&format!("{layer}.lora_B.weight")].matmul(&file[&format!("{layer}.lora_A.weight")]);
        let key = format!("{BLOCK}.attn2.to_k.weight");
        let error = (&base[&key] + product - &lora.merge(&factors).unwrap()[&key]).abs().max().double_value(&[]);
        assert!(error < 1e-6, "{error}");
        assert!(lora.merge(&Tensors::new()).is_err());
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }
}
