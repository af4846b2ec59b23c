//! Typed access to the settings of a `config.json`, and the list of the settings that are known but not implemented.

use std::path::Path;

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

/// Settings of other U-Nets: accepted only with the value that leaves them out.
fn fixed() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("only_cross_attention", vec![json!(false)]),
        ("downsample_padding", vec![json!(1)]),
        ("mid_block_scale_factor", vec![json!(1)]),
        ("dropout", vec![json!(0)]),
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
    /// Checks the class name and refuses every setting that is neither read nor known to be left out.
    pub fn new(map: &Map<String, Value>, path: &Path) -> Result<Self> {
        let fields = Self(artifact::Fields::new(map.clone(), path));
        if let Some(class) = fields.text("_class_name")?.filter(|c| c != "UNet2DConditionModel") {
            return Err(fields.error("_class_name", "\"UNet2DConditionModel\"", &class));
        }
        let fixed = fixed();
        for (key, value) in map {
            let ignored = key.starts_with('_') || value.is_null() || READ.contains(&key.as_str()) || WITHOUT_EFFECT.contains(&key.as_str());
            if ignored {
                continue;
            }
            let Some((_, allowed)) = fixed.iter().find(|(name, _)| name == key) else {
                return Err(fields.error(key, "a setting that this program knows, or null", &value.to_string()));
            };
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
                return Err(fields.error(key, &expected, &value.to_string()));
            }
        }
        Ok(fields)
    }

    pub fn error(&self, key: &str, expected: &str, got: &str) -> Error {
        self.0.error(key, expected, got).into()
    }

    /// Whether the key is there, null or not.
    pub fn has(&self, key: &str) -> bool {
        self.0.map().contains_key(key)
    }

    /// Whether the key is there and not null.
    pub fn is_set(&self, key: &str) -> bool {
        self.0.get(key).is_some()
    }

    fn need(&self, key: &str, expected: &str) -> Result<&Value> {
        self.0.get(key).ok_or_else(|| self.error(key, expected, "nothing"))
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

    fn required_ints(&self, key: &str) -> Result<Vec<i64>> {
        let v = self.need(key, "a list of positive integers")?;
        let list = v.as_array().filter(|l| !l.is_empty()).ok_or_else(|| self.error(key, "a list of positive integers", &v.to_string()))?;
        list.iter().map(|v| self.as_positive(key, v)).collect()
    }

    /// The channels of each level.
    pub fn levels(&self, key: &str) -> Result<Vec<i64>> {
        let channels = self.required_ints(key)?;
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

    pub fn required_texts(&self, key: &str, len: usize) -> Result<Vec<String>> {
        let expected = format!("{len} block types, one per entry of block_out_channels");
        let v = self.need(key, &expected)?;
        let list = v.as_array().filter(|l| l.len() == len).ok_or_else(|| self.error(key, &expected, &v.to_string()))?;
        list.iter().map(|v| v.as_str().map(str::to_string).ok_or_else(|| self.error(key, "strings", &v.to_string()))).collect()
    }

    /// One positive integer per level: an integer for all, or a list of them.
    pub fn per_level(&self, key: &str, levels: usize) -> Result<Vec<i64>> {
        let expected = format!("a positive integer, or {levels} of them");
        match self.need(key, &expected)? {
            Value::Array(list) if list.len() == levels => list.iter().map(|v| self.as_positive(key, v)).collect(),
            Value::Array(list) => Err(self.error(key, &expected, &format!("{} of them", list.len()))),
            v => Ok(vec![self.as_positive(key, v)?; levels]),
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
