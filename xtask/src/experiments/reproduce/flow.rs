//! The stages of an experiment on a published model, in the order of the data flow: weights -> scores -> plan -> pruned model ->
//! distillation -> evaluation -> report.
//!
//! This file goes as far as the plans; `students` goes on. Each stage is one call of `laptop-diff` that a user can make alone. What a
//! stage computes is stated beside it, so that the dry run can price it.

mod students;

use std::path::{Path, PathBuf};

use super::settings::{Need, Random, Settings};
use crate::pipeline::{RunPaths, Stage, Work, list};

/// What the price of a stage depends on besides the settings; measured or counted by `laptop-diff estimate`.
#[derive(Clone, Copy, Default)]
pub struct Sizes {
    /// Parameters of the teacher's U-Net.
    pub params: f64,
    pub layers: f64,
    /// Forward passes that scoring all layers takes, per point.
    pub scoring_passes: f64,
    /// Numbers of one image's latents, and of its caption's features.
    pub latents: f64,
    pub text: f64,
    /// Bytes of a number that is computed with.
    pub bytes: f64,
}

/// The settings and where things are, for the parts of the list.
pub struct Flow<'a> {
    pub s: &'a Settings,
    pub at: RunPaths<'a>,
    /// Processes per training.
    pub ranks: u32,
    /// The settings of distillation, as a file.
    pub train: &'a Path,
    pub sizes: Sizes,
    /// Needs that are not there and can be fetched.
    pub fetch: Vec<&'a Need>,
}

/// Criteria whose points several processes can share.
const SHARDED: [&str; 2] = ["output_loss", "task_loss_delta"];

impl Flow<'_> {
    /// The whole experiment, in the order in which it runs, without the kinds of stages that the settings skip.
    pub fn stages(&self) -> Vec<Stage> {
        let students = &self.s.students;
        // A stage is left out when any of its kinds is skipped.
        let list: [(&[&str], Vec<Stage>); 16] = [
            (&[], self.fetch()),
            (&[], self.random_model()),
            (&[], self.render()),
            (&["inspect"], vec![self.inspect()]),
            (&["calibrate"], self.calibrate()),
            (&["score"], self.score()),
            (&["audit"], vec![self.audit()]),
            (&["plan"], self.plan()),
            (&["joint"], vec![self.joint()]),
            (&["prune"], students.iter().map(|student| self.prune(&student.plan)).collect()),
            (&["distill", "cache"], vec![self.cache()]),
            (&["distill"], self.trained_students().map(|(plan, feature_loss)| self.distill(plan, feature_loss)).collect()),
            (&["export"], self.s.export.formats.iter().map(|format| self.export(format)).collect()),
            (&["generate"], self.draw()),
            (&["generate", "eval"], vec![self.eval()]),
            (&["bench"], vec![self.bench()]),
        ];
        let kept = list.into_iter().filter(|(kinds, _)| !kinds.iter().any(|kind| self.s.skips(kind)));
        let mut stages: Vec<Stage> = kept.flat_map(|(_, stages)| stages).collect();
        stages.push(self.report(&stages));
        stages
    }

    /// Images with captions: the given folders or the rendered ones.
    fn image_text(&self, part: &str) -> PathBuf {
        let d = &self.s.data;
        match (&d.render, part) {
            (Some(_), _) => self.at.out.join(format!("image-text/{part}")),
            (None, "train") => d.train.clone(),
            (None, "calibration") => d.calibration.clone(),
            (None, _) => d.held_out.clone(),
        }
    }

    fn plan_file(&self, plan: &str) -> PathBuf {
        self.at.out.join(format!("plans/{plan}.json"))
    }

    fn pruned(&self, plan: &str) -> PathBuf {
        self.at.out.join(format!("models/{plan}"))
    }

    fn trained(&self, plan: &str, feature_loss: &str) -> PathBuf {
        self.at.out.join(format!("distill/{plan}-{feature_loss}"))
    }

    /// A stage that reads the model and computes.
    fn stage(&self, name: impl Into<String>, about: impl Into<String>, subcommand: &str) -> Stage {
        self.at.stage(name, about, 60.0, subcommand)
    }

    /// A stage that measures differences between networks.
    fn comparing(&self, name: impl Into<String>, about: impl Into<String>, subcommand: &str) -> Stage {
        let stage = self.stage(name, about, subcommand);
        match &self.s.score.compute {
            Some(kind) => stage.set("--compute", kind),
            None => stage,
        }
    }

    /// Bytes of the teacher's U-Net in memory.
    fn weights(&self) -> f64 {
        self.sizes.params * self.sizes.bytes
    }

    /// Parameters that stay, as a share: what the name of a plan says, else all.
    fn share(&self, plan: &str) -> f64 {
        let ratio = self.s.plan.ratios.iter().find(|ratio| plan.ends_with(&format!("-{ratio}")));
        1.0 - ratio.copied().unwrap_or(0.0)
    }

    /// Weights and data from the hub that are not there yet.
    fn fetch(&self) -> Vec<Stage> {
        let fetch = |need: &&Need| {
            let name = need.path.file_stem().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let source = need.fetch.as_deref().unwrap_or_default();
            let about = format!("fetches {} ({:.1} GB, {})", need.what, need.bytes() / 1e9, need.licence);
            let stage = Stage::new(format!("fetch-{name}"), about, 60.0, "fetch").words(&[source]).output("--out", &need.path);
            stage.work(Work { disk: need.bytes(), ..Work::default() })
        };
        self.fetch.iter().map(fetch).collect()
    }

    /// A rehearsal's model.
    fn random_model(&self) -> Vec<Stage> {
        let Some(Random { unet, vae, text_encoder, text_encoder_2, rest, kind }) = &self.s.model.random else { return Vec::new() };
        let mut stage = Stage::new("random-model", "makes a model with random weights", 5.0, "random-model").input("--unet", unet);
        for (flag, path) in [("--vae", vae), ("--text-encoder", text_encoder), ("--text-encoder-2", text_encoder_2)] {
            if let Some(path) = path {
                stage = stage.input(flag, path);
            }
        }
        let stage = stage.input("--rest", rest).set("--seed", self.s.seed).set("--kind", kind).output("--out", &self.at.model);
        let bytes = if kind == "f32" { 4.0 } else { 2.0 } * self.sizes.params;
        vec![stage.work(Work { disk: bytes, memory: bytes, ..Work::default() })]
    }

    /// A rehearsal's images with captions.
    fn render(&self) -> Vec<Stage> {
        let Some(render) = &self.s.data.render else { return Vec::new() };
        let parts = [("train", render.train, 1), ("calibration", render.calibration, 2), ("held-out", render.held_out, 3)];
        let stage = |(part, count, seed): (&str, u64, u64)| {
            Stage::new(format!("render-{part}"), format!("renders {count} captioned scenes"), 1.0, "render-scenes")
                .set("--count", count)
                .set("--size", render.size)
                .set("--seed", self.s.seed * 10 + seed)
                .words(&["--captions"])
                .output("--out", self.image_text(part))
        };
        parts.into_iter().map(stage).collect()
    }

    fn inspect(&self) -> Stage {
        Stage::new("inspect", "the table of layers", 1.0, "inspect")
            .input("--model", &self.at.model)
            .output("--out", self.at.out.join("layers.json"))
    }

    fn calibrate(&self) -> Vec<Stage> {
        let c = &self.s.calibration;
        let sets = [
            ("calibrate", "calibration", self.at.calibration(), c.samples, self.s.seed),
            ("calibrate-heldout", "held-out", self.at.held_out(), c.held_out, self.s.seed + 1),
        ];
        let make = |(name, part, path, points, seed): (&str, &str, PathBuf, u64, u64)| {
            let floats = points as f64 * (2.0 * self.sizes.latents + self.sizes.text);
            self.stage(name, format!("makes {points} calibration points"), "calibrate")
                .input("--images", self.image_text(part))
                .set("--count", points)
                .set("--bins", c.bins)
                .set("--batch", c.batch)
                .set("--seed", seed)
                .output("--out", path)
                .work(Work { encodes: points as f64, disk: 4.0 * floats, ..Work::default() })
        };
        sets.into_iter().map(make).collect()
    }

    /// Scores, each group in as many parts as the settings say where the criteria allow it.
    fn score(&self) -> Vec<Stage> {
        let s = &self.s.score;
        let mut stages = Vec::new();
        for group in &s.groups {
            let shards = if group.iter().all(|criterion| SHARDED.contains(&criterion.as_str())) { s.shards.max(1) } else { 1 };
            for shard in 1..=shards {
                let part = if shards > 1 { format!("-{shard}-of-{shards}") } else { String::new() };
                let folder = if shards > 1 { self.at.out.join(format!("score-parts/{shard}")) } else { self.at.out.join("scores") };
                let about = format!("scores every layer by {}{}", group.join(", "), part.replace('-', " "));
                let mut stage = self
                    .comparing(format!("score-{}{part}", group[0]), about, "score")
                    .input("--calibration", self.at.calibration())
                    .set("--criterion", list(group))
                    .set("--granularity", &s.granularity)
                    .set("--batch", s.batch)
                    .set("--seed", self.s.seed)
                    .set("--out", folder.display())
                    .work(self.scoring(group, f64::from(shards)));
                if shards > 1 {
                    stage = stage.set("--shard", format!("{shard}/{shards}"));
                }
                if group.iter().any(|criterion| criterion == "clip_score") {
                    stage = stage.set("--prompts", s.clip_prompts).set("--num-inference-steps", s.clip_steps);
                    if let Some(clip) = &s.clip {
                        stage = stage.input("--clip", clip);
                    }
                }
                stages.push(group.iter().fold(stage, |stage, criterion| stage.writes(folder.join(format!("{criterion}.json")))));
            }
            for criterion in group.iter().filter(|_| shards > 1) {
                let merge =
                    Stage::new(format!("merge-{criterion}"), format!("puts the scores by {criterion} together"), 1.0, "merge-scores");
                let parts = (1..=shards).map(|shard| self.at.out.join(format!("score-parts/{shard}/{criterion}.json")));
                let merge = parts.fold(merge, |merge, part| merge.input("--scores", part));
                stages.push(merge.output("--out", self.at.scores(criterion)));
            }
        }
        stages
    }

    fn scoring(&self, group: &[String], shards: f64) -> Work {
        let s = &self.s.score;
        let points = self.s.calibration.samples as f64 / shards;
        let has = |names: &[&str]| group.iter().any(|criterion| names.contains(&criterion.as_str()));
        let mut work = Work { memory: self.weights(), ..Work::default() };
        if has(&SHARDED) {
            work.forwards += points * self.sizes.scoring_passes;
        }
        if has(&["taylor"]) {
            work.trainings += points;
            work.memory += self.weights();
        }
        if has(&["clip_score"]) {
            let images = f64::from(s.clip_prompts) * (self.sizes.layers + 1.0);
            work.forwards += 2.0 * images * f64::from(s.clip_steps);
            work.decodes += images;
        }
        work
    }

    fn audit(&self) -> Stage {
        let a = &self.s.audit;
        let sets = f64::from(a.sets_per_size) * (a.ratios.len() + a.layers.len()) as f64;
        let stage = self
            .comparing("audit", "measures the additivity of every criterion", "audit")
            .input("--calibration", self.at.held_out())
            .set("--samples", a.samples)
            .set("--sets-per-size", a.sets_per_size)
            .set("--ratios", list(&a.ratios))
            .set("--layers", list(&a.layers))
            .set("--granularity", &self.s.score.granularity)
            .set("--batch", self.s.score.batch)
            .set("--seed", self.s.seed)
            .work(Work { forwards: a.samples as f64 * (sets + 1.0), memory: self.weights(), ..Work::default() });
        let criteria = self.s.score.groups.iter().flatten().filter(|criterion| *criterion != "clip_score");
        criteria
            .fold(stage, |stage, criterion| stage.input("--scores", self.at.scores(criterion)))
            .output("--out", self.at.out.join("audit.json"))
    }

    /// The plans by ratio, then each published rival and the exact plan of its budget.
    fn plan(&self) -> Vec<Stage> {
        let p = &self.s.plan;
        let plan = |name: &str, about: &str, criterion: &str| {
            Stage::new(format!("plan-{name}"), about, 0.5, "plan")
                .input("--model", &self.at.model)
                .input("--scores", self.at.scores(criterion))
        };
        let mut stages = Vec::new();
        for ratio in &p.ratios {
            let budget = |stage: Stage, name: &str, method: &str, seed: u64| {
                stage.set("--ratio", ratio).set("--method", method).set("--seed", seed).output("--out", self.plan_file(name))
            };
            for criterion in self.s.score.groups.iter().flatten().filter(|criterion| *criterion != "random") {
                let name = format!("{criterion}-{ratio}");
                let about = format!("solves exactly for {criterion}, ratio {ratio}");
                stages.push(budget(plan(&name, &about, criterion), &name, "exact", 0));
            }
            for &seed in &p.random_seeds {
                let name = format!("random-{seed}-{ratio}");
                stages.push(budget(plan(&name, &format!("removes random layers, ratio {ratio}"), &p.criterion), &name, "random", seed));
            }
            let name = format!("bk-sdm-{ratio}");
            stages.push(budget(plan(&name, &format!("the hand-made order, ratio {ratio}"), &p.criterion), &name, "bk-sdm", 0));
            if p.refine.max_forwards > 0 {
                stages.push(self.refine(*ratio));
            }
        }
        for rival in &p.rivals {
            let own = plan(rival, &format!("the published reduction {rival}"), &p.criterion).set("--method", rival);
            stages.push(own.output("--out", self.plan_file(rival)));
            let name = format!("{}-at-{rival}", p.criterion);
            let exact = plan(&name, &format!("solves exactly at the budget of {rival}"), &p.criterion);
            stages.push(exact.input("--like", self.plan_file(rival)).output("--out", self.plan_file(&name)));
        }
        stages
    }

    fn refine(&self, ratio: f64) -> Stage {
        let p = &self.s.plan;
        let start = self.plan_file(&format!("{}-{ratio}", p.criterion));
        self.comparing(format!("plan-refined-{ratio}"), format!("looks for less joint loss, ratio {ratio}"), "refine")
            .input("--scores", self.at.scores(&p.criterion))
            .input("--plan", start)
            .input("--calibration", self.at.calibration())
            .set("--method", &p.refine.method)
            .set("--max-forwards", p.refine.max_forwards)
            .set("--batch", self.s.score.batch)
            .set("--seed", self.s.seed)
            .output("--out", self.plan_file(&format!("refined-{ratio}")))
            // The part from the first changed layer on, some half of a pass.
            .work(Work { forwards: 0.5 * p.refine.max_forwards as f64, memory: self.weights(), ..Work::default() })
    }

    fn joint(&self) -> Stage {
        let plans = self.s.plan_names();
        let stage = self
            .comparing("joint", "measures the true loss of every plan", "joint")
            .input("--calibration", self.at.held_out())
            .set("--batch", self.s.score.batch)
            .work(Work {
                forwards: self.s.calibration.held_out as f64 * (plans.len() + 1) as f64,
                memory: self.weights(),
                ..Work::default()
            });
        plans.iter().fold(stage, |stage, plan| stage.input("--plan", self.plan_file(plan))).output("--out", self.at.out.join("joint.json"))
    }
}
