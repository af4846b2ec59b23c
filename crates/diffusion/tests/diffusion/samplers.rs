//! Schedule and samplers against fixtures that diffusers computed (tests/fixtures/gen_diffusion_pipeline.py).

use std::collections::BTreeMap;
use std::path::Path;

use diffusion::{BetaSchedule, Error, NoiseLevels, NoiseSchedule, PredictionType, Sampler, SamplerKind, SchedulerConfig};
use tch::{Kind, Tensor};
use unet::weights::TensorFile;

use crate::support::{assert_close, fixtures, get};

fn sampler_configs(file: &TensorFile) -> BTreeMap<String, SchedulerConfig> {
    let all: BTreeMap<String, serde_json::Value> = serde_json::from_str(&file.metadata()["configs"]).unwrap();
    all.into_iter().map(|(name, c)| (name, SchedulerConfig::parse(&c.to_string(), Path::new("fixture")).unwrap())).collect()
}

#[test]
fn schedules_and_samplers_agree_with_diffusers() {
    let (configs, schedules, stochastic) = compare("samplers.safetensors");
    // Every step but the last of two samplers, less the three untold cases.
    assert_eq!((configs, schedules, stochastic), (19, 4, (19 + 16) * 6));
}

#[test]
fn settings_of_other_schedulers_agree_with_diffusers() {
    let (configs, schedules, stochastic) = compare("sampler_settings.safetensors");
    assert_eq!((configs, schedules, stochastic), (22, 1, (22 + 21) * 6));
}

// Numbers of configurations, of noise schedules and of steps with fresh noise.
fn compare(name: &str) -> (usize, usize, usize) {
    let file = TensorFile::open(fixtures().join(name)).unwrap();
    let (noise, outputs, fresh) = (get(&file, "noise"), get(&file, "outputs"), get(&file, "step_noise"));
    let steps = outputs.size()[0] as usize;
    let configs = sampler_configs(&file);
    let number = configs.len();
    let (mut schedules, mut stochastic) = (0, 0);
    for (name, config) in configs {
        // diffusers has no ancestral sampling for models that predict the clean sample.
        // With `nothing` in the file, LCM's class has other betas than the rest; here they are those of the class that wrote the file.
        let untold = |kind| {
            kind == SamplerKind::EulerAncestral && config.prediction_type == PredictionType::Sample
                || kind == SamplerKind::Lcm && name == "nothing"
        };
        let schedule = NoiseSchedule::new(config.clone()).unwrap();
        if let Some(expected) = file.tensor(&format!("{name}.alphas_cumprod")).unwrap() {
            // A product of 1000 factors of f32, in an order that the kernel chooses: sqrt(1000) roundings of 2^-24 are 2e-6 of it.
            assert_close(&format!("{name} alphas_cumprod"), &Tensor::from_slice(schedule.alphas_cumprod()), &expected, 1e-6);
            schedules += 1;
        }
        for kind in SamplerKind::ALL.into_iter().filter(|&kind| !untold(kind)) {
            let expected = |what: &str| get(&file, &format!("{name}.{kind}.{what}"));
            let mut sampler = Sampler::new(kind, &schedule, steps, false).unwrap();
            // Timesteps of spread levels come through two logarithms of f32.
            assert_close(&format!("{name} {kind} timesteps"), &Tensor::from_slice(sampler.timesteps()), &expected("timesteps"), 1e-3);
            // The others take x as it is.
            let scaled = kind.name().starts_with("euler").then(|| expected("inputs"));
            let xs = expected("xs");
            // Each step starts from diffusers' own x. Where the noise level makes x large (20000 in `cosine`), f32 carries
            // no more than the tolerance relative to it.
            let mut x = &noise * sampler.init_noise_sigma();
            for i in 0..steps {
                let row = i as i64;
                let input = sampler.scale_model_input(&x, i).unwrap();
                match &scaled {
                    Some(inputs) => {
                        let size = input.abs().max().double_value(&[]).max(1.0);
                        assert_close(&format!("{name} {kind} input {i}"), &input, &inputs.get(row), 1e-5 * size);
                    }
                    None => assert!(input.equal(&x)),
                }
                if sampler.needs_noise(i) {
                    assert!(matches!(sampler.step(&outputs.get(row), i, &x, None), Err(Error::Input { name, .. }) if name == "noise"));
                    stochastic += 1;
                }
                let next = sampler.step(&outputs.get(row), i, &x, Some(&fresh.get(row))).unwrap();
                let tolerance = 1e-5 * x.abs().max().double_value(&[]).max(xs.get(row).abs().max().double_value(&[])).max(1.0);
                x = xs.get(row);
                assert_close(&format!("{name} {kind} x {i}"), &next, &x, tolerance);
            }
            assert!(matches!(sampler.step(&noise, steps, &x, Some(&noise)), Err(Error::Input { .. })));
        }
    }
    (number, schedules, stochastic)
}

#[test]
fn karras_levels_can_be_asked_for() {
    let file = TensorFile::open(fixtures().join("samplers.safetensors")).unwrap();
    let mut config = sampler_configs(&file).remove("karras").unwrap();
    config.noise_levels = NoiseLevels::Timesteps;
    let schedule = NoiseSchedule::new(config).unwrap();
    for kind in SamplerKind::ALL {
        let asked = Sampler::new(kind, &schedule, 7, true);
        match kind.has_karras() {
            true => {
                let expected = get(&file, &format!("karras.{kind}.timesteps"));
                assert_close(kind.name(), &Tensor::from_slice(asked.unwrap().timesteps()), &expected, 1e-3);
            }
            false => assert!(matches!(asked, Err(Error::Input { name, .. }) if name == "karras")),
        }
    }
}

#[test]
fn training_arithmetic_agrees_with_diffusers_and_with_itself() {
    let file = TensorFile::open(fixtures().join("samplers.safetensors")).unwrap();
    let (x0, noise, t) = (get(&file, "train.x0"), get(&file, "noise"), get(&file, "train.t"));
    for prediction in [PredictionType::Epsilon, PredictionType::VPrediction, PredictionType::Sample] {
        let schedule = NoiseSchedule::new(SchedulerConfig::stable_diffusion(prediction)).unwrap();
        let x_t = schedule.add_noise(&x0, &noise, &t).unwrap();
        assert_close("x_t", &x_t, &get(&file, "train.x_t"), 1e-6);
        let target = schedule.target(&x0, &noise, &t).unwrap();
        if prediction == PredictionType::VPrediction {
            assert_close("v", &target, &get(&file, "train.v"), 1e-6);
        }
        assert_close("to_x0", &schedule.to_x0(&target, &x_t, &t).unwrap(), &x0, 1e-5);
        assert_close("to_epsilon", &schedule.to_epsilon(&target, &x_t, &t).unwrap(), &noise, 1e-4);
        let abar = schedule.alphas_cumprod()[17];
        let snr = schedule.snr(&t).unwrap().double_value(&[0]);
        assert!((snr / (abar / (1.0 - abar)) - 1.0).abs() < 1e-4, "snr {snr}");
        // The result is in the type of the sample.
        assert_eq!(schedule.add_noise(&x0.to_kind(Kind::BFloat16), &noise.to_kind(Kind::BFloat16), &t).unwrap().kind(), Kind::BFloat16);
        assert!(schedule.add_noise(&x0, &noise, &Tensor::from_slice(&[0i64, 1000])).is_err());
    }
}

#[test]
fn scheduler_settings_survive_a_round_trip_and_unknown_ones_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = SchedulerConfig::stable_diffusion(PredictionType::VPrediction);
    config.rescale_betas_zero_snr = true;
    NoiseSchedule::new(config.clone()).unwrap().save(dir.path().join("scheduler")).unwrap();
    assert_eq!(SchedulerConfig::open(dir.path()).unwrap(), config);
    assert_eq!(SchedulerConfig::open(dir.path().join("scheduler")).unwrap(), config);
    assert_eq!(SchedulerConfig::open(dir.path().join("scheduler/scheduler_config.json")).unwrap(), config);
    for (text, key) in [
        (r#"{"prediction_type": "flow"}"#, "prediction_type"),
        (r#"{"beta_end": 2}"#, "beta_end"),
        (r#"{"trained_betas": [0.1]}"#, "trained_betas"),
        (r#"{"num_train_timesteps": 2, "trained_betas": [0.1, 1.5]}"#, "trained_betas"),
        (r#"{"use_karras_sigmas": true, "use_beta_sigmas": true}"#, "use_beta_sigmas"),
        (r#"{"use_flow_sigmas": true}"#, "use_flow_sigmas"),
        (r#"{"final_sigmas_type": "largest"}"#, "final_sigmas_type"),
        (r#"{"solver_order": 4}"#, "solver_order"),
        (r#"{"sigma_data": 0.5}"#, "sigma_data"),
        (r#"{"timestep_type": "continuous"}"#, "timestep_type"),
        (r#"{"shift": 3.0}"#, "shift"),
    ] {
        match SchedulerConfig::parse(text, Path::new("x.json")) {
            Err(Error::Config { key: found, .. }) => assert_eq!(found, key),
            other => panic!("{text}: {other:?}"),
        }
    }
    let schedule = NoiseSchedule::new(config).unwrap();
    for steps in [0, 1000, 1001] {
        // 1000 steps of leading spacing end at timestep 1000, which does not exist.
        for kind in SamplerKind::ALL {
            assert!(matches!(Sampler::new(kind, &schedule, steps, false), Err(Error::Input { .. })), "{kind} {steps} steps");
        }
    }
    // LCM takes its steps out of the 50 of its distillation.
    assert!(Sampler::new(SamplerKind::Lcm, &schedule, 50, false).is_ok() && Sampler::new(SamplerKind::Lcm, &schedule, 51, false).is_err());
    assert!("heun".parse::<SamplerKind>().is_err());
    assert!(SamplerKind::ALL.iter().all(|k| k.name().parse::<SamplerKind>().is_ok_and(|back| back == *k)));
    // As diffusers writes a multistep solver's file.
    let solver = r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity, "flow_shift": 1.0, "use_flow_sigmas": false,
        "solver_order": 2, "euler_at_final": false, "use_karras_sigmas": true, "time_shift_type": "exponential"}"#;
    assert!(SchedulerConfig::parse(solver, Path::new("x.json")).unwrap().noise_levels == NoiseLevels::Karras);
}

#[test]
fn files_of_old_and_of_later_releases_have_the_defaults_of_their_class() {
    let read = |text: &str| SchedulerConfig::parse(text, Path::new("x.json")).unwrap();
    let betas = |c: &SchedulerConfig| (c.beta_start, c.beta_end, c.beta_schedule);
    let (plain, lcm) = (read(r#"{"_class_name": "DDIMScheduler"}"#), read(r#"{"_class_name": "LCMScheduler"}"#));
    assert_eq!(betas(&plain), (0.0001, 0.02, BetaSchedule::Linear));
    assert_eq!(betas(&lcm), (0.00085, 0.012, BetaSchedule::ScaledLinear));
    assert_eq!(betas(&read(r#"{"_class_name": "HeunDiscreteScheduler"}"#)), (0.00085, 0.012, BetaSchedule::Linear));
    assert!(plain.clip_sample && !lcm.clip_sample && plain.prediction_type == PredictionType::Epsilon);
    assert_eq!(plain.timestep_spacing, None);
    // What a later version adds and leaves off, and what the first ones wrote.
    let odd =
        r#"{"_class_name": "PNDMScheduler", "a_setting_to_come": false, "another": null, "tensor_format": "pt", "predict_epsilon": true}"#;
    assert_eq!(read(odd).prediction_type, PredictionType::Epsilon);
    assert_eq!(read(r#"{"predict_epsilon": false}"#).prediction_type, PredictionType::Sample);
    // A list in a message is cut.
    let many = vec!["0.1"; 999].join(", ");
    let error = SchedulerConfig::parse(&format!(r#"{{"trained_betas": [{many}]}}"#), Path::new("x.json")).unwrap_err().to_string();
    assert!(error.contains("1000 numbers") && error.len() < 300, "{error}");
}

#[test]
fn settings_that_few_classes_know_survive_a_round_trip() {
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "trained_betas": [0.1, 0.2], "num_train_timesteps": 2, "solver_order": 3,
        "algorithm_type": "sde-dpmsolver++", "solver_type": "heun", "final_sigmas_type": "sigma_min", "lower_order_final": false,
        "euler_at_final": true, "thresholding": true, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9, "lambda_min_clipped": -5.1,
        "use_lu_lambdas": true}"#;
    let config = SchedulerConfig::parse(text, Path::new("x.json")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    NoiseSchedule::new(config.clone()).unwrap().save(dir.path()).unwrap();
    assert_eq!(SchedulerConfig::open(dir.path()).unwrap(), config);
}

#[test]
fn predicted_noise_is_refused_where_there_is_nothing_but_noise() {
    let mut config = SchedulerConfig::stable_diffusion(PredictionType::Epsilon);
    (config.rescale_betas_zero_snr, config.timestep_spacing) = (true, Some(diffusion::TimestepSpacing::Trailing));
    let schedule = NoiseSchedule::new(config).unwrap();
    for (kind, refused) in [(SamplerKind::Ddim, true), (SamplerKind::Lcm, true), (SamplerKind::Euler, false)] {
        assert_eq!(Sampler::new(kind, &schedule, 4, false).is_err(), refused, "{kind}");
    }
}
