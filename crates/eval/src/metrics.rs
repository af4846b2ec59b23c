//! The registry: every metric of this crate once, with its words, the files that it needs and how it is opened, in the order of
//! reports. docs/metrics.md says more about each one's definition, weights and licence.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;

use artifact::{file_sha256, sha256};
use image::RgbImage;
use tch::{Device, Kind, Tensor};
use unet::Compute;
use unet::weights::component_files;

use crate::clip_score::ClipScorer;
use crate::error::{Error, Result};
use crate::file::MetricInfo;
use crate::metric::{Measure, Metric, PairScorer, SetDistance};
use crate::psnr::psnr;
use crate::scorers::{Aesthetic, ClipJudge, ClipScale, ImageReward, Inception, InceptionResize, Lpips, cmmd};

/// CLIP score in the run's own CLIP model.
pub(crate) const CLIP_SCORE: &str = "clip_score";
/// Share of the stated attributes that are shown.
pub(crate) const ATTRIBUTE_ACCURACY: &str = "attribute_accuracy";
/// Share of prompts of which every attribute is shown.
pub(crate) const PROMPTS_CORRECT: &str = "prompts_correct";
/// Likeness to the teacher's image.
const PSNR_TEACHER: &str = "psnr_teacher";

/// One metric, or one distance with its values against the real images and the teacher's.
pub struct MetricEntry {
    /// What [`MetricSpec`] calls it; none where no weights have to be named for it.
    pub name: Option<&'static str>,
    /// The files that it needs, in order.
    pub files: &'static [&'static str],
    /// Where its weights are published.
    pub weights: &'static str,
    infos: &'static [Info],
    open: fn(&Opening) -> Result<Measure>,
}

/// What a metric's numbers mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scale {
    /// A share, shown in per cent.
    Share,
    /// Zero means nothing, and twice as much is twice as good or bad.
    Ratio,
    /// Only differences mean something.
    Interval,
}

/// Id, label, whether higher is better, scale, definition and source.
struct Info(&'static str, &'static str, bool, Scale, &'static str);

impl Info {
    fn to_info(&self) -> MetricInfo {
        let Info(id, label, higher_is_better, scale, description) = *self;
        let (percent, ratio_scale) = (scale == Scale::Share, scale != Scale::Interval);
        MetricInfo { id: id.into(), label: label.into(), higher_is_better, percent, ratio_scale, description: description.into() }
    }
}

/// The metrics, in the order of reports.
static METRICS: [MetricEntry; 14] = [
    MetricEntry {
        name: None,
        files: &[],
        weights: "the run's own CLIP model",
        infos: &[Info(
            CLIP_SCORE,
            "CLIP score",
            true,
            Scale::Ratio,
            "100 times the cosine of image and prompt in the run's own CLIP model, at least 0 (arXiv 2104.08718 with the factor of \
             torchmetrics). It compares with no score of another CLIP model.",
        )],
        open: |o| Ok(Measure::Image(Box::new(ClipJudge::new(o.own_clip()?, ClipScale::ClipScore)))),
    },
    MetricEntry {
        name: None,
        files: &[],
        weights: "none: the scene checker",
        infos: &[
            Info(
                PROMPTS_CORRECT,
                "prompts all right",
                true,
                Scale::Share,
                "Share of prompts of which the scene checker finds every attribute in the image.",
            ),
            Info(
                ATTRIBUTE_ACCURACY,
                "attributes right",
                true,
                Scale::Share,
                "Share of a prompt's attributes (count, shape, colour, size, texture, position, relation, background) that the scene checker \
                 finds in the image; mean over prompts.",
            ),
        ],
        open: |_| Err(Error::input("metric", "one that is opened by name", "the scene checker")),
    },
    MetricEntry {
        name: None,
        files: &[],
        weights: "the run's own CLIP model",
        infos: &[
            Info(
                "frechet_renderings",
                "Fréchet distance to renderings",
                false,
                Scale::Ratio,
                "Fréchet distance (arXiv 1706.08500, equation 6) between the images and renderings of the same prompts, on the pooled states \
                 of the run's own CLIP image tower. Biased upwards for few images, equally for all models; it compares with no published FID.",
            ),
            Info(
                "frechet_teacher",
                "Fréchet distance to the teacher",
                false,
                Scale::Ratio,
                "The same distance between the images and the teacher's images of the same prompts and noise.",
            ),
        ],
        open: |o| Ok(Measure::Set(Box::new(Pooled(o.own_clip()?)))),
    },
    MetricEntry {
        name: Some("clip-score"),
        files: &["CLIP"],
        weights: "CLIP score of that model",
        infos: &[Info(
            "clip_score_published",
            "CLIP score (published model)",
            true,
            Scale::Ratio,
            "100 times the cosine of image and prompt, at least 0, in the CLIP model that --metric clip-score named (arXiv 2104.08718 with \
             the factor of torchmetrics).",
        )],
        open: |o| o.judge(ClipScale::ClipScore),
    },
    MetricEntry {
        name: Some("pickscore"),
        files: &["CLIP"],
        weights: "yuvalkirstain/PickScore_v1",
        infos: &[Info(
            "pickscore",
            "PickScore",
            true,
            Scale::Ratio,
            "exp(logit scale) times the cosine in PickScore's CLIP-H (arXiv 2305.01569).",
        )],
        open: |o| o.judge(ClipScale::LogitScale),
    },
    MetricEntry {
        name: Some("hpsv2"),
        files: &["CLIP"],
        weights: "xswu/HPSv2:HPS_v2_compressed.pt",
        infos: &[Info(
            "hpsv2",
            "HPSv2",
            true,
            Scale::Ratio,
            "100 times the cosine in HPSv2's CLIP-H (arXiv 2306.09341), as its benchmark states it.",
        )],
        open: |o| o.judge(ClipScale::Percent),
    },
    MetricEntry {
        name: Some("hpsv2.1"),
        files: &["CLIP"],
        weights: "xswu/HPSv2:HPS_v2.1_compressed.pt",
        infos: &[Info("hpsv2_1", "HPSv2.1", true, Scale::Ratio, "The same with the weights of HPSv2.1; the two do not compare.")],
        open: |o| o.judge(ClipScale::Percent),
    },
    MetricEntry {
        name: Some("imagereward"),
        files: &["WEIGHTS", "VOCAB.TXT"],
        weights: "THUDM/ImageReward:ImageReward.pt and BERT's vocab.txt",
        infos: &[Info(
            "imagereward",
            "ImageReward",
            true,
            Scale::Interval,
            "The reward model of arXiv 2304.05977, normalized to mean 0 and deviation 1 on its own prompts.",
        )],
        open: |o| Ok(Measure::Image(Box::new(ImageReward::open(o.file(0), o.file(1), o.device, o.batch)?))),
    },
    MetricEntry {
        name: Some("aesthetic"),
        files: &["WEIGHTS", "CLIP"],
        weights: "sac+logos+ava1-l14-linearMSE.pth and CLIP ViT-L/14",
        infos: &[Info(
            "aesthetic",
            "aesthetic score",
            true,
            Scale::Ratio,
            "LAION's aesthetic predictor on CLIP ViT-L/14, about 1 to 10; it sees no prompt.",
        )],
        open: |o| Ok(Measure::Image(Box::new(Aesthetic::open(o.file(0), o.clip(1)?)?))),
    },
    MetricEntry {
        name: Some("lpips"),
        files: &["CLASSIFIER", "WEIGHTS"],
        weights: "torchvision's AlexNet or VGG-16, and LPIPS' alex.pth or vgg.pth",
        infos: &[Info(
            "lpips_teacher",
            "LPIPS to the teacher",
            false,
            Scale::Ratio,
            "Perceptual distance (arXiv 1801.03924, version 0.1) to the teacher's image of the same prompt and noise; 0 for equal ones.",
        )],
        open: |o| Ok(Measure::Pair(Box::new(Lpips::open(o.file(0), o.file(1), o.device, o.batch)?))),
    },
    MetricEntry {
        name: Some("fid"),
        files: &["WEIGHTS"],
        weights: "pt_inception-2015-12-05-6726825d.pth",
        infos: &[
            Info(
                "fid_real",
                "FID to the real images",
                false,
                Scale::Ratio,
                "Fréchet distance on InceptionV3 features with pytorch-fid's weights and resizing. Biased upwards for few images.",
            ),
            Info("fid_teacher", "FID to the teacher", false, Scale::Ratio, "The same distance to the teacher's images."),
        ],
        open: |o| Ok(Measure::Set(Box::new(Inception::open(o.file(0), InceptionResize::Torch, o.device, o.batch)?))),
    },
    MetricEntry {
        name: Some("clean-fid"),
        files: &["WEIGHTS"],
        weights: "pt_inception-2015-12-05-6726825d.pth",
        infos: &[
            Info(
                "clean_fid_real",
                "clean-FID to the real images",
                false,
                Scale::Ratio,
                "FID with the resizing of clean-fid (arXiv 2104.11222).",
            ),
            Info("clean_fid_teacher", "clean-FID to the teacher", false, Scale::Ratio, "The same distance to the teacher's images."),
        ],
        open: |o| Ok(Measure::Set(Box::new(Inception::open(o.file(0), InceptionResize::Pillow, o.device, o.batch)?))),
    },
    MetricEntry {
        name: Some("cmmd"),
        files: &["CLIP"],
        weights: "CLIP ViT-L/14 at 336 pixels",
        infos: &[
            Info(
                "cmmd_real",
                "CMMD to the real images",
                false,
                Scale::Ratio,
                "Maximum mean discrepancy of CLIP embeddings (arXiv 2401.09603), times 1000.",
            ),
            Info("cmmd_teacher", "CMMD to the teacher", false, Scale::Ratio, "The same distance to the teacher's images."),
        ],
        open: |o| Ok(Measure::Set(Box::new(Cmmd(o.clip(0)?)))),
    },
    MetricEntry {
        name: None,
        files: &[],
        weights: "none",
        infos: &[Info(
            PSNR_TEACHER,
            "PSNR to the teacher",
            true,
            Scale::Interval,
            "Peak signal-to-noise ratio in dB against the teacher's image of the same prompt and noise; 100 for equal images. It tells \
             likeness to the teacher, not quality.",
        )],
        open: |_| Ok(Measure::Pair(Box::new(Psnr))),
    },
];

/// The metrics that need weights, in the order of reports: those that a [`MetricSpec`] can name.
pub fn named_metrics() -> impl Iterator<Item = &'static MetricEntry> {
    METRICS.iter().filter(|entry| entry.name.is_some())
}

/// Where a metric stands in reports; those from elsewhere come last.
pub(crate) fn report_order(id: &str) -> usize {
    METRICS.iter().flat_map(|entry| entry.infos).position(|info| info.0 == id).unwrap_or(usize::MAX)
}

/// Whether a share of a value of this metric means something; nobody knows it of a metric from elsewhere.
pub(crate) fn is_ratio_scale(id: &str) -> bool {
    METRICS.iter().flat_map(|entry| entry.infos).any(|info| info.0 == id && info.3 != Scale::Interval)
}

/// What the scene checker finds: [`PROMPTS_CORRECT`] and [`ATTRIBUTE_ACCURACY`].
pub(crate) fn checker_infos() -> Vec<MetricInfo> {
    of_id(PROMPTS_CORRECT).infos.iter().map(Info::to_info).collect()
}

fn of_id(id: &str) -> &'static MetricEntry {
    METRICS.iter().find(|entry| entry.infos.iter().any(|info| info.0 == id)).expect("an id of the registry")
}

/// What opening a metric takes.
struct Opening<'a> {
    files: &'a [PathBuf],
    tokenizer: Option<&'a Path>,
    own_clip: Option<&'a Rc<ClipScorer>>,
    device: Device,
    kind: Kind,
    batch: usize,
}

impl Opening<'_> {
    fn file(&self, n: usize) -> &Path {
        &self.files[n]
    }

    fn own_clip(&self) -> Result<Rc<ClipScorer>> {
        self.own_clip.cloned().ok_or_else(|| Error::input("clip", "the run's own CLIP model", "none"))
    }

    fn clip(&self, n: usize) -> Result<ClipScorer> {
        ClipScorer::open_with(self.file(n), self.tokenizer, self.device, self.kind, self.batch)
    }

    fn judge(&self, scale: ClipScale) -> Result<Measure> {
        let judge = ClipJudge::open(self.file(0), self.tokenizer, scale, self.device, self.kind, self.batch)?;
        Ok(Measure::Image(Box::new(judge)))
    }
}

/// Where metrics compute.
#[derive(Debug, Clone, Copy)]
pub struct MetricOptions<'a> {
    /// The folder of a CLIP tokenizer, for CLIP weights that have none beside them.
    pub tokenizer: Option<&'a Path>,
    /// The device.
    pub device: Device,
    /// The CLIP towers' number type: half precision where it is fast, as the published numbers were made. All others compute in f32.
    pub kind: Kind,
    /// Images per call of a network.
    pub batch: usize,
}

/// A metric of the registry with its files: `NAME=FILE,FILE`.
#[derive(Clone)]
pub struct MetricSpec {
    entry: &'static MetricEntry,
    /// The files, in the order of [`MetricEntry::files`].
    pub files: Vec<PathBuf>,
}

impl std::fmt::Debug for MetricSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={:?}", self.name(), self.files)
    }
}

impl FromStr for MetricSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let form = |entry: &MetricEntry| format!("{}={}", entry.name.unwrap_or_default(), entry.files.join(","));
        let known = || format!("NAME=WEIGHTS, one of {}", named_metrics().map(form).collect::<Vec<_>>().join(" "));
        let (name, files) = text.split_once('=').ok_or_else(|| Error::input("metric", known(), format!("`{text}`")))?;
        let entry = named_metrics().find(|e| e.name == Some(name)).ok_or_else(|| Error::input("metric", known(), format!("`{name}`")))?;
        let files: Vec<PathBuf> = files.split(',').filter(|f| !f.is_empty()).map(PathBuf::from).collect();
        if files.len() != entry.files.len() {
            return Err(Error::input("metric", form(entry), format!("{} of these", files.len())));
        }
        Ok(Self { entry, files })
    }
}

impl MetricSpec {
    /// Its name, as in `NAME=FILES`.
    pub fn name(&self) -> &'static str {
        self.entry.name.unwrap_or_default()
    }

    /// Its id in files.
    pub fn id(&self) -> String {
        match self.entry.infos {
            [one] => one.0.into(),
            _ => self.name().replace(['-', '.'], "_"),
        }
    }

    /// Opens the metric's network.
    ///
    /// # Errors
    /// When a file is missing or of another network, with its name.
    pub fn open(&self, options: &MetricOptions) -> Result<Metric> {
        let MetricOptions { tokenizer, device, kind, batch } = *options;
        let opening = Opening { files: &self.files, tokenizer, own_clip: None, device, kind, batch };
        let measure = (self.entry.open)(&opening)?;
        // CLIP towers take the number type, all other networks compute in f32.
        let kind = if self.entry.files.contains(&"CLIP") { kind } else { Kind::Float };
        let computed_in = computed_in(kind, device);
        Ok(Metric { id: self.id(), infos: infos(self.entry), weights_sha256: Some(self.weights_sha256()?), computed_in, measure })
    }

    /// A hash of all weight files.
    fn weights_sha256(&self) -> Result<String> {
        let mut all = Vec::new();
        for path in &self.files {
            let files = if path.is_dir() { component_files(path, "model")? } else { vec![path.clone()] };
            for file in files {
                all.push(file_sha256(&file)?);
            }
        }
        Ok(if all.len() == 1 { all.remove(0) } else { sha256(all.concat()) })
    }
}

/// What a network's numbers depend on besides weights and inputs: the number type, and for the short ones the kind of device.
fn computed_in(kind: Kind, device: Device) -> String {
    let name = Compute::of(kind).recorded(device);
    if kind != Kind::Float && device.is_cuda() { format!("{name} on cuda") } else { name.into() }
}

fn infos(entry: &MetricEntry) -> Vec<MetricInfo> {
    entry.infos.iter().map(Info::to_info).collect()
}

/// The metrics of the run's own CLIP model, always in f32: its score, and Fréchet distances on its image tower's pooled states.
///
/// `dir` is the model's folder, or a model directory with one in `clip/`.
///
/// # Errors
/// Those of opening it.
pub fn own_clip_metrics(dir: &Path, device: Device, batch: usize) -> Result<Vec<Metric>> {
    let inner = dir.join("clip");
    let folder = if inner.join("config.json").is_file() { inner } else { dir.to_path_buf() };
    let clip = Rc::new(ClipScorer::open(dir, device, Kind::Float, batch)?);
    let weights = file_sha256(&component_files(&folder, "model")?[0])?;
    let open = |id: &str, entry: &MetricEntry| -> Result<Metric> {
        let opening = Opening { files: &[], tokenizer: None, own_clip: Some(&clip), device, kind: Kind::Float, batch };
        let computed_in = computed_in(Kind::Float, device);
        Ok(Metric { id: id.into(), infos: infos(entry), weights_sha256: None, computed_in, measure: (entry.open)(&opening)? })
    };
    Ok(vec![open(CLIP_SCORE, of_id(CLIP_SCORE))?.with_weights(weights), open("frechet", of_id("frechet_teacher"))?])
}

/// Likeness to the teacher's image, which needs no weights.
pub(crate) fn psnr_metric() -> Metric {
    Metric { id: PSNR_TEACHER.into(), infos: infos(of_id(PSNR_TEACHER)), ..Metric::new(Measure::Pair(Box::new(Psnr))) }
}

/// [`psnr`] as a metric.
struct Psnr;

impl PairScorer for Psnr {
    fn score(&self, images: &[RgbImage], teacher: &[RgbImage]) -> Result<Vec<f64>> {
        images.iter().zip(teacher).map(|(a, b)| psnr(a, b)).collect()
    }
}

/// Fréchet distances on the pooled states of a CLIP image tower.
struct Pooled(Rc<ClipScorer>);

impl SetDistance for Pooled {
    fn features(&self, images: &[RgbImage]) -> Result<Tensor> {
        Ok(self.0.images(images)?.pooled)
    }
}

/// [`cmmd`] on the unit features of a CLIP model.
struct Cmmd(ClipScorer);

impl SetDistance for Cmmd {
    fn features(&self, images: &[RgbImage]) -> Result<Tensor> {
        Ok(self.0.images(images)?.features)
    }

    fn distance(&self, a: &Tensor, b: &Tensor) -> Result<f64> {
        cmmd(a, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_named_with_what_they_need() {
        let spec: MetricSpec = "imagereward=a/ImageReward.pt,vocab.txt".parse().unwrap();
        assert_eq!((spec.id().as_str(), spec.files.len()), ("imagereward", 2));
        for (text, id) in [
            ("hpsv2.1=x.pt", "hpsv2_1"),
            ("clip-score=x", "clip_score_published"),
            ("lpips=a,b", "lpips_teacher"),
            ("clean-fid=x", "clean_fid"),
        ] {
            assert_eq!(text.parse::<MetricSpec>().unwrap().id(), id);
        }
        for (text, told) in [("pickscore", "NAME=WEIGHTS"), ("score=x", "clip-score=CLIP"), ("lpips=a", "lpips=CLASSIFIER,WEIGHTS")] {
            let err = text.parse::<MetricSpec>().unwrap_err().to_string();
            assert!(err.contains(told), "{err}");
        }
    }

    #[test]
    fn a_share_of_a_score_has_a_meaning_where_zero_has_one() {
        let without: Vec<&str> = METRICS.iter().flat_map(|e| e.infos).map(|i| i.0).filter(|id| !is_ratio_scale(id)).collect();
        assert_eq!(without, ["imagereward", "psnr_teacher"]);
        assert!(!is_ratio_scale("somebody_elses"));
        assert_eq!(
            (computed_in(Kind::Half, Device::Cpu).as_str(), computed_in(Kind::Half, Device::Cuda(1)).as_str()),
            ("f16", "f16 on cuda")
        );
    }

    #[test]
    fn ids_are_there_once_and_keep_their_order() {
        let ids: Vec<&str> = METRICS.iter().flat_map(|e| e.infos).map(|i| i.0).collect();
        assert!(ids.iter().enumerate().all(|(i, id)| report_order(id) == i));
        assert_eq!(report_order("somebody_elses"), usize::MAX);
    }
}
