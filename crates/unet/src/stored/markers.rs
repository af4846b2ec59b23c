//! What files say of a model beside its weights.

use std::collections::BTreeMap;

use super::IN_CHECKPOINT;

/// What a model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity.
    V,
    /// Of the kind of EDM (arXiv 2206.00364), which no sampler here has.
    Edm,
}

impl Prediction {
    /// Its name in a scheduler's configuration of diffusers; EDM's has none there.
    pub fn name(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::V => "v_prediction",
            Self::Edm => "edm",
        }
    }
}

/// What a file says of its model beside the weights: by tensors that only mark (`v_pred`, `ztsnr`, `edm_mean`; of any shape, also
/// without elements) and by the metadata of the ModelSpec standard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Markers {
    /// What the model predicts, where the file says so.
    pub prediction: Option<Prediction>,
    /// Whether the last timestep is pure noise.
    pub zero_terminal_snr: bool,
    /// The names of the tensors that say it, as they stand in the file.
    pub tensors: Vec<String>,
}

impl Markers {
    pub(super) fn read<'a>(names: impl Iterator<Item = &'a str>, metadata: &BTreeMap<String, String>) -> Self {
        let mut markers = Self::default();
        for name in names.filter(|name| is_marker(name)) {
            let mark = name.rsplit_once(IN_CHECKPOINT).map_or(name, |(_, mark)| mark);
            match mark {
                "v_pred" => markers.prediction = Some(Prediction::V),
                "ztsnr" => markers.zero_terminal_snr = true,
                _ => markers.prediction = Some(Prediction::Edm),
            }
            markers.tensors.push(name.into());
        }
        if markers.prediction.is_none() {
            let said = metadata.get("modelspec.prediction_type").map(|said| said.to_ascii_lowercase());
            markers.prediction = match said.as_deref() {
                Some("v" | "v_prediction" | "v-prediction" | "velocity") => Some(Prediction::V),
                Some("epsilon" | "eps") => Some(Prediction::Epsilon),
                _ => None,
            };
        }
        markers
    }
}

/// Whether a tensor only marks.
pub(super) fn is_marker(name: &str) -> bool {
    let mark = name.rsplit_once(IN_CHECKPOINT).map_or(name, |(_, mark)| mark);
    mark == "v_pred" || mark == "ztsnr" || mark.starts_with("edm_")
}
