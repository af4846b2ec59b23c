//! Evaluation and report: the last two arrows of weights -> scores -> plan -> pruned model -> distillation -> evaluation -> report.
//!
//! Pictures and prompts go in, [`Results`] come out, and from them a page. This crate knows neither plans nor training: the rows
//! about them arrive as plain data, so any compressed U-Net can be compared and reported.

mod error;
mod hardware;
mod prompts;
mod image_folder;
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
mod choice;
mod results;
mod report;

pub use bench::{
    Bench, BenchEvent, CostEstimate, ImageBench, PeakTask, ProfileOptions, Subject, TEACHER, estimate_cost, measure_latency, peak_rss,
    profile_layers, wait_for,
};
pub use checker::{CheckedPicture, accuracy_by_kind, check_picture};
pub use choice::{Candidate, best_within, pareto_front};
pub use clip_drop::{ClipDrop, ClipDropOptions};
pub use clip_score::{ClipScorer, PictureEmbeddings, clip_scores};
pub use compare::{compare, metric_value};
pub use data::Prompt;
pub use drawing::{DrawEvent, Drawing, Drawn, SamplingOptions};
pub use error::{Error, Result};
pub use evaluation::{Evaluated, Evaluation, EvaluationEvent, EvaluationOptions};
pub use file::{
    CategoryRow, CellCheck, Comparison, EvalFile, EvalRow, Gallery, GalleryCell, GalleryRow, KindAccuracy, MetricInfo, MetricValue,
    PerPrompt, Protocol,
};
pub use frechet::{FrechetSample, frechet_distance};
pub use hardware::device_name;
pub use image_folder::{IMAGES_FILE, ImageEntry, ImageFolder, ImageSettings, ImagesFile};
pub use image_scores::ImageScores;
pub use metric::{ImageScorer, Measure, Metric, PairScorer, SetDistance};
pub use metrics::{MetricEntry, MetricOptions, MetricSpec, named_metrics, own_clip_metrics};
pub use prompts::Prompts;
pub use psnr::{PSNR_OF_EQUAL, psnr};
pub use report::{RunReport, render_html, render_markdown, render_model_card, render_runs_html, render_runs_markdown};
pub use results::{
    Audit, AuditPoint, AuditStats, BinTable, Claim, Command, CriterionScores, DistillRun, FeatureLoss, FrontCurve, LayerRow, LossPoint,
    Measured, ModelInfo, Outcome, PartSlope, PlanRow, Provenance, PublishedDecline, PublishedFile, Results, Role, ScoreRow, SetGroup,
    UNetResult, Versioned, assess, write_whole,
};
pub use scorers::{Aesthetic, ClipJudge, ClipScale, ImageReward, Inception, InceptionResize, Lpips, LpipsTrunk, PromptWords, cmmd};
pub use stats::{Bootstrap, Estimate, Verdict, WinRate, group_means, mean, quantile, standard_error, std_dev, win_rate};
pub use timings::{Footprint, Hardware, LatencyRow, PeakMemory, PictureTimes, StageTime, Timings};
