//! The second half of the stages: pruned models -> distillation -> exports, images, measures -> report.

use std::path::{Path, PathBuf};

use super::super::settings::Student;
use super::Flow;
use crate::pipeline::{Stage, Work};

/// What `bench` draws with each U-Net: three timed images after an untimed one.
const BENCH_IMAGES: f64 = 4.0;
/// Its calls beside the timed ones: to warm up, and where memory is measured.
const BENCH_CALLS: u32 = 10;

/// A U-Net that draws images.
struct Drawn {
    name: String,
    unet: PathBuf,
    /// Its parameters, as a share of the teacher's.
    share: f64,
}

impl<'a> Flow<'a> {
    pub(super) fn prune(&self, plan: &str) -> Stage {
        Stage::new(format!("prune-{plan}"), format!("cuts the layers of {plan} out"), 2.0, "prune")
            .input("--model", &self.at.model)
            .input("--plan", self.plan_file(plan))
            .words(&["--unet-only"])
            .output("--out", self.pruned(plan))
            .work(Work { disk: 2.0 * self.sizes.params * self.share(plan), ..Work::default() })
    }

    pub(super) fn cache(&self) -> Stage {
        let images = self.s.data.render.as_ref().map_or(self.s.data.images, |render| render.train) as f64;
        self.stage("cache", "encodes the training images and captions", "cache")
            .input("--images", self.image_text("train"))
            .set("--size", self.s.data.size)
            .output("--out", self.at.out.join("cache"))
            .work(Work { encodes: images, disk: 2.0 * images * (2.0 * self.sizes.latents + self.sizes.text), ..Work::default() })
    }

    /// Every student that is retrained: its plan and feature loss.
    pub(super) fn trained_students(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        let of = |student: &'a Student| student.feature_losses.iter().map(move |features| (student.plan.as_str(), features.as_str()));
        self.s.students.iter().flat_map(of)
    }

    pub(super) fn distill(&self, plan: &str, feature_loss: &str) -> Stage {
        let trainer = |key: &str, default: i64| {
            let table = self.s.distill.get("trainer").and_then(toml::Value::as_table);
            table.and_then(|table| table.get(key)).and_then(toml::Value::as_integer).unwrap_or(default) as f64
        };
        let samples = trainer("steps", 0) * trainer("batch", 1) * trainer("accumulate", 1);
        let share = self.share(plan);
        let student = self.sizes.params * share;
        let name = format!("{plan}-{feature_loss}");
        let work = self.at.out.join(format!("work/{name}"));
        self.stage(format!("distill-{name}"), format!("retrains {plan} with the {feature_loss} feature loss"), "distill")
            .input("--plan", self.plan_file(plan))
            .input("--config", self.train)
            .reads(self.at.out.join("cache"))
            .reads(self.at.held_out())
            .set("--feature-loss", feature_loss)
            .set("--work", work.display())
            .scratch(&work)
            .ranks(self.ranks)
            .output("--out", self.trained(plan, feature_loss))
            .work(Work {
                forwards: samples,
                trainings: samples * share,
                // A checkpoint: master weights, two moments, average; and the student.
                disk: student * (16.0 * (trainer("keep_checkpoints", 1) + 1.0) + 4.0),
                // Master weights, gradients, two moments, average; weights to compute with; the teacher.
                memory: student * (20.0 + self.sizes.bytes) + self.weights(),
                ..Work::default()
            })
    }

    /// The first student with the last feature loss; the pruned U-Net where nothing is retrained.
    fn headline(&self) -> (String, PathBuf) {
        let student = &self.s.students[0];
        match student.feature_losses.last().filter(|_| !self.s.skips("distill")) {
            Some(feature_loss) => (format!("{}-{feature_loss}", student.plan), self.trained(&student.plan, feature_loss).join("unet")),
            None => (student.plan.clone(), self.pruned(&student.plan)),
        }
    }

    pub(super) fn export(&self, format: &str) -> Stage {
        let (name, unet) = self.headline();
        let file = if format == "original" { format!("export/{name}.safetensors") } else { format!("export/{format}") };
        let stage =
            Stage::new(format!("export-{format}"), format!("writes {name} in the form {format}"), 5.0, "prune").input("--model", unet);
        let stage = if format == "original" { stage } else { stage.words(&["--unet-only"]) };
        stage.set("--format", format).set("--kind", "f16").output("--out", self.at.out.join(file)).work(Work {
            disk: 2.0 * self.sizes.params * if format == "original" { 1.0 } else { self.share(&self.s.students[0].plan) },
            ..Work::default()
        })
    }

    /// All U-Nets but the teacher's that draw images: pruned ones, then students.
    fn drawn(&self) -> Vec<Drawn> {
        let pruned = self.s.students.iter().map(|student| Drawn {
            name: student.plan.clone(),
            unet: self.pruned(&student.plan),
            share: self.share(&student.plan),
        });
        let students = self.trained_students().map(|(plan, feature_loss)| Drawn {
            name: format!("{plan}-{feature_loss}"),
            unet: self.trained(plan, feature_loss).join("unet"),
            share: self.share(plan),
        });
        if self.s.skips("distill") { pruned.collect() } else { pruned.chain(students).collect() }
    }

    /// The teacher's images, then those of all others.
    pub(super) fn draw(&self) -> Vec<Stage> {
        let others = self.drawn().into_iter().map(|drawn| self.generate(&drawn.name, Some(&drawn.unet), drawn.share));
        std::iter::once(self.generate("teacher", None, 1.0)).chain(others).collect()
    }

    fn images(&self, name: &str) -> PathBuf {
        self.at.out.join(format!("images/{name}"))
    }

    fn generate(&self, name: &str, unet: Option<&Path>, share: f64) -> Stage {
        let e = &self.s.eval;
        let images = (e.prompt_count * e.num_images_per_prompt) as f64;
        let mut stage = self.stage(format!("generate-{name}"), format!("draws the prompts with {name}"), "generate");
        for prompts in &e.prompts {
            stage = stage.input("--prompts-file", prompts);
        }
        stage = stage
            .set("--num-images-per-prompt", e.num_images_per_prompt)
            .set("--num-inference-steps", e.num_inference_steps)
            .set("--guidance-scale", e.guidance_scale)
            .set("--sampler", &e.sampler)
            .set("--batch", e.batch)
            .set("--seed", self.s.seed);
        if let Some(unet) = unet {
            stage = stage.input("--unet", unet);
        }
        stage.output("--out", self.images(name)).work(Work {
            forwards: 2.0 * images * f64::from(e.num_inference_steps) * share,
            decodes: images,
            // A PNG of an image of eight by eight pixels for each latent position takes some 1.5 bytes a pixel.
            disk: images * self.sizes.latents / 4.0 * 64.0 * 1.5,
            memory: self.weights(),
            ..Work::default()
        })
    }

    pub(super) fn eval(&self) -> Stage {
        let e = &self.s.eval;
        let mut stage = Stage::new("eval", "measures the images", 60.0, "eval")
            .set("--device", self.at.device)
            .set("--reference", format!("teacher={}", self.images("teacher").display()))
            .reads(self.images("teacher"));
        for Drawn { name, .. } in self.drawn() {
            stage = stage.set("--images", format!("{name}={}", self.images(&name).display())).reads(self.images(&name));
        }
        for student in self.s.students.iter().filter(|_| !self.s.skips("distill")) {
            if let [a, b] = student.feature_losses.as_slice() {
                stage = stage.set("--compare", format!("{0}-{b}:{0}-{a}", student.plan));
            }
        }
        for (metric, files) in &e.metrics {
            stage = stage.set("--metric", format!("{metric}={files}"));
            stage = files.split(',').fold(stage, |stage, file| stage.reads(file));
        }
        for (flag, path) in [("--tokenizer", &e.tokenizer), ("--clip", &e.clip)] {
            if let Some(path) = path {
                stage = stage.input(flag, path);
            }
        }
        stage.set("--seed", self.s.seed).output("--out", self.at.out.join("eval.json"))
    }

    /// One U-Net per plan: retraining changes no shape.
    pub(super) fn bench(&self) -> Stage {
        let e = &self.s.eval;
        let mut stage = self
            .stage("bench", "measures the latency of teacher and students", "bench")
            .set("--rounds", e.bench_rounds)
            .set("--num-inference-steps", e.num_inference_steps)
            .set("--guidance-scale", e.guidance_scale)
            .set("--sampler", &e.sampler);
        for student in &self.s.students {
            let unet = self.pruned(&student.plan);
            stage = stage.set("--unet", format!("{}={}", student.plan, unet.display())).reads(unet);
        }
        let unets = (self.s.students.len() + 1) as f64;
        stage.output("--out", self.at.out.join("speed.json")).work(Work {
            forwards: unets * (f64::from(e.bench_rounds + BENCH_CALLS) + 2.0 * BENCH_IMAGES * f64::from(e.num_inference_steps)),
            decodes: unets * BENCH_IMAGES,
            memory: unets * self.weights(),
            ..Work::default()
        })
    }

    /// Reads whatever the other stages wrote that belongs into a report.
    pub(super) fn report(&self, stages: &[Stage]) -> Stage {
        let mut report = Stage::new("report", "writes report.html, report.md and results.json", 3.0, "report")
            .words(&[&self.at.out.display().to_string()])
            .set("--title", &self.s.title)
            .reads(self.at.out.join("published.json"));
        let written = |path: &Path| stages.iter().any(|stage| stage.outputs().iter().any(|output| output.starts_with(path)));
        for part in ["layers.json", "audit.json", "joint.json", "eval.json", "speed.json", "scores", "plans", "distill"] {
            let path = self.at.out.join(part);
            if written(&path) {
                report = report.reads(path);
            }
        }
        if written(&self.at.out.join("distill")) {
            report = report.set("--headline", &self.s.students[0].plan);
        }
        report.output("--out", self.at.out.join("report.html"))
    }
}
