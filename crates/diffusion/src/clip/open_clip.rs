//! CLIP models in the layout of OpenAI's and OpenCLIP's state dictionaries, as HPSv2 and most of LAION's models are published
//! (file -> [`ClipModel`]): other names, the three projections of an attention in one matrix, the projections to the shared space transposed.

use std::path::Path;

use artifact::Fields;
use tch::{Device, Kind, Tensor};
use unet::weights::{TensorFile, Tensors, Weights};

use super::config::{ClipConfig, ClipTextConfig, ClipVisionConfig, HiddenAct};
use super::model::ClipModel;
use super::preprocess::{ClipCrop, ClipPreprocess};
use crate::error::{Error, Result};

/// What the shapes of a state dictionary do not tell.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Untold {
    vision_heads: i64,
    text_heads: i64,
    act: HiddenAct,
}

impl ClipModel {
    /// Opens a state dictionary in OpenCLIP's layout, alone or in a training checkpoint (`state_dict`, `module.`), with the
    /// preprocessing of OpenCLIP's images. The number of heads and the activation are those of `open_clip_config.json` beside
    /// the file, or those of the published ViT-H/14, ViT-g/14 and ViT-bigG/14 when the widths are theirs.
    ///
    /// # Errors
    /// As [`unet::weights::TensorFile::open`]; [`Error::Format`] when it is no such model, [`Error::Config`] when its number of heads cannot be
    /// told, [`unet::Error::Weights`] when keys are missing or unknown.
    pub fn open_clip(path: &Path, device: Device, kind: Kind) -> Result<(Self, ClipPreprocess)> {
        let mut file = TensorFile::open(path)?;
        unwrap(&mut file);
        let beside = path.with_file_name("open_clip_config.json");
        let settings = if beside.is_file() { Some(Fields::open(&beside)?) } else { None };
        let wrong = || Error::Format {
            path: path.into(),
            problem: format!(
                "no CLIP model in OpenCLIP's layout (no `visual.conv1.weight` or `token_embedding.weight` of the usual shape); it begins with {}",
                file.shapes().take(3).map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            ),
            hint: "name a file of an OpenCLIP vision transformer, or a folder in transformers' layout".into(),
        };
        let shape = |key: &str| file.shape(key).unwrap_or_default().to_vec();
        let (kernel, seen, projected) = (shape("visual.conv1.weight"), shape("visual.positional_embedding"), shape("visual.proj"));
        let (words, read) = (shape("token_embedding.weight"), shape("positional_embedding"));
        let ([width, 3, patch, _], [positions, _], [_, projection], [vocab, text_width], [longest, _]) =
            (&kernel[..], &seen[..], &projected[..], &words[..], &read[..])
        else {
            return Err(wrong());
        };
        let side = ((positions - 1) as f64).sqrt().round() as i64;
        if side * side + 1 != *positions {
            return Err(wrong());
        }
        let layers = |prefix: &str| (0..).take_while(|n| file.has(&format!("{prefix}.{n}.ln_1.weight"))).count() as i64;
        let inner = |prefix: &str| shape(&format!("{prefix}.0.mlp.c_fc.weight")).first().copied().unwrap_or(0);
        let (vision_at, text_at) = ("visual.transformer.resblocks", "transformer.resblocks");
        let untold = untold(*width, *text_width, settings.as_ref(), path)?;
        let config = ClipConfig {
            text: ClipTextConfig {
                vocab_size: *vocab,
                hidden_size: *text_width,
                intermediate_size: inner(text_at),
                projection_dim: *projection,
                num_hidden_layers: layers(text_at),
                num_attention_heads: untold.text_heads,
                max_position_embeddings: *longest,
                hidden_act: untold.act,
                layer_norm_eps: 1e-5,
                bos_token_id: vocab - 2,
                // The end token is the largest id, which is how OpenCLIP finds it.
                eos_token_id: 2,
                pad_token_id: 0,
                with_projection: false,
            },
            vision: ClipVisionConfig {
                hidden_size: *width,
                intermediate_size: inner(vision_at),
                projection_dim: *projection,
                num_hidden_layers: layers(vision_at),
                num_attention_heads: untold.vision_heads,
                num_channels: 3,
                image_size: side * patch,
                patch_size: *patch,
                hidden_act: untold.act,
                layer_norm_eps: 1e-5,
            },
            projection_dim: *projection,
            logit_scale_init_value: 2.6592,
        };
        let mut preprocess = ClipPreprocess { crop: ClipCrop::HalfToEven, ..ClipPreprocess::new((side * patch) as u32) };
        if let Some(section) = settings.as_ref().and_then(|s| s.section("preprocess_cfg")) {
            (preprocess.image_mean, preprocess.image_std) =
                (section.floats("mean")?.unwrap_or(preprocess.image_mean), section.floats("std")?.unwrap_or(preprocess.image_std));
        }
        let names: Vec<String> = file.shapes().map(|(name, _)| name.to_string()).collect();
        let mut tensors = Tensors::new();
        for name in names {
            if let Some(t) = file.tensor(&name)? {
                renamed(&name, t.f_to_device(device)?.f_to_kind(kind)?, &mut tensors)?;
            }
        }
        Ok((Self::from_weights(&config, Weights::from_tensors(tensors).named(path))?, preprocess))
    }
}

/// Takes away what trainers and wrappers put before the names, and what else they saved.
fn unwrap(file: &mut TensorFile) {
    const MARK: &str = "visual.conv1.weight";
    const TEXT_MARK: &str = "text.token_embedding.weight";
    let prefix = file.shapes().find_map(|(name, _)| name.strip_suffix(MARK)).unwrap_or_default().to_string();
    if !prefix.is_empty() {
        file.retain(|key| key.strip_prefix(&prefix).map(str::to_string));
    }
    // Models with a text tower of its own class.
    if file.has(TEXT_MARK) {
        file.retain(|key| Some(key.strip_prefix("text.").unwrap_or(key).to_string()));
    }
}

fn untold(width: i64, text_width: i64, settings: Option<&Fields>, path: &Path) -> Result<Untold> {
    if let Some(model) = settings.and_then(|s| s.section("model_cfg")) {
        let (vision, text) = (model.section("vision_cfg"), model.section("text_cfg"));
        let head_width = vision.map(|v| v.int("head_width", 64, 1)).transpose()?.unwrap_or(64);
        let heads = text.map(|t| t.int("heads", 8, 1)).transpose()?.unwrap_or(8);
        let act = if model.flag("quick_gelu", false)? { HiddenAct::QuickGelu } else { HiddenAct::Gelu };
        return Ok(Untold { vision_heads: width / head_width, text_heads: heads, act });
    }
    // OpenCLIP's ViT-H/14, ViT-g/14 and ViT-bigG/14. A ViT-L/14 may have either activation.
    match (width, text_width) {
        (1280 | 1408, 1024) => Ok(Untold { vision_heads: 16, text_heads: 16, act: HiddenAct::Gelu }),
        (1664, 1280) => Ok(Untold { vision_heads: 16, text_heads: 20, act: HiddenAct::Gelu }),
        _ => Err(Error::Config {
            path: path.into(),
            key: "open_clip_config.json".into(),
            expected: format!("that file beside it: the weights do not tell the heads and activation of widths {width} and {text_width}"),
            got: "none".into(),
        }),
    }
}

/// Puts a tensor under its name in transformers' layout; what is not known keeps its name and is reported as unexpected.
fn renamed(name: &str, t: Tensor, out: &mut Tensors) -> Result<()> {
    let whole = match name {
        "visual.conv1.weight" => "vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding" => "vision_model.embeddings.class_embedding",
        "visual.positional_embedding" => "vision_model.embeddings.position_embedding.weight",
        "token_embedding.weight" => "text_model.embeddings.token_embedding.weight",
        "positional_embedding" => "text_model.embeddings.position_embedding.weight",
        "visual.proj" => "visual_projection.weight",
        "text_projection" => "text_projection.weight",
        // The causal mask, which some files store.
        "attn_mask" => return Ok(()),
        _ => "",
    };
    if !whole.is_empty() {
        let t = if name.ends_with("proj") || name == "text_projection" { t.f_transpose(0, 1)?.f_contiguous()? } else { t };
        out.insert(whole.into(), t);
        return Ok(());
    }
    let prefixes = [
        ("visual.ln_pre.", "vision_model.pre_layrnorm."),
        ("visual.ln_post.", "vision_model.post_layernorm."),
        ("ln_final.", "text_model.final_layer_norm."),
        ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
        ("transformer.resblocks.", "text_model.encoder.layers."),
    ];
    let Some((rest, to)) = prefixes.iter().find_map(|(from, to)| Some((name.strip_prefix(from)?, to))) else {
        out.insert(name.into(), t);
        return Ok(());
    };
    if let Some((layer, part)) = rest.split_once(".attn.in_proj_") {
        for (which, third) in ["q_proj", "k_proj", "v_proj"].iter().zip(t.f_chunk(3, 0)?) {
            out.insert(format!("{to}{layer}.self_attn.{which}.{part}"), third);
        }
        return Ok(());
    }
    let parts = [
        (".attn.", ".self_attn."),
        (".ln_1.", ".layer_norm1."),
        (".ln_2.", ".layer_norm2."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
    ];
    let rest = parts.iter().fold(rest.to_string(), |name, (from, to)| name.replace(from, to));
    out.insert(format!("{to}{rest}"), t);
    Ok(())
}
