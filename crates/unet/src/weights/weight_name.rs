//! What the name of a weight file says, in a folder as in a list of a repository: whole, index or shard, and of which variant.

/// Variants in the order in which they are taken where the plain file is absent; any other one comes after them. That of the training
/// state comes last: it is not what the model is published for.
const VARIANTS: [&str; 5] = ["", "fp16", "bf16", "fp32", "ema"];
const LAST_VARIANT: &str = "non_ema";

/// What a weight file is to the others beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFile {
    /// All tensors.
    Whole,
    /// The index of shards, as JSON.
    Index,
    /// A part of the tensors.
    Shard,
}

/// The name of a weight file, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightName<'a> {
    /// What the file is.
    pub file: WeightFile,
    /// `fp16`, `non_ema` and so on; `""` for the plain one.
    pub variant: &'a str,
}

impl<'a> WeightName<'a> {
    /// What `name` says of `<stem>.<ending>`; [`None`] for a name that is none of its: `model.fp16.safetensors`,
    /// `model.safetensors.index.fp16.json`, `model.fp16.safetensors.index.json`, `model.fp16-00001-of-00002.safetensors`,
    /// `model-00001-of-00002.fp16.safetensors`.
    pub fn of(name: &'a str, stem: &str, ending: &str) -> Option<Self> {
        let rest = name.strip_prefix(stem)?;
        let (file, [before, after]) = if let Some(rest) = rest.strip_suffix(".json") {
            let (before, after) = rest.split_once(&format!(".{ending}.index"))?;
            (WeightFile::Index, [before, after])
        } else {
            let rest = rest.strip_suffix(&format!(".{ending}"))?;
            match shard_number(rest).and_then(|_| rest.split_once("-of-")) {
                Some((before, after)) => (WeightFile::Shard, [before.rsplit_once('-')?.0, after.get(5..)?]),
                None => (WeightFile::Whole, [rest, ""]),
            }
        };
        let variant = match [before.is_empty(), after.is_empty()] {
            [true, true] => "",
            [_, true] => before.strip_prefix('.')?,
            // In front as well as behind it would be two.
            [true, _] => after.strip_prefix('.')?,
            [false, false] => return None,
        };
        let is_one = variant.is_empty() == (before.is_empty() && after.is_empty()) && !variant.contains('.');
        is_one.then_some(Self { file, variant })
    }

    /// The place of the variant among all: the plain one first.
    pub fn rank(&self) -> usize {
        match VARIANTS.iter().position(|known| *known == self.variant) {
            Some(place) => place,
            None => VARIANTS.len() + usize::from(self.variant == LAST_VARIANT),
        }
    }
}

/// `(1, 3)` for `..-00001-of-00003.safetensors`, also with a variant behind the numbers.
pub(super) fn shard_number(name: &str) -> Option<(usize, usize)> {
    let (before, after) = name.split_once("-of-")?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse().ok()).flatten();
    Some((digits(before.rsplit('-').next()?)?, digits(after.get(..5)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are() {
        use WeightFile::{Index, Shard, Whole};
        let of = |name| WeightName::of(name, "model", "safetensors").map(|name| (name.file, name.variant));
        for (name, expected) in [
            ("model.safetensors", (Whole, "")),
            ("model.fp16.safetensors", (Whole, "fp16")),
            ("model.safetensors.index.json", (Index, "")),
            ("model.safetensors.index.fp16.json", (Index, "fp16")),
            ("model.fp16.safetensors.index.json", (Index, "fp16")),
            ("model-00001-of-00002.safetensors", (Shard, "")),
            ("model.fp16-00001-of-00002.safetensors", (Shard, "fp16")),
            ("model-00001-of-00002.fp16.safetensors", (Shard, "fp16")),
        ] {
            assert_eq!(of(name), Some(expected), "{name}");
        }
        let others =
            ["model.bin", "model_lora.safetensors", "model.a.b.safetensors", "model..safetensors", "model-00001-of-1.x.safetensors"];
        for name in others.into_iter().chain(["other.safetensors", "model.a.safetensors.index.b.json", "model-00001-of-é.safetensors"]) {
            assert_eq!(of(name), None, "{name}");
        }
    }

    #[test]
    fn the_state_of_training_comes_last() {
        let rank = |variant| WeightName { file: WeightFile::Whole, variant }.rank();
        assert!(["", "fp16", "bf16", "fp32", "ema", "other", "non_ema"].map(rank).is_sorted_by(|a, b| a < b));
    }
}
