//! The settings of autoencoders and text encoders, read off the shapes of their tensors: checkpoints carry no config.json. Tensors in the
//! names of model directories -> **settings**.

use unet::weights::TensorFile;

use crate::clip::{ClipTextConfig, HiddenAct};
use crate::error::{Error, Result};
use crate::vae::VaeConfig;

/// Width of one attention head in every text encoder of Stable Diffusion.
const HEAD: i64 = 64;

/// What the shapes of an autoencoder do not tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Untold {
    /// Latents are multiplied by this before they go to the U-Net.
    pub scaling_factor: f64,
    /// Side of the training images in pixels.
    pub sample_size: i64,
}

/// The settings of an autoencoder.
///
/// # Errors
/// [`Error::Format`] when it is none.
pub(super) fn autoencoder(file: &TensorFile, untold: Untold) -> Result<VaeConfig> {
    let need = |key: &str, at: usize| match file.shape(key) {
        Some(shape) if shape.len() == 4 => Ok(shape[at]),
        _ => Err(Error::Format {
            path: file.path().into(),
            problem: format!("no autoencoder of Stable Diffusion (no kernel `{key}`)"),
            hint: "name a checkpoint that holds one, or the autoencoder with --vae".into(),
        }),
    };
    let block = |level: usize, n: usize| format!("encoder.down_blocks.{level}.resnets.{n}.conv1.weight");
    let levels = (0..).take_while(|level| file.has(&block(*level, 0)));
    let block_out_channels = levels.map(|level| need(&block(level, 0), 0)).collect::<Result<Vec<_>>>()?;
    Ok(VaeConfig {
        in_channels: need("encoder.conv_in.weight", 1)?,
        out_channels: need("decoder.conv_out.weight", 0)?,
        layers_per_block: (0..).take_while(|n| file.has(&block(0, *n))).count() as i64,
        block_out_channels,
        latent_channels: need("decoder.conv_in.weight", 1)?,
        norm_num_groups: 32,
        sample_size: untold.sample_size,
        scaling_factor: untold.scaling_factor,
        force_upcast: true,
        use_quant_conv: file.has("quant_conv.weight"),
        use_post_quant_conv: file.has("post_quant_conv.weight"),
        mid_block_add_attention: file.has("encoder.mid_block.attentions.0.to_q.weight"),
    })
}

/// The settings of a text encoder with this activation, whose tokenizer pads with the token `pad`.
///
/// # Errors
/// [`Error::Format`] when it is none, or when its number of heads cannot be told.
pub(super) fn text_encoder(file: &TensorFile, hidden_act: HiddenAct, pad: i64) -> Result<ClipTextConfig> {
    let bad = |problem: String, hint: &str| Error::Format { path: file.path().into(), problem, hint: hint.into() };
    let need = |key: &str| match file.shape(key) {
        Some([a, b]) => Ok((*a, *b)),
        _ => Err(bad(format!("no text encoder of Stable Diffusion (no matrix `{key}`)"), "name a whole checkpoint, or a model directory")),
    };
    let (vocab_size, hidden_size) = need("text_model.embeddings.token_embedding.weight")?;
    let (max_position_embeddings, _) = need("text_model.embeddings.position_embedding.weight")?;
    let (intermediate_size, _) = need("text_model.encoder.layers.0.mlp.fc1.weight")?;
    let projection = file.shape("text_projection.weight").and_then(|shape| shape.first().copied());
    if hidden_size % HEAD != 0 {
        let problem =
            format!("the heads of a text encoder of width {hidden_size} cannot be told: those of Stable Diffusion are {HEAD} wide");
        return Err(bad(problem, "name a model directory, whose config.json says them"));
    }
    let layers = (0..).take_while(|n| file.has(&format!("text_model.encoder.layers.{n}.layer_norm1.weight"))).count();
    Ok(ClipTextConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        projection_dim: projection.unwrap_or(hidden_size),
        num_hidden_layers: layers as i64,
        num_attention_heads: hidden_size / HEAD,
        max_position_embeddings,
        hidden_act,
        layer_norm_eps: 1e-5,
        // The two highest ids of CLIP's vocabulary.
        bos_token_id: vocab_size - 2,
        eos_token_id: vocab_size - 1,
        pad_token_id: pad,
        with_projection: projection.is_some(),
    })
}
