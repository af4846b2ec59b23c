//! `laptop-diff distill`: retrains a pruned U-Net under its teacher. Pruned model -> **student** -> evaluation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use artifact::Document;
use clap::builder::{PossibleValue, PossibleValuesParser};
use diffusion::{Pipeline, TimeIds};
use distill::{
    Compute, DistillTask, FeatureLosses, LatentData, LayerwiseTask, Lora, LoraConfig, LossConfig, Record, Trainer, TrainerConfig,
};
use prune_core::Plan;
use serde::{Deserialize, Serialize};
use tch::Kind;
use unet::weights::{Tensors, Weights};
use unet::{TapSet, UNet};

use super::distill_data::{Data, Opened};
use crate::announce::Derived;
use crate::common::{BadInput, file_hash, prepare_dir};
use crate::device::DeviceChoice;
use crate::hub::ModelArg;
use crate::model::Model;
use crate::ranks::Ranks;
use crate::training::{Training, Validation};
use crate::validation::{self, Validator};

/// The adapters' file, under the name that diffusers looks for.
const ADAPTERS: &str = "pytorch_lora_weights.safetensors";

/// Arguments of `distill`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("who").required(true).args(["plan", "student"]))]
pub struct Args {
    /// The teacher: a model directory in diffusers' layout.
    #[arg(long)]
    pub(super) model: ModelArg,
    /// The student is the teacher without the layers of this plan.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// The student is this pruned U-Net (written by `prune`).
    #[arg(long)]
    student: Option<PathBuf>,
    /// Settings of the run; the table [distill] of configs/reproduce-tiny.toml is an example.
    #[arg(long)]
    config: PathBuf,
    /// The folder to write: unet/, log.jsonl, distill.json, and the adapters where only these are trained.
    #[arg(long)]
    out: PathBuf,
    /// Folder of checkpoints and caches; an interrupted run goes on from there [default: OUT/.work].
    #[arg(long)]
    work: Option<PathBuf>,
    /// Feature loss, instead of the settings' own.
    #[arg(long, alias = "features", value_name = "NAME", value_parser = feature_losses())]
    feature_loss: Option<String>,
    /// Optimizer steps, instead of the settings' own.
    #[arg(long)]
    steps: Option<u64>,
    /// Seed of data order, noise and timesteps, instead of the settings' own.
    #[arg(long)]
    seed: Option<u64>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
}

/// The feature losses by their names.
fn feature_losses() -> PossibleValuesParser {
    let entries = FeatureLosses::builtin();
    entries.entries().iter().map(|entry| PossibleValue::new(entry.name).help(entry.about)).collect::<Vec<_>>().into()
}

/// Former names of settings and their present ones.
const RENAMED: [(&str, &str); 7] = [
    ("features", "feature_loss"),
    ("task", "task_weight"),
    ("out", "output_weight"),
    ("feat", "feature_weight"),
    ("schedule", "lr_schedule"),
    ("local", "layerwise"),
    ("cfg", "guidance_scale"),
];

/// The settings file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where features are compared.
    pub taps: Taps,
    /// Computes the student's inner activations again for the backward pass instead of keeping them: less memory, no other bit.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// Number type that the frozen teacher, the autoencoder and the text encoders compute in, where it is not the trainer's:
    /// without gradients bf16 does them little harm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher_compute: Option<Compute>,
    /// The loss.
    pub losses: LossConfig,
    /// The loop.
    pub trainer: TrainerConfig,
    /// The loop of a layer-wise warm-up, in which the surroundings of each removed layer learn by themselves from the teacher's own inputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layerwise: Option<TrainerConfig>,
    /// Trains these adapters instead of the student's own weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// The data.
    pub data: Data,
    /// What is measured and drawn on the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<validation::Settings>,
}

/// Sets of features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taps {
    /// The end of every stage.
    Stages,
    /// The end of every stage, ResNet and transformer.
    All,
    /// The output of every self-attention; where the layer is removed, the end of its transformer instead.
    SelfAttention,
    /// The end of every ResNet and transformer that lacks a layer.
    Removed,
}

/// Trains and writes.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = settings(args)?;
    let ranks = Ranks::join()?;
    let model = args.model.open()?;
    let plan = args.plan.as_deref().map(|p| model.plan(p)).transpose()?;
    let work = args.work.clone().unwrap_or_else(|| args.out.join(".work"));
    prepare_dir(&args.out)?;
    prepare_dir(&work)?;

    let device = ranks.device(args.device)?;
    let teacher_kind = config.teacher_compute.unwrap_or(config.trainer.compute).kind();
    let pipeline = Pipeline::open(args.model.path()?, None, device, teacher_kind)?;
    let teacher = pipeline.unet();
    let student = student(args, &model, plan.as_ref(), teacher)?;

    let base = args.config.parent().unwrap_or(Path::new(""));
    let data = ranks.first_then_others(|| Opened::new(&config.data, &pipeline, base, &work))?;
    let (height, width) = pipeline.native_size().unwrap_or((512, 512));
    let conditioner = |captions: &[&str]| pipeline.encode_prompts(captions, TimeIds::uncropped(height, width));
    let named_plan = student.metadata().get("laptop_diff.plan").cloned();
    let of_teacher = unet::fingerprint(model.unet())?;
    let mut identity = BTreeMap::from([
        ("teacher".to_string(), of_teacher.clone()),
        ("student".to_string(), student_identity(args, &student)?),
        ("data".to_string(), data.identity().to_string()),
    ]);
    if let Some(compute) = config.teacher_compute {
        identity.insert("teacher_compute".into(), serde_json::to_string(&compute)?);
    }
    let student = match &config.layerwise {
        None => student,
        Some(layerwise) => {
            let training = data.training(&config.data, layerwise, &pipeline, &conditioner, ranks.count())?;
            let warm = warm_up(layerwise, teacher, &student, training, &identity, &work, &ranks)?;
            identity.insert("layerwise".into(), serde_json::to_string(layerwise)?);
            warm
        }
    };
    identity.insert("losses".into(), serde_json::to_string(&config.losses)?);
    identity.insert("taps".into(), format!("{:?}", config.taps));
    let lora = config.lora.as_ref().map(|lora| Lora::new(student.parameters(), lora)).transpose()?;
    let initial = match &lora {
        None => shallow(student.parameters()),
        Some(lora) => {
            identity.insert("lora".into(), serde_json::to_string(&config.lora)?);
            lora.initial(config.trainer.seed, device)?
        }
    };
    let mut trainer = Trainer::distributed(config.trainer.clone(), &initial, device, identity, Some(&work), ranks.group())?;
    if ranks.is_first() {
        let (trained, pictures) = (initial.values().map(|t| t.numel() as u64).sum(), data.pictures());
        let derived = Derived { config: &config, pipeline: &pipeline, student: &student, trained, pictures, ranks: ranks.count() };
        eprintln!("{}", derived.text()?);
    }
    drop(initial);
    // The trainer has its own copy; a second one would only take memory.
    let student = if lora.is_none() { with_weights(student, trainer.tensors())? } else { student };
    let taps = match config.taps {
        Taps::Stages => TapSet::stages(teacher.config()),
        Taps::All => TapSet::all(teacher.config()),
        Taps::SelfAttention => TapSet::self_attention(teacher.config(), student.removed())?,
        Taps::Removed => TapSet::removed(teacher.config(), student.removed())?,
    };
    let training = data.training(&config.data, &config.trainer, &pipeline, &conditioner, ranks.count())?;
    let mut task =
        DistillTask::new(teacher, student.config(), student.removed(), taps, config.losses.clone(), &FeatureLosses::builtin(), training)?
            .with_checkpointing(config.activation_checkpointing);
    if let Some(lora) = &lora {
        task = task.with_lora(lora);
    }
    let open = |settings| Validator::open(settings, base, &pipeline, &student, lora.as_ref(), &args.out, trainer.step());
    let mut validator = config.validation.as_ref().map(open).transpose()?;
    let validation = validator.as_mut().map(|v| v as &mut dyn Validation);
    let training = Training { name: "distill", steps: config.trainer.steps, dir: &args.out, first: ranks.is_first(), events: true };
    let speed = training.drive(&mut trainer, &mut task, validation)?;

    let averaged = trainer.averaged()?;
    if !ranks.is_first() {
        return Ok(());
    }
    let weights = match &lora {
        None => averaged,
        Some(lora) => {
            lora.save(&args.out.join(ADAPTERS), &averaged)?;
            lora.merge(&averaged)?
        }
    };
    let trained = UNet::from_weights(student.config(), Weights::from_tensors(weights), student.removed())?;
    let plan_text = match &plan {
        Some(plan) => Some(plan.to_json()?),
        None => named_plan,
    };
    let mut extra = BTreeMap::from([("laptop_diff.distill".to_string(), serde_json::to_string(&config)?)]);
    extra.extend(plan_text.map(|text| ("laptop_diff.plan".to_string(), text)));
    trained.save(args.out.join("unet"), Some(unet::stored_kind(model.unet())?), &extra)?;
    let named = args.plan.as_deref().or(args.student.as_deref());
    let serde_json::Value::Object(config) = serde_json::to_value(&config)? else { unreachable!("a struct is an object") };
    let record = Record { plan: named.map(unet::plan_name), teacher: of_teacher, params: trained.num_parameters(), config };
    record.write(&args.out.join(Record::FILE))?;
    let last = trainer.log().last().map_or(f64::NAN, |row| row.loss);
    let (out, steps) = (args.out.display(), trainer.step());
    println!("{out}: {} parameters after {steps} steps{speed}, last loss {last:.5}", record.params);
    Ok(())
}

/// The U-Net to train: pruned already, or pruned now by the plan.
fn student(args: &Args, model: &Model, plan: Option<&Plan>, teacher: &UNet) -> anyhow::Result<UNet> {
    match (&args.student, plan) {
        (Some(dir), _) => {
            let student = UNet::open(dir, teacher.device(), Kind::Float)?;
            if student.config().to_json() != teacher.config().to_json() {
                let problem = format!("--student {}: its architecture is not the teacher's; prune this teacher", dir.display());
                return Err(BadInput(problem).into());
            }
            Ok(student)
        }
        // In f32 the teacher's own weights will do: they are copied into the trainer.
        (None, Some(plan)) if teacher.kind() == Kind::Float => Ok(teacher.prune(&plan.removal_set())?),
        (None, Some(plan)) => Ok(UNet::open(model.unet(), teacher.device(), Kind::Float)?.prune(&plan.removal_set())?),
        (None, None) => Err(BadInput("give --plan or --student".into()).into()),
    }
}

/// The layer-wise warm-up; its checkpoints and log are kept in `work/layerwise`.
fn warm_up(
    config: &TrainerConfig,
    teacher: &UNet,
    student: &UNet,
    data: LatentData,
    identity: &BTreeMap<String, String>,
    work: &Path,
    ranks: &Ranks,
) -> anyhow::Result<UNet> {
    let dir = work.join("layerwise");
    prepare_dir(&dir)?;
    let mut task = LayerwiseTask::new(teacher, student, data)?;
    let mut trainer = Trainer::distributed(config.clone(), &task.initial(), student.device(), identity.clone(), Some(&dir), ranks.group())?;
    let training = Training { name: "layerwise", steps: config.steps, dir: &dir, first: ranks.is_first(), events: true };
    training.drive(&mut trainer, &mut task, None)?;
    let weights = Weights::from_tensors(task.complete(&trainer.averaged()?));
    Ok(UNet::from_weights(student.config(), weights, student.removed())?)
}

/// The same network on other weights; its own are let go.
fn with_weights(unet: UNet, weights: Tensors) -> anyhow::Result<UNet> {
    Ok(UNet::from_weights(unet.config(), Weights::from_tensors(weights), unet.removed())?)
}

fn shallow(tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect()
}

/// The settings file, with what the command line changes.
fn settings(args: &Args) -> anyhow::Result<Config> {
    let mut config: Config = artifact::read_toml(&args.config, &RENAMED)?;
    if let Some(name) = &args.feature_loss {
        config.losses.feature_loss.clone_from(name);
    }
    config.trainer.steps = args.steps.unwrap_or(config.trainer.steps);
    config.trainer.seed = args.seed.unwrap_or(config.trainer.seed);
    let checked = || -> distill::Result<()> {
        config.trainer.check()?;
        config.losses.check()?;
        FeatureLosses::builtin().entry(&config.losses.feature_loss)?;
        config.layerwise.as_ref().map_or(Ok(()), TrainerConfig::check)?;
        config.lora.as_ref().map_or(Ok(()), LoraConfig::check)
    };
    checked().with_context(|| args.config.display().to_string())?;
    config.data.check(&args.config)?;
    if let Some(validation) = &config.validation {
        validation.check(&args.config)?;
    }
    Ok(config)
}

/// What the student starts from.
fn student_identity(args: &Args, student: &UNet) -> anyhow::Result<String> {
    Ok(match (&args.student, &args.plan) {
        (Some(dir), _) => unet::fingerprint(dir)?,
        (None, Some(plan)) => format!("plan {}", file_hash(plan)?),
        (None, None) => student.removed().len().to_string(),
    })
}
