//! The rows of an evaluation: what each U-Net's images are worth, and two of them against each other. Scores -> **rows** -> eval.json.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::checker::{CheckedImage, accuracy_by_kind};
use crate::compare::{compare, metric_value};
use crate::error::Result;
use crate::file::{CategoryRow, Comparison, EvalRow, Gallery, GalleryCell, GalleryRow, MetricInfo, MetricValue, PerPrompt};
use crate::frechet::FrechetSample;
use crate::image_folder::ImageFolder;
use crate::metrics::CLIP_SCORE;
use crate::stats::{Bootstrap, Verdict, group_means};

/// One U-Net's images and what metrics and checker say of them.
pub(crate) struct Scored {
    /// The U-Net's name.
    pub name: String,
    /// Where the images lie.
    pub folder: ImageFolder,
    /// Metric -> score of each image.
    pub scores: BTreeMap<String, Vec<f64>>,
    /// What the checker found, where it can read the prompts.
    pub checks: Option<Vec<CheckedImage>>,
    /// Metric -> distance of all images to another set.
    pub distances: BTreeMap<String, FrechetSample>,
}

/// All U-Nets, the teacher first, with one value per prompt of every metric that has them.
pub(crate) struct Table<'a> {
    scored: &'a [Scored],
    pub metrics: Vec<MetricInfo>,
    /// Ids of the metrics that compare with the teacher already.
    pairs: BTreeSet<&'a str>,
    pub per_prompt: PerPrompt,
    prompt_of: &'a [usize],
    bootstrap: Bootstrap,
}

impl<'a> Table<'a> {
    /// Means over the images of each prompt.
    pub fn new(
        scored: &'a [Scored],
        metrics: Vec<MetricInfo>,
        pairs: BTreeSet<&'a str>,
        prompts: &[String],
        prompt_of: &'a [usize],
        bootstrap: Bootstrap,
    ) -> Result<Self> {
        let mut per_prompt = PerPrompt::new(prompts.to_vec());
        for one in scored {
            let means = one.scores.iter().map(|(metric, scores)| Ok((metric.clone(), group_means(scores, prompt_of)?)));
            per_prompt.values.insert(one.name.clone(), means.collect::<Result<_>>()?);
        }
        Ok(Self { scored, metrics, pairs, per_prompt, prompt_of, bootstrap })
    }

    fn teacher(&self) -> &Scored {
        &self.scored[0]
    }

    /// The value of a metric with one per prompt; none where the U-Net has none.
    fn value(&self, values: &PerPrompt, unet: &str, metric: &MetricInfo) -> Result<Option<MetricValue>> {
        if !values.values.get(unet).is_some_and(|m| m.contains_key(&metric.id)) {
            return Ok(None);
        }
        let teacher = self.teacher().name.as_str();
        let against = (unet != teacher && !self.pairs.contains(metric.id.as_str())).then_some(teacher);
        metric_value(values, metric, unet, against, &self.bootstrap).map(Some)
    }

    /// The value of a distance between sets.
    fn distance(&self, sample: &FrechetSample, unet: &str, metric: &MetricInfo) -> Result<MetricValue> {
        let mut value = MetricValue {
            metric: metric.id.clone(),
            value: sample.estimate(),
            n: sample.n,
            decline: None,
            gain: None,
            wins: None,
            verdict: None,
        };
        if let Some(theirs) = self.teacher().distances.get(&metric.id).filter(|_| unet != self.teacher().name) {
            let gain = sample.gain_over(theirs)?;
            if metric.ratio_scale {
                value.decline = sample.decline_from(theirs)?;
            }
            // The jackknives of a difference and of a ratio may disagree at the edge: what is shown decides.
            value.verdict = Some(Verdict::of_gain(&value.decline.map_or(gain, |decline| decline.negated())));
            value.gain = Some(gain);
        }
        Ok(value)
    }

    /// Everything about one U-Net's images.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn row(&self, of: &Scored) -> Result<EvalRow> {
        let mut metrics = Vec::new();
        for metric in &self.metrics {
            metrics.extend(match of.distances.get(&metric.id) {
                Some(sample) => Some(self.distance(sample, &of.name, metric)?),
                None => self.value(&self.per_prompt, &of.name, metric)?,
            });
        }
        let by_kind = of.checks.as_ref().map(|checks| accuracy_by_kind(checks, self.prompt_of, &self.bootstrap)).transpose()?;
        let unet = of.folder.settings.as_ref().map(|s| s.unet.clone()).unwrap_or_default();
        Ok(EvalRow { name: of.name.clone(), unet, metrics, by_kind: by_kind.unwrap_or_default() })
    }

    /// The metrics of every U-Net over the prompts of each category; `categories` has one entry per prompt.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn by_category(&self, categories: &[Option<&str>]) -> Result<Vec<CategoryRow>> {
        let mut rows = Vec::new();
        let names: BTreeSet<&str> = categories.iter().flatten().copied().collect();
        for name in names {
            let of: Vec<usize> = categories.iter().enumerate().filter(|(_, c)| **c == Some(name)).map(|(i, _)| i).collect();
            let mut part = PerPrompt::new(of.iter().map(|&i| self.per_prompt.prompts[i].clone()).collect());
            for (unet, values) in &self.per_prompt.values {
                let cut = values.iter().map(|(metric, all)| (metric.clone(), of.iter().map(|&i| all[i]).collect())).collect();
                part.values.insert(unet.clone(), cut);
            }
            for Scored { name: unet, .. } in self.scored {
                let values = self.metrics.iter().map(|metric| self.value(&part, unet, metric));
                let metrics = values.filter_map(Result::transpose).collect::<Result<_>>()?;
                rows.push(CategoryRow { category: name.into(), unet: unet.clone(), metrics });
            }
        }
        Ok(rows)
    }

    /// Two U-Nets on every metric that both have, for each of `pairs`.
    ///
    /// # Errors
    /// When a value is not finite.
    pub fn comparisons(&self, pairs: &[(usize, usize)]) -> Result<Vec<Comparison>> {
        let mut rows = Vec::new();
        for &(a, b) in pairs {
            for metric in &self.metrics {
                rows.extend(self.comparison(&self.scored[a], &self.scored[b], metric)?);
            }
        }
        Ok(rows)
    }

    fn comparison(&self, a: &Scored, b: &Scored, metric: &MetricInfo) -> Result<Option<Comparison>> {
        if let (Some(of_a), Some(of_b)) = (a.distances.get(&metric.id), b.distances.get(&metric.id)) {
            let gain = of_a.gain_over(of_b)?;
            let verdict = Verdict::of_gain(&gain);
            return Ok(Some(Comparison { a: a.name.clone(), b: b.name.clone(), metric: metric.id.clone(), gain, wins: None, verdict }));
        }
        if !(a.scores.contains_key(&metric.id) && b.scores.contains_key(&metric.id)) {
            return Ok(None);
        }
        compare(&self.per_prompt, metric, &a.name, &b.name, &self.bootstrap).map(Some)
    }

    /// The first image of the first `count` prompts, by every U-Net; paths are relative to `base` where they lie in it.
    pub fn gallery(&self, base: &Path, count: usize, per_prompt: usize) -> Gallery {
        let teacher = &self.teacher().folder.images;
        let cell = |s: &Scored, i: usize| {
            let path = s.folder.dir.join(&s.folder.images[i].file);
            GalleryCell {
                image: path.strip_prefix(base).unwrap_or(&path).to_string_lossy().into_owned(),
                checks: s.checks.as_ref().map_or(Vec::new(), |c| c[i].checks.clone()),
                clip_score: s.scores.get(CLIP_SCORE).map(|values| values[i]),
            }
        };
        let rows = (0..teacher.len()).step_by(per_prompt.max(1)).take(count).map(|i| GalleryRow {
            prompt: teacher[i].prompt.clone(),
            seed: teacher[i].seed,
            cells: self.scored.iter().map(|s| cell(s, i)).collect(),
        });
        Gallery { unets: self.scored.iter().map(|s| s.name.clone()).collect(), rows: rows.collect() }
    }
}
