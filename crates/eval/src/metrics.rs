//! The metrics that every evaluation reports, with their definitions. Evaluation stage.

use crate::results::MetricInfo;

/// The standard metrics, in the order of the report. Their ids are the keys of per-prompt values and of results.
pub fn standard_metrics() -> Vec<MetricInfo> {
    let metric = |id: &str, label: &str, higher_is_better, percent, description: &str| MetricInfo {
        id: id.into(),
        label: label.into(),
        higher_is_better,
        percent,
        description: description.into(),
    };
    vec![
        metric(
            "clip_score",
            "CLIP score",
            true,
            false,
            "100 times the cosine of picture and prompt in the shared space of the run's own CLIP model, at least 0 (arXiv 2104.08718 with the factor 100 of torchmetrics). It compares with no score of another CLIP model.",
        ),
        metric(
            "attribute_accuracy",
            "attributes right",
            true,
            true,
            "Share of a prompt's attributes (count, shape, colour, size, texture, position, relation, background) that the scene checker finds in the picture; mean over prompts.",
        ),
        metric("prompts_correct", "prompts all right", true, true, "Share of prompts of which the scene checker finds every attribute in the picture."),
        metric(
            "frechet_renderings",
            "Fréchet distance to renderings",
            false,
            false,
            "Fréchet distance (arXiv 1706.08500, equation 6) between the pictures and renderings of the same prompts, on the pooled states of the run's own CLIP image tower. Biased upwards for few pictures, equally for all models; it compares with no published FID.",
        ),
        metric(
            "psnr_teacher",
            "PSNR to the teacher",
            true,
            false,
            "Peak signal-to-noise ratio in dB against the teacher's picture of the same prompt and noise; 100 for equal pictures. It tells likeness to the teacher, not quality.",
        ),
    ]
}
