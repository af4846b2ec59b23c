//! Writes a model directory in the published shape with random f16 weights, for measuring memory and time where no published weights
//! are at hand: `random_model sd15|sdxl DIR`. 2 or 7 GB; the images it makes are noise.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use diffusion::{
    AutoencoderKl, ClipTextConfig, ClipTextModel, Family, HiddenAct, NoiseSchedule, PredictionType, SchedulerConfig, Tokenizer, VaeConfig,
    write_model_index,
};
use tch::{Device, Kind};
use unet::{UNet, UNetConfig};

const KIND: Kind = Kind::Half;
/// Any words will do: what the embeddings hold is random, too.
const WORDS: &str = "a small large red green blue yellow circle square triangle above below left of right on black white";

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (family, unet, dir) = match &args[..] {
        [name, dir] if name == "sd15" => (Family::StableDiffusion, UNetConfig::sd15(), Path::new(dir)),
        [name, dir] if name == "sdxl" => (Family::StableDiffusionXl, UNetConfig::sdxl(), Path::new(dir)),
        _ => return Err("usage: random_model sd15|sdxl DIR".into()),
    };
    let xl = family == Family::StableDiffusionXl;
    UNet::random(&unet, 1, Device::Cpu, KIND)?.save(dir.join("unet"), None, &BTreeMap::new())?;
    AutoencoderKl::random(&vae(xl), 2, Device::Cpu, KIND)?.save(dir.join("vae"), None)?;
    text(dir, "text_encoder", "tokenizer", "<|endoftext|>", false)?;
    if xl {
        text(dir, "text_encoder_2", "tokenizer_2", "!", true)?;
    }
    let scheduler = SchedulerConfig::stable_diffusion(PredictionType::Epsilon);
    let class = scheduler.class_name.clone();
    NoiseSchedule::new(scheduler)?.save(dir.join("scheduler"))?;
    write_model_index(dir, family, &class, true)?;
    println!("{}", dir.display());
    Ok(())
}

fn vae(xl: bool) -> VaeConfig {
    VaeConfig {
        in_channels: 3,
        out_channels: 3,
        block_out_channels: vec![128, 256, 512, 512],
        layers_per_block: 2,
        latent_channels: 4,
        norm_num_groups: 32,
        sample_size: if xl { 1024 } else { 512 },
        scaling_factor: if xl { 0.13025 } else { 0.18215 },
        force_upcast: xl,
        use_quant_conv: true,
        use_post_quant_conv: true,
        mid_block_add_attention: true,
    }
}

/// CLIP's ViT-L, or OpenCLIP's ViT-bigG with its projection.
fn text(dir: &Path, folder: &str, tokenizer: &str, pad: &str, big: bool) -> Result<(), Box<dyn Error>> {
    Tokenizer::write_from_words(dir.join(tokenizer), &WORDS.split(' ').collect::<Vec<_>>(), 77, pad)?;
    let tokenizer = Tokenizer::open(dir.join(tokenizer))?;
    let config = ClipTextConfig {
        vocab_size: 49408,
        hidden_size: if big { 1280 } else { 768 },
        intermediate_size: if big { 5120 } else { 3072 },
        projection_dim: if big { 1280 } else { 768 },
        num_hidden_layers: if big { 32 } else { 12 },
        num_attention_heads: if big { 20 } else { 12 },
        max_position_embeddings: 77,
        hidden_act: if big { HiddenAct::Gelu } else { HiddenAct::QuickGelu },
        layer_norm_eps: 1e-5,
        bos_token_id: tokenizer.bos(),
        eos_token_id: tokenizer.eos(),
        pad_token_id: tokenizer.pad(),
        with_projection: big,
    };
    Ok(ClipTextModel::random(&config, 3, Device::Cpu, KIND)?.save(dir.join(folder), None)?)
}
