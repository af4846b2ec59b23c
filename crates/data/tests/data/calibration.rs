//! Calibration sets: how their points are dealt out, and what survives the file.

use data::{CalibrationSet, Error, TrajectoryOptions};
use diffusion::{Pipeline, TimeIds};
use tch::{Device, Kind, Tensor};

use crate::support::{assert_close, copy_dir, cpu_pipeline, fixtures};

#[test]
fn calibration_from_latents_is_stratified_seeded_and_survives_the_file() {
    let pipeline = cpu_pipeline("sdxl");
    let n = 20;
    let prompts: Vec<String> = (0..n).map(|i| format!("a red circle {i}")).collect();
    let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let cond = pipeline.encode_prompts(&texts, TimeIds::uncropped(32, 32)).unwrap();
    // Not from libtorch's generator, which other tests seed at the same time.
    let x0 = (Tensor::arange(n * 256, (Kind::Float, Device::Cpu)).square() * 0.37).sin().view([n, 4, 8, 8]);
    let make =
        |seed| CalibrationSet::builder(&x0, &cond, &prompts, pipeline.schedule()).bins(5).seed(seed).source_hash("abc").build().unwrap();
    let set = make(1);
    assert_eq!(set.len(), 20);

    // One timestep in each of 20 strata of 50, so four in each of 5 bins.
    let mut t = Vec::<i64>::try_from(&set.timesteps).unwrap();
    assert!(t.windows(2).any(|w| w[0] > w[1]), "dealt out at random");
    let bins = Vec::<i64>::try_from(&set.bins).unwrap();
    assert!(t.iter().zip(&bins).all(|(t, b)| t / 200 == *b));
    t.sort_unstable();
    assert!(t.iter().enumerate().all(|(i, t)| *t / 50 == i as i64), "{t:?}");

    // x_t and target belong together.
    let target = set.target.as_ref().unwrap();
    assert_close("x0", &pipeline.schedule().to_x0(target, &set.x_t, &set.timesteps).unwrap(), &x0, 1e-4);
    assert!(make(1).x_t.equal(&set.x_t) && !make(2).x_t.equal(&set.x_t));
    // The noise is unit noise, another one for each point.
    let noise = pipeline.schedule().to_epsilon(target, &set.x_t, &set.timesteps).unwrap();
    let (mean, std) = (noise.mean(Kind::Double).double_value(&[]), noise.std(true).double_value(&[]));
    assert!(mean.abs() < 0.06 && (std - 1.0).abs() < 0.06 && !noise.get(0).allclose(&noise.get(1), 0.1, 0.1, false), "{mean} {std}");

    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
    set.save(&a).unwrap();
    let back = CalibrationSet::open(&a).unwrap();
    back.save(&b).unwrap();
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    assert_eq!((back.prompts.as_slice(), back.num_bins, back.seed, back.source_hash.as_str()), (prompts.as_slice(), 5, 1, "abc"));

    // Batches cover the set in order; the U-Net takes them as they are.
    let spans: Vec<_> = back.batches(8).collect();
    assert_eq!(spans, [(0, 8), (8, 8), (16, 4)]);
    let part = back.batch(16, 4, Device::Cpu, Kind::Float).unwrap();
    assert!(part.x_t.equal(&set.x_t.narrow(0, 16, 4)));
    let out = pipeline.unet().forward(&part.x_t, &part.timesteps, &part.cond).unwrap();
    assert_eq!(out.size(), part.target.unwrap().size());
    let picked = set.select(&[4, 2]).unwrap();
    assert!(picked.x_t.get(1).equal(&set.x_t.get(2)) && picked.prompts[0] == prompts[4]);
    assert!(matches!(set.select(&[20]), Err(Error::Input { .. })));
}

#[test]
fn foreign_files_are_no_calibration_sets() {
    match CalibrationSet::open(fixtures().join("samplers.safetensors")) {
        Err(Error::Format { problem, .. }) => assert!(problem.contains("not a calibration set"), "{problem}"),
        other => panic!("{other:?}"),
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.safetensors");
    let bytes = std::fs::read(fixtures().join("samplers.safetensors")).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let message = CalibrationSet::open(&path).unwrap_err().to_string();
    assert!(message.contains("cut.safetensors") && message.contains("fetch it again"), "{message}");
}

#[test]
fn data_free_points_lie_on_the_models_own_trajectories() {
    let pipeline = cpu_pipeline("sdxl");
    let prompts: Vec<String> = ["red", "a blue square", "green", "two circle"].map(String::from).to_vec();
    let make = |batch| {
        let options = TrajectoryOptions { steps: 4, guidance: 3.0, height: 32, width: 32, num_bins: 2, seed: 5, batch };
        CalibrationSet::from_trajectories(&pipeline, pipeline.unet(), &prompts, "hash", &options, &mut |_, _| data::Result::Ok(())).unwrap()
    };
    let set = make(3);
    assert!(set.target.is_none() && set.x_t.size() == [4, 4, 8, 8]);
    assert_eq!(set.calibration().unwrap().num_samples(), 4, "what has no targets can be scored on");
    let t = Vec::<i64>::try_from(&set.timesteps).unwrap();
    let mut sorted = t.clone();
    sorted.sort_unstable();
    // One point at each of the four steps: leading spacing with offset 1.
    assert_eq!(sorted, [1, 251, 501, 751]);
    assert_eq!(Vec::<i64>::try_from(&set.bins).unwrap(), t.iter().map(|t| t / 500).collect::<Vec<_>>());
    assert_close("batches of one", &make(1).x_t, &set.x_t, 1e-4);
    // The point of the first step is the initial noise itself.
    let first = t.iter().position(|&t| t == 751).unwrap() as i64;
    let std = set.x_t.get(first).std(true).double_value(&[]);
    assert!((std - 1.0).abs() < 0.2, "{std}");
    let dir = tempfile::tempdir().unwrap();
    set.save(dir.path().join("set.safetensors")).unwrap();
    assert!(CalibrationSet::open(dir.path().join("set.safetensors")).unwrap().target.is_none());
}

#[test]
fn points_of_a_latent_consistency_model_keep_the_guidance_under_which_they_were_met() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixtures().join("sd15"), dir.path());
    copy_dir(&fixtures().join("lcm"), dir.path());
    let pipeline = Pipeline::open(dir.path(), None, Device::Cpu, Kind::Float).unwrap();
    let prompts = ["red".to_string(), "blue".to_string()];
    let options = TrajectoryOptions { steps: 4, guidance: 5.0, height: 32, width: 32, num_bins: 2, seed: 5, batch: 2 };
    let set =
        CalibrationSet::from_trajectories(&pipeline, pipeline.unet(), &prompts, "", &options, &mut |_, _| data::Result::Ok(())).unwrap();
    set.save(dir.path().join("set.safetensors")).unwrap();
    let back = CalibrationSet::open(dir.path().join("set.safetensors")).unwrap();
    assert_eq!(back.cond.guidance.as_ref().map(Tensor::size), Some(vec![2, 14]));
    assert!(back.cond.guidance.unwrap().equal(set.cond.guidance.as_ref().unwrap()));
}
