//! The criteria that this project knows, each named once: what a layer's score can be. Calibration set -> **scores** -> plan.

/// `c_i = E || eps(r_i) - eps_ori ||^2` with only layer i removed: the paper's criterion (arXiv 2404.11098).
pub const OUTPUT_LOSS: &str = "output_loss";
/// Change of the task loss, `E || eps(r_i) - target ||^2 - E || eps_ori - target ||^2`; may be negative.
pub const TASK_LOSS_DELTA: &str = "task_loss_delta";
/// Drop of the CLIP score of generated images with the layer removed; same prompts, same seeds. It needs a whole pipeline: see
/// `eval::ClipDrop`.
pub const CLIP_SCORE: &str = "clip_score";
/// Sum of the squared weights of a layer.
pub const MAGNITUDE: &str = "magnitude";
/// `|sum g.w|` over a layer's weights: the first-order estimate of how the task loss changes (arXiv 1906.10771, equation 8).
pub const TAYLOR: &str = "taylor";
/// Uniform random numbers.
pub const RANDOM: &str = "random";

/// What a criterion is computed from, beside the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// Calibration samples.
    Samples,
    /// Calibration samples with targets.
    Targets,
    /// Calibration samples with targets, and gradients by the weights.
    Gradients,
    /// The prompts of the calibration set, and images drawn from them.
    Images,
}

/// A criterion in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Criterion {
    /// Its name in files and on the command line.
    pub id: &'static str,
    /// Its name for readers.
    pub label: &'static str,
    /// What it says of a layer, in one sentence.
    pub meaning: &'static str,
    /// What it is computed from.
    pub needs: Needs,
}

/// All criteria, in the order of reports.
pub const CRITERIA: [Criterion; 6] = [
    Criterion {
        id: OUTPUT_LOSS,
        label: "output loss",
        meaning: "Mean squared change of the U-Net's output when only this layer is removed; the paper's criterion (arXiv 2404.11098).",
        needs: Needs::Samples,
    },
    Criterion {
        id: TASK_LOSS_DELTA,
        label: "task loss",
        meaning: "Change of the denoising loss when only this layer is removed; may be negative.",
        needs: Needs::Targets,
    },
    Criterion {
        id: CLIP_SCORE,
        label: "CLIP score",
        meaning: "Drop of the CLIP score of generated images when only this layer is removed; same prompts, same seeds.",
        needs: Needs::Images,
    },
    Criterion {
        id: MAGNITUDE,
        label: "magnitude",
        meaning: "Sum of the squared weights of the layer; needs no data.",
        needs: Needs::Nothing,
    },
    Criterion {
        id: TAYLOR,
        label: "Taylor",
        meaning: "First-order estimate |sum g.w| of the change of the denoising loss (arXiv 1906.10771).",
        needs: Needs::Gradients,
    },
    Criterion {
        id: RANDOM,
        label: "random scores",
        meaning: "Uniform random numbers: what a criterion without information gives.",
        needs: Needs::Nothing,
    },
];

impl Criterion {
    /// The criterion of this name; `None` for one of a caller's own.
    pub fn named(id: &str) -> Option<&'static Criterion> {
        CRITERIA.iter().find(|criterion| criterion.id == id)
    }

    /// Its place in reports; a caller's own come last.
    pub fn position(id: &str) -> usize {
        CRITERIA.iter().position(|criterion| criterion.id == id).unwrap_or(CRITERIA.len())
    }
}
