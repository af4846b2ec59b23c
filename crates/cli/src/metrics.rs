//! What `eval` measures, in words. Evaluation -> report.

use eval::MetricInfo;

/// CLIP score.
pub const CLIP: &str = "clip_score";
/// Share of the stated attributes that are shown.
pub const ACCURACY: &str = "attribute_accuracy";
/// Share of prompts of which every attribute is shown.
pub const ALL_CORRECT: &str = "prompts_correct";
/// Fréchet distance to rendered scenes.
pub const FRECHET_SCENES: &str = "frechet_renderings";
/// Fréchet distance to the teacher's pictures.
pub const FRECHET_TEACHER: &str = "frechet_teacher";
/// Likeness to the teacher's picture of the same prompt and seed.
pub const PSNR: &str = "psnr_teacher";

/// The definitions, in the order of the report.
const ALL: [(&str, &str, bool, bool, &str); 6] = [
    (
        CLIP,
        "CLIP score",
        true,
        false,
        "100 times the cosine of picture and prompt in the run's own CLIP model, at least 0 (arXiv 2104.08718 with the factor of \
         torchmetrics). It compares with no score of another CLIP model.",
    ),
    (ALL_CORRECT, "prompts all right", true, true, "Share of prompts of which the scene checker finds every attribute in the picture."),
    (
        ACCURACY,
        "attributes right",
        true,
        true,
        "Share of a prompt's attributes (count, shape, colour, size, texture, position, relation, background) that the scene checker \
         finds in the picture; mean over prompts.",
    ),
    (
        FRECHET_SCENES,
        "Fréchet distance to renderings",
        false,
        false,
        "Fréchet distance (arXiv 1706.08500, equation 6) between the pictures and renderings of the same prompts, on the pooled states \
         of the run's own CLIP image tower. Biased upwards for few pictures, equally for all models; it compares with no published FID.",
    ),
    (
        FRECHET_TEACHER,
        "Fréchet distance to the teacher",
        false,
        false,
        "The same distance between the pictures and the teacher's pictures of the same prompts and noise.",
    ),
    (
        PSNR,
        "PSNR to the teacher",
        true,
        false,
        "Peak signal-to-noise ratio in dB against the teacher's picture of the same prompt and noise; 100 for equal pictures. It tells \
         likeness to the teacher, not quality.",
    ),
];

/// The metrics of `wanted`, in the order of the report.
pub fn infos(wanted: &[&str]) -> Vec<MetricInfo> {
    let info = |(id, label, higher_is_better, percent, description): (&str, &str, bool, bool, &str)| MetricInfo {
        id: id.into(),
        label: label.into(),
        higher_is_better,
        percent,
        description: description.into(),
    };
    ALL.into_iter().filter(|(id, ..)| wanted.contains(id)).map(info).collect()
}
