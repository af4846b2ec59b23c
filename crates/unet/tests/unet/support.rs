//! The fixtures made by `tests/fixtures/gen_unet.py`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors};
use unet::{AddedConditioning, Conditioning, RemovalSet, UNet};

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
