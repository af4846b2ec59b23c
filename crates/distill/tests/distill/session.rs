//! A whole distillation as a library call: stopped, failed and gone on with, under a feature loss of the caller's own.

use std::path::{Path, PathBuf};

use distill::{
    Control, Error, Event, FeatureLoss, FeatureLossEntry, FeatureLosses, LogRow, Record, Session, SessionOptions, Settings, StudentSource,
};
use tch::{Device, Kind, Tensor};

const SETTINGS: &str = r#"
taps = "stages"

[losses]
task_weight = 1.0
output_weight = 1.0
feature_weight = 0.5
feature_loss = "absolute"
norm_power = 2
norm_scope = "batch"

[trainer]
steps = 3
batch = 1
lr = 1e-4
warmup = 1
lr_schedule = "constant"
lr_end_ratio = 1.0
beta1 = 0.9
beta2 = 0.99
weight_decay = 0.0
clip_norm = 1.0
ema_decay = 0.0
seed = 3
compute = "f32"
log_every = 1
checkpoint_every = 100

[data]
source = "scenes"
seed = 5
count = 2
caption_dropout = 0.1
"#;

/// `E|f_T - f_S|`.
struct Absolute;

impl FeatureLoss for Absolute {
    fn term(&mut self, _: &str, teacher: &Tensor, student: &Tensor) -> distill::Result<Tensor> {
        Ok((teacher - student).abs().mean(Kind::Float))
    }
}

/// The caller's own error.
#[derive(Debug)]
enum Halted {
    Distill(Error),
    Own(u64),
}

impl From<Error> for Halted {
    fn from(error: Error) -> Self {
        Self::Distill(error)
    }
}

fn open(dir: &Path, settings: &str) -> distill::Result<Session> {
    let own = FeatureLossEntry::new("absolute", "absolute differences", "Absolute differences", |_| Some(Box::new(Absolute)));
    let options = SessionOptions {
        model: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../assets/tiny-sdxl").into(),
        student: StudentSource::Without {
            removed: ["mid_block.attentions.0.transformer_blocks.0.ff", "up_blocks.0.resnets.1"].into_iter().collect(),
            identity: "two layers".into(),
            plan: "{}".into(),
            name: "two-layers".into(),
        },
        base: dir.into(),
        out: dir.join("out"),
        work: dir.join("work"),
        device: Device::Cpu,
        group: None,
        feature_losses: FeatureLosses::builtin().with(own),
    };
    for folder in [&options.out, &options.work] {
        std::fs::create_dir_all(folder).unwrap();
    }
    Session::open(toml::from_str::<Settings>(settings).unwrap(), options)
}

#[test]
fn a_session_stops_fails_and_goes_on_as_its_caller_says() {
    tch::set_num_threads(1);
    let dir = tempfile::tempdir().unwrap();
    let mut stages = Vec::new();
    let stopped = open(dir.path(), SETTINGS).unwrap().train(&mut |event| -> distill::Result<Control> {
        Ok(match event {
            Event::Begin(summary) => {
                assert!(summary.settings.contains("feature_loss = \"absolute\""), "{}", summary.settings);
                assert_eq!((summary.images, summary.global_batch(), summary.steps_per_epoch()), (2, 1, 2.0));
                assert!(summary.student_params < summary.teacher_params && summary.trained == summary.student_params);
                Control::Continue
            }
            Event::Stage { name, step, steps } => {
                stages.push((name.to_string(), step, steps));
                Control::Continue
            }
            Event::Step(progress) if progress.step == 1 => Control::Stop,
            _ => Control::Continue,
        })
    });
    assert!(matches!(stopped, Err(Error::Stopped { ref stage, step: 1 }) if stage == "distill"), "{stopped:?}");
    assert_eq!(stages, [("distill".to_string(), 0, 3)]);
    assert!(!dir.path().join("out/unet").exists(), "no student before the last step");

    let failed = open(dir.path(), SETTINGS).unwrap().train(&mut |event| match event {
        Event::Step(progress) => Err(Halted::Own(progress.step)),
        _ => Ok(Control::Continue),
    });
    match failed {
        // It goes on behind the step at which it was stopped.
        Err(Halted::Own(step)) => assert_eq!(step, 2),
        Err(Halted::Distill(error)) => panic!("{error}"),
        Ok(_) => panic!("the caller failed"),
    }

    let done = open(dir.path(), SETTINGS).unwrap().train(&mut |_| -> Result<Control, Halted> { Ok(Control::Continue) }).unwrap();
    let record = done.record.unwrap();
    assert_eq!((done.steps, record.plan.as_deref()), (3, Some("two-layers")));
    // The caller's loss is told by its name, in words, and term by term.
    assert_eq!(Record::read_in(&dir.path().join("out")).unwrap(), record);
    assert_eq!((record.losses().unwrap().feature_loss.as_str(), record.feature_loss.as_str()), ("absolute", "absolute differences"));
    let log = std::fs::read_to_string(dir.path().join("out/log.jsonl")).unwrap();
    let rows: Vec<LogRow> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row.terms.keys().filter(|term| term.starts_with("feat.")).count() > 4 && row.terms["task"] > 0.0));
    let file = unet::weights::TensorFile::open(dir.path().join("out/unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(file.metadata()["laptop_diff.plan"], "{}");
}

#[test]
fn a_session_of_an_unknown_feature_loss_is_refused_before_anything_is_opened() {
    let settings: Settings = toml::from_str(&SETTINGS.replace("\"absolute\"", "\"magic\"")).unwrap();
    let refused = settings.check(&FeatureLosses::builtin()).unwrap_err();
    assert!(matches!(&refused, Error::Config { key, got, .. } if key == "losses.feature_loss" && got == "`magic`"), "{refused}");
}

#[test]
fn a_layerwise_warm_up_takes_a_teacher_in_another_number_type() {
    tch::set_num_threads(1);
    let loops = SETTINGS.split_once("[trainer]").unwrap().1.split_once("[data]").unwrap().0;
    let warm_up =
        |compute: &str| format!("[layerwise]{}", loops.replace("\"f32\"", &format!("\"{compute}\"")).replace("steps = 3", "steps = 1"));
    let first_loss = |teacher: &str, warm_up: String| {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("teacher_compute = \"{teacher}\"\n{SETTINGS}\n{warm_up}").replace("steps = 3", "steps = 1");
        open(dir.path(), &text).unwrap().train(&mut |_| -> distill::Result<_> { Ok(Control::Continue) }).unwrap();
        let log = std::fs::read_to_string(dir.path().join("work/layerwise/log.jsonl")).unwrap();
        serde_json::from_str::<LogRow>(log.lines().next().unwrap()).unwrap().loss
    };
    let expected = first_loss("f32", warm_up("f32"));
    for (teacher, student) in [("bf16", "f32"), ("f32", "bf16"), ("f16", "f32")] {
        let got = first_loss(teacher, warm_up(student));
        assert!((got - expected).abs() < 0.03 * expected, "{teacher} teacher, {student} student: {got}, all in f32 {expected}");
    }
}

#[test]
fn a_run_that_goes_astray_writes_no_student() {
    tch::set_num_threads(1);
    // Rates at which the first step leaves f32, and at which it leaves only the f16 of the model's files.
    for (rate, parameter) in [("1e39", false), ("1e6", true)] {
        let dir = tempfile::tempdir().unwrap();
        let text = SETTINGS.replace("lr = 1e-4", &format!("lr = {rate}")).replace("steps = 3", "steps = 1");
        for _ in 0..2 {
            let error = open(dir.path(), &text).unwrap().train(&mut |_| -> distill::Result<_> { Ok(Control::Continue) }).unwrap_err();
            assert!(
                if parameter {
                    matches!(&error, Error::NotStorable { kind: "f16", .. })
                } else {
                    matches!(&error, Error::WeightsNotFinite { .. })
                },
                "rate {rate}: {error}"
            );
            assert!(!dir.path().join("out/unet").exists() && !dir.path().join("out/distill.json").exists());
            assert!(dir.path().join("out/log.jsonl").is_file());
        }
    }
}
