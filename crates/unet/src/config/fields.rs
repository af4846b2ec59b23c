//! Typed access to the settings of a `config.json`, and the list of the settings that are known but not implemented.

use std::path::Path;

use artifact::{short, warn_once};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// Settings that are read by this crate.
const READ: &[&str] = &[
    "sample_size",
    "in_channels",
    "out_channels",
    "center_input_sample",
    "flip_sin_to_cos",
    "freq_shift",
    "down_block_types",
    "mid_block_type",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "reverse_transformer_layers_per_block",
    "attention_head_dim",
    "num_attention_heads",
    "use_linear_projection",
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "upcast_attention",
    "time_embedding_dim",
    "time_cond_proj_dim",
    "conv_in_kernel",
    "conv_out_kernel",
];

/// Settings that change no number for the models of this crate, whatever they hold.
const WITHOUT_EFFECT: &[&str] = &["addition_embed_type_num_heads"];

/// Settings of training programs and of libraries around, which change no prediction: told, and otherwise left alone.
const OF_TRAINING: &[&str] = &[
    "dropout",
    // EMAModel's.
    "decay",
    "ema_decay",
    "min_decay",
    "optimization_step",
    "update_after_step",
    "use_ema_warmup",
    "inv_gamma",
    "power",
    // transformers', and those of other frameworks.
    "architectures",
    "dtype",
    "torch_dtype",
    "model_type",
    "transformers_version",
    "use_memory_efficient_attention",
    "split_head_dim",
    "gradient_checkpointing",
    "enable_xformers_memory_efficient_attention",
];

/// Class names of diffusers for this network.
const CLASSES: [&str; 2] = ["UNet2DConditionModel", "FlaxUNet2DConditionModel"];

/// Settings of other U-Nets: accepted only with the value that leaves them out.
fn fixed() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("only_cross_attention", vec![json!(false)]),
        ("downsample_padding", vec![json!(1)]),
        ("mid_block_scale_factor", vec![json!(1)]),
        ("act_fn", vec![json!("silu"), json!("swish")]),
        ("encoder_hid_dim", vec![]),
        ("encoder_hid_dim_type", vec![]),
        ("dual_cross_attention", vec![json!(false)]),
        ("class_embed_type", vec![]),
        ("num_class_embeds", vec![]),
        ("resnet_time_scale_shift", vec![json!("default")]),
        ("resnet_skip_time_act", vec![json!(false)]),
        ("resnet_out_scale_factor", vec![json!(1)]),
        ("time_embedding_type", vec![json!("positional")]),
        ("time_embedding_act_fn", vec![]),
        ("timestep_post_act", vec![]),
        ("attention_type", vec![json!("default")]),
        ("class_embeddings_concat", vec![json!(false)]),
        ("mid_block_only_cross_attention", vec![json!(false)]),
        ("cross_attention_norm", vec![]),
    ]
}

/// The settings of one file: [`artifact::Fields`] with what a U-Net's have of their own.
pub(super) struct Fields(artifact::Fields);

/// A depth, or one depth per transformer of the stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Depth {
    Same(usize),
    Each(Vec<usize>),
}

impl Fields {
    /// Checks the class name and refuses every setting that is neither read nor known to be left out, unless it says nothing (null,
    /// false, an empty list) or is one of training.
    pub fn new(map: &Map<String, Value>, path: &Path) -> Result<Self> {
        let fields = Self(artifact::Fields::new(map.clone(), path));
        let fixed = fixed();
        match fields.text("_class_name")? {
            Some(class) if CLASSES.contains(&class.as_str()) => {}
            Some(class) => return Err(fields.error("_class_name", "\"UNet2DConditionModel\"", &class)),
            None if !map.keys().any(|key| READ.contains(&key.as_str())) => {
                return Err(fields.error("_class_name", "\"UNet2DConditionModel\", or settings of one", "neither"));
            }
            None => {}
        }
        let mut told = Vec::new();
        for (key, value) in map {
            let known = READ.contains(&key.as_str()) || WITHOUT_EFFECT.contains(&key.as_str());
            if key.starts_with('_') || known {
                continue;
            }
            let Some((_, allowed)) = fixed.iter().find(|(name, _)| name == key) else {
                if OF_TRAINING.contains(&key.as_str()) || says_nothing(value) {
                    // As every file that diffusers wrote has it.
                    told.extend((!same(value, &json!(0))).then_some(key.as_str()));
                    continue;
                }
                let expected = match key.as_str() {
                    "quantization_config" => "weights that are not quantised (f16, bf16 or f32)",
                    _ => "a setting that this program knows, or null",
                };
                return Err(fields.error(key, expected, &short(value)));
            };
            if value.is_null() {
                continue;
            }
            // A setting per level is left out when it is left out on every level.
            let each = match value {
                Value::Array(list) => list.iter().collect(),
                one => vec![one],
            };
            if !each.iter().all(|v| allowed.iter().any(|a| same(a, v))) {
                let expected = match allowed.first() {
                    Some(v) => format!("{v} (nothing else is implemented)"),
                    None => "null (nothing else is implemented)".to_string(),
                };
                return Err(fields.error(key, &expected, &short(value)));
            }
        }
        if !told.is_empty() {
            warn_once(format!("{}: settings without effect on predictions are left alone: {}", path.display(), told.join(", ")));
        }
        Ok(fields)
    }

    pub fn error(&self, key: &str, expected: &str, got: &str) -> Error {
        self.0.error(key, expected, got).into()
    }

    /// Whether the key is there with null, where absence means something else.
    pub fn is_null(&self, key: &str) -> bool {
        self.has(key) && !self.is_set(key)
    }

    /// Whether the key is there, null or not.
    fn has(&self, key: &str) -> bool {
        self.0.map().contains_key(key)
    }

    /// Whether the key is there and not null.
    pub fn is_set(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }

    /// The value of a key, or diffusers' default.
    fn or_default(&self, key: &str) -> Value {
        let default = || DEFAULTS.iter().find(|(name, _)| *name == key).map_or(Value::Null, |(_, text)| json_of(text));
        self.0.get(key).cloned().unwrap_or_else(default)
    }

    pub fn text(&self, key: &str) -> Result<Option<String>> {
        Ok(self.0.text(key)?)
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.0.flag(key, default)?)
    }

    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        let number = |v: &Value| v.as_f64().filter(|x| x.is_finite() && *x >= 0.0);
        Ok(self.0.typed(key, "a number of at least 0", number)?.unwrap_or(default))
    }

    /// A positive integer; a missing one is an error unless there is a default.
    pub fn positive(&self, key: &str, default: Option<i64>) -> Result<i64> {
        match (self.0.get(key), default) {
            (None, Some(value)) => Ok(value),
            (None, None) => Err(self.error(key, "a positive integer", "nothing")),
            (Some(v), _) => self.as_positive(key, v),
        }
    }

    /// A count under a key of this program's own, where it is there.
    pub fn own_count(&self, key: &str) -> Result<Option<usize>> {
        let count = |v: &Value| v.as_u64().filter(|n| *n <= MAX_COUNT as u64).map(|n| n as usize);
        Ok(self.0.typed(key, "a number of blocks", count)?)
    }

    /// Width of the embedded guidance scale; fewer than four numbers have no frequencies between the highest and the lowest.
    pub fn guidance_width(&self) -> Result<Option<i64>> {
        let key = "time_cond_proj_dim";
        let least = |n: i64| if n >= 4 { Ok(n) } else { Err(self.error(key, "null, or at least 4", &n.to_string())) };
        self.0.get(key).map(|v| self.as_positive(key, v).and_then(least)).transpose()
    }

    pub fn odd(&self, key: &str, default: i64) -> Result<i64> {
        let value = self.positive(key, Some(default))?;
        if value % 2 == 0 {
            return Err(self.error(key, "an odd kernel size", &value.to_string()));
        }
        Ok(value)
    }

    fn as_positive(&self, key: &str, v: &Value) -> Result<i64> {
        v.as_i64().filter(|n| (1..=MAX_WIDTH).contains(n)).ok_or_else(|| self.error(key, "a positive integer", &v.to_string()))
    }

    /// Null, one side, or `[height, width]`.
    pub fn size(&self, key: &str) -> Result<Option<(i64, i64)>> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) if list.len() == 2 => Ok(Some((self.as_positive(key, &list[0])?, self.as_positive(key, &list[1])?))),
            Some(v) => self.as_positive(key, v).map(|n| Some((n, n))),
        }
    }

    fn ints(&self, key: &str) -> Result<Vec<i64>> {
        let v = self.or_default(key);
        let list = v.as_array().filter(|l| !l.is_empty()).ok_or_else(|| self.error(key, "a list of positive integers", &v.to_string()))?;
        list.iter().map(|v| self.as_positive(key, v)).collect()
    }

    /// The channels of each level.
    pub fn levels(&self, key: &str) -> Result<Vec<i64>> {
        let channels = self.ints(key)?;
        if channels.len() > MAX_LEVELS {
            return Err(self.error(key, &format!("at most {MAX_LEVELS} levels"), &channels.len().to_string()));
        }
        Ok(channels)
    }

    /// Numbers of layers, one per level.
    pub fn counts(&self, key: &str, levels: usize) -> Result<Vec<i64>> {
        let counts = self.per_level(key, levels)?;
        match counts.iter().find(|n| **n > MAX_COUNT) {
            None => Ok(counts),
            Some(n) => Err(self.error(key, &format!("at most {MAX_COUNT} layers"), &n.to_string())),
        }
    }

    /// The types of the blocks of each level.
    pub fn block_types(&self, key: &str, len: usize) -> Result<Vec<String>> {
        let expected = format!("{len} block types, one per entry of block_out_channels");
        let v = self.or_default(key);
        let list = v.as_array().filter(|l| l.len() == len).ok_or_else(|| self.error(key, &expected, &v.to_string()))?;
        list.iter().map(|v| v.as_str().map(str::to_string).ok_or_else(|| self.error(key, "strings", &v.to_string()))).collect()
    }

    /// One positive integer per level: an integer for all, or a list of them.
    pub fn per_level(&self, key: &str, levels: usize) -> Result<Vec<i64>> {
        let expected = format!("a positive integer, or {levels} of them");
        match self.or_default(key) {
            Value::Array(list) if list.len() == levels => list.iter().map(|v| self.as_positive(key, v)).collect(),
            Value::Array(list) => Err(self.error(key, &expected, &format!("{} of them", list.len()))),
            v => Ok(vec![self.as_positive(key, &v)?; levels]),
        }
    }

    /// One depth per level, each a number or a list with one number per transformer; `None` when absent or null.
    pub fn depths(&self, key: &str, levels: usize) -> Result<Option<Vec<Depth>>> {
        let expected = format!("a number, or {levels} numbers or lists of numbers");
        let depth = |v: &Value| -> Result<usize> {
            v.as_u64().filter(|n| *n <= MAX_COUNT as u64).map(|n| n as usize).ok_or_else(|| self.error(key, &expected, &v.to_string()))
        };
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) if list.len() == levels => list
                .iter()
                .map(|v| match v {
                    Value::Array(each) => Ok(Depth::Each(each.iter().map(depth).collect::<Result<_>>()?)),
                    one => Ok(Depth::Same(depth(one)?)),
                })
                .collect::<Result<Vec<_>>>()
                .map(Some),
            Some(Value::Array(list)) => Err(self.error(key, &expected, &format!("{} of them", list.len()))),
            Some(v) => Ok(Some(vec![Depth::Same(depth(v)?); levels])),
        }
    }
}

/// What diffusers takes for a missing setting that shapes the network (the signature of `UNet2DConditionModel` in 0.42), as JSON. The
/// defaults of single numbers stand where they are read.
const DEFAULTS: [(&str, &str); 6] = [
    ("down_block_types", r#"["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]"#),
    ("up_block_types", r#"["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]"#),
    ("block_out_channels", "[320, 640, 1280, 1280]"),
    ("layers_per_block", "2"),
    ("cross_attention_dim", "1280"),
    ("attention_head_dim", "8"),
];

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).expect("the defaults are JSON")
}

/// Null, false, and lists and objects of nothing.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

// Far above any real setting: a damaged file must not ask for endless memory.
const MAX_WIDTH: i64 = 1 << 20;
const MAX_COUNT: i64 = 1 << 8;
const MAX_LEVELS: usize = 16;

// 1 and 1.0 are the same setting.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
