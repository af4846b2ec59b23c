//! The architecture of a single file, read off the shapes of its tensors: such files carry no configuration.

use serde_json::{Value, json};

use super::GUIDANCE;
use crate::config::UNetConfig;
use crate::error::{Error, Result};
use crate::weights::TensorFile;

/// Width of one head wherever it is not fixed otherwise.
const HEAD: i64 = 64;
/// Text width and heads of Stable Diffusion v1, the one family with a fixed number of heads.
const V1: (i64, i64) = (768, 8);
/// Numbers in the sinusoidal embedding of one size, in every published model that has them.
const SIZE_CHANNELS: i64 = 256;

/// One level of the way down or up: channels, and the depth of the transformer behind each ResNet (`None` without one).
struct Level {
    channels: i64,
    depths: Vec<Option<usize>>,
}

/// Reads the tensors of one U-Net under their original names.
///
/// # Errors
/// [`Error::Format`] when they are no U-Net of the Stable Diffusion family, or the number of heads cannot be told.
pub(crate) fn infer(file: &TensorFile) -> Result<UNetConfig> {
    let bad = |problem: String| Error::Format {
        path: file.path().into(),
        problem,
        hint: "convert it with diffusers to a model directory, whose config.json says what a single file cannot".into(),
    };
    let need = |key: &str| file.shape(key).ok_or_else(|| bad(format!("no tensor `{key}`")));
    let conv_in = need("input_blocks.0.0.weight")?;
    let conv_out = need("out.2.weight")?;
    let (base, time) = (conv_in[0], need("time_embed.0.weight")?[0]);

    let mut down = vec![Level { channels: base, depths: Vec::new() }];
    for n in 1.. {
        let at = format!("input_blocks.{n}");
        if file.has(&format!("{at}.0.op.weight")) {
            down.push(Level { channels: 0, depths: Vec::new() });
        } else if let Some(conv) = file.shape(&format!("{at}.0.in_layers.2.weight")) {
            let level = down.last_mut().expect("one level to begin with");
            level.channels = conv[0];
            level.depths.push(depth(file, &format!("{at}.1")));
        } else {
            break;
        }
    }
    let mut up: Vec<Vec<Option<usize>>> = vec![Vec::new()];
    for n in 0.. {
        let at = format!("output_blocks.{n}");
        if !file.has(&format!("{at}.0.in_layers.2.weight")) {
            break;
        }
        up.last_mut().expect("one level to begin with").push(depth(file, &format!("{at}.1")));
        if [1, 2].iter().any(|i| file.has(&format!("{at}.{i}.conv.weight"))) {
            up.push(Vec::new());
        }
    }
    let fits = up.len() == down.len() && down.iter().rev().zip(&up).all(|(d, u)| !d.depths.is_empty() && u.len() == d.depths.len() + 1);
    if !fits {
        return Err(bad("its input_blocks and output_blocks do not belong together".into()));
    }
    let uneven = |depths: &[Option<usize>]| depths.iter().any(|d| d.is_some() != depths[0].is_some());
    if down.iter().map(|d| &d.depths).chain(&up).any(|depths| uneven(depths)) {
        return Err(bad("a level has transformers behind some of its ResNets only".into()));
    }

    let mid_depth = depth(file, "middle_block.1");
    let mid = match (file.has("middle_block.0.in_layers.2.weight"), mid_depth) {
        (false, _) => Value::Null,
        (true, None) => json!("UNetMidBlock2D"),
        (true, Some(_)) => json!("UNetMidBlock2DCrossAttn"),
    };
    let first = first_transformer(file).ok_or_else(|| bad("no transformer".into()))?;
    let context = need(&format!("{first}.transformer_blocks.0.attn2.to_k.weight"))?[1];
    let linear = need(&format!("{first}.proj_in.weight"))?.len() == 2;
    let channels: Vec<i64> = down.iter().map(|l| l.channels).collect();
    let heads = match (context, linear) {
        (context, false) if context == V1.0 => vec![V1.1; channels.len()],
        _ if channels.iter().all(|c| c % HEAD == 0) => channels.iter().map(|c| c / HEAD).collect(),
        _ => return Err(bad(format!("the number of heads cannot be told from widths of {channels:?}"))),
    };

    let block_type = |attends: bool, kind: &str| json!(format!("{}{kind}", if attends { "CrossAttn" } else { "" }));
    let last = down.len() - 1;
    let down_depths: Vec<Value> = down
        .iter()
        .enumerate()
        .map(|(i, level)| match (level.depths[0], mid_depth) {
            // The mid block takes the first depth of the last level, also where that level has no transformers itself.
            (None, Some(mid)) if i == last => json!(mid),
            (None, _) => json!(1),
            _ => compact(&level.depths),
        })
        .collect();
    if let (Some(own), Some(mid)) = (down[last].depths[0], mid_depth)
        && own != mid
    {
        return Err(bad(format!("its mid block has depth {mid} and its last level {own}, which no config.json can say")));
    }
    // A level without transformers has no depth; it takes that of its mirror image.
    let mirror = down_depths.iter().rev();
    let up_depths: Vec<Value> = up.iter().zip(mirror).map(|(up, d)| if up[0].is_none() { d.clone() } else { compact(up) }).collect();
    let mirrored = down_depths.iter().rev().eq(&up_depths) && !down_depths.iter().any(Value::is_array);
    let layers: Vec<usize> = down.iter().map(|l| l.depths.len()).collect();
    let added = file.shape("label_emb.0.0.weight").map(|s| s[1]);

    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": channels,
        "center_input_sample": false,
        "cross_attention_dim": context,
        "down_block_types": down.iter().map(|l| block_type(l.depths[0].is_some(), "DownBlock2D")).collect::<Vec<_>>(),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": conv_in[1],
        "layers_per_block": if layers.iter().all(|n| *n == layers[0]) { json!(layers[0]) } else { json!(layers) },
        "mid_block_type": mid,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": conv_out[0],
        "sample_size": if added.is_some() { 128 } else { 64 },
        "time_embedding_dim": if time == 4 * base { Value::Null } else { json!(time) },
        "transformer_layers_per_block": down_depths,
        "up_block_types": up.iter().map(|d| block_type(d[0].is_some(), "UpBlock2D")).collect::<Vec<_>>(),
        "use_linear_projection": linear,
    });
    if !mirrored {
        config["reverse_transformer_layers_per_block"] = json!(up_depths);
    }
    if let Some(input) = added {
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(SIZE_CHANNELS);
        config["projection_class_embeddings_input_dim"] = json!(input);
    }
    if let Some(shape) = file.shape(&format!("{GUIDANCE}.weight")) {
        config["time_cond_proj_dim"] = json!(shape.last());
    }
    UNetConfig::parse(&config.to_string(), file.path())
}

/// Number of BasicTransformerBlocks at a place; `None` when no transformer stands there.
fn depth(file: &TensorFile, at: &str) -> Option<usize> {
    file.has(&format!("{at}.proj_in.weight"))
        .then(|| (0..).take_while(|i| file.has(&format!("{at}.transformer_blocks.{i}.attn1.to_q.weight"))).count())
}

fn first_transformer(file: &TensorFile) -> Option<String> {
    let inputs = (0..64).map(|n| format!("input_blocks.{n}.1"));
    let places = inputs.chain(["middle_block.1".to_string()]).chain((0..64).map(|n| format!("output_blocks.{n}.1")));
    places.into_iter().find(|at| depth(file, at).is_some_and(|d| d > 0))
}

/// One number where all are equal, else the list.
fn compact(depths: &[Option<usize>]) -> Value {
    let depths: Vec<usize> = depths.iter().map(|d| d.unwrap_or(0)).collect();
    if depths.iter().all(|d| *d == depths[0]) { json!(depths[0]) } else { json!(depths) }
}
