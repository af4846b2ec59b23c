//! An evaluation called from a program, with metrics that this crate does not know.

use std::path::{Path, PathBuf};

use artifact::Document;
use data::image_file_name;
use eval::{
    Error, EvalFile, Evaluation, EvaluationEvent, EvaluationOptions, ImageEntry, ImageScorer, ImageScores, ImageSettings, ImagesFile,
    Metric, MetricInfo, PairScorer, PerPrompt, Result, SetDistance, Verdict,
};
use image::{Rgb, RgbImage};
use tch::Tensor;

const PROMPTS: [&str; 6] = ["a cat", "a dog", "a horse", "a cow", "a goat", "a hen"];

/// A folder of six plain images, as drawn: image i is `red + i` red.
fn folder(dir: PathBuf, red: u8) -> PathBuf {
    std::fs::create_dir_all(&dir).unwrap();
    for i in 0..PROMPTS.len() {
        RgbImage::from_pixel(8, 8, Rgb([red + i as u8, 40, (i * 30) as u8])).save(dir.join(image_file_name(i))).unwrap();
    }
    let image = |(i, prompt): (usize, &&str)| ImageEntry {
        file: image_file_name(i),
        prompt: prompt.to_string(),
        seed: i as u64,
        category: Some(if i < 3 { "a" } else { "b" }.into()),
    };
    let settings = ImageSettings {
        model: "toy".into(),
        unet: format!("red {red}"),
        prompt_source: "the test".into(),
        negative: String::new(),
        per_prompt: 1,
        seed: 0,
        sampler: "ddim".into(),
        karras: false,
        clip_skip: 0,
        vae_tiling: false,
        compute: "f32".into(),
        steps: 2,
        guidance: 1.0,
        size: [8, 8],
        latents: None,
    };
    ImagesFile { settings, images: PROMPTS.iter().enumerate().map(image).collect() }.write(&dir.join("images.json")).unwrap();
    dir
}

/// What the folder's list says, changed.
fn edit(dir: &Path, change: impl FnOnce(&mut ImagesFile)) {
    let path = dir.join("images.json");
    let mut file = ImagesFile::read(&path).unwrap();
    change(&mut file);
    file.write(&path).unwrap();
}

fn info(id: &str, higher_is_better: bool) -> MetricInfo {
    MetricInfo {
        id: id.into(),
        label: format!("the {id}"),
        higher_is_better,
        percent: false,
        ratio_scale: true,
        description: "A test's own.".into(),
    }
}

fn red(image: &RgbImage) -> f64 {
    f64::from(image.get_pixel(0, 0)[0])
}

/// How red an image is; it refuses prompts about goats where it is told to.
struct Redness {
    no_goats: bool,
}

impl ImageScorer for Redness {
    fn score(&self, images: &[RgbImage], prompts: &[&str]) -> Result<Vec<f64>> {
        if self.no_goats && prompts.iter().any(|p| p.contains("goat")) {
            return Err(Error::Metric { source: "no goats".into() });
        }
        Ok(images.iter().map(red).collect())
    }
}

struct RedDistance;

impl PairScorer for RedDistance {
    fn score(&self, images: &[RgbImage], teacher: &[RgbImage]) -> Result<Vec<f64>> {
        Ok(images.iter().zip(teacher).map(|(a, b)| (red(a) - red(b)).abs()).collect())
    }
}

/// The difference of the mean reds.
struct MeanRed;

impl SetDistance for MeanRed {
    fn features(&self, images: &[RgbImage]) -> Result<Tensor> {
        Ok(Tensor::from_slice(&images.iter().map(red).collect::<Vec<_>>()).view([-1, 1]))
    }

    fn distance(&self, a: &Tensor, b: &Tensor) -> Result<f64> {
        Ok((a.mean(None) - b.mean(None)).abs().double_value(&[]))
    }
}

fn evaluation(dir: &Path, no_goats: bool) -> Evaluation {
    let mut evaluation = Evaluation::new("teacher", folder(dir.join("teacher"), 100));
    evaluation.add_unet("student", folder(dir.join("student"), 90)).unwrap();
    evaluation.set_real(folder(dir.join("real"), 104)).unwrap();
    evaluation.compare("student", "teacher").unwrap();
    evaluation.add_metric(Metric::per_image(info("redness", true), Redness { no_goats }).with_weights("version 1")).unwrap();
    evaluation.add_metric(Metric::per_pair(info("red_teacher", false), RedDistance)).unwrap();
    evaluation
        .add_metric(Metric::between_sets("mean_red", info("mean_red_real", false), info("mean_red_to_teacher", false), MeanRed))
        .unwrap();
    evaluation
}

fn options(dir: &Path) -> EvaluationOptions {
    EvaluationOptions { batch: 2, seed: 3, gallery: 2, base: dir.into() }
}

fn value(file: &EvalFile, unet: usize, metric: &str) -> Option<f64> {
    file.unets[unet].metrics.iter().find(|m| m.metric == metric).map(|m| m.value.value)
}

#[test]
fn metrics_from_elsewhere_are_scored_compared_and_written_like_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let found = evaluation(dir.path(), false).run(&options(dir.path()), &mut ImageScores::in_memory(), |_| Ok::<_, Error>(())).unwrap();
    let file = &found.file;
    // This crate's own come first, then the others as they were added.
    let ids: Vec<&str> = file.metrics.iter().map(|m| m.id.as_str()).collect();
    assert_eq!(ids, ["psnr_teacher", "redness", "red_teacher", "mean_red_real", "mean_red_to_teacher"]);
    assert_eq!((value(file, 0, "redness"), value(file, 1, "redness")), (Some(102.5), Some(92.5)));
    assert_eq!((value(file, 0, "red_teacher"), value(file, 1, "red_teacher")), (None, Some(10.0)));
    assert_eq!((value(file, 0, "mean_red_real"), value(file, 1, "mean_red_real")), (Some(4.0), Some(14.0)));
    assert_eq!((value(file, 0, "mean_red_to_teacher"), value(file, 1, "mean_red_to_teacher")), (None, Some(10.0)));
    let verdict = |metric: &str| file.unets[1].metrics.iter().find(|m| m.metric == metric).unwrap().verdict;
    assert_eq!((verdict("redness"), verdict("mean_red_real"), verdict("red_teacher")), (Some(Verdict::Worse), Some(Verdict::Worse), None));
    let compared: Vec<(&str, f64)> = file.comparisons.iter().map(|c| (c.metric.as_str(), c.gain.value)).collect();
    assert_eq!(compared, [("redness", -10.0), ("mean_red_real", -10.0)]);
    assert_eq!(file.by_category.len(), 4);
    assert_eq!((file.weights_sha256["redness"].as_str(), file.weights_sha256.len(), &file.clip_sha256), ("version 1", 1, &None));
    assert_eq!(found.per_prompt.values["student"]["redness"], [90.0, 91.0, 92.0, 93.0, 94.0, 95.0]);
    assert_eq!((file.gallery.rows.len(), file.gallery.rows[1].cells[1].image.as_str()), (2, "student/00001.png"));

    let (path, table) = (dir.path().join("eval.json"), dir.path().join("per_prompt.json"));
    file.write(&path).unwrap();
    found.per_prompt.write(&table).unwrap();
    assert_eq!((&EvalFile::read(&path).unwrap(), &PerPrompt::read(&table).unwrap()), (file, &found.per_prompt));
}

#[test]
fn scores_are_kept_when_a_metric_or_the_caller_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image_scores.json");
    let run = |no_goats: bool, stop_at: Option<usize>| {
        let (mut asked, mut kept) = (Vec::new(), ImageScores::open(&path).unwrap());
        let done = evaluation(dir.path(), no_goats).run(&options(dir.path()), &mut kept, |event| match event {
            EvaluationEvent::Batch { metric: "redness", first, .. } if Some(first) == stop_at => Err(Stop::Asked),
            EvaluationEvent::Batch { unet, metric: "redness", first } => {
                asked.push((unet.to_string(), first));
                Ok(())
            }
            _ => Ok(()),
        });
        (done, asked)
    };
    let at = |all: &[(&str, usize)]| all.iter().map(|(unet, first)| (unet.to_string(), *first)).collect::<Vec<_>>();
    let (done, asked) = run(false, Some(2));
    assert!(matches!(done, Err(Stop::Asked)));
    assert_eq!(asked, at(&[("teacher", 0)]));
    let (done, asked) = run(true, None);
    assert!(matches!(done, Err(Stop::Eval(Error::Metric { .. }))));
    assert_eq!(asked, at(&[("teacher", 2), ("teacher", 4)]));
    let (done, asked) = run(false, None);
    assert!(done.is_ok());
    assert_eq!(asked, at(&[("teacher", 4), ("student", 0), ("student", 2), ("student", 4)]));
    assert!(run(false, None).1.is_empty(), "all are kept");
}

/// A caller's own error.
#[derive(Debug)]
enum Stop {
    Asked,
    Eval(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Eval(error)
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut evaluation = evaluation(dir.path(), false);
    assert!(matches!(evaluation.compare("student", "nobody"), Err(Error::Input { .. })));
    assert!(evaluation.add_metric(Metric::per_image(info("redness", true), Redness { no_goats: false })).is_err());
    assert!(evaluation.add_unet("student", folder(dir.path().join("again"), 1)).is_err());
    let run = |evaluation: &Evaluation| {
        let done = evaluation.run(&options(dir.path()), &mut ImageScores::in_memory(), |_| Ok::<_, Error>(()));
        done.unwrap_err().to_string()
    };
    edit(&dir.path().join("student"), |file| file.images[2].seed = 9);
    assert!(run(&evaluation).contains("seed of image 2: expected 2, as in the reference, got 9"), "{}", run(&evaluation));
    edit(&dir.path().join("student"), |file| file.images[2].seed = 2);
    let of = |n: usize| dir.path().join("student").join(image_file_name(n));
    RgbImage::new(8, 9).save(of(3)).unwrap();
    let said = run(&evaluation);
    assert!(said.contains(of(3).to_str().unwrap()) && said.contains("8 x 9 pixels") && said.contains("8 x 8"), "{said}");
    std::fs::write(of(3), "half a PNG").unwrap();
    assert!(run(&evaluation).contains(of(3).to_str().unwrap()), "{}", run(&evaluation));
    std::fs::remove_file(of(3)).unwrap();
    assert!(run(&evaluation).contains(of(3).to_str().unwrap()), "{}", run(&evaluation));
    let student = |file: &mut ImagesFile| file.images.clear();
    edit(&dir.path().join("student"), student);
    assert!(run(&evaluation).contains("student: images: expected 6"), "{}", run(&evaluation));
    edit(&dir.path().join("teacher"), student);
    assert!(run(&evaluation).contains("teacher: no images"), "{}", run(&evaluation));
    std::fs::remove_file(dir.path().join("teacher/images.json")).unwrap();
    assert!(run(&evaluation).contains("teacher/images.json"), "{}", run(&evaluation));
    std::fs::write(dir.path().join("teacher/scenes.jsonl"), "").unwrap();
    assert!(run(&evaluation).contains("expected images that were generated, got rendered scenes"), "{}", run(&evaluation));
}

#[test]
fn the_real_images_may_be_any_folder_of_any_sizes_and_number() {
    let dir = tempfile::tempdir().unwrap();
    let mut evaluation = evaluation(dir.path(), false);
    let photos = dir.path().join("photos");
    std::fs::create_dir_all(photos.join("2024/summer")).unwrap();
    // Mean red 120.
    for (name, size, red) in [("a.png", (8, 8), 100), ("2024/B.PNG", (31, 5), 110), ("2024/summer/c.jpg", (64, 48), 150)] {
        RgbImage::from_pixel(size.0, size.1, Rgb([red, red, red])).save(photos.join(name)).unwrap();
    }
    std::fs::write(photos.join("2024/readme.txt"), "no image").unwrap();
    evaluation.set_real(&photos).unwrap();
    let run = |evaluation: &Evaluation| evaluation.run(&options(dir.path()), &mut ImageScores::in_memory(), |_| Ok::<_, Error>(()));
    let found = run(&evaluation).unwrap().file;
    assert_eq!((value(&found, 0, "mean_red_real"), value(&found, 1, "mean_red_real")), (Some(17.5), Some(27.5)));
    // The interval is that over prompts: leaving any of the six out moves the mean of 100 to 105 by half a red at most.
    let m = found.unets[1].metrics.iter().find(|m| m.metric == "mean_red_real").unwrap();
    assert!((m.value.se - 5.0 / 6.0 * (35f64 / 12.0 / 5.0 * 6.0 / 5.0).sqrt()).abs() < 0.2 && m.verdict == Some(Verdict::Worse), "{m:?}");
    assert!((m.decline.unwrap().value - 10.0 / 17.5).abs() < 1e-9 && (m.gain.unwrap().value + 10.0).abs() < 1e-9);

    // A list of other prompts, and a broken photograph, which is named.
    edit(&dir.path().join("real"), |file| drop(file.images.pop()));
    evaluation.set_real(dir.path().join("real")).unwrap();
    let nowhere = evaluation.set_real(dir.path().join("nowhere")).unwrap_err().to_string();
    assert!(nowhere.contains("nowhere: no such folder"), "{nowhere}");
    assert_eq!(value(&run(&evaluation).unwrap().file, 0, "mean_red_real"), Some(3.5));
    std::fs::write(photos.join("2024/B.PNG"), "half a PNG").unwrap();
    evaluation.set_real(&photos).unwrap();
    assert!(run(&evaluation).unwrap_err().to_string().contains("2024/B.PNG"));
}
