//! A whole distillation: teacher, student and data -> trained student, log, validation, record. What the command `distill` does, for
//! any Rust program.
//!
//! 1. [`Settings`]: what a run is, from TOML. [`Session::open`]: the teacher and the student that it starts from.
//! 2. [`Session::train`]: data, layer-wise warm-up, distillation, files. An interrupted run goes on where it stopped.

mod settings;
mod summary;
mod validation;
mod student;
mod write;
mod halt;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;

use data::{Conditioner, OpenEvent, TrainingData, TrainingSource};
use diffusion::{ModelRef, Pipeline, TimeIds};
use serde::Serialize;
use tch::Device;
use torch_ext::ProcessGroup;
use unet::UNet;

use crate::distillation::DistillTask;
use crate::error::{Error, Result};
use crate::layerwise::LayerwiseTask;
use crate::lora::Lora;
use crate::loss::FeatureLosses;
use crate::noise::LatentData;
use crate::record::Record;
use crate::train::{Control, LoggedRun, Progress, Trainer, TrainerConfig, Validation, check_checkpoints};

pub use settings::{Settings, Taps};
pub use student::StudentSource;
pub use summary::Summary;
pub use validation::{ValidationRow, ValidationSettings};

pub(crate) use halt::Halt;
use summary::Parts;
use validation::Validator;

/// What a run is made of and where it writes.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The teacher: a model directory or a whole checkpoint.
    pub model: ModelRef,
    /// What is trained.
    pub student: StudentSource,
    /// Folder that relative paths of the settings start at.
    pub base: PathBuf,
    /// Folder of the results: `unet/`, `log.jsonl`, `distill.json`, and the adapters where only these are trained.
    pub out: PathBuf,
    /// Folder of checkpoints and of what is computed once; an interrupted run goes on from there.
    pub work: PathBuf,
    /// Where to compute.
    pub device: Device,
    /// The ranks that train together; none for one alone. All ranks need the same options and see the same folders.
    pub group: Option<Rc<ProcessGroup>>,
    /// The feature losses that the settings may name.
    pub feature_losses: FeatureLosses,
}

impl SessionOptions {
    fn ranks(&self) -> u64 {
        self.group.as_ref().map_or(1, |group| group.world() as u64)
    }

    fn is_first(&self) -> bool {
        self.group.as_ref().is_none_or(|group| group.rank() == 0)
    }
}

/// What a run tells its caller.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// What the run is going to do, before its first step. Told on the first rank alone.
    Begin(&'a Summary),
    /// A stage begins, or goes on, at a step.
    Stage {
        /// `layerwise` or `distill`; from nothing: `vae`, `clip`, `grounding`, and `unet/1` and so on.
        name: &'a str,
        /// Steps done.
        step: u64,
        /// Steps in the stage.
        steps: u64,
    },
    /// A step is done.
    Step(Progress<'a>),
    /// Images were found, for an index.
    Indexed {
        /// How many.
        done: u64,
    },
    /// Images were encoded, once for all steps.
    Encoded {
        /// How many.
        done: u64,
        /// How many there are.
        of: u64,
    },
}

/// A finished run.
#[derive(Debug, Clone, PartialEq)]
pub struct Finished {
    /// What was written to `distill.json`; none on all ranks but the first.
    pub record: Option<Record>,
    /// Steps done.
    pub steps: u64,
    /// Mean time of a step; none where fewer than two were made.
    pub seconds_per_step: Option<f64>,
    /// The last mean loss; none where none was logged, or all steps since the row before were skipped.
    pub last_loss: Option<f64>,
    /// Steps skipped because something was not finite.
    pub skipped: u64,
}

/// What the caller does with an [`Event`].
pub type OnEvent<'c, E> = dyn FnMut(Event) -> Result<Control, E> + 'c;

/// A distillation, opened.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    options: SessionOptions,
    pipeline: Pipeline,
    student: UNet,
    // Fingerprint.
    teacher: String,
    // What the student's file says of how its layers were chosen.
    chosen: BTreeMap<String, String>,
}

const DISTILL: &str = "distill";
const LAYERWISE: &str = "layerwise";

impl Session {
    /// Checks the settings, opens the teacher and what surrounds it, and makes the student that training starts from.
    ///
    /// # Errors
    /// [`Error::Config`] when settings are out of range, or the student is no part of the teacher; files that cannot be read.
    pub fn open(settings: Settings, options: SessionOptions) -> Result<Self> {
        settings.check(&options.feature_losses)?;
        let pipeline = Pipeline::open(&options.model, None, options.device, settings.teacher_compute().kind())?;
        let student = options.student.open(&options.model.path, pipeline.unet())?;
        let teacher = unet::fingerprint(&options.model.path)?;
        let chosen = options.student.metadata(&student);
        Ok(Self { settings, options, pipeline, student, teacher, chosen })
    }

    /// The teacher and what surrounds it.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }

    /// Trains, and writes the results into the folder `out`; goes on where an earlier call stopped.
    ///
    /// # Errors
    /// [`Error::Stopped`] when `on` says stop; those of [`Trainer::run`], of the data and of `on`; files that cannot be read or written.
    pub fn train<E: From<Error>>(mut self, on: &mut OnEvent<E>) -> Result<Finished, E> {
        check_checkpoints(&self.options.work)?;
        let data = &self.open_data(on)?;
        let mut identity = self.identity(data)?;
        if let Some(config) = self.settings.layerwise.clone() {
            self.student = self.warm_up(&config, data, &identity, on)?;
            identity.insert("layerwise".into(), config.identity(self.options.ranks()));
        }
        self.add_loss(&mut identity);
        let lora = self.lora()?;
        let mut trainer = self.trainer(lora.as_ref(), identity, data, on)?;
        if lora.is_none() {
            // The trainer has its own copy; a second one would only take memory.
            self.student = student::with_weights(&self.student, trainer.tensors())?;
        }
        let seconds_per_step = self.distill(&mut trainer, lora.as_ref(), data, on)?;
        let averaged = trainer.averaged()?;
        let record = if self.options.is_first() { Some(self.write(averaged, lora.as_ref())?) } else { None };
        let last_loss = trainer.log().last().map(|row| row.loss).filter(|loss| loss.is_finite());
        Ok(Finished { record, steps: trainer.step(), seconds_per_step, last_loss, skipped: trainer.skipped() })
    }

    /// What decides the numbers of the whole run. A checkpoint of another identity is refused.
    fn identity(&self, data: &TrainingSource) -> Result<BTreeMap<String, String>> {
        let mut identity = BTreeMap::from([
            ("teacher".to_string(), self.teacher.clone()),
            ("student".to_string(), self.options.student.identity()?),
            ("data".to_string(), data.identity().to_string()),
        ]);
        if let Some(compute) = self.settings.teacher_compute {
            identity.insert("teacher_compute".into(), json(&compute));
        }
        Ok(identity)
    }

    /// What decides the numbers of the distillation besides.
    fn add_loss(&self, identity: &mut BTreeMap<String, String>) {
        identity.insert("losses".into(), json(&self.settings.losses));
        identity.insert("taps".into(), format!("{:?}", self.settings.taps));
        if self.settings.lora.is_some() {
            identity.insert("lora".into(), json(&self.settings.lora));
        }
    }

    fn lora(&self) -> Result<Option<Lora>> {
        self.settings.lora.as_ref().map(|lora| Lora::new(self.student.parameters(), lora)).transpose()
    }

    /// The layer-wise warm-up; its checkpoints and log are kept in `work/layerwise`.
    fn warm_up<E: From<Error>>(
        &self,
        config: &TrainerConfig,
        data: &TrainingSource,
        identity: &BTreeMap<String, String>,
        on: &mut OnEvent<E>,
    ) -> Result<UNet, E> {
        let dir = self.options.work.join(LAYERWISE);
        std::fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        let conditioner = self.conditioner();
        let latents = self.latents(data, config, &conditioner)?;
        let mut task = LayerwiseTask::new(self.pipeline.unet(), &self.student, latents)?;
        let (device, group) = (self.options.device, self.options.group.clone());
        let mut trainer = Trainer::distributed(config.clone(), &task.initial(), device, identity.clone(), Some(&dir), group)?;
        on(Event::Stage { name: LAYERWISE, step: trainer.step(), steps: config.steps })?;
        let run = LoggedRun { stage: LAYERWISE, dir: &dir };
        run.run(&mut trainer, &mut task, None, &mut |progress| on(Event::Step(progress)))?;
        Ok(student::with_weights(&self.student, task.complete(&trainer.averaged()?))?)
    }

    /// The trainer of the distillation, at its beginning or where it stopped; tells what it is going to do.
    fn trainer<E: From<Error>>(
        &self,
        lora: Option<&Lora>,
        identity: BTreeMap<String, String>,
        data: &TrainingSource,
        on: &mut OnEvent<E>,
    ) -> Result<Trainer, E> {
        let (config, options) = (&self.settings.trainer, &self.options);
        let initial = match lora {
            None => student::shallow(self.student.parameters()),
            Some(lora) => lora.initial(config.seed, options.device)?,
        };
        let group = options.group.clone();
        let trainer = Trainer::distributed(config.clone(), &initial, options.device, identity, Some(&options.work), group)?;
        if options.is_first() {
            let trained = initial.values().map(|t| t.numel() as u64).sum();
            let (images, ranks) = (data.images(), options.ranks());
            let parts = Parts { pipeline: &self.pipeline, student: &self.student, trained, images, ranks };
            on(Event::Begin(&parts.summary(&self.settings)?))?;
        }
        Ok(trainer)
    }

    /// The distillation itself.
    fn distill<E: From<Error>>(
        &self,
        trainer: &mut Trainer,
        lora: Option<&Lora>,
        data: &TrainingSource,
        on: &mut OnEvent<E>,
    ) -> Result<Option<f64>, E> {
        let (settings, options, student, teacher) = (&self.settings, &self.options, &self.student, self.pipeline.unet());
        let taps = settings.taps.of(teacher.config(), student.removed())?;
        let conditioner = self.conditioner();
        let latents = self.latents(data, &settings.trainer, &conditioner)?;
        let (losses, known) = (settings.losses.clone(), &options.feature_losses);
        let mut task = DistillTask::new(teacher, student.config(), student.removed(), taps, losses, known, latents)?
            .with_checkpointing(settings.activation_checkpointing);
        if let Some(lora) = lora {
            task = task.with_lora(lora);
        }
        let from = trainer.step();
        let resumed = trainer.is_resumed().then_some(from);
        let open = |v| Validator::open(v, &options.base, &self.pipeline, (student, lora), &options.out, resumed);
        let mut validator = settings.validation.as_ref().map(open).transpose().map_err(E::from)?;
        let validation = validator.as_mut().map(|v| v as &mut dyn Validation);
        on(Event::Stage { name: DISTILL, step: from, steps: settings.trainer.steps })?;
        let run = LoggedRun { stage: DISTILL, dir: &options.out };
        run.run(trainer, &mut task, validation, &mut |progress| on(Event::Step(progress)))
    }

    /// Opens the data; what is computed once is left by the first rank for the others.
    fn open_data<E: From<Error>>(&self, on: &mut OnEvent<E>) -> Result<TrainingSource, E> {
        let Some(group) = &self.options.group else { return self.open_data_here(on) };
        let first = group.first_alone(|| self.open_data_here(on).map_err(Halt::Caller)).map_err(Halt::into_error)?;
        first.map_or_else(|| self.open_data_here(on), Ok)
    }

    fn open_data_here<E: From<Error>>(&self, on: &mut OnEvent<E>) -> Result<TrainingSource, E> {
        let (data, SessionOptions { base, work, .. }) = (&self.settings.data, &self.options);
        let of = if let TrainingData::Scenes(scenes) = data { scenes.count } else { 0 };
        // What is encoded is kept, so a wish to stop waits for its end.
        let mut stop = None;
        let progress = &mut |event| -> Result<(), Halt<E>> {
            let (told, done) = match event {
                OpenEvent::Indexed(done) => (Event::Indexed { done }, done),
                OpenEvent::Encoded(done) => (Event::Encoded { done, of }, done),
            };
            if on(told).map_err(Halt::Caller)? == Control::Stop {
                stop = Some(done);
            }
            Ok(())
        };
        let source = TrainingSource::open(data, &self.pipeline, base, work, progress).map_err(Halt::into_error)?;
        match stop {
            Some(step) => Err(Error::Stopped { stage: "data".into(), step }.into()),
            None => Ok(source),
        }
    }

    /// The data as one rank's training takes them.
    fn latents<'a>(
        &'a self,
        data: &'a TrainingSource,
        trainer: &TrainerConfig,
        conditioner: &'a Conditioner<'a>,
    ) -> Result<LatentData<'a>> {
        let samples = data.samples(&self.pipeline, conditioner, trainer.batch, trainer.seed, self.options.ranks())?;
        LatentData::new(samples, &self.pipeline, &self.settings.data, trainer)
    }

    /// Encodes captions for images of the model's own size.
    fn conditioner(&self) -> impl Fn(&[&str]) -> diffusion::Result<unet::Conditioning> + '_ {
        let (height, width) = self.pipeline.native_size().unwrap_or((512, 512));
        move |captions| self.pipeline.encode_prompts(captions, TimeIds::uncropped(height, width))
    }
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("settings are JSON")
}
