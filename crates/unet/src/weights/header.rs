//! The header of a safetensors file, checked beyond what the crate of that name checks. Bytes -> **entries**.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use safetensors::SafeTensors;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};

use super::files::Entry;

/// Tensors, and metadata, by name.
type Header = (BTreeMap<String, Entry>, BTreeMap<String, String>);

/// The header of a safetensors file, or what is wrong with it.
pub(super) fn read(bytes: &[u8]) -> std::result::Result<Header, String> {
    let length = bytes.first_chunk().map(|head| u64::from_le_bytes(*head)).ok_or("too short for a file of weights")?;
    let header = usize::try_from(length).ok().and_then(|n| bytes.get(8..)?.get(..n));
    let header = header.filter(|header| header.first() == Some(&b'{')).ok_or_else(|| match bytes.get(8) {
        Some(b'{') => format!("a safetensors file whose header has {length} bytes, but the file ends after {}", bytes.len()),
        _ => "neither a safetensors file nor one of PyTorch's".to_string(),
    })?;
    let named: NamedOnce = serde_json::from_slice(header).map_err(|e| format!("bad safetensors header ({e})"))?;
    let expected = named.end.saturating_add(8 + header.len());
    if expected != bytes.len() {
        return Err(format!("a safetensors file of {expected} bytes by its header, of which {} are there", bytes.len()));
    }
    let (_, meta) = SafeTensors::read_metadata(bytes).map_err(|e| format!("bad safetensors header ({e})"))?;
    // Tensors of no elements may have sides of any length.
    let countable = |shape: &[usize]| {
        let sides = shape.iter().map(|side| i64::try_from(*side).ok());
        sides.filter(|side| *side != Some(0)).try_fold(1i64, |n, side| n.checked_mul(side?)).is_some()
    };
    if let Some((name, _)) = meta.tensors().iter().find(|(_, info)| !countable(&info.shape)) {
        return Err(format!("bad safetensors header (`{name}` has a shape beyond memory)"));
    }
    let at = 8 + header.len();
    let entry = |info: &TensorInfo| Entry {
        dtype: info.dtype,
        shape: info.shape.iter().map(|&n| n as i64).collect(),
        strides: None,
        start: at + info.data_offsets.0,
        end: at + info.data_offsets.1,
        scale: None,
    };
    let entries = meta.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect();
    Ok((entries, meta.metadata().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()))
}

/// A header in which every tensor is named once, which the safetensors crate takes for granted; and where the last tensor ends.
struct NamedOnce {
    end: usize,
}

#[derive(Deserialize)]
struct Offsets {
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for NamedOnce {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(NamedOnce { end: 0 })
    }
}

impl<'de> Visitor<'de> for NamedOnce {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensors by name")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> std::result::Result<Self, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
            } else {
                self.end = self.end.max(map.next_value::<Offsets>()?.data_offsets.1);
            }
            if let Some(twice) = seen.replace(name) {
                return Err(A::Error::custom(format!("`{twice}` stands there twice")));
            }
        }
        Ok(self)
    }
}
