//! 8-bit weights that are stored with a factor (`scale_weight`, `weight_scale`): the factor goes to its tensor. Entries -> **entries**.
//!
//! Plain 8-bit floats need nothing: their type says all. Other quantisations pack several numbers or need tables; they are named.
//! Sources: ComfyUI's `scaled_fp8` and `comfy_quant` files, compressed-tensors, bitsandbytes' `quant_state`, optimum-quanto.

use std::collections::BTreeMap;

use safetensors::Dtype;

use super::files::Entry;

/// What is wrong, and what to do.
pub(super) type Refusal = (String, String);

/// Names of the factor of `<layer>.weight`.
const SCALES: [&str; 3] = [".scale_weight", ".weight_scale", ".weight_scale_inv"];
/// Names beside it that change nothing about the weights: the scales of inputs, and descriptions.
const DESCRIPTIONS: [&str; 4] = [".scale_input", ".input_scale", ".comfy_quant", ".scale_output"];
/// The marker of a whole file.
const MARKER: &str = "scaled_fp8";

/// Endings of quantisations that are not read.
const REFUSED: [(&str, &str); 11] = [
    (".quant_state.bitsandbytes__nf4", "bitsandbytes (nf4)"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes (fp4)"),
    (".quant_map", "bitsandbytes"),
    (".absmax", "bitsandbytes"),
    (".SCB", "bitsandbytes (int8)"),
    (".weight._data", "optimum-quanto"),
    (".weight_scale_2", "NVFP4"),
    (".qweight", "GPTQ, AWQ or SVDQuant"),
    (".weight_packed", "compressed-tensors (packed)"),
    (".weight_blocks", "MXFP4"),
    (".wscales", "SVDQuant"),
];

/// Gives each scaled tensor its factor and drops the tensors that only say how it was made.
pub(super) fn fold_scales(
    mut entries: BTreeMap<String, Entry>,
    read: impl Fn(&Entry) -> Vec<u8>,
) -> Result<BTreeMap<String, Entry>, Refusal> {
    let refused = |key: &str| REFUSED.iter().find(|(ending, _)| key.ends_with(ending)).map(|(_, by)| *by);
    if let Some((key, by)) = entries.keys().find_map(|key| Some((key, refused(key)?))) {
        return Err(unsupported(format!("quantised with {by} (`{key}`)")));
    }
    check_formats(&entries, read)?;
    let eight_bits = |e: &Entry| e.dtype.bitsize() == 8 && !matches!(e.dtype, Dtype::BOOL | Dtype::U8 | Dtype::F8_E8M0);
    let weight_of = |key: &str| SCALES.iter().find_map(|scale| key.strip_suffix(scale)).map(|layer| format!("{layer}.weight"));
    let scales: Vec<(String, String)> = entries
        .keys()
        .filter_map(|key| Some((key.clone(), weight_of(key)?)))
        .filter(|(_, weight)| entries.get(weight).is_some_and(eight_bits))
        .collect();
    let marked = !scales.is_empty() || entries.keys().any(|key| key.rsplit('.').next() == Some(MARKER));
    for (key, weight) in scales {
        let (Some(scale), Some(target)) = (entries.remove(&key), entries.get_mut(&weight)) else { continue };
        let factors: i64 = scale.shape.iter().product();
        let fits = factors == 1 || (Some(&factors) == target.shape.first() && scale.shape.first() == Some(&factors));
        if !fits {
            let (scale, weight_shape) = (&scale.shape, &target.shape);
            return Err(unsupported(format!(
                "`{key}` has shape {scale:?}, neither one factor nor one per row of `{weight}` {weight_shape:?}"
            )));
        }
        target.scale = Some(Box::new(scale));
    }
    if marked {
        let says_how = |key: &str| key.rsplit('.').next() == Some(MARKER) || DESCRIPTIONS.iter().any(|ending| key.ends_with(ending));
        entries.retain(|key, _| !says_how(key));
    }
    Ok(entries)
}

/// Descriptions of formats other than one factor per tensor or row.
fn check_formats(entries: &BTreeMap<String, Entry>, read: impl Fn(&Entry) -> Vec<u8>) -> Result<(), Refusal> {
    for (key, e) in entries.iter().filter(|(key, e)| key.ends_with(".comfy_quant") && e.dtype == Dtype::U8) {
        let said: Option<serde_json::Value> = serde_json::from_slice(&read(e)).ok();
        let format = said.as_ref().and_then(|v| v.get("format")?.as_str());
        if !format.is_some_and(|f| f.starts_with("float8_") || f.starts_with("int8_tensorwise")) {
            return Err(unsupported(format!("`{key}` says the format {}", format.unwrap_or("of something unknown"))));
        }
    }
    Ok(())
}

fn unsupported(problem: String) -> Refusal {
    (problem, "take the file in f16, bf16, f32 or plain or scaled 8-bit floats".into())
}
