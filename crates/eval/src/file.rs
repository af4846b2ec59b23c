//! `eval.json`: what the images of several U-Nets are worth, in rows with intervals, and `per_prompt.json`, the values behind them.
//! Images -> **evaluation** -> report.

use std::collections::BTreeMap;

use artifact::{Contradiction, Document};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::metrics::is_ratio_scale;
use crate::stats::{Bootstrap, Estimate, Verdict, WinRate};

/// `eval.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalFile {
    /// SHA-256 of the run's own CLIP model's weights, where one was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_sha256: Option<String>,
    /// SHA-256 of the weights of each published metric.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights_sha256: BTreeMap<String, String>,
    /// The number type that each metric's network computed in, such as `f32`, or `f16 on cuda`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub computed_in: BTreeMap<String, String>,
    /// How images were made and compared.
    pub protocol: Protocol,
    /// What was measured.
    pub metrics: Vec<MetricInfo>,
    /// The teacher first.
    pub unets: Vec<EvalRow>,
    /// The metrics with values per prompt again, for each category of prompts, where there are categories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_category: Vec<CategoryRow>,
    /// Direct comparisons.
    pub comparisons: Vec<Comparison>,
    /// Images side by side, relative to this file's folder.
    pub gallery: Gallery,
}

impl Document for EvalFile {
    const FORMAT: &'static str = "laptop-diff/eval";
    const VERSION: u32 = 3;
    const HINT: &'static str = "let `eval` write it again";

    /// Version 1 has older names of two keys; version 2 knows no scales, and declines of every metric.
    fn upgrade(version: u32, mut keys: Map<String, Value>) -> Option<Map<String, Value>> {
        if version == 1 {
            rename(keys.get_mut("protocol")?, "pictures_per_prompt", "images_per_prompt");
            for row in keys.get_mut("gallery")?.get_mut("rows")?.as_array_mut()? {
                row.get_mut("cells")?.as_array_mut()?.iter_mut().for_each(|cell| rename(cell, "picture", "image"));
            }
        }
        add_scales(&mut keys)?;
        Some(keys)
    }
}

/// Gives the `metrics` of an older file their scales, and takes the declines away that mean nothing: those of other scales, and from a
/// teacher (the first of `unets`) whose interval is not above zero.
pub fn add_scales(keys: &mut Map<String, Value>) -> Option<()> {
    for metric in keys.get_mut("metrics")?.as_array_mut()? {
        let ratio = is_ratio_scale(metric.get("id")?.as_str()?);
        metric.as_object_mut()?.insert("ratio_scale".into(), ratio.into());
    }
    let low = |m: &Value| m.get("value")?.get("low")?.as_f64();
    let teacher = keys.get("unets").and_then(|unets| unets.get(0)?.get("metrics")?.as_array().cloned()).unwrap_or_default();
    let meaningful = |m: &Value| {
        let id = m.get("metric").and_then(Value::as_str).unwrap_or_default();
        let theirs = teacher.iter().find(|t| t.get("metric").is_some_and(|other| other == id));
        is_ratio_scale(id) && theirs.and_then(low).is_some_and(|low| low > 0.0)
    };
    for list in ["unets", "by_category"] {
        for row in keys.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            for m in row.get_mut("metrics").and_then(Value::as_array_mut).into_iter().flatten() {
                if !meaningful(m) {
                    m.as_object_mut()?.insert("decline".into(), Value::Null);
                }
            }
        }
    }
    Some(())
}

/// What was found about one U-Net's images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalRow {
    /// Its name.
    pub name: String,
    /// Fingerprint of the U-Net that drew them.
    pub unet: String,
    /// One entry per metric.
    pub metrics: Vec<MetricValue>,
    /// Checker accuracy by kind of attribute.
    pub by_kind: Vec<KindAccuracy>,
}

/// How images were made and compared; the same for every U-Net.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Protocol {
    /// Number of prompts.
    pub prompts: usize,
    /// Images per prompt.
    pub images_per_prompt: usize,
    /// Where the prompts come from, in one phrase.
    pub prompt_source: String,
    /// Sampler, such as `ddim`.
    pub sampler: String,
    /// Sampling steps.
    pub steps: u32,
    /// Classifier-free guidance scale.
    pub guidance: f64,
    /// Seed of the first image; image `i` has this plus `i`.
    pub seed: u64,
    /// Height and width.
    pub size: [u32; 2],
    /// The bootstrap over prompts.
    pub bootstrap: Bootstrap,
}

/// What a metric is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricInfo {
    /// Machine name, such as `clip_score`.
    pub id: String,
    /// Name for people.
    pub label: String,
    /// Direction.
    pub higher_is_better: bool,
    /// True when values are shares and are shown in per cent.
    pub percent: bool,
    /// True when zero means nothing, so that a share of a value has a meaning: the metric has relative declines. False for a score that is
    /// centred somewhere (ImageReward) or a logarithm (PSNR).
    #[serde(default)]
    pub ratio_scale: bool,
    /// Definition and source, in one or two sentences.
    pub description: String,
}

/// One metric of one U-Net, and what became of it in comparison with the teacher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricValue {
    /// Which metric.
    pub metric: String,
    /// The value with its interval over prompts (for a Fréchet distance: grouped jackknife).
    pub value: Estimate,
    /// Number of prompts (for a Fréchet distance: images).
    pub n: usize,
    /// Relative decline against the teacher, positive for a loss; none for the teacher itself, where the teacher has no value, for a metric
    /// that is no ratio scale, and for a teacher whose value is not clearly above zero.
    pub decline: Option<Estimate>,
    /// How much better than the teacher in the metric's unit, negative for a loss, as [`Comparison::gain`]; none in files of earlier versions.
    #[serde(default)]
    pub gain: Option<Estimate>,
    /// How often this U-Net beats the teacher on the same prompt.
    pub wins: Option<WinRate>,
    /// What the interval of the difference to the teacher says.
    pub verdict: Option<Verdict>,
}

/// How many questions of one kind the images of one U-Net answer rightly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindAccuracy {
    /// Kind of attribute, such as `color`.
    pub kind: String,
    /// Share of right ones, resampled by prompt.
    pub accuracy: Estimate,
    /// Number of questions.
    pub n: usize,
}

/// One U-Net's metrics over the prompts of one category.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CategoryRow {
    /// The category.
    pub category: String,
    /// The U-Net.
    pub unet: String,
    /// One entry per metric with a value per prompt.
    pub metrics: Vec<MetricValue>,
}

/// Two U-Nets compared directly on one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// First U-Net.
    pub a: String,
    /// Second U-Net.
    pub b: String,
    /// Metric.
    pub metric: String,
    /// How much better `a` is than `b` in the metric's unit; the sign is turned where less is better.
    pub gain: Estimate,
    /// How often `a` beats `b`; none for a metric without per-prompt values.
    pub wins: Option<WinRate>,
    /// What the interval says of `a`.
    pub verdict: Verdict,
}

/// Images side by side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gallery {
    /// Names of the U-Nets, one per column; the teacher first.
    pub unets: Vec<String>,
    /// One row per prompt and seed.
    pub rows: Vec<GalleryRow>,
}

/// One prompt and seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GalleryRow {
    /// The prompt.
    pub prompt: String,
    /// Seed of the initial noise.
    pub seed: u64,
    /// One cell per column.
    pub cells: Vec<GalleryCell>,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GalleryCell {
    /// PNG file, relative to the run directory.
    pub image: String,
    /// The checker's answers; empty for prompts that it cannot read.
    pub checks: Vec<CellCheck>,
    /// The image's CLIP score.
    pub clip_score: Option<f64>,
}

/// One question that the checker asked of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellCheck {
    /// Which attribute, such as `first color`.
    pub name: String,
    /// What the prompt states.
    pub stated: String,
    /// What the image shows.
    pub seen: String,
    /// Whether the image shows it.
    pub ok: bool,
}

/// `per_prompt.json`: one value per prompt, metric and U-Net, from which every interval can be computed again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PerPrompt {
    /// The prompts, in the order of all lists of values.
    pub prompts: Vec<String>,
    /// U-Net name -> metric id -> one value per prompt (a mean over its images).
    pub values: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

impl PerPrompt {
    /// An empty table for `prompts`.
    pub fn new(prompts: Vec<String>) -> Self {
        Self { prompts, values: BTreeMap::new() }
    }
}

impl Document for PerPrompt {
    const FORMAT: &'static str = "laptop-diff/per-prompt";
    const VERSION: u32 = 1;
    const HINT: &'static str = "let `eval` write it again";

    fn check(&self) -> Result<(), Contradiction> {
        for (unet, metrics) in &self.values {
            for (metric, values) in metrics {
                if values.len() != self.prompts.len() {
                    return Err(Contradiction {
                        key: format!("values.{unet}.{metric}"),
                        expected: format!("{} values, one per prompt", self.prompts.len()),
                        got: values.len().to_string(),
                    });
                }
            }
        }
        Ok(())
    }
}

/// Gives a key of an object another name.
pub(crate) fn rename(object: &mut Value, old: &str, new: &str) {
    if let Some(keys) = object.as_object_mut()
        && let Some(value) = keys.remove(old)
    {
        keys.insert(new.into(), value);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn an_evaluation_of_version_1_is_read() {
        let old = r#"{"format": "laptop-diff/eval", "version": 1,
            "protocol": {"prompts": 4, "pictures_per_prompt": 2, "prompt_source": "a file", "sampler": "ddim", "steps": 20, "guidance": 2.0,
                "seed": 1, "size": [64, 64], "bootstrap": {"resamples": 10, "level": 0.95, "seed": 0}},
            "metrics": [], "unets": [], "comparisons": [],
            "gallery": {"unets": ["teacher"], "rows": [{"prompt": "a", "seed": 1,
                "cells": [{"picture": "images/a.png", "checks": [], "clip_score": null}]}]}}"#;
        let file = EvalFile::parse(old.as_bytes(), Path::new("eval.json")).unwrap();
        assert_eq!((file.protocol.images_per_prompt, file.gallery.rows[0].cells[0].image.as_str()), (2, "images/a.png"));
    }

    #[test]
    fn an_evaluation_of_version_2_keeps_the_declines_that_mean_something() {
        let estimate = |v: f64| format!(r#"{{"value": {v}, "se": 0.1, "low": {}, "high": {}}}"#, v - 0.2, v + 0.2);
        let value = |metric: &str, v: f64, decline: &str| {
            format!(r#"{{"metric": "{metric}", "value": {}, "n": 4, "decline": {decline}, "wins": null, "verdict": null}}"#, estimate(v))
        };
        let metric =
            |id: &str| format!(r#"{{"id": "{id}", "label": "x", "higher_is_better": true, "percent": false, "description": "y"}}"#);
        let rows = |pick: f64, d: &str| [value("pickscore", pick, d), value("hpsv2", -3.4, d), value("imagereward", 2.0, d)].join(", ");
        let unet = |name: &str, rows: String| format!(r#"{{"name": "{name}", "unet": "u", "by_kind": [], "metrics": [{rows}]}}"#);
        let old = format!(
            r#"{{"format": "laptop-diff/eval", "version": 2,
            "protocol": {{"prompts": 4, "images_per_prompt": 2, "prompt_source": "a file", "sampler": "ddim", "steps": 20, "guidance": 2.0,
                "seed": 1, "size": [64, 64], "bootstrap": {{"resamples": 10, "level": 0.95, "seed": 0}}}},
            "metrics": [{}, {}, {}], "unets": [{}, {}], "comparisons": [], "gallery": {{"unets": [], "rows": []}}}}"#,
            metric("pickscore"),
            metric("hpsv2"),
            metric("imagereward"),
            unet("teacher", rows(20.0, "null")),
            unet("student", rows(19.0, &estimate(0.5)))
        );
        let file = EvalFile::parse(old.as_bytes(), Path::new("eval.json")).unwrap();
        let declines: Vec<bool> = file.unets[1].metrics.iter().map(|m| m.decline.is_some()).collect();
        assert_eq!(declines, [true, false, false], "a positive teacher, a negative one, a score that is centred");
        assert_eq!(file.metrics.iter().map(|m| m.ratio_scale).collect::<Vec<_>>(), [true, true, false]);
    }
}
