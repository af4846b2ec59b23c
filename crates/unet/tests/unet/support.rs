//! The fixtures made by `tests/fixtures/gen_unet.py`, and small networks made here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, save_tensors};
use unet::{AddedConditioning, Conditioning, Error, RemovalSet, SingleFileNames, StoredUNet, UNet, UNetConfig};

pub const MODELS: [&str; 11] =
    ["sd15", "sd21", "sdxl", "rare", "nomid", "bksdm_small", "bksdm_v2_tiny", "refiner", "ssd1b", "koala", "lcm"];
/// Largest difference to diffusers, in f32.
pub const TOLERANCE: f64 = 1e-4;

pub struct Fixture {
    pub name: &'static str,
    pub cases: Tensors,
    pub metadata: BTreeMap<String, String>,
    pub unet: UNet,
}

pub fn dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/unet").join(name)
}

impl Fixture {
    pub fn open(name: &'static str) -> Self {
        let dir = dir(name);
        let file = TensorFile::open(dir.join("cases.safetensors")).unwrap();
        let unet = UNet::open(&dir, Device::Cpu, Kind::Float).unwrap();
        Self { name, cases: file.tensors().unwrap(), metadata: file.metadata().clone(), unet }
    }

    pub fn all() -> impl Iterator<Item = Self> {
        MODELS.into_iter().map(Self::open)
    }

    pub fn input(&self, name: &str) -> Tensor {
        self.cases[&format!("input.{name}")].shallow_clone()
    }

    pub fn cond(&self) -> Conditioning {
        let added = self.cases.contains_key("input.time_ids");
        Conditioning {
            encoder_hidden_states: self.input("encoder_hidden_states"),
            added: added.then(|| AddedConditioning { text_embeds: self.input("text_embeds"), time_ids: self.input("time_ids") }),
            guidance: self.cases.contains_key("input.timestep_cond").then(|| self.input("timestep_cond")),
        }
    }

    pub fn forward(&self, unet: &UNet) -> Tensor {
        tch::no_grad(|| unet.forward(&self.input("sample"), &self.input("timestep"), &self.cond())).unwrap()
    }

    pub fn removal_sets(&self) -> Vec<RemovalSet> {
        serde_json::from_str(&self.metadata["removed"]).unwrap()
    }
}

pub fn difference(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

pub fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    a.size() == b.size() && a.kind() == b.kind() && a.equal(b)
}

/// SDXL's topology with heads of 64 channels, as all published models have them: what a file without configuration must tell.
pub fn published() -> UNet {
    let json = json!({
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "attention_head_dim": [1, 2, 3], "block_out_channels": [64, 128, 192], "center_input_sample": false, "cross_attention_dim": 40,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "downsample_padding": 1,
        "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_type": "UNetMidBlock2DCrossAttn",
        "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4, "projection_class_embeddings_input_dim": 1536 + 8,
        "sample_size": 128, "transformer_layers_per_block": [1, 2, 3],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": true,
    });
    random(&json)
}

pub fn random(json: &Value) -> UNet {
    UNet::random(&UNetConfig::parse(&json.to_string(), "test").unwrap(), 5, Device::Cpu, Kind::Half).unwrap()
}

/// Stable Diffusion v1's kind, small: heads are 8 whatever the widths.
pub fn v1(edits: &[(&str, Value)]) -> UNet {
    let mut json = json!({
        "_class_name": "UNet2DConditionModel", "attention_head_dim": 8, "block_out_channels": [32, 64], "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "layers_per_block": 1,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    });
    for (key, value) in edits {
        json[key] = value.clone();
    }
    UNet::random(&UNetConfig::parse(&json.to_string(), "test").unwrap(), 7, Device::Cpu, Kind::Half).unwrap()
}

pub fn clones(tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(k, t)| (k.clone(), t.shallow_clone())).collect()
}

pub fn original(unet: &UNet) -> Tensors {
    let names = SingleFileNames::new(unet.config());
    unet.parameters().iter().map(|(k, t)| (names.to_single_file(k).unwrap(), t.shallow_clone())).collect()
}

pub fn prefixed(prefix: &str, tensors: Tensors) -> Tensors {
    tensors.into_iter().map(|(k, t)| (format!("{prefix}{k}"), t)).collect()
}

pub fn write(path: &Path, tensors: &Tensors) {
    save_tensors(path, tensors, &BTreeMap::new(), None).unwrap();
}

/// What the path is refused with: the problem, and the hint.
pub fn refused(path: &Path) -> (String, String) {
    match StoredUNet::open(path) {
        Err(Error::Format { path: named, problem, hint }) => {
            assert!(named.starts_with(path) || path.starts_with(&named), "{} for {}", named.display(), path.display());
            (problem, hint)
        }
        other => panic!("{}: {other:?}", path.display()),
    }
}

pub fn zero() -> Tensor {
    Tensor::zeros([2, 2], (Kind::Float, Device::Cpu))
}
