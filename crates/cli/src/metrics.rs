//! What `eval` measures, in words. Evaluation -> report.

use eval::MetricInfo;

/// CLIP score.
pub const CLIP: &str = "clip_score";
/// Share of the stated attributes that are shown.
pub const ACCURACY: &str = "attributes";
/// Share of prompts of which every attribute is shown.
pub const ALL_CORRECT: &str = "prompts_correct";
/// Fréchet distance to rendered scenes.
pub const FRECHET_SCENES: &str = "frechet_scenes";
/// Fréchet distance to the teacher's pictures.
pub const FRECHET_TEACHER: &str = "frechet_teacher";
/// Likeness to the teacher's picture of the same prompt and seed.
pub const PSNR: &str = "psnr_teacher";

/// The metrics that can be measured: with a checker, with rendered scenes, with enough prompts for a distance to the
/// teacher, with other U-Nets than the teacher.
pub fn all(checker: bool, scenes: bool, distance: bool, others: bool) -> Vec<MetricInfo> {
    let metric = |id: &str, label: &str, higher_is_better, percent, description: &str| MetricInfo {
        id: id.into(),
        label: label.into(),
        higher_is_better,
        percent,
        description: description.into(),
    };
    let rows = [
        (true, metric(CLIP, "CLIP score", true, false, "100 times the cosine of picture and prompt in the run's own CLIP model (arXiv 2104.08718 on torchmetrics' scale).")),
        (checker, metric(ALL_CORRECT, "prompts correct", true, true, "Share of prompts of which the picture shows every stated attribute, by the scene checker.")),
        (checker, metric(ACCURACY, "attributes correct", true, true, "Share of a prompt's stated attributes that the picture shows, by the scene checker.")),
        (scenes, metric(FRECHET_SCENES, "Fréchet distance to scenes", false, false, "Fréchet distance (arXiv 1706.08500) between CLIP image embeddings of the pictures and of rendered scenes of the same prompts; no published FID.")),
        (distance, metric(FRECHET_TEACHER, "Fréchet distance to teacher", false, false, "Fréchet distance between CLIP image embeddings of the pictures and of the teacher's pictures of the same prompts and seeds.")),
        (others, metric(PSNR, "PSNR to teacher, dB", true, false, "Peak signal-to-noise ratio to the teacher's picture of the same prompt and seed.")),
    ];
    rows.into_iter().filter(|(wanted, _)| *wanted).map(|(_, metric)| metric).collect()
}
