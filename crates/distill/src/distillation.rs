//! Retraining of a pruned U-Net under its teacher: pruned model -> distillation.
//!
//! The student is any U-Net whose taps are among the teacher's; nothing here knows how its layers were chosen.

use tch::{Kind, Tensor};
use unet::weights::{Tensors, Weights};
use unet::{ForwardOptions, RemovalSet, TapSet, UNet, UNetConfig};

use crate::error::Result;
use crate::lora::{Joint, Lora};
use crate::loss::{FeatureLoss, FeatureLosses, LossConfig, feature_terms, mse, mse_per_sample, snr_weights};
use crate::noise::{LatentData, Noised};
use crate::train::{Average, StepLoss, Task};

/// `L = task_weight * L_task + output_weight * L_outKD + feature_weight * L_featKD` on latents.
pub struct DistillTask<'a> {
    teacher: &'a UNet,
    student: &'a UNetConfig,
    removed: &'a RemovalSet,
    taps: TapSet,
    // None: no taps.
    features: Option<Box<dyn FeatureLoss>>,
    losses: LossConfig,
    data: LatentData<'a>,
    checkpointing: bool,
    lora: Option<&'a Lora>,
}

impl<'a> DistillTask<'a> {
    /// A student of `teacher` with the architecture `student` less `removed`, compared at `taps` by the feature loss that `losses`
    /// names among `known`.
    ///
    /// # Errors
    /// [`crate::Error::Config`] when the loss settings are out of range, or the feature loss is not known.
    pub fn new(
        teacher: &'a UNet,
        student: &'a UNetConfig,
        removed: &'a RemovalSet,
        taps: TapSet,
        losses: LossConfig,
        known: &FeatureLosses,
        data: LatentData<'a>,
    ) -> Result<Self> {
        losses.check()?;
        let features = known.make(&losses)?;
        let taps = if features.is_none() { TapSet::none() } else { taps };
        Ok(Self { teacher, student, removed, taps, features, losses, data, checkpointing: false, lora: None })
    }

    /// Whether the student's inner activations are computed again for the backward pass instead of kept
    /// ([`UNet::forward_checkpointed`]): less memory for some more time, and no other bit.
    pub fn with_checkpointing(self, checkpointing: bool) -> Self {
        Self { checkpointing, ..self }
    }

    /// The parameters to train are the factors of these adapters on the student's own weights, and nothing else.
    pub fn with_lora(self, lora: &'a Lora) -> Self {
        Self { lora: Some(lora), ..self }
    }

    /// The student's weights in the type to compute in, connected to what is trained.
    fn weights(&self, params: &Tensors) -> Result<Tensors> {
        let all = self.lora.map(|lora| lora.merge(params)).transpose()?;
        Ok(crate::from_scratch::cast(all.as_ref().unwrap_or(params), self.data.compute))
    }

    fn build(&self, weights: Tensors) -> Result<UNet> {
        Ok(UNet::from_weights(self.student, Weights::from_tensors(weights), self.removed)?)
    }

    fn forward(&self, unet: &UNet, x_t: &Tensor, t: &Tensor, cond: &unet::Conditioning) -> Result<(Tensor, Tensors)> {
        let options = ForwardOptions { ablated: &RemovalSet::empty(), taps: &self.taps };
        let out = unet.forward_with(x_t, t, cond, &options)?;
        Ok((out.sample, out.taps))
    }
}

impl Task for DistillTask<'_> {
    fn loss(&mut self, params: &Tensors, micro: u64) -> Result<StepLoss> {
        let Noised { x_t, timesteps, cond, target } = self.data.noised(micro)?;
        let snr = match self.losses.min_snr_gamma {
            0.0 => None,
            gamma => Some(snr_weights(self.data.schedule, &timesteps, gamma)?),
        };
        let truth = Truth { target: &target, weights: snr.as_ref() };
        let (eps_t, f_t) = tch::no_grad(|| self.forward(self.teacher, &x_t, &timesteps, &cond))?;
        let weights = self.weights(params)?;
        let teacher = Answer { sample: &eps_t, taps: &f_t };
        if !self.checkpointing {
            let student = self.build(weights)?;
            let (eps_s, f_s) = self.forward(&student, &x_t, &timesteps, &cond)?;
            return self.step_loss(&teacher, &Answer { sample: &eps_s, taps: &f_s }, &truth);
        }
        // The factors are reached once, behind all pieces of the backward pass.
        let joint = self.lora.map(|_| Joint::new(&weights));
        let student = self.build(joint.as_ref().map_or(weights, |joint| shallow(&joint.leaves)))?;
        let pass = student.forward_checkpointed(&x_t, &timesteps, &cond, &self.taps)?;
        let outputs = pass.forward();
        let loss = self.step_loss(&teacher, &Answer { sample: &outputs.sample, taps: &outputs.taps }, &truth)?;
        loss.total.f_backward()?;
        drop((eps_t, f_t));
        pass.backward()?;
        if let Some(joint) = joint {
            joint.backward()?;
        }
        Ok(StepLoss { total: loss.total.detach(), terms: loss.terms })
    }

    fn end_step(&mut self, average: &mut Average) -> Result<()> {
        self.features.as_mut().map_or(Ok(()), |loss| loss.end_step(average))
    }

    fn state(&self) -> Tensors {
        self.features.as_ref().map_or_else(Tensors::new, |loss| loss.state())
    }

    fn restore(&mut self, state: &Tensors) {
        if let Some(loss) = &mut self.features {
            loss.restore(state);
        }
    }
}

fn shallow(tensors: &Tensors) -> Tensors {
    tensors.iter().map(|(key, t)| (key.clone(), t.shallow_clone())).collect()
}

/// What a network says of a batch.
struct Answer<'a> {
    sample: &'a Tensor,
    taps: &'a Tensors,
}

/// What the data say of a batch.
struct Truth<'a> {
    target: &'a Tensor,
    // [B]; None weighs all samples alike.
    weights: Option<&'a Tensor>,
}

impl Truth<'_> {
    fn error(&self, prediction: &Tensor, wanted: &Tensor) -> Tensor {
        match self.weights {
            None => mse(prediction, wanted),
            Some(weights) => (mse_per_sample(prediction, wanted) * weights).mean(Kind::Float),
        }
    }
}

impl DistillTask<'_> {
    fn step_loss(&mut self, teacher: &Answer, student: &Answer, truth: &Truth) -> Result<StepLoss> {
        let mut terms = vec![("task".to_string(), truth.error(student.sample, truth.target) * self.losses.task_weight)];
        terms.push(("out".to_string(), truth.error(student.sample, teacher.sample) * self.losses.output_weight));
        if let Some(loss) = &mut self.features {
            for (tap, term) in feature_terms(loss.as_mut(), teacher.taps, student.taps)? {
                terms.push((format!("feat.{tap}"), term * self.losses.feature_weight));
            }
        }
        let total = terms.iter().fold(Tensor::zeros([], (Kind::Float, self.data.device)), |sum, (_, term)| sum + term);
        Ok(StepLoss { total, terms: terms.into_iter().map(|(n, t)| (n, t.detach())).collect() })
    }
}
