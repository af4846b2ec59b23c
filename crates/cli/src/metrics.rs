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
const ALL: [(&str, &str, bool, bool, &str); 19] = [
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
        "clip_score_published",
        "CLIP score (published model)",
        true,
        false,
        "100 times the cosine of picture and prompt, at least 0, in the CLIP model that --metric clip-score named (arXiv 2104.08718 with the \
         factor of torchmetrics).",
    ),
    ("pickscore", "PickScore", true, false, "exp(logit scale) times the cosine in PickScore's CLIP-H (arXiv 2305.01569)."),
    ("hpsv2", "HPSv2", true, false, "100 times the cosine in HPSv2's CLIP-H (arXiv 2306.09341), as its benchmark states it."),
    ("hpsv2_1", "HPSv2.1", true, false, "The same with the weights of HPSv2.1; the two do not compare."),
    (
        "imagereward",
        "ImageReward",
        true,
        false,
        "The reward model of arXiv 2304.05977, normalized to mean 0 and deviation 1 on its own prompts.",
    ),
    ("aesthetic", "aesthetic score", true, false, "LAION's aesthetic predictor on CLIP ViT-L/14, about 1 to 10; it sees no prompt."),
    (
        "lpips_teacher",
        "LPIPS to the teacher",
        false,
        false,
        "Perceptual distance (arXiv 1801.03924, version 0.1) to the teacher's picture of the same prompt and noise; 0 for equal ones.",
    ),
    (
        "fid_real",
        "FID to the real pictures",
        false,
        false,
        "Fréchet distance on InceptionV3 features with pytorch-fid's weights and resizing. Biased upwards for few pictures.",
    ),
    ("fid_teacher", "FID to the teacher", false, false, "The same distance to the teacher's pictures."),
    ("clean_fid_real", "clean-FID to the real pictures", false, false, "FID with the resizing of clean-fid (arXiv 2104.11222)."),
    ("clean_fid_teacher", "clean-FID to the teacher", false, false, "The same distance to the teacher's pictures."),
    ("cmmd_real", "CMMD to the real pictures", false, false, "Maximum mean discrepancy of CLIP embeddings (arXiv 2401.09603), times 1000."),
    ("cmmd_teacher", "CMMD to the teacher", false, false, "The same distance to the teacher's pictures."),
    (
        PSNR,
        "PSNR to the teacher",
        true,
        false,
        "Peak signal-to-noise ratio in dB against the teacher's picture of the same prompt and noise; 100 for equal pictures. It tells \
         likeness to the teacher, not quality.",
    ),
];

/// Whether a metric tells likeness to the teacher's picture of the same noise; the teacher itself has no value of it.
pub fn is_likeness(id: &str) -> bool {
    id == PSNR || id == "lpips_teacher"
}

/// The metrics of `wanted`, in the order of the report.
pub fn infos(wanted: &[String]) -> Vec<MetricInfo> {
    let info = |(id, label, higher_is_better, percent, description): (&str, &str, bool, bool, &str)| MetricInfo {
        id: id.into(),
        label: label.into(),
        higher_is_better,
        percent,
        description: description.into(),
    };
    ALL.into_iter().filter(|(id, ..)| wanted.iter().any(|w| w == id)).map(info).collect()
}
