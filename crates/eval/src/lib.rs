//! Evaluation: the arrow before the last of weights -> scores -> plan -> pruned model -> distillation -> evaluation -> report.
//!
//! Prompts and U-Nets go in, an [`EvalFile`] comes out. This crate knows neither plans nor training: any compressed U-Net can be
//! compared.
//!
//! 1. [`Prompts`], [`Drawing`], [`ImageFolder`]: images of several U-Nets from the same prompts and seeds, kept from run to run.
//! 2. [`Metric`], [`MetricSpec`], [`named_metrics`]: what is measured; a program's own metrics are added beside those of the registry.
//! 3. [`Evaluation`], [`ImageScores`]: all scores, those of an earlier run kept, and their paired comparison.
//! 4. [`Bench`], [`profile_layers`], [`estimate_cost`]: what a U-Net costs on a device.

mod error;
mod hardware;
mod prompts;
mod image_folder;
mod real_images;
mod drawing;
mod stats;
mod file;
mod timings;
mod clip_score;
mod clip_drop;
mod frechet;
mod checker;
mod psnr;
mod scorers;
mod metric;
mod metrics;
mod image_scores;
mod compare;
mod rows;
mod evaluation;
mod bench;

pub use bench::{
    Bench, BenchEvent, CostEstimate, ImageBench, PeakTask, ProfileOptions, Subject, TEACHER, estimate_cost, measure_latency, peak_rss,
    profile_layers, wait_for,
};
pub use checker::{CheckedImage, accuracy_by_kind, check_image};
pub use clip_drop::{ClipDrop, ClipDropOptions};
pub use clip_score::{ClipScorer, ImageEmbeddings, clip_scores};
pub use compare::{compare, metric_value};
pub use data::Prompt;
pub use drawing::{DrawEvent, Drawing, Drawn, SamplingOptions};
pub use error::{Error, Result};
pub use evaluation::{Evaluated, Evaluation, EvaluationEvent, EvaluationOptions};
pub use file::{
    CategoryRow, CellCheck, Comparison, EvalFile, EvalRow, Gallery, GalleryCell, GalleryRow, KindAccuracy, MetricInfo, MetricValue,
    PerPrompt, Protocol, add_scales,
};
pub use frechet::{FrechetSample, frechet_distance};
pub use hardware::device_name;
pub use image_folder::{IMAGES_FILE, ImageEntry, ImageFolder, ImageSettings, ImagesFile};
pub use image_scores::ImageScores;
pub use metric::{ImageScorer, Measure, Metric, PairScorer, SetDistance};
pub use metrics::{MetricEntry, MetricOptions, MetricSpec, named_metrics, own_clip_metrics};
pub use prompts::Prompts;
pub use psnr::{PSNR_OF_EQUAL, psnr};
pub use scorers::{Aesthetic, ClipJudge, ClipScale, ImageReward, Inception, InceptionResize, Lpips, LpipsTrunk, PromptWords, cmmd};
pub use stats::{Bootstrap, Estimate, Verdict, WinRate, group_means, mean, quantile, standard_error, std_dev, win_rate};
pub use timings::{Footprint, Hardware, ImageTimes, LatencyRow, PeakMemory, StageTime, Timings};
