//! The architecture of a file without configuration, read off the shapes of its tensors, under the original or diffusers' names.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::GUIDANCE;
use crate::config::UNetConfig;
use crate::error::{Error, Result};

/// Width of one head wherever it is not fixed otherwise.
const HEAD: i64 = 64;
/// Text width and heads of Stable Diffusion v1, the one family with a fixed number of heads.
const V1: (i64, i64) = (768, 8);
/// Text width of Stable Diffusion v2, whose attention needs f32 where f16 is computed in.
const V2_TEXT: i64 = 1024;
/// Numbers in the sinusoidal embedding of one size, in every published model that has them.
const SIZE_CHANNELS: i64 = 256;
/// Pixels per latent along a side.
const PIXELS: i64 = 8;

/// Inputs that the networks of this program do not take: the beginning of their tensors, and what they are.
const OTHER_INPUTS: [(&str, &str); 5] = [
    ("label_emb.weight", "class labels, as upscalers have them (num_class_embeds)"),
    ("class_embedding.", "class labels or noise levels (class_embed_type)"),
    ("encoder_hid_proj.", "a projection of text or images (encoder_hid_dim_type)"),
    ("position_net.", "boxes (GLIGEN)"),
    ("add_embedding.image_", "embeddings of images (addition_embed_type)"),
];
/// Widths of the embedded image of unCLIP, which stands where SDXL has pooled text and sizes.
const UNCLIP: [i64; 2] = [1536, 2048];

/// Shapes by name.
pub(crate) type Shapes = BTreeMap<String, Vec<i64>>;

/// The depth of the transformer behind each ResNet of a level, `None` without one.
type Depths = Vec<Option<usize>>;

/// What the tensors tell, whatever they are called.
struct Told {
    /// Channels and depths of each level on the way down.
    down: Vec<(i64, Depths)>,
    up: Vec<Depths>,
    mid_resnets: bool,
    mid_depth: Option<usize>,
    conv_in: Vec<i64>,
    conv_out: Vec<i64>,
    time: i64,
    added: Option<i64>,
    guidance: Option<i64>,
}

/// Reads the shapes of one U-Net, under the original names or diffusers'. `metadata` may say the size of its images.
///
/// # Errors
/// [`Error::Format`] when they are no U-Net of the Stable Diffusion family, or the number of heads cannot be told.
pub(crate) fn infer(shapes: &Shapes, original: bool, metadata: &BTreeMap<String, String>, path: &Path) -> Result<UNetConfig> {
    let bad = |problem: String| Error::Format {
        path: path.into(),
        problem,
        hint: "put its config.json beside it, or convert it with diffusers to a model directory".into(),
    };
    if let Some((_, what)) = OTHER_INPUTS.iter().find(|(start, _)| shapes.keys().any(|key| key.starts_with(start))) {
        return Err(bad(format!("this U-Net takes {what}, which this program does not know")));
    }
    let told = if original { of_original(shapes) } else { of_diffusers(shapes) }.map_err(|key| bad(format!("no tensor `{key}`")))?;
    check(&told).map_err(|problem| bad(problem.into()))?;
    config(shapes, &told, metadata).map_err(bad).and_then(|json| UNetConfig::parse(&json.to_string(), path))
}

fn need<'a>(shapes: &'a Shapes, key: &str) -> std::result::Result<&'a Vec<i64>, String> {
    shapes.get(key).filter(|shape| !shape.is_empty()).ok_or_else(|| key.to_string())
}

fn of_original(shapes: &Shapes) -> std::result::Result<Told, String> {
    let has = |key: String| shapes.contains_key(&key);
    let conv_in = need(shapes, "input_blocks.0.0.weight")?.clone();
    let mut down = vec![(conv_in[0], Depths::new())];
    for n in 1.. {
        let at = format!("input_blocks.{n}");
        if has(format!("{at}.0.op.weight")) {
            down.push((0, Depths::new()));
        } else if let Some(conv) = shapes.get(&format!("{at}.0.in_layers.2.weight")) {
            let (channels, depths) = down.last_mut().expect("one level to begin with");
            *channels = conv.first().copied().unwrap_or_default();
            depths.push(depth(shapes, &format!("{at}.1")));
        } else {
            break;
        }
    }
    let mut up = vec![Depths::new()];
    for n in 0.. {
        let at = format!("output_blocks.{n}");
        if !has(format!("{at}.0.in_layers.2.weight")) {
            break;
        }
        up.last_mut().expect("one level to begin with").push(depth(shapes, &format!("{at}.1")));
        if [1, 2].iter().any(|i| has(format!("{at}.{i}.conv.weight"))) {
            up.push(Depths::new());
        }
    }
    Ok(Told {
        down,
        up,
        mid_resnets: has("middle_block.0.in_layers.2.weight".into()),
        mid_depth: depth(shapes, "middle_block.1"),
        conv_in,
        conv_out: need(shapes, "out.2.weight")?.clone(),
        time: need(shapes, "time_embed.0.weight")?[0],
        added: shapes.get("label_emb.0.0.weight").and_then(|s| s.last().copied()),
        guidance: shapes.get(&format!("{GUIDANCE}.weight")).and_then(|s| s.last().copied()),
    })
}

fn of_diffusers(shapes: &Shapes) -> std::result::Result<Told, String> {
    let level = |at: String| -> Option<(i64, Depths)> {
        let conv = |i: usize| shapes.get(&format!("{at}.resnets.{i}.conv1.weight"));
        let channels = conv(0)?.first().copied().unwrap_or_default();
        let depths = (0..).take_while(|i| conv(*i).is_some()).map(|i| depth(shapes, &format!("{at}.attentions.{i}"))).collect();
        Some((channels, depths))
    };
    Ok(Told {
        down: (0..).map_while(|n| level(format!("down_blocks.{n}"))).collect(),
        up: (0..).map_while(|n| level(format!("up_blocks.{n}")).map(|(_, depths)| depths)).collect(),
        mid_resnets: shapes.contains_key("mid_block.resnets.0.conv1.weight"),
        mid_depth: depth(shapes, "mid_block.attentions.0"),
        conv_in: need(shapes, "conv_in.weight")?.clone(),
        conv_out: need(shapes, "conv_out.weight")?.clone(),
        time: need(shapes, "time_embedding.linear_1.weight")?[0],
        added: shapes.get("add_embedding.linear_1.weight").and_then(|s| s.last().copied()),
        guidance: shapes.get(&format!("{GUIDANCE}.weight")).and_then(|s| s.last().copied()),
    })
}

/// Whether a `config.json` can say it.
fn check(told: &Told) -> std::result::Result<(), &'static str> {
    let (down, up) = (&told.down, &told.up);
    if told.conv_in.len() != 4 || told.conv_out.len() != 4 {
        return Err("its first and last convolutions are not those of images");
    }
    let fits =
        !down.is_empty() && up.len() == down.len() && down.iter().rev().zip(up).all(|((_, d), u)| !d.is_empty() && u.len() == d.len() + 1);
    if !fits {
        return Err("its ways down and up do not belong together");
    }
    let uneven = |depths: &Depths| depths.iter().any(|d| d.is_some() != depths[0].is_some());
    if down.iter().map(|(_, depths)| depths).chain(up).any(uneven) {
        return Err("a level has transformers behind some of its ResNets only");
    }
    Ok(())
}

/// The configuration in diffusers' words, or why there is none.
fn config(shapes: &Shapes, told: &Told, metadata: &BTreeMap<String, String>) -> std::result::Result<Value, String> {
    let (down, up, mid_depth) = (&told.down, &told.up, told.mid_depth);
    let mid = match (told.mid_resnets, mid_depth) {
        (false, _) => Value::Null,
        (true, None) => json!("UNetMidBlock2D"),
        (true, Some(_)) => json!("UNetMidBlock2DCrossAttn"),
    };
    let ending = |ending: &str| shapes.iter().find(|(key, shape)| key.ends_with(ending) && shape.len() > 1).map(|(_, shape)| shape);
    let context = ending(".transformer_blocks.0.attn2.to_k.weight").ok_or("it has no transformer")?[1];
    let linear = ending(".proj_in.weight").ok_or("it has no transformer")?.len() == 2;
    let channels: Vec<i64> = down.iter().map(|(channels, _)| *channels).collect();
    let heads: Vec<i64> = match (context, linear) {
        (context, false) if context == V1.0 => vec![V1.1; channels.len()],
        _ if channels.iter().all(|c| c % HEAD == 0) => channels.iter().map(|c| c / HEAD).collect(),
        _ => return Err(format!("the number of heads cannot be told from widths of {channels:?}")),
    };
    let v2 = context == V2_TEXT && linear;
    if let Some(width) = told.added.filter(|width| v2 && UNCLIP.contains(width)) {
        return Err(format!("this U-Net takes an embedded image of {width} numbers (unCLIP), which this program does not know"));
    }

    let last = down.len() - 1;
    let down_depth = |(i, (_, depths)): (usize, &(i64, Depths))| match (depths[0], mid_depth) {
        // The mid block takes the first depth of the last level, also where that level has no transformers itself.
        (None, Some(mid)) if i == last => json!(mid),
        (None, _) => json!(1),
        _ => compact(depths),
    };
    let down_depths: Vec<Value> = down.iter().enumerate().map(down_depth).collect();
    if let (Some(own), Some(mid)) = (down[last].1[0], mid_depth)
        && own != mid
    {
        return Err(format!("its mid block has depth {mid} and its last level {own}, which no config.json can say"));
    }
    // A level without transformers has no depth; it takes that of its mirror image.
    let mirror = down_depths.iter().rev();
    let up_depths: Vec<Value> = up.iter().zip(mirror).map(|(up, d)| if up[0].is_none() { d.clone() } else { compact(up) }).collect();
    let mirrored = down_depths.iter().rev().eq(&up_depths) && !down_depths.iter().any(Value::is_array);
    let layers: Vec<usize> = down.iter().map(|(_, depths)| depths.len()).collect();
    let block_type = |attends: bool, kind: &str| json!(format!("{}{kind}", if attends { "CrossAttn" } else { "" }));

    let mut config = json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": channels,
        "center_input_sample": false,
        "cross_attention_dim": context,
        "down_block_types": down.iter().map(|(_, d)| block_type(d[0].is_some(), "DownBlock2D")).collect::<Vec<_>>(),
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": told.conv_in[1],
        "layers_per_block": if layers.iter().all(|n| *n == layers[0]) { json!(layers[0]) } else { json!(layers) },
        "mid_block_type": mid,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": told.conv_out[0],
        "sample_size": sample_size(told, v2, metadata),
        "time_embedding_dim": if told.time == 4 * channels[0] { Value::Null } else { json!(told.time) },
        "transformer_layers_per_block": down_depths,
        "up_block_types": up.iter().map(|d| block_type(d[0].is_some(), "UpBlock2D")).collect::<Vec<_>>(),
        "use_linear_projection": linear,
    });
    if !mirrored {
        config["reverse_transformer_layers_per_block"] = json!(up_depths);
    }
    if v2 {
        config["upcast_attention"] = json!(true);
    }
    for (key, kernel) in [("conv_in_kernel", told.conv_in[2]), ("conv_out_kernel", told.conv_out[2])] {
        if kernel != 3 {
            config[key] = json!(kernel);
        }
    }
    if let Some(input) = told.added {
        config["addition_embed_type"] = json!("text_time");
        config["addition_time_embed_dim"] = json!(SIZE_CHANNELS);
        config["projection_class_embeddings_input_dim"] = json!(input);
    }
    if let Some(width) = told.guidance {
        config["time_cond_proj_dim"] = json!(width);
    }
    Ok(config)
}

/// The side of the latents: what the metadata say (`modelspec.resolution`, `1024x1024`), else that of the family's first models.
fn sample_size(told: &Told, v2: bool, metadata: &BTreeMap<String, String>) -> Value {
    let side = |text: &str| text.trim().parse::<i64>().ok().filter(|n| (64..=1 << 14).contains(n)).map(|n| n / PIXELS);
    let said = metadata.get("modelspec.resolution").and_then(|text| {
        let (w, h) = text.split_once('x')?;
        Some((side(h)?, side(w)?))
    });
    match said {
        Some((h, w)) if h == w => json!(h),
        Some((h, w)) => json!([h, w]),
        None if told.added.is_some() => json!(128),
        None if v2 && told.conv_in[1] == told.conv_out[0] => json!(96),
        None => json!(64),
    }
}

/// Number of BasicTransformerBlocks at a place; `None` when no transformer stands there.
fn depth(shapes: &Shapes, at: &str) -> Option<usize> {
    let has = |key: String| shapes.contains_key(&key);
    has(format!("{at}.proj_in.weight")).then(|| (0..).take_while(|i| has(format!("{at}.transformer_blocks.{i}.attn1.to_q.weight"))).count())
}

/// One number where all are equal, else the list.
fn compact(depths: &Depths) -> Value {
    let depths: Vec<usize> = depths.iter().map(|d| d.unwrap_or(0)).collect();
    if depths.iter().all(|d| *d == depths[0]) { json!(depths[0]) } else { json!(depths) }
}

#[cfg(test)]
mod tests {
    use prune_core::RemovalSet;

    use super::*;
    use crate::single_file::SingleFileNames;
    use crate::unet::UNet;
    use crate::weights::{Tensors, Weights};

    fn edited(base: &UNetConfig, edits: &[(&str, Value)]) -> UNetConfig {
        let mut json = base.to_json();
        for (key, value) in edits {
            json[key] = value.clone();
        }
        UNetConfig::parse(&json.to_string(), "edited").unwrap()
    }

    /// The published families at their true widths: the shapes alone, under both names, give the configuration that diffusers publishes.
    #[test]
    fn published_architectures_are_told_by_their_shapes() {
        let (v1, v2, xl) = (UNetConfig::sd15(), UNetConfig::sd21(), UNetConfig::sdxl());
        let mid = |kind: Value| ("mid_block_type", kind);
        let depths = |down: Value, up: Value| [("transformer_layers_per_block", down), ("reverse_transformer_layers_per_block", up)];
        let one = ("layers_per_block", json!(1));
        let tiny = [
            one.clone(),
            mid(Value::Null),
            ("block_out_channels", json!([320, 640, 1280])),
            ("down_block_types", json!(["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"])),
            ("up_block_types", json!(["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"])),
        ];
        let refiner = [
            ("attention_head_dim", json!([6, 12, 24, 24])),
            ("block_out_channels", json!([384, 768, 1536, 1536])),
            ("cross_attention_dim", json!(1280)),
            ("down_block_types", json!(["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"])),
            ("up_block_types", json!(["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"])),
            ("transformer_layers_per_block", json!(4)),
            ("projection_class_embeddings_input_dim", json!(2560)),
        ];
        let ssd = depths(json!([0, [2, 2], [4, 4]]), json!([[4, 4, 10], [2, 1, 1], 0]));
        let vega = depths(json!([0, [1, 1], [2, 2]]), json!([[2, 2, 2], [1, 1, 1], 0]));
        let nine = ("in_channels", json!(9));
        let cases: Vec<(&str, UNetConfig)> = vec![
            ("SD-v1", v1.clone()),
            ("SD-v1 inpainting", edited(&v1, std::slice::from_ref(&nine))),
            ("instruct-pix2pix", edited(&v1, &[("in_channels", json!(8))])),
            ("LCM", edited(&v1, &[("time_cond_proj_dim", json!(256))])),
            ("BK-SDM-Base", edited(&v1, std::slice::from_ref(&one))),
            ("BK-SDM-Small", edited(&v1, &[one.clone(), mid(Value::Null)])),
            ("BK-SDM-Tiny", edited(&v1, &tiny)),
            ("SD-v2", v2.clone()),
            ("SD-v2 inpainting", edited(&v2, std::slice::from_ref(&nine))),
            ("SD-v2 depth", edited(&v2, &[("in_channels", json!(5))])),
            ("SDXL", xl.clone()),
            ("SDXL inpainting", edited(&xl, &[nine])),
            ("SDXL refiner", edited(&xl, &refiner)),
            ("SSD-1B", edited(&xl, &[&ssd[..], &[mid(json!("UNetMidBlock2D"))]].concat())),
            ("Segmind-Vega", edited(&xl, &[&vega[..], &[mid(json!("UNetMidBlock2D"))]].concat())),
            ("KOALA-1B", edited(&xl, &[one.clone(), ("transformer_layers_per_block", json!([0, 2, 6]))])),
            ("KOALA-700M", edited(&xl, &[one, ("transformer_layers_per_block", json!([0, 2, 5])), mid(Value::Null)])),
        ];
        for (name, config) in cases {
            // All padding, so that no weight takes memory.
            let unet = UNet::from_weights(&config, Weights::padded(Tensors::new()), &RemovalSet::empty()).unwrap();
            let names = SingleFileNames::new(&config);
            for original in [false, true] {
                let named = |key: &String| if original { names.to_single_file(key).unwrap() } else { key.clone() };
                let shapes: Shapes = unet.parameters().iter().map(|(key, t)| (named(key), t.size())).collect();
                let told = infer(&shapes, original, &BTreeMap::new(), Path::new("file")).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(told.stages, config.stages, "{name}");
                assert_eq!(
                    (told.in_channels, told.text_width, &told.added),
                    (config.in_channels, config.text_width, &config.added),
                    "{name}"
                );
                assert_eq!(told.time, config.time, "{name}");
                assert_eq!(
                    (told.use_linear_projection, told.upcast_attention),
                    (config.use_linear_projection, config.upcast_attention),
                    "{name}"
                );
                if config.in_channels == config.out_channels {
                    assert_eq!(told.sample_size, config.sample_size, "{name}");
                }
            }
        }
    }
}
