//! An evaluation: images of several U-Nets with the same prompts and seeds, held against each other. Images -> **eval.json** -> report.
//!
//! The first U-Net is the teacher. Each one's images are read, scored by every metric and dropped again; only the teacher's stay,
//! for metrics that compare with them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use image::RgbImage;
use scenes::SceneSpec;
use tch::Tensor;

use crate::checker::{CheckedImage, check_image};
use crate::error::{Error, Result};
use crate::file::{EvalFile, MetricInfo, PerPrompt, Protocol};
use crate::frechet::FrechetSample;
use crate::image_folder::{ImageFolder, ImageSettings};
use crate::image_scores::{ImageScores, Wanted};
use crate::metric::{Measure, Metric, SetDistance};
use crate::metrics::{ATTRIBUTE_ACCURACY, CLIP_SCORE, PROMPTS_CORRECT, checker_infos, psnr_metric, report_order};
use crate::real_images::RealImages;
use crate::rows::{Scored, Table};
use crate::stats::Bootstrap;

/// Groups of prompts that the jackknife of a distance between sets leaves out in turn.
const GROUPS: usize = 20;
/// A distance between sets over fewer prompts says nothing.
const FEWEST_PROMPTS: usize = 4;

/// How an evaluation goes about it.
#[derive(Debug, Clone)]
pub struct EvaluationOptions {
    /// Images scored at once.
    pub batch: usize,
    /// Seed of the bootstrap over prompts.
    pub seed: u64,
    /// Rows of the gallery.
    pub gallery: usize,
    /// The folder that the gallery's paths are relative to, where the images lie in it.
    pub base: PathBuf,
}

/// How far an evaluation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvaluationEvent<'a> {
    /// The next U-Net's images were read.
    Read {
        /// The U-Net.
        unet: &'a str,
        /// Its images.
        images: usize,
    },
    /// Before a metric scores a batch: all earlier scores are kept. A good place to stop.
    Batch {
        /// The U-Net.
        unet: &'a str,
        /// The metric's id.
        metric: &'a str,
        /// Position of the batch's first image.
        first: usize,
    },
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluated {
    /// `eval.json`.
    pub file: EvalFile,
    /// `per_prompt.json`, from which every interval can be computed again.
    pub per_prompt: PerPrompt,
}

/// U-Nets with their folders of images, and metrics. Names are checked at once, images when it runs: they may be drawn in between.
pub struct Evaluation {
    unets: Vec<(String, PathBuf)>,
    metrics: Vec<Metric>,
    real: Option<PathBuf>,
    comparisons: Vec<(usize, usize)>,
}

impl Evaluation {
    /// An evaluation of U-Nets beside `teacher`, whose generated images are in `dir`. PSNR to the teacher is among the metrics; so is
    /// the scene checker where it can read all prompts.
    pub fn new(teacher: &str, dir: impl Into<PathBuf>) -> Self {
        Self { unets: vec![(teacher.into(), dir.into())], metrics: vec![psnr_metric()], real: None, comparisons: Vec::new() }
    }

    /// Adds another U-Net's images.
    ///
    /// # Errors
    /// [`Error::Input`] for a name that is taken.
    pub fn add_unet(&mut self, name: &str, dir: impl Into<PathBuf>) -> Result<()> {
        if self.position(name).is_some() {
            return Err(Error::input("unet", "names that differ", format!("two named {name}")));
        }
        self.unets.push((name.into(), dir.into()));
        Ok(())
    }

    /// Adds a metric.
    ///
    /// # Errors
    /// [`Error::Input`] when one of this id is there already.
    pub fn add_metric(&mut self, metric: Metric) -> Result<()> {
        if self.metrics.iter().any(|other| other.id == metric.id) {
            return Err(Error::input("metric", "each metric once", format!("{} twice", metric.id)));
        }
        self.metrics.push(metric);
        Ok(())
    }

    /// Gives real images, for distances to them: of the same prompts (renderings), or any folder of images.
    ///
    /// # Errors
    /// [`Error::Format`] when `dir` is no folder: not after hours of drawing.
    pub fn set_real(&mut self, dir: impl Into<PathBuf>) -> Result<()> {
        let path = dir.into();
        if !path.is_dir() {
            let (problem, hint) = ("no such folder".into(), "name a folder of real images".into());
            return Err(Error::Format { path, problem, hint });
        }
        self.real = Some(path);
        Ok(())
    }

    /// Asks for a direct comparison of two U-Nets.
    ///
    /// # Errors
    /// [`Error::Input`] for an unknown name.
    pub fn compare(&mut self, a: &str, b: &str) -> Result<()> {
        let known = || self.unets.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let position = |name: &str| self.position(name).ok_or_else(|| Error::input("compare", format!("two of {}", known()), name));
        let pair = (position(a)?, position(b)?);
        self.comparisons.push(pair);
        Ok(())
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.unets.iter().position(|(known, _)| known == name)
    }

    /// Scores all images and compares; scores of single images that `kept` knows are not computed again.
    ///
    /// # Errors
    /// The callback's own; those of reading images and of the metrics.
    pub fn run<E: From<Error>>(
        &self,
        options: &EvaluationOptions,
        kept: &mut ImageScores,
        mut on: impl FnMut(EvaluationEvent) -> std::result::Result<(), E>,
    ) -> std::result::Result<Evaluated, E> {
        let images = self.open()?;
        let prompts = PromptsOf::new(&images);
        let sets = self.sets(&prompts, images.real.as_ref())?;
        let mut run = Run { metrics: &self.metrics, prompts: &prompts, batch: options.batch, kept, sets, teacher: None };
        let mut scored = Vec::new();
        for ((name, _), folder) in self.unets.iter().zip(&images.folders) {
            scored.push(run.score(name, folder, &mut on)?);
        }
        Ok(self.evaluated(&scored, &images.settings, &prompts, options)?)
    }

    /// The folders, which must all have been made alike.
    fn open(&self) -> Result<Images> {
        let folders = self.unets.iter().map(|(_, dir)| ImageFolder::open(dir)).collect::<Result<Vec<_>>>()?;
        let Some(settings) = folders[0].settings.clone() else {
            let got = format!("rendered scenes in {}", folders[0].dir.display());
            return Err(Error::input("reference", "images that were generated", got));
        };
        folders[1..].iter().try_for_each(|folder| folders[0].check_same_protocol(folder))?;
        if folders[0].images.is_empty() {
            let (path, problem) = (folders[0].dir.clone(), "no images".into());
            return Err(Error::Format { path, problem, hint: "draw some with `generate`".into() });
        }
        self.warn_of_equal_folders(&folders);
        let real = self.real.as_deref().map(|dir| RealImages::open(dir, folders[0].prompts())).transpose()?;
        Ok(Images { folders, settings, real })
    }

    /// A U-Net beside itself shows no difference, which somebody may take for a result.
    fn warn_of_equal_folders(&self, folders: &[ImageFolder]) {
        let paths: Vec<_> = folders.iter().map(|folder| std::fs::canonicalize(&folder.dir).ok()).collect();
        for (n, path) in paths.iter().enumerate().skip(1) {
            if let Some(other) = paths[..n].iter().position(|earlier| earlier.is_some() && earlier == path) {
                let (name, other) = (&self.unets[n].0, &self.unets[other].0);
                tracing::warn!("{name} and {other} are the same folder of images: there is nothing to compare");
            }
        }
    }

    /// The distances between sets, each with the features of the real images.
    fn sets<'a>(&'a self, prompts: &PromptsOf, real: Option<&RealImages>) -> Result<Vec<Set<'a>>> {
        if prompts.distinct.len() < FEWEST_PROMPTS {
            tracing::warn!("fewer than {FEWEST_PROMPTS} prompts; the distances between sets of images are left out");
            return Ok(Vec::new());
        }
        let distances = self.metrics.iter().filter_map(|m| match &m.measure {
            Measure::Set(distance) => Some((m, distance.as_ref())),
            _ => None,
        });
        let set = |(metric, distance): (&'a Metric, &'a dyn SetDistance)| {
            let is_paired = real.is_some_and(|real| real.is_paired);
            let real = real.map(|images| images.features(distance)).transpose()?;
            Ok(Set { metric, distance, real, is_paired, teacher: None })
        };
        distances.map(set).collect()
    }

    /// From the scores to rows.
    fn evaluated(&self, scored: &[Scored], s: &ImageSettings, prompts: &PromptsOf, options: &EvaluationOptions) -> Result<Evaluated> {
        let bootstrap = Bootstrap::standard(options.seed);
        let pairs = self.metrics.iter().filter(|m| matches!(m.measure, Measure::Pair(_))).map(Metric::id).collect();
        let table = Table::new(scored, self.infos(scored), pairs, &prompts.distinct, &prompts.of_image, bootstrap)?;
        let hash = |metric: &Metric| Some((metric.id.clone(), metric.weights_sha256.clone()?));
        let mut weights_sha256: BTreeMap<String, String> = self.metrics.iter().filter_map(hash).collect();
        let computing = self.metrics.iter().filter(|metric| !metric.computed_in.is_empty());
        let file = EvalFile {
            clip_sha256: weights_sha256.remove(CLIP_SCORE),
            weights_sha256,
            computed_in: computing.map(|metric| (metric.id.clone(), metric.computed_in.clone())).collect(),
            protocol: Protocol {
                prompts: prompts.distinct.len(),
                images_per_prompt: s.per_prompt,
                prompt_source: s.prompt_source.clone(),
                sampler: s.sampling(),
                steps: s.steps as u32,
                guidance: s.guidance,
                seed: s.seed,
                size: s.size.map(|n| n as u32),
                bootstrap,
            },
            unets: scored.iter().map(|one| table.row(one)).collect::<Result<_>>()?,
            by_category: table.by_category(&prompts.categories)?,
            comparisons: table.comparisons(&self.comparisons)?,
            gallery: table.gallery(&options.base, options.gallery, s.per_prompt),
            metrics: table.metrics,
        };
        Ok(Evaluated { file, per_prompt: table.per_prompt })
    }

    /// What was measured of some U-Net, in the order of reports.
    fn infos(&self, scored: &[Scored]) -> Vec<MetricInfo> {
        let known = checker_infos().into_iter().chain(self.metrics.iter().flat_map(|m| m.infos.clone()));
        let found = |info: &MetricInfo| scored.iter().any(|s| s.scores.contains_key(&info.id) || s.distances.contains_key(&info.id));
        let mut infos: Vec<MetricInfo> = known.filter(found).collect();
        infos.sort_by_key(|info| report_order(&info.id));
        infos
    }
}

/// The opened folders, the teacher's first.
struct Images {
    folders: Vec<ImageFolder>,
    settings: ImageSettings,
    real: Option<RealImages>,
}

/// The prompts of all folders' images.
struct PromptsOf<'a> {
    /// Of each image.
    all: Vec<&'a str>,
    /// Without repetition.
    distinct: Vec<String>,
    /// The category of each distinct one.
    categories: Vec<Option<&'a str>>,
    /// For each image the number of its prompt.
    of_image: Vec<usize>,
    /// Whether the scene checker can read all.
    readable: bool,
}

impl<'a> PromptsOf<'a> {
    fn new(images: &'a Images) -> Self {
        let (folder, per_prompt) = (&images.folders[0], images.settings.per_prompt.max(1));
        let all: Vec<&str> = folder.prompts().collect();
        let distinct: Vec<String> = all.iter().step_by(per_prompt).map(ToString::to_string).collect();
        let categories = folder.images.iter().step_by(per_prompt).map(|image| image.category.as_deref()).collect();
        let readable = distinct.iter().all(|p| SceneSpec::parse(p).is_ok());
        if !readable {
            tracing::warn!("some prompts are outside the scene grammar; the checker is left out");
        }
        Self { of_image: (0..all.len()).map(|i| i / per_prompt).collect(), all, distinct, categories, readable }
    }
}

/// A distance with the features that others are held against.
struct Set<'a> {
    metric: &'a Metric,
    distance: &'a dyn SetDistance,
    real: Option<Tensor>,
    /// Whether real image i shows prompt i.
    is_paired: bool,
    teacher: Option<Tensor>,
}

impl Set<'_> {
    /// The distances of `images`; the first ones that are measured are the teacher's.
    fn measure(&mut self, images: &[RgbImage], prompts: &PromptsOf, out: &mut BTreeMap<String, FrechetSample>) -> Result<()> {
        let own = self.distance.features(images)?;
        let groups = GROUPS.min(prompts.distinct.len());
        let distance = |a: &Tensor, b: &Tensor| self.distance.distance(a, b);
        for (info, (other, is_paired)) in self.metric.infos.iter().zip([(&self.real, self.is_paired), (&self.teacher, true)]) {
            let Some(other) = other else { continue };
            let measure = if is_paired { FrechetSample::measure_by } else { FrechetSample::measure_against };
            out.insert(info.id.clone(), measure(&distance, &own, other, &prompts.of_image, groups)?);
        }
        self.teacher.get_or_insert(own);
        Ok(())
    }
}

/// A run over the U-Nets, the teacher first.
struct Run<'a> {
    metrics: &'a [Metric],
    prompts: &'a PromptsOf<'a>,
    batch: usize,
    kept: &'a mut ImageScores,
    sets: Vec<Set<'a>>,
    /// The teacher's images and their hashes.
    teacher: Option<(Vec<RgbImage>, Vec<String>)>,
}

impl Run<'_> {
    /// Everything that metrics and checker say of one U-Net's images.
    fn score<E: From<Error>>(
        &mut self,
        name: &str,
        folder: &ImageFolder,
        on: &mut impl FnMut(EvaluationEvent) -> std::result::Result<(), E>,
    ) -> std::result::Result<Scored, E> {
        let start = Instant::now();
        let images = folder.read()?;
        // tests/speed/compare_scorers.py reads this.
        tracing::info!("{} images of {name} read in {:.4} s", images.len(), start.elapsed().as_secs_f64());
        on(EvaluationEvent::Read { unet: name, images: images.len() })?;
        let hashes = folder.hashes()?;
        let mut scores = BTreeMap::new();
        for metric in self.metrics {
            if let Some(values) = self.score_by(metric, name, &images, &hashes, on)? {
                scores.insert(metric.id.clone(), values);
            }
        }
        let mut distances = BTreeMap::new();
        for set in &mut self.sets {
            set.measure(&images, self.prompts, &mut distances)?;
        }
        let checks = if self.prompts.readable { Some(self.check(&images, &mut scores)?) } else { None };
        if self.teacher.is_none() {
            self.teacher = Some((images, hashes));
        }
        Ok(Scored { name: name.into(), folder: folder.clone(), scores, checks, distances })
    }

    /// The score of each image by one metric; none for distances between sets, and for the teacher's likeness to itself.
    fn score_by<E: From<Error>>(
        &mut self,
        metric: &Metric,
        unet: &str,
        images: &[RgbImage],
        hashes: &[String],
        on: &mut impl FnMut(EvaluationEvent) -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<Vec<f64>>, E> {
        let weights_sha256 = metric.weights_sha256.as_deref();
        let wanted = Wanted { unet, metric: &metric.id, weights_sha256, computed_in: &metric.computed_in, images: hashes };
        let some = |of: &[RgbImage], places: &[usize]| places.iter().map(|&i| of[i].clone()).collect::<Vec<_>>();
        let mut before = |places: &[usize]| on(EvaluationEvent::Batch { unet, metric: &metric.id, first: places[0] });
        match (&metric.measure, &self.teacher) {
            (Measure::Image(scorer), _) => {
                let score = |places: &[usize]| {
                    before(places)?;
                    let prompts: Vec<&str> = places.iter().map(|&i| self.prompts.all[i]).collect();
                    Ok(scorer.score(&some(images, places), &prompts)?)
                };
                self.kept.get(wanted, self.batch, score).map(Some)
            }
            (Measure::Pair(scorer), Some((teacher, theirs))) => {
                let both: Vec<String> = hashes.iter().zip(theirs).map(|(own, theirs)| format!("{own} {theirs}")).collect();
                let score = |places: &[usize]| {
                    before(places)?;
                    Ok(scorer.score(&some(images, places), &some(teacher, places))?)
                };
                self.kept.get(Wanted { images: &both, ..wanted }, self.batch, score).map(Some)
            }
            (Measure::Pair(_), None) | (Measure::Set(_), _) => Ok(None),
        }
    }

    fn check(&self, images: &[RgbImage], scores: &mut BTreeMap<String, Vec<f64>>) -> Result<Vec<CheckedImage>> {
        let checks = self.prompts.all.iter().zip(images).map(|(prompt, image)| check_image(prompt, image)).collect::<Result<Vec<_>>>()?;
        scores.insert(ATTRIBUTE_ACCURACY.into(), checks.iter().map(CheckedImage::share).collect());
        scores.insert(PROMPTS_CORRECT.into(), checks.iter().map(CheckedImage::all_correct).collect());
        Ok(checks)
    }
}
