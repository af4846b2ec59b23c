//! The rows of an evaluation: what each U-Net's pictures are worth, and two of them against each other. Used by `eval`.

use std::collections::BTreeMap;
use std::path::Path;

use eval::{
    Bootstrap, CategoryRow, CellCheck, CheckedPicture, ClipScorer, Comparison, EvalRow, FrechetSample, Gallery, GalleryCell, GalleryRow,
    ImageFolder, Inception, MetricInfo, MetricValue, PerPrompt, Verdict, accuracy_by_kind, cmmd, compare, group_means, metric_value, psnr,
};
use image::RgbImage;
use tch::Tensor;

use crate::metrics::{ACCURACY, ALL_CORRECT, CLIP, PSNR, is_likeness};

/// One U-Net's pictures and what the networks and the checker say of them.
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Where the pictures lie.
    pub folder: ImageFolder,
    /// The pictures.
    pub pictures: Vec<RgbImage>,
    /// Metric -> score of each picture.
    pub scores: BTreeMap<String, Vec<f64>>,
    /// What the checker found, where it can read the prompts.
    pub checks: Option<Vec<CheckedPicture>>,
    /// Metric -> distance of all pictures to another set.
    pub distances: BTreeMap<String, FrechetSample>,
}

/// Whose features a distance between sets is taken on.
pub enum Features<'a> {
    /// The pooled states of the run's own CLIP model, for a Fréchet distance.
    Pooled(&'a ClipScorer),
    /// InceptionV3's, for the same.
    Inception(&'a Inception),
    /// Unit features of a CLIP model, for CMMD.
    Cmmd(&'a ClipScorer),
}

/// A distance between sets of pictures, with the sets that others are held against.
pub struct PictureSet<'a> {
    features: Features<'a>,
    to_teacher: String,
    to_real: String,
    real: Option<Tensor>,
    teacher: Option<Tensor>,
}

impl<'a> PictureSet<'a> {
    /// The distance `id`, which is named `id_teacher` and `to_real` in files.
    ///
    /// # Errors
    /// When the network refuses a picture.
    pub fn new(id: &str, to_real: &str, features: Features<'a>, real: Option<&[RgbImage]>) -> anyhow::Result<Self> {
        let mut set = Self { features, to_teacher: format!("{id}_teacher"), to_real: to_real.into(), real: None, teacher: None };
        set.real = real.map(|pictures| set.of(pictures)).transpose()?;
        Ok(set)
    }

    fn of(&self, pictures: &[RgbImage]) -> anyhow::Result<Tensor> {
        Ok(match &self.features {
            Features::Pooled(clip) => clip.pictures(pictures)?.pooled,
            Features::Inception(net) => net.features(pictures)?,
            Features::Cmmd(clip) => clip.pictures(pictures)?.features,
        })
    }

    /// The distances of `pictures`; the first ones that are measured are the teacher's.
    ///
    /// # Errors
    /// When the network refuses a picture or a distance is not finite.
    pub fn measure(
        &mut self,
        pictures: &[RgbImage],
        prompt_of: &[usize],
        groups: usize,
        out: &mut BTreeMap<String, FrechetSample>,
    ) -> anyhow::Result<()> {
        let own = self.of(pictures)?;
        for (id, other) in [(&self.to_real, &self.real), (&self.to_teacher, &self.teacher)] {
            let Some(other) = other else { continue };
            let sample = match self.features {
                Features::Cmmd(_) => FrechetSample::measure_by(&cmmd, &own, other, prompt_of, groups)?,
                Features::Pooled(_) | Features::Inception(_) => FrechetSample::measure(&own, other, prompt_of, groups)?,
            };
            out.insert(id.clone(), sample);
        }
        self.teacher.get_or_insert(own);
        Ok(())
    }
}

/// The metrics of every U-Net over the prompts of each category; `categories` has one entry per prompt.
///
/// # Errors
/// When a value is not finite.
pub fn by_category(
    subjects: &[Subject],
    categories: &[Option<String>],
    table: &PerPrompt,
    metrics: &[MetricInfo],
    bootstrap: &Bootstrap,
) -> anyhow::Result<Vec<CategoryRow>> {
    let mut rows = Vec::new();
    let names: std::collections::BTreeSet<&String> = categories.iter().flatten().collect();
    for name in names {
        let of: Vec<usize> = categories.iter().enumerate().filter(|(_, c)| c.as_ref() == Some(name)).map(|(i, _)| i).collect();
        let mut part = PerPrompt::new(of.iter().map(|&i| table.prompts[i].clone()).collect());
        for (unet, values) in &table.values {
            let cut = values.iter().map(|(metric, all)| (metric.clone(), of.iter().map(|&i| all[i]).collect())).collect();
            part.values.insert(unet.clone(), cut);
        }
        for subject in subjects {
            let mut values = Vec::new();
            for metric in metrics {
                if part.values.get(&subject.name).is_some_and(|m| m.contains_key(&metric.id)) {
                    let against = (subject.name != subjects[0].name && !is_likeness(&metric.id)).then_some(subjects[0].name.as_str());
                    values.push(metric_value(&part, metric, &subject.name, against, bootstrap)?);
                }
            }
            rows.push(CategoryRow { category: name.clone(), unet: subject.name.clone(), metrics: values });
        }
    }
    Ok(rows)
}

/// One value per prompt of every metric that has them.
///
/// # Errors
/// When two pictures of one prompt differ in size.
pub fn per_prompt(subjects: &[Subject], prompts: &[String], prompt_of: &[usize]) -> anyhow::Result<PerPrompt> {
    let mut table = PerPrompt::new(prompts.to_vec());
    for (i, subject) in subjects.iter().enumerate() {
        let mut values = BTreeMap::new();
        for (metric, scores) in &subject.scores {
            values.insert(metric.clone(), group_means(scores, prompt_of)?);
        }
        if let Some(checks) = &subject.checks {
            let shares: Vec<f64> = checks.iter().map(CheckedPicture::share).collect();
            let all: Vec<f64> = checks.iter().map(CheckedPicture::all_correct).collect();
            values.insert(ACCURACY.into(), group_means(&shares, prompt_of)?);
            values.insert(ALL_CORRECT.into(), group_means(&all, prompt_of)?);
        }
        if i > 0 {
            let pairs = subject.pictures.iter().zip(&subjects[0].pictures);
            let near = pairs.map(|(a, b)| psnr(a, b)).collect::<eval::Result<Vec<f64>>>()?;
            values.insert(PSNR.into(), group_means(&near, prompt_of)?);
        }
        table.values.insert(subject.name.clone(), values);
    }
    Ok(table)
}

/// Everything about one U-Net's pictures.
///
/// # Errors
/// When a value is not finite.
pub fn row(
    subject: &Subject,
    teacher: &Subject,
    table: &PerPrompt,
    metrics: &[MetricInfo],
    prompt_of: &[usize],
    bootstrap: &Bootstrap,
) -> anyhow::Result<EvalRow> {
    let is_teacher = subject.name == teacher.name;
    let mut values = Vec::new();
    for metric in metrics {
        if let Some(sample) = subject.distances.get(&metric.id) {
            let mut value =
                MetricValue { metric: metric.id.clone(), value: sample.estimate(), n: sample.n, decline: None, wins: None, verdict: None };
            if let Some(theirs) = teacher.distances.get(&metric.id).filter(|_| !is_teacher) {
                value.decline = sample.decline_from(theirs).ok();
                value.verdict = Some(Verdict::of_gain(&sample.gain_over(theirs)?));
            }
            values.push(value);
            continue;
        }
        if !table.values.get(&subject.name).is_some_and(|m| m.contains_key(&metric.id)) {
            continue;
        }
        let against = (!is_teacher && !is_likeness(&metric.id)).then_some(teacher.name.as_str());
        values.push(metric_value(table, metric, &subject.name, against, bootstrap)?);
    }
    let by_kind = match &subject.checks {
        Some(checks) => accuracy_by_kind(checks, prompt_of, bootstrap)?,
        None => Vec::new(),
    };
    let unet = subject.folder.settings.as_ref().map(|s| s.unet.clone()).unwrap_or_default();
    Ok(EvalRow { name: subject.name.clone(), unet, metrics: values, by_kind })
}

/// `a` against `b`; nothing where one of them has no value, as the teacher's likeness to itself.
///
/// # Errors
/// When a value is not finite.
pub fn comparison(
    a: &Subject,
    b: &Subject,
    metric: &MetricInfo,
    table: &PerPrompt,
    bootstrap: &Bootstrap,
) -> anyhow::Result<Option<Comparison>> {
    if let (Some(of_a), Some(of_b)) = (a.distances.get(&metric.id), b.distances.get(&metric.id)) {
        let gain = of_a.gain_over(of_b)?;
        let verdict = Verdict::of_gain(&gain);
        return Ok(Some(Comparison { a: a.name.clone(), b: b.name.clone(), metric: metric.id.clone(), gain, wins: None, verdict }));
    }
    let known = |s: &Subject| table.values.get(&s.name).is_some_and(|m| m.contains_key(&metric.id));
    if !(known(a) && known(b)) {
        return Ok(None);
    }
    Ok(Some(compare(table, metric, &a.name, &b.name, bootstrap)?))
}

/// The first picture of the first `count` prompts, by every U-Net; paths are relative to `base` where they lie in it.
pub fn gallery(subjects: &[Subject], base: &Path, count: usize, per_prompt: usize) -> Gallery {
    let teacher = &subjects[0].folder;
    let cell = |s: &Subject, i: usize| {
        let path = s.folder.dir.join(&s.folder.images[i].file);
        GalleryCell {
            picture: path.strip_prefix(base).unwrap_or(&path).to_string_lossy().into_owned(),
            checks: s.checks.as_ref().map_or(Vec::<CellCheck>::new(), |c| c[i].checks.clone()),
            clip_score: s.scores.get(CLIP).map(|values| values[i]),
        }
    };
    let rows = (0..teacher.images.len()).step_by(per_prompt.max(1)).take(count).map(|i| GalleryRow {
        prompt: teacher.images[i].prompt.clone(),
        seed: teacher.images[i].seed,
        cells: subjects.iter().map(|s| cell(s, i)).collect(),
    });
    Gallery { unets: subjects.iter().map(|s| s.name.clone()).collect(), rows: rows.collect() }
}
