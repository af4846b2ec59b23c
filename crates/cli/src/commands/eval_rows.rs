//! The rows of an evaluation: what each U-Net's pictures are worth, and two of them against each other. Used by `eval`.

use std::collections::BTreeMap;
use std::path::Path;

use eval::{
    Bootstrap, CellCheck, CheckedPicture, Comparison, FrechetSample, Gallery, GalleryCell, GalleryRow, MetricInfo, MetricValue, PerPrompt,
    Verdict, accuracy_by_kind, compare, group_means, metric_value, psnr,
};
use image::RgbImage;
use tch::Tensor;

use super::eval::EvalRow;
use crate::metrics::{ACCURACY, ALL_CORRECT, CLIP, FRECHET_SCENES, FRECHET_TEACHER, PSNR};
use crate::pictures::Folder;

/// One U-Net's pictures and what the towers and the checker say of them.
pub struct Subject {
    /// Its name.
    pub name: String,
    /// Where the pictures lie.
    pub folder: Folder,
    /// The pictures.
    pub pictures: Vec<RgbImage>,
    /// Pooled states of the image tower, `[N, D]`.
    pub pooled: Tensor,
    /// CLIP score of each picture.
    pub clip: Vec<f64>,
    /// What the checker found, where it can read the prompts.
    pub checks: Option<Vec<CheckedPicture>>,
    /// Distance to rendered scenes.
    pub to_scenes: Option<FrechetSample>,
    /// Distance to the teacher's pictures.
    pub to_teacher: Option<FrechetSample>,
}

/// One value per prompt of every metric that has them.
///
/// # Errors
/// When two pictures of one prompt differ in size.
pub fn per_prompt(subjects: &[Subject], prompts: &[String], prompt_of: &[usize]) -> anyhow::Result<PerPrompt> {
    let mut table = PerPrompt::new(prompts.to_vec());
    for (i, subject) in subjects.iter().enumerate() {
        let mut values = BTreeMap::from([(CLIP.to_string(), group_means(&subject.clip, prompt_of)?)]);
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

/// The Fréchet distance that a metric names.
fn frechet<'a>(subject: &'a Subject, metric: &str) -> Option<&'a FrechetSample> {
    match metric {
        FRECHET_SCENES => subject.to_scenes.as_ref(),
        FRECHET_TEACHER => subject.to_teacher.as_ref(),
        _ => None,
    }
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
        if metric.id == FRECHET_SCENES || metric.id == FRECHET_TEACHER {
            let Some(sample) = frechet(subject, &metric.id) else { continue };
            let mut value =
                MetricValue { metric: metric.id.clone(), value: sample.estimate(), n: sample.n, decline: None, wins: None, verdict: None };
            if let Some(theirs) = frechet(teacher, &metric.id).filter(|_| !is_teacher) {
                value.decline = sample.decline_from(theirs).ok();
                value.verdict = Some(Verdict::of_gain(&sample.gain_over(theirs)?));
            }
            values.push(value);
            continue;
        }
        if metric.id == PSNR && is_teacher {
            continue;
        }
        let against = (!is_teacher && metric.id != PSNR).then_some(teacher.name.as_str());
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
    if metric.id == FRECHET_SCENES || metric.id == FRECHET_TEACHER {
        let (Some(of_a), Some(of_b)) = (frechet(a, &metric.id), frechet(b, &metric.id)) else { return Ok(None) };
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
        let path = s.folder.dir.join(&s.folder.files[i]);
        GalleryCell {
            picture: path.strip_prefix(base).unwrap_or(&path).to_string_lossy().into_owned(),
            checks: s.checks.as_ref().map_or(Vec::<CellCheck>::new(), |c| c[i].checks.clone()),
            clip_score: Some(s.clip[i]),
        }
    };
    let rows = (0..teacher.len()).step_by(per_prompt.max(1)).take(count).map(|i| GalleryRow {
        prompt: teacher.prompts[i].clone(),
        seed: teacher.seeds[i],
        cells: subjects.iter().map(|s| cell(s, i)).collect(),
    });
    Gallery { unets: subjects.iter().map(|s| s.name.clone()).collect(), rows: rows.collect() }
}
