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
mod frechet;
mod checker;
mod psnr;
mod scorers;
mod compare;
mod speed;
mod choice;
mod results;
mod report;

pub use checker::{CheckedPicture, accuracy_by_kind, check_picture};
pub use choice::{Candidate, best_within, pareto_front};
pub use clip_score::{ClipScorer, PictureEmbeddings, clip_scores};
pub use compare::{compare, metric_value};
pub use drawing::{DrawEvent, Drawing, Drawn, SamplingOptions};
pub use error::{Error, Result};
pub use file::{
    CategoryRow, CellCheck, Comparison, EvalFile, EvalRow, Gallery, GalleryCell, GalleryRow, KindAccuracy, MetricInfo, MetricValue,
    PerPrompt, Protocol,
};
pub use frechet::{FrechetSample, frechet_distance};
pub use hardware::device_name;
pub use image_folder::{IMAGES_FILE, ImageEntry, ImageFolder, ImageSettings, ImagesFile, SCENES_FILE, image_file_name};
pub use prompts::{Prompt, Prompts, read_prompts};
pub use psnr::{PSNR_OF_EQUAL, psnr};
pub use report::{RunReport, render_html, render_markdown, render_model_card, render_runs_html, render_runs_markdown};
pub use results::{
    Audit, AuditPoint, AuditStats, BinTable, Claim, Command, CriterionScores, DistillRun, FeatureLoss, FrontCurve, LayerRow, LossPoint,
    Measured, ModelInfo, Outcome, PartSlope, PlanRow, Provenance, PublishedDecline, PublishedFile, Results, Role, ScoreRow, SetGroup,
    UNetResult, Versioned, assess, write_whole,
};
pub use scorers::{
    Aesthetic, ClipJudge, ClipScale, ImageReward, Inception, InceptionResize, Lpips, LpipsTrunk, PictureScorer, PromptWords, cmmd,
};
pub use speed::{Subject, measure_latency, peak_rss, wait_for};
pub use stats::{Bootstrap, Estimate, Verdict, WinRate, group_means, mean, quantile, standard_error, std_dev, win_rate};
pub use timings::{Footprint, Hardware, LatencyRow, PeakMemory, PictureTimes, StageTime, Timings};
