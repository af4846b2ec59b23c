//! Recovery of each gap by itself, before distillation of the whole network: the parts around a removed layer learn to make of
//! the teacher's own inputs what the teacher makes of them. No stretch sees the errors of another, so all learn at once.

use tch::{Kind, Tensor};
use unet::weights::{Tensors, Weights};
use unet::{Stretch, UNet};

use crate::error::{Error, Result};
use crate::from_scratch::cast;
use crate::losses::mse_per_sample;
use crate::noise::{LatentData, Noised};
use crate::trainer::{StepLoss, Task};

/// The sum over stretches of `E(||out_T - out_S||^2 / mean(out_T^2))`, per sample, over all that leaves the stretch.
pub struct LocalTask<'a> {
    teacher: &'a UNet,
    student: &'a UNet,
    stretches: Vec<Stretch>,
    data: LatentData<'a>,
}

const SMALLEST_ALPHA: f64 = 1e-8;

impl<'a> LocalTask<'a> {
    /// Local recovery of `student`, whose parameters are those to start from.
    ///
    /// # Errors
    /// [`Error::Config`] when it lacks nothing.
    pub fn new(teacher: &'a UNet, student: &'a UNet, data: LatentData<'a>) -> Result<Self> {
        let mut stretches = student.stretches();
        // Where the neighbours lack everything too, there is nothing to train.
        stretches.retain(|stretch| student.parameters().keys().any(|key| within(key, stretch)));
        if stretches.is_empty() {
            let (key, got) = ("local".into(), "one that lacks nothing".into());
            return Err(Error::Config { key, expected: "a pruned student".into(), got });
        }
        Ok(Self { teacher, student, stretches, data })
    }

    /// The parameters to train: those of every part in a stretch.
    pub fn initial(&self) -> Tensors {
        let all = self.student.parameters().iter();
        all.filter(|(key, _)| self.stretches.iter().any(|stretch| within(key, stretch)))
            .map(|(key, t)| (key.clone(), t.shallow_clone()))
            .collect()
    }

    /// All parameters of the student, with the trained ones among them.
    pub fn complete(&self, trained: &Tensors) -> Tensors {
        let all = self.student.parameters().iter();
        all.map(|(key, t)| (key.clone(), trained.get(key).unwrap_or(t).shallow_clone())).collect()
    }
}

/// Whether a parameter belongs to a part of the stretch.
fn within(key: &str, stretch: &Stretch) -> bool {
    stretch.parts.iter().any(|part| key.strip_prefix(part.as_str()).is_some_and(|rest| rest.starts_with('.')))
}

impl Task for LocalTask<'_> {
    fn loss(&mut self, params: &Tensors, micro: u64) -> Result<StepLoss> {
        let Noised { x_t, timesteps, cond, .. } = self.data.noised(micro)?;
        let inputs = tch::no_grad(|| self.teacher.local_inputs(&x_t, &timesteps, &cond))?;
        let weights = Weights::from_tensors(cast(&self.complete(params), self.data.compute));
        let student = UNet::from_weights(self.student.config(), weights, self.student.removed())?;
        let mut terms = Vec::with_capacity(self.stretches.len());
        let mut total = Tensor::zeros([], (Kind::Float, self.data.device));
        for stretch in &self.stretches {
            let leaving = student.local(&inputs, stretch);
            let errors = leaving.iter().map(|(teacher, own)| {
                let square = teacher.detach().to_kind(Kind::Float).square();
                // [B, C, H, W] -> [B]
                let alpha = square.flatten(1, -1).mean_dim([1i64].as_slice(), false, Kind::Float).clamp_min(SMALLEST_ALPHA);
                (mse_per_sample(teacher, own) / alpha).mean(Kind::Float)
            });
            let Some(term) = errors.reduce(|a, b| a + b) else { continue };
            // Stretches share nothing but leaves: each one's activations go before the next one's come.
            term.f_backward()?;
            let term = term.detach();
            total += &term;
            terms.push((format!("local.{}", stretch.id), term));
        }
        Ok(StepLoss { total, terms })
    }
}
