//! The criteria in words and in the order of the report; the paper's first.

/// Mean squared change of the U-Net's output, the paper's criterion.
pub const OUTPUT_LOSS: &str = "output_loss";
/// Drop of the CLIP score, whose samples are prompts and no points in time.
pub const CLIP_SCORE: &str = "clip_score";

/// Name, label and meaning.
const CRITERIA: [(&str, &str, &str); 6] = [
    (
        OUTPUT_LOSS,
        "output loss",
        "Mean squared change of the U-Net's output when only this layer is removed; the paper's criterion (arXiv 2404.11098).",
    ),
    ("task_loss_delta", "task loss", "Change of the denoising loss when only this layer is removed; may be negative."),
    (CLIP_SCORE, "CLIP score", "Drop of the CLIP score of generated pictures when only this layer is removed; same prompts, same seeds."),
    ("magnitude", "magnitude", "Sum of the squared weights of the layer; needs no data."),
    ("taylor", "Taylor", "First-order estimate |sum g.w| of the change of the denoising loss (arXiv 1906.10771)."),
    ("random", "random scores", "Uniform random numbers: what a criterion without information gives."),
];

fn find(criterion: &str) -> Option<&'static (&'static str, &'static str, &'static str)> {
    CRITERIA.iter().find(|(id, ..)| *id == criterion)
}

/// A criterion's name for readers.
pub fn label(criterion: &str) -> &str {
    find(criterion).map_or(criterion, |(_, label, _)| label)
}

/// What a criterion says of a layer, in one sentence.
pub fn meaning(criterion: &str) -> &'static str {
    find(criterion).map_or("A criterion of another program.", |(.., meaning)| meaning)
}

/// Its place in the report; those of other programs come last.
pub fn position(criterion: &str) -> usize {
    CRITERIA.iter().position(|(id, ..)| *id == criterion).unwrap_or(CRITERIA.len())
}
